"""Which texts are nearly the same: MinHash finds candidates, the exact Jaccard of their shingles decides.

The texts and their band keys lie in files, and so do the candidates (`pairs`). So many texts need little memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import polars as pl

from curation.clean.pairs import HALF, LOW, Corpus, forget, matches, open_corpus, texts_of
from curation.clean.shingles import LONG
from curation.clean.siblings import names_of, siblings
from curation.clean.signatures import read, repeated, sketch
from curation.core.jit import Buffers
from curation.core.text import connected, normalised

RECALL = 0.99  # share of pairs exactly at the lowest score that become candidates
PERMUTATIONS = 130  # at most; 128 would not do for 5 rows a band at 0.7
SHORT = 200  # characters: longer texts are compared as they are
BATCH = 1 << 16  # texts sketched at a time
SORTED = 1 << 22  # forms sorted at a time


class Near(NamedTuple):
    """Texts that match: by equal normalised form, or by the Jaccard of their shingles."""

    form: np.ndarray  # (texts,) u32: the first text of the same normalised form
    left: np.ndarray  # (edges,) u32: first texts of a form; left < right, in order
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
    able = own_entries(form, corpus.entries, corpus.counts)
    forget(corpus)
    return Near(form, *matches(corpus, able, lowest))


def without_siblings(found: Near, texts: Callable[[np.ndarray], pl.Series]) -> Near:
    """Return what matches without the pairs of short texts that are siblings; `texts` gives texts by number."""

    def forms_and_names(numbers: np.ndarray) -> tuple[pl.Series, pl.Series]:
        some = texts(numbers)
        return normalised(some).fill_null(""), names_of(some)

    short = np.zeros(len(found.form), bool)
    for numbers in _batches(np.unique(np.concatenate([found.left, found.right]))):
        some = texts(numbers)
        short[numbers] = ((some.str.len_chars() < SHORT) & (some.str.count_matches(r"\S+") < LONG)).to_numpy()
    both = np.flatnonzero(short[found.left] & short[found.right])
    left, right = found.left[both], found.right[both]
    told = siblings(np.concatenate([left, right]), np.concatenate([right, left]), forms_and_names)
    kept = np.ones(len(found.left), bool)
    kept[both] = ~(told[: len(both)] | told[len(both) :])
    return Near(found.form, found.left[kept], found.right[kept], found.score[kept])


def _batches(numbers: np.ndarray) -> Iterator[np.ndarray]:
    yield from (numbers[first : first + BATCH] for first in range(0, len(numbers), BATCH))


def own_entries(form: np.ndarray, entries: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return which entries have shingles and are of the first text of a form, (entries,) bool."""
    able = np.empty(len(entries), bool)
    for first in range(0, len(entries), SORTED):
        some = slice(first, first + SORTED)
        texts = texts_of(entries[some])
        able[some] = (form[texts] == texts) & (counts[some] > 0)
    return able


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


def firsts(forms: np.ndarray) -> np.ndarray:
    """Return for each text the first one with its form, (texts,) u32; a text without any word is alone."""
    first = np.arange(len(forms), dtype=np.uint32)
    keys, able = np.empty(len(forms), np.uint32), np.empty(len(forms), bool)
    for start in range(0, len(forms), SORTED):
        some = slice(start, start + SORTED)
        keys[some], able[some] = forms[some] >> HALF, forms[some] != 0
    count = int(np.count_nonzero(able))
    bits = (count // SORTED).bit_length()
    for part in range(1 << bits):
        at = (repeated(keys, able, count, bits, part) & LOW).astype(np.uint32)
        order = np.argsort(forms[at])
        at, placed = at[order], forms[at[order]]
        new = np.append(True, placed[1:] != placed[:-1])[: len(at)]
        starts = np.flatnonzero(new)
        if len(starts):
            first[at] = np.repeat(np.minimum.reduceat(at, starts), np.diff(np.append(starts, len(at))))
    return first


def families(found: Near, threshold: float) -> np.ndarray:
    """Return for each text the smallest number of a text it is linked to by pairs at or above the threshold, (texts,) u32."""
    good = found.score >= threshold
    nodes, ends = np.unique(np.concatenate([found.left[good], found.right[good]]), return_inverse=True)
    family = found.form.copy()
    family[nodes] = nodes[connected(ends[: len(ends) // 2], ends[len(ends) // 2 :], len(nodes))]
    return np.asarray(family[found.form])
