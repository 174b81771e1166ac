"""What a run leaves on disk: checkpoints, and the receipt that says what it was trained on; how it resumes, and exports.

`checkpoints/step-000200/` is complete or absent. It records which run it is a state of, and another run refuses it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from curation.core import store
from curation.core.errors import BuildError, listed
from curation.recipe.settings import Train
from training import ranks
from training.backend import Backend, load_weights, trained_weights
from training.lora import add_lora, whole_weights
from training.model.export import export, refuse_other_files, replaced
from training.model.files import check_model
from training.model.model import Model
from training.start import model_of, start_from

if TYPE_CHECKING:
    from training.data import Plan
    from training.tokens import Source
    from training.validation import Validation

STATE = "checkpoint.json"
STEP_FOLDER = re.compile(r"step-(\d{6,})")
START_OVER = "give the recipe it was started with, or start over with `--restart`, which deletes it"
# Recipe keys that change nothing of the result but the rounding, as the number of processes does.
CIRCUMSTANCES = {"save_every", "keep", "log_every", "token_budget", "checkpointing", "deepspeed"}
RUN_FILES = (
    *("checkpoints", "model", "log.jsonl", "report.html", "tensorboard", "mteb", store.EVALUATION),
    *(store.TIMINGS, store.RECEIPT),
)
Say = Callable[[str], None]


# Checkpoints


def save(
    folder: Path, step: int, described: Mapping[str, Any], write: Callable[[Path], None], keep: int, best: int | None = None
) -> Path:
    """Write the state after `step` steps as `<folder>/step-NNNNNN`, delete all but the last `keep` and the best; return its path.

    `described` says which run this is and must be valid JSON; `write` writes the state into the folder that it is given.
    """
    target = checkpoint_path(folder, step)
    with replaced(target) as part:
        write(part)
        sizes = {}
        for path in sorted(path for path in part.rglob("*") if path.is_file()):
            sizes[path.relative_to(part).as_posix()] = path.stat().st_size
        store.write_json(part / STATE, {"step": step, "bytes": sizes, **described})
        store.write_receipt(part, {"step": step})
    kept = [*complete_checkpoints(folder)[:keep], checkpoint_path(folder, best or step)]
    for path in folder.glob("step-*"):
        if path not in kept:
            shutil.rmtree(path)  # older ones, and what a killed run left unfinished
    return target


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return folder / f"step-{step:06d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints whose files all have the length they were written with, the newest first.

    Digests are not compared here: reading gigabytes at each start would take too long.
    """
    found = []
    for path in folder.glob("step-*"):
        if STEP_FOLDER.fullmatch(path.name) and (path / STATE).exists():
            sizes = read_state(path)["bytes"]
            if all((path / name).is_file() and (path / name).stat().st_size == size for name, size in sizes.items()):
                found.append(path)
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def read_state(path: Path) -> dict[str, Any]:
    """Return the `step` and `bytes` of a checkpoint, and how its run was `described`."""
    return dict(store.read_json(path / STATE, _use_an_earlier(path)))


def verified_state(path: Path) -> dict[str, Any]:
    """Return the same as `read_state` after comparing every byte of the checkpoint with its receipt.

    Raises:
        BuildError: something was changed since the checkpoint was written.
    """
    receipt = store.receipt_of(path, _use_an_earlier(path))
    store.check_files(path, receipt, _use_an_earlier(path))
    return read_state(path)


def _use_an_earlier(path: Path) -> str:
    return f"delete {path} and run the command again, which uses the checkpoint before it"


# Which run it is


def describe(recipe: Train, seed: int, sources: Sequence[Source], model: Model, validation: Validation) -> dict[str, Any]:
    """Return everything that the result depends on: runs with equal descriptions give equal weights."""
    start = xxhash.xxh3_128()  # the digest of the weights at the start
    for name, weight in [*model.backbone.named_parameters(), *model.head.named_parameters()]:
        start.update(name.encode())
        start.update(np.ascontiguousarray(weight.detach().cpu().numpy()).data)
    return {
        "recipe": recipe.model_dump(mode="json", exclude={*CIRCUMSTANCES, "seed"}),
        "seed": seed,  # the recipe's own, or the build's
        "sources": {source.name: source.digest for source in sources},
        "start": str(start.hexdigest()),
        **({"in_batch_gradient": "queries" if ranks.ranks().world > 1 else "all"} if recipe.reproduce_f2llm else {}),
        **({"heldout": validation.digests} if validation.digests else {}),
    }


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Compare the description in a file of a run with the run that wants to continue from it.

    A run from before a key of the recipe was added was trained with what is the key's default now.

    Raises:
        BuildError: it belongs to another run; the keys that differ are named.
    """

    def differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
        found = []
        known = before.keys() if place else before.keys() & {"from"}  # a file may have more keys at the top
        for key in sorted(known | now.keys()):
            old, new, name = before.get(key), now.get(key), f"{place}{key}"
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                found += differences(old, new, f"{name}.")
            elif old != new:
                shown = ["absent" if value is None else str(value) for value in (old, new)]
                found.append(f"{name} {shown[0]} (now {shown[1]})")
        return found

    defaults = Train(model="").model_dump(mode="json")
    recipe = {name: defaults.get(name) for name in now["recipe"]} | before.get("recipe", {})
    if found := differences({**before, "recipe": recipe}, now):
        raise BuildError(where, f"was made with {listed(found)}", START_OVER)


def finished(out: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the receipt if this run is finished already, else None.

    Raises:
        BuildError: the folder has another finished run.
    """
    receipt = store.read_receipt(out)
    if receipt is None:
        return None
    check_same_run(receipt, run, out)
    if not (out / "model").is_dir():
        return None
    check_model(out / "model")
    return receipt


