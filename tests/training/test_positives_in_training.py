"""Several positives of a query in training: the first alone, each in a tuple of its own, or one drawn for each epoch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_data import source_of
from tiny_build import retrieval, tiny_model, write_build

from curation.core import store
from curation.core.errors import ManifestError
from curation.recipe.manifest import load_recipe
from curation.recipe.settings import Train
from training.data import Plan
from training.log import read_log
from training.plan import estimate
from training.publish import plan_upload
from training.train import train

COUNTS = [1, 3, 1, 2, 5, 1, 1, 2]  # positives of each row, 16 in all


def source():
    numbers = iter(range(100))
    return source_of("s", [[next(numbers) for _ in range(count)] for count in COUNTS], [[90, 91, 92]] * len(COUNTS))


def trained(plan, steps):
    """Return (row, passage) of each tuple of some steps; in these sources the tokens of a text are its number."""
    found = []
    for step in steps:
        batch = plan.batch_at(step)
        texts = [int(batch.ids[start]) for start in batch.starts[:-1]]
        found += [(int(row), texts[text] - len(COUNTS)) for row, text in zip(batch.rows, batch.positive, strict=True)]
        assert [texts[text] for text in batch.query] == batch.rows.tolist()
    return found


def plan_of(positives, batch=3, **keys):
    return Plan([source()], 7, Train(model="m", batch=batch, negatives=2, positives=positives, **keys))


def of_rows():
    starts = np.cumsum([0, *COUNTS])
    return [(row, passage) for row in range(len(COUNTS)) for passage in range(starts[row], starts[row + 1])]


def test_first_all_and_sampled_are_what_they_say():
    first, every, sampled = plan_of("first"), plan_of("all"), plan_of("sampled")
    assert (first.steps_per_epoch, every.steps_per_epoch, sampled.steps_per_epoch) == (3, 6, 3)
    starts = np.cumsum([0, *COUNTS])[:-1].tolist()
    for epoch in range(3):
        assert sorted(trained(first, range(3 * epoch, 3 * epoch + 3))) == list(enumerate(starts))
        assert sorted(trained(every, range(6 * epoch, 6 * epoch + 6))) == of_rows()
    seen = [sorted(trained(sampled, range(3 * epoch, 3 * epoch + 3))) for epoch in range(200)]
    assert all([row for row, _ in one] == list(range(len(COUNTS))) for one in seen)
    drawn = np.array([passage - starts[4] for one in seen for row, passage in one if row == 4])
    assert np.bincount(drawn).min() > 20  # 40 of each are expected
    assert {pair for one in seen for pair in one} == set(of_rows())


@pytest.mark.parametrize("positives", ["first", "all", "sampled"])
def test_any_step_alone_equals_the_step_of_a_walk(positives):
    walk = plan_of(positives)
    walked = [walk.batch_at(step) for step in range(14)]
    for step in (13, 2, 7):
        alone = plan_of(positives).batch_at(step)
        assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(alone[2:-2], walked[step][2:-2], strict=True))


def test_positives_of_one_query_are_no_negatives_of_each_other_and_have_no_score_of_the_first():
    batch = plan_of("all", batch=16).batch_at(0)
    same = batch.rows[:, None] == batch.rows
    assert (batch.shared == (same & ~np.eye(16, dtype=bool))).all()
    firsts = [int(np.cumsum([0, *COUNTS])[row]) for row in batch.rows]
    texts = [int(batch.ids[start]) - len(COUNTS) for start in batch.starts[:-1]]
    is_first = np.array([texts[text] == first for text, first in zip(batch.positive, firsts, strict=True)])
    assert (np.isnan(batch.teacher[:, 0]) == ~is_first).all()
    assert is_first.sum() == len(COUNTS)


def test_a_source_with_one_positive_each_is_trained_alike():
    plain = source_of("s", [[at] for at in range(30)], [[40 + at] for at in range(30)])
    plans = [Plan([plain], 3, Train(model="m", batch=4, negatives=1, positives=one)) for one in ("first", "all", "sampled")]
    for step in range(20):
        one, *others = [plan.batch_at(step) for plan in plans]
        assert all(np.array_equal(x, y, equal_nan=True) for other in others for x, y in zip(one[2:-2], other[2:-2], strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("positives")
    tiny_model(place / "bert")
    several = retrieval(12) | {"positives": [[row, (row + 1) % 12] if row % 2 else [row] for row in range(12)]}
    several["negatives"] = [[(row + 5) % 12] for row in range(12)]
    write_build(place / "b", {"several": several, "single": retrieval(8, salt=1)})
    return place


def recipe(place, **keys):
    common = {"max_tokens": 32, "batch": 4, "negatives": 1, "warmup": 0, "epochs": 1, "dtype": "float32", "keep": 20}
    return Train(model=str(place / "bert"), **common | {"save_every": 2} | keys)


SAID = {
    "first": "several: its 12 queries have 6 further positives, which are not trained on; `positives: all` or `sampled` uses them",
    "all": "several: its 12 queries have 6 further positives, each of which is trained on in a tuple of its own",
    "sampled": "several: its 12 queries have 6 further positives, so one positive of each query is drawn for each epoch",
}
CARD = {
    "first": "Of a query's several positives the first was trained on; 6 others were left out.",
    "all": "Each positive of a query was trained on in a tuple of its own, which makes 6 tuples more than the table counts.",
    "sampled": "One of a query's several positives was drawn for each epoch; besides the first ones there are 6.",
}


@pytest.mark.parametrize(("positives", "steps"), [("first", 5), ("all", 7), ("sampled", 5)])
def test_log_receipt_card_and_plan_say_what_becomes_of_further_positives(place, positives, steps):
    said, rule, out = [], recipe(place, positives=positives), place / positives
    assert estimate(place / "b", rule)["steps"] == steps
    receipt, _ = train(place / "b", rule, out=out, device="cpu", say=said.append)
    assert receipt["steps"] == steps
    assert [line for line in said if "further positives" in line] == [SAID[positives]]
    assert receipt["trained_on"]["several"] == {"task": "retrieval", "tuples": 12, "further_positives": 6}
    assert receipt["trained_on"]["single"] == {"task": "retrieval", "tuples": 8}
    assert receipt["recipe"]["positives"] == positives
    first = next(iter(read_log(out / "log.jsonl")))
    assert first["positives"] == {"trained": positives, "further": {"several": 6}}
    assert CARD[positives] in plan_upload(out, "a/b").card


def test_another_choice_is_another_run_and_all_needs_its_mask(place, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\npositives: all\nmask_false_negatives: no\n")
    with pytest.raises(ManifestError) as error:
        load_recipe(path)
    assert str(error.value) == (
        f"{path}:1: `positives: all` requires `mask_false_negatives: yes`, because two positives of one query can be in the same batch"
    )
    path.write_text("model: m\npositives: some\n")
    with pytest.raises(ManifestError, match="'some' is not one of first, all or sampled"):
        load_recipe(path)
    store.write_json(tmp_path / "x.json", json.loads(recipe(place, positives="all").model_dump_json()))
    assert store.read_json(tmp_path / "x.json")["positives"] == "all"
