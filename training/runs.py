"""What a run is: what its result depends on, whether it is done, where it goes on, and what it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from curation.core import store
from curation.core.errors import BuildError, listed
from curation.recipe.settings import Prompts, Train
from training import checkpoint, ranks
from training.backend import Backend
from training.data import Plan
from training.model.export import export
from training.model.files import check_model
from training.model.load import load_model
from training.model.model import Model
from training.tokens import Source
from training.watch import Watch
from training.weights import load_weights, trained

# Keys of a recipe that change nothing of its result but the rounding, as the number of processes does.
CIRCUMSTANCES = {"save_every", "keep", "log_every", "token_budget", "checkpointing", "deepspeed"}
MADE = ("checkpoints", "model", "log.jsonl", "report.html", "tensorboard", store.TIMINGS, store.RECEIPT)
Say = Callable[[str], None]


def describe(recipe: Train, seed: int, sources: Sequence[Source], model: Model, watch: Watch) -> dict[str, Any]:
    """Return all that the result depends on; two runs that are described alike give the same weights."""
    return {
        "recipe": recipe.model_dump(mode="json", exclude=CIRCUMSTANCES),
        "seed": seed,
        "sources": {source.name: source.digest for source in sources},
        "start": weights_digest(model),
        **({"in_batch_gradient": "queries" if ranks.ranks().world > 1 else "all"} if recipe.reproduce_f2llm else {}),
        **({"heldout": watch.digests} if watch.digests else {}),
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
    if not (out / "model").is_dir():
        return None
    check_model(out / "model")
    return receipt


def resume(folder: Path, run: Mapping[str, Any], backend: Backend, watch: Watch, say: Say) -> tuple[int, dict[str, Any]]:
    """Take up the newest whole checkpoint; return the steps it has behind it, 0 where there is none, and the threads used.

    The sums of a matrix product depend on the number of threads that share it, so another number is told: the weights are
    then those of an undisturbed run but for the rounding.

    Raises:
        BuildError: it belongs to another run.
    """
    found = checkpoint.whole(folder)
    threads = torch.get_num_threads()
    if not found:
        return 0, {"threads": threads}
    said = checkpoint.checked(found[0])
    checkpoint.check(said, run, found[0])
    backend.load(found[0])
    watch.take_up(said)
    say(f"going on from {found[0]}")
    before = list(dict.fromkeys([*said.get("threads_before", []), said.get("threads", threads)]))
    if before == [threads]:
        return int(said["step"]), {"threads": threads}
    if backend.device.type == "cpu":
        what = f"with {threads} threads, where earlier steps had {listed(map(str, before))}"
        say(f"going on {what}: the weights will not be bit by bit those of a run that was not interrupted")
    return int(said["step"]), {"threads": threads, "threads_before": before}


def receipt_of(run: Mapping[str, Any], plan: Plan, steps: int, model: Model, recipe: Train, watch: Watch) -> dict[str, Any]:
    """Return what done.json says."""
    return {
        **run,
        "digest": store.digest_of(run),
        "steps": steps,
        **watch.told(),
        "trained_on": {source.name: _trained_on(source) for source in plan.sources},
        "tables": {source.name: source.tables for source in plan.sources},
        "prompt": model.trained_prompt,
        **({"prompts": recipe.prompts.model_dump()} if recipe.prompts else {}),
        **({"end_token": "appended"} if model.appends_eos else {}),
        "versions": store.versions(),
    }


def _trained_on(source: Source) -> dict[str, Any]:
    further = {"further_positives": source.further_positives} if source.further_positives else {}
    return {"task": source.task, "tuples": len(source), **further}


def finish(out: Path, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Write the receipts of a run that is done, and return done.json.

    It names the receipt in model/. What holds times of the clock, so that equal runs have other bytes, is in timings.json.
    """
    logs = [out / "log.jsonl", *(path for path in sorted((out / "tensorboard").rglob("*")) if path.is_file())]
    store.write_json(out / store.TIMINGS, {"files": {path.relative_to(out).as_posix(): store.file_digest(path) for path in logs}})
    whole = {**receipt, "model": store.file_digest(out / "model" / store.RECEIPT)}
    store.write_json(out / store.RECEIPT, whole)
    return whole


def export_checkpoint(run: Path, out: Path) -> Path:
    """Export a checkpoint, or the newest one of a run, to a folder; return the checkpoint.

    Raises:
        BuildError: there is none.
    """
    newest = checkpoints(run)[0]
    model = _untrained(newest)
    load_weights(model, newest)
    export(model, out)
    return newest


def average(run: Path, out: Path, last: int | None = None) -> list[Path]:
    """Export the mean of a run's last checkpoints' weights, or of all, summed in float64; return them, the newest first.

    Raises:
        BuildError: there are not so many.
    """
    found = checkpoints(run)
    if last is not None and len(found) < last:
        raise BuildError(run, f"holds {len(found)} checkpoints, not {last}", "give `keep` in the recipe, or a smaller --last")
    taken = found[:last]
    model = _untrained(taken[0])
    sums: dict[str, torch.Tensor] = {}
    for path in taken:
        checkpoint.checked(path)
        load_weights(model, path)
        for name, weight in trained(model).items():
            sums[name] = sums.get(name, 0) + weight.detach().double()
    with torch.no_grad():
        for name, weight in trained(model).items():
            weight.copy_(sums[name] / len(taken))
    export(model, out)
    return taken


def checkpoints(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, the newest first, or the one checkpoint that is named.

    Raises:
        BuildError: there is none.
    """
    found = [run] if (run / checkpoint.STATE).exists() else checkpoint.whole(run / "checkpoints")
    if not found:
        raise BuildError(run, "holds no checkpoint", "name the folder of a run, such as builds/NAME/train, or a checkpoint")
    return found


def _untrained(path: Path) -> Model:
    """Return the model that a checkpoint's run started from, with the prompts that it was trained with."""
    said = checkpoint.checked(path)
    recipe = Train.model_validate(said["recipe"])
    model = load_model(
        recipe.model, pooling=recipe.pooling, max_tokens=recipe.max_tokens, device="cpu", prompts=Prompts.by_name(recipe.prompts)
    )
    model.prompts, model.trained_prompt = said.get("prompts", model.prompts), said.get("prompt")
    return model


def forget(out: Path) -> None:
    """Delete what an earlier run made, and nothing else of the folder; its tokens can serve again."""
    for name in reversed(MADE):  # the receipt first: what is half deleted must not look done
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
