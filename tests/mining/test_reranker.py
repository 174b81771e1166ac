"""A cross-encoder over the candidates: the choice of one that scores them all, with fewer scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_build import FakeEncoder, make_build, pairs_source
from test_mine import EASY, mined, retrieval, run
from test_mine_settings import reset

from curation.core import tables
from curation.core.errors import ManifestError
from mining.audit import measure_presets
from mining.calibrate import evaluate_sources
from mining.lists import Ragged
from mining.negatives import Candidates, Rules, choose
from mining.rerank import choose_reranked
from tests.training.tiny_models import tiny_folder, tiny_reranker
from training.model.reranker import ANSWER_TOKENS, load_causal_reranker, load_reranker

QUERIES, DEPTH = 40, 30


def encoder(*_):
    return FakeEncoder()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_folder("bert", tmp_path_factory.mktemp("reranker") / "bert", labels=1))


def drawn():
    """Candidates with everything that a choice may ask, and the score of each passage for each query."""
    draw = np.random.default_rng(7)
    ids = np.stack([draw.permutation(60)[:DEPTH] for _ in range(QUERIES)])
    ids[0, 20:] = -1
    scores = -np.sort(-draw.random((QUERIES, DEPTH)), axis=1)
    none = Ragged(np.zeros(QUERIES + 1, np.int64), np.empty(0, np.int64))
    positives = Ragged(np.arange(0, 2 * QUERIES + 1, 2), draw.integers(0, 60, 2 * QUERIES))
    groups, numbers = draw.integers(-1, 20, (QUERIES, DEPTH)), draw.integers(0, 1 << 40, (QUERIES, DEPTH)).astype(np.uint64)
    one = Candidates(ids, scores, positives, np.full(2 * QUERIES, 0.9), none, np.empty(0), groups=groups, draw=numbers)
    return one, draw.random((QUERIES, 60)).astype(np.float32)


@pytest.mark.parametrize("basis", ["surviving", "raw"])
@pytest.mark.parametrize("pick", ["top", "random", "stratified"])
def test_as_if_every_candidate_had_been_scored(pick, basis):
    one, table = drawn()
    rules = Rules(2, 15, basis, max_score=0.95, relative_margin=None, distinct=True, pick=pick, reranker_margin=-0.2)
    rules = replace(rules, reranker_max_score=0.8)
    wanted, asked = np.full(QUERIES, 5), []

    def score(rows, pids):
        asked.extend(zip(rows.tolist(), pids.tolist(), strict=True))
        return table[rows, pids]

    found = choose_reranked(score, one, wanted, rules)[1]
    rows = np.arange(QUERIES)[:, None]
    every = replace(one, reranked=table[rows, one.ids], reranked_positives=table[one.positives.row_of_each(), one.positives.ids])
    assert np.array_equal(found.ids, choose(every, wanted, rules).ids)
    assert not np.array_equal(found.ids, choose(one, wanted, rules).ids)
    assert found.removed["reranker_max_score"].sum() > 0 < found.removed["reranker_margin"].sum()
    assert len(asked) < QUERIES * DEPTH * (0.6 if pick == "top" else 0.9)
    assert len(set(asked[2 * QUERIES :])) == len(asked) - 2 * QUERIES


def test_filters_and_grades_a_build(tmp_path, monkeypatch, model):
    build = make_build(tmp_path / "b", {"s": several_answers()}, f"{EASY}, shortage: keep, reranker: {model}, reranker_margin: 0")
    receipt = run(build)["s"]
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    scorer = load_reranker(model, device="cpu")

    def again(row, pids):
        return scorer.scores([row["query"]] * len(pids), [texts[pid] for pid in pids])

    for row in mined(build)[0].iter_rows(named=True):
        lowest = again(row, row["positives"]).min()
        assert (again(row, row["negatives"]) <= lowest + 1e-6).all()
    assert receipt["filters"]["reranker_margin"] > 0
    assert f"|reranker:{model}|reranker_margin:0.0|" in receipt["signature"]
    assert sum(map(len, mined(build)[0]["negatives"])) > 60
    said = evaluate_sources(measure_presets, build, load=encoder)["s"]["settings"]["manifest"]
    assert said["filters"]["reranker_margin"] > 0

    reset(build, f"{EASY}, reranker: {model}, reranker_scores: true, reranker_max_score: 0.99")
    run(build)
    rows = mined(build)[0]
    for row in rows.iter_rows(named=True):
        assert [row["positive_score"]] == pytest.approx(again(row, row["positives"][:1]), abs=1e-5)
        assert row["negative_scores"] == pytest.approx(again(row, row["negatives"]), abs=1e-5)
    monkeypatch.setattr("training.model.reranker.load_reranker", None)
    reset(build, f"{EASY}, reranker: {model}, reranker_scores: true, reranker_max_score: 0.98")
    assert run(build)["s"]["ran"]
    assert not run(build)["s"]["ran"]


def test_a_language_model_is_asked_with_the_instruction(tmp_path):
    model = str(tiny_reranker(tmp_path / "llm", ANSWER_TOKENS))
    build = make_build(
        tmp_path / "b", {"s": retrieval(12, instruction="find it")}, f"{EASY}, reranker: {model}, reranker_scores: true"
    )
    run(build)
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    row = mined(build)[0].row(0, named=True)
    asked = f"<Instruct>: find it\n<Query>: {row['query']}"
    again = load_causal_reranker(model, device="cpu").scores(
        [asked] * len(row["negatives"]), [texts[pid] for pid in row["negatives"]]
    )
    assert row["negative_scores"] == pytest.approx(again, abs=1e-5)


def several_answers():
    source = retrieval()
    return {"tuples": [*source["tuples"], *pairs_source(["which fox?"] * 2, ["the red fox number 0", "a fox"])["tuples"]]}


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (
            "candidates: given, reranker: some/model, reranker_scores: true",
            "'reranker' scores what a search finds, and `candidates: given` makes no search",
        ),
        (
            "reranker_margin: 0.1",
            "'reranker_margin' requires a 'reranker'",
        ),
        (
            "reranker: some/model",
            "'reranker' has no effect without 'reranker_max_score', 'reranker_margin', 'promote', 'uncertain', "
            "'positive_reranker_min' or `reranker_scores: yes`",
        ),
    ],
)
def test_a_reranker_has_a_use(tmp_path, keys, what):
    build = make_build(tmp_path / "b", {"s": retrieval(4)}, f"{EASY}, {keys}")
    with pytest.raises(ManifestError) as error:
        run(build)
    assert str(error.value) == f"{build / 'manifest.yaml'}:5: {what}"
