"""The hot loops, compiled: raw bytes of a text -> normalised -> shingled -> sketched, or its set of shingles.

They read Arrow buffers whose texts are normalised already where `characters.folding_table` could not (`signatures.read`), and
hold no lock of Python's, so threads run side by side. `shingles` says what they compute, and computes the same with numpy.
"""

from __future__ import annotations

import numpy as np

from curation.clean.shingles import BASE, CHARS, EXACT, INVERSE, LONG, LONGER, SHORT, SPACELESS, SPACELESS_LEAST, WIDTH, WORDS
from curation.clean.table_kernels import cleared, insert
from curation.core.fold_kernels import fold, room_for
from curation.core.jit import compiled

_BASE, _INVERSE = np.uint64(BASE), np.uint64(INVERSE)
_WIDTH = np.array(WIDTH, dtype=np.int64)
_NONE, _ONE, _SPACE, _HALF = np.uint64(0), np.uint64(1), np.uint64(32), np.uint64(32)
_MIX1, _MIX2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)  # MurmurHash3's finalizer, as in datasketch
_BAND = np.uint64(0xFF51AFD7ED558CCD)
_MOST = np.uint32(0xFFFFFFFF)


@compiled
def _shingle(data, starts, table, row, scratch):
    """Put a text's shingle hashes into scratch[3]; return (their number, kind, hash of the whole form). `row` as below.

    scratch[1] gets the running hash at the end of each word, or before each character; scratch[2] where that is.
    """
    text, long = (row, LONG) if row >= 0 else (~row, LONGER)
    form, sums, stops, out, place, back, room = scratch
    size, spaceless, how = fold(data, starts[text], starts[text + 1], table, form, room)
    if size == 0:
        return 0, EXACT, _NONE
    count, total, chars = _NONE, _NONE, size - 2
    for at in range(_ONE, np.uint64(size)):  # unsigned: no check for negative places
        byte = np.uint64(form[at])
        sums[count], stops[count] = total, at
        count += np.uint64(byte == _SPACE)
        total += byte * place[at]
    words, whole = np.int64(count), sums[count - _ONE]
    if how:
        for at in range(1, size - 1):
            chars -= (form[at] & 0xC0) == 0x80
    if 2 * spaceless > chars - words + 1:
        kind = SPACELESS if chars >= SPACELESS_LEAST else EXACT
    else:
        kind = WORDS if words >= long else CHARS if words >= SHORT else EXACT
    if kind == WORDS:
        out[0] = sums[2] * back[1]
        for at in range(1, words - 2):
            stop = stops[at - 1]
            out[at] = (sums[at + 2] - sums[at - 1] - _SPACE * place[stop]) * back[stop + _ONE]
        return words - 2, kind, whole * _INVERSE
    width = _WIDTH[kind]
    if kind == CHARS and chars == size - 2:
        _fives(form[1 : size - 1], out)
    elif kind != EXACT:
        _chars(form, size - 1, width, scratch)
    return chars - width + 1 if kind != EXACT else 0, kind, whole * _INVERSE


@compiled
def _fives(form, out):
    """Hash every 5 bytes in a row."""
    for at in range(len(form) - 4):
        one = (np.uint64(form[at + 4]) * _BASE + np.uint64(form[at + 3])) * _BASE + np.uint64(form[at + 2])
        out[at] = ((one * _BASE + np.uint64(form[at + 1])) * _BASE + np.uint64(form[at])) * _BASE


@compiled
def _chars(form, end, width, scratch):
    """Hash every `width` characters in a row."""
    _, sums, stops, out, place, back, _ = scratch
    units, total = 0, _NONE
    for at in range(1, end):
        if (form[at] & 0xC0) != 0x80:
            sums[units], stops[units] = total, at
            units += 1
        total += form[at] * place[at]
    sums[units] = total
    for at in range(units - width + 1):
        out[at] = (sums[at + width] - sums[at]) * back[stops[at]]


