"""What the three commands share: how an error becomes one line and an exit code.

Exit codes: 0 done, 1 an error the user can mend, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from curation.errors import UserError
from curation.visible import visible

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


def say(text: str) -> None:
    """Print a line for the person, to stderr; stdout is for data."""
    click.echo(visible(text), err=True)


def output(text: str) -> None:
    """Print data to stdout; a reader that has seen enough, as in `curate show | head`, ends the command quietly."""
    try:
        click.echo(visible(text))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def run(command: click.Command, name: str) -> None:
    """Run a command line and exit."""
    try:
        code = command.main(prog_name=name, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say(f"{name}: interrupted; run the same command again to go on")
        sys.exit(130)
    except UserError as error:
        say(f"{name}: {error}")
        sys.exit(1)
    except OSError as error:
        from curation.store import no_room

        if not no_room(error):
            raise
        say(f"{name}: {error.filename or 'output'}: no room left on the disk; make room and run the same command again to go on")
        sys.exit(1)


def newest(build: Path | None, quiet: bool = False) -> Path:
    """Return BUILD, or the newest one below `builds`, and say which."""
    if build is not None:
        return build
    from curation.store import newest_build

    found = newest_build(Path("builds"))
    if not quiet:
        say(f"using {found}, the newest build")
    return found
