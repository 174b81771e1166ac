"""What a run will be, told before it is started: nothing is trained and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation import schema, store
from curation.errors import BuildError
from curation.manifest_models import Train
from training.data import shares
from training.model import Model, load_model
from training.step import warmup_steps
from training.tokens import mined_sources

SAMPLE = 256  # tuples and passages of a source whose tokens are counted


def estimate(build: Path, recipe: Train, *, device: str = "auto", only: Sequence[str] = ()) -> dict[str, Any]:
    """Return the steps, the tuples of each source, and the tokens of a step (fewer where tuples share texts) and its chunks.

    Raises:
        BuildError: no mined negatives, or not one tuple.
        ModelError: a model that cannot be trained.
    """
    entries = mined_sources(build, only)
    tuples = {name: len(store.read_table(build / "mined" / name, "pairs", ["id"])) for name in entries}
    some = {name: count for name, count in tuples.items() if count}
    batches = [-(-count // recipe.batch) for count in some.values()]
    steps_per_epoch = sum(batches)
    if not steps_per_epoch:
        raise BuildError(build, "has not one mined tuple to train on", "look at `curate show` for what was dropped and why")
    model = load_model(recipe.model, pooling=recipe.pooling, max_tokens=recipe.max_tokens, device=device)
    steps = min(steps_per_epoch * recipe.epochs, recipe.steps or steps_per_epoch * recipe.epochs)
    taken = shares(batches, list(some.values()), recipe.evenness)  # batches of an epoch
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
        "chunks_per_step": -(-per_step // (recipe.token_budget or per_step)),
        "prompt": model.prompt_used(recipe.prompt),
        "pooling": model.pooling,
    }


def _tokens(build: Path, name: str, entry: dict[str, Any], model: Model, recipe: Train) -> float:
    """Return the mean tokens of a tuple: its query, its positive and the negatives it will have."""
    pairs = store.read_table(build / "mined" / name, "pairs", ["query", "positives", "negatives"])
    passages = store.read_table(build / "curated" / name, "passages", ["text"])["text"]
    chosen = np.argsort(schema.draws(0, f"{name}/estimate", np.arange(len(pairs))))[:SAMPLE]
    sample = pairs[np.sort(chosen)]
    queries = [model.render_query(entry["instruction"], query, recipe.prompt) for query in sample["query"]]
    texts = [model.render_passage(passages[int(row[0])], recipe.prompt) for row in sample["positives"]]
    drawn = [row[: recipe.negatives] for row in sample["negatives"].to_list()]
    texts += [model.render_passage(passages[pid], recipe.prompt) for row in drawn for pid in row]
    return sum(len(model.tokenize(part).ids) for part in (queries, texts)) / len(sample)
