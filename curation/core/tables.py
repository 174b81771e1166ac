"""Tables on disk as parquet shards, read and written as a whole, by shard or by row group. Only this file knows parquet."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from curation.core.errors import BuildError
from curation.core.store import atomic

Compression = Literal["zstd", "lz4"]  # lz4 for tables that only the next stage reads
ROWS_PER_SHARD = 200_000
ROWS_PER_GROUP = 20_000
PLAIN = {pl.String, pl.Binary, pl.Boolean, pl.Float64, pl.Float32, pl.Int64, pl.Int32, pl.UInt64, pl.UInt32, pl.UInt8}
CHUNKS = {"min_chunk_size": 262_144, "max_chunk_size": 1_048_576, "norm_level": 0}  # as `datasets` writes them


if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
    with suppress(NotImplementedError):  # some builds of pyarrow lack it
        pa.set_memory_pool(pa.jemalloc_memory_pool())  # a build takes some 100 MB less than with Arrow's default


def write_table(
    folder: Path, name: str, table: pl.DataFrame, constants: Mapping[str, str] | None = None, compression: Compression = "zstd"
) -> None:
    """Write a table as `<name>-00000.parquet`, ... with `constants` in the parquet metadata; same table, same bytes."""
    write_frames(folder, name, [table], constants, compression)


def write_frames(
    folder: Path,
    name: str,
    frames: Iterable[pl.DataFrame],
    constants: Mapping[str, str] | None = None,
    compression: Compression = "zstd",
) -> int:
    """Write a table that arrives in parts (at least one), with the same files as `write_table`; return the number of rows.

    Memory holds one part and one row group.
    """
    groups, rows = _groups(frames), 0
    group: pl.DataFrame | None = next(groups)
    for shard in itertools.count():
        assert group is not None
        with atomic(shard_path(folder, name, shard)) as file, _writer(file, group, constants, compression) as writer:
            in_shard = 0
            while group is not None and in_shard < ROWS_PER_SHARD:
                writer.write_table(_arrow(group, constants))
                in_shard += len(group)
                group = next(groups, None)
        rows += in_shard
        if group is None:
            break
    return rows


def shard_path(folder: Path, name: str, shard: int) -> Path:
    """Return the file of a shard of a table; shard i begins with row i * ROWS_PER_SHARD."""
    return folder / f"{name}-{shard:05d}.parquet"


def shard_ranges(stays: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, end) rows of a table for each shard of those rows that stay, (rows,) bool; at least one shard."""
    firsts = [*np.flatnonzero(stays)[::ROWS_PER_SHARD].tolist(), len(stays)]
    return list(itertools.pairwise(firsts)) or [(len(stays), len(stays))]


