"""The hot loops, compiled: raw bytes of a text -> normalised -> shingled -> sketched, or its set of shingles.

They read Arrow buffers whose texts beyond ASCII are normalised already (`shingles.half_normalised`), and hold no lock
of Python's, so threads run side by side. `shingles` says what they compute, and computes the same with numpy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from curation.shingles import BASE, CHARS, EXACT, INVERSE, LONG, LONGER, SHORT, SPACELESS, SPACELESS_LEAST, WIDTH, WORDS

_LOWER = np.array([at if at >= 128 or chr(at).isalnum() or at == 95 else 0 for at in range(256)], dtype=np.uint8)
_LOWER[65:91] += 32
_BASE, _INVERSE = np.uint64(BASE), np.uint64(INVERSE)
_WIDTH = np.array(WIDTH, dtype=np.int64)
_ONE, _HALF = np.uint64(1), np.uint64(32)
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
def _shingle(data, starts, row, scratch):
    """Put a text's shingle hashes into scratch[4]; return (their number, kind, hash of the whole form). `rows` as below."""
    form, sums, backs, ends, out = scratch
    text, long = (row, LONG) if row >= 0 else (~row, LONGER)
    size, words, chars, spaceless = _normalise(data, starts[text], starts[text + 1], form)
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
    """Return room for the longest of the texts: its form, three running values of its units, its shingles."""
    most = 1
    for row in rows:
        text = row if row >= 0 else ~row
        most = max(most, starts[text + 1] - starts[text])
    room = np.empty((4, most + 1), np.uint64)
    return np.empty(most + 1, np.uint8), room[0], room[1], room[2], room[3]


@njit(nogil=True, cache=True)
def sketch(data, starts, rows, a, b, digests, counts, kinds, forms):
    """Fill digests (rows, permutations) u32, counts, kinds and forms (rows,) of the texts numbered `rows`.

    A row ~n is text n taken as a shorter one: words are its shingles from LONGER words on.
    """
    scratch = _scratch(starts, rows)
    hashes = scratch[4]
    for at in range(len(rows)):
        count, kind, whole = _shingle(data, starts, rows[at], scratch)
        counts[at], kinds[at], forms[at] = count, kind, whole
        digest = digests[at]
        digest[:] = _MOST
        for shingle in range(count):
            h = np.uint32(hashes[shingle] >> _HALF)
            h = np.uint32(h ^ (h >> np.uint32(16)))
            h = np.uint32(h * _MIX1)
            h = np.uint32(h ^ (h >> np.uint32(13)))
            h = np.uint32(h * _MIX2)
            h = np.uint32(h ^ (h >> np.uint32(16)))
            for k in range(len(a)):
                digest[k] = min(digest[k], np.uint32(a[k] * h + b[k]))


@njit(nogil=True, cache=True)
def sets(data, starts, rows, bounds, hashes, sizes):
    """Fill hashes[bounds[i]:bounds[i] + sizes[i]] with the sorted distinct shingles of text rows[i]; `rows` as in `sketch`."""
    scratch = _scratch(starts, rows)
    for at in range(len(rows)):
        count, _, _ = _shingle(data, starts, rows[at], scratch)
        ordered = np.sort(scratch[4][:count])
        size, first = 0, bounds[at]
        for place in range(count):
            if place == 0 or ordered[place] != ordered[place - 1]:
                hashes[first + size] = ordered[place]
                size += 1
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


@njit(nogil=True, cache=True)
def jaccard(hashes, bounds, sizes, left, right, least, scores):
    """Fill scores with the Jaccard of the sets left[i] and right[i]; 0 where it is below `least`."""
    for pair in range(len(left)):
        i, j = left[pair], right[pair]
        n, m = sizes[i], sizes[j]
        scores[pair] = 0.0
        if min(n, m) < least * max(n, m):
            continue
        p, q = bounds[i], bounds[j]
        end_p, end_q = p + n, q + m
        both, misses = 0, 0
        most = (n + m) * (1 - least) / (1 + least) + 0.5  # with more misses the Jaccard is below `least`
        while p < end_p and q < end_q and misses < most:
            x, y = hashes[p], hashes[q]
            both += x == y
            misses += x != y
            p += x <= y
            q += y <= x
        score = both / max(n + m - both, 1)
        scores[pair] = score if misses < most and score >= least else 0.0
