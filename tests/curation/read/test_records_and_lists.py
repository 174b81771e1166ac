"""Records and lists where texts belong: one answer, in every format that has them."""

from __future__ import annotations

import json

import pytest

from curation.core.errors import SourceError
from tests.curation.read.one_source import NESTED, built, shaped

ROW = {
    "q": "what is x",
    "pos": [{"title": "X", "text": "x is a letter"}],
    "ans": {"text": "a letter", "more": {"source": "a book"}},
    "lists": [["a", "b"], ["c"]],
    "deep": [{"parts": [{"line": "one"}, {"line": "two"}]}, {"parts": []}, {"parts": [{"line": "three"}]}],
    "sentences": [{"words": ["u", "v"]}, {"words": ["w"]}],
    "others": [{"body": "B", "stars": 1}],
    "n": ["m", None, "k"],
}
RECORDS = "column '{}' holds records (row 0), not texts; map one of their parts: {}"
LISTS = "column '{0}' holds lists of lists, not texts; `join: {{{0}: ' '}}` makes one text of each inner list"

CASES = [
    ({"positive": "pos"}, {}, ["X\nx is a letter"]),  # a passage, as Tevatron and MIRACL have it
    ({"positive": "pos.text"}, {}, ["x is a letter"]),
    ({"positive": "ans.text"}, {}, ["a letter"]),
    ({"positive": "ans.more.source"}, {}, ["a book"]),
    ({"positive": "deep.parts.line"}, {}, ["one", "two", "three"]),
    ({"positive": "others.body"}, {}, ["B"]),
    ({"positive": "others.stars"}, {}, ["1"]),
    ({"positive": "n"}, {}, ["m", "k"]),
    ({"positive": "n"}, {"join": {"n": "+"}}, ["m+k"]),
    ({"positive": "lists"}, {"join": {"lists": " "}}, ["a b", "c"]),
    ({"positive": "sentences.words"}, {"join": {"sentences.words": " "}}, ["u v", "w"]),
    ({"positive": "ans"}, {}, RECORDS.format("ans", "ans.text, ans.more.source")),
    ({"positive": "others"}, {}, RECORDS.format("others", "others.body, others.stars")),
    ({"positive": "ans.more"}, {}, RECORDS.format("ans.more", "ans.more.source")),
    ({"query": "ans", "positive": "q"}, {}, RECORDS.format("ans", "ans.text, ans.more.source")),
    ({"query": "pos.text", "positive": "q"}, {}, "column 'pos.text' holds lists, not text; map a column of texts, or `join` its lists"),
    ({"positive": "q", "title": "ans"}, {}, RECORDS.format("ans", "ans.text, ans.more.source")),
    ({"positive": "q", "negatives": ["n", "ans"]}, {}, RECORDS.format("ans", "ans.text, ans.more.source")),
    ({"positive": "q", "answer": "ans"}, {}, RECORDS.format("ans", "ans.text, ans.more.source")),
    ({"documents": "others", "label": "n"}, {}, RECORDS.format("others", "others.body, others.stars")),
    ({"positive": "lists"}, {}, LISTS.format("lists")),
    ({"positive": "sentences.words"}, {}, LISTS.format("sentences.words")),
    ({"positive": "ans.texts"}, {}, "no column 'ans.texts' (did you mean 'ans.text'?)"),
    ({"positive": "q.text"}, {}, "column 'q' holds 'what is x' (row 0), not a record with 'text'; map columns that are of one kind throughout"),
]  # fmt: skip


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize(("fields", "more", "wanted"), CASES)
def test_records_and_lists_are_the_same_in_every_format(form, fields, more, wanted, tmp_path):
    (tmp_path / f"a.{form}").write_bytes(NESTED[form]([ROW]))
    got = shaped(tmp_path, f"a.{form}", {"query": "q", **fields}, **more)
    if isinstance(wanted, str):
        assert isinstance(got, str)
        assert got.split(": ", 1)[1].startswith(wanted)
    else:
        assert got == {"s/0": ("what is x", wanted, [], None)}


