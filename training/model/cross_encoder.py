"""Pairs of query and passage to scores, by a sequence-classification model: what sentence-transformers calls a CrossEncoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from curation.core.errors import ModelError, listed
from training.model.device import autocast, device_of, dtype_of
from training.model.encode import SHOWN, TOKENS_PER_BATCH, batches
from training.model.files import ModelFiles, find_model
from training.model.load import limit_of, positions_of, read
from training.model.model import quiet
from training.model.pooling import activation_of, head_of, pooled
from training.model.sentence_folder import Sentence

PAIRS_PER_CALL = 8192  # of the tokenizer
WANTED = "name a cross-encoder, which scores a pair of texts"


class CrossEncoder:
    """A loaded model with one score a pair. Pairs are sorted by length, and padded within batches of so many tokens."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, max_tokens: int, dtype: torch.dtype, activation: nn.Module, prompt: str = ""
    ) -> None:
        """Take over a model that lies on its device; with bfloat16 its products are computed so, under autocast.

        The activation makes a logit a score; the prompt is put before each query.
        """
        self.name, self.model, self.tokenizer, self.max_tokens = name, model.eval().requires_grad_(False), tokenizer, max_tokens
        self.prompt, self._activation = prompt, activation
        self._dtype = str(dtype).removeprefix("torch.")
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
            asked = [self.prompt + query for query in queries]
            return dict(self.tokenizer(asked, list(passages), truncation=True, max_length=self.max_tokens))

    def _forward(self, tokens: dict[str, list[list[int]]]) -> np.ndarray:
        with quiet():
            batch = self.tokenizer.pad(tokens, return_tensors="pt").to(self.model.device)
        with torch.inference_mode(), autocast(self.model.device, self._dtype):
            logits = self._logits(batch)
        return np.asarray(self._activation(logits).cpu().numpy())

    def _logits(self, batch: Any) -> torch.Tensor:
        """Return one number a pair, (n,) float32, that the activation makes a score."""
        return self.model(**batch).logits.float()[:, 0]  # type: ignore[no-any-return]


class PooledCrossEncoder(CrossEncoder):
    """One whose score is made of pooled token states, by the modules of its folder."""

    head: nn.Module
    pooling: str

    def _logits(self, batch: Any) -> torch.Tensor:
        states = self.model(**batch).last_hidden_state
        real = batch["attention_mask"].bool()
        starts = [0, *real.sum(1).cumsum(0).tolist()]
        with torch.autocast(states.device.type, enabled=False):
            found: torch.Tensor = self.head(pooled(states[real].float(), starts, self.pooling))[:, 0]
        return found


def load_cross_encoder(model: str, *, device: str = "auto", dtype: str = "float32") -> CrossEncoder:
    """Load a sequence-classification model, or one that pools, which gives a pair of texts one score.

    Raises:
        ModelError: there is no such model, a part of it is missing, or it gives no score or several.
        SetupError: the device or dtype is unknown or not there.
    """
    files, place = find_model(model), device_of(device)
    said = files.sentence
    kinds = check_scores(model, files)
    pools = said is not None and said.task == "feature-extraction"
    if (said and said.chat) or (kinds and not pools) or (pools and kinds[:1] != ["Pooling"]):
        raise ModelError(model, "its modules.json makes scores in another way than is supported", WANTED)
    auto = transformers.AutoModel if pools else transformers.AutoModelForSequenceClassification
    with quiet():
        loaded, tokenizer, missing = read(model, files, auto)
    if missing := [key for key in missing if not (pools and key.startswith("pooler."))]:
        raise ModelError(model, f"its weights lack {listed(missing, 3)}", WANTED)
    if not pools and loaded.config.num_labels != 1:
        raise ModelError(model, f"gives {loaded.config.num_labels} scores a pair", "name a cross-encoder with one")
    _, room, fixed = positions_of(loaded)
    limit = limit_of(model, files, tokenizer, room, fixed, None)
    tokenizer.padding_side = "right"  # on the left it would shift the positions of a pair by the length of its batch
    activation = activation_of(model, _activation(loaded.config, said))
    kind = PooledCrossEncoder if pools else CrossEncoder
    scorer = kind(model, loaded.to(place), tokenizer, limit, dtype_of(dtype, place), activation, prompt_of(said))
    if isinstance(scorer, PooledCrossEncoder) and said is not None:
        if not said.prompt_pooled and scorer.prompt:
            raise ModelError(model, "leaves its prompt out of the pooling (include_prompt: false)", "that is not supported")
        scorer.pooling = said.pooling or "mean"
        size = int(loaded.config.hidden_size) * len(scorer.pooling.split("+"))
        scorer.head, out = head_of(model, said.modules[1:], size, "scores")
        scorer.head.to(place)
        if out != 1:
            raise ModelError(model, f"gives {out} scores a pair", "name a cross-encoder with one")
    return scorer


def check_scores(name: str, files: ModelFiles) -> list[str]:
    """Return the kinds of the modules after the transformer; refuse a folder of another kind than a cross-encoder's.

    Raises:
        ModelError: it is one.
    """
    said = files.sentence
    if said is None:
        return []
    if said.kind != "CrossEncoder":
        raise ModelError(name, f"its model_type is {said.kind}, which scores no pairs", WANTED)
    return [module.kind for module in said.modules]


def prompt_of(said: Sentence | None) -> str:
    """Return what a cross-encoder's folder puts before each query: the prompt that default_prompt_name names."""
    return said.prompts.get(said.default_prompt, "") if said and said.default_prompt else ""


def _activation(config: Any, said: Sentence | None) -> str:
    """Return what makes a logit a score, as the folder says, else the sigmoid."""
    older = getattr(config, "sentence_transformers", None)
    older = older.get("activation_fn") if isinstance(older, dict) else None
    word = (said.activation if said else None) or older or getattr(config, "sbert_ce_default_activation_function", None)
    return word or "torch.nn.Sigmoid"


def dtype_here(device: str) -> str:
    """Return what dtype auto means on a device: float32 or bfloat16."""
    return str(dtype_of("auto", device_of(device))).removeprefix("torch.")
