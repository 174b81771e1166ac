"""`curate export --format ids`: each text once, tuples of ids. Every layout of ids that we read goes out and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from curation.build.build import build
from curation.core import store, tables
from curation.core.errors import SourceError
from curation.recipe.settings import Train
from curation.share.export import export
from curation.share.importing import write_manifest
from curation.share.verify import problems
from mining.mine import mine_build
from tests.curation.shape.test_by_id import LAYOUTS, QUERIES, RIGHT, TEXTS, built, lines
from tests.curation.share import test_exchange
from tests.curation.share.test_exchange import tuples_of
from tests.mining.small_build import FakeEncoder

made = test_exchange.made  # the fixture
SEARCH = "model: fake, negatives: 3, range_min: 0, range_max: 8, max_score: null, relative_margin: null, corpus: all"
COLUMNS = ("id", "query", "positive_score", "negative_scores")


def beir(folder: Path) -> dict[str, Any]:
    lines(folder / "corpus.jsonl", [{"_id": name, "text": text} for name, text in TEXTS.items()])
    lines(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in QUERIES.items()])
    (folder / "qrels").mkdir()
    judged = "".join(f"{name}\t{right}\t1\n" for name in QUERIES for right in (*RIGHT[name], "d7"))
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return {"files": ".", "reader": "beir", "by_id": False}


def mined_rows(folder: Path, source: str = "s") -> list[dict[str, Any]]:
    """Return the tuples of a mined source, with texts in place of the numbers of passages."""
    texts = tables.read_table(folder / "curated" / source, "passages", ["text"])["text"]
    rows = []
    for row in tables.read_table(folder / "mined" / source, "pairs").iter_rows(named=True):
        lists = {side: [texts[pid] for pid in row[side]] for side in ("positives", "negatives")}
        rows.append(lists | {name: row[name] for name in COLUMNS})
    return rows


def there_and_back(folder: Path) -> Path:
    """Export a build, import and build what was written, and keep the negatives that came along; return that build."""
    export(folder / "build", folder / "out", "ids")
    found = write_manifest(str(folder / "out"), folder / "back.yaml")
    assert set(found.sources.values()) == {"ids"}
    assert not build(folder / "back.yaml", folder / "back").failed
    mine_build(folder / "back")  # `candidates: given`, so no model is needed
    return folder / "back"


@pytest.mark.parametrize("mine", [f"{SEARCH}, shortage: keep", "candidates: given, shortage: keep"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "beir"])
def test_every_layout_comes_back(tmp_path: Path, layout: str, mine: str) -> None:
    write = {**LAYOUTS, "beir": beir}[layout]
    if layout == "beir":
        keys = write(tmp_path)
        document = {"name": "ids", "sources": [{"name": "s", "task": "retrieval", **keys}], "mine": yaml.safe_load(f"{{{mine}}}")}
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(document))
        assert not build(tmp_path / "m.yaml", tmp_path / "build").failed
    else:
        built(tmp_path, write(tmp_path), yaml.safe_load(f"{{{mine}}}"))
    mine_build(tmp_path / "build", load=lambda settings, device: FakeEncoder())
    there = mined_rows(tmp_path / "build")
    assert len(there) == 3
    assert all(len(row["negatives"]) == 3 for row in there) == ("fake" in mine)
    assert mined_rows(there_and_back(tmp_path)) == there
    files = {path.name: pl.read_parquet(path) for path in (tmp_path / "out" / "data" / "s").iterdir()}
    rows = files["train.parquet"]
    scored = "fake" in mine or layout == "lighton"
    assert rows.columns == ["query_id", "document_ids", *(["scores"] if scored else []), "positive_ids"]
    assert files["queries.parquet"].rows() == list(zip(rows["query_id"], QUERIES.values(), strict=True))
    assert len(set(files["documents.parquet"]["text"])) == len(files["documents.parquet"])
    assert problems(tmp_path / "out") == []


def test_several_sources_and_what_they_are(made: Path, tmp_path: Path) -> None:
    (tmp_path / "build").symlink_to(made)
    back = there_and_back(tmp_path)
    then, now = (store.read_json(folder / "build.json")["sources"] for folder in (made, back))
    assert list(now) == sorted(then)
    for name, entry in now.items():
        keys = ("task", "instruction", "language", "license")
        assert [entry[key] for key in keys] == [then[name][key] for key in keys]
        assert mined_rows(back, name) == mined_rows(made, name)
    assert not (tmp_path / "out/data/tone/train.parquet").read_bytes().count(b"scores")  # nobody scored its label texts
    export(made, tmp_path / "two", "ids", ["faq"], negatives=2)
    rows = pl.read_parquet(tmp_path / "two/data/faq/train.parquet")
    assert rows["document_ids"].list.len().to_list() == rows["scores"].list.len().to_list() == [3] * len(rows)


def test_documents_that_no_tuple_names_come_back(tmp_path: Path) -> None:
    """A build of pairs with further documents, of which two are held back from its tuples."""
    lines(tmp_path / "rows.jsonl", [{"q": f"question {n}", "a": f"answer {n}"} for n in range(5)])
    lines(
        tmp_path / "more.jsonl",
        [{"id": n, "t": text} for n, text in enumerate(["answer 3", "nobody's first", "nobody's second"])],
    )
    source = {"name": "s", "task": "retrieval", "files": "rows.jsonl", "fields": {"query": "q", "positive": "a"}}
    source["corpus"] = {"files": "more.jsonl", "fields": {"id": "id", "text": "t"}}
    mine = {**yaml.safe_load(f"{{{SEARCH}}}"), "shortage": "keep"}
    (tmp_path / "m.yaml").write_text(json.dumps({"name": "b", "sources": [source], "mine": mine}))
    assert not build(tmp_path / "m.yaml", tmp_path / "build").failed
    mine_build(tmp_path / "build", load=lambda settings, device: FakeEncoder())
    tuples = mined_rows(tmp_path / "build")
    assert len({text for row in tuples for text in row["negatives"]}) < 7
    back = there_and_back(tmp_path)
    assert mined_rows(back) == tuples
    texts = [set(tables.read_table(folder / "curated/s", "passages", ["text"])["text"]) for folder in (tmp_path / "build", back)]
    assert texts[0] == texts[1] >= {"nobody's first", "nobody's second"}
    assert store.receipt_of(back / "shaped/s")["table_rows"] == {"corpus": 7, "queries": 5}


def test_sentence_transformers_resolves_the_ids(made: Path, tmp_path: Path) -> None:
    import datasets
    from sentence_transformers.util import resolve_ids

    export(made, tmp_path / "out", "ids", ["faq"])
    folder, cache = tmp_path / "out/data/faq", str(tmp_path / "cache")
    train, queries, documents = (
        datasets.load_dataset("parquet", data_files=str(folder / f"{name}.parquet"), split="train", cache_dir=cache)
        for name in ("train", "queries", "documents")
    )
    known = tuples_of(made, "faq", "mined")
    train.set_transform(resolve_ids({"query_id": queries, "document_ids": documents}, output_format="lists"))
    found = {row["query"]: row["documents"] for row in train}
    assert found == {query: [right[0], *wrong] for query, (right, wrong) in known.items()}
    scores = tables.read_table(made / "mined/faq", "pairs", ["positive_score", "negative_scores"]).rows()
    assert train[:]["scores"] == [[first, *others] for first, others in scores]
    train.set_transform(resolve_ids({"query_id": queries, "document_ids": documents}, max_list_length=4))
    row = train[0]
    assert list(row) == ["query", "document_1", "document_2", "document_3", "document_4", "scores"]
    right, wrong = known[row["query"]]
    assert [row[f"document_{n}"] for n in range(1, 5)] == [right[0], *wrong]


def test_texts_in_columns_named_for_what_they_are(made: Path, tmp_path: Path) -> None:
    export(made, tmp_path / "out", "ids", ["faq"])
    for name, column in (("queries", "query"), ("documents", "document")):
        path = tmp_path / f"out/data/faq/{name}.parquet"
        pl.read_parquet(path).rename({"text": column}).write_parquet(path)
    write_manifest(str(tmp_path / "out" / "data"), tmp_path / "m.yaml")
    assert not build(tmp_path / "m.yaml", tmp_path / "b").failed
    mine_build(tmp_path / "b")
    known = tuples_of(made, "faq", "mined")
    assert {row["query"]: (row["positives"], row["negatives"]) for row in mined_rows(tmp_path / "b", "faq")} == known


def test_a_folder_of_ids_that_lacks_a_column(made: Path, tmp_path: Path) -> None:
    export(made, tmp_path / "out", "ids", ["faq"])
    (tmp_path / "out" / "done.json").unlink()
    path = tmp_path / "out/data/faq/train.parquet"
    pl.read_parquet(path).drop("positive_ids", "scores").write_parquet(path)
    with pytest.raises(SourceError, match="has neither 'scores' nor 'positive_ids'; one of them says which document is right"):
        write_manifest(str(tmp_path / "out"), tmp_path / "m.yaml")
    pl.read_parquet(path).drop("query_id").write_parquet(path)
    with pytest.raises(SourceError, match=r"train.parquet: no column 'query_id'; columns there are: document_ids"):
        write_manifest(str(tmp_path / "out"), tmp_path / "m.yaml")


def test_a_thousand_queries_with_two_hundred_documents_each_train_with_distillation(tmp_path: Path) -> None:
    """LightOn's layout: 1,000 queries of 200 documents, of 5,000 short ones; a step learns from all 199 negatives."""
    from tests.training.tiny_models import tiny_folder
    from training.log import read_log
    from training.train import train

    queries, documents = (
        [{"id": n, "text": f"{word} number {n}"} for n in range(count)] for word, count in (("query", 1_000), ("text", 5_000))
    )
    lines(tmp_path / "q.jsonl", queries)
    lines(tmp_path / "d.jsonl", documents)
    ids = [[(query * 5 + step * 7) % 5_000 for step in range(200)] for query in range(1_000)]
    scores = [[1.0, *(0.9 - step / 250 for step in range(199))]] * 1_000
    pl.DataFrame({"query_id": range(1_000), "document_ids": ids, "scores": scores}).write_parquet(tmp_path / "rows.parquet")
    table = {"fields": {"id": "id", "text": "text"}}
    fields = {"id": "query_id", "query": "query_id", "documents": "document_ids", "score": "scores"}
    source = {"name": "s", "task": "retrieval", "by_id": True, "files": "rows.parquet", "fields": fields}
    source |= {"corpus": {"files": "d.jsonl", **table}, "queries": {"files": "q.jsonl", **table}}
    mine = {"candidates": "given", "negatives": 200}
    (tmp_path / "m.yaml").write_text(json.dumps({"name": "b", "sources": [source], "mine": mine}))
    assert not build(tmp_path / "m.yaml", tmp_path / "b").failed
    assert mine_build(tmp_path / "b")["s"]["kept"] == 1_000
    keys = {"negatives": 199, "batch": 2, "steps": 1, "log_every": 1, "max_tokens": 16, "distill": 1.0, "dtype": "float32"}
    train(tmp_path / "b", Train(model=str(tiny_folder("bert", tmp_path / "model")), **keys), out=tmp_path / "run")
    (line,) = read_log(tmp_path / "run" / "log.jsonl")
    assert 0 < line["loss_distilled"] < 100
    assert line["tokens"] > 2 * 200 * 4  # each of the 400 documents of a batch is read
