"""Which candidates are negatives: pure functions from arrays to arrays.

`choose` gives what sentence-transformers 6.2 `mine_hard_negatives` gives (sampling "top", format "n-tuple"). Its rules:
a candidate must pass every filter; the reference of both margins is the lowest score among the query's positives; the
relative margin is a share of that score's magnitude; and range_min skips the nearest of the candidates that *passed*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.schema import draws

FILTERS = ("positive", "given", "absolute_margin", "relative_margin", "max_score", "min_score", "range_min")
MOST_NEGATIVES = 1_024  # a row has this many draws of its own; the manifest allows 1,000 negatives


@dataclass(frozen=True)
class Rules:
    """The numbers of the `mine:` section that decide; None switches a filter off."""

    range_min: int = 5
    range_max: int = 100
    max_score: float | None = 0.8
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05


@dataclass(frozen=True)
class Ragged:
    """A list of ids a row: row i has `ids[starts[i]:starts[i + 1]]`."""

    starts: np.ndarray  # (rows + 1,) int64
    ids: np.ndarray  # (starts[-1],) int64

    def row_of_each(self) -> np.ndarray:
        """Return the row that each id belongs to."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True)
class Chosen:
    """Negatives of q queries, nearest first; columns beyond `found` hold -1 (ids, ranks) and nan (scores)."""

    ids: np.ndarray  # (q, n) int64
    scores: np.ndarray  # (q, n) as given to `choose`
    ranks: np.ndarray  # (q, n) int64: column in the candidates, 0 = nearest, positives counted
    found: np.ndarray  # (q,) int64
    removed: dict[str, np.ndarray]  # filter -> (q,) int64: candidates it took that those before it had left


def choose(
    candidates: np.ndarray,
    scores: np.ndarray,
    positives: Ragged,
    positive_scores: np.ndarray,
    given: Ragged,
    wanted: np.ndarray,
    rules: Rules,
) -> Chosen:
    """Choose the `wanted` nearest candidates of each query that pass the rules, after the first `range_min` of them.

    Args:
        candidates: (q, k) int64, nearest first; -1 stands for none.
        scores: (q, k) floats, descending.
        positives: known positives of each query, at least one each.
        positive_scores: (len(positives.ids),) of the same dtype, the query's score with each.
        given: negatives that each query has already; they are not chosen again.
        wanted: (q,) how many each query lacks.
        rules: the filters' settings, all compared in the dtype of the scores.
    """
    alive = candidates >= 0
    reference = lowest(positives, positive_scores)
    removed: dict[str, np.ndarray] = {}
    for name in FILTERS[:-1]:
        hit = _hits(name, candidates, scores, positives, given, reference, rules)
        if hit is not None:
            removed[name] = (alive & hit).sum(axis=1)
            alive &= ~hit
    rank = alive.cumsum(axis=1) - 1  # among those that passed
    removed["range_min"] = (alive & (rank < rules.range_min)).sum(axis=1)
    last = np.minimum(rules.range_min + wanted, rules.range_max)
    return _packed(candidates, scores, alive & (rank >= rules.range_min) & (rank < last[:, None]), wanted, removed)


def lowest(positives: Ragged, scores: np.ndarray) -> np.ndarray:
    """Return the lowest positive score (q,) of each query: the safest reference for a margin."""
    return np.minimum.reduceat(scores, positives.starts[:-1]) if len(scores) else scores


def contains(lists: Ragged, candidates: np.ndarray) -> np.ndarray:
    """Return (q, k) bool: whether a candidate is in its row's list."""
    width = int(max(candidates.max(initial=0), lists.ids.max(initial=0))) + 2  # ids from -1 on
    rows = np.arange(len(candidates))[:, None]
    return np.isin(rows * width + candidates + 1, lists.row_of_each() * width + lists.ids + 1)


