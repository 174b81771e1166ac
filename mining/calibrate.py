"""Thresholds from a source's own scores.

A limit that suits one model or source takes almost everything of another: scores are not on one scale. So
`max_similarity: auto` is set for each source. With a target yield it is the cosine to the nearest positive below which
that share lies of the negatives that would be chosen without the limit. With a target rate of false negatives, in
sources whose queries have several known positives, all positives but the first are hidden and searched for, and the
limit is the highest at which no larger share of the negatives is a hidden positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from curation.core.errors import BuildError, ManifestError
from curation.recipe.settings import Mine
from mining.lists import Ragged, contains, ragged
from mining.negatives import Candidates, Chosen, Rules, likeness_of
from mining.searching import Search, blocks

BINS = 2_000  # of the cosines between -1 and 1: a limit has three decimals
LIMITS = [round(0.02 * step, 2) for step in range(50)]  # tried for a target of false negatives
MARGINS = [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]  # relative ones that a curve shows
YIELDS = [1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5]  # of which a curve shows the limit of similarity
ENOUGH = 100  # rows with several positives that tell of a source
ROWS = 4_000  # that a curve or an audit looks at, spread over the source


@dataclass(frozen=True)
class Sample:
    """Rows of a source with their candidates. Where there is gold, each row has hidden positives."""

    candidates: Candidates
    wanted: np.ndarray  # (q,)
    gold: Ragged | None  # the hidden positives
    search: Search
    frame: pl.DataFrame  # of pairs

    def choose(self, rules: Rules) -> Chosen:
        """Return what the rules choose for these rows."""
        return self.search.choose(self.frame, self.candidates, self.wanted, rules)[1]


def rules_of(settings: Mine) -> Rules:
    """Return the rules of a `mine:` section; a limit that is to be calibrated is off."""
    found: dict[str, Any] = {key: getattr(settings, key) for key in Rules.__dataclass_fields__}
    return replace(Rules(**found), max_similarity=None) if settings.max_similarity == "auto" else Rules(**found)


def calibrated(search: Search, hiding: Callable[[], Search], settings: Mine) -> tuple[Rules, dict[str, Any]]:
    """Return the rules of a source, and what its receipt says of a calibration.

    Raises:
        ManifestError: a target of false negatives, and no query of the source has several positives.
    """
    rules = rules_of(settings)
    if settings.max_similarity != "auto":
        return rules, {}
    if settings.target_false_negatives is None:
        limit = by_yield(likeness(search, rules), settings.target_yield)
        said = {"max_similarity": limit, "target_yield": settings.target_yield}
    else:
        sample = sampled(hiding(), rules, any_gold=True)
        if sample.gold is None:
            raise ManifestError(
                search.job.build / "manifest.yaml",
                f"mine: target_false_negatives needs queries with several positives, and source '{search.job.name}' has none",
                "use target_yield",
            )
        limit, rate = by_gold(sample, rules, settings.target_false_negatives)
        said = {
            "max_similarity": limit,
            "target_false_negatives": settings.target_false_negatives,
            "false_negatives": round(rate, 6),
        }
    return replace(rules, max_similarity=limit), {"calibrated": said}


def likeness(search: Search, rules: Rules) -> np.ndarray:
    """Count (BINS,) the cosines to a positive of the negatives that the rules choose, over a whole source."""
    counts = np.zeros(BINS, np.int64)
    for _, number, rows, frame in blocks(search.job.curated):
        candidates = search.candidates(frame, number, rows, rules)
        counts += binned(candidates, search.choose(frame, candidates, np.full(len(frame), search.wanted), rules)[1], rules)
    return counts


def binned(candidates: Candidates, chosen: Chosen, rules: Rules) -> np.ndarray:
    """Count (BINS,) how like a positive chosen negatives are, as `negatives.likeness_of`, in equal bins from -1 to 1."""
    rows, columns = np.nonzero(chosen.ranks >= 0)
    values = likeness_of(candidates, rules)[rows, chosen.ranks[rows, columns]].astype(np.float64)
    return np.bincount(np.clip((values + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64), minlength=BINS)


def by_yield(counts: np.ndarray, target: float) -> float:
    """Return the lowest limit, with three decimals, below which at least the share `target` of the counted cosines lies."""
    if not counts.sum():
        return 1.0
    return round(2 * (int(np.searchsorted(counts.cumsum(), target * counts.sum())) + 1) / BINS - 1, 3)


def by_gold(sample: Sample, rules: Rules, target: float) -> tuple[float, float]:
    """Return the highest limit at which no more than the share `target` of negatives is a hidden positive; and that share."""
    limit = rate = 0.0
    for limit in reversed(LIMITS):
        rate = _false_rate(sample, replace(rules, max_similarity=limit))
        if rate <= target:
            break
    return limit, rate


def sampled(search: Search, rules: Rules, any_gold: bool = False) -> Sample:
    """Return up to `ROWS` rows of a source with their candidates: of a hiding search those with several positives.

    Fewer of them than `ENOUGH` and than a twentieth of the rows do not speak for the source: then all rows are looked at, unless
    any gold will do.

    Raises:
        BuildError: the source has no rows.
    """
    frame = pl.concat([frame.with_columns(pl.Series("row", rows)) for _, _, rows, frame in blocks(search.job.curated)])
    several = frame.filter(pl.col("positives").list.len() > 1)
    gold = search.hide and len(several) >= (1 if any_gold else min(ENOUGH, max(1, len(frame) // 20)))
    frame = several if gold else frame
    if not len(frame):
        raise BuildError(search.job.curated, "has no rows to look at", "look at another source with --only")
    frame = frame[np.unique(np.linspace(0, len(frame) - 1, min(ROWS, len(frame))).astype(np.int64))]
    rows = frame["row"].to_numpy()
    candidates = search.known(frame, search.look(frame, rows, search.fetched), rows, rules)
    hidden = ragged(frame["positives"].list.slice(1)) if gold else None
    return Sample(candidates, search.wanted - np.diff(candidates.given.starts), hidden, search, frame)


def curves(search: Search, settings: Mine) -> dict[str, Any]:
    """Return what other margins and limits of similarity would give on a sample of a source's rows, all other rules as set.

    `search` is one that hides positives where its queries have several.
    """
    rules = rules_of(settings)
    sample = sampled(search, rules)
    counts = binned(sample.candidates, sample.choose(replace(rules, max_similarity=None)), rules)
    calibrated = settings.max_similarity == "auto" and settings.target_false_negatives is None
    shares = sorted({*YIELDS, settings.target_yield} if calibrated else YIELDS, reverse=True)
    margins = sorted({*MARGINS, *([] if rules.relative_margin is None else [rules.relative_margin])})
    limits = curve(sample, rules, "max_similarity", [by_yield(counts, share) for share in shares])
    return {
        "rows": len(sample.wanted),
        "of": search.rows,
        "gold": sample.gold is not None,
        "relative_margin": [
            {**entry, "set": entry["relative_margin"] == rules.relative_margin}
            for entry in curve(sample, rules, "relative_margin", margins)
        ],
        "max_similarity": [
            {"target_yield": share, **entry, "set": calibrated and share == settings.target_yield}
            for share, entry in zip(shares, limits, strict=True)
        ],
    }


def curve(sample: Sample, rules: Rules, key: str, values: list[float]) -> list[dict[str, Any]]:
    """Return what another limit would give: for each value the share of candidates it takes, rows that are full, hardness."""
    found = []
    for value in values:
        changed: dict[str, Any] = {key: value}
        chosen = sample.choose(replace(rules, **changed))
        scores = chosen.scores[chosen.ids >= 0]
        entry = {
            key: value,
            "taken": round(float(chosen.removed[key].sum() / max(1, (sample.candidates.ids >= 0).sum())), 4),
            "full": round(float((chosen.found >= sample.wanted).mean()), 4),
            "hardness": round(float(scores.mean()), 4) if len(scores) else None,
        }
        if sample.gold is not None:
            entry["false_negatives"] = round(_false_rate(sample, replace(rules, **changed)), 6)
        found.append(entry)
    return found


def _false_rate(sample: Sample, rules: Rules) -> float:
    chosen = sample.choose(rules)
    assert sample.gold is not None
    return float((contains(sample.gold, chosen.ids) & (chosen.ids >= 0)).sum() / max(1, chosen.found.sum()))
