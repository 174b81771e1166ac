"""One source's part of a build, as sent to a worker process, and the result of a stage."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from curation.core.builds import Receipt
from curation.recipe.evaluation import Decontaminate
from curation.recipe.manifest import Dedup
from curation.recipe.source import Filters, Source


class Inputs(NamedTuple):
    """What a source is read from, as it was before it was read."""

    marks: list[dict[str, object]]  # for each table; see `marks` in curation/read/sources.py
    digests: dict[str, str]  # of each file


class Job(NamedTuple):
    """One source's part of a build; small, because it is sent to worker processes."""

    source: Source
    filters: Filters
    seed: int
    base: Path  # the manifest's folder: `files` are relative to it
    build: Path
    holding: tuple[str, ...]  # sources with held-out queries
    dedup: Dedup | None = None
    decontaminate: Decontaminate | None = None
    inputs: Inputs | None = None  # set before the first stage


class Done(NamedTuple):
    """The result of one stage of one source."""

    receipt: Receipt
    ran: bool
    seconds: float
