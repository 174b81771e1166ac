"""What all workers have in common: items are given to them, and those of a lost worker to another one.

A worker keeps what it makes with `held`, such as a model, so that it is made once for all items.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from itertools import count, islice
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Results = Iterator[tuple[Item, Callable[[], Result]]]

RETRIES = 3  # of an item whose worker was lost
THREADS = 4  # the most items that a worker works on at once
_held: dict[str, tuple[Hashable, Any]] = {}
_holding_lock = Lock()


class Workers(Protocol):
    """This process, processes of this machine, or a Ray cluster."""

    device: str  # what the functions name their device: auto, cpu, cuda or cuda:N
    threads: int  # of this process, for what it does of a source's work itself

    def run(self, function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Results[Item, Result]:
        """Yield (item, function that returns its result or raises its error), in the order in which items finish.

        A worker gets `threads` items at once; items are taken when one is free. Outside of this process, function and
        items are pickled, so they should be small: paths and numbers. An item whose worker is lost is run again, by another
        worker; an item that raises an error is not.
        """
        ...


def held(kind: str, key: Hashable, make: Callable[[], Result]) -> Result:
    """Return what `make()` made in this process; it is made again, and the old one released, when `key` changes."""
    with _holding_lock:
        if kind not in _held or _held[kind][0] != key:
            _held.pop(kind, None)
            _held[kind] = (key, make())
        found: Result = _held[kind][1]
        return found


class Assignment(NamedTuple):
    """An item to be worked on."""

    item: Any
    lost: int = 0  # how many workers were lost with it


class Answer(NamedTuple):
    """What came back for an item; an error of the user is an answer too."""

    result: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        """Return the result or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


class Pool:
    """Workers that are alike, started when there are items for them. A back end starts them, sends, and receives."""

    device: str
    threads = THREADS

    def __init__(self, most: int) -> None:
        """Start at most so many workers."""
        self.most, self.numbers = most, count()
        self.busy: dict[Any, dict[int, Assignment]] = {}  # each started worker -> the tasks that it has, by number
        self.starting: set[Any] = set()

    def start(self) -> None:
        """Start a worker: it is in `busy` at once, or in `starting` until `receive` moves it."""
        raise NotImplementedError

    def send(self, worker: Any, number: int, function: Callable[[Any], Any], item: Any) -> None:
        """Send a task to a worker, which may be lost already."""
        raise NotImplementedError

    def receive(self) -> list[tuple[Any, int, Answer | None]]:
        """Wait, and return (worker, number of the task, answer); None: the worker is lost."""
        raise NotImplementedError

    def refuse(self, times: int) -> BaseException:
        """Return the error for an item with which so many workers were lost."""
        raise NotImplementedError

    def run(self, function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Results[Item, Result]:
        """Run a function over items, as `Workers` says."""
        source, waiting, ours = map(Assignment, items), deque[Assignment](), set[int]()
        while True:
            while True:
                waiting.extend(() if waiting else islice(source, 1))
                worker = self._free(threads) if waiting else None
                if worker is None:
                    break
                number, task = next(self.numbers), waiting.popleft()
                self.busy[worker][number] = task
                ours.add(number)
                self.send(worker, number, function, task.item)
            if not ours and not waiting:
                return
            for worker, number, answer in self.receive():
                if answer is None:
                    lost = {one: task for one, task in self.busy.pop(worker, {}).items() if one in ours}
                    ours -= lost.keys()
                    waiting.extend(task._replace(lost=task.lost + 1) for task in lost.values())
                    if any(task.lost > RETRIES for task in waiting):
                        raise self.refuse(RETRIES + 1)
                elif (found := self.busy.get(worker, {}).pop(number, None)) and number in ours:
                    ours.discard(number)
                    yield found.item, partial(Answer.get, answer)

    def _free(self, threads: int) -> Any:
        """Return the worker with the fewest tasks; None if all have `threads`. If none is idle, one more is started."""
        for again in (True, False):
            worker = min(self.busy, key=lambda one: len(self.busy[one]), default=None)
            if not again or (worker is not None and not self.busy[worker]):
                break
            if len(self.busy) + len(self.starting) < self.most:
                self.start()
        return worker if worker is not None and len(self.busy[worker]) < threads else None
