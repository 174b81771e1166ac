"""The training loop, top to bottom: a build with mined negatives goes in, a model comes out.

<out>/log.jsonl     a line per step and per measurement; clock times are only here and in report.html
<out>/checkpoints/  step-000200/ ...: weights, optimizer, and which run and step they belong to
<out>/model/        the trained model, for sentence-transformers and transformers
<out>/report.html   the log as curves
<out>/tensorboard/  the log for TensorBoard, if asked for
<out>/timings.json  digests of the files that differ between equal runs: the log and TensorBoard's files
<out>/done.json     what the model was trained on, and how; written last
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.core import locks
from curation.core.builds import read_build
from curation.core.errors import BuildError, ModelError, SetupError, listed
from curation.core.progress import Progress, silent
from curation.recipe.settings import Prompts, Train
from training import checkpoint, ranks, report
from training.backend import Backend, Torch, deterministic
from training.checkpoint import Say
from training.data import Batch, Plan
from training.log import measurement_in_words, open_log, steps_in_words, summary_writer
from training.loss import Losses
from training.model.device import device_of
from training.model.export import export
from training.model.load import check_trains, load_model
from training.model.model import notes_of
from training.step import add_gradients, costs, learning_rate, total_steps, warmup_steps
from training.tokens import Source, load_sources, mined_sources
from training.validation import Validation
from training.zero import DeepSpeed

OTHER_POSITIVES = {  # how a query's positives besides the first are used, by the recipe's `positives`
    "first": "they are not trained on (`positives: all` or `sampled` does)",
    "all": "each is trained on in a tuple of its own",
    "sampled": "one positive of each query is drawn for each epoch",
}


class Stopped(Exception):
    """A signal ended the run between two steps, and its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step
        super().__init__(f"stopped after step {step} and saved; the same command continues from there")


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
    """Train, continuing from the newest checkpoint of the same run; return (receipt, whether there was anything to do).

    Args:
        build: a build folder with mined negatives.
        recipe: the `train:` section of a manifest.
        out: the folder of the run; by default BUILD/train.
        device: auto, cpu, cuda or cuda:N.
        only: train on these sources alone.
        restart: delete what an earlier run left in the folder.
        tensorboard: write files for TensorBoard too.
        say: is called with each line for the screen.
        progress: shows the progress of tokenising.

    Raises:
        BuildError: no mined negatives, checkpoints of another run, or a loss that is not a finite number.
        ModelError: a model that cannot be trained.
        SetupError: the device, DeepSpeed or TensorBoard is not available, or a process is lost.
        Stopped: SIGINT or SIGTERM arrived; the state is saved.
    """
    if tensorboard:
        summary_writer()  # fail now if it is not installed, before a model is loaded
    out = out or build / "train"
    entries = mined_sources(build, only, recipe.sources)
    ranks.check_divides(recipe.batch)
    place = ranks.own(device_of(device))
    with ExitStack() as stack:
        stack.enter_context(ranks.joined(place, recipe.deepspeed is not None))
        if ranks.first():
            stack.enter_context(locks.locked(out, "train"))
            if restart:
                checkpoint.forget(out)
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
    # The model to train.
    given = Prompts.by_name(recipe.prompts)
    model = load_model(recipe.model, pooling=recipe.pooling, max_tokens=recipe.max_tokens, device=device, prompts=given)
    check_trains(model)
    if max(recipe.matryoshka, default=0) >= model.dim:
        raise ModelError(recipe.model, f"has {model.dim} dimensions", "`matryoshka` must name fewer")

    # The tuples as tokens. The first process writes them, and the others read them.
    with ranks.first_alone():
        sources = load_sources(build, model, recipe.prompt, only, progress)

    # The trained model keeps the prompts that it is trained with.
    notes = [model.choose(recipe.prompt).summary(), *notes_of(model, recipe.prompt)]
    instructions = {source.name: entries[source.name]["instruction"] for source in sources}
    used = model.prompt_used(recipe.prompt)
    model.prompts, model.trained_prompt = model.prompts_for(recipe.prompt, instructions), used

    # Everything that the result depends on. If such a run is finished already, there is nothing to do.
    seed = int(read_build(build)["seed"])
    plan = Plan(sources, seed, recipe)
    plan.check()
    total = total_steps(recipe, plan.steps_per_epoch)
    validation = Validation(build, recipe, instructions)
    run = checkpoint.describe(recipe, seed, sources, model, validation)
    if (receipt := checkpoint.finished(out, run)) is not None:
        return receipt, False

    backend: Backend
    backend = DeepSpeed(model, recipe) if recipe.deepspeed else Torch(model, recipe)
    first, threads = checkpoint.resume(out / "checkpoints", run, backend, validation, say)

    for line in [*_notes(recipe, sources, total, backend.world), *notes, *validation.prompts(model, recipe)]:
        say(line)
    done = loop(plan, recipe, backend, validation, first, total, out, {**run, **threads}, tensorboard, say)

    # Write the model, the report, and last the receipt.
    receipt = checkpoint.receipt_of_run(run, plan, done, model, recipe, validation) | threads
    if ranks.first():
        if recipe.export == "best" and validation.best:
            checkpoint.export_checkpoint(checkpoint.checkpoint_path(out / "checkpoints", validation.best), out / "model")
        elif recipe.deepspeed:  # the weights in memory may be shared out
            checkpoint.export_checkpoint(out, out / "model")
        else:
            export(model, out / "model")
        report.write_report(out)
        receipt = checkpoint.finish(out, receipt)
    return receipt, True


