"""Each key of a source has an effect where it is given, or is an error: never ignored in silence."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from curation.core.errors import SourceError
from curation.read.sources import table_rows
from curation.recipe.evaluation import EvalSet
from curation.recipe.source import Source, Table

FIELDS = {"query": "q", "positive": "a"}
ORIGINS = {
    "files": {"files": ["x.jsonl"]},
    "hub": {"path": "org/name"},
    "folder": {"path": "./folder"},
    "files of hub": {"path": "org/name", "files": ["x.jsonl"]},
    "files of folder": {"path": "./folder", "files": ["x.jsonl"]},
}
DATASET, FILES = {"hub", "folder"}, {"files", "files of hub", "files of folder"}
KEYS = {  # key: (a value, the origins for which it has a meaning)
    "config": ("en", DATASET),
    "split": ("train", DATASET),
    "revision": ("v1", {"hub", "files of hub", "folder", "files of folder"}),  # of a folder it is refused when it is read
    "member": ("a.jsonl", FILES),
    "reader": ("jsonl", FILES),
    "records": ("data", FILES),
    "encoding": ("latin-1", FILES),
    "delimiter": (";", FILES),
    "quoting": (True, FILES),
    "header": (["a"], FILES),
    "file_column": ("name", FILES),
    "max_unpacked": (1, FILES | DATASET),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("kind", [Source, EvalSet, Table])
def test_a_key_fits_where_the_rows_come_from(origin, key, kind):
    value, fits = KEYS[key]
    name = {"name": "s", "task": "retrieval"} if kind is Source else {}
    keys = {**name, **ORIGINS[origin], **({} if kind is Table else {"fields": FIELDS}), key: value}
    if origin in fits:
        assert getattr(kind.model_validate(keys), key) == ([value] if key == "member" else value)
    else:
        with pytest.raises(ValidationError, match=f"'{key}'|'revision' is of a dataset"):
            kind.model_validate(keys)


def test_split_and_config_beside_files():
    for key, value in (("split", "train"), ("config", "en")):
        with pytest.raises(ValidationError, match=f"'{key}' has no effect with 'files'; remove it"):
            Table.model_validate({"files": "*.jsonl", key: value})


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
@pytest.mark.parametrize(
    ("key", "value", "for_"),
    [
        ("delimiter", ";", {"csv", "tsv"}),
        ("quoting", False, {"csv", "tsv"}),
        ("encoding", "latin-1", {"csv", "tsv", "json", "jsonl"}),
        ("records", "x", {"json", "jsonl"}),
        ("header", ["a"], {"csv", "tsv", "json", "jsonl"}),
    ],
)
def test_a_key_fits_the_reader(tmp_path, ending, key, value, for_):
    (tmp_path / f"x.{ending}").write_bytes(b"\x00")
    said = ""
    try:
        list(table_rows(Table.model_validate({"files": f"x.{ending}", key: value}), tmp_path))
    except SourceError as error:
        said = str(error)
    assert (f"which does not use `{key}`; that is for" in said) == (ending not in for_)


QRELS = {
    "files": "q.tsv",
    "fields": {"query_id": "q", "positive_id": "d"},
    "corpus": {"files": "c.jsonl"},
    "queries": {"files": "t.jsonl"},
}
PAIRS = {"files": "x.jsonl", "fields": FIELDS}


@pytest.mark.parametrize("field", ["documents", "title", "id", "answer", "positive_score", "negative_scores"])
@pytest.mark.parametrize("base", [QRELS, PAIRS])
def test_a_column_that_an_evaluation_set_would_not_protect_is_refused(base, field):
    with pytest.raises(ValidationError, match=f"'{field}' has no effect in an evaluation set"):
        EvalSet.model_validate({**base, "fields": {**base["fields"], field: "x"}})


def test_a_threshold_of_an_evaluation_set_of_pairs_is_refused():
    with pytest.raises(ValidationError, match="'threshold' has no effect in an evaluation set of pairs"):
        EvalSet.model_validate({**PAIRS, "threshold": 2})
    assert EvalSet.model_validate({**QRELS, "threshold": 2}).threshold == 2


@pytest.mark.parametrize(
    ("base", "field"),
    [
        (QRELS, "query"),
        (QRELS, "positive"),
        (QRELS, "label"),
        (QRELS, "negatives"),
        (PAIRS, "query_id"),
        (PAIRS, "positive_id"),
        ({"files": "x.jsonl", "task": "classification", "fields": {"query": "q", "label": "l"}}, "score"),
    ],
)
def test_a_field_that_the_shape_does_not_use_is_refused(base, field):
    keys = {"name": "s", "task": "retrieval", **base}
    assert Source.model_validate(keys)
    with pytest.raises(ValidationError, match=f"'{field}' has no effect: |fit no known shape"):
        Source.model_validate({**keys, "fields": {**base["fields"], field: "x"}})
