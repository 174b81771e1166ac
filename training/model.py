"""A text-embedding model: a transformer without a head, its tokenizer, and how token states become one unit vector."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from curation.errors import ModelError, first_line, listed
from curation.schema import render_query
from training.attention import NAME, attends_causally, check_packing, packed_inputs
from training.device import device_of
from training.model_files import ModelFiles, find_model

POOLINGS = ("mean", "cls", "last")
PROMPTS = ("auto", "instruct", "none")
NO_LIMIT = 1_000_000  # a tokenizer that knows no limit says 1e30
QUERY_PROMPTS = ("query", "queries")
PASSAGE_PROMPTS = ("document", "passage", "corpus")
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


class Tokens(NamedTuple):
    """Many texts as one row: `ids` (T,) int32; `starts` (n + 1,) int64, so text i is ids[starts[i]:starts[i + 1]]."""

    ids: np.ndarray
    starts: np.ndarray


@dataclass
class Model:
    """What `load_model` gives. `prompts` are the model's own; `first_position` is where its positions count from."""

    name: str
    files: ModelFiles
    backbone: Any  # a headless transformers.PreTrainedModel
    tokenizer: Any
    pooling: str
    prompts: dict[str, str]
    max_tokens: int
    dim: int
    is_decoder: bool
    first_position: int
    appends_eos: bool  # whether we append the end token, because the tokenizer does not

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return the ids of the texts, cut to `max_tokens` with their special tokens kept; no text has zero tokens."""
        if not texts:
            return Tokens(np.zeros(0, np.int32), np.zeros(1, np.int64))
        room = self.max_tokens - self.appends_eos
        lists = _ids(self.tokenizer, list(texts), truncation=True, max_length=room)
        if self.appends_eos:
            lists = [[*ids, self.tokenizer.eos_token_id] for ids in lists]
        elif not all(lists):
            lists = [ids or [_any_special(self.name, self.tokenizer)] for ids in lists]
        starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(lists), np.int32, count=int(starts[-1]))
        if flat.max() >= (rows := self.backbone.get_input_embeddings().num_embeddings):
            what = f"its tokenizer gives token {flat.max()}, but the model knows {rows} tokens only"
            raise ModelError(self.name, what, "are tokenizer and weights of the same model?")
        return Tokens(flat, starts)

    def embed(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """Return unit vectors (n, dim) float32 of ids (T,) int64 cut at starts (n + 1), in one packed forward.

        Differentiable. Under `autocast` the transformer runs in bfloat16, pooling and normalising in float32 always.
        """
        arguments = packed_inputs(ids.to(self.backbone.device), starts, self.first_position)
        states = self.backbone(**arguments).last_hidden_state[0]  # (T, dim)
        with torch.autocast(states.device.type, enabled=False):
            return functional.normalize(pooled(states.float(), starts, self.pooling), dim=-1)

    def prompt_used(self, prompt: str) -> str:
        """Return what `prompt` (auto, instruct, none) means for this model: own, instruct or none."""
        if prompt not in PROMPTS:
            raise ModelError(self.name, f"unknown prompt '{prompt}'", f"use one of {listed(PROMPTS)}")
        if prompt != "auto":
            return prompt
        if self._own(QUERY_PROMPTS) or self._own(PASSAGE_PROMPTS):
            return "own"
        return "instruct" if self.is_decoder else "none"

    def render_query(self, instruction: str, text: str, prompt: str) -> str:
        """Return a query as the model is to read it."""
        used = self.prompt_used(prompt)
        if used == "instruct":
            return render_query(instruction, text)
        return (self._own(QUERY_PROMPTS) if used == "own" else "") + text

    def render_passage(self, text: str, prompt: str) -> str:
        """Return a passage as the model is to read it."""
        return (self._own(PASSAGE_PROMPTS) if self.prompt_used(prompt) == "own" else "") + text

    def prompts_for(self, prompt: str, instructions: Mapping[str, str]) -> dict[str, str]:
        """Return what a user puts before a query of each kind, by its name, if queries are rendered by `prompt`."""
        used, reserved = self.prompt_used(prompt), (*QUERY_PROMPTS, *PASSAGE_PROMPTS)  # which would make it the model's own
        told = {name: render_query(text, "") for name, text in instructions.items() if name not in reserved}
        return {"own": self.prompts, "instruct": told, "none": {}}[used]

    def _own(self, names: Sequence[str]) -> str:
        return next((self.prompts[name] for name in names if name in self.prompts), "")


def pooled(states: Tensor, starts: Sequence[int], pooling: str) -> Tensor:
    """Return one row per segment (n, dim) of the token states (T, dim): their mean, the first or the last."""
    bounds = torch.tensor(starts, dtype=torch.int64, device=states.device)
    if pooling == "cls":
        return states[bounds[:-1]]
    if pooling == "last":
        return states[bounds[1:] - 1]
    return torch.segment_reduce(states, "mean", lengths=bounds.diff(), axis=0)


def load_model(
    name: str, *, pooling: str = "auto", max_tokens: int | None = None, device: str = "auto", weights: bool = True
) -> Model:
    """Load a model in float32 from a folder, a Hub id or `package:NAME`, and check that it can be packed.

    Args:
        name: a folder (transformers or sentence-transformers), a Hub id, or `package:NAME`.
        pooling: mean, cls or last; auto = the model's own, else last for decoders and mean for encoders.
        max_tokens: longer texts are cut to this, special tokens included; None = the model's own limit.
        device: cpu, cuda, cuda:1, ...; auto = cuda where there is one.
        weights: no = an outline of it, which tokenises and tells sizes but cannot embed.

    Raises:
        ModelError: there is no such model, a part of it is missing, or it cannot do what is asked.
    """
    files, place = find_model(name, weights), device_of(device)
    if not torch.cuda.is_available():  # transformers loads DeepSpeed where it is installed, which else warns of the lack
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with quiet():
        backbone, tokenizer = _read(name, files) if weights else _outline(name, files)
    if getattr(backbone.config, "is_encoder_decoder", False):
        raise ModelError(name, "is an encoder-decoder model", "only encoders and decoders are supported")
    if files.lower_case and _ids(tokenizer, ["A"]) != _ids(tokenizer, ["a"]):
        raise ModelError(name, "asks for lower-cased text, which its tokenizer does not make", "set do_lower_case to false")
    is_decoder = any(attends_causally(module) for module in backbone.modules())
    chosen = pooling if pooling != "auto" else files.pooling or ("last" if is_decoder else "mean")
    if chosen not in POOLINGS:
        raise ModelError(name, f"unknown pooling '{chosen}'", f"use one of {listed(('auto', *POOLINGS))}")
    first, room = positions_of(backbone)
    model = Model(
        name=name,
        files=files,
        backbone=backbone.to(place).eval() if weights else backbone,
        tokenizer=tokenizer,
        pooling=chosen,
        prompts=files.prompts,
        max_tokens=limit_of(name, files, tokenizer, room, max_tokens),
        dim=int(backbone.config.hidden_size),
        is_decoder=is_decoder,
        first_position=first,
        appends_eos=is_decoder and _lacks_end(name, tokenizer),
    )
    if weights:
        check_packing(model)
    return model


def _outline(name: str, files: ModelFiles) -> tuple[Any, Any]:
    """Return a backbone without numbers in its weights, and the tokenizer."""
    folder = str(files.transformer)
    try:
        with torch.device("meta"):
            backbone = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))
        return backbone, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise _unloadable(name, error) from error


def _unloadable(name: str, error: BaseException) -> ModelError:
    return ModelError(name, f"cannot be loaded ({first_line(error)})")


def read(name: str, files: ModelFiles, kind: Any, **options: Any) -> tuple[Any, Any, list[str]]:
    """Read a model (float32) by one of transformers' Auto classes, and its tokenizer; return also which weights it lacks."""
    folder = str(files.transformer)
    try:
        model, loading = kind.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise _unloadable(name, error) from error
    return model, tokenizer, sorted(loading["missing_keys"])


