"""Rows of text cells: csv and tsv, by Python's csv module in strict mode where quotes mean something."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from operator import methodcaller

import numpy as np
import polars as pl

from curation.errors import SourceError
from curation.manifest_source import Table
from curation.reading.rows import BATCH, ROW, File, Lost, Reading, Rows, opened

LARGEST_FIELD = 1 << 22  # characters; a longer field is an unclosed quote
NO_QUOTES = "if quotes mean nothing in this file, say `quoting: false`"
BLANK = ("\n", "\r\n", "\r")
Row = tuple[int, int, "list[str] | str"]  # first line, lines, and the cells, or what is wrong with their quotes


def read_delimited(file: File, table: Table, start: int, comma: bool) -> Reading:
    """Read csv and tsv, every cell as text; blank lines are no rows.

    `header: false` names the columns column_1, column_2, ...; a column that the header leaves unnamed gets such a name too.
    """
    delimiter = table.delimiter or ("," if comma else "\t")
    quoting = comma if table.quoting is None else table.quoting
    with opened(file, table) as lines:
        rows = _quoted_rows(file, lines, delimiter, 1) if quoting else _plain_rows(lines, delimiter, 1)
        first = next(rows, None)
        if first is None:
            raise SourceError(file.name, "is empty")
        names = _columns(file, table, first)
        said = "`header`" if isinstance(table.header, list) else "the header" if table.header else "the first row"
        width = f"{said} has {len(names)}"
        if table.header is not True:
            yield _cells(file, names, width, [first], start)
            start += 1
        line = first[0] + first[1]
        while True:
            ahead, again = tee(lines)  # a block at once; if a row of it is odd, the rest of the file row by row
            columns, used = _block(ahead, delimiter, quoting, len(names))
            if columns is None:
                break
            if not used:
                return
            rows_of = len(columns[0])
            yield _frame(names, columns, np.arange(start, start + rows_of), [])
            line, start = line + used, start + rows_of
        rows = _quoted_rows(file, again, delimiter, line) if quoting else _plain_rows(again, delimiter, line)
        for number, batch in enumerate(iter(lambda: list(islice(rows, BATCH)), [])):
            yield _cells(file, names, width, batch, start + number * BATCH)


def _block(lines: Iterator[str], delimiter: str, quoting: bool, width: int) -> tuple[Sequence[Sequence[str]] | None, int]:
    """Return the columns of the next lines, None if a row has odd quotes or another width, and how many lines they took."""
    if not quoting:
        ahead = list(islice(lines, BATCH))
        return _split(ahead, delimiter, width), len(ahead)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        rows = list(islice(reader, BATCH))
    except csv.Error:
        return None, reader.line_num
    widths = set(map(len, rows))
    if 0 in widths:  # blank lines
        rows = list(filter(None, rows))
    return (list(zip(*rows, strict=True)) or [()] * width if widths <= {0, width} else None), reader.line_num


def _split(lines: list[str], delimiter: str, width: int) -> list[list[str]] | None:
    """Return the columns of lines without quotes, None if one has not `width` cells."""
    lines = [line for line in lines if line not in BLANK]
    if not set(map(methodcaller("count", delimiter), lines)) <= {width - 1}:
        return None
    whole = "".join(lines).replace("\r\n", "\n")
    whole = whole[:-1] if whole.endswith("\n") else whole.removesuffix("\r")
    cells = whole.replace("\n", delimiter).split(delimiter) if lines else []
    return [cells[at::width] for at in range(width)]


def _plain_rows(lines: Iterable[str], delimiter: str, start: int) -> Iterator[Row]:
    for number, line in enumerate(lines, start):
        cells = line.removesuffix("\n").removesuffix("\r")
        if cells:
            yield number, 1, cells.split(delimiter)


def _quoted_rows(file: File, lines: Iterable[str], delimiter: str, start: int) -> Iterator[Row]:
    held: list[str] = []  # the lines of this row

    def feed() -> Iterator[str]:
        for line in lines:
            held.append(line)
            yield line

    csv.field_size_limit(max(LARGEST_FIELD, csv.field_size_limit()))
    reader, before = csv.reader(feed(), delimiter=delimiter, strict=True), start
    while True:
        held.clear()
        try:
            cells: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if len(held) > 1 or "end of data" in str(error):
                line = start + _quoteopened("".join(held), delimiter)
                raise SourceError(f"{file.name}:{line}", "the quote that opens here is not closed properly", NO_QUOTES) from None
            other = re.search('"([;\t|])', held[0])
            cells = f"{error}, perhaps `delimiter: {json.dumps(other[1])}`" if other else str(error)
        if cells:
            yield start, len(held), cells
        start = before + reader.line_num


def _quoteopened(row: str, delimiter: str) -> int:
    """Return the line of a broken row (from 0) in which its broken field begins."""
    mark = re.escape(delimiter)
    whole = re.compile(rf'(?:"(?:[^"]++|"")*+"|(?!")[^{mark}\n]*+){mark}')  # a field and the delimiter after it
    at = 0
    while match := whole.match(row, at):
        at = match.end()
    return row.count("\n", 0, at)


def _columns(file: File, table: Table, first: Row) -> list[str]:
    """Return the names of the columns."""
    number, _, cells = first
    if isinstance(table.header, list):
        names = table.header
    elif isinstance(cells, str):
        raise SourceError(f"{file.name}:{number}", f"the first row cannot be read ({cells})", NO_QUOTES)
    else:
        names = [(table.header and cell) or f"column_{i}" for i, cell in enumerate(cells, 1)]
    if names[0].lower().lstrip().startswith(("<!doctype html", "<html")):
        raise SourceError(f"{file.name}:{number}", "is a web page, not a table", "fetch the file itself, not the page about it")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise SourceError(f"{file.name}:{number}", f"two columns are named '{twice[0]}'", "name them all: `header: [...]`")
    return names


def _cells(file: File, names: list[str], width: str, batch: list[Row], start: int) -> Rows:
    lost: list[Lost] = []
    good: list[list[str]] = []
    numbers: list[int] = []
    for row, (line, lines, cells) in enumerate(batch, start):
        if isinstance(cells, str):
            lost.append(Lost(row, "bad_quotes", f"{file.name}:{line}: {cells}", True))
        elif len(cells) == len(names):
            good.append(cells)
            numbers.append(row)
        else:
            what = f"{len(cells)} field{'s' if len(cells) > 1 else ''}, {width}"
            if lines > 1:  # no honest row is likely to be short and long at once
                raise SourceError(f"{file.name}:{line}", f"a row of {lines} lines begins here, with {what}", NO_QUOTES)
            lost.append(Lost(row, "wrong_number_of_fields", f"{file.name}:{line}: {what}", True))
    return _frame(names, list(zip(*good, strict=True)) or [()] * len(names), numbers, lost)


def _frame(names: list[str], columns: Sequence[Sequence[str]], numbers: Sequence[int] | np.ndarray, lost: list[Lost]) -> Rows:
    series = {name: pl.Series(column, dtype=pl.String) for name, column in zip(names, columns, strict=True)}
    return Rows(pl.DataFrame(series | {ROW: pl.Series(numbers, dtype=pl.UInt64)}), lost)
