"""The training loop, top to bottom: a build with mined negatives goes in, a model comes out.

<out>/log.jsonl     one line a step and a measurement; times of the clock stand only here and in report.html
<out>/checkpoints/  step-000200/ ...: weights, optimizer, and what they are a state of
<out>/model/        the trained model, for sentence-transformers and transformers
<out>/report.html   the log as curves
<out>/tensorboard/  the log for TensorBoard, where it is asked for
<out>/timings.json  digests of the log and of TensorBoard's files, which are others in an equal run
<out>/done.json     what it was trained on, and how; written last
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from curation.core import locks
from curation.core.builds import read_build
from curation.core.errors import ModelError
from curation.core.progress import Progress, silent
from curation.recipe.settings import Prompts, Train
from training import checkpoint, ranks, report
from training.backend import Backend, Torch, deterministic
from training.data import Batch, Plan
from training.log import appended, readable
from training.loss import Losses
from training.meter import costs
from training.model.device import device_of
from training.model.export import export
from training.model.load import check_trains, load_model
from training.model.model import Model, notes_of
from training.runs import Say, describe, export_checkpoint, finish, finished, forget, receipt_of, resume
from training.step import add_gradients, learning_rate, total_steps, warmup_steps
from training.stops import Stopped, finite, memory_for, signals
from training.tokens import load_sources, mined_sources
from training.watch import Watch
from training.watch import readable as told
from training.zero import DeepSpeed

FURTHER = {  # what becomes of a query's positives besides the first
    "first": "they are not trained on (`positives: all` or `sampled` does)",
    "all": "each is trained on in a tuple of its own",
    "sampled": "one positive of each query is drawn for each epoch",
}


def train(
    build: Path,
    recipe: Train,
    *,
    out: Path | None = None,
    device: str = "auto",
    only: Sequence[str] = (),
    restart: bool = False,
    tensorboard: bool = False,
    say: Say = lambda line: None,
    progress: Progress = silent,
) -> tuple[dict[str, Any], bool]:
    """Train, going on from the newest checkpoint of the same run; return (receipt, whether there was anything to do).

    `tensorboard`: write its files too.

    Raises:
        BuildError: no mined negatives, checkpoints of another run, or a loss that is no number.
        ModelError: a model that cannot be trained.
        SetupError: the device, DeepSpeed or TensorBoard is not there, or a process is lost.
        Stopped: SIGINT or SIGTERM came; the state is saved.
    """
    if tensorboard:
        import training.tensorboard  # noqa: F401 - complain before a model is loaded, here and in the lines below
    out = out or build / "train"
    entries = mined_sources(build, only, recipe.sources)
    ranks.check(recipe.batch)
    place = ranks.own(device_of(device))
    with ExitStack() as stack:
        stack.enter_context(ranks.joined(place, recipe.deepspeed is not None))
        if ranks.first():
            stack.enter_context(locks.locked(out, "train"))
            if restart:
                forget(out)
        else:
            say, progress = (lambda line: None), silent
        return _train(build, recipe, out, entries, str(place), only, tensorboard, say, progress)


def _train(
    build: Path,
    recipe: Train,
    out: Path,
    entries: Mapping[str, Mapping[str, Any]],
    device: str,
    only: Sequence[str],
    tensorboard: bool,
    say: Say,
    progress: Progress,
) -> tuple[dict[str, Any], bool]:
    model = _model(recipe, device)
    with ranks.first_alone():  # it makes the tokens, and the others find them
        sources = load_sources(build, model, recipe.prompt, only, progress)
    before = model.choose(recipe.prompt).told(), *notes_of(model, recipe.prompt)
    instructions = {source.name: entries[source.name]["instruction"] for source in sources}
    used = model.prompt_used(recipe.prompt)
    model.prompts, model.trained_prompt = model.prompts_for(recipe.prompt, instructions), used
    seed = int(read_build(build)["seed"])
    plan = Plan(sources, seed, recipe)
    plan.check()
    total = total_steps(recipe, plan.steps_per_epoch)
    watch = Watch(build, recipe, instructions)
    run = describe(recipe, seed, sources, model, watch)
    if (receipt := finished(out, run)) is not None:
        return receipt, False
    backend = DeepSpeed(model, recipe) if recipe.deepspeed else Torch(model, recipe)
    first, threads = resume(out / "checkpoints", run, backend, watch, say)
    if recipe.warmup != warmup_steps(recipe, total):
        say(f"a warm-up of {recipe.warmup} steps does not fit into {total}; it takes {warmup_steps(recipe, total)}")
    further = [
        f"{one.name} has {one.further_positives:,} positives besides the first of each of {len(one):,} queries: "
        for one in sources
        if one.further_positives
    ]
    for line in [*before, *watch.asked(model, recipe), *(what + FURTHER[recipe.positives] for what in further)]:
        say(line)
    if recipe.reproduce_f2llm:
        alone = "changes nothing: with one process F2LLM's passages have their gradients too"
        several = "passages get no gradient from the in-batch term, as in F2LLM's trainer on several processes"
        say(f"reproduce_f2llm: {alone if backend.world == 1 else several}")
    done = loop(plan, recipe, backend, watch, first, total, out, {**run, **threads}, tensorboard, say)
    receipt = receipt_of(run, plan, done, model, recipe, watch) | threads
    if ranks.first():
        if recipe.export == "best" and watch.best:
            export_checkpoint(checkpoint.at(out / "checkpoints", watch.best), out / "model")
        elif recipe.deepspeed:  # whose weights may be in shares
            export_checkpoint(out, out / "model")
        else:
            export(model, out / "model")
        report.write(out)
        receipt = finish(out, receipt)
    return receipt, True


def _model(recipe: Train, device: str) -> Model:
    """Load what is trained."""
    given = Prompts.by_name(recipe.prompts)
    model = load_model(recipe.model, pooling=recipe.pooling, max_tokens=recipe.max_tokens, device=device, prompts=given)
    check_trains(model)
    if max(recipe.matryoshka, default=0) >= model.dim:
        raise ModelError(recipe.model, f"has {model.dim} dimensions", "`matryoshka` names fewer than that")
    return model


def loop(
    plan: Plan,
    recipe: Train,
    backend: Backend,
    watch: Watch,
    first: int,
    total: int,
    out: Path,
    run: Mapping[str, Any],
    tensorboard: bool,
    say: Say,
) -> int:
    """Do the steps from `first` to `total`, or until patience ends, and return how many are behind it.

    The state is saved every so often, where the model is the best so far, at the end, and when a signal comes.
    """

    def save(done: int) -> None:
        if backend.rank == 0:
            said = {**run, **watch.told(), "prompts": backend.model.prompts, "prompt": backend.model.trained_prompt}
            checkpoint.save(out / "checkpoints", done, said, backend.save, recipe.keep, watch.best)
        else:
            backend.save(out)  # its shares, which the first process writes

    recent: deque[dict[str, Any]] = deque(maxlen=recipe.log_every)
    started = time.perf_counter()
    writing = nullcontext(lambda line: None) if backend.rank else appended(out / "log.jsonl", first, tensorboard)
    with signals() as received, deterministic(backend.device), writing as write:
        for step in range(first, total):
            if watch.over:
                return step  # where a killed run had come to that too
            begun = time.perf_counter()
            batch = plan.batch_at(step)
            lr = learning_rate(recipe, step, total)
            with memory_for(step, batch, recipe, backend.world, out):
                losses = add_gradients(backend, batch, recipe)
                loss = finite(float(losses.total.detach()), "loss", step, batch, plan, out)
                norm = finite(backend.step(lr), "gradient", step, batch, plan, out)
            seconds = time.perf_counter() - begun
            done = step + 1
            left = (time.perf_counter() - started) / (done - first) * (total - done)
            line = _line(step, plan, batch, losses, loss, lr, norm) | costs(backend, batch, recipe, seconds)
            if step == 0 and (further := {one.name: one.further_positives for one in plan.sources if one.further_positives}):
                line["positives"] = {"trained": recipe.positives, "further": further}
            recent.append(line | {"seconds_left": round(left, 2)})
            write(recent[-1])
            if done % recipe.log_every == 0 or done == total:
                say(readable(recent, total))
            if found := watch.measured(done, total, backend.model, recipe):
                write(found)
                say(told(found, total))
            ended = int(ranks.largest(received[0] if received else 0, backend.device))  # a signal may reach one process first
            last = done == total or watch.over
            if done % recipe.save_every == 0 or last or ended or watch.best == done:
                save(done)
            if ended and not last:
                raise Stopped(ended, done)
    return total


def _line(step: int, plan: Plan, batch: Batch, losses: Losses, loss: float, lr: float, norm: float) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step // plan.steps_per_epoch,
        "source": batch.source,
        "task": batch.task,
        "loss": loss,
        "loss_hard": None if losses.hard is None else float(losses.hard.detach()),
        "loss_inbatch": None if losses.in_batch is None else float(losses.in_batch.detach()),
        "loss_distilled": None if losses.distilled is None else float(losses.distilled.detach()),
        "lr": lr,
        "grad_norm": norm,
    }
