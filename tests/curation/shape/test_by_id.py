"""Rows that name texts by id: the layouts of LightOn, Tevatron, NeMo and F2LLM-v2, and what is wrong with such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from curation.build.build import build
from curation.core.errors import UserError
from curation.core.tables import read_table

TEXTS = {f"d{n}": f"passage number {n} about the river {'abcdefgh'[n]}" for n in range(8)}
QUERIES = {f"q{n}": f"which river is number {n}?" for n in range(3)}
RIGHT = {"q0": ["d0"], "q1": ["d1"], "q2": ["d2"]}
WRONG = {"q0": ["d3", "d4"], "q1": ["d4", "d5"], "q2": ["d3", "d6"]}
SCORES = {"q0": [9.5, 3.0, 1.0], "q1": [8.5, 2.0, 1.5], "q2": [7.5, 2.5, 0.5]}
CORPUS = {"files": "corpus.jsonl", "fields": {"id": "id", "text": "text"}}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def built(folder: Path, keys: dict[str, Any], mine: dict[str, Any] | None = None) -> tuple[pl.DataFrame, list[str]]:
    """Build a source with these keys; return (its pairs, its passages)."""
    lines(folder / "corpus.jsonl", [{"id": name, "text": text} for name, text in TEXTS.items()])
    lines(folder / "queries.jsonl", [{"id": name, "text": text} for name, text in QUERIES.items()])
    document = {"name": "ids", "sources": [{"name": "s", "task": "retrieval", "by_id": True, **keys}]} | (
        {"mine": mine} if mine else {}
    )
    (folder / "m.yaml").write_text(yaml.safe_dump(document))
    for error in build(folder / "m.yaml", folder / "build").failed.values():
        raise error
    curated = folder / "build" / "curated" / "s"
    return read_table(curated, "pairs"), read_table(curated, "passages")["text"].to_list()


def check(pairs: pl.DataFrame, passages: list[str]) -> None:
    assert pairs["query"].to_list() == list(QUERIES.values())
    for name, row in zip(QUERIES, pairs.iter_rows(named=True), strict=True):
        assert [passages[pid] for pid in row["positives"]] == [TEXTS[one] for one in RIGHT[name]]
        assert [passages[pid] for pid in row["negatives"]] == [TEXTS[one] for one in WRONG[name]]
    assert len(passages) == len(set(passages)) == 7  # d7 is named by no row


def lighton(folder: Path, as_text: bool = False) -> dict[str, Any]:
    """Write the rows in LightOn's layout; return the keys of a source. With `as_text`, lists are texts, as in its msmarco."""
    ids: list[Any] = [[*RIGHT[name], *WRONG[name]] for name in QUERIES]
    frame = pl.DataFrame(
        {
            "query_id": list(QUERIES),
            "document_ids": [f"[{', '.join(one)}]" for one in ids] if as_text else ids,
            "scores": list(map(str, SCORES.values())) if as_text else list(SCORES.values()),
        }
    )
    frame.write_parquet(folder / "rows.parquet")
    return {
        "files": "rows.parquet",
        "fields": {"id": "query_id", "query": "query_id", "documents": "document_ids", "score": "scores"},
        "corpus": CORPUS,
        "queries": {"files": "queries.jsonl", "fields": {"id": "id", "text": "text"}},
    }


def tevatron(folder: Path) -> dict[str, Any]:
    rows = [
        {
            "query_id": name,
            "query_text": QUERIES[name],
            "positive_document_ids": RIGHT[name],
            "negative_document_ids": WRONG[name],
        }
        for name in QUERIES
    ]
    lines(folder / "rows.jsonl", rows)
    fields = {"query": "query_text", "positive": "positive_document_ids", "negatives": "negative_document_ids"}
    return {"files": "rows.jsonl", "fields": fields, "corpus": CORPUS}


def nemo(folder: Path) -> dict[str, Any]:
    data = [
        {
            "question_id": name,
            "question": QUERIES[name],
            "corpus_id": "c",
            "pos_doc": [{"id": one} for one in RIGHT[name]],
            "neg_doc": [{"id": one} for one in WRONG[name]],
        }
        for name in QUERIES
    ]
    (folder / "train.json").write_text(json.dumps({"corpus": [{"path": "corpus"}], "data": data}))
    fields = {"id": "question_id", "query": "question", "positive": "pos_doc.id", "negatives": "neg_doc.id"}
    return {"files": "train.json", "records": "data", "fields": fields, "corpus": CORPUS}


def flat(folder: Path) -> dict[str, Any]:
    columns = {"query": list(QUERIES.values()), "passage": [RIGHT[name][0] for name in QUERIES]}
    columns |= {f"negative_{n + 1}": [WRONG[name][n] for name in QUERIES] for n in range(2)}
    pl.DataFrame(columns).write_parquet(folder / "rows.parquet")
    fields = {"query": "query", "positive": "passage", "negatives": "negative_*"}
    return {"files": "rows.parquet", "fields": fields, "corpus": CORPUS}


LAYOUTS = {"lighton": lighton, "tevatron": tevatron, "nemo": nemo, "flat": flat}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    check(*built(tmp_path, LAYOUTS[layout](tmp_path)))


