"""At one process, in float32, our step is F2LLM's own, without its padding."""

from __future__ import annotations

import pytest
import torch
from f2llm_loop import PaddedLoop
from tiny_build import retrieval, tiny_model, write_build

from curation.manifest_models import Train
from training.backend import Torch
from training.data import Plan
from training.model import load_model
from training.step import add_gradients, learning_rate
from training.tokens import load_sources

STEPS = 20


@pytest.mark.parametrize("task", ["retrieval", "clustering"])
def test_the_losses_of_twenty_steps_are_those_of_f2llms_loop(tmp_path, task):
    folder = tiny_model(tmp_path / "qwen3", "qwen3")
    build = write_build(tmp_path / "b", {"pairs": {**retrieval(64, negatives=7), "task": task}})
    rule = Train(
        model=folder,
        max_tokens=32,
        batch=16,
        negatives=4,
        lr=3e-4,
        warmup=3,
        epochs=5,
        dtype="float32",
        mask_false_negatives=False,
    )
    model = load_model(folder, max_tokens=rule.max_tokens, device="cpu")
    plan = Plan(load_sources(build, model, "auto"), 42, rule.batch, rule.negatives)
    backend = Torch(model, rule)
    theirs = PaddedLoop(folder, rule.weight_decay, rule.betas, rule.clip, torch.float32)
    losses = []
    for step in range(STEPS):
        batch, lr = plan.batch_at(step), learning_rate(rule, step, STEPS)
        assert batch.has_negative.all()
        ours = float(add_gradients(backend, batch, rule).total.detach())
        backend.step(lr)
        losses.append((ours, theirs.step(batch, task, lr)[0]))
    assert max(abs(ours - other) for ours, other in losses) < 1e-4
    assert losses[-1][0] < losses[0][0] - 0.2  # they learn, and the same