def _notes(recipe: Train, sources: Sequence[Source], total: int, world: int) -> Iterator[str]:
    """Yield lines about settings whose effect may surprise."""
    if recipe.warmup != warmup_steps(recipe, total):
        yield f"a warm-up of {recipe.warmup} steps does not fit into {total} steps; using {warmup_steps(recipe, total)}"
    for source in sources:
        if source.further_positives:
            many = f"{source.further_positives:,} positives besides the first of each of {len(source):,} queries"
            yield f"{source.name} has {many}: {OTHER_POSITIVES[recipe.positives]}"
    if recipe.reproduce_f2llm:
        alone = "changes nothing: with one process F2LLM's passages get their gradients too"
        several = "passages get no gradient from the in-batch term, as in F2LLM's trainer on several processes"
        yield f"reproduce_f2llm: {alone if world == 1 else several}"


def loop(
    plan: Plan,
    recipe: Train,
    backend: Backend,
    validation: Validation,
    first: int,
    total: int,
    out: Path,
    run: Mapping[str, Any],
    tensorboard: bool,
    say: Say,
) -> int:
    """Do the steps from `first` to `total`, or until patience runs out; return how many are done then.

    The state is saved every `save_every` steps, whenever the model is the best so far, at the end, and when a signal arrives.
    """

    def save(done: int) -> None:
        if backend.rank == 0:
            state = {**run, **validation.state(), "prompts": backend.model.prompts, "prompt": backend.model.trained_prompt}
            checkpoint.save(out / "checkpoints", done, state, backend.save, recipe.keep, validation.best)
        else:
            backend.save(out)  # contributes its shares; the first process writes them

    recent: deque[dict[str, Any]] = deque(maxlen=recipe.log_every)
    writing = nullcontext(lambda line: None) if backend.rank else open_log(out / "log.jsonl", first, tensorboard)
    with signals() as received, deterministic(backend.device), writing as write:
        if first == 0 and validation.due(0, total):
            write(found := validation.measure(0, backend.model, recipe))
            say(measurement_in_words(found, total))
        started = time.perf_counter()
        for step in range(first, total):
            if validation.over:
                return step  # a run that was killed after its patience had run out

            # One step.
            begun = time.perf_counter()
            batch = plan.batch_at(step)
            lr = learning_rate(recipe, step, total)
            with explain_out_of_memory(step, batch, recipe, backend.world, out):
                losses = add_gradients(backend, batch, recipe)
                loss = check_finite(float(losses.total.detach()), "loss", step, batch, plan, out)
                norm = check_finite(backend.step(lr), "gradient", step, batch, plan, out)
            seconds = time.perf_counter() - begun

            # Log it.
            done = step + 1
            line = _log_line(step, plan, batch, losses, loss, lr, norm, recipe) | costs(backend, batch, recipe, seconds)
            line["seconds_left"] = round((time.perf_counter() - started) / (done - first) * (total - done), 2)
            recent.append(line)
            write(line)
            if done % recipe.log_every == 0 or done == total:
                say(steps_in_words(recent, total))

            # Measure, save, and stop if asked to.
            if validation.due(done, total):
                write(found := validation.measure(done, backend.model, recipe))
                say(measurement_in_words(found, total))
            ended = int(ranks.largest(received[0] if received else 0, backend.device))  # a signal may reach one process first
            last = done == total or validation.over
            if done % recipe.save_every == 0 or last or ended or validation.best == done:
                save(done)
            if ended and not last:
                raise Stopped(ended, done)
    return total


def _log_line(
    step: int, plan: Plan, batch: Batch, losses: Losses, loss: float, lr: float, norm: float, recipe: Train
) -> dict[str, Any]:
    """Return what a step did, for log.jsonl."""
    terms = {"loss_hard": losses.hard, "loss_inbatch": losses.in_batch, "loss_distilled": losses.distilled}
    further = {one.name: one.further_positives for one in plan.sources if one.further_positives}
    return {
        "step": step,
        "epoch": step // plan.steps_per_epoch,
        "source": batch.source,
        "task": batch.task,
        "loss": loss,
        **{name: None if term is None else float(term.detach()) for name, term in terms.items()},
        "lr": lr,
        "grad_norm": norm,
        **({"positives": {"trained": recipe.positives, "further": further}} if step == 0 and further else {}),
    }


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM in a list instead of ending the process; a second one acts as usual."""
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


def check_finite(value: float, what: str, step: int, batch: Batch, plan: Plan, out: Path) -> float:
    """Return the value.

    Raises:
        BuildError: it is infinite or NaN; the step's tuples are named.
    """
    if math.isfinite(value):
        return value
    ids = plan.rows(step)[0].row_ids(batch.rows)
    last = checkpoint.complete_checkpoints(out / "checkpoints")
    raise BuildError(
        f"{out}, step {step}",
        f"the {what} is {value} on {batch.source}, tuples {listed(ids, 8)}",
        f"try a lower `lr` or `dtype: float32`; the last good checkpoint is {last[0].name if last else 'none yet'}",
    )


@contextmanager
def explain_out_of_memory(step: int, batch: Batch, recipe: Train, world: int, out: Path) -> Iterator[None]:
    """Turn an out-of-memory error into one line that says which setting to lower.

    Raises:
        SetupError: the memory is too small for a step.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        longest, own = int(np.diff(batch.starts).max()), len(batch.ids) // world
        held = max(min(own, recipe.token_budget or own), longest)  # tokens of the largest forward
        smaller = f"`token_budget: {held // 2}`" if held > longest else f"`max_tokens: {longest // 2}`"
        levers = [smaller, *([] if recipe.checkpointing else ["`checkpointing: yes`"])]
        what = f"out of memory: forward and backward over {held:,} tokens do not fit"
        raise SetupError(f"{out}, step {step}", what, f"set {' or '.join(levers)}, and run it again") from None
