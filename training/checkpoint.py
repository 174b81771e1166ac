"""Checkpoints: `step-000200/` is whole or absent, says what it is a state of, and is refused by another run."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from curation.core import store
from curation.core.errors import BuildError, listed
from training.model.folders import has_all, replaced

STATE = "checkpoint.json"
NAME = re.compile(r"step-(\d{6,})")
ANEW = "give the recipe it was started with, or start anew with `--restart`, which deletes it"


def save(
    folder: Path, step: int, described: Mapping[str, Any], write: Callable[[Path], None], keep: int, best: int | None = None
) -> Path:
    """Write the state after `step` steps as `<folder>/step-NNNNNN`, delete all but the last `keep` and the best, and return it.

    `described`, which JSON can hold, says what the run is; `write` writes the state into the folder it is given.
    """
    target = at(folder, step)
    with replaced(target) as part:
        write(part)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        sizes = {path.relative_to(part).as_posix(): _flushed(path) for path in files}
        store.write_json(part / STATE, {"step": step, "bytes": sizes, **described})
        store.write_receipt(part, {"step": step})
    kept = [*whole(folder)[:keep], at(folder, best or step)]
    for path in folder.glob("step-*"):
        if path not in kept:
            shutil.rmtree(path)  # older ones, and what a killed run left half written
    return target


def at(folder: Path, step: int) -> Path:
    """Return where the checkpoint after `step` steps stands."""
    return folder / f"step-{step:06d}"


def whole(folder: Path) -> list[Path]:
    """Return the checkpoints whose files all have the length they were written with, the newest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and (path / STATE).exists()]
    intact = [path for path in found if has_all(path, read(path)["bytes"])]
    return sorted(intact, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def read(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself: `step`, `bytes`, and what it was `described` as."""
    return dict(store.read_json(checkpoint / STATE, _earlier(checkpoint)))


def checked(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, each byte of it compared with its receipt.

    Raises:
        BuildError: something of it was changed since it was written.
    """
    receipt = store.receipt_of(checkpoint, _earlier(checkpoint))
    store.check_files(checkpoint, receipt, _earlier(checkpoint))
    return read(checkpoint)


def _earlier(checkpoint: Path) -> str:
    return f"delete {checkpoint} and run the command again, which takes the checkpoint before it"


def check(said: Mapping[str, Any], described: Mapping[str, Any], where: Path) -> None:
    """Compare what a run's file says with the run that wants to go on from it.

    Raises:
        BuildError: it belongs to another run; the keys that differ are named.
    """
    if differing := differences(said, described):
        raise BuildError(where, f"was made with {listed(differing)}", ANEW)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """Return `key A, now B` for each value of `now` that is another in `before`."""
    found = []
    for key in sorted(before.keys() | now.keys()) if place else sorted(now):
        old, new, name = before.get(key), now.get(key), f"{place}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} {_told(old)} (now {_told(new)})")
    return found


def _told(value: object) -> str:
    return "absent" if value is None else str(value)


def _flushed(path: Path) -> int:
    """Force a file to the disk and return its length in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
