"""Run a function over items on a Ray cluster, as tasks, or in actors that hold models.

Ray only places the work: paths, numbers and receipts travel, never tables or vectors.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from curation.core.errors import SetupError, UserError, first_line
from curation.core.store import sweep
from curation.engine.local import LIMITS
from curation.engine.pool import RETRIES, THREADS, Answer, Item, Pool, Result, Results

LOCAL_CLUSTER, RUNNING = (
    "local",
    "auto",
)  # addresses: a cluster of this machine alone, started here; the one that runs on this machine
# the workers get these from here; no tokens
ENVIRONMENT = (
    "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT",
    "XDG_CACHE_HOME", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION",
)  # fmt: skip
AUTH_TOKEN = Path("~/.ray/auth_token")
ANSWER_SECONDS = 5  # to wait for an answer from an address
SECONDS_TO_START = 120  # that a node may take to start its first task
TASKS_PER_PROCESSOR = 2  # that are sent to a cluster; the items of others are taken later
SECONDS_UNSAID = 10  # that a command waits for a full cluster before it says so


class Cluster:
    """A connection to a Ray cluster, which runs items as tasks."""

    device, threads = "cpu", THREADS

    def __init__(self, ray: Any, memory: int | None = None) -> None:
        """Take a connection, and the bytes of memory that a task takes; None: they are not counted."""
        self.ray = ray
        self.options: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, "retry_exceptions": False}
        self.needs = {"CPU": 1}
        if memory is not None:
            self.options["memory"] = self.needs["memory"] = memory

    def processors(self) -> int:
        """Return how many processors the nodes have now."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    def run(self, function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Results[Item, Result]:
        """Run a function over items, as `pool.Workers` says; a task has one processor."""
        task = self.ray.remote(**self.options)(_answer)
        lacking, source, waiting = _lacking(self.ray, self.needs), iter(items), dict[Any, Item]()
        while True:
            room = max(1, TASKS_PER_PROCESSOR * self.processors()) - len(waiting)
            waiting |= {task.remote(os.getcwd(), function, item): item for item in islice(source, max(0, room))}
            if not waiting:
                return
            (ready, *_), _ = _wait(self.ray, list(waiting), lacking)
            lacking = ""
            yield waiting.pop(ready), lambda ready=ready: self._result(ready)  # type: ignore[misc]

    def _result(self, task: Any) -> Any:
        try:
            answer = unwrapped(self.ray.get, task)
        except self.ray.exceptions.RayTaskError as failed:
            raise failed.cause or failed from None
        except self.ray.exceptions.RayError as lost:
            raise _lost(lost) from None
        return answer.get()


class Actors(Pool):
    """Actors of a Ray cluster, each with a GPU or a processor of its own; they hold models from one item to the next."""

    def __init__(self, ray: Any, device: str) -> None:
        """Use all GPUs of a cluster, or all its processors if it has none or `device` is cpu.

        Raises:
            SetupError: `device` asks for GPUs, and the cluster has none.
        """
        self.gpu = device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
        if device not in ("auto", "cpu", "cuda"):
            raise SetupError(f"--device {device}", "each worker of a cluster has a GPU of its own", "use --device cuda")
        if device == "cuda" and not self.gpu:
            raise SetupError("--device cuda", "no node of the cluster has a GPU", "use --device cpu")
        super().__init__(int(ray.cluster_resources()["GPU" if self.gpu else "CPU"]))
        self.ray, self.device = ray, "cuda" if self.gpu else "cpu"
        needs = {"num_cpus": 1, "num_gpus": int(self.gpu), "max_restarts": 0, "max_concurrency": THREADS}
        self.kind = ray.remote(**needs)(Worker)
        self.tasks: dict[Any, tuple[Any, int]] = {}  # what Ray answers to -> worker, number of the task; -1: has it started?
        self.last: Exception | None = None  # why a worker was lost
        self.lost_starts = 0
        self.lacking = ""  # what the cluster lacks for a first worker

    def start(self) -> None:
        """Ask for an actor; it gets items when it has started."""
        if not self.busy and not self.starting:
            self.lacking = _lacking(self.ray, {"CPU": 1, **({"GPU": 1} if self.gpu else {})})
        worker = self.kind.remote(os.getcwd(), self.gpu)
        self.starting.add(worker)
        self.tasks[worker.answer.remote(bool, 1)] = (worker, -1)

    def send(self, worker: Any, number: int, function: Callable[[Item], Result], item: Item) -> None:
        """Send a task to an actor."""
        self.tasks[worker.answer.remote(function, item)] = (worker, number)

    def receive(self) -> list[tuple[Any, int, Answer | None]]:
        """Wait, and return (actor, number of the task, answer); None: the actor was lost."""
        (ready, *_), _ = _wait(self.ray, list(self.tasks), self.lacking)
        self.lacking = ""
        worker, number = self.tasks.pop(ready)
        answer: Answer | None
        try:
            answer = unwrapped(self.ray.get, ready)
        except self.ray.exceptions.RayTaskError as failed:
            answer = Answer(error=failed.cause or failed)
        except self.ray.exceptions.RayError as lost:
            answer, self.last = None, lost
            self.tasks = {task: (other, one) for task, (other, one) in self.tasks.items() if other != worker}
        if number >= 0 and answer is not None:
            return [(worker, number, answer)]
        if worker in self.starting:
            self.starting.discard(worker)
            self.lost_starts = 0 if answer else self.lost_starts + 1
            if self.lost_starts > RETRIES:
                raise self.refuse(self.lost_starts)
            if answer:
                self.busy[worker] = {}
                return []
        return [(worker, number, None)]

    def refuse(self, times: int) -> SetupError:
        """Return the error for an item with which so many actors were lost."""
        assert self.last is not None
        return _lost(self.last)


