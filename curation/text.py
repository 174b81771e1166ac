"""What two texts must share to count as the same one.

The normalised form is NFKC in lower case: words, and signs, with one space between them. Case, width, punctuation and spacing do
not count, and neither do invisible characters. Signs, emoji and operators do:

    What is C++?      -> what is c + +          5 €, 5€   -> 5 €      great :)   -> great ☺
    state-of-the-art  -> state of the art       a += b    -> a + = b  a != b     -> a ¬ = b

A character of Unicode's categories S* or No is a sign, and so are # % & * @ ‰ ‱ ٪ §. Others are signs by their place alone, and
stand in the form as the sign that is one everywhere (so that a form's form is itself):

    -    U+2212, a minus, before a word, as in -5 and --all, at the end of one, as in A-, and in -= -> <-; not in x-ray, x - ray
    /    itself, but between letters, as in and/or
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

BLOCK = 1 << 20  # bytes of texts at a time, so that they stay in the cache
BETWEEN = "\x80"  # stands in no ASCII text
UNTOLD, UNASKED, NOTHING = 0x110000, 0x110001, 0x110002  # beyond all code points
SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"  # small, it is another one at the end of a word
CLINGING = ("Mn", "Mc", "Me", "Cn", "Cs", "Co")  # marks; not assigned in Python's Unicode, which may be the older one
# Default_Ignorable_Code_Point (Unicode's DerivedCoreProperties.txt), controls but for spaces, interlinear annotations
INVISIBLE = r"[\p{Default_Ignorable_Code_Point}\x00-\x08\x0E-\x1B\x7F-\x84\x86-\x9F\x{FFF9}-\x{FFFB}]"
CONTROLS = bytes([*range(9), *range(14, 28), 127])
SLASHES, SPACES = r"[\x{2044}\x{2215}]", r"[\x{85}\x{1680}\x{2028}\x{2029}]"  # as in ½, which is 1/2; spaces that NFKC leaves
BLANK, WORD, SIGN = range(3)
SIGNS = "#$%&*+<=>@^|~"  # of ASCII, wherever they are
SIGN_CHARS = r"[\p{S}\p{No}\x{2030}\x{2031}\x{66A}\xA7#%&*@--[`\x{2800}]]"
PLACED = "-/!()"  # signs by their place
OPENING = " \t\n\v\f\r\x1c\x1d\x1e\x1f([{<>=+*/&|^~,:;"  # before a sign that belongs to the word after it
CLOSING = ".;!?)"  # after a minus that belongs to the word before it
EYES, NOSES = ":;", "-'^"
STANDS_FOR = dict(zip(PLACED, "\N{MINUS SIGN}/¬☹☺", strict=True))


def normalised(texts: pl.Series) -> pl.Series:
    """Return each text's normalised form, see above; null for one without a word or sign: `!!!` and `???` are not the same text.

    ASCII texts go a faster way.
    """
    texts = texts.fill_null("") if texts.null_count() else texts
    plain = texts.str.len_bytes() == texts.str.len_chars()
    if not plain.all():
        parts = [normalised(texts.filter(plain)), _beyond_ascii(texts.filter(~plain))]
        place = np.argsort(np.argsort(~plain.to_numpy(), kind="stable"), kind="stable")
        return pl.concat(parts).gather(place)
    return _or_null(_by_blocks(_of_ascii, texts)).alias(texts.name)


def _by_blocks(work: Callable[[pl.Series], pl.Series], texts: pl.Series) -> pl.Series:
    """Return what `work` makes of texts, block by block: it needs up to thirty times their bytes."""
    ends = texts.str.len_bytes().cum_sum().to_numpy().astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(ends // BLOCK)) + 1).tolist(), len(texts)]
    return pl.concat([work(texts.slice(start, end - start)) for start, end in pairwise(cuts)]) if len(texts) else texts


def _or_null(words: pl.Series) -> pl.Series:
    words = words.str.strip_chars(" ")
    return unless(words == "", words)


def unless(blank: pl.Series, texts: pl.Series) -> pl.Series:
    """Return texts with null where `blank` says so; few are, and `when` would copy all the others."""
    places = np.arange(len(texts), dtype=np.uint32)
    return texts.gather(pl.Series(places).set(blank.fill_null(True), None)) if blank.any() else texts


@cache
def _ascii() -> tuple[bytes, bytes, np.ndarray]:
    """Return (lower case by byte, words, signs, spaces by byte, (256,) bool which bytes are of words)."""
    lower = bytes(range(256)).lower()
    word = np.array([chr(byte).isalnum() or byte == ord("_") for byte in range(128)] + [False] * 128)
    kept = bytes(byte if word[byte] or chr(byte) in SIGNS + BETWEEN or byte < 6 else 32 for byte in range(256))
    return lower, kept, word


def _of_ascii(texts: pl.Series) -> pl.Series:
    lower, kept, word = _ascii()
    whole = bytearray((texts.str.join(BETWEEN)[0] or "").encode("latin-1").translate(lower, CONTROLS))
    units = np.frombuffer(whole, dtype=np.uint8)
    places, number = placed_signs(units, word[units])
    units[places] = number + 1  # as control characters, of which none is left
    found = bytes(whole).translate(kept)
    for sign in (*SIGNS, BETWEEN):
        found = found.replace(sign.encode("latin-1"), f" {sign} ".encode())
    for at, sign in enumerate(STANDS_FOR.values(), 1):
        found = found.replace(bytes([at]), f" {sign} ".encode())
    words = _single_spaces(np.frombuffer(found, dtype=np.uint8)).decode()
    return pl.Series([words]).str.split(BETWEEN).explode()


def placed_signs(units: np.ndarray, word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where in a run of characters one of PLACED is a sign, and its number among them.

    Texts are parted by BETWEEN; `units` are code points, of words where `word` (n,) says so.
    """
    few = np.minimum(units, 255)
    places = np.flatnonzero(_among(PLACED)[few])
    edge = ord(BETWEEN)
    few = np.concatenate([[edge, edge], few, [edge, edge]]).astype(np.uint8)
    of_word = np.concatenate([[False, False], word, [False, False]])
    at = places + 2
    this, before, after = few[at], few[at - 1], few[at + 1]
    opens, closes = _among(OPENING + BETWEEN), _among(CLOSING + BETWEEN)
    hyphen = this == ord("-")
    first = np.maximum.accumulate(np.where(hyphen & (before != ord("-")), at, 0))  # of its run of hyphens
    start, word_after = few[first - 1], of_word[at + 1]
    minus = (
        (after == ord("="))
        | (after == ord(">"))
        | (start == ord("<"))
        | (word_after & (opens[start] | (start == ord("!"))))
        | (of_word[first - 1] & closes[after])
    )
    digits = _among("0123456789")
    divides = ~(of_word[at - 1] & word_after) | (digits[before] & digits[after])
    negates = (after == ord("=")) | (opens[before] & (word_after | (after == ord("("))))
    eyes = _among(EYES)
    smiles = (eyes[before] | (_among(NOSES)[before] & eyes[few[at - 2]])) & ~word_after
    good = np.select([hyphen, this == ord("/"), this == ord("!")], [minus & (after != ord("-")), divides, negates], smiles)
    number = np.zeros(256, np.uint8)
    number[np.frombuffer(PLACED.encode(), np.uint8)] = np.arange(len(PLACED))
    return places[good], number[this[good]]


