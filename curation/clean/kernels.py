"""Compiled loops of near-duplicates: raw bytes of a text -> normalised -> shingles -> digest or set; and tables of these.

They read Arrow buffers (`signatures.prepare`) and release Python's lock, so threads run in parallel. `shingles` defines what
they compute.
"""

from __future__ import annotations

import numpy as np

from curation.clean.shingles import (
    BASE,
    CHARS,
    CHARS_FROM,
    EXACT,
    INVERSE,
    SPACELESS,
    SPACELESS_FROM,
    WIDTH,
    WORDS,
    WORDS_FROM,
    WORDS_ONLY,
)
from curation.core.fold_kernels import fold, room_for
from curation.core.jit import compiled

U0, U1, U6, U32, U63 = (np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(32), np.uint64(63))
U_BASE, U_INVERSE = np.uint64(BASE), np.uint64(INVERSE)
_SPACE_BYTE = np.uint64(32)
_WIDTHS = np.array(WIDTH, dtype=np.int64)
_MIX1, _MIX2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)  # MurmurHash3's finalizer, as in datasketch
_SPREAD = np.uint64(0xFF51AFD7ED558CCD)
_MOST = np.uint32(0xFFFFFFFF)


@compiled
def _shingle(data, starts, table, row, scratch):
    """Write a text's shingle hashes into scratch[3]; return (their number, kind, hash of the form). `row` as in `sketch_texts`.

    scratch[1] gets the running hash at the end of each word, or before each character; scratch[2] its position.
    """
    text, long = (row, WORDS_FROM) if row >= 0 else (~row, WORDS_ONLY)
    form, sums, stops, out, place, back, room = scratch
    size, spaceless, how = fold(data, starts[text], starts[text + 1], table, form, room)
    if size == 0:
        return 0, EXACT, U0
    count, total, chars = U0, U0, size - 2
    for at in range(U1, np.uint64(size)):  # unsigned: numba adds no check for negative places
        byte = np.uint64(form[at])
        sums[count], stops[count] = total, at
        count += np.uint64(byte == _SPACE_BYTE)
        total += byte * place[at]
    words, whole = np.int64(count), sums[count - U1]
    if how:
        for at in range(1, size - 1):
            chars -= (form[at] & 0xC0) == 0x80
    if 2 * spaceless > chars - words + 1:
        kind = SPACELESS if chars >= SPACELESS_FROM else EXACT
    else:
        kind = WORDS if words >= long else CHARS if words >= CHARS_FROM else EXACT
    if kind == WORDS:
        out[0] = sums[2] * back[1]
        for at in range(1, words - 2):
            stop = stops[at - 1]
            out[at] = (sums[at + 2] - sums[at - 1] - _SPACE_BYTE * place[stop]) * back[stop + U1]
        return words - 2, kind, whole * U_INVERSE
    width = _WIDTHS[kind]
    if kind == CHARS and chars == size - 2:
        _hash_fives(form[1 : size - 1], out)
    elif kind != EXACT:
        _hash_chars(form, size - 1, width, scratch)
    return chars - width + 1 if kind != EXACT else 0, kind, whole * U_INVERSE


@compiled
def _hash_fives(form, out):
    """Hash every run of 5 bytes."""
    for at in range(len(form) - 4):
        one = (np.uint64(form[at + 4]) * U_BASE + np.uint64(form[at + 3])) * U_BASE + np.uint64(form[at + 2])
        out[at] = ((one * U_BASE + np.uint64(form[at + 1])) * U_BASE + np.uint64(form[at])) * U_BASE


@compiled
def _hash_chars(form, end, width, scratch):
    """Hash every run of `width` characters."""
    _, sums, stops, out, place, back, _ = scratch
    units, total = 0, U0
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
    """Return work arrays for the longest text: form, two values per unit, shingles, powers of BASE and INVERSE, for `fold`."""
    most = 1
    for row in rows:
        text = row if row >= 0 else ~row
        most = max(most, room_for(data, starts[text], starts[text + 1]))
    room = np.empty((5, most + 4), np.uint64)
    place, back = room[3], room[4]
    place[0], back[0] = U_BASE, U1
    for at in range(most + 3):
        place[at + 1], back[at + 1] = place[at] * U_BASE, back[at] * U_INVERSE
    return np.empty(most + 4, np.uint8), room[0], room[1], room[2], place, back, np.empty((2, most + 4), np.uint8)


