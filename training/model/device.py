"""Where a model runs, in which precision, and how the linear layers of an encoder run fast on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

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


def dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 or float32; auto = bfloat16 on CUDA and on CPUs with AMX or avx512_bf16, else float32."""
    if dtype == "auto":
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = device.type == "cuda" or any(getattr(torch.cpu, probe)() for probe in probes)
        return torch.bfloat16 if fast else torch.float32
    if dtype not in ("float32", "bfloat16"):
        raise SetupError(dtype, "unknown dtype", "use auto, float32 or bfloat16")
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


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
