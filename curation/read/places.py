"""Places of files: what is never read, and what lies outside of the manifest's folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from curation.core.errors import SourceError

SYSTEM = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))  # they hold processes and devices: no data, and secrets
MEMORY = Path("/dev/shm")  # a memory disk, whose files are files


def refuse_special(path: Path, name: str) -> None:
    """Refuse what is no plain file, what the system makes up, wherever links lead from `path`, and what may not be read.

    Raises:
        SourceError: a folder, pipe, socket or device, a file below /proc, /sys or /dev, or one of somebody else.
    """
    refuse_system(path, name)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise SourceError(name, "is a pipe, socket or device, not a file", "save what it gives as a file, and name that")
    if path.exists() and not os.access(path, os.R_OK):
        raise SourceError(name, "may not be read by this user", "see its permissions and its folder's")


def refuse_system(path: Path, name: str) -> None:
    """Refuse what leads into /proc, /sys or /dev.

    Raises:
        SourceError: it does.
    """
    real = path.resolve()
    for folder in SYSTEM:
        if real.is_relative_to(folder) and not real.is_relative_to(MEMORY):
            raise SourceError(name, f"leads into {folder}, which holds the system's own state and no data", "it is never read")


def is_outside(path: Path, base: Path) -> bool:
    """Tell whether a file lies outside of a folder, with all links followed."""
    return not path.resolve().is_relative_to(base.resolve())
