"""The index of decontamination: every text of the evaluation sets, and their grams (`overlap_grams`).

A folder holds `texts-*.parquet`, one line per text of each set, and the arrays of `Index`, one entry per distinct form. They
are read through memory maps: processes that look texts up share what they touch. The grams of an entry:

    up to 24 words (39 characters in scripts without spaces)  its SEED_GRAMS, except those in more than COMMON entries, but
                                                              at least its RAREST; and its CHAR_GRAMS, to compare
    longer                                                    its WORD_GRAMS, except those in more than COMMON entries
    a corpus document that no query needs                     one in SAMPLE of its WORD_GRAMS; below 25 words only the whole

Of texts made of common words only, and of short questions, only the whole counts; texts below LEAST_CHARS have no
entry, and of queries single words below it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import polars as pl

from curation.clean.overlap_grams import CHAR_GRAMS, LEAST_CHARS, LONG, SEED_GRAMS, WHOLE, WORD_GRAMS, measures_of
from curation.clean.overlap_texts import CORPUS, QUERY
from curation.clean.siblings import capitalised_words
from curation.core.errors import BuildError
from curation.core.tables import read_parquet, write_parquet
from curation.core.text import normalised
from curation.core.texts import mapped
from curation.engine.local import Here
from curation.engine.parts import in_order
from curation.engine.pool import Workers

SHARED_TENTHS = 7  # tenths of a short text's CHAR_GRAMS that make a match
FEW = (8, 12)  # words, characters: a shorter text must also make up SHARED_TENTHS of the text it is found in
COMMON_WORD = 100  # a word is common if it is in more than one in so many texts ...
COMMON_FROM = 1000  # ... of at least so many
COMMON = 10  # a gram in more entries than this is boilerplate
RAREST = 4
TWO_FROM = 8  # seeds: a text with so many must share two, as most texts that share only one share little else
SAMPLE = 16  # of so many WORD_GRAMS of a corpus document one, whose key ends with zeros
INDEXED_AT_A_TIME = 20_000  # texts at a time
KEYS_AT_A_TIME = 1 << 20  # keys sorted at a time
RANGES = 256  # of keys, by their first bits: the fewest that are sorted at a time
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


PAIR = np.dtype([("gram", np.uint64), ("text", np.uint32)])


class _Entries(NamedTuple):
    """The distinct forms, in order of first appearance, and the texts that have them."""

    keys: np.ndarray  # (entries,) u64
    roles: np.ndarray  # (entries,) u8: the lowest of their texts
    firsts: np.ndarray  # (entries,) u32: the number of the first text
    begins: np.ndarray  # (entries + 1,) i64
    texts: np.ndarray  # u32: the texts of entry i are texts[begins[i]:begins[i + 1]], ascending


class _Pairs:
    """Pairs of an entry and a key, or gram, on the disk: in the order in which they came, apart by the first bits of the keys."""

    def __init__(self, file: IO[bytes]) -> None:
        """Take an empty file, open to write and read."""
        self.file = file
        self.blocks: list[np.ndarray] = []  # (RANGES + 1,) i64: where the pairs of each range begin, for those added at once
        self.count = 0

    def add(self, entries: np.ndarray, keys: np.ndarray) -> None:
        """Add pairs, (n,) u32 and (n,) u64."""
        ranges = (keys >> np.uint64(64 - RANGES.bit_length() + 1)).astype(np.uint8)
        order = np.argsort(ranges, kind="stable")
        pairs = np.empty(len(keys), PAIR)
        pairs["gram"], pairs["text"] = keys[order], entries[order]
        self.file.seek(0, 2)
        self.file.write(pairs.data)
        self.blocks.append(self.count + np.append(0, np.cumsum(np.bincount(ranges, minlength=RANGES))))
        self.count += len(keys)

    def read(self, first: int, end: int) -> pl.DataFrame:
        """Return the pairs of ranges `first` to `end`: text and gram; those with one gram are in the order in which they came."""
        parts = []
        for bounds in self.blocks:
            self.file.seek(int(bounds[first]) * PAIR.itemsize)
            parts.append(self.file.read(int(bounds[end] - bounds[first]) * PAIR.itemsize))
        found = np.frombuffer(b"".join(parts), PAIR)
        return pl.DataFrame({name: np.ascontiguousarray(found[name]) for name in ("text", "gram")})


class _Shard(NamedTuple):
    """The wanted entries whose first texts are in one `texts-*.parquet`."""

    path: Path
    keys: np.ndarray  # (n,) u64
    roles: np.ndarray  # (n,) u8
    places: np.ndarray  # (n,) of the texts in the file

    def frame(self) -> pl.DataFrame:
        """Return key, role and form of the entries."""
        forms = read_parquet(self.path, ["form"])["form"]
        return pl.DataFrame({"key": self.keys, "role": self.roles, "form": forms[self.places]})


class _Grams(NamedTuple):
    """The grams of the entries of a shard that are neither allowed nor too short, which are numbered from 0."""

    kept: np.ndarray  # (n,) bool: which entries of the shard
    allowed: int
    left_out: int  # too short
    keys: np.ndarray  # (kept,) u64
    few: np.ndarray  # (kept,) bool
    own: np.ndarray  # (kept,) u32: the number of CHAR_GRAMS
    chars: np.ndarray  # u64: the CHAR_GRAMS of each entry, in order
    seeds: pl.DataFrame  # text, gram
    words: pl.DataFrame  # text, gram


def write_index(folder: Path, sets: Iterable[pl.DataFrame], allowed: pl.Series, workers: Workers | None = None) -> dict[str, int]:
    """Index batches of EVALUATION texts; `allowed` are normalised forms that never count as contaminated. Return counts.

    In memory are some 70 bytes per text, the grams of short texts, and a range of the keys; other grams are in files.
    The `workers`, by default this process, normalise texts and make grams.
    """
    workers = workers or Here()

    # 1. texts-*.parquet, and the distinct forms: the entries
    keys, roles, starts = [], [], [0]
    blocks = (block for batch in sets for block in batch.iter_slices(INDEXED_AT_A_TIME))
    for some_keys, some_roles in in_order(workers, partial(_write_texts, folder), enumerate(blocks), folder):
        keys.append(some_keys)
        roles.append(some_roles)
        starts.append(starts[-1] + len(some_keys))
    if not keys:
        return {"texts": 0, "entries": 0, "low_information": 0, "allowed": 0}
    entries = _entries(np.concatenate(keys), np.concatenate(roles))
    del keys, roles

    # 2. Words in more than 1 / COMMON_WORD of the short texts, other than corpus documents that no query needs
    short_texts, counts = 0, pl.DataFrame(schema={"word": pl.String, "len": pl.UInt32})
    shards = _shards(folder, starts, entries, entries.roles != CORPUS)
    for short, words in in_order(workers, _words_of, shards, folder):
        short_texts += short
        counts = pl.concat([counts, words]).group_by("word").agg(pl.col("len").sum())
    least = short_texts / COMMON_WORD if short_texts >= COMMON_FROM else float("inf")
    common = counts.filter(pl.col("len") > least)["word"]

    # 3. The grams of all entries that are neither allowed nor too short
    left_out, allowances, count = 0, 0, 0
    kept = np.zeros(len(entries.keys), bool)
    seeds, own = [], []
    with ExitStack() as closing:
        files = {
            name: closing.enter_context((folder / f"{name}.{np.dtype(ARRAY_TYPES.get(name, np.uint32)).str[1:]}").open("wb"))
            for name in Index._fields
        }
        whole, words_of = (_Pairs(closing.enter_context(tempfile.TemporaryFile(dir=folder))) for _ in range(2))

        def append(**arrays: np.ndarray) -> None:
            for name, values in arrays.items():
                files[name].write(np.ascontiguousarray(values, ARRAY_TYPES.get(name, np.uint32)).data)

        shards = _shards(folder, starts, entries, np.ones(len(kept), bool))
        done = 0  # entries of the shards before
        for found in in_order(workers, partial(_grams_of, common, allowed), shards, folder):
            kept[done : done + len(found.kept)] = found.kept
            done, first = done + len(found.kept), np.uint32(count)
            allowances, left_out, count = allowances + found.allowed, left_out + found.left_out, count + len(found.keys)
            own.append(found.own)
            append(few=found.few, grams=found.chars)
            seeds.append(found.seeds.with_columns(pl.col("text") + pl.lit(first)))
            words_of.add(found.words["text"].to_numpy() + first, found.words["gram"].to_numpy())
            whole.add(np.arange(first, count, dtype=np.uint32), found.keys)
        if count:
            append(shard_starts=np.array(starts))
            counts_of_texts = np.diff(entries.begins)
            append(text_begins=np.append(0, np.cumsum(counts_of_texts[kept])))
            append(text_numbers=entries.texts[np.repeat(kept, counts_of_texts)])
            del entries
            _append_index(append, np.concatenate(own), pl.concat(seeds), words_of, whole)
    return {"texts": starts[-1], "entries": count, "low_information": left_out, "allowed": allowances}


def _write_texts(folder: Path, numbered: tuple[int, pl.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Write a block of texts to its file; return the keys of their forms, (n,) u64, and their roles, (n,) u8."""
    from curation.clean.overlap_kernels import grams_of  # loads the compiled loops

    shard, block = numbered
    made = block.with_columns(normalised(block["text"]).alias("form")).drop_nulls("form")
    short = pl.lit((made["role"] != CORPUS) & ~pl.Series(measures_of(made["form"]).long))  # only these need names
    asked = made.select(pl.when(short).then("text").otherwise(pl.lit("")))["text"]
    made = made.with_columns(capitalised_words(asked)).select(TEXT_COLUMNS.names())
    write_parquet(_texts_file(folder, shard), made)
    keys = grams_of(made["form"], WHOLE, np.zeros(len(made), bool))[1].astype(np.uint64)
    return keys, made["role"].to_numpy()


