"""Folders and files that may not be read or written, names that lead nowhere, a full disk: one line, whatever the command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from curation.core.errors import REFUSALS, UserError, explain_refusal, refusal
from tests.training.tiny_models import tiny_folder

READING = (
    "curate stats b",
    "curate show b",
    "curate verify b",
    "curate diff b b",
    "curate check m.yaml",
    "curate build m.yaml --dry-run",
)
WRITING = (
    "curate build m.yaml -o b -j 1", "curate build m.yaml -o b -j 2", "curate lock m.yaml", "curate report b",
    "curate signatures b -o OUT/f.parquet", "curate export b --format pair -o OUT/e", "curate publish b o/n --dry-run",
    "curate import in/s.jsonl -o OUT/i.yaml",
)  # fmt: skip
MODELS = (
    "mine negatives b", "mine negatives b --dry-run", "mine show b", "mine calibrate b", "mine audit b", "train b", "train b --restart",
    "train plan b", "train evaluate b/train/model --data b/heldout/s", "train export b/train -o OUT/x", "train average b/train -o OUT/a",
    "train report b/train", "train publish b/train o/n --dry-run",
)  # fmt: skip


def read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


PLACES: dict[str, Callable[[Path], object]] = {
    "the build read-only": lambda here: read_only(here / "b"),
    "the build unreadable": lambda here: (here / "b").chmod(0),
    "files of the build unreadable": lambda here: [path.chmod(0) for path in here.glob("b/*/*/*") if path.is_file()],
    "the build a file": lambda here: [shutil.rmtree(here / "b"), (here / "b").write_text("")],
    "build.json a folder": lambda here: [(here / "b/build.json").unlink(), (here / "b/build.json").mkdir()],
    "inputs unreadable": lambda here: [path.chmod(0) for path in [here / "in/s.jsonl", *here.glob("bert/*")]],
    "folders of inputs unreadable": lambda here: [(here / "in").chmod(0), (here / "bert").chmod(0)],
    "the manifest unreadable": lambda here: [(here / "m.yaml").chmod(0), (here / "b/manifest.yaml").chmod(0)],
    "the output's folder read-only": lambda here: [(here / "OUT").mkdir(), (here / "OUT").chmod(0o555)],
    "a file in the way of the output": lambda here: (here / "OUT").write_text(""),
    "the output there, and of the other kind": lambda here: [
        (here / "OUT").mkdir(), *((here / "OUT" / name).write_text("") for name in "exau"),
        *((here / "OUT" / name).mkdir() for name in ("f.parquet", "i.yaml")),
    ],
    "everything read-only": read_only,
    "the current folder removed": lambda here: (here / "gone").mkdir(),
}  # fmt: skip


def prepared(folder: Path) -> Path:
    """Write inputs, a manifest and a model."""
    tiny_folder("bert", folder / "bert")
    (folder / "in").mkdir()
    for name in "st":
        rows = [{"q": f"how do I sort list {at} of {name}?", "p": f"call sorted on {name} list {at}"} for at in range(40)]
        (folder / "in" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"task": "retrieval", "license": "mit", "holdout": 4, "fields": {"query": "q", "positive": "p"}}
    manifest = {
        "name": "b",
        "sources": [{"name": name, "files": f"in/{name}.jsonl", **fields} for name in "st"],
        "mine": {"model": "bert", "range_min": 1, "range_max": 9, "negatives": 2, "relative_margin": None, "max_score": None},
        "train": {
            "model": "bert",
            "max_tokens": 32,
            "batch": 4,
            "negatives": 2,
            "lr": 1e-3,
            "warmup": 1,
            "steps": 4,
            "save_every": 2,
        },
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, forked):
    here = prepared(tmp_path_factory.mktemp("built"))
    for line in ("curate lock m.yaml", "curate build m.yaml -o b -j 1", "mine negatives b", "train b"):
        done = forked.run(*line.split(), cwd=here)
        assert done.code == 0, done.err
    return here


def refused(forked, built: Path, here: Path, place: str, lines: tuple[str, ...]) -> list[str]:
    """Return what is wrong with what commands say in a place: more or less than a line, a traceback, another code."""
    wrong = []
    for line in lines:
        shutil.copytree(built, here)
        PLACES[place](here)
        done = forked.run(*line.split(), cwd=here)
        for path in [here, *here.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(here)
        messages = [one for one in done.err.splitlines() if one.startswith(("curate: ", "mine: ", "train: "))]
        fine = done.code == 0 or (done.code == 1 and (messages or done.out))
        if not fine or "Traceback" in done.err or "fault of tuplesmith" in done.err:
            wrong.append(f"{line}: {done.code} {done.err[-600:]}")
        if place == "the build read-only" and line in READING and done.code:
            wrong.append(f"{line} reads alone, and fails: {done.err}")
    return wrong


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_every_command_in_every_place(place, forked, built, tmp_path):
    assert refused(forked, built, tmp_path / "here", place, READING + WRITING + MODELS) == []


def test_the_other_sources_are_built_where_one_may_not_be_read(forked, tmp_path):
    here = prepared(tmp_path)
    (here / "in" / "s.jsonl").chmod(0)
    done = forked.run(*["curate", "build", "m.yaml", "-o", "b", "-j", "2", "-q"], cwd=here)
    assert done.code == 1
    assert done.err.splitlines() == [
        "curate: m.yaml: in/s.jsonl: may not be read by this user; check its permissions and those of its folder"
    ]
    assert (here / "b/curated/t/done.json").exists()


def test_a_full_disk_in_training_is_one_line(forked, built, tmp_path):
    for line in ("train b --restart -q", "train export b/train -o OUT/x"):
        here = tmp_path / "here"
        shutil.copytree(built, here)
        done = forked.run(*line.split(), cwd=here, size=2000)
        assert done.code == 1, done
        assert done.err.splitlines()[-1].endswith(
            "the disk is full; free some space and run the same command again to continue"
        ), done.err
        assert "Traceback" not in done.err
        assert not list(here.rglob(".tuplesmith-*"))
        shutil.rmtree(here)


@pytest.mark.parametrize("number", REFUSALS, ids=lambda number: os.strerror(number))
def test_each_refusal_is_a_line_with_its_place(number):
    line = str(UserError(*explain_refusal(OSError(number, os.strerror(number), "a/b.txt"))))
    assert line.startswith("a/b.txt: ")
    assert "; " in line
    rust = refusal(RuntimeError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"))
    assert rust is not None
    assert rust.errno == number


def test_faults_of_a_program_are_no_refusals():
    assert refusal(OSError(9, "Bad file descriptor")) is None
    assert refusal(ValueError("no")) is None
    assert refusal(OSError("Can't load the model")) is None
    assert refusal(OSError("40 requested and 3 written")).errno == 28
