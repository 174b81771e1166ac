"""The lines of log.jsonl as TensorBoard's event files: `tensorboard --logdir builds/NAME/train/tensorboard`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curation.core.errors import SetupError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise SetupError("tensorboard", f"cannot be used ({error})", "pip install 'tuplesmith[tensorboard]'") from None

OF_A_STEP = ("lr", "grad_norm", "tokens_per_second", "pad_share", "mfu", "memory_gb", "gpu_memory_gb")


@contextmanager
def events(out: Path, first_step: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield what writes a line of the log; of a run that goes on, TensorBoard forgets the steps that are done again."""
    with SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1) as writer:

        def write(line: Mapping[str, Any]) -> None:
            for tag, value in scalars(line).items():
                writer.add_scalar(tag, value, line["step"] + 1)

        yield write


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return what a line of the log measures, by tag: losses by term and source, nDCG@10 by source."""
    if "loss" not in line:
        return {"ndcg_at_10": line["ndcg@10"]} | {f"ndcg_at_10/{name}": score for name, score in line["sources"].items()}
    losses = {f"{key}/{line['source']}": value for key, value in line.items() if key.startswith("loss") and value is not None}
    return losses | {key: line[key] for key in OF_A_STEP if line.get(key) is not None}
