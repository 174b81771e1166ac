"""Word 3-grams shared with a positive, against sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.duplicates import overlaps, shingles_of


def overlap_by_sets(left, right):
    both = [text.lower().split() for text in (left, right)]
    sets = [{tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))} if words else set() for words in both]
    smaller = min(sets, key=len)
    return len(sets[0] & sets[1]) / len(smaller) if smaller else 0.0


texts = st.lists(st.sampled_from("abcde"), max_size=12).map(" ".join)


@given(st.lists(texts, min_size=2, max_size=12))
def test_against_sets(some):
    pids = np.arange(len(some)) * 2 + 1
    shingles = shingles_of(some, pids)
    left, right = (part.ravel() for part in np.meshgrid(np.arange(len(some)), np.arange(len(some))))
    found = overlaps(shingles, pids[left], pids[right])
    for a, b, share in zip(left, right, found, strict=True):
        expected = overlap_by_sets(some[a], some[b])
        # of more than six shingles six are looked at first, so less than a full set may pass unseen; a copy never here
        assert share == pytest.approx(expected) or (share == 0 and expected < 0.8)


def test_a_span_is_a_copy_and_a_short_text_is_not():
    whole = "The tower was built by an engineer in 1889, and it is the tallest structure of the city."
    some = [
        whole,
        "it is the tallest structure of the city",
        "the tower",
        "The  Tower!",
        "埃菲尔铁塔是巴黎的象征",
        "埃菲尔铁塔",
        "...",
    ]
    shingles = shingles_of(some, np.arange(len(some)))
    found = overlaps(shingles, np.array([0, 0, 2, 4, 6, 6]), np.array([1, 2, 3, 5, 6, 0]))
    assert found.tolist() == [1, 0, 1, 1, 0, 0]
