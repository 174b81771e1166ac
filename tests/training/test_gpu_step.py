"""Training on a GPU: against the CPU, in parts, resumed, out of memory, and under DeepSpeed. Needs no downloaded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_build import retrieval, write_build
from tiny_models import tiny_folder

from curation.core.errors import BuildError, SetupError
from curation.recipe.settings import Train
from training.backend import Torch
from training.data import Plan
from training.log import read_log
from training.memory import kept_bytes
from training.model.load import load_model
from training.step import add_gradients, made_ready
from training.tokens import load_sources
from training.train import train

DEVICE = "cuda"
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
EVERYTHING = {"matryoshka": [8, 16], "distill": 0.5, "symmetric": True, "mask_margin": 0.1}
LOSSES = pytest.mark.parametrize("keys", [{}, {"loss": "infonce"}, EVERYTHING], ids=["f2llm", "infonce", "everything"])


@pytest.fixture(autouse=True)
def _exact_products():
    """Compare float32 without TF32, whatever the default on GPUs is."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture(scope="module", params=["bert", "qwen3"])
def model(request, tmp_path_factory):
    return str(tiny_folder(request.param, tmp_path_factory.mktemp(request.param) / "m"))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("builds") / "tiny", {"pairs": retrieval(40)})


def recipe(model, **keys):
    common = {"max_tokens": 64, "batch": 16, "negatives": 2, "lr": 1e-4, "warmup": 0, "dtype": "float32", "log_every": 1}
    return Train(model=model, **{**common, **keys})


def one_step(rule, build, device):
    """Return the loss, the gradients and the weights after the first step, all on the CPU."""
    model = load_model(rule.model, max_tokens=rule.max_tokens, device=device)
    plan = Plan(load_sources(build, model, "auto"), 42, rule)
    backend = Torch(model, rule)
    losses = add_gradients(backend, plan.batch_at(0), rule)
    gradients = {name: weight.grad.cpu().clone() for name, weight in backend.weights.items()}
    backend.step(rule.lr)
    return (
        float(losses.total.detach()),
        gradients,
        {name: weight.detach().cpu().clone() for name, weight in backend.weights.items()},
    )


def flat(tensors):
    return torch.cat([value.flatten() for _, value in sorted(tensors.items())]).double()


def farthest(one, other):
    """Return the largest difference of two sets of gradients as a share of the largest gradient."""
    assert one.keys() == other.keys()
    return float((flat(one) - flat(other)).abs().max() / flat(other).abs().max())


@pytest.mark.gpu
@NO_GPU
@LOSSES
def test_a_float32_step_is_the_cpus(model, build, keys):
    rule = recipe(model, **keys)
    loss, gradients, weights = one_step(rule, build, DEVICE)
    expected, wanted, after = one_step(rule, build, "cpu")
    assert loss == pytest.approx(expected, rel=1e-4)
    assert farthest(gradients, wanted) < 1e-3
    moved = (flat(weights) - flat(after)).abs()
    assert moved.max() <= 2.1 * rule.lr  # AdamW's first step is lr * sign(g), also where g is rounding noise
    assert moved.mean() < 0.02 * rule.lr


@pytest.mark.gpu
@NO_GPU
@LOSSES
def test_a_bfloat16_step_is_near_the_cpus_float32_step(model, build, keys):
    loss, gradients, _ = one_step(recipe(model, dtype="bfloat16", **keys), build, DEVICE)
    expected, wanted, _ = one_step(recipe(model, **keys), build, "cpu")
    assert loss == pytest.approx(expected, rel=0.05)
    assert torch.cosine_similarity(flat(gradients), flat(wanted), dim=0) > 0.98


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", [{"token_budget": 300}, {"checkpointing": True}, {"token_budget": 300, "checkpointing": True}])
def test_parts_and_checkpointing_give_the_whole_step(model, build, how, dtype):
    loss, gradients, _ = one_step(recipe(model, dtype=dtype, **how), build, DEVICE)
    expected, wanted, _ = one_step(recipe(model, dtype=dtype), build, DEVICE)
    if dtype == "float32":
        assert loss == pytest.approx(expected, rel=1e-5)
        assert farthest(gradients, wanted) < 1e-4
    else:  # the shapes of products change, and with them the rounding
        assert loss == pytest.approx(expected, rel=0.02)
        assert torch.cosine_similarity(flat(gradients), flat(wanted), dim=0) > 0.99


