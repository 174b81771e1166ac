"""Which texts stand in an evaluation set: looked up by the compiled loop, or by numpy and polars with the same result.

equal  the normalised forms are the same
chars  a short text: one of its SEEDS, or two where it has 8 or more, and seven tenths of its distinct CHARS are in the other
       text (and, below 8 words, seven tenths of the other's in it)
words  a long text: 13 words in a row are in the other text
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.overlap_grams import CHARS, CHARS_WIDTH, WHOLE, WORDS, WORDS_WIDTH, Forms, measures_of
from curation.clean.overlap_index import SHARE, TWO, Index
from curation.clean.signatures import prepare, threads
from curation.core import characters
from curation.core.text import normalised

overlap_kernels: ModuleType | None
try:
    from curation.clean import overlap_kernels
except (ImportError, RuntimeError):  # no numba, or no folder in which it could keep what it compiled
    overlap_kernels = None

RULES = ("equal", "chars", "words")  # by kind of gram
FOUND = pl.Schema({"text": pl.Int64(), "entry": pl.Int64(), "kind": pl.Int64(), "score": pl.Float64()})
BLOCK_BYTES = 1 << 23  # of texts looked up at a time
NUMPY_BYTES = 1 << 20


class Lookup(NamedTuple):
    """An index, ready for the compiled loop."""

    arrays: Index
    needs: np.ndarray  # (entries,) u8: how many SEEDS or WORDS a text must have
    table: tuple[np.ndarray, ...]  # bits, slots


def ready(index: Index) -> Lookup:
    """Make the table of an index."""
    seeds = np.bincount(index.entries, minlength=len(index.entry_keys)) - 1  # of short entries: all keys but the whole
    needs = np.where((np.diff(index.gram_begins) > 0) & (seeds >= TWO), 2, 1).astype(np.uint8)
    if not overlap_kernels:
        return Lookup(index, needs, ())
    log = max(6, len(index.keys).bit_length())  # 16 bits and two slots a key, or more
    return Lookup(index, needs, overlap_kernels.fill(index.keys, index.begins, log - 2, log + 1))


def look_up(lookup: Lookup, texts: pl.Series) -> pl.DataFrame:
    """Return FOUND: the texts (no nulls, by their number) that match an entry, in order of text and entry.

    `score` is the share of the entry's grams that the text has; 1 for equal forms.
    """
    blocks = list(_blocks(texts, BLOCK_BYTES if overlap_kernels else NUMPY_BYTES))
    with ThreadPoolExecutor(threads()) as pool:
        parts = list(pool.map(lambda block: _scan(lookup, texts, *block), blocks))
    found = np.concatenate([np.zeros((0, 4), np.int64), *parts])
    table = pl.DataFrame(found, schema=["text", "entry", "kind", "shared"], orient="row")
    size = np.where(found[:, 2] == WHOLE, 1, lookup.arrays.sizes[found[:, 1]])
    score = pl.Series(np.minimum(found[:, 3] / np.maximum(size, 1), 1.0), dtype=pl.Float64)
    return table.with_columns(score.alias("score")).select(list(FOUND)).cast(FOUND).sort("text", "entry")


def _blocks(texts: pl.Series, size: int) -> Iterator[tuple[int, int]]:
    """Cut texts into runs of about `size` bytes."""
    ends = np.cumsum(texts.str.len_bytes().to_numpy().astype(np.int64))
    cuts = np.flatnonzero(np.diff(ends // size)) + 1
    bounds = [0, *cuts.tolist(), len(texts)]
    yield from ((first, end) for first, end in pairwise(bounds) if first < end)


def _scan(lookup: Lookup, texts: pl.Series, first: int, end: int) -> np.ndarray:
    """Return (matches, 4) i64: text, entry, kind, grams shared."""
    block = texts.slice(first, end - first)
    found = _scan_compiled(lookup, block) if overlap_kernels else _scan_numpy(lookup, block)
    return np.asarray(found + np.array([first, 0, 0, 0]))


def _scan_compiled(lookup: Lookup, texts: pl.Series) -> np.ndarray:
    """Return matches as of `_scan`."""
    assert overlap_kernels
    index, data, at = lookup.arrays, prepare(texts), 0
    hits, found = np.zeros(len(index.entry_keys), np.int64), []
    entries = (index.entries, index.gram_begins, index.grams, index.few, lookup.needs)
    while at < len(texts):
        part = np.empty((len(hits) + len(texts), 4), np.int64)
        at, count = overlap_kernels.scan(*data, at, characters.folding_table(), *lookup.table, *entries, SHARE, hits, part)
        found.append(part[:count])
    return np.concatenate(found)


def _scan_numpy(lookup: Lookup, texts: pl.Series) -> np.ndarray:
    index = lookup.arrays
    forms = Forms(normalised(texts).fill_null(""))
    everything = np.ones(len(texts), dtype=bool)
    words_of = np.flatnonzero(np.diff(forms.starts) > 2)  # a form without any word matches nothing
    equal = _postings(index, words_of, forms.whole()[words_of]).unique()
    seeds, words = forms.seeds(everything), forms.words(everything)
    hits = _postings(index, words.text, words.key).group_by("text", "entry").len("shared")
    met = _postings(index, seeds.text, seeds.key).group_by("text", "entry").len()
    near = _near(index, forms, met.filter(pl.col("len") >= lookup.needs[met["entry"].to_numpy()]))
    parts = [
        equal.with_columns(pl.lit(WHOLE).alias("kind"), pl.lit(1).alias("shared")),
        *(
            part.join(equal, on=["text", "entry"], how="anti").with_columns(pl.lit(kind).alias("kind"))
            for kind, part in ((CHARS, near), (WORDS, hits))
        ),
    ]
    columns = [pl.col(name).cast(pl.Int64) for name in ("text", "entry", "kind", "shared")]
    return np.asarray(pl.concat([part.select(columns) for part in parts]).to_numpy().reshape(-1, 4))


def _postings(index: Index, text: np.ndarray, keys: np.ndarray) -> pl.DataFrame:
    """Return text, entry for every gram that leads to one."""
    place = np.minimum(np.searchsorted(index.keys, keys), len(index.keys) - 1)
    there = index.keys[place] == keys
    place, text = place[there], text[there]
    counts = index.begins[place + 1] - index.begins[place]
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return pl.DataFrame(
        {"text": np.repeat(text, counts), "entry": index.entries[np.repeat(index.begins[place], counts) + inside]}
    )


def _near(index: Index, forms: Forms, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return text, entry, shared of the candidates that share enough CHARS."""
    chars = forms.chars(np.isin(np.arange(forms.count), candidates["text"].to_numpy()))
    own = pl.DataFrame({"text": chars.text, "gram": chars.key}).unique()
    counts = np.diff(index.gram_begins)[candidates["entry"].to_numpy()]
    at = np.repeat(index.gram_begins[candidates["entry"].to_numpy()], counts)
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = pl.DataFrame(
        {
            "text": np.repeat(candidates["text"].to_numpy(), counts),
            "entry": np.repeat(candidates["entry"].to_numpy(), counts),
            "gram": index.grams[at + inside].astype(np.uint64),
        }
    )
    both = wanted.join(own, on=["text", "gram"], how="semi").group_by("text", "entry").len("shared")
    both = both.join(own.group_by("text").len("distinct"), on="text", how="left")
    entry = both["entry"].to_numpy()
    few, size = pl.Series("few", index.few[entry]), pl.Series("size", np.diff(index.gram_begins)[entry])
    least = pl.max_horizontal("size", pl.when("few").then("distinct").otherwise(0))
    return both.with_columns(few, size).filter(pl.col("shared") * 10 >= least * SHARE).select("text", "entry", "shared")


def span_of(text: str, entry: str, kind: int) -> str:
    """Return what a text shares with the form of an entry, from the first common gram to the last of that run."""
    if kind == WHOLE:
        return text
    form = str(normalised(pl.Series([text]))[0])
    dense = int(measures_of(pl.Series([entry])).spaceless[0])
    by_words = kind == WORDS and not dense
    gap = " " if by_words else ""
    width = (WORDS_WIDTH if kind == WORDS else CHARS_WIDTH)[dense]
    here, there = (one.split(" ") if by_words else list(f" {one} ") for one in (form, entry))
    known = {gap.join(there[at : at + width]) for at in range(len(there) - width + 1)}
    places = [at for at in range(len(here) - width + 1) if gap.join(here[at : at + width]) in known]
    if not places:
        return form
    last = places[-1]
    if kind == WORDS:
        last = next(at for at in places if at + 1 not in places)
    return gap.join(here[places[0] : last + width]).strip()