@compiled
def _scratch(data, starts, rows):
    """Return room for the longest of the texts: form, two values of its units, shingles; powers of BASE, INVERSE; for `fold`."""
    most = 1
    for row in rows:
        text = row if row >= 0 else ~row
        most = max(most, room_for(data, starts[text], starts[text + 1]))
    room = np.empty((5, most + 4), np.uint64)
    place, back = room[3], room[4]
    place[0], back[0] = _BASE, _ONE
    for at in range(most + 3):
        place[at + 1], back[at + 1] = place[at] * _BASE, back[at] * _INVERSE
    return np.empty(most + 4, np.uint8), room[0], room[1], room[2], place, back, np.empty((2, most + 4), np.uint8)


@compiled
def _fmix(hashes, count, mixed):
    """Put MurmurHash3's finalizer of the upper halves into `mixed`, and fill up to a multiple of 8 with the last."""
    for at in range(count):
        h = np.uint32(hashes[at] >> _HALF)
        h = np.uint32(h ^ (h >> np.uint32(16)))
        h = np.uint32(h * _MIX1)
        h = np.uint32(h ^ (h >> np.uint32(13)))
        h = np.uint32(h * _MIX2)
        mixed[at] = np.uint32(h ^ (h >> np.uint32(16)))
    for at in range(count, count + -count % 8):
        mixed[at] = mixed[count - 1]


@compiled
def sketch(data, starts, table, rows, a, b, digests, counts, kinds, forms):
    """Fill digests (rows, permutations) u32, counts, kinds and forms (rows,) of the texts numbered `rows`.

    A row ~n is text n taken as a shorter one: words are its shingles from LONGER words on.
    """
    scratch = _scratch(data, starts, rows)
    hashes = scratch[3]
    mixed = np.empty(len(hashes) + 8, np.uint32)
    for at in range(len(rows)):
        count, kind, whole = _shingle(data, starts, table, rows[at], scratch)
        counts[at], kinds[at], forms[at] = count, kind, whole
        digest = digests[at]
        digest[:] = _MOST
        _fmix(hashes, count, mixed)
        for first in range(0, count, 8):  # eight at a time: a permutation is loaded once for all of them
            s, t, u, v = mixed[first], mixed[first + 1], mixed[first + 2], mixed[first + 3]
            w, x, y, z = mixed[first + 4], mixed[first + 5], mixed[first + 6], mixed[first + 7]
            for k in range(len(a)):
                p, q = a[k], b[k]
                low = min(min(np.uint32(p * s + q), np.uint32(p * t + q)), min(np.uint32(p * u + q), np.uint32(p * v + q)))
                top = min(min(np.uint32(p * w + q), np.uint32(p * x + q)), min(np.uint32(p * y + q), np.uint32(p * z + q)))
                digest[k] = min(digest[k], min(low, top))


@compiled
def sets(data, starts, table, rows, bounds, hashes, sizes):
    """Fill hashes[bounds[i]:bounds[i] + sizes[i]] with the distinct shingles of text rows[i]; `rows` as in `sketch`."""
    scratch = _scratch(data, starts, rows)
    out = scratch[3]
    room = np.empty(8 + 4 * len(out), np.uint64)
    for at in range(len(rows)):
        count, _, _ = _shingle(data, starts, table, rows[at], scratch)
        known, shift = cleared(room, count)
        size, first = 0, bounds[at]
        for place in range(count):
            hashes[first + size] = max(out[place], _ONE)
            size += insert(known, hashes[first + size], shift)
        sizes[at] = size


@compiled
def band_keys(digests, kinds, rows_a_band, keys):
    """Fill keys (texts, bands) u32: equal where kind and the band's digest values are, and by chance once in 2^32."""
    for text in range(len(digests)):
        for band in range(keys.shape[1]):
            key = np.uint64(kinds[text])
            for at in range(band * rows_a_band, (band + 1) * rows_a_band):
                key = (key ^ np.uint64(digests[text, at])) * _BAND
                key ^= key >> _HALF
            keys[text, band] = np.uint32(key)
