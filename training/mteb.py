"""Evaluate on MTEB: the tasks, scores and result files are mteb's own, the vectors come from our encoder.

A name may be that of a task or a benchmark of mteb. A folder in BEIR's layout is a retrieval task of its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from curation.core import store
from curation.core.builds import check_beside
from curation.core.errors import SetupError, SourceError, first_line, listed
from curation.core.record import render_query
from curation.recipe.mteb_boards import zero_shot
from curation.recipe.mteb_tasks import named_tasks
from training.collection import Collection, EvaluationSet, evaluation_sets
from training.evaluate import check_instruction, encode_distinct, evaluation_prompts, instruction_of, ndcg_at
from training.model.encode import Encoder, similarities
from training.model.prompts import INSTRUCTED
from training.publish import public_name, run_of

try:
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
    from mteb.models.model_implementations.codefuse_models import prompts_dict
    from mteb.types import PromptType
except ImportError as error:
    raise SetupError("mteb", f"cannot be used ({error})", "pip install 'tuplesmith[mteb]'") from None


PROTOCOL = 2  # version of the prompts and comparisons; an increase makes earlier results be computed again


@dataclass(frozen=True)
class LocalCollection(Collection):
    """The collection of a folder, with its place."""

    place: EvaluationSet


class MtebEncoder(AbsEncoder):  # type: ignore[misc]
    """Our encoder with the interface that mteb needs; `prompt` decides what goes before a text.

    The texts of a local folder are encoded all at once, as `train evaluate --data` does, and similarities are rounded once, so
    that both give the same scores, ties included.
    """

    prompts_dict = prompts_dict

    def __init__(self, name: str, encoder: Encoder, instruction: str) -> None:
        self.model, self.instruction = encoder, instruction
        self.local: LocalCollection | None = None
        self._vectors: dict[tuple[str, PromptType], dict[str, np.ndarray]] = {}
        depends_on = [PROTOCOL, encoder.fingerprint, encoder.described, encoder.model.prompts, instruction]
        about = {"name": name, "revision": store.digest_of(depends_on)[:16]}
        meta = mteb.models.ModelMeta.create_empty(about | {"embed_dim": encoder.dim, "max_tokens": encoder.model.max_tokens})
        similarity = mteb.models.model_meta.ScoringFunction(encoder.similarity)
        self.mteb_model_meta = meta.model_copy(update={"similarity_fn_name": similarity})

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Return vectors (n, dim) float32 of the texts of a DataLoader, in their order, with the length the model gives them."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self.prompt(task_metadata, prompt_type)
        if self.local is None:
            return self.model.encode([prompt + text for text in texts], unit=False)
        if (task_metadata.name, prompt_type) not in self._vectors:
            whole = self.local.passages if prompt_type == PromptType.document else self.local.queries
            vectors = encode_distinct(self.model, prompt, whole)
            self._vectors = {(task_metadata.name, prompt_type): dict(zip(whole, vectors, strict=True))}
        known = self._vectors[task_metadata.name, prompt_type]
        return np.stack([known[text] for text in texts])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return the similarity of each of (n, dim) vectors to each of (m, dim), (n, m) float32, by the model's own measure."""
        first, second = self._comparable(embeddings1), self._comparable(embeddings2)
        return similarities(first, second, self.model.similarity).float()

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return the similarity of each of (n, dim) vectors to its counterpart, (n,) float32."""
        first, second = self._comparable(embeddings1), self._comparable(embeddings2)
        each = [similarities(one[None], other[None], self.model.similarity) for one, other in zip(first, second, strict=True)]
        return torch.cat(each).flatten().float()

    def _comparable(self, embeddings: Any) -> torch.Tensor:
        """Return vectors in float64, normalised if they are compared by cosine; those of a local folder are already."""
        exact = torch.as_tensor(embeddings).double().reshape(-1, self.model.dim)
        return torch.nn.functional.normalize(exact) if self.model.similarity == "cosine" and self.local is None else exact

    def prompt(self, task: Any, prompt_type: Any) -> str:
        """Return the text that goes before a text of a task, given the task's metadata."""
        document = prompt_type == PromptType.document

        # A local folder gets the same prompts as `train evaluate --data`.
        if self.local is not None:
            chosen = evaluation_prompts(self.model, self.local.place.folder, self.instruction, self.local.place.name)
            return chosen.passage if document else chosen.query
        if self.instruction:
            return "" if document else render_query(self.instruction, "")

        # A model that reads instructions: the one saved with it under the task's name, else F2LLM's own for the task, which mteb
        # has, else the task's. Documents get none.
        prompts = self.model.model.prompts
        if self.model.prompts.used == "instruct":
            saved = prompts.get(task.name, "")
            if document:
                return ""
            return saved if INSTRUCTED.fullmatch(saved) else render_query(self.get_instruction(task, prompt_type), "")
        if self.model.prompt == "none":
            return ""

        # A model with prompts of its own: as mteb's wrapper of sentence-transformers, by task, by kind of task, by kind of text.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that do not belong to a task
            known = self.validate_task_to_prompt_name(prompts, raise_for_invalid_keys=False)[0] or {}
        if (name := get_prompt_name(known, task, prompt_type)) is not None:
            return str(known[name])
        if prompt_type is None:  # sentence-transformers uses the default prompt
            sentence = self.model.model.files.sentence
            return str(prompts.get(sentence.default_prompt or "", "")) if sentence else ""
        return self.model.passage("") if document else self.model.query("", "")


