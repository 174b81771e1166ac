"""Readers against real files (count, first, tenth and last record), against Python's own parsers, and against broken files."""

# ruff: noqa: RUF001  (tables of exact messages; Chinese punctuation)
from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curation.core.errors import SourceError
from curation.read.json_values import plain_objects
from curation.read.mapping import column_map
from curation.read.readers import ROW, Lost
from curation.read.sources import table_rows
from curation.recipe.source import Table

SQUAD = {"data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": []}]}]}


def read(base: Path, files: str, **keys) -> tuple[list[dict], list[Lost]]:
    """Return all rows of files as dicts, without their numbers, which must be whole; and what was lost."""
    batches = list(table_rows(Table(files=[files], **keys), base))
    lost = [one for batch in batches for one in batch.lost]
    rows = pl.concat([batch.frame for batch in batches], how="diagonal_relaxed")
    numbers = rows[ROW].to_list() + [one.row for one in lost]
    assert sorted(numbers) == list(range(len(numbers)))
    return rows.drop(ROW).to_dicts(), lost


def write(base: Path, name: str, content: str | bytes) -> Path:
    path = base / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


GOLDEN = [
    # 604 in the original; the copy lacks one
    ("cosqa/cosqa-dev.json", {}, 603, "doc", ("python check relation is symmetric", "get the last record in sql python", "zstring pad zero python")),
    ("indonli/train.jsonl", {}, 10_330, "hypothesis", ("Prediksi akhir wabah tidak disampaikan Jokowi.", "Iko mengaku senang dengan pengalamannya tersebut.", "Pacul berada di Kapubaten Tegal.")),
    ("ocnli/train.10k.json", {"reader": "jsonl"}, 10_000, "sentence2", ("全国政协委员无权提出建议", "这些措施旨在拉近两岸关系", "我现在在上学")),
    ("banking77/train.csv", {}, 10_003, "text", ("I am still waiting on my card?", "I ordered my card but it still isn't here", "Which countries are represented?")),
    ("stsb_multi_mt/stsb-en-train.csv", {"header": False}, 5_749, "column_2", ("An air plane is taking off.", "A person throws a cat on the ceiling.", "The Latest on Severe Weather: 1 Dead in Texas After Tornado")),
    ("hate_davidson/labeled_data.csv", {}, 24_783, "column_1", ("0", "9", "25296")),
    ("mrpc/msr_paraphrase_train.txt", {"reader": "tsv"}, 4_076, "#2 ID", ("702977", "1355592", "453448")),
    ("conjnli/adversarial_train_15k.tsv", {}, 15_000, "Hypothesis", ("He was born in Illinois.", "Vesnina was scheduled to partner with Wulsin, but Erakovic withdrew before the first round for personal reasons.", "The lists excluded game shows and variety shows, but included situation comedies and drama series.")),
    ("covid_qa/faq_200327.tsv", {"quoting": True}, 896, "question", ("Wie kann ich mich infizieren?", "Should I go on a cruise?", "A chi rivolgersi in caso di sintomatologia riferita a una possibile malattia COVID-19?")),
    ("clinc150_parquet/train-*.parquet", {}, 10_625, "text", ("what are the steps for setting up direct deposit for my paycheck", "i have a great western bank account i want direct deposits to go to", "what's the average battery life of an android phone")),
    ("squad_v2_cs224n/dev-v2.0.json", {"reader": "squad"}, 2_910, "answers", (["France"], ["9th century"], ["sthène"])),
    ("xquad/xquad.zh.json", {"reader": "squad"}, 1_190, "question", ("黑豹队的防守丢了多少分？", "本赛季哪个球员拦截次数最多？", "在计算物体面积时，压力项包括在什么里面？")),
]  # fmt: skip


