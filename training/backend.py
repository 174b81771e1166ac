"""Where and how the arithmetic of training runs.

The loop knows five things of a backend, whether it is plain torch or DeepSpeed:

    embed(ids, starts)   the embeddings of some texts, differentiable
    backward(loss)       gradients
    step(lr)             clip, update, forget the gradients; returns the norm they had
    save(folder)         weights and optimizer, so that `load` goes on to the bit
    load(folder)
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from curation.errors import BuildError, ModelError, SetupError
from curation.manifest_models import Train
from training import ranks
from training.model import Model, autocast, dtype_of
from training.step import decayed

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
SHARES = "shares"  # the folder of what DeepSpeed's processes hold


def backend_of(model: Model, recipe: Train) -> Backend:
    """Return what the recipe trains with.

    Raises:
        ModelError: the model's layers cannot be computed twice.
        SetupError: DeepSpeed is not installed.
    """
    return DeepSpeed(model, recipe) if recipe.deepspeed else Torch(model, recipe)


def prepared(model: Model, recipe: Train) -> tuple[dict[str, Tensor], torch.optim.AdamW]:
    """Make a model ready to train: float32, without dropout; return the trained weights by name, and their optimizer."""
    model.backbone.float().eval()
    if recipe.checkpointing:
        checkpoint_activations(model)
    weights = trained(model)
    matrices, others = decayed(model.backbone)
    groups = [
        {"params": [weights[name] for name in matrices], "weight_decay": recipe.weight_decay},
        {"params": [weights[name] for name in others], "weight_decay": 0.0},
    ]
    return weights, torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


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
            ranks.add_up([weight.grad for weight in self.weights.values() if weight.grad is not None])
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


class DeepSpeed:
    """DeepSpeed's ZeRO over any number of processes, which hold the optimizer, gradients or weights in shares.

    The same arithmetic as `Torch`: float32 weights, matrix products in the recipe's dtype, torch's AdamW.
    """

    def __init__(self, model: Model, recipe: Train) -> None:
        self.device = model.backbone.device
        deepspeed = _deepspeed(self.device)
        self.stage = recipe.deepspeed.zero if recipe.deepspeed else 0
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.weights, optimizer = prepared(model, recipe)
        self.engine, *_ = deepspeed.initialize(
            model=model.backbone, optimizer=optimizer, config=zero_config(self.stage, recipe, self.device, self.world)
        )
        self.model = replace(model, backbone=self.engine)
        self._gathered = deepspeed.zero.GatheredParameters
        self._norm = 0.0
        self.engine.clip_fp32_gradients = self._clip  # stage 0 clips by it, and tells nobody the norm

    def _clip(self) -> None:
        self._norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), self.engine.gradient_clipping()))

    def embed(self, ids: np.ndarray, starts: np.ndarray) -> Tensor:
        """Return the embeddings of n texts, as `Torch.embed` does; every process must call it as often."""
        return self.model.embed(torch.from_numpy(ids).to(self.device), starts.tolist())

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that every process has whole; DeepSpeed takes the mean over the processes."""
        self.engine.backward(loss * self.world)

    def step(self, lr: float) -> float:
        """Clip and apply the gradients and forget them; return their norm before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.stage else self._norm

    def save(self, folder: Path) -> None:
        """Write the weights, whole, as `Torch.save` does, and each process's share of the state."""
        ranks.wait()  # for the first process, which makes the folder
        whole = {}
        for name, weight in self.weights.items():
            with self._gathered([weight], enabled=self.stage == 3):
                if not self.rank:
                    whole[name] = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
        if not self.rank:
            save_file(whole, folder / WEIGHTS)
        self.engine.save_checkpoint(str(folder), tag=SHARES, save_latest=False)
        if not self.rank:
            for script in folder.glob("zero_to_*.py"):  # the weights stand beside it whole
                script.unlink()
        ranks.wait()  # before the first process calls it whole

    def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote with as many processes."""
        self.engine.load_checkpoint(str(folder), tag=SHARES)


def _deepspeed(device: torch.device) -> Any:
    """Return DeepSpeed, told not to look for another accelerator and not to chat."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        import deepspeed
    except ImportError as error:
        raise SetupError("deepspeed", f"cannot be used ({error})", "pip install 'tuplesmith[deepspeed]'") from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":  # it would compile a faster sum over processes of one machine, for minutes and with g++
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def zero_config(stage: int, recipe: Train, device: torch.device, world: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; the batch and its parts are ours, so its own counts are 1."""
    offload = recipe.deepspeed is not None and recipe.deepspeed.offload
    offloaded = {"offload_optimizer": {"device": "cpu"}} if offload and stage else {}
    offloaded |= {"offload_param": {"device": "cpu"}} if offload and stage == 3 else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step may have any number of backwards
        "gradient_clipping": recipe.clip,
        "zero_optimization": {"stage": stage, "overlap_comm": False} | offloaded,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, so that it is the same arithmetic everywhere
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": dtype_of(recipe.dtype, device) == torch.bfloat16, "dtype": "bfloat16"},
    }


Backend = Torch | DeepSpeed


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
