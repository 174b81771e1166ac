"""What can be known of a build's negatives, source by source: the audit, and the curves to calibrate by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curation import locks
from curation.errors import BuildError
from curation.manifest_models import Mine
from curation.progress import Progress, silent
from mining.audit import audit
from mining.builds import settings_of
from mining.calibrate import binned, by_yield, curve, rules_of, sampled
from mining.mine import jobs, searching
from mining.models import Models, Open, open_encoder
from mining.negatives import choose
from mining.searching import Search

MARGINS = [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]  # relative ones
YIELDS = [1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5]  # of which the limit of similarity is shown


def audit_build(
    build: Path, only: Sequence[str] = (), device: str = "auto", progress: Progress = silent, load: Open = open_encoder
) -> dict[str, dict[str, Any]]:
    """Return for each searched source what `audit.audit` measures.

    Raises:
        BuildError: no source is searched, or as `mine_build`.
    """
    found = {}
    for name, search, settings in _searched(build, only, device, progress, load):
        found[name] = audit(search, settings, search.shingles)
    return found


def calibrate_build(
    build: Path, only: Sequence[str] = (), device: str = "auto", progress: Progress = silent, load: Open = open_encoder
) -> dict[str, dict[str, Any]]:
    """Return for each searched source what other margins and limits of similarity would give, all other rules as set.

    Raises:
        BuildError: no source is searched, or as `mine_build`.
    """
    found = {}
    for name, search, settings in _searched(build, only, device, progress, load):
        rules = rules_of(settings)
        sample = sampled(search, rules)
        counts = binned(sample.candidates, choose(sample.candidates, sample.wanted, replace(rules, max_similarity=None)))
        limits = [by_yield(counts, share) for share in YIELDS]
        found[name] = {
            "rows": len(sample.wanted),
            "gold": sample.gold is not None,
            "relative_margin": curve(sample, rules, "relative_margin", MARGINS),
            "max_similarity": [
                {"target_yield": share, **entry}
                for share, entry in zip(YIELDS, curve(sample, rules, "max_similarity", limits), strict=True)
            ],
        }
    return found


def _searched(
    build: Path, only: Sequence[str], device: str, progress: Progress, load: Open
) -> Iterator[tuple[str, Search, Mine]]:
    settings = settings_of(build)
    models = Models(build, settings, device, load)
    with locks.locked(build, "mine negatives"):
        some = [job for job in jobs(build, only, models) if job.way in ("search", "hard")]
        if not some:
            raise BuildError(build, "has no source whose negatives are searched for", "the others keep or draw theirs")
        for job in some:
            yield job.name, searching(job, models, progress, hide=True), settings