@pytest.mark.parametrize("form", NESTED)
def test_a_record_in_a_corpus_or_among_its_queries(form, tmp_path):
    (tmp_path / "qrels.tsv").write_text("q\td\n1\ta\n")
    (tmp_path / f"corpus.{form}").write_bytes(NESTED[form]([{"_id": "a", "text": {"en": "an oak"}, "parts": [{"line": "x"}]}]))
    (tmp_path / f"queries.{form}").write_bytes(NESTED[form]([{"_id": "1", "text": {"en": "a tree"}}]))

    def with_text(text: str) -> object:
        tables = {part: {"files": f"{part}.{form}", "fields": {"text": text}} for part in ("corpus", "queries")}
        return shaped(tmp_path, "qrels.tsv", {"query_id": "q", "positive_id": "d"}, **tables)

    assert with_text("text.en") == {"s/1": ("a tree", ["an oak"], [], None)}
    assert with_text("text") == f"corpus.{form}: " + RECORDS.format("text", "text.en")


MIXED = [  # what is in `p` of the first row, and of the second; the positives of both, or what is wrong
    ("x", ["y", "z"], (["x"], ["y", "z"])),
    ("x", [], (["x"], None)),
    (["x"], None, (["x"], None)),
    ("x", {"text": "y"}, "column 'p' holds records (row {}), not texts; map one of their parts: p.text"),
    ({"text": "x"}, [{"text": "y"}], "column 'p' holds records (row {}), not texts; map one of their parts: p.text"),
    (["x"], [["y"]], "column 'p' holds lists of lists, not texts; `join: {{p: ' '}}` makes one text of each inner list"),
]


@pytest.mark.parametrize("apart", ["rows", "files", "blocks"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("one", "other", "wanted"), MIXED)
def test_what_is_a_text_in_some_rows_and_a_list_or_record_in_others(one, other, wanted, turned, apart, tmp_path, monkeypatch):
    rows = [{"q": "first", "p": one}, {"q": "second", "p": other}]
    lines = [json.dumps(row) + "\n" for row in (rows[::-1] if turned else rows)]
    if apart == "blocks":
        monkeypatch.setattr("curation.read.blocks.BLOCK", 40)
    for at, text in enumerate(lines if apart == "files" else ["".join(lines)]):
        (tmp_path / f"{at}.jsonl").write_text(text)
    got = shaped(tmp_path, "*.jsonl", {"query": "q", "positive": "p"})
    if isinstance(wanted, str):
        assert isinstance(got, str)
        assert any(got.split(": ", 1)[1] == wanted.format(row) for row in (0, 1)), got
    else:
        known = dict(zip(("first", "second"), wanted, strict=True))
        assert {query: positives for query, positives, _, _ in got.values()} == {q: p for q, p in known.items() if p}


def test_a_path_through_what_is_a_record_in_some_rows_only(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"q": "one", "p": {"text": "x"}}\n{"q": "two", "p": [{"text": "y"}, {"text": "z"}]}\n{"q": "three"}\n{"q": "four", "p": " "}\n'
    )
    got = built(tmp_path, "a.jsonl", {"query": "q", "positive": "p.text"}, max_bad=1)
    assert got == {"s/0": ("one", ["x"], [], None), "s/1": ("two", ["y", "z"], [], None)}
    (tmp_path / "b.jsonl").write_text('{"q": "five", "p": "plain"}\n')
    assert built(tmp_path, ["a.jsonl", "b.jsonl"], {"query": "q", "positive": "p.text"}, max_bad=1) == (
        "b.jsonl: column 'p' holds 'plain' (row 4), not a record with 'text'; map columns that are of one kind throughout"
    )


