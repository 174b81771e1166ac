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

from curation.core.errors import SetupError, first_line

MEET = timedelta(minutes=10)  # one process more late than this is taken for dead
WAIT = timedelta(hours=12)  # for the first process, which makes the tokens of a large build


class Ranks(NamedTuple):
    """Which process this is (from 0), of how many, and its number on its machine."""

    rank: int
    world: int
    local: int


def ranks() -> Ranks:
    """Return what the launcher says."""
    return Ranks(*(int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))


def first() -> bool:
    """Tell whether this is the process that writes and speaks."""
    return ranks().rank == 0


def check(batch: int) -> None:
    """Refuse a number of processes that cannot have equal parts of a batch.

    Raises:
        SetupError: it does not divide the batch.
    """
    world = ranks().world
    if batch % world:
        what = f"do not divide the batch of {batch} tuples"
        raise SetupError(f"{world} processes", what, f"set `batch` to {-(-batch // world) * world}")


def own(device: torch.device) -> torch.device:
    """Return the GPU of this process where there are several, else the device as it is."""
    if device.type == "cuda" and ranks().world > 1:
        device = torch.device("cuda", ranks().local)
        torch.cuda.set_device(device)
    return device


@contextmanager
def joined(device: torch.device, alone_too: bool) -> Iterator[None]:
    """Join the other processes, by nccl on GPUs and by gloo on the CPU, and leave them at the end.

    `alone_too`: a single process joins itself, as DeepSpeed wants it.

    Raises:
        SetupError: they do not find each other within ten minutes, or one is lost later or late by as much.
    """
    if ranks().world == 1 and not alone_too:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        if ranks().world > 1:
            dist.init_process_group(backend, timeout=MEET)
        else:
            dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    except (RuntimeError, ValueError) as error:  # ValueError: the launcher told too little
        what = f"the {ranks().world} processes do not find each other ({first_line(error)})"
        raise SetupError(f"rank {ranks().rank}", what, "start as many with torchrun; is one missing or dead?") from None
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        what = f"another process is gone or does not answer ({first_line(error)})"
        raise SetupError(f"rank {ranks().rank}", what, "start all of them again: they go on from the last checkpoint") from None
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process do something before the others do the same."""
    if not dist.is_initialized():
        yield
        return
    patient = dist.new_group(backend="gloo", timeout=WAIT)
    if not first():
        dist.barrier(patient)
    yield
    if first():
        dist.barrier(patient)


def largest(value: float, device: torch.device) -> float:
    """Return the largest of the processes' values, so that all decide alike."""
    if not dist.is_initialized():
        return value
    told = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return float(told)


def gather(own: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return every process's rows, `counts` of them, each (count, dim); those of this process keep their graph.

    Every process then computes the same loss of all rows, so the gradient of its own is whole without a way back.
    """
    rank, room = dist.get_rank(), own.new_zeros(max(counts), own.shape[1])
    room[: len(own)] = own.detach()
    parts = [torch.empty_like(room) for _ in counts]
    dist.all_gather(parts, room)
    return [own if place == rank else part[:count] for place, (part, count) in enumerate(zip(parts, counts, strict=True))]
