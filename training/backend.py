"""The arithmetic of training: the interface that plain torch and DeepSpeed (zero.py) share, plain torch, and AdamW's weights.

A checkpoint has two files: WEIGHTS with a tensor per weight, by its name, and OPTIMIZER with AdamW's state, by `NAME|KEY`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from curation.core.errors import BuildError, ModelError
from curation.recipe.settings import Train
from training import ranks
from training.model.device import autocast
from training.model.model import Model

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


class Backend(Protocol):
    """What the training loop needs, whether it runs on plain torch or on DeepSpeed."""

    model: Model
    weights: dict[str, Tensor]  # the trained weights by name
    device: torch.device
    rank: int
    world: int

    def embed(self, ids: np.ndarray | Tensor, starts: np.ndarray) -> Tensor:
        """Return differentiable embeddings (n, dim) float32 of n texts; ids (T,) i64, starts (n+1,) i64.

        They have unit length, unless the model compares by dot product.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of earlier calls."""

    def step(self, lr: float) -> Tensor:
        """Clip and apply the gradients, reset them, and return their norm before clipping, 0-d, on the device."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer, so that a run that loads them continues bit by bit."""

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote."""


class Torch:
    """Plain torch: float32 weights, matrix products in the recipe's dtype, AdamW. Every process has all weights.

    Dropout is off: the model is in evaluation mode. Contrastive fine-tuning at these learning rates does not need it
    (decoders have none to begin with), and without it a step depends on nothing but its number.
    """

    def __init__(self, model: Model, recipe: Train) -> None:
        self.model, self.recipe = model, recipe
        self.rank, self.world, _ = ranks.ranks() if dist.is_initialized() else (0, 1, 0)
        self.device = model.backbone.device
        self.weights, self.optimizer = prepare(model, recipe)

    def embed(self, ids: np.ndarray | Tensor, starts: np.ndarray) -> Tensor:
        """See `Backend.embed`."""
        with autocast(self.device, self.recipe.dtype):
            ids = torch.as_tensor(ids).to(self.device, non_blocking=True)
            return self.model.embed(ids, starts.tolist(), self.model.similarity != "dot")

    def backward(self, loss: Tensor) -> None:
        """See `Backend.backward`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> Tensor:
        """See `Backend.step`. Gradients that are not finite are not applied."""
        if self.world > 1:
            for weight in self.weights.values():
                if weight.grad is not None:
                    dist.all_reduce(weight.grad)
        norm: Tensor = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused AdamW changes nothing where this is 1. It looks on the device, so that the host need not wait for the norm.
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """See `Backend.save`. safetensors: equal state gives equal bytes, and loading runs no code."""
        if self.rank:
            return  # the first process has the same state
        moments = {
            f"{name}|{key}": copy_for_file(value)
            for name, weight in self.weights.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }
        save_file({name: copy_for_file(weight) for name, weight in self.weights.items()}, folder / WEIGHTS)
        save_file(moments, folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """See `Backend.load`.

        Raises:
            BuildError: the state belongs to another model.
        """
        load_weights(self.model, folder)
        state: dict[str, dict[str, Tensor]] = {}
        for label, value in load_file(folder / OPTIMIZER).items():
            name, key = label.rsplit("|", 1)
            state.setdefault(name, {})[key] = value.to(self.device)
        self.optimizer.state.clear()
        self.optimizer.state.update({self.weights[name]: moments for name, moments in state.items()})


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Make the CPU add up gradients in one order only, so that a run can be repeated bit by bit."""
    filling: Any = torch.utils.deterministic  # torch would also fill new memory, a guard against bugs that costs a few per cent
    before = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before[0] or device.type == "cpu")
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]


def prepare(model: Model, recipe: Train) -> tuple[dict[str, Tensor], torch.optim.AdamW]:
    """Prepare a model for training (float32, no dropout); return the trained weights by name, and their optimizer.

    Raises:
        ModelError: the recipe asks for activation checkpointing, and the architecture does not support it.
    """
    model.backbone.float().eval()
    model.head.requires_grad_(True)  # modules of sentence-transformers after the pooling
    if recipe.checkpointing:
        layers = [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            hint = "set `checkpointing: no`, and perhaps a `token_budget`"
            raise ModelError(model.name, "its layers do not support activation checkpointing", hint)
        checkpoint_layers(model.backbone)
        for layer in layers:
            layer.training = True  # required by transformers; the modules inside, dropout too, stay in evaluation mode
    weights = trained_weights(model)
    parts = [[weights[name] for name in names] for names in split_by_decay(model.backbone)]
    for weight in model.head.parameters():
        parts[weight.ndim < 2].append(weight)
    decays = zip(parts, (recipe.weight_decay, 0.0), strict=True)
    groups = [{"params": part, "weight_decay": decay} for part, decay in decays if part]  # LoRA has matrices only
    return weights, torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def checkpoint_layers(backbone: Any) -> None:
    """Make a transformers model compute the states inside each layer again in the backward pass, instead of keeping them."""
    before = "gradient_checkpointing_enable"  # its name in older versions of transformers 5, deprecated since
    (getattr(backbone, "activation_checkpointing_enable", None) or getattr(backbone, before))()


def trained_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights that are trained, by name; an unused pooler is not among them."""
    trained = {name: weight for name, weight in model.backbone.named_parameters() if weight.requires_grad}
    return trained | {f"after_pooling.{name}": weight for name, weight in model.head.named_parameters()}


def split_by_decay(backbone: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the trained weights with weight decay, and of those without.

    Matrices decay. Norms, biases and embeddings do not: a shorter embedding row does not make a simpler model, and rows of
    rare tokens would shrink without ever being trained.
    """
    embeddings = {id(module.weight) for module in backbone.modules() if isinstance(module, nn.Embedding)}
    names: tuple[list[str], list[str]] = ([], [])
    for name, weight in backbone.named_parameters():
        if weight.requires_grad:
            names[weight.ndim < 2 or id(weight) in embeddings].append(name)
    return names


def load_weights(model: Model, folder: Path) -> None:
    """Copy the weights of a checkpoint into a model.

    Raises:
        BuildError: the checkpoint has weights of another model.
    """
    found = load_file(folder / WEIGHTS)
    weights = trained_weights(model)
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in weights.items()}:
        raise BuildError(folder, f"has the weights of another model than {model.name}", "start over with `--restart`")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name])


def copy_for_file(value: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
