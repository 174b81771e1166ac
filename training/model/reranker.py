"""Score pairs of query and passage with a reranker.

Three kinds of model give one score per pair:

- a sequence-classification model, which sentence-transformers calls a CrossEncoder (`CrossEncoder`);
- a model whose score is computed from pooled token states (`PooledCrossEncoder`);
- a language model tuned to answer "yes" or "no", such as Qwen3-Reranker (`CausalReranker`), or one whose folder has a chat
  template for pairs (`ChatReranker`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from curation.core.errors import ModelError, first_line, is_out_of_memory, listed
from training.model.device import autocast, device_of, dtype_of
from training.model.encode import SHOWN, TOKENS_PER_BATCH, batches, halved
from training.model.files import ModelFiles, find_model
from training.model.load import max_tokens_of, positions_of, read_model
from training.model.model import quiet
from training.model.pooling import activation_of, head_of, pooled
from training.model.sentence_folder import Sentence

PAIRS_PER_CALL = 8192  # pairs given to the tokenizer at once
USE_A_CROSS_ENCODER = "name a cross-encoder, which scores a pair of texts"

# The frame around a pair that Qwen3-Reranker was tuned with (model card of Qwen/Qwen3-Reranker-0.6B), to the letter.
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ANSWERS = ("yes", "no")
ANSWER_TOKENS = ("<|im_start|>", "<|im_end|>", *ANSWERS)  # the tokenizer must have each of these as one token
MOST_TOKENS = 8_192  # the limit that the model card gives
MAKE_IT_A_RERANKER = (
    "a reranker has a modules.json with LogitScore, as sentence-transformers saves it, or `pipeline_tag: text-ranking` in "
    "its README.md"
)
QUERY_WITH_TASK = re.compile(r"<Instruct>: (.*?)\n<Query>: (.*)", re.DOTALL)  # as `mining.rerank.Reranker.asked` writes it


class CrossEncoder:
    """A loaded model with one score per pair. Pairs are sorted by length and padded within batches of a token budget."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, max_tokens: int, dtype: torch.dtype, activation: nn.Module, prompt: str = ""
    ) -> None:
        """Take over a model that is on its device already.

        Args:
            name: for error messages.
            model: the transformers model.
            tokenizer: its tokenizer.
            max_tokens: longer pairs are cut.
            dtype: with bfloat16, matrix products run in bfloat16 under autocast.
            activation: turns a logit into a score.
            prompt: text before each query.
        """
        self.name, self.model, self.tokenizer, self.max_tokens = name, model.eval().requires_grad_(False), tokenizer, max_tokens
        self.prompt, self._activation = prompt, activation
        self._dtype = str(dtype).removeprefix("torch.")
        self._budget = TOKENS_PER_BATCH[model.device.type]

    def scores(
        self, queries: Sequence[str], passages: Sequence[str], advance: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """Return (n,) float32: the score of queries[i] with passages[i].

        If a pair is too long, its longer text is cut. `advance` is called with the number of pairs of each finished batch.
        The scores depend on the given pairs alone, because the batches do.

        Raises:
            ModelError: a score is not a finite number.
            SetupError: the GPU has no memory for the longest pair.
        """
        found = np.empty(len(queries), np.float32)
        for first in range(0, len(queries), PAIRS_PER_CALL):
            some = slice(first, first + PAIRS_PER_CALL)
            tokens = self._tokens(queries[some], passages[some])
            for rows in batches(np.array([len(ids) for ids in tokens["input_ids"]]), self._budget):
                found[first + rows] = self._scores_of(tokens, rows)
                advance(len(rows))
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            shown = f"{queries[bad[0]][:SHOWN]!r} and {passages[bad[0]][:SHOWN]!r}"
            raise ModelError(self.name, f"gives no number for {shown}", "are its weights whole? try float32")
        return found

    def _scores_of(self, tokens: dict[str, list[list[int]]], rows: np.ndarray) -> np.ndarray:
        """Return the scores of some rows, in halves if they do not fit into the memory of the GPU."""
        chosen = {key: [values[row] for row in rows] for key, values in tokens.items()}
        with quiet():
            batch = self.tokenizer.pad(chosen, return_tensors="pt").to(self.model.device)
        try:
            with torch.inference_mode(), autocast(self.model.device, self._dtype):
                return np.asarray(self._activation(self._logits(batch)).cpu().numpy())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            held = sum(map(len, chosen["input_ids"]))
        self._budget = halved(self._budget, held, len(rows), self.model.device)
        return np.concatenate([self._scores_of(tokens, half) for half in np.array_split(rows, 2)])

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return the tokens of each pair, by the names of the model's inputs."""
        with quiet():
            texts = [self.prompt + query for query in queries]
            return dict(self.tokenizer(texts, list(passages), truncation=True, max_length=self.max_tokens))

    def _logits(self, batch: Any) -> torch.Tensor:
        """Return one logit per pair, (n,) float32."""
        return self.model(**batch).logits.float()[:, 0]  # type: ignore[no-any-return]


class PooledCrossEncoder(CrossEncoder):
    """A cross-encoder that pools token states and applies the further modules of its folder."""

    head: nn.Module
    pooling: str

    def _logits(self, batch: Any) -> torch.Tensor:
        states = self.model(**batch).last_hidden_state
        real = batch["attention_mask"].bool()
        starts = [0, *real.sum(1).cumsum(0).tolist()]
        with torch.autocast(states.device.type, enabled=False):
            found: torch.Tensor = self.head(pooled(states[real].float(), starts, self.pooling))[:, 0]
        return found


class CausalReranker(CrossEncoder):
    """A language model tuned as Qwen3-Reranker: the score is P("yes") among "yes" and "no" as the next token.

    Queries carry their instruction, as `mining.rerank.Reranker.asked` writes it.
    """

    answers: list[int]  # the token whose logit counts and, if present, the token whose logit is subtracted

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return the tokens of each pair. A pair that is too long is cut at its end, inside the frame."""
        texts = [f"{query}\n<Document>: {passage}" for query, passage in zip(queries, passages, strict=True)]
        before, after = (self.tokenizer.encode(text, add_special_tokens=False) for text in (BEFORE, AFTER))
        room = self.max_tokens - len(before) - len(after)
        cut = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        return {"input_ids": [[*before, *ids, *after] for ids in cut]}

    def _logits(self, batch: Any) -> torch.Tensor:
        last = self.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()
        found: torch.Tensor = last[:, self.answers[0]]
        return found - last[:, self.answers[1]] if len(self.answers) > 1 else found


class ChatReranker(CausalReranker):
    """A language model whose folder has a chat template with places for a query and a document."""

    sentence: Sentence

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return the tokens of each pair. A pair that is too long is cut before the end of the template."""
        # The instruction of a query fills the template's system message; without one, the prompt of the folder does.
        matches = [QUERY_WITH_TASK.fullmatch(query) for query in queries]
        split = [(match[1], match[2]) if match else (self.prompt, query) for match, query in zip(matches, queries, strict=True)]
        if not self.sentence.chat:
            with quiet():
                texts = [prompt + query for prompt, query in split]
                return dict(self.tokenizer(texts, list(passages), truncation=True, max_length=self.max_tokens))
        rows = []
        for (prompt, query), passage in zip(split, passages, strict=True):
            ids = self._rendered(prompt, query, passage)
            if len(ids) >= self.max_tokens:
                end = self._end(prompt) if self.sentence.chat_arguments.get("restore_suffix", True) else []
                ids = [*ids[: self.max_tokens - len(end)], *end]
            rows.append(ids)
        return {"input_ids": rows}

    def check(self) -> None:
        """Check that the chat template uses both the query and the document.

        Raises:
            ModelError: it leaves one of them out.
        """
        if not self.sentence.chat:
            return
        pairs = (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "tango"))
        base, other_query, other_document = (self._rendered("", *pair) for pair in pairs)
        if base in (other_query, other_document):
            raise ModelError(self.name, "its chat template has no place for a query or a document", MAKE_IT_A_RERANKER)

    def _rendered(self, prompt: str, query: str, passage: str) -> list[int]:
        """Return the tokens of the chat template filled with a pair."""
        arguments = {key: value for key, value in self.sentence.chat_arguments.items() if key != "restore_suffix"}
        texts = (("system", prompt), ("query", query), ("document", passage))
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in texts if text or role != "system"]
        if self.sentence.chat == "structured":
            messages = [one | {"content": [{"type": "text", "text": one["content"]}]} for one in messages]
        try:
            with quiet():
                filled = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **arguments)
                return list(filled["input_ids"])
        except Exception as error:  # raised by jinja, or by the template itself
            raise ModelError(self.name, f"its chat template cannot be used ({first_line(error)})", MAKE_IT_A_RERANKER) from error

    def _end(self, prompt: str) -> list[int]:
        """Return the tokens with which the template ends, whatever the pair: the common end of two different pairs."""
        first, second = self._rendered(prompt, "0", "0"), self._rendered(prompt, "1 2 3 4", "1 2 3 4")
        pairs = list(zip(reversed(first), reversed(second), strict=False))
        count = next((number for number, (one, other) in enumerate(pairs) if one != other), 0)
        return first[len(first) - count :]


