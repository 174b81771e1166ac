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
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from curation.core import locks, store
from curation.core.builds import read_build
from curation.core.errors import BuildError, ModelError, SetupError, first_line, listed
from curation.core.progress import Progress, silent
from curation.recipe.settings import Train
from training import checkpoint, memory, ranks, report
from training.backend import Backend, Torch, deterministic
from training.checkpoint import Say
from training.clusters import clusters_of
from training.data import Batch, Plan
from training.log import Write, measurement_in_words, open_log, steps_in_words, summary_writer
from training.lora import add_lora, import_peft, lora_targets
from training.loss import Losses
from training.model.compile import compile_layers
from training.model.device import device_of
from training.model.export import export, refuse_other_files
from training.model.load import check_trains
from training.model.model import Model, notes_of
from training.start import model_folder, model_of, start_from
from training.step import Ready, add_gradients, batch_for, costs, learning_rate, total_steps, warmup_steps
from training.tokens import load_sources, mined_sources
from training.validation import Validation
from training.vectors import places_of
from training.zero import DeepSpeed

OTHER_POSITIVES = {  # how a query's positives besides the first are used, by the recipe's `positives`
    "first": "which are not trained on; `positives: all` or `sampled` uses them",
    "all": "each of which is trained on in a tuple of its own",
    "sampled": "so one positive of each query is drawn for each epoch",
}
SIGNS_OF_A_LOST_GPU = (  # of CUDA's messages
    *("uncorrectable ECC error", "uncorrectable NVLink error", "GPU is lost", "Hardware stack error"),
    *("unspecified launch failure", "busy or unavailable", "no CUDA-capable device", "CUDA error: unknown error"),
)
WORTH_COMPILING = 5e10  # steps times weights without embeddings, from which on compiling takes a GPU less than it saves
LOGGED_TERMS = (  # the names of `Losses`' terms in the log
    *("loss_hard", "loss_inbatch", "loss_distilled", "loss_spread_out", "loss_vectors"),
)
MOST_UNREAD = 64  # steps on a GPU whose loss is not read yet


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
    start: Path | None = None,
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
        start: the folder of another run, or of a model that `train` wrote, whose weights the run starts from.
        device: auto, cpu, cuda or cuda:N.
        only: train on these sources alone.
        restart: delete what an earlier run left in the folder.
        tensorboard: write files for TensorBoard too.
        say: is called with each line for the screen.
        progress: shows the progress of tokenising.

    Raises:
        BuildError: no mined negatives, checkpoints of another run, a start that does not fit, or a loss that is not a finite
            number.
        ModelError: a model that cannot be trained.
        SetupError: the device, DeepSpeed or TensorBoard is not available, or a process or a GPU is lost.
        Stopped: SIGINT or SIGTERM arrived; the state is saved.
    """
    if tensorboard:
        summary_writer()  # fail now if it is not installed, before a model is loaded
    if recipe.lora:
        import_peft()
    out = out or build / "train"
    start = model_folder(start, out) if start else None
    entries = mined_sources(build, only, recipe.sources)
    ranks.check_divides(recipe.batch)
    place = ranks.own(device_of(device))
    with ExitStack() as stack:
        stack.enter_context(ranks.joined(place, recipe.deepspeed is not None))
        if ranks.first():
            stack.enter_context(locks.locked(out, "train"))
            if restart:
                refuse_other_files(out / "model", out)
                checkpoint.forget(out)
        else:
            say, progress = (lambda line: None), silent
        with explain_lost_gpu(place):
            return _train(build, recipe, out, start, entries, str(place), only, tensorboard, say, progress)


def _train(
    build: Path,
    recipe: Train,
    out: Path,
    start: Path | None,
    entries: Mapping[str, Mapping[str, Any]],
    device: str,
    only: Sequence[str],
    tensorboard: bool,
    say: Say,
    progress: Progress,
) -> tuple[dict[str, Any], bool]:
    """Train as one of the processes, see `train`."""
    # The model to train.
    with memory.explain_without_room(torch.device(device), recipe.model):
        model = model_of(recipe, device)
    check_fits(model, recipe)
    started = {"from": start_from(model, start, recipe)} if start else {}

    # The tuples as tokens. The first process writes them, and the others read them.
    with ranks.first_alone():
        sources = load_sources(build, model, recipe.prompt, only, progress)

    # The trained model keeps the prompts that it is trained with.
    prompts = model.choose(recipe.prompt)
    notes = [prompts.summary(), *notes_of(model, recipe.prompt)]
    instructions = {source.name: entries[source.name]["instruction"] for source in sources}
    model.prompts, model.trained_prompt = model.prompts_for(recipe.prompt, instructions), prompts.used

    # Everything that the result depends on. If such a run is finished already, there is nothing to do.
    seed = int(read_build(build)["seed"]) if recipe.seed is None else recipe.seed
    with ranks.first_alone():
        named = recipe.distill_vectors.model if recipe.distill_vectors else ""
        teacher = places_of(build, named, sources, instructions, progress=progress) if named else None
        clusters = clusters_of(build, recipe, sources, instructions, seed, progress)
    plan = Plan(sources, seed, recipe, teacher, clusters)
    plan.check()
    total = total_steps(recipe, plan.steps_per_epoch)
    validation = Validation(build, recipe, instructions)
    run = checkpoint.describe(recipe, seed, sources, model, validation) | started
    run |= {"teacher": teacher.digests} if teacher else {}
    run |= {"clusters": {name: store.digest_of(some.tolist()) for name, some in clusters.items()}} if clusters else {}
    if (receipt := checkpoint.finished(out, run)) is not None:
        return receipt, False
    refuse_other_files(out / "model", out)

    # Weights, optimizer and what an earlier run saved; on a GPU also how many tokens fit, and whether to compile.
    backend: Backend
    if recipe.lora:
        add_lora(model, recipe.lora, seed)
    with memory.explain_without_room(torch.device(device), recipe.model):
        backend = DeepSpeed(model, recipe) if recipe.deepspeed else Torch(model, recipe)
        first, circumstances = checkpoint.resume(out / "checkpoints", run, backend, validation, say)
    recipe = memory.with_budget(recipe, backend, model.backbone.config, first, circumstances, say)
    if compiles(backend, total):
        compile_layers(model.backbone)
        say("the layers are compiled (torch.compile), so the first steps take longer")

    # The steps, after the lines on what may surprise.
    for line in [*_notes(recipe, plan, total, backend.world), *notes, *validation.prompts(model, recipe)]:
        say(line)
    described = {**run, **circumstances, **({"from_folder": str(start.resolve())} if start else {})}
    done = loop(plan, recipe, backend, validation, first, total, out, described, tensorboard, say)

    # Write the model, the report, and last the receipt.
    receipt = checkpoint.receipt_of_run(run, plan, done, model, recipe, validation) | circumstances
    if ranks.first():
        if recipe.export == "best" and validation.best:
            best = checkpoint.checkpoint_path(out / "checkpoints", validation.best)
            checkpoint.export_checkpoint(best, out / "model", out)
        elif recipe.deepspeed:  # the weights in memory may be shared out
            checkpoint.export_checkpoint(out, out / "model", out)
        else:
            export(model, out / "model")
        report.write_report(out)
        receipt = checkpoint.finish(out, receipt)
    return receipt, True


def check_fits(model: Model, recipe: Train) -> None:
    """Refuse a model that cannot be trained by a recipe.

    Raises:
        ModelError: it cannot.
    """
    check_trains(model)
    if recipe.lora:
        lora_targets(model, recipe.lora)
    if recipe.deepspeed and any(True for _ in model.head.parameters()):
        what = "has modules with weights besides its transformer, which DeepSpeed does not train here"
        raise ModelError(recipe.model, what, "remove `deepspeed`")
    if recipe.matryoshka and model.similarity == "dot":
        raise ModelError(recipe.model, "compares by dot product", "`matryoshka` needs a model that compares by cosine")
    if model.padded and recipe.token_budget is None and model.backbone.device.type == "cuda":
        what = "is padded, and the memory that its attention needs on a GPU is not known"
        raise ModelError(recipe.model, what, "set `token_budget`, the most tokens in one forward, such as 16384")
    if model.padded and recipe.deepspeed and recipe.deepspeed.zero == 3:
        what = "is padded, so the processes would run forwards unequally often, which ZeRO stage 3 does not allow"
        raise ModelError(recipe.model, what, "give `deepspeed: {zero: 2}`")
    if max(recipe.matryoshka, default=0) >= model.dim:
        raise ModelError(recipe.model, f"has {model.dim} dimensions", "`matryoshka` must name fewer")


def compiles(backend: Backend, steps: int) -> bool:
    """Return whether so many steps are worth compiling the layers: on a GPU, unless DeepSpeed may share the weights out.

    Padded models were not tried, so they are not compiled.
    """
    if not isinstance(backend, Torch) or backend.device.type != "cuda" or backend.model.padded:
        return False
    # LoRA trains few weights, and computes with all
    weights: int = sum(one.numel() for name, one in backend.model.backbone.named_parameters() if "embed" not in name)
    return steps * weights >= WORTH_COMPILING


def _notes(recipe: Train, plan: Plan, total: int, world: int) -> Iterator[str]:
    """Yield lines about settings whose effect may surprise."""
    if recipe.warmup != warmup_steps(recipe, total):
        yield f"a warm-up of {recipe.warmup} steps does not fit into {total} steps; using {warmup_steps(recipe, total)}"
    for source, wanted in zip(plan.sources, plan.negatives, strict=True):
        short = int((np.diff(source.negative_starts) < wanted).sum())
        if short and source.task != "classification":  # which has one, the other label
            many = f"{short:,} of {len(source):,} tuples have fewer than {wanted} negatives"
            yield f"{source.name}: {many}, and are trained with those that they have"
        if source.further_positives:
            some = source.further_positives
            many = f"its {len(source):,} queries have {some:,} further positive{'s' * (some != 1)}"
            yield f"{source.name}: {many}, {OTHER_POSITIVES[recipe.positives]}"
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

    on_gpu = backend.device.type == "cuda"
    recent: deque[dict[str, Any]] = deque(maxlen=recipe.log_every)
    unread: list[Step] = []  # steps whose loss is still on the GPU: reading it would make the host wait
    writing = nullcontext(lambda line: None) if backend.rank else open_log(out / "log.jsonl", first, tensorboard)

    prepared = closing(ready_batches(plan, recipe, backend, first, total))
    with signals() as received, deterministic(backend.device), writing as write, prepared as coming:
        if first == 0 and validation.due(0, total):
            write(found := validation.measure(0, backend.model, recipe))
            say(measurement_in_words(found, total))
        read = partial(write_lines, write, unread, backend, recipe, plan, out)
        started = time.perf_counter()
        for step in range(first, total):
            if validation.over:
                return step  # a run that was killed after its patience had run out

            # One step.
            done, begun = step + 1, mark(backend.device)
            ready = next(coming)
            lr = learning_rate(recipe, step, total)
            with explain_out_of_memory(step, ready.batch, recipe, backend.world, out):
                losses = add_gradients(backend, ready, recipe).detach()
            with memory.explain_without_room(backend.device, recipe.model):
                norm = backend.step(lr)
            seconds_left = (time.perf_counter() - started) / (done - first) * (total - done)
            unread.append(Step(step, ready.batch, losses, lr, norm, begun, mark(backend.device), seconds_left))

            # Log it. On a GPU this waits for the steps, so it is done for several at a time.
            measuring = validation.due(done, total)
            if not on_gpu or done % recipe.log_every == 0 or done == total or measuring or len(unread) == MOST_UNREAD:
                recent.extend(read())
            if done % recipe.log_every == 0 or done == total:
                say(steps_in_words(recent, total))

            # Measure, save, and stop if asked to.
            if measuring:
                write(found := validation.measure(done, backend.model, recipe))
                say(measurement_in_words(found, total))
            ended = int(ranks.largest(received[0] if received else 0))  # a signal may reach one process first
            last = done == total or validation.over
            if done % recipe.save_every == 0 or last or ended or validation.best == done:
                recent.extend(read())  # never save what a step without a finite loss left
                save_step(done, backend, validation, recipe, run, out)
            if ended:  # in the last step too: the caller may have more to do, such as an ablation
                raise Stopped(ended, done)
    return total


def save_step(done: int, backend: Backend, validation: Validation, recipe: Train, run: Mapping[str, Any], out: Path) -> None:
    """Save the state after `done` steps. Each process must call it."""
    if backend.rank == 0:
        state = {**run, **validation.state(), "prompts": backend.model.prompts, "prompt": backend.model.trained_prompt}
        checkpoint.save(out / "checkpoints", done, state, backend.save, recipe.keep, validation.best)
    else:
        backend.save(out)  # contributes its shares; the first process writes them


def ready_batches(plan: Plan, recipe: Train, backend: Backend, first: int, total: int) -> Generator[Ready]:
    """Yield the batch of each step. A thread prepares the next one meanwhile: a batch depends on nothing but its number."""

    def prepared(step: int) -> Ready:
        return batch_for(backend, plan.batch_at(step), recipe)

    with ThreadPoolExecutor(1, "batches") as thread:
        coming = [thread.submit(prepared, step) for step in range(first, min(first + 1, total))]
        for step in range(first, total):
            ready = coming.pop().result()
            if step + 1 < total:
                coming.append(thread.submit(prepared, step + 1))
            yield ready


class Step(NamedTuple):
    """What a step did. Loss and norm are on the device, and the times are of the device's clock."""

    number: int
    batch: Batch
    losses: Losses
    lr: float
    norm: torch.Tensor
    begun: Any
    ended: Any
    seconds_left: float