@compiled
def _mix_hashes(hashes, count, mixed):
    """Write MurmurHash3's finalizer of the upper halves into `mixed`; repeat the last one up to a multiple of 8."""
    for at in range(count):
        h = np.uint32(hashes[at] >> U32)
        h = np.uint32(h ^ (h >> np.uint32(16)))
        h = np.uint32(h * _MIX1)
        h = np.uint32(h ^ (h >> np.uint32(13)))
        h = np.uint32(h * _MIX2)
        mixed[at] = np.uint32(h ^ (h >> np.uint32(16)))
    for at in range(count, count + -count % 8):
        mixed[at] = mixed[count - 1]


@compiled
def sketch_texts(data, starts, table, rows, a, b, digests, counts, kinds, forms):
    """Fill digests (rows, permutations) u32, counts, kinds and forms (rows,) of the texts numbered `rows`.

    A row ~n is text n with CHARS in place of WORDS, if it has less than WORDS_ONLY words.
    """
    scratch = _scratch(data, starts, rows)
    hashes = scratch[3]
    mixed = np.empty(len(hashes) + 8, np.uint32)
    for at in range(len(rows)):
        count, kind, whole = _shingle(data, starts, table, rows[at], scratch)
        counts[at], kinds[at], forms[at] = count, kind, whole
        digest = digests[at]
        digest[:] = _MOST
        _mix_hashes(hashes, count, mixed)
        for first in range(0, count, 8):  # eight at a time: a permutation is loaded once for all of them
            s, t, u, v = mixed[first], mixed[first + 1], mixed[first + 2], mixed[first + 3]
            w, x, y, z = mixed[first + 4], mixed[first + 5], mixed[first + 6], mixed[first + 7]
            for k in range(len(a)):
                p, q = a[k], b[k]
                low = min(min(np.uint32(p * s + q), np.uint32(p * t + q)), min(np.uint32(p * u + q), np.uint32(p * v + q)))
                top = min(min(np.uint32(p * w + q), np.uint32(p * x + q)), min(np.uint32(p * y + q), np.uint32(p * z + q)))
                digest[k] = min(digest[k], min(low, top))


@compiled
def shingle_sets(data, starts, table, rows, bounds, hashes, sizes):
    """Fill hashes[bounds[i]:bounds[i] + sizes[i]] with the distinct shingles of text rows[i]; `rows` as in `sketch_texts`."""
    scratch = _scratch(data, starts, rows)
    out = scratch[3]
    room = np.empty(8 + 4 * len(out), np.uint64)
    for at in range(len(rows)):
        count, _, _ = _shingle(data, starts, table, rows[at], scratch)
        known, shift = clear_table(room, count)
        size, first = 0, bounds[at]
        for place in range(count):
            hashes[first + size] = max(out[place], U1)
            size += insert(known, hashes[first + size], shift)
        sizes[at] = size


@compiled
def band_keys(digests, kinds, rows_per_band, keys):
    """Fill keys (texts, bands) u32: equal if kind and the band's digest values are equal, and by chance once in 2^32."""
    for text in range(len(digests)):
        for band in range(keys.shape[1]):
            key = np.uint64(kinds[text])
            for at in range(band * rows_per_band, (band + 1) * rows_per_band):
                key = (key ^ np.uint64(digests[text, at])) * _SPREAD
                key ^= key >> U32
            keys[text, band] = np.uint32(key)


@compiled
def insert(table, value, shift):
    """Insert a value into a hash table with linear probing; return whether it was new. 0 marks a free slot."""
    at = np.int64((value * _SPREAD) >> shift)
    while table[at] != 0 and table[at] != value:
        at = (at + 1) & (len(table) - 1)
    new = table[at] == 0
    table[at] = value
    return new


@compiled
def clear_table(table, count):
    """Return (an empty part of a table, shift) with room for `count` values."""
    log = 3
    while (1 << log) < 2 * count:
        log += 1
    part = table[: 1 << log]
    part[:] = 0
    return part, np.uint64(64 - log)


