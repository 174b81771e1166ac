"""Which texts nearly match: MinHash bands bring candidates, and the exact Jaccard of their shingles decides.

Which of two matching tuples survives is decided in `within.py` (one source) and `across.py` (two sources).

Texts, sketches and candidates are kept in files, so that many texts need little memory (16 bytes each). A band's keys are sorted
one range at a time. Candidates wait in one file per SHARE of the texts until all bands are done; then each share is verified.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl

from curation.clean.shingles import WORDS_FROM
from curation.clean.siblings import capitalised_words, siblings
from curation.clean.signatures import COMPARED_AT_A_TIME, Sketches, jaccard, prepare, repeated, sketch
from curation.core.jit import Buffers
from curation.core.store import atomic
from curation.core.text import connected, normalised
from curation.core.texts import forget_pages, mapped, sorted_distinct
from curation.engine.local import Here
from curation.engine.parts import in_order
from curation.engine.pool import Workers

RECALL = 0.99  # share of pairs exactly at the lowest score that become candidates
PERMUTATIONS = 130  # at most; 128 are too few for 5 rows per band at 0.7
BRIEF = 200  # characters: a longer text is never a sibling
TEXTS_AT_A_TIME = 1 << 16  # texts sketched at a time
FORMS_AT_A_TIME = 1 << 22  # forms sorted at a time
WINDOW = 64  # at most so many earlier entries with an equal band key are compared with an entry
COMPARED = 1 << 16  # entries compared at a time
PART = 1 << 24  # entries of a band that are sorted at a time
WAITING = 1 << 22  # candidate pairs collected before they are written to their files
SHARE = 1 << 22  # texts whose pairs with later texts are verified together
CROWDED = 1 << 24  # pairs in a share's file from which on its repeats are removed
MAPPED = 1 << 29  # bytes of texts up to which they are read through a memory map: one page may bring a megabyte of neighbours
HALF = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)


class SketchedTexts(NamedTuple):
    """Texts and their sketches, in the files of a folder; for entries see `signatures.Sketches`."""

    folder: Path
    texts: Buffers
    entries: np.ndarray  # (entries,) i64
    counts: np.ndarray  # (entries,) u32
    forms: np.ndarray  # (texts,) u64

    def __reduce__(self) -> tuple[Any, ...]:  # a worker opens the same files
        return open_corpus, (self.folder,)


class Near(NamedTuple):
    """Texts that match, because their normalised forms are equal or by the Jaccard of their shingles."""

    form: np.ndarray  # (texts,) u32: the first text with the same normalised form
    left: np.ndarray  # (edges,) u32: first texts of a form; left < right, in order
    right: np.ndarray
    score: np.ndarray  # (edges,) f64: exact Jaccard


def near(
    parts: Iterable[Any],
    lowest: float,
    folder: Path,
    workers: Workers | None = None,
    texts_of: Callable[[Any], pl.Series] = pl.Series,
) -> Near:
    """Return which texts match with a Jaccard of at least `lowest`.

    Args:
        parts: of all texts (no nulls), in order: texts, or what `texts_of` takes.
        lowest: in (0, 1].
        folder: for large arrays.
        workers: do the work; by default this process.
        texts_of: returns the texts of a part.
    """
    workers, (bands, rows) = workers or Here(), bands_for(lowest)
    total = texts = 0
    with ExitStack() as closing:
        file = open_files(folder, bands, closing)
        for buffers, found in in_order(workers, partial(_sketched, texts_of, bands, rows), parts, folder):
            total = append_texts(file, buffers, total)
            file["entries"].write(np.where(found.entries < 0, found.entries - texts, found.entries + texts).tobytes())
            file["counts"].write(found.counts.tobytes())
            file["forms"].write(found.forms.tobytes())
            for band, keys in enumerate(np.ascontiguousarray(found.keys.T)):
                file[f"keys-{band}"].write(keys.tobytes())
            texts += len(found.forms)
    corpus = open_corpus(folder)
    form = first_of_form(corpus.forms)
    able = comparable(form, corpus.entries, corpus.counts)
    forget(corpus)
    return Near(form, *matching_pairs(corpus, able, lowest, workers))


def _sketched(texts_of: Callable[[Any], pl.Series], bands: int, rows: int, part: Any) -> tuple[Buffers, Sketches]:
    """Return the normalised texts of a part, and their sketches."""
    buffers = prepare(texts_of(part))
    return buffers, sketch(buffers, bands, rows)


def bands_for(lowest: float) -> tuple[int, int]:
    """Return (bands, rows per band) that find a pair of Jaccard `lowest` with probability RECALL, and the fewest below it.

    A pair of Jaccard j is found with probability 1 - (1 - j^rows)^bands; more rows let fewer pairs through from below.
    """
    fits = [(1, 1)]
    for rows in range(1, PERMUTATIONS + 1):
        found = lowest**rows
        bands = max(1, math.ceil(math.log(1 - RECALL) / math.log1p(-found))) if found < 1 else 1
        if bands * rows <= PERMUTATIONS:
            fits.append((bands, rows))
    return fits[-1]


def without_siblings(found: Near, texts: Callable[[np.ndarray], pl.Series]) -> Near:
    """Return matches without the pairs of short texts that are siblings; `texts` returns texts by number."""

    def forms_and_names(numbers: np.ndarray) -> tuple[pl.Series, pl.Series]:
        some = texts(numbers)
        return normalised(some).fill_null(""), capitalised_words(some)

    short = np.zeros(len(found.form), bool)
    matched = np.unique(np.concatenate([found.left, found.right]))
    for first in range(0, len(matched), TEXTS_AT_A_TIME):
        numbers = matched[first : first + TEXTS_AT_A_TIME]
        some = texts(numbers)
        short[numbers] = ((some.str.len_chars() < BRIEF) & (some.str.count_matches(r"\S+") < WORDS_FROM)).to_numpy()
    both = np.flatnonzero(short[found.left] & short[found.right])
    left, right = found.left[both], found.right[both]
    differ = siblings(np.concatenate([left, right]), np.concatenate([right, left]), forms_and_names)
    kept = np.ones(len(found.left), bool)
    kept[both] = ~(differ[: len(both)] | differ[len(both) :])
    return Near(found.form, found.left[kept], found.right[kept], found.score[kept])


def families(found: Near, threshold: float) -> np.ndarray:
    """Return for each text the smallest number of a text linked to it by pairs at or above the threshold, (texts,) u32."""
    good = found.score >= threshold
    nodes, ends = np.unique(np.concatenate([found.left[good], found.right[good]]), return_inverse=True)
    family = found.form.copy()
    family[nodes] = nodes[connected(ends[: len(ends) // 2], ends[len(ends) // 2 :], len(nodes))]
    return np.asarray(family[found.form])


# ---- the files of a corpus ----


def slices(texts: pl.Series) -> Iterator[pl.Series]:
    """Cut texts into batches."""
    yield from (texts.slice(first, TEXTS_AT_A_TIME) for first in range(0, len(texts), TEXTS_AT_A_TIME))


def open_files(folder: Path, bands: int, closing: ExitStack) -> dict[str, BinaryIO]:
    """Open the files of a corpus for appending: data, starts, entries, counts, forms, and the keys of each band."""
    names = ["data", "starts", "entries", "counts", "forms", *(f"keys-{band}" for band in range(bands))]
    file: dict[str, BinaryIO] = {name: closing.enter_context((folder / name).open("wb")) for name in names}
    file["starts"].write(np.zeros(1, np.int64).tobytes())
    return file


def append_texts(file: dict[str, BinaryIO], buffers: Buffers, total: int) -> int:
    """Append texts to a corpus of `total` bytes; return its new size in bytes."""
    first, last = int(buffers.starts[0]), int(buffers.starts[-1])
    file["data"].write(buffers.data[first:last].data)
    file["starts"].write((buffers.starts[1:] + (total - first)).data)
    return total + last - first


def open_corpus(folder: Path) -> SketchedTexts:
    """Return the corpus in a folder."""
    texts = Buffers(_array_file(folder / "data", np.uint8), _array_file(folder / "starts", np.int64))
    columns = (("entries", np.int64), ("counts", np.uint32), ("forms", np.uint64))
    return SketchedTexts(folder, texts, *(_array_file(folder / name, kind) for name, kind in columns))


def _array_file(path: Path, kind: type) -> np.ndarray:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def forget(corpus: SketchedTexts) -> None:
    """Let the system take back the pages of the mapped files."""
    forget_pages(*corpus.texts, corpus.entries, corpus.counts, corpus.forms)


def text_numbers(entries: np.ndarray) -> np.ndarray:
    """Return the text number of each entry."""
    return np.where(entries < 0, ~entries, entries)


def first_of_form(forms: np.ndarray) -> np.ndarray:
    """Return for each text the first text with its form, (texts,) u32; a text without any word matches only itself."""
    first = np.arange(len(forms), dtype=np.uint32)
    keys, able = np.empty(len(forms), np.uint32), np.empty(len(forms), bool)
    for start in range(0, len(forms), FORMS_AT_A_TIME):
        some = slice(start, start + FORMS_AT_A_TIME)
        keys[some], able[some] = forms[some] >> HALF, forms[some] != 0
    count = int(np.count_nonzero(able))
    bits = (count // FORMS_AT_A_TIME).bit_length()
    for part in range(1 << bits):
        at = (repeated(keys, able, count, bits, part) & LOW).astype(np.uint32)
        order = np.argsort(forms[at])
        at, placed = at[order], forms[at[order]]
        new = np.append(True, placed[1:] != placed[:-1])[: len(at)]
        starts = np.flatnonzero(new)
        if len(starts):
            first[at] = np.repeat(np.minimum.reduceat(at, starts), np.diff(np.append(starts, len(at))))
    return first


def comparable(form: np.ndarray, entries: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return which entries have shingles and belong to the first text of a form, (entries,) bool."""
    able = np.empty(len(entries), bool)
    for first in range(0, len(entries), FORMS_AT_A_TIME):
        some = slice(first, first + FORMS_AT_A_TIME)
        texts = text_numbers(entries[some])
        able[some] = (form[texts] == texts) & (counts[some] > 0)
    return able


