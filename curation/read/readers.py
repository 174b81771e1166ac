"""File formats: each reader turns one file into batches of rows, and reports every row that it had to leave out.

    json     a list of objects, or the rows at `records`  jsonl    one object per line, or the rows at `records` in it
    csv tsv  text cells                                   parquet  through polars
    arrow    Arrow IPC, file or stream                    squad    one row per question
    flagembedding  jsonl whose pos and neg are lists      tevatron  jsonl of passages, as query_id, query, positives, negatives
    embedding-training-data  jsonl of [text, text, ...] or {"set": [...]}, as query, positives, negatives
    aligned  line i of several files                      lines    a label and a text per line, or the groups of `pattern`
    folders  one text per file, labelled by its folder    xml      the elements at `records`

A row that cannot be read becomes a `Lost`, and reading continues. A file that cannot be read raises a SourceError. Packed
files are unpacked as they are read (archives.py). Python's own csv and json parse whatever is irregular; pyarrow parses
blocks of regular csv (delimited.py) and of plain JSON objects (json_values.py). The parsers of polars are not used: without
a word they fill the missing cells of a short row, take a blank line for a row, and read half a surrogate pair as NUL.
"""

from __future__ import annotations

import ast
import fnmatch
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import polars as pl

from curation.core.errors import SourceError, listed
from curation.core.tables import arrow_frames, parquet_frames
from curation.read.archives import ending_of
from curation.read.blocks import reading_errors
from curation.read.delimited import read_delimited
from curation.read.json_records import (
    embedding_tuple,
    flagembedding_line,
    read_json_document,
    read_jsonl,
    read_line,
    squad_rows,
    tevatron_line,
)
from curation.read.rows import BATCH, ROW, File, Found, Lost, Reading, Rows, batches, number_rows
from curation.read.text_files import file_as_row, read_aligned, read_lines
from curation.read.xml_records import xml_rows
from curation.recipe.source import Fields, Reader, Table

READER_OF_ENDING = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
KEYS = {  # key of a table: the readers that use it
    "records": ("xml", "json", "jsonl"),
    "header": ("csv", "tsv", "aligned", "json", "jsonl"),
    "delimiter": ("csv", "tsv"),
    "quoting": ("csv", "tsv"),
    "encoding": tuple(name for name in get_args(Reader) if name not in ("parquet", "arrow", "beir")),
}
UNREADABLE = {  # ending: what to do with such a file
    **dict.fromkeys((".lz4", ".7z", ".rar", ".br", ".z", ".lzma", ".sz", ".lzo"), "unpack it, or pack it as gz, zst, bz2 or xz"),
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".h5", ".npz", ".db"), "save it as csv, jsonl or parquet"),
}
TEXT_READERS = (
    "set `reader:` to `lines` (a label and a text per line, or the groups of `pattern`), `aligned` (line i of several files "
    "makes one row), `folders` (each file is a text), or to the format that it holds, such as `tsv`"
)
FETCH_AGAIN = "fetch the file again, or say the right `reader:`"
LIST = r"^\s*(?:\[\s*(?:['\"\[{(]|\]|null|None)|\(\s*['\"])"  # how a list of texts or records begins that was written as text
LONGEST_LIST = 1_000_000  # characters


def file_rows(file: File, table: Table, start: int) -> Reading:
    """Return the rows of one file in batches, numbered from `start`.

    Raises:
        SourceError: the file cannot be read in its format.
    """
    with reading_errors(file, table):
        ending = ending_of(file.path)
        if table.reader is None and (last := file.path.suffix.lower()) in UNREADABLE:
            raise SourceError(file.name, f"is a '{last}' file, which is not read", UNREADABLE[last])
        if table.reader is None and ending not in READER_OF_ENDING:
            what = f"no reader for the ending '{ending}'" if ending else "has no ending that shows its format"
            hint = f"set `reader:` to one of {listed(get_args(Reader), 20)}"
            raise SourceError(file.name, what, TEXT_READERS if ending in (".txt", ".text", ".md") else hint)
        reader = table.reader or READER_OF_ENDING[ending]
        for key, readers in KEYS.items():
            if getattr(table, key) != Table.model_fields[key].default and reader not in readers:
                what = f"is read by '{reader}', which does not use `{key}`"
                raise SourceError(file.name, what, f"that is for {listed(readers, 5)}")
        if reader in RECORDS:
            yield from batches(RECORDS[reader](file, table), start, file, table)
        else:
            yield from READERS[reader](file, table, start)


