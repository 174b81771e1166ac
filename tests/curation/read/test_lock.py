"""A lock file pins what a build is made of, and says what is no longer as it was; `curate check` looks before anything is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.build.check import check
from curation.cli import curate
from curation.core.errors import ManifestError
from curation.read.lock import read_lock
from tests.servers.hub_server import hub

LOCAL = """\
name: small
sources:
  - {name: faq, files: faq/*.jsonl, license: mit, task: retrieval, fields: {query: q, positive: a}, expected_rows: 6}
  - name: ranked
    reader: beir
    files: ranked/
    split: test
    license: mit
    task: retrieval
"""


def lines(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*words: object):
    return CliRunner().invoke(curate, [str(word) for word in words], standalone_mode=False)


@pytest.fixture
def recipe(tmp_path) -> Path:
    for part in "ab":
        lines(tmp_path / f"faq/{part}.jsonl", *({"q": f"question {part}{n}", "a": f"answer {part}{n}"} for n in range(3)))
    lines(tmp_path / "ranked/corpus.jsonl", {"_id": "d", "title": "Oak", "text": "Oaks bear acorns."})
    lines(tmp_path / "ranked/queries.jsonl", {"_id": "q", "text": "acorn tree"})
    (tmp_path / "ranked/qrels").mkdir()
    (tmp_path / "ranked/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    path = tmp_path / "m.yaml"
    path.write_text(LOCAL)
    return path


def locked(recipe: Path) -> dict:
    done = run("lock", recipe)
    assert ((done.return_value or 0), done.stderr) == (0, f"{recipe.with_suffix('.lock')}: 2 of 2 sources locked\n")
    found = read_lock(recipe.with_suffix(".lock"))
    assert found is not None
    return found


def failures(recipe: Path, folder: Path) -> dict[str, str]:
    return {name: str(error) for name, error in build(recipe, folder).failed.items()}


# --- files of this machine ---


def test_what_a_lock_says_of_files(recipe):
    found = locked(recipe)
    assert list(found) == ["faq", "ranked"]
    faq = found["faq"]
    about = ("path", "config", "split", "files", "asked", "revision", "columns", "rows", "license")
    assert [faq[key] for key in about] == [None, None, "train", ["faq/*.jsonl"], None, None, ["q", "a"], 6, "mit"]
    assert faq["bytes"] == sum(path.stat().st_size for path in (recipe.parent / "faq").iterdir())
    assert (found["ranked"]["rows"], found["ranked"]["corpus"]["rows"], found["ranked"]["queries"]["columns"]) == (
        1,
        1,
        ["_id", "text"],
    )
    text = recipe.with_suffix(".lock").read_text()
    locked(recipe)
    assert recipe.with_suffix(".lock").read_text() == text


def test_one_source_alone_is_locked_again(recipe):
    before = locked(recipe)
    lines(recipe.parent / "faq/b.jsonl", {"q": "another one", "a": "yes"})
    lines(recipe.parent / "ranked/queries.jsonl", {"_id": "q", "text": "acorn bush"})
    assert run("lock", recipe, "--only", "faq", "-q").return_value == 0
    after = read_lock(recipe.with_suffix(".lock"))
    assert after["ranked"] == before["ranked"]
    assert (after["faq"]["rows"], before["faq"]["rows"]) == (4, 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda base: lines(base / "faq/b.jsonl", {"q": "another one", "a": "yes"}), "'faq/b.jsonl' has changed since m.lock was written"),
        (lambda base: (base / "faq/b.jsonl").unlink(), "'faq/b.jsonl' is gone since m.lock was written"),
        (lambda base: lines(base / "faq/c.jsonl", {"q": "another one", "a": "yes"}), "'faq/c.jsonl' is new since m.lock was written"),
        (lambda base: (base / "m.yaml").write_text(LOCAL.replace("faq/*", "faq/a*")), "'files' is '['faq/a*.jsonl']', and m.lock has '['faq/*.jsonl']'"),
        (lambda base: (base / "m.yaml").write_text(LOCAL.replace("license: mit", "license: bsd", 1)), "'license' is 'bsd', and m.lock has 'mit'"),
    ],
)  # fmt: skip
def test_a_source_that_is_not_as_it_was_locked_fails_alone(recipe, tmp_path, change, said):
    locked(recipe)
    assert failures(recipe, tmp_path / "b") == {}
    assert (tmp_path / "b/manifest.lock").read_bytes() == (tmp_path / "m.lock").read_bytes()
    change(tmp_path)
    expected = f"source 'faq': {said}; undo that, or run `curate lock` again"
    assert failures(recipe, tmp_path / "b") == {"faq": expected}
    assert list(json.loads((tmp_path / "b/build.json").read_text())["sources"]) == ["ranked"]
    assert check(recipe)["problems"] == [expected]
    (tmp_path / "m.lock").unlink()
    assert failures(recipe, tmp_path / "b") == {}
    assert not (tmp_path / "b/manifest.lock").exists()


def test_a_part_of_a_source_and_a_source_that_is_new(recipe, tmp_path):
    locked(recipe)
    lines(tmp_path / "ranked/corpus.jsonl", {"_id": "d", "title": "Oak", "text": "Oaks bear many acorns."})
    recipe.write_text(LOCAL.replace("name: faq", "name: new"))
    assert failures(recipe, tmp_path / "b") == {
        "new": f"source 'new': is not in m.lock; run `curate lock {recipe} --only new`",
        "ranked": "source 'ranked' (corpus): 'ranked/corpus.jsonl' has changed since m.lock was written; undo that, or run `curate lock` again",
    }


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9, "sources": {}}', '{"format": 1}'])
def test_a_file_that_is_no_lock(recipe, text):
    recipe.with_suffix(".lock").write_text(text)
    with pytest.raises(ManifestError, match=r"m\.lock: is not a lock file"):
        build(recipe, recipe.parent / "b")


@pytest.mark.parametrize(
    ("key", "value"),
    [("inputs", None), ("objects", []), ("rows", "many"), ("bytes", None), ("columns", "q"), ("files", "a"), ("digest", 5)],
)
def test_an_entry_that_was_changed_by_hand(recipe, key, value):
    locked(recipe)
    lock = recipe.with_suffix(".lock")
    whole = json.loads(lock.read_text())
    for entry in (whole["sources"]["faq"], whole["sources"]["ranked"]["corpus"]):
        before = entry.get(key, {})
        entry[key] = value
        lock.write_text(json.dumps(whole))
        with pytest.raises(
            ManifestError, match=rf"m\.lock: the entry of source '\w+' has no valid '{key}'; was it changed by hand\?"
        ):
            build(recipe, recipe.parent / "b")
        entry[key] = before
    whole["sources"]["faq"] = []
    lock.write_text(json.dumps(whole))
    with pytest.raises(ManifestError, match=r"m\.lock: the entry of source 'faq' has no valid 'path'"):
        build(recipe, recipe.parent / "b")


def test_check_without_the_hub(recipe, tmp_path):
    done = run("check", recipe)
    assert (done.return_value or 0) == 0
    assert (
        " ".join(done.stderr.split()) == f"{recipe}: no problem; the Hub was not asked (`--online`); not locked (`curate lock`)"
    )
    (tmp_path / "faq/a.jsonl").unlink()
    (tmp_path / "faq/b.jsonl").unlink()
    recipe.write_text(LOCAL + "  - {name: far, path: o/n, task: retrieval, fields: {query: q, positive: a}}\n")
    done = run("check", recipe, "--json")
    found = json.loads(done.stdout)
    assert ((done.return_value or 0), found["problems"]) == (
        1,
        ["source 'faq': faq/*.jsonl: matches no file; paths are relative to the manifest's folder"],
    )
    assert found["tasks"]["retrieval"] == {"sources": 3, "expected": 6, "aim": None, "unknown": ["ranked", "far"]}
    assert found["sources"]["far"]["license_class"] == "unknown"
    text = run("check", recipe)
    assert "The number of tuples of ranked, far is unknown; it counts as 0." in text.stdout
    assert " ".join(text.stderr.split()).startswith(f"{recipe}: 1 problem;")
    recipe.write_text(
        LOCAL.partition("sources:")[0]
        + "sources:\n  - {name: far, path: o/n, task: retrieval, fields: {query: q, positive: a}}\n"
    )
    text = " ".join(run("check", recipe).stdout.split())
    assert (
        "How many tuples far will give is unknown, so time and disk are not estimated: set `expected_tuples`, or look at" in text
    )
    assert "0 tokens" not in text


# --- the Hub ---

CARD = """---
license: cc-by-4.0
configs:
- config_name: en
  data_files: [{split: train, path: en/train.jsonl}, {split: test, path: en/test.jsonl}]
---
"""
FAR = """\
name: far
sources:
  - {name: rows, path: org/questions, config: en, license: cc-by-4.0, expected_rows: 3, task: retrieval, fields: {query: q, positive: a}}
  - {name: files, path: org/questions, files: "en/*.jsonl", license: mit, task: retrieval, fields: {query: q, positive: a}}
  - {name: tagged, path: org/tables, revision: v1, license: mit, expected_rows: 9, task: retrieval, fields: {query: q, positive: a}}
"""
BROKEN = """\
name: broken
sources:
  - {name: typo, path: org/question, task: retrieval, fields: {query: q, positive: a}}
  - {name: nothing, path: no/such-thing, task: retrieval, fields: {query: q, positive: a}}
  - {name: gated, path: org/gated, task: retrieval, fields: {query: q, positive: a}}
  - {name: scripted, path: org/scripted, task: retrieval, fields: {query: q, positive: a}}
  - {name: config, path: org/questions, config: de, task: retrieval, fields: {query: q, positive: a}}
  - {name: split, path: org/questions, config: en, split: dev, task: retrieval, fields: {query: q, positive: a}}
  - {name: revision, path: org/questions, config: en, revision: v7, task: retrieval, fields: {query: q, positive: a}}
  - {name: column, path: org/questions, config: en, task: retrieval, fields: {query: q, positive: as}}
  - {name: files, path: org/questions, files: "de/*", task: retrieval, fields: {query: q, positive: a}}
decontaminate: {against: [{path: org/questions, config: en, split: dev, fields: {query: q}}]}
"""
SAID = {
    "typo": "org/question: no such dataset on the Hub, or a private one (did you mean 'org/questions'?); "
    "check the id; `hf auth login` for a private one",
    "nothing": "no/such-thing: no such dataset on the Hub, or a private one; check the id; `hf auth login` for a private one",
    "gated": "org/gated: is a gated dataset; ask for access on its page, then `hf auth login`",
    "scripted": "org/scripted: comes with a loading script, which would run code; "
    "`revision: refs/convert/parquet` may hold the same rows",
    "config": "org/questions: no config 'de'; there are: en",
    "split": "org/questions: no split 'dev'; there are: train, test",
    "revision": "org/questions: no revision 'v7'; name a commit, tag or branch of the dataset",
    "column": "org/questions: no column 'as' (did you mean 'a'?)",
    "files": "org/questions: de/*: matches no file of the dataset",
}


def rows_of(*numbers: int) -> str:
    return "".join(json.dumps({"q": f"question {n}", "a": f"answer {n}"}) + "\n" for n in numbers)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    import polars as pl

    folder = tmp_path_factory.mktemp("hub")
    with hub(folder) as running:
        running.put(
            "datasets", "org/questions", {"README.md": CARD, "en/train.jsonl": rows_of(1, 2, 3), "en/test.jsonl": rows_of(4)}
        )
        pl.DataFrame({"q": ["one", "two"], "a": ["eins", "zwei"]}).write_parquet(folder / "t.parquet")
        running.put(
            "datasets", "org/tables", {"data/train-00000-of-00001.parquet": (folder / "t.parquet").read_bytes()}, tag="v1"
        )
        running.put("datasets", "org/gated", {"train.jsonl": rows_of(1)}, gated="auto")
        running.put("datasets", "org/scripted", {"scripted.py": "raise SystemExit('ran')"})
        yield running


RUN = """
import json, sys
from click.testing import CliRunner
from curation.cli import curate
done = [CliRunner().invoke(curate, words, standalone_mode=False) for words in json.loads(sys.argv[1])]
for one in done:
    if one.exception:
        raise one.exception
print(json.dumps([[one.return_value or 0, one.stdout, one.stderr] for one in done]))
"""


def far(server, *commands: list[object], token: str = "hf_owner", **environment: str) -> list[list]:
    """Run commands in one process that knows the Hub; return exit code, output and errors of each."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    known = os.environ | server.environment(token, server.folder / f"home-{token}") | environment
    done = subprocess.run([sys.executable, "-c", RUN, words], env=known, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_what_the_hub_says_is_locked_and_a_build_takes_that_and_not_what_came_later(server, tmp_path):
    recipe = tmp_path / "far.yaml"
    recipe.write_text(FAR)
    asked, done = far(server, ["check", recipe, "--online", "--json"], ["lock", recipe, "-q"])
    assert (asked[0], done) == (0, [0, "", ""])
    assert json.loads(asked[1])["notes"] == [
        "org/questions: its card says licence cc-by-4.0, and the manifest mit",
        "org/tables: has 2 rows, and the manifest expects 9",
    ]
    entries = read_lock(tmp_path / "far.lock")
    head = server.storage.resolve("datasets", "org/questions", "main")[1]["oid"]
    about = {name: [entry[key] for key in ("revision", "asked", "columns", "rows")] for name, entry in entries.items()}
    assert about["rows"] == [head, None, ["q", "a"], None]
    assert about["files"] == [head, None, None, None]
    assert about["tagged"][1:] == ["v1", ["q", "a"], 2]
    assert entries["rows"]["bytes"] == len(rows_of(1, 2, 3))
    assert entries["files"]["bytes"] == len(rows_of(1, 2, 3, 4))
    assert entries["rows"]["digest"] != entries["files"]["digest"]

    server.put("datasets", "org/questions", {"README.md": CARD, "en/train.jsonl": rows_of(7, 8), "en/test.jsonl": rows_of(9)})
    built, asked = far(server, ["build", recipe, "-o", tmp_path / "b", "-j", 1, "-q"], ["check", recipe, "--online", "--json"])
    assert built[0] == 0, built
    summary = json.loads((tmp_path / "b/build.json").read_text())["sources"]
    assert {name: (one["revision"], one["rows_in"]) for name, one in summary.items()} == {
        name: (entries[name]["revision"], count) for name, count in (("rows", 3), ("files", 4), ("tagged", 2))
    }
    now = server.storage.resolve("datasets", "org/questions", "main")[1]["oid"]
    moved = f"org/questions: has moved from {head[:12]} to {now[:12]} since it was locked; the build takes {head[:12]}"
    assert moved in json.loads(asked[1])["notes"]
    recipe.write_text(FAR.replace("revision: v1", "revision: main"))
    assert check(recipe)["problems"] == [
        "source 'tagged': 'revision' is 'main', and far.lock has 'v1'; undo that, or run `curate lock` again"
    ]


def test_what_is_not_there_is_reported_for_each_source(server, tmp_path):
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(BROKEN)
    asked, done = far(server, ["check", recipe, "--online", "--json"], ["lock", recipe, "-q"], token="hf_other")
    assert asked[0] == 1
    of_set = f"evaluation set 'org/questions': {SAID['split']}"
    assert json.loads(asked[1])["problems"] == [*(f"source '{name}': {said}" for name, said in SAID.items()), of_set]
    expected = {name: said for name, said in SAID.items() if name != "column"}  # a lock maps no columns
    assert (done[0], done[2].splitlines()) == (
        1,
        [f"curate: {recipe}: source '{name}': {said}" for name, said in expected.items()],
    )
    assert list(read_lock(tmp_path / "broken.lock")) == ["column"]


def test_the_hub_cannot_be_reached(server, tmp_path):
    recipe = tmp_path / "far.yaml"
    recipe.write_text("\n".join(FAR.splitlines()[:3]) + "\n")
    ((status, text, _),) = far(server, ["check", recipe, "--online", "--json"], HF_ENDPOINT="http://127.0.0.1:9")
    assert (status, json.loads(text)["problems"]) == (
        1, ["source 'rows': org/questions: the Hub cannot be reached; check the network, or name a local folder"],
    )  # fmt: skip


def test_an_unknown_number_of_tuples_is_shown_as_unknown(tmp_path):
    (tmp_path / "a.csv").write_text("q,p\nwhat is it,it is this\n")
    source = "{name: NAME, task: retrieval, files: a.csv, fields: {query: q, positive: p}"
    recipe = tmp_path / "m.yaml"
    recipe.write_text("name: m\nsources:\n  - " + source.replace("NAME", "one") + "}\n")
    text = run("check", recipe).stdout
    assert "retrieval        1  unknown" in text
    assert "unknown              1  unknown" in text
    recipe.write_text(recipe.read_text() + "  - " + source.replace("NAME", "two") + ", license: mit, expected_tuples: 1500}\n")
    text = run("check", recipe).stdout
    assert "retrieval        2  at least 1,500" in text
    assert "permissive           1  1500" in text.replace("1,500", "1500")
