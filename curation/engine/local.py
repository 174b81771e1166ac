"""Run a function over items in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from curation.core.errors import SetupError
from curation.core.store import sweep

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int, folder: Path
) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Yield (item, call that returns or raises its result) in the order in which they finish.

    The processes end when this one does. Temporary files that killed ones leave below `folder` are removed at the end.

    Raises:
        SetupError: a process was killed.
    """
    with _pool(processes, folder) as pool:
        with _signals_held():
            futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


@contextmanager
def _pool(count: int, build: Path) -> Iterator[ProcessPoolExecutor]:
    """Yield processes that end with this one, and at once where an error or a signal ends the work."""
    context = multiprocessing.get_context("spawn")  # not fork: a forked polars waits for threads that are not there
    theirs, ours = context.Pipe(duplex=False)
    with _signals_held():
        pool = ProcessPoolExecutor(count, context, initializer=_end_with, initargs=(theirs,))
    try:
        yield pool
    except BrokenProcessPool:
        hint = "try fewer with -j, such as -j 1"
        raise SetupError("a worker process", "was killed; was the memory full?", hint) from None
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()
        sweep(build, depth=2)


def _end_with(parent: Connection) -> None:
    """End this worker when the process that wants its work is gone, or closes its end of the connection."""

    def wait() -> None:
        with suppress(EOFError, OSError):
            parent.recv()  # nothing is ever sent
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back signals while processes start, which then ignore what a terminal sends: they end with this one.

    The mask is what the processes inherit. It does not hold for the other threads of this one, through which a signal
    reaches Python all the same, so its handlers wait too.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers, or runs them
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if main else []
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    resource_tracker.ensure_running()  # it inherits the mask too, but where it starts it unblocks SIGINT in this process
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)
