"""Where and how the arithmetic of training runs.

The loop knows five things of a backend, whether it is plain torch or DeepSpeed:

    embed(ids, starts)   the embeddings of some texts, differentiable
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
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.recipe.settings import Train
from training import ranks
from training.model.device import autocast
from training.model.model import Model
from training.weights import OPTIMIZER, WEIGHTS, copied, load_weights, prepared
from training.zero import DeepSpeed


class Torch:
    """Plain torch: float32 weights, matrix products in the recipe's dtype, AdamW. Every process holds all of it.

    Dropout stays off: the model is in evaluation mode. Contrastive fine-tuning at these learning rates does not need it
    (decoders have none to begin with), and without it a step depends on nothing but its number.
    """

    def __init__(self, model: Model, recipe: Train) -> None:
        self.model, self.recipe = model, recipe
        self.rank, self.world, _ = ranks.ranks() if dist.is_initialized() else (0, 1, 0)
        self.device = model.backbone.device
        self.weights, self.optimizer = prepared(model, recipe)

    def embed(self, ids: np.ndarray, starts: np.ndarray) -> Tensor:
        """Return the embeddings of n texts, (n, dim) float32, of unit length; ids (T,) i64, starts (n+1,) i64."""
        with autocast(self.device, self.recipe.dtype):
            return self.model.embed(torch.from_numpy(ids).to(self.device), starts.tolist())

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        """Clip and apply the gradients, unless they are not finite, and forget them; return their norm before clipping."""
        if self.world > 1:
            for weight in self.weights.values():
                if weight.grad is not None:
                    dist.all_reduce(weight.grad)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), self.recipe.clip))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """Write weights and optimizer as safetensors: same state, same bytes, and nothing in them can run."""
        if self.rank:
            return  # the first process has the same
        moments = {
            f"{name}|{key}": copied(value)
            for name, weight in self.weights.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }
        save_file({name: copied(weight) for name, weight in self.weights.items()}, folder / WEIGHTS)
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


Backend = Torch | DeepSpeed


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
