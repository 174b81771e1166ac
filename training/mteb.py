"""MTEB through mteb itself: its tasks, its scores and its files of results; the vectors are our encoder's.

A task is a name of mteb's, a benchmark is all of its tasks, and a folder in BEIR's layout is a retrieval task of its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from curation.core.errors import SetupError, SourceError, did_you_mean, first_line
from curation.core.record import render_query
from curation.core.store import digest_of
from training.evaluate import (
    Collection,
    asked_of,
    check_instruction,
    encoded,
    file_digests,
    instruction_of,
    ndcg_at,
    read_collection,
)
from training.model.encode import Encoder, similarities
from training.model.prompts import INSTRUCTED

try:
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.get_tasks import _TASKS_REGISTRY
    from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
    from mteb.models.model_implementations.codefuse_models import prompts_dict
    from mteb.types import PromptType
except ImportError as error:
    raise SetupError("mteb", f"cannot be used ({error})", "pip install 'tuplesmith[mteb]'") from None


PROTOCOL = 2  # of what texts are told and how they are compared; a new one makes earlier results be computed again


@dataclass(frozen=True)
class Local(Collection):
    """The collection of a folder, and where that is."""

    folder: Path


class Wrapped(AbsEncoder):  # type: ignore[misc]
    """An encoder as mteb wants it; see `before` for what texts are told.

    A folder's texts are encoded all at once, as `train evaluate --data` does, and similarities are rounded once: both give the
    same scores, ties included.
    """

    prompts_dict = prompts_dict

    def __init__(self, name: str, encoder: Encoder, instruction: str) -> None:
        self.model, self.instruction = encoder, instruction
        self.local: Local | None = None
        self._vectors: dict[tuple[str, PromptType], dict[str, np.ndarray]] = {}
        said = [PROTOCOL, encoder.fingerprint, encoder.described, encoder.model.prompts, instruction]
        about = {"name": name, "revision": digest_of(said)[:16]}
        meta = mteb.models.ModelMeta.create_empty(about | {"embed_dim": encoder.dim, "max_tokens": encoder.model.max_tokens})
        similarity = mteb.models.model_meta.ScoringFunction(encoder.similarity)
        self.mteb_model_meta = meta.model_copy(update={"similarity_fn_name": similarity})

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Return vectors (n, dim) float32 of the texts of a DataLoader, in their order, as long as the model makes them."""
        texts = [text for batch in inputs for text in batch["text"]]
        before = self.before(task_metadata, prompt_type)
        if self.local is None:
            return self.model.encode([before + text for text in texts], unit=False)
        if (task_metadata.name, prompt_type) not in self._vectors:
            whole = self.local.passages if prompt_type == PromptType.document else self.local.queries
            vectors = encoded(self.model, before, whole)
            self._vectors = {(task_metadata.name, prompt_type): dict(zip(whole, vectors, strict=True))}
        known = self._vectors[task_metadata.name, prompt_type]
        return np.stack([known[text] for text in texts])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return how near each of (n, dim) vectors is to each of (m, dim), (n, m) float32, by the model's own measure."""
        first, second = self._comparable(embeddings1), self._comparable(embeddings2)
        return similarities(first, second, self.model.similarity).float()

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return how near each of (n, dim) vectors is to the one in its place, (n,) float32."""
        first, second = self._comparable(embeddings1), self._comparable(embeddings2)
        each = [similarities(one[None], other[None], self.model.similarity) for one, other in zip(first, second, strict=True)]
        return torch.cat(each).flatten().float()

    def _comparable(self, embeddings: Any) -> torch.Tensor:
        """Return vectors in float64, of unit length where they are compared by cosine and are not yet."""
        exact = torch.as_tensor(embeddings).double().reshape(-1, self.model.dim)
        return torch.nn.functional.normalize(exact) if self.model.similarity == "cosine" and self.local is None else exact

    def before(self, task: Any, prompt_type: Any) -> str:
        """Return what is put before a text of a task (its metadata).

        That is the given instruction, before all but documents; of a folder what `asked_of` says; of a model with prompts of its
        own the one that mteb takes for sentence-transformers; for a model that reads instructions, before all but documents, the
        one saved with it under the task's name, else F2LLM's own for the task, which mteb has, else the task's; else nothing.
        """
        document = prompt_type == PromptType.document
        if self.local is not None:
            asked = asked_of(self.model, self.local.folder, self.instruction)
            return asked.passage if document else asked.query
        if self.instruction:
            return "" if document else render_query(self.instruction, "")
        if self.model.prompts.used != "instruct":
            return "" if self.model.prompt == "none" else self._own(task, prompt_type)
        if document:
            return ""
        saved = self.model.model.prompts.get(task.name, "")
        return saved if INSTRUCTED.fullmatch(saved) else render_query(self.get_instruction(task, prompt_type), "")

    def _own(self, task: Any, prompt_type: Any) -> str:
        """Return the prompt that mteb's wrapper of sentence-transformers uses: by task, by kind of task, by query or document."""
        prompts = self.model.model.prompts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are no task's
            known = self.validate_task_to_prompt_name(prompts, raise_for_invalid_keys=False)[0] or {}
        if (name := get_prompt_name(known, task, prompt_type)) is not None:
            return str(known[name])
        if prompt_type is None:  # of which sentence-transformers takes the default
            said = self.model.model.files.sentence
            return str(prompts.get(said.default_prompt or "", "")) if said else ""
        return self.model.passage("") if prompt_type == PromptType.document else self.model.query("", "")

    def told(self, task: Any) -> dict[str, str]:
        """Return what is put before the texts of a task, by what they are: query and passage, or text where mteb has one kind."""
        if task.metadata.simplified_task_type == "retrieval":
            kinds = {"query": PromptType.query, "passage": PromptType.document}
        else:
            kinds = {"text": None}
        return {name: self.before(task.metadata, kind) for name, kind in kinds.items()}


