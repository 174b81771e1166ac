"""log.jsonl: one line a step, without doubles or torn lines even after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curation import store


class Log:
    """Appends a line a step, and tells TensorBoard. On opening it drops the lines of steps that will be done again."""

    def __init__(self, path: Path, first_step: int, tensorboard: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_lines(path, (line for line in read_log(path) if line["step"] < first_step))
        self._file = path.open("a", encoding="utf-8")
        self._events = None
        if tensorboard:
            from training.tensorboard import Events

            self._events = Events(path.parent, first_step)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if self._events:
            self._events.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line and hand it to the system, so that `tail -f` shows it and a kill loses nothing."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._events:
            self._events.write(line)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; a last line that a kill tore ends it."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


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
