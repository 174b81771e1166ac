"""The recipe: what a manifest may say. Every key is described in the models, and `manifests/README.md` is made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from curation.core.errors import ManifestError, did_you_mean
from curation.recipe.evaluation import Decontaminate
from curation.recipe.settings import Mine, Train
from curation.recipe.source import Filters, Source, Task
from curation.recipe.yaml import Document, Name, Section, checked, read_yaml


class Dedup(Section):
    """Near-duplicates. A query that asks the same for the same positive is dropped; other near-duplicates of a source share a group."""

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
    across: bool = Field(
        False,
        description="also compare sources with each other: a query that asks the same for the same positive as one of an "
        "earlier source is dropped, clusterings aside",
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

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].remove("sources"))  # `extends` may bring them

    name: Name = Field(description="the build folder is `builds/<name>`")
    extends: str | None = Field(
        None, description="a manifest in the same folder: its keys count, but for those that stand here, which replace them whole"
    )
    seed: int = Field(42, ge=0, description="every random choice is a function of it")
    filters: Filters = Field(Filters(), description="filters of all sources")
    dedup: Dedup | None = Field(None, description="near-duplicates; absent, only texts of equal normalised form share a group")
    decontaminate: Decontaminate | None = Field(
        None, description="evaluation sets to stay clear of; absent, only texts of the form of a held-out one are taken out"
    )
    sources: list[Source] = Field(min_length=1, description="the datasets, in order of priority")
    licenses: Literal["all", "no-nc", "permissive"] = Field(
        "all", description="which sources to take; other than `all`, only those whose licence's class is known"
    )
    without: dict[str, str] = Field({}, description="sources to leave out, and why; for a manifest that extends another")
    aim: dict[Task, int] = Field(
        default_factory=dict, description="tuples wanted by task; `curate check` prints them beside those to expect"
    )
    mine: Mine | None = Field(None, description="how hard negatives are found")
    train: Train | None = Field(None, description="how the model is trained")

    @model_validator(mode="after")
    def _names_differ(self) -> Manifest:
        names = [source.name for source in self.sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two sources are named '{min(twice)}'")
        if self.train and (strange := [name for name in self.train.sources if name not in names]):
            raise ValueError(f"train.sources: no source is named '{strange[0]}'" + did_you_mean(strange[0], names))
        if (
            self.decontaminate
            and not (self.decontaminate.against or self.decontaminate.mteb)
            and not any(source.holdout for source in self.sources)
        ):
            raise ValueError("'decontaminate' has nothing to go by; name evaluation sets, or hold queries out")
        return self


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: `file:line: what`, for the first thing that is wrong.
    """
    return checked(Manifest, read_manifest(path))


def read_manifest(path: Path) -> Document:
    """Read the keys of a manifest, and those of the one that it extends; each complaint names the file that has the key.

    Raises:
        ManifestError: `file:line: what`.
    """
    document = _keys(path)
    name = document.value.pop("extends", None)
    if name is None:
        return document
    where = document.where(("extends",))
    if not isinstance(name, str) or Path(name).name != name:
        raise ManifestError(where, "'extends' names a manifest in the same folder")
    base = _keys(path.parent / name)
    if "extends" in base.value:
        raise ManifestError(where, f"'{name}' itself extends another", "extend that one")
    document.base, document.inherited = base, frozenset(base.value) - frozenset(document.value)
    document.value = {key: value for key, value in base.value.items() if key in document.inherited} | document.value
    return document


def _keys(path: Path) -> Document:
    document = read_yaml(path)
    if not isinstance(document.value, dict) or not document.value:
        raise ManifestError(path, "holds no keys", "a manifest begins with `name:` and `sources:`")
    return document


def load_recipe(path: Path) -> Train:
    """Read a training recipe: the keys of `train:` in a file of its own.

    Raises:
        ManifestError: `file:line: what`.
    """
    return checked(Train, read_yaml(path))
