"""One training step: the loss of a batch and its gradients, the learning rate, and what the step cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from curation.recipe.settings import Train
from training import ranks
from training.backend import Backend
from training.data import Batch, gather_segments
from training.loss import Losses, contrastive, distillation, infonce, matched_cosines, spread_out, too_near
from training.model.attention import head_size_of, kernel_of, padding_of
from training.model.device import dtype_of

# Dense bfloat16 operations per second, and bytes of memory, from the makers' data sheets. The first key that the device's name
# contains counts.
GPUS = {
    "H100 PCIe": (756e12, 80e9),
    "H100 NVL": (835e12, 94e9),
    "H100": (989e12, 80e9),
    "H200 NVL": (835e12, 141e9),
    "H200": (989e12, 141e9),
    "B200": (2250e12, 180e9),
    "A100": (312e12, 80e9),
    "L40S": (362e12, 48e9),
    "RTX 4090": (165e12, 24e9),
    "MI300X": (1307e12, 192e9),
}
PEAKS = {name: peak for name, (peak, _) in GPUS.items()}
STATUS = Path("/proc/self/status")


class Targets(NamedTuple):
    """What the loss reads of a batch, as tensors; `data.Batch` has the shapes."""

    query: Tensor
    positive: Tensor
    negative: Tensor
    has_negative: Tensor
    shared: Tensor
    teacher: Tensor
    shared_negative: Tensor | None
    vectors: Tensor | None

    def to(self, device: torch.device) -> Targets:
        """Return them on a device. From pinned memory the copies are queued, and nothing waits."""
        return Targets(*(None if one is None else one.to(device, non_blocking=True) for one in self))  # type: ignore[arg-type]


class Ready(NamedTuple):
    """A batch as one process needs it, in the host's memory: pinned for a GPU, which then copies it without a pause."""

    batch: Batch
    targets: Targets
    forwards: list[tuple[Tensor, np.ndarray, int]]  # ids (T,) i64, starts (n+1,) i64, and how many of the n texts count
    order: Tensor | None  # (n,) i64, for each text its place among the embeddings of all processes; None for one process


def made_ready(batch: Batch, recipe: Train, rank: int = 0, world: int = 1, pinned: bool = False) -> Ready:
    """Return a batch as the process `rank` of `world` needs it.

    Texts are sorted by length, so every world-th text makes shares of about equally many tokens.
    """

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).pin_memory() if pinned else torch.from_numpy(array)

    texts = len(batch.starts) - 1
    ids, starts = gather_segments(batch.ids, batch.starts, np.arange(rank, texts, world))
    forwards = []
    for first, end in chunks_of(np.diff(batch.starts), recipe.token_budget, world)[rank]:
        if first == end:  # the other processes run a forward now, so this one must too: over the shortest text
            forwards.append((tensor(batch.ids[: batch.starts[1]]), batch.starts[:2], 0))
        else:
            forwards.append((tensor(ids[starts[first] : starts[end]]), starts[first : end + 1] - starts[first], end - first))
    order = np.argsort(np.concatenate([np.arange(other, texts, world) for other in range(world)]))
    return Ready(batch, targets_of(batch, tensor), forwards, tensor(order) if world > 1 else None)


def batch_for(backend: Backend, batch: Batch, recipe: Train) -> Ready:
    """Return a batch as this process needs it."""
    return made_ready(batch, recipe, backend.rank, backend.world, pinned=backend.device.type == "cuda")


def targets_of(batch: Batch, tensor: Callable[[np.ndarray], Tensor] = torch.from_numpy) -> Targets:
    """Return what the loss reads of a batch; `tensor` converts an array."""
    arrays = (getattr(batch, name) for name in Targets._fields)
    return Targets(*(None if one is None else tensor(one) for one in arrays))  # type: ignore[arg-type]


