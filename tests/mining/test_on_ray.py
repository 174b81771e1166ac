"""Mining on a real Ray cluster of three nodes: the bytes of one process, also after workers, a node and the driver were killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from small_build import make_build
from test_mine import retrieval
from test_workers import content

from curation.core.errors import SetupError
from curation.engine.workers import workers
from tests.training.tiny_models import tiny_folder

MINE = [sys.executable, "-c", "from mining.cli import main; main()"]
ENV = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
ENV["RAY_AUTH_MODE"] = "disabled"  # nodes and drivers must agree on it, as they do where `ray start` starts the nodes
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def nodes():
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", ENV["RAY_AUTH_MODE"])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a build as `before`, what one process mined of it as `expected`, and what `mine audit` printed."""
    folder = tmp_path_factory.mktemp("ray")
    model = tiny_folder("bert", folder / "model")
    reranker = tiny_folder("bert", folder / "reranker", labels=1)
    rules = "negatives: 2, range_min: 0, range_max: 8, max_score: null, relative_margin: null, reranker_max_score: 0.9"
    make_build(
        folder / "before" / "x", {"s": retrieval(4_500), "t": retrieval(60)}, f"model: {model}, reranker: {reranker}, {rules}"
    )
    expected = shutil.copytree(folder / "before" / "x", folder / "expected" / "x")
    subprocess.run([*MINE, "negatives", expected, "-q"], env=ENV, check=True, capture_output=True)
    shutil.copytree(expected, folder / "audited" / "x")
    audit = [*MINE, "audit", folder / "audited" / "x", "-q"]
    (folder / "audit").write_bytes(subprocess.run(audit, env=ENV, check=True, capture_output=True).stdout)
    return folder


def start(place, name, nodes):
    build = place / name / "x"
    if not build.exists():
        shutil.copytree(place / "before" / "x", build)
    command = [*MINE, "negatives", build, "-q", "--ray", nodes.address]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place)


def end(driver):
    _, err = driver.communicate(timeout=240)
    return driver.returncode, err


def actors(nodes):
    """Return the process numbers of this cluster's workers."""
    parents = {one.all_processes["raylet"][0].process.pid for one in nodes.list_all_nodes() if "raylet" in one.all_processes}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents and (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(int(folder.name))
    return found


def check(place, name):
    assert content(place / name / "x") == content(place / "expected" / "x")
    assert not list((place / name).rglob(".tuplesmith-*"))


def test_killed_workers_cost_nothing(place, nodes):
    driver, draw, killed, seen = start(place, "workers", nodes), random.Random(1), 0, set()
    while driver.poll() is None:
        seen.update(actors(nodes))
        if seen and killed < 3:
            time.sleep(draw.uniform(0.5, 4))
            for number in actors(nodes)[:1]:
                os.kill(number, signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    code, err = end(driver)
    assert code == 0, err
    assert killed
    assert len(seen) >= 3
    check(place, "workers")


def test_a_lost_node_costs_nothing(place, nodes):
    node = nodes.add_node(num_cpus=1)
    driver = start(place, "node", nodes)
    while driver.poll() is None and len(actors(nodes)) < 4:
        time.sleep(0.05)
    time.sleep(6)  # its worker has loaded the model
    nodes.remove_node(node, allow_graceful=False)
    code, err = end(driver)
    assert code == 0, err
    check(place, "node")


def test_a_killed_driver_is_continued(place, nodes):
    draw, killed = random.Random(2), 0
    for _ in range(3):
        driver = start(place, "driver", nodes)
        while driver.poll() is None and not actors(nodes):
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 12))
        driver.kill()
        end(driver)
        killed += driver.returncode == -signal.SIGKILL
    assert killed
    code, err = end(start(place, "driver", nodes))
    assert code == 0, err
    check(place, "driver")


def test_an_audit_is_that_of_one_process(place, nodes):
    build = shutil.copytree(place / "expected" / "x", place / "audit-there" / "x")
    command = [*MINE, "audit", build, "-q", "--ray", nodes.address]
    done = subprocess.run(command, env=ENV, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (place / "audit").read_bytes()


def test_each_worker_has_a_gpu_of_its_own(tmp_path, nodes):
    node = nodes.add_node(num_cpus=2, num_gpus=2)  # Ray takes our word for it
    try:
        with workers(tmp_path, ray=nodes.address, device="auto") as some:
            assert some.device == "cuda"
            seen = [(result(), item) for item, result in some.run(partial(os.getenv, "CUDA_VISIBLE_DEVICES"), ["none"] * 40)]
        assert {gpu for gpu, _ in seen} <= {"0", "1"}
        with workers(tmp_path, ray=nodes.address, device="cpu") as some:
            assert some.device == "cpu"
            assert {result() for _, result in some.run(os.getenv, ["OMP_NUM_THREADS"] * 9)} == {"1"}
    finally:
        nodes.remove_node(node)
    wrong = {
        "cuda:1": "--device cuda:1: each worker of a cluster has a GPU of its own; use --device cuda",
        "cuda": "--device cuda: no node of the cluster has a GPU; use --device cpu",
    }
    for device, line in wrong.items():
        with pytest.raises(SetupError) as error, workers(tmp_path, ray=nodes.address, device=device):
            pass
        assert str(error.value) == line
