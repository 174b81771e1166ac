"""mteb's tasks as evaluation sets, and the names of the tasks whose data a build contains, for mteb's model metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from curation.clean.overlap_texts import Guessed
from curation.core.errors import ManifestError, SetupError
from curation.core.store import write_json
from curation.read.dataset import config_splits
from curation.recipe.evaluation import EvalSet
from curation.recipe.manifest import Manifest
from curation.recipe.mteb_tasks import named_tasks
from curation.recipe.source import Fields

PLACE = "decontaminate: mteb"
BASE_OF_TASKS = "mteb.abstasks.abstask"  # what is defined there reads a dataset as it is
RETRIEVAL = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")  # types of tasks with qrels


def eval_sets(names: Iterable[str], base: Path) -> list[EvalSet]:
    """Return the evaluation sets of tasks, and of the tasks of benchmarks, by name: one set per subset and scored split.

    Tasks in `unreadable` are left out.

    Raises:
        SetupError: mteb is not installed.
        ManifestError: mteb has no such task or benchmark, or a task's texts cannot be found.
        SourceError: the layout of a task's dataset cannot be read.
    """
    tasks = tasks_of(names)
    out, made = unreadable(names, tasks), list[EvalSet]()
    for name, task in tasks.items():
        dataset = task.metadata.dataset
        here = (base / dataset["path"]).is_dir()  # a local task; mteb requires a revision of it too
        at = {"path": dataset["path"], "revision": None if here else dataset["revision"]}
        for subset in [] if name in out else task.hf_subsets:
            if task.metadata.type in RETRIEVAL:
                splits = config_splits(EvalSet(**at, fields=Fields(query="text")), base)
                made += [_retrieval(name, at, subset, split, splits) for split in task.eval_splits]
            else:
                config = None if subset == "default" else subset
                columns = _columns(task)
                made += [EvalSet(**at, name=name, config=config, split=split, fields=columns) for split in task.eval_splits]
    return made


def unreadable(names: Iterable[str], tasks: Mapping[str, Any]) -> list[str]:
    """Return the tasks whose datasets have layouts of their own, so they cannot be compared; those in `names` are not tried."""
    out = []
    for name, task in tasks.items():
        if name not in names and task.metadata.type not in RETRIEVAL:
            try:
                _columns(task)
            except ManifestError:
                out.append(name)
    return out


def tasks_of(names: Iterable[str]) -> dict[str, Any]:
    """Return tasks, and the tasks of benchmarks, by name; raise SetupError and ManifestError as `eval_sets`."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            found |= {task.metadata.name: task for task in named_tasks(name)}
        except ImportError:
            hint = "`pip install 'tuplesmith[mteb]'`, or name the sets in `against`"
            raise SetupError(PLACE, "mteb is not installed", hint) from None
        except LookupError as unknown:
            raise ManifestError(PLACE, f"no task or benchmark '{name}'{unknown}") from None
    return found


def _retrieval(name: str, at: dict[str, str | None], subset: str, split: str, splits: dict[str, list[str]]) -> EvalSet:
    """Find queries, corpus and qrels among a dataset's configs, as mteb's own loader does."""
    prefix = "" if subset == "default" else f"{subset}-"

    def table(*configs: str) -> dict[str, str | None]:
        config = next((one for one in configs if one in splits), None)
        if config is None:
            raise ManifestError(PLACE, f"'{name}' has no config '{configs[0]}'", "name its files in `against`")
        there = splits[config]
        return {**at, "config": config, "split": split if split in there or len(there) != 1 else there[0]}

    return EvalSet(
        **table(f"{prefix}qrels", "default" if not prefix else subset, "qrels"),
        name=name,
        fields=Fields(query_id="query-id", positive_id="corpus-id", score="score"),
        queries=Guessed(**table(f"{prefix}queries", "query")),
        corpus=Guessed(**table(f"{prefix}corpus")),
    )


def _columns(task: Any) -> Fields:
    """Return the text columns that a task's own class names."""
    for names in (("column_names",), ("input1_column_name", "input2_column_name"), ("input_column_name",)):
        if all(hasattr(task, name) for name in names):
            named = [getattr(task, name) for name in names]
            columns = list(named[0]) if isinstance(named[0], tuple | list) else named
            if all(isinstance(column, str) for column in columns) and len(columns) <= 2:
                return Fields(query=columns[0], positive=columns[1] if len(columns) == 2 else None)
    plain = all(getattr(type(task), name).__module__ == BASE_OF_TASKS for name in ("load_data", "dataset_transform"))
    if task.metadata.type == "BitextMining" and plain and not task.parallel_subsets:
        return Fields(query="sentence1", positive="sentence2")
    if hasattr(task, "text_column_name"):  # summarization
        return Fields(query=task.text_column_name, positive=task.human_summaries_column_name)
    raise ManifestError(
        PLACE, f"'{task.metadata.name}' has a type that cannot be read ({task.metadata.type})", "name its files in `against`"
    )


def write_training_datasets(build: Path, manifest: Manifest) -> None:
    """Write mteb_training_datasets.json, for ModelMeta: which tasks each source is the data of, if sources say so by `mteb:`."""
    path = build / "mteb_training_datasets.json"
    of_source = {source.name: sorted(source.mteb) for source in manifest.sources if "mteb" in source.model_fields_set}
    if not of_source:
        path.unlink(missing_ok=True)
        return
    tasks = sorted({name for names in of_source.values() for name in names})
    write_json(path, {"training_datasets": tasks, "sources": of_source})