class Killed(BaseException):
    pass


def kill_after_step_3(line):
    if line.startswith("step 3/"):
        raise Killed


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_continues(model, build, tmp_path, dtype):
    rule = recipe(model, dtype=dtype, lr=1e-3, steps=4, epochs=2, save_every=2)
    for name in ("whole", "again"):
        train(build, rule, out=tmp_path / name, device=DEVICE)
    with pytest.raises(Killed):
        train(build, rule, out=tmp_path / "torn", device=DEVICE, say=kill_after_step_3)
    train(build, rule, out=tmp_path / "torn", device=DEVICE)

    whole, again, torn = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "again", "torn"))
    apart, resumed = farthest(again, whole), farthest(torn, whole)
    print(f"two whole runs differ by {apart:.2e}, a resumed one by {resumed:.2e}")
    assert resumed <= max(10 * apart, 1e-6)  # kernels that add up in any order are the only difference
    lines = [list(read_log(tmp_path / name / "log.jsonl")) for name in ("whole", "torn")]
    assert [line["step"] for line in lines[1]] == [0, 1, 2, 3]
    for one, other in zip(*lines, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert one["gpu_memory_gb"] >= 0.0


@pytest.mark.gpu
@NO_GPU
def test_a_loaded_state_is_the_saved_one_bit_by_bit(model, build, tmp_path):
    rule = recipe(model)
    loaded = load_model(model, max_tokens=64, device=DEVICE)
    backend, plan = Torch(loaded, rule), Plan(load_sources(build, loaded, "auto"), 42, rule)
    for step in range(2):
        add_gradients(backend, plan.batch_at(step), rule)
        backend.step(rule.lr)
    other = Torch(load_model(model, max_tokens=64, device=DEVICE), rule)
    for name, one in (("first", backend), ("second", other)):
        (tmp_path / name).mkdir()
        if name == "second":
            one.load(tmp_path / "first")
        one.save(tmp_path / name)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    for one in (backend, other):
        add_gradients(one, plan.batch_at(2), rule)
        one.step(rule.lr)
    differences = [(backend.weights[name] - other.weights[name]).abs().max() for name in backend.weights]
    assert float(max(differences).detach()) <= 2.1 * rule.lr


@pytest.mark.gpu
@NO_GPU
def test_a_loss_that_is_no_number_leaves_the_last_checkpoint_intact(model, build, tmp_path, monkeypatch):
    rule, plain, calls = recipe(model, steps=4, save_every=2), Torch.embed, []

    def embed(self, ids, starts):
        calls.append(len(ids))
        return plain(self, ids, starts) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(Torch, "embed", embed)
    expected = r"step 2: the loss is nan on pairs, tuples pairs/\d+.*the last good checkpoint is step-000002"
    with pytest.raises(BuildError, match=expected):
        train(build, rule, out=tmp_path / "run", device=DEVICE)
    kept = load_file(tmp_path / "run/checkpoints/step-000002/model.safetensors")
    assert all(bool(value.isfinite().all()) for value in kept.values())


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("keys", [{}, {"token_budget": 300}, {"checkpointing": True, "loss": "infonce"}, EVERYTHING])
def test_the_host_never_waits_in_a_step(model, build, keys):
    rule = recipe(model, dtype="bfloat16", **keys)
    loaded = load_model(model, max_tokens=64, device=DEVICE)
    backend, plan = Torch(loaded, rule), Plan(load_sources(build, loaded, "auto"), 42, rule)
    for step in range(2):  # the first one fills caches
        batch = made_ready(plan.batch_at(step), rule, pinned=True)
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if step else "default")
            try:
                add_gradients(backend, batch, rule)
                backend.step(rule.lr)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    places = [f"{one.filename}:{one.lineno} {one.message}" for one in waits if "called a synchronizing" in str(one.message)]
    assert not places, "\n".join(places)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_keeps_what_was_counted(model, dtype):
    backend = Torch(load_model(model, max_tokens=64, device=DEVICE), recipe(model, dtype=dtype))
    taken = []
    for texts in (100, 300, 500):  # the first one fills caches
        ids, starts = np.arange(64 * texts) % 90 + 5, np.arange(texts + 1) * 64
        before = torch.cuda.memory_allocated()
        vectors = backend.embed(ids, starts)
        taken.append(torch.cuda.memory_allocated() - before)
        del vectors
    kept = kept_bytes(backend.model.backbone.config, getattr(torch, dtype), False)
    real = (taken[2] - taken[1]) / 64 / 200
    print(f"{kept.per_token:.0f} bytes per token counted, {real:.0f} allocated")
    assert kept.per_token == pytest.approx(real, rel=0.25)


