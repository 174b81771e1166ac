"""Builds on a real Ray cluster of three nodes: the bytes of one process, also after workers, nodes and the driver were killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest

from curation.core.errors import SetupError
from curation.engine import ray as engine

CURATE = [sys.executable, "-c", "from curation.cli import main; main()", "build", "-q"]
ENV = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
TIMES = {"timings.json"}  # the only file that differs from build to build
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with two manifests, and their builds by one process: six sources that are compared, and a large one."""
    folder = tmp_path_factory.mktemp("ray")
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 8))) for _ in range(900)]
    passages = [" ".join(draw.choices(words, k=60)) for _ in range(1_500)]
    sources = []
    for number in range(6):
        with (folder / f"s{number}.jsonl").open("w") as file:
            for row in range(2_000):
                text = passages[draw.randrange(len(passages))] if row % 5 == 0 else " ".join(draw.choices(words, k=60))
                file.write(json.dumps({"q": " ".join(draw.choices(words, k=9)), "p": text}) + "\n")
        sources.append({"name": f"s{number}", "files": f"s{number}.jsonl", "fields": {"query": "q", "positive": "p"}})
        sources[-1] |= {"task": "retrieval", "instruction": "Find the passage.", **({"holdout": 30} if number == 2 else {})}
    (folder / "few.jsonl").write_text("".join((folder / "s0.jsonl").open().readlines()[:40]))
    against = [{"name": "e", "files": "few.jsonl", "fields": {"query": "q", "positive": "p"}}]
    whole = {"name": "m", "dedup": {"across": True}, "decontaminate": {"against": against}, "sources": sources}
    (folder / "m.yaml").write_text(json.dumps(whole))
    with (folder / "large.jsonl").open("w") as file:
        for row in range(40_000):
            text = passages[draw.randrange(len(passages))] if row % 50 == 0 else " ".join(draw.choices(words, k=90))
            file.write(json.dumps({"q": " ".join(draw.choices(words, k=9)), "p": text}) + "\n")
    large = {**sources[2], "name": "large", "files": "large.jsonl"}
    (folder / "large.yaml").write_text(json.dumps({**whole, "dedup": {}, "sources": [large]}))
    for name in ("m", "large"):
        command = [*CURATE, f"{name}.yaml", "-o", f"expected-{name}", "-j", "1"]
        built = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
    return folder


BOTH = pytest.mark.parametrize("name", ["m", "large"])


def files_of(build: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(build)): path.read_bytes()
        for path in sorted(build.rglob("*"))
        if path.is_file() and path.name not in TIMES and not path.name.startswith(".")
    }


def start(place: Path, cluster, out: str, name: str = "m") -> subprocess.Popen:
    command = [*CURATE, f"{name}.yaml", "-o", out, "--ray", cluster.address]
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background of a shell ignore it
    return subprocess.Popen(
        command, cwd=place, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listens
    )


def end(driver: subprocess.Popen) -> tuple[int, str]:
    _, said = driver.communicate(timeout=240)
    return driver.returncode, said


def tasks(cluster) -> list[int]:
    """Return the process numbers of this cluster's workers that run a task now."""
    parents = {one.all_processes["raylet"][0].process.pid for one in cluster.list_all_nodes() if "raylet" in one.all_processes}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents and (folder / "cmdline").read_bytes().startswith(b"ray::_answer"):
                found.append(int(folder.name))
    return found


def check(place: Path, out: str, name: str = "m") -> None:
    assert files_of(place / out) == files_of(place / f"expected-{name}")
    assert not list((place / out).rglob("*.tmp"))
    shutil.rmtree(place / out)


@BOTH
def test_three_nodes_build_the_bytes_of_one_process(place, cluster, name):
    driver = start(place, cluster, "whole", name)
    seen = set()
    while driver.poll() is None:
        seen.update(tasks(cluster))
        time.sleep(0.05)
    code, said = end(driver)
    assert code == 0, said
    assert len(seen) > 1  # more than one worker took part
    check(place, "whole", name)


