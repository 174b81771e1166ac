"""Which sources help: short runs with and without each source, from the same start, with the same seeds and as many steps.

With `weight`, the runs without a source are runs with that many times its weight instead.

<out>/scores/all-42-1f0c2b3a/  a finished run: scores.json, the nDCG@10 of each query by set, and its log
<out>/runs/all-42-1f0c2b3a/    a run under way, see `train.py`; deleted when its scores are written
<out>/ablation.json            what was found, see `ablation.py`
<out>/ablation.html            the same as a page

All runs of one seed share the order of the other sources' batches and the negatives drawn for them (see `data.py`), so that
they differ by little else than the source. The runs with all sources are shared by all comparisons.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch

from curation.core import locks, store
from curation.core.builds import read_build
from curation.core.errors import BuildError, ManifestError, SetupError, did_you_mean, listed
from curation.engine.workers import workers
from curation.recipe.settings import Train
from curation.recipe.yaml import read_yaml
from training import ranks
from training.ablation import compare_runs, intervals_in_words, page_of
from training.checkpoint import Say
from training.collection import EvaluationSet, evaluation_sets
from training.data import Plan
from training.evaluate import evaluation_prompts, measure_each
from training.log import duration, read_log
from training.model.encode import Encoder, load_encoder
from training.model.files import find_model
from training.start import model_folder, model_of, start_from
from training.step import total_steps
from training.tokens import load_sources, mined_sources
from training.train import train

MOST_STEPS = 200  # of a run, if nothing else is asked for
TIMED_STEPS = 4  # steps by which the time of all runs is estimated
SECONDS_BETWEEN_CHECKPOINTS = 120
# A run trains on one device, and only its last weights are measured.
PLAIN: dict[str, Any] = {
    "evaluate_every": None,
    "evaluate_on": [],
    "patience": None,
    "export": "last",
    "deepspeed": None,
    "keep": 1,
}


class Run(NamedTuple):
    """A run to train and to measure."""

    label: str  # such as without-squad-42
    without: str  # the source or group that it leaves out, or weighs otherwise; empty: none
    sources: tuple[str, ...]  # that it trains on
    recipe: Train
    build: Path
    out: Path
    start: Path | None
    sets: tuple[EvaluationSet, ...]
    depends: str  # digest of the files that all runs depend on

    @property
    def digest(self) -> str:
        """The digest of everything that the scores depend on."""
        settings = self.recipe.model_dump(mode="json", exclude={"save_every", "log_every"})
        return store.digest_of([self.depends, self.label, self.sources, settings])

    @property
    def folder(self) -> Path:
        """Where the scores are."""
        return self.out / "scores" / f"{self.label}-{self.digest[:8]}"


def ablate(
    build: Path,
    recipe: Train,
    *,
    out: Path | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    only: Sequence[str] = (),
    data: Sequence[str | Path] = (),
    steps: int | None = None,
    seeds: int = 3,
    weight: float | None = None,
    start: Path | None = None,
    device: str = "auto",
    processes: int | None = 1,
    ray: str | None = None,
    dry_run: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Train with and without each source; return what was found, see `compare_runs`, or with `dry_run` what it would cost.

    Finished runs are not repeated, and a run under way continues from its checkpoint.

    Args:
        build: a build folder with mined negatives.
        recipe: the `train:` section of a manifest. The runs do not evaluate while they train, and each uses one device.
        out: folder of the ablation; by default BUILD/ablation.
        groups: sources to leave out together, by name; by default each source alone.
        only: use these sources alone.
        data: evaluation sets besides the held-out queries and the recipe's `evaluate_on`, as for `evaluation_sets`.
        steps: of each run; by default those of the recipe with all sources, at most MOST_STEPS.
        seeds: how many; the first is the recipe's, else the build's.
        weight: instead of leaving out a source, multiply its weight by this; the steps stay as many.
        start: the folder of another run, whose weights the runs start from.
        device, processes, ray: who trains, as for `workers`; a worker trains one run at a time.
        dry_run: only measure the start and time a few steps.
        say: is called with each line for the screen.

    Raises:
        BuildError: no mined negatives, no evaluation set, fewer than two sources, or a group that cannot be left out.
        SetupError: several processes were started by a launcher; or from `workers`.
        Stopped: SIGINT or SIGTERM arrived, and the run under way is saved.
    """
    if ranks.ranks().world > 1:
        raise SetupError("train ablate", "does not run under a launcher", "start it without torchrun; `-j N` shares the runs out")
    build, out = (path if ray is None else path.absolute() for path in (build, out or build / "ablation"))
    first = first_run(build, recipe, out, only, data, start)
    left_out = checked_groups(build, groups, first.sources)
    with locks.locked(out, "train ablate"), workers(out, processes, ray, device) as some:
        (out / "scores").mkdir(exist_ok=True)
        # What all runs share: the tokens, the scores before training, and how long a step takes here.
        first = first._replace(label=f"start-{steps or 'auto'}-{seeds}")
        seen = next(some.run(partial(measure_start, steps=steps, seeds=seeds, device=some.device), [first]))[1]()
        for name in [name for name in first.sources if not seen["steps_of"].get(name)]:
            say(f"{name}: none of the {seen['steps']:,} steps trains on it; a higher --steps would")

        # The runs, seed by seed, so that an ablation that is stopped has each comparison.
        plan = planned(first, left_out, seen, seeds, weight)
        todo = [run for run in plan if not store.is_current(run.folder, run.digest)]
        at_once = min(getattr(some, "most", 1), max(1, len(todo)))
        seconds = (seen["seconds_per_step"] * seen["steps"] + seen["seconds_besides"]) * len(todo) / at_once
        other = f"with {weight:g} times the weight of" if weight else "without"
        kinds = f"{seeds} with all sources, {len(plan) - seeds} {other} {'a group' if groups else 'one'}"
        many = f"{len(plan)} runs of {seen['steps']:,} steps ({kinds}), {len(todo)} of them to do"
        say(f"{many}: about {duration(seconds)}" + (f", {at_once} at once" if at_once > 1 else ""))
        if dry_run:
            cost = {"runs": len(plan), "to_do": len(todo), "at_once": at_once, "seconds": round(seconds)}
            return {**cost, "steps": seen["steps"], "steps_of": seen["steps_of"]}
        begun = perf_counter()
        for done, (run, result) in enumerate(some.run(partial(train_and_measure, device=some.device), todo), start=1):
            mean = result()["ndcg@10"]
            left = (perf_counter() - begun) / done * (len(todo) - done)
            say(f"{done}/{len(todo)} {run.label}: nDCG@10 {mean:.4f}" + (f"; {duration(left)} left" if done < len(todo) else ""))
        return write_found(first, left_out, seen, plan, weight)


