"""What two texts share when one was copied into the other: runs of characters for short texts, runs of words for long ones.

A text's normalised form, with a space before and after it, gives four kinds of gram. Its script decides their width:

    WHOLE  the form itself
    CHARS  7 characters in a row, spaces too                3 where most characters are of scripts without spaces
    WORDS  13 words in a row, with the spaces between them  20 characters there
    SEEDS  14 characters in a row from the space before a word on    5 there, from any character on

A gram's key is the hash of its UTF-8 bytes (`shingles`), marked by kind and width and mixed, so that its bits are even; that of
CHARS is the first half of it, not mixed. The compiled loop (`overlap_kernels`) computes the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.shingles import BASE, INVERSE
from curation.core.characters import SPACELESS_CHARS
from curation.core.jit import buffers_of

WHOLE, CHARS, WORDS, SEEDS = range(4)
CHARS_WIDTH, SEEDS_WIDTH = (7, 3), (14, 5)  # characters; of texts with and without spaces
WORDS_WIDTH = (13, 20)  # words; characters
LONG = (25, 40)  # words, characters: from here on a text is looked for by its words, below by its characters
MARKS = np.array(  # by kind and script
    [
        [0x1D8E4E27C47D124F, 0x1D8E4E27C47D124F],
        [0xEB44ACCAB455D165, 0x6C9C83AF6FA8A76B],
        [0x27D4EB2F165667C5, 0x8EBC6AF09C88C6E3],
        [0x9FB21C651E98DF25, 0xA0761D6478BD642F],
    ],
    dtype=np.uint64,
)
MIX = 0xFF51AFD7ED558CCD


def powers(base: int, count: int) -> np.ndarray:
    """Return base^0, base^1, ... modulo 2^64, (count,) u64."""
    table = np.full(count, base, dtype=np.uint64)
    table[:1] = 1
    return np.cumprod(table, dtype=np.uint64)


class Measures(NamedTuple):
    """How long normalised forms are."""

    spaceless: np.ndarray  # (texts,) i64: 1 where most characters are of scripts without spaces
    units: np.ndarray  # (texts,) i64: words, or characters where spaceless
    chars: np.ndarray  # (texts,) i64


class Grams(NamedTuple):
    """The grams of one kind, in order of texts and places."""

    text: np.ndarray  # (grams,) i64: number of the text
    key: np.ndarray  # (grams,) u64


def measures_of(forms: pl.Series) -> Measures:
    """Measure normalised forms (no nulls)."""
    counts = pl.select(
        words=pl.when(forms != "").then(forms.str.count_matches(" ", literal=True) + 1).otherwise(0),
        chars=forms.str.len_chars(),
        spaceless=forms.str.count_matches(SPACELESS_CHARS),
    )
    words, chars, spaceless = (counts[name].to_numpy().astype(np.int64) for name in ("words", "chars", "spaceless"))
    dense = 2 * spaceless > chars - words + 1
    return Measures(dense.astype(np.int64), np.where(dense, chars, words), chars)


def mixed(hashes: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Return hashes as keys, (n,) u64: one to one, with even bits."""
    keys = hashes ^ marks
    keys = (keys ^ (keys >> np.uint64(32))) * np.uint64(MIX)
    return np.asarray(keys ^ (keys >> np.uint64(32)), dtype=np.uint64)


class Forms:
    """Normalised forms (no nulls), and the running sum over their bytes that every gram is a difference of."""

    def __init__(self, forms: pl.Series) -> None:
        self.count = len(forms)
        self.measures = measures_of(forms)
        padded = pl.select(pl.concat_str([pl.lit(" "), forms.alias("form"), pl.lit(" ")])).to_series()
        data, starts = buffers_of(padded if len(forms) else forms)
        self.data, self.starts = data[starts[0] : starts[-1]], starts - starts[0]
        self.back = powers(INVERSE, len(self.data) + 1)
        self.sums = np.zeros(len(self.data) + 1, dtype=np.uint64)
        np.cumsum(self.data * powers(BASE, len(self.data) + 2)[1 : len(self.data) + 1], dtype=np.uint64, out=self.sums[1:])

    def _keys(self, kind: int, text: np.ndarray, first: np.ndarray, end: np.ndarray) -> Grams:
        hashes = (self.sums[end] - self.sums[first]) * self.back[first]
        marks = MARKS[kind, self.measures.spaceless[text]]
        return Grams(text, (hashes ^ marks) >> np.uint64(32) if kind == CHARS else mixed(hashes, marks))

    def whole(self) -> np.ndarray:
        """Return each form's own key, (texts,) u64."""
        return self._keys(WHOLE, np.arange(self.count), self.starts[:-1], self.starts[1:]).key

    def chars(self, wanted: np.ndarray) -> Grams:
        """Return the CHARS of the forms that `wanted` (texts,) bool marks."""
        return self._of_chars(CHARS, np.asarray(CHARS_WIDTH)[self.measures.spaceless], wanted)

    def seeds(self, wanted: np.ndarray) -> Grams:
        """Return the SEEDS of the forms that `wanted` (texts,) bool marks."""
        return self._of_chars(SEEDS, np.asarray(SEEDS_WIDTH)[self.measures.spaceless], wanted)

    def words(self, wanted: np.ndarray) -> Grams:
        """Return the WORDS of the forms that `wanted` (texts,) bool marks."""
        dense = self.measures.spaceless == 1
        parts = self._of_words(wanted & ~dense), self._of_chars(WORDS, np.full(self.count, WORDS_WIDTH[1]), wanted & dense)
        text, key = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(text, kind="stable")
        return Grams(text[order], key[order])

    def _of_chars(self, kind: int, width: np.ndarray, wanted: np.ndarray) -> Grams:
        begins = np.flatnonzero(self.data & 0xC0 != 0x80)
        text = np.repeat(np.arange(self.count), np.diff(self.starts))[begins]
        units = np.bincount(text, minlength=self.count)
        at, unit = _runs(units, np.where(wanted, width, len(self.data) + 1))
        if kind == SEEDS:
            chosen = (self.data[begins[unit]] == ord(" ")) | (self.measures.spaceless[at] == 1)
            at, unit = at[chosen], unit[chosen]
        begins = np.append(begins, len(self.data))  # forms touch: a form ends where the next one begins
        return self._keys(kind, at, begins[unit], begins[unit + width[at]])

    def _of_words(self, wanted: np.ndarray) -> Grams:
        space = self.data == ord(" ")
        begins = np.flatnonzero(space[:-1] & ~space[1:]) + 1
        text = np.repeat(np.arange(self.count), np.diff(self.starts))[begins]
        units = np.bincount(text, minlength=self.count)
        width = WORDS_WIDTH[0]
        at, unit = _runs(units, np.where(wanted, width, len(self.data) + 1))
        last = begins[unit + width - 1]
        spaces = np.flatnonzero(space)
        return self._keys(WORDS, at, begins[unit], spaces[np.searchsorted(spaces, last)] if len(at) else last)


def _runs(units: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (text, first unit) of every run of width[text] units within a text."""
    counts = np.maximum(units - width + 1, 0)
    text = np.repeat(np.arange(len(units)), counts)
    return text, np.arange(len(text)) - (np.cumsum(counts) - counts)[text] + (np.cumsum(units) - units)[text]