@pytest.mark.parametrize("as_text", [False, True])
def test_ids_and_scores_of_lighton(tmp_path: Path, as_text: bool) -> None:
    pairs, passages = built(tmp_path, lighton(tmp_path, as_text))
    check(pairs, passages)
    assert pairs["id"].to_list() == ["s/q0", "s/q1", "s/q2"]
    assert pairs["positive_score"].to_list() == [9.5, 8.5, 7.5]
    assert pairs["negative_scores"].to_list() == [[3.0, 1.0], [2.0, 1.5], [2.5, 0.5]]


def test_a_column_says_which_documents_are_right(tmp_path: Path) -> None:
    """The first positive need not score highest, and another one need not be among the documents."""
    row = {"q": "which?", "docs": ["d0", "d1", "d2"], "scores": [0.2, 0.9, None], "right": ["d0", "d5"]}
    lines(tmp_path / "rows.jsonl", [row])
    fields = {"query": "q", "documents": "docs", "score": "scores", "positive": "right"}
    pairs, passages = built(tmp_path, {"files": "rows.jsonl", "fields": fields, "corpus": CORPUS})
    found = {side: [passages[pid] for pid in pairs[side][0]] for side in ("positives", "negatives")}
    assert found == {"positives": [TEXTS["d0"], TEXTS["d5"]], "negatives": [TEXTS["d1"], TEXTS["d2"]]}
    assert round(pairs["positive_score"][0], 6) == 0.2
    assert [score and round(score, 6) for score in pairs["negative_scores"][0]] == [0.9, None]


def test_numbers_are_ids_however_they_are_written(tmp_path: Path) -> None:
    pl.DataFrame({"query": ["which one?"], "right": [7.0]}).write_parquet(tmp_path / "rows.parquet")
    lines(tmp_path / "numbers.jsonl", [{"id": 7, "text": "the seventh passage"}])
    corpus = {"files": "numbers.jsonl", "fields": {"id": "id"}}
    _, passages = built(tmp_path, {"files": "rows.parquet", "fields": {"query": "query", "positive": "right"}, "corpus": corpus})
    assert passages == ["the seventh passage"]


def test_scores_written_as_texts(tmp_path: Path) -> None:
    """A pair with a score, and pairs with a teacher's scores: `"0.83"` is a number, and `"0,83"` is named as what it is."""
    fields = {"query": "q", "positive": "p", "score": "s"}
    source = {"files": "rows.jsonl", "fields": fields, "threshold": 0.5, "corpus": CORPUS}
    lines(tmp_path / "rows.jsonl", [{"q": f"{n}?", "p": f"d{n}", "s": score} for n, score in enumerate(["0.83", " .9 ", "0.2"])])
    pairs, _ = built(tmp_path, source)
    assert pairs["id"].to_list() == ["s/0", "s/1"]
    fields = {"query": "q", "positive": "p", "positive_score": "s", "negatives": "n", "negative_scores": "ns"}
    row = {"q": "which?", "p": "d0", "s": "0.83", "n": "[d1, 'd2']", "ns": "[0.5, null]"}
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    lines(tmp_path / "a" / "rows.jsonl", [row])
    pairs, passages = built(tmp_path / "a", {"files": "rows.jsonl", "fields": fields, "corpus": CORPUS})
    assert [passages[pid] for pid in pairs["negatives"][0]] == [TEXTS["d1"], TEXTS["d2"]]
    assert (round(pairs["positive_score"][0], 4), pairs["negative_scores"].to_list()) == (0.83, [[0.5, None]])
    lines(tmp_path / "b" / "rows.jsonl", [row | {"s": "0,83"}])
    with pytest.raises(UserError, match=r"column 's' holds '0,83' \(row 0\), which is not a number; write it as 0.83"):
        built(tmp_path / "b", {"files": "rows.jsonl", "fields": fields, "corpus": CORPUS})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            [{"id": "d0", "text": "a passage"}],
            "source 's' (corpus): 1 of 2 ids in right are not in it, such as d1; "
            "it is read from broken.jsonl, ids from its column 'id'",
        ),
        (
            [{"id": "d0", "text": "a passage"}, {"id": "d1", "text": "another"}, {"id": "d1", "text": "a third"}],
            "source 's' (corpus): 1 ids have two texts, such as 'd1'; give each text an id of its own",
        ),
        ([{"text": "a passage"}], "source 's' (corpus): no column 'id'; columns there are: text"),
        ([{"id": None, "text": "a passage"}, {"id": "d1", "text": "x"}], "source 's' (corpus): a row has no 'id': 'a passage'"),
    ],
)
def test_errors(tmp_path: Path, texts: list[dict[str, Any]], message: str) -> None:
    pl.DataFrame({"query": ["one?", "two?"], "right": ["d0", "d1"]}).write_parquet(tmp_path / "rows.parquet")
    lines(tmp_path / "broken.jsonl", texts)
    corpus = {"files": "broken.jsonl", "fields": {"id": "id"}}
    with pytest.raises(UserError) as raised:
        built(tmp_path, {"files": "rows.parquet", "fields": {"query": "query", "positive": "right"}, "corpus": corpus})
    assert message in str(raised.value)
