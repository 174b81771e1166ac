"""The index of decontamination: every text of the evaluation sets, and which grams give it away.

A folder: `texts-*.parquet` has a line for each text of each set, the arrays of `Index` an entry for each distinct form:

    up to 24 words (39 characters where spaces are rare)  its SEEDS, but for those in more than COMMON entries; at
                                                          least its RAREST. Its CHARS are kept to compare
    longer                                                its WORDS, but for those that stand in more than COMMON entries
    in a corpus, and no query needs it                    one in SAMPLE of its WORDS; below 25 words nothing but the whole

Of texts of common words alone, and of short questions, only the whole counts; trivial ones are no entry at all: see `trivial`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.overlap_grams import LONG, Forms, Measures, measures_of
from curation.clean.overlap_texts import CORPUS, QUERY
from curation.clean.siblings import names_of
from curation.core.store import atomic
from curation.core.tables import read_parquet, write_parquet
from curation.core.text import normalised

SHARE = 7  # tenths of a short text's CHARS that make a match
FEW = (8, 12)  # words, characters: a shorter text must also fill SHARE of what it is found in
LEAST_CHARS = (12, 5)  # characters, of texts with and without spaces: shorter ones say too little
COMMON_WORD = 100  # a word in more than one of so many texts says little, if there are
MANY = 1000  # texts at least
COMMON = 10  # entries that share a gram before it counts as boilerplate
RAREST = 4
TWO = 8  # seeds: of so many, two must be met, as most texts that have one alone have no more
SAMPLE = 16
BLOCK = 20_000  # texts at a time
RULES = f"chars {SHARE}/10 {FEW}|words {LONG} {COMMON} {RAREST} {TWO} {SAMPLE}|least {LEAST_CHARS} {COMMON_WORD} {MANY}|5"


class Index(NamedTuple):
    """What texts are looked up in. Entries are numbered as their forms first appear."""

    entry_keys: np.ndarray  # (entries,) u64: the key of the whole form, which `texts` has too
    sizes: np.ndarray  # (entries,) i64: grams it was indexed by
    few: np.ndarray  # (entries,) bool
    gram_begins: np.ndarray  # (entries + 1,) i64
    grams: np.ndarray  # u32: the distinct CHARS of entry i are grams[gram_begins[i]:gram_begins[i + 1]]; none of long ones
    keys: np.ndarray  # (keys,) u64, in order: grams of all kinds
    begins: np.ndarray  # (keys + 1,) i64
    entries: np.ndarray  # i64: key i leads to entries[begins[i]:begins[i + 1]]


def write_index(folder: Path, sets: Iterable[pl.DataFrame], allowed: pl.Series) -> dict[str, int]:
    """Index batches of EVALUATION texts; `allowed` are normalised forms that never count as contaminated. Returns counts."""
    heads, texts, shard = [], 0, -1
    for shard, block in enumerate(block for batch in sets for block in batch.iter_slices(BLOCK)):
        forms = normalised(block["text"])
        made = block.with_columns(forms.alias("form")).drop_nulls("form")
        short = pl.lit((made["role"] != CORPUS) & ~_long(made["form"]))  # of the others no names are needed
        asked = made.select(pl.when(short).then("text").otherwise(pl.lit("")))["text"]
        made = made.with_columns(names_of(asked)).select("task", "eval_id", "role", "form", "names")
        made = made.with_columns(pl.Series("key", Forms(made["form"]).whole(), dtype=pl.UInt64))
        write_parquet(folder / f"texts-{shard:05d}.parquet", made)
        heads.append(made.select("key", "role", pl.lit(shard).alias("shard")).with_row_index("at"))
        texts += len(made)
    if shard < 0:
        return {"texts": 0, "entries": 0, "low_information": 0, "allowed": 0}
    entries = pl.concat(heads).group_by("key", maintain_order=True).agg(pl.col("role").min(), pl.col("shard", "at").first())
    common = _common_words(folder, entries)
    parts, left_out, allowances = [], 0, 0
    for frame in _forms(folder, entries):
        allow, out = frame["form"].is_in(allowed.implode()), trivial(frame["form"], frame["role"] == QUERY)
        allowances, left_out = allowances + int(allow.sum()), left_out + int((out & ~allow).sum())
        parts.append(_grams(frame.filter(~allow & ~out), common))
    index = _joined(parts)
    for name, array in index._asdict().items() if len(index.keys) else ():
        with atomic(folder / f"{name}.npy") as file:
            np.save(file, array)
    return {"texts": texts, "entries": len(index.entry_keys), "low_information": left_out, "allowed": allowances}


def _forms(folder: Path, entries: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield key, role and form of the entries, shard by shard."""
    for (shard,), part in entries.group_by("shard", maintain_order=True):
        forms = read_parquet(folder / f"texts-{shard:05d}.parquet", ["form"])["form"]
        yield part.select("key", "role", forms.gather(part["at"]).alias("form"))


