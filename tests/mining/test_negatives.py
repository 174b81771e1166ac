"""Choosing: each rule by hand, and draws from other classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.lists import Ragged, contains, distinct
from mining.negatives import Candidates, Rules, choose, draw_from_other_classes, relax, similarity_above_level
from mining.negatives import pick as pick_some

OFF = Rules(range_min=0, range_max=100, max_score=None, relative_margin=None)


def ragged(lists):
    return Ragged(np.cumsum([0, *map(len, lists)]), np.array([x for one in lists for x in one], np.int64))


def chosen(rules, positives=((0,),), positive_scores=(0.9,), given=((),), wanted=3, dtype=np.float64):
    candidates = np.array([[5, 0, 3, 4, 1, 2, 7, -1]])
    scores = np.array([[0.95, 0.9, 0.86, 0.85, 0.5, 0.4, -0.2, -np.inf]], dtype)
    found = choose(
        Candidates(
            candidates, scores, ragged(positives), np.array(positive_scores, dtype), ragged(given), np.zeros(sum(map(len, given)))
        ),
        np.array([wanted]),
        rules,
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


@pytest.mark.parametrize("score", [-0.1, 0.0, 1e-12, 0.3])
def test_the_relative_margin_of_a_negative_or_tiny_score_lowers_the_limit(score):
    rules = Rules(0, 100, max_score=None, relative_margin=0.5)
    assert chosen(rules, positive_scores=(score,))[0] == [7, -1, -1]  # of -0.1 those below -0.15, not -0.05


def all_of(rules, wanted=3, **tables):
    """Choose for one query with eight candidates 0 to 7, positive 0, and tables of one row."""
    scores = np.array([[0.9, 0.88, 0.84, 0.8, 0.7, 0.5, 0.4, 0.3]])
    one = Candidates(
        np.arange(8)[None],
        scores,
        ragged([[0]]),
        np.array([0.9]),
        ragged([[]]),
        np.empty(0),
        **{k: np.array([v]) for k, v in tables.items()},
    )
    found = choose(one, np.array([wanted]), rules)
    return one, found, {name: int(count[0]) for name, count in found.removed.items() if count[0]}


YES, NO = True, False


@pytest.mark.parametrize(
    ("name", "value", "tables", "expected"),
    [
        ("exclude_query", True, {"same_query": [NO, YES, NO, NO, NO, NO, NO, NO]}, [2, 3, 4]),
        ("exclude_group", True, {"same_group": [YES, NO, YES, NO, NO, NO, NO, NO]}, [1, 3, 4]),
        ("containment", 0.8, {"overlap": [1, 0.79, 0.8, 1, 0, 0, 0, 0]}, [1, 4, 5]),
        ("exclude_answer", True, {"answered": [NO, NO, YES, YES, NO, NO, NO, NO]}, [1, 4, 5]),
        ("max_similarity", 0.5, {"similarity": [1, 0.5, 0.49, 0.9, 0, 0, 0, 0]}, [2, 4, 5]),
        ("distinct", True, {"groups": [7, 3, -1, 3, -1, 7, 5, 5]}, [1, 2, 4]),
    ],
)
def test_filters_on_evidence(name, value, tables, expected):
    _, found, taken = all_of(Rules(0, 100, max_score=None, relative_margin=None, **{name: value}), **tables)
    assert found.ids[0].tolist() == expected
    assert name in taken
    _, found, taken = all_of(OFF, **tables)
    assert (found.ids[0].tolist(), taken) == ([1, 2, 3], {"positive": 1})


@pytest.mark.parametrize(
    ("share", "range_max", "expected"),
    [
        (0.0, 100, [7, -1, -1]),
        (0.5, 100, [3, 4, 5]),  # the median .4: the limit is .45
        (0.5, 3, [2, 3, 4]),  # of the first three .6: the limit is .55
        (1.0, 100, [1, 2, 3]),  # .65
    ],
)
def test_similarity_counts_from_the_level_of_the_row(share, range_max, expected):
    rules = Rules(0, range_max, max_score=None, relative_margin=None, max_similarity=0.25, similarity_median=share)
    _, found, _ = all_of(rules, similarity=[1, 0.6, 0.5, 0.4, 0.4, 0.4, 0.3, 0.2])
    assert found.ids[0].tolist() == expected


def test_the_level_of_a_row_is_of_what_was_found():
    one = Candidates(
        np.array([[0, 1, 2, -1, -1, -1], [-1] * 6]),
        np.zeros((2, 6)),
        ragged([[9], [9]]),
        np.zeros(2),
        ragged([[], []]),
        np.empty(0),
        similarity=np.array([[0.9, 0.6, 0.4, -1, -1, -1], [-1] * 6], np.float32),
    )
    found = similarity_above_level(one, Rules(similarity_median=1.0))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :3], [0.3, 0, -0.2], atol=1e-6)
    assert np.isfinite(found).all()


def test_the_raw_window_counts_all_that_was_found():
    rules = Rules(3, 6, rank_basis="raw", max_score=0.75, relative_margin=None)
    _, found, taken = all_of(rules)
    assert (found.ids[0].tolist(), taken) == ([4, 5, -1], {"positive": 1, "max_score": 3})


def test_references_of_several_positives():
    scores = {"min": 0.5, "max": 0.9, "mean": 0.7}
    for reference, limit in scores.items():
        rules = Rules(0, 100, max_score=None, absolute_margin=0.0, relative_margin=None, margin_reference=reference)
        ids = chosen(rules, positives=((0, 1),), positive_scores=(0.9, 0.5))[0]
        assert [x for x in ids if x >= 0] == [
            x for x, score in ((5, 0.95), (3, 0.86), (4, 0.85), (2, 0.4), (7, -0.2)) if score <= limit
        ][:3]


def test_random_and_stratified_picks():
    draw = np.array([0, 90, 80, 10, 70, 60, 20, 30], np.uint64)
    assert all_of(Rules(0, 100, max_score=None, relative_margin=None, pick="random"), draw=draw)[1].ids[0].tolist() == [3, 6, 7]
    # seven are left: runs of 1-3, 4-5, 6-7
    found = all_of(Rules(0, 100, max_score=None, relative_margin=None, pick="stratified"), draw=draw)[1]
    assert (found.ids[0].tolist(), found.ranks[0].tolist()) == ([3, 5, 6], [3, 5, 6])
    few = all_of(Rules(0, 100, max_score=0.45, relative_margin=None, pick="stratified"), draw=draw)[1]
    assert few.ids[0].tolist() == [6, 7, -1]


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 12), st.sampled_from(["random", "stratified", "top"]))
def test_a_pick_takes_as_many_as_it_can(left, wanted, pick):
    eligible = np.array([left])
    draw = np.random.default_rng(1).integers(0, 2**63, eligible.shape).astype(np.uint64)
    one = Candidates(
        np.arange(len(left))[None], np.zeros(eligible.shape), ragged([[0]]), np.zeros(1), ragged([[]]), np.empty(0), draw=draw
    )
    taken = pick_some(one, eligible, np.array([wanted]), pick)
    assert not (taken & ~eligible).any()
    assert taken.sum() == min(wanted, eligible.sum())


def test_relaxing_takes_the_least_like_a_positive_first():
    rules = Rules(2, 100, max_score=0.6, relative_margin=None, max_similarity=0.5)
    similarity = [1, 0.9, 0.1, 0.2, 0.3, 0.4, 0.6, 0.1]
    one, found, _ = all_of(rules, 5, similarity=similarity)
    assert found.ids[0].tolist() == [-1] * 5
    more, added = relax(one, found, np.array([5]), rules)
    # range_min gives back 5 and 7, max_similarity 6, max_score the two farthest of 1 to 4
    assert (more.ids[0].tolist(), added) == ([3, 4, 5, 6, 7], 5)
    more, added = relax(one, found, np.array([9]), rules)
    assert (more.ids[0].tolist(), added) == ([1, 2, 3, 4, 5, 6, 7, -1, -1], 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_limits_are_compared_in_the_dtype_of_the_scores(dtype):
    rules = Rules(0, 100, max_score=0.85, relative_margin=None)
    assert chosen(rules, dtype=dtype)[0] == [4, 1, 2]


def test_no_rows():
    nothing = ragged([])
    none = Candidates(np.empty((0, 4), np.int64), np.empty((0, 4)), nothing, np.empty(0), nothing, np.empty(0))
    found = choose(none, np.empty(0, np.int64), Rules())
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
def test_draws_are_distinct_and_draw_from_other_classes(classes, own, wanted, seed):
    classes, own = np.array(classes), np.array(own, np.int64)
    rows = np.arange(len(own))
    drawn = draw_from_other_classes(classes, own, rows, wanted, seed, "s")
    for row, ids in zip(own, drawn, strict=True):
        pool = np.flatnonzero((classes != row) & (classes >= 0)) if row >= 0 else []
        real = ids[ids >= 0]
        assert len(set(real)) == len(real) == min(wanted, len(pool))
        assert set(real) <= set(pool)
    alone = [draw_from_other_classes(classes, own[row : row + 1], rows[row : row + 1], wanted, seed, "s") for row in rows]
    assert (np.vstack([np.empty((0, wanted), np.int64), *alone]) == drawn).all()  # a row does not depend on its block


def test_draws_are_uniform():
    classes = np.repeat([0, 1, 2], [10, 5, 5])
    drawn = draw_from_other_classes(classes, np.full(4000, 1), np.arange(4000), 5, 42, "s")
    counts = np.bincount(drawn.ravel(), minlength=20)
    assert (counts[10:15] == 0).all()
    assert abs(counts[counts > 0] - 4000 * 5 / 15).max() < 150  # 1333, standard deviation 30
    assert (draw_from_other_classes(classes, np.full(9, 1), np.arange(9), 5, 43, "s") != drawn[:9]).any()
