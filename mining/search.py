"""Exact nearest passages by inner product, with faiss.

faiss finds candidates in blocks of queries and passages. Their scores are then computed again in float64, always in the
same way. A sum of float32 products depends on the shape of the block, and so on memory and processor: 2 of 10,000 rows of
24 nearest passages differ between two such searches. The scores and ranks given here do not. `ivf.py` and `gpu.py` find
candidates differently; these get the same scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from curation.core.errors import SetupError
from mining.embeddings import Part, Vectors
from mining.kernels import inner_products

QUERIES = 4_096  # queries per block: with PASSAGES vectors of 1,024 numbers, about 150 MB
PASSAGES = 32_768
SPARE = 16  # candidates fetched beyond k, so that equal scores on both sides of the cut are rare
MOST_SPARE = 2_048  # fetched where many scores are equal; if that is not enough, every passage that can be near is scored
HELD = 1 << 28  # bytes of a corpus that is kept in memory while it is searched
GATHERED = 1 << 24  # float32 numbers read at once when candidates are scored again: 64 MB


def installed() -> list[str]:
    """Return the installed distributions that contain the module faiss; ["faiss"] if the module has no distribution."""
    spec = find_spec("faiss")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent.parent
    names = {path.name.partition("-")[0].replace("_", "-").lower() for path in folder.glob("faiss*.dist-info")}
    return sorted(names) or ["faiss"]


def check_installation(found: list[str]) -> None:
    """Refuse to search without faiss, or with two distributions of it that overwrite each other's files.

    Raises:
        SetupError: it names what to install or to uninstall.
    """
    if not found:
        raise SetupError("faiss", "is not installed", "pip install 'tuplesmith[cpu]'")
    if len(found) > 1:
        others = [name for name in found if name != "faiss-cpu"]
        raise SetupError(
            "faiss",
            f"{' and '.join(found)} are {'both' if len(found) == 2 else 'all'} installed and overwrite each other",
            f"pip uninstall {' '.join(found)}, then install one of them again: pip install {others[0]}",
        )


check_installation(installed())
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from the generated bindings, at import
        import faiss
except ImportError as error:  # a library of CUDA, MKL or OpenMP that it was built for is absent
    raise SetupError("faiss", f"cannot be loaded ({error})", "install it again, or another one: pip install faiss-cpu") from None


class Exact:
    """A corpus that is searched whole, block by block, on the CPU."""

    def __init__(self, corpus: Vectors, block: int = PASSAGES, groups: np.ndarray | None = None) -> None:
        """Take a corpus; `block` changes memory and speed but not the result.

        Args:
            corpus: (n, dim).
            block: rows that are searched at once.
            groups: (n,) a number for each row, for `without`; -1 for rows that are in no group.
        """
        self.corpus, self.block, self.groups = corpus, block, groups

    @cached_property
    def array(self) -> np.ndarray | None:
        """The corpus in memory, if it is an array or small enough to be read into one."""
        if isinstance(self.corpus, np.ndarray) and self.corpus.dtype == np.float32 and self.corpus.flags.c_contiguous:
            return self.corpus
        if 4 * len(self.corpus) * self.corpus[np.arange(min(1, len(self.corpus)))].size > HELD:
            return None
        return np.ascontiguousarray(self.corpus[np.arange(len(self.corpus))], np.float32)

    @property
    def threads(self) -> int:
        """Return how many blocks of queries to work on at once: one on the CPU, which a block keeps busy."""
        return 1

    def without(self, group: int) -> tuple[np.ndarray, Exact]:
        """Return the rows (m,) that are in another group, and an index of them."""
        assert self.groups is not None
        rows = np.flatnonzero((self.groups >= 0) & (self.groups != group))
        return rows, self._only(rows, group)

    def _only(self, rows: np.ndarray, group: int) -> Exact:
        return Exact(Part(self.corpus, rows), self.block)

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the inner product (q, k) float64 of each query (q, dim) with its own rows (q, k) of the corpus."""
        if self.array is None:
            return scores_of(queries, self.corpus, rows)
        return np.asarray(
            inner_products(np.ascontiguousarray(queries, np.float32), self.array, rows.astype(np.int64, copy=False))
        )

    def fetch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (q, k) int64 of nearly the best, -1 where there are fewer, and an upper limit (q,) for all other scores."""
        heap = faiss.ResultHeap(len(queries), k, keep_max=True)
        for rows, groups in self.parts(queries):
            passages = np.ascontiguousarray((self.corpus if self.array is None else self.array)[rows], np.float32)
            for some, part in groups:
                these = passages[part]
                found, at = faiss.knn(queries[some], these, min(k, len(these)), metric=faiss.METRIC_INNER_PRODUCT)
                heap.add_result_subset(some, found, rows[part][at])
        heap.finalize()  # the others score at most its lowest score, plus the rounding of float32
        return heap.I, np.where(heap.I[:, -1] < 0, -np.inf, heap.D[:, -1].astype(np.float64) + rounding(queries.shape[1]))

    def parts(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, slice]]]]:
        """Yield blocks of the corpus: their rows, and which queries (numbers) to compare with which slice of the rows."""
        every = np.arange(len(queries))
        for start in range(0, len(self.corpus), self.block):
            rows = np.arange(start, min(start + self.block, len(self.corpus)))
            yield rows, [(every, slice(0, len(rows)))]


def nearest(queries: np.ndarray, index: Exact, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of a corpus for each query, best first, equal scores by smaller row.

    Args:
        queries: (q, dim) float32, rows of unit length or shorter.
        index: the corpus, (n, dim), rows of unit length or shorter.
        k: how many; a corpus with fewer rows gives them all.

    Returns:
        ids (q, min(k, n)) int64 and scores (q, min(k, n)) float64, descending; -1 and -inf where an index finds fewer.
    """
    k = min(k, len(index.corpus))
    ids = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float64)
    if k == 0:  # an empty corpus, or a class that is all of it
        return ids, scores
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        ids[part], scores[part] = _nearest_in_block(np.ascontiguousarray(queries[part], np.float32), index, k)
    return ids, scores