def add_gradients(backend: Backend, batch: Batch | Ready, recipe: Train) -> Losses:
    """Add the gradients of a batch's loss to the weights' gradients, and return the loss.

    A batch of at most `token_budget` tokens takes one forward and one backward. A larger batch takes two passes over chunks
    of it (GradCache, arXiv 2101.06983). The first pass computes all embeddings, without a graph except for the first chunk; the
    loss gives the gradient of each embedding; the second pass computes the embeddings of each other chunk again and carries
    their gradients on into the weights. The memory is that of the largest chunk, and the gradients equal those of one forward.

    Several processes embed a share of the texts each, and then all compute the loss of the whole batch, so the result equals
    that of one process.
    """
    ready = batch_for(backend, batch, recipe) if isinstance(batch, Batch) else batch
    detached = recipe.reproduce_f2llm and backend.world > 1

    def embed(ids: Tensor, starts: np.ndarray, count: int) -> Tensor:
        vectors = backend.embed(ids, starts)
        return vectors if count == len(vectors) else vectors[:count]

    def loss_of(own: Tensor) -> Losses:
        """Return the losses of a batch, given the embeddings of this process's share of its texts."""
        every = own
        if ready.order is not None:
            counts = [len(range(rank, len(ready.order), backend.world)) for rank in range(backend.world)]
            every = torch.cat(ranks.gather_rows(own, counts))[ready.order.to(own.device, non_blocking=True)]
        return batch_loss(every, ready.batch, recipe, detached, ready.targets)

    if len(ready.forwards) == 1:
        losses = loss_of(embed(*ready.forwards[0]))
        backend.backward(losses.total)
        return losses
    with torch.no_grad():
        others = [embed(*forward) for forward in ready.forwards[1:]]
    vectors = embed(*ready.forwards[0])  # the first backward is this chunk's, so its graph is kept
    embeddings = torch.cat([vectors.detach(), *others]).requires_grad_()
    losses = loss_of(embeddings)
    (gradient,) = torch.autograd.grad(losses.total, embeddings)
    first = 0
    for number, forward in enumerate(ready.forwards):
        vectors = embed(*forward) if number else vectors
        backend.backward((vectors * gradient[first : first + len(vectors)]).sum())
        first += len(vectors)
    return losses


def chunks_of(lengths: np.ndarray, budget: int | None, world: int) -> list[list[tuple[int, int]]]:
    """Return the chunks of each process's share of the texts; `lengths` (n,) i64 are the tokens of each text.

    A chunk is (first, end): consecutive texts of at most `budget` tokens together, or one text that is longer. All processes
    must run forward and backward equally often, so a process with fewer chunks gets empty ones.
    """
    each = []
    for rank in range(world):
        starts = np.append(0, lengths[rank::world]).cumsum()
        texts, chunks, first = len(starts) - 1, [], 0
        while first < texts:
            end = texts if budget is None else int(np.searchsorted(starts, starts[first] + budget, side="right")) - 1
            chunks.append((first, max(end, first + 1)))
            first = chunks[-1][1]
        each.append(chunks)
    most = max(map(len, each))
    return [own + [(0, 0)] * (most - len(own)) for own in each]


def batch_loss(embeddings: Tensor, batch: Batch, recipe: Train, detached: bool = False, targets: Targets | None = None) -> Losses:
    """Return the loss of a batch from the embeddings of its distinct texts, (n, dim) float32, differentiable.

    With `matryoshka` it is the mean over the requested leading dimensions and the full vectors (arXiv 2205.13147). With
    `detached` the in-batch term gives passages no gradient. `targets` are the batch's own, if they are tensors already.
    """
    targets = (targets or targets_of(batch)).to(embeddings.device)
    each = []
    for size in [*recipe.matryoshka, embeddings.shape[1]]:
        vectors = F.normalize(embeddings[:, :size], dim=1) if recipe.matryoshka else embeddings
        query, positive, negative = vectors[targets.query], vectors[targets.positive], vectors[targets.negative]
        given = targets.shared if recipe.mask_false_negatives else None
        shared, everywhere = given, recipe.query_query or recipe.passage_passage  # `infonce` then masks by the margin itself
        if recipe.mask_margin is not None and not everywhere:
            near = too_near(query, positive, recipe.mask_margin)
            shared = near if shared is None else shared | near
        parts = (query, positive, negative, targets.has_negative, shared)
        if recipe.loss == "f2llm":
            losses = contrastive(*parts, recipe.temperature, batch.in_batch, recipe.symmetric, detached, recipe.hardness)
        else:
            masked = targets.shared_negative if recipe.mask_false_negatives else None
            more = (recipe.query_query, recipe.passage_passage, recipe.mask_margin if everywhere else None, recipe.hardness)
            losses = infonce(*parts, masked, recipe.temperature, batch.in_batch, *more)
        if recipe.spread_out and batch.in_batch:
            spread = spread_out(query, given) + spread_out(positive, given)
            losses = losses._replace(total=losses.total + recipe.spread_out * spread, spread_out=spread)
        if recipe.distill:
            distilled = distillation(query, positive, negative, targets.teacher, recipe.temperature)
            losses = losses._replace(total=losses.total + recipe.distill * distilled, distilled=distilled)
        if recipe.distill_vectors and targets.vectors is not None:
            matched = matched_cosines(vectors, targets.vectors)
            losses = losses._replace(total=losses.total + recipe.distill_vectors.weight * matched, vectors=matched)
        each.append(losses)
    return Losses(*(None if one[0] is None else torch.stack(one).mean() for one in zip(*each, strict=True)))  # type: ignore[arg-type]


