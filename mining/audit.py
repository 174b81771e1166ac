"""How good a choice of negatives is: false negatives, hardness, useful candidates lost, copies.

Queries with several known positives serve as gold: all positives except the first are hidden, and a hidden one among the
negatives is a false negative (strict). Loosely, a text that shares .8 of its word 3-grams with a hidden positive is one
too. Few false negatives alone are no merit, because easy negatives contain few: `plain` is the rate of a miner that only
skips the nearest ranks, at the same hardness.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from curation.recipe.settings import PRESETS, Mine
from mining.calibrate import count_similarities, draw_sample, histogram, limit_for_yield, rules_of
from mining.duplicates import overlaps
from mining.lists import contains
from mining.negatives import Candidates, Chosen, Rules, choose, reference_scores
from mining.source_search import Search

COPY = 0.8  # share of common word 3-grams from which a text is a copy of another
USEFUL = (0.90, 0.95)  # of the positive's score: near misses, the most useful negatives
FEW = 7  # negatives per query that F2LLM trains with, out of 24
SKIPS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 70)  # numbers of nearest ranks that the plain miner skips
NEED_GOLD = {f"strict_{FEW}", "strict", f"loose_{FEW}", "loose", "hit"}  # rates that only hidden positives give


@dataclass(frozen=True)
class Measured:
    """Per query: how many negatives, and of which kind. All counts of a row with too few negatives (`full` False) are 0."""

    full: np.ndarray  # (q,) bool
    chosen: np.ndarray  # (q,) int64
    few: np.ndarray  # (q,) int64: negatives among the first `FEW`
    strict: np.ndarray  # (q,) int64: false negatives
    strict_few: np.ndarray  # (q,) int64: false negatives among the first `FEW`
    loose: np.ndarray  # (q,) int64: false negatives and copies of hidden positives
    loose_few: np.ndarray  # (q,) int64: those among the first `FEW`
    hardness: np.ndarray  # (q,) float64: sum of the scores of the clean negatives
    clean: np.ndarray  # (q,) int64: negatives that are not loosely false
    useful: np.ndarray  # (q,) int64: candidates within `USEFUL` that are not loosely false
    lost: np.ndarray  # (q,) int64: useful ones that were not chosen
    copies: np.ndarray  # (q,) int64: negatives with an overlap of `COPY` or more with a positive


def measure(candidates: Candidates, chosen: Chosen, wanted: np.ndarray, strict: np.ndarray, loose: np.ndarray) -> Measured:
    """Measure a choice; `strict` and `loose` (q, k) bool mark the candidates that are false negatives."""
    full = (chosen.found >= wanted) & (wanted > 0)
    taken = np.zeros(candidates.ids.shape, bool)
    rows, columns = np.nonzero((chosen.ranks >= 0) & full[:, None])
    taken[rows, chosen.ranks[rows, columns]] = True
    first = taken & (taken.cumsum(axis=1) <= FEW)
    strict, loose = strict & (candidates.ids >= 0), (strict | loose) & (candidates.ids >= 0)
    clean = taken & ~loose
    reference = reference_scores(candidates.positives, candidates.positive_scores, "min")[:, None]
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
    """Return the rates over all queries, or over a resample that contains query i `weights[i]` times."""

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


def measure_presets(search: Search, settings: Mine) -> dict[str, Any]:
    """Return the rates of a build's settings, and of the presets, on a sample of a source's rows. `search` hides positives."""
    # candidates with the evidence that any of the settings may ask for
    evidence: dict[str, Any] = {"exclude_query": True, "exclude_group": True, "distinct": True, "pick": "random"}
    sample = draw_sample(search, replace(rules_of(settings), **evidence))
    one, wanted, gold = sample.candidates, sample.wanted, sample.gold

    # which candidates are hidden positives (strict), and which are copies of one (loose)
    strict, loose = np.zeros(one.ids.shape, bool), np.zeros(one.ids.shape, bool)
    if gold is not None:
        strict, rows = contains(gold, one.ids), gold.row_of_each()
        nearby, width = np.maximum(one.ids, 0)[rows], one.ids.shape[1]
        shared = overlaps(search.shingles, np.repeat(gold.ids, width), nearby.reshape(-1)).reshape(-1, width)
        np.logical_or.at(loose, rows, shared >= COPY)

    # (hardness, strict rate) of miners that skip 0, 1, 2, ... of the nearest candidates and filter nothing
    plain = list[tuple[float, float]]()
    for skip in SKIPS if gold is not None else ():
        rules = Rules(skip, one.ids.shape[1], max_score=None, relative_margin=None)
        measured = measure(one, choose(one, wanted, rules), wanted, strict, loose)
        if measured.full.any():
            found = rates(measured)
            plain.append((found["hardness"], found["strict"]))

    result: dict[str, Any] = {"rows": len(wanted), "of": search.rows, "gold": gold is not None, "settings": {}}
    low = Mine.model_fields["range_min"].default
    presets = {
        name: Mine(model=settings.model, preset=name, negatives=settings.negatives, range_max=settings.range_max)
        for name in PRESETS
        if cast(int, PRESETS[name].get("range_min", low)) < settings.range_max
    }
    if left_out := sorted(PRESETS.keys() - presets.keys()):
        what = (
            f"presets {', '.join(left_out)} are left out: they skip more candidates than `range_max: {settings.range_max}` allows"
        )
        logging.getLogger("tuplesmith").warning(what)
    for name, some in {"manifest": settings, **presets}.items():
        rules, limit = rules_of(some), None
        if some.max_similarity == "auto":
            limit = limit_for_yield(count_similarities(one, sample.choose(rules), rules), some.target_yield)
            rules = replace(rules, max_similarity=limit)
        chosen = sample.choose(rules)
        found = rates(measure(one, chosen, wanted, strict, loose))
        entry: dict[str, Any] = {key: round(rate, 6) for key, rate in found.items() if gold or key not in NEED_GOLD}
        if gold:
            entry["plain"] = rate_at_hardness(plain, found["hardness"])
        if limit is not None:
            entry["max_similarity"] = limit
        entry["filters"] = {key: int(count.sum()) for key, count in chosen.removed.items()}
        if name == "manifest":
            chosen_scores = chosen.scores[chosen.ids >= 0]
            result["histograms"] = {"positives": histogram(one.positive_scores), "negatives": histogram(chosen_scores)}
        result["settings"][name] = entry
    return result


def rate_at_hardness(curve: list[tuple[float, float]], hardness: float) -> float | None:
    """Return the rate of a curve at a hardness, interpolated between its points; None outside of them."""
    points = sorted(curve)
    if not points or not points[0][0] <= hardness <= points[-1][0]:
        return None
    return float(np.interp(hardness, [point[0] for point in points], [point[1] for point in points]))
