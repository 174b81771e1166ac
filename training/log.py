"""log.jsonl: a line per step and per measurement, without duplicates or torn lines even after a kill; TensorBoard's files too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curation.core import store
from curation.core.errors import BuildError, SetupError

Write = Callable[[Mapping[str, Any]], None]
STEP_SCALARS = ("lr", "grad_norm", "tokens_per_second", "pad_share", "mfu", "memory_gb", "gpu_memory_gb")


@contextmanager
def open_log(path: Path, first_step: int, tensorboard: bool) -> Iterator[Write]:
    """Yield a function that appends a line, and writes its values for TensorBoard if asked to.

    Lines of steps that will be repeated are dropped first. Each line is flushed, so that `tail -f` shows it and a kill loses
    nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / store.TIMINGS).unlink(missing_ok=True)  # it has the digest of the finished log
    store.write_lines(path, (line for line in read_log(path) if first_step and line["step"] < first_step))
    # TensorBoard itself drops the values of repeated steps: purge_step is the first of them.
    writer = summary_writer()(str(path.parent / "tensorboard"), purge_step=first_step + 1) if tensorboard else None
    with path.open("a", encoding="utf-8") as file:

        def write(line: Mapping[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if writer:
                for tag, value in scalars(line).items():
                    writer.add_scalar(tag, value, line["step"] + 1)

        try:
            yield write
        finally:
            if writer:
                writer.close()


def summary_writer() -> Any:
    """Return torch's SummaryWriter.

    Raises:
        SetupError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SetupError("tensorboard", f"cannot be used ({error})", "pip install 'tuplesmith[tensorboard]'") from None
    return SummaryWriter


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a line by TensorBoard's tag: losses by term and source, nDCG@10 by source."""
    if "loss" not in line:
        return {"ndcg_at_10": line["ndcg@10"]} | {f"ndcg_at_10/{name}": score for name, score in line["sources"].items()}
    losses = {f"{key}/{line['source']}": value for key, value in line.items() if key.startswith("loss") and value is not None}
    return losses | {key: line[key] for key in STEP_SCALARS if line.get(key) is not None}


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log. A last line that a kill tore is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                hint = "delete the file; the run then continues without its earlier lines"
                raise BuildError(f"{path}:{number}", "cannot be read as JSON", hint) from None


def steps_in_words(lines: Sequence[Mapping[str, Any]], total: int) -> str:
    """Return the line for the screen about some steps: means over them, and the time left unless they are the last."""
    last, count = lines[-1], len(lines)
    loss = sum(line["loss"] for line in lines) / count
    norm = sum(line["grad_norm"] for line in lines) / count
    tokens = sum(line["tokens"] for line in lines) / sum(line["seconds"] for line in lines)
    left = f"  {duration(last['seconds_left'])} left" if last["step"] + 1 < total else ""
    return (
        f"step {last['step'] + 1:>{len(str(total))}}/{total}  loss {loss:.4f}  lr {last['lr']:.2e}  gradient {norm:.2f}  "
        f"{tokens:,.0f} tokens/s{left}"
    )


def measurement_in_words(line: Mapping[str, Any], total: int) -> str:
    """Return the line for the screen about a measurement."""
    each = ", ".join(f"{name} {score:.4f}" for name, score in line["sources"].items())
    best = "  the best so far" if line["best"] else ""
    return f"step {line['step'] + 1:>{len(str(total))}}/{total}  nDCG@10 {line['ndcg@10']:.4f} ({each}){best}"


def duration(seconds: float) -> str:
    """Return seconds in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