def evaluate(name: str, encoder: Encoder, tasks: Sequence[Any], out: Path, instruction: str = "") -> dict[str, Any]:
    """Return {"tasks": {name: main score}, "means": {type: mean}, "mean": ..., "prompts": {name: {kind of text: prompt}}}.

    What `out` has already is not computed again. The mean is over the tasks, as a leaderboard's "Mean (Task)". Results stand
    under `out` as mteb writes them.

    Raises:
        SetupError: the instruction contradicts the prompt.
        SourceError: the data of a task cannot be had.
    """
    logging.getLogger("mteb").setLevel(logging.ERROR)
    check_instruction(encoder, instruction)
    wrapped, cache = Wrapped(name, encoder, instruction), mteb.ResultCache(out)
    scores, types, prompts = {}, {}, {}
    for task in tasks:
        wrapped.local = task.local if isinstance(task, _Local) else None
        try:
            (result,) = mteb.evaluate(wrapped, task, cache=cache, show_progress_bar=False, co2_tracker=False).task_results
        except (OSError, ValueError) as error:  # of the Hub and of datasets
            what = f"its data cannot be had ({first_line(error)})"
            raise SourceError(f"mteb task {task.metadata.name}", what, "is the network there, and HF_HUB_OFFLINE off?") from error
        scores[task.metadata.name], types[task.metadata.name] = float(result.get_score()), task.metadata.type
        prompts[task.metadata.name] = wrapped.told(task)
    kinds = dict.fromkeys(types.values())
    means = {kind: fmean(score for task, score in scores.items() if types[task] == kind) for kind in kinds}
    return {"tasks": scores, "means": means, "mean": fmean(scores.values()), "prompts": prompts}


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

    local: Local

    def load_data(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def task_specific_scores(self, scores: Any, qrels: Any, results: Any, **_: Any) -> dict[str, float]:
        """Return nDCG as mteb's own, which it rounds to five digits, in full; with grades as written, which it wants whole."""
        rows = {name: row for row, name in enumerate(self.local.passage_ids)}
        found = [
            [row for _, row in sorted((-score, rows[name]) for name, score in results[query].items())]
            for query in self.local.query_ids
        ]
        return {f"ndcg_at_{top}": ndcg_at(found, self.local.relevant, top) for top in self.k_values}


def _local(folder: Path, split: str) -> Any:
    """Return a folder in BEIR's layout as a task; its name tells its content too, so that results are never another's."""
    read = read_collection(folder, split)
    digest = digest_of([*file_digests(folder, split), instruction_of(folder)])
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
    task.local = Local(**vars(read), folder=folder)
    corpus = [{"id": name, "title": "", "text": text} for name, text in zip(read.passage_ids, read.passages, strict=True)]
    queries = [{"id": name, "text": text} for name, text in zip(read.query_ids, read.queries, strict=True)]
    relevant = {
        name: {read.passage_ids[row]: ceil(grade) for row, grade in grades.items()} or {read.passage_ids[0]: 0}
        for name, grades in zip(read.query_ids, read.relevant, strict=True)
    }
    whole = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
    task.dataset = {"default": {"test": {**whole, "relevant_docs": relevant, "top_ranked": None}}}
    task.data_loaded = True
    return task
