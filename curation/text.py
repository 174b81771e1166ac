"""What two texts must share to count as the same one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl

BLOCK = 1 << 20  # bytes of texts at a time, so that they stay in the cache
BETWEEN = "\x80"  # stands in no ASCII text
PLAIN = bytes(ord(chr(code).lower()) if chr(code).isalnum() or code in (95, 128) else 32 for code in range(256))
UNTOLD, UNASKED = 0x110000, 0x110001  # beyond all code points
SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"  # small, it is another one at the end of a word
CLINGING = ("Mn", "Mc", "Me", "Cn", "Cs", "Co")  # marks; not assigned in Python's Unicode, which may be the older one


def normalised(texts: pl.Series) -> pl.Series:
    """Return each text as NFKC, lower case, word characters with one space between words.

    A text without any word character gives null: `!!!` and `???` are not the same text. ASCII texts go a faster way.
    """
    texts = texts.fill_null("") if texts.null_count() else texts
    plain = texts.str.len_bytes() == texts.str.len_chars()
    if not plain.all():
        parts = [normalised(texts.filter(plain)), _beyond_ascii(texts.filter(~plain))]
        place = np.argsort(np.argsort(~plain.to_numpy(), kind="stable"), kind="stable")
        return pl.concat(parts).gather(place)
    return _or_null(_by_blocks(_plain_words, texts)).alias(texts.name)


def _by_blocks(work: Callable[[pl.Series], pl.Series], texts: pl.Series) -> pl.Series:
    """Return what `work` makes of texts, block by block: it needs up to thirty times their bytes."""
    ends = texts.str.len_bytes().cum_sum().to_numpy().astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(ends // BLOCK)) + 1).tolist(), len(texts)]
    return pl.concat([work(texts.slice(start, end - start)) for start, end in pairwise(cuts)]) if len(texts) else texts


def _beyond_ascii(texts: pl.Series) -> pl.Series:
    words = _by_blocks(_by_table, texts)
    untold = words.is_null().arg_true()
    words = words.scatter(untold, words_of(texts.gather(untold))) if len(untold) else words
    return _or_null(words).alias(texts.name)


def _by_table(texts: pl.Series) -> pl.Series:
    """Return what `words_of` does, character by character; null for a text with one whose form hangs on its neighbours."""
    points = np.frombuffer((texts.str.join(BETWEEN)[0]).encode("utf-32-le"), dtype="<u4")
    ends = np.flatnonzero(points == ord(BETWEEN))
    if len(ends) != len(texts) - 1:
        return texts.clear(len(texts))
    signs = _table()[points]
    if signs.max() == UNASKED:
        _ask(np.unique(points[signs == UNASKED]))
        signs = _table()[points]
    untold = np.flatnonzero(signs == UNTOLD) if signs.max() == UNTOLD else ends[:0]
    signs[untold] = ord(" ")
    words = pl.Series([_single_spaces(signs).decode("utf-32-le")]).str.split(BETWEEN).explode()
    return words.scatter(np.unique(np.searchsorted(ends, untold)), None) if len(untold) else words


@cache
def _table() -> np.ndarray:
    """Return (0x110000,) u32: the one code point that each becomes, UNTOLD, or UNASKED as yet."""
    table = np.full(0x110000, UNASKED, dtype="<u4")
    table[:128] = np.frombuffer(PLAIN[:128], dtype=np.uint8)
    table[ord(BETWEEN)] = ord(BETWEEN)
    return table


def _ask(points: np.ndarray) -> None:
    """Put into the table what `words_of` makes of code points between two letters, where it is one that stands by itself."""
    told = np.full(len(points), UNTOLD, dtype="<u4")
    single = np.flatnonzero([alone(chr(point)) for point in points])
    forms = words_of("a" + pl.Series([chr(point) for point in points[single]], dtype=pl.String) + "a").str.head(-1).str.slice(1)
    told[single] = [ord(form) if len(form) == 1 else UNTOLD for form in forms]
    _table()[points] = told


def alone(sign: str) -> bool:
    """Tell whether the form of a character never hangs on its neighbours."""
    parts = sign + unicodedata.normalize("NFKC", sign)
    return not any(part == SIGMA or "\u1100" <= part < "\u1200" or unicodedata.category(part) in CLINGING for part in parts)


def words_of(texts: pl.Series) -> pl.Series:
    """Return texts as NFKC, lower case, a space for each run of other characters than word characters."""
    return texts.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[^\w]+", " ")


def _or_null(words: pl.Series) -> pl.Series:
    words = words.str.strip_chars()
    return unless(words == "", words)


def unless(blank: pl.Series, texts: pl.Series) -> pl.Series:
    """Return texts with null where `blank` says so; few are, and `when` would copy all the others."""
    places = np.arange(len(texts), dtype=np.uint32)
    return texts.gather(pl.Series(places).set(blank.fill_null(True), None)) if blank.any() else texts


def _plain_words(texts: pl.Series) -> pl.Series:
    """Return ASCII texts in lower case, a space for each run of other characters than letters, digits and `_`."""
    whole = (texts.str.join(BETWEEN)[0] or "").encode("latin-1").translate(PLAIN)
    words = pl.Series([_single_spaces(np.frombuffer(whole, dtype=np.uint8)).decode("latin-1")]).str.split(BETWEEN)
    return words.explode()


def _single_spaces(signs: np.ndarray) -> bytes:
    """Return characters with one space for each run of them."""
    space = signs == ord(" ")
    kept = np.ones(len(signs), dtype=bool)
    np.logical_not(space[1:] & space[:-1], out=kept[1:])
    return signs[kept].tobytes()


def forms(texts: pl.Series) -> pl.Series:
    """Return what counts as the same text: the normalised form, or the text itself where that is empty."""
    return normalised(texts).fill_null(texts)


def numbered(texts: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return a number (i32) for each text, and the distinct texts, in order of first appearance; none may be null."""
    coded = texts.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    return coded.indices.to_numpy(), pl.Series(texts.name, coded.dictionary)


def connected(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Return for each of `count` nodes the smallest node it is linked to, through edges `left[i] - right[i]`.

    Label propagation with pointer jumping: every pass halves the longest path, so a few passes end it.
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