@pytest.mark.shared_data
@pytest.mark.parametrize(("files", "keys", "count", "column", "golden"), GOLDEN, ids=[case[0] for case in GOLDEN])
def test_real_files(shared_data, files, keys, count, column, golden):
    rows, lost = read(shared_data, files, **keys)
    assert len(rows) == count
    assert tuple(rows[i][column] for i in (0, 9, -1)) == golden
    assert not [one for one in lost if one.bad]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("files", "keys", "count"),
    [
        ("banking77/test.csv", {}, 3_080),
        ("qnli/dev.tsv", {}, 5_463),
        ("paws_wiki/*.tsv", {"header": ["id", "a", "b", "label"]}, 16_000),
        ("amcd/*.tsv", {"quoting": True}, 29_023),
        ("stsb_multi_mt/*.csv", {"header": False}, 25_884),
        ("covid_qa/faq_covidbert.csv", {}, 213),
        ("covid_qa/200423_covidQA.json", {"reader": "squad"}, 1_380),
        ("cmrc2018/*.json", {"reader": "squad"}, 4_221),
        ("scitldr/*.jsonl", {}, 3_229),
        ("concode/dev.json", {"reader": "jsonl"}, 2_000),
        ("clinc150_parquet/*.parquet", {}, 19_225),
        ("indonli/*.jsonl", {}, 17_712),
        ("mrpc/*.txt", {"reader": "tsv"}, 5_801),
    ],
)
def test_counts_of_real_files(shared_data, files, keys, count):
    rows, lost = read(shared_data, files, **keys)
    assert (len(rows), lost) == (count, [])


@pytest.mark.shared_data
def test_values_of_real_files_keep_their_types(shared_data):
    rows, _ = read(shared_data, "scitldr/dev.jsonl")
    assert isinstance(rows[0]["source"], list)
    assert isinstance(rows[0]["source"][0], str)
    rows, _ = read(shared_data, "cosqa/cosqa-dev.json")
    assert rows[0]["label"] == "0"
    rows, _ = read(shared_data, "clinc150_parquet/train-*.parquet")
    assert rows[0]["intent"] == 108
    rows, _ = read(shared_data, "covid_qa/200423_covidQA.json", reader="squad")
    assert rows[0]["id"].isdigit()


@pytest.mark.shared_data
def test_unanswerable_questions_are_left_out_on_purpose(shared_data):
    rows, lost = read(shared_data, "squad_v2_cs224n/dev-v2.0.json", reader="squad")
    assert (len(rows), len(lost)) == (2_910, 3_168)
    assert {(one.reason, one.bad) for one in lost} == {("unanswerable", False)}
    assert lost[0].evidence == "squad_v2_cs224n/dev-v2.0.json: data[0].paragraphs[0].qas[5]"
    rows, lost = read(shared_data, "squad_v2_cs224n/test-v2.0.json", reader="squad")  # has no mark: all are kept
    assert (len(rows), lost, rows[0]["answers"], rows[0]["is_impossible"]) == (5_915, [], [], None)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("files", "keys", "message"),
    [
        ("mrpc/msr_paraphrase_train.txt", {"reader": "tsv", "quoting": True}, "mrpc/msr_paraphrase_train.txt:11: the quote that opens here is not closed properly; if quotes mean nothing in this file, say `quoting: false`"),
        ("qnli/dev.tsv", {"quoting": True}, "qnli/dev.tsv:660: the quote that opens here is not closed properly; if quotes mean nothing in this file, say `quoting: false`"),
        ("cosqa/cosqa-dev.json", {"reader": "jsonl"}, "cosqa/cosqa-dev.json:1: this is one JSON document, not JSON Lines; say `reader: json`"),
        ("trec6/TREC.train", {"reader": "tsv", "header": False}, "trec6/TREC.train:66: byte 0xf0 is not utf-8 text; declare the file's own encoding with `encoding:`"),
    ],
)  # fmt: skip
def test_traps_of_real_files_are_reported(shared_data, files, keys, message):
    with pytest.raises(SourceError) as caught:
        read(shared_data, files, **keys)
    assert str(caught.value) == message


@pytest.mark.shared_data
def test_latin_1_as_declared(shared_data):
    rows, _ = read(shared_data, "trec6/TREC.train", reader="tsv", header=["text"], encoding="latin-1")
    assert len(rows) == 5_452
    assert "ð" in rows[65]["text"]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["banking77/train.csv", "hate_davidson/labeled_data.csv", "covid_qa/faq_covidbert.csv"])
