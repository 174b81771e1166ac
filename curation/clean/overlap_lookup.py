"""Which texts occur in an evaluation set, looked up in the index by a compiled loop. There are three rules:

equal  the normalised forms are the same
chars  a short text: one of its SEED_GRAMS, or two if it has 8 or more, and seven tenths of its distinct CHAR_GRAMS are in the
       other text (and, below 8 words, seven tenths of the other text's CHAR_GRAMS are in it)
words  a long text: 13 consecutive words are in the other text
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl

from curation.clean import overlap_kernels
from curation.clean.overlap_grams import CHARS_WIDTH, WHOLE, WORDS_WIDTH, measures_of
from curation.clean.overlap_index import SHARED_TENTHS, Index
from curation.clean.signatures import prepare
from curation.core import characters
from curation.core.text import normalised

RULES = ("equal", "chars", "words")  # by kind of gram
FOUND = pl.Schema({"text": pl.Int64(), "entry": pl.Int64(), "kind": pl.Int64(), "score": pl.Float64()})
BLOCK_BYTES = 1 << 23  # of texts looked up at a time


def look_up(index: Index, texts: pl.Series) -> pl.DataFrame:
    """Return FOUND: the texts (no nulls, by number) that match an entry, in order of text and entry.

    `score` is the share of the entry's grams that the text has; 1 for equal forms.
    """
    ends = np.cumsum(texts.str.len_bytes().to_numpy().astype(np.int64))
    bounds = [0, *(np.flatnonzero(np.diff(ends // BLOCK_BYTES)) + 1).tolist(), len(texts)]

    def scan(first: int, end: int) -> np.ndarray:
        """Return (matches, 4) i64 of the texts from `first` to `end`: text, entry, kind, number of shared grams."""
        data, at = prepare(texts.slice(first, end - first)), 0
        hits, found = np.zeros(len(index.sizes), np.int64), []
        table = (index.bits, index.firsts, index.keys, index.begins, index.entries)
        entries = (index.gram_begins, index.grams, index.few, index.needs, SHARED_TENTHS)
        while at < end - first:  # the loop stops early if `part` is full
            part = np.empty((len(hits) + end - first, 4), np.int64)
            at, count = overlap_kernels.scan(*data, at, characters.folding_table(), table, *entries, hits, part)
            found.append(part[:count])
        return np.asarray(np.concatenate(found) + np.array([first, 0, 0, 0]))

    parts = [scan(first, end) for first, end in pairwise(bounds) if first < end]
    found = np.concatenate([np.zeros((0, 4), np.int64), *parts])
    table = pl.DataFrame(found, schema=["text", "entry", "kind", "shared"], orient="row")
    size = np.where(found[:, 2] == WHOLE, 1, index.sizes[found[:, 1]])
    score = pl.Series(np.minimum(found[:, 3] / np.maximum(size, 1), 1.0), dtype=pl.Float64)
    return table.with_columns(score.alias("score")).select(list(FOUND)).cast(FOUND).sort("text", "entry")


def spans_of(texts: pl.Series, entries: pl.Series, rules: pl.Series) -> pl.Series:
    """Return what each text shares with the form of an entry, from the first common gram to the last of that run."""
    spans = []
    for form, entry, rule, dense in zip(normalised(texts), entries, rules, measures_of(entries).spaceless.tolist(), strict=True):
        by_words = rule == "words" and not dense
        gap = " " if by_words else ""
        width = (WORDS_WIDTH if rule == "words" else CHARS_WIDTH)[dense]
        here, there = (one.split(" ") if by_words else list(f" {one} ") for one in (form, entry))
        known = {gap.join(there[at : at + width]) for at in range(len(there) - width + 1)}
        places = [at for at in range(len(here) - width + 1) if gap.join(here[at : at + width]) in known]
        if places:
            last = next(at for at in places if at + 1 not in places) if rule == "words" else places[-1]
            form = gap.join(here[places[0] : last + width]).strip()
        spans.append(form)
    return pl.Series(spans, dtype=pl.String)
