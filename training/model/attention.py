"""Attention over many texts in one row of tokens, without padding and without a mask.

The texts of a batch are concatenated into one row of T tokens. `Segments` says where each text begins. It passes through
the model as a keyword argument, so that gradient checkpointing passes it again, and arrives at `packed_attention`, which is
registered with transformers as `packed`. The packing of transformers itself gives wrong results in silence with its default
`use_cache=True`, with a mask of ones, or with boundaries that only flash attention reads. That is why `check_packing`
compares every loaded model with its own eager attention, one text at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import AttentionInterface

from curation.core.errors import first_line
from training.model.device import capability_of, on_device

PACKED = "packed"  # the name in transformers
BY_TEXT, EFFICIENT, VARLEN, FLASH = "sdpa by text", "torch efficient varlen", "torch varlen", "flash-attn"
GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters  # since torch 2.12
MOST_HEAD_SIZE = 256  # of the flash kernels, which also need a multiple of 8
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # terms that some models add to the scores


class CannotPack(Exception):
    """An attention module cannot be packed; `check_packing` adds the model's name."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Where each of n texts begins in a row of T tokens: `starts` has n + 1 entries from 0 to T, strictly increasing."""

    starts: tuple[int, ...]
    bounds: Tensor | None = None  # `starts` as int32 on the model's device
    longest: int = field(init=False)  # tokens of the longest text

    def __post_init__(self) -> None:
        # Not a cached_property: torch.compile does not look into those.
        object.__setattr__(self, "longest", int(self.lengths.max(initial=0)))

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

    def positions(self, first: int, device: torch.device) -> Tensor:
        """Return the positions (1, T) int64, counted from `first` in each text."""
        starts = np.asarray(self.starts, dtype=np.int64)
        return on_device(np.arange(starts[-1]) - np.repeat(starts[:-1], self.lengths) + first, device)[None]

    def cumulative(self, device: torch.device) -> Tensor:
        """Return `starts` as (n + 1,) int32 on a device."""
        return self.bounds if self.bounds is not None else on_device(np.asarray(self.starts, dtype=np.int32), device)


def packed_inputs(ids: Tensor, starts: Sequence[int], first_position: int) -> dict[str, Any]:
    """Return the keyword arguments of one packed forward: ids (T,) int64 on the model's device, starts n + 1 entries.

    No cache, no mask and positions that restart in each text keep the texts apart, together with the segments. On CUDA
    nothing here waits for the GPU.
    """
    bounds = on_device(np.asarray(starts, dtype=np.int32), ids.device)
    segments = Segments(tuple(int(start) for start in starts), bounds)
    positions = segments.positions(first_position, ids.device)
    # On CUDA it costs less to correct the positions than to ask whether they need it.
    if first_position and ((padding := ids == first_position - 1).is_cuda or padding.any()):
        # A text may contain "<pad>". RoBERTa and similar models give that token the padding's position and do not count it.
        before = torch.cat([padding.new_zeros(1, dtype=torch.int64), padding.cumsum(0)])
        first_token = on_device(np.repeat(np.asarray(segments.starts[:-1]), segments.lengths), ids.device)  # of each token's text
        positions = torch.where(padding, first_position - 1, positions - (before[1:] - before[first_token]))
    return {
        "input_ids": ids[None],
        "position_ids": positions,
        "use_cache": False,
        "segments": segments,
    }


def padded_buckets(starts: Sequence[int], equal: bool) -> list[np.ndarray]:
    """Return the numbers of the texts of each padded forward, longest texts first; `starts` has n + 1 entries.

    A text is at least seven eighths as long as the longest of its bucket, so at most one token in eight is padding. With
    `equal` a bucket has texts of one length only, so nothing is padded.
    """
    lengths = np.diff(np.asarray(starts, dtype=np.int64))
    order = np.argsort(-lengths, kind="stable")
    buckets, first = [], 0
    while first < len(order):
        longest = int(lengths[order[first]])
        shortest = longest if equal else longest - longest // 8
        end = int(np.searchsorted(-lengths[order], -shortest, side="right"))
        buckets.append(order[first:end])
        first = end
    return buckets


def padding_of(starts: Sequence[int], equal: bool) -> int:
    """Return how many padding tokens the texts cut at `starts` (n + 1) get."""
    lengths = np.diff(np.asarray(starts, dtype=np.int64))
    return int(sum(len(rows) * lengths[rows[0]] - lengths[rows].sum() for rows in padded_buckets(starts, equal)))


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
    with torch.autocast(query.device.type, enabled=False):  # autocast would cast them to bfloat16 again
        kernel = kernel_of(query.device, query.dtype, query.shape[-1])
        if kernel == BY_TEXT or dropout or (kernel == EFFICIENT and left >= 0 and not causal):
            return by_runs(query, key, value, segments, dropout, scaling, window)[None], None
        return padded_heads(KERNELS[kernel], query, key, value, segments, scaling, window)[None], None


def attends_causally(module: torch.nn.Module) -> bool:
    """Return whether an attention module only looks back; a config may override what a decoder's module says."""
    config = getattr(module, "config", None)
    return getattr(module, "is_causal", False) is True and getattr(config, "is_causal", None) is not False