def evaluate_tasks(name: str, encoder: Encoder, tasks: Sequence[Any], out: Path, instruction: str = "") -> dict[str, Any]:
    """Return {"tasks": {name: main score}, "means": {type: mean}, "mean": ..., "prompts": {name: {kind of text: prompt}}}.

    mteb writes its result files to `out`; results that are there already are not computed again. The mean is over the tasks, as
    "Mean (Task)" on the leaderboard.

    Raises:
        SetupError: the instruction contradicts the prompt.
        SourceError: the data of a task cannot be loaded.
    """
    logging.getLogger("mteb").setLevel(logging.ERROR)
    check_instruction(encoder, instruction)
    wrapped, cache = MtebEncoder(name, encoder, instruction), mteb.ResultCache(out)
    scores, types, prompts = {}, {}, {}
    for task in tasks:
        wrapped.local = task.local if isinstance(task, _LocalTask) else None
        try:
            (result,) = mteb.evaluate(wrapped, task, cache=cache, show_progress_bar=False, co2_tracker=False).task_results
        except (OSError, ValueError) as error:  # raised by the Hub and by datasets
            what = f"its data cannot be loaded ({first_line(error)})"
            hint = "is the network available, and HF_HUB_OFFLINE unset?"
            raise SourceError(f"mteb task {task.metadata.name}", what, hint) from error
        scores[task.metadata.name], types[task.metadata.name] = float(result.get_score()), task.metadata.type
        retrieves = task.metadata.simplified_task_type == "retrieval"
        texts = {"query": PromptType.query, "passage": PromptType.document} if retrieves else {"text": None}
        prompts[task.metadata.name] = {name: wrapped.prompt(task.metadata, kind) for name, kind in texts.items()}
    kinds = dict.fromkeys(types.values())
    means = {kind: fmean(score for task, score in scores.items() if types[task] == kind) for kind in kinds}
    return {"tasks": scores, "means": means, "mean": fmean(scores.values()), "prompts": prompts}


def tasks_of(names: Sequence[str], split: str = "test") -> list[Any]:
    """Return the tasks that names of tasks, benchmarks and folders mean, each once; folders use qrels/SPLIT.tsv.

    Raises:
        SourceError: there is no such task, or a folder cannot be read.
    """

    found: dict[str, Any] = {}
    for name in names:
        try:
            tasks = [_local_task(one) for one in evaluation_sets([name], split)] if Path(name).is_dir() else named_tasks(name)
        except LookupError as unknown:
            raise SourceError("--mteb", f"'{name}' is not a task, a benchmark or a folder{unknown}") from None
        for task in tasks:
            found.setdefault(task.metadata.name, task)
    return list(found.values())