def total_steps(recipe: Train, steps_per_epoch: int) -> int:
    """Return the steps of a run: `epochs` over all tuples, or fewer if `steps` says so."""
    return min(steps_per_epoch * recipe.epochs, recipe.steps or steps_per_epoch * recipe.epochs)


def warmup_steps(recipe: Train, total: int) -> int:
    """Return the recipe's warm-up, or a tenth of the run if the recipe's would take all of it."""
    return recipe.warmup if recipe.warmup < total else total // 10


def learning_rate(recipe: Train, step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly to `lr` over the warm-up, without starting at 0, and falls along a cosine to `min_lr` at the last step.
    """
    warmup = warmup_steps(recipe, total)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    top = max(warmup - 1, 0)  # the step with the full `lr`
    done = (step - top) / max(total - 1 - top, 1)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * done)) / 2


def costs(backend: Backend, batch: Batch, recipe: Train, seconds: float) -> dict[str, Any]:
    """Return for the log what a step cost. Memory is the highest so far, of this process and of its GPU.

    `mfu` is the share of the GPUs' peak that 6 operations per token and weight, embeddings excluded, come to (arXiv
    2204.02311, appendix B); 4 for weights that LoRA leaves as they are. It is None if the peak is unknown, as for CPUs.
    """
    tokens, on_gpu, padded = len(batch.ids), backend.device.type == "cuda", bool(backend.model.padded)
    dtype = dtype_of(recipe.dtype, backend.device)
    backbone = getattr(backend.model.backbone, "module", backend.model.backbone)  # DeepSpeed wraps the transformer
    frozen = {} if backend.model.adapter is None else dict(backbone.named_parameters())
    # Under ZeRO-3 a weight is an empty tensor, and its size is in `ds_numel`.
    operations = sum(
        (6 if name in backend.weights else 4) * getattr(one, "ds_numel", one.numel())
        for name, one in {**frozen, **backend.weights}.items()
        if "embed" not in name
    )
    name = torch.cuda.get_device_name(backend.device) if on_gpu else ""
    peak = next((peak for known, peak in PEAKS.items() if known in name), None)
    return {
        "tokens": tokens,
        "pad_share": round(pad_share(batch, recipe.token_budget, backend.world, padded, backend.model.equal), 4),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds),
        "mfu": None if peak is None else round(operations * tokens / seconds / backend.world / peak, 4),
        "memory_gb": memory_gb(),
        **({"gpu_memory_gb": round(torch.cuda.max_memory_allocated(backend.device) / 1e9, 2)} if on_gpu else {}),
        "attention": "padded" if padded else kernel_of(backend.device, dtype, head_size_of(backbone.config)),
    }


def pad_share(batch: Batch, budget: int | None, world: int, padded: bool = False, equal: bool = False) -> float:
    """Return the share of tokens that a step computed in vain.

    Packed texts have no padding, but a process with fewer chunks than another runs the shortest text instead. A model whose
    attention cannot be packed pads the texts of each bucket (`padded`, `equal`: see `attention.padded_buckets`).
    """
    lengths = np.diff(batch.starts)
    chunks = chunks_of(lengths, budget, world)
    idle = sum(first == end for own in chunks for first, end in own) * int(batch.starts[1])
    if padded:
        for rank, own in enumerate(chunks):
            starts = np.append(0, lengths[rank::world]).cumsum()
            idle += sum(padding_of(starts[first : end + 1].tolist(), equal) for first, end in own)
    return idle / (idle + len(batch.ids))


def memory_gb() -> float | None:
    """Return the peak memory of this process; None if the system is not Linux."""
    if not STATUS.exists():
        return None
    # ru_maxrss is not used, because it starts with the parent's memory.
    return round(int(STATUS.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) * 1024 / 1e9, 2)
