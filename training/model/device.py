"""Where a model runs, in which precision, and how the linear layers of an encoder run fast on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curation.core.errors import SetupError


def device_of(device: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:1` names.

    Raises:
        SetupError: it is not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not device.startswith("cuda"):
        raise SetupError(device, "unknown device", "use auto, cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise SetupError(device, "this machine or this torch has no CUDA", "use --device cpu")
    return torch.device(device)


def capability_of(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability, such as (9, 0) for an H100; (8, 0) if there is no GPU to ask."""
    try:
        return torch.cuda.get_device_capability(device)
    except (AssertionError, RuntimeError):  # a torch for CPUs, or no driver
        return 8, 0


def dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 or float32; auto = bfloat16 where the GPU (compute capability 8.0), AMX or avx512_bf16 computes it.

    Raises:
        SetupError: the dtype is unknown, or it is bfloat16 and the GPU does not compute it.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise SetupError(dtype, "unknown dtype", "use auto, float32 or bfloat16")
    if device.type == "cuda":
        major, minor = capability_of(device)
        if dtype == "bfloat16" and major < 8:
            what = f"the GPU does not compute bfloat16 (compute capability {major}.{minor}, it needs 8.0)"
            raise SetupError(str(device), what, "use dtype float32 or auto")
        fast = major >= 8
    else:
        fast = any(getattr(torch.cpu, probe)() for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and fast) else torch.float32


def float32_products(device: torch.device) -> str:
    """Return how products of float32 matrices are computed: exact, or the reduced precision that the environment chose."""
    if device.type != "cuda":
        return "exact"
    chosen = torch.backends.cuda.matmul.fp32_precision  # set by torch or by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE
    return "exact" if chosen in ("none", "ieee") else chosen


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device. To CUDA it is copied from pinned memory, and the caller does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Return the context in which float32 weights compute in `dtype` (auto, float32, bfloat16)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype_of(dtype, device) == torch.bfloat16)


class Prepacked(nn.Module):
    """A linear layer without backward whose weight is in oneDNN's layout: (..., in) of any float dtype -> (..., out).

    torch multiplies float32 matrices with MKL, which is slower on processors other than Intel's, and converts bfloat16
    weights to oneDNN's layout at every call. The operators are those that torch.compile substitutes for a linear layer.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        """Convert a layer; `rows` is about how many rows are multiplied at once."""
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.weight, self.bias = nn.Parameter(packed, requires_grad=False), linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Return the product plus the bias, in the weight's dtype."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states.to(self.weight.dtype), self.weight, self.bias, "none", [], "")
        return found


def prepack(model: nn.Module, dtype: torch.dtype, rows: int) -> None:
    """Cast a model's linear layers to float32 or bfloat16 for good; prepack them where the processor and torch support it."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        module.to(dtype)
        on_cpu = module.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if type(module) is nn.Linear and on_cpu and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Prepacked(module, rows))
