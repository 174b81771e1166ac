"""Retrieval quality on an evaluation set (see `collection.py`), and how sure it is.

nDCG@10 is trec_eval's `ndcg_cut_10`, as in mteb: gain = the grade itself, discount = log2(rank + 1), the ideal is over all
relevant documents, and among equal scores the document with the larger id comes first. recall@10 and MRR@10 count a document
as relevant if its grade is above 0. All are means over the queries in qrels; a query without a relevant document counts 0.

Intervals are percentile intervals of the bootstrap over queries (Sakai, SIGIR 2006): the queries of each set are drawn with
replacement RESAMPLES times, always the same ones for all models, so that differences are paired by query.

Queries get the same prompts as in training: see `evaluation_prompts`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from curation.core.builds import read_build
from curation.core.errors import SetupError
from curation.core.progress import Progress, silent
from curation.core.record import draws, render_query
from training.collection import Collection, nano_instruction, read_collection
from training.model.encode import Encoder, similarities
from training.model.prompts import Prompts

TOP = 10
QUERIES_PER_BLOCK, PASSAGES_PER_BLOCK = 1024, 8192  # one block of scores is 64 MiB
MEASURES = ("ndcg@10", "recall@10", "mrr@10")
RESAMPLES, SEED, TAIL = 2_000, 0, 2.5  # of the bootstrap; per cent beyond each end of an interval
DRAWS_AT_ONCE = 1 << 21  # queries, 16 MiB


class EvaluationPrompts(NamedTuple):
    """The text before queries and before passages, and where it comes from."""

    query: str
    passage: str
    origin: str

    def summary(self) -> str:
        """Return the prompts in words."""
        before = [json.dumps(text, ensure_ascii=False) if text else "nothing" for text in (self.query, self.passage)]
        return f"queries begin with {before[0]}, passages with {before[1]} ({self.origin})"


def evaluation_prompts(encoder: Encoder, folder: Path, instruction: str = "", name: str = "") -> EvaluationPrompts:
    """Return the prompts for the queries and passages of a folder: those of training, unless an instruction is given.

    A model with prompts of its own for queries or passages gets these. A model that reads instructions gets the instruction
    that was saved with it under the set's name, by default the folder's; else that of the build's source to which the held-out
    queries belong; else that of the set of NanoBEIR with this name.

    Raises:
        SetupError: both an instruction and `prompt: none` are given.
    """
    check_instruction(encoder, instruction)
    model = encoder.model
    if instruction:
        return EvaluationPrompts(render_query(instruction, ""), "", "from --instruction")
    if encoder.prompts.used in ("own", "given"):
        return EvaluationPrompts(encoder.query("", ""), encoder.passage(""), "the model's own prompts")
    if encoder.prompts.used == "none":
        trained = "the model was trained without prompts" if model.trained_prompt == "none" else "the model has no prompts"
        return EvaluationPrompts("", "", "--prompt none" if encoder.prompt == "none" else trained)
    name = name or folder.resolve().name
    if name in model.prompts:
        return EvaluationPrompts(model.prompts[name], "", f"saved with the model for '{name}'")
    of_source = instruction_of(folder)
    if of_source is None and (known := nano_instruction(name)):
        return EvaluationPrompts(render_query(known, ""), "", f"F2LLM's or mteb's instruction for '{name}'")
    if of_source is None:
        return EvaluationPrompts("", "", f"no instruction is known for '{name}'; --instruction gives one")
    return EvaluationPrompts(render_query(of_source, ""), "", f"the instruction of source '{name}'")


def prompts_in_training(prompts: Prompts, instruction: str) -> EvaluationPrompts:
    """Return the prompts that training uses for a source with this instruction."""
    return EvaluationPrompts(prompts.of_query(instruction, ""), prompts.of_passage(""), "as in training")


def check_instruction(encoder: Encoder, instruction: str) -> None:
    """Refuse an instruction if queries are to have no prompt.

    Raises:
        SetupError: both an instruction and `prompt: none` are given.
    """
    if instruction and encoder.prompt == "none":
        raise SetupError("--instruction", "goes before queries, but `--prompt none` forbids that", "give only one of them")


def instruction_of(folder: Path) -> str | None:
    """Return the source's instruction if the folder is BUILD/heldout/SOURCE, else None."""
    whole = folder.resolve()
    build = whole.parent.parent / "build.json"
    if whole.parent.name != "heldout" or not build.is_file():
        return None
    entry = read_build(build.parent)["sources"].get(whole.name)
    return None if entry is None else str(entry.get("instruction", ""))


