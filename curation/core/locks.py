"""Locks between processes: one command per folder.

They use the system's `flock`, which is released when the process ends, even by kill -9, so no lock is ever stale.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curation.core.errors import BuildError
from curation.core.store import sweep


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep a second `what`, such as `curate build`, out of a folder; leftovers of killed processes are removed first.

    Raises:
        BuildError: another process works in the folder, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BuildError(folder, "is a file, not a folder", "name another folder") from None
    except FileNotFoundError as error:  # /proc and the like
        raise BuildError(folder, f"cannot be created ({error.strerror})", "name another folder") from None
    with (folder / f".{what.replace(' ', '-')}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            what = f"another `{what}` is running here" + (f" ({holder})" if holder else "")
            raise BuildError(folder, what, "wait until it ends, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        sweep(folder, depth=2)
        try:
            yield
        finally:
            file.truncate(0)
