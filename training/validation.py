"""Evaluation during training: nDCG@10 on held-out queries and other sets every so many steps, and the best step so far.

Every process measures, because a forward of weights that are shared out (ZeRO-3) needs all processes. If their results
differ in rounding, the largest mean counts. The history is part of each checkpoint, so a resumed run makes the same choice.
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
from training.collection import Collection, EvaluationSet, evaluation_sets
from training.evaluate import EvaluationPrompts, evaluation_prompts, measure, prompts_in_training
from training.model.device import prepack
from training.model.encode import TOKENS_PER_BATCH, Encoder
from training.model.model import Model

METRIC = "ndcg@10"


class Validation:
    """The held-out queries of some sources, further evaluation sets, and what was measured on them."""

    history: dict[int, float]  # steps done -> mean nDCG@10 over the sets
    before: float | None  # the same before the first step

    def __init__(self, build: Path, recipe: Train, instructions: Mapping[str, str]) -> None:
        """Read the held-out queries of the sources in `instructions` and the sets of `evaluate_on`, if the recipe evaluates.

        Raises:
            BuildError: there is nothing to evaluate on.
            SourceError: a file cannot be read.
        """
        self.every, self.patience = recipe.evaluate_every, recipe.patience
        self.history, self.before = {}, None
        self.sets: dict[str, tuple[EvaluationSet, Collection, str | None]] = {}  # the instruction of a source's queries
        folders = {name: build / "heldout" / name for name in instructions} if self.every else {}
        for name, folder in folders.items():
            if folder.is_dir():
                own = EvaluationSet(name, folder, "test")
                self.sets[name] = own, own.read(), instructions[name]
        for other in evaluation_sets(recipe.evaluate_on):
            shown = str(other.folder) if other.name in self.sets else other.name
            self.sets[shown] = other, other.read(), None
        if folders and not self.sets:
            what = "has no held-out queries for `evaluate_every`"
            raise BuildError(build, what, "give a source `holdout: N` and build again, or remove the key")
        self.digests = {name: store.digest_of([one.digests(), text]) for name, (one, _, text) in self.sets.items()}

    def prompts(self, model: Model, recipe: Train) -> list[str]:
        """Return a line per set on the prompts of its queries."""
        encoder = Encoder(model, torch.float32, recipe.prompt, training=True)
        return [
            f"nDCG@10 on {name if text is None else f'heldout/{name}'}: {self._prompts(name, encoder).summary()}"
            for name, (_, _, text) in self.sets.items()
        ]

    def _prompts(self, name: str, encoder: Encoder) -> EvaluationPrompts:
        """Return the prompts of a set: of held-out queries those of training, of others those of `train evaluate`."""
        place, _, instruction = self.sets[name]
        if instruction is not None:
            return prompts_in_training(encoder.prompts, instruction)
        return evaluation_prompts(encoder, place.folder, name=place.name)

    def measure(self, done: int, model: Model, recipe: Train) -> dict[str, Any]:
        """Measure the model in memory after `done` steps, record it, and return the line for the log."""
        begun = time.perf_counter()
        # The encoder gives the vectors that `train evaluate` would compute from these weights: always in float32. On a CPU it
        # gets a copy of the weights in the same memory layout as there, because another layout rounds differently.
        if model.backbone.device.type != "cpu" or recipe.deepspeed:
            encoder = Encoder(model, torch.float32, recipe.prompt, training=True)
        else:
            copy = replace(model, backbone=deepcopy(model.backbone).requires_grad_(False))
            prepack(copy.backbone, torch.float32, TOKENS_PER_BATCH["cpu"])
            encoder = Encoder(copy, torch.float32, recipe.prompt, training=True)
        found = {
            name: float(measure(encoder, collection, self._prompts(name, encoder))[METRIC])
            for name, (_, collection, _) in self.sets.items()
        }
        mean = ranks.largest(float(np.mean(list(found.values()))))
        if done:
            self.history[done] = mean
        else:
            self.before = mean
        seconds = round(time.perf_counter() - begun, 4)
        return {"step": done - 1, METRIC: mean, "sources": found, "best": self.best == done, "seconds": seconds}

    def due(self, done: int, total: int) -> bool:
        """Return whether to measure after `done` steps: before the first, every `evaluate_every`, and after the last."""
        return self.every is not None and (done % self.every == 0 or done == total)

    @property
    def best(self) -> int | None:
        """The number of steps at the best measurement, the first of equal ones; None without a measurement."""
        return max(self.history, key=lambda step: (self.history[step], -step), default=None)

    @property
    def over(self) -> bool:
        """Whether the recipe's patience has run out."""
        return self.patience is not None and sum(step > (self.best or 0) for step in self.history) >= self.patience

    def state(self) -> dict[str, Any]:
        """Return what checkpoints and done.json record; nothing if nothing was measured."""
        before = {} if self.before is None else {"before": self.before}
        if self.best is None:
            return before
        history = {str(step): score for step, score in sorted(self.history.items())}
        return {**before, "history": history, "best": {"step": self.best, METRIC: self.history[self.best]}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what a checkpoint recorded."""
        self.history = {int(step): score for step, score in state.get("history", {}).items()}
        self.before = state.get("before")
