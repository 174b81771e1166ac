"""Nearest passages by BM25, with bm25s. The index of a source is held in memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from curation.core.errors import SetupError
from curation.core.text import normalised
from mining.duplicates import WORD

try:
    import bm25s
except ImportError:
    raise SetupError("bm25s", "is not installed", "pip install 'tuplesmith[bm25]'") from None

RRF = 60  # added to a rank before its reciprocal is taken (Cormack, Clarke and Buettcher, SIGIR 2009)


class Bm25:
    """A corpus to search by words."""

    def __init__(self, texts: Iterable[str], pids: np.ndarray) -> None:
        """Index the texts of `pids` (n,)."""
        self.pids, words = pids, _words(texts)
        self.index = bm25s.BM25() if any(words) else None  # bm25s fails if no text has a word
        if self.index:
            self.index.index(words, show_progress=False)

    def nearest(self, queries: Iterable[str], k: int) -> np.ndarray:
        """Return pids (q, k) int64, best first, equal scores by smaller place; -1 after the last that shares a word."""
        asked = _words(queries)
        found = np.full((len(asked), k), -1, np.int64)
        most = min(k, len(self.pids))
        for row, words in enumerate(asked):
            scores = self.index.get_scores(words) if words and self.index else np.zeros(len(self.pids))
            least = np.partition(scores, len(scores) - most)[len(scores) - most]
            places = np.flatnonzero((scores >= least) & (scores > 0))
            places = places[np.argsort(-scores[places], kind="stable")][:most]
            found[row, : len(places)] = self.pids[places]
        return found


def fuse(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the k best of two rankings (q, k) of ids by reciprocal rank fusion.

    Equal sums are ordered by smaller id. -1 marks an empty place.
    """
    k = first.shape[1]
    weight = 1.0 / (RRF + 1 + np.arange(k))
    ids, weights = np.hstack([first, second]), np.broadcast_to(np.hstack([weight, weight]), (len(first), 2 * k))
    # an id that is in both rankings is next to itself in this order; its first place gets both weights, its second none
    order = np.argsort(ids, axis=1, kind="stable")
    ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
    in_both = np.hstack([ids[:, 1:] == ids[:, :-1], np.zeros((len(ids), 1), bool)]) & (ids >= 0)
    total = weights + np.where(in_both, np.hstack([weights[:, 1:], weights[:, :1]]), 0)
    repeat = np.hstack([np.zeros((len(ids), 1), bool), in_both[:, :-1]])
    total = np.where(repeat | (ids < 0), -1, total)
    best = np.lexsort((ids, -total))[:, :k]
    return np.where(np.take_along_axis(total, best, 1) > 0, np.take_along_axis(ids, best, 1), -1)


def _words(texts: Iterable[str]) -> list[list[str]]:
    return normalised(pl.Series(list(texts), dtype=pl.String)).fill_null("").str.extract_all(WORD).to_list()
