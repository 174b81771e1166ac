"""`curate import` of a dataset of the Hub trains on its training split alone."""

from __future__ import annotations

import io
import json

import polars as pl
import yaml

from tests.curation.share.small_published import start
from tests.curation.share.test_exchange import tuples_of
from tests.servers.hub_server import hub

BEIR = """\
---
configs:
- config_name: default
  data_files: [{split: train, path: qrels/train.jsonl}, {split: dev, path: qrels/dev.jsonl}, {split: test, path: qrels/test.jsonl}]
- {config_name: corpus, data_files: [{split: corpus, path: corpus.jsonl}]}
- {config_name: queries, data_files: [{split: queries, path: queries.jsonl}]}
---
"""
CONFIGS = """\
---
configs:
- {config_name: en, data_files: [{split: train, path: en/train.jsonl}, {split: validation, path: en/dev.jsonl}]}
- {config_name: en-test, data_files: [{split: train, path: en/test.jsonl}]}
---
"""


def line(**keys: object) -> str:
    return json.dumps(keys) + "\n"


def test_splits_and_configs(tmp_path):
    pair = line(anchor="who", positive="she")
    qrels = {
        f"qrels/{split}.jsonl": line(**{"query-id": "q", "corpus-id": "d", "score": 1}) for split in ("train", "dev", "test")
    }
    texts = {
        "corpus.jsonl": line(_id="d", title="Oak", text="It bears acorns."),
        "queries.jsonl": line(_id="q", text="acorn tree"),
    }
    sets = {
        "org/plain": {f"data/{split}-00000-of-00001.jsonl": pair for split in ("train", "validation", "test")},
        "org/configs": {"README.md": CONFIGS, **{f"en/{split}.jsonl": pair for split in ("train", "dev", "test")}},
        "org/beir": {"README.md": BEIR, **qrels, **texts},
    }
    wanted = {
        "org/plain": (["plain"], ["plain-validation", "plain-test"]),
        "org/configs": (["en"], ["en-validation", "en-test"]),
        "org/beir": (["beir"], ["beir-dev", "beir-test"]),
    }
    with hub(tmp_path / "hub") as server:
        for name, files in sets.items():
            server.put("datasets", name, files)
        running = {name: start(server, "import", name, "-o", tmp_path / f"{name[4:]}.yaml") for name in sets}
        for name, process in running.items():
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            found = yaml.safe_load((tmp_path / f"{name[4:]}.yaml").read_text())
            made = [[one["name"] for one in some] for some in (found["sources"], found["decontaminate"]["against"])]
            assert tuple(made) == wanted[name]
            for called in wanted[name][1]:
                assert (
                    f"{called}: for development or tests by its name, so not trained on; its texts are removed from the sources\n"
                    in errors
                )


LIGHTON = """\
---
configs:
- {config_name: queries, data_files: [{split: train, path: queries.jsonl}]}
- {config_name: documents, data_files: [{split: train, path: documents.jsonl}]}
- {config_name: train, data_files: [{split: train, path: dataset.jsonl}, {split: test, path: test.jsonl}]}
---
"""


def test_tuples_of_ids_as_lighton_publishes_them(tmp_path):
    """The layout of lightonai/ms-marco-en-bge, by the features on its card."""
    texts = {"d1": "An oak bears acorns.", "d2": "A fern has spores.", "d3": "An ash bears keys."}
    files = {
        "README.md": LIGHTON,
        "queries.jsonl": line(query_id="q1", text="acorn tree"),
        "documents.jsonl": "".join(line(document_id=name, text=text) for name, text in texts.items()),
        **dict.fromkeys(
            ("dataset.jsonl", "test.jsonl"), line(query_id="q1", document_ids=["d1", "d3", "d2"], scores=[0.9, 0.5, 0.1])
        ),
    }
    with hub(tmp_path / "hub") as server:
        commit = server.put("datasets", "org/marco", files)
        for words in (
            ("import", "org/marco", "-o", tmp_path / "m.yaml"),
            ("build", tmp_path / "m.yaml", "-o", tmp_path / "b", "-q"),
        ):
            process = start(server, *words)
            out, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            assert words[0] == "build" or out == "marco: ids\n"
            assert (
                words[0] == "build" or "left out, for development or tests by its name: marco-test: names texts by id" in errors
            )
    (source,) = yaml.safe_load((tmp_path / "m.yaml").read_text())["sources"]
    assert source["revision"] == source["corpus"]["revision"] == commit
    assert tuples_of(tmp_path / "b", "marco") == {"acorn tree": ([texts["d1"]], [texts["d3"], texts["d2"]])}