def _hits(
    name: str,
    candidates: np.ndarray,
    scores: np.ndarray,
    positives: Ragged,
    given: Ragged,
    reference: np.ndarray,
    rules: Rules,
) -> np.ndarray | None:
    """Return (q, k) bool: what a filter would take; None where it is switched off."""
    if name == "positive":
        return contains(positives, candidates)
    if name == "given":
        return contains(given, candidates) if len(given.ids) else None
    limit = getattr(rules, name)
    if limit is None:
        return None
    limit = scores.dtype.type(limit)
    if name == "absolute_margin":
        return np.asarray(scores + limit > reference[:, None])
    if name == "relative_margin":
        return np.asarray(scores > (reference - np.abs(reference) * limit)[:, None])
    return np.asarray(scores > limit if name == "max_score" else scores < limit)


def _packed(
    candidates: np.ndarray, scores: np.ndarray, taken: np.ndarray, wanted: np.ndarray, removed: dict[str, np.ndarray]
) -> Chosen:
    """Move the taken candidates of each row to its front."""
    rows, columns = np.nonzero(taken)
    found = taken.sum(axis=1)
    place = np.arange(len(rows)) - np.repeat(found.cumsum() - found, found)  # within the row
    shape = (len(candidates), int(wanted.max(initial=0)))
    ids, ranks = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    kept = np.full(shape, np.nan, scores.dtype)
    ids[rows, place], ranks[rows, place], kept[rows, place] = candidates[rows, columns], columns, scores[rows, columns]
    return Chosen(ids, kept, ranks, found, removed)


def distinct(lists: Ragged, barred: Ragged, most: int) -> Ragged:
    """Return the first `most` distinct ids of each row's list that are not in its `barred` list, in their order."""
    rows = lists.row_of_each()
    width = int(max(lists.ids.max(initial=0), barred.ids.max(initial=0))) + 1
    codes = rows * width + lists.ids
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    first &= ~np.isin(codes, barred.row_of_each() * width + barred.ids)
    before = np.concatenate([[0], first.cumsum()])
    first &= before[:-1] - before[lists.starts[rows]] < most
    counts = np.bincount(rows[first], minlength=len(lists.starts) - 1)
    return Ragged(np.concatenate([[0], counts.cumsum()]), lists.ids[first])


def of_other_classes(classes: np.ndarray, own: np.ndarray, rows: np.ndarray, wanted: int, seed: int, source: str) -> np.ndarray:
    """Draw for each row `wanted` distinct passages of other classes, uniformly: F2LLM's rule for clustering.

    Args:
        classes: (n,) class of each passage, -1 where it is unknown; such a passage is never drawn.
        own: (q,) class of each row, -1 where it has none; such a row draws nothing.
        rows: (q,) number of each row in its source.
        wanted: negatives a row, at most `MOST_NEGATIVES`.
        seed: the manifest's.
        source: the source's name.

    Returns:
        (q, wanted) int64 passages; -1 at the end of rows whose source has too few.

    Method: R. W. Floyd's sampling without replacement (Bentley, CACM 30(9), 1987), all rows at once; draw j of row r is
    a function of (seed, source, r, j).
    """
    order = np.argsort(classes, kind="stable")  # passages class by class, the unknown first
    order = order[np.searchsorted(classes[order], 0) :]
    first, after = (np.searchsorted(classes[order], own, side) for side in ("left", "right"))
    pool = np.where(own >= 0, len(order) - (after - first), 0)  # (q,) passages of other classes
    drawn = np.full((len(own), wanted), -1, np.int64)
    for step in range(wanted):
        top = pool - np.minimum(pool, wanted) + step  # Floyd's j: the draw is from 0..j
        numbers = draws(seed, f"{source}/negatives", rows * MOST_NEGATIVES + step)
        draw = (numbers % (np.maximum(top, 0) + 1).astype(np.uint64)).astype(np.int64)
        draw = np.where((drawn == draw[:, None]).any(axis=1), top, draw)
        drawn[:, step] = np.where(top < pool, draw, -1)
    drawn += np.where(drawn >= first[:, None], (after - first)[:, None], 0)  # step over the own class
    return np.where(drawn >= 0, order[drawn], -1) if len(order) else drawn
