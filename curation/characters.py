"""Characters in a normalised form (`text`): which are of words, which are signs, which are invisible."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import polars as pl

BETWEEN = "\x80"  # stands in no ASCII text
SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"  # small, it is another one at the end of a word
CLINGING = ("Mn", "Mc", "Me", "Cn", "Cs", "Co")  # marks; not assigned in Python's Unicode, which may be the older one
# Default_Ignorable_Code_Point (Unicode's DerivedCoreProperties.txt), controls but for spaces, interlinear annotations
INVISIBLE = r"[\p{Default_Ignorable_Code_Point}\x00-\x08\x0E-\x1B\x7F-\x84\x86-\x9F\x{FFF9}-\x{FFFB}]"
SLASHES, SPACES = r"[\x{2044}\x{2215}]", r"[\x{85}\x{1680}\x{2028}\x{2029}]"  # as in ½, which is 1/2; spaces that NFKC leaves
BLANK, WORD, SIGN = range(3)
SIGNS = "#$%&*+<=>@^|~"  # of ASCII, wherever they are
SIGN_CHARS = r"[\p{S}\p{No}\x{2030}\x{2031}\x{66A}\xA7#%&*@--[`\x{2800}]]"
PLACED = "-/!()"  # signs by their place
OPENING = " \t\n\v\f\r\x1c\x1d\x1e\x1f([{<>=+*/&|^~,:;"  # before a sign that belongs to the word after it
CLOSING = ".;!?)"  # after a minus that belongs to the word before it
EYES, NOSES = ":;", "-'^"
STANDS_FOR = dict(zip(PLACED, "\N{MINUS SIGN}/¬☹☺", strict=True))
SPACELESS_RANGES = (  # Lao and Thai, Myanmar, Khmer, kana, Han
    (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)
)  # fmt: skip
SPACELESS_CHARS = "[" + "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in SPACELESS_RANGES) + "]"


def folded(texts: pl.Series) -> pl.Series:
    """Return texts in NFKC and lower case, without what is invisible."""
    texts = texts.str.replace_all(INVISIBLE, "").str.normalize("NFKC").str.to_lowercase()
    return texts.str.replace_all(SLASHES, "/").str.replace_all(SPACES, " ")


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


def alone(sign: str) -> bool:
    """Tell whether the form of a character never hangs on its neighbours."""
    parts = sign + unicodedata.normalize("NFKC", sign)
    return not any(part == SIGMA or "\u1100" <= part < "\u1200" or unicodedata.category(part) in CLINGING for part in parts)


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
