"""Characters in the normalised form of `text.py`: which belong to words, which are signs, which are invisible."""

from __future__ import annotations

import string
import unicodedata
from functools import cache

import numpy as np
import polars as pl

from curation.core.jit import buffers_of

BETWEEN = "\x80"  # separates texts; does not occur in ASCII text
SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"  # its lower case is different at the end of a word
CLINGING = ("Mn", "Mc", "Me", "Cn", "Cs", "Co")  # marks; and not assigned in Python's Unicode, which may be older than polars'
# Default_Ignorable_Code_Point (Unicode's DerivedCoreProperties.txt), controls except spaces, interlinear annotations
INVISIBLE = r"[\p{Default_Ignorable_Code_Point}\x00-\x08\x0E-\x1B\x7F-\x84\x86-\x9F\x{FFF9}-\x{FFFB}]"
SLASHES, SPACES = r"[\x{2044}\x{2215}]", r"[\x{85}\x{1680}\x{2028}\x{2029}]"  # as in ½, which is 1/2; spaces that NFKC leaves
BLANK, WORD, SIGN = range(3)
KINDS = np.full(0x110000, 255, np.uint8)  # BLANK, WORD or SIGN for each folded code point; 255 if not looked up so far
SIGNS = "#$%&*+<=>@^|~"  # ASCII characters that are signs everywhere
SIGN_CHARS = r"[\p{S}\p{No}\x{2030}\x{2031}\x{66A}\xA7#%&*@--[`\x{2800}]]"
PLACED = "-/!()"  # signs in some places only
OPENING = " \t\n\v\f\r\x1c\x1d\x1e\x1f([{<>=+*/&|^~,:;"  # characters before a sign that belongs to the next word
CLOSING = ".;!?)"  # characters after a minus that belongs to the word before it
EYES, NOSES = ":;", "-'^"
IS_WORD, IS_OPENING, IS_CLOSING, IS_DIGIT, IS_EQUAL, IS_MORE, IS_LESS, IS_NOT, IS_HYPHEN, IS_BRACKET, IS_EYES, IS_NOSE = (
    1 << at for at in range(12)
)
MARKS = np.zeros(256, np.uint16)  # properties of each ASCII character and of BETWEEN, as a sum of bits
for _bit, _chars in (
    (IS_WORD, "_" + string.ascii_letters + string.digits), (IS_OPENING, OPENING + BETWEEN), (IS_CLOSING, CLOSING + BETWEEN),
    (IS_DIGIT, string.digits), (IS_EYES, EYES), (IS_NOSE, NOSES), (IS_EQUAL, "="), (IS_MORE, ">"), (IS_LESS, "<"), (IS_NOT, "!"),
    (IS_HYPHEN, "-"), (IS_BRACKET, "("),
):  # fmt: skip
    MARKS[[ord(_char) for _char in _chars]] |= _bit
STANDS_FOR = dict(zip(PLACED, "\N{MINUS SIGN}/¬☹☺", strict=True))
SPACELESS_RANGES = (  # Lao and Thai, Myanmar, Khmer, kana, Han
    (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)
)  # fmt: skip
SPACELESS_CHARS = "[" + "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in SPACELESS_RANGES) + "]"


def folded(texts: pl.Series) -> pl.Series:
    """Return texts in NFKC and lower case, without invisible characters."""
    texts = texts.str.replace_all(INVISIBLE, "").str.normalize("NFKC").str.to_lowercase()
    return texts.str.replace_all(SLASHES, "/").str.replace_all(SPACES, " ")


def kinds_of(points: np.ndarray) -> np.ndarray:
    """Return (n,) u8: whether folded code points are BLANK, part of a WORD or a SIGN, by polars' version of Unicode."""
    kinds = KINDS[points]
    new = np.unique(points[kinds == 255])
    if len(new):
        chars = pl.Series([chr(point) for point in new], dtype=pl.String)
        word, sign = chars.str.contains(r"\w").to_numpy(), chars.str.contains(SIGN_CHARS).to_numpy()
        KINDS[new] = np.select([word, sign], [WORD, SIGN], BLANK)
        kinds = KINDS[points]
    return np.asarray(kinds)


def alone(sign: str) -> bool:
    """Return whether the form of a character never depends on its neighbours."""
    parts = sign + unicodedata.normalize("NFKC", sign)
    return not any(part == SIGMA or "\u1100" <= part < "\u1200" or unicodedata.category(part) in CLINGING for part in parts)


