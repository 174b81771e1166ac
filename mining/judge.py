"""A build's negatives judged, source by source: what `audit.audit` or `calibrate.curves` says of each that is searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curation.core import locks
from curation.core.errors import BuildError
from curation.core.progress import Progress, silent
from curation.recipe.settings import Mine
from mining.builds import settings_of
from mining.jobs import jobs
from mining.models import Models, Open, open_encoder
from mining.searching import Search

Judge = Callable[[Search, Mine], dict[str, Any]]


def judged(
    judge: Judge,
    build: Path,
    only: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
    load: Open = open_encoder,
) -> dict[str, dict[str, Any]]:
    """Return for each searched source what `judge` says of its search, which hides positives, and of the build's settings.

    Raises:
        BuildError: no source is searched, or as `mine_build`.
    """
    settings = settings_of(build)
    models = Models(build, settings, device, load)
    with locks.locked(build, "mine negatives"):
        some = [job for job in jobs(build, only, models) if job.way in ("search", "hard")]
        if not some:
            raise BuildError(build, "has no source whose negatives are searched for", "the others keep or draw theirs")
        return {job.name: judge(Search(job, models, progress, hide=True), settings) for job in some}
