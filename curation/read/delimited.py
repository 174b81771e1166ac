"""Rows of text cells: csv and tsv, by Python's csv module in strict mode where quotes mean something."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import polars as pl

from curation.core.errors import SourceError
from curation.read.blocks import lines_of, opened_blocks
from curation.read.cells import columns_of
from curation.read.lookalikes import MOST_LINES, SAY_QUOTING, TsvQuotes, refuse_line_end, without_headers
from curation.read.rows import BATCH, ROW, File, Lost, Reading, Rows, record_limit, sliced, too_large
from curation.recipe.source import Table

NO_QUOTES = "if quotes mean nothing in this file, say `quoting: false`"
Row = tuple[int, int, "list[str] | str"]  # first line, lines, and the cells, or what is wrong with their quotes


def read_delimited(file: File, table: Table, start: int, comma: bool) -> Reading:
    """Read csv and tsv, every cell as text; blank lines are no rows, nor is the header where it is repeated.

    `header: false` names the columns column_1, column_2, ...; a column that the header leaves unnamed gets such a name too.

    Raises:
        SourceError: a quote that is not closed; or quotes in a tsv that are those of csv, where `quoting` does not say so.
    """
    return without_headers(file, _read(file, table, start, comma))


def _read(file: File, table: Table, start: int, comma: bool) -> Reading:
    delimiter = table.delimiter or ("," if comma else "\t")
    quoting = comma if table.quoting is None else table.quoting
    with opened_blocks(file, table) as blocks:
        block = next(blocks, b"")
        lines = lines_of(chain([block], blocks))
        rows = _quoted_rows(file, table, lines, delimiter, 1) if quoting else _plain_rows(lines, delimiter, 1)
        first = next(rows, None)
        if first is None:
            raise SourceError(file.name, "is empty")
        names = _columns(file, table, first)
        said = "`header`" if isinstance(table.header, list) else "the header" if table.header else "the first row"
        width = f"{said} has {len(names)}"
        tsv = TsvQuotes(file, names) if not comma and table.quoting is None else None
        if tsv and table.header is True and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
            raise SourceError(f"{file.name}:{first[0]}", "its header is in quotes", SAY_QUOTING)
        line = first[0] + first[1] if table.header is True else first[0]
        rows = rows if table.header is True else chain([first], rows)
        if (at := _after(block, line - 1)) is not None:
            rest = [block[at:]]
            for frame, lines_used in _frames(rest, blocks, delimiter, quoting, names, record_limit(table)):
                if tsv:
                    tsv.look(frame)
                yield from sliced(frame, start)
                line, start = line + lines_used, start + len(frame)
            lines = lines_of(chain(rest, blocks))
            rows = _quoted_rows(file, table, lines, delimiter, line) if quoting else _plain_rows(lines, delimiter, line)
        before = first
        for number, batch in enumerate(iter(lambda: list(islice(rows, BATCH)), [])):
            found = _cells(file, names, width, batch, start + number * BATCH, before, delimiter if tsv else None)
            before = batch[-1]
            if tsv:
                tsv.look(found.frame)
            yield found
        if tsv:
            tsv.refuse()


def _after(block: bytes, lines: int) -> int | None:
    """Return where the line after so many begins, None where a block has fewer."""
    at = 0
    for _ in range(lines):
        if not (at := block.find(b"\n", at) + 1):
            return None
    return at


def _frames(
    rest: list[bytes], blocks: Iterator[bytes], delimiter: str, quoting: bool, names: list[str], most: int
) -> Iterator[tuple[pl.DataFrame, int]]:
    """Yield the rows of block after block, and how many lines they took, as far as none is odd.

    `rest` is what is still to be read: the block at hand, and in the end the one with the odd row, from a row's start.
    """
    following = next(blocks, None)
    while True:
        found = columns_of(rest[0], delimiter, quoting, len(names), following is None, most)
        if found is None:
            break
        columns, used = found
        yield pl.DataFrame(dict(zip(names, columns, strict=True))), rest[0].count(b"\n", 0, used)
        rest[0] = rest[0][used:]
        if following is None:
            return
        rest[0] += following
        following = next(blocks, None)
    rest += [following] if following is not None else []


def _plain_rows(lines: Iterable[str], delimiter: str, start: int) -> Iterator[Row]:
    for number, line in enumerate(lines, start):
        cells = line.removesuffix("\n").removesuffix("\r")
        if cells:
            yield number, 1, cells.split(delimiter)


def _quoted_rows(file: File, table: Table, lines: Iterable[str], delimiter: str, start: int) -> Iterator[Row]:
    held: list[str] = []  # the lines of this row
    size, most = 0, record_limit(table)

    def feed() -> Iterator[str]:
        nonlocal size
        for line in lines:
            held.append(line)
            size += len(line)
            if size > most:
                raise too_large(f"{file.name}:{start}", "the row that begins here", table, f"{NO_QUOTES}, else raise it")
            yield line

    csv.field_size_limit(max(most, csv.field_size_limit()))
    reader, before = csv.reader(feed(), delimiter=delimiter, strict=True), start
    while True:
        held.clear()
        size = 0
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


def _cells(file: File, names: list[str], width: str, batch: list[Row], start: int, before: Row, tsv: str | None) -> Rows:
    """Return rows, those of another width as lost ones.

    `before` is the row before them; `tsv` is the delimiter where quotes may be those of csv.
    """
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
            if tsv:
                at = row - start
                around = [batch[at - 1] if at else before, *batch[at : at + MOST_LINES]]
                told = [(one[0], one[2]) for one in around if isinstance(one[2], list)]
                refuse_line_end(file, told, tsv, len(names))
            lost.append(Lost(row, "wrong_number_of_fields", f"{file.name}:{line}: {what}", True))
    return _frame(names, list(zip(*good, strict=True)) or [()] * len(names), numbers, lost)


def _frame(names: list[str], columns: Sequence[Sequence[str]], numbers: Sequence[int], lost: list[Lost]) -> Rows:
    series = {name: pl.Series(column, dtype=pl.String) for name, column in zip(names, columns, strict=True)}
    return Rows(pl.DataFrame(series | {ROW: pl.Series(numbers, dtype=pl.UInt64)}), lost)
