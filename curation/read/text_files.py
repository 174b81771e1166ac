"""Plain text as rows: line i of several files, one row per line, one row per file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, zip_longest

import polars as pl

from curation.core.errors import SourceError, decoded, listed
from curation.read.blocks import lines_of, open_blocks, open_text, reading_errors
from curation.read.rows import BATCH, ROW, File, Found, Lost, Reading, Rows, record_limit, too_large
from curation.recipe.source import Table

LABEL_TEXT = r"(?P<label>\S+)\s+(?P<text>.*)"
# The head of a mail or post (RFC 5322): fields, their folded lines, and the blank line that ends them. Old posts may begin
# within a folded field, and fold blank lines.
MAIL_HEAD = re.compile(r"\A(?:[ \t][^\n]*\n)*(?:[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*)+\r?(?:\n|\Z)")
SENDER = re.compile(r"^(?:from|subject):", re.IGNORECASE | re.MULTILINE)  # a mail's head has one of them


def read_aligned(file: File, table: Table, start: int) -> Reading:
    """Read a file and those `beside` it: row i is line i of each, without the white space around it.

    `header` has one name per file. An empty line is an empty cell, since its label may be in another file.

    Raises:
        SourceError: the files have unequal numbers of lines.
    """
    files, names = (file, *file.beside), table.header
    assert isinstance(names, list)
    rows = zip_longest(*(_stripped(one, table) for one in files))
    while batch := list(islice(rows, BATCH)):
        if None in batch[-1]:
            counts = [f"{one.name} has {sum(1 for _ in _stripped(one, table)):,} lines" for one in files]
            what = f"files to be aligned differ in length: {', '.join(counts)}"
            raise SourceError(file.name, what, "line i of each file makes one row")
        numbers = pl.Series(range(start, start + len(batch)), dtype=pl.UInt64)
        columns = zip(names, zip(*batch, strict=True), strict=True)
        yield Rows(pl.DataFrame({name: pl.Series(cells, dtype=pl.String) for name, cells in columns} | {ROW: numbers}), [])
        start += len(batch)
    if not start:
        raise SourceError(file.name, "is empty")


def _stripped(file: File, table: Table) -> Iterator[str]:
    with reading_errors(file, table), open_blocks(file, table) as blocks:
        for line in lines_of(blocks):
            yield line.strip()


def read_lines(file: File, table: Table, start: int) -> Reading:
    """Read lines by `pattern`, whose named groups are the columns; by default a label, white space, and a text.

    The pattern has to match the whole line. Blank lines are not rows.

    Raises:
        SourceError: the pattern is not a regular expression of Rust's regex, or has a group without a name.
    """
    pattern = rf"^(?:{table.pattern or LABEL_TEXT})$"
    with open_blocks(file, table) as blocks:
        lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(lines_of(blocks), 1))
        numbered = ((number, text) for number, text in lines if text and not text.isspace())
        held = list(islice(numbered, 1))
        if not held:
            raise SourceError(file.name, "is empty")
        while held or (held := list(islice(numbered, BATCH))):
            rows = pl.Series(range(start, start + len(held)), dtype=pl.UInt64)
            texts = pl.Series("line", [text for _, text in held])
            try:
                fits, cells = texts.str.contains(pattern), texts.str.extract_groups(pattern).struct.unnest()
            except pl.exceptions.ComputeError as error:
                what = listed(line.strip() for line in str(error).splitlines() if line.startswith("error:"))
                what = f"`pattern` is not a regular expression that Rust's regex accepts ({what})"
                raise SourceError(file.name, what, "no look-around, no back-references") from None
            if not cells.width or any(name.isdecimal() for name in cells.columns):
                hint = r"such as (?P<label>\S+) (?P<text>.*)"
                raise SourceError(file.name, "`pattern` needs a name for each of its groups", hint)
            misses = [(row, *held[row - start]) for row in rows.filter(~fits)]
            lost = [Lost(row, "no_match", f"{file.name}:{number}: {text[:80]}", True) for row, number, text in misses]
            yield Rows(cells.with_columns(rows.alias(ROW)).filter(fits), lost)
            start, held = start + len(held), []


def file_as_row(file: File, table: Table) -> Found:
    """Return a file as one row.

    Columns: `text`, `body` (the text without the head of a mail or post), `label` (the name of its folder), `file` (its own
    name), and `path` (folder and name, from the folder that its source begins in).
    """
    try:
        with open_text(file, table) as lines:
            text = lines.read(record_limit(table) + 1)
    except UnicodeDecodeError as error:
        return [("undecodable", f"{file.name}: byte {error.start} is not {table.encoding} text", True)]
    if len(text) > record_limit(table):
        return [("too_large", str(too_large(file.name, "this file", table)), True)]
    head = MAIL_HEAD.match(text)
    body = text[head.end() :] if head and SENDER.search(head[0]) else text
    inside = file.path.relative_to(file.root) if file.path.is_relative_to(file.root) else file.path
    names = {"label": file.path.parent.name, "file": file.path.name, "path": inside.as_posix()}
    return [{"text": text, "body": body} | {key: decoded(name) for key, name in names.items()}]