def resume(
    folder: Path, run: Mapping[str, Any], backend: Backend, validation: Validation, say: Say
) -> tuple[int, dict[str, Any]]:
    """Load the newest complete checkpoint; return the number of steps done (0 without a checkpoint) and the circumstances.

    These are the threads used, and the `token_budget` if one was chosen for a GPU. The rounding of a matrix product depends on
    the number of threads, so a change is reported: the weights then equal those of an uninterrupted run only up to rounding.

    Raises:
        BuildError: the checkpoint belongs to another run.
    """
    found = complete_checkpoints(folder)
    threads = torch.get_num_threads()
    if not found:
        return 0, {"threads": threads}
    state = verified_state(found[0])
    check_same_run(state, run, found[0])
    backend.load(found[0])
    validation.restore(state)
    say(f"continuing from {found[0]}")
    chosen = {"token_budget": state["token_budget"]} if "token_budget" in state else {}
    before = list(dict.fromkeys([*state.get("threads_before", []), state.get("threads", threads)]))
    if before == [threads]:
        return int(state["step"]), {"threads": threads, **chosen}
    if backend.device.type == "cpu":
        say(
            f"continuing with {threads} threads, earlier steps used {listed(map(str, before))}: "
            "the weights will not equal those of an uninterrupted run bit by bit"
        )
    return int(state["step"]), {"threads": threads, "threads_before": before, **chosen}


# Finishing and exporting


def receipt_of_run(
    run: Mapping[str, Any], plan: Plan, steps: int, model: Model, recipe: Train, validation: Validation
) -> dict[str, Any]:
    """Return the content of done.json, except the digest of the model."""
    trained_on = {}
    for source in plan.sources:
        further = {"further_positives": source.further_positives} if source.further_positives else {}
        trained_on[source.name] = {"task": source.task, "tuples": len(source), **further}
    return {
        **run,
        "digest": store.digest_of(run),
        "steps": steps,
        **validation.state(),
        "trained_on": trained_on,
        "tables": {source.name: source.tables for source in plan.sources},
        "prompt": model.trained_prompt,
        **({"prompts": recipe.prompts.model_dump()} if recipe.prompts else {}),
        **({"end_token": "appended"} if model.appends_eos else {}),
        "versions": store.versions(),
    }


