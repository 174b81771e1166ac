"""Which candidates are negatives: pure functions from arrays to arrays.

A candidate must pass every filter that is switched on; then the rank window, then the pick. With only the margins, the
score limits and the window, `choose` gives what sentence-transformers 6.2 `mine_hard_negatives` gives (sampling "top",
format "n-tuple"): the reference of both margins is the lowest score among the query's positives, the relative margin is
a share of that score's magnitude, and range_min skips the nearest of the candidates that *passed*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mining.lists import Ragged, contains

FILTERS = (
    "positive",
    "given",
    "exclude_query",
    "exclude_group",
    "containment",
    "absolute_margin",
    "relative_margin",
    "max_score",
    "min_score",
    "max_similarity",
    "exclude_answer",
    "reranker_max_score",
    "reranker_margin",
)  # in this order; then `distinct`, then the window
# what `shortage: relax` lets go of, one after the other; what makes a text the same as a positive it never does
RELAXED: tuple[dict[str, Any], ...] = (
    {"range_min": 0},
    {"max_similarity": None},
    {"max_score": None, "min_score": None},
    {"absolute_margin": None, "relative_margin": None, "reranker_max_score": None, "reranker_margin": None},
)
REFERENCE = {"min": np.minimum, "max": np.maximum, "mean": np.add}


@dataclass(frozen=True)
class Rules:
    """The keys of the `mine:` section that decide; None and False switch a filter off."""

    range_min: int = 5
    range_max: int = 100
    rank_basis: str = "surviving"  # or raw: the window counts all that the search found
    exclude_query: bool = False
    exclude_group: bool = False
    containment: float | None = None
    exclude_answer: bool = False
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    margin_reference: str = "min"  # or max or mean, of the positives' scores
    max_score: float | None = 0.8
    min_score: float | None = None
    max_similarity: float | None = None
    similarity_median: float = 0.0
    reranker_max_score: float | None = None
    reranker_margin: float | None = None
    distinct: bool = False
    pick: str = "top"  # or random or stratified


@dataclass(frozen=True)
class Candidates:
    """What is known of q queries with k candidates each, nearest first. What no rule asks for may be None."""

    ids: np.ndarray  # (q, k) int64; -1 stands for none
    scores: np.ndarray  # (q, k) floats, descending
    positives: Ragged  # known positives, at least one a query
    positive_scores: np.ndarray  # (len(positives.ids),) of the dtype of the scores
    given: Ragged  # negatives that a query has already
    given_scores: np.ndarray  # (len(given.ids),)
    similarity: np.ndarray | None = None  # (q, k) floats: highest cosine to a positive
    overlap: np.ndarray | None = None  # (q, k) floats: highest share of words in a row shared with a positive
    same_query: np.ndarray | None = None  # (q, k) bool: the query's own text
    same_group: np.ndarray | None = None  # (q, k) bool: counts as the same text as a positive
    groups: np.ndarray | None = None  # (q, k) int64: equal for texts that count as the same; -1 for those with no twin
    draw: np.ndarray | None = None  # (q, k) uint64: a random number each
    answered: np.ndarray | None = None  # (q, k) bool: holds an answer of the query
    reranked: np.ndarray | None = None  # (q, k) float32: the reranker's scores; nan passes its filters
    reranked_positives: np.ndarray | None = None  # (len(positives.ids),) float32, likewise

    def rows(self, some: np.ndarray) -> Candidates:
        """Return some queries, ascending."""
        again = self.reranked_positives
        return replace(
            self._each(lambda values: values[some]),
            positives=self.positives.rows(some),
            positive_scores=Ragged(self.positives.starts, self.positive_scores).rows(some).ids,
            reranked_positives=None if again is None else Ragged(self.positives.starts, again).rows(some).ids,
            given=self.given.rows(some),
            given_scores=Ragged(self.given.starts, self.given_scores).rows(some).ids,
        )

    def narrowed(self, k: int) -> Candidates:
        """Return the k nearest candidates of each query."""
        return self._each(lambda values: values[:, :k])

    def first_scores(self) -> np.ndarray:
        """Return the score (q,) of each query with its first positive."""
        return np.asarray(self.positive_scores[self.positives.starts[:-1]])

    def _each(self, change: Callable[[np.ndarray], np.ndarray]) -> Candidates:
        tables: dict[str, Any] = {name: change(table) for name, table in vars(self).items() if getattr(table, "ndim", 0) == 2}
        return replace(self, **tables)


@dataclass(frozen=True)
class Chosen:
    """Negatives of q queries, nearest first; columns beyond `found` hold -1 (ids, ranks) and nan (scores)."""

    ids: np.ndarray  # (q, n) int64
    scores: np.ndarray  # (q, n) as given to `choose`
    ranks: np.ndarray  # (q, n) int64: column in the candidates, 0 = nearest, positives counted; -1: not a candidate
    found: np.ndarray  # (q,) int64
    removed: dict[str, np.ndarray]  # filter -> (q,) int64: candidates it took that those before it had left


def choose(candidates: Candidates, wanted: np.ndarray, rules: Rules) -> Chosen:
    """Choose up to `wanted` (q,) candidates of each query; limits are compared in the dtype of the scores."""
    eligible, removed = eligible_of(candidates, rules)
    return packed(candidates, picked(candidates, eligible, wanted, rules.pick), wanted, removed)


def eligible_of(candidates: Candidates, rules: Rules) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (q, k) bool, the candidates to pick from, and what each filter took."""
    alive, removed = surviving(candidates, rules)
    rank = alive.cumsum(axis=1, dtype=np.int32) - 1  # among those that passed
    if rules.rank_basis == "raw":
        rank = np.broadcast_to(np.arange(alive.shape[1]), alive.shape)
    removed["range_min"] = (alive & (rank < rules.range_min)).sum(axis=1)
    return alive & (rank >= rules.range_min) & (rank < rules.range_max), removed


