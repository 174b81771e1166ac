"""`reproduce_f2llm` is the gradient of F2LLM's trainer on several processes, and ours is that of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from f2llm_ranks import recipe
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_build import retrieval, tiny_model, write_build

from training.backend import Torch
from training.data import Plan
from training.model.load import load_model
from training.step import add_gradients
from training.tokens import load_sources
from training.train import train

HERE = Path(__file__).parent


@pytest.mark.long
def test_two_processes_give_f2llms_gradient_where_it_is_asked_for_and_the_whole_one_otherwise(tmp_path):
    name = tiny_model(tmp_path / "m", "qwen3")
    build = write_build(tmp_path / "b", {"pairs": retrieval(16)})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / "f2llm_ranks.py")]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(build), name, str(tmp_path / "gradients")],
        env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {"ours": {}, "reproduced": {}, "theirs": {}}
    for label, gradient in load_file(tmp_path / "gradients").items():
        way, weight = label.split("|")
        found[way][weight] = gradient
    rule = recipe(name, reproduce_f2llm=True)  # with one process it changes nothing
    model = load_model(name, max_tokens=32, device="cpu")
    backend = Torch(model, rule)
    add_gradients(backend, Plan(load_sources(build, model, "auto"), 42, rule).batch_at(0), rule)
    alone = {weight: value.grad for weight, value in backend.weights.items() if value.grad is not None}

    def apart(one, other):
        assert one.keys() == other.keys()
        largest = max(float(value.abs().max()) for value in other.values())
        return max(float((one[weight] - other[weight]).abs().max()) for weight in one) / largest

    assert apart(found["reproduced"], found["theirs"]) < 1e-6
    assert apart(found["ours"], alone) < 1e-6
    assert apart(found["ours"], found["theirs"]) > 1e-3


def test_it_is_said_in_the_log_and_belongs_to_f2llms_loss(tmp_path):
    name, lines = tiny_model(tmp_path / "m"), []
    build = write_build(tmp_path / "b", {"pairs": retrieval(16)})
    receipt, _ = train(build, recipe(name, reproduce_f2llm=True, steps=1), out=tmp_path / "run", device="cpu", say=lines.append)
    assert receipt["in_batch_gradient"] == "all"
    assert "reproduce_f2llm: changes nothing: with one process F2LLM's passages get their gradients too" in lines
    for keys in ({"loss": "infonce"}, {"symmetric": True}):
        with pytest.raises(ValidationError, match="'reproduce_f2llm' requires `loss: f2llm` without 'symmetric'"):
            recipe(name, reproduce_f2llm=True, **keys)