def load_reranker(model: str, *, device: str = "auto", dtype: str = "float32") -> CrossEncoder:
    """Load a model that gives a pair of texts one score, from a folder, a Hub id or `package:NAME`.

    Raises:
        ModelError: there is no such model, a part of it is missing, or it gives no score or several.
        SetupError: the device or dtype is unknown or not available.
    """
    load = load_causal_reranker if find_model(model).causal() else load_cross_encoder
    return load(model, device=device, dtype=dtype)


def load_cross_encoder(model: str, *, device: str = "auto", dtype: str = "float32") -> CrossEncoder:
    """Load a sequence-classification model, or one that pools, which gives a pair of texts one score.

    Raises:
        ModelError: there is no such model, a part of it is missing, or it gives no score or several.
        SetupError: the device or dtype is unknown or not available.
    """
    files, place = find_model(model), device_of(device)
    sentence = files.sentence
    kinds = _further_modules(model, files)
    pools = sentence is not None and sentence.task == "feature-extraction"
    if (sentence and sentence.chat) or (kinds and not pools) or (pools and kinds[:1] != ["Pooling"]):
        raise ModelError(model, "its modules.json computes scores in a way that is not supported", USE_A_CROSS_ENCODER)

    # Read the weights. A pooler of its own that the file lacks is not used when the folder pools.
    auto = transformers.AutoModel if pools else transformers.AutoModelForSequenceClassification
    with quiet():
        loaded, tokenizer, missing = read_model(model, files, auto)
    if missing := [key for key in missing if not (pools and key.startswith("pooler."))]:
        raise ModelError(model, f"its weights lack {listed(missing, 3)}", USE_A_CROSS_ENCODER)
    if not pools and loaded.config.num_labels != 1:
        raise ModelError(model, f"gives {loaded.config.num_labels} scores per pair", "name a cross-encoder with one")
    _, room, fixed = positions_of(loaded)
    limit = max_tokens_of(model, files, tokenizer, room, fixed, None)
    tokenizer.padding_side = "right"  # padding on the left would shift the positions of a pair by the length of its batch

    # The activation: the folder's own, else an older key of config.json, else the sigmoid.
    older = getattr(loaded.config, "sentence_transformers", None)
    older = older.get("activation_fn") if isinstance(older, dict) else None
    older = older or getattr(loaded.config, "sbert_ce_default_activation_function", None)
    activation = activation_of(model, (sentence.activation if sentence else None) or older or "torch.nn.Sigmoid")
    kind = PooledCrossEncoder if pools else CrossEncoder
    scorer = kind(model, loaded.to(place), tokenizer, limit, dtype_of(dtype, place), activation, _default_prompt(sentence))

    if isinstance(scorer, PooledCrossEncoder) and sentence is not None:
        if not sentence.prompt_pooled and scorer.prompt:
            raise ModelError(model, "leaves its prompt out of the pooling (include_prompt: false)", "that is not supported")
        scorer.pooling = sentence.pooling or "mean"
        size = int(loaded.config.hidden_size) * len(scorer.pooling.split("+"))
        scorer.head, out = head_of(model, sentence.modules[1:], size, "scores")
        scorer.head.to(place)
        if out != 1:
            raise ModelError(model, f"gives {out} scores per pair", "name a cross-encoder with one")
    return scorer


