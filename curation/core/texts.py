"""The distinct texts of a source by number, with the hashes by which they are compared. Tuples hold the numbers.

A text is written once, when its row is read; its identity (`record.key_of`) and its normalised form (`text.py`) are hashed
then, and later stages compare hashes. Texts and hashes stay in files; in memory are numbers of 4 bytes per text, and the texts
that a stage asks for.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import xxhash

from curation.core.errors import BuildError
from curation.core.jit import Buffers, buffers_of, bytes_of, texts_of
from curation.core.record import composed
from curation.core.text import normalised

COMPOSED, HAS_WORDS, LENGTHY = 1, 2, 4  # marks: in NFC; with a word or sign; of at least SHORTEST characters
SHORTEST = 12  # characters; shorter texts do not count as shared by two sources
READ_AT_A_TIME, READ_BYTES = 1 << 14, 1 << 26  # texts read at a time, and their bytes unless a single one has more
FAR_APART = 1 << 17  # texts from all over a file of hashes, each of which brings a page
GAP = 1 << 12  # bytes between two texts that are still read at once
HASHES_AT_A_TIME = 1 << 22  # hashes sorted at a time
DATA, STARTS, RAW, FORMS, MARKS = FILES = ("texts.utf8", "texts.starts", "texts.raw", "texts.forms", "texts.marks")


class Facts(NamedTuple):
    """What is known of each text."""

    raw: np.ndarray  # (n, 2) u64: xxh3-128 of the text as it is spelled; its key too if it is COMPOSED
    forms: np.ndarray  # (n, 2) u64: xxh3-128 of the normalised form, or of the text if that is empty
    marks: np.ndarray  # (n,) u8


class Texts:
    """Texts by number, in files or in memory."""

    def __init__(self, facts: Facts, starts: np.ndarray, data: int | np.ndarray) -> None:
        """Take facts, (n + 1,) i64 starts, and the bytes of the texts or the descriptor of a file that holds them."""
        self.raw, self.forms, self.marks = facts
        self.starts, self.data = starts, data

    @classmethod
    def of(cls, texts: pl.Series, facts: Facts | None = None) -> Texts:
        """Return texts that are in memory (no nulls); `facts` are theirs, where these are known."""
        data, starts = buffers_of(texts)
        return cls(facts or facts_of(texts), starts, data)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.marks)

    def at(self, numbers: np.ndarray | pl.Series) -> pl.Series:
        """Return the texts with these numbers, in the given order."""
        numbers = np.asarray(numbers)
        if not len(numbers):
            return pl.Series("text", [], dtype=pl.String)
        wanted = np.unique(numbers)
        # runs of texts that are close to each other, from `low` to `high`
        cuts = np.flatnonzero(self.starts[wanted[1:]] - self.starts[wanted[:-1] + 1] > GAP) + 1
        firsts = np.append(0, cuts)
        low, high = wanted[firsts].astype(np.int64), wanted[np.append(cuts, len(wanted)) - 1].astype(np.int64) + 1
        begin, end = self.starts[low], self.starts[high]
        data = self._bytes(begin, end)

        # all texts of the runs, one after the other
        counts, sizes = high - low, end - begin
        shift = low - (np.cumsum(counts) - counts)
        every = np.arange(counts.sum()) + np.repeat(shift, counts)
        starts = self.starts[every] - np.repeat(begin - (np.cumsum(sizes) - sizes), counts)
        texts = texts_of(Buffers(data, np.append(starts, len(data))))
        place = wanted - np.repeat(shift, np.diff(np.append(firsts, len(wanted))))
        return texts.gather(place[np.searchsorted(wanted, numbers)]).alias("text")

    def _bytes(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return the bytes of the texts from each `begin` to its `end`, one after the other, (bytes,) u8."""
        if isinstance(self.data, np.ndarray):
            runs = [self.data[first:last] for first, last in zip(begin.tolist(), end.tolist(), strict=True)]
            return runs[0] if len(runs) == 1 else np.concatenate(runs)
        data = np.empty(int((end - begin).sum()), np.uint8)
        at = 0
        for first, last in zip(begin.tolist(), end.tolist(), strict=True):
            while first < last:  # one read returns 2 GB at most
                count = os.preadv(self.data, [data[at : at + last - first].data], first)
                if not count:
                    raise EOFError("a file of texts is shorter than its starts say")
                at, first = at + count, first + count
        return data

    def portions(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Cut numbers, (n,) u32, into those of READ_AT_A_TIME texts, or fewer of READ_BYTES."""
        for first, end in _portions(self.starts[numbers + np.uint32(1)] - self.starts[numbers]):
            yield numbers[first:end]

    def batches(self, numbers: np.ndarray) -> Iterator[pl.Series]:
        """Yield the texts with these numbers, in the given order, in `portions`."""
        yield from map(self.at, self.portions(numbers))

    def facts(self, numbers: np.ndarray) -> Facts:
        """Return the facts of texts."""
        return Facts(self.raw[numbers], self.forms[numbers], self.marks[numbers])

    def keys(self, numbers: np.ndarray) -> np.ndarray:
        """Return the identities of texts, (n, 2) u64: xxh3-128 of their NFC."""
        keys = np.array(self.raw[numbers])
        if len(numbers) > FAR_APART:
            forget_pages(self.raw)
        odd = np.flatnonzero(self.marks[numbers] & COMPOSED == 0)
        if len(odd):
            keys[odd] = digests(composed(self.at(numbers[odd])))
        return keys

    def key_series(self, numbers: np.ndarray) -> pl.Series:
        """Return the identities of texts as 16 bytes each, as tables hold them."""
        return binary_keys(self.keys(numbers))

    @cached_property
    def raw_number(self) -> np.ndarray:
        """For each text the first text that is spelled the same, (n,) u32."""
        return first_equal(self.raw)

    @cached_property
    def key_number(self) -> np.ndarray:
        """For each text the first text with its key, (n,) u32."""
        odd = np.flatnonzero(np.asarray(self.marks) & COMPOSED == 0)
        if not len(odd):
            return self.raw_number
        keys = np.array(self.raw)
        forget_pages(self.raw)
        for first in range(0, len(odd), READ_AT_A_TIME):
            some = odd[first : first + READ_AT_A_TIME]
            keys[some] = digests(composed(self.at(some)))
        return first_equal(keys)

    @cached_property
    def form_number(self) -> np.ndarray:
        """For each text the first text with its normalised form, (n,) u32."""
        return first_equal(self.forms)


def open_texts(folder: Path) -> Texts:
    """Open the texts that a stage wrote.

    Raises:
        BuildError: a file is missing, or has not the size that the others imply.
    """
    paths = {name: folder / name for name in FILES}
    sizes = {name: path.stat().st_size if path.is_file() else -1 for name, path in paths.items()}
    count = max(0, sizes[MARKS])
    implied = {MARKS: count, STARTS: 8 * count + 8, RAW: 16 * count, FORMS: 16 * count}
    wrong = [name for name, size in implied.items() if sizes[name] != size]
    if not wrong:
        raw, forms = (mapped(paths[name], np.uint64).reshape(count, 2) for name in (RAW, FORMS))
        marks, starts = np.fromfile(paths[MARKS], np.uint8), mapped(paths[STARTS], np.int64)
        if sizes[DATA] == starts[-1]:
            return _OpenTexts(folder, Facts(raw, forms, marks), starts, os.open(paths[DATA], os.O_RDONLY))
    path = paths[wrong[0] if wrong else DATA]
    raise BuildError(path, "was changed since it was written", f"delete {folder} and run the command again to rebuild it")


class _OpenTexts(Texts):
    def __init__(self, folder: Path, facts: Facts, starts: np.ndarray, data: int) -> None:
        super().__init__(facts, starts, data)
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:  # a worker opens the same files
        return open_texts, (self.folder,)

    def __del__(self) -> None:
        if isinstance(self.data, int):
            os.close(self.data)


def mapped(path: Path, kind: np.dtype | type) -> np.ndarray:
    """Return the numbers that a file holds, through a memory map where the file system has them."""
    if not path.stat().st_size:
        return np.zeros(0, kind)
    try:
        return np.memmap(path, kind, "r").view(np.ndarray)
    except OSError:
        return np.fromfile(path, kind)


def forget_pages(*arrays: np.ndarray) -> None:
    """Let the system take back the pages of arrays that are mapped from files."""
    for array in arrays:
        whole: Any = array
        while whole is not None and not hasattr(whole, "_mmap"):
            whole = getattr(whole, "base", None)
        if whole is not None and whole._mmap is not None:
            whole._mmap.madvise(mmap.MADV_DONTNEED)


class TextWriter:
    """Appends texts to the files of a folder."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        """Open the files; `closing` closes them."""
        self.files = {name: closing.enter_context((folder / name).open("wb")) for name in FILES}
        self.files[STARTS].write(np.zeros(1, np.int64).tobytes())
        self.count = self.bytes = 0

    def add(self, texts: pl.Series, facts: Facts) -> int:
        """Append texts (no nulls); return the number of the first one."""
        first = self.count
        data, starts = buffers_of(texts)
        self.files[DATA].write(data[starts[0] : starts[-1]].data)
        self.files[STARTS].write((starts[1:] + (self.bytes - starts[0])).data)
        for name, values in zip((RAW, FORMS, MARKS), facts, strict=True):
            self.files[name].write(np.ascontiguousarray(values).data)
        self.count, self.bytes = first + len(texts), self.bytes + int(starts[-1] - starts[0])
        return first


def facts_of(texts: pl.Series, raw: np.ndarray | None = None) -> Facts:
    """Return the facts of texts (no nulls); `raw` are their hashes, where these are known."""
    raw = digests(texts) if raw is None else raw
    all_forms, all_marks = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.uint8)]
    for some in _slices(texts):
        same, forms = composed(some), normalised(some)
        marks = np.where(True if same is some else (same == some).to_numpy(), COMPOSED, 0)
        marks = marks + HAS_WORDS * forms.is_not_null().to_numpy() + LENGTHY * (some.str.len_chars() >= SHORTEST).to_numpy()
        all_marks.append(np.broadcast_to(marks, len(some)).astype(np.uint8))
        all_forms.append(digests(forms.fill_null(some)))
    return Facts(raw, np.concatenate(all_forms), np.concatenate(all_marks))


def digests(texts: pl.Series) -> np.ndarray:
    """Return xxh3-128 of each text, (n, 2) u64."""
    whole = b"".join(b"".join(map(xxhash.xxh3_128_digest, some.cast(pl.Binary).to_list())) for some in _slices(texts))
    return np.frombuffer(whole, np.uint64).reshape(-1, 2)


def _slices(texts: pl.Series) -> Iterator[pl.Series]:
    """Yield texts in portions."""
    for first, end in _portions(texts.str.len_bytes().to_numpy()):
        yield texts.slice(first, end - first)


def _portions(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of texts with these bytes, (n,) int: READ_AT_A_TIME, or fewer of READ_BYTES."""
    ends = np.cumsum(sizes, dtype=np.int64)
    first = 0
    while first < len(sizes):
        most = READ_BYTES + (int(ends[first - 1]) if first else 0)
        end = min(first + READ_AT_A_TIME, max(first + 1, int(np.searchsorted(ends, most, side="right"))))
        yield first, end
        first = end


def binary_keys(hashes: np.ndarray) -> pl.Series:
    """Return (n, 2) u64 hashes as 16 bytes each."""
    ends = np.arange(0, 16 * len(hashes) + 1, 16, dtype=np.int64)
    return bytes_of(Buffers(np.ascontiguousarray(hashes).reshape(-1).view(np.uint8), ends)).alias("key")


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """Return for each of (n, 2) u64 hashes the place of the first equal one, (n,) u32; HASHES_AT_A_TIME are sorted at once."""
    first = np.arange(len(hashes), dtype=np.uint32)
    bits = (len(hashes) // HASHES_AT_A_TIME).bit_length()
    top = np.empty(len(hashes) if bits else 0, np.uint16)  # the first `bits` bits of each
    for start in range(0, len(top), HASHES_AT_A_TIME):
        top[start : start + HASHES_AT_A_TIME] = hashes[start : start + HASHES_AT_A_TIME, 0] >> np.uint64(64 - bits)
    for part in range(1 << bits):
        at = np.flatnonzero(top == part).astype(np.uint32) if bits else first
        some = np.array(hashes[at]) if bits else hashes
        order = np.argsort(some[:, 0], kind="stable")
        high, low = some[order, 0], some[order, 1]
        if ((high[1:] == high[:-1]) & (low[1:] != low[:-1])).any():  # half a hash is not enough here
            order = np.lexsort((some[:, 1], some[:, 0]))
            high, low = some[order, 0], some[order, 1]
        new = np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))[: len(order)]
        firsts = at[order[new]]
        first[at[order]] = firsts[np.cumsum(new) - 1]
    forget_pages(hashes)
    return first


def distinct(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (places of the first of equal hashes, ascending; for each hash the number of its first one among these)."""
    first = first_equal(hashes)
    places = np.flatnonzero(first == np.arange(len(first)))
    return places, np.searchsorted(places, first).astype(np.uint32)


def sorted_distinct(values: np.ndarray) -> np.ndarray:
    """Sort numbers in place; return each once, in order. np.unique copies them twice, and takes fifteen times as long."""
    values.sort()
    return np.asarray(values[np.append(True, values[1:] != values[:-1])[: len(values)]])
