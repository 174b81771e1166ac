"""Whole training steps on fake CUDA tensors: no operation mixes devices, and none makes the host wait for the GPU.

A torch that is built for CPUs cannot run a backward of CUDA tensors. The backward creates no tensors of its own, so here it is
left out: gradients of the right shape and device take its place. test_gpu_step.py runs it on a GPU.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from tiny_build import retrieval, write_build
from tiny_models import tiny_folder

from curation.recipe.settings import Train
from tests.training.model.test_fake_cuda import ARCHITECTURES, DEVICE, fake_cuda
from training.backend import Torch, prepare
from training.data import Plan
from training.model.load import load_model
from training.step import add_gradients, made_ready
from training.tokens import load_sources

EVERYTHING = {"matryoshka": [8, 16], "distill": 0.5, "symmetric": True, "mask_margin": 0.1}
LOSSES = {"f2llm": {}, "infonce": {"loss": "infonce"}, "everything": EVERYTHING}
KINDS = [kind for kind in ARCHITECTURES if "both ways" not in kind and kind not in ("minilm", "narrow bert", "gemma3")]
# In the default suite each two settings meet once.
PAIRED = {("float32", None, False), ("float32", 800, True), ("bfloat16", None, True), ("bfloat16", 800, False)}
SETTINGS = [
    pytest.param(*one, marks=[] if one in PAIRED else pytest.mark.long)
    for one in product(("float32", "bfloat16"), (None, 800), (False, True))
]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("builds") / "tiny", {"pairs": retrieval(40)})


@pytest.fixture(scope="module", params=KINDS)
def trained(request, build, tmp_path_factory):
    """Return a model on the CPU, and the sources as its tokens."""
    model = load_model(str(tiny_folder(request.param, tmp_path_factory.mktemp(request.param) / "m")), device="cpu")
    return model, load_sources(build, model, "auto")


def to_fake_gpu(model, recipe):
    """Return a backend whose weights are on the fake GPU."""
    for module in model.backbone.modules():
        for own in (module._parameters, module._buffers):
            for name, one in own.items():
                if one is not None:
                    new = torch.empty(one.shape, dtype=one.dtype, device=DEVICE)
                    own[name] = torch.nn.Parameter(new) if own is module._parameters else new
    backend = Torch.__new__(Torch)
    backend.model, backend.recipe, backend.rank, backend.world, backend.device = model, recipe, 0, 1, DEVICE
    backend.weights, backend.optimizer = prepare(model, recipe)
    return backend


@pytest.mark.parametrize(("dtype", "budget", "checkpointing"), SETTINGS)
def test_no_step_mixes_devices_or_waits_for_the_gpu(trained, dtype, budget, checkpointing, monkeypatch):
    for loss, keys in LOSSES.items():
        loaded, sources = replace(trained[0], backbone=deepcopy(trained[0].backbone)), trained[1]
        common = {"batch": 16, "negatives": 2, "dtype": dtype, "token_budget": budget, "checkpointing": checkpointing}
        rule = Train(model=loaded.name, **common, **keys)
        batch = Plan(sources, 42, rule).batch_at(0)
        with fake_cuda(monkeypatch) as waits, torch.enable_grad():
            monkeypatch.setattr(
                torch.nn.Module, "float", lambda module: module
            )  # fake weights cannot be swapped, and are float32
            backend = to_fake_gpu(loaded, rule)
            ready, seen = made_ready(batch, rule, pinned=True), []
            assert (len(ready.forwards) > 1) == (budget is not None)

            def backward(value, backend=backend, seen=seen):
                seen.append((value.device, value.requires_grad))
                for weight in backend.weights.values():
                    weight.grad = torch.empty_like(weight)

            monkeypatch.setattr(backend, "backward", backward)
            monkeypatch.setattr(torch.autograd, "grad", lambda value, inputs: (torch.empty_like(inputs),))
            losses = add_gradients(backend, ready, rule)
            norm = backend.step(1e-4)
            assert seen == [(DEVICE, True)] * len(ready.forwards)
            assert {one.device for one in (norm, *losses) if one is not None} == {DEVICE}, loss
        assert not waits.found, (loss, waits.found)
