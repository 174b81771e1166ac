"""csv and tsv: blocks whose quotes and widths are regular by pyarrow.csv, everything else by Python's csv module in strict mode.

Every cell is text. pyarrow.csv alone would be too lenient: it reads `"a"b` as `ab`, and a quote that is never closed as text
up to the end of the file.
"""

from __future__ import annotations

import codecs
import csv
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from curation.core.errors import SourceError
from curation.read.blocks import lines_of, open_blocks
from curation.read.rows import BATCH, ROW, File, Lost, Reading, Rows, number_rows, record_limit, too_large
from curation.recipe.source import Source, Table

QUOTE, LINE_FEED, RETURN = b'"\n\r'
MOST_LINES = 1_000  # lines that a quoted cell of a tsv is looked for in
NO_QUOTES = "if quotes mean nothing in this file, say `quoting: false`"
SAY_QUOTING = "say `quoting: true` to read them as csv does, or `quoting: false` to keep them"
Row = tuple[int, int, "list[str] | str"]  # first line, number of lines, and the cells, or what is wrong with their quotes


def read_delimited(file: File, table: Table, start: int, is_csv: bool) -> Reading:
    """Read csv and tsv, every cell as text; blank lines and repetitions of the header are not rows.

    `header: false` names the columns column_1, column_2, ...; a column without a name in the header gets such a name too.

    Raises:
        SourceError: a quote that is not closed; or a tsv quoted like a csv, if `quoting` is not set.
    """

    def bare(cells: pl.Series) -> pl.Series:
        return cells.str.strip_chars().str.strip_chars("\ufeff").str.to_lowercase()

    for rows in _read_cells(file, table, start, is_csv):
        # leave out rows that repeat the header in any letter case: files were concatenated there
        frame = rows.frame
        names = [name for name in frame.columns if name != ROW]
        if len(names) > 1:
            short = frame.filter(frame[names[0]].str.len_bytes() <= len(names[0].encode()) + 20)  # nearly none, as a rule
            wanted = bare(pl.Series(names))
            same = (bare(short[name]) == one for name, one in zip(names, wanted, strict=True))
            again = short.filter(functools.reduce(pl.Series.__and__, same))[ROW]
            if len(again):
                evidence = f"{file.name}: {', '.join(names)}"[:200]
                lost = [Lost(row, "repeated_header", evidence, False) for row in again]
                rows = Rows(frame.filter(~frame[ROW].is_in(again.implode())), sorted([*rows.lost, *lost]))
        yield rows


def _read_cells(file: File, table: Table, start: int, is_csv: bool) -> Reading:
    delimiter = table.delimiter or ("," if is_csv else "\t")
    quoting = is_csv if table.quoting is None else table.quoting
    csv.field_size_limit(max(record_limit(table), csv.field_size_limit()))
    with open_blocks(file, table) as blocks:
        # the header, or the first row
        block = next(blocks, b"")
        lines = lines_of(chain([block], blocks))
        rows = _quoted_rows(file, table, lines, delimiter, 1) if quoting else _plain_rows(lines, delimiter, 1)
        first = next(rows, None)
        if first is None:
            raise SourceError(file.name, "is empty")
        number, _, cells = first
        if isinstance(table.header, list):
            names = table.header
        elif isinstance(cells, str):
            raise SourceError(f"{file.name}:{number}", f"the first row cannot be read ({cells})", NO_QUOTES)
        else:
            names = [(table.header and cell) or f"column_{i}" for i, cell in enumerate(cells, 1)]
        if sign := re.fullmatch(r"sep=(.?)", names[0]):
            said = json.dumps(sign[1] or delimiter)
            raise SourceError(
                f"{file.name}:{number}", "names the delimiter for Excel", f"delete this line, and say `delimiter: {said}`"
            )
        if names[0].lower().lstrip().startswith(("<!doctype html", "<html")):
            raise SourceError(
                f"{file.name}:{number}", "is a web page, not a table", "fetch the file itself, not the page about it"
            )
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise SourceError(f"{file.name}:{number}", f"two columns are named '{twice[0]}'", "name them all: `header: [...]`")
        said = "`header`" if isinstance(table.header, list) else "the header" if table.header else "the first row"
        width = f"{said} has {len(names)}"
        tsv = _TsvQuotes(file, names) if not is_csv and table.quoting is None else None
        first_rows_only = isinstance(table, Source) and table.sample == "first" and table.limit is not None
        if tsv and table.header is True and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
            raise SourceError(f"{file.name}:{first[0]}", "its header is in quotes", SAY_QUOTING)
        line = first[0] + first[1] if table.header is True else first[0]
        rows = rows if table.header is True else chain([first], rows)
        # regular blocks, up to the first that is not
        before = first
        before_and_rest = block.split(b"\n", line - 1)
        if len(before_and_rest) == line:  # the block goes on to this line
            rest = [before_and_rest[-1]]
            for frame, lines_used in _regular_blocks(rest, blocks, delimiter, quoting, names, record_limit(table)):
                if tsv:
                    tsv.count(frame, first_rows_only)
                if tsv and len(frame):  # a quoted cell of its last row may go on in the next block
                    blank = len(rest[0]) - len(rest[0].rstrip(b"\r\n"))
                    blank = max(0, rest[0].count(b"\n", len(rest[0]) - blank) - 1)
                    before = (line + lines_used - 1 - blank, 1, list(frame.row(-1)))
                yield from number_rows(frame, start)
                line, start = line + lines_used, start + len(frame)
            lines = lines_of(chain(rest, blocks))
            rows = _quoted_rows(file, table, lines, delimiter, line) if quoting else _plain_rows(lines, delimiter, line)
        # the remaining rows, one by one
        batch = list(islice(rows, BATCH))
        while batch:
            following = list(islice(rows, BATCH)) if tsv else []
            found = _rows_of_width(file, names, width, batch, start, before, following, delimiter if tsv else None)
            start, before = start + len(batch), batch[-1]
            batch = following if tsv else list(islice(rows, BATCH))
            if tsv:
                tsv.count(found.frame, first_rows_only)
            yield found
        if tsv:
            tsv.refuse()