@compiled
def mark_repeats(keys, able, bits, part, shift, once, twice):
    """Mark keys in the filter `once`, and repeated ones in `twice`; return the number of entries, chosen as in `find_repeats`."""
    low, above, wanted, count = np.uint64((1 << (32 - bits)) - 1), np.uint64(32 - bits), np.uint64(part), np.uint64(0)
    for entry in range(len(keys)):
        key = np.uint64(keys[entry])
        taken = np.uint64(able[entry]) & np.uint64(key >> above == wanted)
        place = (key & low) >> np.uint64(shift)
        word, bit = place >> U6, taken << (place & U63)
        twice[word] |= once[word] & bit
        once[word] |= bit
        count += taken
    return count


@compiled
def find_repeats(keys, able, bits, part, shift, twice, found):
    """Write key << 32 | entry into `found` for entries whose key probably occurs again; return their number.

    Only entries that are `able` and whose key begins with the `bits` bits of `part` count. The filters have 2^(26 - bits - shift)
    words of 64 bits; a false positive costs time only. There are no branches, as half of them would be mispredicted.
    """
    low, above, wanted, count = np.uint64((1 << (32 - bits)) - 1), np.uint64(32 - bits), np.uint64(part), np.uint64(0)
    for entry in range(len(keys)):
        key = np.uint64(keys[entry])
        taken = np.uint64(able[entry]) & np.uint64(key >> above == wanted)
        place = (key & low) >> np.uint64(shift)
        found[count] = key << np.uint64(32) | np.uint64(entry)
        count += taken & (twice[place >> U6] >> (place & U63))
    return count


@compiled
def number_entries(left, right, counts, room, used, i, j):
    """Number the entries of pairs in order of appearance, up to `room` shingles; return (pairs, entries) covered.

    `used` gets the entries, `i` and `j` the numbers of left and right.
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
def jaccard_of_sets(hashes, bounds, sizes, left, right, least, scores):
    """Fill scores with the Jaccard of the sets left[i] and right[i], 0 if below `least`. Equal lefts must be adjacent."""
    most = np.int64(0)
    for size in sizes:
        most = max(most, size)
    room, filters = np.empty(8 + 4 * most, np.uint64), np.empty(2 + most // 2, np.uint64)
    bits, low, table, shift, held, made = filters, np.uint64(0), room, np.uint64(0), -1, False
    for pair in range(len(left)):
        i, j = left[pair], right[pair]
        n, m = sizes[i], sizes[j]
        scores[pair] = 0.0
        if min(n, m) < least * max(n, m):
            continue
        if i != held:
            bits, low = _filter_of(hashes[bounds[i] : bounds[i] + n], filters)
            held, made = i, False
        spare = np.int64(m - (n + m) * least / (1 + least) + 0.5)  # with more misses the Jaccard is below `least`
        others = hashes[bounds[j] : bounds[j] + m]
        if _count_absent(others, bits, low, spare) > spare:
            continue
        if not made:
            table, shift = clear_table(room, n)
            made = True
            for at in range(bounds[i], bounds[i] + n):
                insert(table, hashes[at], shift)
        both = 0
        for value in others:
            both += _contains(table, value, shift)
        score = both / max(n + m - both, 1)
        scores[pair] = score if score >= least else 0.0


@compiled
def _filter_of(values, room):
    """Return (bits, shift): a filter of the values' first bits, at least 16 bits per value."""
    log = 6
    while (1 << log) < 16 * len(values):
        log += 1
    bits, shift = room[: 1 << (log - 6)], np.uint64(64 - log)
    bits[:] = 0
    for value in values:
        at = (value * _SPREAD) >> shift
        bits[at >> U6] |= U1 << (at & U63)
    return bits, shift


@compiled
def _count_absent(values, bits, shift, spare):
    """Return how many values are absent from a filter, or any number above `spare`. One branch per 16 values."""
    absent = np.int64(0)
    for first in range(0, len(values), 16):
        for value in values[first : first + 16]:
            at = (value * _SPREAD) >> shift
            absent += np.int64(~(bits[at >> U6] >> (at & U63)) & U1)
        if absent > spare:
            break
    return absent


@compiled
def _contains(table, value, shift):
    at = np.int64((value * _SPREAD) >> shift)
    while table[at] != 0 and table[at] != value:
        at = (at + 1) & (len(table) - 1)
    return table[at] == value
