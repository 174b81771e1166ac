"""Limits from a source's own scores: `max_similarity: auto` and `mine calibrate`.

Scores of different models and sources are not on one scale, so a limit that suits one drops almost everything of another.
`max_similarity: auto` therefore sets the limit per source.

- With `target_yield`: the cosine to the nearest positive below which that share of the negatives is, among those that
  would be chosen without the limit.
- With `target_false_negatives`, where queries have several known positives: all positives except the first are hidden and
  searched for, and the limit is the highest with at most that share of hidden positives among the negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.core.errors import BuildError, ManifestError
from curation.core.progress import Progress, silent
from curation.recipe.settings import Mine, Promote
from mining.candidates import blocks
from mining.encoders import ModelEncoder, OpenEncoder
from mining.jobs import SEARCHED, jobs, open_models
from mining.lists import Ragged, contains, ragged
from mining.negatives import Candidates, Chosen, Rules, reference_scores, similarity_above_level
from mining.source_search import Search

COSINE_BINS = 2_000  # between -1 and 1, so a limit has three decimals
HISTOGRAM_BINS = 40  # of scores, between 0 and 1
LIMITS = [round(0.02 * step, 2) for step in range(50)]  # tried for `target_false_negatives`
RANKS = [1, 3, 5, 10, 20, 50, 100]  # limits of `positive_rank` that `mine calibrate` compares
LOWEST = [0.01, 0.02, 0.05, 0.1, 0.2]  # shares of tuples that limits on a positive's score drop in `mine calibrate`
HIGHEST = {
    "promote": [0.005, 0.01, 0.02, 0.05, 0.1],
    "uncertain": [0.05, 0.1, 0.2, 0.3, 0.5],
}  # shares of candidates, for margins
MARGINS = [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]  # relative margins that `mine calibrate` compares
YIELDS = [1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5]  # whose similarity limits `mine calibrate` compares
ENOUGH = 100  # rows with several positives that represent a source
SAMPLE_ROWS = 4_000  # in a sample, spread evenly over the source


@dataclass(frozen=True)
class Sample:
    """Rows of a source with their candidates. With gold, some positives of each row are hidden from the search."""

    candidates: Candidates
    wanted: np.ndarray  # (q,)
    gold: Ragged | None  # the hidden positives
    search: Search
    frame: pl.DataFrame  # of pairs

    def choose(self, rules: Rules) -> Chosen:
        """Return what the rules choose for these rows."""
        return self.search.choose(self.frame, self.candidates, self.wanted, rules)[1]

    def false_negatives(self, rules: Rules) -> float:
        """Return the share of hidden positives among the negatives that the rules choose."""
        chosen = self.choose(rules)
        assert self.gold is not None
        return float((contains(self.gold, chosen.ids) & (chosen.ids >= 0)).sum() / max(1, chosen.found.sum()))


def rules_of(settings: Mine) -> Rules:
    """Return the rules of a `mine:` section; a limit that is calibrated is off."""
    found: dict[str, Any] = {key: getattr(settings, key) for key in Rules.__dataclass_fields__}
    found["promote"] = settings.promote.margin if settings.promote else None
    found["uncertain"] = settings.uncertain.margin if settings.uncertain else None
    return Rules(**{**found, "max_similarity": None} if settings.max_similarity == "auto" else found)


def calibrate_rules(search: Search, settings: Mine) -> tuple[Rules, dict[str, Any]]:
    """Return the rules for a source, and what its receipt says about the calibration. The search is prepared.

    Raises:
        ManifestError: `target_false_negatives` is set and no query of the source has several positives.
    """
    rules = rules_of(settings)
    if settings.max_similarity != "auto":
        return rules, {}

    if settings.target_false_negatives is None:
        counts = np.zeros(COSINE_BINS, np.int64)
        for block in blocks(search.job.curated):
            near = search.candidates(block, rules)
            chosen = search.choose(block.frame, near, np.full(len(block.frame), search.wanted), rules)[1]
            counts += count_similarities(near, chosen, rules)
        limit = limit_for_yield(counts, settings.target_yield)
        entry = {"max_similarity": limit, "target_yield": settings.target_yield}
        return replace(rules, max_similarity=limit), {"calibrated": entry}

    target, rate = settings.target_false_negatives, 0.0
    hiding = Search(search.job, search.models, search.progress, hide=True)
    sample = draw_sample(hiding, rules, any_gold=True)
    if sample.gold is None:
        what = f"mine: target_false_negatives needs queries with several positives, and source '{search.job.name}' has none"
        raise ManifestError(search.job.build / "manifest.yaml", what, "use target_yield")
    for limit in reversed(LIMITS):
        rate = sample.false_negatives(replace(rules, max_similarity=limit))
        if rate <= target:
            break
    entry = {"max_similarity": limit, "target_false_negatives": target, "false_negatives": round(rate, 6)}
    return replace(rules, max_similarity=limit), {"calibrated": entry}


def draw_sample(search: Search, rules: Rules, any_gold: bool = False) -> Sample:
    """Return up to `SAMPLE_ROWS` rows of a source with their candidates; if the search hides positives, rows with several.

    If rows with several positives are fewer than `ENOUGH` and than a twentieth of all rows, they do not represent the
    source; then all rows are sampled, unless `any_gold`.

    Raises:
        BuildError: the source has no rows.
    """
    frame = pl.concat([block.frame.with_columns(pl.Series("row", block.rows)) for block in blocks(search.job.curated)])
    several = frame.filter(pl.col("positives").list.len() > 1)
    has_gold = search.hide and len(several) >= (1 if any_gold else min(ENOUGH, max(1, len(frame) // 20)))
    frame = several if has_gold else frame
    if not len(frame):
        raise BuildError(search.job.curated, "has no rows to look at", "look at another source with --only")
    frame = frame[np.unique(np.linspace(0, len(frame) - 1, min(SAMPLE_ROWS, len(frame))).astype(np.int64))]
    rows = frame["row"].to_numpy()
    candidates = search.with_evidence(frame, search.look(frame, rows, search.fetched), rows, rules)
    gold = ragged(frame["positives"].list.slice(1)) if has_gold else None
    return Sample(candidates, search.wanted - np.diff(candidates.given.starts), gold, search, frame)


def count_similarities(candidates: Candidates, chosen: Chosen, rules: Rules) -> np.ndarray:
    """Count (COSINE_BINS,) the similarities of chosen negatives to a positive, above the row's level, from -1 to 1."""
    rows, columns = np.nonzero(chosen.ranks >= 0)
    values = similarity_above_level(candidates, rules)[rows, chosen.ranks[rows, columns]].astype(np.float64)
    numbers = np.clip((values + 1) * (COSINE_BINS / 2), 0, COSINE_BINS - 1).astype(np.int64)
    return np.bincount(numbers, minlength=COSINE_BINS)


