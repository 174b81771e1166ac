"""Records deep in JSON: dicts of records, nested lists, lists of cells, JSON under other names; and Arrow IPC."""

from __future__ import annotations

import gzip
import io
import json

import polars as pl
import pytest

from curation.core.errors import SourceError
from curation.read.sources import table_rows
from curation.recipe.source import Table
from tests.curation.read.test_archives import complaint, zipped
from tests.curation.read.test_readers import read, write


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("files", "keys", "count", "columns", "golden"),
    [
        ("pubmedqa/ori_pqal.json", {"records": "*"}, 1_000, ("key", "final_decision"), (("21645374", "yes"), ("17559449", "no"))),
        ("pubmedqa/test_ground_truth.json", {"records": "*"}, 500, ("key", "value"), (("12377809", "yes"), ("26134053", "maybe"))),
        ("clinc150/data_full.json", {"records": "train", "header": ["text", "label"]}, 15_000, ("text", "label"), (("what expression would i use to say i love you if i were an italian", "translate"), ("why was my card declined at safeway", "card_declined"))),
        ("clinc150/data_full.json", {"records": "*", "header": ["text", "label"]}, 23_700, ("key", "label"), (("oos_val", "oos"), ("oos_train", "oos"))),
        ("cosqa/code_idx_map.txt", {"reader": "json", "records": "*"}, 6_262, ("value",), (("0",), ("6266",))),
        ("climate_fever/climate_fever.zip", {"member": "*.jsonl", "records": "evidences"}, 7_675, ("claim_id", "evidence_label"), (("0", "NOT_ENOUGH_INFO"), ("3134", "SUPPORTS"))),
        ("climate_fever/climate_fever.zip", {"member": "*.json", "records": "evidences"}, 7_675, ("claim_id", "evidence_label"), (("0", "NOT_ENOUGH_INFO"), ("3134", "SUPPORTS"))),
        ("squad_v2_cs224n/dev-v2.0.json", {"reader": "json", "records": "data/paragraphs/qas"}, 6_078, ("title", "question"), (("Normans", "In what country is Normandy located?"), ("Force", "What force is part of the modern SI system?"))),
    ],
)  # fmt: skip
def test_real_files(shared_data, files, keys, count, columns, golden):
    rows, lost = read(shared_data, files, **keys)
    assert (len(rows), lost) == (count, [])
    assert tuple(tuple(rows[at][column] for column in columns) for at in (0, -1)) == golden


def test_what_is_around_the_records_becomes_columns(tmp_path):
    document = {
        "version": 2,
        "data": [
            {"title": "A", "ps": {"x": {"context": "c", "qas": [{"q": "1", "title": "own"}, {"q": "2"}]}}, "tags": ["t"]},
            {"title": "B", "ps": {"y": {"qas": []}, "z": {"context": None, "qas": {"q": "3"}}}},
        ],
    }
    write(tmp_path, "a.json", json.dumps(document))
    rows, lost = read(tmp_path, "a.json", records="/data/ps/*/qas")
    assert lost == []
    assert rows == [
        {"version": "2", "title": "own", "key": "x", "context": "c", "q": "1"},
        {"version": "2", "title": "A", "key": "x", "context": "c", "q": "2"},
        {"version": "2", "title": "B", "key": "z", "context": None, "q": "3"},
    ]


def test_lists_are_rows_where_the_header_names_their_cells(tmp_path):
    write(tmp_path, "a.json", '[["q", "a"], ["r", 2], ["s"], {"x": "t"}, "u"]')
    rows, lost = read(tmp_path, "a.json", header=["x", "y"])
    assert rows == [{"x": "q", "y": "a"}, {"x": "r", "y": "2"}, {"x": "t", "y": None}]
    assert [(one.row, one.reason, one.evidence) for one in lost] == [
        (2, "wrong_number_of_fields", "a.json: item 2: 1 cells, `header` has 2"),
        (4, "not_an_object", "a.json: item 4: text, not an object"),
    ]
    write(tmp_path, "b.jsonl", '["q", "a"]\n["r", "b", "c"]\n')
    assert read(tmp_path, "b.jsonl", header=False)[0] == [
        {"column_1": "q", "column_2": "a", "column_3": None},
        {"column_1": "r", "column_2": "b", "column_3": "c"},
    ]
    assert read(tmp_path, "b.jsonl", header=["x", "y"])[1][0].evidence == "b.jsonl:2: 3 cells, `header` has 2"


