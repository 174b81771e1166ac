"""Judging positives by rank and score, and candidates that become positives."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from small_build import FakeEncoder, hashed, make_build, pairs_source
from test_mine import mined, run
from test_mine_settings import reset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from curation.core import store, tables
from curation.core.builds import outdated_tuple
from curation.core.record import POSITIVE_ORIGINS
from mining.calibrate import compare_limits, evaluate_sources
from mining.mine import warnings_of
from mining.show import as_text, mined_tuples, promotion_line
from tests.training.tiny_models import tiny_folder
from training.model.load import load_model
from training.model.reranker import load_reranker
from training.tokens import load_sources

BASE = "model: fake, negatives: 3, range_min: 0, range_max: 20, max_score: null, relative_margin: null, shortage: keep"


def weak_pairs(count=40):
    """Questions with a good passage, except every fifth, whose positive is about something else."""
    queries = [f"how do I reset the password of account {number}" for number in range(count)]
    good = [f"to reset the password of account {number}, open settings" for number in range(count)]
    positives = [f"zebra xylophone {number}" if number % 5 == 0 else text for number, text in enumerate(good)]
    return pairs_source(queries, positives, passages=["how do I get an account", "zebra", *good[:10]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random reranker whose tokenizer knows the numbers, so that no two texts have equal scores."""
    folder = tiny_folder("bert", tmp_path_factory.mktemp("reranker") / "bert", labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([str(number) for number in range(40)])
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_ranks_and_scores_are_those_of_all_passages(tmp_path):
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, f"{BASE}, corpus: all")
    run(build)
    rows = mined(build)[0]
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    scores = hashed(rows["query"]).astype(np.float64) @ hashed(texts).astype(np.float64).T
    for row, of_row in zip(rows.iter_rows(named=True), scores, strict=True):
        own = row["positives"][0]
        assert row["positive_score"] == pytest.approx(of_row[own], abs=1e-6)
        assert row["positive_rank"] == (of_row > of_row[own]).sum()
        assert row["positive_reranked"] == [None]
        assert row["positive_origin"] == [POSITIVE_ORIGINS.index("given")]
    assert rows["positive_rank"].max() > 20


def test_limits_drop_tuples_without_encoding_again(tmp_path):
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, BASE)
    run(build)
    before = mined(build)[0]
    encoder = FakeEncoder()
    reset(build, f"{BASE}, positive_rank: 20")
    receipt = run(build, encoder)["s"]
    assert encoder.calls == []
    rows, dropped = mined(build)
    far = before.filter(before["positive_rank"] >= 20)
    assert 0 < len(far) < 40
    assert dropped["id"].to_list() == far["id"].to_list()
    assert dropped["reason"].unique().to_list() == ["positive_rank"]
    assert dropped["evidence"][0] == f"{far['positive_rank'][0]} passages score higher; 20 may not"
    assert receipt["dropped"] == {"positive_rank": len(far)}
    assert rows.equals(before.filter(before["positive_rank"] < 20))

    reset(build, f"{BASE}, positive_min_score: 0.3")
    assert run(build, encoder)["s"]["dropped"] == {"positive_min_score": (before["positive_score"] < 0.3).sum()}
    assert mined(build)[1]["evidence"][0].endswith(" is below 0.3")
    assert encoder.calls == []


def test_a_positive_beyond_all_candidates_has_no_rank(tmp_path, monkeypatch):
    monkeypatch.setattr("mining.source_search.LEAST_SEEN", 1)
    build = make_build(
        tmp_path / "b", {"s": weak_pairs()}, f"{BASE}, positive_rank: 10".replace("range_max: 20", "range_max: 12")
    )
    run(build)
    dropped = mined(build)[1]
    assert dropped["evidence"][0] == "13 or more passages score higher; 10 may not"


def test_calibrate_shows_what_limits_take(tmp_path):
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, f"{BASE}, positive_rank: 7")
    run(build)
    said = evaluate_sources(compare_limits, build, load=lambda *_: FakeEncoder())["s"]["positives"]
    of_rank = {one["limit"]: one["dropped"] for one in said if one["setting"] == "positive_rank"}
    assert [one["limit"] for one in said if one["current"]] == [7]
    assert of_rank[7] == pytest.approx(len(mined(build)[1]) / 40)
    assert of_rank[1] >= of_rank[7] >= of_rank[20] > 0


