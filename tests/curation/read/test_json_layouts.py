"""JSON records in every layout: a list, a line each, many lines each; and keys that stand twice."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.read import blocks, json_values
from curation.read.sources import table_rows
from curation.recipe.source import Table
from tests.curation.read.broken import build_all, build_one

PAIRS = [("what is { this }", ['an "answer"']), ("what is [ that", ["\\{\n"]), ("and é 😀", ["it is so"])]
ROWS = [{"q": query, "a": answers[0], "more": {"x": [1, {"y": "}"}]}} for query, answers in PAIRS]
LAYOUTS = {
    "list": json.dumps(ROWS),
    "list of many lines": json.dumps(ROWS, indent=2),
    "a line each": "\n".join(map(json.dumps, ROWS)),
    "many lines each": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "many lines each, blank lines between": "\n\n".join(json.dumps(row, indent="\t") for row in ROWS) + "\n\n",
    "many lines each, CRLF": "\r\n".join(json.dumps(row, indent=2).replace("\n", "\r\n") for row in ROWS),
    "nothing between": "".join(json.dumps(row, indent=2) for row in ROWS),
    "nothing between, on one line": "".join(json.dumps(row) for row in ROWS),
}
BY_JSONL = [name for name in LAYOUTS if name.startswith(("a line", "many"))]


def test_records_in_every_layout(tmp_path):
    files = {f"{n}.{ending}": LAYOUTS[name] for n, name in enumerate(LAYOUTS) for ending in ("json", "jsonl")}
    names = [f"{n}.json" for n, _ in enumerate(LAYOUTS)] + [f"{n}.jsonl" for n, name in enumerate(LAYOUTS) if name in BY_JSONL]
    keys = "filters: {min_chars: 1}"
    assert [one.pairs for one in build_all(tmp_path, files, [f"files: {name}, {keys}" for name in names])] == [PAIRS] * len(names)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\{', min_size=1, max_size=3), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(["a", "b", "ü"]), VALUES, min_size=1), min_size=2, max_size=5)
DUMPS = {
    "list": lambda rows, indent: json.dumps(rows, indent=indent),
    "one after another": lambda rows, indent: "\n".join(json.dumps(row, indent=indent) for row in rows),
    "nothing between": lambda rows, indent: "".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows),
}


@pytest.mark.parametrize("layout", DUMPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=RECORDS, indent=st.sampled_from([None, 0, 3]), piece=st.integers(1, 40))
def test_values_come_out_whole_however_the_text_is_cut(monkeypatch, tmp_path, layout, rows, indent, piece):
    monkeypatch.setattr(json_values, "PIECE", piece)
    content = DUMPS[layout](rows, indent)
    parts = iter([content[at : at + piece] for at in range(0, len(content), piece)])
    text = json_values.Text(None, Table(files=["x"]), lambda _: next(parts, ""))
    found = list(json_values.items_of(text) if text.next_character() == "[" else json_values.values_of(text))
    assert [one.value for one in found] == json.loads(json.dumps(rows), parse_int=str)  # numbers as they are written
    assert [json.loads(one.text) for one in found] == rows
    if layout == "list" and indent is None:
        assert [one.line for one in found] == [1] * len(rows)


def test_lines_are_reported_where_a_record_of_many_lines_is_broken(tmp_path):
    good = json.dumps(ROWS[0], indent=2)  # 11 lines
    files = {"a.json": f'{good}\n{good}\n{{\n"q": 1,\n oops}}\n', "b.json": f"[{good},\n{good}\n{good}]", "c.json": f"[{good},"}
    said = [one.error for one in build_all(tmp_path, files, [f"files: {name}" for name in files])]
    lines = len(good.splitlines())
    assert said[0].startswith(f"a.json:{2 * lines + 3}: not readable as JSON (Expecting property name")
    assert said[1] == f"b.json:{2 * lines + 1}: not readable as JSON (Expecting ',' delimiter); is the file cut off?"
    assert said[2] == f"c.json:{lines}: not readable as JSON (Expecting value); is the file cut off?"


def test_one_object_on_many_lines_is_still_a_document(tmp_path):
    said = build_one(tmp_path, {"a.jsonl": json.dumps({"data": ROWS}, indent=1)}, "files: a.jsonl").error
    assert said == "a.jsonl:1: this is one JSON document, not JSON Lines; say `reader: json`"


TWICE = '{"q": "what is this", "q": "what is that", "a": "an answer"}'
SAME = '{"q": "what is this", "a": "an answer", "a": "an answer"}'
GOOD = '{"q": "what is that", "a": "another answer"}'


def test_a_key_that_stands_twice_is_reported(tmp_path):
    broken, key = TWICE, "q"
    files = {
        "a.jsonl": f"{GOOD}\n{broken}\n",
        "a.json": f"[{GOOD}, {broken}]",
        "b.json": f"{GOOD}\n{broken}",
        "c.json": f'{{"data": [{GOOD}, {broken}]}}',
        "d.jsonl": f'{{"data": [{GOOD}, {broken}]}}\n{{"data": [{GOOD}]}}',
        "e.jsonl": f'{{"query": "a", "pos": ["b"], {broken[1:]}\n',
    }
    keys = {"c.json": ", records: data", "d.jsonl": ", records: data", "e.jsonl": ", reader: flagembedding"}
    for one in build_all(tmp_path, files, [f"files: {name}{keys.get(name, '')}" for name in files]):
        assert f"the key '{key}' appears twice in an object, with different values" in one.error


def test_a_key_that_stands_twice_with_one_value_is_no_matter(tmp_path):
    files = {"a.jsonl": SAME, "a.json": f"[{SAME}]", "b.json": f'{{"data": [{SAME}]}}'}
    done = build_all(tmp_path, files, ["files: a.jsonl", "files: a.json", "files: b.json, records: data"])
    assert [one.pairs for one in done] == [[("what is this", ["an answer"])]] * 3


def test_lines_of_a_block_are_read_alike_whatever_its_size(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(LAYOUTS["many lines each"])
    wanted = [batch.frame["q"].to_list() for batch in table_rows(Table(files=["a.jsonl"]), tmp_path)]
    monkeypatch.setattr(blocks, "BLOCK", 200)
    assert [batch.frame["q"].to_list() for batch in table_rows(Table(files=["a.jsonl"]), tmp_path)] == wanted