def _read(name: str, files: ModelFiles) -> tuple[Any, Any]:
    """Read backbone and tokenizer, and refuse weights that do not fill the architecture."""
    backbone, tokenizer, missing = read(name, files, transformers.AutoModel, attn_implementation=NAME)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler.requires_grad_(False)  # the embedding does not use it; it is kept so that the export is whole
        if any(key.startswith("pooler.") for key in missing):
            backbone.pooler = None
            missing = [key for key in missing if not key.startswith("pooler.")]
    if missing:
        raise ModelError(name, f"its weights lack {listed(missing, 3)}", "is config.json the one of these weights?")
    return backbone, tokenizer


def positions_of(backbone: Any) -> tuple[int, int | None]:
    """Return the first position and how many there are (None = no limit is known).

    RoBERTa and its kin count from padding_idx + 1, which their table of positions tells.
    """
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return first, module.num_embeddings - first
    return 0, getattr(backbone.config, "max_position_embeddings", None)


def limit_of(name: str, files: ModelFiles, tokenizer: Any, room: int | None, wanted: int | None) -> int:
    """Return max_tokens: what is wanted, else the model's own limit."""
    if wanted is not None:
        least = 1 + len(_ids(tokenizer, [""])[0])
        if room is not None and wanted > room:
            raise ModelError(name, f"max_tokens is {wanted}, but the model has {room} positions", f"give {room} or less")
        if wanted < least:
            raise ModelError(name, f"max_tokens is {wanted}, which leaves no room for text", f"give {least} or more")
        return wanted
    known = [limit for limit in (files.max_tokens or tokenizer.model_max_length, room) if limit and limit < NO_LIMIT]
    if not known:
        raise ModelError(name, "does not say how many tokens it can read", "give max_tokens")
    return int(min(known))


def _lacks_end(name: str, tokenizer: Any) -> bool:
    """Tell whether the tokenizer leaves the end of a text unmarked; what it appends itself is kept, whatever it is."""
    with_end, bare = _ids(tokenizer, ["a"])[0], _ids(tokenizer, ["a"], add_special_tokens=False)[0]
    if with_end[-1:] != bare[-1:]:
        return False
    if tokenizer.eos_token_id is None:
        raise ModelError(name, "its tokenizer has no end-of-text token, which a decoder is pooled at", "set eos_token in it")
    return True


def _ids(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    with quiet():
        batch = tokenizer(texts, padding=False, return_attention_mask=False, return_token_type_ids=False, **options)
    return batch["input_ids"]  # type: ignore[no-any-return]


def _any_special(name: str, tokenizer: Any) -> int:
    """Return a token to stand for a text that has none."""
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise ModelError(name, "an empty text has no tokens, and the tokenizer has no special token to stand for it")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' log lines and bars off the screen: what matters of them is raised."""
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