def write_lines(write: Write, steps: list[Step], backend: Backend, recipe: Train, plan: Plan, out: Path) -> list[dict[str, Any]]:
    """Write a line for each step into the log; return the lines, and clear the list of steps.

    All numbers are copied from the device at once.

    Raises:
        BuildError: a loss or a norm is infinite or NaN. The lines of the steps before that one are written.
    """
    numbers = [term.to(backend.device) for one in steps for term in (one.norm, *one.losses) if term is not None]
    values = iter(torch.stack(numbers).tolist() if numbers else [])
    further = {one.name: one.further_positives for one in plan.sources if one.further_positives}
    lines = []
    for one in steps:
        norm = next(values)
        loss, *terms = (None if term is None else next(values) for term in one.losses)
        check_finite(loss, "loss", one, plan, out)
        check_finite(norm, "gradient", one, plan, out)
        seconds = one.ended - one.begun if isinstance(one.begun, float) else one.begun.elapsed_time(one.ended) / 1000
        line = {
            "step": one.number,
            "epoch": one.number // plan.steps_per_epoch,
            "source": one.batch.source,
            "task": one.batch.task,
            "loss": loss,
            **dict(zip(LOGGED_TERMS, terms, strict=True)),
            "lr": one.lr,
            "grad_norm": norm,
            **({"positives": {"trained": recipe.positives, "further": further}} if one.number == 0 and further else {}),
            **costs(backend, one.batch, recipe, seconds),
            "seconds_left": round(one.seconds_left, 2),
        }
        write(line)
        lines.append(line)
    steps.clear()
    return lines


