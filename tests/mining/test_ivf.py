"""Search in lists against a full sort of the same lists; recall against counting; the same bytes with any threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_build import FakeEncoder, files_of, make_build, pairs_source

from curation.core import store, tables
from mining import ivf, mine
from mining.cli import _table
from mining.search import Exact, nearest


def clustered(count, families, dim=24, seed=0):
    """Return unit vectors around family centres, as the texts of a corpus are around topics."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((families, dim))[np.arange(count) % families] + 0.5 * random.standard_normal((count, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def made(folder, corpus, queries, k=20, seed=3):
    receipt, _ = store.run_stage(folder, "x", lambda part: ivf.write_index(part, corpus, queries, k, seed, "s"))
    return ivf.Lists(corpus, folder), receipt


@pytest.mark.parametrize("block", [50, 333, 4000])
def test_the_searched_lists_are_searched_exactly(tmp_path, block):
    corpus, queries = clustered(3000, 60), clustered(200, 60, seed=1)
    corpus[1000:1040] = corpus[7]  # more equal ones than are fetched to spare
    queries[5] = corpus[7]
    index, receipt = made(tmp_path / "index", corpus, queries)
    index.block = block
    number = np.empty(3000, np.int64)
    number[index.members] = np.repeat(np.arange(receipt["lists"]), np.diff(index.starts))
    nearness = queries.astype(np.float64) @ index.centroids.astype(np.float64).T
    probed = np.argsort(-nearness, axis=1, kind="stable")[:, : receipt["probes"]]
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    scores[~(number[None, :, None] == probed[:, None, :]).any(axis=2)] = -np.inf
    scores = np.round(scores, 12)
    expected = np.lexsort((np.broadcast_to(np.arange(3000), scores.shape), -scores))[:, :20]
    best = np.take_along_axis(scores, expected, axis=1)
    ids, found = nearest(queries, index, 20)
    np.testing.assert_array_equal(ids, np.where(np.isfinite(best), expected, -1))
    np.testing.assert_allclose(found, best, atol=1e-11)


def test_recall_is_what_counting_gives(tmp_path):
    corpus, queries = clustered(4000, 80), clustered(500, 80, seed=1)
    index, receipt = made(tmp_path / "index", corpus, queries)
    assert 1 <= receipt["probes"] < receipt["lists"] == 253
    asked = np.arange(500)[1::2]  # of these few queries all are drawn
    exact = nearest(queries[asked], Exact(corpus), 20)[0]
    found = nearest(queries[asked], index, 20)[0]
    recall = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(exact, found, strict=True)])
    assert receipt["recall"] == round(float(recall), 4)
    assert 0.9 < receipt["recall"] < 1
    index.probes = receipt["lists"]
    np.testing.assert_array_equal(nearest(queries, index, 20)[0], nearest(queries, Exact(corpus), 20)[0])


def test_few_passages_in_the_lists(tmp_path):
    corpus = np.eye(8, dtype=np.float32)
    index, _ = made(tmp_path / "index", corpus, corpus[:2], k=1)
    index.probes = 1
    ids, scores = nearest(corpus, index, 5)
    sizes = np.diff(index.starts)
    for row in range(8):
        mates = next(set(part) for part in np.split(index.members, index.starts[1:-1]) if row in part)
        assert set(ids[row]) - {-1} == mates
        assert ids[row, 0] == row
        assert (scores[row] == -np.inf).sum() == 5 - min(5, len(mates))
    assert sizes.sum() == 8


def source(count):
    names = ["red", "green", "blue", "warm", "cold", "wide"]
    texts = [f"the {names[n % 6]} {names[n // 6 % 6]} thing number {n} is there" for n in range(count)]
    return pairs_source([f"where is the {names[n % 6]} {names[n // 6 % 6]} thing {n}" for n in range(count)], texts)


SETTINGS = "model: fake, negatives: 3, range_min: 1, range_max: 20, max_score: null, relative_margin: null, shortage: keep"


def test_mined_with_an_index(tmp_path, monkeypatch):
    build = make_build(tmp_path / "b", {"large": source(600), "small": source(40)}, f"{SETTINGS}, index: ivf")
    monkeypatch.setattr(ivf, "LEAST", 500)
    receipts = mine.mine_build(build, load=lambda *_: FakeEncoder())
    said = receipts["large"]["index"]
    assert receipts["small"]["index"] == {"kind": "exact"}
    assert said["kind"] == "ivf"
    assert said["probes"] < said["lists"] == 98
    assert 0.9 <= said["recall"] < 1
    assert (said["recall_of"], said["recall_queries"]) == (101, 256)
    assert "|index:ivf|" in receipts["large"]["signature"]
    assert [line[:20] for line in mine.warnings_of("large", receipts["large"])] == ["large: 'index: ivf' "]
    shown = _table(receipts, verbose=True).splitlines()
    assert (
        f"  searched {said['probes']} of 98 lists per query, which found {100 * said['recall']:.1f} % "
        "of the 101 nearest, for 256 queries"
    ) in shown
    assert "  searched exactly: too few passages for an index" in shown
    exact = make_build(tmp_path / "e", {"large": source(600)}, SETTINGS)
    whole = mine.mine_build(exact, load=lambda *_: FakeEncoder())["large"]
    assert "index" not in whole
    assert "index" not in whole["signature"]
    ours, theirs = (tables.read_table(place / "mined" / "large", "pairs")["negatives"].to_list() for place in (build, exact))
    same = [len(set(a) & set(b)) for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) >= 0.9 * 3 * len(same)
    before = files_of(build)
    monkeypatch.setattr(ivf, "write_index", None)  # nothing is written again
    mine.mine_build(build, load=lambda *_: FakeEncoder())
    assert files_of(build) == before


def test_an_index_that_is_slower_than_an_exact_search():
    receipt = {"rows_in": 1, "kept": 1, "dropped": {}, "filters": {}, "histograms": {"negatives": []}, "settings": {}}
    receipt["index"] = {"kind": "ivf", "probes": 1392, "lists": 1789}
    assert list(mine.warnings_of("s", receipt)) == [
        "s: 'index: ivf' searches 1,392 of 1,789 lists per query, which takes longer than an exact search; use `index: exact`"
    ]
    assert not list(mine.warnings_of("s", {**receipt, "index": {"kind": "ivf", "probes": 62, "lists": 1826}}))
    assert not list(mine.warnings_of("s", {**receipt, "index": {"kind": "exact"}}))


THREADS = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from test_ivf import clustered, made
import numpy as np
made(Path({folder!r}), clustered(6000, 100), clustered(300, 100, seed=1))
"""


def test_the_same_bytes_with_any_number_of_threads(tmp_path):
    here = Path(__file__).resolve()
    for threads in ("1", "2"):
        code = THREADS.format(tests=str(here.parent), root=str(here.parents[2]), folder=str(tmp_path / threads))
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": threads}, check=True)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