def _texts_file(folder: Path, shard: int) -> Path:
    return folder / f"texts-{shard:05d}.parquet"


def _words_of(shard: _Shard) -> tuple[int, pl.DataFrame]:
    """Return the number of short texts of a shard, and in how many of them each word is."""
    forms = shard.frame()["form"]
    forms = forms.filter(pl.Series(~measures_of(forms).long))
    words = pl.DataFrame({"word": forms.str.split(" ").list.unique()}).explode("word", empty_as_null=False)
    return len(forms), words.group_by("word").len()


def _grams_of(common: pl.Series, allowed: pl.Series, shard: _Shard) -> _Grams:
    """Return the grams of the entries of a shard; `common` are words, `allowed` are forms that never count as contaminated."""
    frame = shard.frame()
    allow, measures = frame["form"].is_in(allowed.implode()), measures_of(frame["form"])
    single = pl.Series(measures.units < 2, dtype=pl.Boolean)
    out = ~allow & pl.Series(measures.tiny) & ((frame["role"] != QUERY) | single)  # never match, not even as a whole
    kept = ~allow & ~out
    frame = frame.filter(kept)
    few, found = _grams_of_entries(frame, common)
    chars = found[CHAR_GRAMS].sort("text", "gram")
    own = np.bincount(chars["text"].to_numpy(), minlength=len(frame)).astype(np.uint32)
    keys, grams = frame["key"].to_numpy(), chars["gram"].to_numpy()
    return _Grams(kept.to_numpy(), int(allow.sum()), int(out.sum()), keys, few, own, grams, found[SEED_GRAMS], found[WORD_GRAMS])