def parquet(rows):
    file = io.BytesIO()
    pl.DataFrame(rows).write_parquet(file)
    return file.getvalue()


def test_a_file_per_dataset_as_f2llm_v2_is_downloaded(tmp_path):
    """The layout that F2LLM-v2's tokenize_data_qwen.py reads: a parquet per dataset, of texts, with 24 negatives or one."""
    asked = "Instruct: Given a question, find the answer\nQuery: "
    pair = [{"query": f"{asked}tree {n}?", "passage": f"an oak {n}"} for n in range(4)]
    hard = [row | {f"negative_{k}": f"fern {n}-{k}" for k in range(1, 25)} for n, row in enumerate(pair)]
    label = [{"query": f"dull {n}", "passage": "bad film", "negative_1": "good film"} for n in range(4)]
    tokens = [{"query_input_ids": [1, 2], "passage_input_ids": "msmarco_0", "negative_1_input_ids": "msmarco_1"}]
    files = {
        "README.md": "---\nlicense: apache-2.0\n---\n",
        "msmarco.parquet": parquet(hard),
        "imdb.parquet": parquet(label),
        "nq-00000-of-00002.parquet": parquet(hard[:2]),
        "nq-00001-of-00002.parquet": parquet(hard[2:]),
        "wiki_test.parquet": parquet(hard[:1]),
        "msmarco_query.parquet": parquet(tokens),
        "notes.csv": "a,b\n",
    }
    with hub(tmp_path / "hub") as server:
        commit = server.put("datasets", "codefuse-ai/F2LLM-v2", files)
        for words in (
            ("import", "codefuse-ai/F2LLM-v2", "-o", tmp_path / "m.yaml"),
            ("build", tmp_path / "m.yaml", "-o", tmp_path / "b", "-q"),
        ):
            process = start(server, *words)
            out, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            if words[0] == "import":
                said, notes = out, errors
    assert said.splitlines() == ["imdb: f2llm", "msmarco: f2llm", "nq: f2llm"]
    assert "wiki-test: for development or tests by its name, so not trained on; its texts are removed from the sources\n" in notes
    assert (
        "msmarco_query: left out: codefuse-ai/F2LLM-v2/msmarco_query.parquet: has columns of no known format: query_input_ids"
        in notes
    )
    assert "f2llm-v2: left out, as the data is parquet: notes.csv\n" in notes
    found = yaml.safe_load((tmp_path / "m.yaml").read_text())
    assert {one["name"]: one["files"] for one in found["sources"]} == {
        "imdb": ["imdb.parquet"],
        "msmarco": ["msmarco.parquet"],
        "nq": ["nq-00000-of-00002.parquet", "nq-00001-of-00002.parquet"],
    }
    assert {(one["revision"], one["license"], one["path"]) for one in found["sources"]} == {
        (commit, "apache-2.0", "codefuse-ai/F2LLM-v2")
    }
    for name in ("msmarco", "nq"):
        assert tuples_of(tmp_path / "b", name) == {
            f"tree {n}?": ([f"an oak {n}"], [f"fern {n}-{k}" for k in range(1, 25)]) for n in range(1, 4)
        }  # tree 0 is in the evaluation set
    assert tuples_of(tmp_path / "b", "imdb") == {f"dull {n}": (["bad film"], ["good film"]) for n in range(4)}