def test_csv_equals_the_csv_module(shared_data, name):
    with (shared_data / name).open(encoding="utf-8-sig", newline="") as file:
        header, *cells = csv.reader(file, strict=True)
    rows, _ = read(shared_data, name)
    assert [list(row.values()) for row in rows] == cells
    assert list(rows[0])[1:] == header[1:]


# --- text files ---


def test_a_byte_order_mark_is_skipped(tmp_path):
    write(tmp_path, "a.csv", "\ufeffq,a\n1,2\n")
    write(tmp_path, "a.jsonl", '\ufeff{"q": 1}\n')
    write(tmp_path, "a.json", '\ufeff[{"q": 1}]')
    write(tmp_path, "b.csv", "q,a\n1,ü\n".encode("utf-16"))
    assert read(tmp_path, "a.csv")[0] == [{"q": "1", "a": "2"}]
    assert read(tmp_path, "a.jsonl")[0] == read(tmp_path, "a.json")[0] == [{"q": "1"}]
    assert read(tmp_path, "b.csv", encoding="utf-16")[0] == [{"q": "1", "a": "ü"}]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_ends_and_blank_lines(tmp_path, ending):
    write(tmp_path, "a.tsv", ending.join(["q\ta", "1\t2", "", '"x\t', "\u2028\t\x0b\x85"]) + ending)
    assert read(tmp_path, "a.tsv")[0] == [{"q": "1", "a": "2"}, {"q": '"x', "a": ""}, {"q": "\u2028", "a": "\x0b\x85"}]
    write(tmp_path, "a.csv", ending.join(["q,a", "", "1,2", '"x', 'y",']))
    assert read(tmp_path, "a.csv")[0] == [{"q": "1", "a": "2"}, {"q": f"x{ending}y", "a": ""}]
    write(tmp_path, "a.jsonl", ending.join(["", '{"q": "a\u2028b"}', "  ", '{"a": null}']))
    assert read(tmp_path, "a.jsonl")[0] == [{"q": "a\u2028b", "a": None}, {"q": None, "a": None}]


def test_gz_is_peeled_off(tmp_path):
    contents = {"a.csv": "q\n1\n", "a.tsv": "q\n1\n", "a.jsonl": '{"q": "1"}', "a.json": '[{"q": "1"}]'}
    for name, content in contents.items():
        write(tmp_path, name + ".gz", gzip.compress(content.encode(), mtime=0))
        assert read(tmp_path, name + ".gz")[0] == [{"q": "1"}]


def test_header_delimiter_and_quoting_as_declared(tmp_path):
    write(tmp_path, "a.csv", "1;2\n'3';\"4;5\"\n")
    assert read(tmp_path, "a.csv", delimiter=";", header=False)[0][1] == {"column_1": "'3'", "column_2": "4;5"}
    assert read(tmp_path, "a.csv", delimiter=";", header=["a", "b"])[0][0] == {"a": "1", "b": "2"}
    write(tmp_path, "b.csv", 'a,,b\n"1,2,3\n')
    assert read(tmp_path, "b.csv", quoting=False)[0] == [{"a": '"1', "column_2": "2", "b": "3"}]
    write(tmp_path, "c.tsv", 'a\tb\n"1\n2"\t3\n')
    assert read(tmp_path, "c.tsv", quoting=True)[0] == [{"a": "1\n2", "b": "3"}]


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(',"\r\n\t ;\ufeff\0', max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=8), st.sampled_from([",", ";", "\t"]))
@example([["\0", "\0"]], ",")
def test_csv_is_read_back_as_written(tmp_path, rows, delimiter):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([["a", "b"], *rows])
    write(tmp_path, "a.csv", text.getvalue())
    got, lost = read(tmp_path, "a.csv", delimiter=delimiter)
    assert [list(row.values()) for row in got] == rows
    assert lost == []


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
records = st.dictionaries(texts.filter(lambda name: name != ROW), texts | st.none(), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(records, min_size=1, max_size=8), st.booleans())
def test_json_lines_are_read_back_as_written(tmp_path, written, escaped):
    write(tmp_path, "a.jsonl", "".join(json.dumps(record, ensure_ascii=escaped) + "\n" for record in written))
    got, lost = read(tmp_path, "a.jsonl")
    names = {name for record in written for name in record}
    assert got == [{name: record.get(name) for name in row} for record, row in zip(written, got, strict=True)]
    assert all(set(row) == names for row in got)
    assert lost == []


