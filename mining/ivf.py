"""Approximate search (`index: ivf`): passages are kept in lists around centroids, and a query searches its nearest lists.

    candidates/<source>/index/index.npz    centroids (lists, dim) float32; members (n,) rows of the corpus, list by list;
                              done.json    starts (lists + 1,) of each list in them; probes: lists searched per query; recall

The lists that a query searches are searched exactly, so recall is the share of its k nearest passages that are in them.
An exact search for a sample of queries measures it: one half of the sample decides how many lists reach `RECALL`, the
other half gives the recall in the receipt.

Centroids come from spherical k-means on a sample of the passages. The exact search finds each nearest centroid, and sums
are float64 in a fixed order, so the lists are the same for any number of threads and processes.

Why not faiss's IndexIVFFlat: it holds a second copy of all vectors, in memory or (OnDiskInvertedLists) in a file that took
3.5 times the size of the vectors; this index holds 4 bytes per passage and reads vectors from the embedding store.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from curation.core import store
from curation.core.record import draws
from mining.embeddings import Vectors
from mining.search import QUERIES, Exact, nearest

INDEX_FORMAT = 1
INDEX_FILE = "index.npz"
LEAST = 100_000  # passages: fewer are searched exactly
RECALL = 0.95  # of the nearest passages, to be reached
ASKED = 512  # queries in the sample
IN_RECEIPT = ("kind", "lists", "probes", "recall", "recall_of", "recall_queries")
LISTS = 4  # times the square root of the passages
SAMPLE, ROUNDS = 32, 5  # sampled passages per list, and rounds of k-means


class Lists(Exact):
    """A corpus of which only the lists nearest to a query are searched."""

    def __init__(self, corpus: Vectors, folder: Path) -> None:
        """Open the index of the corpus that `write_index` wrote."""
        super().__init__(corpus)
        store.check_files(folder, store.read_receipt(folder) or {"files": {INDEX_FILE: ""}})
        with np.load(folder / INDEX_FILE) as arrays:
            self.centroids, self.members, self.starts = arrays["centroids"], arrays["members"], arrays["starts"]
            self.probes = int(arrays["probes"])

    def parts(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, slice]]]]:
        """Yield the lists to search, in blocks, each with the queries that are near to them."""
        # which queries search which list
        probed = nearest(queries, Exact(self.centroids), self.probes)[0]
        order = np.argsort(probed, axis=None, kind="stable")
        numbers, first = np.unique(probed.reshape(-1)[order], return_index=True)
        asking = np.split(order // probed.shape[1], first[1:])
        # the members of these lists, one list after the other
        sizes = np.diff(self.starts)[numbers]
        ends = sizes.cumsum()
        rows = self.members[np.arange(ends[-1]) - np.repeat(ends - sizes - self.starts[numbers], sizes)]
        for start in range(0, len(rows), self.block):
            stop = min(start + self.block, len(rows))
            here = range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends - sizes, stop)))
            bounds = [(max(int(ends[i] - sizes[i]), start) - start, min(int(ends[i]), stop) - start) for i in here]
            groups = [(asking[i], slice(*bound)) for i, bound in zip(here, bounds, strict=True) if bound[0] < bound[1]]
            yield rows[start:stop].astype(np.int64), groups


def write_index(folder: Path, corpus: Vectors, questions: Vectors, k: int, seed: int, source: str) -> dict[str, Any]:
    """Write the index of a corpus (n, dim) into a folder and return the entries of its receipt.

    Args:
        folder: where to write.
        corpus: what to search.
        questions: (q, dim), the queries.
        k: how many nearest passages recall counts.
        seed: for the samples.
        source: the source's name, for the samples.
    """

    def sample(purpose: str, of: int, most: int) -> np.ndarray:
        """Return up to `most` distinct random numbers below `of`, ascending."""
        return np.sort(np.argsort(draws(seed, f"{source}/{purpose}", np.arange(of)), kind="stable")[:most])

    def in_blocks(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the vectors of rows, block by block, each with the number (n,) of its nearest centroid."""
        for start in range(0, len(rows), QUERIES):
            vectors = corpus[rows[start : start + QUERIES]]
            yield vectors, nearest(vectors, Exact(centroids), 1)[0][:, 0]

    # k-means on sampled passages
    count = min(len(corpus), max(1, round(LISTS * len(corpus) ** 0.5)))
    drawn = sample("lists", len(corpus), SAMPLE * count)
    centroids = corpus[drawn[:: max(1, len(drawn) // count)][:count]]
    for _ in range(ROUNDS):
        sums = np.zeros(centroids.shape, np.float64)
        for vectors, found in in_blocks(drawn):
            order = np.argsort(found, kind="stable")
            here, first = np.unique(found[order], return_index=True)
            sums[here] += np.add.reduceat(vectors[order].astype(np.float64), first)
        length = np.sqrt(np.einsum("nd,nd->n", sums, sums))[:, None]
        centroids = np.where(length > 0, sums / np.maximum(length, 1e-30), centroids).astype(np.float32)

    # every passage goes to the list of its nearest centroid
    number = np.concatenate([found for _, found in in_blocks(np.arange(len(corpus)))])
    members = np.argsort(number, kind="stable")
    starts = np.concatenate([[0], np.bincount(number, minlength=count).cumsum()])

    # for sampled queries, the rank of the list that holds each of the k nearest passages; 0 for the nearest centroid
    asked = questions[sample("recall", len(questions), ASKED)]
    lists = nearest(asked, Exact(centroids), count)[0]
    rank_of_list = np.empty_like(lists)
    np.put_along_axis(rank_of_list, lists, np.arange(lists.shape[1])[None, :], axis=1)
    ranks = np.take_along_axis(rank_of_list, number[nearest(asked, Exact(corpus), min(k, len(corpus)))[0]], axis=1)
    probes = int(np.quantile(ranks[::2], RECALL, method="inverted_cdf")) + 1
    measured = ranks[1::2] if len(ranks) > 1 else ranks
    recall = round(float((measured < probes).mean()), 4)

    with store.atomic(folder / INDEX_FILE) as file:
        np.savez(file, centroids=centroids, members=members.astype(np.int32), starts=starts, probes=np.array(probes, np.int64))
    return dict(zip(IN_RECEIPT, ("ivf", count, probes, recall, ranks.shape[1], len(measured)), strict=True))
