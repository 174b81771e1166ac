"""Fewer and faster kernels for what a transformer computes between its matrix products."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from curation.core.errors import SetupError, first_line
from training.model import attention

WORTH = 5e10  # tokens times layers times hidden size: encoding them takes an H200 about as long as compiling the layers
WAYS = ("none", "torch", "compile", "liger", "bfloat16")
LIGER = ("llama", "mistral", "qwen2", "qwen3")  # architectures whose norm, rotation and SwiGLU are those that liger computes


def fuse(backbone: Any, how: str, backend: str = "inductor") -> None:
    """Change how a loaded model computes, in place; its weights stay its own.

    Args:
        backbone: a transformers model with packed attention.
        how: none; torch = torch's own kernel for norms, without a cast per matrix product; compile = each layer becomes one
            graph of `torch.compile`, with any number of tokens and texts; liger = liger-kernel's norm, rotation and SwiGLU
            (CUDA only); bfloat16 = all weights in bfloat16 and no autocast, for encoding only.
        backend: of torch.compile.

    Raises:
        SetupError: liger-kernel is not installed, or does not know the architecture.
    """
    if how not in WAYS:
        raise ValueError(f"unknown way {how!r}")
    if how == "torch":
        _use_torch_norms(backbone)
    elif how == "compile":
        _compile_layers(backbone, backend)
    elif how == "liger":
        _use_liger(backbone)
    elif how == "bfloat16":
        for weight in backbone.parameters():  # not the buffers: rotary frequencies stay in float32
            weight.data = weight.data.to(torch.bfloat16)
        backbone.forward = partial(_without_autocast, backbone.forward, backbone.device.type)


def tokens_worth_compiling(config: Any) -> int:
    """Return how many tokens a GPU encodes in the time that it takes to compile the layers of a model."""
    return int(WORTH / (config.num_hidden_layers * config.hidden_size))


def _compile_layers(backbone: Any, backend: str) -> None:
    """Compile the layers: one graph per kind of layer, and one more for passes without gradients.

    Where compiling fails, for want of a C compiler for instance, the layers stay as they are, and a warning says so.
    Activation checkpointing stays outside of the compiled part. In newer versions of transformers 5 a layer's `forward` does
    it, in older ones `__call__`.
    """
    # Its loop depends on the lengths of the texts, so compiled layers call it as it is.
    attention.by_runs = torch.compiler.disable(attention.by_runs)  # type: ignore[no-untyped-call]
    for dtype in (torch.float32, torch.bfloat16):  # the choice tries kernels out, which cannot be compiled
        attention.kernel_of(backbone.device, dtype, attention.head_size_of(backbone.config))
    outside = "__call__" in vars(GradientCheckpointingLayer)
    made: dict[type, Callable[..., Any]] = {}
    for layer in backbone.modules():
        if not isinstance(layer, GradientCheckpointingLayer):
            continue
        kind = type(layer)
        if kind not in made:
            made[kind] = _with_fallback(kind.forward if outside else getattr(kind.forward, "__wrapped__", kind.forward), backend)
        inner = MethodType(made[kind], layer)
        layer.forward = inner if outside else partial(_checkpointed, layer, inner)


def _with_fallback(plain: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """Return a layer's `forward` compiled, or as it is if its first call fails."""
    compiled: Callable[..., Any] | None = None
    worked = failed = False

    def forward(*states: Any, **options: Any) -> Any:
        nonlocal compiled, worked, failed
        if failed:
            return plain(*states, **options)
        try:
            compiled = compiled or torch.compile(plain, dynamic=True, backend=backend)
            found = compiled(*states, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if worked:
                raise
            failed = True
            logging.getLogger("tuplesmith").warning(
                "layers are not compiled, so they are slower (torch.compile: %s)", first_line(error)
            )
            return plain(*states, **options)
        worked = True
        return found

    return forward


def _checkpointed(layer: Any, inner: Any, *states: Any, **options: Any) -> Any:
    """Call a layer's compiled part, under activation checkpointing if that is switched on."""
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(inner, **options), *states)
    return inner(*states, **options)


def _use_torch_norms(backbone: Any) -> None:
    """Compute RMS norms, of which transformers makes six kernels each, with the one of torch; Gemma's weight differs."""
    for name, module in backbone.named_modules():
        if type(module).__name__.endswith("RMSNorm") and "Gemma" not in type(module).__name__:
            normed = MethodType(_torch_norm, module)
            module.forward = partial(_cast, normed) if "." in name else normed  # pooling, not a product, follows the last one
        elif type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = partial(_cast, module.forward)


def _torch_norm(module: Any, states: Tensor) -> Tensor:
    eps = getattr(module, "variance_epsilon", None) or module.eps
    with torch.autocast(states.device.type, enabled=False):
        return functional.rms_norm(states, module.weight.shape, module.weight.to(states.dtype), eps)


def _without_autocast(forward: Any, kind: str, *states: Any, **options: Any) -> Any:
    with torch.autocast(kind, enabled=False):
        return forward(*states, **options)


def _use_liger(backbone: Any) -> None:
    """Replace the norms, the SwiGLU and the rotation of a model by liger-kernel's."""
    if backbone.config.model_type not in LIGER:
        raise SetupError("liger-kernel", f"does not know the architecture {backbone.config.model_type}")
    try:
        from liger_kernel.transformers import LigerSwiGLUMLP, liger_rotary_pos_emb
        from liger_kernel.transformers.rms_norm import LigerRMSNorm
    except ImportError as error:
        raise SetupError("liger-kernel", f"cannot be imported ({error})", "pip install liger-kernel") from None

    for name, module in backbone.named_modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.offset, module.casting_mode, module.in_place, module.row_mode = 0.0, "llama", False, None
            normed = MethodType(LigerRMSNorm.forward, module)
            module.forward = partial(_cast, normed) if "." in name else normed
        elif kind.endswith("MLP"):
            module.forward = MethodType(LigerSwiGLUMLP.forward, module)

    # The rotation is a function of the architecture's file, so every model of this architecture gets it.
    file: Any = sys.modules[type(backbone).__module__]
    plain = getattr(file.apply_rotary_pos_emb, "plain", file.apply_rotary_pos_emb)

    def rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        rotate = liger_rotary_pos_emb if query.is_cuda else plain
        found: tuple[Tensor, Tensor] = rotate(query, key, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return found

    rotated.plain = plain  # type: ignore[attr-defined]
    file.apply_rotary_pos_emb = rotated


def _cast(forward: Any, *states: Any, **options: Any) -> Any:
    """Call a module, and cast its result at once to what autocast would cast to in front of each product that follows."""
    found, kind = forward(*states, **options), states[0].device.type
    if not torch.is_autocast_enabled(kind):
        return found
    dtype = torch.get_autocast_dtype(kind)
    return found.to(dtype) if isinstance(found, Tensor) else tuple(one.to(dtype) for one in found)
