"""File formats: each reader turns one file into batches of rows, and tells of every row it had to leave out.

    json     a list of objects, or what is at `records`   jsonl    one object a line, or what is at `records` in it
    csv tsv  text cells; Python's csv module, strict      parquet  through polars
    arrow    Arrow IPC, file or stream
    squad    one row per question
    flagembedding  jsonl whose pos and neg are lists      tevatron  jsonl of passages, as query_id, query, positives, negatives
    embedding-training-data  jsonl of [text, text, ...] or {"set": [...]}, as query, positives, negatives
    aligned  line i of several files                      lines    a label and a text a line, or what `pattern` says
    folders  a text a file, labelled by its folder        xml      the elements at `records`

A row that cannot be read is a `Lost`, and the file goes on. A file that cannot be read raises a SourceError. What is
packed is unpacked on the way in (packed.py, archives.py). Python's own csv and json do
the parsing, but for blocks in which all rows are in order (cells.py) and lines of plain JSON objects (json_blocks.py). polars'
parsers fill the missing cells of a short row, take a blank line for a row, and read half a surrogate pair as NUL, all in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import polars as pl

from curation.core.errors import SourceError, listed
from curation.core.tables import arrow_frames, parquet_frames
from curation.read.delimited import read_delimited
from curation.read.json_records import read_json, read_jsonl, read_squad
from curation.read.packed import ending_of
from curation.read.rows import BATCH, ROW, File, Lost, Reading, Rows, mendable
from curation.read.text_files import read_aligned, read_folders, read_lines
from curation.read.training_lines import embedding_line, flagembedding_line, tevatron_line
from curation.read.xml_records import read_xml
from curation.recipe.source import Reader, Table

__all__ = ["READERS", "ROW", "File", "Lost", "Rows", "read_file", "reader_of"]

ENDINGS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
KNOWN = {  # key: readers it is for
    "records": ("xml", "json", "jsonl"),
    "header": ("csv", "tsv", "aligned", "json", "jsonl"),
    "delimiter": ("csv", "tsv"),
    "quoting": ("csv", "tsv"),
    "encoding": tuple(name for name in get_args(Reader) if name not in ("parquet", "arrow", "beir")),
}
OTHER = {  # endings of what is not read, and what to do
    **dict.fromkeys((".lz4", ".7z", ".rar", ".br", ".z", ".lzma", ".sz", ".lzo"), "unpack it, or pack it as gz, zst, bz2 or xz"),
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".h5", ".npz", ".db"), "save it as csv, jsonl or parquet"),
}
AGAIN = "fetch the file again, or say the right `reader:`"


def read_file(file: File, table: Table, start: int) -> Reading:
    """Return the rows of one file in batches, numbered from `start`.

    Raises:
        SourceError: the file cannot be read as what it should be.
    """
    with mendable(file, table):
        yield from READERS[reader_of(file, table)](file, table, start)


def reader_of(file: File, table: Table) -> str:
    """Return the reader's name: the declared one, or by the file's ending.

    Raises:
        SourceError: no reader is declared, and none is known for the ending.
    """
    ending = ending_of(file.path)
    if table.reader is None and (last := file.path.suffix.lower()) in OTHER:
        raise SourceError(file.name, f"is a '{last}' file, which is not read", OTHER[last])
    if table.reader is None and ending not in ENDINGS:
        what = f"no reader for the ending '{ending}'" if ending else "no ending to tell the reader by"
        raise SourceError(file.name, what, f"say `reader:` and one of {listed(get_args(Reader), 20)}")
    reader = table.reader or ENDINGS[ending]
    for key, readers in KNOWN.items():
        if getattr(table, key) != Table.model_fields[key].default and reader not in readers:
            what = f"is read by '{reader}', to which `{key}` means nothing"
            raise SourceError(file.name, what, f"it is for {listed(readers, 5)}")
    return reader


def _read_parquet(file: File, table: Table, start: int) -> Reading:
    with file.on_disk() as place:
        if not (place.stat().st_size if isinstance(place, Path) else place.seek(0, 2)):
            raise SourceError(file.name, "is empty")
        try:
            if not isinstance(place, Path):
                place.seek(0)
            frames: Iterator[pl.DataFrame]
            if isinstance(place, Path) or not file.remote:
                frames = pl.scan_parquet(place, glob=False).collect_batches(chunk_size=BATCH, maintain_order=True)
            else:
                frames = parquet_frames(place, BATCH)
            for frame in frames:
                yield Rows(frame.with_row_index(ROW, start).with_columns(pl.col(ROW).cast(pl.UInt64)), [])
                start += len(frame)
        except (ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            what = str(error).splitlines()[0].removeprefix("parquet: ")
            raise SourceError(file.name, f"not readable as parquet ({what})", AGAIN) from None


def _read_arrow(file: File, table: Table, start: int) -> Reading:
    """Read Arrow IPC, both the file and the stream format."""
    with file.on_disk() as place:
        try:
            for frame in arrow_frames(place, BATCH):
                yield Rows(frame.with_row_index(ROW, start).with_columns(pl.col(ROW).cast(pl.UInt64)), [])
                start += len(frame)
        except (ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            what = (str(error) or "no reason given").splitlines()[0]
            raise SourceError(file.name, f"not readable as Arrow IPC ({what})", AGAIN) from None


READERS: dict[str, Callable[[File, Table, int], Reading]] = {
    "json": read_json,
    "jsonl": read_jsonl,
    "csv": partial(read_delimited, comma=True),
    "tsv": partial(read_delimited, comma=False),
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "flagembedding": partial(read_jsonl, line_of=flagembedding_line),
    "tevatron": partial(read_jsonl, line_of=tevatron_line),
    "embedding-training-data": partial(read_jsonl, line_of=embedding_line),
    "aligned": read_aligned,
    "lines": read_lines,
    "folders": read_folders,
    "xml": read_xml,
    "squad": read_squad,
}