def placed_signs(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions (in no order) at which one of PLACED is a sign, and which one it is.

    `units` are the code points of folded texts with BETWEEN between them; bytes if all are ASCII.
    """

    def marks(places: np.ndarray) -> np.ndarray:
        """Return properties of the characters at some positions, as a sum of bits."""
        points = units.take(places, mode="clip")
        found: np.ndarray = MARKS[np.minimum(points, 255)]
        if units.dtype != np.uint8:
            found[(points > 127) & (kinds_of(points) == WORD)] = IS_WORD
        found[(places < 0) | (places >= len(units))] = IS_OPENING | IS_CLOSING
        return found

    def has(marks: np.ndarray, some: int) -> np.ndarray:
        return np.asarray((marks & some) != 0)

    hyphens, slashes, nots, *brackets = (np.flatnonzero(units == ord(sign)) for sign in PLACED)
    first = hyphens.copy()  # position of the first hyphen of each run
    first[1:][np.diff(hyphens) == 1] = 0
    start = marks(np.maximum.accumulate(first) - 1)
    after = marks(hyphens + 1)
    minus = has(after, IS_EQUAL | IS_MORE) | has(start, IS_LESS) | (has(start, IS_WORD) & has(after, IS_CLOSING))
    minus |= has(after, IS_WORD) & has(start, IS_OPENING | IS_NOT)
    signs = [hyphens[minus & ~has(after, IS_HYPHEN)]]

    before, after = marks(slashes - 1), marks(slashes + 1)
    both = before & after
    signs.append(slashes[~has(both, IS_WORD) | has(both, IS_DIGIT)])

    before, after = marks(nots - 1), marks(nots + 1)
    signs.append(nots[has(after, IS_EQUAL) | (has(before, IS_OPENING) & has(after, IS_WORD | IS_BRACKET))])

    for some in brackets:
        before = marks(some - 1)
        some, before = some[few := has(before, IS_EYES | IS_NOSE)], before[few]
        smiles = has(before, IS_EYES) | has(marks(some - 2), IS_EYES)
        signs.append(some[smiles & ~has(marks(some + 1), IS_WORD)])
    return np.concatenate(signs), np.repeat(np.arange(len(PLACED)), [len(some) for some in signs])


POINTS = 1 << 17  # the table has code points below this
UNLISTED = 1 << 31
DENSE = 1 << 30  # of a script that writes no spaces
APART = 1 << 29  # a sign beyond ASCII
SIZE = 24  # bit at which the size (0 to 3 bytes) begins; the bytes are below it, the first one lowest
OWN_BYTES = 1 << 26  # the form is the character itself, of four bytes
NEUTRAL = 2  # a byte for characters that are neither word nor sign and do not influence their neighbours
LISTED = ((0x80, 0x3400), (0xA000, 0xAC00), (0xF900, 0x10000), (0x1D400, 0x1D800), (0x1F000, 0x1FC00))
OWN_FORM = ((0x3400, 0x4DC0), (0x4E00, 0x9FF0), (0xAC00, 0xD7A4))  # Han and Hangul: words that do not change


@cache
def folding_table() -> np.ndarray:
    """Return (POINTS,) u32: UTF-8, size and kind of the form of each code point beyond ASCII, or UNLISTED; takes 40 ms.

    The compiled loops normalise most texts by this table. It is computed with `folded`, so both have the same version of Unicode.
    Code points are UNLISTED if their form depends on their neighbours or is longer than they are: combining marks, jamo, the
    capital sigma, rare scripts. Texts with one of these are normalised with numpy.
    """
    points, found = np.arange(POINTS), np.full(POINTS, UNLISTED, dtype=np.uint32)
    for first, end in OWN_FORM:
        at = points[first:end]
        found[first:end] = 3 << SIZE | (0x80 | at & 63) << 16 | (0x80 | at >> 6 & 63) << 8 | 0xE0 | at >> 12
    asked = np.array([at for first, end in LISTED for at in range(first, end) if not 0xD800 <= at < 0xE000])
    chars = pl.Series([chr(at) for at in asked])
    forms = folded(chars)
    good = (forms.str.len_chars() <= 1).to_numpy() & np.array(
        [form == "" or alone(char) for char, form in zip(chars, forms, strict=True)]
    )
    asked, chars, forms = asked[good], chars.filter(pl.Series(good)), forms.filter(pl.Series(good))
    there = (forms != "").to_numpy()
    kinds = np.zeros(len(forms), np.uint8)
    kinds[there] = kinds_of(np.array([ord(form) for form in forms if form], "<u4"))
    ascii_form = (forms.str.len_bytes() == 1).to_numpy()
    data, starts = buffers_of(forms)
    size = np.diff(starts)
    spelled = size << SIZE
    for byte in range(3):
        spelled |= np.where(byte < size, data[np.minimum(starts[:-1] + byte, len(data) - 1)].astype(np.int64) << (8 * byte), 0)
    own = (size == 4) & (forms == chars).to_numpy() & (kinds == SIGN)
    spelled = np.where(own, OWN_BYTES, spelled)
    spelled = np.where((kinds == SIGN) & ~ascii_form, spelled | APART, spelled)
    spelled = np.where((kinds == BLANK) & there & ~ascii_form, 1 << SIZE | NEUTRAL, spelled)
    fits = own | (size <= np.minimum(chars.str.len_bytes().to_numpy(), 3))
    found[asked[fits]] = spelled[fits]
    forms_at = points.copy()  # of a text of its own form, what is left out is copied
    forms_at[asked[fits]] = [ord(form) if form else 0 for form in forms.filter(pl.Series(fits))]
    forms_at[asked[fits & (kinds == BLANK)]] = 0
    for first, end in SPACELESS_RANGES:
        found[(forms_at >= first) & (forms_at <= end)] |= DENSE
    return found