def surviving(candidates: Candidates, rules: Rules) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (q, k) bool, what passes all filters but the window, and what each took."""
    alive = candidates.ids >= 0
    reference = reference_of(candidates.positives, candidates.positive_scores, rules.margin_reference)
    removed: dict[str, np.ndarray] = {}
    for name in FILTERS:
        hit = _hits(name, candidates, reference, rules)
        if hit is not None:
            removed[name] = (alive & hit).sum(axis=1)
            alive &= ~hit
    if rules.distinct:
        again = _repeats(alive, candidates.groups)
        removed["distinct"] = again.sum(axis=1)
        alive &= ~again
    return alive, removed


def picked(candidates: Candidates, eligible: np.ndarray, wanted: np.ndarray, pick: str) -> np.ndarray:
    """Return (q, k) bool: at most `wanted` (q,) of the eligible ones of each query.

    top: the nearest. random: any, all alike. stratified: the eligible ones are cut, in order, into `wanted` runs of equal
    length, and one is drawn from each.
    """
    rank = eligible.cumsum(axis=1, dtype=np.int32) - 1
    count = eligible.sum(axis=1)
    if pick == "top":
        return np.asarray(eligible & (rank < wanted[:, None]))
    assert candidates.draw is not None
    rows, columns = np.nonzero(eligible)
    draw = candidates.draw[rows, columns]
    taken = np.zeros_like(eligible)
    if pick == "random":
        order = np.lexsort((draw, rows))
        place = np.arange(len(rows)) - np.repeat(count.cumsum() - count, count)
        order = order[place < wanted[rows[order]]]
    else:
        stratum = rank[rows, columns] * np.minimum(wanted, count)[rows] // np.maximum(count, 1)[rows]
        order = np.lexsort((draw, stratum, rows))
        same = (np.diff(rows[order]) == 0) & (np.diff(stratum[order]) == 0)
        order = order[np.concatenate([[True], ~same])] if len(order) else order
        order = order[wanted[rows[order]] > 0]
    taken[rows[order], columns[order]] = True
    return taken


def relax(candidates: Candidates, chosen: Chosen, wanted: np.ndarray, rules: Rules) -> tuple[Chosen, int]:
    """Fill queries short of negatives by letting go of one filter after the other; return also how many were added.

    What a step lets in is taken from the far end: the least like a positive first.
    """
    taken = np.zeros(candidates.ids.shape, bool)
    rows, columns = np.nonzero(np.arange(chosen.ids.shape[1]) < chosen.found[:, None])
    taken[rows, chosen.ranks[rows, columns]] = True
    for step in RELAXED:
        rules = replace(rules, **step)
        more = eligible_of(candidates, rules)[0] & ~taken
        from_end = more[:, ::-1].cumsum(axis=1)[:, ::-1]  # 1 = the farthest
        taken |= more & (from_end <= (wanted - taken.sum(axis=1))[:, None])
    filled = packed(candidates, taken, wanted, chosen.removed)
    return filled, int((filled.found - chosen.found).sum())


def reference_of(positives: Ragged, scores: np.ndarray, reference: str) -> np.ndarray:
    """Return the score (q,) that margins count from: the positives' lowest (the safest), highest or mean."""
    if not len(scores):
        return scores
    found = REFERENCE[reference].reduceat(scores, positives.starts[:-1])
    return found / np.diff(positives.starts).astype(scores.dtype) if reference == "mean" else found


