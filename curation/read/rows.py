"""Rows on their way in: files opened, what is wrong with them said in one line, records gathered into tables."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import polars as pl
import zstandard

from curation.core.errors import SourceError
from curation.read.encodings import HEAD, likely, mark_of, refuse_other
from curation.read.mapping import ROW as ROW
from curation.read.mapping import frame_of_records
from curation.recipe.source import Table

MARKS = {b"\x1f\x8b": "gz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zX": "xz"}
BROKEN = (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError, zstandard.ZstdError, lzma.LZMAError)
BATCH = 20_000  # rows


class Lost(NamedTuple):
    """A row that was left out. `bad` counts against the source's `max_bad`; else it was left out on purpose."""

    row: int
    reason: str
    evidence: str
    bad: bool


class Rows(NamedTuple):
    """A batch: `frame` has the file's columns and `ROW` (u64); the row numbers of `frame` and `lost` together have no gap."""

    frame: pl.DataFrame
    lost: list[Lost]


class File(NamedTuple):
    """A file, or a member of an archive: where it is, what it is called in messages, and the folder its source begins in.

    A member's `path` is as if the archive were a folder, and so is its `root`, the archive. `unpack` is how to open
    what does not stand on the disk as it is.
    """

    path: Path
    name: str
    root: Path
    beside: tuple[File, ...] = ()  # files whose line i belongs to line i of this one
    unpack: Callable[[], IO[bytes]] | None = None
    remote: bool = False  # whether what `unpack` opens can be jumped about in, over the network

    def open(self) -> IO[bytes]:
        """Open the file's own bytes, unpacked, to be read once from the start."""
        return self.unpack() if self.unpack else self.path.open("rb")

    @contextmanager
    def on_disk(self) -> Iterator[Path | IO[bytes]]:
        """Return the file for a reader that has to jump about in it: a packed one as a nameless temporary file."""
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


Reading = Iterator[Rows]
Record = dict[str, Any]
Found = Iterable["Record | tuple[str, str, bool]"]  # a record, or (reason, evidence, bad) of a lost one


def record_limit(table: Table) -> int:
    """Return the bytes or characters that one record of a table may take."""
    return max(1, int(table.max_record * 1e6))


def too_large(where: str, what: str, table: Table, hint: str = "raise it if the file is right") -> SourceError:
    """Return what to say of a record that takes more than it may."""
    return SourceError(where, f"{what} takes more than the {table.max_record:g} MB of `max_record`", hint)


@contextmanager
def mendable(file: File, table: Table) -> Iterator[None]:
    """Turn what is wrong with a file into one line."""
    again = "fetch the file again"
    try:
        yield
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        line, hint = _undecodable(file, table.encoding)
        raise SourceError(f"{file.name}:{line}", f"byte {byte} is no {table.encoding} text", hint) from None
    except UnicodeError as error:  # a codec's own complaint, such as a missing mark
        raise SourceError(file.name, f"is no {table.encoding} text ({error})", "declare the file's own encoding") from None
    except EOFError:
        raise SourceError(file.name, "what is packed here is cut off", again) from None
    except BROKEN as error:
        raise SourceError(file.name, f"cannot be unpacked ({error})", again) from None
    except OSError as error:
        raise SourceError(file.name, f"cannot be opened ({error.strerror or error})", "check path and permissions") from None


def _undecodable(file: File, encoding: str) -> tuple[int, str]:
    """Return the line of the first byte that does not decode, and the encoding to try."""
    decoder, line, sample = codecs.getincrementaldecoder(encoding)(), 1, b""
    with file.open() as raw:
        try:
            while block := raw.read(1 << 16):
                sample = sample or block[:4]
                line += decoder.decode(block).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(encoding, "replace").count("\n")
            for start, packing in MARKS.items():
                if sample.startswith(start):
                    return line, f"it is packed: let its name end in .{packing}"
            if sample in (b"PAR1", b"ARRO"):
                return line, f"say `reader: {'parquet' if sample == b'PAR1' else 'arrow'}`"
            first = error.object.rfind(b"\n", 0, error.start) + 1
            sample = bytes(error.object[first:]) + raw.read(1 << 16)
            sample = sample[: sample.rfind(b"\n") + 1 or None]  # whole lines, so that no character is cut off
    guess = likely(sample)
    return line, "declare the file's own encoding" + (f", perhaps `encoding: {guess}`" if guess else " with `encoding:`")


