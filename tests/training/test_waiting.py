"""The next batch is prepared while a step runs, and losses are read later: neither changes a bit, and no error gets lost."""

from __future__ import annotations

import math
import os
import threading

import pytest
import torch
from tiny_build import retrieval, write_build
from tiny_models import tiny_folder

from curation.core.errors import BuildError
from curation.recipe.settings import Train
from training import ranks
from training.backend import Torch
from training.data import Plan
from training.loss import Losses
from training.model.load import load_model
from training.step import add_gradients, made_ready
from training.tokens import load_sources
from training.train import Step, ready_batches, train, write_lines


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("builds") / "tiny", {"pairs": retrieval(40)})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    model = str(tiny_folder("bert", tmp_path_factory.mktemp("bert") / "m"))
    return Train(
        model=model, max_tokens=64, batch=8, negatives=2, lr=1e-3, warmup=0, dtype="float32", steps=6, save_every=2, log_every=3
    )


@pytest.fixture
def backend(recipe):
    return Torch(load_model(recipe.model, device="cpu"), recipe)


@pytest.fixture
def plan(build, backend, recipe):
    return Plan(load_sources(build, backend.model, "auto"), 42, recipe)


def test_a_batch_is_prepared_while_the_one_before_it_is_used(plan, backend, recipe):
    alone = [made_ready(plan.batch_at(step), recipe) for step in range(6)]
    numbers, at = [], plan.batch_at
    plan.batch_at = lambda step: (numbers.append((step, threading.current_thread().name)), at(step))[1]
    for step, ready in enumerate(ready_batches(plan, recipe, backend, 2, 6), 2):
        for one, other in zip(ready.targets, alone[step].targets, strict=True):
            assert one is other is None or torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
        assert torch.equal(ready.forwards[0][0], alone[step].forwards[0][0])
    assert [number for number, _ in numbers] == [2, 3, 4, 5]
    assert all(name.startswith("batches") for _, name in numbers)
    assert list(ready_batches(plan, recipe, backend, 6, 6)) == []


def test_an_error_of_the_thread_is_the_users_and_the_thread_ends(build, recipe, tmp_path, monkeypatch):
    plain = Plan.batch_at

    def batch_at(plan, step):
        if step == 4:
            raise BuildError("tokens.npy", "cannot be read", "tokenise again")
        return plain(plan, step)

    monkeypatch.setattr(Plan, "batch_at", batch_at)
    with pytest.raises(BuildError, match=r"^tokens.npy: cannot be read; tokenise again$"):
        train(build, recipe, out=tmp_path / "run", device="cpu")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    assert (tmp_path / "run/checkpoints/step-000004/checkpoint.json").exists()


def test_steps_read_together_have_their_own_lines_and_the_first_bad_one_is_named(plan, backend, recipe, tmp_path):
    def steps(*values):
        return [
            Step(
                number,
                plan.batch_at(number),
                Losses(torch.tensor(loss), torch.tensor(0.5), None),
                1e-3,
                torch.tensor(norm),
                1.0,
                3.0,
                9.0,
            )
            for number, (loss, norm) in enumerate(values)
        ]

    written, unread = [], steps((0.25, 1.5), (0.125, 2.5))
    lines = write_lines(written.append, unread, backend, recipe, plan, tmp_path)
    assert lines == written
    assert unread == []
    assert [(line["step"], line["loss"], line["grad_norm"], line["seconds"]) for line in lines] == [
        (0, 0.25, 1.5, 2.0),
        (1, 0.125, 2.5, 2.0),
    ]
    assert {line["loss_hard"] for line in lines} == {0.5}
    assert {line["loss_inbatch"] for line in lines} == {None}

    for bad, what in (
        ((0.5, math.inf), "gradient is inf"),
        ((math.nan, 1.0), "loss is nan"),
        ((math.nan, math.nan), "loss is nan"),
    ):
        written.clear()
        ids = plan.chosen(1)[0].row_ids(plan.chosen(1)[1])
        expected = rf"^{tmp_path}, step 1: the {what} on pairs, tuples {', '.join(ids)}; try a lower `lr`"
        with pytest.raises(BuildError, match=expected):
            write_lines(written.append, steps((0.25, 1.5), bad, (math.nan, math.nan)), backend, recipe, plan, tmp_path)
        assert [line["step"] for line in written] == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_change_nothing(plan, backend, recipe, bad, tmp_path):
    other = Torch(load_model(recipe.model, device="cpu"), recipe)
    for step in range(3):
        if step == 1:  # one of them has a bad step in between
            add_gradients(backend, plan.batch_at(4), recipe)
            next(iter(backend.weights.values())).grad[0] = bad
            assert not backend.step(1e-3).isfinite()
        for one in (backend, other):
            add_gradients(one, plan.batch_at(step), recipe)
            assert one.step(1e-3).isfinite()
    for name, one in (("one", backend), ("other", other)):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_a_process_takes_the_gpu_that_was_named(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is restored if it was absent
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert ranks.own(torch.device("cpu")) == torch.device("cpu")
    assert ranks.own(torch.device("cuda:1")) == torch.device("cuda:1")
    assert "PYTORCH_ALLOC_CONF" not in os.environ  # the user's own choice counts
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    assert ranks.own(torch.device("cuda")) == torch.device("cuda:3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert ranks.own(torch.device("cuda")) == torch.device("cuda:2")
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert [str(device) for device in taken] == ["cuda:1", "cuda:3", "cuda:2"]


def test_deepspeed_takes_the_gpu_of_the_run(monkeypatch):
    zero = pytest.importorskip("training.zero")
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    zero._import_deepspeed(torch.device("cuda:1"))
    assert os.environ["LOCAL_RANK"] == "1"
