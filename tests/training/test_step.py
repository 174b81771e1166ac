"""A step by chunks, or with layers computed twice, is the plain step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import tiny_folder

from curation.core.errors import BuildError, ModelError
from curation.recipe.settings import Train
from training.backend import Torch
from training.data import Plan
from training.log import read_log
from training.model.load import load_model
from training.step import add_gradients, batch_loss, chunks_of
from training.tokens import load_sources
from training.train import train


@pytest.fixture(scope="module", params=["bert", "qwen3"])
def model(request, tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp(request.param) / "m", request.param)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("builds") / "tiny", {"pairs": retrieval(40)})


def recipe(model, **keys):
    # AdamW's first step is lr * g / (|g| + 1e-8): where a gradient is itself noise, so is that step. Ten times the usual lr.
    common = {"max_tokens": 32, "batch": 16, "negatives": 2, "lr": 1e-4, "warmup": 0, "dtype": "float32"}
    return Train(model=model, **{**common, **keys})


def planned(build, rule):
    sources = load_sources(build, load_model(rule.model, max_tokens=32, device="cpu"), "auto")
    return Plan(sources, 42, rule)


def one_step(rule, plan, watch=lambda tokens: None):
    """Return (gradients, weights after the step, loss) of the plan's first batch."""
    backend = Torch(load_model(rule.model, max_tokens=32, device="cpu"), rule)
    plain = backend.embed

    def embed(ids, starts):
        if torch.is_grad_enabled():
            watch(np.diff(starts))
        return plain(ids, starts)

    backend.embed = embed
    losses = add_gradients(backend, plan.batch_at(0), rule)
    gradients = {name: weight.grad.clone() for name, weight in backend.weights.items()}
    backend.step(rule.lr)
    return gradients, {name: weight.detach().clone() for name, weight in backend.weights.items()}, float(losses.total.detach())


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


EVERYTHING = {"matryoshka": [8, 16], "distill": 0.5, "symmetric": True, "mask_margin": 0.1, "hardness": 5.0, "spread_out": 0.5}
QWEN3 = {"loss": "infonce", "query_query": True, "passage_passage": True, "mask_margin": 0.1}
JOINT = {**QWEN3, "matryoshka": [8, 16], "hardness": 5.0, "spread_out": 0.5}


@pytest.mark.parametrize("keys", [{}, {"loss": "infonce"}, EVERYTHING, JOINT], ids=["f2llm", "infonce", "everything", "joint"])
@pytest.mark.parametrize("budget", [1, 60, 200])
def test_chunks_give_the_plain_step_and_no_forward_holds_more_than_the_budget(model, build, budget, keys):
    plain = recipe(model, **keys)
    plan = planned(build, plain)
    gradients, weights, value = one_step(plain, plan)
    held = []
    by_chunks = one_step(recipe(model, token_budget=budget, **keys), plan, held.append)
    assert by_chunks[2] == pytest.approx(value, rel=1e-6)
    assert largest_difference(gradients, by_chunks[0]) < 1e-5 * max(float(value.abs().max()) for value in gradients.values())
    assert largest_difference(weights, by_chunks[1]) < 1e-6
    assert len(held) > 1
    assert all(lengths.sum() <= budget or len(lengths) == 1 for lengths in held)
    assert sum(lengths.sum() for lengths in held) == len(plan.batch_at(0).ids)


def test_a_batch_within_the_budget_takes_one_forward_and_the_same_bits(model, build):
    plan, held = planned(build, recipe(model)), []
    tokens = len(plan.batch_at(0).ids)
    _, plain, _ = one_step(recipe(model), plan)
    _, weights, _ = one_step(recipe(model, token_budget=tokens), plan, held.append)
    assert len(held) == 1
    assert all(torch.equal(plain[name], weights[name]) for name in plain)


def test_computing_layers_twice_gives_the_same_gradients_and_keeps_less(model, build):
    plan, kept = planned(build, recipe(model)), {}
    batch = plan.batch_at(0)
    for checkpointing in (False, True):
        rule = recipe(model, checkpointing=checkpointing)
        backend, sizes = Torch(load_model(model, max_tokens=32, device="cpu"), rule), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x):
            batch_loss(backend.embed(batch.ids, batch.starts), batch, rule)
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 2
    plain = one_step(recipe(model), plan)
    for budget in (None, 100):
        twice = one_step(recipe(model, checkpointing=True, token_budget=budget), plan)
        assert largest_difference(plain[1], twice[1]) < 1e-6
    assert largest_difference(plain[0], one_step(recipe(model, checkpointing=True), plan)[0]) == 0


