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

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.overlap_grams import CHAR_GRAMS, LEAST_CHARS, LONG, SEED_GRAMS, WHOLE, WORD_GRAMS, measures_of
from curation.clean.overlap_texts import CORPUS, QUERY
from curation.clean.siblings import capitalised_words
from curation.core.errors import BuildError
from curation.core.tables import read_parquet, write_parquet
from curation.core.text import normalised
from curation.core.texts import mapped

SHARED_TENTHS = 7  # tenths of a short text's CHAR_GRAMS that make a match
FEW = (8, 12)  # words, characters: a shorter text must also make up SHARED_TENTHS of the text it is found in
COMMON_WORD = 100  # a word is common if it is in more than one in so many texts ...
COMMON_FROM = 1000  # ... of at least so many
COMMON = 10  # a gram in more entries than this is boilerplate
RAREST = 4
TWO_FROM = 8  # seeds: a text with so many must share two, as most texts that share only one share little else
SAMPLE = 16  # of so many WORD_GRAMS of a corpus document one, whose key ends with zeros
INDEXED_AT_A_TIME = 20_000  # texts at a time
KEYS_AT_A_TIME = 1 << 22  # keys sorted at a time
INDEX_RULES = (
    f"chars {SHARED_TENTHS}/10 {FEW}|words {LONG} {COMMON} {RAREST} {TWO_FROM} {SAMPLE}"
    f"|least {LEAST_CHARS} {COMMON_WORD} {COMMON_FROM}|7"
)


TEXT_COLUMNS = pl.Schema(  # of `texts-*.parquet`
    {"task": pl.String(), "eval_id": pl.String(), "role": pl.UInt8(), "form": pl.String(), "names": pl.List(pl.String())}
)


class Index(NamedTuple):
    """What texts are looked up in. Entries are numbered in order of first appearance of their forms, texts as they are stored."""

    sizes: np.ndarray  # (entries,) u32: grams it was indexed by
    few: np.ndarray  # (entries,) bool: shorter than FEW
    needs: np.ndarray  # (entries,) u8: how many SEED_GRAMS or WORD_GRAMS a text must share
    gram_begins: np.ndarray  # (entries + 1,) u32
    grams: np.ndarray  # u32: the distinct CHAR_GRAMS of entry i are grams[gram_begins[i]:gram_begins[i + 1]]; none of long texts
    keys: np.ndarray  # (keys,) u64, in order: grams of all kinds
    begins: np.ndarray  # (keys + 1,) u32
    entries: np.ndarray  # u32: key i leads to entries[begins[i]:begins[i + 1]]
    bits: np.ndarray  # u64: a filter with two bits per key in one word, at least 16 bits per key
    firsts: np.ndarray  # (2^n + 1,) u32: the keys that begin with the n bits b are keys[firsts[b]:firsts[b + 1]]
    text_begins: np.ndarray  # (entries + 1,) u32
    text_numbers: np.ndarray  # u32: the texts of entry i are text_numbers[text_begins[i]:text_begins[i + 1]]
    shard_starts: np.ndarray  # (shards + 1,) u32: the number of the first text of each `texts-*.parquet`


ARRAY_TYPES = {"few": np.bool_, "needs": np.uint8, "keys": np.uint64, "bits": np.uint64}  # of the arrays' numbers; else u32