class Worker:
    """An actor: a process on a node of the cluster."""

    def __init__(self, folder: str, gpu: bool) -> None:
        """Work in the folder of the driver."""
        self.folder = folder
        if not gpu:  # as many processes as processors
            os.environ |= {name: "1" for name in LIMITS if name not in os.environ}

    def answer(self, function: Callable[[Item], Result], item: Item) -> Answer:
        """Call a function."""
        return _answer(self.folder, function, item)


def _lost(error: Exception) -> SetupError:
    """Return the error for an item with which too many workers were lost."""
    what = f"was lost {RETRIES + 1} times ({first_line(error)})"
    return SetupError("a worker of the cluster", what, "perhaps its memory ran out: give it more")


def _lacking(ray: Any, needs: Mapping[str, int]) -> str:
    """Return what a cluster, which does nothing for this command yet, has too little of for one worker; "" if it has enough."""
    whole, free = ray.cluster_resources(), ray.available_resources()
    names = [name for name, count in needs.items() if free.get(name, 0) < count]

    def said(name: str) -> str:
        need, some, every = (
            one / (1e9 if name == "memory" else 1) for one in (needs[name], free.get(name, 0), whole.get(name, 0))
        )
        return f"{need:g} {'GB of memory' if name == 'memory' else name}, of which {some:.3g} of {every:.3g} are free"

    return " and ".join(map(said, names))


def _wait(ray: Any, tasks: list[Any], lacking: str) -> Any:
    """Wait for one of the tasks, and say so if a cluster that lacks something makes this command wait long."""
    if lacking:
        found = unwrapped(ray.wait, tasks, num_returns=1, timeout=SECONDS_UNSAID)
        if found[0]:
            return found
        what = "waiting for other work on the cluster to end: a worker needs"
        logging.getLogger("tuplesmith").warning("--ray: %s %s", what, lacking)
    return unwrapped(ray.wait, tasks, num_returns=1)