EVERY = column_map(Table(files=["x"]))
pieces = st.sampled_from(
    [
        "{}",
        '{"a": 1}',
        '{"a": null, "b": "x"}',
        '{"a": {}}',
        '{"a":',
        "1}",
        "[",
        "]",
        "{",
        "}",
        ",",
        "NaN",
        '"x"',
        " ",
        "\n",
        "\r\n",
        "\t",
    ]
)


@settings(max_examples=600)
@given(st.lists(st.lists(pieces, max_size=5).map("".join), max_size=6).map(lambda some: "\n".join(['{"a": 1, "b": "y"}', *some])))
def test_lines_parsed_at_once_are_what_they_are_one_by_one(text):
    lines = io.StringIO(text, newline="\n").readlines()
    got = plain_objects(text.encode(), EVERY)
    if got is not None:
        one_by_one = [json.loads(line, parse_int=str) for line in lines if not line.isspace()]
        assert got.to_dicts() == [{"a": None, "b": None} | one for one in one_by_one]


def test_brackets_without_end_are_refused_and_not_followed():
    for deep in ("[" * 200_000, '{"a":' * 200_000):
        assert plain_objects(f'{{"a": 1}}\n{{"a": {deep}}}\n'.encode(), EVERY) is None
        assert plain_objects(f'{{"a": {deep}}}\n'.encode(), EVERY) is None


def test_broken_lines_that_would_fit_together_are_each_lost(tmp_path):
    write(tmp_path, "a.jsonl", '{"a": [{}\n{"b": 1}]}\n{"a": 1},{"a": 2},{"a": 3}\n{"a": 4}\n')
    rows, lost = read(tmp_path, "a.jsonl")
    assert (rows, [one.row for one in lost]) == ([{"a": "4"}], [0, 1, 2])


def test_an_odd_row_in_a_later_block_is_reported_with_its_line(tmp_path):
    write(tmp_path, "a.csv", "n,t\n" + "".join(f'{n},"x\ny"\n\n' for n in range(30_000)) + "1\n2,z\n")
    rows, lost = read(tmp_path, "a.csv")
    assert [int(row["n"]) for row in rows] == [*range(30_000), 2]
    assert lost == [Lost(30_000, "wrong_number_of_fields", "a.csv:90002: 1 field, the header has 2", True)]


def test_columns_of_mixed_types_lose_nothing(tmp_path):
    rows = [
        {"i": 1, "f": 1, "m": 1, "b": True, "l": ["x"], "o": {"k": [1]}, "n": [[1]], "big": 2**200},
        {"i": None, "f": 1.5, "m": "x", "b": 2, "l": "y", "o": None, "n": [2], "big": 1},
        {"i": 2**63, "f": None, "m": 1.0, "b": False, "l": [1, None], "o": {"j": "é"}, "n": None, "big": None},
    ]
    write(tmp_path, "a.json", json.dumps(rows))
    got, lost = read(tmp_path, "a.json")
    assert lost == []
    assert [row["i"] for row in got] == ["1", None, str(2**63)]
    assert [row["f"] for row in got] == ["1", "1.5", None]
    assert [row["m"] for row in got] == ["1", "x", "1.0"]
    assert [row["b"] for row in got] == ["true", "2", "false"]
    assert [row["l"] for row in got] == [["x"], ["y"], ["1", None]]
    assert [row["o"] for row in got] == ['{"k": ["1"]}', None, '{"j": "é"}']
    assert [row["n"] for row in got] == [[["1"]], [["2"]], None]
    assert [row["big"] for row in got] == [str(2**200), "1", None]


