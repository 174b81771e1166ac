"""How good a choice of negatives is, where it can be known: false negatives, hardness, useful ones lost, copies.

Queries with several known positives are gold: all but the first are hidden, and one that is chosen is a false negative
(strict); so is, loosely, a text that shares .8 of its word 3-grams with one. Fewer false negatives are no merit in
themselves, for easy negatives have few: `plain` is the rate of a miner that only skips the nearest ranks, at the same
hardness.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from curation.recipe.settings import PRESETS, Mine
from mining.calibrate import Sample, binned, by_yield, rules_of, sampled
from mining.copies import overlaps
from mining.lists import Ragged, contains
from mining.negatives import Candidates, Chosen, Rules, choose, reference_of
from mining.rows import histogram
from mining.searching import Search

COPY = 0.8  # containment from which a text is a copy of another
USEFUL = (0.90, 0.95)  # of the positive's score: near misses, the most useful negatives
FEW = 7  # negatives a query that F2LLM trains with, of the 24
SKIPS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 70)  # ranks that the plain miner skips


@dataclass(frozen=True)
class Measured:
    """Per query: how many negatives, and of which kind. Rows short of negatives count as none (`full` False)."""

    full: np.ndarray  # (q,) bool
    chosen: np.ndarray  # (q,) int64
    few: np.ndarray  # (q,) int64: negatives among the first `FEW`
    strict: np.ndarray  # (q,) int64: false negatives
    strict_few: np.ndarray  # (q,) int64: those among the first `FEW`
    loose: np.ndarray  # (q,) int64
    loose_few: np.ndarray  # (q,) int64
    hardness: np.ndarray  # (q,) float64: sum of the scores of negatives that are none of these
    clean: np.ndarray  # (q,) int64: their number
    useful: np.ndarray  # (q,) int64: candidates within `USEFUL` that are not false
    lost: np.ndarray  # (q,) int64: those of them that were not chosen
    copies: np.ndarray  # (q,) int64: negatives with an overlap of `COPY` or more with a positive


def measure(candidates: Candidates, chosen: Chosen, wanted: np.ndarray, strict: np.ndarray, loose: np.ndarray) -> Measured:
    """Measure a choice; `strict` and `loose` (q, k) bool say which candidates are false negatives."""
    full = (chosen.found >= wanted) & (wanted > 0)
    taken = np.zeros(candidates.ids.shape, bool)
    rows, columns = np.nonzero((chosen.ranks >= 0) & full[:, None])
    taken[rows, chosen.ranks[rows, columns]] = True
    first = taken & (taken.cumsum(axis=1) <= FEW)
    strict, loose = strict & (candidates.ids >= 0), (strict | loose) & (candidates.ids >= 0)
    clean = taken & ~loose
    reference = reference_of(candidates.positives, candidates.positive_scores, "min")[:, None]
    free = (candidates.ids >= 0) & ~loose & ~contains(candidates.positives, candidates.ids)
    useful = free & (candidates.scores >= USEFUL[0] * reference) & (candidates.scores <= USEFUL[1] * reference) & full[:, None]
    assert candidates.overlap is not None
    counts = {
        "chosen": taken,
        "few": first,
        "strict": taken & strict,
        "strict_few": first & strict,
        "loose": taken & loose,
        "loose_few": first & loose,
        "clean": clean,
        "useful": useful,
        "lost": useful & ~taken,
        "copies": taken & (candidates.overlap >= COPY),
    }
    sums = {name: table.sum(axis=1) for name, table in counts.items()}
    return Measured(full=full, hardness=np.where(clean, candidates.scores, 0.0).sum(axis=1), **sums)


def rates(found: Measured, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return the rates over all queries, or over a resample in which query i stands `weights[i]` times."""

    def total(values: np.ndarray) -> float:
        return float(values.sum() if weights is None else values @ weights)

    def ratio(part: np.ndarray, whole: np.ndarray) -> float:
        return total(part) / max(total(whole), 1e-12)

    return {
        "full": ratio(found.full, np.ones(len(found.full))),
        f"strict_{FEW}": ratio(found.strict_few, found.few),
        "strict": ratio(found.strict, found.chosen),
        f"loose_{FEW}": ratio(found.loose_few, found.few),
        "loose": ratio(found.loose, found.chosen),
        "hit": ratio(found.strict > 0, found.full),
        "hardness": ratio(found.hardness, found.clean),
        "clean_lost": ratio(found.lost, found.useful),
        "copies": ratio(found.copies, found.chosen),
    }