def encoding_of(file: File, table: Table) -> str:
    """Return the name that Python has for the encoding of a table's files."""
    try:
        "".encode(table.encoding)
    except (LookupError, ValueError):
        raise SourceError(
            file.name, f"'{table.encoding}' is no text encoding", "such as utf-8, utf-16, latin-1, cp1252"
        ) from None
    return codecs.lookup(table.encoding).name


@contextmanager
def opened(file: File, table: Table) -> Iterator[IO[str]]:
    """Open a text file: its lines end in LF alone and keep their ends; a byte-order mark is skipped."""
    encoding = encoding_of(file, table)
    with file.open() as raw:
        if isinstance(raw, io.BufferedReader):
            head = raw.peek(HEAD)[:HEAD]
            refuse_other(file.name, encoding, head)
            raw.read(len(mark) if (mark := mark_of(encoding)) and head.startswith(mark) else 0)
        with io.TextIOWrapper(raw, "utf-8-sig" if encoding == "utf-8" else encoding, newline="\n") as text:
            yield text


def batches(found: Found, start: int, file: File, table: Table) -> Reading:
    """Gather records and losses into batches."""
    source = iter(found)
    while batch := list(islice(source, BATCH)):
        numbered = list(enumerate(batch, start))
        start += len(batch)
        kept = [(row, record) for row, record in numbered if isinstance(record, dict)]
        lost = [Lost(row, *record) for row, record in numbered if not isinstance(record, dict)]
        yield Rows(frame_of_records(file.name, [record for _, record in kept], [row for row, _ in kept], table), lost)


def sliced(frame: pl.DataFrame, start: int) -> Reading:
    """Return rows, none of which is lost, in batches numbered from `start`."""
    for part in frame.iter_slices(BATCH):
        yield Rows(part.with_columns(pl.Series(ROW, np.arange(start, start + len(part)), dtype=pl.UInt64)), [])
        start += len(part)


def concat_batches(parts: list[pl.DataFrame], where: str) -> pl.DataFrame:
    """Join batches; a column that is not of one type throughout becomes text, or lists of text where any part has lists.

    Raises:
        SourceError: types that do not go together even so.
    """
    kinds: dict[str, set[pl.DataType]] = {}
    for part in parts:
        for name, kind in part.schema.items():
            if kind != pl.Null:
                kinds.setdefault(name, set()).add(kind)
    mixed = {name for name, found in kinds.items() if len(found) > 1 and name != ROW}
    with_lists = {name for name in mixed if any(isinstance(kind, pl.List) for kind in kinds[name])}
    try:
        return pl.concat([_of_one_type(part, mixed, with_lists) for part in parts], how="diagonal_relaxed")
    except (pl.exceptions.SchemaError, pl.exceptions.InvalidOperationError) as error:
        what = f"its parts have columns of types that do not go together ({str(error).splitlines()[0]})"
        raise SourceError(where, what, "name files of one kind only") from None


def _of_one_type(part: pl.DataFrame, mixed: set[str], with_lists: set[str]) -> pl.DataFrame:
    columns = []
    for name in sorted(mixed & set(part.columns)):
        values = part[name]
        if name not in with_lists:
            columns.append(values.cast(pl.String))
        elif isinstance(values.dtype, pl.List):
            columns.append(values.cast(pl.List(pl.String)))
        else:
            texts = values.cast(pl.String)
            columns.append(pl.select(pl.when(texts.is_not_null()).then(pl.concat_list(texts)).alias(name)).to_series())
    return part.with_columns(columns)


def compact(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table with texts of its own: filtered ones keep the bytes of all rows that they stood among."""
    alone = pl.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
    assert isinstance(alone, pl.DataFrame)
    return alone.cast(frame.schema)
