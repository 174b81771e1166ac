"""Where a model computes, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from curation.core.errors import SetupError


def device_of(device: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:1` names.

    Raises:
        SetupError: it is not there.
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
