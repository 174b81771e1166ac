"""docs/python-api.md and docs/recipes: every code block runs, page by page, each in a folder with the data that it describes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import polars as pl
import pytest

from tests import documents
from tests.end_to_end.test_readme import API, BLOCK, FAILS, THINGS, tools_in, write_tickets
from tests.servers.hub_server import hub
from tests.training.tiny_models import MINILM
from training.model.files import find_model

MODELS = ("sentence-transformers/all-MiniLM-L6-v2", "intfloat/multilingual-e5-small")
PAIRS = [
    (f"My {what} {fails}", f"If the {what} {fails}, unplug it and count to {len(what + fails)}.")
    for what in THINGS
    for fails in FAILS
]


def write_data(here):
    """Write what the pages say you have."""
    for folder in ("tickets", "handbook", "nli", "collection/qrels", "f2llm", "pairs"):
        (here / folder).mkdir(parents=True)
    write_tickets(here / "tickets" / "2026.csv")
    for what in THINGS:
        (here / "handbook" / f"{what}.md").write_text(f"# {what.title()}\nUnplug the {what} and wait for ten seconds.\n")
    rows = []
    for query, answer in PAIRS:
        labels = [(answer, "entailment"), (f"Not: {query}", "contradiction"), (f"{query} often", "neutral")]
        rows += [{"premise": query, "hypothesis": text, "label": label} for text, label in labels]
    (here / "nli" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = [{"_id": f"d{n}", "title": "Help", "text": answer} for n, (_, answer) in enumerate(PAIRS)]
    queries = [{"_id": f"q{n}", "text": query} for n, (query, _) in enumerate(PAIRS)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (here / "collection" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    for split, some in (("test", range(8)), ("train", range(8, len(PAIRS)))):
        judged = "".join(f"q{n}\td{n}\t1\n" for n in some)
        (here / "collection" / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    answers = [answer for _, answer in PAIRS]
    table = {
        "query": [f"Instruct: Given a question, retrieve the answer\nQuery: {query}" for query, _ in PAIRS],
        "passage": answers,
    }
    table |= {f"negative_{n}": answers[n:] + answers[:n] for n in range(1, 25)}
    pl.DataFrame(table).write_parquet(here / "f2llm" / "faq.parquet")
    lines = [f"{answer.replace('the', 'das')}\t{answer}\n" for answer in answers]
    (here / "pairs" / "de-en.tsv").write_text("de\ten\n" + "".join(lines))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", API, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(tmp_path, page):
    here = tmp_path / "here"
    write_data(here)
    with hub(tmp_path / "hub") as server:
        for name in MODELS:
            server.put("models", name, find_model(MINILM).transformer)
        env = os.environ | server.environment() | {"PYTHONPATH": os.pathsep.join([str(documents.ROOT), *filter(None, sys.path)])}
        env["PATH"] = f"{tools_in(tmp_path / 'bin')}{os.pathsep}{env['PATH']}"
        for block in (match.groupdict() for match in BLOCK.finditer(page.read_text())):
            code = block["code"]
            if block["language"] == "yaml":
                (here / f"{code.split()[1]}.yaml").write_text(code)
                continue
            command = [sys.executable, "-c", code] if block["language"] == "python" else ["bash", "-euxc", code]
            done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", API, ids=lambda page: page.stem)
def test_a_page_runs_all_it_shows(page):
    text = page.read_text()
    assert [match["mark"] for match in BLOCK.finditer(text) if match["mark"]] == []
    assert text.count("\n```") == 2 * (len(BLOCK.findall(text)) + text.count("\n```text"))
