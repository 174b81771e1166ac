"""Compiled loops that normalise texts by `characters.folding_table`: bytes of a text -> its form between two spaces."""

from __future__ import annotations

import numpy as np

from curation.core.characters import (
    APART,
    CLOSING,
    DENSE,
    EYES,
    NEUTRAL,
    NOSES,
    OPENING,
    OWN_BYTES,
    PLACED,
    POINTS,
    SIZE,
    STANDS_FOR,
    UNLISTED,
)
from curation.core.jit import compiled

_SPACE, _CASE, _HIGH = np.uint8(32), np.uint8(32), np.uint8(128)
_A, _ZERO, _LOW, _LETTERS, _DIGITS = np.uint8(97), np.uint8(48), np.uint8(95), np.uint8(26), np.uint8(10)
_ONE, _SIGN, _EDGE, _NEUTRAL = np.uint64(1), np.uint8(1), np.uint8(255), np.uint8(NEUTRAL)
_MINUS, _SLASH, _NOT, _OPEN, _CLOSE = (np.uint8(ord(sign)) for sign in PLACED)
_FORMS = np.array([list(sign.encode().ljust(3)) for sign in STANDS_FOR.values()], np.uint8)
_FORM_SIZES = np.array([len(sign.encode()) for sign in STANDS_FOR.values()], np.int64)


def _among(*signs: str) -> np.ndarray:
    """Return (256,) bool: which bytes are one of some characters."""
    return np.isin(np.arange(256), [ord(sign) for some in signs for sign in some])


_OPENING, _CLOSING, _EYES, _NOSES = _among(OPENING, "\xff"), _among(CLOSING, "\xff"), _among(EYES), _among(NOSES)
_WORD = np.array([byte >= 128 or byte == 95 or chr(byte).isalnum() for byte in range(255)] + [False])


@compiled
def copy(data, first, end, out, to):
    """Write data[first:end] into `out` from `to` on; numba compiles this loop faster than an assigned slice."""
    begin, start = np.uint64(first), np.uint64(to)
    for at in range(np.uint64(end) - begin):
        out[start + at] = data[begin + at]


@compiled
def room_for(data, first, end):
    """Return the largest number of bytes of a text's form; signs get spaces around them, and some are replaced."""
    signs = np.int64(0)
    for byte in data[first:end]:
        small = np.uint8(byte | _CASE)
        word = (np.uint8(small - _A) < _LETTERS) | (np.uint8(byte - _ZERO) < _DIGITS) | (byte == _SPACE) | (byte & 0xC0 == 0x80)
        signs += np.int64(~word)
    return end - first + 4 * signs + 4


@compiled
def _decoded(data, at, byte):
    """Return (code point, bytes) of a character beyond ASCII."""
    length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
    point = byte & (0x7F >> length)
    for place in range(1, length):
        point = (point << 6) | np.int64(data[at + place] & 63)
    return point, length


@compiled
def _entry(table, point):
    return np.int64(table[point]) if point < POINTS else UNLISTED | (DENSE if point < 0x40000 else 0)


@compiled
def _kind(byte):
    """Return what an ASCII byte becomes: a small letter, a digit, `_`, a space, or _SIGN if it is or may be a sign."""
    small = byte | _CASE
    letter = small if np.uint8(small - _A) < _LETTERS else _SPACE
    sign = (np.uint8(byte - np.uint8(35)) < 4) | (np.uint8(byte - np.uint8(40)) < 4) | (byte == 33) | (byte == 45) | (byte == 47)
    sign |= (np.uint8(byte - np.uint8(60)) < 3) | (byte == 64) | (byte == 94) | (byte == 124) | (byte == 126)
    kept = byte if (np.uint8(byte - _ZERO) < _DIGITS) | (byte == _LOW) | (byte >= _HIGH) else letter
    return _SIGN if sign else kept


@compiled
def fold(data, first, end, table, form, room):
    """Write a text's normalised form, a space before and after it; return (bytes, characters of scripts without spaces, how).

    The form is empty if the text has no word and no sign. `how` is 0 for ASCII, 1 if the table lists all characters, and 2 if
    it does not: unlisted characters are copied, which is correct only for a text that is already normalised. `form` and
    both rows of `room` are as long as `room_for` says, or longer.
    """
    text, kinds, spaceless, how, beyond, controls = data[first:end], room[0], 0, 0, np.uint8(0), False
    for at in range(np.uint64(len(text))):  # unsigned places: no checks for negative ones, and 64 bytes at a time
        beyond |= text[at]
        controls |= _is_control(text[at])
        kinds[at] = _kind(text[at])
    if (beyond < 0x80) & (not controls):
        size = _joined(text, kinds, form)
    else:
        folded, spaceless, how = _folded(text, table, room[1])
        for at in range(np.uint64(len(folded))):
            kinds[at] = _kind(folded[at])
        size = _joined(folded, kinds, form)
    return (np.int64(size) if size > 1 else 0), spaceless, how


@compiled
def _is_control(byte):
    return (byte < 9) | (np.uint8(byte - np.uint8(14)) < 14) | (byte == 127)


