"""The index of decontamination: every text of the evaluation sets, and their grams (`overlap_grams`).

A folder holds `texts-*.parquet`, one line per text of each set, and the arrays of `Index`, one entry per distinct form. They
are read through memory maps: processes that look texts up share what they touch. The grams of an entry:

    up to 24 words (39 characters in scripts without spaces)  its SEED_GRAMS, except those in more than COMMON entries, but
                                                              at least its RAREST; and its CHAR_GRAMS, to compare
    longer                                                    its WORD_GRAMS, except those in more than COMMON entries
    a corpus document that no query needs                     one in SAMPLE of its WORD_GRAMS; below 25 words only the whole

Of texts made of common words only, and of short questions, only the whole counts; trivial texts have no entry: see `trivial`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.overlap_grams import CHAR_GRAMS, LEAST_CHARS, LONG, SEED_GRAMS, WHOLE, WORD_GRAMS, measures_of
from curation.clean.overlap_texts import CORPUS, QUERY
from curation.clean.siblings import capitalised_words
from curation.core.store import atomic
from curation.core.tables import read_parquet, write_parquet
from curation.core.text import normalised

SHARED_TENTHS = 7  # tenths of a short text's CHAR_GRAMS that make a match
FEW = (8, 12)  # words, characters: a shorter text must also make up SHARED_TENTHS of the text it is found in
COMMON_WORD = 100  # a word is common if it is in more than one in so many texts ...
COMMON_FROM = 1000  # ... of at least so many
COMMON = 10  # a gram in more entries than this is boilerplate
RAREST = 4
TWO_FROM = 8  # seeds: a text with so many must share two, as most texts that share only one share little else
SAMPLE = 16
INDEXED_AT_A_TIME = 20_000  # texts at a time
KEYS_AT_A_TIME = 1 << 22
INDEX_RULES = (
    f"chars {SHARED_TENTHS}/10 {FEW}|words {LONG} {COMMON} {RAREST} {TWO_FROM} {SAMPLE}"
    f"|least {LEAST_CHARS} {COMMON_WORD} {COMMON_FROM}|6"
)


class Index(NamedTuple):
    """What texts are looked up in. Entries are numbered in order of first appearance of their forms, texts as they are stored."""

    sizes: np.ndarray  # (entries,) u32: grams it was indexed by
    few: np.ndarray  # (entries,) bool: shorter than FEW
    needs: np.ndarray  # (entries,) u8: how many SEED_GRAMS or WORD_GRAMS a text must share
    gram_begins: np.ndarray  # (entries + 1,) i64
    grams: np.ndarray  # u32: the distinct CHAR_GRAMS of entry i are grams[gram_begins[i]:gram_begins[i + 1]]; none of long texts
    keys: np.ndarray  # (keys,) u64, in order: grams of all kinds
    begins: np.ndarray  # (keys + 1,) u32
    entries: np.ndarray  # u32: key i leads to entries[begins[i]:begins[i + 1]]
    bits: np.ndarray  # u64: a filter with two bits per key in one word, at least 16 bits per key
    firsts: np.ndarray  # (2^n + 1,) u32: the keys that begin with the n bits b are keys[firsts[b]:firsts[b + 1]]
    text_begins: np.ndarray  # (entries + 1,) u32
    text_numbers: np.ndarray  # u32: the texts of entry i are text_numbers[text_begins[i]:text_begins[i + 1]]
    shard_starts: np.ndarray  # (shards + 1,) i64: the number of the first text of each `texts-*.parquet`


def write_index(folder: Path, sets: Iterable[pl.DataFrame], allowed: pl.Series) -> dict[str, int]:
    """Index batches of EVALUATION texts; `allowed` are normalised forms that never count as contaminated. Return counts."""
    from curation.clean.overlap_kernels import grams_of  # loads the compiled loops

    # 1. texts-*.parquet, and the distinct forms: the entries
    heads, starts = [], [0]
    for shard, block in enumerate(block for batch in sets for block in batch.iter_slices(INDEXED_AT_A_TIME)):
        made = block.with_columns(normalised(block["text"]).alias("form")).drop_nulls("form")
        short = pl.lit((made["role"] != CORPUS) & ~pl.Series(measures_of(made["form"]).long))  # only these need names
        asked = made.select(pl.when(short).then("text").otherwise(pl.lit("")))["text"]
        made = made.with_columns(capitalised_words(asked)).select("task", "eval_id", "role", "form", "names")
        write_parquet(folder / f"texts-{shard:05d}.parquet", made)
        key = pl.Series("key", grams_of(made["form"], WHOLE, np.zeros(len(made), bool))[1], dtype=pl.UInt64)
        heads.append(made.select("role", key, pl.lit(shard).alias("shard")).with_row_index("at"))
        starts.append(starts[-1] + len(made))
    if not heads:
        return {"texts": 0, "entries": 0, "low_information": 0, "allowed": 0}
    head = pl.concat(heads).with_row_index("number")
    entries = head.group_by("key", maintain_order=True).agg(pl.col("role").min(), pl.col("shard", "at").first(), pl.col("number"))

    # 2. Words in more than 1 / COMMON_WORD of the short texts, other than corpus documents that no query needs
    short_texts, counts = 0, pl.DataFrame(schema={"word": pl.String, "len": pl.UInt32})
    for frame in _entry_forms(folder, entries.filter(pl.col("role") != CORPUS)):
        forms = frame["form"].filter(pl.Series(~measures_of(frame["form"]).long))
        short_texts += len(forms)
        words = pl.DataFrame({"word": forms.str.split(" ").list.unique()}).explode("word", empty_as_null=False)
        counts = pl.concat([counts, words.group_by("word").len()]).group_by("word").agg(pl.col("len").sum())
    least = short_texts / COMMON_WORD if short_texts >= COMMON_FROM else float("inf")
    common = counts.filter(pl.col("len") > least)["word"]

    # 3. The grams of all entries that are neither allowed nor trivial
    parts, count, left_out, allowances = [], 0, 0, 0
    for frame in _entry_forms(folder, entries):
        allow, out = frame["form"].is_in(allowed.implode()), trivial(frame["form"], frame["role"] == QUERY)
        allowances, left_out = allowances + int(allow.sum()), left_out + int((out & ~allow).sum())
        frame = frame.filter(~allow & ~out)
        parts.append((frame.select("key", "number"), *_grams_of_entries(frame, common, count)))
        count += len(frame)
    if count:
        for name, array in _index_of(parts, np.array(starts))._asdict().items():
            with atomic(folder / f"{name}.npy") as file:
                np.save(file, array)
    return {"texts": starts[-1], "entries": count, "low_information": left_out, "allowed": allowances}


def _entry_forms(folder: Path, entries: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield key, role, form and the numbers of the texts of the entries, shard by shard."""
    for (shard,), part in entries.group_by("shard", maintain_order=True):
        forms = read_parquet(folder / f"texts-{shard:05d}.parquet", ["form"])["form"]
        yield part.select("key", "role", "number", forms.gather(part["at"]).alias("form"))


