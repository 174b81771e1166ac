"""Exact nearest passages by inner product. The only file that knows faiss.

faiss finds candidates in blocks of queries and passages; their scores are then computed again, in float64 and one fixed
way. Sums of float32 products depend on the shape of a block, and so on memory and processor (2 of 10,000 rows of 24
nearest passages differ between two such searches); the scores and ranks given here do not.
"""

from __future__ import annotations

import warnings
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from curation.errors import SetupError

QUERIES = 4_096  # a block: with PASSAGES rows of 1,024 numbers, about 150 MB
PASSAGES = 32_768
SPARE = 16  # candidates fetched beyond k, so that hardly a query has an equal score on both sides of the cut
GATHERED = 1 << 22  # float64 numbers multiplied at once when scoring again: 32 MB
DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")


class Vectors(Protocol):
    """Rows of unit length or shorter, float32: an array, a memory map, or a part of the embedding store."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def installed() -> list[str]:
    """Return the distributions in this environment that carry the module faiss."""
    return [name for name in DISTRIBUTIONS if any(True for _ in metadata.distributions(name=name))]


def check_installation(found: list[str]) -> None:
    """Refuse to search with no faiss, or with two that overwrite each other's files.

    Raises:
        SetupError: it names what to install or to uninstall.
    """
    if not found:
        raise SetupError("faiss", "is not installed", "pip install 'tuplesmith[cpu]'")
    if len(found) > 1:
        others = [name for name in found if name != "faiss-cpu"]
        raise SetupError(
            "faiss",
            f"{' and '.join(found)} are both installed and overwrite each other",
            f"pip uninstall {' '.join(found)}, then install one of them again: pip install {others[0]}",
        )


check_installation(installed())
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the generated bindings, at import
    import faiss


def nearest(queries: np.ndarray, corpus: Vectors, k: int, block: int = PASSAGES) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of `corpus` for each query, best first, equal scores by smaller row.

    Args:
        queries: (q, dim) float32, rows of unit length or shorter.
        corpus: (n, dim) float32, rows of unit length or shorter.
        k: how many; a corpus of fewer rows gives them all.
        block: rows of the corpus searched at once; it changes memory and speed, never the result.

    Returns:
        ids (q, min(k, n)) int64 and scores (q, min(k, n)) float64, descending.
    """
    k = min(k, len(corpus))
    ids = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float64)
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        ids[part], scores[part] = _nearest(np.ascontiguousarray(queries[part], np.float32), corpus, k, block)
    return ids, scores


def scores_of(queries: np.ndarray, corpus: Vectors, ids: np.ndarray) -> np.ndarray:
    """Return the inner product of each query with its own passages, (q, k) float64.

    Args:
        queries: (q, dim) float32.
        corpus: (n, dim) float32.
        ids: (q, k) rows of the corpus.
    """
    found = np.empty(ids.shape, np.float64)
    step = max(1, GATHERED // max(1, queries.shape[1] * ids.shape[1]))
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        rows = corpus[ids[part].reshape(-1)].reshape(*ids[part].shape, -1).astype(np.float64)
        found[part] = np.einsum("qd,qkd->qk", queries[part].astype(np.float64), rows)
    return found


def _nearest(queries: np.ndarray, corpus: Vectors, k: int, block: int, spare: int = SPARE) -> tuple[np.ndarray, np.ndarray]:
    """Search one block of queries: fetch more than k, score them again, and do more for queries where that was too few."""
    ids, rough = _fetch(queries, corpus, min(k + spare, len(corpus)), block)
    ids, scores = _sorted(ids, scores_of(queries, corpus, ids))
    if ids.shape[1] < len(corpus):
        # what was not fetched has at most the lowest rough score, and its real score at most the rounding more
        unsafe = np.flatnonzero(scores[:, k - 1] <= rough[:, -1] + _rounding(queries.shape[1]))
        if len(unsafe) and spare == SPARE:
            ids[unsafe, :k], scores[unsafe, :k] = _nearest(queries[unsafe], corpus, k, block, 16 * SPARE)
        else:
            for row in unsafe:
                ids[row, :k], scores[row, :k] = _every(queries[row : row + 1], corpus, k, float(scores[row, k - 1]), block)
    return ids[:, :k], scores[:, :k]


def _fetch(queries: np.ndarray, corpus: Vectors, k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and rough scores of the k best of the whole corpus, from the best of each block."""
    ids = np.empty((len(queries), 0), np.int64)
    rough = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(corpus), block):
        passages = np.ascontiguousarray(corpus[start : start + block], np.float32)
        found, rows = faiss.knn(queries, passages, min(k, len(passages)), metric=faiss.METRIC_INNER_PRODUCT)
        ids, rough = _sorted(np.hstack([ids, rows + start]), np.hstack([rough, found]))
        ids, rough = ids[:, :k], rough[:, :k]
    return ids, rough


def _every(query: np.ndarray, corpus: Vectors, k: int, least: float, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best for one query by scoring again every passage that can reach `least`, the k-th score so far."""
    near = [
        start + np.flatnonzero(corpus[start : start + block] @ query[0] >= least - _rounding(query.shape[1]))
        for start in range(0, len(corpus), block)
    ]
    ids = np.concatenate(near)[None, :]
    scores = np.hstack([scores_of(query, corpus, ids[:, i : i + block]) for i in range(0, ids.shape[1], block)])
    ids, scores = _sorted(ids, scores)
    return ids[0, :k], scores[0, :k]


def _sorted(ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores))
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _rounding(dim: int) -> float:
    """Return the most that a float32 sum of products of two unit vectors can be off (Higham 2002, section 3.1)."""
    return (dim + 1) * 2.0**-23