def evaluate(
    encoder: Encoder, folder: Path, instruction: str = "", progress: Progress = silent, split: str = "test"
) -> dict[str, float | int]:
    """Return {"ndcg@10", "recall@10", "mrr@10", "queries"} of an exact search, with the prompts of `evaluation_prompts`.

    Raises:
        SetupError: the instruction contradicts the prompt.
        SourceError: a file is missing or cannot be read, or no query has a relevant document.
        ModelError: a vector is not finite.
    """
    return measure(encoder, read_collection(folder, split), evaluation_prompts(encoder, folder, instruction), progress)


def measure(
    encoder: Encoder, collection: Collection, prompts: EvaluationPrompts, progress: Progress = silent
) -> dict[str, float | int]:
    """Return the same as `evaluate` for a collection in memory."""
    return means(measure_each(encoder, collection, prompts, progress))


def measure_each(encoder: Encoder, collection: Collection, prompts: EvaluationPrompts, progress: Progress = silent) -> np.ndarray:
    """Return the MEASURES of each query of a collection, (3, n) float64."""
    with progress("encode queries", len(collection.queries), "texts") as advance:
        queries = encode_distinct(encoder, prompts.query, collection.queries, advance)
    with progress("encode passages", len(collection.passages), "texts") as advance:
        passages = encode_distinct(encoder, prompts.passage, collection.passages, advance)
    found = nearest(queries, passages, TOP, encoder.model.backbone.device, encoder.similarity)
    return scores(found, collection.relevant)


