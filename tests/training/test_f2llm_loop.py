"""At one process, in float32, our step is F2LLM's own, without its padding."""

from __future__ import annotations

import pytest
import torch
from f2llm_loop import PaddedLoop
from tiny_build import retrieval, tiny_model, write_build
from training_quality import shuffled

from curation.recipe.settings import Train
from training.backend import Torch
from training.data import Plan
from training.model.load import load_model
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
    plan = Plan(load_sources(build, model, "auto"), 42, rule)
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


def test_the_peers_get_rows_of_the_same_sources_with_all_their_negatives(tmp_path):
    kinds = {**retrieval(20, negatives=5, salt=1), "task": "classification"}
    kinds["negatives"][3] = []
    build = write_build(tmp_path / "b", {"pairs": retrieval(40, negatives=5), "kinds": kinds})
    model = load_model(tiny_model(tmp_path / "m"), max_tokens=32, device="cpu")
    plan = Plan(load_sources(build, model, "auto"), 7, Train(model="m", batch=8, negatives=2))
    ours, theirs = [plan.batch_at(step) for step in range(8)], list(shuffled(plan, 8, 7))
    said = [[(one.source, len(one.rows), one.in_batch, one.negative.shape) for one in batches] for batches in (ours, theirs)]
    assert said[0] == said[1]
    assert {source for source, *_ in said[0]} == {"pairs", "kinds"}
    assert all(one.has_negative.all() for one in theirs)
    assert any(not one.has_negative.all() for one in ours)
    assert sorted(row for one in theirs if one.source == "pairs" for row in one.rows) == list(range(40))