def test_candidates_above_the_positive_become_positives(tmp_path, model):
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, f"{BASE}, reranker: {model}, positive_reranker_min: -100")
    run(build)
    before = mined(build)[0]
    reset(build, f"{BASE}, reranker: {model}, promote: {{margin: 0.0, depth: 8}}, uncertain: {{margin: 0.0001}}")
    receipt = run(build)["s"]
    rows = mined(build)[0]
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    scorer = load_reranker(model, device="cpu")
    promoted = 0
    for row, old in zip(rows.iter_rows(named=True), before.iter_rows(named=True), strict=True):
        scores = scorer.scores([row["query"]] * len(row["positives"]), [texts[pid] for pid in row["positives"]])
        assert row["positive_reranked"] == pytest.approx(scores.tolist(), abs=1e-5)
        assert old["positive_reranked"] == pytest.approx(scores[:1].tolist(), abs=1e-5)
        assert row["positives"][:1] == old["positives"]
        assert row["positive_origin"] == [0] + [1] * (len(row["positives"]) - 1)
        assert all(score > row["positive_reranked"][0] for score in row["positive_reranked"][1:])
        assert not set(row["positives"]) & set(row["negatives"])
        against = scorer.scores([row["query"]] * len(row["negatives"]), [texts[pid] for pid in row["negatives"]])
        assert (against <= scores[0] - 0.0001 + 1e-5).all()
        promoted += len(scores) - 1
    assert receipt["promotion"] == {"promoted": promoted, "rows": (rows["positives"].list.len() > 1).sum(), "alike": False}
    assert promoted > 20
    assert promotion_line(build, "s").startswith(f"s: {promoted:,} candidates of ")
    shown = "\n".join(as_text(row, False) for row in mined_tuples(build, "s", 40))
    assert shown.count("  promoted ") == promoted


def test_calibrate_shows_what_margins_take(tmp_path, model):
    keys = f"{BASE}, reranker: {model}, promote: {{margin: 0.002, depth: 8}}, uncertain: {{margin: 0.001}}"
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, keys)
    run(build)
    said = evaluate_sources(compare_limits, build, load=lambda *_: FakeEncoder())["s"]["relabelling"]
    rows, scorer = mined(build)[0], load_reranker(model, device="cpu")
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    corpus = sorted({row[0] for row in rows["positives"].to_list()})
    cosines = hashed(rows["query"]) @ hashed([texts[pid] for pid in corpus]).T
    above = []
    nearest = np.argsort(-cosines, axis=1)[:, :8]
    for query, [own, *_], order in zip(rows["query"], rows["positives"].to_list(), nearest, strict=True):
        near = [own, *(corpus[at] for at in order if corpus[at] != own)]
        scores = scorer.scores([query] * len(near), [texts[pid] for pid in near])
        above.append(scores[1:] - scores[0])
    current = {one["setting"]: one for one in said if one["current"]}
    for name, limit in (("promote", 0.002), ("uncertain", -0.001)):
        assert current[name]["margin"] == abs(limit)
        assert 0 < current[name]["taken"] < 1
        assert current[name]["taken"] == pytest.approx((np.concatenate(above) > limit).mean(), abs=1e-4)
        assert current[name]["tuples"] == pytest.approx(np.mean([(one > limit).any() for one in above]), abs=1e-4)
    shares = [one["taken"] for one in said if one["setting"] == "promote"]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) > 2
    assert all("right" not in one for one in said)


def test_only_the_nearest_are_promoted(tmp_path, model):
    keys = f"{BASE}, reranker: {model}, promote: {{margin: 0.0, depth: 40}}"
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, keys)
    run(build)
    before = mined(build)[0]
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    reset(build, keys.replace("depth: 40", "depth: 5"))
    run(build)
    rows = mined(build)[0]
    corpus = sorted({row[0] for row in before["positives"].to_list()})
    cosines = hashed(rows["query"]) @ hashed([texts[pid] for pid in corpus]).T
    near = [{corpus[at] for at in order} for order in np.argsort(-cosines, axis=1)[:, :5]]
    for row, old, some in zip(rows.iter_rows(named=True), before.iter_rows(named=True), near, strict=True):
        assert row["positives"] == [old["positives"][0], *(pid for pid in old["positives"][1:] if pid in some)]
        assert not set(row["negatives"]) & set(old["positives"])
    assert len(rows) < rows["positives"].list.len().sum() < before["positives"].list.len().sum()