def limit_for_yield(counts: np.ndarray, target: float) -> float:
    """Return the lowest limit, with three decimals, that keeps at least the share `target` of the counted similarities."""
    if not counts.sum():
        return 1.0
    return round(2 * (int(np.searchsorted(counts.cumsum(), target * counts.sum())) + 1) / COSINE_BINS - 1, 3)


def histogram(scores: np.ndarray) -> list[int]:
    """Count scores in `HISTOGRAM_BINS` bins from 0 to 1; lower and higher scores are in the outer bins, nan in no bin."""
    return [int(count) for count in np.histogram(np.clip(scores[~np.isnan(scores)], 0, 1), HISTOGRAM_BINS, (0, 1))[0]]


def compare_limits(search: Search, settings: Mine) -> dict[str, Any]:
    """Return what other margins and similarity limits give on a sample of a source's rows, all other rules as set.

    For each value: `dropped`, the share of candidates that the limit drops; `full`, the share of rows with all their
    negatives; `hardness`, the mean score of the negatives; with gold, `false_negatives`. `search` hides positives.
    """
    rules = rules_of(settings)
    sample = draw_sample(search, rules)

    def measure_limits(key: str, values: Sequence[float]) -> list[dict[str, Any]]:
        found = []
        for value in values:
            changed: dict[str, Any] = {key: value}
            chosen = sample.choose(replace(rules, **changed))
            scores = chosen.scores[chosen.ids >= 0]
            entry = {
                key: value,
                "dropped": round(float(chosen.removed[key].sum() / max(1, (sample.candidates.ids >= 0).sum())), 4),
                "full": round(float((chosen.found >= sample.wanted).mean()), 4),
                "hardness": round(float(scores.mean()), 4) if len(scores) else None,
            }
            if sample.gold is not None:
                entry["false_negatives"] = round(sample.false_negatives(replace(rules, **changed)), 6)
            found.append(entry)
        return found

    margins = sorted({*MARGINS, *([] if rules.relative_margin is None else [rules.relative_margin])})
    is_auto = settings.max_similarity == "auto" and settings.target_false_negatives is None
    yields = sorted({*YIELDS, settings.target_yield} if is_auto else YIELDS, reverse=True)
    counts = count_similarities(sample.candidates, sample.choose(replace(rules, max_similarity=None)), rules)
    limits = measure_limits("max_similarity", [limit_for_yield(counts, share) for share in yields])
    found: dict[str, Any] = {} if search.job.strategy != "search" else {"positives": _compare_positive_limits(sample, settings)}
    if found and (settings.promote or settings.uncertain):
        found["relabelling"] = _compare_margins(sample, settings)
    return found | {
        "rows": len(sample.wanted),
        "of": search.rows,
        "gold": sample.gold is not None,
        "relative_margin": [
            {**entry, "current": entry["relative_margin"] == rules.relative_margin}
            for entry in measure_limits("relative_margin", margins)
        ],
        "max_similarity": [
            {"target_yield": share, **entry, "current": is_auto and share == settings.target_yield}
            for share, entry in zip(yields, limits, strict=True)
        ],
    }


