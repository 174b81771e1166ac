"""What each process of test_reproduce.py does: `python f2llm_ranks.py BUILD MODEL OUT`.

It writes the gradients of one batch, summed over the processes: ours, ours with `reproduce_f2llm`, and F2LLM's own way on
several processes: each embeds and judges its rows, and other processes' passages come by a gather that has no way back, nor
are its own put back among them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file

from curation.recipe.settings import Train
from training import ranks
from training.backend import Torch
from training.data import Plan, gather_segments
from training.model.load import load_model
from training.step import add_gradients
from training.tokens import load_sources


def recipe(model, **keys):
    common = {"max_tokens": 32, "batch": 16, "negatives": 2, "dtype": "float32", "mask_false_negatives": False}
    return Train(model=model, **common, **keys)


def gradients(backend):
    found = {name: weight.grad for name, weight in backend.weights.items() if weight.grad is not None}
    for gradient in found.values():
        dist.all_reduce(gradient)
    return {name: gradient.clone() for name, gradient in found.items()}


def theirs(backend, batch, temperature=0.05):
    """Return F2LLM's gradients, and the in-batch term's to this process's positives."""
    rank, world = dist.get_rank(), dist.get_world_size()
    own = np.arange(len(batch.rows)).reshape(world, -1)[rank]
    texts = np.concatenate([batch.query[own], batch.positive[own], batch.negative[own].ravel()])
    vectors = backend.embed(*gather_segments(batch.ids, batch.starts, texts))
    bs = len(own)
    query, positive, negative = vectors[:bs], vectors[bs : 2 * bs], vectors[2 * bs :].view(bs, -1, vectors.shape[1])
    parts = [torch.empty_like(positive) for _ in range(world)]
    dist.all_gather(parts, positive.detach())
    in_batch = F.cross_entropy(query @ torch.cat(parts).T / temperature, torch.arange(bs) + bs * rank)
    candidates = torch.cat([positive[:, None], negative], dim=1)
    hard = F.cross_entropy(torch.einsum("bd,bkd->bk", query, candidates) / temperature, torch.zeros(bs, dtype=torch.long))
    (to_positive,) = torch.autograd.grad(in_batch, positive, retain_graph=True, allow_unused=True)
    ((hard + in_batch) / world).backward()  # the mean over processes is the sum of these
    return gradients(backend), to_positive


def main() -> None:
    build, name, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    with ranks.joined(torch.device("cpu"), False):
        with ranks.first_alone():
            sources = load_sources(build, load_model(name, max_tokens=32, device="cpu"), "auto")
        batch = Plan(sources, 42, recipe(name)).batch_at(0)
        found = {}
        for label, keys in (("ours", {}), ("reproduced", {"reproduce_f2llm": True}), ("theirs", {})):
            rule = recipe(name, **keys)
            backend = Torch(load_model(name, max_tokens=32, device="cpu"), rule)
            if label == "theirs":
                found[label], to_positive = theirs(backend, batch)
                assert to_positive is None  # the defect itself
            else:
                add_gradients(backend, batch, rule)
                found[label] = gradients(backend)
        if ranks.first():
            save_file({f"{label}|{name}": value for label, one in found.items() for name, value in one.items()}, out)


if __name__ == "__main__":
    main()
