"""The normalised form: all ways to it give what plain Python gives."""

from __future__ import annotations

import random
import unicodedata
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.duplicates import folding
from curation.duplicates.shingles import SPACELESS_CHARS
from curation.duplicates.signatures import read
from curation.text import BLOCK, normalised
from tests.curation.plain_forms import form

signs = st.characters(max_codepoint=127) | st.sampled_from(
    "éß\u2028\u00a0Ⅳ中\x80ﬁΣ½…가ｱ€😀\u00ad\u200d\ufe0f\u2212\uff08\uff01:-)(;'^=/! "
)
texts = st.lists(st.none() | st.text(signs, max_size=12), max_size=12)


def by_kernel(many: pl.Series) -> tuple[list[str | None], list[int]]:
    """The forms that the compiled loops make, and how many characters of scripts without spaces they count."""
    fold_kernels = pytest.importorskip("curation.duplicates.fold_kernels")
    data, starts = read(many)
    found, dense = [], []
    for first, end in pairwise(starts):
        most = fold_kernels.room_for(data, first, end)
        out = np.full(most + 8, 7, np.uint8)
        size, spaceless, _ = fold_kernels.fold(data, first, end, folding.table(), out, np.empty((2, most), np.uint8))
        assert size <= most
        assert (out[most:] == 7).all()
        found.append(out[1 : size - 1].tobytes().decode() if size else None)
        dense.append(spaceless)
    return found, dense


@settings(max_examples=300)
@given(texts)
def test_forms_are_as_defined(given_texts):
    got = normalised(pl.Series("q", given_texts, dtype=pl.String))
    wanted = [form(text or "") for text in given_texts]
    assert got.to_list() == wanted
    assert (got.name, got.dtype) == ("q", pl.String)
    assert by_kernel(pl.Series(given_texts, dtype=pl.String).fill_null(""))[0] == wanted


def test_forms_of_many_texts_stay_in_order():
    many = [f"Text, {n}{'é' * (n % 7 == 0)}!" for n in range(BLOCK // 10)]
    assert normalised(pl.Series(many)).to_list() == [form(text) for text in many]


def test_forms_of_all_of_unicode():
    """Each code point that this Python knows, in its place by itself; and the compiled loops with four of any at a time."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    known = [chr(point) for point in points if unicodedata.category(chr(point)) not in ("Cn", "Co")]
    for many in (known, [f"a{char}-b" for char in known]):
        forms = normalised(pl.Series(many))
        assert [(text, got) for text, got in zip(many, forms, strict=True) if got != form(text)] == []
        assert normalised(forms.fill_null("")).equals(forms)
    random.Random(1).shuffle(points)
    some = pl.Series(["".join(map(chr, points[at : at + 4])) for at in range(0, len(points), 4)])
    forms, (found, dense) = normalised(some), by_kernel(some)
    assert found == forms.to_list()
    assert dense == forms.fill_null("").str.count_matches(SPACELESS_CHARS).to_list()
