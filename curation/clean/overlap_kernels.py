"""The hot loop of decontamination, compiled: raw bytes of a text -> normalised -> every gram looked up in the index.

It reads Arrow buffers (`signatures.prepare`) and releases Python's lock. `overlap_grams` defines the grams, `overlap_lookup` what
counts as a match.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.clean.kernels import U0, U1, U6, U32, U63, U_BASE, U_INVERSE
from curation.clean.overlap_grams import (
    CHAR_GRAMS,
    CHARS_WIDTH,
    KIND_MARKS,
    MIX,
    SEED_GRAMS,
    SEEDS_WIDTH,
    WHOLE,
    WORD_GRAMS,
    WORDS_WIDTH,
)
from curation.core.fold_kernels import copy, fold, room_for
from curation.core.jit import buffers_of, compiled

_MIX_U = np.uint64(MIX)
U4, U12, U60 = np.uint64(4), np.uint64(12), np.uint64(60)
# places are unsigned in the inner loops: numba guards signed ones against negative values
_CHARS_WIDTH, _SEEDS_WIDTH, _WORDS_WIDTH = (np.array(width, np.uint64) for width in (CHARS_WIDTH, SEEDS_WIDTH, WORDS_WIDTH))


@compiled
def _mixed(value):
    value = (value ^ (value >> U32)) * _MIX_U
    value ^= value >> U32
    return (value << U4) | (value >> U60)


@compiled
def _maybe(key, bits, shift):
    """Return 1 if a key may be in the table, 0 if it is not."""
    word = bits[key >> shift]
    return (word >> ((key >> U6) & U63)) & (word >> ((key >> U12) & U63)) & U1


@compiled
def _find(key, keys, firsts, shift):
    """Return the place of a key, or the number of keys."""
    bucket = key >> shift
    for at in range(np.int64(firsts[bucket]), np.int64(firsts[bucket + U1])):
        if keys[at] == key:
            return at
    return len(keys)


@compiled
def _powers(base, first, count):
    """Return first * base^0, first * base^1, ... modulo 2^64, (count,) u64."""
    table = np.empty(count, np.uint64)
    for at in range(count):
        table[at] = first
        first *= base
    return table


@compiled
def _wide(count):
    """Return a power of two of at least `count`."""
    wide = 8
    while wide < count:
        wide *= 2
    return wide


@compiled
def _cut(form, size, powers, sums, own, spaces):
    """Fill the running sum before each byte, and the places of the spaces; return (characters, spaces).

    Unless the form is ASCII, `own` is filled with the bytes at which characters begin.
    """
    total, beyond, count = np.uint64(0), np.uint8(0), 0
    for at in range(size):
        byte = form[at]
        sums[at] = total
        total += byte * powers[at]
        beyond |= byte
        spaces[count] = at
        count += byte == 32
    sums[size] = total
    if beyond < 0x80:
        return size, count
    chars, count = 0, 0
    for at in range(size):
        own[chars] = at
        spaces[count] = chars
        count += form[at] == 32
        chars += (form[at] & 0xC0) != 0x80
    own[chars] = size
    return chars, count


@compiled
def _gram(first, end, mark, sums, backs):
    """Return the key of the bytes from first to end."""
    return _mixed(((sums[end] - sums[first]) * backs[first]) ^ mark)


@compiled
def _meet(dense, size, chars, spaced, cuts, spaces, sums, backs, table, asked, hits, needs, touched, counts):
    """Look up all grams of one text; write the entries that share enough grams into `touched`, and return their number.

    `counts` gets the number of shared grams, -1 for an equal form. `hits` is all 0 before and after.
    """
    bits, firsts, keys, begins, entries, shift = table
    plain = chars == size  # ASCII: places are bytes
    whole = _mixed(sums[size] ^ KIND_MARKS[WHOLE, dense])
    count = U0  # no branches: the processor fetches many words of the filter at a time
    width, mark = _SEEDS_WIDTH[dense], KIND_MARKS[SEED_GRAMS, dense]
    for number in range(np.uint64(chars if dense else spaced)):
        at = number if dense else np.uint64(spaces[number])
        if at + width > np.uint64(chars):
            break
        ends = (at, at + width) if plain else (np.uint64(cuts[at]), np.uint64(cuts[at + width]))
        key = _gram(*ends, mark, sums, backs)
        asked[count] = key
        count += _maybe(key, bits, shift)
    width, mark = _WORDS_WIDTH[dense], KIND_MARKS[WORD_GRAMS, dense]
    for number in range(np.uint64(max((chars + 1 if dense else spaced) - np.int64(width), 0))):
        if dense:
            key = _gram(np.uint64(cuts[number]), np.uint64(cuts[number + width]), mark, sums, backs)
        else:
            first, end = np.uint64(spaces[number]) + U1, np.uint64(spaces[number + width])
            ends = (first, end) if plain else (np.uint64(cuts[first]), np.uint64(cuts[end]))
            key = _gram(*ends, mark, sums, backs)
        asked[count] = key
        count += _maybe(key, bits, shift)
    met = np.uint64(0)
    for at in range(count):
        place = _find(asked[at], keys, firsts, shift - U1)
        if place < len(keys):
            for posting in range(begins[place], begins[place + 1]):
                entry = entries[posting]
                touched[met] = entry
                met += np.uint64(hits[entry] == 0)
                hits[entry] += 1
    place = _find(whole, keys, firsts, shift - U1) if _maybe(whole, bits, shift) else len(keys)
    if place < len(keys):
        entry = entries[begins[place]]
        touched[met] = entry
        met += np.uint64(hits[entry] == 0)
        hits[entry] = -1
    kept = np.uint64(0)
    for at in range(met):
        entry = touched[at]
        touched[kept], counts[kept] = entry, hits[entry]
        kept += np.uint64((hits[entry] < 0) | (hits[entry] >= needs[entry]))
        hits[entry] = 0
    return np.int64(kept)


@compiled
def _chars_of(dense, chars, size, cuts, sums, backs, found):
    """Write the keys of the CHAR_GRAMS into `found`; return the part that is filled."""
    width, mark = np.uint64(_CHARS_WIDTH[dense]), KIND_MARKS[CHAR_GRAMS, dense]
    count = np.uint64(max(chars + 1 - np.int64(width), 0))
    if chars == size:
        for at in range(count):
            found[at] = (((sums[at + width] - sums[at]) * backs[at]) ^ mark) >> U32
    else:
        for at in range(count):
            first, end = np.uint64(cuts[at]), np.uint64(cuts[at + width])
            found[at] = (((sums[end] - sums[first]) * backs[first]) ^ mark) >> U32
    return found[:count]


@compiled
def _mark(own, room):
    """Return (marks, shift): one byte per prefix of a key, at least 8 per key, set to 1 for the prefixes of `own`."""
    log = np.uint32(np.log2(_wide(8 * len(own))))
    marks, shift = room[: 1 << log], np.uint32(32) - log
    marks[:] = 0
    for at in range(np.uint64(len(own))):
        marks[own[at] >> shift] = 1
    return marks, shift


@compiled
def _may_share(grams, first, end, share, marks, shift):
    """Return whether enough of the wanted keys may be among a text's, by the marks of `_mark`."""
    most = (end - first) - (share * (end - first) + 9) // 10
    for stop in range(first + 8, end + 8, 8):
        for at in range(np.uint64(first), np.uint64(min(stop, end))):
            most -= 1 - np.int64(marks[grams[at] >> shift])
        if most < 0:
            return False
        first = stop
    return True