def likeness_of(candidates: Candidates, rules: Rules) -> np.ndarray:
    """Return (q, k) floats, what `max_similarity` limits: each candidate's highest cosine to a positive, above the row's level.

    The level is a share, `similarity_median`, of the (lower) median of the row's first `range_max` candidates. Where a whole
    neighbourhood is alike, one limit for all rows takes near misses here and leaves false negatives there; a level of each
    row's own is the thought of cross-domain similarity local scaling (Conneau et al., arXiv 1710.04087).
    """
    found = candidates.similarity
    assert found is not None
    if not rules.similarity_median or not found.size:
        return found
    there = candidates.ids[:, : rules.range_max] >= 0
    ordered = np.sort(np.where(there, found[:, : rules.range_max], np.inf), axis=1)
    middle = np.maximum(there.sum(axis=1) - 1, 0) // 2
    level = np.take_along_axis(ordered, middle[:, None], axis=1)
    return np.asarray(found - found.dtype.type(rules.similarity_median) * np.where(np.isinf(level), 0, level))


def replaced(all_rows: Chosen, rows: np.ndarray, some: Chosen) -> Chosen:
    """Return `all_rows` with the rows `rows` taken from `some`."""
    width = some.ids.shape[1]
    for old, new in ((all_rows.ids, some.ids), (all_rows.scores, some.scores), (all_rows.ranks, some.ranks)):
        old[rows, :width] = new
    all_rows.found[rows] = some.found
    for name, counts in some.removed.items():
        all_rows.removed[name][rows] = counts
    return all_rows


def _hits(name: str, candidates: Candidates, reference: np.ndarray, rules: Rules) -> np.ndarray | None:
    """Return (q, k) bool: what a filter would take; None where it is switched off."""
    if name == "positive":
        return contains(candidates.positives, candidates.ids)
    if name == "given":
        return contains(candidates.given, candidates.ids) if len(candidates.given.ids) else None
    limit = getattr(rules, name)
    if limit is None or limit is False:
        return None
    if name.startswith("exclude_"):
        return {"query": candidates.same_query, "group": candidates.same_group, "answer": candidates.answered}[name[8:]]
    if name in ("containment", "max_similarity"):
        evidence = candidates.overlap if name == "containment" else likeness_of(candidates, rules)
        assert evidence is not None
        return np.asarray(evidence >= evidence.dtype.type(limit))
    scores = candidates.scores
    if name in ("reranker_max_score", "reranker_margin"):
        return _reranked_away(name, candidates, limit, rules)
    limit = scores.dtype.type(limit)
    if name == "absolute_margin":
        return np.asarray(scores + limit > reference[:, None])
    if name == "relative_margin":
        return np.asarray(scores > (reference - np.abs(reference) * limit)[:, None])
    return np.asarray(scores > limit if name == "max_score" else scores < limit)


def _reranked_away(name: str, candidates: Candidates, limit: float, rules: Rules) -> np.ndarray | None:
    """Return (q, k) bool: what the reranker scores above a limit; None where it has scored nothing."""
    scores, positives = candidates.reranked, candidates.reranked_positives
    if scores is None or positives is None:
        return None
    if name == "reranker_max_score":
        return np.asarray(scores > np.float32(limit))
    return np.asarray(scores + np.float32(limit) > reference_of(candidates.positives, positives, rules.margin_reference)[:, None])


def _repeats(alive: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return (q, k) bool: candidates of whose group a nearer one is alive."""
    assert groups is not None
    rows, columns = np.nonzero(alive & (groups >= 0))
    codes = rows * (int(groups.max(initial=0)) + 1) + groups[rows, columns]
    again = np.ones(len(codes), bool)
    again[np.unique(codes, return_index=True)[1]] = False
    found = np.zeros_like(alive)
    found[rows[again], columns[again]] = True
    return found


def packed(candidates: Candidates, taken: np.ndarray, wanted: np.ndarray, removed: dict[str, np.ndarray]) -> Chosen:
    """Move the taken candidates (q, k) bool of each row to its front."""
    found = taken.sum(axis=1)
    shape = (len(taken), int(wanted.max(initial=0)))
    front = np.arange(shape[1]) < found[:, None]  # in the order of `taken`: row by row, left to right
    ids, ranks = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    kept = np.full(shape, np.nan, candidates.scores.dtype)
    ids[front] = candidates.ids[taken]
    ranks[front] = np.broadcast_to(np.arange(taken.shape[1]), taken.shape)[taken]
    kept[front] = candidates.scores[taken]
    return Chosen(ids, kept, ranks, found, removed)
