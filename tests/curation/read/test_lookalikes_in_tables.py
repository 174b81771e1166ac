"""Quotes in a tsv, the header among the rows, lists written as text: read rightly or reported, never silently taken for texts."""

from __future__ import annotations

import csv
import io
import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.core.errors import SourceError
from curation.read import blocks
from curation.read.sources import table_rows
from curation.recipe.source import Source, Table
from tests.curation.read.broken import build_all, build_one

ASK = "say `quoting: true` to read them as csv does, or `quoting: false` to keep them"
IN_QUOTES = {
    "all cells": '"what is x"\t"x is a letter"\n"what is y"\t"y is one too"\n',
    "one column": 'what is x\t"x is a letter"\nwhat is y\t"y is one too"\n',
    "doubled within": 'what is x\t"x is ""a"" letter"\nwhat is y\ty is one too\n',
    "an empty one too": 'what is x\t"x is a letter"\nwhat is y\t""\nwhat is z\t"z"\n',
}
OVER_LINES = {
    "last cell": 'what is x\t"x is\na letter"\nwhat is y\ty is one too\n',
    "last cell, three lines": 'what is y\ty is one too\nwhat is x\t"x is\na\nletter"\n',
    "last cell, a blank line": 'what is y\ty is one too\nwhat is x\t"x is\n\na letter"\n',
    "first cell": '"what\nis x"\tx is a letter\nwhat is y\ty is one too\n',
    "a tab": 'what is x\t"x is\ta letter"\nwhat is y\ty is one too\n',
}
TEXT = {  # quotes that are the texts' own
    "at both ends of one": 'what is x\t"x is a letter"\nwhat is y\ty is one too\n',
    "at the beginning": 'what is x\t"x" is a letter\nwhat is y\t"y is one too\n',
    "within": 'what is x\tx is "a" letter\nwhat is y\ty is ""one"" too\n',
    "at both ends, and within": '"what is "x"?"\tx is a letter\n"what is y"\ty is one too\n',
    "one row": '"what is x"\t"x is a letter"\n',
}
ROWS = "a plain question\ta plain answer\n" * 150  # of which one row is less than `max_bad`


@pytest.mark.parametrize("header", ["q\ta\n", ""])
def test_a_tsv_in_quotes_asks_what_they_mean(tmp_path, header):
    keys = "" if header else ", header: [q, a]"
    files = {f"{n}.tsv": header + rows for n, rows in enumerate((IN_QUOTES | OVER_LINES).values())}
    done = build_all(tmp_path, files, [f"files: {name}, max_bad: 0.5{keys}" for name in files])
    for kind, name, one in zip(IN_QUOTES | OVER_LINES, files, done, strict=True):
        assert one.error.startswith(f"{name}: its cells are in quotes" if kind in IN_QUOTES else f"{name}:"), kind
        assert one.error.endswith(ASK)


def test_a_tsv_in_quotes_asks_too_if_only_its_first_rows_are_read(tmp_path):
    files = {"a.tsv": "q\ta\n" + IN_QUOTES["all cells"] * 40, "b.tsv": "q\ta\n" + TEXT["within"] * 40}
    quoted, plain = build_all(tmp_path, files, [f"files: {name}, sample: first, limit: 3, max_bad: 0.5" for name in files])
    assert (quoted.error, plain.error) == (f"a.tsv: its cells are in quotes; {ASK}", "")


def test_a_cell_over_two_lines_among_many_rows(tmp_path):
    files = {f"{n}.tsv": "q\ta\n" + ROWS + rows for n, rows in enumerate(OVER_LINES.values())}
    for one in build_all(tmp_path, files, [f"files: {name}" for name in files]):
        assert "a cell in quotes holds a line end or a tab" in one.error
        assert ":15" in one.error


