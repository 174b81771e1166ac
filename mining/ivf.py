"""Approximate search: passages in lists around centroids (an inverted file), of which a query's nearest are searched.

    candidates/<source>/index/index.npz    centroids (lists, dim) float32; members (n,) rows of the corpus, list by list, and
                              done.json    their starts (lists + 1,); probes: lists searched for each query; recall

What lies in the lists that are searched is searched exactly, so recall is a matter of the lists alone: the share of a
query's k nearest that lie in them. It is known from an exact search for a sample of queries. On one half of the sample the
number of lists is chosen that reaches `RECALL`; on the other the recall is measured that the receipt tells.

Centroids come from spherical k-means on drawn passages. Each nearest centroid is found by the exact search, and sums are
float64 in one order, so the lists are the same for any number of threads and processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from curation.core import store
from curation.core.record import draws
from mining.embeddings import Vectors
from mining.search import PASSAGES, QUERIES, Exact, nearest

FORMAT = 1
FILE = "index.npz"
LEAST = 100_000  # passages: fewer are searched exactly
RECALL = 0.95  # of the nearest that are looked at, to be reached
ASKED = 512  # queries of the sample
SAID = ("kind", "lists", "probes", "recall", "recall_of", "recall_queries")  # by a receipt
LISTS = 4  # times the square root of the passages
SAMPLE, ROUNDS = 32, 5  # drawn passages for each list, and rounds of k-means


class Lists(Exact):
    """A corpus of which the lists nearest to a query are searched."""

    def __init__(self, corpus: Vectors, folder: Path) -> None:
        """Open the index that `write` made of the corpus."""
        super().__init__(corpus)
        store.check_files(folder, store.read_receipt(folder) or {"files": {FILE: ""}})
        with np.load(folder / FILE) as arrays:
            self.centroids, self.members, self.starts = arrays["centroids"], arrays["members"], arrays["starts"]
            self.probes = int(arrays["probes"])

    def parts(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, slice]]]]:
        """Return the lists that are to be searched, in blocks, each with the queries that it is near to."""
        probed = nearest(queries, Exact(self.centroids), self.probes)[0]
        order = np.argsort(probed, axis=None, kind="stable")
        numbers, first = np.unique(probed.reshape(-1)[order], return_index=True)
        asking = np.split(order // probed.shape[1], first[1:])
        sizes = np.diff(self.starts)[numbers]
        ends = sizes.cumsum()
        rows = self.members[np.arange(ends[-1]) - np.repeat(ends - sizes - self.starts[numbers], sizes)]
        for start in range(0, len(rows), self.block):
            stop = min(start + self.block, len(rows))
            here = range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends - sizes, stop)))
            bounds = [(max(int(ends[i] - sizes[i]), start) - start, min(int(ends[i]), stop) - start) for i in here]
            yield (
                rows[start:stop].astype(np.int64),
                [(asking[i], slice(*bound)) for i, bound in zip(here, bounds, strict=True) if bound[0] < bound[1]],
            )


def write(folder: Path, corpus: Vectors, questions: Vectors, k: int, seed: int, source: str) -> dict[str, Any]:
    """Make the index of a corpus (n, dim) and return what its receipt says.

    Args:
        folder: where to.
        corpus: what to search.
        questions: (q, dim), the queries.
        k: nearest passages that recall is of.
        seed: of what is drawn.
        source: its name, for the draws.
    """
    count = min(len(corpus), max(1, round(LISTS * len(corpus) ** 0.5)))
    centroids = _centroids(corpus, count, seed, source)
    number = np.concatenate([found for _, found in _assigned(corpus, np.arange(len(corpus)), centroids)])
    members = np.argsort(number, kind="stable")
    starts = np.concatenate([[0], np.bincount(number, minlength=count).cumsum()])
    asked = questions[_drawn(seed, f"{source}/recall", len(questions), ASKED)]
    ranks = _ranks(asked, corpus, number, centroids, min(k, len(corpus)))
    probes = int(np.quantile(ranks[::2], RECALL, method="inverted_cdf")) + 1
    with store.atomic(folder / FILE) as file:
        np.savez(file, centroids=centroids, members=members.astype(np.int32), starts=starts, probes=np.array(probes, np.int64))
    measured = ranks[1::2] if len(ranks) > 1 else ranks
    recall = round(float((measured < probes).mean()), 4)
    return dict(zip(SAID, ("ivf", count, probes, recall, ranks.shape[1], len(measured)), strict=True))


def _centroids(corpus: Vectors, count: int, seed: int, source: str) -> np.ndarray:
    """Return unit centroids (count, dim) float32 of drawn passages."""
    sample = _drawn(seed, f"{source}/lists", len(corpus), SAMPLE * count)
    centroids = corpus[sample[:: max(1, len(sample) // count)][:count]]
    for _ in range(ROUNDS):
        sums = np.zeros(centroids.shape, np.float64)
        for vectors, found in _assigned(corpus, sample, centroids):
            order = np.argsort(found, kind="stable")
            here, first = np.unique(found[order], return_index=True)
            sums[here] += np.add.reduceat(vectors[order].astype(np.float64), first)
        length = np.sqrt(np.einsum("nd,nd->n", sums, sums))[:, None]
        centroids = np.where(length > 0, sums / np.maximum(length, 1e-30), centroids).astype(np.float32)
    return centroids


def _assigned(corpus: Vectors, rows: np.ndarray, centroids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return the vectors of rows, block by block, each with the number (n,) of its nearest centroid."""
    for start in range(0, len(rows), QUERIES):
        vectors = corpus[rows[start : start + QUERIES]]
        yield vectors, nearest(vectors, Exact(centroids, PASSAGES), 1)[0][:, 0]


def _ranks(queries: np.ndarray, corpus: Vectors, number: np.ndarray, centroids: np.ndarray, k: int) -> np.ndarray:
    """Return (q, k) for each of a query's k nearest passages the rank of its list, 0 for the nearest centroid."""
    lists = nearest(queries, Exact(centroids), len(centroids))[0]
    rank = np.empty_like(lists)
    np.put_along_axis(rank, lists, np.arange(lists.shape[1])[None, :], axis=1)
    return np.take_along_axis(rank, number[nearest(queries, Exact(corpus), k)[0]], axis=1)


def _drawn(seed: int, purpose: str, of: int, most: int) -> np.ndarray:
    """Return up to `most` distinct numbers below `of`, drawn, ascending."""
    return np.sort(np.argsort(draws(seed, purpose, np.arange(of)), kind="stable")[:most])
