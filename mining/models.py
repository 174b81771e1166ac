"""Which model a build is mined with: loaded only where a text must be encoded."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from curation import store
from curation.errors import BuildError
from curation.manifest_models import Mine
from mining.embeddings import Encoder
from mining.reranker import Reranker
from training.model_files import VECTORS, find_model

Open = Callable[[Mine, str], Encoder]
FILE = "encoders.json"  # digest of what was asked for -> fingerprint of what was loaded, and what it says of itself


def open_encoder(settings: Mine, device: str) -> Encoder:
    """Load the model of a `mine:` section."""
    from training.encode import load_encoder  # torch: only where something must be encoded

    return load_encoder(
        settings.model, device=device, dtype=settings.dtype, max_tokens=settings.max_tokens, prompt=settings.prompt
    )


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
            return dict(store.read_json(self.note)) if self.note.exists() else {}
        except (BuildError, ValueError):  # damaged: what it says can be had again
            return {}


def _request(settings: Mine, device: str) -> str:
    """Return the digest of all that decides which fingerprint a loaded model has."""
    files = find_model(settings.model)
    said = {key: value for key, value in asdict(files).items() if key != "transformer"}
    asked = {name: getattr(settings, name) for name in ("model", "dtype", "max_tokens", "prompt")}
    here = [device, platform.node()] if settings.dtype == "auto" else []  # which dtype it means depends on the processor
    libraries = {name: version for name, version in store.versions().items() if name in ("torch", "transformers")}
    return store.digest_of([VECTORS, files.digests(), said, asked, here, libraries])
