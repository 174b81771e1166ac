"""The rows of a source: from files beside the manifest or from a dataset, in batches, and what they depend on."""

from __future__ import annotations

import functools
import glob
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import chain, count, zip_longest
from math import inf
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.core.errors import SourceError, UserError, decoded, did_you_mean, listed
from curation.core.record import draws
from curation.core.store import file_digest
from curation.core.tables import parquet_groups
from curation.read import hub, remote
from curation.read.archives import PACKED, Budget, parts
from curation.read.blocks import codec_name, cut_lines
from curation.read.dataset import ABOUT_FILES, SAVED, SAVED_DICT, describe, split_rows, splits_of
from curation.read.mapping import map_columns
from curation.read.paths import (
    expand_path,
    is_named_inside,
    is_outside,
    matching,
    plain_part,
    refuse_special,
    refuse_system,
)
from curation.read.readers import READER_OF_ENDING, file_rows, without_lists
from curation.read.rows import BATCH, ROW, File, Lost, Rows, compact, concat_batches
from curation.recipe.addresses import is_url, portable
from curation.recipe.source import Source, Table

SPAN, MOST_OF_A_SPAN = 1 << 26, 1 << 28  # bytes of row groups that are read together, and of a single one
FRESH = 2  # seconds within which two changes may get the same time from the clock of a file system


# --- rows ---


def table_rows(table: Table, base: Path) -> Iterator[Rows]:
    """Return all rows of a table in batches of at most 50,000, numbered through from 0.

    A source with `sample: first` and a limit stops after the batch that fills it. `base` is the manifest's folder.

    Raises:
        SourceError: a file or dataset that is missing, unreadable or without rows.
    """
    first = table.limit if isinstance(table, Source) and table.sample == "first" else None
    return _read(table, base, first)


def take(source: Source, seed: int, limit: int | None, base: Path, advance: Callable[[int], None]) -> Rows:
    """Return all that `read_parts` returns, as one part.

    Raises:
        SourceError: see `table_rows`; or types that cannot be combined.
    """
    (part,) = read_parts(source, seed, limit, base, inf, advance)
    return part


def read_parts(
    source: Source,
    seed: int,
    limit: int | None,
    base: Path,
    size: float,
    advance: Callable[[int], None],
    spare: Path | None = None,
) -> Iterator[Rows]:
    """Return a source's rows in row order (columns as in the files, and `ROW`) and the lost rows, in parts.

    With a limit, rows are visited until there are enough: in file order for `sample: first`, else in the order of
    `record.draws`, for which all rows are read. Lost rows count as far as they were visited, so their share is that of the
    whole source.

    Args:
        source: what to read.
        seed: of the manifest.
        limit: the largest number of rows.
        base: the manifest's folder.
        size: bytes of a part, which may have a batch more.
        advance: is called with the number of rows read.
        spare: a folder for drawn rows of more than `size` bytes; without it about two limits of rows are held.

    Raises:
        SourceError: see `take`.
    """
    if limit is not None and source.sample == "random":
        batches: Iterator[Rows] = _drawn(source, seed, limit, base, size, advance, spare)
    else:
        batches = _first(source, limit, base, advance)
    yield from _in_parts(source, batches, size)


def _in_parts(source: Source, batches: Iterable[Rows], size: float) -> Iterator[Rows]:
    """Put batches of rows together until they have `size` bytes."""
    held: list[pl.DataFrame] = []
    lost: list[Lost] = []
    for rows in batches:
        held.append(rows.frame)
        lost += rows.lost
        if sum(frame.estimated_size() for frame in held) >= size:
            yield Rows(concat_batches(held, _called(source)), lost)
            held, lost = [], []
    if held:
        yield Rows(concat_batches(held, _called(source)), lost)


class Span(NamedTuple):
    """Row groups of a parquet file, or lines of a JSON Lines file, which are read by whoever works on their rows."""

    file: File
    row: int  # the number of the first one


def spans(source: Source, base: Path) -> list[Span]:
    """Cut the files of a source into spans; return none if its rows have to be read in order.

    That is so for other formats than parquet and JSON Lines, archives, URLs, a `limit` or `skip`, lines that are not one row
    each, and row groups that are too large for a worker.

    Raises:
        SourceError: a file is missing.
    """
    if source.limit or source.skip or (source.path and not source.files):
        return []
    found, row = list[Span](), 0
    for file in _files(source, base):
        pieces = _pieces(file, source)
        if not pieces:
            return []
        for piece, rows in pieces:
            found.append(Span(piece, row))
            row += rows
    return found


