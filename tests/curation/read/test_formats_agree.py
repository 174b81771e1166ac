"""The same rows in every format, whole or in pieces, make the same tuples or the same complaint."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curation.read import blocks
from tests.curation.read.one_source import NESTED, TEXTS, shaped

text = st.sampled_from(["a", "b c", "Ü", '"quoted", with commas', "x\ny", "8", "1.0", "0.10", "NaN", "{}", "[1]", " ", ""])
some = st.none() | text
whole = st.integers(-(10**18), 10**18) | st.none()
record = st.fixed_dictionaries({"body": some, "stars": whole, "more": st.fixed_dictionaries({"line": some})})
passage = st.fixed_dictionaries({"title": some, "text": some})
KINDS = {
    "text": some,
    "whole": whole,
    "truth": st.booleans() | st.none(),
    "texts": st.lists(some, max_size=3) | st.none(),
    "wholes": st.lists(whole, max_size=3) | st.none(),
    "lists": st.lists(st.lists(some, max_size=2) | st.none(), max_size=3) | st.none(),
    "record": record | st.none(),
    "records": st.lists(record, max_size=3) | st.none(),
    "passages": st.lists(passage, max_size=3) | st.none(),
    "deep": st.lists(st.fixed_dictionaries({"in": st.lists(record, max_size=2) | st.none()}), max_size=2) | st.none(),
}
PATHS = ["", ".body", ".stars", ".more.line", ".more", ".text", ".in.body", ".in.more.line", ".in", ".nothing"]


@st.composite
def sources(draw):
    """Rows with a kind for each column, and the fields of a source of them."""
    kinds = {name: draw(st.sampled_from(list(KINDS))) for name in ("p", "n", "t", "u")}
    rows = draw(
        st.lists(
            st.fixed_dictionaries({"q": text.filter(str.strip), **{n: KINDS[k] for n, k in kinds.items()}}),
            min_size=1,
            max_size=6,
        )
    )
    at = {name: name + draw(st.sampled_from(PATHS)) for name in ("p", "n", "t")}
    fields = {"query": "q", "positive": at["p"], "negatives": [at["n"]]} | ({"title": at["t"]} if draw(st.booleans()) else {})
    more = {"join": {at["p"]: "+"}} if draw(st.integers(0, 3)) == 0 else {}
    return rows, fields, more


def said(got):
    """Return tuples, or that there is a complaint; which of several comes first is not the same in all formats."""
    return re.sub("^.*(holds|no column|has ).*$", "complaint", got) if isinstance(got, str) else got


def outcomes(base, rows, fields, more, formats):
    for form, write in formats.items():
        (base / f"a.{form}").write_bytes(write(rows))
        yield form, said(shaped(base, f"a.{form}", fields, **more))
    for form in ("jsonl", "parquet"):
        for at, row in enumerate(rows):
            (base / f"{at}.{form}").write_bytes(formats[form]([row]))
        yield f"{form} in files", said(shaped(base, [f"{at}.{form}" for at in range(len(rows))], fields, **more))


def check(base, rows, fields, more, formats):
    with pytest.MonkeyPatch.context() as patch:
        found = dict(outcomes(base, rows, fields, more, formats))
        patch.setattr(blocks, "BLOCK", 50)
        found["jsonl in blocks"] = said(shaped(base, "a.jsonl", fields, **more))
    first = found["json"]
    assert {form: one for form, one in found.items() if one != first} == {}, first


BUSY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors]


@settings(suppress_health_check=BUSY, max_examples=25, deadline=None)
@given(sources())
@example(
    (
        [{"q": "1", "p": None, "n": None, "t": None, "u": None}, {"q": "2", "p": [{"in": []}], "n": None, "t": None, "u": None}],
        {"query": "q", "positive": "p.in", "negatives": ["n"]},
        {},
    )
)
def test_lists_and_records(tmp_path, source):
    check(tmp_path, *source, NESTED)


plain = st.fixed_dictionaries({"q": text.filter(str.strip), "p": some, "n": whole, "l": whole, "u": some | whole.map(str)})


@settings(suppress_health_check=BUSY, max_examples=40, deadline=None)
@given(st.lists(plain, min_size=1, max_size=6))
def test_texts_and_whole_numbers(tmp_path, rows):
    formats = {form: write for form, write in TEXTS.items() if form != "tsv"}  # which has no line ends in cells
    check(tmp_path, rows, {"query": "q", "positive": "p", "negatives": ["n"], "title": "u"}, {}, formats)