def _nearest_in_block(queries: np.ndarray, index: Exact, k: int, spare: int = SPARE) -> tuple[np.ndarray, np.ndarray]:
    """Search one block of queries: fetch more than k, score them again, and search further for queries that need it."""
    whole = len(index.corpus)
    ids, limit = index.fetch(queries, min(k + spare, whole))
    ids, scores = _sort(ids, np.where(ids >= 0, index.scores(queries, np.maximum(ids, 0)), -np.inf))
    if ids.shape[1] == whole:
        return ids[:, :k], scores[:, :k]

    # where the k-th score does not exceed the limit, a passage that was not fetched may belong to the k best
    unsafe = np.flatnonzero((scores[:, k - 1] <= limit) & np.isfinite(limit))
    if len(unsafe) and spare < MOST_SPARE:
        ids[unsafe, :k], scores[unsafe, :k] = _nearest_in_block(queries[unsafe], index, k, min(16 * spare, MOST_SPARE))
        return ids[:, :k], scores[:, :k]
    for row in unsafe:  # score every passage that can reach the k-th score so far
        query = queries[row : row + 1]
        least = float(scores[row, k - 1]) - rounding(query.shape[1])
        near = np.concatenate([rows[index.corpus[rows] @ query[0] >= least] for rows, _ in index.parts(query)])[None, :]
        blocks = [near[:, start : start + index.block] for start in range(0, near.shape[1], index.block)]
        all_ids, all_scores = _sort(near, np.hstack([index.scores(query, block) for block in blocks]))
        ids[row, :k], scores[row, :k] = all_ids[0, :k], all_scores[0, :k]
    return ids[:, :k], scores[:, :k]


def _sort(ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores))
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def scores_of(queries: np.ndarray, corpus: Vectors, ids: np.ndarray) -> np.ndarray:
    """Return the inner product of each query with its own passages, (q, k) float64.

    Args:
        queries: (q, dim) float32.
        corpus: (n, dim) float32.
        ids: (q, k) rows of the corpus.
    """
    found = np.empty(ids.shape, np.float64)
    width = queries.shape[1]
    # each distinct row is read once: for all queries if the whole corpus is small, else for as many queries as fit
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
    """Return the largest error of a float32 sum of products of two unit vectors (Higham 2002, section 3.1)."""
    return (dim + 1) * 2.0**-23
