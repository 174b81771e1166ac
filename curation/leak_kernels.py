"""The hot loop of decontamination, compiled: raw bytes of a text -> normalised -> every gram looked up in the index.

It reads Arrow buffers (`shingles.half_normalised`) and holds no lock of Python's. `grams` says what a gram is, `leaks` what
counts as a match, and both compute the same with numpy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from curation.grams import CHARS, CHARS_WIDTH, MARKS, MIX, SEEDS, SEEDS_WIDTH, WHOLE, WORDS, WORDS_WIDTH
from curation.kernels import _normalise
from curation.shingles import BASE, INVERSE

_BASE, _INVERSE, _ONE, _HALF, _MIX = np.uint64(BASE), np.uint64(INVERSE), np.uint64(1), np.uint64(32), np.uint64(MIX)
_SIX, _LAST, _BITS = np.uint64(6), np.uint64(63), np.uint64(64)
_MARKS = MARKS
_CHARS_WIDTH, _SEEDS_WIDTH, _WORDS_WIDTH = np.array(CHARS_WIDTH), np.array(SEEDS_WIDTH), np.array(WORDS_WIDTH)


@njit(nogil=True, cache=True)
def _mixed(value):
    value = (value ^ (value >> _HALF)) * _MIX
    return value ^ (value >> _HALF)


@njit(nogil=True, cache=True)
def fill(keys, log_words, log_slots):
    """Return (bits, slots) of sorted distinct keys: a filter, two bits of one word a key, and a table of key and place + 1."""
    bits, slots = np.zeros(1 << log_words, np.uint64), np.zeros((1 << log_slots, 2), np.uint64)
    mask = np.uint64((1 << log_slots) - 1)
    for at in range(len(keys)):
        key = keys[at]
        bits[key >> np.uint64(64 - log_words)] |= (_ONE << (key & _LAST)) | (_ONE << ((key >> _SIX) & _LAST))
        slot = key & mask
        while slots[slot, 1]:
            slot = (slot + _ONE) & mask
        slots[slot, 0], slots[slot, 1] = key, at + 1
    return bits, slots


@njit(nogil=True, cache=True)
def _maybe(key, bits, shift):
    """Return 1 for a key that may be in the table, 0 for one that is not."""
    word = bits[key >> shift]
    return (word >> (key & _LAST)) & (word >> ((key >> _SIX) & _LAST)) & _ONE


@njit(nogil=True, cache=True)
def _find(key, slots, mask):
    """Return the place of a key, or -1."""
    slot = key & mask
    while slots[slot, 1]:
        if slots[slot, 0] == key:
            return np.int64(slots[slot, 1]) - 1
        slot = (slot + _ONE) & mask
    return -1


@njit(nogil=True, cache=True)
def _sums(form, size, sums, backs, word_sums, word_backs, word_ends):
    """Fill the running sums where characters and words of a padded form begin; return (characters, words)."""
    total, place, back = np.uint64(0), _BASE, _ONE
    chars, words = 0, 0
    for at in range(size):
        byte = form[at]
        if (byte & 0xC0) != 0x80:
            sums[chars], backs[chars] = total, back
            chars += 1
        if byte == 32 and at:
            word_ends[words - 1] = total
        total += byte * place
        place *= _BASE
        back *= _INVERSE
        if byte == 32 and at < size - 1:
            word_sums[words], word_backs[words] = total, back
            words += 1
    sums[chars] = total
    return chars, words


@njit(nogil=True, cache=True)
def _gather(sums, backs, chars, width, mark, seen, stamps, stamp):
    """Put the keys of all runs of `width` characters into a set; return how many are distinct."""
    mask = np.uint64(len(seen) - 1)
    distinct = 0
    for at in range(chars - width + 1):
        key = _mixed(((sums[at + width] - sums[at]) * backs[at]) ^ mark)
        slot = key & mask
        while stamps[slot] == stamp and seen[slot] != key:
            slot = (slot + _ONE) & mask
        if stamps[slot] != stamp:
            seen[slot], stamps[slot] = key, stamp
            distinct += 1
    return distinct


@njit(nogil=True, cache=True)
def _shared(wanted, seen, stamps, stamp):
    """Return how many of the wanted keys are in the set."""
    mask = np.uint64(len(seen) - 1)
    both = 0
    for key in wanted:
        slot = key & mask
        while stamps[slot] == stamp and seen[slot] != key:
            slot = (slot + _ONE) & mask
        both += stamps[slot] == stamp
    return both


@njit(nogil=True, cache=True)
def _meet(dense, chars, words, sums, backs, word_sums, word_backs, word_ends, table, keys, hits, touched):
    """Look up all grams of one text; count hits by entry, -1 for an equal form. Returns how many entries were met."""
    bits, slots, begins, entries, shift, mask = table
    whole = _mixed(sums[chars] ^ _MARKS[WHOLE, dense])
    keys[0] = whole
    # no branches: the processor waits for many words of the filter at a time
    count = np.int64(_maybe(whole, bits, shift))
    width = _SEEDS_WIDTH[dense]
    for at in range(chars - width + 1):
        key = _mixed(((sums[at + width] - sums[at]) * backs[at]) ^ _MARKS[SEEDS, dense])
        keys[count] = key
        count += np.int64(_maybe(key, bits, shift))
    width = _WORDS_WIDTH[dense]
    for at in range((chars if dense else words) - width + 1):
        if dense:
            value = (sums[at + width] - sums[at]) * backs[at]
        else:
            value = (word_ends[at + width - 1] - word_sums[at]) * word_backs[at]
        key = _mixed(value ^ _MARKS[WORDS, dense])
        keys[count] = key
        count += np.int64(_maybe(key, bits, shift))
    met = 0
    for at in range(count):
        place = _find(keys[at], slots, mask)
        if place < 0:
            continue
        for posting in range(begins[place], begins[place + 1]):
            entry = entries[posting]
            if hits[entry] == 0:
                touched[met] = entry
                met += 1
            if at == 0 and keys[0] == whole:
                hits[entry] = -1
            hits[entry] += hits[entry] >= 0
    return met


@njit(nogil=True, cache=True)
def scan(data, starts, first, bits, slots, begins, entries, gram_begins, grams, few, share, hits, found):
    """Look texts up from number `first` on; fill found (room, 4) i64: text, entry, kind, grams shared.

    Returns (text to go on with, matches), and stops early where `found` is full. `hits` (entries,) i64 is all 0, and
    `share` is in tenths. `found` needs room for all entries.
    """
    room = 4
    for text in range(first, len(starts) - 1):
        room = max(room, starts[text + 1] - starts[text] + 4)
    form, touched, keys = np.empty(room, np.uint8), np.empty(len(hits), np.int64), np.empty(2 * room, np.uint64)
    sums, backs = np.empty(room, np.uint64), np.empty(room, np.uint64)
    word_sums, word_backs, word_ends = np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.uint64)
    wide = 8
    while wide < 2 * room:
        wide *= 2
    seen, stamps = np.empty(wide, np.uint64), np.full(wide, -1, np.int64)
    log_words = 1
    while (1 << log_words) < len(bits):
        log_words += 1
    table = (bits, slots, begins, entries, _BITS - np.uint64(log_words), np.uint64(len(slots) - 1))
    count = 0
    for text in range(first, len(starts) - 1):
        size, n_words, n_chars, n_spaceless = _normalise(data, starts[text], starts[text + 1], form[1:])
        if size == 0:
            continue
        form[0], form[size + 1] = 32, 32
        dense = 1 if 2 * n_spaceless > n_chars - n_words + 1 else 0
        chars, words = _sums(form, size + 2, sums, backs, word_sums, word_backs, word_ends)
        met = _meet(dense, chars, words, sums, backs, word_sums, word_backs, word_ends, table, keys, hits, touched)
        full, distinct = count + met > len(found), -1
        for at in range(met):
            entry = touched[at]
            kind, shared, wanted = WORDS, hits[entry], grams[gram_begins[entry] : gram_begins[entry + 1]]
            hits[entry] = 0
            if shared < 0:
                kind, shared = WHOLE, 1
            elif len(wanted) and not full:
                if distinct < 0:
                    distinct = _gather(sums, backs, chars, _CHARS_WIDTH[dense], _MARKS[CHARS, dense], seen, stamps, text)
                kind, shared = CHARS, _shared(wanted, seen, stamps, text)
                if 10 * shared < share * max(len(wanted), distinct if few[entry] else 0):
                    continue
            if not full:
                found[count, 0], found[count, 1], found[count, 2], found[count, 3] = text, entry, kind, shared
                count += 1
        if full:
            return text, count
    return len(starts) - 1, count
