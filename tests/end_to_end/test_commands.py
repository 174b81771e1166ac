"""`tuplesmith` and the three commands below it: version, help, and a package of ours that a folder of the user's hides."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

import tuplesmith_command
from curation.cli import curate
from curation.core.console import PATH
from curation.core.errors import UserError
from mining.cli import mine
from training.cli import train_command

ROOT = Path(tuplesmith_command.__file__).parent
GROUPS = {"tuplesmith": tuplesmith_command.all_commands(), "curate": curate, "mine": mine, "train": train_command}


@pytest.mark.parametrize("name", GROUPS)
def test_each_command_prints_its_version(name):
    done = CliRunner().invoke(GROUPS[name], ["--version"])
    assert (done.exit_code, done.output) == (0, f"tuplesmith {metadata.version('tuplesmith')}\n")


def test_the_three_commands_are_subcommands_of_one():
    for words in (["curate", "stats"], ["mine", "negatives"], ["train", "evaluate"]):
        done = CliRunner().invoke(GROUPS["tuplesmith"], [*words, "-h"], prog_name="tuplesmith")
        assert done.exit_code == 0
        assert done.output.startswith(f"Usage: tuplesmith {' '.join(words)} ")


@pytest.mark.parametrize("file", ["training/__init__.py", "training.py"])
def test_a_folder_that_hides_a_package_is_reported_in_one_line(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import tuplesmith_command; tuplesmith_command.train()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    hiding = tmp_path / Path(file).parts[0]
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"tuplesmith: {hiding} hides tuplesmith's package 'training'; rename it, or run from another folder\n")


def test_a_tilde_that_the_shell_left_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PATH.convert("~/builds", None, None) == tmp_path / "builds"
    assert PATH.convert("~nobody-of-this-name/x", None, None) == Path("~nobody-of-this-name/x")


def test_examples_are_copied_and_files_that_exist_stay(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/f2llm.yaml").write_text("mine")
    done = CliRunner().invoke(curate, ["examples", str(tmp_path / "own")])
    assert done.exit_code == 0
    copied = {path.relative_to(tmp_path / "own").as_posix() for path in map(Path, done.stdout.splitlines())}
    assert {"quickstart.yaml", "quickstart.py", "README.md", "train/qwen3-0.6b.yaml"} <= copied
    assert "f2llm.yaml" not in copied
    done = subprocess.run(
        [sys.executable, "quickstart.py", "--help"], cwd=tmp_path / "own", capture_output=True, text=True, check=True
    )
    assert "python manifests/quickstart.py --data" in done.stdout
    assert not (tmp_path / "own/stdlib.jsonl").exists()
    assert (tmp_path / "own/f2llm.yaml").read_text() == "mine"


def test_a_first_look_needs_no_evaluation_set(tmp_path):
    (tmp_path / "a.csv").write_text("q,p\nwhat is one thing,it is a thing of one\nwhat is two,it is a thing of two\n")
    (tmp_path / "m.yaml").write_text(
        "name: m\ndecontaminate: {against: [{files: absent.csv, fields: {query: q}}]}\n"
        "sources: [{name: a, task: retrieval, files: a.csv, fields: {query: q, positive: p}}]\n"
    )
    words = ["build", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "b"), "--limit", "1"]
    with pytest.raises(UserError, match=r"absent\.csv"):
        CliRunner().invoke(curate, words, catch_exceptions=False, standalone_mode=False)
    done = CliRunner().invoke(curate, [*words, "--no-decontaminate", "--only", "a"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "decontaminate" not in json.loads((tmp_path / "b/build.json").read_text())
