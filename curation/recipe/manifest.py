"""The manifest, and how it is read. `manifests/README.md` is generated from the descriptions of the keys."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from curation.core.errors import ManifestError, SetupError, did_you_mean
from curation.recipe.evaluation import Decontaminate
from curation.recipe.settings import Mine, Train
from curation.recipe.source import Filters, Source, Task, expand_beir
from curation.recipe.yaml import Document, Name, Section, checked, read_yaml


class Dedup(Section):
    """Near-duplicates. Among near-duplicate queries with the same positive one is kept; other near-duplicates share a group."""

    threshold: float = Field(
        0.8, ge=0.5, le=1, description="lowest Jaccard similarity (of the texts' shingles) at which two texts are near-duplicates"
    )
    lowest: float | None = Field(
        None,
        ge=0.3,
        le=1,
        description="lowest Jaccard similarity of the pairs that are stored. `threshold` can later be lowered to this value without comparing the texts again; a lower value here makes the comparison take longer. If empty: 0.7, or 0.5 for a threshold below 0.7",
    )
    across: bool = Field(
        False,
        description="also compare sources with each other: a query that nearly equals one of an earlier source, with the same positive, is dropped. Clustering sources are not compared",
    )
    max_loss_per_source: float = Field(
        0.5,
        ge=0,
        le=1,
        description="largest fraction of a source's tuples that may be near-duplicates; with more, the source fails",
    )

    @property
    def stored(self) -> float:
        """The lowest Jaccard similarity of the pairs that are stored."""
        return self.lowest if self.lowest is not None else 0.7 if self.threshold >= 0.7 else 0.5

    @model_validator(mode="after")
    def _stored_reach_the_threshold(self) -> Dedup:
        if self.stored > self.threshold:
            raise ValueError(f"'lowest: {self.lowest}' is above 'threshold: {self.threshold}'")
        return self


class Manifest(Section):
    """One recipe, from sources to a dataset and a model."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].remove("sources"))  # `extends` can provide them

    name: Name = Field(description="the build folder is `builds/NAME`")
    extends: str | None = Field(
        None,
        description="a base manifest in the same folder. Its keys apply too; a key given here replaces the base's key as a whole",
    )
    seed: int = Field(42, ge=0, description="seed of every random choice in a build, its mining and its training")
    filters: Filters = Field(Filters(), description="filters of all sources")
    dedup: Dedup | None = Field(
        None, description="near-duplicate detection. If empty, only texts that are equal after normalisation share a group"
    )
    decontaminate: Decontaminate | None = Field(
        None,
        description="evaluation sets to keep out of the training data. If empty, only texts that normalise to a held-out text are removed",
    )
    sources: list[Source] = Field(
        min_length=1, description="the datasets; where two sources share a text, the earlier one keeps it"
    )
    licenses: Literal["all", "no-nc", "permissive"] = Field(
        "all",
        description="which sources to take by licence: `all`; `no-nc`, without non-commercial ones; `permissive`, also without share-alike ones. The last two leave out sources with an unknown licence",
    )
    without: dict[str, str] = Field(
        {}, description="sources to leave out, each with the reason; for a manifest that extends another"
    )
    aim: dict[Task, int] = Field(
        default_factory=dict, description="number of tuples wanted per task; `curate check` compares it with what to expect"
    )
    mine: Mine | None = Field(None, description="how hard negatives are mined")
    train: Train | None = Field(None, description="how the model is trained")

    @model_validator(mode="before")
    @classmethod
    def _shared_corpora(cls, data: Any) -> Any:
        """Put the corpus of a source in place of its name in others."""
        sources = data.get("sources") if isinstance(data, dict) else None
        if not isinstance(sources, list) or not all(isinstance(one, dict) for one in sources):
            return data  # later checks say what is wrong
        named = [one for one in sources if not isinstance(one.get("corpus"), str)]
        whole = {str(one.get("name")): expand_beir(one) if one.get("reader") == "beir" else one for one in named}
        own = {name: one["corpus"] for name, one in whole.items() if isinstance(one.get("corpus"), dict)}
        for one in sources:
            if isinstance(name := one.get("corpus"), str) and name not in own:
                what = f"source '{one.get('name')}': no source '{name}' has a 'corpus' of its own{did_you_mean(name, own)}"
                raise ValueError(what)
        shared = [one | {"corpus": own[one["corpus"]]} if isinstance(one.get("corpus"), str) else one for one in sources]
        return {**data, "sources": shared}

    @model_validator(mode="after")
    def _names_differ(self) -> Manifest:
        names = [source.name for source in self.sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two sources are named '{min(twice)}'")
        if self.train and (strange := [name for name in self.train.sources if name not in names]):
            raise ValueError(f"train.sources: no source is named '{strange[0]}'" + did_you_mean(strange[0], names))
        corpora = self.mine.corpus if self.mine and isinstance(self.mine.corpus, dict) else {}
        if strange := [name for name in corpora if name not in names]:
            raise ValueError(f"mine.corpus: no source is named '{strange[0]}'" + did_you_mean(strange[0], names))
        if (
            self.decontaminate
            and not (self.decontaminate.against or self.decontaminate.mteb)
            and not any(source.holdout for source in self.sources)
        ):
            raise ValueError("'decontaminate' names no evaluation set; add 'against' or 'mteb', or hold out queries of a source")
        return self


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: `file:line: what`, for the first thing that is wrong.
    """
    return checked(Manifest, read_manifest(path))


def read_manifest(path: Path) -> Document:
    """Read the keys of a manifest and of its base manifest; each error names the file that has the key.

    Raises:
        ManifestError: `file:line: what`.
    """
    document = _keys(path)
    name = document.value.pop("extends", None)
    if name is None:
        return document
    where = document.where(("extends",))
    if not isinstance(name, str) or Path(name).name != name:
        raise ManifestError(where, "'extends' must be the name of a manifest in the same folder")
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
    document = read_yaml(path)
    if isinstance(document.value, dict) and "sources" in document.value and "train" in document.value:
        hint = "give a file of the keys below `train:`; without --recipe, a build's own manifest has them"
        raise ManifestError(path, "is a manifest, not a recipe", hint)
    return checked(Train, document)


def copy_examples(folder: Path) -> list[Path]:
    """Copy the manifests that come with tuplesmith, and what explains them, into a folder; return the new files.

    Raises:
        SetupError: the installation does not have them.
    """
    source = Path(__file__).resolve().parents[2] / "manifests"  # in a checkout
    if not (source / "f2llm.yaml").is_file():  # installed: pip knows where it put the data files of the wheel
        known = metadata.distribution("tuplesmith").files or []
        places = [Path(str(file.locate())).resolve() for file in known if file.match("tuplesmith/manifests/f2llm.yaml")]
        if not places:
            raise SetupError("tuplesmith", "was installed without its manifests", "install the wheel again with pip")
        source = places[0].parent
    copied = []
    for file in sorted(path for path in source.rglob("*") if path.suffix in (".yaml", ".md", ".json", ".py")):
        target = folder / file.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            copied.append(target)
    return copied
