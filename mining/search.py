"""Exact nearest passages by inner product, with faiss.

faiss finds candidates in blocks of queries and passages; their scores are then computed again, in float64 and one fixed
way. Sums of float32 products depend on the shape of a block, and so on memory and processor (2 of 10,000 rows of 24
nearest passages differ between two such searches); the scores and ranks given here do not. The lists of `ivf.py` and the
GPUs of `cards.py` are other ways to candidates; what is found by them gets the same scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import metadata

import numpy as np

from curation.core.errors import SetupError
from mining.embeddings import Vectors
from mining.kernels import inner_products

QUERIES = 4_096  # a block: with PASSAGES rows of 1,024 numbers, about 150 MB
PASSAGES = 32_768
SPARE = 16  # candidates fetched beyond k, so that hardly a query has an equal score on both sides of the cut
MOST_SPARE = 2_048  # fetched where equal scores are many; where even that is too few, all that can be near is scored
GATHERED = 1 << 24  # float32 numbers read at once when scoring again: 64 MB
DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")


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


class Exact:
    """A corpus to search whole, block by block, on the CPU."""

    def __init__(self, corpus: Vectors, block: int = PASSAGES) -> None:
        """Take a corpus (n, dim); `block` rows of it are searched at once, which changes memory and speed, never the result."""
        self.corpus, self.block = corpus, block

    def fetch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (q, k) int64 of about the best, -1 where there are fewer, and a limit (q,) no other scores above."""
        heap = faiss.ResultHeap(len(queries), k, keep_max=True)
        for rows, groups in self.parts(queries):
            passages = np.ascontiguousarray(self.corpus[rows], np.float32)
            for some, part in groups:
                these = passages[part]
                found, at = faiss.knn(queries[some], these, min(k, len(these)), metric=faiss.METRIC_INNER_PRODUCT)
                heap.add_result_subset(some, found, rows[part][at])
        heap.finalize()  # what it left out has at most its lowest score, and in truth the rounding more
        return heap.I, np.where(heap.I[:, -1] < 0, -np.inf, heap.D[:, -1].astype(np.float64) + rounding(queries.shape[1]))

    def parts(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, slice]]]]:
        """Return blocks of the corpus: their rows, and which queries (numbers) are to be compared with which slice of them."""
        every = np.arange(len(queries))
        for start in range(0, len(self.corpus), self.block):
            rows = np.arange(start, min(start + self.block, len(self.corpus)))
            yield rows, [(every, slice(0, len(rows)))]


def nearest(queries: np.ndarray, index: Exact, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of a corpus for each query, best first, equal scores by smaller row.

    Args:
        queries: (q, dim) float32, rows of unit length or shorter.
        index: the corpus, (n, dim), rows of unit length or shorter.
        k: how many; a corpus of fewer rows gives them all.

    Returns:
        ids (q, min(k, n)) int64 and scores (q, min(k, n)) float64, descending; -1 and -inf where lists hold fewer.
    """
    k = min(k, len(index.corpus))
    ids = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float64)
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        ids[part], scores[part] = _nearest(np.ascontiguousarray(queries[part], np.float32), index, k)
    return ids, scores


def scores_of(queries: np.ndarray, corpus: Vectors, ids: np.ndarray) -> np.ndarray:
    """Return the inner product of each query with its own passages, (q, k) float64.

    Args:
        queries: (q, dim) float32.
        corpus: (n, dim) float32.
        ids: (q, k) rows of the corpus.
    """
    found = np.empty(ids.shape, np.float64)
    width = queries.shape[1]
    # each distinct row is read once: for all queries where the whole corpus is small, else for as many as fit
    small = len(corpus) * width <= GATHERED
    step = max(1, len(ids) if small else GATHERED // (width * max(1, ids.shape[1])))
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        if small:  # sorting would take longer than the products
            is_needed = np.zeros(len(corpus), bool)
            is_needed[ids[part]] = True
            needed, places = np.flatnonzero(is_needed), (np.cumsum(is_needed) - 1)[ids[part]]
        else:
            needed, places = np.unique(ids[part], return_inverse=True)
        rows = np.ascontiguousarray(corpus[needed], np.float32)
        found[part] = inner_products(np.ascontiguousarray(queries[part], np.float32), rows, places.reshape(ids[part].shape))
    return found


def rounding(dim: int) -> float:
    """Return the most that a float32 sum of products of two unit vectors can be off (Higham 2002, section 3.1)."""
    return (dim + 1) * 2.0**-23


def _nearest(queries: np.ndarray, index: Exact, k: int, spare: int = SPARE) -> tuple[np.ndarray, np.ndarray]:
    """Search one block of queries: fetch more than k, score them again, and do more for queries where that was too few."""
    whole = len(index.corpus)
    ids, limit = index.fetch(queries, min(k + spare, whole))
    ids, scores = _sorted(ids, np.where(ids >= 0, scores_of(queries, index.corpus, np.maximum(ids, 0)), -np.inf))
    if ids.shape[1] < whole:
        unsafe = np.flatnonzero((scores[:, k - 1] <= limit) & np.isfinite(limit))
        if len(unsafe) and spare < MOST_SPARE:
            ids[unsafe, :k], scores[unsafe, :k] = _nearest(queries[unsafe], index, k, min(16 * spare, MOST_SPARE))
        else:
            for row in unsafe:
                ids[row, :k], scores[row, :k] = _every(queries[row : row + 1], index, k, float(scores[row, k - 1]))
    return ids[:, :k], scores[:, :k]


def _every(query: np.ndarray, index: Exact, k: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best for one query by scoring again every passage that can reach `least`, the k-th score so far."""
    limit = least - rounding(query.shape[1])
    near = [rows[index.corpus[rows] @ query[0] >= limit] for rows, _ in index.parts(query)]
    ids = np.concatenate(near)[None, :]
    step = index.block
    scores = np.hstack([scores_of(query, index.corpus, ids[:, i : i + step]) for i in range(0, ids.shape[1], step)])
    ids, scores = _sorted(ids, scores)
    return ids[0, :k], scores[0, :k]


def _sorted(ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores))
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
