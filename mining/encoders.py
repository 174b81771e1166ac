"""Encoders of a `mine:` section: the model that it names, or one of your own."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from curation.core import store
from curation.core.errors import ModelError
from curation.core.progress import Advance
from curation.engine.local import visible_gpus
from curation.engine.pool import held
from curation.recipe.settings import Mine, Prompts
from mining.embeddings import GPU_THREADS, Vectoriser
from training.model.prompts import Prompts as ModelPrompts
from training.model.prompts import choose_prompts

SHOWN = 60  # characters of a text in an error


class Encoder(Vectoriser, Protocol):
    """What mining needs of `training.model.encode.Encoder`, whose vectors have unit length."""

    def query(self, instruction: str, text: str) -> str:
        """Return the query with its prompt."""
        ...

    def passage(self, text: str) -> str:
        """Return the passage with its prompt."""
        ...


OpenEncoder = Callable[[Mine, str], Encoder]  # from the `mine:` section and a device


def open_encoder(settings: Mine, device: str) -> Encoder:
    """Return the model of a `mine:` section, which is loaded when a text must be encoded."""
    return ModelEncoder(settings, device)


class Prompted:
    """Puts prompts before texts."""

    prompts: ModelPrompts

    def query(self, instruction: str, text: str) -> str:
        """Return the query with its prompt."""
        return self.prompts.of_query(instruction, text)

    def passage(self, text: str) -> str:
        """Return the passage with its prompt."""
        return self.prompts.of_passage(text)


class ModelEncoder(Prompted):
    """The model of a `mine:` section, loaded where it first encodes: in this process, or in the workers that it is sent to."""

    def __init__(self, settings: Mine, device: str, texts: int = 0) -> None:
        """Name a model; `texts` is about how many it is going to encode."""
        self.settings, self.device, self.texts = settings, device, texts
        self.fingerprint, self.dim = "", 0
        self.described: dict[str, object] = {}

    def describe(self, known: Sequence[Any] | None = None) -> list[Any]:
        """Return what is known about the model, as JSON values; load it unless that is given.

        Raises:
            ModelError: the model cannot be found or loaded.
        """
        if known is None:
            model = self._model
            known = [model.fingerprint, model.described, model.dim, vars(model.prompts)]
        self.fingerprint, self.described, self.dim = known[:3]
        self.prompts = ModelPrompts(**known[3])
        return list(known)

    @property
    def threads(self) -> int:
        """Return how many calls of `encode` at once make it faster."""
        return GPU_THREADS if visible_gpus(self.device) else 1

    def encode(self, texts: Sequence[str], advance: Advance = lambda done: None) -> np.ndarray:
        """Return unit vectors (n, dim) float32.

        Raises:
            ModelError: the model cannot be loaded, or this machine has another one than the build was begun with.
        """
        if self._model.fingerprint != self.fingerprint:
            what = f"has other files, or another dtype, on {platform.node()} than where the work began"
            raise ModelError(self.settings.model, what, "put the same files on all machines, and do not use `dtype: auto`")
        return np.asarray(self._model.encode(texts, advance))

    @cached_property
    def _model(self) -> Any:
        from training.model.encode import load_encoder  # imports torch, so only when a text must be encoded

        some, given = self.settings, Prompts.by_name(self.settings.prompts)
        options: dict[str, Any] = {"max_tokens": some.max_tokens, "prompt": some.prompt, "prompts": given}
        model = load_encoder(some.model, device=self.device, dtype=some.dtype, **options)
        model.prepare_for(self.texts)
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_model"}


def describe_there(encoder: ModelEncoder) -> list[Any]:
    """Describe a model in a worker, which keeps it."""
    known = encoder.describe()
    held(type(encoder).__name__, encoder.fingerprint, lambda: encoder)
    return known


class CustomEncoder(Prompted):
    """Lets a model of your own mine: `mine_build(build, load=partial(CustomEncoder, model))`.

    The model has a method `encode`, which turns a list of n texts into n vectors of one length: an array, or what numpy
    can make one of. The vectors are stored under the `model` of the `mine:` section: choose another name when the vectors change.
    """

    def __init__(self, model: Any, settings: Mine, device: str) -> None:
        """Encode one text, to learn the dimension; `prompt: instruct` puts the instruction before each query."""
        self.model, self.name = model, settings.model
        self.prompts = choose_prompts(settings.prompt, {}, False, Prompts.by_name(settings.prompts))
        self.described: dict[str, object] = {"model": self.name, "prompt": self.prompts.used}
        self.fingerprint, self.dim = store.digest_of(["foreign", self.name]), 0
        self.dim = self.encode(["text"]).shape[1]

    def encode(self, texts: Sequence[str], advance: Advance = lambda done: None) -> np.ndarray:
        """Return unit vectors (n, dim) float32.

        Raises:
            ModelError: the model does not return one vector per text, all of one dimension and finite.
        """
        try:
            found = np.asarray(self.model.encode(list(texts)), np.float32)
        except (TypeError, ValueError) as error:  # vectors of several lengths; a tensor that is not on the CPU
            raise ModelError(self.name, f"`encode` did not return an array of numbers ({error})") from None
        if found.ndim != 2 or len(found) != len(texts) or self.dim not in (0, found.shape[1]):
            wanted = f"({len(texts)}, {self.dim or 'dim'})"
            raise ModelError(self.name, f"`encode` returned an array of shape {found.shape} for {len(texts)} texts, not {wanted}")
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise ModelError(self.name, f"`encode` returned NaN or infinity for the text {texts[bad[0]][:SHOWN]!r}")
        advance(len(texts))
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12)))