class _LocalTask(AbsTaskRetrieval):  # type: ignore[misc]
    """A retrieval task whose data is in memory from the start."""

    local: LocalCollection

    def load_data(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def task_specific_scores(self, scores: Any, qrels: Any, results: Any, **_: Any) -> dict[str, float]:
        """Return nDCG unrounded and with fractional grades; mteb's own is rounded to five digits and needs whole grades."""
        rows = {name: row for row, name in enumerate(self.local.passage_ids)}
        found = [
            [row for _, row in sorted((-score, rows[name]) for name, score in results[query].items())]
            for query in self.local.query_ids
        ]
        return {f"ndcg_at_{top}": float(ndcg_at(found, self.local.relevant, top).mean()) for top in self.k_values}


def _local_task(place: EvaluationSet) -> Any:
    """Return an evaluation set as a task; its name has a digest of the content, so that results are never mixed up."""
    read = place.read()
    digest = store.digest_of([*place.digests(), instruction_of(place.folder)])
    about = mteb.TaskMetadata(
        name=f"{Path(place.name).name}-{digest[:8]}",
        description="A local folder in BEIR's layout.",
        dataset={"path": str(place.folder), "revision": digest},
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    task = type("Local", (_LocalTask,), {"metadata": about})()
    task.local = LocalCollection(**vars(read), place=place)
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


def zero_shot_line(model: Path, tasks: list[str]) -> str:
    """Return which tasks are zero-shot for a run's model, by the sources of its build; empty if nothing is known."""
    run, build = run_of(model), model.parent.parent
    known = zero_shot(build, run["trained_on"], {"tasks": tasks}) if run and (build / store.BUILD).is_file() else []
    if not known:
        return ""
    _, share, compared, reasons, _, unknown = known[0].line()
    parts = [f"{share} tasks are zero-shot for its sources", f"{compared} were compared"]
    parts += [f"not zero-shot: {reasons}"] if reasons else []
    return "; ".join(parts + ([f"unknown: {listed(known[0].unknown, 8)}"] if unknown else []))


# A draft of the metadata that mteb needs to list a model, as a Python module like those in its own model_implementations.

PLAIN_LOADER = "from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper as Loader\n", "{{}}"
INSTRUCT_LOADER = (  # queries begin with the task's instruction, as for F2LLM's models
    "from mteb.models.instruct_wrapper import InstructSentenceTransformerModel as Loader\n"
    "from mteb.models.model_implementations.codefuse_models import prompts_dict\n",
    "dict(instruction_template={!r}, apply_instruction_to_passages=False, prompts_dict=prompts_dict)",
)
MODEL_META = '''"""Draft of a model's metadata for mteb's models/model_implementations: replace the values that are None."""

{imports}from mteb.models.model_meta import ModelMeta

model = ModelMeta(
    loader=Loader,
    loader_kwargs={arguments},
    name="ORG/NAME",  # on the Hub
    revision=None,  # its commit
    release_date=None,  # such as "2026-11-22"
    languages=None,  # such as ["eng-Latn"]
    n_parameters={weights},
    n_embedding_parameters={embedding},
    memory_usage_mb={megabytes},
    max_tokens={tokens},
    embed_dim={dims},
    license=None,  # such as "apache-2.0"
    open_weights=True,
    public_training_code=None,  # a link
    public_training_data=None,  # a link
    framework=["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
    similarity_fn_name="cosine",
    use_instructions={instructions},
    adapted_from={base!r},
    training_datasets={tasks},{unknown}
)
'''


def write_model_meta(path: Path, folder: Path, encoder: Encoder) -> Path | None:
    """Write a module that creates the `ModelMeta` of a run's model; return its path, or None if no run made the folder."""
    folder = folder.resolve()
    run: Mapping[str, Any] | None = run_of(folder)
    if run is None:
        return None

    # mteb's tasks whose data the sources belong to, as the build records them, and the sources that name none.
    listing = folder.parent.parent / "mteb_training_datasets.json"
    if (listing.parent / store.BUILD).is_file():
        check_beside(listing.parent, listing.name)
    of_source: dict[str, list[str]] = store.read_json(listing)["sources"] if listing.is_file() else {}
    tasks = sorted({task for source in run["trained_on"] for task in of_source.get(source, [])})
    unknown = [source for source in run["trained_on"] if source not in of_source]

    used, backbone = encoder.prompts.used, encoder.model.backbone
    imports, arguments = INSTRUCT_LOADER if used == "instruct" else PLAIN_LOADER
    weights = list(backbone.parameters())
    text = MODEL_META.format(
        imports=imports,
        arguments=arguments.format(render_query("{instruction}", "")),
        weights=sum(weight.numel() for weight in weights),
        embedding=backbone.get_input_embeddings().weight.numel(),
        megabytes=round(sum(weight.numel() * weight.element_size() for weight in weights) / 2**20),
        tokens=encoder.model.max_tokens,
        dims=[*run["recipe"]["matryoshka"], encoder.dim] if run["recipe"]["matryoshka"] else encoder.dim,
        instructions=used != "none",
        base=public_name(run["recipe"]["model"]),
        tasks=f"{{{', '.join(map(repr, tasks))}}}" if tasks else "set()",
        unknown=f"  # perhaps also tasks of {', '.join(unknown)}: the manifest has no `mteb:` for them" if unknown else "",
    )
    with store.atomic(path) as file:
        file.write(text.encode())
    return path