def _entries(keys: np.ndarray, roles: np.ndarray) -> _Entries:
    """Return the distinct keys of texts, (n,) u64, whose roles are (n,) u8."""
    order = np.argsort(keys, kind="stable").astype(np.uint32)
    runs = _run_starts(keys[order])
    firsts = order[runs]
    by_first = np.argsort(firsts)
    lowest = np.minimum.reduceat(roles[order], runs) if len(runs) else roles
    counts = np.diff(np.append(runs, len(order)))[by_first]
    begins = np.append(0, np.cumsum(counts))
    places = np.repeat(runs[by_first] - begins[:-1], counts)
    places += np.arange(len(order))
    return _Entries(keys[firsts[by_first]], lowest[by_first], firsts[by_first], begins, order[places])


def _shards(folder: Path, starts: list[int], entries: _Entries, wanted: np.ndarray) -> Iterator[_Shard]:
    """Yield the `wanted` entries, (entries,) bool, file by file."""
    bounds = np.searchsorted(entries.firsts, starts)
    for shard, (first, end) in enumerate(pairwise(bounds.tolist())):
        some = first + np.flatnonzero(wanted[first:end])
        if len(some):
            places = entries.firsts[some] - starts[shard]
            yield _Shard(_texts_file(folder, shard), entries.keys[some], entries.roles[some], places)


def _grams_of_entries(frame: pl.DataFrame, common: pl.Series) -> tuple[np.ndarray, dict[int, pl.DataFrame]]:
    """Return which entries are shorter than FEW, and their grams by kind: text (u32, place of the entry) and gram, distinct."""
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
        pairs = pl.DataFrame({"text": at[text[some]].astype(np.uint32), "gram": gram[some]})
        found[kind] = pairs.unique(maintain_order=True)
    return measures.units < np.asarray(FEW)[measures.spaceless], found


