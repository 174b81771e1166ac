"""Shingles, sketches and Jaccard in the simplest numpy, for tests of the compiled loops and for benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.shingles import (
    BASE,
    CHARS,
    CHARS_FROM,
    EXACT,
    INVERSE,
    SPACELESS,
    SPACELESS_FROM,
    WIDTH,
    WORDS,
    WORDS_FROM,
    WORDS_ONLY,
)
from curation.clean.signatures import Sketches, permutations
from curation.core.characters import SPACELESS_CHARS
from curation.core.jit import buffers_of
from curation.core.text import normalised


class Shingled(NamedTuple):
    """The shingles of texts, one after the other: those of text i are `hashes[starts[i]:starts[i + 1]]`."""

    hashes: np.ndarray  # (shingles,) u64, repeats included
    starts: np.ndarray  # (texts + 1,) i64
    kinds: np.ndarray  # (texts,) u8
    forms: np.ndarray  # (texts,) u64: hash of the whole normalised form; 0 where it is empty


def kinds_of(forms: pl.Series, words_from: int = WORDS_FROM) -> np.ndarray:
    """Return which shingles each normalised form has, (texts,) u8; WORDS from `words_from` words on."""
    counts = pl.select(
        words=pl.when(forms != "").then(forms.str.count_matches(" ", literal=True) + 1).otherwise(0),
        chars=forms.str.len_chars(),
        spaceless=forms.str.count_matches(SPACELESS_CHARS),
    )
    words, chars, spaceless = (counts[name].to_numpy().astype(np.int64) for name in ("words", "chars", "spaceless"))
    by_words = np.where(words >= words_from, WORDS, np.where(words >= CHARS_FROM, CHARS, EXACT))
    by_chars = np.where(chars >= SPACELESS_FROM, SPACELESS, EXACT)
    return np.where(2 * spaceless > chars - words + 1, by_chars, by_words).astype(np.uint8)


def shingle(forms: pl.Series, with_chars: bool = False) -> Shingled:
    """Shingle normalised texts, by differences of one running sum over all their bytes.

    With `with_chars`, texts of less than WORDS_ONLY words get CHARS.
    """
    kinds = kinds_of(forms, WORDS_ONLY if with_chars else WORDS_FROM)
    data, starts = buffers_of(forms)
    data, starts = data[starts[0] : starts[-1]], starts - starts[:1]
    place, back = (np.append(np.uint64(1), np.cumprod(np.full(len(data) + 1, base, np.uint64))) for base in (BASE, INVERSE))
    sums = np.append(np.uint64(0), np.cumsum(data * place[1 : len(data) + 1], dtype=np.uint64))
    hashes, lengths = [], []
    for first, end, kind in zip(starts, starts[1:], kinds, strict=False):
        form = data[first:end]
        begins = np.flatnonzero(form & 0xC0 != 0x80)
        ends = np.append(begins[1:], len(form))
        if kind == WORDS:
            ends = np.append(np.flatnonzero(form == ord(" ")), len(form))
            begins = np.append(0, ends[:-1] + 1)
        count = max(len(begins) - WIDTH[kind] + 1, 0) if kind != EXACT else 0
        begins, ends = first + begins[:count], first + ends[WIDTH[kind] - 1 : WIDTH[kind] - 1 + count]
        hashes.append((sums[ends] - sums[begins]) * back[begins] if count else np.zeros(0, np.uint64))
        lengths.append(count)
    whole = (sums[starts[1:]] - sums[starts[:-1]]) * back[starts[:-1]]
    return Shingled(
        np.concatenate([np.zeros(0, np.uint64), *hashes]), np.append(0, np.cumsum(lengths)).astype(np.int64), kinds, whole
    )


def sketched(texts: pl.Series, bands: int, rows: int) -> Sketches:
    """What `signatures.sketch` returns."""
    forms = normalised(texts).fill_null("")
    own, again = shingle(forms), shingle(forms, with_chars=True)
    both_kinds = np.flatnonzero((own.kinds == WORDS) & (again.kinds == CHARS))
    a, b = permutations(bands * rows)
    keys, counts = [], []
    for numbers, made in ((range(len(texts)), own), (both_kinds, again)):
        for number in numbers:
            mixed = fmix32((made.hashes[made.starts[number] : made.starts[number + 1]] >> np.uint64(32)).astype(np.uint32))
            digest = (mixed[:, None] * a + b).min(axis=0, initial=0xFFFFFFFF)
            key = np.full(bands, made.kinds[number], np.uint64)
            for values in digest.reshape(bands, rows).T.astype(np.uint64):
                key = (key ^ values) * np.uint64(0xFF51AFD7ED558CCD)
                key ^= key >> np.uint64(32)
            keys.append(key.astype(np.uint32))
            counts.append(len(mixed))
    entries = np.append(np.arange(len(texts)), ~both_kinds)
    return Sketches(entries, np.array(keys, np.uint32).reshape(-1, bands), np.array(counts, np.uint32), own.forms)


def fmix32(h: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer of u32 values, which datasketch applies before its permutations."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def jaccard_of_entries(texts: pl.Series, entries: np.ndarray, left: np.ndarray, right: np.ndarray, least: float) -> np.ndarray:
    """What `signatures.jaccard` returns."""
    forms = normalised(texts).fill_null("")
    made = {False: shingle(forms), True: shingle(forms, with_chars=True)}
    sets = []
    for entry in entries.tolist():
        one, number = made[entry < 0], ~entry if entry < 0 else entry
        sets.append(set(one.hashes[one.starts[number] : one.starts[number + 1]].tolist()))
    scores = [len(sets[a] & sets[b]) / max(len(sets[a] | sets[b]), 1) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    return np.array([score if score >= least else 0.0 for score in scores])