def first_run(build: Path, recipe: Train, out: Path, only: Sequence[str], data: Sequence[str | Path], start: Path | None) -> Run:
    """Return a run on all sources, with what all runs have in common.

    Raises:
        BuildError: no mined negatives, no evaluation set, or a `start` without a model.
    """
    entries = mined_sources(build, only, recipe.sources)
    folders = [build / "heldout" / name for name in entries if (build / "heldout" / name).is_dir()]
    if not folders and not recipe.evaluate_on and not data:
        hint = "give a source `holdout: N` and build again, or name an evaluation set with --data"
        raise BuildError(build, "has no held-out queries to measure on", hint)
    sets = evaluation_sets([*folders, *recipe.evaluate_on, *data])
    receipts = [build / stage / name / store.RECEIPT for name in entries for stage in ("curated", "mined")]
    depends = {
        "model": find_model(recipe.model).digests(),
        "start": store.file_digest(model_folder(start, out) / store.RECEIPT) if start else None,
        "stages": [store.read_json(path)["digest"] for path in receipts],
        "sources": [[entry["task"], entry["instruction"]] for entry in entries.values()],
        "sets": {one.name: one.digests() for one in sets},
        "versions": store.versions(),
    }
    seed = int(read_build(build)["seed"]) if recipe.seed is None else recipe.seed
    recipe = recipe.model_copy(update={**PLAIN, "seed": seed})
    return Run("", "", tuple(entries), recipe, build, out, start, tuple(sets), store.digest_of(depends))


