"""Rows of text cells: csv and tsv, by Python's csv module in strict mode where quotes mean something."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import islice, tee

import polars as pl

from curation.errors import SourceError
from curation.manifest_source import Table
from curation.rows import BATCH, ROW, File, Lost, Reading, Rows, opened

LARGEST_FIELD = 1 << 22  # characters; a longer field is an unclosed quote
NO_QUOTES = "if quotes mean nothing in this file, say `quoting: false`"
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
            block, used = _block(ahead, delimiter, quoting)
            if block is None or not {len(cells) for cells in block} <= {len(names)}:
                break
            if not used:
                return
            yield _frame(names, block, list(range(start, start + len(block))), [])
            line, start = line + used, start + len(block)
        rows = _quoted_rows(file, again, delimiter, line) if quoting else _plain_rows(again, delimiter, line)
        for number, batch in enumerate(iter(lambda: list(islice(rows, BATCH)), [])):
            yield _cells(file, names, width, batch, start + number * BATCH)


def _block(lines: Iterator[str], delimiter: str, quoting: bool) -> tuple[list[list[str]] | None, int]:
    """Return the rows of the next lines, None if their quotes are odd, and how many lines they took."""
    if not quoting:
        ahead = list(islice(lines, BATCH))
        return [cells.split(delimiter) for line in ahead if (cells := line.removesuffix("\n").removesuffix("\r"))], len(ahead)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        return [cells for cells in islice(reader, BATCH) if cells], reader.line_num
    except csv.Error:
        return None, reader.line_num


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
            cells = str(error)
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
    return _frame(names, good, numbers, lost)


def _frame(names: list[str], rows: list[list[str]], numbers: list[int], lost: list[Lost]) -> Rows:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    series = {name: pl.Series(column, dtype=pl.String) for name, column in zip(names, columns, strict=True)}
    return Rows(pl.DataFrame(series | {ROW: pl.Series(numbers, dtype=pl.UInt64)}), lost)
