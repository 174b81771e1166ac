"""Pairs of texts that match: band by band the sketches bring candidates, and the exact Jaccard of their shingles decides.

However many texts there are, few are in memory: a band is sorted a range of keys at a time, candidates wait in files, one for
each SHARE of the texts, until all bands are through, and of one share after the other they are verified and written.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curation.clean.signatures import PAIRS, jaccard, repeated
from curation.core.jit import Buffers

WINDOW = 64  # entries with an equal band key that one is compared with, at most
BATCH = 1 << 16  # entries compared at a time
PART = 1 << 24  # entries of a band that are sorted at a time
WAITING = 1 << 22  # candidate pairs that are collected before they go to their files
SHARE = 1 << 22  # texts whose pairs with later ones are verified together
CROWDED = 1 << 24  # pairs of a share's file from which on those that stand there twice are taken out
MAPPED = 1 << 29  # bytes of texts up to which they are read through their map: a touch may bring a megabyte of neighbours
HALF = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)


class Corpus(NamedTuple):
    """Texts and what is known of each, in the files of a folder. An entry is a text taken one way (`signatures.Sketches`)."""

    folder: Path
    texts: Buffers
    entries: np.ndarray  # (entries,) i64
    counts: np.ndarray  # (entries,) u32
    forms: np.ndarray  # (texts,) u64


def open_corpus(folder: Path) -> Corpus:
    """Return the corpus that lies in a folder."""
    texts = Buffers(mapped(folder / "data", np.uint8), mapped(folder / "starts", np.int64))
    columns = (("entries", np.int64), ("counts", np.uint32), ("forms", np.uint64))
    return Corpus(folder, texts, *(mapped(folder / name, kind) for name, kind in columns))


def mapped(path: Path, kind: type) -> np.ndarray:
    """Return the values of a file, which are read where they are used."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def forget(corpus: Corpus) -> None:
    """Let the system take back the pages of the mapped files."""
    for array in (*corpus.texts, corpus.entries, corpus.counts, corpus.forms):
        base = getattr(array, "_mmap", None)
        if base is not None:
            base.madvise(mmap.MADV_DONTNEED)


def texts_of(entries: np.ndarray) -> np.ndarray:
    """Return the numbers of the texts of entries."""
    return np.where(entries < 0, ~entries, entries)


