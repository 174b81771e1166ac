"""Compile the layers of a model for a GPU: fewer kernels for what a transformer computes between its matrix products."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from curation.core.errors import first_line
from training.model import attention

MOST_GRAPHS = 64  # of one kind of layer: with and without gradients, dtypes, windows, one text or several
WORTH = 5e10  # tokens times layers times hidden size: encoding them takes an H200 about as long as compiling the layers


def tokens_worth_compiling(config: Any) -> int:
    """Return how many tokens a GPU encodes in the time that it takes to compile the layers of a model."""
    return int(WORTH / (config.num_hidden_layers * config.hidden_size))


def compile_layers(backbone: Any, backend: str = "inductor") -> None:
    """Compile the layers of a model with packed attention, in place, for any number of tokens and texts.

    There is one graph per kind of layer, and one more for passes without gradients; the weights stay the model's own. Where
    compiling fails, for want of a C compiler for instance, the layers stay as they are, and a warning says so. Activation
    checkpointing stays outside of the compiled part. In newer versions of transformers 5 a layer's `forward` does it, in
    older ones `__call__`. `backend` is one of torch.compile.
    """
    # Its loop depends on the lengths of the texts, so compiled layers call it as it is.
    if not getattr(attention.by_runs, "_torchdynamo_disable", False):  # as it is after the first call
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
            if dynamo_settings().recompile_limit < MOST_GRAPHS:  # each thread has settings of its own
                dynamo_settings().recompile_limit = MOST_GRAPHS
            compiled = compiled or torch.compile(plain, dynamic=True, backend=backend)
            found = compiled(*states, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if worked and not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise  # an error of the computation, not of compiling a further graph
            failed = True
            logging.getLogger("tuplesmith").warning(
                "layers are not compiled, so they are slower (torch.compile: %s)", first_line(error)
            )
            return plain(*states, **options)
        worked = True
        return found

    return forward


@cache
def dynamo_settings() -> Any:
    """Return the settings of torch.compile; importing them takes a second, and few need them."""
    return importlib.import_module("torch._dynamo.config")


def _checkpointed(layer: Any, inner: Any, *states: Any, **options: Any) -> Any:
    """Call a layer's compiled part, under activation checkpointing if that is switched on."""
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(inner, **options), *states)
    return inner(*states, **options)