@cache
def _among(signs: str) -> np.ndarray:
    """Return (256,) bool: which code points below are among some."""
    return np.isin(np.arange(256), [ord(sign) for sign in signs])


def _single_spaces(units: np.ndarray) -> bytes:
    """Return characters with one space for each run of them."""
    space = units == ord(" ")
    kept = np.ones(len(units), dtype=bool)
    np.logical_not(space[1:] & space[:-1], out=kept[1:])
    return units[kept].tobytes()


def _beyond_ascii(texts: pl.Series) -> pl.Series:
    words = _by_blocks(_by_table, texts)
    untold = words.is_null().arg_true()
    if len(untold):
        rest = _by_blocks(lambda some: _words(_points(folded(some))), texts.gather(untold))
        words = words.scatter(untold, rest)
    return _or_null(words).alias(texts.name)


def folded(texts: pl.Series) -> pl.Series:
    """Return texts in NFKC and lower case, without what is invisible."""
    texts = texts.str.replace_all(INVISIBLE, "").str.normalize("NFKC").str.to_lowercase()
    return texts.str.replace_all(SLASHES, "/").str.replace_all(SPACES, " ")


def _points(texts: pl.Series) -> np.ndarray:
    """Return the code points of texts, with BETWEEN between them."""
    return np.frombuffer((texts.str.join(BETWEEN)[0] or "").encode("utf-32-le"), dtype="<u4")


