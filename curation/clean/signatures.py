"""MinHash digests of texts, bit for bit those of datasketch 2.0's `affine32`, and the exact Jaccard of their shingle sets.

datasketch supplies the permutations, compiled loops (`kernels`) do the work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from datasketch import MinHash

from curation.clean import kernels
from curation.clean.shingles import WIDTH, WORDS, WORDS_ONLY
from curation.core import characters, fold_kernels
from curation.core.jit import Buffers, buffers_of
from curation.core.text import normalised

SEED = 1  # of the permutations; datasketch's default
RUN = 1 << 14  # texts sketched at a time: bounds the digests in memory
COMPARED_AT_A_TIME = 1 << 15  # pairs
ROOM = 1 << 20  # shingles of the texts compared at a time, unless a single pair has more
FILTERED = 1 << 21  # keys from which on sorting all of them is faster than a filter that fits no cache


class Sketches(NamedTuple):
    """What is kept of each entry: all texts in order, then the texts that also have CHARS (see `shingles`)."""

    entries: np.ndarray  # (entries,) i64: number of the text; ~number for its second entry, with CHARS
    keys: np.ndarray  # (entries, bands) u32: two entries with an equal key in a band are candidates
    counts: np.ndarray  # (entries,) u32 shingles, repeats included; 0 for a text that only equal texts match
    forms: np.ndarray  # (texts,) u64 hash of the normalised form; 0 if it is empty


def prepare(texts: pl.Series) -> Buffers:
    """Return texts (no nulls) as buffers for the compiled loops; texts that these cannot normalise are normalised here."""
    raw, found = buffers_of(texts), np.empty(len(texts), np.int64)
    left = found[: fold_kernels.unlisted(*raw, characters.folding_table(), found)]
    if not len(left):
        return raw
    forms = buffers_of(normalised(texts.gather(left)).fill_null(""))
    size = raw.starts[-1] - raw.starts[0] + forms.starts[-1] - forms.starts[0]
    whole = Buffers(np.empty(size, np.uint8), np.empty(len(texts) + 1, np.int64))
    fold_kernels.spliced(*raw, left, *forms, *whole)
    return whole


def permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return datasketch's affine32 permutations, (count,) u32 each."""
    a, b = MinHash(num_perm=count, seed=SEED, scheme="affine32").permutations
    return np.asarray(a, dtype=np.uint32), np.asarray(b, dtype=np.uint32)


def minhash_digests(texts: Buffers, count: int) -> np.ndarray:
    """Return MinHash digests, (texts, count) u32; a text without shingles has datasketch's digest of the empty set."""
    a, b = permutations(count)
    return np.concatenate([_sketch_rows(texts, run, a, b)[0] for run in _runs(texts)] or [np.zeros((0, count), np.uint32)])


def sketch(texts: Buffers, bands: int, rows: int) -> Sketches:
    """Sketch texts with `bands * rows` permutations, `rows` per band."""
    a, b = permutations(bands * rows)

    def keys_of_bands(found: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        keys = np.empty((len(found), bands), np.uint32)
        kernels.band_keys(found, kinds, rows, keys)
        return keys

    def one(run: np.ndarray) -> tuple[np.ndarray, ...]:
        found, counts, kinds, forms = _sketch_rows(texts, run, a, b)
        both_kinds = ~run[(kinds == WORDS) & (counts <= WORDS_ONLY - WIDTH[WORDS])]
        more, more_counts, more_kinds, _ = _sketch_rows(texts, both_kinds, a, b)
        return run, keys_of_bands(found, kinds), counts, forms, both_kinds, keys_of_bands(more, more_kinds), more_counts

    parts = list(zip(*map(one, _runs(texts)), strict=True))
    if not parts:
        return Sketches(np.zeros(0, np.int64), np.zeros((0, bands), np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.uint64))
    run, keys, counts, forms, both_kinds, more_keys, more_counts = parts
    entries, all_keys, all_counts = map(np.concatenate, ((*run, *both_kinds), (*keys, *more_keys), (*counts, *more_counts)))
    return Sketches(entries, all_keys, all_counts, np.concatenate(forms))


def _runs(texts: Buffers) -> list[np.ndarray]:
    count = len(texts.starts) - 1
    return [np.arange(first, min(first + RUN, count)) for first in range(0, count, RUN)]


def _sketch_rows(texts: Buffers, rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return digests, counts, kinds and forms of `rows`: n for a text, ~n for a text with CHARS in place of WORDS."""
    found = np.empty((len(rows), len(a)), np.uint32)
    counts, kinds, forms = np.empty(len(rows), np.uint32), np.empty(len(rows), np.uint8), np.empty(len(rows), np.uint64)
    kernels.sketch_texts(*texts, characters.folding_table(), rows, a, b, found, counts, kinds, forms)
    return found, counts, kinds, forms


def repeated(keys: np.ndarray, able: np.ndarray, count: int, bits: int, part: int) -> np.ndarray:
    """Return key << 32 | entry, u64, of all entries whose key occurs again, and of a few others.

    Only entries that are `able` (bool, `count` of them are) and whose key begins with the `bits` bits of `part` count.
    """
    log = max(count.bit_length() + 3, 10) if count < FILTERED else 6  # 8 to 16 bits per key; or 64 bits, which let all through
    once, twice = np.zeros((2, 1 << (log - 6)), np.uint64)
    some = kernels.mark_repeats(keys, able, bits, part, 32 - bits - log, once, twice)
    found = np.empty(some + 1, np.uint64)
    return found[: kernels.find_repeats(keys, able, bits, part, 32 - bits - log, twice, found)]


def jaccard(
    texts: Buffers,
    entries: np.ndarray,
    counts: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    least: float,
) -> np.ndarray:
    """Return the Jaccard of the shingle sets of entries left[i] and right[i], 0 if below `least`.

    Exact up to equal 64-bit hashes. Sorted pairs are fastest: an entry's set is made once for all its pairs.
    """
    scores, first = [np.zeros(0)], 0
    while first < len(left):
        used, i, j = (np.empty(size, np.int64) for size in (2 * COMPARED_AT_A_TIME, COMPARED_AT_A_TIME, COMPARED_AT_A_TIME))
        some = slice(first, first + COMPARED_AT_A_TIME)
        pairs, size = kernels.number_entries(left[some], right[some], counts, ROOM, used, i, j)
        used, i, j = used[:size], i[:pairs], j[:pairs]  # the distinct entries, and where among them lefts and rights are
        ends = np.cumsum(counts[used].astype(np.int64))
        bounds, sizes, hashes = ends - counts[used], np.empty(len(used), np.int64), np.empty(ends[-1], np.uint64)
        kernels.shingle_sets(*texts, characters.folding_table(), entries[used], bounds, hashes, sizes)
        scores.append(np.empty(pairs))
        kernels.jaccard_of_sets(hashes, bounds, sizes, i, j, least, scores[-1])
        first += pairs
    return np.concatenate(scores)