def test_dropout_stays_off_where_layers_are_computed_twice(build, tmp_path):
    model = tiny_model(tmp_path / "m")
    backend = Torch(load_model(model, max_tokens=32, device="cpu"), recipe(model, checkpointing=True))
    dropouts = [module for module in backend.model.backbone.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert not any(module.training for module in dropouts)


def test_layers_that_cannot_be_computed_twice_are_reported(tmp_path):
    model = load_model(str(tiny_folder("llama", tmp_path / "m")), device="cpu")
    model.backbone.layers = torch.nn.ModuleList()
    with pytest.raises(
        ModelError,
        match=r"its layers do not support activation checkpointing; set `checkpointing: no`, and perhaps a `token_budget`",
    ):
        Torch(model, recipe(model.name, checkpointing=True))


def test_chunks():
    lengths = np.array([3, 2, 4, 11, 2])
    assert chunks_of(lengths, None, 1) == [[(0, 5)]]
    assert chunks_of(lengths, 22, 1) == [[(0, 5)]]
    assert chunks_of(lengths, 9, 1) == [[(0, 3), (3, 4), (4, 5)]]
    assert chunks_of(lengths, 5, 1) == [[(0, 2), (2, 3), (3, 4), (4, 5)]]
    assert chunks_of(lengths, 1, 1) == [[(i, i + 1) for i in range(5)]]


def test_matryoshka_is_the_mean_of_the_losses_of_leading_dimensions(build, tmp_path):
    model = tiny_model(tmp_path / "m")
    rule = recipe(model, matryoshka=[8, 16])
    batch = planned(build, rule).batch_at(0)
    backend = Torch(load_model(model, max_tokens=32, device="cpu"), rule)
    embeddings = backend.embed(batch.ids, batch.starts).detach()
    alone = recipe(model)
    cut = [torch.nn.functional.normalize(embeddings[:, :size], dim=1) for size in (8, 16, 32)]
    losses = [batch_loss(part, batch, alone) for part in cut]
    got = batch_loss(embeddings, batch, rule)
    for term in ("total", "hard", "in_batch"):
        mean = sum(float(getattr(one, term)) for one in losses) / 3
        assert float(getattr(got, term)) == pytest.approx(mean, rel=1e-6)


def test_the_log_and_the_receipt_name_the_further_terms(build, tmp_path):
    rule = recipe(tiny_model(tmp_path / "m"), steps=1, spread_out=0.5, hardness=5.0)
    receipt, _ = train(build, rule, out=tmp_path / "run", device="cpu")
    (line,) = read_log(tmp_path / "run/log.jsonl")
    assert 0 < line["loss_spread_out"] < 2
    terms = line["loss_hard"] + line["loss_inbatch"] + 0.5 * line["loss_spread_out"]
    assert line["loss"] == pytest.approx(terms, rel=1e-6)
    assert (receipt["recipe"]["spread_out"], receipt["recipe"]["hardness"]) == (0.5, 5.0)


def test_matryoshka_with_too_many_dimensions_is_reported(build, tmp_path):
    model = tiny_model(tmp_path / "m")
    with pytest.raises(ModelError, match=r"has 32 dimensions; `matryoshka` must name fewer$"):
        train(build, recipe(model, matryoshka=[32]), out=tmp_path / "out", device="cpu")


def test_where_it_is_detached_the_in_batch_term_gives_passages_no_gradient(model, build):
    rule = recipe(model)
    batch = planned(build, rule).batch_at(0)
    for detached in (True, False):
        embeddings = torch.nn.functional.normalize(torch.randn(len(batch.starts) - 1, 8), dim=1).requires_grad_()
        in_batch = batch_loss(embeddings, batch, rule, detached).in_batch
        (gradient,) = torch.autograd.grad(in_batch, embeddings)
        moved = gradient.abs().sum(dim=1) > 0
        assert moved[batch.query].all()
        assert moved[batch.positive].any() != detached


def test_a_sources_own_settings_reach_its_loss(build, tmp_path):
    rule = recipe(tiny_model(tmp_path / "m"), steps=1, sources={"pairs": {"in_batch": False, "negatives": 1}})
    train(build, rule, out=tmp_path / "run", device="cpu")
    (line,) = read_log(tmp_path / "run/log.jsonl")
    assert line["loss_inbatch"] is None
    assert line["loss"] == line["loss_hard"] < 2  # near log 2: of two candidates
    with pytest.raises(BuildError, match=r"tiny: has no source 'pears'; it has pairs$"):
        train(build, recipe(rule.model, sources={"pears": {}}), out=tmp_path / "other", device="cpu")