def _compare_positive_limits(sample: Sample, settings: Mine) -> list[dict[str, Any]]:
    """Return the share of tuples that each limit on the positive drops: `setting`, `limit`, `dropped`, `current`."""
    judged = sample.search.judge(sample.frame, sample.candidates, None)
    scores = {"positive_min_score": judged.scores}
    if sample.search.reranker:
        scores["positive_reranker_min"] = judged.reranked[judged.positives.starts[:-1]].astype(np.float64)
    seen = sample.candidates.ids.shape[1]
    tried = {"positive_rank": {rank for rank in RANKS if rank <= seen}}
    tried |= {name: set(np.quantile(values, LOWEST).round(4).tolist()) for name, values in scores.items()}
    found = []
    for name, limits in tried.items():
        current = getattr(settings, name)
        for limit in sorted(limits | ({current} if current is not None else set())):
            bad = judged.ranks >= limit if name == "positive_rank" else scores[name] < limit
            share = round(float(bad.mean()), 4)
            found.append({"setting": name, "limit": limit, "dropped": share, "current": limit == current})
    return found


def _compare_margins(sample: Sample, settings: Mine) -> list[dict[str, Any]]:
    """Return what margins of `promote` and `uncertain` take of the candidates nearest to each query, without positives.

    `setting`, `margin`; `taken`, the share of these candidates that the margin promotes or drops (`uncertain` counts those that
    `promote` takes too); `tuples`, the share of tuples that have such candidates; with gold `right`, the share of the taken
    ones that are hidden positives; `current`. How many are nearest is the `depth` of `promote`.
    """
    depth = settings.promote.depth if settings.promote else Promote.model_fields["depth"].default
    near, score = sample.candidates.narrowed(depth), sample.search.scorer(sample.frame)
    free = (near.ids >= 0) & ~contains(near.positives, near.ids) & ~contains(near.given, near.ids)
    for duplicate in (near.same_query, near.same_group):
        free &= True if duplicate is None else ~duplicate
    rows, columns = np.nonzero(free)
    if not len(rows):
        return []
    highest = reference_scores(near.positives, score(near.positives.row_of_each(), near.positives.ids), "max")
    scores = score(rows, near.ids[rows, columns])
    above = scores - highest[rows]
    lowest = settings.promote.min_score if settings.promote else None
    right = None if sample.gold is None else contains(sample.gold, near.ids)[rows, columns]
    found = []
    for name, sign in (("promote", 1), ("uncertain", -1)):
        tried = {round(sign * float(margin), 4) for margin in np.quantile(above, [1 - share for share in HIGHEST[name]])}
        current = getattr(settings, name).margin if getattr(settings, name) else None
        for margin in sorted({one for one in tried if one >= 0} | ({current} if current is not None else set())):
            taken = above > sign * margin
            if name == "promote" and lowest is not None:
                taken &= scores >= lowest
            entry = {"setting": name, "margin": margin, "taken": round(float(taken.mean()), 4)}
            entry["tuples"] = round(len(np.unique(rows[taken])) / len(sample.wanted), 4)
            if right is not None:
                entry["right"] = round(float(right[taken].mean()), 4) if taken.any() else None
            found.append({**entry, "current": margin == current})
    return found


def evaluate_sources(
    measure: Callable[[Search, Mine], dict[str, Any]],
    build: Path,
    only: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
    load: OpenEncoder = ModelEncoder,
    processes: int | None = 1,
    ray: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return for each searched source of a build what `measure` (`calibrate.compare_limits` or `audit.measure_presets`) gives.

    The other arguments are those of `mine_build`.

    Raises:
        BuildError: no source is searched; and the errors of `mine_build`.
    """
    with open_models(build, device, load, processes, ray) as models:
        searched = [job for job in jobs(models.build, only, models) if job.strategy in SEARCHED]
        if not searched:
            raise BuildError(build, "has no source whose negatives are searched", "the other sources keep or draw theirs")
        return {job.name: measure(Search(job, models, progress, hide=True), models.settings) for job in searched}
