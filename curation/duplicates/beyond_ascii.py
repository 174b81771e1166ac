"""Normal forms of texts beyond ASCII, compiled: as `text.normalised` makes them, ten times as fast for most texts.

A table says what each code point becomes. It is asked of `text.normalised` itself, one code point between two letters, so
that both know the same version of Unicode. Texts with a code point whose form hangs on its neighbours, or is not one code
point, are left to `text.normalised`: combining marks, jamo, capital sigma, ligatures, what the table does not cover.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import polars as pl

from curation.duplicates.shingles import buffers_of
from curation.duplicates.table_kernels import fold
from curation.text import normalised

LEAST = 5_000  # texts; for fewer the table, 30 ms to make, does not pay
SIZE = 0x20000  # code points from here on are left to `text.normalised`
ASKED = (range(0x80), range(0x80, 0x3400), range(0xFE00, 0x10000), range(0x1F000, 0x1FB00))
SAME = (range(0x3400, 0x4DC0), range(0x4E00, 0x9FF0), range(0xAC00, 0xD7A4))  # Han and Hangul: words, and their own form
SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"  # small, it is another one at the end of a word
CLINGING = ("Mn", "Mc", "Me", "Cn", "Cs", "Co")  # marks; not assigned in Python's Unicode, which may be the older one


@functools.cache
def table() -> np.ndarray:
    """Return (SIZE,) i32: what a code point becomes, 0 for what separates words, -1 for what is left to `text.normalised`."""
    found = np.full(SIZE, -1, np.int32)
    for points in SAME:
        found[points.start : points.stop] = points
    asked = [chr(point) for points in ASKED for point in points if _alone(chr(point))]
    for char, form in zip(asked, normalised(pl.Series([f"a{char}a" for char in asked])), strict=True):
        if form == "a a":
            found[ord(char)] = 0
        elif len(form) == 3 and len(form[1].encode()) <= len(char.encode()):
            found[ord(char)] = ord(form[1])
    return found


def _alone(char: str) -> bool:
    """Tell whether the form of a code point never hangs on its neighbours."""
    parts = char + unicodedata.normalize("NFKC", char)
    return not any(part == SIGMA or "\u1100" <= part < "\u1200" or unicodedata.category(part) in CLINGING for part in parts)


def forms_beyond(texts: pl.Series) -> pl.Series:
    """Return the normalised form of each text (no nulls), "" for one without a word."""
    if len(texts) < LEAST:
        return normalised(texts).fill_null("")
    data, starts = buffers_of(texts)
    out, left = np.empty(starts[-1] - starts[0] + len(texts), np.uint8), np.zeros(len(texts), bool)
    size = fold(data, starts, table(), out, left)
    lines = pl.Series(texts.name, [out[: size - 1].tobytes().decode()])
    found = lines.str.split("\n").explode()
    rest = np.flatnonzero(left)
    if not len(rest):
        return found
    place = np.arange(len(texts))
    place[rest] = len(texts) + np.arange(len(rest))
    return pl.concat([found, normalised(texts.gather(rest)).fill_null("").alias(texts.name)]).gather(place)