def _common_words(folder: Path, entries: pl.DataFrame) -> pl.Series:
    """Return the words in more than 1 / COMMON_WORD of the short texts that are no mere corpus."""
    texts, counts = 0, [pl.DataFrame(schema={"word": pl.String, "len": pl.UInt32})]
    for frame in _forms(folder, entries.filter(pl.col("role") != CORPUS)):
        short = frame.filter(~_long(frame["form"]))["form"]
        texts += len(short)
        words = pl.DataFrame({"word": short.str.split(" ").list.unique()}).explode("word", empty_as_null=False)
        counts = [pl.concat([*counts, words.group_by("word").len()]).group_by("word").agg(pl.col("len").sum())]
    least = texts / COMMON_WORD if texts >= MANY else float("inf")
    return counts[0].filter(pl.col("len") > least)["word"]


def trivial(forms: pl.Series, query: pl.Series) -> pl.Series:
    """Tell which forms never match, even as a whole: under LEAST_CHARS; of queries, only those of a single such word."""
    measures = measures_of(forms)
    return _short(measures) & (~query | pl.Series(measures.units < 2, dtype=pl.Boolean))


def low(forms: pl.Series, common: pl.Series) -> pl.Series:
    """Tell which forms say too little for a part of them to match: under LEAST_CHARS, or of common words alone."""
    short = _short(measures_of(forms))
    if not len(common):
        return short
    rare = forms.str.split(" ").list.eval(~pl.element().is_in(common.implode())).list.any()
    return short | ~rare


def _short(measures: Measures) -> pl.Series:
    return pl.Series(measures.chars < np.asarray(LEAST_CHARS)[measures.spaceless], dtype=pl.Boolean)


def _long(forms: pl.Series) -> pl.Series:
    measures = measures_of(forms)
    return pl.Series(measures.units >= np.asarray(LONG)[measures.spaceless], dtype=pl.Boolean)


def _grams(frame: pl.DataFrame, common: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (entries: key, few; their grams: text, key, kind), one line a distinct gram."""
    forms = Forms(frame["form"])
    measures, corpus = forms.measures, (frame["role"] == CORPUS).to_numpy()
    long = measures.units >= np.asarray(LONG)[measures.spaceless]
    whole = low(frame["form"], common).to_numpy()  # of these, only that
    long, short = long & ~whole, ~long & ~corpus & ~whole
    made_of = (("chars", forms.chars(short)), ("seeds", forms.seeds(short)), ("words", forms.words(long)))
    grams = pl.concat(
        [pl.DataFrame({"text": made.text, "gram": made.key}).with_columns(pl.lit(kind).alias("kind")).unique(maintain_order=True)
         for kind, made in made_of]
    )  # fmt: skip
    sampled = (pl.col("gram") < 2**64 // SAMPLE) | ~pl.lit(pl.Series(corpus[grams["text"].to_numpy()], dtype=pl.Boolean))
    few = measures.units < np.asarray(FEW)[measures.spaceless]
    return frame.select("key", pl.Series("few", few)), grams.filter(sampled)


def _joined(parts: list[tuple[pl.DataFrame, pl.DataFrame]]) -> Index:
    firsts = np.cumsum([0, *(len(entries) for entries, _ in parts)])
    entries = pl.concat([part for part, _ in parts])
    grams = pl.concat([part.with_columns(pl.col("text") + int(first)) for (_, part), first in zip(parts, firsts, strict=False)])
    words = grams.filter(pl.col("kind") == "words").filter(pl.len().over("gram") <= COMMON)
    chars = grams.filter(pl.col("kind") == "chars").sort("text", "gram")
    seeds = grams.filter(pl.col("kind") == "seeds").with_columns(pl.len().over("gram").alias("often"))
    seeds = seeds.sort("text", "often", "gram").with_columns(pl.int_range(pl.len()).over("text").alias("rank"))
    seeds = seeds.filter((pl.col("often") <= COMMON) | (pl.col("rank") < RAREST))
    whole = entries.select(pl.int_range(pl.len()).alias("text"), pl.col("key").alias("gram"))
    postings = pl.concat([whole, words.select("text", "gram"), seeds.select("text", "gram")]).sort("gram", "text")
    keys = postings.group_by("gram", maintain_order=True).len()
    count = len(entries)
    sizes = np.bincount(np.concatenate([chars["text"].to_numpy(), words["text"].to_numpy()]), minlength=count)
    own = np.bincount(chars["text"].to_numpy(), minlength=count)
    return Index(
        entries["key"].to_numpy(),
        sizes,
        entries["few"].to_numpy(),
        np.append(0, np.cumsum(own)),
        chars["gram"].to_numpy().astype(np.uint32),
        keys["gram"].to_numpy(),
        np.append(0, np.cumsum(keys["len"].to_numpy())).astype(np.int64),
        postings["text"].to_numpy().astype(np.int64),
    )


def read_index(folder: Path) -> Index | None:
    """Read the arrays back; None where the evaluation sets hold no text that could match."""
    if not (folder / "keys.npy").exists():
        return None
    return Index(*(np.load(folder / f"{name}.npy") for name in Index._fields))
