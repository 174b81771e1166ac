"""The normalised form of each character by itself, for the compiled loop: a text of characters that do not look at their
neighbours is normalised by a table. Those that do: marks that combine, jamo, the capital sigma, what this Python does not know.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import polars as pl

from curation.duplicates.shingles import SPACELESS_CHARS, buffers_of
from curation.text import words_of

POINTS = 1 << 17  # the first two planes, emoji among them
UNTOLD = 1 << 31  # the form depends on neighbours, or is longer than the character
DENSE = 1 << 30  # of a script without spaces
SIZE = 24  # the bit from which on the size stands, 1 to 3 bytes; below are the bytes, the first one lowest


@cache
def table() -> np.ndarray:
    """Return (POINTS,) u32: UTF-8, size and DENSE of what each code point beyond ASCII becomes, or UNTOLD."""
    known = [at for at in range(128, POINTS) if unicodedata.category(chr(at)) not in ("Cn", "Cs")]
    seconds = _seconds(known)
    told = [not any(_looks_back(sign, seconds) for sign in _composed(chr(at))) for at in known]
    signs = pl.Series([chr(at) for at in known])
    forms = words_of(signs)
    data, starts = buffers_of(forms)
    size = np.diff(starts)
    found = np.full(POINTS, UNTOLD, dtype=np.uint32)
    spelled = (size << SIZE) | np.where(forms.str.contains(SPACELESS_CHARS).to_numpy(), DENSE, 0)
    for at in range(3):
        spelled |= np.where(at < size, data[np.minimum(starts[:-1] + at, len(data) - 1)].astype(np.int64) << (8 * at), 0)
    good = np.array(told) & (size <= np.minimum(signs.str.len_bytes().to_numpy(), 3))
    found[np.array(known)[good]] = spelled[good]
    return found


def _seconds(known: list[int]) -> set[str]:
    """Return the characters that may become one with the character before them."""
    parts = (unicodedata.decomposition(chr(at)).split() for at in known)
    pairs = {chr(int(part[1], 16)) for part in parts if len(part) == 2 and not part[0].startswith("<")}
    return pairs | {chr(at) for first, end in ((0x1161, 0x1176), (0x11A8, 0x11C3)) for at in range(first, end)}


def _composed(sign: str) -> str:
    return unicodedata.normalize("NFKC", sign) if unicodedata.decomposition(sign) else sign


def _looks_back(sign: str, seconds: set[str]) -> bool:
    return sign in seconds or sign == "Σ" or unicodedata.combining(sign) > 0
