"""Turn texts into vectors: the encoder that mining, training and evaluation share.

Texts are sorted by length and packed into batches of a token budget; each batch is one forward without padding. On a CPU
small batches are fastest, because they stay in its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from curation.core.errors import ModelError
from curation.core.store import digest_of
from training.model.device import autocast, device_of, dtype_of, float32_products, prepack
from training.model.files import VECTORS
from training.model.load import load_model
from training.model.model import Model, notes_of

TOKENS_PER_BATCH = {"cpu": 2_048, "cuda": 65_536}  # for CPUs the fastest of those measured, with 2 cores
TEXTS_PER_CALL = 8192  # texts given to the tokenizer at once
SHOWN = 60  # characters of a text in an error message


class Encoder:
    """A loaded model that turns texts into unit vectors; `fingerprint` is the digest of everything that they depend on."""

    def __init__(self, model: Model, dtype: torch.dtype, prompt: str, training: bool = False) -> None:
        """Take over a model. With bfloat16 its matrices are cast for good, unless `training` leaves the model as it is."""
        self.model, self.prompt, self._dtype = model, prompt, str(dtype).removeprefix("torch.")
        self.dim, self.prompts = model.dim, model.choose(prompt)
        device = model.backbone.device
        stated = device.type == "cuda" and dtype == torch.float32  # there the environment can choose TF32
        before = {"query": self.prompts.query, "passage": self.prompts.passage}
        self.described: dict[str, object] = {
            "model": model.name,
            "dtype": self._dtype,
            **({"float32_products": float32_products(device)} if stated else {}),
            "prompt": self.prompts.used,
            **({"prompts": before} if any(before.values()) else {}),
            "pooling": model.pooling,
            "max_tokens": model.max_tokens,
            **({"end_token": "appended"} if model.appends_eos else {}),
            **({} if model.similarity == "cosine" else {"similarity": model.similarity}),
        }
        self.similarity = "cosine" if training else model.similarity  # the losses compare by cosine
        if notes := notes_of(model, prompt):
            self.described["notes"] = notes
        self._budget = TOKENS_PER_BATCH[device.type]
        if training:
            self.fingerprint = ""
            return
        self.fingerprint = digest_of(
            {
                "format": VECTORS,
                "files": model.files.digests(),
                "settings": {key: self.described[key] for key in ("dtype", "pooling", "max_tokens")},
                **({"float32_products": float32_products(device)} if stated and float32_products(device) != "exact" else {}),
                "end_token": model.appends_eos,
                "normalised": True,
            }
        )
        # With matrices in bfloat16, autocast has nothing to cast again in each batch. Embeddings, norms and the sums between
        # layers stay in float32: three times nearer to float32 than a model entirely in bfloat16, and as fast.
        prepack(model.backbone.eval().requires_grad_(False), dtype, self._budget)

    def query(self, instruction: str, text: str) -> str:
        """Return a query as this model reads it."""
        return self.prompts.of_query(instruction, text)

    def passage(self, text: str) -> str:
        """Return a passage as this model reads it."""
        return self.prompts.of_passage(text)

    def encode(self, texts: Sequence[str], advance: Callable[[int], None] = lambda done: None, unit: bool = True) -> np.ndarray:
        """Return unit vectors (n, dim) float32 of rendered texts, in their order.

        With `unit=False` they keep the length that the model gives them, for `similarities`. `advance` is called with the number
        of texts of each finished batch. The result depends on `texts` alone, because the batches do.

        Raises:
            ModelError: a vector has a component that is not a finite number.
        """
        # Tokenise, some thousand texts at a time.
        parts = [self.model.tokenize(texts[first : first + TEXTS_PER_CALL]) for first in range(0, len(texts), TEXTS_PER_CALL)]
        starts = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.starts) for part in parts)]).cumsum()
        ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)])
        blank = np.concatenate(
            [np.zeros(0, np.int64), *(part.blank + number * TEXTS_PER_CALL for number, part in enumerate(parts))]
        )

        # One packed forward per batch.
        vectors = np.empty((len(texts), self.dim), np.float32)
        for rows in batches(np.diff(starts), self._budget):
            pieces = [ids[starts[row] : starts[row + 1]] for row in rows]
            bounds = np.cumsum([0, *map(len, pieces)]).tolist()
            with torch.no_grad(), autocast(self.model.backbone.device, self._dtype):
                flat = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
                found = self.model.embed(flat, bounds, unit).cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
            if len(bad):
                shown = repr(texts[rows[bad[0]]][:SHOWN])
                raise ModelError(self.model.name, f"gives no numbers for the text {shown}", "are its weights whole? try float32")
            vectors[rows] = found
            advance(len(rows))
        if len(blank):  # texts without tokens, which sentence-transformers pools to zero
            vectors[blank] = self.model.blank(unit)
        return vectors


def load_encoder(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    max_tokens: int | None = None,
    prompt: str = "auto",
    prompts: Mapping[str, str] | None = None,
) -> Encoder:
    """Load a model for encoding; arguments as for `load_model`, dtype auto, float32 or bfloat16, prompt auto, instruct or none.

    Raises:
        ModelError: as `load_model`, or the prompt is unknown.
        SetupError: the device or dtype is unknown or not available.
    """
    kind = dtype_of(dtype, device_of(device))
    return Encoder(load_model(model, max_tokens=max_tokens, device=device, prompts=prompts), kind, prompt)


def similarities(queries: torch.Tensor, passages: torch.Tensor, similarity: str) -> torch.Tensor:
    """Return the similarity of each of (q, dim) queries to each of (p, dim) passages, (q, p); larger is nearer.

    `similarity` is an encoder's: cosine for unit vectors; dot, euclidean or manhattan for those of `encode(..., unit=False)`.
    """
    if similarity == "euclidean":
        return -torch.cdist(queries, passages, compute_mode="donot_use_mm_for_euclid_dist")
    if similarity == "manhattan":
        return -torch.cdist(queries, passages, p=1.0)
    return queries @ passages.T


def batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield the row numbers of each batch, longest texts first: at most `budget` tokens, or one longer text alone.

    The longest come first, so that memory runs out at once or never.
    """
    order = np.argsort(-lengths, kind="stable")
    first, ends = 0, np.cumsum(lengths[order])
    while first < len(order):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + budget, side="right")), first + 1)
        yield order[first:last]
        first = last
