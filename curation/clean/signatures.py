"""MinHash digests of texts, bit for bit those of datasketch 2.0's `affine32`, and the exact Jaccard of their shingle sets.

datasketch supplies the permutations. The work is done by compiled loops where numba has a folder to keep them, else by
numpy: slower, with the same result. Texts are cut into runs, and the result depends on neither runs nor threads.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl
from datasketch import MinHash

from curation.clean.shingles import LONGER, WIDTH, WORDS, Shingled, forms_of, shingle
from curation.core.jit import Buffers, buffers_of
from curation.core.text import normalised
from curation.engine.local import processors

kernels: ModuleType | None
try:
    from curation.clean import kernels, table_kernels
    from curation.core import characters, fold_kernels
except (ImportError, RuntimeError):  # no numba, or no folder in which it could keep what it compiled
    kernels = None

SEED = 1  # of the permutations; datasketch's default
RUN = 1 << 14  # texts sketched at a time: bounds the digests in memory
NUMPY_BYTES = 1 << 21  # bytes shingled at a time by numpy
PAIRS = 1 << 15  # pairs compared at a time, by one thread
ROOM = 1 << 20  # shingles of the texts that these are pairs of, but for one pair of longer ones
FILTERED = 1 << 21  # keys from which on sorting all is quicker than a filter that no cache holds
T = TypeVar("T")
R = TypeVar("R")


class Sketches(NamedTuple):
    """What is kept of each entry: all texts in order, then those that are also taken as shorter ones."""

    entries: np.ndarray  # (entries,) i64: number of the text; ~number where it is taken as a shorter one
    keys: np.ndarray  # (entries, bands) u32: equal keys in a band make two entries candidates
    counts: np.ndarray  # (entries,) u32 shingles, repeats included; 0 for a text that only exact copies match
    forms: np.ndarray  # (texts,) u64 hash of the normalised form; 0 where it is empty


def read(texts: pl.Series) -> Buffers:
    """Return texts (no nulls) ready for the other functions: normalised where the compiled loops could not do it themselves."""
    if not kernels:
        return buffers_of(normalised(texts).fill_null(""))
    raw, found = buffers_of(texts), np.empty(len(texts), np.int64)
    left = found[: fold_kernels.untold(*raw, characters.folding_table(), found)]
    if not len(left):
        return raw
    forms = buffers_of(normalised(texts.gather(left)).fill_null(""))
    size = raw.starts[-1] - raw.starts[0] + forms.starts[-1] - forms.starts[0]
    whole = Buffers(np.empty(size, np.uint8), np.empty(len(texts) + 1, np.int64))
    fold_kernels.spliced(*raw, left, *forms, *whole)
    return whole


def threads() -> int:
    """Return how many threads to use: one in a worker process, else one a processor."""
    return 1 if multiprocessing.parent_process() else processors()


def permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return datasketch's affine32 permutations, (count,) u32 each."""
    a, b = MinHash(num_perm=count, seed=SEED, scheme="affine32").permutations
    return np.asarray(a, dtype=np.uint32), np.asarray(b, dtype=np.uint32)


def digests(texts: Buffers, count: int) -> np.ndarray:
    """Return MinHash digests, (texts, count) u32; a text without shingles has datasketch's digest of the empty set."""
    a, b = permutations(count)
    return np.concatenate([_sketch(texts, run, a, b)[0] for run in _runs(texts)] or [np.zeros((0, count), np.uint32)])


def sketch(texts: Buffers, bands: int, rows: int) -> Sketches:
    """Sketch texts with `bands * rows` permutations, `rows` a band."""
    a, b = permutations(bands * rows)

    def one(run: np.ndarray) -> tuple[np.ndarray, ...]:
        found, counts, kinds, forms = _sketch(texts, run, a, b)
        twice = ~run[(kinds == WORDS) & (counts <= LONGER - WIDTH[WORDS])]
        more, more_counts, more_kinds, _ = _sketch(texts, twice, a, b)
        keys, more_keys = _band_keys(found, kinds, bands, rows), _band_keys(more, more_kinds, bands, rows)
        return run, keys, counts, forms, twice, more_keys, more_counts

    parts = list(zip(*_each(one, _runs(texts)), strict=True))
    if not parts:
        return Sketches(np.zeros(0, np.int64), np.zeros((0, bands), np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.uint64))
    run, keys, counts, forms, twice, more_keys, more_counts = parts
    entries, all_keys, all_counts = map(np.concatenate, ((*run, *twice), (*keys, *more_keys), (*counts, *more_counts)))
    return Sketches(entries, all_keys, all_counts, np.concatenate(forms))


def _runs(texts: Buffers) -> Iterator[np.ndarray]:
    count = len(texts.starts) - 1
    if kernels:
        yield from (np.arange(first, min(first + RUN, count)) for first in range(0, count, RUN))
    elif count:
        yield from _runs_of_bytes(texts, np.arange(count))


