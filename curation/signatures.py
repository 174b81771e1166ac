"""MinHash digests of texts, bit for bit those of datasketch 2.0's `affine32`, and the exact Jaccard of their shingle sets.

datasketch supplies the permutations. The work is done by compiled loops where numba is installed (`tuplesmith[fast]`),
else by numpy: slower, with the same result. Texts are cut into runs, and the result depends on neither runs nor threads.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl
from datasketch import MinHash

from curation.shingles import Buffers, half_normalised, shingle

kernels: ModuleType | None
try:
    from curation import kernels
except (ImportError, RuntimeError):  # no numba, or no folder in which it could keep what it compiled
    kernels = None

SEED = 1  # of the permutations; datasketch's default
RUN = 1 << 14  # texts sketched at a time: bounds the digests in memory
NUMPY_BYTES = 1 << 21  # bytes shingled at a time by numpy
PAIRS = 1 << 16  # pairs compared at a time
T = TypeVar("T")
R = TypeVar("R")


class Texts(NamedTuple):
    """Texts as given, and as the compiled loops read them."""

    series: pl.Series
    buffers: Buffers


class Sketches(NamedTuple):
    """What is kept of each text."""

    keys: np.ndarray  # (texts, bands) u64: equal keys in a band make two texts candidates
    counts: np.ndarray  # (texts,) i64 shingles, repeats included; 0 for a text that only exact copies match
    kinds: np.ndarray  # (texts,) u8, as in `shingles`
    forms: np.ndarray  # (texts,) u64 hash of the normalised form; 0 where it is empty


def read(texts: pl.Series) -> Texts:
    """Return texts (no nulls) ready for the other functions."""
    return Texts(texts, half_normalised(texts) if kernels else Buffers(np.zeros(0, np.uint8), np.zeros(1, np.int64)))


def threads() -> int:
    """Return how many threads to use: one in a worker process, else one a processor."""
    return 1 if multiprocessing.parent_process() else len(os.sched_getaffinity(0))


def permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return datasketch's affine32 permutations, (count,) u32 each."""
    a, b = MinHash(num_perm=count, seed=SEED, scheme="affine32").permutations
    return np.asarray(a, dtype=np.uint32), np.asarray(b, dtype=np.uint32)


def digests(texts: Texts, count: int) -> np.ndarray:
    """Return MinHash digests, (texts, count) u32; a text without shingles has datasketch's digest of the empty set."""
    a, b = permutations(count)
    return np.concatenate([_sketch(texts, run, a, b)[0] for run in _runs(texts)] or [np.zeros((0, count), np.uint32)])