def _pieces(file: File, source: Source) -> list[tuple[File, int]]:
    """Return the pieces of a file and the number of rows of each; none if it cannot be cut, or has no rows."""
    reader = source.reader or READER_OF_ENDING.get(file.path.suffix.lower())
    packed = file.unpack or file.path.name.lower().endswith((".zip", ".tar", *PACKED))
    if packed or source.member or source.records or source.header is not True:
        return []
    try:
        if reader == "parquet":
            return [(file._replace(groups=groups), rows) for groups, rows in _row_groups(file.path)]
        if reader in ("jsonl", "flagembedding", "tevatron") and codec_name(file, source) == "utf-8":
            return [(file._replace(lines=lines), rows) for lines, rows in cut_lines(file.path, SPAN)]
    except (ValueError, OSError):
        pass  # the error is reported when it is read
    return []


def _row_groups(path: Path) -> list[tuple[range, int]]:
    """Return row groups of a parquet file of about SPAN bytes together, and their number of rows; none if one is too large.

    Raises:
        ValueError: not parquet, or broken.
    """
    found = list[tuple[range, int]]()
    first = together = size = 0
    groups = parquet_groups(path)
    for number, (rows, unpacked) in enumerate(groups, 1):
        if unpacked > MOST_OF_A_SPAN:
            return []
        together, size = together + rows, size + unpacked
        if size >= SPAN or number == len(groups):
            found.append((range(first, number), together))
            first, together, size = number, 0, 0
    return found


def read_span(source: Source, span: Span, size: float) -> Iterator[Rows]:
    """Yield the rows of a span in parts of `size` bytes, as `read_parts` does.

    Raises:
        SourceError: see `table_rows`.
    """
    rows = file_rows(span.file, source, span.row)
    yield from _in_parts(source, (_mapped(some, span.file.name, _stem(span.file), source) for some in rows), size)


def _first(source: Source, limit: int | None, base: Path, advance: Callable[[int], None]) -> Iterator[Rows]:
    """Return the rows of a source up to the last of its first `limit` good ones."""
    good = 0
    for rows in _read(source, base, limit):
        advance(len(rows.frame) + len(rows.lost))
        if limit is not None and good + len(rows.frame) >= limit:
            frame = rows.frame.head(limit - good)
            rows = Rows(frame, [one for one in rows.lost if one.row < frame[ROW][-1]])
        yield rows
        good += len(rows.frame)


def _drawn(
    source: Source, seed: int, limit: int, base: Path, size: float, advance: Callable[[int], None], spare: Path | None
) -> Iterator[Rows]:
    """Return the `limit` rows with the smallest draws; those lost before the last of them come with the first.

    In memory are the draws of about two limits of rows, and rows of `size` bytes. Others that may be among the smallest are in
    files in `spare` until all rows are read.
    """

    def places(rows: pl.Series | list[int]) -> np.ndarray:
        return draws(seed, f"{source.name}/limit", np.asarray(rows, dtype=np.uint64))

    last = np.uint64(2**64 - 1)  # no row with a larger draw is taken
    found, lost, held, files = [np.zeros(0, np.uint64)], list[Lost](), list[pl.DataFrame](), list[Path]()

    def visited(frame: pl.DataFrame) -> pl.DataFrame:
        early = places(frame[ROW]) <= last
        return frame if early.all() else compact(frame.filter(early))

    for rows in _read(source, base, None):
        advance(len(rows.frame) + len(rows.lost))
        held.append(visited(rows.frame))
        lost += rows.lost
        found.append(places(held[-1][ROW]))
        if (many := sum(map(len, found))) > 2 * limit:
            found = [np.partition(np.concatenate(found), limit - 1)[:limit]]
            last, many = found[0].max(), limit
            held = [visited(frame) for frame in held]
        if spare and sum(frame.estimated_size() for frame in held) >= size:
            files.append(spare / f"drawn-{len(files)}.arrow")
            whole = concat_batches(held, _called(source))
            whole.write_ipc(files[-1])
            held = []
    if many > limit:
        last = np.partition(np.concatenate(found), limit - 1)[limit - 1]
    before = [one for one, early in zip(lost, places([one.row for one in lost]) <= last, strict=True) if early]
    for frame in chain((pl.read_ipc(file) for file in files), held):
        yield Rows(visited(frame), before)
        before = []


def _called(table: Table) -> str:
    return table.path or listed(table.files, 3)


