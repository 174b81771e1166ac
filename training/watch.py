"""Evaluation while training: nDCG@10 on the build's held-out queries every so many steps, and which step was the best.

Every process measures the same, for weights that are shared out (ZeRO-3) take all of them to go forward; should they
differ in the rounding, the largest mean counts. The history is part of each checkpoint, so a run that goes on comes to the
same choice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.core import store
from curation.core.errors import BuildError
from curation.recipe.settings import Train
from training import ranks
from training.evaluate import Collection, asked_in_training, file_digests, measure, read_collection
from training.model.encode import TOKENS_PER_BATCH, Encoder
from training.model.linear import prepack
from training.model.model import Model

METRIC = "ndcg@10"


class Watch:
    """The held-out queries of some sources and what was measured on them: `history` maps steps done to the mean nDCG@10."""

    def __init__(self, build: Path, recipe: Train, instructions: Mapping[str, str]) -> None:
        """Read the held-out queries of the named sources, where the recipe wants them measured.

        Raises:
            BuildError: no source has any.
            SourceError: a file of theirs cannot be read.
        """
        self.every, self.patience = recipe.evaluate_every, recipe.patience
        self.history: dict[int, float] = {}
        self.collections: dict[str, tuple[Collection, str]] = {}
        folders = {name: build / "heldout" / name for name in instructions} if self.every else {}
        for name, folder in folders.items():
            if folder.is_dir():
                self.collections[name] = read_collection(folder), instructions[name]
        if folders and not self.collections:
            what = "has no held-out queries for `evaluate_every`"
            raise BuildError(build, what, "give a source `holdout: N` and build again, or leave the key out")
        self.digests = {
            name: store.digest_of([file_digests(folders[name]), instruction])
            for name, (_, instruction) in self.collections.items()
        }

    def asked(self, model: Model, recipe: Train) -> list[str]:
        """Return a line a source on what its held-out queries are told."""
        told = {
            name: asked_in_training(model.choose(recipe.prompt), instruction)
            for name, (_, instruction) in self.collections.items()
        }
        return [f"nDCG@10 on heldout/{name}: {asked.told()}" for name, asked in told.items()]

    def take_up(self, said: Mapping[str, Any]) -> None:
        """Take up the history that a checkpoint tells."""
        self.history = {int(step): score for step, score in said.get("history", {}).items()}

    def measured(self, done: int, total: int, model: Model, recipe: Train) -> dict[str, Any] | None:
        """Measure the model in memory where it is time to, note it, and return the log's line; every process must call it."""
        if self.every is None or (done % self.every and done < total):
            return None
        begun = time.perf_counter()
        encoder = _encoder(model, recipe)
        found = {
            name: float(measure(encoder, collection, asked_in_training(model.choose(recipe.prompt), instruction))[METRIC])
            for name, (collection, instruction) in self.collections.items()
        }
        mean = ranks.largest(float(np.mean(list(found.values()))), model.backbone.device)
        self.history[done] = mean
        seconds = round(time.perf_counter() - begun, 4)
        return {"step": done - 1, METRIC: mean, "sources": found, "best": self.best == done, "seconds": seconds}

    @property
    def best(self) -> int | None:
        """The steps done at the best measurement, the first of equal ones; None before any."""
        return max(self.history, key=lambda step: (self.history[step], -step), default=None)

    @property
    def over(self) -> bool:
        """Whether the recipe's patience is at its end."""
        return self.patience is not None and sum(step > (self.best or 0) for step in self.history) >= self.patience

    def told(self) -> dict[str, Any]:
        """Return what checkpoints and done.json say of it; nothing where nothing is measured."""
        if self.best is None:
            return {}
        history = {str(step): score for step, score in sorted(self.history.items())}
        return {"history": history, "best": {"step": self.best, METRIC: self.history[self.best]}}


def _encoder(model: Model, recipe: Train) -> Encoder:
    """Return an encoder whose vectors are those that `train evaluate` makes of the weights: in float32, whatever it trains in.

    On a CPU it has a copy of the weights, laid out as there, for another layout rounds otherwise.
    """
    if model.backbone.device.type != "cpu" or recipe.deepspeed:
        return Encoder(model, torch.float32, recipe.prompt, training=True)
    copy = replace(model, backbone=deepcopy(model.backbone).requires_grad_(False))
    prepack(copy.backbone, torch.float32, TOKENS_PER_BATCH["cpu"])
    return Encoder(copy, torch.float32, recipe.prompt, training=True)


def readable(line: Mapping[str, Any], total: int) -> str:
    """Return the line for the screen of a measurement."""
    each = ", ".join(f"{name} {score:.4f}" for name, score in line["sources"].items())
    best = "  the best so far" if line["best"] else ""
    return f"step {line['step'] + 1:>{len(str(total))}}/{total}  nDCG@10 {line[METRIC]:.4f} ({each}){best}"
