"""Mining that is killed, short of room or damaged ends with the bytes of one undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_build import files_of, make_build
from test_mine import EASY, clustering, retrieval, run

from curation.core.errors import BuildError
from mining import candidates, ivf

SLOW_RUN = """
import resource, signal, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from small_build import FakeEncoder, hashed
from curation.core import errors, vectors
from mining import candidates, ivf, mine
vectors.ROWS = candidates.ROWS_PER_BLOCK = 8
ivf.LEAST = 50
def slow(texts):
    time.sleep({pause})
    return hashed(texts)
Path({build!r}).with_name("began").touch()
if {room}:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
try:
    mine.mine_build(Path({build!r}), load=lambda *_: FakeEncoder(vectors=slow))
except OSError as error:
    sys.exit(7 if errors.is_disk_full(error) else 1)
"""
SOURCES = {"s": retrieval(40), "t": clustering(), "u": retrieval(80)}  # u is searched in lists
LISTED = f"{EASY}, index: ivf"


def start(build, room=0, pause=0.01):
    """Begin to mine in another process, and return when its imports are over."""
    here, began = Path(__file__).resolve(), build.with_name("began")
    began.unlink(missing_ok=True)
    code = SLOW_RUN.format(tests=str(here.parent), root=str(here.parents[2]), build=str(build), room=room, pause=pause)
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ, stdout=subprocess.DEVNULL)
    while not began.exists() and process.poll() is None:
        time.sleep(0.005)
    return process


def built(folder):
    return make_build(folder / "x", SOURCES, LISTED)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    build = built(tmp_path_factory.mktemp("undisturbed"))
    assert start(build).wait() == 0
    assert (build / "candidates" / "u" / "index" / "index.npz").exists()
    return files_of(build)


def test_killed_at_random_moments(tmp_path, undisturbed):
    build, dice = built(tmp_path), random.Random(11)
    killed = []
    for _ in range(10):
        process = start(build)
        time.sleep(dice.uniform(0.02, 0.3))
        process.send_signal(signal.SIGKILL)
        killed.append(process.wait() == -signal.SIGKILL)
    assert sum(killed) >= 3  # later ones find little left to do
    assert start(build).wait() == 0
    assert files_of(build) == undisturbed


def test_without_room_it_stops_and_goes_on_when_there_is_some(tmp_path, undisturbed):
    build = built(tmp_path)
    assert start(build, room=6_000).wait() == 7  # a shard of vectors has 8 kB
    assert not list(build.rglob("shard-*.json"))
    assert start(build, room=9_000).wait() == 7  # the index has 40 kB
    assert (build / "mined" / "s" / "done.json").exists()
    assert not list((build / "candidates" / "u").rglob("*.np?"))
    assert not [path for path in build.rglob("*") if path.name.startswith(".tuplesmith-")]
    assert start(build).wait() == 0
    assert files_of(build) == undisturbed


@pytest.mark.parametrize("file", ["00001/scores.npy", "index/index.npz"])
def test_a_flipped_byte_of_the_candidates(tmp_path, monkeypatch, file):
    monkeypatch.setattr(candidates, "ROWS_PER_BLOCK", 8)
    monkeypatch.setattr(ivf, "LEAST", 50)
    build = built(tmp_path)
    run(build)
    path = build / "candidates" / "u" / file
    content = path.read_bytes()
    path.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    for mined in ("mined/u/done.json", "candidates/u/00000/done.json"):
        (build / mined).unlink()
    with pytest.raises(BuildError) as error:
        run(build)
    assert str(error.value) == (
        f"{path}: was changed since it was written (its digest is not the receipt's); "
        f"delete {path.parent} and run the command again to rebuild it"
    )
