"""Pairs of query and passage to scores, by a language model that says yes or no: Qwen3-Reranker and what is tuned like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from curation.errors import ModelError, listed
from training.cross_encoder import CrossEncoder
from training.device import device_of, dtype_of
from training.model import limit_of, positions_of, quiet, read
from training.model_files import find_model

# what the models were tuned with (model card of Qwen/Qwen3-Reranker-0.6B), to the letter
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ANSWERS = ("no", "yes")
NEEDED = ("<|im_start|>", "<|im_end|>", *ANSWERS)  # tokens of their own
MOST_TOKENS = 8_192  # the model card's


class CausalReranker(CrossEncoder):
    """A loaded language model: the score of a pair is the share of "yes" in the next token's "yes" and "no".

    Queries carry their instruction, as `mining.reranker.Reranker.asked` puts it.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, max_tokens: int, dtype: torch.dtype) -> None:
        """Take over a model that lies on its device."""
        super().__init__(name, model, tokenizer, max_tokens, dtype)
        self._activation = torch.sigmoid
        tokenizer.padding_side = "left"  # the answer follows the last token
        self._frame = [tokenizer.encode(text, add_special_tokens=False) for text in (BEFORE, AFTER)]
        self._answers = tokenizer.convert_tokens_to_ids(list(ANSWERS))

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return what the model reads of pairs; what is too long loses its end."""
        texts = [f"{query}\n<Document>: {passage}" for query, passage in zip(queries, passages, strict=True)]
        before, after = self._frame
        room = self.max_tokens - len(before) - len(after)
        cut = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        return {"input_ids": [[*before, *ids, *after] for ids in cut]}

    def _logits(self, batch: Any) -> torch.Tensor:
        found: torch.Tensor = self.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1, self._answers].float()
        return found[:, 1] - found[:, 0]


def load_reranker(model: str, *, device: str = "auto", dtype: str = "float32") -> CausalReranker:
    """Load a language model that was tuned to say whether a passage answers a query.

    Raises:
        ModelError: a part of it is missing, or its tokenizer lacks what it is asked with.
    """
    files, place = find_model(model), device_of(device)
    with quiet():
        loaded, tokenizer, missing = read(model, files, transformers.AutoModelForCausalLM)
    if missing:
        raise ModelError(model, f"its weights lack {listed(missing, 3)}", "is config.json the one of these weights?")
    if lacking := [token for token in NEEDED if token not in tokenizer.get_vocab()]:
        raise ModelError(model, f"has no token for {listed(lacking)}", "name a reranker tuned as Qwen3-Reranker is")
    limit = min(MOST_TOKENS, limit_of(model, files, tokenizer, positions_of(loaded)[1], None))
    return CausalReranker(model, loaded.to(place), tokenizer, limit, dtype_of(dtype, place))