def _read(table: Table, base: Path, first: int | None) -> Iterator[Rows]:
    """Return rows in batches, to the end or until `first` of them could be read."""
    skip = table.skip if isinstance(table, Source) else 0
    batches = _merge_small(_mapped_rows(table, base, first and skip + first))
    good = met = 0
    with closing(batches):
        for rows in batches:
            if skip:
                rows = Rows(rows.frame.filter(pl.col(ROW) >= skip), [one for one in rows.lost if one.row >= skip])
            yield rows
            good, met = good + len(rows.frame), met + len(rows.frame) + len(rows.lost)
            if first and good >= first:
                return
    if not met:
        raise SourceError(_called(table), "holds no rows" + (f" after the {skip:,} that `skip` leaves out" if skip else ""))


def _mapped_rows(table: Table, base: Path, first: int | None) -> Generator[Rows]:
    """Return rows with their mapped columns, from a dataset or from files; `first` of them are enough."""
    if table.path and not table.files:
        for rows in split_rows(table, _dataset_folder(table, base), first):
            yield without_lists(_called(table), table, rows._replace(frame=map_columns(_called(table), rows.frame, table)))
        return
    start, budget = 0, Budget(table.max_unpacked)
    for file in _aligned_files(table, base) if table.reader == "aligned" else _files(table, base):
        with ExitStack() as stack:
            wholes = [stack.enter_context(closing(parts(one, table, budget, READER_OF_ENDING))) for one in (file, *file.beside)]
            before: list[str] = []
            for part, *beside in zip_longest(*wholes):
                if None in (part, *beside):
                    names = listed((one.name for one in (file, *file.beside)), 4)
                    raise SourceError(names, "hold unequal numbers of members", "line i of each file makes one row")
                together = [one.name for one in (part, *beside)]
                for members in (before, together) if before else ():  # of several archives: names without endings must agree
                    if len({PurePath(name.rpartition(":")[2]).with_suffix("") for name in members}) > 1:
                        what = f"members of other names would be put together: {listed(members, 4)}"
                        hint = "name one with `member:`, or pack them in one order under one name each"
                        raise SourceError(members[0], what, hint)
                before = together
                for rows in file_rows(part._replace(beside=tuple(beside)), table, start):
                    yield _mapped(rows, part.name, _stem(file), table)
                    start += len(rows.frame) + len(rows.lost)


def _stem(file: File) -> str:
    """Return the name of a file without folders and endings, for `file_column`."""
    name = PurePath(file.name).name
    name = name.removesuffix(PurePath(name).suffix) if name.lower().endswith(PACKED) else name
    return name.rpartition(".")[0] or name


def _mapped(rows: Rows, name: str, stem: str, table: Table) -> Rows:
    """Return rows of the file `name` with their mapped columns, and the stem of its name if that is asked for."""
    mapped = without_lists(name, table, rows._replace(frame=map_columns(name, rows.frame, table)))
    if table.file_column is None:
        return mapped
    if table.file_column in mapped.frame.columns:
        raise SourceError(name, f"has a column '{table.file_column}' itself", "give 'file_column' another name")
    return mapped._replace(frame=mapped.frame.with_columns(pl.lit(stem).alias(table.file_column)))


def _merge_small(batches: Generator[Rows]) -> Generator[Rows]:
    """Merge small batches with equal columns: a file may hold a handful of rows."""

    def merged() -> Rows:
        return Rows(pl.concat([rows.frame for rows in held]), [lost for rows in held for lost in rows.lost])

    held: list[Rows] = []
    many = 0  # rows in `held`
    with closing(batches):
        for rows in batches:
            if held and (many >= BATCH or rows.frame.schema != held[0].frame.schema):
                yield merged()
                held, many = [], 0
            held.append(rows)
            many += len(rows.frame) + len(rows.lost)
    if held:
        yield merged()


# --- what rows depend on ---


def input_digests(table: Table, base: Path) -> dict[str, str]:
    """Return digests of everything that the rows depend on: by file, or one entry for a Hub dataset.

    Raises:
        SourceError: a file or dataset that is missing.
    """
    if _is_hub_dataset(table, base):
        return {str(table.path): hub.dataset_commit(table)}
    digests = {}
    for file in _files(table, base):
        about, fresh = _state_of(file.path)
        digests[file.name] = file_digest(file.path) if fresh else _known_digest(file.path, about)
    return digests


def _state_of(path: Path) -> tuple[tuple[int, ...], bool]:
    """Return a file's device, inode, size and times, and whether it was written so recently that these may miss a change."""
    state = path.stat()
    about = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return about, time.time() - max(state.st_mtime, state.st_ctime) < FRESH


