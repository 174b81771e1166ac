"""What one step is made of: the loss of a batch and its gradients, the learning rate, and which weights decay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from curation.manifest_models import Train
from training.data import Batch
from training.loss import Losses, contrastive, infonce

if TYPE_CHECKING:
    from training.backend import Torch


def add_gradients(backend: Torch, batch: Batch, recipe: Train) -> Losses:
    """Add the gradients of a batch's loss to the weights' and return the loss.

    A batch of at most `token_budget` tokens takes one forward and one backward. A larger one takes two passes over
    chunks of it (GradCache, arXiv 2101.06983): the first makes all embeddings without a graph; the loss gives each
    embedding's gradient; the second makes the embeddings of a chunk again and carries their gradients on into the
    weights. The memory is that of the largest chunk, and the gradients are those of one forward.
    """
    chunks = cut(batch.starts, recipe.token_budget)
    if len(chunks) == 1:
        losses = batch_loss(backend.embed(batch.ids, batch.starts), batch, recipe)
        backend.backward(losses.total)
        return losses

    def embed(first: int, end: int) -> Tensor:
        starts = batch.starts[first : end + 1]
        return backend.embed(batch.ids[starts[0] : starts[-1]], starts - starts[0])

    with torch.no_grad():
        embeddings = torch.cat([embed(*chunk) for chunk in chunks])
    losses = batch_loss(embeddings.requires_grad_(), batch, recipe)
    (gradient,) = torch.autograd.grad(losses.total, embeddings)
    for first, end in chunks:
        backend.backward((embed(first, end) * gradient[first:end]).sum())
    return losses


def cut(starts: np.ndarray, budget: int | None) -> list[tuple[int, int]]:
    """Return texts as (first, end) chunks in order, each of at most `budget` tokens or of one text longer than that."""
    texts = len(starts) - 1
    chunks, first = [], 0
    while first < texts:
        end = texts if budget is None else int(np.searchsorted(starts, starts[first] + budget, side="right")) - 1
        chunks.append((first, max(end, first + 1)))
        first = chunks[-1][1]
    return chunks


def batch_loss(embeddings: Tensor, batch: Batch, recipe: Train) -> Losses:
    """Return the loss of a batch from the embeddings of its distinct texts, (n, dim) float32, differentiable."""

    def there(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(embeddings.device)

    parts = (
        embeddings[there(batch.query)],
        embeddings[there(batch.positive)],
        embeddings[there(batch.negative)],
        there(batch.has_negative),
        there(batch.shared) if recipe.mask_false_negatives else None,
    )
    if recipe.loss == "f2llm":
        return contrastive(*parts, recipe.temperature, batch.task)
    negatives = batch.shared_negative if recipe.mask_false_negatives else None
    return infonce(*parts, None if negatives is None else there(negatives), recipe.temperature, batch.task)


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
