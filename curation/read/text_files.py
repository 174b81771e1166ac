"""Plain text as rows: line i of several files, a row a line, a row a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, zip_longest

import polars as pl

from curation.core.errors import SourceError, decoded, listed
from curation.read.blocks import lines_of, opened_blocks
from curation.read.rows import BATCH, ROW, File, Lost, Reading, Rows, batches, mendable, opened, record_limit, too_large
from curation.recipe.source import Table

LABEL_TEXT = r"(?P<label>\S+)\s+(?P<text>.*)"
# The head of a mail or post (RFC 5322): fields, folded lines of theirs, and the blank line that ends them. Old posts may
# begin within a folded field, and fold blank lines.
HEAD = re.compile(r"\A(?:[ \t][^\n]*\n)*(?:[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*)+\r?(?:\n|\Z)")
SENDER = re.compile(r"^(?:from|subject):", re.IGNORECASE | re.MULTILINE)  # without either it is no mail's head


def read_aligned(file: File, table: Table, start: int) -> Reading:
    """Read a file and those `beside` it: line i of each, without the white space around it, makes row i.

    Columns are named by `header`, one name a file. An empty line is an empty cell: its label may stand in another file.

    Raises:
        SourceError: the files have unequal numbers of lines.
    """
    files, names = (file, *file.beside), table.header
    assert isinstance(names, list)
    rows = zip_longest(*(_stripped(one, table) for one in files))
    while batch := list(islice(rows, BATCH)):
        if None in batch[-1]:
            counts = [f"{one.name} has {sum(1 for _ in _stripped(one, table)):,} lines" for one in files]
            raise SourceError(
                file.name, f"files to be aligned differ in length: {', '.join(counts)}", "line i of each makes a row"
            )
        numbers = pl.Series(range(start, start + len(batch)), dtype=pl.UInt64)
        columns = zip(names, zip(*batch, strict=True), strict=True)
        yield Rows(pl.DataFrame({name: pl.Series(cells, dtype=pl.String) for name, cells in columns} | {ROW: numbers}), [])
        start += len(batch)
    if not start:
        raise SourceError(file.name, "is empty")


def _stripped(file: File, table: Table) -> Iterator[str]:
    with mendable(file, table), opened_blocks(file, table) as blocks:
        for line in lines_of(blocks):
            yield line.strip()


def read_lines(file: File, table: Table, start: int) -> Reading:
    """Read lines by `pattern`, whose named groups are the columns; by default a label, white space, and a text.

    The pattern has to match the whole line. Blank lines are no rows.

    Raises:
        SourceError: the pattern is no regular expression of the engine's, or names no group.
    """
    whole = rf"^(?:{table.pattern or LABEL_TEXT})$"
    with opened_blocks(file, table) as blocks:
        numbered = (
            (number, text)
            for number, line in enumerate(lines_of(blocks), 1)
            if (text := line.rstrip("\r\n")) and not text.isspace()
        )
        first = next(numbered, None)
        if first is None:
            raise SourceError(file.name, "is empty")
        held = [first]
        while held or (held := list(islice(numbered, BATCH))):
            yield _matched(file, whole, held, start)
            start, held = start + len(held), []


def _matched(file: File, pattern: str, lines: list[tuple[int, str]], start: int) -> Rows:
    texts = pl.Series("line", [text for _, text in lines])
    rows = pl.Series(range(start, start + len(lines)), dtype=pl.UInt64)
    try:
        fits = texts.str.contains(pattern)
        cells = texts.str.extract_groups(pattern).struct.unnest()
    except pl.exceptions.ComputeError as error:
        what = [line.strip() for line in str(error).splitlines() if line.startswith("error:")]
        raise SourceError(
            file.name,
            f"`pattern` is no regular expression that Rust's regex takes ({listed(what)})",
            "no look-around, no back-references",
        ) from None
    if not cells.width or any(name.isdecimal() for name in cells.columns):
        raise SourceError(file.name, "`pattern` needs a name for each of its groups", r"such as (?P<label>\S+) (?P<text>.*)")
    odd = [(row, *lines[row - start]) for row in rows.filter(~fits)]
    lost = [Lost(row, "no_match", f"{file.name}:{number}: {text[:80]}", True) for row, number, text in odd]
    return Rows(cells.with_columns(rows.alias(ROW)).filter(fits), lost)


def read_folders(file: File, table: Table, start: int) -> Reading:
    """Read a whole file as a row: `text`, `body` (the text without a mail's or post's head), `label` (its folder), `file`."""
    try:
        with opened(file, table) as lines:
            text = lines.read(record_limit(table) + 1)
    except UnicodeDecodeError as error:
        return batches(
            [("undecodable", f"{file.name}: byte {error.start} is no {table.encoding} text", True)], start, file, table
        )
    if len(text) > record_limit(table):
        return batches([("too_large", str(too_large(file.name, "this file", table)), True)], start, file, table)
    row = {"text": text, "body": _body(text), "label": decoded(file.path.parent.name), "file": decoded(file.path.name)}
    return batches([row], start, file, table)


def _body(text: str) -> str:
    head = HEAD.match(text)
    return text[head.end() :] if head and SENDER.search(head[0]) else text