# --- regular blocks ---


def _regular_blocks(
    rest: list[bytes], blocks: Iterator[bytes], delimiter: str, quoting: bool, names: list[str], most: int
) -> Iterator[tuple[pl.DataFrame, int]]:
    """Yield the rows of each block and the number of their lines, up to the first block that is not regular.

    `rest` holds what is still to be read: at first the current block; at the end the irregular one, from the start of a row.
    """
    following = next(blocks, None)
    while True:
        found = parse_regular(rest[0], delimiter, quoting, names, following is None, most)
        if found is None:
            break
        frame, used = found
        yield frame, rest[0].count(b"\n", 0, used)
        rest[0] = rest[0][used:]
        if following is None:
            return
        rest[0] += following
        following = next(blocks, None)
    rest += [following] if following is not None else []


def parse_regular(
    block: bytes, delimiter: str, quoting: bool, names: list[str], last: bool, most: int = 1 << 30
) -> tuple[pl.DataFrame, int] | None:
    """Return the whole rows of a block, and how many bytes they take; None if anything in the block is irregular.

    A byte is between quotes if the number of quotes before it is odd. If each quote that opens is at the beginning of a
    cell and each that closes at its end, except for doubled quotes within a cell, pyarrow.csv reads what the csv module
    reads in strict mode. Blank lines are not rows.

    Args:
        block: whole lines of UTF-8, the first of which begins a row.
        delimiter: one character.
        quoting: whether quotes mean anything.
        names: the columns.
        last: whether the file ends with the block, and with it the last row.
        most: bytes that a row may take.
    """
    lone_return = block.count(b"\r") != block.count(b"\r\n")
    if lone_return or b"\0" in block or len(delimiter.encode()) > 1 or len(block) > 1 << 30:
        return None
    block = block if block.endswith(b"\n") else block + b"\n"
    if not block.strip(b"\r\n"):  # blank lines only, which pyarrow takes for an empty file
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String)), len(block)
    characters, used, within = np.frombuffer(block, np.uint8), len(block), None
    # quotes
    if quoting and b'"' in block:
        quotes = characters == QUOTE
        within = np.bitwise_xor.accumulate(quotes.view(np.uint8)).view(bool)  # which bytes are between quotes
        at = np.flatnonzero(quotes)
        opens = within[at]
        begins, ends = at[opens], at[~opens]
        before, after = characters[begins[begins > 0] - 1], characters[ends + 1]  # a block ends with a line, not with a quote
        mark = ord(delimiter)
        allowed = ((before == mark) | (before == LINE_FEED) | (before == QUOTE)).all()
        allowed &= ((after == mark) | (after == LINE_FEED) | (after == QUOTE) | (after == RETURN)).all()
        if not allowed:
            return None
        if within[-1]:  # the last row goes on in the next block
            used = int(np.flatnonzero((characters == LINE_FEED) & ~within).max(initial=-1)) + 1
            if last or not used:
                return None
    # long rows
    if used > most:
        line_ends = characters[:used] == LINE_FEED
        line_ends &= True if within is None else ~within[:used]
        if np.diff(np.flatnonzero(line_ends), prepend=-1).max() - 1 > most:
            return None
    irregular: list[object] = []  # rows of another width

    def skip(row: object) -> str:
        irregular.append(row)
        return "skip"

    # pyarrow skips a byte-order mark, which in the middle of a file is text
    data = codecs.BOM_UTF8 + block[:used] if block.startswith(codecs.BOM_UTF8) else memoryview(block)[:used]
    reader = pa.csv.open_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(data), column_names=names),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if quoting else False, newlines_in_values=quoting, invalid_row_handler=skip
        ),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), check_utf8=False),
    )
    frame = pl.from_arrow(reader.read_all())
    assert isinstance(frame, pl.DataFrame)
    return None if irregular else (frame, used)


