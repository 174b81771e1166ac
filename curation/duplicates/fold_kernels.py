"""Normalising by a table of characters (`folding`), compiled: raw bytes of a text -> its normalised form between two spaces."""

from __future__ import annotations

import numpy as np
from numba import njit

from curation.duplicates.folding import DENSE, POINTS, SIZE, UNTOLD
from curation.duplicates.kernels import _LOWER

_SIGNS = np.where(_LOWER == 0, 32, _LOWER).astype(np.uint8)


@njit(nogil=True, cache=True)
def _decoded(data, at, byte):
    """Return (code point, bytes) of a character beyond ASCII."""
    length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
    point = byte & (0x7F >> length)
    for place in range(1, length):
        point = (point << 6) | np.int64(data[at + place] & 63)
    return point, length


@njit(nogil=True, cache=True)
def fold(data, first, end, table, form):
    """Write a text's normalised form, a space before and after it; return (bytes, characters of scripts without spaces).

    No bytes where it has no word character; -1 where the table does not tell.
    """
    beyond = np.uint8(0)
    for at in range(first, end):
        beyond |= data[at]
    form[0] = 32
    size, last, spaceless = 1, np.uint8(32), 0
    if beyond < 0x80:
        for at in range(first, end):  # no branches: words are too short to foresee their ends
            sign = _SIGNS[data[at]]
            form[size] = sign
            size += (sign != 32) | (last != 32)
            last = sign
    else:
        at = first
        while at < end:
            byte = np.int64(data[at])
            if byte < 0x80:
                found, at = np.int64(_SIGNS[byte]) | (1 << SIZE), at + 1
            else:
                point, length = _decoded(data, at, byte)
                found, at = np.int64(table[point] if point < POINTS else UNTOLD), at + length
                if found & UNTOLD:
                    return -1, 0
            spaceless += (found & DENSE) != 0
            for place in range((found >> SIZE) & 3):
                last, sign = form[size - 1], np.uint8((found >> (8 * place)) & 255)
                form[size] = sign
                size += (sign != 32) | (last != 32)
        last = form[size - 1]
    if last != 32:
        form[size] = 32
        size += 1
    return (size if size > 1 else 0), spaceless
