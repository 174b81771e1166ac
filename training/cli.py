"""`train`: alone it trains; `train evaluate` and `train export` stand beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from curation.core.console import SETTINGS, VERSION, newest, run_command, say
from curation.core.errors import BuildError, ManifestError
from curation.core.progress import for_terminal
from training.cli_models import COMMANDS, DEVICE, FOLDER, JSON, QUIET, show

if TYPE_CHECKING:
    from curation.recipe.settings import Train


class TrainGroup(click.Group):
    """A group that takes whatever names no subcommand as arguments of `run`, and shows both in one help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before arguments that name no subcommand."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names, "--version"):
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
@VERSION
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
@click.option("--tensorboard", is_flag=True, help="Write OUT/tensorboard too, for TensorBoard to show.")
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
        from training.plan import estimate

        return show(estimate(build, settings, only=only), as_json)
    from training import ranks
    from training.stops import Stopped
    from training.train import train as train_model

    tell = (lambda line: None) if quiet or not ranks.first() else say
    try:
        receipt, ran = train_model(
            build,
            settings,
            out=out,
            device=device,
            only=only,
            restart=restart,
            tensorboard=tensorboard,
            say=tell,
            progress=for_terminal(quiet),
        )
    except Stopped as stop:
        say(f"train: {stop}")
        ctx.exit(128 + stop.number)
    folder = out or build / "train"
    tell(f"{'trained' if ran else 'nothing to do: already trained'}: {folder / 'model'}")
    if as_json:
        show({**receipt, "model": str(folder / "model"), "ran": ran}, True)


@train.command()
@click.argument("build", type=FOLDER, required=False)
@click.option("--recipe", type=FOLDER, help="Use this file of `train:` keys instead of the manifest's.")
@click.option("--only", multiple=True, metavar="SOURCE", help="This source alone; may be repeated.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="GPUs that share the work.")
@JSON
def plan(build: Path | None, recipe: Path | None, only: tuple[str, ...], gpus: int, as_json: bool) -> None:
    """Print steps, tokens, memory and GPU-hours; train nothing.

    Memory and hours are an estimate, with its assumptions beside it. Of the
    model it reads config and tokenizer; the weights need not be there.
    """
    from training.plan import estimate

    build = newest(build, as_json)
    show(estimate(build, _recipe(build, recipe), only=only, gpus=gpus), as_json)


for command in COMMANDS:
    train.add_command(command)


def _recipe(build: Path, recipe: Path | None) -> Train:
    """Return the settings of a recipe file, else those of the build's manifest."""
    from curation.core.builds import check_beside
    from curation.recipe.manifest import load_manifest, load_recipe

    if not (build / "build.json").exists():
        raise BuildError(build, "holds no build", "run `curate build MANIFEST` first, or name a build folder")
    if recipe is not None:
        return load_recipe(recipe)
    check_beside(build, "manifest.yaml")
    settings = load_manifest(build / "manifest.yaml").train
    if settings is None:
        raise ManifestError(build / "manifest.yaml", "has no `train:` section", "add one, or give --recipe FILE")
    return settings


def main() -> None:
    """Run the command line."""
    run_command(train, "train")
