"""mteb's tasks by name, for evaluation sets (`decontaminate: mteb:`) and for `train evaluate --mteb`."""

from __future__ import annotations

from typing import Any

from curation.core.errors import did_you_mean

SCORED_ON_TRAIN = "scored-on-train"  # means all tasks of text boards that mteb scores on a train split


def named_tasks(name: str) -> list[Any]:
    """Return the task of this name, or the tasks of the benchmark of this name, or those that mteb scores on a train split.

    Raises:
        ImportError: mteb is not installed.
        LookupError: there is no such name; the message is ` (did you mean 'X'?)` or empty.
    """
    import mteb  # takes half a minute
    from mteb.get_tasks import _TASKS_REGISTRY

    if name in _TASKS_REGISTRY:
        return [mteb.get_task(name)]
    benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
    if name == SCORED_ON_TRAIN:
        texts = [task for one in benchmarks.values() for task in one.tasks if set(task.modalities) == {"text"}]
        found = {task.metadata.name: task for task in texts if any("train" in split for split in task.eval_splits)}
        return [found[task] for task in sorted(found)]
    if name not in benchmarks:
        raise LookupError(did_you_mean(name, [*_TASKS_REGISTRY, *benchmarks, SCORED_ON_TRAIN]))
    return list(benchmarks[name].tasks)