def test_three_nodes_verify_what_one_process_does(place, cluster):
    """The same problems in the same order; nothing is written to the build, and another command's temporary files stay."""
    build = Path(shutil.copytree(place / "expected-m", place / "damaged"))
    for name in ("curated/s4/pairs-00000.parquet", "report.html", "curated/s1/passages-00000.parquet", "near/s0/done.json"):
        (build / name).write_bytes((build / name).read_bytes()[:-9])
    (build / "shaped/s5/note.txt").touch()
    unfinished = build / ".tuplesmith-00000000000000aa.tmp"
    unfinished.mkdir()
    before = {path: path.stat().st_mtime_ns for path in build.rglob("*")}
    verify = [sys.executable, "-c", "from curation.cli import main; main()", "verify", "damaged"]
    said = []
    for how in (["-j", "1"], ["-j", "2"], ["--ray", cluster.address]):
        done = subprocess.run([*verify, *how], cwd=place, env=ENV, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1, done.stderr
        said.append(done.stdout)
    assert [line.partition(": ")[0] for line in said[0].splitlines()] == [
        "damaged/report.html",
        "damaged/near/s0/done.json",
        "damaged/near/s0/done.json",
        "damaged/curated/s1/passages-00000.parquet",
        "damaged/curated/s4/pairs-00000.parquet",
        "damaged/shaped/s5/note.txt",
    ]
    assert said[1:] == said[:1] * 2
    assert {path: path.stat().st_mtime_ns for path in build.rglob("*")} == before
    done = subprocess.run([*verify, "-j", "2", "--ray", cluster.address], cwd=place, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1].startswith("Error: -j has no effect with --ray")) == (2, True)
    shutil.rmtree(build)


@BOTH
def test_killed_workers_cost_nothing(place, cluster, name):
    driver = start(place, cluster, "worker", name)
    draw, killed = random.Random(0), 0
    while driver.poll() is None and killed < 2:
        time.sleep(draw.uniform(0.05, 0.5))
        for number in tasks(cluster)[:1]:
            os.kill(number, signal.SIGKILL)
            killed += 1
    code, said = end(driver)
    assert killed, "no task was running"
    assert code == 0, said
    check(place, "worker", name)


@BOTH
def test_a_lost_node_costs_nothing(place, cluster, name):
    node = cluster.add_node(num_cpus=2)
    driver = start(place, cluster, "node", name)
    while driver.poll() is None and not tasks(cluster):
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    code, said = end(driver)
    assert code == 0, said
    check(place, "node", name)


@BOTH
def test_a_killed_driver_is_continued(place, cluster, name):
    draw, killed = random.Random(0), 0
    for _ in range(3):
        driver = start(place, cluster, "driver", name)
        limit = time.monotonic() + 60
        while driver.poll() is None and not tasks(cluster) and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.6))
        driver.kill()
        driver.communicate()
        killed += driver.returncode == -signal.SIGKILL
    assert killed, "each run had ended before it was killed"
    code, said = end(start(place, cluster, "driver", name))
    assert code == 0, said
    check(place, "driver", name)


def test_an_error_of_the_user_is_the_same_line_and_not_retried(place, cluster):
    whole = json.loads((place / "m.yaml").read_text())
    whole["sources"][1]["fields"]["positive"] = "passage"
    folder = place / "wrong"
    folder.mkdir()
    (folder / "m.yaml").write_text(json.dumps(whole))
    for path in place.glob("*.jsonl"):
        (folder / path.name).symlink_to(path)
    lines = []
    for how in (["-j", "1", "-o", "here"], ["--ray", cluster.address, "-o", "there"]):
        done = subprocess.run([*CURATE, "m.yaml", *how], cwd=folder, env=ENV, capture_output=True, text=True, timeout=240)
        assert done.returncode == 1
        lines.append([line for line in done.stderr.splitlines() if line.startswith("curate")])
    assert len(lines[0]) == 1
    assert "s1" in lines[0][0]
    assert lines[1] == [lines[0][0].replace(" s1.jsonl", f" {folder}/s1.jsonl")]


