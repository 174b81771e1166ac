"""Processes to be killed, forked from one that has imported all: a start-up with torch takes six CPU-seconds, and no kill is meant for it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FORKING = """
import importlib, json, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print("ready", flush=True)
for line in sys.stdin:
    code, sys.argv, folder = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for number in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        exec(code, {"__name__": "__main__"})
        sys.exit()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forking:
    """Runs one piece of code at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode()

    def run(self, code: str, words: Sequence[str], folder: Path, seconds: float | None = None) -> bool:
        """Run code with `words` as its sys.argv; after so many seconds it is killed. Return whether it came to its end.

        Raises:
            AssertionError: it ended with another exit code than 0.
        """
        assert self.process.stdin
        self.process.stdin.write((json.dumps([code, list(words), str(folder)]) + "\n").encode())
        number = int(self._line())
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            with suppress(ProcessLookupError):  # it ended at this very moment
                os.kill(number, signal.SIGKILL)
        ended = int(self._line())
        assert ended in (0, -signal.SIGKILL), f"{words}: exit code {ended}"
        return ended == 0


@contextmanager
def forking(*modules: str) -> Iterator[Forking]:
    """Give what runs code in forks of a process that has imported these modules."""
    command = [sys.executable, "-c", FORKING, *modules]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes) as process:
        try:
            yield Forking(process)
        finally:
            process.kill()
