"""The hot loops, compiled: raw bytes of a text -> normalised -> shingled -> sketched, or its set of shingles.

They read Arrow buffers whose texts beyond ASCII are normalised already (`shingles.half_normalised`), and hold no lock
of Python's, so threads run side by side. `shingles` says what they compute, and computes the same with numpy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from curation.duplicates.shingles import (
    BASE,
    CHARS,
    EXACT,
    INVERSE,
    LONG,
    LONGER,
    SHORT,
    SPACELESS,
    SPACELESS_LEAST,
    WIDTH,
    WORDS,
)
from curation.duplicates.table_kernels import cleared, insert

_LOWER = np.array([at if at >= 128 or chr(at).isalnum() or at == 95 else 0 for at in range(256)], dtype=np.uint8)
_LOWER[65:91] += 32
_BASE, _INVERSE = np.uint64(BASE), np.uint64(INVERSE)
_WIDTH = np.array(WIDTH, dtype=np.int64)
_NONE, _ONE, _FIVE, _HALF = np.uint64(0), np.uint64(1), np.uint64(5), np.uint64(32)
_MIX1, _MIX2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)  # MurmurHash3's finalizer, as in datasketch
_BAND = np.uint64(0xFF51AFD7ED558CCD)
_MOST = np.uint32(0xFFFFFFFF)


@njit(nogil=True, cache=True)
def _normalise(data, first, end, out):
    """Write the normalised form into `out`; return (bytes, words, characters, characters of scripts without spaces)."""
    size, words, chars, spaceless = 0, 0, 0, 0
    gap = True
    for at in range(first, end):
        byte = _LOWER[data[at]]
        if byte == 0:
            gap = True
            continue
        if gap:
            if size:
                out[size] = 32
                size += 1
                chars += 1
            words += 1
            gap = False
        out[size] = byte
        size += 1
        if byte < 0x80:
            chars += 1
        elif byte >= 0xC0:
            chars += 1
            if byte >= 0xF0:
                point = ((byte & 7) << 18) | ((data[at + 1] & 63) << 12)
                spaceless += 0x20000 <= point <= 0x3FFFF
            elif byte >= 0xE0:
                point = ((byte & 15) << 12) | ((data[at + 1] & 63) << 6) | (data[at + 2] & 63)
                spaceless += (
                    0x3400 <= point <= 0x9FFF
                    or 0x3040 <= point <= 0x30FF
                    or 0xE00 <= point <= 0xEFF
                    or 0x1000 <= point <= 0x109F
                    or 0x1780 <= point <= 0x17FF
                    or 0xF900 <= point <= 0xFAFF
                )
    return size, words, chars, spaceless


@njit(nogil=True, cache=True)
def _plain(data, first, end, scratch):
    """Normalise a text if it is ASCII alone; return (bytes, words, hash of the form), or bytes of -1 if it is not.

    scratch[1] gets the running hash at the end of each word, scratch[2] where it ends. No branch depends on the text.
    """
    form, sums, stops, _, _, place, _ = scratch
    size, words, gap, beyond = _NONE, _NONE, _ONE, np.uint8(0)  # unsigned throughout: no check for negative places
    total = np.uint64(0)
    for at in range(np.uint64(first), np.uint64(end)):
        byte = data[at]
        beyond |= byte
        letter = np.uint64(_LOWER[byte])
        space = np.uint64(letter == _NONE)
        char = letter + (space << _FIVE)
        form[size] = np.uint8(char)
        sums[words], stops[words] = total, size
        kept = _ONE - (space & gap)
        total += char * place[size] * kept
        size += kept
        words += space & kept
        gap = space
    if beyond >= 128:
        return -1, 0, total
    if gap == _NONE:
        sums[words], stops[words] = total, size
        words += _ONE
    elif size > _NONE:
        size -= _ONE
        total -= np.uint64(32) * place[size]
    return np.int64(size), np.int64(words), total


@njit(nogil=True, cache=True)
def _shingle(data, starts, row, scratch):
    """Put a text's shingle hashes into scratch[4]; return (their number, kind, hash of the whole form). `rows` as below."""
    text, long = (row, LONG) if row >= 0 else (~row, LONGER)
    size, words, total = _plain(data, starts[text], starts[text + 1], scratch)
    if size < 0:
        return _shingle_beyond(data, starts[text], starts[text + 1], long, scratch)
    form, sums, stops, _, out, place, back = scratch
    if words < SHORT:
        return 0, EXACT, total
    if words >= long:
        out[0] = sums[2]
        for at in range(1, words - 2):
            stop = stops[at - 1]
            out[at] = (sums[at + 2] - sums[at - 1] - np.uint64(32) * place[stop]) * back[stop + _ONE]
        return words - 2, WORDS, total
    for at in range(size - 4):
        one = (np.uint64(form[at + 4]) * _BASE + np.uint64(form[at + 3])) * _BASE + np.uint64(form[at + 2])
        out[at] = ((one * _BASE + np.uint64(form[at + 1])) * _BASE + np.uint64(form[at])) * _BASE
    return size - 4, CHARS, total