def test_only_candidates_with_a_high_score_are_promoted(tmp_path, model):
    keys = f"{BASE}, reranker: {model}, promote: {{margin: 0.0, depth: 8}}"
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, keys)
    run(build)
    before = mined(build)[0]
    scores = before["positive_reranked"].list.slice(1).explode().drop_nulls()
    limit = float(scores.mean())  # many are equal, and the median may be the least of them
    reset(build, keys.replace("depth: 8", f"depth: 8, min_score: {limit}"))
    receipt = run(build)["s"]
    rows = mined(build)[0]
    for row, old in zip(rows.iter_rows(named=True), before.iter_rows(named=True), strict=True):
        high = [pid for pid, one in zip(old["positives"], old["positive_reranked"], strict=True) if one >= limit]
        assert row["positives"] == list(dict.fromkeys([*old["positives"][:1], *high]))
        assert not set(row["negatives"]) & set(old["positives"])  # the others are no negatives either
    assert 0 < receipt["promotion"]["promoted"] == (scores >= limit).sum() < len(scores)


def test_a_reranker_that_scores_everything_alike_promotes_nothing(tmp_path, model):
    flat = AutoModelForSequenceClassification.from_pretrained(model)
    flat.classifier.weight.data.zero_()
    flat.save_pretrained(tmp_path / "flat")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "flat")
    keys = f"{BASE}, reranker: {tmp_path / 'flat'}, promote: {{margin: 0.0}}"
    build = make_build(tmp_path / "b", {"s": weak_pairs(20)}, keys)
    receipt = run(build)["s"]
    assert receipt["promotion"] == {"promoted": 0, "rows": 0, "alike": True}
    what = "s: the reranker scores all texts alike, so nothing was promoted; use another `reranker`"
    assert what in list(warnings_of("s", receipt))
    reset(build, keys.replace("promote: {margin: 0.0}", "uncertain: {margin: 0.5}"))
    receipt = run(build)["s"]
    assert receipt["kept"] == 20
    assert mined(build)[0]["negatives"].list.len().sum() == 0
    what = "s: the reranker scores all texts alike, so its limits keep or drop all candidates; use another `reranker`"
    assert what in list(warnings_of("s", receipt))


def test_promotion_that_leaves_no_negatives(tmp_path, model):
    source = pairs_source(["one question", "two questions"], ["an answer", "two answers"])
    keys = f"{BASE}, reranker: {model}, promote: {{margin: 0.0}}"
    build = make_build(tmp_path / "b", {"s": source}, keys)
    receipt = run(build)["s"]
    rows = mined(build)[0]
    emptied = rows.filter(rows["negatives"].list.len() == 0)
    assert receipt["without_negatives"] == len(emptied) > 0
    assert any("without negatives" in line for line in warnings_of("s", receipt))
    reset(build, keys.replace("shortage: keep", "shortage: drop"))
    run(build)
    assert "promoted took 1" in " ".join(mined(build)[1]["evidence"])


def test_promoted_texts_are_no_negatives_of_duplicate_queries(tmp_path, model):
    """Two queries of one near-duplicate group share their positives, promoted ones too."""
    build = make_build(
        tmp_path / "b", {"s": weak_pairs()}, f"{BASE}, reranker: {model}, promote: {{margin: 0.0}}, exclude_group: yes"
    )
    folder = build / "curated" / "s"
    pairs = tables.read_table(folder, "pairs")
    pairs = pairs.with_columns(group=pl.Series([row // 2 for row in range(len(pairs))], dtype=pl.UInt32))
    receipt = store.read_receipt(folder)

    def work(part):
        tables.write_table(part, "pairs", pairs)
        for name in ("passages-00000.parquet", "dropped.parquet"):
            (part / name).write_bytes((folder / name).read_bytes())
        return {"rows_in": len(pairs), "kept": len(pairs)}

    store.run_stage(folder, receipt["digest"] + "grouped", work)
    run(build)
    rows = mined(build)[0]
    positives = [set(one) for one in rows["positives"].to_list()]
    assert sum(map(len, positives)) > len(rows)
    for row, negatives in enumerate(rows["negatives"].to_list()):
        assert not set(negatives) & (positives[row] | positives[row ^ 1])


def test_promoted_positives_are_trained_on_and_pass_the_checks(tmp_path, model):
    build = make_build(tmp_path / "b", {"s": weak_pairs()}, f"{BASE}, reranker: {model}, promote: {{margin: 0.0}}")
    run(build)
    rows = mined(build)[0]
    trained = load_model(str(tiny_folder("bert", tmp_path / "bert")), device="cpu")
    sources = load_sources(build, trained, "none")
    assert len(sources[0].positives) == rows["positives"].list.len().sum() > 40
    assert outdated_tuple(build, "s") is None
