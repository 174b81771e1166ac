"""What each character by itself is folded to, for the compiled loops: most texts are normalised by this table.

It is asked of `characters.folded` itself, so that both know the same version of Unicode. What it leaves out: code points whose
form hangs on their neighbours, or is longer than they are. Combining marks, jamo, the capital sigma, rare scripts. Texts with one
of those go to `text.normalised`, and through numpy.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl

from curation.core.buffers import buffers_of
from curation.core.characters import BLANK, SIGN, SPACELESS_RANGES, alone, folded, kinds_of

POINTS = 1 << 17  # code points from here on are left out
UNTOLD = 1 << 31
DENSE = 1 << 30  # of a script without spaces
APART = 1 << 29  # a sign beyond ASCII
SIZE = 24  # the bit from which on the size stands, 0 to 3 bytes; below are the bytes, the first one lowest
OWN = 1 << 26  # the character's own four bytes
NEUTRAL = 2  # a byte for what is neither of a word nor a sign, and tells nothing of the signs beside it
ASKED = ((0x80, 0x3400), (0xA000, 0xAC00), (0xF900, 0x10000), (0x1D400, 0x1D800), (0x1F000, 0x1FC00))
SAME = ((0x3400, 0x4DC0), (0x4E00, 0x9FF0), (0xAC00, 0xD7A4))  # Han and Hangul: words, and their own form


@cache
def table() -> np.ndarray:
    """Return (POINTS,) u32: UTF-8, size and kind of what each code point beyond ASCII becomes, or UNTOLD; takes 40 ms."""
    points, found = np.arange(POINTS), np.full(POINTS, UNTOLD, dtype=np.uint32)
    for first, end in SAME:
        at = points[first:end]
        found[first:end] = 3 << SIZE | (0x80 | at & 63) << 16 | (0x80 | at >> 6 & 63) << 8 | 0xE0 | at >> 12
    asked = np.array([at for first, end in ASKED for at in range(first, end) if not 0xD800 <= at < 0xE000])
    chars = pl.Series([chr(at) for at in asked])
    forms = folded(chars)
    good = (forms.str.len_chars() <= 1).to_numpy() & np.array(
        [form == "" or alone(char) for char, form in zip(chars, forms, strict=True)]
    )
    asked, chars, forms = asked[good], chars.filter(pl.Series(good)), forms.filter(pl.Series(good))
    there = (forms != "").to_numpy()
    kinds = np.zeros(len(forms), np.uint8)
    kinds[there] = kinds_of(np.array([ord(form) for form in forms if form], "<u4"))
    ascii_form = (forms.str.len_bytes() == 1).to_numpy()
    data, starts = buffers_of(forms)
    size = np.diff(starts)
    spelled = size << SIZE
    for byte in range(3):
        spelled |= np.where(byte < size, data[np.minimum(starts[:-1] + byte, len(data) - 1)].astype(np.int64) << (8 * byte), 0)
    own = (size == 4) & (forms == chars).to_numpy() & (kinds == SIGN)
    spelled = np.where(own, OWN, spelled)
    spelled = np.where((kinds == SIGN) & ~ascii_form, spelled | APART, spelled)
    spelled = np.where((kinds == BLANK) & there & ~ascii_form, 1 << SIZE | NEUTRAL, spelled)
    fits = own | (size <= np.minimum(chars.str.len_bytes().to_numpy(), 3))
    found[asked[fits]] = spelled[fits]
    forms_at = points.copy()  # of a text of its own form, what is left out is copied
    forms_at[asked[fits]] = [ord(form) if form else 0 for form in forms.filter(pl.Series(fits))]
    forms_at[asked[fits & (kinds == BLANK)]] = 0
    for first, end in SPACELESS_RANGES:
        found[(forms_at >= first) & (forms_at <= end)] |= DENSE
    return found
