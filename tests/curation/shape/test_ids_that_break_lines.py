"""Ids with tabs, line ends and their like: one rule at shaping, so that every file that is keyed by ids can be read."""

from __future__ import annotations

import csv
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.build.build import build
from curation.core.tables import read_table
from curation.recipe.source import Source
from curation.shape.columns import named
from curation.share.export import export
from curation.share.importing import write_manifest
from curation.share.verify import problems

WRITTEN = {  # id as given -> as it is kept
    "a\tb": "a%09b",
    "a\nb": "a%0Ab",
    "a\r\nb": "a%0D%0Ab",
    "a\x00b": "a%00b",
    "a\x0b\x0c\x1cb": "a%0B%0C%1Cb",
    "a\x85b": "a%C2%85b",
    "a\u2028b\u2029c": "a%E2%80%A8b%E2%80%A9c",
    " a b ": "%20a b%20",
    "a\t": "a%09",
    "\u00a0a": "%C2%A0a",
    "100%": "100%",
    "a%20b": "a%20b",
    'say "hi"': 'say "hi"',
    "id 7": "id 7",
    "東京": "東京",
}


def source_of(**more):
    return Source.model_validate(
        {"name": "faq", "files": ["x.jsonl"], "task": "retrieval", "license": "mit", "fields": {"query": "q", "positive": "p"}}
        | more
    )


@pytest.mark.parametrize("given", WRITTEN)
def test_an_id_that_breaks_a_line_is_written_as_in_urls(given):
    (kept,) = named(source_of(), pl.Series([given]))
    assert kept == f"faq/{WRITTEN[given]}"
    assert named(source_of(), pl.Series([kept])).to_list() == [kept], "an id that comes back stays as it is"


def test_a_very_long_id_is_its_head_and_digest():
    first, second = named(source_of(), pl.Series(["x" * 1_000_000, "x" * 999_999 + "y"]))
    assert first[:204] == second[:204] == "faq/" + "x" * 200
    assert first != second
    assert len(first) == len("faq/") + 200 + 1 + 32
    assert named(source_of(), pl.Series(["x" * 1_000])).to_list() == ["faq/" + "x" * 1_000]


@settings(max_examples=300)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip), unique=True))
def test_every_reader_of_lines_and_cells_reads_an_id_back(ids):
    kept = named(source_of(), pl.Series(ids, dtype=pl.String)).to_list()
    text = "".join(f"{id_}\tkey\t1\n" for id_ in kept)
    assert [line.split("\t")[0] for line in text.splitlines()] == kept
    assert [row[0] for row in csv.reader(text.split("\n"), delimiter="\t") if row] == kept
    assert [id_.strip() for id_ in kept] == kept


def beir(folder, ids):
    """Write a source with qrels whose query ids are given, in files of JSON Lines, which can hold any id."""
    rows = {
        "corpus.jsonl": [{"_id": f"d{i}", "text": f"passage number {i} says {i * 7} things"} for i in range(len(ids))],
        "queries.jsonl": [{"_id": id_, "text": f"which passage is number {i}?"} for i, id_ in enumerate(ids)],
        "qrels.jsonl": [{"q": id_, "d": f"d{i}"} for i, id_ in enumerate(ids)],
        "pairs.jsonl": [
            {"id": id_, "q": f"what is the thing {i}?", "p": f"thing {i} is this and that"} for i, id_ in enumerate(ids)
        ],
    }
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "m.yaml").write_text("""\
name: odd
sources:
  - {name: pairs, files: pairs.jsonl, task: retrieval, license: mit, holdout: 6, fields: {id: id, query: q, positive: p}}
  - {name: judged, files: qrels.jsonl, task: retrieval, license: mit, holdout: 6, fields: {query_id: q, positive_id: d},
     corpus: {files: corpus.jsonl, fields: {id: _id, text: text}}, queries: {files: queries.jsonl, fields: {id: _id, text: text}}}
""")
    return folder / "m.yaml"


def cells(path):
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)][1:]


def test_held_out_and_exported_qrels_hold_every_id(tmp_path):
    ids = list(WRITTEN)
    made = build(beir(tmp_path, ids), tmp_path / "b")
    assert not made.failed
    assert problems(tmp_path / "b") == []
    for source in ("pairs", "judged"):
        known = {f"{source}/{kept}" for kept in WRITTEN.values()}
        held = cells(tmp_path / "b" / "heldout" / source / "qrels" / "test.tsv")
        lines = (tmp_path / "b" / "heldout" / source / "queries.jsonl").read_text().splitlines()
        assert len(held) == 6
        assert {query for query, _, _ in held} == {json.loads(line)["_id"] for line in lines} <= known
        kept = set(read_table(tmp_path / "b" / "curated" / source, "pairs", ["id"])["id"])
        assert kept | {query for query, _, _ in held} == known


def test_ids_come_back_from_an_export(tmp_path):
    build(beir(tmp_path, list(WRITTEN)), tmp_path / "b")
    export(tmp_path / "b", tmp_path / "out", "beir")
    write_manifest(str(tmp_path / "out"), tmp_path / "again.yaml")
    assert not build(tmp_path / "again.yaml", tmp_path / "c").failed
    for source in ("pairs", "judged"):
        before, after = (set(read_table(tmp_path / b / "curated" / source, "pairs", ["id"])["id"]) for b in "bc")
        assert after == before


def test_two_ids_that_would_become_one_are_named(tmp_path):
    outcome = build(beir(tmp_path, ["a\tb", "a%09b", *"cdefghij"]), tmp_path / "b")
    assert str(outcome.failed["pairs"]).startswith("source 'pairs': row 0 repeats the 'id' of another row, a\\tb")
    assert "the queries 'a\\tb' and 'a%09b' get the same id" in str(outcome.failed["judged"])
