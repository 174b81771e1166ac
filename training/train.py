"""The training loop, top to bottom: a build with mined negatives goes in, a model comes out.

<out>/log.jsonl     one line a step; the only file in which times of the clock stand
<out>/checkpoints/  step-000200/ ...: weights, optimizer, and what they are a state of
<out>/model/        the trained model, for sentence-transformers and transformers
<out>/done.json     what it was trained on, and how; written last
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from curation import store
from curation.errors import BuildError, listed
from curation.manifest_models import Train
from curation.progress import Progress, silent
from training import checkpoint
from training.backend import Torch, deterministic, load_weights
from training.data import Batch, Plan
from training.export import export
from training.log import Log, readable
from training.loss import Losses
from training.model import Model, load_model
from training.step import add_gradients, learning_rate, warmup_steps
from training.tokens import Source, load_sources, mined_sources

CIRCUMSTANCES = {"save_every", "keep", "log_every"}  # keys of a recipe that change nothing of its result
MADE = ("checkpoints", "model", "log.jsonl", store.RECEIPT)
Say = Callable[[str], None]


class Stopped(Exception):
    """A signal ended the run between two steps, and its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step
        super().__init__(f"stopped after step {step} and saved; the same command goes on from there")


def train(
    build: Path,
    recipe: Train,
    *,
    out: Path | None = None,
    device: str = "auto",
    only: Sequence[str] = (),
    restart: bool = False,
    say: Say = lambda line: None,
    progress: Progress = silent,
) -> tuple[dict[str, Any], bool]:
    """Train, going on from the newest checkpoint of the same run; return (receipt, whether there was anything to do).

    Raises:
        BuildError: no mined negatives, checkpoints of another run, or a loss that is no number.
        ModelError: a model that cannot be trained.
        Stopped: SIGINT or SIGTERM came; the state is saved.
    """
    out = out or build / "train"
    seed = int(store.read_json(build / "build.json")["seed"])
    mined_sources(build, only)  # complain before a model is loaded
    with store.locked(out, "train"):
        if restart:
            forget(out)
        return _train(build, recipe, out, seed, device, only, say, progress)


def _train(
    build: Path,
    recipe: Train,
    out: Path,
    seed: int,
    device: str,
    only: Sequence[str],
    say: Say,
    progress: Progress,
) -> tuple[dict[str, Any], bool]:
    model = load_model(recipe.model, pooling=recipe.pooling, max_tokens=recipe.max_tokens, device=device)
    backend = Torch(model, recipe)
    sources = load_sources(build, model, recipe.prompt, only, progress)
    plan = Plan(sources, seed, recipe.batch, recipe.negatives, joint=recipe.loss == "infonce")
    total = total_steps(plan, recipe)
    run = describe(recipe, seed, sources, model)
    if (receipt := finished(out, run)) is not None:
        return receipt, False
    first = resume(out / "checkpoints", run, backend, say)
    if recipe.warmup != warmup_steps(recipe, total):
        say(f"a warm-up of {recipe.warmup} steps does not fit into {total}; it takes {warmup_steps(recipe, total)}")
    loop(plan, recipe, backend, first, total, out, run, say)
    receipt = receipt_of(run, plan, total, model, recipe)
    export(model, out / "model")
    store.write_json(out / store.RECEIPT, receipt)
    return receipt, True


def loop(plan: Plan, recipe: Train, backend: Torch, first: int, total: int, out: Path, run: Mapping[str, Any], say: Say) -> None:
    """Do the steps from `first` to `total`, saving every so often, at the end, and when a signal comes."""

    def save(done: int) -> None:
        checkpoint.save(out / "checkpoints", done, run, backend.save, recipe.keep)

    recent: deque[dict[str, Any]] = deque(maxlen=recipe.log_every)
    with signals() as received, deterministic(backend.device), Log(out / "log.jsonl", first) as log:
        for step in range(first, total):
            begun = time.perf_counter()
            batch = plan.batch_at(step)
            losses = add_gradients(backend, batch, recipe)
            loss = _finite(float(losses.total.detach()), "loss", step, batch, plan, out)
            lr = learning_rate(recipe, step, total)
            norm = _finite(backend.step(lr), "gradient", step, batch, plan, out)
            seconds = time.perf_counter() - begun
            recent.append(_line(step, plan, batch, losses, loss, lr, norm, seconds))
            log.write(recent[-1])
            done = step + 1
            if done % recipe.log_every == 0 or done == total:
                say(readable(recent, total))
            if done % recipe.save_every == 0 or done == total or received:
                save(done)
            if received and done < total:
                raise Stopped(received[0], done)