def test_a_node_with_another_version_is_named(place, cluster, tmp_path):
    info = tmp_path / "tuplesmith-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tuplesmith\nVersion: 9.9\n")
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        code, said = end(start(place, cluster, "other"))
    finally:
        cluster.remove_node(node)
    assert code == 1
    assert f"has tuplesmith 9.9 and Python {sys.version.split()[0]}, this machine {metadata.version('tuplesmith')}" in said
    assert said.rstrip().endswith("install the same versions on all nodes")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_build_and_leaves_nothing(place, cluster, number, expected):
    for _ in range(20):  # the build may be done before a task of it was seen
        driver = start(place, cluster, "ended")
        while driver.poll() is None and not tasks(cluster):
            time.sleep(0.05)
        driver.send_signal(number)
        code, said = end(driver)
        if code:
            break
        shutil.rmtree(place / "ended")
    assert code == expected, said
    assert "Traceback" not in said
    assert not list((place / "ended").rglob("*.tmp"))
    shutil.rmtree(place / "ended")


@pytest.mark.parametrize("processors", [2, 0])
def test_a_cluster_of_the_command_line_and_one_without_processors(place, processors):
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as short:  # it holds sockets
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = ["--head", "--block", "--port", str(port), "--num-cpus", str(processors), "--include-dashboard", "false"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--temp-dir", short]
        head = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            for _ in range(300):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            build = [*CURATE, "m.yaml", "-o", f"cli{processors}", "--ray", f"127.0.0.1:{port}"]
            done = subprocess.run(build, cwd=place, env=ENV, capture_output=True, text=True, timeout=200)
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
    if processors:
        assert done.returncode == 0, done.stderr
        check(place, f"cli{processors}")
    else:
        assert done.returncode == 1
        assert done.stderr.rstrip().splitlines()[-1].startswith("curate: --ray: no node of the cluster has a processor for tasks")


def test_memory_that_tasks_take_of_their_nodes(place, cluster):
    command = [*CURATE, "m.yaml", "-o", "memory", "--ray", cluster.address, "--memory"]
    done = subprocess.run([*command, "99999"], cwd=place, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    what = r"curate: --memory 99999: no node has so much memory for a task: the largest has [\d.]+ GB; lower it, or start a node with more"
    assert re.fullmatch(what, done.stderr.strip())
    largest = int(float(done.stderr.partition("the largest has ")[2].split()[0]))
    done = subprocess.run([*command, str(largest)], cwd=place, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    check(place, "memory")


HOG = """
import pathlib, time, ray
ray.init(address={address!r})
@ray.remote(num_cpus=1)
def work():
    pathlib.Path({mark!r}).touch()
    time.sleep(20)
ray.get(work.remote())
"""


def test_another_token_is_one_line_and_waiting_for_a_full_cluster_is_said(place, tmp_path):
    tokens = [{**ENV, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": letter * 40} for letter in "ab"]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as short:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        options = ["--head", "--block", "--port", address[10:], "--num-cpus", "1", "--include-dashboard", "false"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--temp-dir", short]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        head = subprocess.Popen(command, env=tokens[0], start_new_session=True, **quiet)
        mark = tmp_path / "full"
        hog = subprocess.Popen([sys.executable, "-c", HOG.format(address=address, mark=str(mark))], env=tokens[0], **quiet)
        try:
            build = [*CURATE, "m.yaml", "-o", str(tmp_path / "b"), "--ray", address]
            for _ in range(600):
                if mark.exists():
                    break
                time.sleep(0.1)
            assert mark.exists()
            full, other = (
                subprocess.run(build, cwd=place, env=env, capture_output=True, text=True, timeout=200) for env in tokens
            )
        finally:
            hog.kill()
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
    assert full.returncode == 0, full.stderr
    waits = "--ray: waiting for other work on the cluster to end: a worker needs 1 CPU, of which 0 of 1 are free"
    assert full.stderr.splitlines() == [waits]
    assert other.returncode == 1
    last = other.stderr.splitlines()[-1]
    assert last.startswith(f"curate: --ray {address}: the cluster asks for its auth token, and this command has none or another")


def test_what_the_flag_needs(place, monkeypatch):
    wrong = {"127.0.0.1:1": "nobody answers", "ray://x:1": "is not an address", "x": "is not an address"}
    for address, what in wrong.items():
        done = subprocess.run([*CURATE, "m.yaml", "--ray", address], cwd=place, env=ENV, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(f"curate: --ray {address}: {what}")
        assert len(done.stderr.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SetupError) as error, engine.cluster("local", place):
        pass
    assert str(error.value) == "--ray: Ray is not installed; pip install 'tuplesmith[ray]'"