def _by_table(texts: pl.Series) -> pl.Series:
    """Return the forms of texts, character by character; null for a text with one whose form hangs on its neighbours."""
    points = _points(texts)
    ends = np.flatnonzero(points == ord(BETWEEN))
    if len(ends) != len(texts) - 1:
        return texts.clear(len(texts))
    found = _table()[points]
    if len(new := np.unique(points[found == UNASKED])):
        _ask(new)
        found = _table()[points]
    untold = np.flatnonzero(found == UNTOLD)
    found[untold] = ord(" ")
    words = _words(found[found != NOTHING])
    return words.scatter(np.unique(np.searchsorted(ends, untold)), None) if len(untold) else words


def _words(points: np.ndarray) -> pl.Series:
    """Return the forms of folded texts, given as one run of code points with BETWEEN between them."""
    kinds = kinds_of(points)
    places, number = placed_signs(points, kinds == WORD)
    points, kinds = points.copy(), kinds.copy()
    points[places] = np.array([ord(sign) for sign in STANDS_FOR.values()], "<u4")[number]
    kinds[places] = SIGN
    points[(kinds == BLANK) & (points != ord(BETWEEN))] = ord(" ")
    apart = np.flatnonzero(kinds == SIGN)
    spaced = np.full(len(points) + 2 * len(apart), ord(" "), "<u4")
    room = np.zeros(len(points) + 1, np.int64)
    room[apart] += 1
    room[apart + 1] += 1
    spaced[np.arange(len(points)) + np.cumsum(room)[:-1]] = points
    return pl.Series([_single_spaces(spaced).decode("utf-32-le")]).str.split(BETWEEN).explode()


@cache
def _kinds() -> np.ndarray:
    """Return (0x110000,) u8: BLANK, WORD or SIGN for each folded code point, or 255 as yet."""
    return np.full(0x110000, 255, np.uint8)


def kinds_of(points: np.ndarray) -> np.ndarray:
    """Return whether folded code points are BLANK, of a WORD, or a SIGN, as polars' own Unicode has it, (n,) u8."""
    kinds = _kinds()[points]
    new = np.unique(points[kinds == 255])
    if len(new):
        chars = pl.Series([chr(point) for point in new], dtype=pl.String)
        word, sign = chars.str.contains(r"\w").to_numpy(), chars.str.contains(SIGN_CHARS).to_numpy()
        _kinds()[new] = np.select([word, sign], [WORD, SIGN], BLANK)
        kinds = _kinds()[points]
    return np.asarray(kinds)


@cache
def _table() -> np.ndarray:
    """Return (0x110000,) u32: the one code point that each is folded to, NOTHING, UNTOLD, or UNASKED as yet."""
    table = np.full(0x110000, UNASKED, dtype="<u4")
    table[ord(BETWEEN)] = ord(BETWEEN)
    return table


def _ask(points: np.ndarray) -> None:
    """Put into the table what `folded` makes of code points, where it is one that stands by itself, or none."""
    told = np.full(len(points), UNTOLD, dtype="<u4")
    chars = pl.Series([chr(point) for point in points], dtype=pl.String)
    forms = folded(chars).to_list()
    for at, (char, form) in enumerate(zip(chars, forms, strict=True)):
        if len(form) <= 1 and (not form or alone(char)):
            told[at] = ord(form) if form else NOTHING
    _table()[points] = told


def alone(sign: str) -> bool:
    """Tell whether the form of a character never hangs on its neighbours."""
    parts = sign + unicodedata.normalize("NFKC", sign)
    return not any(part == SIGMA or "\u1100" <= part < "\u1200" or unicodedata.category(part) in CLINGING for part in parts)


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