def by_runs(
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
    if query.is_cuda:  # for grouped heads sdpa has a flash kernel, but none for float32, which would take the slow path
        key, value = (_all_heads(states, query) for states in (key, value))
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


def _all_heads(states: Tensor, query: Tensor) -> Tensor:
    """Return keys or values (T, kv heads, d) once per head of the query, (T, heads, d)."""
    times = query.shape[1] // states.shape[1]
    return states if times == 1 else states.repeat_interleave(times, dim=1)


def padded_heads(
    kernel: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    window: tuple[int, int],
) -> Tensor:
    """Call a kernel that needs a head size of a multiple of 8: zeros at the end of each head change no score and no sum."""
    size = query.shape[-1]
    if size % 8 == 0:
        return kernel(query, key, value, segments, scaling, window)
    scaling = size**-0.5 if scaling is None else scaling
    query, key, value = (functional.pad(states, (0, -size % 8)) for states in (query, key, value))
    return kernel(query, key, value, segments, scaling, window)[..., :size]


def _torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend with torch's variable-length flash kernel; (T, heads, d), bfloat16 or float16, on CUDA."""
    options: dict[str, Any] = {"scale": scaling, "window_size": window}
    if key.shape[1] != query.shape[1]:
        if GROUPED:
            options["enable_gqa"] = True
        else:  # before torch 2.12
            key, value = (_all_heads(states, query) for states in (key, value))
    cumulative, longest = segments.cumulative(query.device), segments.longest
    return varlen_attn(query, key, value, cumulative, cumulative, longest, longest, **options)  # type: ignore[return-value]


def _efficient_varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend with torch's memory-efficient kernel over all texts at once; (T, heads, d) of any float dtype, on CUDA.

    It is the kernel that sdpa takes for float32, called as torch's nested tensors call it. Its products of float32 numbers are
    three TF32 products each, which is as exact as float32. A window is supported for causal attention only.
    """
    key, value = (_all_heads(states, query) for states in (key, value))
    cumulative, longest, (left, right) = segments.cumulative(query.device), segments.longest, window
    attended: Tensor = torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,  # bias
        cumulative,
        cumulative,
        longest,
        longest,
        0.0,  # dropout
        int(right == 0),  # custom_mask_type: 0 = none, 1 = causal
        torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad),
        scale=scaling,
        window_size=None if left < 0 else left + 1,  # counts the token itself
    )[0]
    return attended[0]


def _flash_varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend with flash-attn's variable-length kernel; (T, heads, d), bfloat16 or float16, on CUDA."""
    from flash_attn import flash_attn_varlen_func

    cumulative, longest = segments.cumulative(query.device), segments.longest
    options = {"softmax_scale": scaling, "causal": window[1] == 0, "window_size": window}
    attended: Tensor = flash_attn_varlen_func(query, key, value, cumulative, cumulative, longest, longest, **options)
    return attended


KERNELS: dict[str, Callable[..., Tensor]] = {FLASH: _flash_varlen, VARLEN: _torch_varlen, EFFICIENT: _efficient_varlen}

# Whether each kernel can be used, by (kernel, device, dtype, head size): None, or the reason why not; and what follows from it.
_verdicts: dict[tuple[str, torch.device, torch.dtype, int], str | None] = {}
_chosen: dict[tuple[torch.device, torch.dtype, int], str] = {}


def kernel_of(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """Return the name of the attention kernel for a device, dtype and head size: the first that runs there, tried once."""
    kind = (device, dtype, head_size)
    if kind not in _chosen:  # torch.compile can read a dictionary, but cannot try kernels
        chosen = BY_TEXT
        for kernel in _candidates(*kind):
            if (kernel, *kind) not in _verdicts:
                _verdicts[kernel, *kind] = _failure(kernel, *kind)
            if _verdicts[kernel, *kind] is None:
                chosen = kernel
                break
        _chosen[kind] = chosen
    return _chosen[kind]


def _candidates(device: torch.device, dtype: torch.dtype, head_size: int) -> tuple[str, ...]:
    """Return the kernels that are made for a device, dtype and head size, fastest first."""
    if device.type != "cuda":
        return ()
    if dtype == torch.float32 or head_size > MOST_HEAD_SIZE or capability_of(device) < (8, 0):
        return (EFFICIENT,)
    return FLASH, VARLEN, EFFICIENT


def _failure(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Run a kernel forward and backward over two short texts; return its error in one line, or None."""
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            states = torch.ones(8, 2, head_size, device=device, dtype=dtype, requires_grad=True)
            attended = padded_heads(KERNELS[kernel], states, states, states, Segments((0, 3, 8)), None, (-1, 0))
            torch.autograd.grad(attended.sum(), states)
    except ImportError:
        return "not installed"
    except Exception as error:  # RuntimeError of torch; flash-attn built for another torch or GPU raises others
        return first_line(error)
    return None


def avoid_kernel(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int, reason: str | None) -> None:
    """Never choose a kernel again for a device, dtype and head size in this process; with the reason None, allow it again."""
    _verdicts[kernel, device, dtype, head_size] = reason
    _chosen.clear()


def avoided_kernels(device: torch.device, dtype: torch.dtype, head_size: int) -> list[str]:
    """Return a line per kernel that is made for a device, dtype and head size, and fails there."""
    chosen = kernel_of(device, dtype, head_size)
    reasons = {kernel: _verdicts.get((kernel, device, dtype, head_size)) for kernel in _candidates(device, dtype, head_size)}
    return [
        f"attention: {kernel} fails here for {str(dtype).removeprefix('torch.')} and heads of {head_size} ({reason}); "
        f"{chosen} is used"
        for kernel, reason in reasons.items()
        if reason and reason != "not installed"
    ]


def head_size_of(config: Any) -> int:
    """Return the size of a model's attention heads, by its config."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


AttentionInterface.register(PACKED, packed_attention)
# No function for masks is registered on purpose: transformers then makes no mask (T x T numbers for T tokens would be the
# largest tensor in memory) and does not search the positions for packed texts, which would wait for the GPU.