@compiled
def _gather(own, seen, stamps, stamp):
    """Insert keys into a set; return the number of distinct keys."""
    mask, distinct = np.uint64(_wide(2 * len(own)) - 1), 0
    for at in range(np.uint64(len(own))):
        slot = np.uint64(own[at]) & mask
        while stamps[slot] == stamp and seen[slot] != own[at]:
            slot = (slot + U1) & mask
        if stamps[slot] != stamp:
            seen[slot], stamps[slot] = own[at], stamp
            distinct += 1
    return distinct


@compiled
def _count_shared(wanted, count, seen, stamps, stamp):
    """Return how many of the wanted keys are in the set that `_gather` made from `count` keys."""
    mask, both = np.uint64(_wide(2 * count) - 1), 0
    for key in wanted:
        slot = np.uint64(key) & mask
        while stamps[slot] == stamp and seen[slot] != key:
            slot = (slot + U1) & mask
        both += stamps[slot] == stamp
    return both


@compiled
def scan(data, starts, first, folds, table, gram_begins, grams, few, needs, share, hits, found):
    """Look texts up from number `first` on; fill found (room, 4) i64: text, entry, kind, number of shared grams.

    Return (the text to continue with, matches). Stops early if `found` is full; it must have room for all entries. `hits`
    (entries,) i64 is all 0, `share` is in tenths, `folds` is `characters.folding_table()`; `table` and the others are of `Index`.
    """
    room = 4
    for text in range(first, len(starts) - 1):
        room = max(room, room_for(data, starts[text], starts[text + 1]))
    folding = np.empty((2, room), np.uint8)
    form, touched, asked = np.empty(room, np.uint8), np.empty(len(hits) + 1, np.int64), np.empty(2 * room, np.uint64)
    powers, backs, sums = _powers(U_BASE, U_BASE, room), _powers(U_INVERSE, U1, room), np.empty(room, np.uint64)
    each, own, spaces = np.arange(room, dtype=np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
    wide = _wide(2 * room)
    seen, stamps, marked = np.empty(wide, np.uint32), np.full(wide, -1, np.int32), np.empty(_wide(8 * room), np.uint8)
    counts, own_chars = np.empty(len(hits) + 1, np.int64), np.empty(room, np.uint32)
    bits, firsts, keys, begins, entries = table
    lookup = (bits, firsts, keys, begins, entries, np.uint64(64 - np.int64(np.log2(len(bits)))))
    count = 0
    for text in range(first, len(starts) - 1):
        size, spaceless, _ = fold(data, starts[text], starts[text + 1], folds, form, folding)
        if size == 0:
            continue
        chars, spaced = _cut(form, size, powers, sums, own, spaces)
        cuts = each if chars == size else own
        dense = 1 if 2 * spaceless > chars - spaced else 0  # by the characters other than spaces
        met = _meet(dense, size, chars, spaced, cuts, spaces, sums, backs, lookup, asked, hits, needs, touched, counts)
        full, distinct, these, marks, shift = count + met > len(found), -1, own_chars[:0], marked[:0], np.uint32(0)
        for at in range(met):
            entry = touched[at]
            kind, shared = WORD_GRAMS, counts[at]
            if shared < 0:
                kind, shared = WHOLE, 1
            elif gram_begins[entry] < gram_begins[entry + 1] and not full:
                if not len(marks):
                    these = _chars_of(dense, chars, size, cuts, sums, backs, own_chars)
                    marks, shift = _mark(these, marked)
                if not _may_share(grams, gram_begins[entry], gram_begins[entry + 1], share, marks, shift):
                    continue
                if distinct < 0:
                    distinct = _gather(these, seen, stamps, text)
                wanted = grams[gram_begins[entry] : gram_begins[entry + 1]]
                kind, shared = CHAR_GRAMS, _count_shared(wanted, len(these), seen, stamps, text)
                if 10 * shared < share * max(len(wanted), distinct if few[entry] else 0):
                    continue
            if not full:
                found[count, 0], found[count, 1], found[count, 2], found[count, 3] = text, entry, kind, shared
                count += 1
        if full:
            return text, count
    return len(starts) - 1, count


def grams_of(forms: pl.Series, kind: int, dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the grams of one kind of normalised forms (no nulls), in order of forms and places.

    `dense` (forms,) bool marks those of scripts without spaces. Returns (grams,) i64, the numbers of the forms, and (grams,) u64,
    the keys.
    """
    data, starts = buffers_of(forms)
    most = len(forms) if kind == WHOLE else int(starts[-1] - starts[0]) + 2 * len(forms)
    text, key = np.empty(most, np.int64), np.empty(most, np.uint64)
    count = _grams(data, starts, dense, kind, text, key)
    return text[:count], key[:count]


@compiled
def _grams(data, starts, dense, kind, text, key):
    """Fill text and key; return their number."""
    room = 4
    for form in range(len(starts) - 1):
        room = max(room, starts[form + 1] - starts[form] + 3)
    padded, own, spaces = np.full(room, 32, np.uint8), np.empty(room, np.int32), np.empty(room, np.int32)
    powers, backs, sums = _powers(U_BASE, U_BASE, room), _powers(U_INVERSE, U1, room), np.empty(room, np.uint64)
    each, count = np.arange(room, dtype=np.int32), 0
    for form in range(len(starts) - 1):
        size = starts[form + 1] - starts[form] + 2
        copy(data, starts[form], starts[form + 1], padded, 1)
        padded[size - 1] = 32
        chars, spaced = _cut(padded, size, powers, sums, own, spaces)
        cuts, row = each if chars == size else own, np.int64(dense[form])
        mark = KIND_MARKS[kind, row]
        if kind == WHOLE:
            text[count], key[count] = form, _mixed(sums[size] ^ mark)
            count += 1
        elif kind == WORD_GRAMS and not row:
            for at in range(spaced - WORDS_WIDTH[0]):
                first, end = cuts[spaces[at] + 1], cuts[spaces[at + WORDS_WIDTH[0]]]
                text[count], key[count] = form, _gram(first, end, mark, sums, backs)
                count += 1
        else:
            width = CHARS_WIDTH[row] if kind == CHAR_GRAMS else SEEDS_WIDTH[row] if kind == SEED_GRAMS else WORDS_WIDTH[1]
            for at in range(chars + 1 - width):
                first, end = cuts[at], cuts[at + width]
                if kind == SEED_GRAMS and not row and padded[first] != 32:
                    continue
                text[count] = form
                if kind == CHAR_GRAMS:
                    key[count] = (((sums[end] - sums[first]) * backs[first]) ^ mark) >> U32
                else:
                    key[count] = _gram(first, end, mark, sums, backs)
                count += 1
    return count
