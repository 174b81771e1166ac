"""Of several positives of a query the one with the highest grade comes first, whatever the shape; it is what is trained on."""

from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.build.build import build
from curation.core import tables
from curation.core.tables import read_table
from curation.read.rows import ROW
from curation.recipe.source import Filters, Source
from curation.shape import filters
from curation.shape.merge import Merged
from curation.shape.numbered import numbered, spelled
from curation.shape.shapes import to_tuples

LOW, MIDDLE, HIGH, OTHER = "a fair answer", "a good answer", "the best answer", "another answer"


def written(folder, name, records):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def positives_of(folder, said):
    """Return query -> positives' texts, as curated, of a manifest with one source."""
    (folder / "m.yaml").write_text(f"name: one\nsources:\n  - {{name: one, task: retrieval, {said}}}\n")
    outcome = build(folder / "m.yaml", folder / "b")
    assert not outcome.failed
    texts = read_table(folder / "b/curated/one", "passages")["text"]
    pairs = read_table(folder / "b/curated/one", "pairs")
    return {row["query"]: [texts[pid] for pid in row["positives"]] for row in pairs.iter_rows(named=True)}


QRELS = "files: qrels.jsonl, fields: {query_id: q, positive_id: d, score: s}, corpus: {files: corpus.jsonl}, queries: {files: queries.jsonl}"


@pytest.mark.parametrize(
    ("judged", "wanted"),
    [
        ([("1", "a", 1), ("1", "b", 3), ("1", "c", 2)], [MIDDLE, HIGH, LOW]),
        ([("1", "a", 2), ("1", "b", 2), ("1", "c", 2)], [LOW, MIDDLE, HIGH]),  # equal grades: as in the file
        ([("1", "a", 0.5), ("1", "b", 1.5), ("1", "c", "3.0")], [HIGH, MIDDLE]),  # and threshold 1 as ever
        ([("1", "a", 1), ("1", "b", 2), ("1", "a", 3)], [LOW, MIDDLE]),  # judged twice: the higher one counts
        ([("1", "a", 1), ("2", "b", 3), ("2", "c", 2)], [MIDDLE, HIGH, LOW]),  # two ids of one query
    ],
)
def test_graded_qrels(judged, wanted, tmp_path):
    written(
        tmp_path, "corpus.jsonl", [{"_id": name, "text": text} for name, text in zip("abc", (LOW, MIDDLE, HIGH), strict=True)]
    )
    written(tmp_path, "queries.jsonl", [{"_id": name, "text": "what is asked"} for name in "12"])
    written(tmp_path, "qrels.jsonl", [{"q": query, "d": passage, "s": score} for query, passage, score in judged])
    assert positives_of(tmp_path, QRELS) == {"what is asked": wanted}