def mark(device: torch.device) -> Any:
    """Return the time, of a GPU on the GPU's own clock; nothing waits."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


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


def check_finite(value: float | None, what: str, step: Step, plan: Plan, out: Path) -> None:
    """Check a number of a step.

    Raises:
        BuildError: it is infinite or NaN; the step's tuples are named.
    """
    if value is not None and math.isfinite(value):
        return
    source = next(one for one in plan.sources if one.name == step.batch.source)
    last = checkpoint.complete_checkpoints(out / "checkpoints")
    raise BuildError(
        f"{out}, step {step.number}",
        f"the {what} is {value} on {source.name}, tuples {listed(source.row_ids(step.batch.rows), 8)}",
        "try a lower `lr` or `dtype: float32`; "
        + (f"the last good checkpoint is {last[0].name}" if last else "there is no checkpoint yet"),
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
        if not memory.has_no_room(error):
            raise
        longest, own = int(np.diff(batch.starts).max()), len(batch.ids) // world
        held = max(min(own, recipe.token_budget or own), longest)  # tokens of the largest forward
        smaller = f"`token_budget: {held // 2}`" if held > longest else f"`max_tokens: {longest // 2}`"
        levers = [smaller, *([] if recipe.checkpointing else ["`checkpointing: yes`"])]
        what = f"out of memory: forward and backward over {held:,} tokens do not fit"
        raise SetupError(f"{out}, step {step}", what, f"set {' or '.join(levers)}, and run it again") from None


@contextmanager
def explain_lost_gpu(device: torch.device) -> Iterator[None]:
    """Turn an error of a GPU that has stopped working into one line; another error, such as a bug's, stays as it is.

    Raises:
        SetupError: the GPU is lost.
    """
    try:
        yield
    except RuntimeError as error:  # torch's class for it is newer than some versions of torch
        if not any(sign in str(error) for sign in SIGNS_OF_A_LOST_GPU):
            raise
        hint = "look at `nvidia-smi`, and run it again: it continues from the last checkpoint"
        raise SetupError(str(device), f"the GPU does not work any more ({first_line(error)})", hint) from None
