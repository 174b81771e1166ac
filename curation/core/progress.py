"""Progress reporting: library code reports to a `Progress`, and the command line decides what is shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from curation.core.escape import visible

Advance = Callable[[int], None]
SECONDS_BETWEEN_LINES = 60.0


class Progress(Protocol):
    """`with progress("encode", total, "texts") as advance: advance(n)`; a total of None means unknown."""

    def __call__(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:  # noqa: D102
        ...


@contextmanager
def silent(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Report nothing."""
    yield lambda n: None


@contextmanager
def lines(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Print one line a minute to stderr, for logs and pipes."""
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - start)
            left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
            line = f"{what}: {done:,}{f' of {total:,}' if total else ''} {unit}, {rate:,.0f}/s{left}"
            if sys.stderr is not None:  # None if it was closed
                print(visible(line), file=sys.stderr, flush=True)  # noqa: T201

    yield advance


@contextmanager
def bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Draw a progress bar with rate and remaining time on stderr."""
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}", markup=False),
        rich_progress.TimeRemainingColumn(compact=True),
    )
    start, done = time.monotonic(), 0
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(visible(what), total=total, rate=unit)

        def advance(n: int) -> None:
            nonlocal done
            done += n
            seconds = max(time.monotonic() - start, 1e-9)
            display.update(task, advance=n, rate=f"{unit} {done / seconds:,.0f}/s")

        yield advance


def for_terminal(quiet: bool) -> Progress:
    """Return the progress display: a bar on a terminal, else one line per minute; none if `quiet`."""
    if quiet:
        return silent
    return bar if sys.stderr is not None and sys.stderr.isatty() else lines


def for_python(quiet: bool) -> Progress:
    """Return the progress display of the Python API: that of a terminal, or a bar in a notebook."""
    shell = sys.modules.get("IPython")
    in_notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return notebook_bar if in_notebook and not quiet else for_terminal(quiet)


@contextmanager
def notebook_bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show one bar in a notebook, updated at most twice per second."""
    from tqdm.auto import tqdm

    with tqdm(desc=what, total=total, unit=f" {unit}", mininterval=0.5, leave=False) as shown:
        yield shown.update