def planned(
    first: Run, left_out: Mapping[str, Sequence[str]], seen: Mapping[str, Any], seeds: int, weight: float | None = None
) -> list[Run]:
    """Return the runs of each seed: with all sources, and without each or with `weight` times its weight; steps are equal."""
    steps, seed = seen["steps"], first.recipe.seed or 0
    every = max(1, round(SECONDS_BETWEEN_CHECKPOINTS / seen["seconds_per_step"]))
    changes = {"steps": steps, "epochs": steps, "save_every": min(every, first.recipe.save_every)}
    trained = [what for what, names in left_out.items() if any(seen["steps_of"].get(name) for name in names)]
    runs = []
    for one in range(seed, seed + seeds):
        own = first._replace(label=f"all-{one}", recipe=first.recipe.model_copy(update={**changes, "seed": one}))
        runs.append(own)
        for what in trained:
            if weight:
                given = {name: first.recipe.of(name) for name in left_out[what]}
                more = {name: of.model_copy(update={"weight": of.weight * weight}) for name, of in given.items()}
                recipe = own.recipe.model_copy(update={"sources": {**first.recipe.sources, **more}})
                runs.append(own._replace(label=f"{weight:g}-times-{what}-{one}", without=what, recipe=recipe))
                continue
            kept = tuple(name for name in first.sources if name not in left_out[what])
            runs.append(own._replace(label=f"without-{what}-{one}", without=what, sources=kept))
    return runs


def checked_groups(build: Path, groups: Mapping[str, Sequence[str]] | None, known: Sequence[str]) -> dict[str, list[str]]:
    """Return what to leave out, by name: the groups, or each source.

    Raises:
        BuildError: there are fewer than two sources, or a group has an unknown source, or none, or all of them.
    """
    if len(known) < 2:
        raise BuildError(build, f"has one source to train on, '{known[0]}'", "an ablation needs two or more")
    for what, names in (groups or {}).items():
        where, they_are = f"group '{what}'", f"{build} has {listed(known)}"
        for name in [name for name in names if name not in known]:
            raise BuildError(where, f"no source '{name}'{did_you_mean(name, known)}", they_are)
        if not names or set(names) == set(known):
            raise BuildError(where, "leaves nothing to train on" if names else "names no source", they_are)
    return {what: list(names) for what, names in groups.items()} if groups else {name: [name] for name in known}


def read_groups(path: Path) -> dict[str, list[str]]:
    """Return the groups in a YAML file: names, each with a list of sources.

    Raises:
        ManifestError: it has something else.
    """
    document = read_yaml(path)
    for name, sources in document.value.items() if isinstance(document.value, dict) and document.value else [("", None)]:
        if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
            raise ManifestError(document.where((name,)), "holds no groups", "write a line `NAME: [SOURCE, SOURCE]` for each")
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ManifestError(document.where((name,)), f"'{name}' cannot name a group", "use letters, digits, - and _")
    return dict(document.value)


