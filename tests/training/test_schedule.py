"""The learning rate as a function of the step, and which weights decay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from curation.recipe.settings import Train
from training.backend import split_by_decay
from training.step import learning_rate, warmup_steps


def recipe(**keys):
    return Train(model="m", **{"lr": 1e-5, "min_lr": 1e-7, "warmup": 10, **keys})


def test_values_of_a_run_of_a_hundred_steps():
    rates = [learning_rate(recipe(), step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6)  # one tenth of the way up, and not 0
    assert rates[4] == pytest.approx(5e-6)
    assert rates[9] == pytest.approx(1e-5)
    middle = (54 - 9) / 90
    assert rates[54] == pytest.approx(1e-7 + (1e-5 - 1e-7) * (1 + math.cos(math.pi * middle)) / 2)
    assert rates[54] == pytest.approx((1e-5 + 1e-7) / 2)
    assert rates[99] == 1e-7


@given(total=st.integers(2, 2000), warmup=st.integers(0, 3000))
def test_rises_then_falls_and_ends_at_the_least(total, warmup):
    rule = recipe(warmup=warmup)
    rates = [learning_rate(rule, step, total) for step in range(total)]
    top = max(warmup_steps(rule, total) - 1, 0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[top] == pytest.approx(1e-5)
    assert rates[-1] == 1e-7 or top == total - 1
    assert min(rates) > 0


def test_a_warmup_longer_than_the_run_takes_a_tenth_of_it():
    assert warmup_steps(recipe(warmup=500), 100) == 10
    assert warmup_steps(recipe(warmup=100), 100) == 10
    assert warmup_steps(recipe(warmup=99), 100) == 99
    assert warmup_steps(recipe(warmup=500), 5) == 0
    assert learning_rate(recipe(warmup=500), 0, 1) == 1e-5


def test_only_matrices_decay():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.dense, self.norm = nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4)
            self.pooler = nn.Linear(4, 4).requires_grad_(False)

    assert split_by_decay(Small()) == (["dense.weight"], ["words.weight", "dense.bias", "norm.weight", "norm.bias"])
