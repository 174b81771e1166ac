"""What there is to mine in a build: one job per source, with all that its negatives depend on."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from curation.core import locks, store, tables
from curation.core.builds import check_beside, checked_stage, read_build
from curation.core.errors import BuildError, ManifestError, did_you_mean, listed
from curation.core.record import NEGATIVES
from curation.core.vectors import ENCODERS, Known
from curation.engine.local import Here
from curation.engine.pool import Workers
from curation.engine.workers import workers
from curation.recipe.manifest import load_manifest
from curation.recipe.settings import Mine, Prompts
from mining.embeddings import Embeddings
from mining.encoders import Encoder, ModelEncoder, OpenEncoder, describe_there
from mining.rerank import Reranker
from training.model.files import VECTORS, find_model

NEGATIVES_FORMAT = 4  # raised when the same settings give other negatives
FILL_FORMATS = {"relax": 2, "random": 3}  # the same of rows that are filled
CANDIDATES_FORMAT = 3  # raised when the same settings give other candidates
NOT_RULES = {"model", "dtype", "max_tokens", "prompt", "prompts", "store"}  # these are in the fingerprint or the texts
KEYS_OF_BUILD = ("name", "seed", "sources")
KEYS_OF_SOURCE = ("task", "instruction", "tuples")
SEARCHED = ("search", "search_other_classes")  # the strategies that need an encoder


class Models:
    """The models of a build's `mine:` section, and the workers that use them."""

    def __init__(self, build: Path, settings: Mine, load: OpenEncoder, workers: Workers, scratch: Path = Path()) -> None:
        """Find the models; `load` opens the encoder, and `scratch` is a folder that is removed at the end."""
        self.build, self.settings, self.load, self.workers, self.scratch = build, settings, load, workers, scratch
        self.device = workers.device  # where models encode and GPUs search
        self.reranker = Reranker(build, settings, workers) if settings.reranker else None

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder. What its model is like is noted next to the vectors, so it is not loaded again only to learn that."""
        encoder, settings = self.load(self.settings, self.device), self.settings
        if not isinstance(encoder, ModelEncoder):
            return encoder
        sources = read_build(self.build)["sources"].values()
        encoder.texts = sum(source.get("tuples", 0) + source.get("passages", 0) for source in sources)
        files = find_model(settings.model)
        asked = {name: getattr(settings, name) for name in ("model", "dtype", "max_tokens", "prompt")}
        asked["prompts"] = Prompts.by_name(settings.prompts)
        here = [self.device, platform.node()] if settings.dtype == "auto" else []  # the processor decides which dtype it is
        libraries = {name: version for name, version in store.versions().items() if name in ("torch", "transformers")}
        request = store.digest_of([VECTORS, files.digests(), files.sentence is None, asked, here, libraries])
        note = self.build / "embeddings" / ENCODERS
        try:
            notes = store.read_sealed(note) if note.exists() else {}
        except (BuildError, ValueError):  # damaged; the model is loaded and noted again
            notes = {}
        if len(notes.get(request, ())) == len(Known._fields):  # earlier versions noted two
            encoder.describe(notes[request])
            return encoder
        if isinstance(self.workers, Here):
            found = encoder.describe()
        else:
            found = encoder.describe(next(self.workers.run(describe_there, [encoder]))[1]())
        note.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(note, notes | {request: found})
        return encoder

    @property
    def encoding(self) -> Workers:
        """Who encodes: an encoder of the caller's own stays in this process."""
        return self.workers if isinstance(self.encoder, ModelEncoder) else Here()

    @cached_property
    def vectors(self) -> Embeddings:
        """The store of the encoder's vectors."""
        return Embeddings(self.build / "embeddings", self.encoder, self.settings.store)


@contextmanager
def open_models(
    build: Path, device: str, load: OpenEncoder, processes: int | None, ray: str | None, settings: Mine | None = None
) -> Iterator[Models]:
    """Yield the models of a build, which no other command may mine meanwhile, and the workers that use them.

    `settings` replace the manifest's `mine:` section.

    Raises:
        BuildError, ManifestError: from `read_description` and `read_settings`, before anything is written.
        SetupError: from `workers`.
    """
    read_description(build)
    settings, build = settings or read_settings(build), build if ray is None else build.absolute()  # nodes work elsewhere
    lock, scratch = locks.locked(build, "mine negatives"), store.temporary(build / "mining")
    with lock, scratch as folder, workers(build, processes, ray, device) as some:
        folder.mkdir()
        yield Models(build, settings, load, some, folder)


@dataclass(frozen=True)
class Job:
    """One source to mine, and all that its negatives depend on."""

    build: Path
    name: str
    curated: Path  # the folder to read
    mined: Path  # the folder to write
    entry: Mapping[str, Any]  # the source in build.json
    settings: Mine
    seed: int
    strategy: str  # search, search_other_classes, other_classes or given
    digest: str
    described: Mapping[str, object]  # the encoder; empty where none is needed
    source: str  # digest of the curated stage
    searched: str  # digest of all that the candidates depend on
    device: str

    @property
    def wanted(self) -> int:
        """The number of negatives that a row must have to be complete; if they are given, one is enough."""
        return NEGATIVES["classification"] if self.strategy == "given" else self.settings.negatives

    @property
    def signature(self) -> str:
        """Everything that shapes the negatives, in one line."""
        model = {key: value for key, value in self.described.items() if key != "notes"}
        parts = {**model, **relevant_settings(self.strategy, self.settings), "seed": self.seed, "format": NEGATIVES_FORMAT}
        shown = [f"{key}:{value}" for key, value in parts.items() if value is not None and value is not False]
        return f"mine:{self.strategy}|" + "|".join(shown)


