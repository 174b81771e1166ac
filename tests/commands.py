"""Real command lines in forks of one process that has imported all: where files have modes that bind, and signals are real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"curate": "curation", "mine": "mining", "train": "training"}
SERVING = """
import atexit, ctypes, importlib, json, os, resource, signal, sys, threading
for name in ("curation.cli", "curation.build.build", "curation.build.show", "curation.report.page", "curation.read.lock", "curation.share.verify",
             "curation.share.publish", "curation.share.importing", "curation.share.signature_file", "mining.cli",
             "mining.mine", "mining.audit", "mining.show", "training.cli", "training.train", "training.evaluate",
             "training.plan", "training.publish", "training.model.encode"):
    importlib.import_module(name)

def modes_bind():
    # root reads and writes whatever modes say: let it be bound by them as everybody is
    if os.geteuid() == 0:
        head = (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of 32 capabilities, and of the others
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capget(head, sets) == 0
        for at in range(3):
            sets[at] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        assert libc.capset(head, sets) == 0

print("ready", flush=True)
for line in sys.stdin:
    words, room, folder, out, err, size = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
        os.chdir(folder)
        for number, name in ((0, os.devnull), (1, out), (2, err)):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), number)
        if os.path.exists(folder + "/gone"):  # the folder that the command runs in is removed under it
            os.mkdir(folder + "/gone/deep"); os.chdir(folder + "/gone/deep"); os.rmdir(folder + "/gone/deep")
        modes_bind()
        if size:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        sys.argv = words
        code = 0
        try:
            importlib.import_module(room + ".cli").main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        threading._shutdown(); atexit._run_exitfuncs()  # as at any end; taking all imported modules apart would cost a second
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


class Commands:
    """Runs one command at a time."""

    def __init__(self, process: subprocess.Popen[bytes], scratch: Path) -> None:
        self.process, self.scratch = process, scratch
        self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode()

    def run(self, *words: object, cwd: Path, size: int = 0) -> Ended:
        """Run a command in a folder; no file may become larger than `size` bytes, as on a full disk, if that is not 0."""
        self.start(*words, cwd=cwd, size=size)
        return self.ended()

    def start(self, *words: object, cwd: Path, size: int = 0) -> int:
        """Start a command and return its process number, which is its group's too."""
        texts = [str(word) for word in words]
        out, err = str(self.scratch / "out"), str(self.scratch / "err")
        for stream in ("out", "err"):
            (self.scratch / stream).unlink(missing_ok=True)  # what the command before wrote
        assert self.process.stdin
        asked = [texts, ROOMS[texts[0]], str(cwd), out, err, size]
        self.process.stdin.write((json.dumps(asked) + "\n").encode())
        return int(self._line())

    def messages(self) -> str:
        """Return what the running command has written to stderr so far."""
        err = self.scratch / "err"
        return err.read_text(encoding="utf-8") if err.exists() else ""

    def ended(self) -> Ended:
        """Wait for the command to end."""
        code = int(self._line())
        return Ended(code, *((self.scratch / name).read_text(encoding="utf-8") for name in ("out", "err")))


@contextmanager
def commands(scratch: Path) -> Iterator[Commands]:
    """Give what runs commands."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "POLARS_MAX_THREADS": "1",
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([sys.executable, "-c", SERVING], env=environment, **pipes) as process:
        try:
            yield Commands(process, scratch)
        finally:
            process.kill()
