"""Batches of rows: the files they come from, the table of good rows, and the rows that could not be read."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import polars as pl

from curation.core.errors import SourceError
from curation.read.mapping import ROW as ROW
from curation.read.mapping import frame_of_records
from curation.recipe.source import Table

BATCH = 20_000  # rows


class Lost(NamedTuple):
    """A row that was left out. If `bad`, it counts against the source's `max_bad`; if not, it was left out on purpose."""

    row: int
    reason: str
    evidence: str
    bad: bool


class Rows(NamedTuple):
    """A batch: `frame` has the file's columns and `ROW` (u64). The row numbers of `frame` and `lost` together have no gap."""

    frame: pl.DataFrame
    lost: list[Lost]


class Lines(NamedTuple):
    """Some lines of a text file."""

    start: int  # bytes
    end: int
    first: int  # the number of the first line, from 1


class File(NamedTuple):
    """A file, or a member of an archive: where it is, what it is called in messages, and the folder its source begins in.

    The `path` and `root` of a member are as if the archive were a folder. `unpack` opens a file whose bytes are not on the
    disk as they are.
    """

    path: Path
    name: str
    root: Path
    beside: tuple[File, ...] = ()  # files whose line i belongs to line i of this one
    unpack: Callable[[], IO[bytes]] | None = None
    version: str = ""  # of an object that was fetched from a store: its etag, commit, or size and date
    remote: bool = False  # whether `unpack` opens a file on the network that can be read from any position
    groups: range | None = None  # the row groups of a parquet file that are read; None: all
    lines: Lines | None = None  # the lines of a text file that are read; None: all

    @property
    def first_line(self) -> int:
        """Return the number of the first line that is read."""
        return self.lines.first if self.lines else 1

    def open(self) -> IO[bytes]:
        """Open the file's own bytes, unpacked, to be read once from the start."""
        if self.lines:
            return io.BufferedReader(_Slice(self.path, self.lines))
        return self.unpack() if self.unpack else self.path.open("rb")

    @contextmanager
    def on_disk(self) -> Iterator[Path | IO[bytes]]:
        """Return the file for a reader that needs random access; a packed one becomes a nameless temporary file."""
        if self.unpack is None:
            yield self.path
            return
        if self.remote:
            with self.open() as far:
                yield far
            return
        with tempfile.TemporaryFile() as whole, self.open() as raw:
            shutil.copyfileobj(raw, whole, 1 << 20)
            whole.seek(0)
            yield whole


class _Slice(io.RawIOBase):
    """The bytes of some lines of a file."""

    def __init__(self, path: Path, lines: Lines) -> None:
        self.file, self.left = path.open("rb", buffering=0), lines.end - lines.start
        self.file.seek(lines.start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(memoryview(buffer)[: self.left])
        self.left -= count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


Reading = Iterator[Rows]
Record = dict[str, Any]
Loss = tuple[str, str, bool]  # reason, evidence, bad: a `Lost` without its row number
Found = Iterable["Record | Loss"]


def record_limit(table: Table) -> int:
    """Return the bytes or characters that one record of a table may take."""
    return max(1, int(table.max_record * 1e6))


def too_large(where: str, what: str, table: Table, hint: str = "raise it if the file is right") -> SourceError:
    """Return the error for a record that is larger than `max_record`."""
    return SourceError(where, f"{what} takes more than the {table.max_record:g} MB of `max_record`", hint)


def batches(found: Found, start: int, file: File, table: Table) -> Reading:
    """Gather records and losses into batches, numbered from `start`."""
    source = iter(found)
    while batch := list(islice(source, BATCH)):
        numbered = list(enumerate(batch, start))
        start += len(batch)
        kept = [(row, record) for row, record in numbered if isinstance(record, dict)]
        lost = [Lost(row, *record) for row, record in numbered if not isinstance(record, dict)]
        yield Rows(frame_of_records(file.name, [record for _, record in kept], [row for row, _ in kept], table), lost)


def number_rows(frame: pl.DataFrame, start: int) -> Reading:
    """Return a table without lost rows in batches, numbered from `start`."""
    for part in frame.iter_slices(BATCH):
        yield Rows(part.with_columns(pl.Series(ROW, np.arange(start, start + len(part)), dtype=pl.UInt64)), [])
        start += len(part)


def concat_batches(parts: list[pl.DataFrame], where: str) -> pl.DataFrame:
    """Concatenate batches. A column of several types becomes text, or lists of text if any batch has lists in it.

    Raises:
        SourceError: types that cannot be combined even so.
    """
    kinds: dict[str, set[pl.DataType]] = {}
    for name, kind in (pair for part in parts for pair in part.schema.items() if pair[1] != pl.Null):
        kinds.setdefault(name, set()).add(kind)
    mixed = {name for name, found in kinds.items() if len(found) > 1 and name != ROW}
    with_lists = {name for name in mixed if any(isinstance(kind, pl.List) for kind in kinds[name])}

    def of_one_type(values: pl.Series) -> pl.Series:
        if values.name not in with_lists:
            return values.cast(pl.String)
        if isinstance(values.dtype, pl.List):
            return values.cast(pl.List(pl.String))
        texts = values.cast(pl.String)
        return pl.select(pl.when(texts.is_not_null()).then(pl.concat_list(texts)).alias(values.name)).to_series()

    try:
        alike = [part.with_columns(of_one_type(part[name]) for name in sorted(mixed & set(part.columns))) for part in parts]
        return pl.concat(alike, how="diagonal_relaxed")
    except (pl.exceptions.SchemaError, pl.exceptions.InvalidOperationError) as error:
        what = f"its parts have columns of types that do not go together ({str(error).splitlines()[0]})"
        raise SourceError(where, what, "name files of one kind only") from None


def compact(frame: pl.DataFrame) -> pl.DataFrame:
    """Copy a table's texts: a filtered table otherwise keeps the bytes of all rows it was filtered from."""
    alone = pl.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
    assert isinstance(alone, pl.DataFrame)
    return alone.cast(frame.schema)