def _append_index(append: Callable[..., None], own: np.ndarray, seeds: pl.DataFrame, words: _Pairs, whole: _Pairs) -> None:
    """Append the arrays of grams and keys; boilerplate is left out. `own` counts the CHAR_GRAMS of entries, (entries,) u32."""
    seeds = seeds.with_columns(pl.len().over("gram").alias("often"))
    seeds = seeds.sort("text", "often", "gram").with_columns(pl.int_range(pl.len()).over("text").alias("rank"))
    seeds = seeds.filter((pl.col("often") <= COMMON) | (pl.col("rank") < RAREST)).select("text", "gram")
    sizes = own.copy()
    append(gram_begins=np.append(0, np.cumsum(own, dtype=np.int64)))
    append(needs=np.where((own > 0) & (np.bincount(seeds["text"].to_numpy(), minlength=len(own)) >= TWO_FROM), 2, 1))

    # the keys in order, some ranges at a time: they are hashes, so each range has about as many
    most, leads = whole.count + len(seeds) + words.count, 0
    known = _Filter(most)
    step = RANGES >> min(max(0, most.bit_length() - KEYS_AT_A_TIME.bit_length()), RANGES.bit_length() - 1)
    for first in range(0, RANGES, step):
        some = words.read(first, first + step).sort("gram", maintain_order=True)
        runs = _run_starts(some["gram"].to_numpy())
        lengths = np.diff(np.append(runs, len(some)))
        some = some.filter(pl.Series(np.repeat(lengths <= COMMON, lengths), dtype=pl.Boolean))
        indexed, times = np.unique(some["text"].to_numpy(), return_counts=True)
        sizes[indexed] += times.astype(np.uint32)
        within = (pl.col("gram") // (2**64 // RANGES)).is_between(first, first + step - 1)
        some = pl.concat([whole.read(first, first + step), some, seeds.filter(within)]).sort("gram", maintain_order=True)
        runs = _run_starts(some["gram"].to_numpy())
        keys = some["gram"].to_numpy()[runs]
        append(keys=keys, begins=leads + runs, entries=some["text"].to_numpy())
        leads += len(some)
        known.add(keys)
    append(begins=np.array([leads]), sizes=sizes, bits=known.bits, firsts=known.firsts())


class _Filter:
    """`bits` and `firsts` of an index."""

    def __init__(self, most: int) -> None:
        """Take the largest number of keys."""
        self.log = max(6, most.bit_length())
        self.bits = np.zeros(1 << (self.log - 2), np.uint64)
        self.counts = np.zeros((1 << (self.log - 1)) + 1, np.uint32)

    def add(self, keys: np.ndarray) -> None:
        """Add keys, (n,) u64, in order."""
        one, low = np.uint64(1), np.uint64(63)
        word, bucket = keys >> np.uint64(66 - self.log), keys >> np.uint64(65 - self.log)
        marks = (one << ((keys >> np.uint64(6)) & low)) | (one << ((keys >> np.uint64(12)) & low))
        runs = _run_starts(word)
        self.bits[word[runs]] |= np.bitwise_or.reduceat(marks, runs) if len(runs) else marks
        runs = _run_starts(bucket)
        self.counts[bucket[runs] + one] += np.diff(np.append(runs, len(keys))).astype(np.uint32)

    def firsts(self) -> np.ndarray:
        """Return (2^n + 1,) u32, as of `Index`."""
        return np.cumsum(self.counts, dtype=np.uint32)


def leading_to(index: Index, entries: np.ndarray) -> Index:
    """Return an index that leads to some entries alone, (n,) u32, which keep their numbers; the fewer, the faster it is."""
    wanted = np.zeros(len(index.sizes), bool)
    wanted[entries] = True
    at = np.flatnonzero(wanted[index.entries]).astype(np.uint32)
    key = np.searchsorted(index.begins, at, side="right") - 1
    runs = _run_starts(key)
    keys, begins = index.keys[key[runs]], np.append(runs, len(at)).astype(np.uint32)
    known = _Filter(len(keys))
    known.add(keys)
    return index._replace(keys=keys, begins=begins, entries=index.entries[at], bits=known.bits, firsts=known.firsts())


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
