"""Attention over many texts in one row of tokens, without padding and without a mask.

The texts of a batch are concatenated into one row of T tokens. `Segments` says where each text begins. It passes through
the model as a keyword argument, so that gradient checkpointing passes it again, and arrives at `packed_attention`, which is
registered with transformers as `packed`. The packing of transformers itself gives wrong results in silence with its default
`use_cache=True`, with a mask of ones, or with boundaries that only flash attention reads. That is why `check_packing`
compares every loaded model with its own eager attention, one text at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

PACKED = "packed"  # the name in transformers
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # terms that some models add to the scores


class CannotPack(Exception):
    """An attention module cannot be packed; `check_packing` adds the model's name."""


@dataclass(frozen=True)
class Segments:
    """Where each of n texts begins in a row of T tokens: `starts` has n + 1 entries from 0 to T, strictly increasing."""

    starts: tuple[int, ...]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (n,) int64."""
        return np.diff(np.asarray(self.starts, dtype=np.int64))

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Consecutive texts of equal length as (number of texts, tokens of each). Texts sorted by length make few runs."""
        breaks = np.flatnonzero(np.diff(self.lengths)) + 1
        ends = np.append(breaks, len(self.lengths))
        return tuple((int(end - begin), int(self.lengths[begin])) for begin, end in zip(np.append(0, breaks), ends, strict=True))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max())

    def positions(self, first: int, device: torch.device) -> Tensor:
        """Return the positions (1, T) int64, counted from `first` in each text."""
        starts = np.asarray(self.starts, dtype=np.int64)
        return torch.from_numpy(np.arange(starts[-1]) - np.repeat(starts[:-1], self.lengths) + first)[None].to(device)

    def cumulative(self, device: torch.device) -> Tensor:
        """Return `starts` as (n + 1,) int32 on the device; cached, because every layer asks for it."""
        if "_cumulative" not in self.__dict__:
            self.__dict__["_cumulative"] = torch.tensor(self.starts, dtype=torch.int32, device=device)
        return self.__dict__["_cumulative"]  # type: ignore[no-any-return]


def packed_inputs(ids: Tensor, starts: Sequence[int], first_position: int) -> dict[str, Any]:
    """Return the keyword arguments of one packed forward: ids (T,) int64 on the model's device, starts n + 1 entries.

    No cache, no mask and positions that restart in each text keep the texts apart, together with the segments.
    """
    segments = Segments(tuple(int(start) for start in starts))
    positions = segments.positions(first_position, ids.device)
    if first_position and (padding := ids == first_position - 1).any():
        # A text may contain "<pad>". RoBERTa and similar models give that token the padding's position and do not count it.
        before = torch.cat([padding.new_zeros(1, dtype=torch.int64), padding.cumsum(0)])
        begin = before[torch.tensor(segments.starts[:-1], device=ids.device)]
        skipped = before[1:] - begin.repeat_interleave(torch.from_numpy(segments.lengths).to(ids.device))
        positions = torch.where(padding, first_position - 1, positions - skipped)
    return {
        "input_ids": ids[None],
        "position_ids": positions,
        "use_cache": False,
        "segments": segments,
    }


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each segment only: query (1, heads, T, d), key and value (1, kv heads, T, d) -> (1, T, heads, d)."""
    if segments is None:
        raise CannotPack(f"its {type(module).__name__} does not receive where each text begins")
    for name in UNSUPPORTED:
        if others.get(name) is not None:
            raise CannotPack(f"its {type(module).__name__} adds '{name}' to its scores")
    causal = attends_causally(module) if is_causal is None else is_causal
    left = -1 if sliding_window is None or sliding_window >= segments.longest else sliding_window - 1
    window = (left, 0 if causal else left)  # tokens seen before and after each token; -1 = all
    # Autocast leaves what a norm or a rotation produced in float32, and the kernels need one dtype.
    # On the CPU the backward of bfloat16 attention takes four times as long as the backward of float32 attention.
    # `trained` holds in passes without gradients too: both passes of GradCache must give the same numbers.
    trained = next(module.parameters()).requires_grad
    dtype = torch.float32 if trained and not value.is_cuda else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    query, key, value = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))  # (T, heads, d)
    if query.is_cuda and query.dtype != torch.float32 and not dropout:
        return _cuda_kernel()(query, key, value, segments, scaling, window)[None], None
    with torch.autocast(query.device.type, enabled=False):  # autocast would cast them to bfloat16 again
        return _by_runs(query, key, value, segments, dropout, scaling, window)[None], None


def attends_causally(module: torch.nn.Module) -> bool:
    """Return whether an attention module only looks back; a config may override what a decoder's module says."""
    config = getattr(module, "config", None)
    return getattr(module, "is_causal", False) is True and getattr(config, "is_causal", None) is not False


def _by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
    window: tuple[int, int],
) -> Tensor:
    """Call sdpa once per run of equally long segments, (T, heads, d) -> (T, heads, d).

    `torch.split` instead of slices: its backward is one concatenation, the backward of a slice fills a whole row with zeros.
    """
    sizes = [count * length for count, length in segments.runs]
    grouped = key.shape[1] != query.shape[1]
    attended = []
    pieces = zip(*(torch.split(states, sizes) for states in (query, key, value)), segments.runs, strict=True)
    for *piece, (count, length) in pieces:
        q, k, v = (states.unflatten(0, (count, length)).transpose(1, 2) for states in piece)  # (count, heads, length, d)
        mask = _window_mask(length, window, query.device)
        causal = mask is None and window[1] == 0 and length > 1
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=causal, enable_gqa=grouped
        )
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)


def _window_mask(length: int, window: tuple[int, int], device: torch.device) -> Tensor | None:
    """Return which token sees which, (length, length) bool, or None if the window covers the whole text."""
    left, right = window
    if left < 0 or length <= left + 1:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]  # how far back the other token is
    return (distance <= left) & (distance >= -right)


def _torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend with torch's variable-length kernel; (T, heads, d), bfloat16 or float16, on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scaling, "window_size": window}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # before torch 2.12
            key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    cumulative, longest = segments.cumulative(query.device), segments.longest
    return varlen_attn(query, key, value, cumulative, cumulative, longest, longest, **options)  # type: ignore[return-value]


def _flash_varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend with flash-attn's variable-length kernel; (T, heads, d), bfloat16 or float16, on CUDA."""
    from flash_attn import flash_attn_varlen_func

    cumulative, longest = segments.cumulative(query.device), segments.longest
    options = {"softmax_scale": scaling, "causal": window[1] == 0, "window_size": window}
    attended: Tensor = flash_attn_varlen_func(query, key, value, cumulative, cumulative, longest, longest, **options)
    return attended


@cache
def _cuda_kernel() -> Any:
    try:  # other versions have the same name but not this function
        from flash_attn import flash_attn_varlen_func  # noqa: F401
    except ImportError:
        return _torch_varlen
    return _flash_varlen


def kernel_of(device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the attention kernel that is used for a device and dtype, for the log."""
    if device.type != "cuda" or dtype == torch.float32:
        return "sdpa by text"
    return "flash-attn" if _cuda_kernel() is _flash_varlen else "torch varlen"


def _no_mask(*arguments: Any, **named: Any) -> None:
    """Create no mask: T x T numbers for T tokens would be the largest tensor in memory."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
