"""What a step costs, for the log: tokens, time, memory, and how much of the machine's peak was of use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.recipe.settings import Train
from training.backend import Backend
from training.data import Batch
from training.model.attention import kernel_of
from training.model.device import dtype_of
from training.step import chunks_of

# Operations a second of dense bfloat16 products, as the makers' data sheets have them; the first in CUDA's name counts.
PEAKS = {"A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12}
STATUS = Path("/proc/self/status")


def costs(backend: Backend, batch: Batch, recipe: Train, seconds: float) -> dict[str, Any]:
    """Return what a step of so many seconds cost; memory is the highest so far, of this process and of its GPU.

    `mfu` is the share of the GPUs' peak that 6 operations a weight and token, embeddings apart, come to (arXiv 2204.02311,
    appendix B): None where no peak is known, as on a CPU.
    """
    tokens, on_gpu = len(batch.ids), backend.device.type == "cuda"
    # ZeRO-3 leaves an empty weight here and its size in `ds_numel`.
    weights = sum(getattr(one, "ds_numel", one.numel()) for name, one in backend.weights.items() if "embed" not in name)
    name = torch.cuda.get_device_name(backend.device) if on_gpu else ""
    peak = next((peak for known, peak in PEAKS.items() if known in name), None)
    return {
        "tokens": tokens,
        "pad_share": round(pad_share(batch, recipe.token_budget, backend.world), 4),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds),
        "mfu": None if peak is None else round(6 * weights * tokens / seconds / backend.world / peak, 4),
        "memory_gb": memory_gb(),
        **({"gpu_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if on_gpu else {}),
        "attention": kernel_of(backend.device, dtype_of(recipe.dtype, backend.device)),
    }


def pad_share(batch: Batch, budget: int | None, world: int) -> float:
    """Return the share of the tokens that a step computed for nothing.

    Packed texts have no padding; a process that has a chunk fewer than another goes through the shortest text meanwhile.
    """
    empty = sum(first == end for own in chunks_of(np.diff(batch.starts), budget, world) for first, end in own)
    idle = empty * int(batch.starts[1])
    return idle / (idle + len(batch.ids))


def memory_gb() -> float | None:
    """Return the most memory that this process has had; None where the system is not Linux."""
    if not STATUS.exists():
        return None
    # ru_maxrss would begin with the parent's.
    return round(int(STATUS.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) * 1024 / 1e9, 2)
