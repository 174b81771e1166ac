"""Shared by the commands: options, printing, and how an error becomes one line and an exit code.

Exit codes: 0 done, 1 an error that the user can fix, 2 wrong usage, 128 + N ended by signal N (130 Ctrl-C, 143 SIGTERM).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from curation.core.errors import RUN_AGAIN, UserError, explain_refusal, refusal
from curation.core.escape import visible

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
VERSION = click.version_option(package_name="tuplesmith", message="tuplesmith %(version)s")
ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}


class UserPath(click.Path):
    """A path of the command line; `~` is the home folder where the shell has not expanded it, as in `--out=~/builds`."""

    def __init__(self) -> None:
        super().__init__(readable=False, path_type=Path)  # what cannot be read is reported by the code that reads it

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        with suppress(RuntimeError):  # `~name` of an unknown user: a name like any other
            value = Path(value).expanduser()
        return super().convert(value, param, ctx)


PATH = UserPath()


WORKERS = click.option(
    "-j", "--workers", type=click.IntRange(1), help="Number of processes [default: depends on the input size]."
)
RAY = click.option(
    "--ray",
    is_flag=False,
    flag_value="auto",
    metavar="[ADDRESS]",
    help="Work on a Ray cluster: HOST:PORT, auto (the one that runs here; default) or local (start one here).",
)


MEMORY = click.option(
    "--memory",
    type=click.FloatRange(0.5),
    metavar="GB",
    help="Memory of a worker: no more are started than fit [default: 4]; with --ray, what a task takes of its node.",
)


def check_places(workers: int | None, ray: str | None, other: str = "", why: str = "") -> None:
    """Refuse options that say where the work is done and have no effect; `other` is an option that leaves no work to give out."""
    useless = {
        f"--ray has no effect with {other}, {why}.": ray is not None and other,
        "-j has no effect with --ray: the cluster decides how many tasks run at once.": ray is not None and workers,
    }
    if any(useless.values()):
        raise click.UsageError(next(message for message, given in useless.items() if given))


class Ended(BaseException):
    """A signal ended the command."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def say(text: str) -> None:
    """Print a message to stderr; stdout is for data."""
    with suppress(BrokenPipeError):
        click.echo(visible(text), err=True)


def output(text: str) -> None:
    """Print data to stdout. If the reader closes the pipe, as in `curate show | head`, the command ends quietly."""
    try:
        click.echo(visible(text))
        if sys.stdout is not None:  # None if it was closed
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's flush at exit
        if isinstance(error, BrokenPipeError):
            raise SystemExit(0) from None
        raise


def wrapped(line: str, width: int) -> list[str]:
    """Return a line as lines of at most `width` columns of a terminal, on which Chinese characters take two and accents none."""
    from rich.console import Console
    from rich.text import Text

    return [one.plain for one in Text(line.expandtabs()).wrap(Console(width=width), width)]


def shortened(line: str, width: int) -> str:
    """Return a line cut to `width` columns of a terminal; dots mark that it was cut."""
    from rich.cells import cell_len, set_cell_size

    start = line[: 4 * width]  # a long text is not measured as a whole
    return line if len(start) == len(line) and cell_len(line) <= width else set_cell_size(start, width - 3) + "..."


def run_command(command: click.Command, name: str) -> None:
    """Run a command line and exit."""
    _in_utf8()

    def end(number: int, frame: object) -> None:
        for one in ENDING:
            signal.signal(one, signal.SIG_DFL)
        raise Ended(number)

    # the first SIGINT, SIGTERM or SIGHUP raises `Ended`, so that temporary files are removed; a second one kills
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, end)
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt, Ended) as stop:
        number = signal.Signals(stop.number if isinstance(stop, Ended) else signal.SIGINT)
        say(f"{name}: {ENDING[number]}; {RUN_AGAIN}")
        code = 128 + number
    except UserError as error:
        for line in str(error).splitlines():  # more than one for a manifest with several mistakes
            say(f"{name}: {line}")
        code = 1
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        if refused.errno == errno.EPIPE:  # nobody reads the output any more
            sys.exit(0)
        say(f"{name}: {UserError(*explain_refusal(refused))}")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _in_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale has another encoding for file names and texts.

    The encoding of the output does not change; a character that it does not have is printed as its number.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        written = f"{sys.stdout.encoding}:backslashreplace" if sys.stdout is not None else "utf-8"
        os.environ |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", written)}
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def newest(build: Path | None, quiet: bool = False) -> Path:
    """Return `build`, or the newest build in builds/, and print which."""
    if build is not None:
        return build
    from curation.core.builds import newest_build

    found = newest_build(Path("builds"))
    if not quiet:
        say(f"using {found}, the newest build")
    return found
