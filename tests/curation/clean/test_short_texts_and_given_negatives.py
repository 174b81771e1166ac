"""Short texts that say something stay; a given negative that is its positive in another spelling goes."""

# ruff: noqa: RUF001 (characters that look alike are what this is about)

from __future__ import annotations

import polars as pl
import pytest

from curation.core.tables import read_table
from curation.recipe.source import Filters
from curation.shape.filters import apply
from curation.shape.numbered import numbered, spelled
from tests.curation.clean.test_signs_and_invisible_characters import made
from tests.curation.shape.test_holdout import tuples


def filtered(rows, wanted):
    """Return (TUPLES kept, dropped ones, texts removed by reason)."""
    numbers, _, texts = numbered(rows, pl.Series([], dtype=pl.String))
    left, dropped, out = apply(numbers, texts, wanted, "s", "retrieval")
    return spelled(left, texts), dropped, out


@pytest.mark.parametrize("text", ["北京", "巴黎", "no", "4", "42", "<", "C#", "京", "あ", "네", "😀", "Ja", "да", "5€"])
def test_a_short_text_that_says_something_stays(text):
    left, dropped, out = filtered(tuples((text, ["an answer"], []), ("a question", [text], [])), Filters())
    assert (len(left), len(dropped), out) == (2, 0, {})


@pytest.mark.parametrize("text", ["a", "é", "?", "..", "_", "-", "\u200b\u200b\u200b\u200b", "x\u00ad\u00ad"])
def test_a_short_text_that_says_nothing_goes(text):
    left, dropped, _ = filtered(tuples((text, ["an answer"], []), ("a question", [text], [])), Filters())
    assert len(left) == 0
    assert dropped["reason"].to_list() == ["short_query", "short_positive"]


@pytest.mark.parametrize(("least", "left"), [(3, ["three", "abc"]), (0, ["no", "three", "4", "abc", "北京"])])
def test_min_chars_that_is_set_counts_characters(least, left):
    rows = tuples(*((text, ["an answer"], []) for text in ("no", "three", "4", "abc", "北京")))
    assert filtered(rows, Filters(min_chars=least))[0]["query"].to_list() == left


def test_a_given_negative_equal_to_a_positive_goes_and_is_counted(tmp_path):
    rows = [
        {"q": "capital of France?", "p": "Paris", "n": ["paris", "Ｐａｒｉｓ", "PARIS!", "Par\u200bis", "Lyon"]},
        {"q": "which operator adds", "p": "a += b", "n": ["a -= b", "A += B"]},
    ]
    receipt = made(tmp_path, rows, "task: retrieval, fields: {query: q, positive: p, negatives: n}")
    pairs, texts = (read_table(tmp_path / "b/curated/s", name) for name in ("pairs", "passages"))
    assert [[texts["text"][pid] for pid in pids] for pids in pairs["negatives"]] == [["Lyon"], ["a -= b"]]
    assert receipt["texts_out"] == {"negative_is_positive": 5}
    assert receipt["kept"] == 2


def test_a_negative_equal_to_the_positive_of_an_equal_query_goes_too(tmp_path):
    rows = [
        {"q": "capital of France?", "p": "Paris", "n": ["Lyon"]},
        {"q": "capital of France?", "p": "Paris, France", "n": ["PARIS"]},
    ]
    receipt = made(tmp_path, rows, "task: retrieval, fields: {query: q, positive: p, negatives: n}")
    assert receipt["texts_out"] == {"negative_is_positive": 1}
    pairs, texts = (read_table(tmp_path / "b/curated/s", name) for name in ("pairs", "passages"))
    assert [[texts["text"][pid] for pid in pids] for pids in pairs["negatives"]] == [["Lyon"]]


def test_no_echo_off_keeps_them():
    rows = tuples(("capital of France?", ["Paris"], ["paris", "Lyon"]))
    left, _, out = filtered(rows, Filters(no_echo=False))
    assert (left["negatives"].to_list(), out) == ([["paris", "Lyon"]], {})


def test_a_negative_spelled_as_a_positive_is_counted_without_no_echo_too(tmp_path):
    rows = [
        {"q": "capital of France?", "p": "Paris", "n": ["Lyon", "paris"]},
        {"q": "capital of France?", "p": "Paris, France", "n": ["Paris"]},
        {"q": "capital of Italy?", "p": "Rome", "n": ["Rome", "Milan"]},
    ]
    said = "task: retrieval, fields: {query: q, positive: p, negatives: n}, filters: {no_echo: no}"
    receipt = made(tmp_path, rows, said)
    pairs, texts = (read_table(tmp_path / "b/curated/s", name) for name in ("pairs", "passages"))
    assert [[texts["text"][pid] for pid in pids] for pids in pairs["negatives"]] == [["Lyon", "paris"], ["Milan"]]
    assert receipt["texts_out"] == {"negative_is_positive": 2}
