"""The candidates of a source on disk, a folder a block of rows: what the search found, and all that filters ask about it.

    candidates/<source>/00000/ids.npy, scores.npy, similarity.npy, overlap.npy    (rows, k)
                              positive_scores.npy, given_scores.npy, done.json

Filters read these files alone, so another filter setting neither encodes nor searches; what no filter asks for stays on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.core import locks, store
from mining.copies import overlaps
from mining.embeddings import Part, Vectors
from mining.lists import Ragged
from mining.search import Exact, nearest, scores_of

FORMAT = 3
PAIRS = 1 << 20  # of a candidate and a positive, compared at once


@dataclass(frozen=True)
class Searched:
    """The candidates of a block of q rows, nearest first."""

    ids: np.ndarray  # (q, k) int64 pids; -1 stands for none
    scores: np.ndarray  # (q, k) float64
    similarity: np.ndarray  # (q, k) float32: highest cosine of the candidate to one of the row's positives
    overlap: np.ndarray  # (q, k) float32: highest share of words in a row shared with a positive, as `copies.overlaps`
    positive_scores: np.ndarray  # (p,) float64, of all the block's positives
    given_scores: np.ndarray  # (g,) float64, of all the block's given negatives


@dataclass(frozen=True)
class Corpus:
    """What a source is searched in."""

    passages: Vectors  # vectors by pid
    pids: np.ndarray  # (n,) int64, ascending: those to search
    index: Exact  # of the vectors of `pids`
    exact: Callable[[Vectors], Exact]  # makes one of other vectors, to be searched whole
    shingles: Ragged  # by pid, as `copies.shingles_of`
    classes: np.ndarray | None = None  # by pid; a row is then searched in other classes than its own; -1 is in none


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
        k: candidates a row; a smaller corpus gives them all.
        own: (q,) the class of each row, or None where there are no classes.
        reorder: gives other pids for those found, (q, k) both, best first; -1 stands for none. Scores stay cosines.
    """
    if own is None or corpus.classes is None:
        found, scores = nearest(queries, corpus.index, k)
        ids = np.where(found >= 0, corpus.pids[found], -1)
    else:
        ids, scores = _in_other_classes(queries, corpus, k, own)
    if reorder is not None:
        ids = reorder(ids)
        if own is not None and corpus.classes is not None:
            ids = np.where((corpus.classes[ids] == own[:, None]) | (corpus.classes[ids] < 0), -1, ids)
        scores = np.where(ids >= 0, scores_of(queries, corpus.passages, np.where(ids >= 0, ids, corpus.pids[0])), -np.inf)
    likeness = np.full(ids.shape, -1, np.float32)
    overlap = np.zeros(ids.shape, np.float32)
    rows = positives.row_of_each()
    step = max(1, PAIRS // max(1, ids.shape[1]))
    for first in range(0, len(positives.ids), step):
        some, own_rows = positives.ids[first : first + step], rows[first : first + step]
        theirs = ids[own_rows]
        safe = np.where(theirs >= 0, theirs, corpus.pids[0])
        np.maximum.at(likeness, own_rows, scores_of(corpus.passages[some], corpus.passages, safe).astype(np.float32))
        shared = overlaps(corpus.shingles, np.repeat(some, theirs.shape[1]), safe.reshape(-1))
        np.maximum.at(overlap, own_rows, shared.reshape(theirs.shape))
    return Searched(
        ids, scores, likeness, overlap, paired(queries, corpus.passages, positives), paired(queries, corpus.passages, given)
    )


def saved(folder: Path, digest: str, work: Callable[[], Searched], wait: bool) -> None:
    """Search for a block and write it, where it does not stand there with this digest."""

    def write(part: Path) -> dict[str, Any]:
        found = work()
        for name in Searched.__dataclass_fields__:
            values = getattr(found, name)
            with store.atomic(part / f"{name}.npy") as file:
                np.save(file, values.astype(np.int32) if name == "ids" else values)
        return {"rows": len(found.ids), "candidates": int((found.ids >= 0).sum())}

    once(folder, digest, write, wait)


def once(folder: Path, digest: str, write: Callable[[Path], dict[str, Any]], wait: bool) -> None:
    """Run a stage, where it does not stand there with this digest.

    Several processes may want it at once: one does it; the others wait for it, or leave it alone. Where it dies, another
    takes over.
    """
    claim = folder.with_name(f".{folder.name}.claim")
    if claim.exists() or not store.is_current(folder, digest):
        with locks.claimed(claim, wait) as ours:
            if ours:
                store.run_stage(folder, digest, write)


def read(folder: Path) -> Searched:
    """Return the candidates of a block, as memory maps.

    Raises:
        BuildError: a file was changed by hand.
    """
    names = list(Searched.__dataclass_fields__)
    store.check_files(folder, store.read_receipt(folder) or {"files": {f"{name}.npy": "" for name in names}})
    found = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    return Searched(**{**found, "ids": found["ids"].astype(np.int64)})


def paired(queries: np.ndarray, passages: Vectors, lists: Ragged) -> np.ndarray:
    """Return the score (len(lists.ids),) of each id with its row's query."""
    return scores_of(queries[lists.row_of_each()], passages, lists.ids[:, None])[:, 0]


def _in_other_classes(queries: np.ndarray, corpus: Corpus, k: int, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and scores (q, k) of the nearest passages of other classes; a row of no class gets none."""
    assert corpus.classes is not None
    ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf)
    classes = corpus.classes[corpus.pids]
    for number in np.unique(own[own >= 0]):
        rows, others = np.flatnonzero(own == number), corpus.pids[(classes >= 0) & (classes != number)]
        found, theirs = nearest(queries[rows], corpus.exact(Part(corpus.passages, others)), k)
        ids[rows, : found.shape[1]], scores[rows, : found.shape[1]] = others[found], theirs
    return ids, scores
