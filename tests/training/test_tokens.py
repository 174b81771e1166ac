"""Which passages may be another tuple's negatives, as a build and the recipe tell it."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_build import sentence, tiny_model, write_build

from curation.recipe.settings import OfSource, Train
from training.data import Plan
from training.model.load import load_model
from training.tokens import FIRST_UNGROUPED, load_sources

TEXTS = [sentence(3, number) for number in range(12)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(tiny_model(tmp_path_factory.mktemp("bert") / "bert"), max_tokens=32, device="cpu")


def topics(labels, **more):
    """Return a clustering of 12 texts whose positive is the text three on, and whose negative is the next one."""
    rows = range(len(TEXTS))
    turned = {"positives": [[(row + 3) % 12] for row in rows], "negatives": [[(row + 1) % 12] for row in rows]}
    return {"queries": TEXTS, "passages": TEXTS, **turned, "task": "clustering", "labels": labels, **more}


def test_texts_of_one_class_are_no_negatives_of_each_other(loaded, tmp_path):
    labels = [f"topic {row % 3}" for row in range(12)]
    groups = [row // 2 for row in range(12)]  # say less, and otherwise
    build = write_build(tmp_path / "b", {"topics": topics(labels, groups=groups)})
    (source,) = load_sources(build, loaded, "none")
    assert len(set(source.identity.tolist())) == 3
    assert [len(set(source.identity[first::3].tolist())) for first in range(3)] == [1, 1, 1]
    plan = Plan([source], 5, Train(model="m", batch=12, negatives=1, loss="infonce", sources={"topics": OfSource(in_batch=True)}))
    assert plan.in_batch == [True]
    batch = plan.batch_at(0)
    same = batch.rows[:, None] % 3 == batch.rows % 3
    own = np.eye(12, dtype=bool)
    assert (batch.shared == (same & ~own)).all()
    after = batch.rows[:, None] % 3 == (batch.rows + 1) % 3  # whose negative is of the row's class
    assert (batch.shared_negative[:, :, 0] == (after & ~own)).all()


def test_a_clustering_without_labels_has_groups(loaded, tmp_path):
    groups = [7, 7, *[None] * 10]
    build = write_build(tmp_path / "b", {"topics": topics(None, groups=groups)})
    (source,) = load_sources(build, loaded, "none")
    assert source.identity.tolist() == [7, 7, *[FIRST_UNGROUPED + passage for passage in range(2, 12)]]
    half = [*["a"] * 6, *[None] * 6]
    build = write_build(tmp_path / "c", {"topics": topics(half, groups=groups)})
    (source,) = load_sources(build, loaded, "none")
    assert len(set(source.identity[:6].tolist())) == 1
    assert source.identity[6:].tolist() == [FIRST_UNGROUPED + passage for passage in range(6, 12)]