DOCUMENTS = [LOW, HIGH, OTHER, MIDDLE]
SHAPES = {
    "graded labels": ([{"q": "x is", "d": DOCUMENTS, "l": [1, 3, 0, 2]}], "query: q, documents: d, label: l", "", [HIGH, MIDDLE, LOW]),
    "scores with a threshold": (
        [{"q": "x is", "d": DOCUMENTS, "s": [0.6, 0.9, 0.1, 0.7]}], "query: q, documents: d, score: s", "threshold: 0.5", [HIGH, MIDDLE, LOW]
    ),
    "scores alone: the best is the positive": (
        [{"q": "x is", "d": DOCUMENTS, "s": [0.6, 0.9, 0.1, None]}], "query: q, documents: d, score: s", "", [HIGH]
    ),
    "scores alone, none known to the first, a blank best": (
        [{"q": "x is", "d": [" ", LOW, HIGH], "s": [1, None, 0.5]}], "query: q, documents: d, score: s", "", [HIGH]
    ),
    "equal scores": ([{"q": "x is", "d": DOCUMENTS, "s": [2, 2, 2, 2]}], "query: q, documents: d, score: s", "", [LOW]),
    "labels say which, scores which first": (
        [{"q": "x is", "d": DOCUMENTS, "l": [1, 1, 0, 1], "s": [0.2, 0.9, 0.99, 0.5]}],
        "query: q, documents: d, label: l, score: s", "", [HIGH, MIDDLE, LOW],
    ),
    "a teacher's scores of all": (
        [{"q": "x is", "p": [LOW, " ", HIGH, MIDDLE], "s": [0.1, 1, 0.9, 0.5]}], "query: q, positive: p, positive_score: s", "",
        [HIGH, MIDDLE, LOW],
    ),
    "a score of the first alone": (
        [{"q": "x is", "p": [LOW, HIGH], "s": 0.1}], "query: q, positive: p, positive_score: s", "", [LOW, HIGH]
    ),
    "scored pairs, a row each": (
        [{"q": "x is", "p": text, "s": score} for text, score in ((LOW, 3.1), (OTHER, 1), (HIGH, 5), (MIDDLE, 4))],
        "query: q, positive: p, score: s", "threshold: 3", [HIGH, MIDDLE, LOW],
    ),
    "lists of one query, a row each": (
        [{"q": "x is", "d": [LOW, OTHER], "l": [1, 0]}, {"q": "x is", "d": [MIDDLE, HIGH], "l": [2, 3]}],
        "query: q, documents: d, label: l", "", [HIGH, MIDDLE, LOW],
    ),
    "no grades: as in the file": (
        [{"q": "x is", "p": text} for text in (LOW, HIGH, MIDDLE)], "query: q, positive: p", "", [LOW, HIGH, MIDDLE]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_graded_shapes(name, suffix, tmp_path):
    records, fields, more, wanted = SHAPES[name]
    filler = [{**records[0], "q": "other"}]  # a build of one tuple alone says little
    records = [*records, *filler]
    if suffix == "parquet":
        pl.DataFrame(records, infer_schema_length=None, strict=False).write_parquet(tmp_path / "data.parquet")
    else:
        written(tmp_path, "data.jsonl", records)
    found = positives_of(tmp_path, f"files: data.{suffix}, fields: {{{fields}}}" + (f", {more}" if more else ""))
    assert found["x is"] == wanted


def test_scored_pairs_in_parts_and_both_ways(tmp_path, monkeypatch):
    records = [{"q": f"query {at % 7}", "p": f"passage {at} of it", "s": (at * 5) % 11} for at in range(60)]
    written(tmp_path, "data.jsonl", records)
    said = "files: data.jsonl, threshold: 1, both_ways: yes, fields: {query: q, positive: p, score: s}"
    whole = positives_of(tmp_path, said)
    monkeypatch.setattr("curation.build.shape_stage.PORTION", 400)
    monkeypatch.setattr("curation.read.blocks.BLOCK", 400)
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 25)
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 50)
    (tmp_path / "apart").mkdir()
    written(tmp_path, "apart/data.jsonl", records)
    assert positives_of(tmp_path / "apart", said) == whole
    for number in range(7):
        mine = [(-record["s"], record["p"]) for record in records if record["q"] == f"query {number}" and record["s"] >= 1]
        assert whole[f"query {number}"] == [text for _, text in sorted(mine, key=lambda one: one[0])]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(-2, 3))), max_size=4)),
        min_size=1, max_size=5,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_graded_lists_filtered_and_merged(lists):
    """Filters take some texts out, equal queries are merged: what is left is in order of its highest grade, then of the file."""
    rows = pl.DataFrame(
        {
            ROW: range(len(lists)),
            "q": [f"query {query}" for query, _ in lists],
            "p": [[f"{'short ' * (text > 1)}{text}" for text, _ in some] for _, some in lists],
            "s": [[grade for _, grade in some] for _, some in lists],
        },
        schema={ROW: pl.UInt64, "q": pl.String, "p": pl.List(pl.String), "s": pl.List(pl.Float64)},
    )
    source = Source.model_validate(
        {"name": "s", "files": "x", "task": "retrieval", "fields": {"query": "q", "positive": "p", "positive_score": "s"}}
    )
    made = to_tuples(source, rows, 1).tuples
    numbers, _, texts = numbered(made, pl.Series([], dtype=pl.String))
    left, _, _ = filters.apply(numbers, texts, Filters(min_chars=3), "s", "retrieval")  # takes out the texts 0 and 1
    merged = pl.concat(Merged(lambda: (left[at : at + 3] for at in range(0, max(1, len(left)), 3)), texts, "s").tuples())
    assert merged.columns == ["row", "id", "query", "positives", "negatives", "label"]
    merged = spelled(merged, texts)
    expected = {}
    for query in ("a", "b"):
        given_ = [one for name, some in lists if name == query for one in some if one[0] > 1]
        order = sorted(range(len(given_)), key=lambda at: (-(given_[at][1] if given_[at][1] is not None else -99), at))
        expected[f"query {query}"] = list(dict.fromkeys(f"short {given_[at][0]}" for at in order))
    found = dict(merged.select("query", "positives").iter_rows())
    assert found == {query: texts for query, texts in expected.items() if texts}