def measure_start(run: Run, steps: int | None, seeds: int, device: str) -> dict[str, Any]:
    """Measure the model that all runs start from, write their tokens, and time a few steps; return what the receipt says."""

    def work(part: Path) -> dict[str, Any]:
        model = model_of(run.recipe, device)
        if run.start:
            start_from(model, model_folder(run.start, run.out), run.recipe)
        sources = load_sources(run.build, model, run.recipe.prompt, run.sources)
        plans = [Plan(sources, (run.recipe.seed or 0) + number, run.recipe) for number in range(seeds)]
        many = steps or min(total_steps(run.recipe, plans[0].steps_per_epoch), MOST_STEPS)
        counts = [plan.steps_of(many) for plan in plans]
        begun = perf_counter()
        scores = write_scores(part, run, Encoder(model, torch.float32, run.recipe.prompt, training=True))
        del model

        # What a run takes besides its steps: to load and write the model, and to measure it.
        few = {"steps": TIMED_STEPS, "epochs": TIMED_STEPS, "save_every": TIMED_STEPS}
        timed = part / "timed"
        train(run.build, run.recipe.model_copy(update=few), out=timed, start=run.start, device=device, only=run.sources)
        each = [line["seconds"] for line in read_log(timed / "log.jsonl")]
        shutil.rmtree(timed)
        return {
            **scores,
            "steps": many,
            "steps_of": {name: sum(one[name] for one in counts) / seeds for name in counts[0]},
            "seconds_per_step": float(np.median(each[1:] or each)),
            "seconds_besides": perf_counter() - begun - sum(each),
        }

    return store.run_stage(run.folder, run.digest, work)[0]


def train_and_measure(run: Run, device: str) -> dict[str, Any]:
    """Train a run and measure its model; return what the receipt says."""

    def work(part: Path) -> dict[str, Any]:
        if torch.cuda.is_available():
            torch.compiler.reset()  # a process compiles a function only so many times
        train(run.build, run.recipe, out=trained, start=run.start, device=device, only=run.sources)
        shutil.copyfile(trained / "log.jsonl", part / "log.jsonl")
        return write_scores(part, run, load_encoder(str(trained / "model"), device=device))

    trained = run.out / "runs" / run.folder.name
    receipt, _ = store.run_stage(run.folder, run.digest, work)
    shutil.rmtree(trained, ignore_errors=True)
    return receipt


def write_scores(part: Path, run: Run, encoder: Encoder) -> dict[str, Any]:
    """Measure a model on all sets, as `train evaluate` does, and write the nDCG@10 of each query; return their mean over sets."""
    found = {}
    for one in run.sets:
        prompts = evaluation_prompts(encoder, one.folder, name=one.name)
        found[one.name] = measure_each(encoder, one.read(), prompts)[0].tolist()
    store.write_json(part / "scores.json", found)
    return {"ndcg@10": float(np.mean([np.mean(each) for each in found.values()]))}


def query_scores(run: Run) -> dict[str, np.ndarray]:
    """Return the nDCG@10 of each query of a run, (n,) float64 by set, after checking the file."""
    store.check_files(run.folder, store.receipt_of(run.folder))
    return {name: np.array(each) for name, each in store.read_json(run.folder / "scores.json").items()}


def write_found(
    first: Run, left_out: Mapping[str, list[str]], seen: Mapping[str, Any], plan: Sequence[Run], weight: float | None = None
) -> dict[str, Any]:
    """Compare finished runs, write ablation.json and ablation.html, and return what the first of them holds."""
    scores: dict[str, list[dict[str, np.ndarray]]] = {}
    for run in plan:
        scores.setdefault(run.without, []).append(query_scores(run))
    folders = {one.folder: one.name for one in first.sets}
    own = {
        what: [folders[folder] for name in names if (folder := first.build / "heldout" / name) in folders]
        for what, names in left_out.items()
    }
    found = {
        "build": str(read_build(first.build)["name"]),
        "steps": seen["steps"],
        "weight": weight,
        "seeds": list(dict.fromkeys(run.recipe.seed for run in plan)),
        "recipe": first.recipe.model_dump(mode="json", exclude={"seed", "steps", "epochs", *PLAIN}),
        "intervals": intervals_in_words(len(scores[""])),
        **compare_runs(query_scores(first), scores, own, -1 if weight else 1),
        "not_trained_on": [what for what in left_out if what not in scores],
        "versions": store.versions(),
    }
    for what, one in found["sources"].items():
        one |= {"sources": left_out[what], "steps": sum(seen["steps_of"].get(name, 0) for name in left_out[what])}
    store.write_json(first.out / "ablation.json", found)
    with store.atomic(first.out / "ablation.html") as file:
        file.write(store.sealed_page(page_of(found)))
    return found