def test_batches_are_numbered_through(tmp_path):
    write(tmp_path, "a.jsonl", "".join(f'{{"n": {n}}}\n' if n % 1000 else "broken\n" for n in range(60_000)))
    write(tmp_path, "b.csv", "n\n" + "".join(f"{n}\n" for n in range(45_000)))
    pl.DataFrame({"n": range(60_000)}).write_parquet(tmp_path / "c.parquet", row_group_size=25_000)
    for name, total in (("a.jsonl", 60_000), ("b.csv", 45_000), ("c.parquet", 60_000)):
        batches = list(table_rows(Table(files=[name]), tmp_path))
        assert len(batches) > 1
        assert max(len(batch.frame) + len(batch.lost) for batch in batches) <= 50_000
        assert sum(len(batch.frame) + len(batch.lost) for batch in batches) == total
        for batch in batches:
            assert (batch.frame[ROW] == batch.frame["n"].cast(pl.UInt64)).all()
            assert batch.frame[ROW].dtype == pl.UInt64


# --- bad rows ---


@pytest.mark.parametrize(
    ("name", "content", "lost"),
    [
        ("a.csv", "a,b\n1,2\n1\n1,2,3\n3,4\n", [(1, "wrong_number_of_fields", "a.csv:3: 1 field, the header has 2"), (2, "wrong_number_of_fields", "a.csv:4: 3 fields, the header has 2")]),
        ("a.csv", 'a,b\n1,2\n"x"y,2\n3,4\n', [(1, "bad_quotes", "a.csv:3: ',' expected after '\"'")]),
        ("a.tsv", "a\tb\n1\t2\n\n1\n3\t4\n", [(1, "wrong_number_of_fields", "a.tsv:4: 1 field, the header has 2")]),
        ("a.jsonl", '{"a": 1}\n{"a": \n[1]\n{"a": "\\ud800"}\n{"a": 2}\n', [(1, "bad_json", "a.jsonl:2: Expecting value at column 8"), (2, "not_an_object", "a.jsonl:3: a list, not an object"), (3, "bad_json", "a.jsonl:4: half of a surrogate pair")]),
        ("a.jsonl", '{"a": 1}\n{"a": 1} {"a": 2}\n' + "[" * 200_000 + '\n{"a": 2}', [(1, "bad_json", "a.jsonl:2: Extra data at column 10"), (2, "bad_json", "a.jsonl:3: maximum recursion depth exceeded while decoding a JSON array from a unicode string")]),
        ("a.json", '[{"a": 1}, 3, null, "x", {"a": "\\uD800"}, {"a": 2}]', [(1, "not_an_object", "a.json: item 1: a number, not an object"), (2, "not_an_object", "a.json: item 2: null, not an object"), (3, "not_an_object", "a.json: item 3: text, not an object"), (4, "bad_json", "a.json: item 4: half of a surrogate pair")]),
    ],
)  # fmt: skip
def test_a_bad_row_is_left_out_and_reported(tmp_path, name, content, lost):
    write(tmp_path, name, content)
    got, gone = read(tmp_path, name)
    assert len(got) == 2
    assert gone == [Lost(*one, True) for one in lost]


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    write(tmp_path, "a.jsonl", '{"a": "\\ud83d\\ude00"}\n')
    assert read(tmp_path, "a.jsonl") == ([{"a": "😀"}], [])


def test_a_header_list_or_the_first_row_sets_the_width(tmp_path):
    write(tmp_path, "a.csv", "1,2\n1\n")
    assert read(tmp_path, "a.csv", header=False)[1][0].evidence == "a.csv:2: 1 field, the first row has 2"
    assert read(tmp_path, "a.csv", header=["a", "b"])[1][0].evidence == "a.csv:2: 1 field, `header` has 2"


