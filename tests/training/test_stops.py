"""A step that the memory does not hold is reported with what to set."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curation.core.errors import SetupError
from curation.recipe.settings import Train
from training.train import explain_lost_gpu, explain_out_of_memory


def at_once(starts, world=1, **keys):
    batch = SimpleNamespace(starts=np.array(starts), ids=np.zeros(starts[-1]))
    with explain_out_of_memory(7, batch, Train(model="m", **keys), world, "run"):
        torch.empty(1 << 50)  # a petabyte and more


@pytest.mark.parametrize(
    ("starts", "world", "keys", "held", "what"),
    [
        ([0, 100, 1000], 1, {}, "1,000", "`token_budget: 500` or `checkpointing: yes`"),
        ([0, *range(100, 4001, 100)], 2, {"checkpointing": True}, "2,000", "`token_budget: 1000`"),
        ([0, *range(100, 4001, 100)], 1, {"token_budget": 600}, "600", "`token_budget: 300` or `checkpointing: yes`"),
        ([0, 900, 1800], 1, {"token_budget": 600}, "900", "`max_tokens: 450` or `checkpointing: yes`"),
    ],
)
def test_the_budget_to_set_is_named(starts, world, keys, held, what):
    message = f"^run, step 7: out of memory: forward and backward over {held} tokens do not fit; set {what}, and run it again$"
    with pytest.raises(SetupError, match=message):
        at_once(starts, world, **keys)


def test_other_errors_keep_their_traceback():
    batch = SimpleNamespace(starts=np.array([0, 3]), ids=np.zeros(3))
    with pytest.raises(RuntimeError, match="must match"), explain_out_of_memory(0, batch, Train(model="m"), 1, "run"):
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.parametrize("what", ["uncorrectable ECC error encountered", "unspecified launch failure"])
def test_a_gpu_that_is_lost_is_reported(what):
    expected = rf"^cuda:0: the GPU does not work any more \(CUDA error: {what}\); look at `nvidia-smi`, and run it again: it continues from"
    with pytest.raises(SetupError, match=expected), explain_lost_gpu(torch.device("cuda:0")):
        raise torch.AcceleratorError(f"CUDA error: {what}\nCUDA kernel errors might be asynchronously reported")
    with pytest.raises(RuntimeError, match="device-side assert"), explain_lost_gpu(torch.device("cuda:0")):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
