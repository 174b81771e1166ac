"""Which texts are nearly the same: MinHash finds candidates, the exact Jaccard of their shingles decides.

The texts and their band keys lie in files; one band at a time is in memory, sorted. So many texts need little memory.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import polars as pl

from curation.duplicates.shingles import Buffers
from curation.duplicates.signatures import jaccard, read, repeated, sketch
from curation.text import connected

RECALL = 0.99  # share of pairs exactly at the lowest score that become candidates
PERMUTATIONS = 130  # at most; 128 would not do for 5 rows a band at 0.7
WINDOW = 64  # entries with an equal band key that one is compared with, at most
BATCH = 1 << 16  # texts sketched, and entries compared, at a time
COMPARED = 1 << 15  # pairs compared until mapped pages are given back: each text may bring 64 kB of its neighbours with it
WAITING = 1 << 22  # candidate pairs that are collected before they are verified
HALF = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)


class Corpus(NamedTuple):
    """Texts and what is known of each, in the files of a folder. An entry is a text taken one way (`signatures.Sketches`)."""

    folder: Path
    texts: Buffers
    entries: np.ndarray  # (entries,) i64
    counts: np.ndarray  # (entries,) u32
    forms: np.ndarray  # (texts,) u64


class Near(NamedTuple):
    """Texts that match: by equal normalised form, or by the Jaccard of their shingles."""

    form: np.ndarray  # (texts,) i64: the first text of the same normalised form
    left: np.ndarray  # (edges,) i64: first texts of a form; left < right, in order
    right: np.ndarray
    score: np.ndarray  # (edges,) f64: exact Jaccard


def bands_for(lowest: float, recall: float = RECALL) -> tuple[int, int]:
    """Return (bands, rows a band) that find a pair of Jaccard `lowest` with probability `recall`, and the fewest below it.

    A pair of Jaccard j is found with probability 1 - (1 - j^rows)^bands; more rows let fewer through from below.
    """
    fits = [(1, 1)]
    for rows in range(1, PERMUTATIONS + 1):
        found = lowest**rows
        bands = max(1, math.ceil(math.log(1 - recall) / math.log1p(-found))) if found < 1 else 1
        if bands * rows <= PERMUTATIONS:
            fits.append((bands, rows))
    return fits[-1]


def near(batches: Iterable[pl.Series], lowest: float, folder: Path) -> Near:
    """Return which texts (no nulls) match with a Jaccard of at least `lowest`, in (0, 1]; it sets the bands.

    Everything that is large is written into `folder`.
    """
    corpus = write_corpus(batches, lowest, folder)
    form = firsts(corpus.forms)
    return Near(form, *matches(corpus, own_entries(form, corpus.entries, corpus.counts), lowest))


def own_entries(form: np.ndarray, entries: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the numbers of the entries that have shingles and are of the first text of a form."""
    return np.flatnonzero((form == np.arange(len(form)))[_texts_of(entries)] & (counts > 0))


def slices(texts: pl.Series) -> Iterator[pl.Series]:
    """Cut texts into batches."""
    yield from (texts.slice(first, BATCH) for first in range(0, len(texts), BATCH))


def write_corpus(batches: Iterable[pl.Series], lowest: float, folder: Path) -> Corpus:
    """Sketch texts, batch by batch, into the files of a folder."""
    bands, rows = bands_for(lowest)
    total = texts = 0
    with ExitStack() as closing:
        file = files_for(folder, bands, closing)
        for batch in batches:
            buffers = read(batch)
            found = sketch(buffers, bands, rows)
            total = append_texts(file, buffers, total)
            file["entries"].write(np.where(found.entries < 0, found.entries - texts, found.entries + texts).tobytes())
            file["counts"].write(found.counts.tobytes())
            file["forms"].write(found.forms.tobytes())
            for band, keys in enumerate(np.ascontiguousarray(found.keys.T)):
                file[f"keys-{band}"].write(keys.tobytes())
            texts += len(batch)
    return open_corpus(folder)


def files_for(folder: Path, bands: int, closing: ExitStack) -> dict[str, BinaryIO]:
    """Open the files of a corpus, to be appended to: data, starts, entries, counts, forms, and the keys of each band."""
    names = ["data", "starts", "entries", "counts", "forms", *(f"keys-{band}" for band in range(bands))]
    file: dict[str, BinaryIO] = {name: closing.enter_context((folder / name).open("wb")) for name in names}
    file["starts"].write(np.zeros(1, np.int64).tobytes())
    return file


def append_texts(file: dict[str, BinaryIO], buffers: Buffers, total: int) -> int:
    """Append texts to a corpus of `total` bytes; return how many it has then."""
    first, last = int(buffers.starts[0]), int(buffers.starts[-1])
    file["data"].write(buffers.data[first:last].data)
    file["starts"].write((buffers.starts[1:] + (total - first)).data)
    return total + last - first


def open_corpus(folder: Path) -> Corpus:
    """Return the corpus that lies in a folder."""
    texts = Buffers(_mapped(folder / "data", np.uint8), _mapped(folder / "starts", np.int64))
    columns = (("entries", np.int64), ("counts", np.uint32), ("forms", np.uint64))
    return Corpus(folder, texts, *(_mapped(folder / name, kind) for name, kind in columns))


