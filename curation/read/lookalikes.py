"""What looks like a row or a text, and is none: a header again or quotes in csv and tsv, a list as text in any format."""

from __future__ import annotations

import ast
import csv
import fnmatch
import functools
import io
import json
from collections import Counter
from collections.abc import Iterator

import polars as pl

from curation.core.errors import SourceError
from curation.read.rows import ROW, File, Lost, Reading, Rows
from curation.recipe.source import Fields, Table

LIST = r"^\s*(?:\[\s*(?:['\"\[{(]|\]|null|None)|\(\s*['\"])"  # how a list of texts or records begins that was written as text
LONGEST_LIST = 1_000_000  # characters
MOST_LINES = 100  # of a cell in quotes that a tsv is looked through for
SAY_QUOTING = "say `quoting: true` to read them as csv does, or `quoting: false` to keep them"


def without_headers(file: File, reading: Reading) -> Iterator[Rows]:
    """Leave out, on purpose, rows that are the header again, however its letters are written: where files were put together."""

    def bare(cells: pl.Series) -> pl.Series:
        return cells.str.strip_chars().str.strip_chars("\ufeff").str.to_lowercase()

    for rows in reading:
        frame = rows.frame
        names = [name for name in frame.columns if name != ROW]
        if len(names) > 1:
            short = frame.filter(frame[names[0]].str.len_bytes() <= len(names[0].encode()) + 20)  # nearly none, as a rule
            wanted = bare(pl.Series(names))
            same = (bare(short[name]) == one for name, one in zip(names, wanted, strict=True))
            again = short.filter(functools.reduce(pl.Series.__and__, same))[ROW]
            if len(again):
                told = f"{file.name}: {', '.join(names)}"[:200]
                lost = [Lost(row, "repeated_header", told, False) for row in again]
                rows = Rows(frame.filter(~frame[ROW].is_in(again.implode())), sorted([*rows.lost, *lost]))
        yield rows


def without_lists(where: str, table: Table, rows: Rows) -> Rows:
    """Leave out, as bad ones, rows in which a list of texts is written as text."""
    frame, lost = rows
    for name in _of_lists(table, frame.columns):
        if frame.schema[name] != pl.String:
            continue
        found = frame.filter(frame[name].str.contains(LIST)).select(ROW, name).rows()
        if written := [(row, text) for row, text in found if _is_list(text)]:
            hint = f"write lists as lists, as jsonl and parquet have them; or `join: {{{name}: ''}}` keeps such texts as they are"
            told = f"{where}: column '{name}' holds a list as text"
            lost = lost + [Lost(row, "list_as_text", f"{told}, {text[:60]}; {hint}", True) for row, text in written]
            frame = frame.filter(~pl.col(ROW).is_in([row for row, _ in written]))
    return rows if lost is rows.lost else Rows(frame, sorted(lost))


def _of_lists(table: Table, names: list[str]) -> list[str]:
    """Return the columns of a table that could be lists elsewhere, and are not kept as they are by `join`."""
    fields = getattr(table, "fields", None)
    if not isinstance(fields, Fields):
        return []
    wanted = [one for one in (fields.positive, fields.documents, fields.answer, *fields.negatives) if one]
    found = [name for one in wanted for name in ([one] if one in names else fnmatch.filter(names, one))]
    return [name for name in dict.fromkeys(found) if name not in table.join]


def _is_list(text: str) -> bool:
    """Tell whether a text is a list of texts, records or lists, in Python or JSON; one of numbers may be a reference."""
    for parse in (ast.literal_eval, json.loads) if len(text) <= LONGEST_LIST else ():
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return isinstance(value, list | tuple) and (not value or any(isinstance(one, str | dict | list) for one in value))
    return False


class TsvQuotes:
    """Whether quotes in a tsv are those of csv: then every cell with a quote is in quotes, and any within are doubled."""

    def __init__(self, file: File, names: list[str]) -> None:
        self.file, self.names, self.rows = file, names, 0
        self.full: Counter[str] = Counter()  # of a column: cells that are not empty
        self.within: Counter[str] = Counter()  # of a column: cells in quotes
        self.other = self.doubled = 0  # cells with other quotes; with doubled ones within

    def look(self, frame: pl.DataFrame) -> None:
        """Count the quotes of more rows."""
        for name in self.names if not self.other else ():
            cells = frame[name]
            self.full[name] += int((cells != "").sum())
            quoted = cells.filter(cells.str.contains('"', literal=True))
            inside = quoted.filter(quoted.str.contains(r'(?s)^"(?:[^"]|"")*"$'))
            self.other += len(quoted) - len(inside)
            self.within[name] += len(inside)
            self.doubled += int(inside.str.slice(1).str.head(-1).str.contains('""', literal=True).sum())

    def refuse(self) -> None:
        """Refuse the file, all of which was looked at, if its quotes are those of csv.

        Raises:
            SourceError: they are.
        """
        whole = [name for name, count in self.within.items() if count > 1 and count == self.full[name]]
        if not self.other and (self.doubled or whole):
            raise SourceError(self.file.name, "its cells are in quotes", SAY_QUOTING)


def refuse_line_end(file: File, lines: list[tuple[int, list[str]]], delimiter: str, width: int) -> None:
    """Refuse a tsv if a row of another width is the end, or the beginning, of one with a line end in quotes.

    `lines` are the numbers and cells of the line before, of the row itself, and of lines after it.

    Raises:
        SourceError: it is.
    """
    for start in (0, 1):
        texts = [delimiter.join(cells) for _, cells in lines[start:]]
        for end in range(2 if start == 0 else 1, len(texts) + 1):
            if not texts or '"' not in texts[0]:
                break
            try:
                rows = list(csv.reader(io.StringIO("\n".join(texts[:end]), newline=""), delimiter=delimiter, strict=True))
            except csv.Error as error:
                if "end of data" in str(error):
                    continue
                break
            if len(rows) == 1 and len(rows[0]) == width:
                raise SourceError(f"{file.name}:{lines[start][0]}", "a cell in quotes holds a line end or a tab", SAY_QUOTING)
            break