def write_index(folder: Path, sets: Iterable[pl.DataFrame], allowed: pl.Series) -> dict[str, int]:
    """Index batches of EVALUATION texts; `allowed` are normalised forms that never count as contaminated. Return counts."""
    from curation.clean.overlap_kernels import grams_of  # loads the compiled loops

    # 1. texts-*.parquet, and the distinct forms: the entries
    heads, starts = [], [0]
    for shard, block in enumerate(block for batch in sets for block in batch.iter_slices(INDEXED_AT_A_TIME)):
        made = block.with_columns(normalised(block["text"]).alias("form")).drop_nulls("form")
        short = pl.lit((made["role"] != CORPUS) & ~pl.Series(measures_of(made["form"]).long))  # only these need names
        asked = made.select(pl.when(short).then("text").otherwise(pl.lit("")))["text"]
        made = made.with_columns(capitalised_words(asked)).select(TEXT_COLUMNS.names())
        write_parquet(folder / f"texts-{shard:05d}.parquet", made)
        key = pl.Series("key", grams_of(made["form"], WHOLE, np.zeros(len(made), bool))[1], dtype=pl.UInt64)
        heads.append(made.select("role", key, pl.lit(shard).alias("shard")).with_row_index("at"))
        starts.append(starts[-1] + len(made))
    if not heads:
        return {"texts": 0, "entries": 0, "low_information": 0, "allowed": 0}
    head = pl.concat(heads).with_row_index("number")
    heads.clear()
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
    kept, grams, left_out, allowances = [], list[dict[int, pl.DataFrame]](), 0, 0
    with ExitStack() as closing:
        files = {
            name: closing.enter_context((folder / f"{name}.{np.dtype(ARRAY_TYPES.get(name, np.uint32)).str[1:]}").open("wb"))
            for name in Index._fields
        }

        def append(**arrays: np.ndarray) -> None:
            for name, values in arrays.items():
                files[name].write(np.ascontiguousarray(values, ARRAY_TYPES.get(name, np.uint32)).data)

        count = 0
        for frame in _entry_forms(folder, entries):
            allow, out = frame["form"].is_in(allowed.implode()), trivial(frame["form"], frame["role"] == QUERY)
            allowances, left_out = allowances + int(allow.sum()), left_out + int((out & ~allow).sum())
            frame = frame.filter(~allow & ~out)
            kept.append(frame.select("key", "number"))
            few, found = _grams_of_entries(frame, common, count)
            append(few=few)
            grams.append(found)
            count += len(frame)
        if count:
            append(shard_starts=np.array(starts))
            _append_index(append, pl.concat(kept), grams)
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
        some = (gram % SAMPLE == 0) | ~corpus[at][text]
        pairs = pl.DataFrame({"text": (at[text[some]] + first).astype(np.uint32), "gram": gram[some]})
        found[kind] = pairs.unique(maintain_order=True)
    return measures.units < np.asarray(FEW)[measures.spaceless], found


