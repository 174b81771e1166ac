"""Vectors to candidates: the passages nearest to the queries of a source, and the files that hold them.

    candidates/<source>/00000/ids.npy, scores.npy, similarity.npy, overlap.npy    (rows, k), a folder per block of rows
                              positive_scores.npy, given_scores.npy, done.json

These files hold all that the filters ask about a candidate, so another filter setting neither encodes nor searches.
`mining/source_search.py` decides what is searched, and chooses negatives among the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.core import store, tables
from curation.core.errors import BuildError
from mining.duplicates import overlaps
from mining.embeddings import Vectors
from mining.lists import Ragged
from mining.search import Exact, nearest, scores_of

ROWS_PER_BLOCK = 4_096  # with 1,024 numbers per vector and 120 candidates, about 60 MB
PAIRS = 1 << 20  # of a candidate and a positive, compared at once


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a source, q of them."""

    shard: int  # number of the file of `pairs` that they are in
    number: int  # of the block in the source
    rows: np.ndarray  # (q,) their numbers in the source
    frame: pl.DataFrame


@dataclass(frozen=True)
class Searched:
    """The candidates of a block of q rows, nearest first."""

    ids: np.ndarray  # (q, k) int64 pids; -1 marks an empty place
    scores: np.ndarray  # (q, k) float64
    similarity: np.ndarray  # (q, k) float32: highest cosine of the candidate to one of the row's positives
    overlap: np.ndarray  # (q, k) float32: highest share of words in common with a positive, from `duplicates.overlaps`
    positive_scores: np.ndarray  # (p,) float64, of all positives of the block
    given_scores: np.ndarray  # (g,) float64, of all given negatives of the block


@dataclass(frozen=True)
class Corpus:
    """What a source is searched in."""

    passages: Vectors  # vectors by pid
    pids: np.ndarray  # (n,) int64, ascending: the passages to search
    index: Exact  # of the vectors of `pids`; with classes its groups are those of `pids`
    shingles: Ragged  # by pid, from `duplicates.shingles_of`
    classes: np.ndarray | None = None  # by pid, -1 unknown; if set, a row is searched in classes other than its own

    @cached_property
    def row_of(self) -> np.ndarray:
        """The row in the index (by pid) of each passage that is searched."""
        rows = np.zeros(int(self.pids[-1]) + 1 if len(self.pids) else 0, np.int64)
        rows[self.pids] = np.arange(len(self.pids))
        return rows


