"""What one step is made of: the loss of a batch and its gradients, and the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from curation.recipe.settings import Train
from training import ranks
from training.data import Batch, gather
from training.loss import Losses, contrastive, distillation, infonce, too_near

if TYPE_CHECKING:
    from training.backend import Backend


def add_gradients(backend: Backend, batch: Batch, recipe: Train) -> Losses:
    """Add the gradients of a batch's loss to the weights' and return the loss.

    A batch of at most `token_budget` tokens takes one forward and one backward. A larger one takes two passes over
    chunks of it (GradCache, arXiv 2101.06983): the first makes all embeddings without a graph; the loss gives each
    embedding's gradient; the second makes the embeddings of a chunk again and carries their gradients on into the
    weights. The memory is that of the largest chunk, and the gradients are those of one forward.

    Several processes embed a share of the texts each, and then all compute the loss of the whole batch: the result is
    that of one process. As the texts are sorted by length, every world-th of them makes shares of about as many tokens.
    """
    rank, world, detached = backend.rank, backend.world, recipe.reproduce_f2llm and backend.world > 1
    ids, starts = gather(batch.ids, batch.starts, np.arange(rank, len(batch.starts) - 1, world))

    def embed(first: int, end: int) -> Tensor:
        if first == end:  # the others go forward meanwhile, and so must this one: through the shortest text
            return backend.embed(batch.ids[: batch.starts[1]], batch.starts[:2])[:0]
        return backend.embed(ids[starts[first] : starts[end]], starts[first : end + 1] - starts[first])

    chunks = chunks_of(np.diff(batch.starts), recipe.token_budget, world)[rank]
    if len(chunks) == 1:
        losses = batch_loss(together(embed(*chunks[0]), batch, world), batch, recipe, detached)
        backend.backward(losses.total)
        return losses
    with torch.no_grad():
        embeddings = torch.cat([embed(*chunk) for chunk in chunks])
    losses = batch_loss(together(embeddings.requires_grad_(), batch, world), batch, recipe, detached)
    (gradient,) = torch.autograd.grad(losses.total, embeddings)
    for first, end in chunks:
        backend.backward((embed(first, end) * gradient[first:end]).sum())
    return losses


def together(own: Tensor, batch: Batch, world: int) -> Tensor:
    """Return the embeddings of all texts of a batch, (n, dim), from those of this process's share."""
    if world == 1:
        return own
    places = [np.arange(rank, len(batch.starts) - 1, world) for rank in range(world)]
    parts = ranks.gather(own, [len(part) for part in places])
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(places))).to(own.device)]


def chunks_of(lengths: np.ndarray, budget: int | None, world: int) -> list[list[tuple[int, int]]]:
    """Return each process's chunks of its share of the texts, of so many tokens each (n,) i64.

    Every process must go forward and back equally often, so one that has fewer gets empty ones.
    """
    each = [cut(np.append(0, lengths[rank::world]).cumsum(), budget) for rank in range(world)]
    most = max(map(len, each))
    return [own + [(0, 0)] * (most - len(own)) for own in each]


def cut(starts: np.ndarray, budget: int | None) -> list[tuple[int, int]]:
    """Return texts as (first, end) chunks in order, if any, each of at most `budget` tokens or of one text longer than that."""
    texts = len(starts) - 1
    chunks, first = [], 0
    while first < texts:
        end = texts if budget is None else int(np.searchsorted(starts, starts[first] + budget, side="right")) - 1
        chunks.append((first, max(end, first + 1)))
        first = chunks[-1][1]
    return chunks


def batch_loss(embeddings: Tensor, batch: Batch, recipe: Train, detached: bool = False) -> Losses:
    """Return the loss of a batch from the embeddings of its distinct texts, (n, dim) float32, differentiable.

    With `matryoshka` it is the mean over the leading dimensions asked for and all of them (arXiv 2205.13147). `detached`: the
    in-batch term gives passages no gradient.
    """
    sizes = [*recipe.matryoshka, embeddings.shape[1]]
    leading = [F.normalize(embeddings[:, :size], dim=1) if recipe.matryoshka else embeddings for size in sizes]
    each = [_loss(one, batch, recipe, detached) for one in leading]
    return Losses(*(None if one[0] is None else torch.stack(one).mean() for one in zip(*each, strict=True)))  # type: ignore[arg-type]


def _loss(embeddings: Tensor, batch: Batch, recipe: Train, detached: bool) -> Losses:
    def there(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(embeddings.device)

    query, positive = embeddings[there(batch.query)], embeddings[there(batch.positive)]
    negative = embeddings[there(batch.negative)]
    shared = there(batch.shared) if recipe.mask_false_negatives else None
    if recipe.mask_margin is not None:
        near = too_near(query, positive, recipe.mask_margin)
        shared = near if shared is None else shared | near
    parts = (query, positive, negative, there(batch.has_negative), shared)
    if recipe.loss == "f2llm":
        losses = contrastive(*parts, recipe.temperature, batch.in_batch, recipe.symmetric, detached)
    else:
        negatives = batch.shared_negative if recipe.mask_false_negatives else None
        losses = infonce(*parts, None if negatives is None else there(negatives), recipe.temperature, batch.in_batch)
    if not recipe.distill:
        return losses
    distilled = distillation(query, positive, negative, there(batch.teacher), recipe.temperature)
    return losses._replace(total=losses.total + recipe.distill * distilled, distilled=distilled)


def total_steps(recipe: Train, steps_per_epoch: int) -> int:
    """Return the steps of a run: `epochs` over all tuples, or fewer where `steps` says so."""
    return min(steps_per_epoch * recipe.epochs, recipe.steps or steps_per_epoch * recipe.epochs)


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
