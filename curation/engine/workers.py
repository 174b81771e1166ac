"""The one place that decides where the work of a command is done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from curation.engine import local
from curation.engine.pool import Workers
from curation.engine.ray import Actors, cluster


@contextmanager
def workers(
    folder: Path | None,
    processes: int | None = 1,
    ray: str | None = None,
    device: str | None = None,
    reads: Sequence[Path] = (),
    memory: int | None = None,
) -> Iterator[Workers]:
    """Yield this process, processes of this machine, or the workers of a Ray cluster.

    Temporary files that lost workers left below `folder` are removed at the end.

    Args:
        folder: the folder that the workers write to; the nodes of a cluster must see it. None: they write nothing.
        processes: how many; None: one per GPU, without GPUs this process.
        ray: address of a cluster, instead of processes: `local`, `auto` or HOST:PORT.
        device: for functions that hold a model: auto, cpu, cuda or cuda:N. Each worker gets a GPU of its own, or its share of
            the processors. None: the functions hold nothing.
        reads: folders that the workers only read, in which nothing is written or removed; the nodes must see them too.
        memory: bytes that a task takes on a node of a cluster, which has room for as many; None: they are not counted.

    Raises:
        SetupError: from `ray.cluster` and `ray.Actors`.
    """
    if ray is not None:
        with cluster(ray, folder, reads, memory) as nodes:
            yield nodes if device is None else Actors(nodes.ray, device)
        return
    gpus = [] if device is None else local.visible_gpus(device)
    count = processes or max(1, len(gpus))
    if count == 1:
        yield local.Here(device or "auto")
        return
    share = str(max(1, local.processors() // count))
    limits = {} if device is None else {name: share for name in local.LIMITS if name not in os.environ}
    environments = [{**limits, "CUDA_VISIBLE_DEVICES": name} for name in gpus] or [limits]
    with local.processes(count, folder, "cuda" if gpus else device or "auto", environments) as pool:
        yield pool