def search(
    queries: np.ndarray,
    positives: Ragged,
    given: Ragged,
    corpus: Corpus,
    k: int,
    own: np.ndarray | None,
    reorder: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Searched:
    """Search for a block of rows.

    Args:
        queries: (q, dim) float32.
        positives: known positives of each row, at least one each.
        given: negatives that a row has already.
        corpus: what to search.
        k: candidates per row; a smaller corpus gives them all.
        own: (q,) the class of each row, or None without classes; a row of unknown class, -1, finds nothing.
        reorder: maps pids (q, k) to other pids (q, k), best first, -1 in empty places. Scores stay cosines.
    """
    classes = corpus.classes if own is not None else None
    if own is None or classes is None:
        found, scores = nearest(queries, corpus.index, k)
        ids = np.where(found >= 0, corpus.pids[found], -1)
    else:  # class by class, in an index of all other classes
        ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf)
        for number in np.unique(own[own >= 0]).tolist():
            others, index = corpus.index.without(number)
            rows = np.flatnonzero(own == number)
            found, theirs = nearest(queries[rows], index, k)
            ids[rows, : found.shape[1]], scores[rows, : found.shape[1]] = corpus.pids[others[found]], theirs
    if reorder is not None:
        ids = reorder(ids)
        if own is not None and classes is not None:
            ids = np.where((classes[ids] == own[:, None]) | (classes[ids] < 0), -1, ids)
        scores = np.where(ids >= 0, corpus.index.scores(queries, corpus.row_of[np.where(ids >= 0, ids, corpus.pids[0])]), -np.inf)

    # compare each candidate with each positive of its row, and keep the highest value
    similarity, overlap = np.full(ids.shape, -1, np.float32), np.zeros(ids.shape, np.float32)
    row_of_each = positives.row_of_each()
    step = max(1, PAIRS // max(1, ids.shape[1]))
    for first in range(0, len(positives.ids), step):
        some, rows = positives.ids[first : first + step], row_of_each[first : first + step]
        safe = np.where(ids[rows] >= 0, ids[rows], corpus.pids[0])
        near = corpus.index.scores(corpus.passages[some], corpus.row_of[safe])
        np.maximum.at(similarity, rows, near.astype(np.float32))
        shared = overlaps(corpus.shingles, np.repeat(some, safe.shape[1]), safe.reshape(-1))
        np.maximum.at(overlap, rows, shared.reshape(safe.shape))

    of_positives, of_given = (scores_of_lists(queries, corpus.passages, lists) for lists in (positives, given))
    return Searched(ids, scores, similarity, overlap, of_positives, of_given)


def scores_of_lists(queries: np.ndarray, passages: Vectors, lists: Ragged) -> np.ndarray:
    """Return the score (len(lists.ids),) of each id with its row's query."""
    return scores_of(queries[lists.row_of_each()], passages, lists.ids[:, None])[:, 0]


def write_candidates(folder: Path, found: Searched) -> dict[str, Any]:
    """Write the candidates of a block into a folder and return the entries of its receipt."""
    for name in Searched.__dataclass_fields__:
        values = getattr(found, name)
        with store.atomic(folder / f"{name}.npy") as file:
            np.save(file, values.astype(np.int32) if name == "ids" else values)
    return {"rows": len(found.ids), "candidates": int((found.ids >= 0).sum())}


def read_candidates(folder: Path) -> Searched:
    """Return the candidates of a block, as memory maps.

    Raises:
        BuildError: a file was changed since it was written.
    """
    names = list(Searched.__dataclass_fields__)
    store.check_files(folder, store.read_receipt(folder) or {"files": {f"{name}.npy": "" for name in names}})
    found = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    return Searched(**{**found, "ids": found["ids"].astype(np.int64)})


def blocks(curated: Path, columns: list[str] | None = None) -> Iterator[Block]:
    """Yield the rows of a source, or some of their columns, in blocks; a source without rows has one empty block.

    Raises:
        BuildError: a row has no positive.
    """
    number, first = 0, 0
    for shard, pairs in enumerate(tables.shards(curated, "pairs", columns)):
        for start in range(0, max(len(pairs), 1), ROWS_PER_BLOCK):
            frame = pairs.slice(start, ROWS_PER_BLOCK)
            bare = frame.filter(frame["positives"].list.len() == 0)
            if len(bare):
                raise BuildError(curated, f"tuple '{bare['id'][0]}' has no positive", "run `curate build` again")
            yield Block(shard, number, np.arange(first, first + len(frame)), frame)
            number, first = number + 1, first + len(frame)


def read_classes(curated: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each passage (by pid) and of each row of a labelled source; -1 where it is unknown."""
    pairs = tables.read_table(curated, "pairs", ["key", "label"])
    labels = pairs["label"].drop_nulls().unique().sort()
    numbers = pl.DataFrame({"label": labels, "class": np.arange(len(labels))})
    of_key = pairs.unique("key", keep="first").join(numbers, on="label").select("key", "class")
    passages = tables.read_table(curated, "passages", ["pid", "key"])
    classes = passages.join(of_key, on="key", how="left", maintain_order="left")["class"].fill_null(-1)
    own = pairs.join(numbers, on="label", how="left", maintain_order="left")["class"].fill_null(-1)
    return classes.to_numpy(), own.to_numpy()
