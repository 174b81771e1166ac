"""The processes of one run: this process's rank, and the few things that the processes exchange.

A launcher (torchrun, deepspeed) starts them and sets RANK, WORLD_SIZE and LOCAL_RANK. Without a launcher there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from curation.core.errors import SetupError, first_line

MEET = timedelta(minutes=10)  # a process that is later than this counts as dead
WAIT = timedelta(hours=12)  # for the first process, which tokenises a large build
HOSTS: list[dist.ProcessGroup] = []  # the group by which the hosts exchange numbers, if there is one


class Ranks(NamedTuple):
    """The number of this process (from 0), how many there are, and its number on its machine."""

    rank: int
    world: int
    local: int


def ranks() -> Ranks:
    """Return what the launcher set."""
    return Ranks(*(int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))


def first() -> bool:
    """Return whether this is the process that writes files and prints."""
    return ranks().rank == 0


def check_divides(batch: int) -> None:
    """Check that every process gets an equal part of a batch.

    Raises:
        SetupError: the number of processes does not divide the batch.
    """
    world = ranks().world
    if batch % world:
        what = f"do not divide the batch of {batch} tuples"
        raise SetupError(f"{world} processes", what, f"set `batch` to {-(-batch // world) * world}")


def own(device: torch.device) -> torch.device:
    """Return this process's own GPU by its number, and make it the current one; return another device unchanged."""
    if device.type != "cuda":
        return device
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        # Batches differ in their numbers of tokens. Segments that grow keep the memory from falling into pieces that fit none.
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # read when CUDA starts, which `current_device` does
    if ranks().world > 1:
        device = torch.device("cuda", ranks().local)
    elif device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    return device


@contextmanager
def joined(device: torch.device, alone_too: bool) -> Iterator[None]:
    """Form a process group with the other processes, by nccl on GPUs and by gloo on the CPU; leave it at the end.

    `alone_too`: a single process forms a group too, because DeepSpeed needs one.

    Raises:
        SetupError: the processes do not find each other within ten minutes, or one stops answering for as long.
    """
    if ranks().world == 1 and not alone_too:
        yield
        return
    options: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        options = {"backend": "nccl", "device_id": device}
        # After its time-out NCCL would end the process; like this it reports an error, which is explained below.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    if ranks().world == 1:
        options |= {"store": torch._C._distributed_c10d.HashStore(), "rank": 0, "world_size": 1}
    try:
        dist.init_process_group(**options, timeout=MEET)
        HOSTS.append(dist.new_group(backend="gloo", timeout=MEET))
    except (RuntimeError, ValueError) as error:  # ValueError: the launcher set too few variables
        what = f"the {ranks().world} processes do not find each other ({first_line(error)})"
        raise SetupError(f"rank {ranks().rank}", what, "start all of them with torchrun; is one missing or dead?") from None
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        what = f"another process has ended or does not answer ({first_line(error)})"
        hint = "start all of them again: they continue from the last checkpoint"
        raise SetupError(f"rank {ranks().rank}", what, hint) from None
    finally:
        HOSTS.clear()
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Run a block in the first process, and only then in the others."""
    if not dist.is_initialized():
        yield
        return
    patient = dist.new_group(backend="gloo", timeout=WAIT)
    if not first():
        dist.barrier(patient)
    yield
    if first():
        dist.barrier(patient)


def largest(value: float) -> float:
    """Return the largest of the processes' values, so that all make the same decision.

    The hosts exchange it. No GPU takes part, so none has to finish its work first, and a lost process is noticed at once.
    """
    if not HOSTS:
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(shared, dist.ReduceOp.MAX, group=HOSTS[0])
    return float(shared)


def wait_for_all() -> None:
    """Return when all processes have come here."""
    largest(0)


def gather_rows(own: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return the rows of each process, (counts[rank], dim) each; the rows of this process keep their graph.

    Every process then computes the same loss over all rows, so the gradient of its own rows is complete without another
    exchange.
    """
    rank, room = dist.get_rank(), own.new_zeros(max(counts), own.shape[1])
    room[: len(own)] = own.detach()
    parts = [torch.empty_like(room) for _ in counts]
    dist.all_gather(parts, room)
    return [own if place == rank else part[:count] for place, (part, count) in enumerate(zip(parts, counts, strict=True))]
