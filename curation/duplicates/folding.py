"""The normalised form of each character by itself, for the compiled loops: most texts are normalised by this table.

It is asked of `text.words_of` itself, one code point between two letters, so that both know the same version of Unicode.
What it leaves out: code points whose form hangs on their neighbours, or is longer than they are. Combining marks, jamo, the
capital sigma, rare scripts. Texts with one of those go to `text.normalised`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl

from curation.duplicates.shingles import SPACELESS_RANGES, buffers_of
from curation.text import alone, words_of

POINTS = 1 << 17  # code points from here on are left out
UNTOLD = 1 << 31
DENSE = 1 << 30  # of a script without spaces
SIZE = 24  # the bit from which on the size stands, 1 to 3 bytes; below are the bytes, the first one lowest
ASKED = ((0x80, 0x3400), (0xA000, 0xAC00), (0xF900, 0x10000), (0x1D400, 0x1D800), (0x1F000, 0x1FB00))
SAME = ((0x3400, 0x4DC0), (0x4E00, 0x9FF0), (0xAC00, 0xD7A4))  # Han and Hangul: words, and their own form


@cache
def table() -> np.ndarray:
    """Return (POINTS,) u32: UTF-8, size and DENSE of what each code point beyond ASCII becomes, or UNTOLD; takes 40 ms."""
    points, found = np.arange(POINTS), np.full(POINTS, UNTOLD, dtype=np.uint32)
    for first, end in SAME:
        at = points[first:end]
        found[first:end] = 3 << SIZE | (0x80 | at & 63) << 16 | (0x80 | at >> 6 & 63) << 8 | 0xE0 | at >> 12
    signs = pl.Series([chr(at) for first, end in ASKED for at in range(first, end) if alone(chr(at))])
    forms = words_of("a" + signs + "a").str.head(-1).str.slice(1)
    data, starts = buffers_of(forms)
    size = np.diff(starts)
    spelled = size << SIZE
    for byte in range(3):
        spelled |= np.where(byte < size, data[np.minimum(starts[:-1] + byte, len(data) - 1)].astype(np.int64) << (8 * byte), 0)
    good = (size > 0) & (size <= np.minimum(signs.str.len_bytes().to_numpy(), 3))
    found[np.array([ord(sign) for sign in signs])[good]] = spelled[good]
    for first, end in SPACELESS_RANGES:
        found[first : end + 1] |= DENSE
    return found
