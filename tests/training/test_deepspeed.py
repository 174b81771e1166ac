"""Two processes, with DeepSpeed at every stage or without, do what one does, by chunks or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import MINILM

from curation.core.errors import SetupError
from curation.recipe.settings import Train
from mining.mine import embed_build
from training import ranks
from training.log import read_log
from training.train import train

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(900)  # seconds: one fixture starts many processes
STAGES = (None, 0, 1, 2, 3)  # None: plain torch
JOINT = {"loss": "infonce", "query_query": True, "passage_passage": True, "mask_margin": 0.1, "spread_out": 0.5}
JOINT |= {"matryoshka": [8, 16], "distill_vectors": {"model": MINILM}}
LORA = {"steps": 2, "lora": {"rank": 4, "alpha": 8}}


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
        env=environment, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def place(once):
    """Return a folder with a build whose last batch is an odd one, and what two processes made of many recipes."""
    return once("ranks", _two_processes)


def _two_processes(place):
    model, _ = tiny_model(place / "bert"), tiny_model(place / "mpnet", "mpnet")
    build = write_build(place / "b", {"pairs": retrieval(23, negatives=0)})
    embed_build(build, MINILM, device="cpu")
    jobs = []
    for stage in STAGES:
        keys = {} if stage is None else {"deepspeed": {"zero": stage}}
        for budget in (None, 60):
            job = {
                "build": str(build),
                "recipe": recipe(model, token_budget=budget, **keys),
                "out": str(place / f"z{stage}-{budget}"),
            }
            jobs.append(job)
        joint = recipe(model, token_budget=60, **JOINT, **keys)
        jobs.append({"build": str(build), "recipe": joint, "out": str(place / f"z{stage}-joint")})
        lora = recipe(model, token_budget=60, **LORA, **keys)
        jobs.append({"build": str(build), "recipe": lora, "out": str(place / f"z{stage}-lora")})
        padded = recipe(str(place / "mpnet"), token_budget=60, loss="infonce", **keys)
        jobs.append({"build": str(build), "recipe": padded, "out": str(place / f"z{stage}-padded")})
        steps = recipe(model, steps=4, save_every=2, epochs=2, token_budget=60, lr=1e-3, **keys)
        jobs.append({"build": str(build), "recipe": steps, "out": str(place / f"z{stage}-whole")})
        torn = {"build": str(build), "recipe": steps, "out": str(place / f"z{stage}-torn")}
        jobs += [{**torn, "stop": 3}, torn]
    torchrun(jobs, place)


@pytest.fixture(scope="module")
def alone(place, once):
    """Return the folder of the same step in one process of plain torch, by loss."""

    def make(folder):
        for name, model, keys in (
            ("f2llm", "bert", {}),
            ("joint", "bert", JOINT),
            ("lora", "bert", LORA),
            ("padded", "mpnet", {"loss": "infonce"}),
        ):
            train(place / "b", Train.model_validate(recipe(str(place / model), **keys)), out=folder / name, device="cpu")

    return once("alone", make)


def weights(out, step=1):
    return load_file(out / f"checkpoints/step-{step:06d}/model.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("way", ["None", "60", "joint", "padded"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_two_processes_is_that_of_one(place, alone, stage, way):
    """In the joint one, texts of the other process are negatives, and compared with a teacher's: without their gradients the weights would differ."""
    if (stage, way) == (3, "padded"):
        why = "is padded, so the processes would run forwards unequally often, which ZeRO stage 3 does not allow"
        assert (place / "z3-padded.rank0.txt").read_text().endswith(f"{why}; give `deepspeed: {{zero: 2}}`")
        return
    single, double = alone / (way if way in ("joint", "padded") else "f2llm"), place / f"z{stage}-{way}"
    model = "mpnet" if way == "padded" else "bert"
    before, one, two = load_file(place / model / "model.safetensors"), weights(single), weights(double)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    assert max(float((one[name] - before[name]).abs().max()) for name in one) > 9e-5  # they did move
    lines = [next(read_log(out / "log.jsonl")) for out in (single, double)]
    for key in ("loss", "grad_norm"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-5)
    assert lines[0]["tokens"] == lines[1]["tokens"]


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_lora_as_one_does(place, alone, stage):
    one, two = weights(alone / "lora", 2), weights(place / f"z{stage}-lora", 2)
    assert one.keys() == two.keys()
    assert all(".lora_" in name for name in one)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    assert (place / f"z{stage}-lora/model/adapter/adapter_model.safetensors").exists()


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_stop_at_a_signal_and_go_on_to_the_bit(place, stage):
    whole, torn = place / f"z{stage}-whole", place / f"z{stage}-torn"
    assert "continuing from" in (place / f"z{stage}-torn.rank0.txt").read_text()
    assert (whole / "model/model.safetensors").read_bytes() == (torn / "model/model.safetensors").read_bytes()
    assert [line["step"] for line in read_log(torn / "log.jsonl")] == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def elsewhere(place, once):
    """Return where two steps of two processes were gone on from by one process and by four, and by another stage."""
    return once("elsewhere", lambda folder: _go_on(place, folder))


