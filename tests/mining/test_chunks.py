"""Documents cut into chunks: what a chunk is, whose positives and negatives it can be, and what is wrong with a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mine import run

from curation.build.build import build as curate
from curation.core import tables
from curation.core.errors import UserError
from curation.recipe.manifest import load_manifest
from curation.recipe.source import Chunk
from curation.shape.chunks import TOKEN, chunked
from curation.share.verify import problems

SEARCH = {
    "model": "fake",
    "corpus": "all",
    "negatives": 6,
    "range_min": 0,
    "max_score": None,
    "relative_margin": None,
    "shortage": "keep",
}
PLACES = ("harbour", "mountain", "library", "market", "orchard")


def document(place: str) -> str:
    """Return a document of about 60 tokens; all documents are about the same things."""
    return " ".join(f"Sentence {n} of the visitors' guide describes the {place} in detail." for n in range(4))


def tokens(text: str) -> int:
    return len(TOKEN.findall(text))


@given(
    st.lists(st.sampled_from(["a", "river", "straightforwardness", "3.14", "京都", "!", "a long run"]), max_size=60),
    st.integers(8, 40),
    st.integers(0, 7),
)
@settings(max_examples=150, deadline=None)
def test_chunks_cover_a_text_in_order_and_are_short(words: list[str], most: int, overlap: int) -> None:
    each = [
        "/".join(f"{30 * n + k:04}" for k in range(30)) if word == "a long run" else f"{n}{word}{n}"
        for n, word in enumerate(words)
    ]
    text = "\n".join(each)  # no piece of it occurs twice
    (found,) = (
        chunked(pl.DataFrame({"id": ["d"], "text": [text]}), Chunk(tokens=most, overlap=overlap))
        .group_by("id")
        .agg("text")["text"]
    )
    chunks = found.to_list()
    if tokens(text) <= most:
        assert chunks == [text]
        return
    start = end = -1
    for chunk in chunks:
        assert tokens(chunk) <= most
        start = text.index(chunk, start + 1)
        if end >= 0:
            assert start == end or tokens(text[start:end]) <= overlap
            assert not text[end:start].strip()
        end = start + len(chunk)
    assert not text[end:].strip()


def build_of(
    folder: Path, keys: dict[str, Any], rows: dict[str, list[dict[str, Any]]], mine: dict[str, Any] | None = None
) -> Path:
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    source = {"name": "s", "task": "retrieval", **keys}
    (folder / "m.yaml").write_text(yaml.safe_dump({"name": "b", "sources": [source], "mine": SEARCH | (mine or {})}))
    for error in curate(folder / "m.yaml", folder / "b").failed.values():
        raise error
    return folder / "b"


def texts_of(build: Path, stage: str) -> list[dict[str, Any]]:
    """Return the tuples of a stage with the texts of their passages."""
    texts = tables.read_table(build / "curated" / "s", "passages")["text"]
    rows = tables.read_table(build / stage / "s", "pairs").iter_rows(named=True)
    return [
        {"query": row["query"], **{side: [texts[pid] for pid in row[side]] for side in ("positives", "negatives")}}
        for row in rows
    ]


def test_all_chunks_of_a_relevant_document_are_positives(tmp_path: Path) -> None:
    rows = {
        "qrels": [{"q": str(n), "d": place, "s": 1} for n, place in enumerate(PLACES)] + [{"q": "0", "d": "market", "s": 0}],
        "queries": [{"_id": str(n), "text": f"what does the guide say of the {place}?"} for n, place in enumerate(PLACES)],
        "corpus": [{"_id": place, "text": document(place)} for place in (*PLACES, "tavern")],
    }
    keys = {
        "files": "qrels.jsonl",
        "fields": {"query_id": "q", "positive_id": "d", "score": "s"},
        "corpus": {"files": "corpus.jsonl", "chunk": {"tokens": 24, "overlap": 6}},
        "queries": {"files": "queries.jsonl"},
    }
    build = build_of(tmp_path, keys, rows)
    wanted = chunked(pl.DataFrame({"id": ["x"], "text": [document("harbour")]}), Chunk(tokens=24, overlap=6))["text"].to_list()
    assert len(wanted) == 4
    curated = texts_of(build, "curated")
    assert curated[0]["positives"] == wanted
    assert len(tables.read_table(build / "curated" / "s", "passages")) == 4 * 6
    run(build)
    for row, place in zip(texts_of(build, "mined"), PLACES, strict=True):
        assert len(row["negatives"]) == 6
        assert not any(place in text for text in row["negatives"])
    assert problems(build) == []


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("excluded", [True, False])
def test_negatives_are_of_other_documents_unless_asked(tmp_path: Path, excluded: bool, filled: bool) -> None:
    """A positive is a sentence about a document's page; the page itself, cut, is in the corpus. Also if drawn at random."""
    rows = {
        "pairs": [
            {"q": f"what does the guide say of the {place}?", "p": f"The {place} is described at length.", "d": place}
            for place in PLACES
        ],
        "pages": [{"id": place, "text": document(place)} for place in PLACES],
    }
    keys = {
        "files": "pairs.jsonl",
        "fields": {"query": "q", "positive": "p", "positive_id": "d"},
        "corpus": {"files": "pages.jsonl", "fields": {"id": "id", "text": "text"}, "chunk": {"tokens": 24}},
    }
    at_random = {"max_score": -1, "shortage": "random", "negatives": 16} if filled else {}
    build = build_of(tmp_path, keys, rows, at_random | ({} if excluded else {"exclude_document": False}))
    receipt = run(build)["s"]
    own = [any(place in text for text in row["negatives"]) for row, place in zip(texts_of(build, "mined"), PLACES, strict=True)]
    assert own == [not excluded] * 5
    if not filled:
        assert receipt["filters"].get("exclude_document", 0) == (5 * 4 if excluded else 0)
    else:
        assert receipt["filled"]["random"] > 5 * 10
    assert ("exclude_document" in receipt["settings"]) is not excluded  # the default is not written
    assert problems(build) == []