def unwrapped(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function of Ray; what a signal handler raises meanwhile, Ray hides in a SystemError."""
    try:
        return call(*arguments, **named)
    except SystemError as error:
        raise error.__cause__ or error from None


def _answer(folder: str, function: Callable[[Item], Result], item: Item) -> Answer:
    """Call a function, in a folder if this node has it, so that relative paths mean the same.

    A user's error is an answer, so that Ray neither retries it nor wraps it.
    """
    with suppress(OSError):
        os.chdir(folder)
    try:
        return Answer(function(item))
    except UserError as error:
        return Answer(error=error)


@contextmanager
def cluster(address: str, folder: Path | None, reads: Sequence[Path] = (), memory: int | None = None) -> Iterator[Cluster]:
    """Connect to a Ray cluster: `local` starts one on this machine, `auto` finds the running one, or HOST:PORT.

    The tasks write to `folder`; temporary files that lost workers left below it are removed at the end. They only read `reads`,
    and each takes `memory` bytes of its node.

    Raises:
        SetupError: Ray is not installed, no cluster answers, no node has so much memory, or a node has another version or does
            not see one of the folders.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if AUTH_TOKEN.expanduser().exists():  # `ray start` asks for it then, and `ray.init` would not show it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise SetupError("--ray", "Ray is not installed", "pip install 'tuplesmith[ray]'") from None
    _check_answer(address)
    with warnings.catch_warnings(action="ignore"):
        try:
            where: dict[str, Any] = {"address": address} | ({"include_dashboard": False} if address == LOCAL_CLUSTER else {})
            where["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}}
            with _own_signals():
                ray.init(**where, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.AuthenticationError) as error:
            if isinstance(error, ray.exceptions.AuthenticationError) or "AuthenticationError" in str(error.__cause__):
                what = "the cluster asks for its auth token, and this command has none or another one"
                hint = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as on the head node"
                raise SetupError(f"--ray {address}", what, hint) from None
            hint = "start a cluster with `ray start --head`, or use --ray local"
            raise SetupError(f"--ray {address}", f"cannot connect ({first_line(error)})", hint) from None
        try:
            _check_nodes(ray, folder, reads, memory or 0)
            yield Cluster(ray, memory)
        finally:
            ray.shutdown()
            if folder is not None:
                sweep(folder, depth=2)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this program's signal handlers, which `ray.init` replaces."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _check_answer(address: str) -> None:
    """Check that something listens at HOST:PORT, for which Ray itself would wait for minutes."""
    if address in (LOCAL_CLUSTER, RUNNING):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise SetupError(f"--ray {address}", "is not an address", "use auto, local or HOST:PORT of the head node")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        hint = "start a cluster with `ray start --head`, or use --ray local"
        raise SetupError(f"--ray {address}", f"nobody answers ({error})", hint) from None


def _check_nodes(ray: Any, folder: Path | None, reads: Sequence[Path], memory: int) -> None:
    """Check that a node has room for a task, and that each has this version and Python, and sees the folders.

    A node sees the first if it sees a new file with a random name in it, and the others if they hold the same files there.
    """
    expected = {str(read.absolute()): [path.name for path in read.iterdir() if path.name[0] != "."] for read in reads}
    mark = None if folder is None else folder.absolute() / f".ray-{secrets.token_hex(16)}"
    if mark:
        expected[str(mark.parent)] = [mark.name]

    def look() -> tuple[str, str, list[str]]:  # nested, so that Ray ships its code: the node may not have tuplesmith
        try:
            version = metadata.version("tuplesmith")
        except metadata.PackageNotFoundError:
            version = "no version"
        unseen = [
            there for there, names in expected.items() if not all(os.path.exists(os.path.join(there, name)) for name in names)
        ]
        return version, platform.python_version(), unseen

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if mark:
        mark.touch()
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not any(node["Resources"].get("CPU", 0) >= 1 for node in nodes):
            raise SetupError("--ray", "no node of the cluster has a processor for tasks", "start one with --num-cpus 1 or more")
        most = max(node["Resources"].get("memory", 0) for node in nodes)
        if memory > most:
            what = f"no node has so much memory for a task: the largest has {most / 1e9:.3g} GB"
            raise SetupError(f"--memory {memory / 1e9:g}", what, "lower it, or start a node with more")
        place = ray.remote(num_cpus=0, max_retries=RETRIES)(look)
        asked = [place.options(scheduling_strategy=NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)) for one in nodes]
        for node, task in zip(nodes, [one.remote() for one in asked], strict=True):
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                version, python, unseen = unwrapped(ray.get, task, timeout=SECONDS_TO_START)
            except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError, ray.exceptions.GetTimeoutError) as error:
                what = f"cannot run a task ({first_line(error)})"
                raise SetupError(f"node {name}", what, "install the same versions on all nodes") from None
            except ray.exceptions.RayError:
                continue  # the node was lost just now; others do its work
            own = metadata.version("tuplesmith")
            if (version, python) != (own, platform.python_version()):
                what = f"has tuplesmith {version} and Python {python}, this machine {own} and {platform.python_version()}"
                raise SetupError(f"node {name}", what, "install the same versions on all nodes")
            for path in unseen:
                raise SetupError(f"node {name}", f"does not see {path}", "put the build on a file system that all nodes share")
    finally:
        if mark:
            mark.unlink(missing_ok=True)
