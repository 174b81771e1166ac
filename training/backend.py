"""Where and how the arithmetic of training runs.

The loop knows five things of a backend, and this is the seam at which another one (DeepSpeed) stands beside it:

    embed(ids, starts)   the embeddings of a batch's texts, differentiable
    backward(loss)       gradients
    step(lr)             clip, update, forget the gradients; returns the norm they had
    save(folder)         weights and optimizer, so that `load` goes on to the bit
    load(folder)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from curation.errors import BuildError, ModelError
from curation.manifest_models import Train
from training.model import Model, autocast
from training.step import decayed

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


class Torch:
    """Plain torch on the CPU or one GPU: float32 weights, matrix products in the recipe's dtype, AdamW.

    Dropout stays off: the model is in evaluation mode. Contrastive fine-tuning at these learning rates does not need it
    (decoders have none to begin with), and without it a step depends on nothing but its number.
    """

    def __init__(self, model: Model, recipe: Train) -> None:
        self.model, self.recipe = model, recipe
        self.backbone = model.backbone.float().eval()
        if recipe.checkpointing:
            checkpoint_activations(model)
        self.weights = trained(model)
        self.device = next(iter(self.weights.values())).device
        matrices, others = decayed(self.backbone)
        groups = [
            {"params": [self.weights[name] for name in matrices], "weight_decay": recipe.weight_decay},
            {"params": [self.weights[name] for name in others], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)

    def embed(self, ids: np.ndarray, starts: np.ndarray) -> Tensor:
        """Return the embeddings of n texts, (n, dim) float32, of unit length; ids (T,) i64, starts (n+1,) i64."""
        with autocast(self.device, self.recipe.dtype):
            return self.model.embed(torch.from_numpy(ids).to(self.device), starts.tolist())

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        """Clip and apply the gradients, unless they are not finite, and forget them; return their norm before clipping."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), self.recipe.clip))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """Write weights and optimizer as safetensors: same state, same bytes, and nothing in them can run."""
        moments = {
            f"{name}|{key}": value.detach().cpu().contiguous()
            for name, weight in self.weights.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }
        save_file({name: weight.detach().cpu().contiguous() for name, weight in self.weights.items()}, folder / WEIGHTS)
        save_file(moments, folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote.

        Raises:
            BuildError: it is the state of another model.
        """
        load_weights(self.model, folder)
        state: dict[str, dict[str, Tensor]] = {}
        for label, value in load_file(folder / OPTIMIZER).items():
            name, key = label.rsplit("|", 1)
            state.setdefault(name, {})[key] = value.to(self.device)
        self.optimizer.state.clear()
        self.optimizer.state.update({self.weights[name]: moments for name, moments in state.items()})


def trained(model: Model) -> dict[str, Tensor]:
    """Return the weights that are trained, by name; an unused pooler is not."""
    return {name: weight for name, weight in model.backbone.named_parameters() if weight.requires_grad}


def checkpoint_activations(model: Model) -> None:
    """Let the layers keep only their inputs for the backward, which computes them a second time.

    Raises:
        ModelError: the architecture's layers cannot.
    """
    layers = [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            model.name, "its layers cannot be computed again", "set `checkpointing: no`, and perhaps a `token_budget`"
        )
    model.backbone.activation_checkpointing_enable()
    for layer in layers:
        layer.training = True  # which they ask for; what is in them, dropout too, stays in evaluation mode


def load_weights(model: Model, folder: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        BuildError: they are the weights of another model.
    """
    found = load_file(folder / WEIGHTS)
    weights = trained(model)
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in weights.items()}:
        raise BuildError(folder, f"holds the weights of another model than {model.name}", "start anew with `--restart`")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name])


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Let the CPU add gradients up in one order only, so that a run can be repeated to the bit."""
    filling: Any = torch.utils.deterministic  # it also fills new memory: a guard against bugs that costs a few per cent
    before = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before[0] or device.type == "cpu")
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]
