"""Compiled loops over tables: sets of shingles and their Jaccard, keys that come twice."""

from __future__ import annotations

import numpy as np

from curation.core.jit import compiled

_SPREAD = np.uint64(0xFF51AFD7ED558CCD)
_ONE, _SIX, _LAST = np.uint64(1), np.uint64(6), np.uint64(63)


@compiled
def insert(table, value, shift):
    """Put a value into a table with free room, linear probing; return whether it was new. 0 stands for a free slot."""
    at = np.int64((value * _SPREAD) >> shift)
    while table[at] != 0 and table[at] != value:
        at = (at + 1) & (len(table) - 1)
    new = table[at] == 0
    table[at] = value
    return new


@compiled
def cleared(table, count):
    """Return (cleared part of a table, shift) with room for `count` values; the table itself is long enough."""
    log = 3
    while (1 << log) < 2 * count:
        log += 1
    part = table[: 1 << log]
    part[:] = 0
    return part, np.uint64(64 - log)


@compiled
def marked(keys, able, bits, part, shift, once, twice):
    """Mark in filters of bits the keys, and those met twice, of entries as in `repeated`; return the number of entries."""
    low, above, wanted, count = np.uint64((1 << (32 - bits)) - 1), np.uint64(32 - bits), np.uint64(part), np.uint64(0)
    for entry in range(len(keys)):
        key = np.uint64(keys[entry])
        taken = np.uint64(able[entry]) & np.uint64(key >> above == wanted)
        place = (key & low) >> np.uint64(shift)
        word, bit = place >> _SIX, taken << (place & _LAST)
        twice[word] |= once[word] & bit
        once[word] |= bit
        count += taken
    return count


@compiled
def repeated(keys, able, bits, part, shift, twice, found):
    """Put into `found` key << 32 | entry of those whose key another one may have too; return their number, less than its length.

    Of the entries that are `able` and whose key's first `bits` bits are `part`. The filters, 2^(26 - bits - shift) words of 64,
    let some through by chance, which does no harm. No branches: half of them would be foretold wrongly.
    """
    low, above, wanted, count = np.uint64((1 << (32 - bits)) - 1), np.uint64(32 - bits), np.uint64(part), np.uint64(0)
    for entry in range(len(keys)):
        key = np.uint64(keys[entry])
        taken = np.uint64(able[entry]) & np.uint64(key >> above == wanted)
        place = (key & low) >> np.uint64(shift)
        found[count] = key << np.uint64(32) | np.uint64(entry)
        count += taken & (twice[place >> _SIX] >> (place & _LAST))
    return count


@compiled
def numbered(left, right, counts, room, used, i, j):
    """Number the entries of pairs as they first come, until they have more than `room` shingles; return (pairs, entries).

    `used` gets the entries; i and j the numbers of left and right.
    """
    log = 4
    while (1 << log) < 4 * len(left):
        log += 1
    places, shift, size, total = np.full(1 << log, -1, np.int32), np.uint64(64 - log), 0, 0
    for pair in range(len(left)):
        for half in range(2):
            entry = right[pair] if half else left[pair]
            at = np.int64((np.uint64(entry + 1) * _SPREAD) >> shift)
            while places[at] >= 0 and used[places[at]] != entry:
                at = (at + 1) & (len(places) - 1)
            if places[at] < 0:
                places[at], used[size] = size, entry
                size, total = size + 1, total + counts[entry]
            if half:
                j[pair] = places[at]
            else:
                i[pair] = places[at]
        if total > room:
            return pair + 1, size
    return len(left), size


@compiled
def jaccard(hashes, bounds, sizes, left, right, least, scores):
    """Fill scores with the Jaccard of the sets left[i] and right[i]; 0 where it is below `least`. Equal lefts lie together."""
    most = sizes.max() if len(sizes) else 0
    room, filters = np.empty(8 + 4 * most, np.uint64), np.empty(2 + most // 2, np.uint64)
    bits, low, table, shift, held, made = filters, np.uint64(0), room, np.uint64(0), -1, False
    for pair in range(len(left)):
        i, j = left[pair], right[pair]
        n, m = sizes[i], sizes[j]
        scores[pair] = 0.0
        if min(n, m) < least * max(n, m):
            continue
        if i != held:
            bits, low = _bits(hashes[bounds[i] : bounds[i] + n], filters)
            held, made = i, False
        spare = np.int64(m - (n + m) * least / (1 + least) + 0.5)  # with more misses the Jaccard is below `least`
        others = hashes[bounds[j] : bounds[j] + m]
        if _absent(others, bits, low, spare) > spare:
            continue
        if not made:
            table, shift = cleared(room, n)
            made = True
            for at in range(bounds[i], bounds[i] + n):
                insert(table, hashes[at], shift)
        both = 0
        for value in others:
            both += _holds(table, value, shift)
        score = both / max(n + m - both, 1)
        scores[pair] = score if score >= least else 0.0


@compiled
def _bits(values, room):
    """Return (bits, shift): the values' first bits in a filter of 16 bits a value or more."""
    log = 6
    while (1 << log) < 16 * len(values):
        log += 1
    bits, shift = room[: 1 << (log - 6)], np.uint64(64 - log)
    bits[:] = 0
    for value in values:
        at = (value * _SPREAD) >> shift
        bits[at >> _SIX] |= _ONE << (at & _LAST)
    return bits, shift


@compiled
def _absent(values, bits, shift, spare):
    """Return how many values a filter shows to be absent, or some number above `spare`: no branches but one in 16 values."""
    absent = np.int64(0)
    for first in range(0, len(values), 16):
        for value in values[first : first + 16]:
            at = (value * _SPREAD) >> shift
            absent += np.int64(~(bits[at >> _SIX] >> (at & _LAST)) & _ONE)
        if absent > spare:
            break
    return absent


@compiled
def _holds(table, value, shift):
    at = np.int64((value * _SPREAD) >> shift)
    while table[at] != 0 and table[at] != value:
        at = (at + 1) & (len(table) - 1)
    return table[at] == value
