"""What a run will be, told before it is started: nothing is trained and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.core import record as schema
from curation.core import tables
from curation.recipe.settings import Prompts, Train
from training.data import shares
from training.meter import PEAKS
from training.model.load import load_model
from training.model.model import Model
from training.step import total_steps, warmup_steps
from training.tokens import mined_sources, nothing_to_train_on

GPU = "H100"
SHARE_OF_PEAK = 0.32  # two fifths of the 798 TFLOP/s that products alone reach on it
SAMPLE = 256  # tuples and passages of a source whose tokens are counted


def estimate(build: Path, recipe: Train, *, only: Sequence[str] = (), gpus: int = 1) -> dict[str, Any]:
    """Return the steps, the tuples of each source, the tokens of a step (fewer where tuples share texts), memory and GPU-hours.

    The model's config and tokenizer are read, its weights are not.

    Raises:
        BuildError: no mined negatives, or not one tuple.
        ModelError: a model that cannot be trained.
    """
    entries = mined_sources(build, only, recipe.sources)
    lists = {name: tables.read_table(build / "mined" / name, "pairs", ["positives"])["positives"] for name in entries}
    tuples = {name: int(some.list.len().sum()) if recipe.positives == "all" else len(some) for name, some in lists.items()}
    some = {name: count for name, count in tuples.items() if count}
    batches = [-(-count // recipe.batch) for count in some.values()]
    steps_per_epoch = sum(batches)
    if not steps_per_epoch:
        raise nothing_to_train_on(build, list(entries))
    options: dict[str, Any] = {
        "pooling": recipe.pooling,
        "max_tokens": recipe.max_tokens,
        "prompts": Prompts.by_name(recipe.prompts),
    }
    model = load_model(recipe.model, device="cpu", weights=False, **options)
    steps = total_steps(recipe, steps_per_epoch)
    taken = shares(batches, list(some.values()), recipe.evenness, [recipe.of(name).weight for name in some])  # of an epoch
    tokens = sum(
        _tokens(build, name, entries[name], model, recipe) * count / passed * share
        for (name, count), passed, share in zip(some.items(), batches, taken, strict=True)
    )
    per_step = round(tokens / steps_per_epoch)
    return {
        "steps": steps,
        "epochs": round(steps / steps_per_epoch, 3),
        "warmup": warmup_steps(recipe, steps),
        "tuples": tuples,
        "tokens_per_step": per_step,
        "chunks_per_step": math.ceil(per_step / gpus / (recipe.token_budget or per_step)),
        "prompt": model.prompt_used(recipe.prompt),
        "pooling": model.pooling,
        **cost(recipe, model, tokens * steps / steps_per_epoch, per_step / gpus, gpus),
    }


def cost(recipe: Train, model: Model, tokens: float, tokens_per_gpu: float, gpus: int) -> dict[str, Any]:
    """Return the memory of a GPU in GB, the GPU-hours of all tokens, and what was assumed; nothing of it is measured.

    Float32 weights, gradients and AdamW's two moments are 16 bytes a weight, less what ZeRO shares out (arXiv 1910.02054).
    A layer keeps about 34 bytes a token and dimension in bfloat16 (arXiv 2205.05198), and with checkpointing 2, its input,
    of every layer and the rest of one. Forward and backward are 6 operations a weight and token, checkpointing 8, and a second
    forward of GradCache 2 more; the log's MFU counts 6 always.
    """
    weights = sum(weight.numel() for weight in model.backbone.parameters())
    embedding = model.backbone.get_input_embeddings().weight.numel()
    layers, dim = model.backbone.config.num_hidden_layers, model.dim
    zero = recipe.deepspeed.zero if recipe.deepspeed else 0
    kept = {0: 16, 1: 8 + 8 / gpus, 2: 4 + 12 / gpus, 3: 16 / gpus}[zero] * weights
    held = min(tokens_per_gpu, recipe.token_budget or tokens_per_gpu)
    activations = held * dim * ((2 * layers + 34) if recipe.checkpointing else 34 * layers)
    twice = tokens_per_gpu > (recipe.token_budget or tokens_per_gpu)
    operations = (6 + 2 * recipe.checkpointing + 2 * twice) * (weights - embedding) * tokens
    return {
        "weights": weights,
        "memory_gb_per_gpu": {"weights_and_optimizer": round(kept / 1e9, 1), "activations": round(activations / 1e9, 1)},
        "gpu_hours": round(operations / (PEAKS[GPU] * SHARE_OF_PEAK) / 3600, 1),
        "assumes": f"{SHARE_OF_PEAK:.0%} of an {GPU}'s peak of {PEAKS[GPU] / 1e12:.0f} TFLOP/s in bfloat16; not measured",
        "gpus": gpus,
    }


def _tokens(build: Path, name: str, entry: dict[str, Any], model: Model, recipe: Train) -> float:
    """Return the mean tokens of a tuple: its query, its positive and the negatives it will have."""
    pairs = tables.read_table(build / "mined" / name, "pairs", ["query", "positives", "negatives"])
    passages = tables.read_table(build / "curated" / name, "passages", ["text"])["text"]
    chosen = np.argsort(schema.draws(0, f"{name}/estimate", np.arange(len(pairs))))[:SAMPLE]
    sample = pairs[np.sort(chosen)]
    own = recipe.of(name).negatives

    def lengths(lists: list[list[str]]) -> list[np.ndarray]:
        """Return the tokens of each text of each list."""
        starts = model.tokenize([text for some in lists for text in some]).starts
        return np.split(np.diff(starts), np.cumsum([len(some) for some in lists])[:-1])

    def passages_of(lists: list[list[int]]) -> list[list[str]]:
        return [[model.render_passage(passages[pid], recipe.prompt) for pid in row] for row in lists]

    queries = lengths([[model.render_query(entry["instruction"], query, recipe.prompt)] for query in sample["query"]])
    trained = [row[:1] if recipe.positives == "first" else row for row in sample["positives"].to_list()]
    positives = lengths(passages_of(trained))
    negatives = lengths(passages_of([row[: recipe.negatives if own is None else own] for row in sample["negatives"].to_list()]))
    each = [query.sum() + some.mean() + far.sum() for query, some, far in zip(queries, positives, negatives, strict=True)]
    return float(np.average(each, weights=[len(row) if recipe.positives == "all" else 1 for row in trained]))
