"""The normalised form: the fast way of ASCII texts gives what the definition gives."""

from __future__ import annotations

import random
import re
import unicodedata

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.text import BLOCK, normalised, words_of

signs = st.characters(max_codepoint=127) | st.sampled_from(
    "éß\u2028\u00a0Ⅳ中\x80ﬁΣ½…가ｱ"
)  # no marks: Rust counts them as word characters, Python does not
texts = st.lists(st.none() | st.text(signs, max_size=12), max_size=12)


def defined(text: str | None) -> str | None:
    words = re.sub(r"[^\w]+", " ", unicodedata.normalize("NFKC", text or "").lower()).strip()
    return words or None


@settings(max_examples=300)
@given(texts)
def test_forms_are_as_defined(given_texts):
    got = normalised(pl.Series("q", given_texts, dtype=pl.String))
    assert got.to_list() == [defined(text) for text in given_texts]
    assert (got.name, got.dtype) == ("q", pl.String)


def test_forms_of_many_texts_stay_in_order():
    many = [f"Text, {n}{'é' * (n % 7 == 0)}!" for n in range(BLOCK // 10)]
    assert normalised(pl.Series(many)).to_list() == [defined(text) for text in many]


def test_forms_by_the_table_are_those_of_whole_texts():
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    random.Random(1).shuffle(points)
    many = pl.Series(["".join(map(chr, points[at : at + 4])) for at in range(0, len(points), 4)])
    words = words_of(many).str.strip_chars()
    assert normalised(many).fill_null("").equals(words)
