"""Numbers are texts as they are written, in every format; labels and ids that are equal numbers are equal."""

from __future__ import annotations

import gzip
import io
import json
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather

from curation.read import blocks
from tests.curation.read.one_source import NESTED, built, shaped

TOKENS = [
    "8", "3.14", "1969", "0.10", "1e5", "1E-7", "-0", "-0.0", "8.0", "1.50", "1234567890123456789", "9223372036854775808",
    "123456789012345678901234567890", "0.1000000000000000055511151231257827", "1e400", "true", "false",
]  # fmt: skip


def raw(form: str, values: list[str], name: str = "p") -> bytes:
    """Write rows with these values as they are, not as texts."""
    rows = [f'{{"q": "query {at}", "{name}": {value}}}' for at, value in enumerate(values)]
    if form in ("csv", "tsv"):
        sign = "," if form == "csv" else "\t"
        return "".join(
            f"{left}{sign}{right}\n" for left, right in [("q", name), *((f"query {at}", v) for at, v in enumerate(values))]
        ).encode()
    lines, document = "".join(row + "\n" for row in rows).encode(), f"[{', '.join(rows)}]".encode()
    return {
        "jsonl": lines,
        "json": document,
        "jsonl.gz": gzip.compress(lines),
        "nested.json": b'{"a": {"b": ' + document + b"}}",
    }[form]


RAW = ("jsonl", "json", "jsonl.gz", "nested.json", "csv", "tsv")


def positives(got) -> list[str]:
    assert isinstance(got, dict), got
    return [one[1][0] for one in got.values()]


@pytest.mark.parametrize("form", RAW)
def test_numbers_are_texts_as_they_are_written(form, tmp_path):
    more = {"records": "a/b"} if form == "nested.json" else {}
    for name, values in (("all", TOKENS), ("turned", TOKENS[::-1]), *((f"one{at}", [token]) for at, token in enumerate(TOKENS))):
        (tmp_path / f"{name}.{form}").write_bytes(raw(form, values))
        assert positives(shaped(tmp_path, f"{name}.{form}", {"query": "q", "positive": "p"}, **more)) == values
    lists = [f"[{', '.join(TOKENS)}]"]
    if form not in ("csv", "tsv"):
        (tmp_path / f"lists.{form}").write_bytes(raw(form, lists))
        got = shaped(tmp_path, f"lists.{form}", {"query": "q", "positive": "p"}, **more)
        assert got == {"s/0": ("query 0", TOKENS, [], None)}


