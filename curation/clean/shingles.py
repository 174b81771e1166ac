"""Texts as sets of shingles: which shingles a text has, and how one is hashed. Here in numpy, in `kernels` as numba.

A text's normalised form (`text.normalised`) and its length and script decide what its shingles are:

    WORDS      25 words or more                    every 3 words in a row, with the spaces between them
    CHARS      8 to 24 words                       every 5 characters in a row
    SPACELESS  mostly of scripts without spaces,   every 3 characters in a row
               12 characters or more
    EXACT      anything shorter                    none: only equal forms are the same

So a text of 25 words would never meet its near-duplicate of 24. Therefore texts of 25 to 29 words also get CHARS shingles, and
meet shorter texts by these; two long texts are compared by words alone.

A shingle's hash is that of its UTF-8 bytes, a polynomial modulo 2^64; MinHash takes its upper half:

    def shingle_hash(shingle: bytes) -> int:
        return sum(byte * pow(BASE, at + 1, 2**64) for at, byte in enumerate(shingle)) % 2**64
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from curation.core.characters import SPACELESS_CHARS
from curation.core.jit import Buffers, buffers_of

BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)
EXACT, WORDS, CHARS, SPACELESS = range(4)
WIDTH = (0, 3, 5, 3)  # units of a shingle, by kind
LONG, SHORT, SPACELESS_LEAST = 25, 8, 12  # words, words, characters
LONGER = 30  # words from which on a text is never taken as CHARS
SHINGLING = (
    f"words{WIDTH[1]}>={LONG}|chars{WIDTH[2]}>={SHORT}<{LONGER}|spaceless{WIDTH[3]}>={SPACELESS_LEAST}|poly64:{BASE:x}|forms2"
)


class Shingled(NamedTuple):
    """The shingles of texts, one after the other: those of text i are `hashes[starts[i]:starts[i + 1]]`."""

    hashes: np.ndarray  # (shingles,) u64, repeats included
    starts: np.ndarray  # (texts + 1,) i64
    kinds: np.ndarray  # (texts,) u8
    forms: np.ndarray  # (texts,) u64: hash of the whole normalised form; 0 where it is empty


def powers(base: int, count: int) -> np.ndarray:
    """Return base^0, base^1, ... modulo 2^64, (count,) u64."""
    table = np.full(count, base, dtype=np.uint64)
    table[:1] = 1
    return np.cumprod(table, dtype=np.uint64)


def forms_of(texts: Buffers, numbers: np.ndarray) -> pl.Series:
    """Return some texts of buffers."""
    bounds = zip(texts.starts[numbers].tolist(), texts.starts[numbers + 1].tolist(), strict=True)
    return pl.Series([texts.data[first:end].tobytes().decode() for first, end in bounds], dtype=pl.String)


def shingle(forms: pl.Series, longer: bool = False) -> Shingled:
    """Shingle normalised texts with numpy alone, by differences of one running sum over all their bytes.

    With `longer`, texts of up to LONGER words are taken as CHARS.
    """
    kinds = kinds_of(forms, LONGER if longer else LONG)
    data, starts = buffers_of(forms)
    starts = starts - starts[:1]
    place = powers(BASE, len(data) + 2)
    back = powers(INVERSE, len(data) + 1)
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(data * place[1 : len(data) + 1], dtype=np.uint64, out=sums[1:])

    def hashes_of(first: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.asarray((sums[end] - sums[first]) * back[first], dtype=np.uint64)

    whole = hashes_of(starts[:-1], starts[1:])
    text_of_byte = np.repeat(np.arange(len(forms)), np.diff(starts))
    by_words = (kinds == WORDS)[text_of_byte]
    by_chars = (kinds >= CHARS)[text_of_byte]
    first_bytes = np.zeros(len(data) + 1, dtype=bool)
    first_bytes[starts[:-1]] = True
    after_space = np.append(True, data[:-1] == ord(" ")) if len(data) else np.zeros(0, bool)
    begins = np.flatnonzero((by_words & (after_space | first_bytes[:-1])) | (by_chars & (data & 0xC0 != 0x80)))
    text = text_of_byte[begins]
    units = np.bincount(text, minlength=len(forms))
    width = np.asarray(WIDTH)[kinds]
    counts = np.where(kinds == EXACT, 0, np.maximum(units - width + 1, 0))
    # a unit ends where the next one begins, less the space between words, or where the text ends
    following = np.append(begins[1:], 0) - (kinds[text] == WORDS)
    last = np.append(text[1:] != text[:-1], True) if len(text) else np.zeros(0, bool)
    ends = np.where(last, starts[text + 1], following)
    bounds = np.append(0, np.cumsum(counts))
    owner = np.repeat(np.arange(len(forms)), counts)
    unit = np.arange(bounds[-1]) - bounds[owner] + (np.cumsum(units) - units)[owner]
    hashes = hashes_of(begins[unit], ends[unit + width[owner] - 1])
    return Shingled(hashes, bounds, kinds, whole)


def kinds_of(forms: pl.Series, long: int = LONG) -> np.ndarray:
    """Return which shingles each normalised form has, (texts,) u8; words from `long` words on."""
    counts = pl.select(
        words=pl.when(forms != "").then(forms.str.count_matches(" ", literal=True) + 1).otherwise(0),
        chars=forms.str.len_chars(),
        spaceless=forms.str.count_matches(SPACELESS_CHARS),
    )
    words, chars, spaceless = (counts[name].to_numpy().astype(np.int64) for name in ("words", "chars", "spaceless"))
    by_words = np.where(words >= long, WORDS, np.where(words >= SHORT, CHARS, EXACT))
    by_chars = np.where(chars >= SPACELESS_LEAST, SPACELESS, EXACT)
    return np.where(2 * spaceless > chars - words + 1, by_chars, by_words).astype(np.uint8)