def _mapped(path: Path, kind: type) -> np.ndarray:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def _texts_of(entries: np.ndarray) -> np.ndarray:
    return np.where(entries < 0, ~entries, entries)


def firsts(forms: np.ndarray) -> np.ndarray:
    """Return for each text the first one with its form, (texts,) i64; a text without any word is alone."""
    order = np.argsort(forms, kind="stable")
    placed = forms[order]
    new = np.append(True, placed[1:] != placed[:-1])[: len(placed)] | (placed == 0)
    del placed
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(order[new], np.diff(np.append(np.flatnonzero(new), len(order))))
    return first


def matches(
    corpus: Corpus, able: np.ndarray, lowest: float, owners: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (left, right, score) of the pairs of texts, in order, that the bands find among the entries `able`.

    With `owners`, the first entry of each owner of entries, only pairs of two owners.
    """
    known, scores = np.zeros(0, np.uint64), np.zeros(0)  # pairs of entries found so far, left << 32 | right, sorted
    waiting: list[np.ndarray] = []
    bands = len(list(corpus.folder.glob("keys-*")))
    for band in range(bands):
        for pairs in _candidates(_placed(corpus.folder / f"keys-{band}", able), owners):
            waiting.append(pairs)
            if sum(map(len, waiting)) > WAITING:
                known, scores = _verified(corpus, waiting, known, scores, lowest)
                waiting = []
    if waiting:
        known, scores = _verified(corpus, waiting, known, scores, lowest)
    left, right = (_texts_of(corpus.entries[half.astype(np.int64)]) for half in (known >> HALF, known & LOW))
    left, right = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((right, left))
    order = order[left[order] != right[order]]
    return left[order], right[order], scores[order]


def _verified(
    corpus: Corpus, waiting: list[np.ndarray], known: np.ndarray, scores: np.ndarray, lowest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the known pairs and their scores with those of the waiting ones that match."""
    pairs = np.concatenate(waiting)
    pairs.sort()  # np.unique takes fifteen times as long
    pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]
    pairs = pairs[~_among(pairs, known)]
    left, right = (pairs >> HALF).astype(np.int64), (pairs & LOW).astype(np.int64)
    one_way = (corpus.entries[left] >= 0) | (corpus.entries[right] >= 0)  # long texts are compared by words alone
    pairs, left, right = pairs[one_way], left[one_way], right[one_way]
    found = [np.zeros(0)]
    for first in range(0, len(pairs), COMPARED):
        some = slice(first, first + COMPARED)
        found.append(jaccard(corpus.texts, corpus.entries, corpus.counts, left[some], right[some], lowest))
        _forget(corpus)
    score = np.concatenate(found)
    good = score >= lowest
    known, scores = np.append(known, pairs[good]), np.append(scores, score[good])
    order = np.argsort(known)
    return known[order], scores[order]


def _placed(path: Path, able: np.ndarray) -> np.ndarray:
    """Return key << 32 | entry of the entries whose key another one has too, sorted: equal keys lie side by side."""
    keys = np.fromfile(path, np.uint32)
    able = repeated(keys, able)
    placed = keys[able].astype(np.uint64) << HALF
    del keys
    placed |= able.astype(np.uint64)
    placed.sort()
    same = np.zeros(len(placed) + 1, bool)  # whether an entry has the key of the one before
    for first in range(0, len(placed), BATCH):
        keys = placed[first : first + BATCH + 1] >> HALF
        same[first + 1 : first + len(keys)] = keys[1:] == keys[:-1]
    return np.asarray(placed[same[:-1] | same[1:]])


def _candidates(placed: np.ndarray, owners: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield pairs of entries with an equal key, each with at most WINDOW before it, or before the first of its owner."""
    keys, entries = placed >> HALF, placed & LOW
    own = np.arange(len(placed))
    if owners is not None and len(placed):
        owner = np.searchsorted(owners, entries, side="right")
        new = np.append(True, (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1]))
        own = np.maximum.accumulate(np.where(new, own, 0))
    for first in range(0, len(placed), BATCH):
        later = np.arange(first, min(first + BATCH, len(placed)))
        found = []
        for step in range(1, WINDOW + 1):
            later = later[own[later] >= step]
            later = later[keys[own[later] - step] == keys[later]]
            if not len(later):
                break
            found.append(entries[own[later] - step] << HALF | entries[later])
        if found:
            yield np.concatenate(found)


def _among(pairs: np.ndarray, known: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.zeros(len(pairs), bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, pairs), len(known) - 1)] == pairs)


def _forget(corpus: Corpus) -> None:
    """Let the system take back the pages of the mapped files."""
    for array in (*corpus.texts, corpus.entries, corpus.counts, corpus.forms):
        base = getattr(array, "_mmap", None)
        if base is not None:
            base.madvise(mmap.MADV_DONTNEED)


def families(found: Near, threshold: float) -> np.ndarray:
    """Return for each text the smallest number of a text it is linked to by pairs at or above the threshold, (texts,) i64."""
    good = found.score >= threshold
    count = len(found.form)
    left = np.concatenate([np.arange(count), found.left[good]])
    return connected(left, np.concatenate([found.form, found.right[good]]), count)