# --- row by row ---


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
                # the broken cell follows the whole cells, each with the delimiter after it
                mark, row, at = re.escape(delimiter), "".join(held), 0
                whole = re.compile(rf'(?:"(?:[^"]++|"")*+"|(?!")[^{mark}\n]*+){mark}')
                while match := whole.match(row, at):
                    at = match.end()
                line = start + row.count("\n", 0, at)
                other = next(iter(set(re.findall('[;\t|](?=")|(?<=")[;\t|]', row)) - {delimiter}), None)
                hint = f"perhaps `delimiter: {json.dumps(other)}`; {NO_QUOTES}" if other else NO_QUOTES
                raise SourceError(f"{file.name}:{line}", "the quote that opens here is not closed properly", hint) from None
            other = re.search('"([;\t|])', held[0])
            if "new-line character" in str(error):
                what = "its rows end with CR alone, as in Excel's 'CSV (Macintosh)'"
                raise SourceError(file.name, what, "save it as 'CSV UTF-8'") from None
            cells = f"{error}, perhaps `delimiter: {json.dumps(other[1])}`" if other else str(error)
        if cells:
            yield start, len(held), cells
        start = before + reader.line_num


def _rows_of_width(
    file: File, names: list[str], width: str, batch: list[Row], start: int, before: Row, following: list[Row], tsv: str | None
) -> Rows:
    """Return rows; those of another width are lost.

    `before` is the row before them, `following` are those after them; `tsv` is the delimiter if the quotes may be those of csv.
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
            if lines > 1:  # a row of several lines with a wrong width is far more likely an unclosed quote
                raise SourceError(f"{file.name}:{line}", f"a row of {lines} lines begins here, with {what}", NO_QUOTES)
            if tsv:
                at = row - start
                around = [batch[at - 1] if at else before, *batch[at : at + MOST_LINES]]
                around += following[: MOST_LINES + 1 - len(around)]
                _refuse_quoted_line_end(file, [(one[0], one[2]) for one in around if isinstance(one[2], list)], tsv, len(names))
            lost.append(Lost(row, "wrong_number_of_fields", f"{file.name}:{line}: {what}", True))
    columns = list(zip(*good, strict=True)) or [()] * len(names)
    series = {name: pl.Series(column, dtype=pl.String) for name, column in zip(names, columns, strict=True)}
    return Rows(pl.DataFrame(series | {ROW: pl.Series(numbers, dtype=pl.UInt64)}), lost)


# --- headers and quotes where none should be ---


class _TsvQuotes:
    """Whether a tsv is quoted like a csv: every cell that has a quote is in quotes, and quotes within it are doubled."""

    def __init__(self, file: File, names: list[str]) -> None:
        self.file, self.names, self.rows = file, names, 0
        self.full: Counter[str] = Counter()  # column: cells that are not empty
        self.within: Counter[str] = Counter()  # column: cells in quotes
        self.other = self.doubled = 0  # cells with other quotes; with doubled ones within

    def count(self, frame: pl.DataFrame, decide: bool) -> None:
        """Count the quotes of more rows; `decide` now whether to refuse the file if it may not be read to its end."""
        for name in self.names if not self.other else ():
            cells = frame[name]
            self.full[name] += int((cells != "").sum())
            quoted = cells.filter(cells.str.contains('"', literal=True))
            inside = quoted.filter(quoted.str.contains(r'(?s)^"(?:[^"]|"")*"$'))
            self.other += len(quoted) - len(inside)
            self.within[name] += len(inside)
            self.doubled += int(inside.str.slice(1).str.head(-1).str.contains('""', literal=True).sum())
        if decide:
            self.refuse()

    def refuse(self) -> None:
        """Refuse the file, once all its rows were counted, if it is quoted like a csv."""
        whole = [name for name, count in self.within.items() if count > 1 and count == self.full[name]]
        if not self.other and (self.doubled or whole):
            raise SourceError(self.file.name, "its cells are in quotes", SAY_QUOTING)


def _refuse_quoted_line_end(file: File, lines: list[tuple[int, list[str]]], delimiter: str, width: int) -> None:
    """Refuse a tsv if a row of a wrong width is the end, or the beginning, of a row with a line end in quotes.

    `lines` are the numbers and cells of the line before, the row itself, and lines after it.
    """
    for start in (0, 1):
        texts = (delimiter.join(cells) + "\n" for _, cells in lines[start:])
        reader = csv.reader(texts, delimiter=delimiter, strict=True)
        try:
            row = next(reader, [])
        except csv.Error:  # a quote within a cell, or one that these lines do not close
            continue
        if len(row) == width and reader.line_num > 1 - start:
            raise SourceError(f"{file.name}:{lines[start][0]}", "a cell in quotes holds a line end or a tab", SAY_QUOTING)
