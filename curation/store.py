"""Files that are whole or absent: atomic writes, parquet shards, and the receipts that make runs resumable.

A stage is a folder. It is written under `<folder>.<process>.part`, its receipt `done.json` last, and then renamed; so a
folder with a receipt is whole. The receipt holds the digest of everything the stage depends on, and the digest of
each file in it. A stage runs if the first differs; a file that no longer has its digest was changed by hand.
"""

from __future__ import annotations

import errno
import functools
import glob
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import xxhash

from curation.errors import BuildError

Compression = Literal["zstd", "lz4"]  # lz4 for what only the next stage reads
RECEIPT = "done.json"
ROWS_PER_SHARD = 1_000_000
ROWS_PER_GROUP = 20_000
CHUNKS = {"min_chunk_size": 262_144, "max_chunk_size": 1_048_576, "norm_level": 0}  # as `datasets` writes them
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PACKAGES = ("tuplesmith", "polars", "pyarrow", "torch", "transformers", "faiss-cpu", "faiss-gpu", "datasets", "datasketch")


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if _ended(left_over.name.split(".")[-2]):
            left_over.unlink(missing_ok=True)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # so that a full disk can be told by its place
        raise
    sync_folder(path.parent)


def _ended(process: str) -> bool:
    """Tell whether no process has this number, so that what it was writing will never be whole."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, PermissionError):
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write JSON in the order given, atomically."""
    with atomic(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON that a stage wrote.

    Raises:
        BuildError: the file is not there, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BuildError(path, "no such file", "run `curate build` first") from None
    except NotADirectoryError:
        raise BuildError(path.parent, "is a file, not a folder", "name a build folder") from None
    except ValueError as error:
        raise BuildError(path, f"not readable as JSON ({error})", "delete this file and run `curate build` again") from None


def write_lines(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    """Write JSON Lines, atomically."""
    with atomic(path) as file:
        file.writelines(json_line(row) for row in rows)


def json_line(row: Mapping[str, object]) -> bytes:
    """Return one line of JSON Lines."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


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
    """Write a table that comes in parts, at least one, as `write_table` writes it whole; return its rows.

    No more of it is held than a part and a row group.
    """
    groups, rows = _groups(frames), 0
    group: pl.DataFrame | None = next(groups)
    for shard in itertools.count():
        assert group is not None
        with atomic(folder / f"{name}-{shard:05d}.parquet") as file, _writer(file, group, constants, compression) as writer:
            in_shard = 0
            while group is not None and in_shard < ROWS_PER_SHARD:
                writer.write_table(_arrow(group, constants))
                in_shard += len(group)
                group = next(groups, None)
        rows += in_shard
        if group is None:
            break
    return rows


def _groups(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Return the same rows in row groups, of which a whole number makes a shard; an empty table is one without rows."""
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
    # dictionaries cost more than they save where texts and ids hardly recur; passages of tuples do
    recurring = [f"{name}.list.element" for name, kind in table.schema.items() if kind == pl.List(pl.String)]
    options = {"compression": compression, "write_page_index": True, "use_dictionary": recurring}
    return pq.ParquetWriter(file, _arrow(table.clear(), constants).schema, **options)


def write_blocks(path: Path, blocks: Iterable[pl.DataFrame], constants: Mapping[str, str] | None = None) -> int:
    """Write one parquet file block by block, each a row group, atomically; return the bytes of its rows in memory.

    There is at least one block. Pages end where the content says so: where a row more or less shifts all others, most
    pages are those of the file before, and storage that knows pieces by their content takes only the new ones.
    """
    size = 0
    with atomic(path) as file, ExitStack() as closing:
        writer = None
        for block in blocks:
            arrow = _plain(block.to_arrow(compat_level=pl.CompatLevel.oldest())).replace_schema_metadata(dict(constants or {}))
            if writer is None:
                options = {"compression": "zstd", "write_page_index": True, "use_content_defined_chunking": CHUNKS}
                writer = closing.enter_context(pq.ParquetWriter(file, arrow.schema, **options))
            writer.write_table(arrow)
            size += arrow.nbytes
    return size


def _plain(table: Any) -> Any:
    """Return an Arrow table with 32-bit offsets, which every reader knows: string for large_string, list for large_list."""
    return table.cast(pa.schema([field.with_type(_plain_type(field.type)) for field in table.schema]))


def _plain_type(kind: Any) -> Any:
    if pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return pa.string() if pa.types.is_large_string(kind) else kind


def write_parquet(path: Path, table: pl.DataFrame, constants: Mapping[str, str] | None = None) -> None:
    """Write one parquet file, atomically."""
    with atomic(path) as file, _writer(file, table, constants, "zstd") as writer:
        for group in table.iter_slices(ROWS_PER_GROUP) if len(table) else [table]:
            writer.write_table(_arrow(group, constants))


def lists(values: np.ndarray, lengths: np.ndarray, absent: np.ndarray) -> pl.Series:
    """Return a list column: row i has the next `lengths[i]` of the values (n,), null where they are `absent` (n,) bool."""
    kind, starts = pa.from_numpy_dtype(values.dtype), np.concatenate([[0], lengths.cumsum()])
    present = pa.py_buffer(np.packbits(~absent, bitorder="little")) if absent.any() else None
    each = pa.Array.from_buffers(kind, len(values), [present, pa.py_buffer(values)])  # `pa.array` would import pandas
    rows = pa.Array.from_buffers(pa.large_list(kind), len(lengths), [None, pa.py_buffer(starts)], children=[each])
    return pl.Series(pl.from_arrow(rows))


def read_table(folder: Path, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """Read all shards of a table back, in order.

    Raises:
        BuildError: there is no such table.
    """
    return pl.concat(shards(folder, name, columns))


def shards(folder: Path, name: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the shards of a table, in order: at most ROWS_PER_SHARD rows each.

    Raises:
        BuildError: there is no such table.
    """
    yield from (read_parquet(path, columns) for path in table_files(folder, name))


def table_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a table, in order.

    Raises:
        BuildError: there is no such table.
    """
    paths = sorted(folder.glob(f"{name}-[0-9]*.parquet"))
    if not paths:
        raise BuildError(folder, f"holds no table '{name}'", "run the command that makes it again")
    return paths


def read_frames(folder: Path, name: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield a table row group by row group, in order.

    Raises:
        BuildError: there is no such table.
    """
    for path in table_files(folder, name):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                frame = pl.from_arrow(file.read_row_group(group, columns=columns, use_threads=False))
                assert isinstance(frame, pl.DataFrame)
                yield frame.select(columns) if columns else frame


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read one parquet file of a build."""
    return pl.read_parquet(path, columns=columns, glob=False, hive_partitioning=False)


def link_table(source: Path, folder: Path, name: str) -> None:
    """Let a table stand in another folder too: the same files where the disk can do that, else copies."""
    for path in table_files(source, name):
        try:
            (folder / path.name).hardlink_to(path)
        except OSError:
            shutil.copyfile(path, folder / path.name)


def parquet_rows(file: IO[bytes]) -> int:
    """Return the number of rows of a parquet file, from its end alone."""
    with file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def arrow_frames(source: Path | IO[bytes], rows: int) -> Iterator[pl.DataFrame]:
    """Return the batches of an Arrow IPC file or stream, of at most `rows` rows; what they hold is checked first.

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
                    batch.validate(full=True)  # offsets of a broken file could lead anywhere in memory
                    frame = pl.from_arrow(batch)
                    assert isinstance(frame, pl.DataFrame)
                    yield from frame.iter_slices(rows)
    except (pa.ArrowException, OSError, MemoryError) as error:  # a broken length asks for terabytes
        raise ValueError(error) from None


def digest_of(value: object) -> str:
    """Return the digest of anything that JSON can hold."""
    return str(xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()))


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return str(state.hexdigest())


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a result."""
    found = {}
    for package in PACKAGES:
        try:
            about = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        head = (about.read_text("METADATA") or about.read_text("PKG-INFO") or "").partition("\n\n")[0]
        told = re.search(r"^Version: *(\S+)", head, re.MULTILINE)  # `about.version` parses all of it, as a mail
        found[package] = told[1] if told else about.version
    return found


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """Return the receipt of a stage, or None where the stage is absent or unfinished."""
    path = folder / RECEIPT
    return dict(read_json(path)) if path.exists() else None


def check_files(folder: Path, receipt: Mapping[str, Any]) -> None:
    """Compare every file of a stage with its receipt.

    Raises:
        BuildError: a file was changed, added or removed since.
    """
    redo = f"delete {folder} and run the command again to make it anew"
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECEIPT and str(path.relative_to(folder)) not in receipt["files"]:
            raise BuildError(path, "was added after the folder was written", redo)
    for name, digest in receipt["files"].items():
        path = folder / name
        if not path.exists():
            raise BuildError(path, "was removed since it was written", redo)
        if file_digest(path) != digest:
            raise BuildError(path, "was changed since it was written (its digest is not the receipt's)", redo)


def stands(folder: Path, digest: str) -> bool:
    """Tell whether a whole stage with this digest stands there."""
    receipt = read_receipt(folder)
    return receipt is not None and receipt.get("digest") == digest


def run_stage(folder: Path, digest: str, work: Callable[[Path], Mapping[str, Any]]) -> tuple[dict[str, Any], bool]:
    """Run `work(folder)` unless a whole stage with this digest stands there; return (receipt, whether it ran).

    `work` writes its files into the folder it is given and returns what the receipt should say beside them.
    """
    receipt = read_receipt(folder)
    if receipt is not None and receipt.get("digest") == digest:
        check_files(folder, receipt)
        return receipt, False
    for left_over in folder.parent.glob(f"{folder.name}.*.part"):
        if left_over.name[len(folder.name) + 1 : -len(".part")].isdigit():  # `squad.v2.17.part` is another stage's
            shutil.rmtree(left_over, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        said = work(part)
        files = {str(path.relative_to(part)): file_digest(path) for path in sorted(part.rglob("*")) if path.is_file()}
        receipt = {**said, "digest": digest, "files": files, "versions": versions()}
        write_json(part / RECEIPT, receipt)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.is_file():
        raise BuildError(folder, "is a file, not a folder", "delete it and run the command again")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    sync_folder(folder.parent)
    return receipt, True


def newest_build(root: Path) -> Path:
    """Return the build under `root` whose build.json is newest.

    Raises:
        BuildError: there is none.
    """
    marks = [path for path in root.glob("*/build.json") if path.is_file()]
    if not marks:
        raise BuildError(root, "holds no build", "run `curate build MANIFEST` first, or name a build folder")
    return max(marks, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def no_room(error: OSError) -> bool:
    """Tell whether an error means that the disk, or the quota on it, is full."""
    return error.errno in NO_ROOM