def plain_curve(candidates: Candidates, wanted: np.ndarray, strict: np.ndarray, loose: np.ndarray) -> list[tuple[float, float]]:
    """Return (hardness, strict rate) of miners that skip 0, 1, 2, ... of the nearest candidates and filter nothing."""
    found = []
    for skip in SKIPS:
        rules = Rules(skip, candidates.ids.shape[1], max_score=None, relative_margin=None)
        measured = measure(candidates, choose(candidates, wanted, rules), wanted, strict, loose)
        if measured.full.any():
            said = rates(measured)
            found.append((said["hardness"], said["strict"]))
    return found


def at_hardness(curve: list[tuple[float, float]], hardness: float) -> float | None:
    """Return the rate of a curve at a hardness, between its points by a straight line; None outside."""
    points = sorted(curve)
    if not points or not points[0][0] <= hardness <= points[-1][0]:
        return None
    return float(np.interp(hardness, [point[0] for point in points], [point[1] for point in points]))


def audit(search: Search, settings: Mine) -> dict[str, Any]:
    """Return what the settings of a build, and the presets, give on a sample of a source's rows.

    `search` is one that hides positives where its queries have several.
    """
    choices = {"manifest": settings} | {
        name: Mine(model=settings.model, preset=name, negatives=settings.negatives, range_max=settings.range_max)
        for name in PRESETS
    }
    everything = replace(rules_of(settings), exclude_query=True, exclude_group=True, distinct=True, pick="random")
    sample = sampled(search, everything)
    one, wanted = sample.candidates, sample.wanted
    strict, loose = _false(sample, search.shingles)
    curve = plain_curve(one, wanted, strict, loose) if sample.gold else []
    said: dict[str, Any] = {"rows": len(wanted), "of": search.rows, "gold": sample.gold is not None, "settings": {}}
    for name, some in choices.items():
        rules = rules_of(some)
        limit = None
        if some.max_similarity == "auto":
            limit = by_yield(binned(one, sample.choose(rules), rules), some.target_yield)
            rules = replace(rules, max_similarity=limit)
        chosen = sample.choose(rules)
        numbers = rates(measure(one, chosen, wanted, strict, loose))
        entry: dict[str, Any] = {key: round(number, 6) for key, number in numbers.items() if sample.gold or key not in GOLD}
        if sample.gold:
            entry["plain"] = at_hardness(curve, numbers["hardness"])
        if limit is not None:
            entry["max_similarity"] = limit
        entry["filters"] = {key: int(count.sum()) for key, count in chosen.removed.items()}
        if name == "manifest":
            said["histograms"] = {
                "positives": histogram(one.positive_scores),
                "negatives": histogram(chosen.scores[chosen.ids >= 0]),
            }
        said["settings"][name] = entry
    return said


GOLD = {f"strict_{FEW}", "strict", f"loose_{FEW}", "loose", "hit"}  # what only gold can tell


def _false(sample: Sample, shingles: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Return (q, k) bool each: candidates that are a hidden positive, and those that overlap with one."""
    ids = sample.candidates.ids
    nothing = np.zeros(ids.shape, bool)
    if sample.gold is None:
        return nothing, nothing
    loose, safe = nothing.copy(), np.maximum(ids, 0)
    rows = sample.gold.row_of_each()
    shared = overlaps(shingles, np.repeat(sample.gold.ids, ids.shape[1]), safe[rows].reshape(-1)).reshape(-1, ids.shape[1])
    np.logical_or.at(loose, rows, shared >= COPY)
    return contains(sample.gold, ids), loose
