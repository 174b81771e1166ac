"""A build of three sources with negatives, its lock, and the command line against the Hub of the tests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import polars as pl

from curation.build.build import build
from curation.core import store, tables
from curation.core.record import render_query
from curation.read.lock import write_lock
from curation.recipe.manifest import load_manifest
from mining.mine import mine_build
from tests.mining.small_build import FakeEncoder

MANIFEST = """\
name: small
seed: 7
sources:
  - {name: faq, files: faq.jsonl, task: retrieval, license: mit, license_url: "https://example.org/faq", license_checked: 2026-11-20, citation: "Faq, 2026",
     instruction: "Given a {question}, find\\nits answer", fields: {query: q, positive: a}, holdout: 5}
  - {name: topics, files: topics.jsonl, task: clustering, license: cc-by-4.0, fields: {query: text, label: topic}}
  - {name: tone, files: topics.jsonl, task: classification, license: cc-by-sa-4.0, fields: {query: text, label: tone}}
  - {name: nobody, files: topics.jsonl, task: classification, fields: {query: text, label: tone}}
  - {name: doubt, files: topics.jsonl, task: classification, license: mit, verified: no, notes: "who wrote it is open", fields: {query: text, label: tone}}
mine: {model: fake, negatives: 3, range_min: 0, range_max: 30, max_score: 1, relative_margin: 0, shortage: keep}
"""
PUBLISHED = ("faq", "topics", "tone")


def make(folder, rows=400, changed=0, mined=True, negatives=3):
    """Build below a folder; `changed` is how many of the faq's rows are other ones than before. Returns the build."""
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(rows):
        word = f"{hashlib.sha1(str(i).encode()).hexdigest()} {i}" + (" anew" if i < changed else "")
        answers = [f"{word} is number {i} of the list, and this is all there is to say of {word}, {'so ' * (i % 40)}"]
        lines.append({"q": f"what is {word}?", "a": answers + ([f"{word}: another answer, number {i}"] if i % 5 == 0 else [])})
    _lines(folder / "faq.jsonl", lines)
    _lines(
        folder / "topics.jsonl",
        [
            {
                "text": f"text {i} on topic number {i % 9}, in words {i * 31 % 997}",
                "topic": f"topic {i % 9}",
                "tone": ["good", "bad"][i % 2],
            }
            for i in range(rows * 25)
        ],
    )
    (folder / "small.yaml").write_text(MANIFEST.replace("negatives: 3", f"negatives: {negatives}"))
    outcome = build(folder / "small.yaml", folder / "build")
    assert not outcome.failed
    if mined:
        mine_build(folder / "build", load=lambda settings, device: FakeEncoder())
    return folder / "build"


def lock(made):
    """Write the lock as `curate lock` does, and build again, which keeps it in the build."""
    path = made.parent / "small.yaml"
    manifest = load_manifest(path)
    assert not write_lock(path, manifest, [source.name for source in manifest.sources])
    assert not build(path, made).failed
    return made


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def curate(server, *arguments, token="hf_owner", **more):
    """Run the real command line; return (exit code, output, errors)."""
    started = start(server, *arguments, token=token)
    out, errors = started.communicate(timeout=120)
    return started.returncode, out, errors


def start(server, *arguments, token="hf_owner", main="curation.cli"):
    """Start the real command line."""
    env = os.environ | server.environment(token) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"from {main} import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def expected(made, source, n):
    """Return the rows that a build's source becomes, by a plain loop over its tables."""
    texts = tables.read_table(made / "curated" / source, "passages", ["text"])["text"]
    instruction = store.read_json(made / "build.json")["sources"][source]["instruction"]
    rows = []
    for row in tables.read_table(made / ("mined" if n else "curated") / source, "pairs").iter_rows(named=True):
        if len(row["negatives"]) >= n:
            negatives = {f"negative_{i + 1}": texts[row["negatives"][i]] for i in range(n)}
            rows.append({"query": render_query(instruction, row["query"]), "passage": texts[row["positives"][0]], **negatives})
    return rows


def loaded(server, repo, sources=PUBLISHED, token="hf_owner", **more):
    """Return the rows of configs as `datasets` loads them in a process of its own."""
    load = "print(json.dumps(list(datasets.load_dataset({!r}, {!r}, split='train', **{!r}))))\n"
    code = "import json, datasets\n" + "".join(load.format(repo, source, more) for source in sources)
    status, out, errors = server.client(code, token, server.folder / f"home-{token}")
    assert status == 0, errors
    return dict(zip(sources, map(json.loads, out.splitlines()), strict=True))


def rows_of(made):
    """Return what each published source of the build is to become."""
    return {"faq": expected(made, "faq", 3), "topics": expected(made, "topics", 3), "tone": expected(made, "tone", 1)}


def published(server, made, repo, *more, token="hf_owner"):
    """Publish, and return what the command printed."""
    status, out, errors = curate(server, "publish", made, repo, "-q", *more, token=token)
    assert status == 0, errors
    return out


def refused(server, made, repo, *more, token="hf_owner"):
    """Return the last line that a refused command said."""
    status, out, errors = curate(server, "publish", made, repo, "-q", *more, token=token)
    assert (status, out) == (1, "")
    return errors.splitlines()[-1]


def lies(server, repo, source, rev="main"):
    """Return a config's rows as they lie on the server."""
    files = server.storage.files(repo, rev)
    return pl.concat([pl.read_parquet(data) for path, data in files.items() if path.startswith(f"{source}/train-")])
