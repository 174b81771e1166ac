"""Which candidates become negatives: pure functions from arrays to arrays.

A candidate must pass every filter that is on, then be inside the rank window, then be picked. With only the margins, the
score limits and the window, `choose` gives what `mine_hard_negatives` of sentence-transformers 6.2 gives (sampling "top",
format "n-tuple"): both margins count from the lowest score of the query's positives, the relative margin is a share of
that score's magnitude, and range_min skips the nearest of the candidates that *passed*.

How many negatives a row gets is decided in `jobs`: `mine: {negatives: N}`, and 1 for a classification, whose negatives are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from curation.core.record import draws
from mining.lists import Ragged, contains

DRAWS_PER_ROW = 1_024  # random numbers that each row has of its own; the manifest allows 1,000 negatives
# the filters that `shortage: relax` switches off, step by step; those that find duplicates of a positive stay on
RELAXED: tuple[dict[str, Any], ...] = (
    {"range_min": 0},
    {"max_similarity": None},
    {"max_score": None, "min_score": None},
    {"absolute_margin": None, "relative_margin": None, "reranker_max_score": None, "reranker_margin": None},
)
REFERENCE = {"min": np.minimum, "max": np.maximum, "mean": np.add}


@dataclass(frozen=True)
class Rules:
    """The keys of the `mine:` section that decide which candidates are chosen; None and False switch a filter off."""

    range_min: int = 5
    range_max: int = 100
    rank_basis: str = "surviving"  # or raw: the window counts all candidates that the search found
    exclude_query: bool = False
    exclude_group: bool = False
    containment: float | None = None
    exclude_answer: bool = False
    exclude_document: bool = True
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    margin_reference: str = "min"  # or max or mean, of the positives' scores
    max_score: float | None = 0.8
    min_score: float | None = None
    max_similarity: float | None = None
    similarity_median: float = 0.0
    reranker_max_score: float | None = None
    reranker_margin: float | None = None
    promote: float | None = None  # margin above the highest of the positives
    uncertain: float | None = None
    distinct: bool = False
    pick: str = "top"  # or random or stratified


@dataclass(frozen=True)
class Candidates:
    """q queries with k candidates each, nearest first. A table that no rule needs may be None."""

    ids: np.ndarray  # (q, k) int64; -1 marks an empty place
    scores: np.ndarray  # (q, k) floats, descending
    positives: Ragged  # known positives, at least one per query
    positive_scores: np.ndarray  # (len(positives.ids),) of the dtype of the scores
    given: Ragged  # negatives that a query has already
    given_scores: np.ndarray  # (len(given.ids),)
    similarity: np.ndarray | None = None  # (q, k) floats: highest cosine to a positive
    overlap: np.ndarray | None = None  # (q, k) floats: highest share of word 3-grams in common with a positive
    same_query: np.ndarray | None = None  # (q, k) bool: is the query's own text, or a duplicate of it
    same_group: np.ndarray | None = None  # (q, k) bool: is a duplicate of a positive
    groups: np.ndarray | None = None  # (q, k) int64: equal for duplicates; -1 for a text without a duplicate
    draw: np.ndarray | None = None  # (q, k) uint64: random numbers
    answered: np.ndarray | None = None  # (q, k) bool: contains an answer of the query
    reranked: np.ndarray | None = None  # (q, k) float32: the reranker's scores; nan, not scored, passes its filters
    reranked_positives: np.ndarray | None = None  # (len(positives.ids),) float32
    promoted: Ragged | None = None  # candidates of each row that became positives
    same_document: np.ndarray | None = None  # (q, k) bool: is of the document of a positive; None if no documents are known

    def rows(self, some: np.ndarray) -> Candidates:
        """Return some queries, by ascending numbers."""

        def scores(values: np.ndarray) -> np.ndarray:
            return Ragged(self.positives.starts, values).rows(some).ids

        return replace(
            self._map_tables(lambda table: table[some]),
            positives=self.positives.rows(some),
            positive_scores=scores(self.positive_scores),
            reranked_positives=None if self.reranked_positives is None else scores(self.reranked_positives),
            promoted=self.promoted.rows(some) if self.promoted else None,
            given=self.given.rows(some),
            given_scores=Ragged(self.given.starts, self.given_scores).rows(some).ids,
        )

    def narrowed(self, k: int) -> Candidates:
        """Return the k nearest candidates of each query."""
        return self._map_tables(lambda table: table[:, :k])

    def _map_tables(self, change: Callable[[np.ndarray], np.ndarray]) -> Candidates:
        tables: dict[str, Any] = {name: change(table) for name, table in vars(self).items() if getattr(table, "ndim", 0) == 2}
        return replace(self, **tables)


@dataclass(frozen=True)
class Chosen:
    """Negatives of q queries, nearest first; columns beyond `found` hold -1 (ids, ranks) and nan (scores)."""

    ids: np.ndarray  # (q, n) int64
    scores: np.ndarray  # (q, n) as given to `choose`
    ranks: np.ndarray  # (q, n) int64: column in the candidates: 0 is the nearest, positives count; -1: not a candidate
    found: np.ndarray  # (q,) int64
    removed: dict[str, np.ndarray]  # filter -> (q,) int64: candidates that it dropped and the filters before it had not


@dataclass(frozen=True)
class Judged:
    """What was found about the positives of q rows."""

    scores: np.ndarray  # (q,) float64: cosine of the query and the first positive
    ranks: np.ndarray  # (q,) int64: candidates that score higher than it, except positives
    beyond: np.ndarray  # (q,) bool: it is farther than all candidates, so its rank is that or more
    positives: Ragged  # the known ones, then those that were promoted
    promoted: np.ndarray  # (q,) int64: how many were
    reranked: np.ndarray  # (len(positives.ids),) float32: the reranker's scores; nan where not scored


@dataclass(frozen=True)
class Negatives:
    """The negatives of q rows: first those that the rows were built with, then `more`."""

    given: Ragged
    given_scores: np.ndarray  # (len(given.ids),) float64; nan where not scored
    more: Chosen
    origin: int  # of `more`, as in `record.ORIGINS`
    positive_scores: np.ndarray  # (q,) float64, of the first positive; nan where not scored
    seen: np.ndarray  # (q,) how many candidates were considered
    filled: dict[str, int] = field(default_factory=dict)  # `shortage` policy -> negatives that it added
    judged: Judged | None = None  # None where the positives were not searched


def choose(candidates: Candidates, wanted: np.ndarray, rules: Rules) -> Chosen:
    """Choose up to `wanted` (q,) candidates of each query; limits are compared in the dtype of the scores."""
    eligible, removed = eligible_candidates(candidates, rules)
    return move_to_front(candidates, pick(candidates, eligible, wanted, rules.pick), wanted, removed)


def eligible_candidates(candidates: Candidates, rules: Rules) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (q, k) bool, the candidates to pick from, and how many each filter dropped."""
    alive, removed = surviving(candidates, rules)
    rank = alive.cumsum(axis=1, dtype=np.int32) - 1  # among those that passed
    if rules.rank_basis == "raw":
        rank = np.broadcast_to(np.arange(alive.shape[1]), alive.shape)
    removed["range_min"] = (alive & (rank < rules.range_min)).sum(axis=1)
    return alive & (rank >= rules.range_min) & (rank < rules.range_max), removed


