"""Many texts to vectors: the one encoder that mining, training and evaluation share.

Texts are sorted by length and packed into batches of so many tokens, each one forward without padding. On a CPU small
batches are best, for they stay in its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from curation.core.errors import ModelError
from curation.core.store import digest_of
from training.model.device import autocast, device_of, dtype_of
from training.model.files import VECTORS
from training.model.linear import prepack
from training.model.load import load_model
from training.model.model import Model, Tokens, notes_of

TOKENS_PER_BATCH = {"cpu": 2_048, "cuda": 65_536}  # on a CPU measured best with 2 cores
TEXTS_PER_CALL = 8192  # of the tokenizer
SHOWN = 60  # characters of a text in a complaint


class Encoder:
    """A loaded model that turns texts into unit vectors, with the digest of everything they depend on."""

    def __init__(self, model: Model, dtype: torch.dtype, prompt: str, training: bool = False) -> None:
        """Take a model over: with bfloat16 its matrices are cast for good, unless it is in `training` and left as it is."""
        self.model, self.prompt, self._dtype = model, prompt, str(dtype).removeprefix("torch.")
        self.dim, self.prompts = model.dim, model.choose(prompt)
        before = {"query": self.prompts.query, "passage": self.prompts.passage}
        self.described: dict[str, object] = {
            "model": model.name,
            "dtype": self._dtype,
            "prompt": self.prompts.used,
            **({"prompts": before} if any(before.values()) else {}),
            "pooling": model.pooling,
            "max_tokens": model.max_tokens,
            **({"end_token": "appended"} if model.appends_eos else {}),
            **({} if model.similarity == "cosine" else {"similarity": model.similarity}),
        }
        self.similarity = "cosine" if training else model.similarity  # what is trained is trained by cosines
        if notes := notes_of(model, prompt):
            self.described["notes"] = notes
        self.fingerprint = "" if training else _fingerprint(model, self.described)
        self._budget = TOKENS_PER_BATCH[model.backbone.device.type]
        if training:
            return
        # With its matrices in bfloat16 autocast has nothing to cast again in each batch; embeddings, norms and the sums
        # between layers stay in float32: three times nearer to float32 than a model all in bfloat16, and as fast.
        prepack(model.backbone.eval().requires_grad_(False), dtype, self._budget)

    def query(self, instruction: str, text: str) -> str:
        """Return a query as this model reads it."""
        return self.prompts.of_query(instruction, text)

    def passage(self, text: str) -> str:
        """Return a passage as this model reads it."""
        return self.prompts.of_passage(text)

    def encode(self, texts: Sequence[str], advance: Callable[[int], None] = lambda done: None, unit: bool = True) -> np.ndarray:
        """Return unit vectors (n, dim) float32 of rendered texts, in their order; `advance` hears of finished texts.

        Without `unit` they have the length that the model gives them, for `similarities`. The result depends on `texts`
        alone, as the batches do.

        Raises:
            ModelError: a vector has a component that is not a number.
        """
        tokens = self._tokenize(texts)
        vectors = np.empty((len(texts), self.dim), np.float32)
        for rows in batches(np.diff(tokens.starts), self._budget):
            found = self._forward(tokens, rows, unit)
            bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
            if len(bad):
                shown = repr(texts[rows[bad[0]]][:SHOWN])
                raise ModelError(self.model.name, f"gives no numbers for the text {shown}", "are its weights whole? try float32")
            vectors[rows] = found
            advance(len(rows))
        if len(tokens.blank):  # of no token, which sentence-transformers pools to zero
            vectors[tokens.blank] = self.model.blank(unit)
        return vectors

    def _tokenize(self, texts: Sequence[str]) -> Tokens:
        parts = [self.model.tokenize(texts[first : first + TEXTS_PER_CALL]) for first in range(0, len(texts), TEXTS_PER_CALL)]
        lengths = [np.diff(part.starts) for part in parts]
        starts = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
        blank = [part.blank + number * TEXTS_PER_CALL for number, part in enumerate(parts)]
        ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)])
        return Tokens(ids, starts, np.concatenate([np.zeros(0, np.int64), *blank]))

    def _forward(self, tokens: Tokens, rows: np.ndarray, unit: bool) -> np.ndarray:
        pieces = [tokens.ids[tokens.starts[row] : tokens.starts[row + 1]] for row in rows]
        starts = np.cumsum([0, *map(len, pieces)])
        with torch.no_grad(), autocast(self.model.backbone.device, self._dtype):
            vectors = self.model.embed(torch.from_numpy(np.concatenate(pieces).astype(np.int64)), starts.tolist(), unit)
        return vectors.cpu().numpy()


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
        SetupError: the device or dtype is unknown or not there.
    """
    kind = dtype_of(dtype, device_of(device))
    return Encoder(load_model(model, max_tokens=max_tokens, device=device, prompts=prompts), kind, prompt)


def similarities(queries: torch.Tensor, passages: torch.Tensor, similarity: str) -> torch.Tensor:
    """Return how near each of (q, dim) queries is to each of (p, dim) passages, (q, p); a larger number is nearer.

    `similarity` is an encoder's: cosine, of unit vectors; dot, euclidean or manhattan, of `encode(..., unit=False)`.
    """
    if similarity == "euclidean":
        return -torch.cdist(queries, passages, compute_mode="donot_use_mm_for_euclid_dist")
    if similarity == "manhattan":
        return -torch.cdist(queries, passages, p=1.0)
    return queries @ passages.T


def batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield row numbers by falling length, each batch of at most `budget` tokens, or of one text longer than that.

    The longest come first, so that memory runs out at once or never.
    """
    order = np.argsort(-lengths, kind="stable")
    first, ends = 0, np.cumsum(lengths[order])
    while first < len(order):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + budget, side="right")), first + 1)
        yield order[first:last]
        first = last


def _fingerprint(model: Model, described: dict[str, object]) -> str:
    """Return the digest of all that a vector of a rendered text depends on."""
    return digest_of(
        {
            "format": VECTORS,
            "files": model.files.digests(),
            "settings": {key: described[key] for key in ("dtype", "pooling", "max_tokens")},
            "end_token": model.appends_eos,
            "normalised": True,
        }
    )
