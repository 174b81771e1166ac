"""From tuples that hold the numbers of a source's texts to the tables that are published, in which passages are numbered.

What is held in memory are numbers; texts are read as they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.core.record import PAIRS, PASSAGES
from curation.core.tables import ROWS_PER_GROUP, shard_path, shard_ranges, write_parquet
from curation.core.texts import HAS_WORDS, Texts
from curation.engine.parts import in_order
from curation.engine.pool import Workers
from curation.shape.numbered import LISTS, first_occurrences, flat, role_texts
from curation.shape.scores import with_scores

Frames = Callable[[], Iterator[pl.DataFrame]]  # NUMBERED, the same each time


class Numbers(NamedTuple):
    """What each text of a source is in its tables."""

    pid: np.ndarray  # (texts,) u32: by the number of a text, that of its passage
    passages: np.ndarray  # (passages,) u32: the text of each passage, as it is first spelled
    groups: pl.Series  # u32, by the number of a text; null for one without a duplicate


def number(frames: Frames, texts: Texts, corpus: np.ndarray, task: str, families: np.ndarray | None = None) -> Numbers:
    """Number the passages of a source; texts with equal keys are one passage.

    Passages are numbered in the order in which they first occur: positives, given negatives, the rest of a corpus. In a
    clustering source every text is a passage, because it may be a positive or negative of another. Duplicates get one
    group: texts of one family (`families`, (texts,) of the number of a text), or without `families` of one normalised form.
    """
    queries, *others = role_texts(frames())

    # passages in the order in which they first occur
    met = np.concatenate([*([queries] if task == "clustering" else []), *others, corpus])
    passages = first_occurrences(met, texts.key_number)
    pid = np.zeros(len(texts), np.uint32)
    pid[texts.key_number[passages]] = np.arange(len(passages), dtype=np.uint32)
    del met

    # groups of duplicates, numbered in the order of queries, then passages; texts with equal keys are one text
    order = np.concatenate([queries, passages])
    same = texts.form_number if families is None else families
    is_passage = np.zeros(len(texts), bool)
    is_passage[texts.key_number[passages]] = True
    others = queries[~is_passage[texts.key_number[queries]]]
    once = np.concatenate([passages, first_occurrences(others, texts.key_number)])
    several = np.bincount(same[once], minlength=len(texts)) > 1
    named = (texts.marks & HAS_WORDS > 0) if families is None else np.ones(len(texts), bool)
    grouped = order[several[same[order]] & named[order]]
    firsts = first_occurrences(same[grouped])
    group = np.zeros(len(texts), np.uint32)
    group[firsts] = np.arange(len(firsts), dtype=np.uint32)
    groups = pl.Series("group", group[same]).set(pl.Series(~(several[same] & named)), None)
    return Numbers(pid[texts.key_number], passages, groups)


class Tables(NamedTuple):
    """What the tables `pairs` and `passages` of a source are made of."""

    folder: Path  # they are written to
    tuples: Callable[[int, int], Iterator[pl.DataFrame]]  # NUMBERED from a row to before another, without those that do not stay
    texts: Texts
    numbers: Numbers
    scores: pl.DataFrame | None  # of a teacher, as `with_scores` takes them
    constants: Mapping[str, str]  # for the metadata of the files


def write_tables(tables: Tables, stays: np.ndarray, workers: Workers) -> int:
    """Write the tables of a source, one shard each at a time; return how many negatives equal a positive of their tuple.

    Args:
        tables: what they are made of.
        stays: which tuples stay, (tuples,) bool.
        workers: write the shards.
    """
    every = np.ones(len(tables.numbers.passages), bool)
    shards = [(name, *shard) for name, rows in (("passages", every), ("pairs", stays)) for shard in enumerate(shard_ranges(rows))]
    return sum(in_order(workers, partial(_write_shard, tables), shards, tables.folder))


def _write_shard(tables: Tables, shard: tuple[str, int, tuple[int, int]]) -> int:
    """Write (table, number, (first, end)); return how many negatives were removed."""
    name, number, (first, end) = shard
    _, tuples, texts, numbers, scores, constants = tables
    removed = 0

    def frames() -> Iterator[pl.DataFrame]:
        nonlocal removed
        if name == "passages":
            for start in range(first, max(end, first + 1), ROWS_PER_GROUP):
                yield passages_of(texts, numbers, start, min(end, start + ROWS_PER_GROUP))
            return
        keys = None if scores is None else texts.key_series(numbers.passages)
        for frame in tuples(first, end):
            table, gone = pairs_of(texts, numbers, frame)
            removed += gone
            yield table if scores is None or keys is None else with_scores(table, keys, scores)

    write_parquet(shard_path(tables.folder, name, number), frames(), constants)
    return removed


def pairs_of(texts: Texts, numbers: Numbers, frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return a frame of NUMBERED as PAIRS, and the number of negatives that were removed as they are among the positives.

    No passage occurs twice in a list.
    """
    at = np.arange(len(frame), dtype=np.uint32)
    pids = {
        name: pl.DataFrame({"at": np.repeat(at, frame[name].list.len().to_numpy()), "pid": numbers.pid[flat(frame, name)]})
        for name in LISTS
    }
    pids = {name: long.unique(maintain_order=True) for name, long in pids.items()}
    given = len(pids["negatives"])
    pids["negatives"] = pids["negatives"].join(pids["positives"], on=["at", "pid"], how="anti", maintain_order="left")
    asked = frame["query"].to_numpy()
    pairs = frame.drop(LISTS).with_columns(
        texts.at(asked).alias("query"), texts.key_series(asked), numbers.groups.gather(asked), at=pl.Series(at)
    )
    for side, long in pids.items():
        lists = long.group_by("at", maintain_order=True).agg(pl.col("pid").alias(side))
        pairs = pairs.join(lists, on="at", how="left", maintain_order="left").with_columns(pl.col(side).fill_null([]))
    return pairs.select(list(PAIRS)).cast(PAIRS), given - len(pids["negatives"])


def passages_of(texts: Texts, numbers: Numbers, first: int, end: int) -> pl.DataFrame:
    """Return the PASSAGES with numbers from `first` to before `end`, each text as it is first spelled."""
    some = numbers.passages[first:end]
    table = pl.DataFrame([texts.at(some), texts.key_series(some), numbers.groups.gather(some)])
    return table.with_row_index("pid", first).select(list(PASSAGES)).cast(PASSAGES)
