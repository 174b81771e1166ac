"""Held-out queries come in families, and nothing of them comes back."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.core.errors import SourceError
from curation.shape import holdout
from curation.shape.columns import TUPLES


def tuples(*items):
    """(query, positives, negatives) -> a TUPLES table."""
    lines = [(i, f"s/{i}", q, p, n, None) for i, (q, p, n) in enumerate(items)]
    return pl.DataFrame(lines, schema=TUPLES, orient="row")


def test_a_family_goes_together():
    table = tuples(
        ("a", ["x"], []), ("b", ["X!", "y"], []), ("c", ["y"], []), ("d", ["z"], []), ("D?", ["w"], []), ("e", ["v"], [])
    )
    for seed in range(8):
        train, held = holdout.split_held_out(table, 3, seed, "s")
        assert sorted(held["id"].to_list() + train["id"].to_list()) == [f"s/{i}" for i in range(6)]
        families = [{"s/0", "s/1", "s/2"}, {"s/3", "s/4"}, {"s/5"}]
        assert all(family <= set(held["id"]) or not family & set(held["id"]) for family in families)
        assert len(held) <= 3


def test_what_cannot_be_held_out():
    table = tuples(("a", ["x"], []), ("b", ["x"], []), ("c", ["x"], []))
    with pytest.raises(SourceError, match="'holdout: 3' leaves none of its 3 tuples to train on; hold out fewer"):
        holdout.split_held_out(table, 3, 1, "s")
    with pytest.raises(SourceError, match="groups larger than 'holdout: 2'; hold out more, or none"):
        holdout.split_held_out(table, 2, 1, "s")
    assert len(holdout.split_held_out(table, 0, 1, "s")[1]) == 0


def test_held_out_texts_are_removed_in_every_role():
    held = holdout.heldout_forms([("h", tuples(("Held query", ["held text"], [])))])
    table = tuples(
        ("held  QUERY", ["a"], []), ("b", ["Held text."], []), ("c", ["held text", "d"], ["e"]), ("f", ["g"], ["held query", "i"]), ("j", ["k"], [])
    )  # fmt: skip
    left, dropped, negatives_out = holdout.remove_heldout(table, held, "s")
    assert left.select("id", "positives", "negatives").rows() == [
        ("s/2", ["d"], ["e"]),
        ("s/3", ["g"], ["i"]),
        ("s/4", ["k"], []),
    ]
    assert dropped.select("id", "reason", "evidence", "matched_id", "matched_source").rows() == [
        ("s/0", "heldout_query", "held  QUERY", "s/0", "h"),
        ("s/1", "heldout_positive", "Held text.", "s/0", "h"),
    ]
    assert negatives_out == 1


texts = st.sampled_from([f"t{i}" for i in range(12)])


@given(
    st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=2), st.lists(texts, max_size=2)), min_size=4, max_size=15),
    st.integers(0, 9),
)
def test_no_held_out_text_is_trained_on(items, seed):
    table = tuples(*items)
    try:
        train, held = holdout.split_held_out(table, 3, seed, "s")
    except SourceError:
        return
    left, dropped, _ = holdout.remove_heldout(train, holdout.heldout_forms([("s", held)]), "s")
    assert len(left) + len(dropped) + len(held) == len(table)
    hidden = {*held["query"], *(text for row in held["positives"] for text in row)}
    trained = {*left["query"], *(text for name in ("positives", "negatives") for row in left[name] for text in row)}
    assert not hidden & trained
