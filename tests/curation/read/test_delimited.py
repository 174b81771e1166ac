"""Blocks of rows are read as the rows are one by one, wherever a block ends."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from curation.core.errors import SourceError
from curation.read import blocks, delimited
from curation.read.delimited import parse_regular
from curation.read.sources import table_rows
from curation.recipe.source import Table

pieces = st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "\0", "a", "é", "中文 and some more of it", " ", "\ufeff"])
anything = st.lists(pieces, max_size=14).map("".join)
cells = st.lists(pieces.filter(lambda piece: piece not in ("\r", "\0")), max_size=5).map("".join)


def by_module(text: str, quoting: bool) -> list[list[str]]:
    if quoting:
        return [row for row in csv.reader(io.StringIO(text, newline="\n"), strict=True) if row]
    lines = (line.removesuffix("\n").removesuffix("\r") for line in io.StringIO(text, newline="\n"))
    return [line.split(",") for line in lines if line]


def taken(text: str, quoting: bool, width: int) -> list[list[str]] | None:
    found = parse_regular(text.encode(), ",", quoting, [f"c{n}" for n in range(width)], last=True)
    return found and [list(row) for row in found[0].rows()]


@settings(max_examples=1500)
@given(anything, st.booleans(), st.integers(1, 3))
def test_regular_blocks_are_read_as_by_the_csv_module(text, quoting, width):
    got = taken(text, quoting, width)
    assert got is None or got == by_module(text, quoting)


@settings(max_examples=500)
@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5)))
def test_regular_text_is_read_in_blocks(rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    if "\r" not in text.getvalue().replace("\r\n", ""):
        assert taken(text.getvalue(), True, len(rows[0])) == rows


def test_a_byte_order_mark_at_the_start_of_a_block_is_text():
    assert taken("\ufeffa,b\n", False, 2) == [["\ufeffa", "b"]]


def all_of(base, name, **keys) -> object:
    try:
        batches = list(table_rows(Table(files=[name], **keys), base))
    except SourceError as error:
        return str(error)
    lost = [one for batch in batches for one in batch.lost]
    return [row for batch in batches for row in batch.frame.to_dicts()], lost


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.lists(st.tuples(cells, cells) | anything, max_size=8),
    st.sampled_from([("a.csv", {}), ("a.tsv", {"delimiter": ","}), ("a.csv", {"encoding": "utf-16"}), ("a.csv", {"header": False})]),
    st.integers(1, 9),
)  # fmt: skip
def test_it_does_not_matter_where_a_block_ends(tmp_path, rows, of, size):
    name, keys = of
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(["one", "two"])
    for row in rows:
        text.write(row + "\n") if isinstance(row, str) else csv.writer(text, lineterminator="\r\n").writerow(row)
    (tmp_path / name).write_bytes(text.getvalue().encode(keys.get("encoding", "utf-8")))
    whole = all_of(tmp_path, name, **keys)
    assume(not (isinstance(whole, str) and " text, not " in whole))  # zeros among few bytes, which small blocks do not show
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        assert all_of(tmp_path, name, **keys) == whole


def test_lines_of_objects_in_blocks_of_any_size(tmp_path, monkeypatch):
    lines = ['{"a": "x", "b": null}', '{"a": "é", "b": null}', "", '{"b": null}', "broken", '{"a": "y\\n", "b": "z"}'] * 3
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    whole = all_of(tmp_path, "a.jsonl")
    assert [one.evidence for one in whole[1]] == [f"a.jsonl:{n}: Expecting value at column 1" for n in (5, 11, 17)]
    for size in (1, 20, 50, 100):
        monkeypatch.setattr(blocks, "BLOCK", size)
        rows, lost = all_of(tmp_path, "a.jsonl")
        assert [{"a": None, "b": None} | row for row in rows] == whole[0]
        assert lost == whole[1]


def test_bytes_that_are_not_text_are_reported_with_their_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n3,\xed\xa0\x80\n")
    assert all_of(tmp_path, "a.csv") == ("a.csv:3: byte 0xed is not utf-8 text; declare the file's own encoding with `encoding:`")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8), st.integers(1, 12))
def test_a_quoted_tsv_is_read_as_the_csv_module_reads_it(tmp_path, rows, size):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("one", "two"), *rows])
    (tmp_path / "a.tsv").write_text(text.getvalue(), newline="")
    wanted = list(csv.reader(io.StringIO(text.getvalue(), newline=""), delimiter="\t", strict=True))[1:]
    headers = [row for row in wanted if [cell.strip().strip("\ufeff").lower() for cell in row] == ["one", "two"]]
    assume(not headers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        found, lost = all_of(tmp_path, "a.tsv", quoting=True)
    assert [[row["one"], row["two"]] for row in found] == wanted
    assert not lost


def test_a_quoted_line_end_on_the_border_of_a_block(tmp_path, monkeypatch):
    (tmp_path / "a.tsv").write_text('one\ttwo\n1\ta\n\n2\t"b\nc"\n3\td\n')
    for size in range(1, 40):
        monkeypatch.setattr(blocks, "BLOCK", size)
        assert all_of(tmp_path, "a.tsv").startswith("a.tsv:4: a cell in quotes holds a line end or a tab; ")


@pytest.mark.parametrize("lines", [2, 3, 6])
def test_a_quoted_cell_of_many_lines_is_refused_wherever_a_batch_of_rows_ends(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(delimited, "BATCH", 6)
    for rows in range(1, 15):
        plain, cell = [f"{n}\ttext {n}\n" for n in range(rows)], "\n".join(f"line {n}" for n in range(lines))
        (tmp_path / "a.tsv").write_text("".join(["one\ttwo\n", "0\ta\tirregular\n", *plain, f'q\t"{cell}"\n', *plain]))
        assert all_of(tmp_path, "a.tsv").startswith(f"a.tsv:{rows + 3}: a cell in quotes holds a line end or a tab; ")
        (tmp_path / "b.tsv").write_text("".join(["one\ttwo\n", "0\ta\tirregular\n", *plain, f'q\tno "{cell}"\n', *plain]))
        kept, lost = all_of(tmp_path, "b.tsv")
        assert len(kept) == 2 * rows + 1
        assert len(lost) == lines


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_lines_that_end_in_cr_alone_are_refused(tmp_path, monkeypatch, ending):
    rows = {"csv": "a,b\r1,2\r3,4\r", "tsv": "a\tb\r1\t2\r3\t4\r", "jsonl": '{"a": 1}\r{"a": 2}\r'}[ending]
    (tmp_path / f"x.{ending}").write_text(rows, newline="")
    line = f"x.{ending}: its lines end in CR alone; convert them: `tr '\\r' '\\n' < x.{ending}`"
    assert all_of(tmp_path, f"x.{ending}") == line
    monkeypatch.setattr(blocks, "BLOCK", 4)
    assert all_of(tmp_path, f"x.{ending}") == line
    assert all_of(tmp_path, f"x.{ending}", max_record=1e-5) == line