@functools.lru_cache(maxsize=1 << 16)
def _known_digest(path: Path, about: tuple[int, ...]) -> str:
    """Return a file's digest; the lock and the build read an unchanged file only once."""
    return file_digest(path)


def file_states(table: Table, base: Path) -> dict[str, object]:
    """Return what differs as soon as anything changes that a table's rows are read from; call it before `input_digests`.

    For a file these are its device, inode, size and times; for a file that was just written also its digest, since a coarse
    clock gives the next change the same time. For a dataset of the Hub it is the commit, for a URL the object's version.
    """
    if _is_hub_dataset(table, base):
        return {str(table.path): hub.dataset_commit(table)}
    found: dict[str, object] = {}
    for file in _files(table, base):
        if file.version:  # the copy of a stored object; other nodes have copies of their own
            found[file.name] = file.version
            continue
        about, fresh = _state_of(file.path)
        found[file.name] = (about, file_digest(file.path) if fresh else None)
    return found


@contextmanager
def fail_if_changed(before: list[dict[str, object]], tables: list[Table], base: Path) -> Iterator[None]:
    """Fail if anything that is read within has changed since `file_states` returned `before`: the digest would be wrong.

    Raises:
        SourceError: a file, or a dataset of the Hub, has changed.
    """

    def check() -> None:
        for then, table in zip(before, tables, strict=True):
            try:
                now = file_states(table, base)
            except (OSError, SourceError):
                now = {}
            for name in {**then, **now}:
                old, new = then.get(name), now.get(name)
                if isinstance(old, tuple) and isinstance(new, tuple) and None in (old[1], new[1]):
                    old, new = old[0], new[0]  # no longer fresh
                if old != new:
                    raise SourceError(name, "changed while it was read", "run again when nothing writes to it") from None

    try:
        yield
    except (UserError, OSError):
        check()  # a reader's error about half a file would mislead
        raise
    check()


def total_bytes(table: Table, base: Path) -> int:
    """Return the bytes of a local table's files; none of them is read.

    Raises:
        SourceError: there are no files.
    """
    return sum(file.path.stat().st_size for file in _files(table, base))


def files_outside(table: Table, base: Path) -> list[tuple[str, str]]:
    """Return what a table reads outside of the manifest's folder, links followed: files, of which none is opened, and URLs.

    Each is named as in the manifest, and without the folders of this machine. Datasets of the Hub do not count.

    Raises:
        SourceError: a file that is missing.
    """
    if far := remote.urls(table):
        near = table.model_copy(update={"files": [name for name in table.files if name not in far]})
        named_urls = [(name, name) for name in far if not remote.is_hub(name)]
        return named_urls + (files_outside(near, base) if near.files else [])
    if not is_local(table, base):
        return []
    away = [file for file in _files(table, base) if is_outside(file.path, base)]
    links = [file for file in away if is_named_inside(file.path, base)]
    named = [table.path] if table.path else table.files if len(links) < len(away) else []
    outside = [name for name in named if not is_named_inside(base / plain_part(expand_path(name, base), base), base)]
    found = {name: portable(name, folder=bool(table.path)) for name in outside}
    return list((found | {f"{file.name} -> {file.path.resolve()}": f"{file.name}, a link" for file in links}).items())


# --- files ---


def is_local(table: Table, base: Path) -> bool:
    """Return whether a table's rows come from this machine: from files, or a folder that is laid out as on the Hub.

    Raises:
        SourceError: it names a local folder that does not exist.
    """
    return not table.path or _dataset_folder(table, base) is not None


def _is_hub_dataset(table: Table, base: Path) -> bool:
    """Return whether a table reads a dataset of the Hub as the dataset describes itself."""
    return bool(table.path) and not table.files and not is_local(table, base)


def _dataset_folder(table: Table, base: Path) -> Path | None:
    """Return the local dataset folder that `path` names, or None for a Hub id.

    Raises:
        SourceError: there is no such folder, or `revision` is set for it.
    """
    if not table.path:
        return None
    path = expand_path(table.path, base)
    if (base / path).is_dir():
        refuse_system(base / path, table.path)
        if table.revision:
            raise SourceError(table.path, "is a local folder, so `revision` does not apply", "leave it out")
        return base / path
    if path.is_absolute() or table.path.startswith(("./", "../", "~")) or path.is_dir():
        raise SourceError(table.path, "no such folder", "paths are relative to the manifest's folder")
    if (base / path).is_file():
        raise SourceError(table.path, "is a file", "name it with `files:`")
    hub.check_id(table.path)
    return None


