"""MTEB through mteb itself: its tasks, its scores and its files of results; the vectors are our encoder's.

A task is a name of mteb's, a benchmark is all of its tasks, and a folder in BEIR's layout is a retrieval task of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from curation.errors import SetupError, SourceError, did_you_mean, first_line
from curation.store import digest_of
from training.encode import Encoder
from training.evaluate import file_digests, read_collection

try:
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.get_tasks import _TASKS_REGISTRY
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_implementations.codefuse_models import prompts_dict
    from mteb.types import PromptType
except ImportError as error:
    raise SetupError("mteb", f"cannot be used ({error})", "pip install 'tuplesmith[mteb]'") from None


class Wrapped(AbsEncoder):  # type: ignore[misc]
    """An encoder as mteb wants it.

    The instruction is the one that is given, else F2LLM's own for the task, which mteb has, else the task's. Documents get
    none; both texts of a pair, and what is classified or clustered, are read as queries, as mteb reads them for F2LLM.
    """

    prompts_dict = prompts_dict

    def __init__(self, name: str, encoder: Encoder, instruction: str) -> None:
        self.model, self.instruction = encoder, instruction
        about = {"name": name, "revision": digest_of([encoder.fingerprint, encoder.described, instruction])[:16]}
        meta = mteb.models.ModelMeta.create_empty(about | {"embed_dim": encoder.dim, "max_tokens": encoder.model.max_tokens})
        self.mteb_model_meta = meta.model_copy(update={"similarity_fn_name": mteb.models.model_meta.ScoringFunction.COSINE})

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Return unit vectors (n, dim) float32 of the texts of a DataLoader, in their order."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == PromptType.document:
            return self.model.encode([self.model.passage(text) for text in texts])
        instruction = self.instruction or self.get_instruction(task_metadata, prompt_type)
        return self.model.encode([self.model.query(instruction, text) for text in texts])


def evaluate(name: str, encoder: Encoder, tasks: Sequence[Any], out: Path, instruction: str = "") -> dict[str, Any]:
    """Return {"tasks": {name: main score}, "means": {type: mean}, "mean": ...}; what `out` has already is not computed again.

    The mean is over the tasks, as a leaderboard's "Mean (Task)". Results stand under `out` as mteb writes them.

    Raises:
        SourceError: the data of a task cannot be had.
    """
    logging.getLogger("mteb").setLevel(logging.ERROR)
    wrapped, cache = Wrapped(name, encoder, instruction), mteb.ResultCache(out)
    scores, types = {}, {}
    for task in tasks:
        try:
            (result,) = mteb.evaluate(wrapped, task, cache=cache, show_progress_bar=False, co2_tracker=False).task_results
        except (OSError, ValueError) as error:  # of the Hub and of datasets
            what = f"its data cannot be had ({first_line(error)})"
            raise SourceError(f"mteb task {task.metadata.name}", what, "is the network there, and HF_HUB_OFFLINE off?") from error
        scores[task.metadata.name], types[task.metadata.name] = float(result.get_score()), task.metadata.type
    kinds = dict.fromkeys(types.values())
    means = {kind: fmean(score for task, score in scores.items() if types[task] == kind) for kind in kinds}
    return {"tasks": scores, "means": means, "mean": fmean(scores.values())}


def tasks_of(names: Sequence[str], split: str = "test") -> list[Any]:
    """Return the tasks that names, benchmarks and folders mean, each once; of a folder, the judgements in qrels/SPLIT.tsv.

    Raises:
        SourceError: there is no such task, or a folder cannot be read.
    """
    found: dict[str, Any] = {}
    for name in names:
        for task in _tasks(name, split):
            found.setdefault(task.metadata.name, task)
    return list(found.values())


def _tasks(name: str, split: str) -> Iterator[Any]:
    if Path(name).is_dir():
        yield _local(Path(name), split)
    elif name in _TASKS_REGISTRY:
        yield mteb.get_task(name)
    else:
        benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
        if name not in benchmarks:
            near = did_you_mean(name, [*_TASKS_REGISTRY, *benchmarks])
            raise SourceError("--mteb", f"'{name}' is no task, no benchmark and no folder" + near)
        yield from benchmarks[name].tasks


class _Local(AbsTaskRetrieval):  # type: ignore[misc]
    """A retrieval task whose data is there from the start."""

    def load_data(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


def _local(folder: Path, split: str) -> Any:
    """Return a folder in BEIR's layout as a task; its name tells its content too, so that results are never another's."""
    collection = read_collection(folder, split)
    digest = digest_of(file_digests(folder, split))
    about = mteb.TaskMetadata(
        name=f"{folder.resolve().name}-{digest[:8]}",
        description="A local folder in BEIR's layout.",
        dataset={"path": str(folder), "revision": digest},
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    task = type("Local", (_Local,), {"metadata": about})()
    corpus = [{"id": str(row), "title": "", "text": text} for row, text in enumerate(collection.passages)]
    queries = [{"id": str(row), "text": text} for row, text in enumerate(collection.queries)]
    relevant = {
        str(row): {str(passage): int(grade) for passage, grade in grades.items()}
        for row, grades in enumerate(collection.relevant)
    }
    whole = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
    task.dataset = {"default": {"test": {**whole, "relevant_docs": relevant, "top_ranked": None}}}
    task.data_loaded = True
    return task
