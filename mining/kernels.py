"""Compiled loops: exact scores of candidates, and the share of words that two texts have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


def _inner_products(queries: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the inner product of query i with `rows[places[i, j]]`, (q, k) float64, each summed in float64.

    A sum depends on its two vectors alone, not on the rest of the batch. The compiler chooses the order of the sum for the
    processor, so two kinds of processor may differ in the last bits (1e-16).

    Args:
        queries: (q, dim) float32.
        rows: (n, dim) float32.
        places: (q, k) int64, rows of `rows`.
    """
    found = np.empty(places.shape, np.float64)
    for query in range(places.shape[0]):
        for place in range(places.shape[1]):
            total, row = 0.0, places[query, place]
            for at in range(queries.shape[1]):
                total += np.float64(queries[query, at]) * np.float64(rows[row, at])
            found[query, place] = total
    return found


def _shared_parts(starts: np.ndarray, codes: np.ndarray, left: np.ndarray, right: np.ndarray, probes: int) -> np.ndarray:
    """Return (n,) float32: the share of the smaller text's shingles that the other has too, for texts left[i], right[i].

    Args:
        starts: (texts + 1,) int64; text t has `codes[starts[t]:starts[t + 1]]`.
        codes: u64, ascending within a text; the lower half is a shingle's hash, the upper half the text.
        left: (n,) texts.
        right: (n,) texts.
        probes: the share is 0 where the other text has none of the smaller text's first `probes` shingles.
    """
    low = np.uint64(0xFFFFFFFF)
    found = np.zeros(len(left), np.float32)
    for pair in range(len(left)):
        small, large = left[pair], right[pair]
        if starts[small + 1] - starts[small] > starts[large + 1] - starts[large]:
            small, large = large, small
        first, size = starts[small], starts[small + 1] - starts[small]
        at, end, shared = starts[large], starts[large + 1], 0
        for number in range(size):
            if number == probes and shared == 0:
                break
            wanted, high = codes[first + number] & low, end
            while at < high:  # the first shingle of the larger text that is not below the wanted one
                middle = (at + high) // 2
                if codes[middle] & low < wanted:
                    at = middle + 1
                else:
                    high = middle
            if at < end and codes[at] & low == wanted:
                shared += 1
        if size:
            found[pair] = shared / size
    return found


def compiled(function: Any, **settings: Any) -> Any:
    """Compile a function and cache the result on disk, if numba finds a folder that it can write to."""
    try:
        return njit(nogil=True, cache=True, **settings)(function)
    except RuntimeError:
        return njit(nogil=True, **settings)(function)


inner_products = compiled(_inner_products, fastmath={"reassoc", "contract"})  # sums in the vectors of the processor
shared_parts = compiled(_shared_parts)