def test_quotes_that_are_the_texts_own_stay(tmp_path):
    files = {f"{n}.tsv": "q\ta\n" + rows for n, rows in enumerate(TEXT.values())}
    done = build_all(tmp_path, files, [f"files: {name}" for name in files])
    wanted = [[(q, [a]) for q, a in (line.split("\t") for line in rows.splitlines())] for rows in TEXT.values()]
    assert [(one.error, one.pairs) for one in done] == [("", pairs) for pairs in wanted]


def test_quoting_that_is_said_is_taken(tmp_path):
    files = {f"{n}.tsv": "q\ta\n" + rows for n, rows in enumerate((IN_QUOTES | OVER_LINES).values())}
    done = build_all(tmp_path, files, [f"files: {name}, quoting: yes, max_bad: 0.5" for name in files])
    assert done[0].pairs == [("what is x", ["x is a letter"]), ("what is y", ["y is one too"])]
    assert done[2].pairs[0] == ("what is x", ['x is "a" letter'])
    assert done[4].pairs[0] == ("what is x", ["x is\na letter"])
    assert [one.error for one in done] == [""] * len(done)


def test_a_header_in_quotes(tmp_path):
    assert (
        build_one(tmp_path, {"x.tsv": '"q"\t"a"\n"what is x"\t"x"\n'}, "files: x.tsv").error
        == f"x.tsv:1: its header is in quotes; {ASK}"
    )


CELLS = st.text("ab \"'", min_size=1, max_size=5).filter(str.strip)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=2, max_size=6))
def test_a_tsv_that_csv_wrote_is_reported_or_says_the_same(tmp_path, rows):
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("q", "a"), *rows])
    (tmp_path / "x.tsv").write_text(text.getvalue())
    with pytest.raises(SourceError, match="in quotes"):
        list(table_rows(Table(files=["x.tsv"]), tmp_path))
    found = [
        row for batch in table_rows(Table(files=["x.tsv"], quoting=True), tmp_path) for row in batch.frame.select("q", "a").rows()
    ]
    assert found == rows


@pytest.mark.parametrize("size", [1 << 22, 40])
def test_a_header_among_the_rows_is_left_out_and_counted(tmp_path, monkeypatch, size):
    monkeypatch.setattr(blocks, "BLOCK", size)
    files = {
        "a.csv": 'q,a\nwhat is x,x\nq,a\n"what is y","y"\nq,b\n',
        "b.csv": '"q","a"\nwhat is x,x\n"q", a \nwhat is y,y\nq,b\n',
        "c.tsv": "q\ta\nwhat is x\tx\nq\ta\nwhat is y\ty\nq\tb\n",
        "d.csv": "q,a\nwhat is x,x\nwhat is y,y\nq,b\n",  # with `header:`, as if it had none
        "e.csv": "q,a,\nwhat is x,x,1\nq,a,\nq,a,column_3\nwhat is y,y,1\nq,b,2\n",
    }
    keys = {"d.csv": ", header: [q, a]", "e.csv": ", header: yes"}
    sources = [f"files: {name}, filters: {{min_chars: 1}}{keys.get(name, '')}" for name in files]
    done = build_all(tmp_path, files, sources)
    for name, one in zip(files, done, strict=True):
        if name == "e.csv":
            continue
        assert one.pairs == [("what is x", ["x"]), ("what is y", ["y"]), ("q", ["b"])], name
        assert one.receipt["rows_dropped"] == {"repeated_header": 1}


LISTS = [
    "['a', 'b']",
    '["a", "b"]',
    "['a']",
    "[]",
    "[{'text': 'a'}]",
    '[["a"], ["b"]]',
    "('a', 'b')",
    " ['it''s'] ",
    "['a' 'b']",
    '[null, "a"]',
]
NO_LISTS = [
    "[1]",
    "[1, 2]",
    "[sic] he said",
    "['a', b']",
    "['a'] and more",
    "(see above)",
    '("a") is it',
    "{'a': 1}",
    "['a', 'b'",
]


