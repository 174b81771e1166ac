"""Compiled loops over tables: sets of shingles and their Jaccard, keys that come twice, forms by a table of code points."""

from __future__ import annotations

import numpy as np
from numba import njit

_SPREAD = np.uint64(0xFF51AFD7ED558CCD)


@njit(nogil=True, cache=True)
def insert(table, value, shift):
    """Put a value into a table with free room, linear probing; return whether it was new. 0 stands for a free slot."""
    at = np.int64((value * _SPREAD) >> shift)
    while table[at] != 0 and table[at] != value:
        at = (at + 1) & (len(table) - 1)
    new = table[at] == 0
    table[at] = value
    return new


@njit(nogil=True, cache=True)
def cleared(table, count):
    """Return (cleared part of a table, shift) with room for `count` values; the table itself is long enough."""
    log = 3
    while (1 << log) < 2 * count:
        log += 1
    part = table[: 1 << log]
    part[:] = 0
    return part, np.uint64(64 - log)


@njit(nogil=True, cache=True)
def repeated(keys, able, shift, once, twice, found):
    """Put into `found` which of the entries `able` may have a key that another one has too; return their number.

    A filter of bits, `once` and `twice` of 2^(26 - shift) words of 64: what it lets through by chance does no harm.
    """
    low = np.uint64(63)
    for entry in able:
        key = np.uint64(keys[entry] >> shift)
        word, bit = key >> np.uint64(6), np.uint64(1) << (key & low)
        twice[word] |= once[word] & bit
        once[word] |= bit
    count = np.int64(0)
    for entry in able:
        key = np.uint64(keys[entry] >> shift)
        found[count] = entry
        count += np.int64((twice[key >> np.uint64(6)] >> (key & low)) & np.uint64(1))
    return count


@njit(nogil=True, cache=True)
def jaccard(hashes, bounds, sizes, left, right, least, scores):
    """Fill scores with the Jaccard of the sets left[i] and right[i]; 0 where it is below `least`. Equal lefts lie together."""
    room = np.empty(8 + 4 * (sizes.max() if len(sizes) else 0), np.uint64)
    table, shift, held = cleared(room, 1)[0], np.uint64(0), -1
    for pair in range(len(left)):
        i, j = left[pair], right[pair]
        n, m = sizes[i], sizes[j]
        scores[pair] = 0.0
        if min(n, m) < least * max(n, m):
            continue
        if i != held:
            table, shift = cleared(room, n)
            held = i
            for at in range(bounds[i], bounds[i] + n):
                insert(table, hashes[at], shift)
        spare = m - (n + m) * least / (1 + least) + 0.5  # with more misses the Jaccard is below `least`
        misses = 0
        for at in range(bounds[j], bounds[j] + m):
            misses += not _holds(table, hashes[at], shift)
            if misses > spare:
                break
        both = m - misses
        score = both / max(n + m - both, 1)
        scores[pair] = score if misses <= spare and score >= least else 0.0


@njit(nogil=True, cache=True)
def _holds(table, value, shift):
    at = np.int64((value * _SPREAD) >> shift)
    while table[at] != 0 and table[at] != value:
        at = (at + 1) & (len(table) - 1)
    return table[at] == value


@njit(nogil=True, cache=True)
def fold(data, starts, points, out, left):
    """Write the form of each text and a line end; return the bytes; mark in `left` texts with a code point `points` leaves."""
    size = 0
    for text in range(len(left)):
        begin, gap, at = size, False, starts[text]
        while at < starts[text + 1]:
            byte = np.int64(data[at])
            if byte < 0x80:
                point, at = byte, at + 1
            elif byte < 0xE0:
                point, at = ((byte & 31) << 6) | (data[at + 1] & 63), at + 2
            elif byte < 0xF0:
                point, at = ((byte & 15) << 12) | ((data[at + 1] & 63) << 6) | (data[at + 2] & 63), at + 3
            else:
                point, at = (
                    ((byte & 7) << 18) | ((data[at + 1] & 63) << 12) | ((data[at + 2] & 63) << 6) | (data[at + 3] & 63),
                    at + 4,
                )
            to = points[point] if point < len(points) else -1
            if to == 0:
                gap = size > begin
                continue
            if to < 0:
                left[text] = True
                size = begin
                break
            if gap:
                out[size] = 32
                size += 1
                gap = False
            size = _encode(to, out, size)
        out[size] = 10
        size += 1
    return size


@njit(nogil=True, cache=True)
def _encode(point, out, size):
    if point < 0x80:
        out[size] = point
        return size + 1
    if point < 0x800:
        out[size], out[size + 1] = 0xC0 | point >> 6, 0x80 | point & 63
        return size + 2
    if point < 0x10000:
        out[size], out[size + 1], out[size + 2] = 0xE0 | point >> 12, 0x80 | point >> 6 & 63, 0x80 | point & 63
        return size + 3
    out[size], out[size + 1] = 0xF0 | point >> 18, 0x80 | point >> 12 & 63
    out[size + 2], out[size + 3] = 0x80 | point >> 6 & 63, 0x80 | point & 63
    return size + 4
