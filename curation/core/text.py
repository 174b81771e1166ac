"""The normalised form of a text. Near-duplicates, held-out texts and overlaps are compared by it.

The identity of a text, by which queries are merged and passages numbered, is finer: its key (`record.keys_of`).

It is NFKC in lower case: words and signs with one space between them. Case, width, punctuation, spacing and invisible
characters do not matter. Signs, emoji and operators do:

    What is C++?      -> what is c + +          5 €, 5€   -> 5 €      great :)   -> great ☺
    state-of-the-art  -> state of the art       a += b    -> a + = b  a != b     -> a ¬ = b

Characters of Unicode's categories S* and No are signs, and so are # % & * @ ‰ ‱ ٪ §. The following are signs only in some
places. The form then has a character that is a sign everywhere, so that normalising twice changes nothing:

    -    U+2212, a minus, before a word, as in -5 and --all, at the end of one, as in A-, and in -= -> <-; not in x-ray, x - ray
    /    itself, except between letters, as in and/or
    !    ¬ before = and before a word, as in !done
    :) ;-(  ☺ and ☹
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl

from curation.core.characters import BETWEEN, BLANK, SIGN, SIGNS, STANDS_FOR, alone, folded, kinds_of, placed_signs
from curation.core.jit import Buffers, buffers_of, texts_of

FOLDED_BYTES = 1 << 20  # bytes of texts at a time, so that they fit the CPU's cache
MANY = 8 << 20  # bytes after which the compiled loops are worth loading, which takes half a second per process
NORMALISED = {"bytes": 0}  # how much this process has normalised
CONTEXTUAL, UNKNOWN, REMOVED = 0x110000, 0x110001, 0x110002  # of a code point's form; greater than all code points
ASCII_CONTROLS = bytes([*range(9), *range(14, 28), 127])
LOWER_CASE = bytes(range(256)).lower()
# words and signs are kept, and 0 to 5; BETWEEN becomes 0, anything else a space
KEPT = bytes(byte if chr(byte).isalnum() or chr(byte) in SIGNS + "_" or byte < 6 else 32 for byte in range(128)) + bytes(128)
# (0x110000,) u32: the code point that each code point is folded to, or REMOVED, CONTEXTUAL or UNKNOWN (so far)
FOLDED = np.full(0x110000, UNKNOWN, dtype="<u4")
FOLDED.put(ord(BETWEEN), ord(BETWEEN))


def normalised(texts: pl.Series) -> pl.Series:
    """Return the normalised form of each text; null for a text without a word or sign, because `!!!` and `???` are not equal.

    The first MANY bytes are normalised with numpy, later ones by compiled loops, with the same result.
    """
    texts = texts.fill_null("") if texts.null_count() else texts
    NORMALISED["bytes"] += int(texts.str.len_bytes().sum())
    if NORMALISED["bytes"] >= MANY:
        forms = _by_blocks(_by_loops, texts).alias(texts.name)
        contextual = forms.is_null().arg_true()
        forms = unless(forms == "", forms)
        return forms.scatter(contextual, _by_numpy(texts.gather(contextual))) if len(contextual) else forms
    return _by_numpy(texts)


def _by_loops(texts: pl.Series) -> pl.Series:
    """Return forms, also empty ones; null for a text with a character that `folding_table` does not list."""
    from curation.core.characters import folding_table
    from curation.core.fold_kernels import fold_all  # loads the compiled loops

    data, starts = buffers_of(texts)
    room = np.empty((3, 5 * int(np.diff(starts).max()) + 4), np.uint8)
    out = np.empty(5 * int(starts[-1] - starts[0]), np.uint8)
    ends, contextual = np.empty(len(texts) + 1, np.int64), np.empty(len(texts), bool)
    fold_all(data, starts, folding_table(), room, out, ends, contextual)
    return unless(pl.Series(contextual), texts_of(Buffers(out[: ends[-1]].copy(), ends)))


def _by_numpy(texts: pl.Series) -> pl.Series:
    plain = texts.str.len_bytes() == texts.str.len_chars()
    words = _by_blocks(_of_ascii, texts.filter(plain))
    if not plain.all():
        beyond = texts.filter(~plain)
        others = _by_blocks(_by_table, beyond)
        contextual = others.is_null().arg_true()
        if len(contextual):
            rest = _by_blocks(lambda some: _words(_points(folded(some))), beyond.gather(contextual))
            others = others.scatter(contextual, rest)
        place = np.argsort(np.argsort(~plain.to_numpy(), kind="stable"), kind="stable")
        words = pl.concat([words, others]).gather(place)
    words = words.str.strip_chars(" ")
    return unless(words == "", words).alias(texts.name)


def _by_blocks(work: Callable[[pl.Series], pl.Series], texts: pl.Series) -> pl.Series:
    """Apply `work` block by block, because it needs up to thirty times the bytes of the texts."""
    ends = texts.str.len_bytes().cum_sum().to_numpy().astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(ends // FOLDED_BYTES)) + 1).tolist(), len(texts)]
    return pl.concat([work(texts.slice(start, end - start)) for start, end in pairwise(cuts)]) if len(texts) else texts


def unless(blank: pl.Series, texts: pl.Series) -> pl.Series:
    """Return texts with null where `blank` is true. Polars' `when` would copy all other texts."""
    places = np.arange(len(texts), dtype=np.uint32)
    return texts.gather(pl.Series(places).set(blank.fill_null(True), None)) if blank.any() else texts


