"""From a build to its mined rows."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from half_gpu import Half
from small_build import FakeEncoder, files_of, make_build, pairs_source

from curation.core import store, tables
from curation.core.errors import BuildError, ManifestError
from curation.core.record import DROPPED, MINED_PAIRS
from mining.jobs import read_description
from mining.mine import mine_build, plan, warnings_of
from mining.show import mark_shared, mined_tuples

WORDS = ["red", "blue", "green", "small", "large", "round", "old", "new", "warm", "cold"]
TOPICS = ["fox", "river", "engine", "garden"]
EASY = "model: fake, negatives: 3, range_min: 1, range_max: 20"


def passage(number):
    return f"the {WORDS[number % 10]} {TOPICS[number // 10 % 4]} number {number}"


def retrieval(count=40, **more):
    return pairs_source([f"where is the {passage(n)[4:]}?" for n in range(count)], [passage(n) for n in range(count)], **more)


def mined(build, name="s"):
    return tables.read_table(build / "mined" / name, "pairs"), tables.read_parquet(build / "mined" / name / "dropped.parquet")


def run(build, encoder=None, **more):
    encoder = encoder or FakeEncoder()
    return mine_build(build, load=lambda *_: encoder, **more)


def test_what_is_written(tmp_path):
    build = make_build(tmp_path / "b", {"s": retrieval(instruction="find it")}, EASY)
    receipt = run(build, FakeEncoder(prompt="ask: "))["s"]
    rows, dropped = mined(build)
    assert rows.schema == MINED_PAIRS
    assert dropped.schema == DROPPED
    assert receipt["rows_in"] == 40 == receipt["kept"] + sum(receipt["dropped"].values())
    assert len(rows) == receipt["kept"]
    assert rows["id"].to_list() == sorted(rows["id"], key=lambda one: int(one.split("/")[1]))
    for row in rows.iter_rows(named=True):
        assert len(set(row["negatives"])) == 3
        assert not set(row["negatives"]) & set(row["positives"])
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
        assert row["negative_ranks"] == sorted(row["negative_ranks"])
        assert row["negative_origin"] == [1, 1, 1]
        assert max(row["negative_scores"]) <= min(0.8, row["positive_score"] * 0.95 + 1e-6)
    assert receipt["encoder"]["prompt"] == "ask: "
    assert receipt["filters"]["positive"] == 40
    assert receipt["signature"] == (
        "mine:search|model:fake|dtype:float32|prompt:ask: |pooling:mean|max_tokens:256|preset:f2llm|negatives:3|candidates:dense|range_min:1|"
        "range_max:20|rank_basis:surviving|max_score:0.8|relative_margin:0.05|margin_reference:min|"
        "similarity_median:0.0|target_yield:0.9|pick:top|classes:random|shortage:drop|seed:42|format:4"
    )


def test_a_second_run_does_nothing_and_a_filter_encodes_nothing(tmp_path):
    build = make_build(tmp_path / "b", {"s": retrieval()}, EASY)
    assert run(build)["s"]["ran"]
    before = files_of(build)
    encoder = FakeEncoder()
    assert not run(build, encoder)["s"]["ran"]
    assert files_of(build) == before
    assert not plan(build, load=lambda *_: encoder)["s"]["ran"]
    manifest = build / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("range_min: 1", "range_min: 2"))
    assert plan(build, load=lambda *_: encoder)["s"] == {"strategy": "search", "rows_in": 40, "ran": True}
    assert run(build, encoder)["s"]["ran"]
    assert encoder.calls == []
    assert run(build, FakeEncoder(prompt="new "))["s"]["ran"]


def test_the_corpus_is_the_positives(tmp_path):
    source = retrieval(30, passages=["the red fox number 1000", "a text that is no one's positive"])
    build = make_build(tmp_path / "b", {"s": source}, EASY)
    encoder = FakeEncoder()
    run(build, encoder)
    assert not {0, 1} & set(mined(build)[0]["negatives"].explode())
    assert not any("no one's" in text for call in encoder.calls for text in call)


def test_given_negatives_come_first_and_are_not_repeated(tmp_path):
    source = retrieval(40)
    source["tuples"][0]["negatives"] = [passage(10), "a given text", passage(10), passage(0)]
    source["tuples"][1]["negatives"] = ["one", "two", "three", "four"]
    build = make_build(tmp_path / "b", {"s": source}, EASY + ", max_score: null, relative_margin: null")
    run(build)
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    first, second, third, *_ = mined(build)[0].iter_rows(named=True)
    assert [texts[pid] for pid in first["negatives"][:2]] == [passage(10), "a given text"]
    assert first["negative_origin"] == [0, 0, 1]
    assert first["negative_ranks"][:2] == [None, None]
    assert first["negative_scores"][0] > first["negative_scores"][1]
    assert first["negatives"][2] not in first["negatives"][:2]
    assert [texts[pid] for pid in second["negatives"]] == ["one", "two", "three"]
    assert third["negative_origin"] == [1, 1, 1]


@pytest.mark.parametrize("shortage", ["drop", "keep"])
def test_a_corpus_smaller_than_what_is_wanted(tmp_path, shortage):
    build = make_build(
        tmp_path / "b", {"s": retrieval(4)}, f"{EASY}, max_score: null, relative_margin: null, shortage: {shortage}"
    )
    receipt = run(build)["s"]
    rows, dropped = mined(build)
    if shortage == "keep":
        assert rows["negatives"].list.len().to_list() == [2, 2, 2, 2]
        assert receipt["dropped"] == {}
        return
    assert receipt["dropped"] == {"too_few_negatives": 4}
    assert len(rows) == 0
    assert rows.schema == MINED_PAIRS
    assert dropped.row(0, named=True) | {"matched_id": None, "matched_source": None, "score": None} == {
        "id": "s/0",
        "source": "s",
        "stage": "mine",
        "reason": "too_few_negatives",
        "evidence": "2 of 3 negatives among 4 candidates: positive took 1, range_min took 1",
        "matched_id": None,
        "matched_source": None,
        "score": None,
    }


def test_a_filter_that_takes_all_is_named(tmp_path):
    build = make_build(tmp_path / "b", {"s": retrieval(40)}, EASY + ", max_score: -1")
    receipt = run(build)["s"]
    assert receipt["kept"] == 0
    assert list(warnings_of("s", receipt)) == [
        "s: 40 of 40 rows have too few negatives and were dropped; 'max_score' dropped most candidates "
        f"({receipt['filters']['max_score']:,} of 840, which is 21 per row)"
    ]
    build = make_build(tmp_path / "d", {"s": retrieval(40)}, EASY + ", max_score: -1, shortage: keep")
    assert list(warnings_of("s", run(build)["s"])) == [
        "s: only 0 of 120 negatives were found; rows with fewer were kept; 'max_score' dropped most candidates "
        f"({receipt['filters']['max_score']:,} of 840, which is 21 per row)"
    ]
    build = make_build(tmp_path / "c", {"s": retrieval(40)}, EASY)
    assert not list(warnings_of("s", run(build)["s"]))


def test_classification_keeps_the_other_label(tmp_path):
    rows = [
        {"query": f"q{n}", "positives": ["good", "bad"][n % 2 :][:1], "negatives": ["bad", "good"][n % 2 :][:1]} for n in range(6)
    ]
    rows.append({"query": "q6", "positives": ["good"]})
    build = make_build(tmp_path / "b", {"s": {"task": "classification", "tuples": rows}})
    receipt = mine_build(build, load=None)["s"]  # no encoder is asked for
    kept, dropped = mined(build)
    assert kept["negatives"].to_list() == [[1], [0]] * 3
    assert kept["negative_origin"].to_list() == [[0]] * 6
    assert kept["negative_scores"].to_list() == kept["negative_ranks"].to_list() == [[None]] * 6
    assert kept["positive_score"].null_count() == 6
    assert dropped["evidence"].to_list() == ["0 of 1 negatives"]
    assert receipt["signature"] == "mine:given|shortage:drop|seed:42|format:4"


def clustering(count=60, classes=4):
    texts = [f"text {n}" for n in range(count)]
    return {
        "task": "clustering",
        "passages": [*texts, "a text of no class"],
        "tuples": [
            {"query": text, "positives": [texts[(n + classes) % count]], "label": f"class {n % classes}"}
            for n, text in enumerate(texts)
        ],
    }


def test_clustering_draws_from_other_classes(tmp_path):
    build = make_build(tmp_path / "b", {"s": clustering(), "t": clustering()})
    mine_build(build, load=None)
    rows, _ = mined(build)
    label = dict(zip(rows["query"], rows["label"], strict=True))
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    assert len(rows) == 60
    for row in rows.iter_rows(named=True):
        assert len(set(row["negatives"])) == 24
        assert all(label[texts[pid]] != row["label"] for pid in row["negatives"])
        assert row["negative_origin"] == [2] * 24
    assert rows["negatives"].to_list() != mined(build, "t")[0]["negatives"].to_list()
    alone = make_build(tmp_path / "alone", {"s": clustering()})
    mine_build(alone, load=None)
    assert mined(alone)[0].equals(rows)


def test_clustering_with_too_few_other_texts(tmp_path):
    build = make_build(tmp_path / "b", {"s": clustering(20, 2)})
    assert mine_build(build, load=None)["s"]["dropped"] == {"too_few_negatives": 20}
    assert set(mined(build)[1]["evidence"]) == {"10 of 24 negatives"}


def test_blocks_change_nothing(tmp_path, monkeypatch):
    sources = {"s": retrieval(40), "t": clustering()}
    for name in ("a", "b"):
        monkeypatch.setattr("mining.candidates.ROWS_PER_BLOCK", 7 if name == "b" else 4096)
        run(make_build(tmp_path / name / "x", sources, EASY))
    for part in ("mined", "embeddings"):
        assert files_of(tmp_path / "a" / "x" / part) == files_of(tmp_path / "b" / "x" / part)


@pytest.mark.parametrize("room", [1 << 30, 20_000])
def test_gpus_and_threads_change_nothing(tmp_path, monkeypatch, room):
    monkeypatch.setattr("mining.candidates.ROWS_PER_BLOCK", 7)
    monkeypatch.setattr("curation.core.vectors.ROWS", 8)
    monkeypatch.setattr("mining.gpu.LEAST_PASSAGES", 1)
    sources, mine = {"s": retrieval(60), "t": clustering()}, EASY + ", classes: hard"
    labels, few = list[str](), [Half(0, room), Half(1, room)]

    @contextmanager
    def progress(what, total, unit):
        labels.append(what)
        yield lambda n: None

    for name in ("a", "b"):
        encoder = FakeEncoder()
        if name == "b":
            encoder.threads = 3
            monkeypatch.setattr("mining.source_search.find_gpus", lambda device: few)
        run(make_build(tmp_path / name / "x", sources, mine), encoder, progress=progress)
    assert "s: search" in labels
    assert "s: search on cuda:0, cuda:1 with torch" in labels
    assert all(one.loads for one in few)
    assert room == 20_000 or sum(one.loads for one in few) == 4  # of two sources, each once
    for part in ("mined", "embeddings"):
        assert files_of(tmp_path / "a" / "x" / part) == files_of(tmp_path / "b" / "x" / part)
    receipt = store.read_receipt(tmp_path / "b" / "x" / "candidates" / "t" / "00003")
    assert receipt["engine"] == "cuda:0, cuda:1 with torch, float16 rescored in float64"


def test_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 15)
    build = make_build(tmp_path / "b", {"s": retrieval(40), "t": clustering()}, EASY)
    run(build)
    assert len(list((build / "mined" / "s").glob("pairs-*.parquet"))) == 3
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 1000)
    whole = make_build(tmp_path / "whole", {"s": retrieval(40), "t": clustering()}, EASY)
    run(whole)
    for name in ("s", "t"):
        assert mined(build, name)[0].equals(mined(whole, name)[0])


def test_shown(tmp_path):
    build = make_build(tmp_path / "b", {"s": retrieval(40)}, EASY)
    run(build)
    (row,) = mined_tuples(build, "s", 1)
    assert row["query"] == "where is the red fox number 0?"
    assert row["positives"] == ["the red fox number 0"]
    assert [negative[3] for negative in row["negatives"]] == ["mined"] * 3


@pytest.mark.parametrize(
    ("text", "others", "found"),
    [
        ("The old tower, of Paris.", ["We saw the OLD tower of Rome"], "[[The old tower, of]] Paris."),
        ("the old tower", ["the old one"], "the old tower"),
        ("a b c d e f g", ["a b c", "e f g h"], "[[a b c]] d [[e f g]]"),
        ("a b c d", ["a b c", "b c d"], "[[a b c d]]"),
        ("", ["a b c"], ""),
        ("दस मिनट रुकें: जो", ["का तार दस मिनट रुकें: जब"], "[[दस मिनट रुकें]]: जो"),  # vowel signs are within words
    ],
)
def test_shared_words_are_mark_shared(text, others, found):
    assert mark_shared(text, others) == found


@pytest.mark.parametrize("at", [0, 7, 39])
def test_a_query_without_a_positive(tmp_path, at):
    source = retrieval(40)
    source["tuples"][at]["positives"] = []
    for name, mine in (("b", EASY), ("c", f"{EASY}, preset: clean")):
        build = make_build(tmp_path / name, {"s": source}, mine)
        with pytest.raises(BuildError) as error:
            run(build)
        assert str(error.value) == f"{build}/curated/s: tuple 's/{at}' has no positive; run `curate build` again"
        assert not (build / "mined" / "s").exists()


def test_wrong_builds(tmp_path):
    def complaint(kind=BuildError, **more):
        with pytest.raises(kind) as error:
            run(build, **more)
        return str(error.value)

    build = tmp_path / "absent"
    assert complaint() == f"{build}: no such build folder; run `curate build MANIFEST` first"
    build = make_build(tmp_path / "b", {"squad": retrieval(5)}, None, {"news": "news.csv:3: unbalanced quotes"})
    assert complaint() == (
        f"{build}/manifest.yaml: has no 'mine:' section; add one, such as "
        "`mine: {model: sentence-transformers/all-MiniLM-L6-v2}`, and run `curate build` again"
    )
    build = make_build(tmp_path / "c", {"squad": retrieval(5)}, EASY, {"news": "news.csv:3: unbalanced quotes"})
    assert read_description(build)["failed"] == {"news": "news.csv:3: unbalanced quotes"}
    assert complaint(only=["news"]) == (
        f"{build}: source 'news' failed in the build: news.csv:3: unbalanced quotes; mend it and run `curate build` again"
    )
    assert complaint(only=["squat"]) == f"{build}: has no source 'squat' (did you mean 'squad'?); it has squad"
    shard = build / "curated" / "squad" / "pairs-00000.parquet"
    shard.write_bytes(shard.read_bytes() + b"x")
    assert complaint().startswith(f"{shard}: was changed since it was written")
    (build / "curated" / "squad" / "done.json").unlink()
    assert complaint() == f"{build}/curated/squad: is missing or unfinished; run `curate build` again"
    (build / "build.json").write_text('{"name": "c", "seed": 1, "sources": {"squad": {"task": "retrieval"}}}')
    assert complaint() == (
        f"{build}/build.json: lacks sources.squad.instruction, sources.squad.tuples: changed by hand?; run `curate build` again"
    )
    build = make_build(tmp_path / "d", {"s": retrieval(5)}, "model: fake, range_max: 20")
    assert complaint(ManifestError) == (
        f"{build}/manifest.yaml: mine: 24 negatives do not fit between range_min 5 and range_max 20; "
        "raise 'range_max' or lower 'negatives'"
    )


def test_given_negatives_are_not_bound_by_the_search_window(tmp_path):
    rows = [{"query": f"q{n}", "positives": [f"p{n}"], "negatives": [f"n{n}.{k}" for k in range(150)]} for n in range(3)]
    build = make_build(tmp_path / "b", {"s": {"tuples": rows}}, "candidates: given, range_max: 100, negatives: 150")
    mine_build(build, load=None)
    assert mined(build)[0]["negatives"].list.len().to_list() == [150] * 3