def test_places_without_records_are_lost_rows(tmp_path):
    lines = ['{"e": [{"t": 1}, 5]}', '{"f": 1}', "[[]]", '{"e": null}', '{"e": []}', "{", '{"e": [{"t": "\\ud800"}]}', "7"]
    write(tmp_path, "a.jsonl", "\n".join(lines))
    rows, lost = read(tmp_path, "a.jsonl", records="e")
    assert rows == [{"t": "1", "value": None}, {"t": None, "value": "5"}]
    assert [(one.reason, one.evidence) for one in lost] == [
        ("no_records", "a.jsonl:2: : no 'e'"),
        ("no_records", "a.jsonl:3: [0]: a list in a list"),
        ("no_records", "a.jsonl:4: /e: null"),
        ("bad_json", "a.jsonl:6: Expecting property name enclosed in double quotes at column 3"),
        ("bad_json", "a.jsonl:7: /e[0]: half of a surrogate pair"),
        ("no_records", "a.jsonl:8: : a number, not an object with 'e'"),
    ]
    assert all(one.bad for one in lost)


def test_half_a_surrogate_pair_in_a_key_or_around(tmp_path):
    write(tmp_path, "a.json", '{"\\ud800": {"q": 1}, "k": {"q": 2}}')
    rows, lost = read(tmp_path, "a.json", records="*")
    assert rows == [{"key": "k", "q": "2"}]
    assert [one.reason for one in lost] == ["bad_json"]


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ('{"train": []}', {}, "a.json: holds one object, not a list of objects; `records: data/items` would lead to a list, `records: '*'` takes each value; or say `reader: squad` or `jsonl`"),
        ('{"train": []}', {"records": "tarin"}, "a.json: has no 'tarin', where `records` should be (did you mean 'train'?)"),
        ('{"train": []}', {"records": "x"}, "a.json: has no 'x', where `records` should be; there are train"),
        ("{}", {"records": "x"}, "a.json: has no 'x', where `records` should be; there are no keys at all"),
        ('{"a": [{}], "a": [{}]}', {"records": "*"}, "a.json: not readable as JSON (the key 'a' appears twice in an object)"),
        ("7", {"records": "x"}, "a.json: holds a number, so `records` leads nowhere"),
        ('{"train": []}', {"records": "train"}, "a.json: holds no rows"),
        ('[{"q": 1}]', {"header": False}, "a.json: item 0: is an object, so `header` does not apply; leave it out: it names the cells of lists"),
        ('{"q": 1}\n', {"reader": "jsonl", "header": ["a"]}, "a.json:1: is an object, so `header` does not apply; leave it out: it names the cells of lists"),
        ('["q"]\n', {"reader": "tevatron", "header": ["a"]}, "a.json: is read by 'tevatron', which does not use `header`; that is for csv, tsv, aligned, json, jsonl"),
        ("q\n1\n", {"reader": "csv", "records": "x"}, "a.json: is read by 'csv', which does not use `records`; that is for xml, json, jsonl"),
    ],
)  # fmt: skip
def test_documents_without_records_are_reported(tmp_path, content, keys, message):
    write(tmp_path, "a.json", content)
    assert complaint(tmp_path, "a.json", **keys) == message


# --- Arrow IPC ---


def arrow(frame: pl.DataFrame, stream: bool) -> bytes:
    whole = io.BytesIO()
    (frame.write_ipc_stream if stream else frame.write_ipc)(whole)
    return whole.getvalue()


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_and_streams(tmp_path, stream):
    frame = pl.DataFrame({"q": [f"q{n}" for n in range(45_000)], "n": range(45_000)}).with_columns(
        pl.col("q").cast(pl.Categorical).alias("c"), pl.concat_list(pl.col("q")).alias("l")
    )
    write(tmp_path, "a.arrow", arrow(frame, stream))
    write(tmp_path, "a.feather.gz", gzip.compress(arrow(frame, stream), 1))
    zipped(tmp_path / "a.zip", {"a.arrow": arrow(frame, stream)})
    for name in ("a.arrow", "a.feather.gz", "a.zip"):
        batches = list(table_rows(Table(files=[name]), tmp_path))
        assert max(len(batch.frame) for batch in batches) <= 20_000
        got = pl.concat([batch.frame for batch in batches])
        assert got["__row"].to_list() == list(range(45_000))
        assert got.drop("__row").with_columns(pl.col("c").cast(pl.String)).equals(frame.with_columns(pl.col("c").cast(pl.String)))


@pytest.mark.parametrize("stream", [False, True])
def test_broken_arrow_files_are_reported(tmp_path, stream):
    whole = arrow(pl.DataFrame({"q": ["a", "bc"] * 500}), stream)
    for content in (b"", b"ARROW1", b"no arrow at all", whole[: len(whole) // 2], whole[:100] + b"\xff" * 40 + whole[140:]):
        write(tmp_path, "a.arrow", content)
        with pytest.raises(
            SourceError, match=r"^a\.arrow: not readable as Arrow IPC \(.+\); fetch the file again, or say the right `reader:`$"
        ):
            list(table_rows(Table(files=["a.arrow"]), tmp_path))