def test_columns_that_are_not_mapped_change_nothing(tmp_path, monkeypatch):
    """Whatever they hold, in whatever block, file or part; and a mapped one may be absent from any of these."""
    odd = [
        {"u": 1},
        {"u": "x"},
        {"u": [1]},
        {"u": {"a": [{"b": 1}]}},
        {"u": [[None]], "v": True},
        {},
        {"u": {"b": {"c": 1}}, "t": "Title"},
    ]
    rows = [{"q": f"query {at}", "p": f"passage {at}", **odd[at * 7 // 70]} for at in range(70)]
    wanted = {f"s/{at}": (f"Title\nquery {at}" if at >= 60 else f"query {at}", [f"passage {at}"], [], None) for at in range(70)}
    fields = {"query": "q", "positive": "p", "title": "t"}
    for form in ("jsonl", "json", "parquet"):
        for at in range(7):
            (tmp_path / f"{form}{at}.{form}").write_bytes(NESTED[form](rows[at * 10 : at * 10 + 10]))
        assert built(tmp_path, f"{form}?.{form}", fields) == wanted
    (tmp_path / "all.jsonl").write_bytes(NESTED["jsonl"](rows))
    monkeypatch.setattr("curation.read.blocks.BLOCK", 150)
    monkeypatch.setattr("curation.read.sources.BATCH", 3)
    assert built(tmp_path, "all.jsonl", fields) == wanted
    monkeypatch.setattr("curation.build.shape_stage.PORTION", 200)
    monkeypatch.setattr("curation.shape.shapes.to_tuples", None)  # shaped part by part, never whole
    assert built(tmp_path, "all.jsonl", fields) == wanted
    assert built(tmp_path, "all.jsonl", {**fields, "title": "tt"}).startswith("source 's': no column 'tt'")


def test_evaluation_sets_protect_every_text_in_lists_and_records(tmp_path):
    trees = ["an old oak by the river", "ashes burn well when green", "elms fell to a beetle", "yews guard churchyards", "figs"]
    rows = [{"q": f"{tree} is a line about what?", "p": f"It is about: {tree}, of course."} for tree in trees]
    (tmp_path / "a.jsonl").write_bytes(NESTED["jsonl"](rows))
    held = [
        {"q": {"text": rows[0]["q"]}, "d": [[rows[1]["p"]], [rows[2]["p"], "other"]]},
        {"q": {"text": "something else"}},  # without `d`
    ]
    for form in ("jsonl", "json", "parquet"):
        (tmp_path / f"test.{form}").write_bytes(NESTED[form](held))
        against = {"files": f"test.{form}", "fields": {"query": "q.text", "positive": "d"}}
        got = built(tmp_path, "a.jsonl", {"query": "q", "positive": "p"}, decontaminate={"against": [against]})
        assert set(got) == {"s/3", "s/4"}
        against["fields"] = {"query": "q"}
        with pytest.raises(
            SourceError, match=f"^test.{form}: column 'q' holds records .row 0., not texts; map one of .*: q.text$"
        ):
            built(tmp_path, "a.jsonl", {"query": "q", "positive": "p"}, decontaminate={"against": [against]})


def test_maps_of_parquet_are_reported(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    maps = pa.array([[("k", "v")]], type=pa.map_(pa.string(), pa.string()))
    pyarrow.parquet.write_table(pa.table({"q": ["what is x"], "p": maps, "u": maps}), tmp_path / "a.parquet")
    line = "a.parquet: column 'p' holds maps, not texts or records; write records, or a column of texts"
    for name in ("p", "p.k"):
        assert shaped(tmp_path, "a.parquet", {"query": "q", "positive": name}) == line
    assert shaped(tmp_path, "a.parquet", {"query": "q", "positive": "q"}) == {"s/0": ("what is x", ["what is x"], [], None)}


@pytest.mark.parametrize(("mark", "left_out"), [("0", False), ("1", True), ("false", False), ("true", True), ('"False"', False), ('"True"', True), ("null", False)])  # fmt: skip
def test_questions_that_squad_marks_as_impossible(mark, left_out, tmp_path):
    question = f'{{"id": 7, "question": "what is x", "answers": [{{"text": "a letter"}}], "is_impossible": {mark}}}'
    other = '{"id": 8, "question": "what is y", "answers": []}'
    (tmp_path / "a.json").write_text(f'{{"data": [{{"paragraphs": [{{"context": "x, y", "qas": [{question}, {other}]}}]}}]}}')
    fields = {"query": "question", "positive": "context", "id": "id"}
    got = built(tmp_path, "a.json", fields, reader="squad")
    assert list(got) == (["s/8"] if left_out else ["s/7", "s/8"])


def test_a_title_of_a_passage_that_is_no_text(tmp_path):
    line = {"query": "what is x", "positive_passages": [{"title": {"en": "X"}, "text": "a letter"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    line = shaped(tmp_path, "a.jsonl", {"query": "query", "positive": "positives"}, reader="tevatron")
    assert line.startswith("a.jsonl:1: 'positive_passages' is not a list of passages with a text")