@pytest.mark.parametrize(
    "field", ["positive: a", "positive: x, negatives: a", "positive: x, negatives: 'a*'", "positive: x, answer: a"]
)
def test_a_list_written_as_text_is_no_text(tmp_path, field):
    files = {}
    for number, cell in enumerate(LISTS + NO_LISTS):
        text = io.StringIO()
        csv.writer(text).writerows([("q", "a", "x"), ("what is x", cell, "an answer"), ("what is y", "plain", "another answer")])
        files[f"{number}.csv"] = text.getvalue()
    fields = f"fields: {{query: q, {field}}}"
    done = build_all(tmp_path, files, [f"files: {name}, {fields}" for name in files])
    for cell, one in zip(LISTS + NO_LISTS, done, strict=True):
        if cell in LISTS:
            assert "(list_as_text 1), and 'max_bad' allows 1.0%; first: " in one.error, cell
            assert "column 'a' holds a list as text" in one.error
        else:
            assert one.error == "", cell


def test_a_list_written_as_text_may_be_kept(tmp_path):
    done = build_one(tmp_path, {"x.csv": "q,a\nwhat is x,\"['a', 'b']\"\n"}, "files: x.csv, join: {a: ''}")
    assert done.pairs == [("what is x", ["['a', 'b']"])]


def test_lists_in_the_texts_of_queries_and_labels_are_texts(tmp_path):
    rows = "q,label\n\"['a', 'b']\",code\nwords,text\n"
    done = build_one(tmp_path, {"x.csv": rows}, "files: x.csv, task: classification, fields: {query: q, label: label}")
    assert done.error == ""


def test_every_key_of_a_source_may_stay_as_it_was():
    assert Source(name="s", files=["x.tsv"], task="retrieval", fields={"query": "q", "positive": "a"}).quoting is None


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "arrow", "xml", "tsv"])
def test_a_list_written_as_text_is_reported_in_every_format(tmp_path, ending):
    files, wanted = {}, []
    for number, cell in enumerate(["['a', 'b']", '[{"text": "a"}]', "[1] and [2]", "plain"]):
        row = {"q": "what is x", "a": cell}
        whole = io.BytesIO()
        if ending == "parquet":
            pl.DataFrame([row]).write_parquet(whole)
        elif ending == "arrow":
            pl.DataFrame([row]).write_ipc(whole)
        text = {
            "jsonl": json.dumps(row), "json": json.dumps([row]), "tsv": f"q\ta\n{row['q']}\t{cell}\n",
            "xml": f"<d><p><q>{row['q']}</q><a>{cell}</a></p></d>",
        }.get(ending, "").encode()  # fmt: skip
        files[f"{number}.{ending}"] = text or whole.getvalue()
        wanted.append(number < 2)
    keys = ", reader: xml, records: p" if ending == "xml" else ""
    done = build_all(tmp_path, files, [f"files: {name}{keys}, filters: {{min_chars: 1}}" for name in files])
    assert ["holds a list as text" in one.error for one in done] == wanted
    assert [one.pairs for one in done[2:]] == [[("what is x", ["[1] and [2]"])], [("what is x", ["plain"])]]
    kept = build_all(tmp_path, files, [f"files: 0.{ending}{keys}, join: {{a: ''}}"])
    assert kept[0].pairs == [("what is x", ["['a', 'b']"])]


@pytest.mark.parametrize("again", ["q,a", "Q,A", "\ufeffq,a", '"q"," a"', "\ufeff\ufeffQ ,a"])
def test_a_header_again_where_files_were_put_together(tmp_path, again):
    keys = "filters: {min_chars: 1}"
    done = build_one(tmp_path, {"x.csv": f"q,a\nwhat is x,x\n{again}\nwhat is y,y\n"}, f"files: x.csv, {keys}")
    assert done.pairs == [("what is x", ["x"]), ("what is y", ["y"])]
    assert done.receipt["rows_dropped"] == {"repeated_header": 1}
