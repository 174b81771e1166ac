"""Pairs of query and passage to scores, by a language model that says yes or no: Qwen3-Reranker and what is tuned like it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from curation.core.errors import ModelError, first_line, listed
from training.model.cross_encoder import CrossEncoder, check_scores, prompt_of
from training.model.device import device_of, dtype_of
from training.model.files import find_model
from training.model.load import limit_of, positions_of, read
from training.model.model import quiet
from training.model.pooling import activation_of
from training.model.sentence_folder import Sentence

# what the models were tuned with (model card of Qwen/Qwen3-Reranker-0.6B), to the letter
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ANSWERS = ("yes", "no")
NEEDED = ("<|im_start|>", "<|im_end|>", *ANSWERS)  # tokens of their own
MOST_TOKENS = 8_192  # the model card's


WHAT_MAKES_ONE = (
    "a reranker has a modules.json with LogitScore, as sentence-transformers saves it, or `pipeline_tag: text-ranking` in "
    "its README.md"
)
INSTRUCTED = re.compile(r"<Instruct>: (.*?)\n<Query>: (.*)", re.DOTALL)  # how `mining.rerank.Reranker.asked` puts a query


class CausalReranker(CrossEncoder):
    """A loaded language model: the score of a pair is the share of "yes" in the next token's "yes" and "no".

    Queries carry their instruction, as `mining.rerank.Reranker.asked` puts it.
    """

    answers: list[int]  # tokens: the one whose logit counts, and the one whose logit is taken off, if there is one

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return what the model reads of pairs; what is too long loses its end."""
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
    """One whose folder says how a pair is asked: a chat template with places for a query and a document."""

    said: Sentence

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return what the model reads of pairs; of what is too long the end of the template is kept."""
        if not self.said.chat:
            texts = [self._asked(query) for query in queries]
            pairs = [prompt + query for prompt, query in texts]
            with quiet():
                return dict(self.tokenizer(pairs, list(passages), truncation=True, max_length=self.max_tokens))
        rows = []
        for query, passage in zip(queries, passages, strict=True):
            prompt, bare = self._asked(query)
            ids = self._rendered(prompt, bare, passage)
            if len(ids) >= self.max_tokens:
                end = self._end(prompt) if self.said.chat_arguments.get("restore_suffix", True) else []
                ids = [*ids[: self.max_tokens - len(end)], *end]
            rows.append(ids)
        return {"input_ids": rows}

    def check(self) -> None:
        """Refuse a template that leaves the query or the document out.

        Raises:
            ModelError: it does.
        """
        if not self.said.chat:
            return
        one, other, another = (
            self._rendered("", *pair) for pair in (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "tango"))
        )
        if one in (other, another):
            raise ModelError(self.name, "its chat template has no place for a query or a document", WHAT_MAKES_ONE)

    def _asked(self, query: str) -> tuple[str, str]:
        """Return the instruction and the query alone."""
        found = INSTRUCTED.fullmatch(query)
        return (found[1], found[2]) if found else (self.prompt, query)

    def _rendered(self, prompt: str, query: str, passage: str) -> list[int]:
        arguments = {key: value for key, value in self.said.chat_arguments.items() if key != "restore_suffix"}
        texts = (("system", prompt), ("query", query), ("document", passage))
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in texts if text or role != "system"]
        if self.said.chat == "structured":
            messages = [one | {"content": [{"type": "text", "text": one["content"]}]} for one in messages]
        try:
            with quiet():
                return list(
                    self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **arguments)["input_ids"]
                )
        except Exception as error:  # of jinja, or of the template itself
            raise ModelError(self.name, f"its chat template cannot be used ({first_line(error)})", WHAT_MAKES_ONE) from error

    def _end(self, prompt: str) -> list[int]:
        """Return the tokens that the template puts after every text: the end that two different pairs share."""
        first, second = self._rendered(prompt, "0", "0"), self._rendered(prompt, "1 2 3 4", "1 2 3 4")
        pairs = list(zip(reversed(first), reversed(second), strict=False))
        count = next((number for number, (one, other) in enumerate(pairs) if one != other), 0)
        return first[len(first) - count :]


def load_causal_reranker(model: str, *, device: str = "auto", dtype: str = "float32") -> CausalReranker:
    """Load a language model that was tuned to say whether a passage answers a query.

    Raises:
        ModelError: it is no reranker, a part of it is missing, or its tokenizer lacks what it is asked with.
    """
    files, place = find_model(model), device_of(device)
    said, kinds = files.sentence, check_scores(model, files)
    if (said is None and not files.ranks()) or (said is not None and kinds != ["LogitScore"]):
        raise ModelError(model, "is a language model, and nothing says that it is a reranker", WHAT_MAKES_ONE)
    with quiet():
        loaded, tokenizer, missing = read(model, files, transformers.AutoModelForCausalLM)
    if missing:
        raise ModelError(model, f"its weights lack {listed(missing, 3)}", "is config.json the one of these weights?")
    tokenizer.padding_side = "left"  # the answer follows the last token
    _, room, fixed = positions_of(loaded)
    limit = limit_of(model, files, tokenizer, room, fixed, None)
    kind = dtype_of(dtype, place)
    if said is None:
        if lacking := [token for token in NEEDED if token not in tokenizer.get_vocab()]:
            raise ModelError(model, f"has no token for {listed(lacking)}", "name a reranker tuned as Qwen3-Reranker is")
        scorer = CausalReranker(model, loaded.to(place), tokenizer, min(MOST_TOKENS, limit), kind, torch.nn.Sigmoid())
        scorer.answers = tokenizer.convert_tokens_to_ids(list(ANSWERS))
        return scorer
    activation = activation_of(model, said.activation or "torch.nn.Sigmoid")
    chat = ChatReranker(model, loaded.to(place), tokenizer, limit, kind, activation, prompt_of(said))
    chat.said, chat.answers = said, _answers(model, said.modules[0].config, loaded.config.vocab_size)
    chat.check()
    return chat


def _answers(name: str, config: Mapping[str, Any], known: int) -> list[int]:
    """Return the tokens that LogitScore's config.json names."""
    yes, no = config.get("true_token_id"), config.get("false_token_id")
    answers = [token for token in (yes, no) if token is not None]
    right = all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < known for token in answers)
    if yes is None or not right or config.get("module_input_name", "causal_logits") != "causal_logits":
        raise ModelError(name, f"LogitScore counts the tokens {yes!r} and {no!r}", f"they are numbers below {known}")
    return answers