# ---- candidates, and which of them match ----


def matching_pairs(
    corpus: SketchedTexts, able: np.ndarray, lowest: float, workers: Workers, owners: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (left u32, right u32, score f64), memory-mapped, of the matching pairs of texts that the bands find, in order.

    Only entries with `able` (entries,) bool are compared. With `owners`, the number of the first entry of each source, only
    pairs of two sources are compared.
    """
    shares = [corpus.folder / f"waiting-{share}" for share in range(len(corpus.forms) // SHARE + 1)]
    most = dict.fromkeys(shares, CROWDED)
    bands = range(len(list(corpus.folder.glob("keys-*"))))
    for found in in_order(workers, partial(_candidates_of_band, corpus, able, owners), bands, corpus.folder):
        for pairs in _portions_of(found, WAITING):
            firsts, seconds = (text_numbers(corpus.entries[half.astype(np.int64)]) for half in (pairs >> HALF, pairs & LOW))
            share = np.minimum(firsts, seconds) // SHARE if len(shares) > 1 else None
            for at, path in enumerate(shares):
                with path.open("ab") as waiting:
                    waiting.write((pairs if share is None else pairs[share == at]).data)
                if path.stat().st_size > most[path] * 8:
                    whole = sorted_distinct(np.fromfile(path, np.uint64))
                    whole.tofile(path)
                    most[path] = max(CROWDED, 2 * len(whole))
        found.unlink()
        forget(corpus)
    kinds = {"left": np.uint32, "right": np.uint32, "score": np.float64}
    with ExitStack() as closing:
        file = {name: closing.enter_context((corpus.folder / name).open("wb")) for name in kinds}
        for share_file in shares:
            for name, values in zip(kinds, _verified(corpus, share_file, lowest, workers), strict=True):
                file[name].write(values.astype(kinds[name]).data)
    left, right, score = (np.asarray(_array_file(corpus.folder / name, kind)) for name, kind in kinds.items())
    return left, right, score


def _candidates_of_band(corpus: SketchedTexts, able: np.ndarray, owners: np.ndarray | None, band: int) -> Path:
    """Write the candidates of a band, left << 32 | right, to a file of the corpus's folder."""
    count = int(np.count_nonzero(able))
    bits = (count // PART).bit_length()
    keys = np.fromfile(corpus.folder / f"keys-{band}", np.uint32)
    with atomic(corpus.folder / f"band-{band}") as file:
        for part in range(1 << bits):
            placed = repeated(keys, able, count, bits, part)
            placed.sort()  # equal keys are adjacent
            same = np.zeros(len(placed) + 1, bool)  # whether an entry has the key of the one before
            for first in range(0, len(placed), COMPARED):
                some = placed[first : first + COMPARED + 1] >> HALF
                same[first + 1 : first + len(some)] = some[1:] == some[:-1]
            for pairs in _candidates(placed[same[:-1] | same[1:]], owners):
                left, right = (corpus.entries[half.astype(np.int64)] for half in (pairs >> HALF, pairs & LOW))
                file.write(pairs[(left >= 0) | (right >= 0)].data)  # two long texts are compared by words alone
    forget_pages(corpus.entries)
    return corpus.folder / f"band-{band}"


def _portions_of(file: Path, size: int) -> Iterator[np.ndarray]:
    """Yield the distinct ones of each `size` numbers of a file, in order."""
    numbers = mapped(file, np.uint64)
    for first in range(0, len(numbers), size):
        yield sorted_distinct(np.array(numbers[first : first + size]))
    forget_pages(numbers)


def _candidates(placed: np.ndarray, owners: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield pairs of entries with an equal key: each with at most WINDOW entries before it, or before its source's first."""
    start = 0
    for first in range(0, len(placed), COMPARED):
        later = own = np.arange(first, min(first + COMPARED, len(placed)))
        if owners is not None:
            some = placed[max(first - 1, 0) : first + COMPARED]
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


def _verified(corpus: SketchedTexts, path: Path, lowest: float, workers: Workers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (left, right, score) of the candidates in a file that match, in order; delete the file."""
    pairs = sorted_distinct(np.fromfile(path, np.uint64)) if path.exists() else np.zeros(0, np.uint64)
    path.unlink(missing_ok=True)
    step = min(COMPARED_AT_A_TIME, max(1, MAPPED * len(corpus.forms) // (8 * max(1, corpus.texts.data.nbytes))))
    some = (pairs[first : first + step] for first in range(0, len(pairs), step))  # fewer of long texts
    scores = in_order(workers, partial(_jaccard_of_pairs, corpus, lowest), some, corpus.folder)
    score = np.concatenate([np.zeros(0), *scores])
    found, score = pairs[score >= lowest], score[score >= lowest]
    left, right = (text_numbers(corpus.entries[half.astype(np.int64)]) for half in (found >> HALF, found & LOW))
    left, right = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((right, left))
    order = order[left[order] != right[order]]
    return left[order], right[order], score[order]


def _jaccard_of_pairs(corpus: SketchedTexts, lowest: float, pairs: np.ndarray) -> np.ndarray:
    """Return the Jaccard of pairs of entries, 0 below `lowest`; of a large corpus, only the texts needed are read."""
    left, right = (pairs >> HALF).astype(np.int64), (pairs & LOW).astype(np.int64)
    if corpus.texts.data.nbytes <= MAPPED:
        return jaccard(corpus.texts, corpus.entries, corpus.counts, left, right, lowest)
    used, pair = np.unique(np.concatenate([left, right]), return_inverse=True)
    entries, counts = corpus.entries[used], corpus.counts[used]
    numbers, at = np.unique(text_numbers(entries), return_inverse=True)
    first, end = corpus.texts.starts[numbers], corpus.texts.starts[numbers + 1]
    with (corpus.folder / "data").open("rb", buffering=0) as file:
        places = zip((end - first).tolist(), first.tolist(), strict=True)
        data = b"".join([os.pread(file.fileno(), size, place) for size, place in places])
    forget(corpus)
    texts = Buffers(np.frombuffer(data, np.uint8), np.append(0, (end - first).cumsum()))
    for array in (texts.starts, counts):
        array.flags.writeable = False  # as memory-mapped arrays are: the loops are compiled for these
    return jaccard(texts, np.where(entries < 0, ~at, at), counts, pair[: len(left)], pair[len(left) :], lowest)
