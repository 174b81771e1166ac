"""The command `train`: by itself it trains; its subcommands plan, evaluate, export, publish and so on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curation.core.console import PATH, RAY, SETTINGS, VERSION, check_places, newest, output, run_command, say
from curation.core.errors import BuildError, ManifestError, did_you_mean
from curation.core.escape import text_table
from curation.core.progress import for_terminal

if TYPE_CHECKING:
    from curation.recipe.settings import Train

DEVICE = click.option(
    "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N; auto uses a GPU if there is one."
)
RECIPE = click.option("--recipe", type=PATH, help="Use this file of `train:` keys instead of the manifest's.")
OUT = click.option("-o", "--out", type=PATH, required=True, help="Folder to write the model to.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


# `train` is a group whose hidden subcommand `run` takes the arguments that do not name another subcommand.


class TrainGroup(click.Group):
    """A group that passes arguments without a subcommand to `run`, and shows the options of `run` in its own help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `run` before arguments that name no subcommand."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names, "--version"):
            others = [name for name in self.commands if name != "run"]
            if args and not args[0].startswith("-") and not Path(args[0]).exists() and (near := did_you_mean(args[0], others)):
                raise click.UsageError(f"'{args[0]}' is neither a command nor a build{near}.", ctx)
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show both forms of the command."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] [BUILD]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of training, then the subcommands."""
        click.Command.format_options(self.commands["run"], ctx, formatter)
        self.format_commands(ctx, formatter)


class RunContext(click.Context):
    """The context of `run`, whose messages say `train`."""

    @property
    def command_path(self) -> str:
        """Return `train`."""
        return self.parent.command_path if self.parent else "train"


class RunCommand(click.Command):
    """The hidden command `run`, whose help is the group's."""

    context_class = RunContext

    def get_help(self, ctx: click.Context) -> str:
        """Return the help of the group."""
        return ctx.parent.get_help() if ctx.parent else super().get_help(ctx)


@click.group("train", cls=TrainGroup, context_settings=SETTINGS)
@VERSION
def train_command() -> None:
    """Train an embedding model on a BUILD with mined negatives.

    BUILD is a folder such as builds/quickstart; by default the newest one. The recipe is the `train:` section of the
    build's manifest. An interrupted run continues from its last checkpoint.
    """