def _read_columns(file: File, table: Table, start: int, form: str) -> Reading:
    """Read parquet, or Arrow IPC, both the file and the stream format."""
    with file.on_disk() as place:
        if form == "parquet":
            if not (place.stat().st_size if isinstance(place, Path) else place.seek(0, 2)):
                raise SourceError(file.name, "is empty")
            if not isinstance(place, Path):
                place.seek(0)
        try:
            packed = parquet_frames(place, BATCH, file.remote, file.groups) if form == "parquet" else arrow_frames(place, BATCH)
            for frame in packed:
                yield from number_rows(frame, start)
                start += len(frame)
        except (ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            what = (str(error) or "no reason given").splitlines()[0].removeprefix("parquet: ")
            raise SourceError(file.name, f"not readable as {form} ({what})", FETCH_AGAIN) from None


RECORDS: dict[str, Callable[[File, Table], Found]] = {  # readers that yield rows one by one
    "folders": file_as_row,
    "xml": xml_rows,
    "squad": squad_rows,
}
READERS: dict[str, Callable[[File, Table, int], Reading]] = {
    "json": read_json_document,
    "jsonl": read_jsonl,
    "csv": partial(read_delimited, is_csv=True),
    "tsv": partial(read_delimited, is_csv=False),
    "parquet": partial(_read_columns, form="parquet"),
    "arrow": partial(_read_columns, form="Arrow IPC"),
    "flagembedding": partial(read_jsonl, line_of=flagembedding_line),
    "tevatron": partial(read_jsonl, line_of=tevatron_line),
    "embedding-training-data": partial(read_jsonl, line_of=partial(read_line, change=embedding_tuple)),
    "aligned": read_aligned,
    "lines": read_lines,
}


def without_lists(where: str, table: Table, rows: Rows) -> Rows:
    """Leave out, as bad ones, rows in which a mapped column holds a list that was written as text."""
    fields = getattr(table, "fields", None)
    if not isinstance(fields, Fields):
        return rows
    # columns that could hold lists, and whose texts `join` does not keep as they are
    frame, lost = rows
    mapped = [name for name in (fields.positive, fields.documents, fields.answer, *fields.negatives) if name]
    found = (column for name in mapped for column in ([name] if name in frame.columns else fnmatch.filter(frame.columns, name)))
    for name in dict.fromkeys(found):
        if name in table.join or frame.schema[name] != pl.String:
            continue
        suspects = frame.filter(frame[name].str.contains(LIST)).select(ROW, name).rows()
        if written := [(row, text) for row, text in suspects if _is_list(text)]:
            hint = f"write lists as lists, as jsonl and parquet have them; or `join: {{{name}: ''}}` keeps such texts as they are"
            evidence = f"{where}: column '{name}' holds a list as text"
            lost = lost + [Lost(row, "list_as_text", f"{evidence}, {text[:60]}; {hint}", True) for row, text in written]
            frame = frame.filter(~pl.col(ROW).is_in([row for row, _ in written]))
    return rows if lost is rows.lost else Rows(frame, sorted(lost))


def _is_list(text: str) -> bool:
    """Return whether a text is a list of texts, records or lists, in Python or JSON; one of numbers may be a reference."""
    for parse in (ast.literal_eval, json.loads) if len(text) <= LONGEST_LIST else ():
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return isinstance(value, list | tuple) and (not value or any(isinstance(one, str | dict | list) for one in value))
    return False