def _files(table: Table, base: Path) -> list[File]:
    """Return the files that a table reads, each once, sorted within each pattern; for a dataset also those that describe it.

    Their names in messages are unique, and do not contain folders of this machine: `a.csv` for `/home/me/data/*.csv`.

    Raises:
        SourceError: there are none, or one is not a file, or is the system's own.
    """
    folder = _dataset_folder(table, base)
    if folder and not table.files:
        names = [name for name in (*ABOUT_FILES, SAVED, SAVED_DICT) if (folder / name).is_file()]
        _, described = describe(table, folder)
        names += [name for split in splits_of(table, described) for name in described.splits[split]]
        return [File(folder / name, name, folder) for name in dict.fromkeys(names)]
    if table.path:
        base = folder or hub.snapshot(table)
    found: dict[str, File] = {}
    names_taken: set[str] = set()
    for pattern in table.files:
        if is_url(pattern):
            found |= {file.name: file for file in remote.files(table, pattern) if file.name not in found}
            continue
        path = expand_path(pattern, base)
        names, top = _names_of(pattern, path, base, "*/*" if table.reader == "folders" else "*.jsonl")
        for name in names:
            if name in found:
                continue
            shown = decoded(name)
            if path.is_absolute():
                start = base if is_named_inside(Path(name), base) else top
                shown = decoded(os.path.relpath(name, os.path.abspath(start)))
                shown = next(one for n in count(1) if (one := shown if n == 1 else f"{n}/{shown}") not in names_taken)
            refuse_special(base / name, shown)
            names_taken.add(shown)
            found[name] = File(base / name, shown, top)
    return list(found.values())


def _names_of(pattern: str, path: Path, base: Path, inside: str) -> tuple[list[str], Path]:
    """Return the paths of the files that a pattern matches, and the folder that it begins in.

    Raises:
        SourceError: it matches nothing; a folder's files would be named by `inside`.
    """
    if (base / path).is_file():
        return [str(path)], (base / path).parent
    try:
        names = matching(path, base)
    except OSError as error:
        raise SourceError(str(error.filename), f"cannot be read ({error.strerror})", "check path and permissions") from None
    if names:
        return names, base / plain_part(path, base)
    relative = "paths are relative to the manifest's folder"
    if glob.has_magic(pattern):
        raise SourceError(pattern, "matches no file", relative)
    if (base / path).is_dir():
        raise SourceError(pattern, "is a folder", f"name its files, such as `{pattern.rstrip('/')}/{inside}`")
    if (base / path).exists():
        raise SourceError(pattern, "is a pipe, socket or device, not a file", "save its output as a file, and name that")
    if (base / path).is_symlink():
        raise SourceError(pattern, "is a symbolic link that leads to no file", f"it points to {os.readlink(base / path)}")
    parent = (base / path).parent
    beside = [other.name for other in parent.iterdir()] if parent.is_dir() else []
    raise SourceError(pattern, "no such file" + did_you_mean(path.name, beside), relative)


def _aligned_files(table: Table, base: Path) -> list[File]:
    """Return the first pattern's files, each with the files of the other patterns whose names match its own.

    Raises:
        SourceError: a file has no counterpart.
    """
    found = [(pattern, _files(table.model_copy(update={"files": [pattern]}), base)) for pattern in table.files]
    named: list[dict[str, File]] = []  # per pattern: the files by the part of their names that its wildcards match
    for pattern, files in found:
        start, end = re.split(r"[*?\[]", pattern)[0].rpartition("/")[2], re.split(r"[*?\]]", pattern)[-1]
        varying = [os.path.relpath(file.path, file.root).removeprefix(start).removesuffix(end) for file in files]
        named.append(dict(zip(varying if glob.has_magic(pattern) else [""] * len(files), files, strict=True)))
    if any(names.keys() != named[0].keys() for names in named):  # `en/*` and `de/*` may differ in their endings
        named = [{name.rpartition(".")[0] or name: file for name, file in names.items()} for names in named]
    for (pattern, files), names in zip(found, named, strict=True):
        if len(files) != len(found[0][1]):
            what = f"matches {len(files)} files, and '{table.files[0]}' {len(found[0][1])}"
            raise SourceError(pattern, what, "each file needs its counterpart")
        if alone := sorted(named[0].keys() - names.keys()):
            what = f"matches no file '{alone[0]}', which '{table.files[0]}' does; it has {listed(sorted(names), 4)}"
            hint = "files whose lines belong together have the same name, except for the parts that the patterns match"
            raise SourceError(pattern, what, hint)
    return [file._replace(beside=tuple(names[name] for names in named[1:])) for name, file in named[0].items()]
