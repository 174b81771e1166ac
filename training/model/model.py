"""A text-embedding model: a transformer without a head, its tokenizer, and how token states become one unit vector."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from curation.core.errors import ModelError, listed
from curation.core.record import render_query
from training.model.attention import packed_inputs, padded_buckets
from training.model.device import on_device
from training.model.files import ModelFiles
from training.model.pooling import LayerMix, Unit, pooled
from training.model.prompts import PROMPTS, RESERVED, Prompts, choose_prompts

NO_LIMIT = 1_000_000  # a tokenizer without a limit says 1e30


class Tokens(NamedTuple):
    """The tokens of n texts, one after the other: text i is ids[starts[i]:starts[i + 1]].

    sentence-transformers gives a text without tokens the zero vector. Here a special token takes the text's place, and `blank`
    lists such texts.
    """

    ids: np.ndarray  # (T,) int32
    starts: np.ndarray  # (n + 1,) int64
    blank: np.ndarray = np.zeros(0, np.int64)  # numbers of the texts without tokens


@dataclass
class Model:
    """What `load_model` returns."""

    name: str
    files: ModelFiles
    backbone: Any  # a transformers.PreTrainedModel without a head
    tokenizer: Any
    pooling: str  # one of pooling.POOLINGS, or several joined by "+"
    prompts: dict[str, str]  # the model's own, by name
    max_tokens: int
    dim: int  # of a vector
    is_decoder: bool
    first_position: int  # where its positions count from
    appends_eos: bool  # whether we append the end token, because the tokenizer does not
    padded: str = ""  # why attention cannot be packed, or ""; texts of similar length are then padded to one length
    equal: bool = False  # whether padding changes vectors too, so that only texts of equal length share a forward
    segment_of: Mapping[int, int] = field(default_factory=dict)  # special tokens in a segment other than 0 (XLNet's <cls>)
    given: Mapping[str, str] | None = None  # the manifest's prompts, by `query` and `passage`
    head: torch.nn.Sequential = field(default_factory=torch.nn.Sequential)  # what follows the pooling, after a LayerMix before it
    truncate: int | None = None  # only so many leading dimensions of a vector are kept
    similarity: str = "cosine"  # the model's own: cosine, dot, euclidean or manhattan
    adapter: Any = None  # the peft.PeftModel around the backbone while it is trained with LoRA
    trained_prompt: str | None = None  # of a model that `train` wrote: how its queries were rendered, as `Prompts.used`

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of the texts, cut to `max_tokens` including special tokens; every text gets at least one token."""
        if not texts:
            return Tokens(np.zeros(0, np.int32), np.zeros(1, np.int64))
        room = self.max_tokens - self.appends_eos
        lists = token_ids(self.tokenizer, list(texts), truncation=True, max_length=room)
        blank = np.zeros(0, np.int64)
        if self.appends_eos:
            lists = [[*ids, self.tokenizer.eos_token_id] for ids in lists]
        elif not all(lists):
            blank = np.array([number for number, ids in enumerate(lists) if not ids], np.int64)
            known = self.tokenizer
            special = (known.bos_token_id, known.cls_token_id, known.eos_token_id, known.sep_token_id)
            standin = next((int(token) for token in special if token is not None), None)
            if standin is None:
                raise ModelError(self.name, "an empty text has no tokens, and the tokenizer has no special token to use instead")
            lists = [ids or [standin] for ids in lists]
        starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(lists), np.int32, count=int(starts[-1]))
        if flat.max() >= (rows := self.backbone.get_input_embeddings().num_embeddings):
            what = f"its tokenizer gives token {flat.max()}, but the model knows only {rows} tokens"
            raise ModelError(self.name, what, "do tokenizer and weights belong to the same model?")
        return Tokens(flat, starts, blank if self.files.sentence else blank[:0])

    def embed(self, ids: Tensor, starts: Sequence[int], unit: bool = True) -> Tensor:
        """Return unit vectors (n, dim) float32 of ids (T,) int64, cut at starts (n + 1), in one packed forward.

        With `unit=False` they keep the length that the model gives them. Differentiable. Under `autocast` the transformer runs
        in bfloat16; pooling and normalising always run in float32.
        """
        device = self.backbone.device
        ids = ids if ids.device == device else on_device(ids.numpy(), device)
        if self.padded:
            states = self._padded_states(ids, starts)
        else:
            arguments = packed_inputs(ids, starts, self.first_position)
            states = self._states(arguments)[0]  # (T, dim)
        with torch.autocast(states.device.type, enabled=False):
            # A last Normalize is skipped, because the vectors are normalised below anyway.
            head = self._after_pooling()
            if unit and self.truncate is None and len(head) > 0 and isinstance(head[-1], Unit):
                head = head[:-1]
            vectors = head(pooled(states.float(), starts, self.pooling))[:, : self.truncate]
            return functional.normalize(vectors, dim=-1) if unit else vectors

    def _states(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the token states of a forward, (..., dim): those of the last layer, or a mixture of several layers."""
        if not len(self.head) or not isinstance(self.head[0], LayerMix):
            return self.backbone(**arguments).last_hidden_state  # type: ignore[no-any-return]
        mixed: Tensor = self.head[0](self.backbone(**arguments, output_hidden_states=True).hidden_states)
        return mixed

    def _after_pooling(self) -> Any:
        """Return the modules after the pooling, a torch.nn.Sequential."""
        return self.head[1:] if len(self.head) and isinstance(self.head[0], LayerMix) else self.head

    def _padded_states(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """Return the states (T, dim) of ids (T,), one forward per bucket of texts of similar length, padded on the right.

        The model makes its own positions. The padding is masked, and its states are left out.
        """
        bounds, found, places = np.asarray(starts, dtype=np.int64), [], []
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else self.tokenizer.eos_token_id or 0
        for rows in padded_buckets(starts, self.equal):
            lengths = bounds[rows + 1] - bounds[rows]
            columns = np.arange(lengths[0])
            real = columns < lengths[:, None]  # (texts, longest) bool
            index = bounds[rows][:, None] + columns * real  # of each token in `ids`; padding repeats the first
            mask, places_of = on_device(real, ids.device), on_device(index, ids.device)
            batch = ids[places_of].masked_fill(~mask, pad)
            arguments: dict[str, Any] = {"input_ids": batch, "attention_mask": mask.long()}
            if self.is_decoder:
                arguments["use_cache"] = False
            if self.segment_of:
                segments = torch.zeros_like(batch)
                for token, segment in self.segment_of.items():
                    segments = segments.masked_fill((batch == token) & mask, segment)
                arguments["token_type_ids"] = segments
            states = self._states(arguments)
            found.append(states[:, : real.shape[1]][mask])
            places.append(index[real])
        order = on_device(np.argsort(np.concatenate(places)), ids.device)
        return torch.cat(found)[order]

    def blank(self, unit: bool) -> np.ndarray:
        """Return the vector (dim,) of a text without tokens."""
        states = torch.zeros(1, int(self.backbone.config.hidden_size) * len(self.pooling.split("+")))
        vectors = self._after_pooling()(states.to(self.backbone.device))[:, : self.truncate]
        return np.asarray((functional.normalize(vectors, dim=-1) if unit else vectors)[0].cpu().numpy())

    def choose(self, prompt: str) -> Prompts:
        """Return what `prompt` (auto, instruct, none) puts before this model's texts."""
        if prompt not in PROMPTS:
            raise ModelError(self.name, f"unknown prompt '{prompt}'", f"use one of {listed(PROMPTS)}")
        sentence = self.files.sentence
        default = sentence.default_prompt if sentence else None
        chosen = choose_prompts(prompt, self.prompts, self.is_decoder, self.given, default, self.trained_prompt)
        surprising = prompt == "auto" and chosen.used == "instruct" and not self.trained_prompt and not any(self.prompts.values())
        if sentence and surprising:
            note = (
                "the model has no prompts, so queries begin with the instruction of their source; `prompt: none` turns that off"
            )
            chosen = replace(chosen, note=note)
        if sentence and not sentence.prompt_pooled and (chosen.query or chosen.passage or chosen.used == "instruct"):
            what = f"leaves the prompt out of the pooling (include_prompt: false), and {chosen.summary()}"
            raise ModelError(self.name, what, "that is supported without prompts only: give `prompt: none`")
        return chosen

    def prompts_for(self, prompt: str, instructions: Mapping[str, str]) -> dict[str, str]:
        """Return the prompts, by name, that a user of the trained model needs if queries are rendered by `prompt`."""
        chosen = self.choose(prompt)
        if chosen.used == "own":
            return self.prompts
        if chosen.used == "given":
            return {"query": chosen.query, "document": chosen.passage}
        if chosen.used == "instruct":
            return {name: render_query(text, "") for name, text in instructions.items() if name not in RESERVED}
        return {}


def notes_of(model: Model, prompt: str) -> list[str]:
    """Return lines about what a user may not expect of a model."""
    notes = [model.choose(prompt).note]
    if model.appends_eos:
        notes.append(
            f"the end token {model.tokenizer.eos_token} is appended to every text, because the model has no modules.json "
            "and its tokenizer appends no end token"
        )
    if model.similarity == "dot":
        notes.append(
            "the model compares by dot product (similarity_fn_name), as do training and evaluation; mining does by cosine"
        )
    elif model.similarity != "cosine":
        notes.append(f"the model compares by {model.similarity} (similarity_fn_name); mining and training compare by cosine")
    if model.padded:
        share = "texts of equal length share a forward" if model.equal else "at most one token in eight is padding"
        notes.append(f"attention: padded, because {model.padded}; batches are cut by length, and {share}")
    if model.files.own_code():
        notes.append("the model's own code (auto_map in its config.json) is never run; the code of transformers is used")
    return [note for note in notes if note]


def token_ids(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    """Return the tokens of each text as the tokenizer gives them."""
    with quiet():
        batch = tokenizer(texts, padding=False, return_attention_mask=False, return_token_type_ids=False, **options)
    return batch["input_ids"]  # type: ignore[no-any-return]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log lines and progress bars; what matters is raised."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