def _runs_of_bytes(texts: Buffers, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut rows into runs of about NUMPY_BYTES, each of at least one text, and all taken the same way."""
    numbers = np.where(rows < 0, ~rows, rows)
    sizes = texts.starts[numbers + 1] - texts.starts[numbers]
    block = (np.cumsum(sizes) - sizes) // NUMPY_BYTES
    yield from np.split(rows, np.flatnonzero(np.diff(block) | np.diff(rows < 0)) + 1)


def _each(work: Callable[[T], R], parts: Iterable[T]) -> list[R]:
    """Return work(part) of each part, in order, on all threads."""
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(work, parts))


def _sketch(texts: Buffers, rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return digests, counts, kinds and forms of `rows`: texts, or ~texts as shorter ones, not both at once."""
    if kernels:
        found = np.empty((len(rows), len(a)), np.uint32)
        counts, kinds, forms = np.empty(len(rows), np.uint32), np.empty(len(rows), np.uint8), np.empty(len(rows), np.uint64)
        kernels.sketch(*texts, characters.folding_table(), rows, a, b, found, counts, kinds, forms)
        return found, counts, kinds, forms
    hashes, starts, kinds, forms = _shingled(texts, rows)
    counts = np.diff(starts)
    mixed = fmix32((hashes >> np.uint64(32)).astype(np.uint32))
    found = np.full((len(rows), len(a)), 0xFFFFFFFF, np.uint32)
    some = np.flatnonzero(counts)
    for k in range(len(a) if len(some) else 0):
        found[some, k] = np.minimum.reduceat(mixed * a[k] + b[k], starts[some])
    return found, counts.astype(np.uint32), kinds, forms


def _shingled(texts: Buffers, rows: np.ndarray) -> Shingled:
    longer = bool(len(rows) and rows[0] < 0)
    return shingle(forms_of(texts, ~rows if longer else rows), longer)


def fmix32(h: np.ndarray) -> np.ndarray:
    """Return MurmurHash3's finalizer of u32 values, which datasketch applies before its permutations."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return np.asarray(h ^ (h >> np.uint32(16)))


def _band_keys(found: np.ndarray, kinds: np.ndarray, bands: int, rows: int) -> np.ndarray:
    if kernels:
        keys = np.empty((len(found), bands), np.uint32)
        kernels.band_keys(found, kinds, rows, keys)
        return keys
    values = found.reshape(len(found), bands, rows).astype(np.uint64)
    wide = np.repeat(kinds.astype(np.uint64)[:, None], bands, axis=1)
    for at in range(rows):
        wide = (wide ^ values[:, :, at]) * np.uint64(0xFF51AFD7ED558CCD)
        wide ^= wide >> np.uint64(32)
    return wide.astype(np.uint32)


def repeated(keys: np.ndarray, able: np.ndarray, count: int, bits: int, part: int) -> np.ndarray:
    """Return key << 32 | entry, u64, of the entries whose key another one has too, and of some more.

    Only of those that are `able`, which `count` of all entries are, and whose key's first `bits` bits are `part`.
    """
    if not kernels:
        at = np.flatnonzero(able & (keys >> np.uint32(1) >> np.uint32(31 - bits) == part))
        return keys[at].astype(np.uint64) << np.uint64(32) | at.astype(np.uint64)
    log = max(count.bit_length() + 3, 10) if count < FILTERED else 6  # 8 to 16 bits a key: few more; or 64 bits: all
    once, twice = np.zeros((2, 1 << (log - 6)), np.uint64)
    some = table_kernels.marked(keys, able, bits, part, 32 - bits - log, once, twice)
    found = np.empty(some + 1, np.uint64)
    return found[: table_kernels.repeated(keys, able, bits, part, 32 - bits - log, twice, found)]


def jaccard(
    texts: Buffers, entries: np.ndarray, counts: np.ndarray, left: np.ndarray, right: np.ndarray, least: float
) -> np.ndarray:
    """Return the Jaccard of the shingle sets of entries left[i] and right[i]; 0 where it is below `least`.

    Exact up to equal 64-bit hashes. Sorted pairs are quickest: the set of an entry is made once for PAIRS of them.
    """

    def one(part: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        used, i, j = part
        hashes, bounds, sizes = _sets(texts, entries[used], counts[used].astype(np.int64))
        scores = np.empty(len(i))
        if kernels:
            table_kernels.jaccard(hashes, bounds, sizes, i, j, least, scores)
            return scores
        both = _shared(hashes, bounds, sizes, i, j)
        score = both / np.maximum(sizes[i] + sizes[j] - both, 1)
        return np.asarray(np.where(score >= least, score, 0.0))

    return np.concatenate([np.zeros(0), *_each(one, _parts(counts, left, right))])


def _parts(counts: np.ndarray, left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cut pairs into runs; yield the distinct entries of each, and where among them its lefts and rights are."""
    first = 0
    while first < len(left):
        some = slice(first, first + PAIRS)
        if kernels:
            used, i, j = (np.empty(size, np.int64) for size in (2 * PAIRS, PAIRS, PAIRS))
            pairs, size = table_kernels.numbered(left[some], right[some], counts, ROOM, used, i, j)
            yield used[:size], i[:pairs], j[:pairs]
        else:
            used, at = np.unique(np.concatenate([left[some], right[some]]), return_inverse=True)
            i, j = np.split(at, 2)
            yield used, i, j
            pairs = len(i)
        first += pairs


def _sets(texts: Buffers, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (hashes, bounds, sizes): the sorted distinct shingles of row i, which has counts[i], begin at bounds[i]."""
    if kernels:
        ends = np.cumsum(counts)
        sizes = np.empty(len(rows), np.int64)
        hashes = np.empty(ends[-1], np.uint64)
        kernels.sets(*texts, characters.folding_table(), rows, ends - counts, hashes, sizes)
        return hashes, ends - counts, sizes
    parts = []
    for run in _runs_of_bytes(texts, rows):
        found = _shingled(texts, run)
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