def _go_on(place, folder):
    for processes, change in ((1, 0), (4, 0), (2, 1)):
        jobs = []
        for now, before in zip(STAGES, STAGES[change:] + STAGES[:change], strict=True):
            out = folder / f"z{now}-{processes}"
            shutil.copytree(place / f"z{before}-whole", out)
            shutil.rmtree(out / "checkpoints/step-000004")
            (out / "done.json").unlink()
            keys = {} if now is None else {"deepspeed": {"zero": now}}
            steps = recipe(str(place / "bert"), steps=4, save_every=2, epochs=2, token_budget=60, lr=1e-3, **keys)
            jobs.append({"build": str(place / "b"), "recipe": steps, "out": str(out)})
        torchrun(jobs, folder, processes)


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_any_number_of_processes_goes_on_from_a_checkpoint_and_another_stage_does(place, elsewhere, stage, processes):
    whole, other = weights(place / f"z{stage}-whole", 4), weights(elsewhere / f"z{stage}-{processes}", 4)
    before = weights(place / f"z{stage}-whole", 2)
    assert "step-000002" in (elsewhere / f"z{stage}-{processes}.rank0.txt").read_text()
    assert max(float((whole[name] - before[name]).abs().max()) for name in whole) > 1e-4
    assert max(float((whole[name] - other[name]).abs().max()) for name in whole) < 1e-6


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_stands_still_is_reported_and_nothing_hangs(place, number):
    code = (
        "import sys; from datetime import timedelta; from training import ranks; ranks.MEET = timedelta(seconds=30)\n"
        "from training.cli import main; sys.argv = ['train', *sys.argv[1:]]; main()"
    )
    (place / "long.yaml").write_text(f"model: {place / 'bert'}\nbatch: 16\nnegatives: 0\nmax_tokens: 32\nepochs: 9999\n")
    command = [sys.executable, "-c", code, str(place / "b"), "--recipe", str(place / "long.yaml"), "--device", "cpu", "-v"]
    command += ["-o", str(place / f"lost-{number}")]
    launched = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29420 + number),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **launched, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    assert any(" 2/" in line for line in processes[0].stderr)
    processes[1].send_signal(number)
    rest = processes[0].stderr.read()
    assert processes[0].wait(60) == 1
    assert "train: rank 0: another process has ended or does not answer (" in rest
    assert rest.endswith("); start all of them again: they continue from the last checkpoint\n")
    for process in processes:
        process.kill()
        process.communicate()  # closes the pipe, too


@pytest.mark.long
def test_a_process_that_never_comes_is_reported(place):
    code = (
        "import sys; from datetime import timedelta; from training import ranks; ranks.MEET = timedelta(seconds=3)\n"
        "from training.cli import main; sys.argv = ['train', *sys.argv[1:]]; main()"
    )
    (place / "recipe.yaml").write_text(f"model: {place / 'bert'}\nbatch: 16\nnegatives: 0\nmax_tokens: 32\n")
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29417"}
    command = [sys.executable, "-c", code, str(place / "b"), "--recipe", str(place / "recipe.yaml"), "--device", "cpu"]
    environment = {**os.environ, **launched, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "train: rank 0: the 2 processes do not find each other (" in done.stderr
    assert done.stderr.endswith("); start all of them with torchrun; is one missing or dead?\n")


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SetupError, match=r"^3 processes: do not divide the batch of 16 tuples; set `batch` to 18$"):
        ranks.check_divides(16)
