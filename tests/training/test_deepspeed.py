"""DeepSpeed in two processes is plain torch in one, at every stage, by chunks or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_build import retrieval, tiny_model, write_build

from curation import store
from curation.errors import SetupError
from curation.manifest_models import Train
from training.log import read_log
from training.step import share
from training.train import check_ranks, train

HERE = Path(__file__).parent
STAGES = (0, 1, 2, 3)


def recipe(model, **keys):
    # AdamW's first step is lr * g / (|g| + 1e-8): where a gradient is itself noise, so is that step. Ten times the usual lr.
    common = {"max_tokens": 32, "batch": 16, "negatives": 2, "lr": 1e-4, "warmup": 0, "dtype": "float32", "log_every": 1}
    return {"model": model, **common, "steps": 1, **keys}


def torchrun(jobs, folder, processes=2):
    """Do the jobs in so many processes."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(HERE / "peer_ranks.py"), str(folder / "jobs.json")],
        env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a build whose last batch is an odd one, and what two processes made of many recipes."""
    place = tmp_path_factory.mktemp("ranks")
    model = tiny_model(place / "bert")
    build = write_build(place / "b", {"pairs": retrieval(23, negatives=0)})
    jobs = []
    for stage in STAGES:
        keys = {"deepspeed": {"zero": stage}}
        for budget in (None, 60):
            job = {"build": str(build), "recipe": recipe(model, token_budget=budget, **keys), "out": str(place / f"z{stage}-{budget}")}
            jobs.append(job)
        steps = recipe(model, steps=4, save_every=2, epochs=2, token_budget=60, lr=1e-3, **keys)
        jobs.append({"build": str(build), "recipe": steps, "out": str(place / f"z{stage}-whole")})
        torn = {"build": str(build), "recipe": steps, "out": str(place / f"z{stage}-torn")}
        jobs += [{**torn, "stop": 3}, torn]
    torchrun(jobs, place)
    return place


@pytest.fixture(scope="module")
def alone(place):
    """Return the folder of the same step in one process of plain torch."""
    train(place / "b", Train.model_validate(recipe(str(place / "bert"))), out=place / "alone", device="cpu")
    return place / "alone"


def weights(out, step=1):
    return load_file(out / f"checkpoints/step-{step:06d}/model.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("budget", [None, 60])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_two_processes_is_that_of_one(place, alone, stage, budget):
    before, one = load_file(place / "bert/model.safetensors"), weights(alone)
    two = weights(place / f"z{stage}-{budget}")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    assert max(float((one[name] - before[name]).abs().max()) for name in one) > 9e-5  # they did move
    lines = [next(read_log(out / "log.jsonl")) for out in (alone, place / f"z{stage}-{budget}")]
    for key in ("loss", "loss_inbatch", "grad_norm"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-5)
    assert lines[0]["tokens"] == lines[1]["tokens"]


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_stop_at_a_signal_and_go_on_to_the_bit(place, stage):
    whole, torn = place / f"z{stage}-whole", place / f"z{stage}-torn"
    assert "going on from" in (place / f"z{stage}-torn.rank0.txt").read_text()
    assert (whole / "model/model.safetensors").read_bytes() == (torn / "model/model.safetensors").read_bytes()
    assert [line["step"] for line in read_log(torn / "log.jsonl")] == [0, 1, 2, 3]
    assert store.read_receipt(whole)["processes"] == 2