@pytest.mark.parametrize(
    ("pages", "chunk", "what"),
    [
        ([{"text": "a page without an id"}], {"tokens": 24}, "(corpus): no column 'id'"),
        (
            [{"id": "x", "text": document("x")}],
            {"tokens": 24},
            "1 ids in d are not in it, such as harbour; it is read from pages.jsonl, ids from its column 'id'",
        ),
        (
            [{"id": "harbour", "text": document("harbour")}],
            {"tokens": 8, "most": 3},
            "(corpus): its documents give more than 3 chunks of 8 tokens; raise `chunk: {most: ...}`, or `tokens`",
        ),
        ([], {"tokens": 8, "overlap": 8}, "'overlap: 8' must be below 'tokens: 8'"),
    ],
)
def test_what_is_wrong_with_a_corpus(tmp_path: Path, pages: list[dict[str, str]], chunk: dict[str, int], what: str) -> None:
    keys = {
        "files": "pairs.jsonl",
        "fields": {"query": "q", "positive": "p", "positive_id": "d"},
        "corpus": {"files": "pages.jsonl", "fields": {"id": "id", "text": "text"}, "chunk": chunk},
    }
    with pytest.raises(UserError) as raised:
        build_of(tmp_path, keys, {"pairs": [{"q": "where?", "p": "here", "d": "harbour"}], "pages": pages})
    assert what in str(raised.value)


def test_chunks_of_rows_that_name_texts_by_id_are_refused(tmp_path: Path) -> None:
    corpus = {"files": "c.jsonl", "fields": {"id": "id"}, "chunk": {"tokens": 24}}
    source = {
        "name": "s",
        "files": "x.jsonl",
        "task": "retrieval",
        "by_id": True,
        "fields": {"query": "q", "positive": "p"},
        "corpus": corpus,
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"name": "b", "sources": [source]}))
    with pytest.raises(UserError, match="'chunk' has no effect"):
        load_manifest(tmp_path / "m.yaml")