@pytest.mark.gpu
@NO_GPU
def test_a_gpus_run_chooses_its_budget_and_says_so(model, build, tmp_path):
    said = []
    train(build, recipe(model, steps=1), out=tmp_path / "run", device=DEVICE, say=said.append)
    chosen = [line for line in said if line.startswith("token_budget: ")]
    assert len(chosen) == 1
    assert "chosen because" in chosen[0]
    budget = json.loads((tmp_path / "run/done.json").read_text())["token_budget"]
    assert f"{budget:,}" in chosen[0]
    assert budget > 10_000


FRESH = """
import sys, torch
from pathlib import Path
from curation.recipe.settings import Train
from training.train import train
build, model, out = sys.argv[1:]
recipe = Train(model=model, max_tokens=64, batch=16, negatives=2, steps=4, log_every=2, warmup=0)
train(Path(build), recipe, out=Path(out), device="auto", say=print)
print("expandable", torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"])
"""


@pytest.mark.gpu
@NO_GPU
def test_a_run_in_a_fresh_process(build, tmp_path):
    model = str(tiny_folder("qwen3", tmp_path / "m"))
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(build), model, str(tmp_path / "run")],
        capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "expandable True" in done.stdout
    assert "step 4/4" in done.stdout
    assert [line["step"] for line in read_log(tmp_path / "run/log.jsonl")] == [0, 1, 2, 3]


@pytest.mark.gpu
@NO_GPU
def test_out_of_memory_is_one_line(model, tmp_path):
    many = write_build(tmp_path / "many", {"pairs": retrieval(600)})
    total = torch.cuda.get_device_properties(0).total_memory
    torch.ones(512, 512, device="cuda") @ torch.ones(512, 512, device="cuda")  # cuBLAS takes its workspace now
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
        with pytest.raises(SetupError) as error:
            train(many, recipe(model, batch=600, negatives=5, max_tokens=120), out=tmp_path / "run", device=DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    line = str(error.value)
    assert "\n" not in line
    assert "out of memory" in line
    assert "token_budget" in line


@pytest.mark.gpu
@NO_GPU
@pytest.mark.filterwarnings("ignore")  # of DeepSpeed's imports
def test_zero_2_on_one_gpu_is_plain_torch(build, tmp_path):
    pytest.importorskip("deepspeed")  # it keeps its process groups for good: one run in a process
    model = str(tiny_folder("qwen3", tmp_path / "m"))
    for name, keys in (("plain", {}), ("zero", {"deepspeed": {"zero": 2}})):
        train(build, recipe(model, steps=2, **keys), out=tmp_path / name, device=f"{DEVICE}:0")
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("plain", "zero"))
    assert farthest(other, one) < 1e-3
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("plain", "zero")]
    for plain, zero in zip(*logs, strict=True):
        assert zero["loss"] == pytest.approx(plain["loss"], rel=1e-3)
        assert zero["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-2)
