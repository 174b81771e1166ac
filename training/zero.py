"""DeepSpeed's ZeRO behind the interface of `backend.Backend`."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from curation.core.errors import SetupError
from curation.recipe.settings import DeepSpeed as Settings
from curation.recipe.settings import Train
from training import ranks
from training.backend import OPTIMIZER, WEIGHTS, copy_for_file, prepare
from training.model.device import dtype_of
from training.model.model import Model

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names


class DeepSpeed:
    """DeepSpeed's ZeRO: the processes share out optimizer (stage 1), gradients (2) or weights too (3).

    The same arithmetic as `backend.Torch`: float32 weights, matrix products in the recipe's dtype, torch's AdamW.
    """

    def __init__(self, model: Model, recipe: Train) -> None:
        self.device = model.backbone.device
        deepspeed = _import_deepspeed(self.device)
        assert recipe.deepspeed
        self.stage = recipe.deepspeed.zero
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.weights, optimizer = prepare(model, recipe)
        self.engine, *_ = deepspeed.initialize(
            model=model.backbone, optimizer=optimizer, config=zero_config(recipe.deepspeed, recipe, self.device)
        )
        self.model = replace(model, backbone=self.engine)
        self._gathered, self._tensors = deepspeed.zero.GatheredParameters, deepspeed.utils
        self._norm = torch.zeros(())
        self.engine.clip_fp32_gradients = self._clip  # stage 0 clips with this method and does not report the norm

    def _clip(self) -> None:
        self._norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.engine.gradient_clipping())

    def embed(self, ids: np.ndarray | Tensor, starts: np.ndarray) -> Tensor:
        """See `Backend.embed`. Every process must call it equally often."""
        ids = torch.as_tensor(ids).to(self.device, non_blocking=True)
        return self.model.embed(ids, starts.tolist(), self.model.similarity != "dot")

    def backward(self, loss: Tensor) -> None:
        """See `Backend.backward`. Every process has the whole loss, and DeepSpeed averages over processes."""
        self.engine.backward(loss * self.world)

    def step(self, lr: float) -> Tensor:
        """See `Backend.step`."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm() if self.stage else self._norm)

    def save(self, folder: Path) -> None:
        """See `Backend.save`. The files are those of `Torch.save`, so that any number of processes can continue.

        The first process needs 12 bytes per weight of its machine's memory for that.
        """
        ranks.wait_for_all()  # until the first process has created the folder
        self._link()
        whole: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            state = self._moments(weight)  # a collective call: all processes take part
            with self._gathered([weight], enabled=self.stage == 3):
                if not self.rank:
                    whole[name] = copy_for_file(weight)
                    moments |= {f"{name}|{key}": copy_for_file(value) for key, value in state.items()}
        if not self.rank:
            save_file(whole, folder / WEIGHTS)
            save_file(moments, folder / OPTIMIZER)
        ranks.wait_for_all()  # before the first process writes the receipt

    def _moments(self, weight: Tensor) -> dict[str, Tensor]:
        """Return AdamW's complete state of a weight."""
        if not self.stage:
            return dict(self.engine.optimizer.state[weight])
        steps = next(iter(self.engine.optimizer.optimizer.state.values()))["step"]
        return {"step": steps, **{key: self._tensors.safe_get_full_optimizer_state(weight, key) for key in MOMENTS}}

    def load(self, folder: Path) -> None:
        """See `Backend.load`. The number of processes may differ from that of the run that saved the state."""
        with safe_open(folder / WEIGHTS, "pt") as weights, safe_open(folder / OPTIMIZER, "pt") as moments:
            trained = {label.rpartition("|")[0] for label in moments.keys()}  # noqa: SIM118
            if self.stage:
                self._allocate(moments.get_tensor(f"{min(trained)}|step"))
            for name, weight in self.weights.items():
                value = weights.get_tensor(name)
                kept = ("step", *MOMENTS) if name in trained else ()
                state = {key: moments.get_tensor(f"{name}|{key}").to(self.device) for key in kept}
                with torch.no_grad(), self._gathered([weight], modifier_rank=0, enabled=self.stage == 3):
                    weight.copy_(value)
                if not self.stage:
                    self.engine.optimizer.state[weight] = state
                    continue
                self._set(weight, None, value)
                for key in kept[1:]:
                    self._set(weight, key, state[key])

    def _allocate(self, steps: Tensor) -> None:
        """Give the optimizer, which has done no step yet, the state that its first step would make."""
        zero = self.engine.optimizer
        for flat in zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups:
            zero.optimizer.state[flat] = {
                "step": steps.to(flat.device, copy=True),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        self._link()

    def _link(self) -> None:
        """Make DeepSpeed look up the moments again: by itself it does so only once, after the first step of the first group."""
        if self.stage in (1, 2):
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, weight: Tensor, key: str | None, value: Tensor) -> None:
        """Set this process's share of a moment (`key`), or of the weight itself (None), from the complete value."""
        if self.stage == 3:  # equal shares, the last one padded; DeepSpeed's own function does not pad
            size = weight.ds_tensor.numel()  # type: ignore[attr-defined]
            value = F.pad(value.flatten(), (0, size * self.world - value.numel()))[size * self.rank : size * (self.rank + 1)]
            put = (self._tensors.safe_set_local_optimizer_state, self._tensors.safe_set_local_fp32_param)
        else:
            put = (self._tensors.safe_set_full_optimizer_state, self._tensors.safe_set_full_fp32_param)
        put[0](weight, value, key) if key else put[1](weight, value)


def _import_deepspeed(device: torch.device) -> Any:
    """Return the module, set up to use this device and to log errors only."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # the GPU that DeepSpeed takes
    try:
        import deepspeed
    except ImportError as error:
        raise SetupError("deepspeed", f"cannot be used ({error})", "pip install 'tuplesmith[deepspeed]'") from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # raised by DeepSpeed's calls
    if device.type == "cpu":  # DeepSpeed would compile a faster sum over local processes, which takes minutes and needs g++
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def zero_config(settings: Settings, recipe: Train, device: torch.device) -> dict[str, Any]:
    """Return DeepSpeed's configuration. We split batches ourselves, so DeepSpeed's own counts are 1."""
    offloaded = {"offload_optimizer": {"device": "cpu"}} if settings.offload and settings.zero else {}
    offloaded |= {"offload_param": {"device": "cpu"}} if settings.offload and settings.zero == 3 else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step may have any number of backwards
        "gradient_clipping": recipe.clip,
        "zero_optimization": {"stage": settings.zero, "overlap_comm": False} | offloaded,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, so that the arithmetic is the same everywhere
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": dtype_of(recipe.dtype, device) == torch.bfloat16, "dtype": "bfloat16"},
    }
