"""Where the commands `tuplesmith`, `curate`, `mine` and `train` start.

It first looks whether Python finds our packages. A folder of the user's, such as `training/` in the working directory, can hide
one of them, and the import would then fail with a message that explains nothing.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click

PACKAGES = ("curation", "mining", "training")


def hidden_package() -> str:
    """Return one line about a folder or file that hides one of our packages; empty if none does."""
    ours = Path(__file__).resolve().parent
    for name in PACKAGES:
        spec = find_spec(name)
        places = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
        if not places:
            return f"tuplesmith: its package '{name}' is missing; install tuplesmith again"
        if ours / name not in [place.resolve() for place in places]:
            return f"tuplesmith: {places[0]} hides tuplesmith's package '{name}'; rename it, or run from another folder"
    return ""


def _check_packages() -> None:
    if line := hidden_package():
        print(line, file=sys.stderr)  # noqa: T201
        sys.exit(1)


def curate() -> None:
    """Run `curate`."""
    _check_packages()
    from curation.cli import main

    main()


def mine() -> None:
    """Run `mine`."""
    _check_packages()
    from mining.cli import main

    main()


def train() -> None:
    """Run `train`."""
    _check_packages()
    from training.cli import main

    main()


def tuplesmith() -> None:
    """Run `tuplesmith`, which has the three others as subcommands."""
    _check_packages()
    from curation.core.console import run_command

    run_command(all_commands(), "tuplesmith")


def all_commands() -> click.Group:
    """Return the `tuplesmith` command."""
    from curation.cli import curate
    from curation.core.console import SETTINGS, VERSION
    from mining.cli import mine
    from training.cli import train_command

    about = "Turn open datasets into (query, positive, hard negatives) tuples, and these into a text-embedding model."
    return VERSION(click.Group("tuplesmith", [curate, mine, train_command], help=about, context_settings=SETTINGS))


if __name__ == "__main__":
    tuplesmith()