@train_command.command("run", cls=RunCommand, hidden=True)
@click.argument("build", type=PATH, required=False)
@RECIPE
@click.option("-o", "--out", type=PATH, help="Folder of the run; by default BUILD/train.")
@click.option(
    "--from", "start", type=PATH, metavar="RUN", help="Start from the weights of another run's model, as a second stage."
)
@DEVICE
@click.option("--only", multiple=True, metavar="SOURCE", help="Train on this source alone; may be repeated.")
@click.option("--steps", type=click.IntRange(1), help="Stop after this many steps; the learning rate ends there too.")
@click.option("--restart", is_flag=True, help="Delete what an earlier run left in the folder, and start over.")
@click.option("--dry-run", is_flag=True, help="Print what `train plan` prints, and train nothing.")
@click.option("--tensorboard", is_flag=True, help="Also write OUT/tensorboard, for TensorBoard.")
@JSON
@QUIET
@click.option("-v", "--verbose", is_flag=True, help="Print a line per step.")
@click.pass_context
def run_training(
    ctx: click.Context,
    build: Path | None,
    recipe: Path | None,
    out: Path | None,
    start: Path | None,
    device: str,
    only: tuple[str, ...],
    steps: int | None,
    restart: bool,
    dry_run: bool,
    tensorboard: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train."""
    build = newest(build, quiet)
    settings = _recipe(build, recipe)
    changes = {"steps": steps or settings.steps, "log_every": 1 if verbose else settings.log_every}
    settings = settings.model_copy(update=changes)
    if dry_run:
        return _print_plan(build, settings, only, 1, as_json)
    from training import ranks
    from training.train import Stopped, train

    message = (lambda line: None) if quiet or not ranks.first() else say
    try:
        receipt, ran = train(
            build,
            settings,
            out=out,
            start=start,
            device=device,
            only=only,
            restart=restart,
            tensorboard=tensorboard,
            say=message,
            progress=for_terminal(quiet),
        )
    except Stopped as stop:
        say(f"train: {stop}")
        ctx.exit(128 + stop.number)
    folder = out or build / "train"
    model = folder / "model"
    if not ran:
        message(f"nothing to do: already trained: {model}")
    else:
        if "before" in receipt and "best" in receipt:
            written = receipt["best"]["step"] if settings.export == "best" else max(map(int, receipt["history"]))
            score = f"{receipt['history'][str(written)]:.4f} after training (step {written})"
            message(f"nDCG@10 {receipt['before']:.4f} before, {score}")
        message(f"trained: {model}; see {folder / 'report.html'}")
        heldout = next((path for name in receipt["trained_on"] if (path := build / "heldout" / name).is_dir()), None)
        publish, measure = f"train publish {folder} ORG/NAME --dry-run", f"train evaluate {model} --data {heldout}"
        message(f"next: `{measure if heldout else publish}`")
    if as_json:
        show({**receipt, "model": str(model), "ran": ran}, True)


@train_command.command("plan")
@click.argument("build", type=PATH, required=False)
@RECIPE
@click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; may be repeated.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="Number of GPUs that share the work.")
@JSON
def plan_command(build: Path | None, recipe: Path | None, only: tuple[str, ...], gpus: int, as_json: bool) -> None:
    """Print steps, tokens, memory and GPU-hours; train nothing.

    Memory and hours are estimates; the output says what they assume. Only the
    model's config and tokenizer are read; its weights may be missing.
    """
    build = newest(build, as_json)
    _print_plan(build, _recipe(build, recipe), only, gpus, as_json)


def _print_plan(build: Path, settings: Train, only: tuple[str, ...], gpus: int, as_json: bool) -> None:
    from training.plan import as_table, estimate

    found = estimate(build, settings, only=only, gpus=gpus)
    if as_json:
        return show(found, True)
    output(as_table(found))


@train_command.command("ablate")
@click.argument("build", type=PATH, required=False)
@RECIPE
@click.option("-o", "--out", type=PATH, help="Folder of the ablation; by default BUILD/ablation.")
@click.option("--groups", type=PATH, metavar="FILE", help="YAML file of `NAME: [SOURCE, SOURCE]`: leave out these together.")
@click.option("--only", multiple=True, metavar="SOURCE", help="Use this source alone; may be repeated.")
@click.option("--data", multiple=True, metavar="FOLDER", help="Measure on this too, as in `train evaluate`; may be repeated.")
@click.option("--steps", type=click.IntRange(1), help="Steps of each run; by default the recipe's, at most 200.")
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of runs with all sources, and without each."
)
@click.option("--from", "start", type=PATH, metavar="RUN", help="Start from the weights of another run's model.")
@click.option(
    "--weight",
    type=click.FloatRange(0, 1000, min_open=True),
    metavar="W",
    help="Instead of leaving a source out, train with W times its weight.",
)
@click.option(
    "--suggest",
    type=PATH,
    metavar="FILE",
    help="Write a manifest without the sources that harm; with --weight, one with this weight where it helps.",
)
@DEVICE
@click.option(
    *("-j", "--workers", "processes"), type=click.IntRange(1), help="Number of runs at once [default: one per GPU, or one]."
)
@RAY
@click.option("--dry-run", is_flag=True, help="Print the number of runs and how long they take; time a few steps for that.")
@JSON
@QUIET
@click.pass_context
def ablate_command(
    ctx: click.Context,
    /,
    build: Path | None,
    recipe: Path | None,
    out: Path | None,
    groups: Path | None,
    weight: float | None,
    suggest: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **chosen: Any,  # the other arguments of `ablate`
) -> None:
    """Find out which sources help: train with and without each.

    Trains short runs from the same start, with the same seeds and number of steps:
    some with all sources, and as many without each source. The table shows nDCG@10
    with the source less nDCG@10 without it, on the held-out queries of all sources,
    with 95 % intervals over queries and seeds. It is also written to OUT, as
    ablation.json and ablation.html.

    Finished runs are kept if the command is interrupted; run it again to continue.
    """
    check_places(chosen["processes"], chosen["ray"])
    build = newest(build, quiet)
    settings = _recipe(build, recipe)
    from training.ablate import ablate, read_groups
    from training.ablation import check_suggestion, table_lines, write_suggestion
    from training.train import Stopped

    named = read_groups(groups) if groups else None
    if suggest:
        check_suggestion(build, suggest, weight)
    message = (lambda line: None) if quiet else say
    try:
        found = ablate(build, settings, out=out, groups=named, weight=weight, dry_run=dry_run, say=message, **chosen)
    except Stopped as stop:
        say(f"train ablate: {stop}")
        ctx.exit(128 + stop.number)
    if as_json:
        show(found, True)
    elif dry_run:
        mean_steps = [(name, f"{steps:.1f}") for name, steps in found["steps_of"].items()]
        return output(text_table(("source", "steps of each run with all sources"), mean_steps))
    else:
        output("\n".join(table_lines(found)))
    if suggest:
        names = write_suggestion(build, found, suggest)
        did, none = "leaves out", "no source harms"
        if weight:
            did, none = f"gives {weight:g} times the weight to", "this weight helps no source"
        message(f"{suggest}: {did} {', '.join(names)}" if names else f"{none}, so {suggest} is not written")
    message(f"see {(out or build / 'ablation') / 'ablation.html'}")


def _recipe(build: Path, recipe: Path | None) -> Train:
    """Return the settings in a recipe file, else those in the build's manifest."""
    from curation.core.builds import check_beside
    from curation.recipe.manifest import load_manifest, load_recipe

    if not (build / "build.json").exists():
        raise BuildError(build, "holds no build", "run `curate build MANIFEST` first, or name a build folder")
    if recipe is not None:
        return load_recipe(recipe)
    check_beside(build, "manifest.yaml")
    settings = load_manifest(build / "manifest.yaml").train
    if settings is None:
        hint = "add `train: {model: HUB_ID}` to your manifest and run `curate build` again, or give --recipe FILE"
        raise ManifestError(build / "manifest.yaml", "has no `train:` section", hint)
    return settings


@train_command.command("evaluate")
@click.argument("models", metavar="MODEL", nargs=-1, required=True)
@click.option(
    "--data",
    multiple=True,
    metavar="FOLDER",
    help="Folder in BEIR layout, such as BUILD/heldout/SOURCE, or one with several, such as BUILD/heldout; or NanoBEIR, or one "
    "of its sets, such as NanoSciFact. May be repeated.",
)
@click.option("--mteb", multiple=True, metavar="NAME", help="Task or benchmark of mteb, or a BEIR folder; may be repeated.")
@click.option(
    "-o", "--out", type=PATH, help="Folder for mteb's result files; by default RUN/mteb if MODEL is RUN/model, else none."
)
@click.option("--split", default="test", metavar="NAME", help="Use qrels/NAME.tsv of a folder; default test.")
@click.option("--instruction", default="", metavar="TEXT", help="Instruction before each query, instead of the default.")
@click.option(
    "--prompt",
    type=click.Choice(["auto", "instruct", "none"]),
    default="auto",
    help="Prompts of queries, like `prompt` in `mine:`; default auto.",
)
@click.option("--max-tokens", type=click.IntRange(4), help="Cut longer texts; by default at the model's own limit.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "auto"]), default="float32", help="Default float32.")
@DEVICE
@JSON
@QUIET
def evaluate_command(
    models: tuple[str, ...],
    data: tuple[str, ...],
    mteb: tuple[str, ...],
    out: Path | None,
    split: str,
    instruction: str,
    prompt: str,
    max_tokens: int | None,
    dtype: str,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how well MODEL retrieves: nDCG@10, recall@10, MRR@10.

    MODEL is a folder, a Hub id, or package:NAME; several are compared in one
    table. Queries get the prompts of training: the model's own, or the instruction
    saved with the model under the set's name, or that of the source in the build.
    Which one was used is printed on stderr and is in the JSON.

    With --data the table has 95 % intervals. With one MODEL they are of its scores;
    with two, of the second's score less the first's, query by query, so name the
    older model first. They are percentiles of 2,000 bootstrap resamples (seed 0) of
    each set's queries. NanoBEIR is read from the Hub's cache.

    With --mteb, the result is mteb's main score of each task and the mean per kind
    of task. The model's own prompts are used as mteb does; the instruction of a
    task is F2LLM's if it has one, else mteb's. Scores of a run's model are kept in
    the run, for its card, and with --mteb a draft of mteb's metadata is written
    too.
    """
    if bool(data) == bool(mteb):
        raise click.UsageError("Give either '--data' or '--mteb'.")
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "max_tokens": max_tokens, "prompt": prompt}
    if mteb:
        return _evaluate_mteb(models, mteb, split, out, instruction, settings, as_json, quiet)
    from training.collection import evaluation_sets
    from training.evaluate import compared, evaluation_prompts, measure_each
    from training.model.encode import load_encoder
    from training.publish import record_scores

    sets = {one.name: one for one in evaluation_sets(data, split)}
    collections, prompts = {name: one.read() for name, one in sets.items()}, {}
    each: dict[str, Any] = {}
    for model in models:
        encoder, each[model] = load_encoder(model, **settings), {}
        for name, collection in collections.items():
            prompts[model, name] = before = evaluation_prompts(encoder, sets[name].folder, instruction, name)
            if not quiet:
                say(f"{model}{f', {name}' if len(sets) > 1 else ''}: {before.summary()}")
            each[model][name] = measure_each(encoder, collection, before, for_terminal(quiet))
        record_scores(Path(model), {name: float(rows[0].mean()) for name, rows in each[model].items()}, "nDCG@10")
    found: dict[str, Any] = compared(each)
    if as_json:
        for (model, name), before in prompts.items():
            found[model][name]["prompt"] = before._asdict()
        whole = found if len(sets) > 1 else {model: some[name] for model, some in found.items() for name in sets}
        return show(whole[models[0]] if len(found) == 1 else whole, as_json)

    compare(list(found), *_rows_of(found))


def _rows_of(found: Mapping[str, Any]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return for `compare` a row per set and measure, and as notes the only model's interval, or the second's difference."""
    rows, notes, sets = dict[str, list[float]](), dict[str, str](), list(next(iter(found.values())))
    for name in sets:
        of_models = [some[name] for some in found.values()]
        for measure in ("ndcg@10", "recall@10", "mrr@10", "queries"):
            label = measure if len(sets) == 1 else f"{name:<{max(map(len, sets))}}  {measure}"
            rows[label] = [one[measure] for one in of_models]
            if measure != "queries" and len(found) == 1:
                notes[label] = "  {:.4f} to {:.4f}".format(*of_models[0]["intervals"][measure])
            elif measure != "queries" and len(found) == 2:
                notes[label] = "  {:+10.4f}  {:+.4f} to {:+.4f}".format(*of_models[1]["difference"][measure])
    return rows, notes


def _evaluate_mteb(
    models: tuple[str, ...],
    names: tuple[str, ...],
    split: str,
    out: Path | None,
    instruction: str,
    settings: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    import tempfile

    from training import mteb
    from training.model.encode import load_encoder
    from training.publish import record_scores, run_of

    tasks, found = mteb.tasks_of(names, split), {}
    for model in models:
        # mteb needs a name ORG/NAME: that of the Hub, else one derived from the package or the folder.
        if model.startswith("package:"):
            name = model.replace(":", "/")
        elif model.count("/") == 1 and not Path(model).exists():
            name = model
        else:
            name = f"local/{Path(model).resolve().as_posix().strip('/').replace('/', '-')}"
        encoder, folder = load_encoder(model, **settings), Path(model).resolve()
        with tempfile.TemporaryDirectory() as temporary:
            results = out or (folder.parent / "mteb" if run_of(folder) else Path(temporary))
            found[model] = mteb.evaluate_tasks(name, encoder, tasks, results, instruction)
            draft = mteb.write_model_meta(results / f"{name.replace('/', '--')}.py", folder, encoder)
        for task, prompts in found[model]["prompts"].items():
            shown = ", ".join(f"{kind}: {text!r}" if text else f"{kind}: none" for kind, text in prompts.items())
            if not quiet:
                say(f"{model}, {task}: prompts {shown}")
        record_scores(folder, found[model]["tasks"], "mteb's main score")
        if line := mteb.zero_shot_line(folder, [task.metadata.name for task in tasks]):
            say(f"{model}: {line}")
        if draft:
            say(f"draft of mteb's metadata: {draft}")
    if as_json:
        return show(found, True)
    rows = {task.metadata.name: [one["tasks"][task.metadata.name] for one in found.values()] for task in tasks}
    for kind in next(iter(found.values()))["means"]:
        rows[f"mean of {kind}"] = [one["means"][kind] for one in found.values()]
    rows["mean"] = [one["mean"] for one in found.values()]
    compare(list(found), rows)


def compare(models: list[str], rows: Mapping[str, list[float]], notes: Mapping[str, str] | None = None) -> None:
    """Print a line per row and a column per model, then the row's note; one model with notes gets no head.

    Models whose names do not fit into 80 columns get numbers.
    """
    width, beyond = max(map(len, rows)), max(map(len, (notes or {}).values()), default=0)
    difference = "second - first"
    if beyond and len(models) == 1:
        models = [""]
    elif width + sum(2 + max(len(model), 6) for model in models) + beyond > 80:
        output("".join(f"{f'[{number}]':>6}  {model}\n" for number, model in enumerate(models, start=1)))
        models = [f"[{number}]" for number in range(1, len(models) + 1)]
        difference = "[2] - [1], 95 % interval"
    if any(models):
        output(" " * width + "".join(f"  {model:>6}" for model in models) + (f"  {difference}" if beyond else ""))
    for name, scores in rows.items():
        shown = [f"{score:,}" if isinstance(score, int) else f"{score:.4f}" for score in scores]
        cells = "".join(f"  {one:>{max(len(model), 6)}}" for model, one in zip(models, shown, strict=True))
        output(f"{name:<{width}}{cells}{(notes or {}).get(name, '')}")


@train_command.command("export")
@click.argument("run", type=PATH)
@OUT
def export_command(run: Path, out: Path) -> None:
    """Write the model of a RUN to a folder.

    RUN is a folder such as builds/quickstart/train, whose newest checkpoint is
    used, or a checkpoint. sentence-transformers and transformers load the result.
    """
    from training.checkpoint import export_checkpoint

    say(f"exported {export_checkpoint(run, out)} to {out}")


@train_command.command("average")
@click.argument("run", type=PATH)
@OUT
@click.option("--last", type=click.IntRange(1), metavar="K", help="Only the last K checkpoints; by default all.")
def average_command(run: Path, out: Path, last: int | None) -> None:
    """Write the mean of a RUN's checkpoints as a model.

    The recipe's `keep` says how many checkpoints a run keeps.
    """
    from training.checkpoint import average_checkpoints

    taken = average_checkpoints(run, out, last)
    say(f"averaged {', '.join(path.name for path in taken)} to {out}")


@train_command.command("merge")
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN RUN...")
@OUT
@click.option(
    "--method",
    type=click.Choice(["linear", "slerp"]),
    default="linear",
    show_default=True,
    help="The weighted mean, or spherical interpolation of each tensor.",
)
@click.option("--weights", metavar="W,W...", help="A positive number for each run, such as 2,1; by default equal weights.")
def merge_command(runs: tuple[Path, ...], out: Path, method: str, weights: str | None) -> None:
    """Write one model made of several runs' newest checkpoints.

    The runs must have started from the same weights, on the same or on other data. Give the folder of a checkpoint to take
    one that is not the newest.
    """
    from training.checkpoint import merge_runs

    if len(runs) < 2:
        raise click.UsageError("give two runs or more; `train average` takes the checkpoints of one")
    shares = None
    if weights is not None:
        try:
            shares = [float(one) for one in weights.split(",")]
        except ValueError:
            shares = []
        if len(shares) != len(runs) or not all(0 < share < float("inf") for share in shares):
            raise click.UsageError(f"--weights {weights}: give {len(runs)} positive numbers, such as {','.join('1' * len(runs))}")
    taken = merge_runs(runs, out, method, shares)
    say(f"merged {', '.join(str(path) for path in taken)} to {out}")


@train_command.command("report")
@click.argument("run", type=PATH)
def report_command(run: Path) -> None:
    """Write the curves of a RUN as RUN/report.html.

    A run writes it at its end; use this command while it is running.
    """
    from training.report import write_report

    output(str(write_report(run)))


@train_command.command("publish")
@click.argument("model", type=PATH)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--license", default="unknown", metavar="ID", help="The model's licence, by its Hub id; default unknown.")
@click.option("--dataset", "datasets", multiple=True, metavar="ID", help="Hub id of its training data; may be repeated.")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--tag", metavar="NAME", help="Name this version, such as v1.0.")
@click.option("--dry-run", is_flag=True, help="Show files, bytes and the card; send nothing.")
@JSON
@QUIET
def publish_command(
    model: Path,
    repo: str,
    license: str,
    datasets: tuple[str, ...],
    private: bool,
    tag: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish MODEL on the Hub as ORG/NAME, in one commit.

    MODEL is a folder of `train` or `train export`. The card shows how to use the
    model. If MODEL is a run, such as builds/quickstart/train, the card also shows
    data, recipe and scores.
    """
    from curation.core.hub import upload
    from training.publish import plan_upload

    planned = plan_upload(model, repo, license, datasets)
    if dry_run:
        files = {path: piece.size for path, piece in planned.pieces.items()}
        card = {"card": planned.card} if as_json else {}
        show({"repo": repo, "files": files, "bytes": sum(files.values())} | card, as_json)
        return None if as_json else output(f"\n{planned.card}")
    done = upload(repo, "model", planned.pieces, private, tag, (lambda line: None) if quiet else say)
    sent = f"{len(done.sent)} of {len(planned.pieces)} files" if done.sent else "nothing to do"
    if as_json:
        return show({"url": done.url, "commit": done.commit, "tag": tag, "sent": done.sent, "deleted": done.deleted}, True)
    output(f"{done.url} at {done.commit[:12]}: {sent}, {sum(done.sent.values()):,} bytes")


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result on stdout: a line per value, or JSON."""
    if as_json:
        import json

        output(json.dumps(result, indent=1, ensure_ascii=False))
        return
    flat = {key: value for key, value in result.items() if not isinstance(value, Mapping)}
    for key, value in result.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} of {inner}": count for inner, count in value.items()}
    width = max(map(len, flat))
    for key, value in flat.items():
        shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        output(f"{key:<{width}}  {shown:>10}")


def main() -> None:
    """Run the command line."""
    run_command(train_command, "train")
