"""Estimate a run before it starts: steps, tokens, memory and GPU-hours. Nothing is trained and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch

from curation.core import record, tables
from curation.core.errors import ModelError, first_line
from curation.core.escape import text_table
from curation.recipe.settings import Train
from training.data import batches_per_epoch
from training.lora import lora_targets
from training.memory import kept_bytes, tokens_that_fit
from training.model.device import dtype_of
from training.model.model import Model
from training.start import model_of
from training.step import GPUS, PEAKS, total_steps, warmup_steps
from training.tokens import mined_sources, nothing_to_train_on

GPU = "H100"
SHARE_OF_PEAK = 0.32  # with compiled layers an H200 reached .31 with Qwen3-0.6B's shape, and .38 with checkpointing
USABLE = 0.9  # of a GPU's memory; the rest is for CUDA itself, gradients of activations, the loss, and fragments
SAMPLED_TUPLES = 256  # tuples of a source whose tokens are counted


def estimate(build: Path, recipe: Train, *, only: Sequence[str] = (), gpus: int = 1) -> dict[str, Any]:
    """Return steps, tuples per source, tokens per step (fewer if tuples share texts), memory and GPU-hours.

    Only the model's config and tokenizer are read, not its weights.

    Raises:
        BuildError: no mined negatives, or no tuple.
        ModelError: a model that cannot be trained.
    """
    # Tuples and steps of an epoch: each source fills batches of its own, the last of them in part.
    entries = mined_sources(build, only, recipe.sources)
    positives = {name: tables.read_table(build / "mined" / name, "pairs", ["positives"])["positives"] for name in entries}
    tuples = {name: int(some.list.len().sum()) if recipe.positives == "all" else len(some) for name, some in positives.items()}
    counts = {name: count for name, count in tuples.items() if count}
    batches = {name: -(-count // recipe.batch) for name, count in counts.items()}
    steps_per_epoch = sum(batches.values())
    if not steps_per_epoch:
        raise nothing_to_train_on(build, list(entries))
    steps = total_steps(recipe, steps_per_epoch)

    # Tokens of an epoch: `evenness` and `weight` let a source take more or fewer batches than it fills.
    model = model_of(recipe, weights=False)
    weights = [recipe.of(name).weight for name in counts]
    taken = batches_per_epoch(list(batches.values()), list(counts.values()), recipe.evenness, weights)
    tokens = 0.0
    for name, taken_batches in zip(counts, taken, strict=True):
        per_batch = _tokens_per_tuple(build, name, entries[name], model, recipe) * counts[name] / batches[name]
        tokens += per_batch * taken_batches
    per_step = round(tokens / steps_per_epoch)
    costs = cost(recipe, model, tokens * steps / steps_per_epoch, per_step / gpus, gpus)
    return {
        "steps": steps,
        "epochs": round(steps / steps_per_epoch, 3),
        "warmup": warmup_steps(recipe, steps),
        "tuples": tuples,
        "tokens_per_step": per_step,
        "chunks_per_step": math.ceil(per_step / gpus / costs["token_budget"]),
        "prompt": model.choose(recipe.prompt).used,
        "pooling": model.pooling,
        **costs,
    }


def cost(recipe: Train, model: Model, tokens: float, tokens_per_gpu: float, gpus: int) -> dict[str, Any]:
    """Return the memory of a GPU in GB, the GPU-hours of all tokens, and the assumptions; nothing is measured.

    Float32 weights, gradients and AdamW's two moments take 16 bytes per weight, less what ZeRO shares out (arXiv 1910.02054);
    a weight that LoRA leaves as it is takes 4, and 2 operations fewer. What the layers keep for the backward is counted on the
    model's own architecture. Forward and backward take 6 operations per token and weight, with checkpointing 8, and a second
    forward of GradCache 2 more; the log's MFU counts neither of these. Without a `token_budget` a run chooses one for its GPU,
    and it is estimated as on `GPU`.
    """
    weights = trained = sum(weight.numel() for weight in model.backbone.parameters())
    if recipe.lora:
        sizes = [model.backbone.get_submodule(name).weight.shape for name in lora_targets(model, recipe.lora)]
        trained = recipe.lora.rank * sum(sum(shape) for shape in sizes)
    embedding = model.backbone.get_input_embeddings().weight.numel()
    try:
        counted = kept_bytes(model.backbone.config, dtype_of(recipe.dtype, torch.device("cuda")), recipe.checkpointing)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError, IndexError) as error:  # attention that is not packed
        what = f"the memory of its architecture cannot be counted ({first_line(error)})"
        raise ModelError(recipe.model, what, "it may train; `train plan` estimates packed models only") from error
    zero = recipe.deepspeed.zero if recipe.deepspeed else 0
    kept = {0: 16, 1: 8 + 8 / gpus, 2: 4 + 12 / gpus, 3: 16 / gpus}[zero] * trained
    if recipe.lora:
        kept += 4 / (gpus if zero == 3 else 1) * weights
    budget = recipe.token_budget or max(tokens_that_fit(GPUS[GPU][1] - kept, counted), recipe.max_tokens)
    held, twice = min(tokens_per_gpu, budget), tokens_per_gpu > budget
    activations = counted.fixed + counted.per_token * held
    least = kept + counted.fixed + counted.per_token * min(held, recipe.token_budget or recipe.max_tokens)
    operations = (6 - 2 * bool(recipe.lora) + 2 * recipe.checkpointing + 2 * twice) * (weights - embedding) * tokens
    return {
        "weights": weights,
        "memory_gb_per_gpu": {"weights_and_optimizer": round(kept / 1e9, 1), "activations": round(activations / 1e9, 1)},
        "fits": [name for name, (_, size) in GPUS.items() if least / USABLE <= size],
        "token_budget": budget,
        "token_budget_from": "the recipe" if recipe.token_budget else f"the memory of an {GPU}",
        "gpu_hours": round(operations / (PEAKS[GPU] * SHARE_OF_PEAK) / 3600, 1),
        "assumes": f"{SHARE_OF_PEAK:.0%} of an {GPU}'s peak of {PEAKS[GPU] / 1e12:.0f} TFLOP/s in bfloat16; "
        "an H200 reached 31 to 38%",
        "gpus": gpus,
    }


def _tokens_per_tuple(build: Path, name: str, entry: dict[str, Any], model: Model, recipe: Train) -> float:
    """Return the mean tokens of a tuple of a source: its query, its positive and its negatives, from a sample."""
    pairs = tables.read_table(build / "mined" / name, "pairs", ["query", "positives", "negatives"])
    passages = tables.read_table(build / "curated" / name, "passages", ["text"])["text"]
    chosen = np.argsort(record.draws(0, f"{name}/estimate", np.arange(len(pairs))))[:SAMPLED_TUPLES]
    sample = pairs[np.sort(chosen)]
    own, prompts = recipe.of(name).negatives, model.choose(recipe.prompt)

    def lengths(lists: list[list[str]]) -> list[np.ndarray]:
        """Return the tokens of each text of each list."""
        starts = model.tokenize([text for some in lists for text in some]).starts
        return np.split(np.diff(starts), np.cumsum([len(some) for some in lists])[:-1])

    def rendered(lists: list[list[int]]) -> list[list[str]]:
        return [[prompts.of_passage(passages[pid]) for pid in row] for row in lists]

    queries = lengths([[prompts.of_query(entry["instruction"], query)] for query in sample["query"]])
    trained = [row[:1] if recipe.positives == "first" else row for row in sample["positives"].to_list()]
    positives = lengths(rendered(trained))
    negatives = lengths(rendered([row[: recipe.negatives if own is None else own] for row in sample["negatives"].to_list()]))
    each = [query.sum() + some.mean() + far.sum() for query, some, far in zip(queries, positives, negatives, strict=True)]
    return float(np.average(each, weights=[len(row) if recipe.positives == "all" else 1 for row in trained]))


def as_table(found: Mapping[str, Any]) -> str:
    """Return an estimate as text of at most 80 columns."""
    memory, chunks, gpus = found["memory_gb_per_gpu"], found["chunks_per_step"], found["gpus"]
    fitting = "fits into no GPU that is known here"
    if found["fits"]:
        smallest = min(found["fits"], key=lambda name: GPUS[name][1])
        smaller = sum(memory.values()) * 1e9 / USABLE > GPUS[smallest][1]
        fitting = f"fits into {GPUS[smallest][1] / 1e9:.0f} GB ({smallest})" + (", with a smaller budget" if smaller else "")
    rows = [
        ("steps", f"{found['steps']:,}", f"{found['epochs']:g} epochs, warm-up of {found['warmup']:,} steps"),
        ("tokens per step", f"{found['tokens_per_step']:,}", f"{chunks} chunk{'s' if chunks > 1 else ''}"),
        ("token budget", f"{found['token_budget']:,}", f"from {found['token_budget_from']}"),
        ("weights", f"{found['weights'] / 1e6:,.1f} M", f"pooling {found['pooling']}, prompt {found['prompt']}"),
        ("memory per GPU", f"{sum(memory.values()):,.1f} GB", fitting),
        ("", f"{memory['weights_and_optimizer']:,.1f} GB", "weights, gradients and optimizer"),
        ("", f"{memory['activations']:,.1f} GB", "activations"),
        ("GPU-hours", f"{found['gpu_hours']:,.1f}", f"on {gpus} GPU{'s' if gpus > 1 else ''}"),
    ]
    width = max(len(value) for _, value, _ in rows)
    lines = [f"{name:<15}  {value:>{width}}  {remark}".rstrip() for name, value, remark in rows]
    sources = text_table(("source", "tuples"), list(found["tuples"].items()))
    return f"{sources}\n\n" + "\n".join(lines) + "\n\n" + fill(f"Assumes {found['assumes']}.", 80)