@compiled
def _joined(text, kinds, form):
    """Write the words and signs of a folded text with one space between them, and one before and after; return the bytes."""
    form[0] = last = _SPACE
    size = _ONE
    for at in range(np.uint64(len(text))):  # branches for signs only: words are too short for their ends to be predicted
        kind = kinds[at]
        if kind == _SIGN:
            size, last = _sign(text, np.int64(at), form, size, last), _SPACE
        else:
            form[size] = kind
            size += np.uint64((kind != _SPACE) | (last != _SPACE))
            last = kind
    if form[size - _ONE] != _SPACE:
        form[size] = _SPACE
        size += _ONE
    return size


@compiled
def _sign(text, at, form, size, last):
    """Write a space, and this character and another space if it is a sign (see `placed_signs`); return the size of the form."""
    sign, end = text[at], len(text)
    if last != _SPACE:
        form[size] = _SPACE
        size += _ONE
    number = -1
    if (sign == _MINUS) | (sign == _SLASH) | (sign == _NOT) | (sign == _OPEN) | (sign == _CLOSE):
        before = text[at - 1] if at > 0 else _EDGE
        after = text[at + 1] if at + 1 < end else _EDGE
        if sign == _MINUS:
            place = at - 1
            while place >= 0 and text[place] == _MINUS:
                place -= 1
            start = text[place] if place >= 0 else _EDGE
            good = (after == 61) | (after == 62) | (start == 60) | (_WORD[start] & _CLOSING[after])
            good |= _WORD[after] & (_OPENING[start] | (start == _NOT))
            number = 0 if good & (after != _MINUS) else -1
        elif sign == _SLASH:
            digits = (np.uint8(before - _ZERO) < _DIGITS) & (np.uint8(after - _ZERO) < _DIGITS)
            number = 1 if digits | ~(_WORD[before] & _WORD[after]) else -1
        elif sign == _NOT:
            number = 2 if (after == 61) | (_OPENING[before] & (_WORD[after] | (after == _OPEN))) else -1
        else:
            face = _EYES[before] | (_NOSES[before] & (at > 1) & _EYES[text[at - 2] if at > 1 else _EDGE])
            number = (3 if sign == _OPEN else 4) if face & ~_WORD[after] else -1
        if number < 0:
            return size
    if number < 0:
        form[size] = sign
        size += _ONE
    else:
        for place in range(_FORM_SIZES[number]):
            form[size] = _FORMS[number, place]
            size += _ONE
    form[size] = _SPACE
    return size + _ONE


@compiled
def _folded(text, table, out):
    """Fold a text into `out`; return (its bytes, characters of scripts without spaces, `how` as in `fold`).

    A sign beyond ASCII gets a NEUTRAL byte before and after it.
    """
    size, spaceless, how, at = 0, 0, 1, 0
    while at < len(text):
        byte = text[at]
        if byte < 0x80:
            out[size] = byte
            size += not _is_control(byte)
            at += 1
            continue
        point, length = _decoded(text, at, np.int64(byte))
        found = _entry(table, point)
        spaceless += (found & DENSE) != 0
        how = 2 if found & UNLISTED else how
        if found & APART:
            out[size] = _NEUTRAL
            size += 1
        if found & (UNLISTED | OWN_BYTES):
            for place in range(length):
                out[size + place] = text[at + place]
            size += length
        else:
            for place in range((found >> SIZE) & 3):
                out[size] = np.uint8((found >> (8 * place)) & 255)
                size += 1
        if found & APART:
            out[size] = _NEUTRAL
            size += 1
        at += length
    return out[:size], spaceless, how


@compiled
def fold_all(data, starts, table, room, out, ends, unlisted):
    """Write the normalised forms of texts into `out`, one after the other; fill ends (texts + 1,) and unlisted (texts,).

    `unlisted` is whether the table lacks one of the text's characters. Each of the three rows of `room` has 5 times the bytes of
    the longest text, and 4 more; `out` has 5 times the bytes of all texts.
    """
    ends[0] = 0
    for text in range(len(starts) - 1):
        size, _, how = fold(data, starts[text], starts[text + 1], table, room[0], room[1:])
        unlisted[text] = how == 2
        ends[text + 1] = ends[text] + max(size - 2, 0)
        copy(room[0], 1, max(size - 1, 1), out, ends[text])


@compiled
def unlisted(data, starts, table, found):
    """Write the numbers of texts with a character that the table does not list into `found`; return how many."""
    count = 0
    for text in range(len(starts) - 1):
        beyond, at, end = np.uint8(0), starts[text], starts[text + 1]
        for byte in data[at:end]:
            beyond |= byte
        while beyond >= 0x80 and at < end:
            length = 1
            if data[at] >= 0x80:
                point, length = _decoded(data, at, np.int64(data[at]))
                if _entry(table, point) & UNLISTED:
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
        copy(data, starts[done], starts[text], out, ends[done])
        if at < len(rows):
            ends[text + 1] = size + bounds[at + 1] - bounds[at]
            copy(others, bounds[at], bounds[at + 1], out, size)
        done = text + 1
