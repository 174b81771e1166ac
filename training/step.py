"""What one step is made of: the loss of a batch, the learning rate, and which weights decay."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from curation.manifest import Train
from training.data import Batch
from training.loss import Losses, contrastive


def batch_loss(embeddings: Tensor, batch: Batch, recipe: Train) -> Losses:
    """Return the loss of a batch from the embeddings of its distinct texts, (n, dim) float32, differentiable."""

    def there(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(embeddings.device)

    return contrastive(
        embeddings[there(batch.query)],
        embeddings[there(batch.positive)],
        embeddings[there(batch.negative)],
        there(batch.has_negative),
        there(batch.shared) if recipe.mask_false_negatives else None,
        recipe.temperature,
        batch.task,
    )


def warmup_steps(recipe: Train, total: int) -> int:
    """Return the recipe's warm-up, or a tenth of the run where the recipe's would leave nothing after it."""
    return recipe.warmup if recipe.warmup < total else total // 10


def learning_rate(recipe: Train, step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly to `lr` over the warm-up, never from 0, and falls along a cosine to `min_lr` at the very last step.
    """
    warmup = warmup_steps(recipe, total)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    top = max(warmup - 1, 0)  # the step that has `lr` in full
    done = (step - top) / max(total - 1 - top, 1)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * done)) / 2


def decayed(backbone: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the trained weights that decay, and of those that do not.

    Matrices do. Norms, biases and embeddings do not: a shorter embedding row is not a simpler model, and rows of rare
    tokens would shrink without ever being trained.
    """
    embeddings = {id(module.weight) for module in backbone.modules() if isinstance(module, nn.Embedding)}
    names: tuple[list[str], list[str]] = ([], [])
    for name, weight in backbone.named_parameters():
        if weight.requires_grad:
            names[weight.ndim < 2 or id(weight) in embeddings].append(name)
    return names