def test_squad_rows(tmp_path):
    question = {"id": 7, "question": "Q?", "answers": [{"text": "b"}, {"text": "a"}, {"text": "b"}]}
    SQUAD["data"][0]["paragraphs"][0]["qas"] = [question, {"id": 8}, "x", {**question, "is_impossible": True}]
    write(tmp_path, "a.json", json.dumps(SQUAD))
    got, lost = read(tmp_path, "a.json", reader="squad")
    assert got == [{"id": "7", "title": "T", "question": "Q?", "context": "C.", "answers": ["b", "a"], "is_impossible": None}]
    assert lost == [
        Lost(1, "bad_question", "a.json: data[0].paragraphs[0].qas[1]: no 'question'", True),
        Lost(2, "bad_question", "a.json: data[0].paragraphs[0].qas[2]: not SQuAD", True),
        Lost(3, "unanswerable", "a.json: data[0].paragraphs[0].qas[3]", False),
    ]


# --- bad files ---

NO_QUOTES = "if quotes mean nothing in this file, say `quoting: false`"
WHOLE_GZ = gzip.compress(b"a,b\n" + b"1,2\n" * 1000, mtime=0)
BAD_FILES = [
    ("a.csv", "", {}, "a.csv: is empty"),
    ("a.tsv", "\n\n", {}, "a.tsv: is empty"),
    ("a.json", " ", {}, "a.json: is empty"),
    ("a.jsonl", "\n", {}, "a.jsonl: is empty"),
    ("a.parquet", "", {}, "a.parquet: is empty"),
    ("a.csv", "a,b\n", {}, "a.csv: holds no rows"),
    ("a.txt", "x", {}, "a.txt: no reader for the ending '.txt'; set `reader:` to `lines` (a label and a text per line, or the groups of `pattern`), `aligned` (line i of several files makes one row), `folders` (each file is a text), or to the format that it holds, such as `tsv`"),
    ("a", "x", {}, "a: has no ending that shows its format; set `reader:` to one of json, jsonl, csv, tsv, parquet, arrow, squad, xml, aligned, lines, folders, beir, embedding-training-data, flagembedding, tevatron"),
    ("a.csv", b"a,b\n1,\xe9\n", {}, "a.csv:2: byte 0xe9 is not utf-8 text; declare the file's own encoding, perhaps `encoding: latin-1`"),
    ("a.jsonl", b'{"a": 1}\n' * 99_999 + b"\xff", {}, "a.jsonl:100000: byte 0xff is not utf-8 text; declare the file's own encoding with `encoding:`"),
    ("a.csv", "a,b\n1,2\n".encode("utf-16"), {}, "a.csv: is utf-16 text, not utf-8; say `encoding: utf-16`"),
    ("a.csv", "a\n1\n", {"encoding": "latin-99"}, "a.csv: 'latin-99' is not a text encoding; such as utf-8, utf-16, latin-1, cp1252"),
    ("a.csv", "a\n1\n", {"encoding": "hex"}, "a.csv: 'hex' is not a text encoding; such as utf-8, utf-16, latin-1, cp1252"),
    ("a.csv", 'a,b\n1,2\n"x\ny",2\n3,"4\n5,6\n', {}, f"a.csv:5: the quote that opens here is not closed properly; {NO_QUOTES}"),
    ("a.csv", 'a,b\n1,"x\n2,"y"\n', {}, f"a.csv:2: the quote that opens here is not closed properly; {NO_QUOTES}"),
    ("a.csv", 'a,b\n"1\n2",3,4\n', {}, f"a.csv:2: a row of 2 lines begins here, with 3 fields, the header has 2; {NO_QUOTES}"),
    ("a.csv", 'a,b\n1,2\n"' + "x,y\n" * 1_100_000, {}, f"a.csv:3: the quote that opens here is not closed properly; {NO_QUOTES}"),
    ("a.csv", 'a;b\nx;"1, ""2"""\n"3\n4";5\n', {}, f"a.csv:3: the quote that opens here is not closed properly; perhaps `delimiter: \";\"`; {NO_QUOTES}"),
    ("a.csv", "sep=;\na;b\n1;2\n", {}, 'a.csv:1: names the delimiter for Excel; delete this line, and say `delimiter: ";"`'),
    ("a.csv", "sep=;\na;b\n1;2\n", {"delimiter": ";"}, 'a.csv:1: names the delimiter for Excel; delete this line, and say `delimiter: ";"`'),
    ("a.csv", 'a,b\r"1\n2",3\r', {}, "a.csv: its rows end with CR alone, as in Excel's 'CSV (Macintosh)'; save it as 'CSV UTF-8'"),
    ("a.csv", '"a";"b"\n1;2\n', {}, f"a.csv:1: the first row cannot be read (',' expected after '\"', perhaps `delimiter: \";\"`); {NO_QUOTES}"),
    ("a.csv", "<!DOCTYPE html>\n<html></html>\n", {}, "a.csv:1: is a web page, not a table; fetch the file itself, not the page about it"),
    ("a.csv", '"a"x,b\n1,2\n', {}, f"a.csv:1: the first row cannot be read (',' expected after '\"'); {NO_QUOTES}"),
    ("a.csv", "a,b,a\n1,2,3\n", {}, "a.csv:1: two columns are named 'a'; name them all: `header: [...]`"),
    ("a.csv.gz", WHOLE_GZ[:-12], {}, "a.csv.gz: the packed data are cut off; fetch the file again"),
    ("a.csv.gz", b"a,b\n1,2\n", {}, "a.csv.gz: cannot be unpacked (Not a gzipped file (b'a,')); fetch the file again"),
    ("a.csv.gz", WHOLE_GZ[:-8] + b"xxxx" + WHOLE_GZ[-4:], {}, None),
    ("a.json", '[{"a": 1}]\n[{"a": 2}]\n', {}, "a.json:2: a second JSON value begins here: this is JSON Lines; say `reader: jsonl`"),
    ("a.json", '{"a": 1}\n{"a": 2\n{"a": 3}', {}, "a.json:3: not readable as JSON (Expecting ',' delimiter); where lines may be broken, say `reader: jsonl`, which leaves them out"),
    ("a.json", '{"a": 1}', {}, "a.json: holds one object, not a list of objects; `records: data/items` would lead to a list, `records: '*'` takes each value; or say `reader: squad` or `jsonl`"),
    ("a.json", '[{"a": 1},\n {"a": ', {}, "a.json:2: not readable as JSON (Expecting value); is the file cut off?"),
    ("a.jsonl", '[\n{"a": 1}\n]', {}, "a.jsonl:1: this is one JSON document, not JSON Lines; say `reader: json`"),
    ("a.jsonl", '[{"a": 1}, {"a": 2}]', {}, "a.jsonl:1: this is one JSON document, not JSON Lines; say `reader: json`"),
    ("a.jsonl", '\n{\n "a": 1}', {}, "a.jsonl:2: this is one JSON document, not JSON Lines; say `reader: json`"),
    ("a.json", "[]", {"reader": "squad"}, "a.json: is not SQuAD JSON: no list 'data'; say `reader: json` for a list of objects"),
    ("a.parquet", "no parquet at all", {}, "a.parquet: not readable as parquet (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.); fetch the file again, or say the right `reader:`"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "keys", "message"), BAD_FILES)
def test_a_bad_file_is_reported_in_one_line(tmp_path, name, content, keys, message):
    write(tmp_path, name, content)
    with pytest.raises(SourceError) as caught:
        read(tmp_path, name, **keys)
    if message:
        assert str(caught.value) == message
    else:  # the checksums in the message depend on the zlib in use
        assert str(caught.value).startswith("a.csv.gz: cannot be unpacked (CRC check failed")


def test_a_truncated_parquet_file(tmp_path):
    pl.DataFrame({"a": range(1000)}).write_parquet(tmp_path / "whole.parquet")
    write(tmp_path, "a.parquet", (tmp_path / "whole.parquet").read_bytes()[:-100])
    with pytest.raises(
        SourceError, match=r"^a\.parquet: not readable as parquet \(.*\); fetch the file again, or say the right `reader:`$"
    ):
        read(tmp_path, "a.parquet")