def relevant_settings(strategy: str, settings: Mine) -> dict[str, object]:
    """Return the settings that matter for a strategy; a change of the others does not run it again."""
    if strategy in SEARCHED:
        defaults = {
            "index": "exact",
            "corpus": "positives",
            "exclude_document": True,
        }  # not written, so that signatures stay short
        unused = {key for key, value in defaults.items() if strategy != "search" or getattr(settings, key) == value}
        return settings.model_dump(exclude=NOT_RULES | unused)
    uses_number = strategy == "other_classes" or settings.candidates == "given"
    return {"shortage": settings.shortage} | ({"negatives": settings.negatives} if uses_number else {})


def jobs(build: Path, only: Sequence[str], models: Models) -> Iterator[Job]:
    """Yield the sources to mine, checked, in the build's order.

    Raises:
        BuildError: from `read_sources`, or a source was changed since it was curated.
        ModelError: the model cannot be found or loaded.
    """
    whole = read_description(build)
    seed = int(whole["seed"])
    for name in read_sources(build, only):
        entry, curated = whole["sources"][name], build / "curated" / name
        receipt = checked_stage(build, f"curated/{name}")
        settings = models.settings.model_copy(update={"corpus": models.settings.corpus_of(name)})

        # classification keeps its other label; labelled clustering takes texts of other classes; all else is searched
        strategy = "search"
        if entry["task"] == "classification" or settings.candidates == "given":
            strategy = "given"
        elif entry["task"] == "clustering" and tables.read_table(curated, "pairs", ["label"])["label"].null_count() == 0:
            strategy = "search_other_classes" if settings.classes == "hard" else "other_classes"

        encoder = models.encoder if strategy in SEARCHED else None
        fingerprint, described = (encoder.fingerprint, encoder.described) if encoder else ("", {})
        depends: dict[str, object] = {"curated": receipt["digest"]}
        if fingerprint:
            depends["encoder"] = [fingerprint, described, settings.store, settings.candidates]
            depends["instruction"] = entry["instruction"]
        if strategy == "search" and settings.corpus != "positives":
            depends["corpus"] = settings.corpus
        if strategy == "search" and settings.index != "exact":
            depends["index"] = [settings.index, seed]
        searched = store.digest_of([CANDIDATES_FORMAT, depends, strategy])
        if fingerprint and models.reranker:
            depends["reranker"] = models.reranker.fingerprint
        depends |= relevant_settings(strategy, settings) | {"format": NEGATIVES_FORMAT, "seed": seed}
        if strategy in SEARCHED and (settings.shortage == "random" or settings.distinct or settings.containment):
            depends |= {"fill": FILL_FORMATS[settings.shortage]} if settings.shortage in FILL_FORMATS else {}
        yield Job(
            build=build,
            name=name,
            curated=curated,
            mined=build / "mined" / name,
            entry=entry,
            settings=settings,
            seed=seed,
            strategy=strategy,
            digest=store.digest_of(depends),
            described=described,
            source=receipt["digest"],
            searched=searched,
            device=models.device,
        )


def read_settings(build: Path) -> Mine:
    """Return the `mine:` section of a build's manifest.

    Raises:
        BuildError: the manifest has no `mine:` section, or was changed since it was built.
        ManifestError: its numbers contradict each other.
    """
    path = build / "manifest.yaml"
    check_beside(build, "manifest.yaml")
    settings = load_manifest(path).mine
    if settings is None:
        hint = "add one, such as `mine: {model: sentence-transformers/all-MiniLM-L6-v2}`, and run `curate build` again"
        raise BuildError(path, "has no 'mine:' section", hint)
    if settings.candidates != "given" and settings.negatives > settings.range_max - settings.range_min:
        between = f"range_min {settings.range_min} and range_max {settings.range_max}"
        what = f"mine: {settings.negatives} negatives do not fit between {between}"
        raise ManifestError(path, what, "raise 'range_max' or lower 'negatives'")
    return settings


def read_description(build: Path) -> dict[str, Any]:
    """Return build.json.

    Raises:
        BuildError: it is absent, or not what `curate build` writes.
    """
    if not build.is_dir():
        raise BuildError(build, "no such build folder", "run `curate build MANIFEST` first")
    found = read_build(build)
    missing = [key for key in KEYS_OF_BUILD if not isinstance(found, dict) or key not in found]
    for name, entry in {} if missing else found["sources"].items():
        missing += [f"sources.{name}.{key}" for key in KEYS_OF_SOURCE if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise BuildError(build / "build.json", f"lacks {listed(missing)}: changed by hand?", "run `curate build` again")
    return dict(found)


def read_sources(build: Path, only: Sequence[str]) -> list[str]:
    """Return the names of a build's sources, or of those in `only`.

    Raises:
        BuildError: a source in `only` failed in the build or does not exist, or the build has no source with tuples.
    """
    whole = read_description(build)
    names, failed = list(whole["sources"]), whole.get("failed", {})
    again = "mend it and run `curate build` again"
    for name in only:
        if name in failed:
            raise BuildError(build, f"source '{name}' failed in the build: {failed[name]}", again)
        if name not in names:
            raise BuildError(build, f"has no source '{name}'{did_you_mean(name, names)}", f"it has {listed(names)}")
    if not names:
        excluded = {name: f"source '{name}' is left out: {why}" for name, why in whole.get("excluded", {}).items()}
        first = next((f": {why}" for why in {**failed, **excluded}.values()), "")
        raise BuildError(build, f"has no source with tuples{first}", again)
    return [name for name in names if name in only] or names