def trivial(forms: pl.Series, query: pl.Series) -> pl.Series:
    """Return which forms never match, not even as a whole: below LEAST_CHARS; of queries, only single words below it."""
    measures = measures_of(forms)
    return pl.Series(measures.tiny) & (~query | pl.Series(measures.units < 2, dtype=pl.Boolean))


def _grams_of_entries(frame: pl.DataFrame, common: pl.Series, first: int) -> tuple[np.ndarray, dict[int, pl.DataFrame]]:
    """Return which entries are shorter than FEW, and their grams by kind: text (u32, from `first` on) and gram, all distinct."""
    from curation.clean.overlap_kernels import grams_of  # loads the compiled loops

    measures, corpus = measures_of(frame["form"]), (frame["role"] == CORPUS).to_numpy()
    whole_only = measures.tiny
    if len(common):
        rare = frame["form"].str.split(" ").list.eval(~pl.element().is_in(common.implode())).list.any()
        whole_only = whole_only | ~rare.to_numpy()
    long, short = measures.long & ~whole_only, ~measures.long & ~corpus & ~whole_only
    found = {}
    for kind, of in ((CHAR_GRAMS, short), (SEED_GRAMS, short), (WORD_GRAMS, long)):
        at = np.flatnonzero(of)
        text, gram = grams_of(frame["form"].gather(at), kind, measures.spaceless[at] == 1)
        some = (gram < 2**64 // SAMPLE) | ~corpus[at][text]
        pairs = pl.DataFrame({"text": (at[text[some]] + first).astype(np.uint32), "gram": gram[some]})
        found[kind] = pairs.unique(maintain_order=True)
    return measures.units < np.asarray(FEW)[measures.spaceless], found


def _index_of(parts: list[tuple[pl.DataFrame, np.ndarray, dict[int, pl.DataFrame]]], shard_starts: np.ndarray) -> Index:
    """Return the index of entries, key and text numbers, and of their grams; boilerplate is left out."""
    entries = pl.concat([part for part, _, _ in parts])
    chars, seeds, words = (
        pl.concat([grams[kind] for _, _, grams in parts]).sort("gram", maintain_order=True)
        for kind in (CHAR_GRAMS, SEED_GRAMS, WORD_GRAMS)
    )
    words = words.filter(_run_lengths(words["gram"]) <= COMMON)
    chars = chars.sort("text", maintain_order=True)
    seeds = seeds.with_columns(_run_lengths(seeds["gram"]).alias("often"))
    seeds = seeds.sort("text", "often", "gram").with_columns(pl.int_range(pl.len()).over("text").alias("rank"))
    seeds = seeds.filter((pl.col("often") <= COMMON) | (pl.col("rank") < RAREST)).select("text", "gram")
    whole = entries.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("text"), pl.col("key").alias("gram"))
    postings = pl.concat([whole, words, seeds]).sort("gram", maintain_order=True)
    begins = _run_starts(postings["gram"].to_numpy())
    keys, leads = postings["gram"].to_numpy()[begins], postings["text"].to_numpy()
    count = len(entries)
    own = np.bincount(chars["text"].to_numpy(), minlength=count)
    others = np.bincount(leads, minlength=count) - 1  # of short entries: all keys except the whole
    bits, firsts = _table_of(keys)
    return Index(
        sizes=(own + np.bincount(words["text"].to_numpy(), minlength=count)).astype(np.uint32),
        few=np.concatenate([few for _, few, _ in parts]),
        needs=np.where((own > 0) & (others >= TWO_FROM), 2, 1).astype(np.uint8),
        gram_begins=np.append(0, np.cumsum(own)),
        grams=chars["gram"].to_numpy().astype(np.uint32),
        keys=keys,
        begins=np.append(begins, len(leads)).astype(np.uint32),
        entries=leads,
        bits=bits,
        firsts=firsts,
        text_begins=np.append(0, np.cumsum(entries["number"].list.len().to_numpy())).astype(np.uint32),
        text_numbers=entries["number"].explode().to_numpy().astype(np.uint32),
        shard_starts=shard_starts,
    )