def _append_index(append: Callable[..., None], entries: pl.DataFrame, grams: list[dict[int, pl.DataFrame]]) -> None:
    """Append the arrays of entries, key and text numbers, and of their grams; boilerplate is left out."""
    chars, seeds, words = (pl.concat([made.pop(kind) for made in grams]) for kind in (CHAR_GRAMS, SEED_GRAMS, WORD_GRAMS))
    chars = chars.sort("text", "gram")
    seeds = seeds.with_columns(pl.len().over("gram").alias("often"))
    seeds = seeds.sort("text", "often", "gram").with_columns(pl.int_range(pl.len()).over("text").alias("rank"))
    seeds = seeds.filter((pl.col("often") <= COMMON) | (pl.col("rank") < RAREST)).select("text", "gram")
    whole = entries.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("text"), pl.col("key").alias("gram"))
    count = len(entries)
    own, sizes = (np.bincount(chars["text"].to_numpy(), minlength=count) for _ in range(2))
    append(grams=chars["gram"].to_numpy(), gram_begins=np.append(0, np.cumsum(own)))
    seed_counts = np.bincount(seeds["text"].to_numpy(), minlength=count)
    append(needs=np.where((own > 0) & (seed_counts >= TWO_FROM), 2, 1))
    append(text_begins=np.append(0, np.cumsum(entries["number"].list.len().to_numpy())))
    append(text_numbers=entries["number"].explode().to_numpy())

    # the keys in order, a range at a time: they are hashes, so each range has about as many
    log = max(6, (len(whole) + len(seeds) + len(words)).bit_length())
    bits, counts, leads = np.zeros(1 << (log - 2), np.uint64), np.zeros((1 << (log - 1)) + 1, np.uint32), 0
    one, low = np.uint64(1), np.uint64(63)
    parts = 1 << max(0, log - KEYS_AT_A_TIME.bit_length())
    for part in range(parts):
        within = pl.col("gram") // (2**64 // parts) == part if parts > 1 else pl.lit(True)
        some = words.filter(within).sort("gram", maintain_order=True)
        runs = _run_starts(some["gram"].to_numpy())
        lengths = np.diff(np.append(runs, len(some)))
        some = some.filter(pl.Series(np.repeat(lengths <= COMMON, lengths), dtype=pl.Boolean))
        sizes += np.bincount(some["text"].to_numpy(), minlength=count)
        some = pl.concat([whole.filter(within), some, seeds.filter(within)]).sort("gram", maintain_order=True)
        runs = _run_starts(some["gram"].to_numpy())
        keys = some["gram"].to_numpy()[runs]
        append(keys=keys, begins=leads + runs, entries=some["text"].to_numpy())
        leads += len(some)
        word, bucket = keys >> np.uint64(66 - log), keys >> np.uint64(65 - log)
        marks = (one << ((keys >> np.uint64(6)) & low)) | (one << ((keys >> np.uint64(12)) & low))
        runs = _run_starts(word)
        bits[word[runs]] |= np.bitwise_or.reduceat(marks, runs) if len(runs) else marks
        runs = _run_starts(bucket)
        counts[bucket[runs] + one] += np.diff(np.append(runs, len(keys))).astype(np.uint32)
    append(begins=np.array([leads]), sizes=sizes, bits=bits, firsts=np.cumsum(counts))


def _run_starts(values: np.ndarray) -> np.ndarray:
    """Return where runs of equal values begin."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])


def read_index(folder: Path) -> Index | None:
    """Open the arrays; None if the evaluation sets hold no text that could match.

    Raises:
        BuildError: a file is missing, or is not as long as the others imply.
    """
    kinds = {name: np.dtype(ARRAY_TYPES.get(name, np.uint32)) for name in Index._fields}
    paths = {name: folder / f"{name}.{kind.str[1:]}" for name, kind in kinds.items()}
    missing = [path for path in paths.values() if not path.exists()]
    if len(missing) == len(paths):
        return None
    if not missing:
        index = Index(*(mapped(paths[name], kind) for name, kind in kinds.items()))
        if not len(index.sizes):
            return None
        count = len(index.sizes)
        lengths = {
            "few": count,
            "needs": count,
            "gram_begins": count + 1,
            "text_begins": count + 1,
            "begins": len(index.keys) + 1,
        }
        ends = {"grams": "gram_begins", "entries": "begins", "text_numbers": "text_begins"}
        lengths |= {name: int(getattr(index, begins)[-1]) for name, begins in ends.items() if len(getattr(index, begins))}
        lengths["firsts"] = 2 * len(index.bits) + 1
        missing = [paths[name] for name, length in lengths.items() if len(getattr(index, name)) != length]
        if not missing:
            return index
    what = "was changed since it was written"
    raise BuildError(missing[0], what, f"delete {folder} and run the command again to rebuild it")


def read_texts(folder: Path, index: Index, numbers: np.ndarray, columns: list[str]) -> pl.DataFrame:
    """Return columns of the texts with these numbers, in the given order; of each file that holds one, all rows are read."""
    wanted, place = np.unique(numbers, return_inverse=True)
    bounds = np.searchsorted(wanted, index.shard_starts)
    parts = [] if len(wanted) else [pl.DataFrame(schema=TEXT_COLUMNS).select(columns)]
    for shard in np.flatnonzero(np.diff(bounds)):
        at = wanted[bounds[shard] : bounds[shard + 1]] - index.shard_starts[shard]
        parts.append(read_parquet(folder / f"texts-{shard:05d}.parquet", columns)[at])
    return pl.concat(parts)[place]
