"""Batches by cluster: clusters of the stored vectors, the same after a kill, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from test_step import recipe
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import MINILM

from curation.core import store
from curation.core.errors import BuildError
from mining.mine import embed_build
from training.clusters import clusters_of
from training.data import Plan
from training.model.load import load_model
from training.tokens import load_sources
from training.train import train

TOPICS = ["a recipe for an apple cake", "the price of a used car", "symptoms of a cold", "the rules of chess"]
ROWS = 48


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and a build of two sources; the queries of one have four topics, and their vectors are stored."""
    place = tmp_path_factory.mktemp("clusters")
    tiny_model(place / "bert")
    mixed = retrieval(ROWS) | {"queries": [f"{TOPICS[row % 4]}, number {row}" for row in range(ROWS)]}
    build = write_build(place / "b", {"mixed": mixed, "more": retrieval(24, salt=1)})
    embed_build(build, MINILM, device="cpu", only=["mixed"])
    return place


def rule(place, **keys):
    return recipe(str(place / "bert"), **{"batch": 6, "cluster_batches": 8, "sources": {"more": {"cluster_batches": 0}}, **keys})


def test_clusters_are_the_topics_and_a_batch_has_one(place):
    keys, build = rule(place), place / "b"
    sources = load_sources(build, load_model(keys.model, max_tokens=32, device="cpu"), "auto")
    instructions = dict.fromkeys(("mixed", "more"), "")
    found = clusters_of(build, keys, sources, instructions, 42)
    assert list(found) == ["mixed"]
    topics = np.arange(ROWS) % 4
    assert len(set(found["mixed"].tolist())) == len(set(zip(topics.tolist(), found["mixed"].tolist(), strict=True))) == 8

    def topics_of_batches(plan):
        steps = [plan.chosen(step)[:2] for step in range(plan.steps_per_epoch)]
        return [len(set((rows % 4).tolist())) for source, rows in steps if source.name == "mixed"]

    alike, plain = topics_of_batches(Plan(sources, 42, keys, clusters=found)), topics_of_batches(Plan(sources, 42, keys))
    assert len(alike) == len(plain) == 8
    assert sum(alike) <= 8 + 7 < sum(plain)  # eight clusters meet seven times
    (folder,) = (build / "train/clusters").iterdir()
    folder.rename(place / "before")  # made again they are the same
    again = clusters_of(build, keys, sources, instructions, 42)
    assert (again["mixed"] == found["mixed"]).all()
    unlike = clusters_of(
        build, rule(place, sources={"mixed": {"in_batch": False}, "more": {"cluster_batches": 0}}), sources, instructions, 42
    )
    assert unlike == {}  # other rows are no negatives there


def test_a_run_is_another_one_than_without_clusters(place, tmp_path):
    train(place / "b", rule(place, lr=1e-3, steps=8, epochs=2), out=tmp_path / "whole", device="cpu")
    train(place / "b", rule(place, cluster_batches=None, lr=1e-3, steps=8, epochs=2), out=tmp_path / "plain", device="cpu")
    assert store.read_receipt(tmp_path / "plain")["model"] != store.read_receipt(tmp_path / "whole")["model"]


def test_more_clusters_than_rows_and_queries_without_vectors_are_one_line(place, tmp_path):
    with pytest.raises(BuildError) as error:
        train(place / "b", rule(place, cluster_batches=ROWS + 1), out=tmp_path / "a", device="cpu")
    hint = "give it fewer, or none: `sources: {mixed: {cluster_batches: 0}}`"
    assert str(error.value) == f"source 'mixed': has 48 tuples, fewer than its 49 clusters (`cluster_batches`); {hint}"
    with pytest.raises(BuildError) as error:
        train(place / "b", rule(place, sources={}), out=tmp_path / "b", device="cpu")
    (folder,) = (path for path in (place / "b/embeddings").iterdir() if path.is_dir())
    first = retrieval(24, salt=1)["queries"][0][:40]
    what = f"lacks {MINILM}'s vectors of 24 of 24 texts of 'more', such as {first!r}"
    assert str(error.value) == f"{folder}: {what}; run `mine embed {place / 'b'} --model {MINILM}`"
    bare = write_build(tmp_path / "bare", {"mixed": retrieval(24)})
    with pytest.raises(BuildError) as error:
        train(bare, rule(place, sources={}), out=tmp_path / "c", device="cpu")
    hint = f"run `mine embed {bare} --model NAME`"
    assert str(error.value) == f"{bare / 'embeddings'}: has no vectors of the queries of 'mixed'; {hint}"