def surviving(candidates: Candidates, rules: Rules) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (q, k) bool, the candidates that pass all filters except the window, and how many each filter dropped."""
    scores, similarity = candidates.scores, candidates.similarity
    reference = reference_scores(candidates.positives, candidates.positive_scores, rules.margin_reference)[:, None]
    reranked, reranked_reference, promoted = candidates.reranked, np.empty((0, 1), np.float32), candidates.promoted
    if rules.max_similarity is not None:
        similarity = similarity_above_level(candidates, rules)
    if candidates.reranked_positives is not None:
        reranked_reference = reference_scores(candidates.positives, candidates.reranked_positives, rules.margin_reference)[
            :, None
        ]
    score_of = scores.dtype.type  # limits are compared in the dtype of what they limit

    # name in the counts; setting, by which the filter is on or off; what it drops
    filters: list[tuple[str, Any, Callable[[Any], Any]]] = [
        ("positive", True, lambda _: contains(candidates.positives, candidates.ids)),
        ("given", len(candidates.given.ids) > 0, lambda _: contains(candidates.given, candidates.ids)),
        ("promoted", promoted is not None, lambda _: contains(promoted, candidates.ids) if promoted else None),
        ("exclude_query", rules.exclude_query, lambda _: candidates.same_query),
        ("exclude_group", rules.exclude_group, lambda _: candidates.same_group),
        ("containment", rules.containment, lambda limit: _at_least(candidates.overlap, limit)),
        ("absolute_margin", rules.absolute_margin, lambda margin: scores + score_of(margin) > reference),
        ("relative_margin", rules.relative_margin, lambda margin: scores > reference - np.abs(reference) * score_of(margin)),
        ("max_score", rules.max_score, lambda limit: scores > score_of(limit)),
        ("min_score", rules.min_score, lambda limit: scores < score_of(limit)),
        ("max_similarity", rules.max_similarity, lambda limit: _at_least(similarity, limit)),
        ("exclude_answer", rules.exclude_answer, lambda _: candidates.answered),
        (
            "exclude_document",
            rules.exclude_document and candidates.same_document is not None,
            lambda _: candidates.same_document,
        ),
    ]
    if reranked is not None:
        filters += [
            ("reranker_max_score", rules.reranker_max_score, lambda limit: reranked > np.float32(limit)),
            ("reranker_margin", rules.reranker_margin, lambda margin: reranked + np.float32(margin) > reranked_reference),
            ("promote", rules.promote, lambda margin: above_positives(candidates, margin)),
            ("uncertain", rules.uncertain, lambda margin: reranked + np.float32(margin) > reranked_reference),
        ]
    alive, removed = candidates.ids >= 0, dict[str, np.ndarray]()
    for name, setting, find_bad in filters:
        if setting is not None and setting is not False:
            bad = find_bad(setting)
            removed[name] = (alive & bad).sum(axis=1)
            alive &= ~bad

    if rules.distinct:  # among duplicates, keep only the nearest
        assert candidates.groups is not None
        rows, columns = np.nonzero(alive & (candidates.groups >= 0))
        codes = rows * (int(candidates.groups.max(initial=0)) + 1) + candidates.groups[rows, columns]
        again = np.ones(len(codes), bool)
        again[np.unique(codes, return_index=True)[1]] = False
        repeats = np.zeros_like(alive)
        repeats[rows[again], columns[again]] = True
        removed["distinct"] = repeats.sum(axis=1)
        alive &= ~repeats
    return alive, removed


def above_positives(candidates: Candidates, margin: float) -> np.ndarray:
    """Return (q, k) bool: whether the reranker scores a candidate higher than each positive of its row, by more than `margin`."""
    assert candidates.reranked is not None
    assert candidates.reranked_positives is not None
    highest = reference_scores(candidates.positives, candidates.reranked_positives, "max")[:, None]
    return np.asarray(candidates.reranked > highest + np.float32(margin))


def _at_least(values: np.ndarray | None, limit: float) -> np.ndarray:
    assert values is not None
    return np.asarray(values >= values.dtype.type(limit))


def pick(candidates: Candidates, eligible: np.ndarray, wanted: np.ndarray, how: str) -> np.ndarray:
    """Return (q, k) bool: at most `wanted` (q,) of the eligible ones of each query.

    top: the nearest. random: drawn, all with equal chance. stratified: the eligible ones are cut, in order, into `wanted`
    runs of equal length, and one is drawn from each run.
    """
    rank = eligible.cumsum(axis=1, dtype=np.int32) - 1
    count = eligible.sum(axis=1)
    if how == "top":
        return np.asarray(eligible & (rank < wanted[:, None]))
    assert candidates.draw is not None
    rows, columns = np.nonzero(eligible)
    draw = candidates.draw[rows, columns]
    taken = np.zeros_like(eligible)
    if how == "random":
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
    """Fill queries that lack negatives by switching off filters step by step; return also how many were added.

    Each step adds the farthest of its candidates first: those that are least likely to be positives.
    """
    taken = np.zeros(candidates.ids.shape, bool)
    rows, columns = np.nonzero(np.arange(chosen.ids.shape[1]) < chosen.found[:, None])
    taken[rows, chosen.ranks[rows, columns]] = True
    for step in RELAXED:
        rules = replace(rules, **step)
        more = eligible_candidates(candidates, rules)[0] & ~taken
        if rules.distinct:  # it kept the nearest duplicate, and a farther one may be taken
            assert candidates.groups is not None
            rows, columns = np.nonzero(taken & (candidates.groups >= 0))
            starts = np.concatenate([[0], np.bincount(rows, minlength=len(taken)).cumsum()])
            more &= ~contains(Ragged(starts, candidates.groups[rows, columns]), candidates.groups)
        from_end = more[:, ::-1].cumsum(axis=1)[:, ::-1]  # 1 = the farthest
        taken |= more & (from_end <= (wanted - taken.sum(axis=1))[:, None])
    filled = move_to_front(candidates, taken, wanted, chosen.removed)
    return filled, int((filled.found - chosen.found).sum())


def reference_scores(positives: Ragged, scores: np.ndarray, reference: str) -> np.ndarray:
    """Return the score (q,) that margins count from: the lowest (the safest), highest or mean score of the positives."""
    if not len(scores):
        return scores
    found = REFERENCE[reference].reduceat(scores, positives.starts[:-1])
    return found / np.diff(positives.starts).astype(scores.dtype) if reference == "mean" else found


def similarity_above_level(candidates: Candidates, rules: Rules) -> np.ndarray:
    """Return (q, k) floats, what `max_similarity` limits: a candidate's highest cosine to a positive, minus the row's level.

    The level is the share `similarity_median` of the (lower) median over the row's first `range_max` candidates. In a
    neighbourhood where all texts are similar, one limit for all rows drops near misses in one row and keeps false
    negatives in another. A level per row is the idea of cross-domain similarity local scaling (Conneau et al., arXiv
    1710.04087).
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


def move_to_front(candidates: Candidates, taken: np.ndarray, wanted: np.ndarray, removed: dict[str, np.ndarray]) -> Chosen:
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


def draw_from_other_classes(
    classes: np.ndarray, own: np.ndarray, rows: np.ndarray, wanted: int, seed: int, source: str
) -> np.ndarray:
    """Draw for each row `wanted` distinct passages of other classes, uniformly: F2LLM's rule for clustering.

    Args:
        classes: (n,) class of each passage; -1, unknown, is never drawn.
        own: (q,) class of each row; a row with -1 draws nothing.
        rows: (q,) number of each row in its source.
        wanted: negatives per row, at most `DRAWS_PER_ROW`.
        seed: of the manifest.
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
        numbers = draws(seed, f"{source}/negatives", rows * DRAWS_PER_ROW + step)
        number = (numbers % (np.maximum(top, 0) + 1).astype(np.uint64)).astype(np.int64)
        number = np.where((drawn == number[:, None]).any(axis=1), top, number)
        drawn[:, step] = np.where(top < pool, number, -1)
    drawn += np.where(drawn >= first[:, None], (after - first)[:, None], 0)  # step over the row's own class
    return np.where(drawn >= 0, order[drawn], -1) if len(order) else drawn
