"""Encoders: the model that a `mine:` section names, one of your own, or the model of a call of `mine_hard_negatives`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from curation.core import store
from curation.core.errors import ModelError, a_kind, did_you_mean, listed
from curation.core.progress import Advance
from curation.engine.local import visible_gpus
from curation.engine.pool import held
from curation.recipe.settings import Mine, Prompts
from mining.embeddings import GPU_THREADS, Vectoriser
from training.model.prompts import Prompted, choose_prompts
from training.model.prompts import Prompts as ModelPrompts

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


class ModelEncoder(Prompted):
    """The model of a `mine:` section, loaded where it first encodes: in this process, or in the workers that it is sent to."""

    def __init__(self, settings: Mine, device: str) -> None:
        """Name a model."""
        self.settings, self.device = settings, device
        self.fingerprint, self.dim, self.texts = "", 0, 0  # texts: about how many it is going to encode
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
        given = self.model.encode(list(texts))
        try:
            if (kind := np.asarray(given).dtype).kind == "c":
                hint = "return the real and the imaginary part side by side"
                raise ModelError(self.name, f"`encode` returned complex numbers ({kind})", hint)
            found = np.asarray(given, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:  # of several lengths; a tensor on a GPU, or with a gradient
            raise ModelError(self.name, f"`encode` did not return an array of numbers ({error})") from None
        if found.ndim != 2 or len(found) != len(texts) or self.dim not in (0, found.shape[1]) or not found.shape[1]:
            wanted = f"({len(texts)}, {self.dim or 'dim'})"
            raise ModelError(self.name, f"`encode` returned an array of shape {found.shape} for {len(texts)} texts, not {wanted}")
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise ModelError(self.name, f"`encode` returned NaN or infinity for the text {texts[bad[0]][:SHOWN]!r}")
        advance(len(texts))
        with np.errstate(over="ignore"):
            norms = np.linalg.norm(found, axis=1, keepdims=True)
        odd = ~((norms > 1e-12) & np.isfinite(norms))[:, 0] & found.any(axis=1)  # its squares are out of float32's range
        if odd.any():
            found = found.copy()  # it may be the model's own
            found[odd] /= np.abs(found[odd]).max(axis=1, keepdims=True)
            norms[odd] = np.linalg.norm(found[odd], axis=1, keepdims=True)
        return np.asarray(found / np.maximum(norms, np.float32(1e-12)))


class ForRole(NamedTuple):
    """What encodes queries, or passages."""

    encoder: Any
    prompt: str  # put before each text


class _Method:
    """One of the two encode methods of a SentenceTransformer, with its prompt."""

    def __init__(self, method: Any, options: Mapping[str, Any], show_bars: bool) -> None:
        self.method, self.options, self.show_bars = method, options, show_bars

    def encode(self, texts: list[str]) -> Any:
        """Return unit vectors."""
        bars = self.show_bars and len(texts) > 1
        return self.method(texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=bars, **self.options)


def encoders_of(
    model: Any,
    prompts: Mapping[str, str | None],
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 32,
    show_bars: bool = False,
    cached: bool = False,
) -> dict[str, ForRole]:
    """Return what encodes the texts of each role, query and corpus, for a call of `mine_hard_negatives`.

    Args:
        model: a path or Hub id, which our own encoder loads; a SentenceTransformer; or anything with `encode`.
        prompts: query_prompt, query_prompt_name, corpus_prompt, corpus_prompt_name; None: the model's own.
        device: of a model given by its path.
        dtype: of a model given by its path: float32, bfloat16 or auto.
        batch_size: of a SentenceTransformer.
        show_bars: whether a SentenceTransformer shows its own progress bars.
        cached: vectors are kept on disk, so the model must be recognised when it is loaded again.

    Raises:
        ModelError: the model cannot be loaded or recognised, or has no such prompt.
    """
    name = str(model) if isinstance(model, str | Path) else type(model).__name__

    def prompt_of(role: str, known: Mapping[str, str], own: str) -> str:
        prompt, asked = prompts[f"{role}_prompt"], prompts[f"{role}_prompt_name"]
        if prompt is not None:
            return prompt
        if asked is None:
            return own
        if asked not in known:
            hint = f"it has {listed(known)}" if known else f"it has none: give {role}_prompt instead"
            raise ModelError(name, f"has no prompt '{asked}'{did_you_mean(asked, known)}", hint)
        return known[asked]

    if isinstance(model, str | Path):
        from training.model.encode import load_encoder  # torch: only where something must be encoded

        encoder = load_encoder(name, device=device, dtype=dtype)
        own = {"query": encoder.query("", ""), "corpus": encoder.passage("")}
        return {role: ForRole(encoder, prompt_of(role, encoder.model.prompts, text)) for role, text in own.items()}

    if isinstance(model, type):
        raise ModelError("model", f"is the class {model.__name__} itself", "give an object of it, or a path")

    if hasattr(model, "encode_query") and hasattr(model, "encode_document"):
        digest, found = _digest_of_weights(model) if cached else "", {}
        for role, method in (("query", model.encode_query), ("corpus", model.encode_document)):
            asked = {"prompt": prompts[f"{role}_prompt"], "prompt_name": prompts[f"{role}_prompt_name"]}
            prompt_of(role, getattr(model, "prompts", None) or {}, "")  # an unknown name is an error
            one = _Method(method, {**asked, "batch_size": batch_size}, show_bars)
            own_name = f"{name} {store.digest_of([digest, role, *asked.values()])}" if digest else name
            found[role] = ForRole(CustomEncoder(one, Mine(model=own_name, prompt="none"), "cpu"), "")
        return found

    if hasattr(model, "encode"):
        if cached:
            raise ModelError(name, "cannot be recognised when it is loaded again", "give no cache_folder, or the path of a model")
        encoders = {role: CustomEncoder(model, Mine(model=name, prompt="none"), "cpu") for role in ("query", "corpus")}
        return {role: ForRole(encoder, prompt_of(role, {}, "")) for role, encoder in encoders.items()}

    raise ModelError(
        "model",
        f"{a_kind(model)} has no method 'encode'",
        "give a path, a SentenceTransformer, or an object with `encode(texts)`",
    )


def _digest_of_weights(model: Any) -> str:
    """Return a digest of a torch module: its weights, and its settings as it prints them."""
    import xxhash

    digest = xxhash.xxh3_128(repr(model).encode())
    for name, weights in model.state_dict().items():
        digest.update(name.encode())
        digest.update(weights.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()