@pytest.mark.parametrize("form", RAW)
def test_later_blocks_and_files_change_no_number(form, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    values = ["7"] * 40 + ["0.5"] + ["8"] * 40 + ["null" if "json" in form else "", "1234567890123456789"]
    more = {"records": "a/b"} if form == "nested.json" else {}
    (tmp_path / f"a.{form}").write_bytes(raw(form, values))
    wanted = values[:81] + values[82:]
    assert positives(shaped(tmp_path, f"a.{form}", {"query": "q", "positive": "p"}, **more)) == wanted
    (tmp_path / f"b.{form}").write_bytes(raw(form, ["2.0"]))
    assert positives(shaped(tmp_path, f"?.{form}", {"query": "q", "positive": "p"}, **more)) == [*wanted, "2.0"]


def test_numbers_in_the_lines_of_other_tools(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '[1969, 8.0, 0.10]\n{"query": "q", "pos": [1e5], "neg": [12345678901234567890]}\n{"set": ["x", 7]}\n'
    )
    fields = {"query": "query", "positive": "positives", "negatives": "negatives"}
    assert shaped(tmp_path, "a.jsonl", fields, reader="embedding-training-data") == {
        "s/0": ("1969", ["8.0"], ["0.10"], None),
        "s/1": ("q", ["1e5"], ["12345678901234567890"], None),
        "s/2": ("x", ["7"], [], None),
    }
    (tmp_path / "b.jsonl").write_text('{"query": "q", "pos": [8, 3.14], "neg": [1.0]}\n')
    fields = {"query": "query", "positive": "pos", "negatives": "neg"}
    assert shaped(tmp_path, "b.jsonl", fields, reader="flagembedding") == {"s/0": ("q", ["8", "3.14"], ["1.0"], None)}


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_what_is_no_number_is_missing(form, tmp_path):
    (tmp_path / f"a.{form}").write_bytes(raw(form, ["1", "NaN", "Infinity", "-Infinity", "null", '"NaN"', "[NaN, 2, null]"]))
    assert positives(shaped(tmp_path, f"a.{form}", {"query": "q", "positive": "p"})) == ["1", "NaN", "2"]
    (tmp_path / f"b.{form}").write_bytes(raw(form, ["1", "NaN", "2.5"]))
    assert positives(shaped(tmp_path, f"b.{form}", {"query": "q", "positive": "p"})) == ["1", "2.5"]


def test_floats_that_are_no_number_are_missing_in_parquet(tmp_path):
    floats = [1.5, float("nan"), float("inf"), float("-inf"), None]
    pl.DataFrame({"q": ["query"] * 5, "p": floats, "l": [[one, 2.5] for one in floats]}).write_parquet(tmp_path / "a.parquet")
    assert positives(shaped(tmp_path, "a.parquet", {"query": "q", "positive": "p"})) == ["1.5"]
    got = shaped(tmp_path, "a.parquet", {"query": "q", "positive": "l"})
    assert [one[1] for one in got.values()] == [["1.5", "2.5"], *[["2.5"]] * 4]


# --- labels ---

CLASSES = {"task": "classification"}


def classes(got) -> list[str]:
    assert isinstance(got, dict), got
    return [one[3] for one in got.values()]


@pytest.mark.parametrize("form", RAW)
def test_labels_that_are_equal_numbers_are_one_class(form, tmp_path, monkeypatch):
    values = ["0", "1", "0.0", "1.0", "1", "-0.0"]
    fields, more = {"query": "q", "label": "p"}, CLASSES | ({"records": "a/b"} if form == "nested.json" else {})
    (tmp_path / f"a.{form}").write_bytes(raw(form, values))
    assert classes(shaped(tmp_path, f"a.{form}", fields, **more)) == ["0", "1", "0", "1", "1", "0"]
    for keys in ({"0": "bad", "1": "good"}, {"0.0": "bad", "1.0": "good"}):
        got = shaped(tmp_path, f"a.{form}", fields, labels=keys, **more)
        assert got["s/2"] == ("query 2", ["bad"], ["good"], "bad")
    monkeypatch.setattr(blocks, "BLOCK", 30)
    (tmp_path / f"b.{form}").write_bytes(raw(form, values))
    assert classes(shaped(tmp_path, f"?.{form}", fields, **more)) == ["0", "1", "0", "1", "1", "0"] * 2
    assert classes(shaped(tmp_path, f"a.{form}", fields, skip_labels=["1.0"], **more | {"task": "clustering"})) == ["0"] * 3


def test_labels_of_shards_of_different_types_are_one_class(tmp_path):
    for name, labels in (("a", [0, 1]), ("b", [0.0, 1.0]), ("c", ["0", "1.0"]), ("d", [None, 1.0])):
        pl.DataFrame({"q": [f"{name} one", f"{name} two"], "p": labels}).write_parquet(tmp_path / f"{name}.parquet")
    pl.DataFrame({"q": ["e one"], "p": [1.0]}, schema_overrides={"p": pl.Float32}).write_ipc(tmp_path / "e.arrow")
    (tmp_path / "f.jsonl").write_text('{"q": "f one", "p": 1e0}\n{"q": "f two", "p": "0.0"}\n')
    (tmp_path / "g.csv").write_text("q,p\ng one,1.0\n")
    files = ["*.parquet", "e.arrow", "f.jsonl", "g.csv"]
    got = shaped(tmp_path, files, {"query": "q", "label": "p"}, **CLASSES)
    assert classes(got) == ["0", "1", "0", "1", "0", "1", "1", "1", "1", "0", "1"]


def test_clusters_of_equal_numbers_are_mined_as_one(tmp_path):
    """No negative of a text is of its own class: 1 and 1.0 were two."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"q": "text {at} of them", "p": {at % 3}}}\n' for at in range(12)))
    (tmp_path / "b.jsonl").write_text("".join(f'{{"q": "other {at} of them", "p": {at % 3}.0}}\n' for at in range(12)))
    got = built(tmp_path, ["a.jsonl", "b.jsonl"], {"query": "q", "label": "p"}, task="clustering")
    assert sorted(set(classes(got))) == ["0", "1", "2"]
    assert len(got) == 24


@pytest.mark.parametrize(("one", "other"), [("0.5", "0.50"), ("1e3", "1000"), ("true", "True"), ("2.5", "2.5e0")])
def test_labels_that_may_be_one_are_reported(one, other, tmp_path):
    (tmp_path / "a.csv").write_bytes(raw("csv", [one, other, "x", "x", one]))
    message = shaped(tmp_path, "a.csv", {"query": "q", "label": "p"}, task="clustering")
    assert message in [
        f"source 's': column 'p' has the labels '{a}' and '{b}', which may be the same; map each to its text under 'labels'"
        for a, b in ((one, other), (other, one))
    ]
    got = shaped(
        tmp_path, "a.csv", {"query": "q", "label": "p"}, labels={one: "low", other: "low", "x": "high"}, task="clustering"
    )
    assert classes(got) == ["low", "low", "high", "high", "low"]


@pytest.mark.parametrize("labels", [{"true": "good", "false": "bad"}, {"True": "good", "False": "bad"}])
def test_truth_values_are_found_however_they_are_written(labels, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(raw("jsonl", ["true", "false"]))
    (tmp_path / "b.csv").write_bytes(raw("csv", ["True", "FALSE"]))
    pl.DataFrame({"q": ["x", "y"], "p": [True, False]}).write_parquet(tmp_path / "c.parquet")
    got = shaped(tmp_path, ["a.jsonl", "b.csv", "c.parquet"], {"query": "q", "label": "p"}, labels=labels, **CLASSES)
    assert classes(got) == ["good", "bad"] * 3


def test_codes_and_versions_are_not_numbers(tmp_path):
    codes = ["007", "7", "02108", "2108", "1.10", "12e4", "1_000", "+1", "0x1", "1.0.0"]
    (tmp_path / "a.csv").write_bytes(raw("csv", codes))
    assert classes(shaped(tmp_path, "a.csv", {"query": "q", "label": "p"}, task="clustering")) == codes
    assert list(shaped(tmp_path, "a.csv", {"query": "q", "positive": "q", "id": "p"})) == [f"s/{code}" for code in codes]


# --- ids ---


@pytest.mark.parametrize("form", RAW)
def test_ids_keep_all_their_digits(form, tmp_path, monkeypatch):
    ids = ["1234567890123456789", "1234567890123456788", "0.5", "12345678901234567890123", "9007199254740993", "7.0", "1e+05"]
    more = {"records": "a/b"} if form == "nested.json" else {}
    (tmp_path / f"a.{form}").write_bytes(raw(form, ids, "i"))
    got = shaped(tmp_path, f"a.{form}", {"query": "q", "positive": "q", "id": "i"}, **more)
    assert list(got) == [f"s/{one}" for one in [*ids[:5], "7", "100000"]]


@pytest.mark.parametrize("kind", [pl.Float64, pl.Float32])
def test_ids_that_floats_cannot_tell_apart_are_reported(kind, tmp_path):
    first = (1 << (53 if kind == pl.Float64 else 24)) + 2
    frame = pl.DataFrame({"q": ["x", "y"], "i": [first, 3]}, schema_overrides={"i": kind}, strict=False)
    frame.write_parquet(tmp_path / "a.parquet")
    assert shaped(tmp_path, "a.parquet", {"query": "q", "positive": "q", "id": "i"}) == (
        f"a.parquet: column 'i' holds {float(first)} as floats, which are not exact that far: different ids may be equal; "
        "write labels and ids as whole numbers or as texts"
    )
    frame.filter(pl.col("i") == 3).write_parquet(tmp_path / "a.parquet")
    assert list(shaped(tmp_path, "a.parquet", {"query": "q", "positive": "q", "id": "i"})) == ["s/3"]
    for text in ("1.2345678901234568e+18", "2e+20"):
        for form in ("csv", "jsonl"):
            (tmp_path / f"b.{form}").write_bytes(raw(form, [text], "i"))
            message = shaped(tmp_path, f"b.{form}", {"query": "q", "positive": "q", "id": "i"})
            assert message.startswith(f"b.{form}: column 'i' holds {text} as floats, which are not exact that far")


IDS = {  # one id, 12, as each type and format has it
    "int.jsonl": lambda name: f'{{"{name}": 12, "text": "T"}}\n'.encode(),
    "float.jsonl": lambda name: f'{{"{name}": 12.0, "text": "T"}}\n'.encode(),
    "text.jsonl": lambda name: f'{{"{name}": "12", "text": "T"}}\n'.encode(),
    "int.csv": lambda name: f"{name},text\n12,T\n".encode(),
    "float.csv": lambda name: f"{name},text\n12.0,T\n".encode(),
    "int.parquet": lambda name: parquet(name, [12]),
    "float.parquet": lambda name: parquet(name, [12.0]),
    "text.parquet": lambda name: parquet(name, ["12"]),
}


def parquet(name: str, ids: list[object]) -> bytes:
    whole = io.BytesIO()
    pl.DataFrame({name: ids, "text": ["T"] * len(ids)}).write_parquet(whole)
    return whole.getvalue()


@pytest.mark.parametrize("corpus", IDS)
@pytest.mark.parametrize("judged", IDS)
def test_qrels_find_their_passages_whatever_the_types_of_ids(judged, corpus, tmp_path):
    (tmp_path / f"qrels.{judged}").write_bytes(IDS[judged]("d"))
    (tmp_path / f"corpus.{corpus}").write_bytes(IDS[corpus]("_id"))
    (tmp_path / "queries.jsonl").write_text('{"_id": 12, "text": "asked"}\n')
    got = shaped(
        tmp_path, f"qrels.{judged}", {"query_id": "d", "positive_id": "d"},
        corpus={"files": f"corpus.{corpus}"}, queries={"files": "queries.jsonl"},
    )  # fmt: skip
    assert got == {"s/12": ("asked", ["T"], [], None)}


def test_large_ids_of_a_corpus_beside_floats(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 60)
    large = [1234567890123456789 + at for at in range(5)]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(f'{{"_id": {one}, "text": "passage {one}"}}\n' for one in large) + '{"_id": 0.5, "text": "half"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": 1, "text": "asked"}\n')
    (tmp_path / "qrels.tsv").write_text(f"q\td\n1\t{large[3]}\n1\t0.5\n")
    tables = {"corpus": {"files": "corpus.jsonl"}, "queries": {"files": "queries.jsonl"}}
    got = shaped(tmp_path, "qrels.tsv", {"query_id": "q", "positive_id": "d"}, **tables)
    assert got == {"s/1": ("asked", [f"passage {large[3]}", "half"], [], None)}


def test_ids_of_an_evaluation_set_of_other_types(tmp_path):
    rows = [
        {"q": "an old oak by the river is what?", "p": "It is a tree that was struck."},
        {"q": "ashes burn how?", "p": "Well, when green."},
    ]
    (tmp_path / "a.jsonl").write_bytes(NESTED["jsonl"](rows))
    (tmp_path / "qrels.csv").write_text("q,d\n1.0,2\n")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": 2.0, "text": "nothing of the kind"}) + "\n")
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": 1, "text": rows[0]["q"]}) + "\n")
    tables = {"corpus": {"files": "corpus.jsonl"}, "queries": {"files": "queries.jsonl"}}
    against = {"files": "qrels.csv", "fields": {"query_id": "q", "positive_id": "d"}, **tables}
    got = built(tmp_path, "a.jsonl", {"query": "q", "positive": "p"}, decontaminate={"against": [against]})
    assert set(got) == {"s/1"}


# --- scores ---


@pytest.mark.parametrize("form", RAW)
def test_scores_are_numbers_however_they_are_written(form, tmp_path):
    values = ["4", "4.0", "0.40e1", "3.9", "true", "false", "1e1"]
    more = {"threshold": 4} | ({"records": "a/b"} if form == "nested.json" else {})
    (tmp_path / f"a.{form}").write_bytes(raw(form, values))
    got = shaped(tmp_path, f"a.{form}", {"query": "q", "positive": "q", "score": "p"}, **more)
    assert list(got) == ["s/0", "s/1", "s/2", "s/6"]


@pytest.mark.parametrize("labels", ["[1, 0]", "[1.0, 0.0]", '["1", "0"]', "[true, false]", '["True", "False"]', "[0.10, -0]"])
def test_labels_of_documents(labels, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"q": "query", "d": ["yes", "no"], "l": {labels}}}\n')
    pl.read_ndjson(tmp_path / "a.jsonl").write_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        got = shaped(tmp_path, name, {"query": "q", "documents": "d", "label": "l"})
        assert got == {"s/0": ("query", ["yes"], ["no"], None)}


# --- blocks against lines ---

number = (
    st.integers().map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.sampled_from([*TOKENS, "NaN", "null"])
)
value = st.one_of(number, number, st.text(max_size=6).map(json.dumps), st.just('["x", "y"]'), st.just('{"n": 5, "t": "x"}'))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors], max_examples=80)
@given(st.lists(st.tuples(number, value, st.booleans()), min_size=1, max_size=8), st.sampled_from(["n", 'n"', "n\\\\", "é"]))
def test_a_block_at_once_gives_what_its_lines_give(tmp_path, rows, name):
    key = json.dumps(name, ensure_ascii=False)
    lines = [
        f'{{"q": "query", {key}: {one}, "u": {other}}}' if first else f'{{"q": "query", "u": {other}, {key}: {one}}}'
        for one, other, first in rows
    ]
    (tmp_path / "a.jsonl").write_text("".join(line + "\n" for line in lines))
    (tmp_path / "a.json").write_text(f"[{', '.join(lines)}]")
    fields = {"query": "q", "positive": name, "negatives": ["q"]}
    assert shaped(tmp_path, "a.jsonl", fields) == shaped(tmp_path, "a.json", fields)


@pytest.mark.parametrize("kind", [pa.decimal128(9, 2), pa.decimal256(50, 2)])
def test_decimals_are_labels_and_ids_as_whole_numbers_are(tmp_path, kind):
    table = pa.table({"q": ["what is x", "what is y"], "i": pa.array([Decimal("1.00"), Decimal("2.00")], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    feather.write_feather(table, tmp_path / "a.arrow", compression="uncompressed")
    (tmp_path / "c.jsonl").write_text('{"_id": 1, "text": "one"}\n{"_id": "2", "text": "two"}\n')
    tables = {part: {"files": "c.jsonl"} for part in ("corpus", "queries")}
    for name in ("a.parquet", "a.arrow"):
        assert classes(shaped(tmp_path, name, {"query": "q", "label": "i"}, **CLASSES)) == ["1", "2"]
        got = shaped(tmp_path, name, {"query_id": "i", "positive_id": "i"}, **tables)
        assert got == {"s/1": ("one", ["one"], [], None), "s/2": ("two", ["two"], [], None)}


def test_kinds_of_columns_that_polars_does_not_have(tmp_path):
    """Lists of one length that are all null, as of vectors that are missing, and runs of equal values."""
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["a text", "another"]))
    table = pa.table({"q": ["what is x", "what is y"], "v": pa.array([None, None], pa.list_(pa.float32(), 4)), "p": runs})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    found = shaped(tmp_path, "a.arrow", {"query": "q", "positive": "p"})
    assert [one[:2] for one in found.values()] == [("what is x", ["a text"]), ("what is y", ["another"])]


def test_decimals_of_too_many_digits_are_one_line(tmp_path):
    pq.write_table(pa.table({"q": ["a"], "p": pa.array([Decimal(10**45)], pa.decimal256(50, 2))}), tmp_path / "a.parquet")
    assert "a.parquet: not readable as parquet (Decimal value does not fit" in shaped(
        tmp_path, "a.parquet", {"query": "q", "positive": "p"}
    )


@pytest.mark.parametrize(("one", "other"), [("pos", "pos "), ("1", " 1"), ("true", "True "), ("a b", "a  b"), ("0.5", "0.50 ")])
def test_labels_that_differ_in_white_space_are_reported(one, other, tmp_path):
    (tmp_path / "a.csv").write_bytes(raw("csv", [one, other, "x", "x", one]))
    message = shaped(tmp_path, "a.csv", {"query": "q", "label": "p"}, task="clustering")
    assert message.endswith("which may be the same; map each to its text under 'labels'")
    assert f"'{one}'" in message
    assert f"'{other}'" in message


@pytest.mark.parametrize(("one", "other"), [("1", "1.0"), ("true", "True"), ("-0", "0")])
def test_keys_of_labels_that_are_one_label_are_reported(one, other, tmp_path):
    (tmp_path / "a.csv").write_bytes(raw("csv", [one, one, "x", "x"]))
    fields = {"query": "q", "label": "p"}
    message = shaped(tmp_path, "a.csv", fields, task="clustering", labels={one: "good", other: "bad", "x": "so so"})
    assert message == f"source 's': the keys '{one}' and '{other}' of 'labels' are the same label with two meanings; keep one"
    got = shaped(tmp_path, "a.csv", fields, task="clustering", labels={one: "good", other: "good", "x": "so so"})
    assert classes(got) == ["good", "good", "so so", "so so"]


@pytest.mark.parametrize("value", ['"high"', '["high"]', "true", "null", "NaN", '" "', '"1e-1"'])
def test_a_teachers_score_that_is_no_number_is_reported(value, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"q": "query", "p": "passage", "s": {value}}}\n')
    got = shaped(tmp_path, "a.jsonl", {"query": "q", "positive": "p", "positive_score": "s"})
    if "high" in value:
        assert got == "source 's': column 's' holds 'high' (row 0), which is not a number; map numbers, or lists of them"
    else:
        assert got == {"s/0": ("query", ["passage"], [], None)}
