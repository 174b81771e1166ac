"""Answers that come with questions stand beside the tuples, by the query's key."""

from __future__ import annotations

import json

import pytest

from curation.build.build import build
from curation.core.errors import ManifestError
from curation.core.record import key_of
from curation.core.store import check_files, read_receipt
from curation.core.tables import read_parquet
from curation.recipe.manifest import load_manifest

MANIFEST = """\
name: a
sources:
  - {{name: s, files: rows.{ending}, task: retrieval, {more}}}
"""


def answers(folder, rows, more, ending="jsonl"):
    """Build rows, and return the answers that stand there by key."""
    text = json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"rows.{ending}").write_text(text)
    (folder / "m.yaml").write_text(MANIFEST.format(ending=ending, more=more))
    assert not build(folder / "m.yaml", folder / "b").failed
    stage = folder / "b" / "curated" / "s"
    check_files(stage, read_receipt(stage))
    return dict(read_parquet(stage / "answers.parquet").iter_rows())


def test_answers_of_equal_queries_are_united(tmp_path):
    rows = [
        {"q": "who?", "p": "it was Ann", "a": ["Ann", "Anne"]},
        {"q": "when?", "p": "in May", "a": "May"},
        {"q": "who?", "p": "Bob, they say", "a": ["Bob", "Ann", " "]},
        {"q": "why?", "p": "nobody knows", "a": None},
        {"q": "", "p": "dropped", "a": "x"},
    ]
    for row in rows:
        row["a"] = [row["a"]] if isinstance(row["a"], str) else row["a"]
    found = answers(tmp_path, rows, "fields: {query: q, positive: p, answer: a}, max_bad: 0.5")
    assert found == {key_of("who?"): ["Ann", "Anne", "Bob"], key_of("when?"): ["May"]}


def test_one_text_and_both_ways(tmp_path):
    rows = [{"q": "who?", "p": "it was Ann", "a": "Ann"}, {"q": "when?", "p": "in May", "a": ""}]
    found = answers(tmp_path, rows, "both_ways: yes, fields: {query: q, positive: p, answer: a}")
    assert found == {key_of("who?"): ["Ann"]}


def test_squad(tmp_path):
    asked = {"question": "who?", "id": "1", "answers": [{"text": "Ann", "answer_start": 7}, {"text": "Ann", "answer_start": 7}]}
    articles = {"data": [{"title": "t", "paragraphs": [{"context": "It was Ann.", "qas": [asked]}]}]}
    found = answers(tmp_path, articles, "reader: squad, fields: {query: question, positive: context, answer: answers}", "json")
    assert found == {key_of("who?"): ["Ann"]}


def test_only_pairs_have_answers(tmp_path):
    (tmp_path / "m.yaml").write_text(MANIFEST.format(ending="jsonl", more="fields: {query: q, positive: p, label: l, answer: a}"))
    with pytest.raises(ManifestError) as error:
        load_manifest(tmp_path / "m.yaml")
    assert (
        str(error.value)
        == f"{tmp_path / 'm.yaml'}:3: 'answer' has no effect: the columns in 'fields' make this a source of shape 'nli'"
    )
