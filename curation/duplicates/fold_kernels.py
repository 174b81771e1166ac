"""Normalising by a table of characters (`folding`), compiled: raw bytes of a text -> its normalised form between two spaces."""

from __future__ import annotations

import numpy as np

from curation.duplicates.compiled import compiled
from curation.duplicates.folding import DENSE, POINTS, SIZE, UNTOLD

_SPACE, _CASE, _HIGH = np.uint8(32), np.uint8(32), np.uint8(128)
_A, _ZERO, _LOW, _LETTERS, _DIGITS = np.uint8(97), np.uint8(48), np.uint8(95), np.uint8(26), np.uint8(10)
_ONE = np.uint64(1)


@compiled
def _decoded(data, at, byte):
    """Return (code point, bytes) of a character beyond ASCII."""
    length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
    point = byte & (0x7F >> length)
    for place in range(1, length):
        point = (point << 6) | np.int64(data[at + place] & 63)
    return point, length


@compiled
def _told(table, point):
    return np.int64(table[point]) if point < POINTS else UNTOLD | (DENSE if point < 0x40000 else 0)


@compiled
def _sign(byte):
    """Return what an ASCII byte becomes: a small letter, a digit, `_` or a space."""
    small = byte | _CASE
    letter = small if np.uint8(small - _A) < _LETTERS else _SPACE
    return byte if (np.uint8(byte - _ZERO) < _DIGITS) | (byte == _LOW) | (byte >= _HIGH) else letter


@compiled
def fold(data, first, end, table, form):
    """Write a text's normalised form, a space before and after it; return (bytes, characters of scripts without spaces, how).

    No bytes where it has no word character. `how` is 0 for ASCII alone, 1 where the table tells all of it, and 2 where it
    does not: what it leaves out is copied, which is right for a text that is normalised already and for no other.
    """
    text, form[0], beyond = data[first:end], _SPACE, np.uint8(0)
    for at in range(np.uint64(len(text))):  # unsigned places: no checks for negative ones, and 64 bytes at a time
        beyond |= text[at]
        form[at + _ONE] = _sign(text[at])
    size, spaceless, how = _ONE, 0, 0
    if beyond < 0x80:
        last = _SPACE
        for at in range(_ONE, np.uint64(len(text)) + _ONE):  # no branches: words are too short to foresee their ends
            sign = form[at]
            form[size] = sign
            size += np.uint64((sign != _SPACE) | (last != _SPACE))
            last = sign
    else:
        size, spaceless, how = _beyond(text, table, form)
    if form[size - _ONE] != _SPACE:
        form[size] = _SPACE
        size += _ONE
    return (np.int64(size) if size > 1 else 0), spaceless, how


@compiled
def _beyond(text, table, form):
    size, spaceless, how, at, last = 1, 0, 1, 0, _SPACE
    while at < len(text):
        byte = text[at]
        if byte < 0x80:
            found, length = np.int64(_sign(byte)) | (1 << SIZE), 1
        else:
            point, length = _decoded(text, at, np.int64(byte))
            found = _told(table, point)
            spaceless += (found & DENSE) != 0
        if found & UNTOLD:
            how = 2
            for place in range(length):
                form[size + place] = text[at + place]
            size, last = size + length, byte
        else:
            for place in range((found >> SIZE) & 3):
                sign = np.uint8((found >> (8 * place)) & 255)
                form[size] = sign
                size += (sign != 32) | (last != 32)
                last = sign
        at += length
    return np.uint64(size), spaceless, how


@compiled
def untold(data, starts, table, found):
    """Put the numbers of the texts with a character that the table leaves out into `found`; return how many they are."""
    count = 0
    for text in range(len(starts) - 1):
        beyond, at, end = np.uint8(0), starts[text], starts[text + 1]
        for byte in data[at:end]:
            beyond |= byte
        while beyond >= 0x80 and at < end:
            length = 1
            if data[at] >= 0x80:
                point, length = _decoded(data, at, np.int64(data[at]))
                if _told(table, point) & UNTOLD:
                    found[count] = text
                    count += 1
                    break
            at += length
    return count


@compiled
def spliced(data, starts, rows, others, bounds, out, ends):
    """Copy texts into `out` with texts rows[i], in order, replaced by others[bounds[i]:bounds[i + 1]]; fill ends (texts + 1,)."""
    size = done = 0
    ends[0] = 0
    for at in range(len(rows) + 1):
        text = rows[at] if at < len(rows) else len(starts) - 1
        for number in range(done, text):
            ends[number + 1] = ends[number] + starts[number + 1] - starts[number]
        size = ends[done] + starts[text] - starts[done]
        out[ends[done] : size] = data[starts[done] : starts[text]]
        if at < len(rows):
            ends[text + 1] = size + bounds[at + 1] - bounds[at]
            out[size : ends[text + 1]] = others[bounds[at] : bounds[at + 1]]
        done = text + 1
