"""One process at a time: a folder that a command works in, a piece of work that one of several may claim."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curation.core.errors import BuildError
from curation.core.store import sweep


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep a second `what` out of a folder; the system lets go of the lock when the process ends, however it ends.

    Raises:
        BuildError: another process is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BuildError(folder, "is a file, not a folder", "name another folder") from None
    except FileNotFoundError as error:  # /proc and the like
        raise BuildError(folder, f"cannot be made ({error.strerror})", "name another folder") from None
    with (folder / f".{what.replace(' ', '-')}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(folder, f"another `{what}` is at work there", "wait until it is done, or stop it") from None
        sweep(folder, depth=2)
        yield


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a claim that one process at a time can have; yield whether it was got, or wait for it.

    The system lets go of a claim when its process ends, however it ends. Look again, once you have it, whether the work is
    still to be done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # its holder took it away between our opening and locking it
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
