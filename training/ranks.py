"""The processes of one run: who this one is among them, and the few things that they tell each other.

A launcher (torchrun, deepspeed) starts them and sets RANK, WORLD_SIZE and LOCAL_RANK; without one there is a single process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from curation.errors import SetupError

TIMEOUT = timedelta(hours=2)  # the others wait while the first process makes tokens of a large build


class Ranks(NamedTuple):
    """Which process this is (from 0), of how many, and its number on its machine."""

    rank: int
    world: int
    local: int


def ranks() -> Ranks:
    """Return what the launcher says."""
    return Ranks(*(int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))


@contextmanager
def joined(device: torch.device, needed: bool) -> Iterator[None]:
    """Join the other processes, by nccl on GPUs and by gloo on the CPU, and leave them at the end.

    Raises:
        SetupError: they do not find each other.
    """
    if not needed:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        if ranks().world > 1:
            dist.init_process_group(backend, timeout=TIMEOUT)
        else:
            dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    except (RuntimeError, ValueError) as error:  # ValueError: the launcher told too little
        what = f"the {ranks().world} processes do not find each other ({next(iter(str(error).splitlines()), '')})"
        raise SetupError(f"rank {ranks().rank}", what, "start them with torchrun") from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def largest(value: int, device: torch.device) -> int:
    """Return the largest of the processes' values."""
    if not dist.is_initialized():
        return value
    told = torch.tensor([value], device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def gather(own: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return every process's rows, `counts` of them, each (count, dim); those of this process keep their graph.

    Every process then computes the same loss of all rows, so the gradient of its own is whole without a way back.
    """
    rank, room = dist.get_rank(), own.new_zeros(max(counts), own.shape[1])
    room[: len(own)] = own.detach()
    parts = [torch.empty_like(room) for _ in counts]
    dist.all_gather(parts, room)
    return [own if place == rank else part[:count] for place, (part, count) in enumerate(zip(parts, counts, strict=True))]
