"""Where a model runs, in which precision, and how the linear layers of an encoder run fast on a CPU."""

from __future__ import annotations

import logging
import os
import re
import shutil
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curation.core.errors import SetupError, first_line


def device_of(device: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:1` names.

    Raises:
        SetupError: it is unknown or not available.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if has_gpu_driver() and not _are_hidden():
            _warn_once("auto: %s, so the CPU is used; %s", *_why_no_cuda())
        return torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise SetupError(device, "unknown device", "use auto, cpu, cuda or cuda:N")
    if device != "cpu":
        if not torch.cuda.is_available():
            raise SetupError(device, *_why_no_cuda())
        count, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        if number >= count:
            gpus = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
            raise SetupError(device, f"there is no such GPU: torch sees {gpus}", "name one of these, or use --device auto")
    return torch.device(device)


def _why_no_cuda() -> tuple[str, str]:
    """Return why torch sees no GPU, and what to do."""
    if torch.version.cuda is None and torch.version.hip is None:
        if has_gpu_driver():
            what = f"this machine has a GPU, but the installed torch {torch.__version__} is built for CPUs only"
            return what, "install a torch with CUDA (https://pytorch.org/get-started/locally), or use --device cpu"
        return "this machine or this torch has no CUDA", "use --device cpu"
    if _are_hidden():
        what = f"CUDA_VISIBLE_DEVICES is '{os.environ['CUDA_VISIBLE_DEVICES']}', which hides all GPUs"
        return what, "unset it, or name a GPU such as 0"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # raises what `is_available` hides
    except (AssertionError, RuntimeError) as error:
        if "too old" in first_line(error):
            what = f"the NVIDIA driver is too old for torch {torch.__version__} (CUDA {torch.version.cuda})"
            return what, "update the driver, install a torch for an older CUDA, or use --device cpu"
        if has_gpu_driver():
            return f"torch {torch.__version__} cannot use the GPU ({first_line(error)})", "see `nvidia-smi`, or use --device cpu"
    return "this machine has no GPU that torch can see", "use --device cpu"


def _are_hidden() -> bool:
    """Return whether the environment hides all GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")


@cache
def _warn_once(what: str, *values: str) -> None:
    logging.getLogger("tuplesmith").warning(what, *values)


def has_gpu_driver() -> bool:
    """Return whether the machine has the driver of a GPU: NVIDIA's, NVIDIA's through Windows, or AMD's."""
    return any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "dxg", "kfd")) or shutil.which("nvidia-smi") is not None


def free_memory(device: torch.device) -> str:
    """Return how much memory of a GPU is free, for a message."""
    if device.type != "cuda":
        return "of the machine"
    free, total = torch.cuda.mem_get_info(device)
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"


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