@njit(nogil=True, cache=True)
def _shingle_beyond(data, first, end, long, scratch):
    """Do as `_shingle` for a text beyond ASCII."""
    form, sums, backs, ends, out, _, _ = scratch
    size, words, chars, spaceless = _normalise(data, first, end, form)
    if 2 * spaceless > chars - words + 1:
        kind = SPACELESS if chars >= SPACELESS_LEAST else EXACT
    else:
        kind = WORDS if words >= long else CHARS if words >= SHORT else EXACT
    total, place, back = np.uint64(0), _BASE, _ONE
    units = 0
    if kind == WORDS:
        sums[0], backs[0], units = total, back, 1
        for at in range(size):
            byte = form[at]
            if byte == 32:
                ends[units - 1] = total
            total += byte * place
            place *= _BASE
            back *= _INVERSE
            if byte == 32:
                sums[units], backs[units] = total, back
                units += 1
        ends[units - 1] = total
    else:
        for at in range(size):
            byte = form[at]
            if (byte & 0xC0) != 0x80:
                sums[units], backs[units] = total, back
                units += 1
            total += byte * place
            place *= _BASE
            back *= _INVERSE
            ends[units - 1] = total
    width = _WIDTH[kind]
    count = max(units - width + 1, 0) if kind != EXACT else 0
    for at in range(count):
        out[at] = (ends[at + width - 1] - sums[at]) * backs[at]
    return count, kind, total


@njit(nogil=True, cache=True)
def _scratch(starts, rows):
    """Return room for the longest of the texts: form, three values of its units, shingles; powers of BASE and INVERSE."""
    most = 1
    for row in rows:
        text = row if row >= 0 else ~row
        most = max(most, starts[text + 1] - starts[text])
    room = np.empty((6, most + 2), np.uint64)
    place, back = room[4], room[5]
    place[0], back[0] = _BASE, _ONE
    for at in range(most + 1):
        place[at + 1], back[at + 1] = place[at] * _BASE, back[at] * _INVERSE
    return np.empty(most + 2, np.uint8), room[0], room[1], room[2], room[3], place, back


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
def sketch(data, starts, rows, a, b, digests, counts, kinds, forms):
    """Fill digests (rows, permutations) u32, counts, kinds and forms (rows,) of the texts numbered `rows`.

    A row ~n is text n taken as a shorter one: words are its shingles from LONGER words on.
    """
    scratch = _scratch(starts, rows)
    hashes = scratch[4]
    mixed = np.empty(len(hashes) + 8, np.uint32)
    for at in range(len(rows)):
        count, kind, whole = _shingle(data, starts, rows[at], scratch)
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


@njit(nogil=True, cache=True)
def sets(data, starts, rows, bounds, hashes, sizes):
    """Fill hashes[bounds[i]:bounds[i] + sizes[i]] with the distinct shingles of text rows[i]; `rows` as in `sketch`."""
    scratch = _scratch(starts, rows)
    out = scratch[4]
    room = np.empty(8 + 4 * len(out), np.uint64)
    for at in range(len(rows)):
        count, _, _ = _shingle(data, starts, rows[at], scratch)
        table, shift = cleared(room, count)
        size, first = 0, bounds[at]
        for place in range(count):
            hashes[first + size] = max(out[place], _ONE)
            size += insert(table, hashes[first + size], shift)
        sizes[at] = size


@njit(nogil=True, cache=True)
def band_keys(digests, kinds, rows_a_band, keys):
    """Fill keys (texts, bands) u32: equal where kind and the band's digest values are, and by chance once in 2^32."""
    for text in range(len(digests)):
        for band in range(keys.shape[1]):
            key = np.uint64(kinds[text])
            for at in range(band * rows_a_band, (band + 1) * rows_a_band):
                key = (key ^ np.uint64(digests[text, at])) * _BAND
                key ^= key >> _HALF
            keys[text, band] = np.uint32(key)
