"""Held-out queries come in families, and nothing of them comes back."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.core.errors import SourceError
from curation.shape import holdout
from curation.shape.columns import TUPLES
from curation.shape.numbered import numbered, spelled

NONE = pl.Series([], dtype=pl.String)


def tuples(*items):
    """(query, positives, negatives) -> a TUPLES table."""
    lines = [(i, f"s/{i}", q, p, n, None) for i, (q, p, n) in enumerate(items)]
    return pl.DataFrame(lines, schema=TUPLES, orient="row")


def split(table, wanted, seed):
    """Return (TUPLES to train on, held-out TUPLES)."""
    made, _, texts = numbered(table, NONE)
    held = pl.Series(holdout.held_out(made, texts, wanted, seed, "s"))
    return table.filter(~held), table.filter(held)


def without_heldout(table, held):
    """Return (TUPLES kept, dropped ones, number of removed negatives); `held` is a list of (source, TUPLES)."""
    made, _, texts = numbered(table, NONE)
    found = holdout.held_out_texts(texts, holdout.heldout_forms(held))
    left, dropped, negatives = holdout.remove_heldout(made, texts, found, "s")
    return spelled(left, texts), dropped, negatives


def test_a_family_goes_together():
    table = tuples(
        ("a", ["x"], []), ("b", ["X!", "y"], []), ("c", ["y"], []), ("d", ["z"], []), ("D?", ["w"], []), ("e", ["v"], [])
    )
    for seed in range(8):
        train, held = split(table, 3, seed)
        assert sorted(held["id"].to_list() + train["id"].to_list()) == [f"s/{i}" for i in range(6)]
        families = [{"s/0", "s/1", "s/2"}, {"s/3", "s/4"}, {"s/5"}]
        assert all(family <= set(held["id"]) or not family & set(held["id"]) for family in families)
        assert len(held) <= 3


def test_what_cannot_be_held_out():
    table = tuples(("a", ["x"], []), ("b", ["x"], []), ("c", ["x"], []))
    with pytest.raises(SourceError, match="'holdout: 3' leaves none of its 3 tuples to train on; hold out fewer"):
        split(table, 3, 1)
    with pytest.raises(SourceError, match="groups larger than 'holdout: 2'; hold out more, or none"):
        split(table, 2, 1)
    assert len(split(table, 0, 1)[1]) == 0


def test_held_out_texts_are_removed_in_every_role():
    held = [("h", tuples(("Held query", ["held text"], [])))]
    table = tuples(
        ("held  QUERY", ["a"], []), ("b", ["Held text."], []), ("c", ["held text", "d"], ["e"]), ("f", ["g"], ["held query", "i"]), ("j", ["k"], [])
    )  # fmt: skip
    left, dropped, negatives_out = without_heldout(table, held)
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
        train, held = split(table, 3, seed)
    except SourceError:
        return
    left, dropped, _ = without_heldout(train, [("s", held)])
    assert len(left) + len(dropped) + len(held) == len(table)
    hidden = {*held["query"], *(text for row in held["positives"] for text in row)}
    trained = {*left["query"], *(text for name in ("positives", "negatives") for row in left[name] for text in row)}
    assert not hidden & trained
