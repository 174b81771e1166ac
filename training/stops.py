"""What ends a run before its last step: a signal, a loss that is no number, a memory that is too small."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from curation.core.errors import BuildError, SetupError, listed
from curation.recipe.settings import Train
from training import checkpoint
from training.data import Batch, Plan


class Stopped(Exception):
    """A signal ended the run between two steps, and its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step
        super().__init__(f"stopped after step {step} and saved; the same command goes on from there")


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them; a second one acts as ever."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])  # type: ignore[index]

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finite(value: float, what: str, step: int, batch: Batch, plan: Plan, out: Path) -> float:
    """Return the value.

    Raises:
        BuildError: it is infinite or no number; the step's tuples are named.
    """
    if math.isfinite(value):
        return value
    ids = plan.rows(step)[0].row_ids(batch.rows)
    last = checkpoint.whole(out / "checkpoints")
    raise BuildError(
        f"{out}, step {step}",
        f"the {what} is {value} on {batch.source}, tuples {listed(ids, 8)}",
        f"try a lower `lr` or `dtype: float32`; the last good checkpoint is {last[0].name if last else 'none yet'}",
    )


@contextmanager
def memory_for(step: int, batch: Batch, recipe: Train, world: int, out: Path) -> Iterator[None]:
    """Tell what to set where the memory does not hold a step.

    Raises:
        SetupError: it does not.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        longest, own = int(np.diff(batch.starts).max()), len(batch.ids) // world
        held = max(min(own, recipe.token_budget or own), longest)  # tokens of the largest forward
        smaller = f"`token_budget: {held // 2}`" if held > longest else f"`max_tokens: {longest // 2}`"
        levers = [smaller, *([] if recipe.checkpointing else ["`checkpointing: yes`"])]
        what = f"the memory does not hold a forward of {held:,} tokens and its gradients"
        raise SetupError(f"{out}, step {step}", what, f"set {' or '.join(levers)}, and run it again") from None
