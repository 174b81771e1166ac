"""Columns of scores, ids, ranks and labels beside negatives are never taken for texts."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate
from curation.core.tables import read_table
from tests.curation.read.one_source import TEXTS, built, shaped

ROW = {"q": "where?", "p": "over there", "negative_1": "here", "negative_2": "nowhere"}
NO_TEXTS = [
    "negative_score", "negative_scores", "negative_id", "negative_1_score", "negative_2_id", "negative_ids", "negative_docid",
    "negative_rank", "negative_label", "negative_1_similarity", "negativeScore", "negative_CE_score", "negative_type",
    "negative_logits", "negative_2_url", "negative_score_of_teacher", "negative_text_score",
]  # fmt: skip


@pytest.mark.parametrize("form", TEXTS)
def test_a_pattern_takes_texts_alone(form, tmp_path):
    row = ROW | {name: at / 7 if at % 2 else f"x{at}" for at, name in enumerate(NO_TEXTS)}
    (tmp_path / f"a.{form}").write_bytes(TEXTS[form]([row]))
    wanted = {"s/0": ("where?", ["over there"], ["here", "nowhere"], None)}
    for pattern in ("negative_*", "neg*", "*negative*", "negative_?*", ["negative_1", "negative_*"]):
        assert shaped(tmp_path, f"a.{form}", {"query": "q", "positive": "p", "negatives": pattern}) == wanted


@pytest.mark.parametrize(
    "name", ["negative_text", "negative_1_passage", "negative_score_text", "negative_3", "negative_grade_crossing"]
)
def test_other_names_are_texts(name, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW | {name: "elsewhere"}) + "\n")
    got = shaped(tmp_path, "a.jsonl", {"query": "q", "positive": "p", "negatives": "negative_*"})
    assert got == {"s/0": ("where?", ["over there"], ["here", "nowhere", "elsewhere"], None)}


def test_a_name_itself_is_taken_and_words_of_the_pattern_say_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"q": "which?", "p": "this", "label_1": "that", "label_2": "those", "negative_score": "a duet"}\n'
    )
    for negatives, wanted in (("label_*", ["that", "those"]), ("negative_score", ["a duet"])):
        got = shaped(tmp_path, "a.jsonl", {"query": "q", "positive": "p", "negatives": negatives})
        assert got == {"s/0": ("which?", ["this"], wanted, None)}
    assert shaped(tmp_path, "a.jsonl", {"query": "q", "positive": "p", "negatives": "negative_*"}) == (
        "source 's': no column matches 'negative_*' except negative_score, whose names say that they hold no texts; "
        "columns there are: q, p, label_1, label_2, negative_score"
    )


@pytest.mark.parametrize("form", TEXTS)
def test_numbers_under_another_name_are_reported_where_positives_are_texts(form, tmp_path):
    rows = [ROW | {"negative_ce": 0.25}, ROW | {"negative_ce": 3}]
    (tmp_path / f"a.{form}").write_bytes(TEXTS[form](rows))
    message = shaped(tmp_path, f"a.{form}", {"query": "q", "positive": "p", "negatives": "negative_*"})
    assert message.startswith(
        "source 's': column 'negative_ce', which matches a pattern of 'negatives', holds only numbers (0.25, 3"
    )
    assert message.endswith("), and the positives are texts; name the columns of negatives one by one")
    numbers = [{"q": "2 + 2?", "p": 4, "negative_1": 5, "negative_2": 3}]
    (tmp_path / f"b.{form}").write_bytes(TEXTS[form](numbers))
    got = shaped(tmp_path, f"b.{form}", {"query": "q", "positive": "p", "negatives": "negative_*"})
    assert got == {"s/0": ("2 + 2?", ["4"], ["5", "3"], None)}


def test_a_column_that_is_mapped_otherwise_is_no_negative(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"q": "q one", "p": "p one", "negative": "n one", "negative_of": 0.5, "negative_key": "k7"}\n'
    )
    fields = {"query": "q", "positive": "p", "negatives": "negative*", "negative_scores": "negative_of", "id": "negative_key"}
    assert built(tmp_path, "a.jsonl", fields) == {"s/k7": ("q one", ["p one"], ["n one"], None)}
    assert read_table(tmp_path / "build/curated/s", "pairs")["negative_scores"].to_list() == [[0.5]]


def imported(folder, name: str, content: bytes) -> tuple[dict, str]:
    (folder / name).write_bytes(content)
    done = CliRunner().invoke(curate, ["import", str(folder / name), "-o", str(folder / "m.yaml")])
    assert done.exit_code == 0, done.output
    return yaml.safe_load((folder / "m.yaml").read_text())["sources"][0]["fields"], done.output


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_import_keeps_a_score_as_a_score(form, tmp_path):
    row = {
        "anchor": "a q",
        "positive": "a p",
        "negative": "an n",
        "negative_score": 0.25,
        "positive_score": 0.75,
        "negative_id": "x",
    }
    fields, notes = imported(tmp_path, f"a.{form}", TEXTS[form]([row]))
    assert fields == {
        "query": "anchor",
        "positive": "positive",
        "negatives": "negative*",
        "positive_score": "positive_score",
        "negative_scores": "negative_score",
    }
    assert "a: not used as negatives because of their names: negative_id\n" in notes
    build(tmp_path / "m.yaml", tmp_path / "b")
    pairs = read_table(tmp_path / "b/curated/a", "pairs")
    assert pairs.select("positive_score", "negative_scores").rows() == [(0.75, [0.25])]
    assert read_table(tmp_path / "b/curated/a", "passages")["text"].to_list() == ["a p", "an n"]


def test_import_says_which_scores_do_not_fit(tmp_path):
    row = {
        "query": "a q",
        "answer": "a p",
        "negative_1": "an n",
        "negative_2": "an m",
        "negative_1_score": 0.25,
        "negative_2_score": 0.5,
    }
    fields, notes = imported(tmp_path, "a.parquet", TEXTS["parquet"]([row]))
    assert fields == {"query": "query", "positive": "answer", "negatives": "negative*"}
    assert "not used as negatives because of their names: negative_1_score, negative_2_score\n" in notes
    build(tmp_path / "m.yaml", tmp_path / "b")
    assert read_table(tmp_path / "b/curated/a", "passages")["text"].to_list() == ["a p", "an n", "an m"]


def test_import_of_lists_and_their_scores(tmp_path):
    row = {"anchor": "a q", "positive": "a p", "negatives": ["an n", "an m"], "negative_scores": [0.25, 0.5]}
    fields, _ = imported(tmp_path, "a.jsonl", TEXTS["jsonl"]([row]))
    assert fields["negative_scores"] == "negative_scores"
    build(tmp_path / "m.yaml", tmp_path / "b")
    assert read_table(tmp_path / "b/curated/a", "pairs")["negative_scores"].to_list() == [[0.25, 0.5]]


def test_a_dry_run_says_what_a_pattern_passes_over(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW | {"negative_score": 1}) + "\n")
    source = {
        "name": "s",
        "task": "retrieval",
        "files": "a.jsonl",
        "fields": {"query": "q", "positive": "p", "negatives": "negative_*"},
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"name": "m", "sources": [source]}))
    done = CliRunner().invoke(curate, ["build", str(tmp_path / "m.yaml"), "--dry-run"])
    assert "  `negative_*` passes over negative_score: no texts by their names, or mapped as something else\n" in done.output


def test_an_evaluation_set_is_read_by_the_same_pattern(tmp_path):
    trees = ["an old oak by the river", "ashes burn well when green", "elms fell to a beetle"]
    rows = [{"q": f"{tree} is a line about what?", "p": f"It is about: {tree}, of course."} for tree in trees]
    (tmp_path / "a.jsonl").write_bytes(TEXTS["jsonl"](rows))
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"q": rows[0]["q"], "negative_1": rows[1]["p"], "negative_score": rows[2]["p"]}) + "\n"
    )
    against = {"files": "t.jsonl", "fields": {"query": "q", "negatives": "negative_*"}}
    got = built(tmp_path, "a.jsonl", {"query": "q", "positive": "p"}, decontaminate={"against": [against], "mode": "strict"})
    assert set(got) == {"s/2"}