def matches(
    corpus: Corpus, able: np.ndarray, lowest: float, owners: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (left u32, right u32, score f64), mapped, of the pairs of texts in order that the bands find.

    Of the entries for which `able` (entries,) is true. With `owners`, the first entry of each owner of entries, only pairs of
    two owners.
    """
    shares = [corpus.folder / f"waiting-{share}" for share in range(len(corpus.forms) // SHARE + 1)]
    most = dict.fromkeys(shares, CROWDED)
    for pairs in _blocks(corpus, able, owners):
        _put_off(corpus, pairs, shares, most)
    kinds = {"left": np.uint32, "right": np.uint32, "score": np.float64}
    with ExitStack() as closing:
        file = {name: closing.enter_context((corpus.folder / name).open("wb")) for name in kinds}
        for share in shares:
            for name, values in zip(kinds, _verified(corpus, share, lowest), strict=True):
                file[name].write(values.astype(kinds[name]).data)
    left, right, score = (np.asarray(mapped(corpus.folder / name, kind)) for name, kind in kinds.items())
    return left, right, score


def _blocks(corpus: Corpus, able: np.ndarray, owners: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield the candidates of all bands, left << 32 | right, some millions at a time."""
    count = int(np.count_nonzero(able))
    bits = (count // PART).bit_length()
    waiting: list[np.ndarray] = []
    for band in range(len(list(corpus.folder.glob("keys-*")))):
        keys = np.fromfile(corpus.folder / f"keys-{band}", np.uint32)
        for part in range(1 << bits):
            for pairs in _candidates(_placed(keys, able, count, bits, part), owners):
                waiting.append(pairs)
                if sum(map(len, waiting)) > WAITING:
                    yield np.concatenate(waiting)
                    waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _placed(keys: np.ndarray, able: np.ndarray, count: int, bits: int, part: int) -> np.ndarray:
    """Return key << 32 | entry of the entries whose key another one has too, sorted: equal keys lie side by side."""
    placed = repeated(keys, able, count, bits, part)
    placed.sort()
    same = np.zeros(len(placed) + 1, bool)  # whether an entry has the key of the one before
    for first in range(0, len(placed), BATCH):
        some = placed[first : first + BATCH + 1] >> HALF
        same[first + 1 : first + len(some)] = some[1:] == some[:-1]
    return np.asarray(placed[same[:-1] | same[1:]])


def _candidates(placed: np.ndarray, owners: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield pairs of entries with an equal key, each with at most WINDOW before it, or before the first of its owner."""
    start = 0
    for first in range(0, len(placed), BATCH):
        later = own = np.arange(first, min(first + BATCH, len(placed)))
        if owners is not None:
            some = placed[max(first - 1, 0) : first + BATCH]
            keys, owner = some >> HALF, np.searchsorted(owners, some & LOW, side="right")
            new = np.append([True] * (first == 0), (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1]))
            own = np.maximum.accumulate(np.where(new, later, start))
            start = own[-1]
        found = []
        for step in range(1, WINDOW + 1):
            fits = own >= step
            later, own = later[fits], own[fits]
            earlier, this = placed[own - step], placed[later]
            same = earlier >> HALF == this >> HALF
            if not same.any():
                break
            later, own = later[same], own[same]
            found.append((earlier[same] & LOW) << HALF | (this[same] & LOW))
        if found:
            yield np.concatenate(found)


def _put_off(corpus: Corpus, pairs: np.ndarray, shares: list[Path], most: dict[Path, int]) -> None:
    """Append candidates to the file of the share that has the first of their two texts; `most` may stand in one."""
    pairs = _distinct(pairs)
    left, right = (corpus.entries[half.astype(np.int64)] for half in (pairs >> HALF, pairs & LOW))
    one_way = (left >= 0) | (right >= 0)  # long texts are compared by words alone
    pairs, left, right = pairs[one_way], left[one_way], right[one_way]
    share = np.minimum(texts_of(left), texts_of(right)) // SHARE if len(shares) > 1 else None
    for at, path in enumerate(shares):
        with path.open("ab") as file:
            file.write((pairs if share is None else pairs[share == at]).data)
        if path.stat().st_size > most[path] * 8:
            whole = _distinct(np.fromfile(path, np.uint64))
            whole.tofile(path)
            most[path] = max(CROWDED, 2 * len(whole))
    forget(corpus)


def _distinct(pairs: np.ndarray) -> np.ndarray:
    pairs.sort()  # np.unique takes fifteen times as long
    return np.asarray(pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]])


def _verified(corpus: Corpus, path: Path, lowest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (left, right, score) of the candidates in a file that match, in order; the file goes."""
    pairs = _distinct(np.fromfile(path, np.uint64)) if path.exists() else np.zeros(0, np.uint64)
    path.unlink(missing_ok=True)
    good, scores = [np.zeros(0, np.uint64)], [np.zeros(0)]
    step = min(4 * PAIRS, max(1, MAPPED * len(corpus.forms) // (8 * max(1, corpus.texts.data.nbytes))))  # by how long texts are
    for first in range(0, len(pairs), step):
        some = pairs[first : first + step]
        score = _scores(corpus, (some >> HALF).astype(np.int64), (some & LOW).astype(np.int64), lowest)
        good.append(some[score >= lowest])
        scores.append(score[score >= lowest])
    found, score = np.concatenate(good), np.concatenate(scores)
    left, right = (texts_of(corpus.entries[half.astype(np.int64)]) for half in (found >> HALF, found & LOW))
    left, right = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((right, left))
    order = order[left[order] != right[order]]
    return left[order], right[order], score[order]


def _scores(corpus: Corpus, left: np.ndarray, right: np.ndarray, lowest: float) -> np.ndarray:
    """Return the Jaccard of pairs of entries, 0 below `lowest`; of many texts, those that are needed are read, not mapped."""
    if corpus.texts.data.nbytes <= MAPPED:
        return jaccard(corpus.texts, corpus.entries, corpus.counts, left, right, lowest)
    used, pair = np.unique(np.concatenate([left, right]), return_inverse=True)
    entries, counts = corpus.entries[used], corpus.counts[used]
    numbers, at = np.unique(texts_of(entries), return_inverse=True)
    first, end = corpus.texts.starts[numbers], corpus.texts.starts[numbers + 1]
    with (corpus.folder / "data").open("rb", buffering=0) as file:
        places = zip((end - first).tolist(), first.tolist(), strict=True)
        data = b"".join([os.pread(file.fileno(), size, place) for size, place in places])
    forget(corpus)
    texts = Buffers(np.frombuffer(data, np.uint8), np.append(0, (end - first).cumsum()))
    for array in (texts.starts, counts):
        array.flags.writeable = False  # as what is mapped: the loops are compiled for that
    return jaccard(texts, np.where(entries < 0, ~at, at), counts, pair[: len(left)], pair[len(left) :], lowest)
