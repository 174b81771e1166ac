"""Which model a build is mined with: loaded only where a text must be encoded."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from curation.core import store
from curation.core.errors import BuildError, ModelError
from curation.core.progress import Advance
from curation.recipe.settings import Mine, Prompts
from mining.embeddings import Encoder
from mining.rerank import Reranker
from training.model.files import VECTORS, find_model
from training.model.prompts import choose_prompts

Open = Callable[[Mine, str], Encoder]
SHOWN = 60  # characters of a text in a complaint
FILE = "encoders.json"  # digest of what was asked for -> fingerprint of what was loaded, and what it says of itself


def open_encoder(settings: Mine, device: str) -> Encoder:
    """Load the model of a `mine:` section."""
    from training.model.encode import load_encoder  # torch: only where something must be encoded

    given = Prompts.by_name(settings.prompts)
    options: dict[str, Any] = {"max_tokens": settings.max_tokens, "prompt": settings.prompt, "prompts": given}
    return load_encoder(settings.model, device=device, dtype=settings.dtype, **options)


class Encodes(Protocol):
    """Anything that turns texts into vectors of one length, (n, dim): an array, or what numpy makes one of."""

    def encode(self, texts: list[str], /) -> Any:
        """Return a vector for each text."""
        ...


class Foreign:
    """Such a thing as the encoder of a `mine:` section: `mine_build(build, load=partial(Foreign, model))`.

    Its vectors are kept under the section's `model`: give it another name when anything changes that a vector depends on.
    """

    def __init__(self, model: Encodes, settings: Mine, device: str) -> None:
        """Ask for one vector, to know the dimension; `prompt: instruct` puts the instruction before a query."""
        self.model, self.name = model, settings.model
        self.prompts = choose_prompts(settings.prompt, {}, False, Prompts.by_name(settings.prompts))
        self.described: dict[str, object] = {"model": self.name, "prompt": self.prompts.used}
        self.fingerprint, self.dim = store.digest_of(["foreign", self.name]), 0
        self.dim = self.encode(["text"]).shape[1]

    def query(self, instruction: str, text: str) -> str:
        """Return a query as it is encoded."""
        return self.prompts.of_query(instruction, text)

    def passage(self, text: str) -> str:
        """Return a passage as it is encoded."""
        return self.prompts.of_passage(text)

    def encode(self, texts: Sequence[str], advance: Advance = lambda done: None) -> np.ndarray:
        """Return unit vectors (n, dim) float32.

        Raises:
            ModelError: what it gives is not one vector a text, all of one dimension, or holds what is no number.
        """
        try:
            found = np.asarray(self.model.encode(list(texts)), np.float32)
        except (TypeError, ValueError) as error:  # vectors of several lengths; a tensor that is not on the CPU
            raise ModelError(self.name, f"gives what is no array of numbers ({error})") from None
        if found.ndim != 2 or len(found) != len(texts) or self.dim not in (0, found.shape[1]):
            wanted = f"({len(texts)}, {self.dim or 'dim'})"
            raise ModelError(self.name, f"gives an array of shape {found.shape} for {len(texts)} texts, not {wanted}")
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise ModelError(self.name, f"gives no numbers for the text {texts[bad[0]][:SHOWN]!r}")
        advance(len(texts))
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12)))


def device_of_rank(device: str, rank: int | None) -> str:
    """Return the device of one of several processes: where there are GPUs, and none is named, each has its own."""
    if rank is None or device not in ("auto", "cuda"):
        return device
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else device


class Models:
    """The models of a build's `mine:` section; the fingerprint of the one that encodes is in a note beside the vectors."""

    def __init__(self, build: Path, settings: Mine, device: str, load: Open) -> None:
        self.note, self.settings, self.device, self.load = build / "embeddings" / FILE, settings, device, load
        self.reranker = Reranker(build, settings, device) if settings.reranker else None

    def encoder(self) -> Encoder:
        """Return the model, loaded."""
        return self._loaded

    def identity(self) -> tuple[str, dict[str, object]]:
        """Return fingerprint and description; the model is loaded only where the same files were not loaded before."""
        known = self._known()
        request = _request(self.settings, self.device) if self.load is open_encoder else ""
        if request and request in known:
            fingerprint, described = known[request]
            return str(fingerprint), dict(described)
        found = (self._loaded.fingerprint, self._loaded.described)
        if request:
            self.note.parent.mkdir(parents=True, exist_ok=True)
            store.write_json(self.note, known | {request: found})
        return found

    @cached_property
    def _loaded(self) -> Encoder:
        return self.load(self.settings, self.device)

    def _known(self) -> dict[str, tuple[str, dict[str, object]]]:
        try:
            return store.read_sealed(self.note) if self.note.exists() else {}
        except (BuildError, ValueError):  # damaged: what it says can be had again
            return {}


def _request(settings: Mine, device: str) -> str:
    """Return the digest of all that decides which fingerprint a loaded model has."""
    files = find_model(settings.model)
    asked = {name: getattr(settings, name) for name in ("model", "dtype", "max_tokens", "prompt")}
    asked["prompts"] = Prompts.by_name(settings.prompts)
    here = [device, platform.node()] if settings.dtype == "auto" else []  # which dtype it means depends on the processor
    libraries = {name: version for name, version in store.versions().items() if name in ("torch", "transformers")}
    return store.digest_of([VECTORS, files.digests(), files.sentence is None, asked, here, libraries])
