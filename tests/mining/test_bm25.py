"""BM25 candidates and fused ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_build import make_build
from test_mine import mined, retrieval, run

from curation.core import tables
from mining.bm25 import RRF, Bm25, fuse


def test_by_words():
    texts = ["the red fox", "a blue river runs", "red red wine", "the 河 river", "nothing"]
    index = Bm25(texts, np.array([3, 5, 7, 8, 11]))
    assert index.nearest(["RED", "river 河", "zebra", "..."], 3).tolist() == [[7, 3, -1], [8, 5, -1], [-1] * 3, [-1] * 3]


def test_a_corpus_without_words_has_no_nearest():
    assert Bm25(["...", "?!"], np.arange(2)).nearest(["...", "word"], 2).tolist() == [[-1, -1]] * 2


def test_equal_scores_by_smaller_id():
    index = Bm25(["same words"] * 6, np.arange(6))
    assert index.nearest(["same"], 4).tolist() == [[0, 1, 2, 3]]


rankings = st.permutations(range(8)).flatmap(lambda ids: st.integers(0, 5).map(lambda n: [*ids[:n], *[-1] * (5 - n)]))


@given(rankings, rankings)
def test_fused_against_sums(first, second):
    sums = {}
    for ranking in (first, second):
        for rank, pid in enumerate(ranking):
            if pid >= 0:
                sums[pid] = sums.get(pid, 0) + 1 / (RRF + 1 + rank)
    expected = sorted(sums, key=lambda pid: (-sums[pid], pid))[:5]
    assert fuse(np.array([first]), np.array([second]))[0].tolist() == expected + [-1] * (5 - len(expected))


@pytest.mark.parametrize("method", ["bm25", "both"])
def test_mined_by_words(tmp_path, method):
    settings = "model: fake, negatives: 3, range_min: 0, range_max: 20, max_score: null, relative_margin: null"
    build = make_build(tmp_path / "b", {"s": retrieval(40)}, f"{settings}, candidates: {method}")
    run(build)
    rows = mined(build)[0]
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    assert len(rows) == 40
    for row in rows.iter_rows(named=True):
        assert not set(row["negatives"]) & set(row["positives"])
        asked = set(row["query"].strip("?").split())
        shared = [len(asked & set(texts[pid].split())) for pid in row["negatives"]]
        assert min(shared) >= 2  # `the`, `number` and a word besides, or all that the words of the query have
    dense = make_build(tmp_path / "dense", {"s": retrieval(40)}, settings)
    run(dense)
    assert not mined(dense)[0]["negatives"].equals(rows["negatives"])