def _of_ascii(texts: pl.Series) -> pl.Series:
    whole = bytearray((texts.str.join(BETWEEN)[0] or "").encode("latin-1").translate(LOWER_CASE, ASCII_CONTROLS))
    units = np.frombuffer(whole, dtype=np.uint8)
    places, number = placed_signs(units)
    units[places] = number + 1  # marked by control characters, which the texts no longer contain
    found = bytes(whole.translate(KEPT))
    for sign in SIGNS:
        found = found.replace(sign.encode(), f" {sign} ".encode())
    for at, sign in enumerate(STANDS_FOR.values(), 1):
        found = found.replace(bytes([at]), f" {sign} ".encode())
    words = _single_spaces(np.frombuffer(found, dtype=np.uint8))
    return pl.Series([words]).cast(pl.String).str.split("\0").explode()


def _single_spaces(units: np.ndarray) -> bytes:
    """Return characters with each run of spaces replaced by one space."""
    space = units == ord(" ")
    kept = np.ones(len(units), dtype=bool)
    np.logical_not(space[1:] & space[:-1], out=kept[1:])
    return units[kept].tobytes()


def _points(texts: pl.Series) -> np.ndarray:
    """Return the code points of texts, with BETWEEN between them."""
    return np.frombuffer((texts.str.join(BETWEEN)[0] or "").encode("utf-32-le"), dtype="<u4")


def _by_table(texts: pl.Series) -> pl.Series:
    """Return the forms of texts, character by character; null if a character's form depends on its neighbours."""
    points = _points(texts)
    ends = np.flatnonzero(points == ord(BETWEEN))
    if len(ends) != len(texts) - 1:
        return texts.clear(len(texts))
    found = FOLDED[points]
    if len(new := np.unique(points[found == UNKNOWN])):
        chars = pl.Series([chr(point) for point in new], dtype=pl.String)
        for point, char, form in zip(new, chars, folded(chars), strict=True):
            alike = len(form) <= 1 and (not form or alone(char))
            FOLDED[point] = CONTEXTUAL if not alike else ord(form) if form else REMOVED
        found = FOLDED[points]
    rare = np.flatnonzero(found >= CONTEXTUAL)
    contextual = rare[found[rare] == CONTEXTUAL]
    found[contextual] = ord(" ")
    words = _words(found[found != REMOVED] if len(rare) > len(contextual) else found)
    return words.scatter(np.unique(np.searchsorted(ends, contextual)), None) if len(contextual) else words


def _words(points: np.ndarray) -> pl.Series:
    """Return the forms of folded texts, given as one run of code points with BETWEEN between them."""
    kinds = kinds_of(points)
    places, number = placed_signs(points)
    points = np.where((kinds == BLANK) & (points != ord(BETWEEN)), np.uint32(ord(" ")), points)
    points[places] = np.array([ord(sign) for sign in STANDS_FOR.values()], "<u4")[number]
    kinds[places] = SIGN
    sign, filled = kinds == SIGN, points != ord(" ")
    meet = np.flatnonzero((sign[1:] | sign[:-1]) & filled[1:] & filled[:-1]) + 1  # a sign next to another character
    if len(meet):
        spaced = np.full(len(points) + len(meet), ord(" "), "<u4")
        old = np.ones(len(spaced), dtype=bool)
        old[meet + np.arange(len(meet))] = False
        spaced[old] = points
        points = spaced
    return pl.Series([_single_spaces(points).decode("utf-32-le")]).str.split(BETWEEN).explode()


def forms(texts: pl.Series) -> pl.Series:
    """Return what texts are compared by: the normalised form, or the text itself if that is empty."""
    return normalised(texts).fill_null(texts)


def connected(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Return for each of `count` nodes the smallest node that it is connected to by edges `left[i] - right[i]`.

    Label propagation with pointer jumping: every pass halves the longest path, so few passes are needed.
    """
    label = np.arange(count)
    while True:
        low = np.minimum(label[left], label[right])
        before = label.copy()
        np.minimum.at(label, left, low)
        np.minimum.at(label, right, low)
        np.minimum.at(label, before, label)
        label = label[label]
        if np.array_equal(label, before):
            return label


@cache
def word_pattern() -> str:
    """Return a regular expression of a word; in Python's `\\w+` the vowel signs of Hindi, Thai and others end a word."""
    marks = "".join(character for character in map(chr, range(0x300, 0x12000)) if unicodedata.category(character)[0] == "M")
    return rf"[\w{marks}]+"