def _line(
    step: int, plan: Plan, batch: Batch, losses: Losses, loss: float, lr: float, norm: float, seconds: float
) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step // plan.steps_per_epoch,
        "source": batch.source,
        "task": batch.task,
        "loss": loss,
        "loss_hard": None if losses.hard is None else float(losses.hard.detach()),
        "loss_inbatch": None if losses.in_batch is None else float(losses.in_batch.detach()),
        "lr": lr,
        "grad_norm": norm,
        "tokens": len(batch.ids),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(len(batch.ids) / seconds),
    }


def _finite(value: float, what: str, step: int, batch: Batch, plan: Plan, out: Path) -> float:
    """Return the value.

    Raises:
        BuildError: it is infinite or no number; the step's tuples are named.
    """
    if math.isfinite(value):
        return value
    ids = plan.rows(step)[0].row_ids(batch.rows)
    last = checkpoint.whole(out / "checkpoints")
    raise BuildError(
        f"{out}, step {step}",
        f"the {what} is {value} on {batch.source}, tuples {listed(ids, 8)}",
        f"try a lower `lr` or `dtype: float32`; the last good checkpoint is {last[0].name if last else 'none yet'}",
    )


def total_steps(plan: Plan, recipe: Train) -> int:
    """Return the steps of a run: `epochs` over all tuples, or fewer where `steps` says so."""
    steps = plan.steps_per_epoch * recipe.epochs
    return min(steps, recipe.steps or steps)


def describe(recipe: Train, seed: int, sources: Sequence[Source], model: Model) -> dict[str, Any]:
    """Return all that the result depends on; two runs that are described alike give the same weights."""
    return {
        "recipe": recipe.model_dump(mode="json", exclude=CIRCUMSTANCES),
        "seed": seed,
        "sources": {source.name: source.digest for source in sources},
        "start": weights_digest(model),
    }


def weights_digest(model: Model) -> str:
    """Return the digest of a model's weights as they are now."""
    state = xxhash.xxh3_128()
    for name, weight in model.backbone.named_parameters():
        state.update(name.encode())
        state.update(np.ascontiguousarray(weight.detach().cpu().numpy()).data)
    return str(state.hexdigest())


def finished(out: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the receipt of a run that is done, or None.

    Raises:
        BuildError: another run is done there.
    """
    receipt = store.read_receipt(out)
    if receipt is None:
        return None
    checkpoint.check(receipt, run, out)
    return receipt if (out / "model").is_dir() else None


def resume(folder: Path, run: Mapping[str, Any], backend: Torch, say: Say) -> int:
    """Take up the newest whole checkpoint and return the steps it has behind it; 0 where there is none.

    Raises:
        BuildError: it belongs to another run.
    """
    found = checkpoint.whole(folder)
    if not found:
        return 0
    said = checkpoint.read(found[0])
    checkpoint.check(said, run, found[0])
    backend.load(found[0])
    say(f"going on from {found[0]}")
    return int(said["step"])


def export_checkpoint(run: Path, out: Path) -> Path:
    """Export a checkpoint, or the newest one of a run, to a folder; return the checkpoint.

    Raises:
        BuildError: there is none.
    """
    found = [run] if (run / checkpoint.STATE).exists() else checkpoint.whole(run / "checkpoints")
    if not found:
        raise BuildError(run, "holds no checkpoint", "name the folder of a run, such as builds/NAME/train, or a checkpoint")
    recipe = Train.model_validate(checkpoint.read(found[0])["recipe"])
    model = load_model(recipe.model, pooling=recipe.pooling, max_tokens=recipe.max_tokens, device="cpu")
    load_weights(model, found[0])
    export(model, out)
    return found[0]


def forget(out: Path) -> None:
    """Delete what an earlier run made, and nothing else of the folder; its tokens can serve again."""
    for name in reversed(MADE):  # the receipt first: what is half deleted must not look done
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def receipt_of(run: Mapping[str, Any], plan: Plan, total: int, model: Model, recipe: Train) -> dict[str, Any]:
    """Return what done.json says."""
    tuples = {source.name: {"task": source.task, "tuples": len(source)} for source in plan.sources}
    prompt = model.prompt_used(recipe.prompt)
    return {
        **run,
        "digest": store.digest_of(run),
        "steps": total,
        "trained_on": tuples,
        "prompt": prompt,
        "versions": store.versions(),
    }


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them; a second one acts as ever."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])  # type: ignore[index]

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
