"""How much of a text stands in another: word 3-grams of the shorter set that the longer one has too.

A character of a script without spaces is a word of its own. A text of fewer than three words is one shingle, so that a
short text is a copy of an equal one only.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from curation.core.text import normalised
from mining.kernels import shared_parts
from mining.lists import Ragged

_SPACELESS = (
    r"\x{E00}-\x{EFF}\x{1000}-\x{109F}\x{1780}-\x{17FF}\x{3040}-\x{30FF}\x{3400}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{3FFFF}"
)
WORD = rf"[{_SPACELESS}]|[\S--[{_SPACELESS}]]+"  # in a normalised form: a word, or a sign
PROBES = 6  # shingles looked up of every pair; of a copy (.8 or more) none of them is found once in 15,000 times
TEXTS = 1 << 14  # shingled at once
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_HALF = np.uint64(32)


def shingles_of(texts: Iterable[str], pids: np.ndarray) -> Ragged:
    """Return the shingles of texts by pid: sorted distinct codes, `pid << 32 | hash`, 8 bytes a word of the corpus.

    Args:
        texts: one for each pid.
        pids: (n,) ascending; a pid that is not among them has no shingles.
    """
    rest, parts = iter(texts), [np.empty(0, np.uint64)]
    for first in range(0, len(pids), TEXTS):
        some = pids[first : first + TEXTS]
        words = normalised(pl.Series([next(rest) for _ in some], dtype=pl.String)).fill_null("").str.extract_all(WORD)
        parts.append(_codes(words, some))
    codes = np.concatenate(parts)
    counts = np.bincount((codes >> _HALF).astype(np.int64), minlength=int(pids.max(initial=-1)) + 1)
    return Ragged(np.concatenate([[0], counts.cumsum()]), codes)


def overlaps(shingles: Ragged, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (n,) float32: the share of the smaller of two texts' sets that is in the other, for pids left[i], right[i].

    A pair of which the first `PROBES` shingles, by hash, of the smaller are all absent from the larger gives 0.
    """
    return np.asarray(shared_parts(shingles.starts, shingles.ids, left, right, PROBES))


def _codes(words: pl.Series, pids: np.ndarray) -> np.ndarray:
    """Return the sorted distinct codes of texts given as lists of words."""
    counts = words.list.len().to_numpy().astype(np.int64)
    hashes = words.explode().drop_nulls().hash(seed=1).to_numpy()
    row = np.repeat(np.arange(len(counts)), counts)
    ends = counts.cumsum()[row]
    mixed = hashes * _MIX[0]
    for step in (1, 2):
        later = np.arange(len(hashes)) + step
        mixed += np.where(later < ends, hashes[np.minimum(later, len(hashes) - 1)], np.uint64(step)) * _MIX[step]
    whole = np.arange(len(hashes)) + 2 < ends
    whole |= (np.arange(len(hashes)) == ends - counts[row]) & (counts[row] < 3)  # a short text: its beginning alone
    return np.unique((mixed[whole] >> _HALF) | (pids[row[whole]].astype(np.uint64) << _HALF))