def encode_distinct(
    encoder: Encoder, prompt: str, texts: list[str], advance: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Return a vector per text, (n, dim) float32, of unit length if the model compares by cosine.

    Each distinct text is encoded once, so that equal texts have equal vectors, bit by bit, and tie.
    """
    number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode([prompt + text for text in number], advance, encoder.similarity == "cosine")
    return vectors if len(number) == len(texts) else vectors[[number[text] for text in texts]]


def scores(found: np.ndarray, relevant: list[dict[int, float]]) -> np.ndarray:
    """Return the MEASURES of each query, (3, n) float64; `found` (n, at most 10) has the corpus rows of its hits, best first."""
    recall, mrr = np.zeros(len(relevant)), np.zeros(len(relevant))
    for row, (hits, grades) in enumerate(zip(found.tolist(), relevant, strict=True)):
        right = [hit in grades for hit in hits]
        if any(right):
            recall[row], mrr[row] = sum(right) / len(grades), 1 / (1 + right.index(True))
    return np.stack([ndcg_at(found.tolist(), relevant, TOP), recall, mrr])


def ndcg_at(found: Sequence[Sequence[int]], relevant: list[dict[int, float]], top: int) -> np.ndarray:
    """Return the nDCG@top of each query, (n,) float64; `found` has the corpus rows of its hits, best first."""
    discount, each = 1 / np.log2(np.arange(2, top + 2)), np.zeros(len(relevant))
    for row, (hits, grades) in enumerate(zip(found, relevant, strict=True)):
        gains = np.array([grades.get(hit, 0.0) for hit in hits[:top]])
        ideal = np.array(sorted(grades.values(), reverse=True)[:top])
        if best := float(ideal @ discount[: len(ideal)]):
            each[row] = float(gains @ discount[: len(gains)]) / best
    return each


def means(each: np.ndarray) -> dict[str, float | int]:
    """Return {"ndcg@10", "recall@10", "mrr@10", "queries"} of what `scores` returns."""
    return {**{name: float(np.mean(row)) for name, row in zip(MEASURES, each, strict=True)}, "queries": each.shape[1]}


def compared(each: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return for each model and set what `means` returns, and 95 % intervals by measure.

    `each` has what `scores` returns by model and set. With several sets there is a set `mean` too: the mean over the sets.
    Models after the first one have also {"difference": {"ndcg@10": [from the first model, low, high], ...}}.
    """
    sets = list(next(iter(each.values())))
    resampled: dict[str, dict[str, np.ndarray]] = {model: {} for model in each}  # (measures, RESAMPLES)
    found: dict[str, dict[str, dict[str, Any]]] = {
        model: {name: means(rows[name]) for name in sets} for model, rows in each.items()
    }
    for name in sets:
        every = resampled_means(np.concatenate([rows[name] for rows in each.values()]), name)
        for model, part in zip(each, np.split(every, len(each)), strict=True):
            resampled[model][name] = part
    if len(sets) > 1:
        for model, some in found.items():
            resampled[model]["mean"] = np.mean([resampled[model][name] for name in sets], axis=0)
            over = {measure: float(np.mean([some[name][measure] for name in sets])) for measure in MEASURES}
            some["mean"] = {**over, "queries": sum(some[name]["queries"] for name in sets)}
    first = next(iter(found))
    for model, some in found.items():
        for name, one in some.items():
            ends = np.percentile(resampled[model][name], [TAIL, 100 - TAIL], axis=1).T.tolist()
            apart = resampled[model][name] - resampled[first][name]
            ends_apart = np.percentile(apart, [TAIL, 100 - TAIL], axis=1).T.tolist()
            differences = {
                measure: [one[measure] - found[first][name][measure], *pair]
                for measure, pair in zip(MEASURES, ends_apart, strict=True)
            }
            one["intervals"] = dict(zip(MEASURES, ends, strict=True))
            one |= {"difference": differences} if model != first else {}
    return found


def resampled_means(each: np.ndarray, name: str) -> np.ndarray:
    """Return the means (m, RESAMPLES) of m rows of values (m, n) over n queries drawn with replacement.

    The draws depend on SEED, the set's name and n alone. Each row is multiplied by itself, so that the last bits of its means
    do not depend on the others.
    """
    n, found = each.shape[1], []
    step = max(1, DRAWS_AT_ONCE // n)
    for first in range(0, RESAMPLES, step):
        many = min(step, RESAMPLES - first)
        drawn = draws(SEED, f"{name}/bootstrap", np.arange(first * n, (first + many) * n)) % np.uint64(n)
        cells = drawn.astype(np.int64) + np.repeat(np.arange(many) * n, n)
        times = np.bincount(cells, minlength=many * n).reshape(many, n).T.astype(np.float64)
        found.append(np.stack([row @ times for row in each]) / n)
    return np.concatenate(found, axis=1)


def nearest(queries: np.ndarray, passages: np.ndarray, top: int, device: torch.device, similarity: str = "cosine") -> np.ndarray:
    """Return the rows of the `top` nearest passages, best first, (n, min(top, passages)) int64; `similarity` is an encoder's.

    The search is exact, block by block. Among equal scores the smaller row comes first. Products are summed in float64 and
    rounded to float32 once, so that equal vectors have equal scores whatever their place in a block.
    """
    found = np.empty((len(queries), min(top, len(passages))), np.int64)
    for first in range(0, len(queries), QUERIES_PER_BLOCK):
        block = torch.from_numpy(queries[first : first + QUERIES_PER_BLOCK]).to(device, torch.float64)
        best, rows = torch.empty(len(block), 0, device=device), torch.empty(len(block), 0, dtype=torch.int64, device=device)
        for start in range(0, len(passages), PASSAGES_PER_BLOCK):
            part = torch.from_numpy(passages[start : start + PASSAGES_PER_BLOCK]).to(device, torch.float64)
            products = similarities(block, part, similarity).float()
            new_best, new_rows = _top(products, top)
            # Earlier blocks come first, so a stable sort leaves the smaller row in front.
            best, order = torch.cat([best, new_best], 1).sort(dim=1, descending=True, stable=True)
            rows = torch.cat([rows, new_rows + start], 1).gather(1, order)[:, :top]
            best = best[:, :top]
        found[first : first + QUERIES_PER_BLOCK] = rows.cpu().numpy()
    return found


def _top(products: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `top` values of each row and their columns; equal values in order of their columns."""
    top = min(top, products.shape[1])
    best, columns = products.topk(top, dim=1)
    # topk picks any of several equal values. If more values equal the last one, sort the whole row.
    crowded = ((products >= best[:, -1:]).sum(dim=1) > top).nonzero()[:, 0]
    if len(crowded):
        values, places = products[crowded].sort(dim=1, descending=True, stable=True)
        best[crowded], columns[crowded] = values[:, :top], places[:, :top]
    columns, order = columns.sort(dim=1)
    best, again = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, columns.gather(1, again)
