"""Run a function over items in this process, or in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import NamedTuple

from curation.core.errors import SetupError, UserError
from curation.core.store import sweep
from curation.engine.pool import THREADS, Answer, Item, Pool, Result, Results

DRIVERS = ("nvidia[0-9]*", "dxg", "kfd")  # in /dev where there is a GPU: NVIDIA's, through Windows, AMD's
LIMITS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "NUMBA_NUM_THREADS")  # each is a number of threads


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def memory() -> int:
    """Return the bytes of memory that this machine has, or that a container may use."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path(limit).read_text()))
    return min(found)


def visible_gpus(device: str) -> list[str]:
    """Return how CUDA_VISIBLE_DEVICES names each GPU that `device` (auto, cpu, cuda, cuda:N) means."""
    if device == "cpu" or (device == "auto" and not any(any(Path("/dev").glob(name)) for name in DRIVERS)):
        return []  # torch takes a second to load
    import torch

    numbers = range(torch.cuda.device_count())
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, numbers))
    names = [name.strip() for name in named.split(",")]
    return [names[number] for number in numbers if device in ("auto", "cuda", f"cuda:{number}")]


class Here:
    """This process. An item is worked on when its result is asked for; with several threads, the next ones meanwhile."""

    def __init__(self, device: str = "auto", threads: int = 1) -> None:
        """Take the device for functions that hold a model, and the number of threads that work on the parts of one source."""
        self.device, self.threads = device, threads

    def run(self, function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Results[Item, Result]:
        """Run a function over items, in their order."""
        if threads < 2:
            yield from ((item, partial(function, item)) for item in items)
            return
        with ThreadPoolExecutor(threads) as pool:
            pending = deque[tuple[Item, Future[Result]]]()
            try:
                for item in items:
                    pending.append((item, pool.submit(function, item)))
                    if len(pending) > threads:
                        first, future = pending.popleft()
                        yield first, future.result
                while pending:
                    first, future = pending.popleft()
                    yield first, future.result
            finally:
                for _, future in pending:
                    future.cancel()


class Process(NamedTuple):
    """A worker process."""

    process: multiprocessing.process.BaseProcess
    pipe: connection.Connection
    place: int  # which of the environments it has


class Processes(Pool):
    """Processes of this machine, which end with this one."""

    def __init__(self, count: int, device: str = "auto", environments: Sequence[Mapping[str, str]] = ({},)) -> None:
        """Start at most `count` processes; the environments are given to them in turn."""
        super().__init__(count)
        self.device, self.environments = device, environments
        self.context = multiprocessing.get_context("spawn")  # a forked polars waits for threads that the child does not have

    def start(self) -> None:
        """Start a process."""
        ours, theirs = self.context.Pipe()
        place = next(number for number in range(self.most) if number not in {worker.place for worker in self.busy})
        environment = self.environments[place % len(self.environments)]
        process = self.context.Process(target=_work, args=(theirs, dict(environment)))
        with _signals_held():
            process.start()
            self.busy[Process(process, ours, place)] = {}
        theirs.close()

    def send(self, worker: Process, number: int, function: Callable[[Item], Result], item: Item) -> None:
        """Send a task to a process."""
        task = pickle.dumps((function, item))
        with suppress(OSError):  # it was killed; `receive` finds that out
            worker.pipe.send((number, task))

    def receive(self) -> list[tuple[Process, int, Answer | None]]:
        """Wait, and return (process, number of the task, answer); None: the process was killed."""
        found: list[tuple[Process, int, Answer | None]] = []
        by_pipe = {worker.pipe: worker for worker in self.busy}
        for pipe in connection.wait(list(by_pipe)):
            assert isinstance(pipe, connection.Connection)
            try:
                found.append((by_pipe[pipe], *pipe.recv()))
            except (EOFError, OSError):
                pipe.close()
                found.append((by_pipe[pipe], -1, None))
        return found

    def refuse(self, times: int) -> SetupError:
        """Return the error for an item with which so many processes were killed."""
        what = f"was killed {times} times with the same work, perhaps because memory ran out"
        return SetupError("a worker process", what, "use a smaller -j, such as -j 1")

    def close(self) -> None:
        """End the processes, also those that are at work."""
        for worker in self.busy:
            worker.pipe.close()
        for worker in self.busy:
            worker.process.join()


@contextmanager
def processes(
    count: int, folder: Path | None, device: str = "auto", environments: Sequence[Mapping[str, str]] = ({},)
) -> Iterator[Processes]:
    """Yield worker processes. Temporary files that killed ones left below `folder` are removed at the end."""
    pool = Processes(count, device, environments)
    try:
        yield pool
    finally:
        pool.close()
        if folder is not None:
            sweep(folder, depth=2)


def _work(pipe: connection.Connection, environment: Mapping[str, str]) -> None:
    """Work on the tasks that come through a pipe, until the process at its other end closes it or ends."""
    os.environ |= environment  # before anything imports torch
    pool, sending = ThreadPoolExecutor(THREADS), threading.Lock()

    def answer(number: int, task: bytes) -> None:
        try:
            function, item = pickle.loads(task)
            found = pickle.dumps((number, Answer(function(item))))
        except BaseException as error:  # polars' panics too
            found = pickle.dumps((number, Answer(error=_portable(error))))
        with sending, suppress(OSError):
            pipe.send_bytes(found)

    with suppress(EOFError, OSError):
        while True:
            pool.submit(answer, *pipe.recv())
    os._exit(1)  # the threads may be at work


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent to another process, with the traceback of this one unless a user can fix it."""
    if not isinstance(error, UserError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


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