def sketch(texts: Texts, bands: int, rows: int) -> Sketches:
    """Sketch texts with `bands * rows` permutations, `rows` a band."""
    a, b = permutations(bands * rows)

    def one(run: np.ndarray) -> Sketches:
        found, counts, kinds, forms = _sketch(texts, run, a, b)
        return Sketches(_band_keys(found, kinds, bands, rows), counts, kinds, forms)

    parts = _each(one, _runs(texts))
    return Sketches(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _runs(texts: Texts) -> Iterator[np.ndarray]:
    count = len(texts.series)
    if kernels:
        yield from (np.arange(first, min(first + RUN, count)) for first in range(0, count, RUN))
    else:
        yield from _runs_of_bytes(texts.series, np.arange(count))


def _runs_of_bytes(series: pl.Series, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut texts into runs of about NUMPY_BYTES, each of at least one text."""
    sizes = series.gather(rows).str.len_bytes().to_numpy().astype(np.int64)
    block = (np.cumsum(sizes) - sizes) // NUMPY_BYTES
    yield from np.split(rows, np.flatnonzero(np.diff(block)) + 1)


def _each(work: Callable[[T], R], parts: Iterable[T]) -> list[R]:
    """Return work(part) of each part, in order, on all threads."""
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(work, parts))


def _sketch(texts: Texts, rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return digests, counts, kinds and forms of the texts numbered `rows`."""
    if kernels:
        found = np.empty((len(rows), len(a)), np.uint32)
        counts, kinds, forms = np.empty(len(rows), np.int64), np.empty(len(rows), np.uint8), np.empty(len(rows), np.uint64)
        kernels.sketch(*texts.buffers, rows, a, b, found, counts, kinds, forms)
        return found, counts, kinds, forms
    hashes, starts, kinds, forms = shingle(texts.series.gather(rows))
    counts = np.diff(starts)
    mixed = fmix32((hashes >> np.uint64(32)).astype(np.uint32))
    found = np.full((len(rows), len(a)), 0xFFFFFFFF, np.uint32)
    some = np.flatnonzero(counts)
    for k in range(len(a) if len(some) else 0):
        found[some, k] = np.minimum.reduceat(mixed * a[k] + b[k], starts[some])
    return found, counts, kinds, forms


def fmix32(h: np.ndarray) -> np.ndarray:
    """Return MurmurHash3's finalizer of u32 values, which datasketch applies before its permutations."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return np.asarray(h ^ (h >> np.uint32(16)))


def _band_keys(found: np.ndarray, kinds: np.ndarray, bands: int, rows: int) -> np.ndarray:
    keys = np.empty((len(found), bands), np.uint64)
    if kernels:
        kernels.band_keys(found, kinds, rows, keys)
        return keys
    values = found.reshape(len(found), bands, rows).astype(np.uint64)
    keys[:] = kinds[:, None]
    for at in range(rows):
        keys = (keys ^ values[:, :, at]) * np.uint64(0xFF51AFD7ED558CCD)
        keys ^= keys >> np.uint64(32)
    return keys


def jaccard(texts: Texts, counts: np.ndarray, left: np.ndarray, right: np.ndarray, least: float) -> np.ndarray:
    """Return the Jaccard of the shingle sets of texts left[i] and right[i]; 0 where it is certain to be below `least`.

    Exact up to equal 64-bit hashes. Sorted pairs are quickest: a text's set is made once a run of PAIRS.
    """
    size = PAIRS if kernels else PAIRS // 8

    def one(first: int) -> np.ndarray:
        some = slice(first, first + size)
        rows, at = np.unique(np.concatenate([left[some], right[some]]), return_inverse=True)
        hashes, bounds, sizes = _sets(texts, rows, counts)
        i, j = np.split(at, 2)
        scores = np.empty(len(i))
        if kernels:
            kernels.jaccard(hashes, bounds, sizes, i, j, least, scores)
            return scores
        both = _shared(hashes, bounds, sizes, i, j)
        fit = np.minimum(sizes[i], sizes[j]) >= least * np.maximum(sizes[i], sizes[j])
        return np.asarray(np.where(fit, both / np.maximum(sizes[i] + sizes[j] - both, 1), 0.0))

    return np.concatenate([np.zeros(0), *_each(one, range(0, len(left), size))])


def _sets(texts: Texts, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (hashes, bounds, sizes): the sorted distinct shingles of text rows[i] begin at bounds[i]."""
    if kernels:
        ends = np.cumsum(counts[rows])
        bounds, sizes = ends - counts[rows], np.empty(len(rows), np.int64)
        hashes = np.empty(ends[-1], np.uint64)
        kernels.sets(*texts.buffers, rows, bounds, hashes, sizes)
        return hashes, bounds, sizes
    parts = []
    for run in _runs_of_bytes(texts.series, rows):
        found = shingle(texts.series.gather(run))
        owner = np.repeat(np.arange(len(run)), np.diff(found.starts))
        order = np.lexsort((found.hashes, owner))
        owner, hashes = owner[order], found.hashes[order]
        new = np.append(True, (owner[1:] != owner[:-1]) | (hashes[1:] != hashes[:-1]))[: len(owner)]
        parts.append((hashes[new], np.bincount(owner[new], minlength=len(run))))
    sizes = np.concatenate([part[1] for part in parts])
    return np.concatenate([part[0] for part in parts]), np.cumsum(sizes) - sizes, sizes


def _shared(hashes: np.ndarray, bounds: np.ndarray, sizes: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return how many shingles the sets left[i] and right[i] share."""
    dense = np.unique(hashes, return_inverse=True)[1]
    most = int(dense.max()) + 1
    placed = np.repeat(np.arange(len(sizes)), sizes) * most + dense  # sorted, as sets and their shingles are
    pair = np.repeat(np.arange(len(left)), sizes[left])
    inside = np.arange(len(pair)) - np.repeat(np.cumsum(sizes[left]) - sizes[left], sizes[left])
    wanted = right[pair] * most + dense[bounds[left][pair] + inside]
    found = placed[np.minimum(np.searchsorted(placed, wanted), len(placed) - 1)] == wanted
    return np.bincount(pair[found], minlength=len(left))
