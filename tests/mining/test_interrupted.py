"""Mining that is killed, short of room or damaged ends with the bytes of one undisturbed run."""

from __future__ import annotations

import random

import pytest
from small_build import files_of, make_build
from test_mine import EASY, clustering, retrieval, run

from curation.core.errors import BuildError
from mining import candidates, ivf
from tests.killing import forking

SLOW_RUN = """
import resource, signal, sys, time
from pathlib import Path
from small_build import FakeEncoder, hashed
from curation.core import errors, vectors
from mining import candidates, ivf, mine
vectors.ROWS = candidates.ROWS_PER_BLOCK = 8
ivf.LEAST = 50
build, room = Path(sys.argv[1]), int(sys.argv[2])
def slow(texts):
    time.sleep(0.01)
    return hashed(texts)
if room:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
try:
    mine.mine_build(build, load=lambda *_: FakeEncoder(vectors=slow))
except OSError as error:
    if not errors.is_disk_full(error):
        raise
    build.with_name("full").touch()
"""
SOURCES = {"s": retrieval(40), "t": clustering(), "u": retrieval(80)}  # u is searched in lists
LISTED = f"{EASY}, index: ivf"


@pytest.fixture(scope="module")
def process():
    with forking("small_build", "mining.mine", "mining.ivf", "faiss") as process:
        yield process


def mined(process, build, seconds=None):
    """Mine in another process; return whether it came to its end before it was killed."""
    return process.run(SLOW_RUN, ["mine", str(build), "0"], build.parent, seconds)


def fills_the_disk(process, build, room):
    """Mine in another process whose files may have so many bytes; return whether that was too little."""
    full = build.with_name("full")
    full.unlink(missing_ok=True)
    assert process.run(SLOW_RUN, ["mine", str(build), str(room)], build.parent)
    return full.exists()


def built(folder):
    return make_build(folder / "x", SOURCES, LISTED)


@pytest.fixture(scope="module")
def undisturbed(process, tmp_path_factory):
    build = built(tmp_path_factory.mktemp("undisturbed"))
    assert mined(process, build)
    assert (build / "candidates" / "u" / "index" / "index.npz").exists()
    return files_of(build)


def test_killed_at_random_moments(process, tmp_path, undisturbed):
    build, dice = built(tmp_path), random.Random(11)
    ended = [mined(process, build, dice.uniform(0.02, 0.3)) for _ in range(10)]
    assert ended.count(False) >= 3  # later ones find little left to do
    assert mined(process, build)
    assert files_of(build) == undisturbed


def test_without_room_it_stops_and_goes_on_when_there_is_some(process, tmp_path, undisturbed):
    build = built(tmp_path)
    assert fills_the_disk(process, build, 6_000)  # a shard of vectors has 8 kB
    assert not list(build.rglob("shard-*.json"))
    assert fills_the_disk(process, build, 9_000)  # the index has 40 kB
    assert (build / "mined" / "s" / "done.json").exists()
    assert not list((build / "candidates" / "u").rglob("*.np?"))
    assert not [path for path in build.rglob("*") if path.name.startswith(".tuplesmith-")]
    assert mined(process, build)
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
