"""The normalised form: all ways to it give what plain Python gives."""

from __future__ import annotations

import random
import subprocess
import sys
import unicodedata
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clean.signatures import prepare
from curation.core import characters, fold_kernels
from curation.core import text as text_module
from curation.core.characters import SPACELESS_CHARS
from curation.core.text import FOLDED_BYTES, normalised
from tests.curation.core.plain_forms import form

signs = st.characters(max_codepoint=127) | st.sampled_from(
    "éß\u2028\u00a0Ⅳ中\x80ﬁΣ½…가ｱ€😀\u00ad\u200d\ufe0f\u2212\uff08\uff01:-)(;'^=/! "
)
texts = st.lists(st.none() | st.text(signs, max_size=12), max_size=12)


def by_kernel(many: pl.Series) -> tuple[list[str | None], list[int]]:
    """The forms that the compiled loops make, and how many characters of scripts without spaces they count."""
    data, starts = prepare(many)
    found, dense = [], []
    for first, end in pairwise(starts):
        most = fold_kernels.room_for(data, first, end)
        out = np.full(most + 8, 7, np.uint8)
        size, spaceless, _ = fold_kernels.fold(data, first, end, characters.folding_table(), out, np.empty((2, most), np.uint8))
        assert size <= most
        assert (out[most:] == 7).all()
        found.append(out[1 : size - 1].tobytes().decode() if size else None)
        dense.append(spaceless)
    return found, dense


def both_ways(many: pl.Series) -> pl.Series:
    """The forms that numpy and the compiled loops make, which are equal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "MANY", 0)
        by_loops = normalised(many)
        patch.setattr(text_module, "MANY", 1 << 60)
        by_numpy = normalised(many)
    assert by_loops.to_list() == by_numpy.to_list()
    assert by_loops.name == by_numpy.name == many.name
    assert by_loops.dtype == by_numpy.dtype == pl.String
    return by_numpy


@settings(max_examples=300)
@given(texts)
def test_forms_are_as_defined(given_texts):
    wanted = [form(text or "") for text in given_texts]
    assert both_ways(pl.Series("q", given_texts, dtype=pl.String)).to_list() == wanted
    assert by_kernel(pl.Series(given_texts, dtype=pl.String).fill_null(""))[0] == wanted


def test_forms_of_many_texts_stay_in_order():
    many = [f"Text, {n}{'é' * (n % 7 == 0)}!" for n in range(FOLDED_BYTES // 10)]
    assert both_ways(pl.Series(many)).to_list() == [form(text) for text in many]


def test_forms_of_many_bytes_of_texts():
    """Texts longer than a block, empty ones, and such as no table tells, at the ends of blocks too."""
    draw = random.Random(2)
    pieces = ["Fußball ", "C++ ", "—", "北京 ", "½ ", "ΑΣ ", "a\u0301", "x-1 ", "!= ", ":-) ", "...", "\u200b", "plain words "]
    many = ["".join(draw.choices(pieces, k=draw.choice([0, 1, 5, 90]))) for _ in range(10_000)]
    many += ["no sign, " * (FOLDED_BYTES // 4), "é+ " * (FOLDED_BYTES // 3), "Σ " * (FOLDED_BYTES // 2), "", "???"]
    draw.shuffle(many)
    texts = pl.Series("text", [*many, None])
    assert both_ways(texts).to_list() == [*map(form, many), None]


def test_small_inputs_are_spared_the_loading_of_compiled_loops():
    code = """
import sys, polars as pl
from curation.core import text
print(text.normalised(pl.Series(["A+"] * 10)).to_list()[0], "numba" in sys.modules)
text.normalised(pl.Series(["word " * 1000] * (text.MANY // 4000)))
print(text.normalised(pl.Series(["A+"] * 10)).to_list()[0], "numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a + False\na + True\n"


def test_forms_of_all_of_unicode():
    """Each code point that this Python knows, in its place by itself; and the compiled loops with four of any at a time."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    known = [chr(point) for point in points if unicodedata.category(chr(point)) not in ("Cn", "Co")]
    for many in (known, [f"a{char}-b" for char in known]):
        forms = both_ways(pl.Series(many))
        assert [(text, got) for text, got in zip(many, forms, strict=True) if got != form(text)] == []
        assert normalised(forms.fill_null("")).equals(forms)
    random.Random(1).shuffle(points)
    some = pl.Series(["".join(map(chr, points[at : at + 4])) for at in range(0, len(points), 4)])
    forms, (found, dense) = both_ways(some), by_kernel(some)
    assert found == forms.to_list()
    assert dense == forms.fill_null("").str.count_matches(SPACELESS_CHARS).to_list()
