"""The recipe: what a manifest may say. Every key is described in the models, and `manifests/README.md` is made from them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from curation.complaints import checked
from curation.errors import ManifestError
from curation.manifest_models import Mine, Train
from curation.manifest_source import Filters, Source
from curation.section import Name, Section
from curation.yaml_lines import read_yaml


class Dedup(Section):
    """Near-duplicates. A query that asks the same for the same positive is dropped; other twins of a source share a group."""

    threshold: float = Field(
        0.8, ge=0.5, le=1, description="lowest Jaccard of two texts' shingles that makes them near-duplicates"
    )
    lowest: float | None = Field(
        None,
        ge=0.3,
        le=1,
        description="lowest Jaccard of the pairs that are stored: a threshold down to it compares nothing anew; "
        "absent, 0.7, or 0.5 for a threshold below 0.7. Lower ones take longer",
    )
    max_loss_per_source: float = Field(0.5, ge=0, le=1, description="share of near-duplicate tuples above which the source fails")

    @property
    def stored(self) -> float:
        """The lowest Jaccard of the pairs that are stored."""
        return self.lowest if self.lowest is not None else 0.7 if self.threshold >= 0.7 else 0.5

    @model_validator(mode="after")
    def _stored_reach_the_threshold(self) -> Dedup:
        if self.stored > self.threshold:
            raise ValueError(f"'lowest: {self.lowest}' is above 'threshold: {self.threshold}'")
        return self


class Manifest(Section):
    """One recipe: sources in, a dataset and a model out."""

    name: Name = Field(description="the build folder is `builds/<name>`")
    seed: int = Field(42, ge=0, description="every random choice is a function of it")
    filters: Filters = Field(Filters(), description="filters of all sources")
    dedup: Dedup | None = Field(None, description="near-duplicates; absent, only texts of equal normalised form share a group")
    sources: list[Source] = Field(min_length=1, description="the datasets, in order of priority")
    mine: Mine | None = Field(None, description="how hard negatives are found")
    train: Train | None = Field(None, description="how the model is trained")

    @model_validator(mode="after")
    def _names_differ(self) -> Manifest:
        names = [source.name for source in self.sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two sources are named '{min(twice)}'")
        return self


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: `file:line: what`, for the first thing that is wrong.
    """
    document = read_yaml(path)
    if not isinstance(document.value, dict) or not document.value:
        raise ManifestError(path, "holds no keys", "a manifest begins with `name:` and `sources:`")
    return checked(Manifest, path, document)


def load_recipe(path: Path) -> Train:
    """Read a training recipe: the keys of `train:` in a file of its own.

    Raises:
        ManifestError: `file:line: what`.
    """
    return checked(Train, path, read_yaml(path))
