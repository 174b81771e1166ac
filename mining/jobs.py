"""What there is to mine in a build: a job a source, with all that its rows depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.core import store, tables
from curation.core.builds import checked_stage
from curation.core.record import NEGATIVES
from curation.recipe.settings import Mine
from mining import candidates
from mining.builds import described, selected, settings_of
from mining.models import Models

FORMAT = 3  # raised when the same settings give other rows
NOT_RULES = {"model", "dtype", "max_tokens", "prompt", "prompts", "store"}  # these are in the fingerprint or the texts


@dataclass(frozen=True)
class Job:
    """One source to mine, and all that its rows depend on."""

    build: Path
    name: str
    entry: Mapping[str, Any]  # the source in build.json
    settings: Mine
    seed: int
    way: str  # search, class or given
    digest: str
    described: Mapping[str, object]  # the encoder; empty where none is needed
    source: str  # the digest of the curated stage
    searched: str = ""  # the digest of what the candidates depend on
    device: str = "auto"

    @property
    def curated(self) -> Path:
        """Return the folder to read."""
        return self.build / "curated" / self.name

    @property
    def mined(self) -> Path:
        """Return the folder to write."""
        return self.build / "mined" / self.name

    @property
    def wanted(self) -> int:
        """Return the number of negatives a row."""
        return NEGATIVES["classification"] if self.way == "given" else self.settings.negatives

    @property
    def most(self) -> int:
        """Return how many given negatives a row keeps where none are searched."""
        return self.settings.negatives if self.settings.candidates == "given" else self.wanted


def jobs(build: Path, only: Sequence[str], models: Models) -> Iterator[Job]:
    """Return the sources to mine, checked, in the build's order."""
    whole = described(build)
    settings = settings_of(build)
    for name in selected(build, whole, only):
        entry, curated = whole["sources"][name], build / "curated" / name
        receipt = checked_stage(build, f"curated/{name}")
        way = _way(entry["task"], curated, settings)
        fingerprint, about = models.identity() if way in ("search", "hard") else ("", {})
        depends = {"curated": receipt["digest"]}
        if fingerprint:
            depends |= {"encoder": [fingerprint, about, settings.store, settings.candidates], "instruction": entry["instruction"]}
        if way == "search" and settings.index != "exact":
            depends["index"] = [settings.index, int(whole["seed"])]
        searched = store.digest_of([candidates.FORMAT, depends, way])
        if fingerprint and models.reranker:
            depends |= {"reranker": models.reranker.fingerprint}
        depends |= settings_that_matter(way, settings) | {"format": FORMAT, "seed": int(whole["seed"])}
        digest = store.digest_of(depends)
        made = receipt["digest"]
        yield Job(build, name, entry, settings, int(whole["seed"]), way, digest, about, made, searched, models.device)


def signature(job: Job) -> str:
    """Return everything that shapes the negatives, in one line."""
    said = {key: value for key, value in job.described.items() if key != "notes"}
    parts = {**said, **settings_that_matter(job.way, job.settings), "seed": job.seed, "format": FORMAT}
    return f"mine:{job.way}|" + "|".join(
        f"{key}:{value}" for key, value in parts.items() if value is not None and value is not False
    )


def _way(task: str, curated: Path, settings: Mine) -> str:
    if task == "classification" or settings.candidates == "given":
        return "given"
    labelled = task == "clustering" and tables.read_table(curated, "pairs", ["label"])["label"].null_count() == 0
    if labelled:
        return "hard" if settings.classes == "hard" else "class"
    return "search"


def settings_that_matter(way: str, settings: Mine) -> dict[str, object]:
    """Return the settings that matter for a way, so that no other one makes it run again."""
    if way in ("search", "hard"):
        whole = way == "hard" or settings.index == "exact"
        return settings.model_dump(exclude=NOT_RULES | ({"index"} if whole else set()))
    counted = way == "class" or settings.candidates == "given"
    return {"shortage": settings.shortage} | ({"negatives": settings.negatives} if counted else {})
