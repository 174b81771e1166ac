"""Pairs of query and passage to scores, by a sequence-classification model: what sentence-transformers calls a CrossEncoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from curation.errors import ModelError, listed
from training.device import autocast, device_of, dtype_of
from training.encode import SHOWN, TOKENS_PER_BATCH, batches
from training.model import limit_of, positions_of, quiet, read
from training.model_files import find_model

ACTIVATIONS = {"Sigmoid": torch.sigmoid, "Identity": lambda logits: logits}  # the last word of what config.json names
PAIRS_PER_CALL = 8192  # of the tokenizer


class CrossEncoder:
    """A loaded model with one score a pair. Pairs are sorted by length, and padded within batches of so many tokens."""

    def __init__(self, name: str, model: Any, tokenizer: Any, max_tokens: int, dtype: torch.dtype) -> None:
        """Take over a model that lies on its device; with bfloat16 its products are computed so, under autocast."""
        self.name, self.model, self.tokenizer, self.max_tokens = name, model.eval().requires_grad_(False), tokenizer, max_tokens
        self._dtype = str(dtype).removeprefix("torch.")
        self._activation = _activation(name, model.config)
        self._budget = TOKENS_PER_BATCH[model.device.type]

    def scores(
        self, queries: Sequence[str], passages: Sequence[str], advance: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """Return (n,) float32: the score of each query with the passage at its place; `advance` hears of finished pairs.

        Of pairs that are too long the longer text is cut. The scores depend on what is given alone, as the batches do.

        Raises:
            ModelError: a score is not a number.
        """
        found = np.empty(len(queries), np.float32)
        for first in range(0, len(queries), PAIRS_PER_CALL):
            some = slice(first, first + PAIRS_PER_CALL)
            tokens = self._tokens(queries[some], passages[some])
            for rows in batches(np.array([len(ids) for ids in tokens["input_ids"]]), self._budget):
                found[first + rows] = self._forward({key: [values[row] for row in rows] for key, values in tokens.items()})
                advance(len(rows))
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            shown = f"{queries[bad[0]][:SHOWN]!r} and {passages[bad[0]][:SHOWN]!r}"
            raise ModelError(self.name, f"gives no number for {shown}", "are its weights whole? try float32")
        return found

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        with quiet():
            return dict(self.tokenizer(list(queries), list(passages), truncation=True, max_length=self.max_tokens))

    def _forward(self, tokens: dict[str, list[list[int]]]) -> np.ndarray:
        with quiet():
            batch = self.tokenizer.pad(tokens, return_tensors="pt").to(self.model.device)
        with torch.inference_mode(), autocast(self.model.device, self._dtype):
            logits = self._logits(batch)
        return np.asarray(self._activation(logits).cpu().numpy())

    def _logits(self, batch: Any) -> torch.Tensor:
        """Return one number a pair, (n,) float32, that the activation makes a score."""
        return self.model(**batch).logits.float()[:, 0]  # type: ignore[no-any-return]


def load_cross_encoder(model: str, *, device: str = "auto", dtype: str = "float32") -> CrossEncoder:
    """Load a model that gives a pair of texts one score, from a folder, a Hub id or `package:NAME`.

    Raises:
        ModelError: there is no such model, a part of it is missing, or it gives no score or several.
        SetupError: the device or dtype is unknown or not there.
    """
    files, place = find_model(model), device_of(device)
    with quiet():
        loaded, tokenizer, missing = read(model, files, transformers.AutoModelForSequenceClassification)
    if missing:
        raise ModelError(model, f"its weights lack {listed(missing, 3)}", "name a cross-encoder, which scores a pair of texts")
    if loaded.config.num_labels != 1:
        raise ModelError(model, f"gives {loaded.config.num_labels} scores a pair", "name a cross-encoder with one")
    limit = limit_of(model, files, tokenizer, positions_of(loaded)[1], None)
    return CrossEncoder(model, loaded.to(place), tokenizer, limit, dtype_of(dtype, place))


def dtype_here(device: str) -> str:
    """Return what dtype auto means on a device: float32 or bfloat16."""
    return str(dtype_of("auto", device_of(device))).removeprefix("torch.")


def _activation(name: str, config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes a logit a score: as the model's config.json says, else the sigmoid."""
    said = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    said = said or getattr(config, "sbert_ce_default_activation_function", None) or "Sigmoid"
    word = str(said).rsplit(".", 1)[-1]
    if word not in ACTIVATIONS:
        raise ModelError(name, f"asks for the activation '{said}'", f"only {listed(ACTIVATIONS)} are supported")
    return ACTIVATIONS[word]
