"""Unfinished files and folders: their names meet no other name, nothing of a live process is taken for a dead one's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from curation.cli import curate
from curation.core import locks, store
from curation.core.errors import BuildError
from training.model.export import replaced

NAMES = ("s", "s.1.part", f"s.{os.getpid()}.part", "s.part", "s.tmp", "s.lock", "s.claim")


def test_sources_named_like_unfinished_work_of_each_other_are_all_built(tmp_path):
    lines = ["name: names", "sources:"]
    for name in NAMES:
        (tmp_path / f"{name}.csv").write_text(f"q,p\nwhat is {name} about,it is about the file {name}\n")
        lines.append(
            f"  - {{name: {name}, files: {name}.csv, license: mit, task: retrieval, instruction: Find, fields: {{query: q, positive: p}}}}"
        )
    (tmp_path / "m.yaml").write_text("\n".join(lines) + "\n")
    for _ in range(2):
        done = CliRunner().invoke(curate, ["build", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "out"), "-j", "1", "-q"])
        assert done.exit_code == 0, done.output
    for name in NAMES:
        assert store.read_receipt(tmp_path / "out" / "curated" / name)["kept"] == 1


def write_often(folder: Path, number: int) -> None:
    for turn in range(60):
        store.write_json(folder / f"own-{number}.json", turn)
        store.write_json(folder / "shared.json", turn)


def test_processes_with_one_number_do_not_meet_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in every container
    context = multiprocessing.get_context("fork")
    some = [context.Process(target=write_often, args=(tmp_path, number)) for number in range(4)]
    for one in some:
        one.start()
    for one in some:
        one.join()
    assert [one.exitcode for one in some] == [0] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"own-{number}.json" for number in range(4)), "shared.json"]
    assert store.read_json(tmp_path / "shared.json") == 59


UNFINISHED = """
import os, sys, time
from pathlib import Path
from curation.core import store
def work(part):
    (part / "half").write_text("half")
    print("at work", flush=True)
    time.sleep(60)
store.run_stage(Path(sys.argv[1]) / "stage" / "s", "d", work)
"""


def test_a_dead_process_s_leftovers_go_and_a_live_one_s_stay(tmp_path):
    start = [sys.executable, "-c", UNFINISHED, str(tmp_path)]
    with subprocess.Popen(start, stdout=subprocess.PIPE) as live, subprocess.Popen(start, stdout=subprocess.PIPE) as dead:
        for one in (live, dead):
            assert one.stdout
            assert one.stdout.readline() == b"at work\n"
        dead.kill()
        dead.wait()
        assert len(list((tmp_path / "stage").iterdir())) == 2
        with locks.locked(tmp_path, "curate build"):  # a command that only opens the build
            (left,) = (tmp_path / "stage").iterdir()
            assert (left / "new" / "half").read_text() == "half"
        live.send_signal(signal.SIGKILL)
    with locks.locked(tmp_path, "curate build"):
        assert not list((tmp_path / "stage").iterdir())


def test_what_is_not_ours_is_never_removed(tmp_path):
    mine = ["model.part", ".model.part", ".tuplesmith-notes.tmp", ".tmp", "model.1.part"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    old = time.time() - 10**7
    for path in tmp_path.rglob("*"):
        os.utime(path, (old, old))
    with replaced(tmp_path / "model") as part:
        (part / "file").write_text("whole")
    store.write_json(tmp_path / "model.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "model", "model.json"])
    assert all((tmp_path / name / "notes").read_text() == "mine" for name in mine)


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    name = "n" * 250 + ".json"
    store.write_json(tmp_path / name, {"whole": True})
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("target", ["pipe", "."])
def test_a_device_or_a_folder_is_not_replaced_by_a_file(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(BuildError, match="name another file to write"):
        store.write_json(Path(target), {})
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_weights_have_the_mode_of_all_other_files(umask, tmp_path):
    before = os.umask(umask)
    try:
        with replaced(tmp_path / "model") as part:
            (part / "0_Transformer").mkdir()
            save_file({"w": torch.zeros(3)}, part / "0_Transformer" / "model.safetensors")
            (part / "config.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*.*")}
    assert modes == {"model.safetensors": 0o666 & ~umask, "config.json": 0o666 & ~umask}