def _run_starts(values: np.ndarray) -> np.ndarray:
    """Return where runs of equal values begin."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])


def _run_lengths(values: pl.Series) -> pl.Series:
    """Return for each value the length of its run of equal values."""
    starts = _run_starts(values.to_numpy())
    lengths = np.diff(np.append(starts, len(values)))
    return pl.Series(np.repeat(lengths, lengths), dtype=pl.Int64)


def _table_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `bits` and `firsts` of sorted distinct keys."""
    log = max(6, len(keys).bit_length())
    bits, counts = np.zeros(1 << (log - 2), np.uint64), np.zeros((1 << (log - 1)) + 1, np.uint32)
    one, low = np.uint64(1), np.uint64(63)
    for first in range(0, len(keys), KEYS_AT_A_TIME):
        some = keys[first : first + KEYS_AT_A_TIME]
        word, bucket = some >> np.uint64(66 - log), some >> np.uint64(65 - log)
        marks = (one << (some & low)) | (one << ((some >> np.uint64(6)) & low))
        starts = _run_starts(word)
        bits[word[starts]] |= np.bitwise_or.reduceat(marks, starts)
        starts = _run_starts(bucket)
        counts[bucket[starts] + one] += np.diff(np.append(starts, len(some))).astype(np.uint32)
    return bits, np.cumsum(counts, dtype=np.uint32)


def read_index(folder: Path) -> Index | None:
    """Open the arrays; None if the evaluation sets hold no text that could match."""
    paths = [folder / f"{name}.npy" for name in Index._fields]
    if not paths[0].exists():
        return None
    try:
        return Index(*(np.load(path, mmap_mode="r").view(np.ndarray) for path in paths))
    except OSError:  # this file system has no memory maps
        return Index(*map(np.load, paths))


def read_texts(folder: Path, index: Index, numbers: np.ndarray, columns: list[str]) -> pl.DataFrame:
    """Return columns of the texts with these numbers, in the given order; of each file that holds one, all rows are read."""
    wanted, place = np.unique(numbers, return_inverse=True)
    bounds = np.searchsorted(wanted, index.shard_starts)
    parts = [pl.DataFrame(schema=dict.fromkeys(columns)).clear()] if not len(wanted) else []
    for shard in np.flatnonzero(np.diff(bounds)):
        at = wanted[bounds[shard] : bounds[shard + 1]] - index.shard_starts[shard]
        parts.append(read_parquet(folder / f"texts-{shard:05d}.parquet", columns)[at])
    return pl.concat(parts)[place]