def finish(out: Path, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Write the receipts of a finished run, and return done.json, which includes the digest of the model's receipt.

    Files with clock times, which differ between equal runs, have their digests in timings.json.
    """
    logs = [out / "log.jsonl", *(path for path in sorted((out / "tensorboard").rglob("*")) if path.is_file())]
    store.write_json(out / store.TIMINGS, {"files": {path.relative_to(out).as_posix(): store.file_digest(path) for path in logs}})
    whole = {**receipt, "model": store.file_digest(out / "model" / store.RECEIPT)}
    store.write_json(out / store.RECEIPT, whole)
    return whole


def forget(out: Path) -> None:
    """Delete what an earlier run wrote, and nothing else in the folder; its tokens can be used again."""
    for name in reversed(RUN_FILES):  # the receipt first: a half-deleted run must not look finished
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def export_checkpoint(run: Path, out: Path, own: Path | None = None) -> Path:
    """Export a checkpoint, or the newest checkpoint of a run, to a folder; return the checkpoint.

    Args:
        run: a run, or a checkpoint.
        out: folder of the model.
        own: the run that is being trained, whose model may be replaced. Otherwise only a run's model that was deleted is
            written again.

    Raises:
        BuildError: there is no checkpoint, or `out` holds other files than a model, or the model of a run.
    """
    refuse_other_files(out, own or (None if out.exists() else run))
    newest = checkpoints_of(run)[0]
    model = _model_of(newest)
    load_weights(model, newest)
    export(model, out)
    return newest


def average_checkpoints(run: Path, out: Path, last: int | None = None) -> list[Path]:
    """Export the mean of the weights of a run's `last` checkpoints, or of all; return them, the newest first.

    The sums are in float64.

    Raises:
        BuildError: there are fewer checkpoints, or `out` holds other files than a model, or the model of a run.
    """
    refuse_other_files(out)
    found = checkpoints_of(run)
    if last is not None and len(found) < last:
        many = f"{len(found)} checkpoint{'s' * (len(found) > 1)}"
        raise BuildError(run, f"has {many}, not {last}", "set `keep` in the recipe, or give a smaller --last")
    _export_mixed(_model_of(found[0]), found[:last], [1.0] * len(found[:last]), "linear", out)
    return found[:last]


def merge_runs(runs: Sequence[Path], out: Path, method: str = "linear", shares: Sequence[float] | None = None) -> list[Path]:
    """Export one model made of the newest checkpoints of several runs that started from the same weights; return the checkpoints.

    The model has the prompts of all runs; where two give one source different prompts, those of the first.

    Args:
        runs: two runs or more, or checkpoints.
        out: folder of the model.
        method: `linear`, the weighted mean (model soups, arXiv 2203.05482), or `slerp`, which goes along the arc between two
            weights (Shoemake 1985), tensor by tensor, and takes in one run after the other.
        shares: a positive number for each run; equal ones by default.

    Raises:
        BuildError: a run has no checkpoint, or started from other weights; or `out` holds other files than a model, or the
            model of a run.
    """
    refuse_other_files(out)
    taken = [checkpoints_of(run)[0] for run in runs]
    states = [read_state(path) for path in taken]  # digests are compared where weights are read
    for path, state in zip(taken, states, strict=True):
        if state["start"] != states[0]["start"]:
            raise BuildError(path, f"did not start from the weights that {taken[0]} started from", "merge runs of one `model`")
        if state["recipe"].get("lora") != states[0]["recipe"].get("lora"):
            raise BuildError(path, f"has other settings of `lora` than {taken[0]}", "merge runs with equal ones")
    model = _model_of(taken[0])
    for state in states[1:]:
        model.prompts = {**state.get("prompts", {}), **model.prompts}
    _export_mixed(model, taken, shares or [1.0] * len(taken), method, out)
    return taken


def _export_mixed(model: Model, checkpoints: Sequence[Path], shares: Sequence[float], method: str, out: Path) -> None:
    """Export the mixture of the weights of checkpoints, computed in float64."""
    mixed: dict[str, torch.Tensor] = {}
    total = 0.0
    for path, share in zip(checkpoints, shares, strict=True):
        verified_state(path)
        load_weights(model, path)
        total += share
        for name, weight in whole_weights(model).items():
            new = weight.detach().double()
            if method == "linear":
                mixed[name] = mixed.get(name, 0) + share * new
            else:
                mixed[name] = slerp(mixed[name], new, share / total) if name in mixed else new
    if model.adapter is not None:  # its place is taken by the mixed weights
        model.backbone, model.adapter = model.adapter.unload(), None
    every = {**dict(model.backbone.named_parameters()), **trained_weights(model)}
    with torch.no_grad():
        for name, weight in ((name, every[name]) for name in mixed):
            weight.copy_(mixed[name] / total if method == "linear" else mixed[name])
    export(model, out)


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Return the point at `share` (0 to 1) of the arc between two tensors of one shape; of the line, where there is no arc."""
    lengths = start.norm() * end.norm()
    angle = torch.acos(((start * end).sum() / lengths).clamp(-1, 1)) if lengths > 0 else torch.zeros(())
    if torch.sin(angle) < 1e-6:
        return torch.lerp(start, end, share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


def checkpoints_of(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, the newest first; or `run` itself if it is a checkpoint.

    Raises:
        BuildError: there is no checkpoint.
    """
    found = [run] if (run / STATE).exists() else complete_checkpoints(run / "checkpoints")
    if not found:
        raise BuildError(run, "has no checkpoint", "give the folder of a run, such as builds/NAME/train, or a checkpoint")
    return found


def _model_of(path: Path) -> Model:
    """Return the model that a checkpoint's run started from, with the prompts that it was trained with."""
    state = verified_state(path)
    recipe = Train.model_validate(state["recipe"])
    model = model_of(recipe)
    model.prompts, model.trained_prompt = state.get("prompts", model.prompts), state.get("prompt")
    if recipe.lora:  # the checkpoint has LoRA's matrices only
        if "from" in state:
            folder = Path(state["from_folder"])
            if not (folder / store.RECEIPT).is_file() or start_from(model, folder, recipe)["model"] != state["from"]["model"]:
                what = f"was trained with LoRA on the weights of {folder}, which are not there any more"
                raise BuildError(path, what, "put that model back, or train again with `--restart`")
        add_lora(model, recipe.lora)
    return model
