"""Choosing: each rule by hand, and draws from other classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.negatives import Ragged, Rules, choose, contains, distinct, of_other_classes

OFF = Rules(range_min=0, range_max=100, max_score=None, relative_margin=None)


def ragged(lists):
    return Ragged(np.cumsum([0, *map(len, lists)]), np.array([x for one in lists for x in one], np.int64))


def chosen(rules, positives=((0,),), positive_scores=(0.9,), given=((),), wanted=3, dtype=np.float64):
    candidates = np.array([[5, 0, 3, 4, 1, 2, 7, -1]])
    scores = np.array([[0.95, 0.9, 0.86, 0.85, 0.5, 0.4, -0.2, -np.inf]], dtype)
    found = choose(
        candidates, scores, ragged(positives), np.array(positive_scores, dtype), ragged(given), np.array([wanted]), rules
    )
    taken = {name: int(count[0]) for name, count in found.removed.items() if count[0]}
    return found.ids[0].tolist(), found.ranks[0].tolist(), taken


def test_no_filter_takes_the_nearest():
    assert chosen(OFF) == ([5, 3, 4], [0, 2, 3], {"positive": 1})


def test_range_min_skips_those_that_passed():
    rules = Rules(range_min=1, range_max=100, max_score=None, relative_margin=0.05)  # 0.9 * 0.95 = 0.855
    assert chosen(rules) == ([1, 2, 7], [4, 5, 6], {"positive": 1, "relative_margin": 2, "range_min": 1})


def test_range_max_ends_the_window():
    rules = Rules(range_min=1, range_max=3, max_score=None, relative_margin=None)
    assert chosen(rules)[0] == [3, 4, -1]


def test_each_filter_counts_what_those_before_left():
    rules = Rules(0, 100, max_score=0.6, min_score=0.0, absolute_margin=0.045, relative_margin=None)
    ids, _, taken = chosen(rules, given=((1,),))
    assert ids == [2, -1, -1]
    assert taken == {"positive": 1, "given": 1, "absolute_margin": 2, "max_score": 1, "min_score": 1}


def test_the_lowest_positive_is_the_reference():
    rules = Rules(0, 100, max_score=None, absolute_margin=0.0, relative_margin=None)
    assert chosen(rules, positives=((0, 1),), positive_scores=(0.9, 0.5))[0] == [2, 7, -1]


def test_the_relative_margin_of_a_negative_score_lowers_the_limit():
    rules = Rules(0, 100, max_score=None, relative_margin=0.5)
    assert chosen(rules, positive_scores=(-0.1,))[0] == [7, -1, -1]  # below -0.1 - 0.05, not below -0.05


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_limits_are_compared_in_the_dtype_of_the_scores(dtype):
    rules = Rules(0, 100, max_score=0.85, relative_margin=None)
    assert chosen(rules, dtype=dtype)[0] == [4, 1, 2]


def test_no_rows():
    nothing = ragged([])
    found = choose(np.empty((0, 4), np.int64), np.empty((0, 4)), nothing, np.empty(0), nothing, np.empty(0, np.int64), Rules())
    assert found.ids.shape == (0, 0)


lists = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6)


@given(lists, st.data())
def test_lists(rows, data):
    barred = data.draw(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=len(rows), max_size=len(rows)))
    most = data.draw(st.integers(1, 4))
    found = distinct(ragged(rows), ragged(barred), most)
    expected = [[x for x in dict.fromkeys(row) if x not in no][:most] for row, no in zip(rows, barred, strict=True)]
    assert [found.ids[a:b].tolist() for a, b in zip(found.starts, found.starts[1:], strict=False)] == expected
    candidates = np.arange(-1, 10)[None, :].repeat(len(rows), axis=0)
    assert contains(ragged(rows), candidates).tolist() == [[x in row for x in range(-1, 10)] for row in rows]


@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=40),
    st.lists(st.integers(-1, 4), max_size=20),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_draws_are_distinct_and_of_other_classes(classes, own, wanted, seed):
    classes, own = np.array(classes), np.array(own, np.int64)
    rows = np.arange(len(own))
    drawn = of_other_classes(classes, own, rows, wanted, seed, "s")
    for row, ids in zip(own, drawn, strict=True):
        pool = np.flatnonzero((classes != row) & (classes >= 0)) if row >= 0 else []
        real = ids[ids >= 0]
        assert len(set(real)) == len(real) == min(wanted, len(pool))
        assert set(real) <= set(pool)
    alone = [of_other_classes(classes, own[row : row + 1], rows[row : row + 1], wanted, seed, "s") for row in rows]
    assert (np.vstack([np.empty((0, wanted), np.int64), *alone]) == drawn).all()  # a row does not depend on its block


def test_draws_are_uniform():
    classes = np.repeat([0, 1, 2], [10, 5, 5])
    drawn = of_other_classes(classes, np.full(4000, 1), np.arange(4000), 5, 42, "s")
    counts = np.bincount(drawn.ravel(), minlength=20)
    assert (counts[10:15] == 0).all()
    assert abs(counts[counts > 0] - 4000 * 5 / 15).max() < 150  # 1333, standard deviation 30
    assert (of_other_classes(classes, np.full(9, 1), np.arange(9), 5, 43, "s") != drawn[:9]).any()
