"""The look-up of decontamination in numpy and polars, for tests of the compiled loop."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

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
    measures_of,
)
from curation.clean.overlap_index import SHARED_TENTHS, Index
from curation.clean.overlap_lookup import FOUND
from curation.clean.shingles import BASE, INVERSE
from curation.core.jit import buffers_of
from curation.core.text import normalised


def looked_up(index: Index, texts: pl.Series) -> pl.DataFrame:
    """What `overlap_lookup.look_up` returns."""
    forms = Forms(normalised(texts).fill_null(""))
    with_words = np.diff(forms.starts) > 2  # a form without any word matches nothing
    whole, seeds, words = forms.grams(WHOLE, with_words), forms.grams(SEED_GRAMS), forms.grams(WORD_GRAMS)
    equal = postings(index, whole.text, whole.key).unique().with_columns(shared=pl.lit(1, pl.UInt32))
    by_words = postings(index, words.text, words.key).group_by("text", "entry").len("shared")
    met = postings(index, seeds.text, seeds.key).group_by("text", "entry").len()
    near = share_enough(index, forms, met.filter(pl.col("len") >= index.needs[met["entry"].to_numpy()]))
    parts = [equal.with_columns(kind=pl.lit(WHOLE), score=pl.lit(1.0))]
    for kind, part in ((CHAR_GRAMS, near), (WORD_GRAMS, by_words)):
        score = part["shared"] / np.maximum(index.sizes[part["entry"].to_numpy()].astype(np.int64), 1)
        part = part.with_columns(kind=pl.lit(kind), score=score.clip(upper_bound=1.0))
        parts.append(part.join(equal, on=["text", "entry"], how="anti"))
    return pl.concat([part.select(list(FOUND)).cast(FOUND) for part in parts]).sort("text", "entry")


def postings(index: Index, text: np.ndarray, keys: np.ndarray) -> pl.DataFrame:
    """Return text and entry of every gram that leads to an entry."""
    counts = np.diff(index.begins)
    known = pl.DataFrame({"key": np.repeat(index.keys, counts), "entry": index.entries.astype(np.int64)})
    return pl.DataFrame({"text": text, "key": keys}).join(known, on="key").select("text", "entry")


def share_enough(index: Index, forms: Forms, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return text, entry, shared of the candidates that share enough CHAR_GRAMS."""
    chars = forms.grams(CHAR_GRAMS)
    own = pl.DataFrame({"text": chars.text, "gram": chars.key}).unique()
    counts = np.diff(index.gram_begins)
    entries = pl.DataFrame({"entry": np.repeat(np.arange(len(counts)), counts), "gram": index.grams.astype(np.uint64)})
    both = candidates.join(entries, on="entry").join(own, on=["text", "gram"], how="semi").group_by("text", "entry").len("shared")
    both = both.join(own.group_by("text").len("distinct"), on="text", how="left")
    entry = both["entry"].to_numpy()
    both = both.with_columns(few=pl.Series(index.few[entry]), size=pl.Series(counts[entry]))
    least = pl.max_horizontal("size", pl.when("few").then("distinct").otherwise(0))
    return both.filter(pl.col("shared") * 10 >= least * SHARED_TENTHS).select("text", "entry", "shared")


class Grams(NamedTuple):
    """Grams of one kind, in order of texts and places."""

    text: np.ndarray  # (grams,) i64: number of the text
    key: np.ndarray  # (grams,) u64


class Forms:
    """Normalised forms (no nulls), and the running sum over their bytes that gives every gram's hash as a difference."""

    def __init__(self, forms: pl.Series) -> None:
        self.count = len(forms)
        self.measures = measures_of(forms)
        padded = pl.select(pl.concat_str([pl.lit(" "), forms.alias("form"), pl.lit(" ")])).to_series()
        data, starts = buffers_of(padded if len(forms) else forms)
        self.data, self.starts = data[starts[0] : starts[-1]], starts - starts[0]
        powers, self.back = (
            np.append(np.uint64(1), np.cumprod(np.full(len(self.data) + 1, base, dtype=np.uint64), dtype=np.uint64))
            for base in (BASE, INVERSE)
        )
        self.sums = np.zeros(len(self.data) + 1, dtype=np.uint64)
        np.cumsum(self.data * powers[1 : len(self.data) + 1], dtype=np.uint64, out=self.sums[1:])

    def grams(self, kind: int, of: np.ndarray | None = None) -> Grams:
        """Return the grams of one kind, of all forms or of those that `of` (texts,) bool marks."""
        of = np.ones(self.count, bool) if of is None else of
        dense = self.measures.spaceless == 1
        if kind == WHOLE:
            text = np.flatnonzero(of)
            return self._keys(kind, text, self.starts[text], self.starts[text + 1])
        if kind == WORD_GRAMS:
            space = self.data == ord(" ")
            begins, spaces = np.flatnonzero(space[:-1] & ~space[1:]) + 1, np.flatnonzero(space)
            at, unit = self._runs(begins, np.full(self.count, WORDS_WIDTH[0]), of & ~dense)
            last = begins[unit + WORDS_WIDTH[0] - 1]
            ends = spaces[np.searchsorted(spaces, last)] if len(at) else last
            of_words = self._keys(WORD_GRAMS, at, begins[unit], ends)
            of_chars = self._of_chars(WORD_GRAMS, np.full(self.count, WORDS_WIDTH[1]), of & dense)
            text, key = (np.concatenate(column) for column in zip(of_words, of_chars, strict=True))
            order = np.argsort(text, kind="stable")
            return Grams(text[order], key[order])
        width = np.asarray(CHARS_WIDTH if kind == CHAR_GRAMS else SEEDS_WIDTH)[self.measures.spaceless]
        return self._of_chars(kind, width, of)

    def _of_chars(self, kind: int, width: np.ndarray, of: np.ndarray) -> Grams:
        begins = np.flatnonzero(self.data & 0xC0 != 0x80)
        at, unit = self._runs(begins, width, of)
        if kind == SEED_GRAMS:
            chosen = (self.data[begins[unit]] == ord(" ")) | (self.measures.spaceless[at] == 1)
            at, unit = at[chosen], unit[chosen]
        begins = np.append(begins, len(self.data))  # a form ends where the next one begins
        return self._keys(kind, at, begins[unit], begins[unit + width[at]])

    def _runs(self, begins: np.ndarray, width: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (text, first unit) of every run of width[text] units of a marked text; units begin at the bytes `begins`."""
        text_of_byte = np.repeat(np.arange(self.count), np.diff(self.starts))
        units = np.bincount(text_of_byte[begins], minlength=self.count)
        counts = np.where(of, np.maximum(units - width + 1, 0), 0)
        text = np.repeat(np.arange(self.count), counts)
        return text, np.arange(len(text)) - (np.cumsum(counts) - counts)[text] + (np.cumsum(units) - units)[text]

    def _keys(self, kind: int, text: np.ndarray, first: np.ndarray, end: np.ndarray) -> Grams:
        hashes = (self.sums[end] - self.sums[first]) * self.back[first]
        keys = hashes ^ KIND_MARKS[kind, self.measures.spaceless[text]]
        if kind == CHAR_GRAMS:
            return Grams(text, keys >> np.uint64(32))
        keys = (keys ^ (keys >> np.uint64(32))) * np.uint64(MIX)
        keys = keys ^ (keys >> np.uint64(32))
        return Grams(text, (keys << np.uint64(4)) | (keys >> np.uint64(60)))
