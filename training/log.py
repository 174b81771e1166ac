"""log.jsonl: one line a step, without doubles or torn lines even after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from curation.core import store
from curation.core.errors import BuildError

Write = Callable[[Mapping[str, Any]], None]


@contextmanager
def appended(path: Path, first_step: int, tensorboard: bool) -> Iterator[Write]:
    """Yield what writes a line, into TensorBoard's files too where they are asked for.

    At first the lines of steps that will be done again are dropped. Each line is handed to the system, so that `tail -f`
    shows it and a kill loses nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / store.TIMINGS).unlink(missing_ok=True)  # the digest of a log that goes on
    store.write_lines(path, (line for line in read_log(path) if line["step"] < first_step))
    opened: AbstractContextManager[Write | None] = nullcontext()
    if tensorboard:
        from training.tensorboard import events

        opened = events(path.parent, first_step)
    with path.open("a", encoding="utf-8") as file, opened as event:

        def write(line: Mapping[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if event:
                event(line)

        yield write


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; a last line that a kill tore ends it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                hint = "delete the file, and the run goes on without its earlier lines"
                raise BuildError(f"{path}:{number}", "is not readable as JSON", hint) from None


def readable(lines: Sequence[Mapping[str, Any]], total: int) -> str:
    """Return a line for the screen: means over the given steps."""
    last, count = lines[-1], len(lines)
    loss = sum(line["loss"] for line in lines) / count
    norm = sum(line["grad_norm"] for line in lines) / count
    seconds = sum(line["seconds"] for line in lines)
    tokens = sum(line["tokens"] for line in lines) / seconds
    return (
        f"step {last['step'] + 1:>{len(str(total))}}/{total}  loss {loss:.4f}  lr {last['lr']:.2e}  gradient {norm:.2f}  "
        f"{tokens:,.0f} tokens/s  {duration(last['seconds_left'])} left"
    )


def duration(seconds: float) -> str:
    """Return seconds as words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
