"""Run a function over items in several processes on this machine."""

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
    """Yield (item, function that returns its result or raises its error), in the order in which items finish.

    The processes end with this one. Temporary files that killed processes left below `folder` are removed at the end.

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
    """Yield a pool of processes that end with this one, and immediately if an error or a signal ends the work."""
    context = multiprocessing.get_context("spawn")  # not fork: a forked polars waits for threads that do not exist in the child
    theirs, ours = context.Pipe(duplex=False)
    with _signals_held():
        pool = ProcessPoolExecutor(count, context, initializer=_end_with, initargs=(theirs,))
    try:
        yield pool
    except BrokenProcessPool:
        hint = "use a smaller -j, such as -j 1"
        raise SetupError("a worker process", "was killed, perhaps because memory ran out", hint) from None
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()
        sweep(build, depth=2)


def _end_with(parent: Connection) -> None:
    """End this worker when the parent process ends or closes its side of the connection."""

    def wait() -> None:
        with suppress(EOFError, OSError):
            parent.recv()  # nothing is ever sent
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay signals while processes start. The processes ignore signals of the terminal, because they end with this one.

    The processes inherit the signal mask. The mask does not cover other threads of this process, through which a signal
    can still reach Python, so the handlers are delayed too.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers, and runs them
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if main else []
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    resource_tracker.ensure_running()  # it inherits the mask too, but starting it unblocks SIGINT in this process
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)