def _groups(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the same rows as row groups whose size divides a shard; an empty table gives one group without rows."""
    size = min(ROWS_PER_GROUP, ROWS_PER_SHARD)
    held: list[pl.DataFrame] = []
    some = False
    for frame in frames:
        held.append(frame)
        if sum(map(len, held)) >= size:
            whole = pl.concat(held)
            last = len(whole) - len(whole) % size
            yield from (whole.slice(start, size) for start in range(0, last, size))
            held, some = [whole.slice(last)], True
    whole = pl.concat(held)
    if len(whole) or not some:
        yield whole


def _arrow(table: pl.DataFrame, constants: Mapping[str, str] | None) -> Any:
    whole = table.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    return whole.replace_schema_metadata(dict(constants or {}))


def _writer(
    file: IO[bytes], table: pl.DataFrame, constants: Mapping[str, str] | None, compression: Compression
) -> pq.ParquetWriter:
    # dictionaries cost more than they save for texts and ids, which rarely recur; lists of passages do recur
    recurring = [f"{name}.list.element" for name, kind in table.schema.items() if kind == pl.List(pl.String)]
    options = {"compression": compression, "write_page_index": True, "use_dictionary": recurring}
    return pq.ParquetWriter(file, _arrow(table.clear(), constants).schema, **options)


def write_blocks(path: Path, blocks: Iterable[pl.DataFrame], constants: Mapping[str, str] | None = None) -> int:
    """Write one parquet file atomically, each block (at least one) as a row group; return the bytes of its rows in memory.

    Page boundaries depend on the content: after rows were added or removed most pages equal those of the file before, so
    storage that deduplicates by content, such as the Hub's, receives only new pages.
    """
    size = 0
    with atomic(path) as file, ExitStack() as closing:
        writer = None
        for block in blocks:
            arrow = block.to_arrow(compat_level=pl.CompatLevel.oldest())
            arrow = arrow.cast(pa.schema([field.with_type(_plain_type(field.type)) for field in arrow.schema]))
            arrow = arrow.replace_schema_metadata(dict(constants or {}))
            if writer is None:
                options = {"compression": "zstd", "write_page_index": True, "use_content_defined_chunking": CHUNKS}
                writer = closing.enter_context(pq.ParquetWriter(file, arrow.schema, **options))
            writer.write_table(arrow)
            size += arrow.nbytes
    return size


def _plain_type(kind: Any) -> Any:
    """Return an Arrow type with 32-bit offsets, which every reader supports: string for large_string, list for large_list."""
    if pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return pa.string() if pa.types.is_large_string(kind) else kind


def write_parquet(path: Path, table: pl.DataFrame | Iterable[pl.DataFrame], constants: Mapping[str, str] | None = None) -> None:
    """Write a table, or frames of one (at least one), as one parquet file, atomically."""
    groups = _groups([table] if isinstance(table, pl.DataFrame) else table)
    first = next(groups)
    with atomic(path) as file, _writer(file, first, constants, "zstd") as writer:
        for group in itertools.chain([first], groups):
            writer.write_table(_arrow(group, constants))


def lists(values: np.ndarray | pl.Series, lengths: np.ndarray, absent: np.ndarray | None) -> pl.Series:
    """Return a list column: row i has the next `lengths[i]` of the values (n,), null if `absent` (n,) bool."""
    starts = pa.py_buffer(np.concatenate([[0], lengths.cumsum()]))
    if isinstance(values, pl.Series):
        each = values.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    else:
        present = pa.py_buffer(np.packbits(~absent, bitorder="little")) if absent is not None and absent.any() else None
        kind = pa.from_numpy_dtype(values.dtype)
        each = pa.Array.from_buffers(kind, len(values), [present, pa.py_buffer(values)])  # `pa.array` would import pandas
    rows = pa.Array.from_buffers(pa.large_list(each.type), len(lengths), [None, starts], children=[each])
    return pl.Series(pl.from_arrow(rows))


def read_table(folder: Path, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """Read all shards of a table back, in order.

    Raises:
        BuildError: the table does not exist.
    """
    return pl.concat(shards(folder, name, columns))


def shards(folder: Path, name: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the shards of a table, in order: at most ROWS_PER_SHARD rows each.

    Raises:
        BuildError: the table does not exist.
    """
    yield from (read_parquet(path, columns) for path in table_files(folder, name))


def table_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a table, in order.

    Raises:
        BuildError: the table does not exist.
    """
    paths = sorted(folder.glob(f"{name}-[0-9]*.parquet"))
    if not paths:
        raise BuildError(folder, f"holds no table '{name}'", "run the command that writes it again")
    return paths


def read_frames(folder: Path, name: str, columns: list[str] | None = None, every: int = 1) -> Iterator[pl.DataFrame]:
    """Yield a table row group by row group, in order; with `every`, only each so many-th of each file.

    Raises:
        BuildError: the table does not exist.
    """
    for path in table_files(folder, name):
        yield from read_groups(path, columns, every)


def read_groups(path: Path, columns: list[str] | None = None, every: int = 1) -> Iterator[pl.DataFrame]:
    """Yield a parquet file row group by row group, in order; with `every`, only each so many-th."""
    with pq.ParquetFile(path) as file:
        for group in range(0, file.num_row_groups, every):
            yield _read_group(file, group, columns)


def _read_group(file: pq.ParquetFile, group: int, columns: list[str] | None) -> pl.DataFrame:
    frame = pl.from_arrow(file.read_row_group(group, columns=columns, use_threads=False))
    assert isinstance(frame, pl.DataFrame)
    return frame.select(columns) if columns else frame


def chosen_rows(folder: Path, name: str, chosen: np.ndarray, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield those rows of a table that are `chosen` (rows,) bool, row group by row group, at least one frame.

    Row groups without such a row are not read.

    Raises:
        BuildError: the table does not exist.
    """
    return chosen_of(table_files(folder, name), chosen, columns)


def chosen_of(paths: list[Path], chosen: np.ndarray, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield those rows of parquet files that are `chosen`; see `chosen_rows`."""
    start = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                some = chosen[start : start + file.metadata.row_group(group).num_rows]
                start += len(some)
                if some.any() or start == len(chosen):
                    yield _read_group(file, group, columns).filter(some)


def table_size(folder: Path, name: str) -> int:
    """Return the number of rows of a table; only footers are read.

    Raises:
        BuildError: the table does not exist.
    """
    return sum(parquet_rows(path.open("rb")) for path in table_files(folder, name))


def find_rows(folder: Path, name: str, column: str, values: pl.Series, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a table whose `column` has one of the values; only row groups that hold such a row are read whole."""
    wanted = values.implode()
    for path in table_files(folder, name):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                there = pl.Series(file.read_row_group(group, columns=[column], use_threads=False)[column]).is_in(wanted)
                if there.any():
                    yield _read_group(file, group, columns).filter(there)


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read one parquet file of a build."""
    return pl.read_parquet(path, columns=columns, glob=False, hive_partitioning=False)


def read_rows(folder: Path, name: str, first: int, count: int) -> pl.DataFrame:
    """Read some rows of a table; only the row groups that hold them are read."""
    return pl.scan_parquet(table_files(folder, name), glob=False).slice(first, count).collect()


def replace_table(folder: Path, new: str, name: str) -> None:
    """Put the table `new` of a folder in the place of the table `name`."""
    for path in table_files(folder, name):
        path.unlink()
    for path in table_files(folder, new):
        path.rename(path.with_name(name + path.name.removeprefix(new)))


def link_table(source: Path, folder: Path, name: str) -> None:
    """Put a table into another folder too: as hard links if the disk supports them, else as copies."""
    for path in table_files(source, name):
        try:
            (folder / path.name).hardlink_to(path)
        except OSError:
            shutil.copyfile(path, folder / path.name)


def parquet_rows(file: IO[bytes]) -> int:
    """Return the number of rows of a parquet file; only its footer is read."""
    with file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def parquet_columns(file: IO[bytes]) -> list[str]:
    """Return the columns of a parquet file; only its footer is read."""
    with file:
        return list(pq.ParquetFile(file).schema_arrow.names)


def parquet_groups(path: Path) -> list[tuple[int, int]]:
    """Return (rows, bytes when unpacked) of each row group of a parquet file, of which only the footer is read.

    Raises:
        ValueError: not parquet, or broken.
    """
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in groups]
    except pa.ArrowException as error:
        raise ValueError(error) from None


def parquet_frames(source: Path | IO[bytes], rows: int, far: bool = False, groups: range | None = None) -> Iterator[pl.DataFrame]:
    """Yield the rows of a parquet file, or of a seekable open one, in batches; only what is consumed is read.

    A file on the disk is read through a buffer, so that memory does not grow with its row groups; one that is `far` away, in
    few large requests. Of several row `groups`, all by default.

    Raises:
        ValueError: not parquet, or broken.
    """
    try:
        options = {} if far else {"pre_buffer": False, "buffer_size": 1 << 20}
        with pq.ParquetFile(source, **options) as whole:
            for batch in whole.iter_batches(rows, groups, use_threads=far):
                yield _frame_of(batch)
    except pa.ArrowException as error:
        raise ValueError(error) from None


def _frame_of(batch: pa.RecordBatch) -> pl.DataFrame:
    """Return a batch as a frame. Columns of kinds that polars does not have are cast: wide decimals get 38 digits.

    Raises:
        ArrowException: a number has more.
    """
    for at, field in enumerate(batch.schema):
        kind = field.type
        if pa.types.is_decimal256(kind):
            batch = batch.set_column(at, field.name, batch.column(at).cast(pa.decimal128(38, kind.scale)))
        elif pa.types.is_fixed_size_list(kind):  # polars refuses one whose rows are all null
            batch = batch.set_column(at, field.name, batch.column(at).cast(pa.large_list(kind.value_field)))
        elif pa.types.is_run_end_encoded(kind):
            batch = batch.set_column(at, field.name, pc.run_end_decode(batch.column(at)))
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def buffer_of_frame(frame: pl.DataFrame) -> pa.Buffer | None:
    """Return a frame as an Arrow stream; None if it has a column of a type that Arrow does not give back exactly."""
    if not all((kind.inner if isinstance(kind, pl.List) else kind) in PLAIN for kind in frame.dtypes):
        return None
    table, sink = frame.to_arrow(compat_level=pl.CompatLevel.oldest()), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def frame_of_buffer(buffer: Any) -> pl.DataFrame:
    """Return the frame of `buffer_of_frame`, whose columns stay in the buffer."""
    frame = pl.from_arrow(pa.ipc.open_stream(buffer).read_all())
    assert isinstance(frame, pl.DataFrame)
    return frame


def label_names(source: Path | IO[bytes], arrow: bool) -> dict[str, list[str]]:
    """Return the label names of each ClassLabel column, as `datasets` writes them into a parquet or Arrow file's metadata."""
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as raw:
            if not arrow:
                metadata = pq.read_schema(raw).metadata
            else:
                whole = raw.read(6) == b"ARROW1"
                raw.seek(0)
                metadata = (pa.ipc.open_file if whole else pa.ipc.open_stream)(raw).schema.metadata
            features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
            return {name: list(one["names"]) for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # what is wrong with the file is reported when it is read
    finally:
        if not isinstance(source, Path):
            source.seek(0)


def arrow_frames(source: Path | IO[bytes], rows: int) -> Iterator[pl.DataFrame]:
    """Yield the batches of an Arrow IPC file or stream, of at most `rows` rows; each batch is validated first.

    Raises:
        ValueError: not Arrow IPC, or broken.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as raw:
            whole = raw.read(6) == b"ARROW1"
            if not raw.tell():
                raise ValueError("it is empty")
            raw.seek(0)
            with (pa.ipc.open_file if whole else pa.ipc.open_stream)(raw) as reader:
                for batch in map(reader.get_batch, range(reader.num_record_batches)) if whole else reader:
                    batch.validate(full=True)  # offsets in a broken file could point anywhere in memory
                    yield from _frame_of(batch).iter_slices(rows)
    except (pa.ArrowException, OSError, MemoryError) as error:  # a broken length can ask for terabytes
        raise ValueError(error) from None


def release_memory() -> None:
    """Return freed memory to the system; glibc and Arrow keep memory between blocks in use, some hundred MB after a stage."""
    pa.default_memory_pool().release_unused()
    with suppress(AttributeError, OSError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