def load_causal_reranker(model: str, *, device: str = "auto", dtype: str = "float32") -> CausalReranker:
    """Load a language model that was tuned to say whether a passage answers a query.

    Raises:
        ModelError: it is not a reranker, a part of it is missing, or its tokenizer lacks the tokens of the frame.
    """
    files, place = find_model(model), device_of(device)
    sentence, kinds = files.sentence, _further_modules(model, files)
    if (sentence is None and not files.ranks()) or (sentence is not None and kinds != ["LogitScore"]):
        raise ModelError(model, "is a language model, and nothing says that it is a reranker", MAKE_IT_A_RERANKER)
    with quiet():
        loaded, tokenizer, missing = read_model(model, files, transformers.AutoModelForCausalLM)
    if missing:
        raise ModelError(model, f"its weights lack {listed(missing, 3)}", "does config.json belong to these weights?")
    tokenizer.padding_side = "left"  # the answer follows the last token
    _, room, fixed = positions_of(loaded)
    limit = max_tokens_of(model, files, tokenizer, room, fixed, None)
    kind = dtype_of(dtype, place)

    # A plain transformers folder: Qwen3-Reranker's own frame.
    if sentence is None:
        if lacking := [token for token in ANSWER_TOKENS if token not in tokenizer.get_vocab()]:
            raise ModelError(model, f"has no token for {listed(lacking)}", "name a reranker tuned as Qwen3-Reranker is")
        scorer = CausalReranker(model, loaded.to(place), tokenizer, min(MOST_TOKENS, limit), kind, torch.nn.Sigmoid())
        scorer.answers = tokenizer.convert_tokens_to_ids(list(ANSWERS))
        return scorer

    # A sentence-transformers folder: its chat template, and the answer tokens that LogitScore's config.json names.
    activation = activation_of(model, sentence.activation or "torch.nn.Sigmoid")
    chat = ChatReranker(model, loaded.to(place), tokenizer, limit, kind, activation, _default_prompt(sentence))
    # The tokens whose logits LogitScore's config.json names.
    settings, vocabulary = sentence.modules[0].config, loaded.config.vocab_size
    yes, no = settings.get("true_token_id"), settings.get("false_token_id")
    answers = [token for token in (yes, no) if token is not None]
    right = all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocabulary for token in answers)
    if yes is None or not right or settings.get("module_input_name", "causal_logits") != "causal_logits":
        raise ModelError(model, f"LogitScore counts the tokens {yes!r} and {no!r}", f"they must be numbers below {vocabulary}")
    chat.sentence, chat.answers = sentence, answers
    chat.check()
    return chat


def _further_modules(name: str, files: ModelFiles) -> list[str]:
    """Return the kinds of the modules after the transformer; refuse a sentence-transformers folder that is no CrossEncoder."""
    sentence = files.sentence
    if sentence is None:
        return []
    if sentence.kind != "CrossEncoder":
        raise ModelError(name, f"its model_type is {sentence.kind}, which does not score pairs", USE_A_CROSS_ENCODER)
    return [module.kind for module in sentence.modules]


def _default_prompt(sentence: Sentence | None) -> str:
    """Return the prompt that default_prompt_name names, which a cross-encoder's folder puts before each query."""
    return sentence.prompts.get(sentence.default_prompt, "") if sentence and sentence.default_prompt else ""


def dtype_here(device: str) -> str:
    """Return what dtype `auto` means on a device: float32 or bfloat16."""
    return str(dtype_of("auto", device_of(device))).removeprefix("torch.")
