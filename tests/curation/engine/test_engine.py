"""Worker processes: items of lost ones are done again, errors are not, and each has a GPU of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from curation.core.errors import SetupError, SourceError
from curation.engine import local
from curation.engine.local import Here
from curation.engine.pool import RETRIES, held
from curation.engine.workers import workers


def square(number):
    return number * number


def noted(folder, number):
    """Leave a file for each call."""
    with (folder / str(number)).open("a") as file:
        file.write("x")
    return number


def dies(folder, number):
    """Be killed by number 3 the first time, and by number 4 always."""
    first = not (folder / str(number)).exists()
    noted(folder, number)
    if number == 4 or (number == 3 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fails(folder, number):
    noted(folder, number)
    if number == 1:
        raise SourceError("news.csv:3", "unbalanced quotes", "mend it")
    return {}[number] if number == 2 else number


def unsendable(number):
    return lambda: number


def where(number):
    time.sleep(0.2)  # so that each process gets one
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")


def kept(number):
    return held("list", "key", list), os.getpid(), held("list", "key", list).append(number)


def together(folder, number):
    """Wait until four calls are at work."""
    noted(folder, number)
    limit = time.monotonic() + 20
    while len(list(folder.iterdir())) < 4:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return number


@pytest.fixture
def two(tmp_path):
    with workers(tmp_path, 2) as pool:
        yield pool


def results(run):
    return {item: result() for item, result in run}


def test_every_item_is_answered_wherever_it_is_run(tmp_path, two):
    expected = {number: number * number for number in range(40)}
    assert results(Here().run(square, range(40))) == expected
    assert list(results(Here().run(square, range(40), 3))) == list(range(40))
    assert results(two.run(square, range(40))) == expected
    assert results(two.run(square, range(40), 3)) == expected
    assert results(two.run(square, [])) == {}
    with workers(tmp_path, 1) as one:
        assert isinstance(one, Here)


def test_items_are_taken_when_a_worker_is_free(two):
    taken = []
    run = two.run(square, (taken.append(number) or number for number in range(100)))
    next(run)
    assert len(taken) <= 4
    run.close()
    assert results(two.run(square, range(3))) == {0: 0, 1: 1, 2: 4}  # what was left over is not answered again


def test_the_item_of_a_killed_process_is_run_again_by_another(tmp_path, two):
    assert results(two.run(partial(dies, tmp_path), [0, 1, 2, 3, 5])) == {number: number for number in (0, 1, 2, 3, 5)}
    assert (tmp_path / "3").read_text() == "xx"
    with pytest.raises(SetupError) as error:
        results(two.run(partial(dies, tmp_path), [4]))
    assert str(error.value) == (
        "a worker process: was killed 4 times with the same work, perhaps because memory ran out; use a smaller -j, such as -j 1"
    )
    assert (tmp_path / "4").read_text() == "x" * (RETRIES + 1)
    assert results(two.run(square, [7])) == {7: 49}


def test_an_error_is_the_same_line_and_is_not_run_again(tmp_path, two):
    found = dict(two.run(partial(fails, tmp_path), range(4)))
    assert [found[0](), found[3]()] == [0, 3]
    with pytest.raises(SourceError) as error:
        found[1]()
    assert str(error.value) == "news.csv:3: unbalanced quotes; mend it"
    with pytest.raises(KeyError) as bug:
        found[2]()
    assert "in fails" in bug.value.__notes__[0]  # where it happened, in the other process
    assert [(tmp_path / str(number)).read_text() for number in (1, 2)] == ["x", "x"]
    with pytest.raises(Exception, match="pickle"):
        results(two.run(unsendable, [1]))


def test_a_worker_keeps_what_it_made(two):
    seen = {}
    for _, result in two.run(kept, range(12)):
        made, process, _ = result()
        seen[process] = max(seen.get(process, 0), len(made))
    assert sum(seen.values()) == 12
    assert held("x", 1, object) is held("x", 1, object)
    assert held("x", 1, object) is not held("x", 2, object)


def test_a_worker_works_on_several_items_at_once(tmp_path, two):
    assert len(results(two.run(partial(together, tmp_path), range(4), 2))) == 4


@pytest.mark.parametrize(
    ("device", "visible", "count", "expected"),
    [
        ("auto", None, None, ["0", "1", "2"]),
        ("cuda", "3,5,GPU-ab", None, ["3", "5", "GPU-ab"]),
        ("cuda:1", "3,5,GPU-ab", 2, ["5", "5"]),
        ("auto", None, 4, ["0", "0", "1", "2"]),
        ("auto", None, 2, ["0", "1"]),
    ],
)
def test_each_process_has_a_gpu_of_its_own(tmp_path, monkeypatch, device, visible, count, expected):
    monkeypatch.setattr(local, "DRIVERS", ("null",))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with workers(tmp_path, count, device=device) as pool:
        assert pool.device == "cuda"
        first = [result() for _, result in pool.run(where, range(len(expected)))]
        assert sorted(gpu for _, gpu, _ in first) == expected
        assert len({process for process, *_ in first}) == len(expected)
        os.kill(first[0][0], signal.SIGKILL)
        again = [result() for _, result in pool.run(where, range(len(expected)))]
    assert sorted(gpu for _, gpu, _ in again) == expected
    assert first[0][0] not in {process for process, *_ in again}


def test_processes_without_gpus_share_the_processors(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "DRIVERS", ())
    monkeypatch.setattr(local, "processors", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers(tmp_path, 2, device="auto") as pool:
        assert {result()[2] for _, result in pool.run(where, range(2))} == {"3"}
    with workers(tmp_path, 2) as pool:  # nothing is held, so nothing is limited
        assert {result()[2] for _, result in pool.run(where, range(2))} == {None}
    with workers(tmp_path, None, device="auto") as one:
        assert isinstance(one, Here)


DRIVER = """
import os, sys
from pathlib import Path
sys.path[:0] = [{here!r}, {root!r}]
from test_engine import tell_and_wait
from curation.engine.workers import workers
if __name__ == "__main__":
    with workers(Path({folder!r}), 2) as pool:
        list(pool.run(tell_and_wait, [{folder!r}] * 2))
"""


def tell_and_wait(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def test_workers_end_with_a_killed_driver(tmp_path):
    here = Path(__file__).resolve()
    code = DRIVER.format(here=str(here.parent), root=str(here.parents[3]), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code]) as driver:
        while len(list(tmp_path.iterdir())) < 2:
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
    for path in tmp_path.iterdir():
        for _ in range(200):
            if (
                not Path("/proc", path.name).exists()
                or "Z" in Path("/proc", path.name, "stat").read_text().rpartition(")")[2][:3]
            ):
                break
            time.sleep(0.05)
        else:
            pytest.fail("a worker outlived its driver")
