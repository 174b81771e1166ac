"""Mining that processes or a Ray cluster share ends with the bytes of one process, also when some of them are killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from small_build import FakeEncoder, files_of, hashed, make_build
from test_mine import EASY, clustering, retrieval
from test_mine_settings import reset

from curation.core.errors import ModelError
from mining.audit import measure_presets
from mining.calibrate import evaluate_sources
from mining.mine import mine_build
from tests.training.tiny_models import tiny_folder

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from curation.core import vectors
from mining import candidates, ivf
vectors.ROWS = candidates.ROWS_PER_BLOCK = 64  # also in the workers, which import this file
ivf.LEAST = 200
if __name__ == "__main__":
    from curation.core.console import run_command
    from mining.cli import mine
    run_command(mine, "mine")
"""
RULES = f"{EASY}, index: ivf, classes: hard, preset: clean, shortage: random"


def sources():
    """Return sources of several shards and blocks; u has a query with so many positives that rows are searched again."""
    many = retrieval(260)
    many["tuples"][7]["positives"] += [row["positives"][0] for row in many["tuples"][100:140]]
    return {"s": retrieval(140), "t": clustering(130), "u": many}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Heads of 8 numbers, as this toy has, get other last bits from two threads; those of real models do not."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder("bert", tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return tiny_folder("bert", tmp_path_factory.mktemp("reranker") / "bert", labels=1)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    here, path = Path(__file__).resolve(), tmp_path_factory.mktemp("script") / "run.py"
    path.write_text(SCRIPT.format(tests=str(here.parent), root=str(here.parents[2])))
    return path


def start(script, *words):
    command = [sys.executable, str(script), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **pipes)


def end(driver):
    out, err = driver.communicate(timeout=240)
    return driver.returncode, out, err


def run(script, *words):
    code, out, err = end(start(script, *words))
    assert code == 0, err
    return out


def content(build):
    return {name: data for name, data in files_of(build).items() if not Path(name).name.startswith(".")}


def children(driver):
    """Return the worker processes of a driver."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == driver.pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, script, model, reranker):
    """Return the files of a build that one process mined, what `mine audit` printed of it, and the build before."""
    mine = f"{RULES}, reranker: {reranker}, reranker_max_score: 0.9".replace("model: fake", f"model: {model}")
    build = make_build(tmp_path_factory.mktemp("undisturbed") / "x", sources(), mine)
    before = shutil.copytree(build, build.with_name("before") / "x")
    run(script, "negatives", build, "-q")
    assert len(list((build / "embeddings").rglob("shard-*.json"))) > 8
    assert len(list((build / "reranked").rglob("shard-*.json"))) > 2
    assert (build / "candidates" / "u" / "index" / "index.npz").exists()
    return content(build), run(script, "audit", build, "-q"), before


def fresh(undisturbed, tmp_path):
    return shutil.copytree(undisturbed[2], tmp_path / "x")


@pytest.mark.long
def test_two_processes_give_the_bytes_of_one(script, undisturbed, tmp_path):
    build = fresh(undisturbed, tmp_path)
    driver, seen = start(script, "negatives", build, "-q", "-j", 2), set()
    while driver.poll() is None:
        seen.update(children(driver))
        time.sleep(0.05)
    code, _, err = end(driver)
    assert code == 0, err
    assert len(seen) == 2
    assert content(build) == undisturbed[0]
    assert not list(build.rglob(".tuplesmith-*"))
    assert run(script, "audit", build, "-q", "-j", 2) == undisturbed[1]


@pytest.mark.long
def test_killed_workers_cost_nothing(script, undisturbed, tmp_path):
    build, draw, killed = fresh(undisturbed, tmp_path), random.Random(3), 0
    driver = start(script, "negatives", build, "-q", "-j", 2)
    while driver.poll() is None and killed < 3:
        time.sleep(draw.uniform(0.5, 2.5))
        for number in children(driver)[:1]:
            os.kill(number, signal.SIGKILL)
            killed += 1
    code, _, err = end(driver)
    assert killed
    assert code == 0, err
    assert content(build) == undisturbed[0]


@pytest.mark.long
def test_a_killed_driver_is_continued(script, undisturbed, tmp_path):
    build, draw, killed = fresh(undisturbed, tmp_path), random.Random(4), 0
    for _ in range(4):
        driver = start(script, "negatives", build, "-q", "-j", 2)
        while driver.poll() is None and len(children(driver)) < 2:
            time.sleep(0.05)
        time.sleep(draw.uniform(1, 8))
        driver.kill()
        end(driver)
        killed += driver.returncode == -signal.SIGKILL
    assert killed
    run(script, "negatives", build, "-q")
    assert content(build) == undisturbed[0]
    assert not list(build.rglob(".tuplesmith-*"))


def test_an_encoder_of_the_callers_own_stays_in_this_process(tmp_path):
    builds = [make_build(tmp_path / name / "x", {"s": retrieval(40)}, EASY) for name in ("one", "two")]
    encoder = FakeEncoder()
    encoder.vectors = lambda texts: hashed(texts)  # a lambda: it cannot be sent
    receipts = [
        mine_build(build, load=lambda *_: encoder, processes=count)["s"] for build, count in zip(builds, (1, 2), strict=True)
    ]
    assert content(builds[0]) == content(builds[1])
    assert receipts[0] == receipts[1]
    found = [evaluate_sources(measure_presets, builds[0], load=lambda *_: encoder, processes=count) for count in (1, 2)]
    assert found[0] == found[1]


def test_an_error_of_a_worker_is_the_same_line_and_nothing_else_differs(tmp_path, model):
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    build = make_build(tmp_path / "b", {"s": retrieval(12)}, EASY.replace("fake", str(broken)))
    lines = []
    for count in (1, 2):
        with pytest.raises(ModelError) as error:
            mine_build(build, processes=count)
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    shutil.copytree(build, tmp_path / "c")
    for folder, count in (("b", 1), ("c", 2)):
        reset(tmp_path / folder, EASY.replace("fake", str(model)))
        assert mine_build(tmp_path / folder, processes=count)["s"]["ran"]
    assert content(tmp_path / "b") == content(tmp_path / "c")
