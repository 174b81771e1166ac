"""Which texts are nearly the same: MinHash finds candidates, the exact Jaccard of their shingles decides."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.signatures import jaccard, read, sketch
from curation.text import connected

RECALL = 0.99  # share of pairs exactly at the threshold that become candidates
PERMUTATIONS = 128  # at most
BELOW = 0.1  # pairs this much below the threshold are kept with their score
WINDOW = 64  # texts with an equal band key that one text is compared with, at most


class Near(NamedTuple):
    """Texts that match: by equal normalised form, or by the Jaccard of their shingles."""

    form: np.ndarray  # (texts,) i64: the first text of the same normalised form
    left: np.ndarray  # (edges,) i64: first texts of a form; left < right, in order
    right: np.ndarray
    score: np.ndarray  # (edges,) f64: exact Jaccard, at least threshold - BELOW


def bands_for(threshold: float, recall: float = RECALL) -> tuple[int, int]:
    """Return (bands, rows a band) that find a pair at the threshold with probability `recall`, and the fewest below it.

    A pair of Jaccard j is found with probability 1 - (1 - j^rows)^bands; more rows let fewer through from below.
    """
    fits = [(1, 1)]
    for rows in range(1, PERMUTATIONS + 1):
        found = threshold**rows
        bands = max(1, math.ceil(math.log(1 - recall) / math.log1p(-found))) if found < 1 else 1
        if bands * rows <= PERMUTATIONS:
            fits.append((bands, rows))
    return fits[-1]


def near(texts: pl.Series, threshold: float) -> Near:
    """Return which texts (no nulls) match. The threshold, in (0, 1], sets the bands."""
    count = len(texts)
    if not count:
        none = np.zeros(0, np.int64)
        return Near(none, none, none, np.zeros(0))
    source = read(texts)
    sketches = sketch(source, *bands_for(threshold))
    form = _firsts(sketches.forms)
    able = np.flatnonzero((form == np.arange(count)) & (sketches.counts > 0))
    bands = range(sketches.keys.shape[1] if len(able) else 0)
    pairs = [np.zeros(0, np.uint64), *(_pairs(sketches.keys[able, band], able, count) for band in bands)]
    left, right = (half.astype(np.int64) for half in np.divmod(np.unique(np.concatenate(pairs)), np.uint64(count)))
    score = jaccard(source, sketches.counts, left, right, threshold - BELOW)
    kept = score >= threshold - BELOW
    return Near(form, left[kept], right[kept], score[kept])


def _firsts(forms: np.ndarray) -> np.ndarray:
    """Return for each text the first one with its form; a text without any word is alone."""
    first, of = np.unique(forms, return_index=True, return_inverse=True)[1:]
    return np.asarray(np.where(forms == 0, np.arange(len(forms)), first[of]), dtype=np.int64)


def _pairs(keys: np.ndarray, texts: np.ndarray, count: int) -> np.ndarray:
    """Return left * count + right of texts with an equal key, each with at most WINDOW before it."""
    order = np.argsort(keys)
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    member = np.append(same, False) | np.append(False, same)
    # the sort is not stable: texts of a run are put in order here, where few are left
    run = np.cumsum(np.append(True, ~same))[member].astype(np.uint64)
    placed = np.sort(run * np.uint64(count) + texts[order[member]].astype(np.uint64))
    run, text = np.divmod(placed, np.uint64(count))
    found = [np.zeros(0, np.uint64)]
    later = np.arange(len(text))
    for step in range(1, WINDOW + 1):
        later = later[later >= step]
        later = later[run[later] == run[later - step]]
        if not len(later):
            break
        found.append(text[later - step] * np.uint64(count) + text[later])
    return np.concatenate(found)


def families(found: Near, threshold: float) -> np.ndarray:
    """Return for each text the smallest number of a text it is linked to by pairs at or above the threshold, (texts,) i64."""
    good = found.score >= threshold
    count = len(found.form)
    left = np.concatenate([np.arange(count), found.left[good]])
    return connected(left, np.concatenate([found.form, found.right[good]]), count)
