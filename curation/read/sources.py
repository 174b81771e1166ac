"""Where rows come from: files beside the manifest, and datasets of the Hub."""

from __future__ import annotations

import functools
import glob
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count, zip_longest
from pathlib import Path, PurePath

import numpy as np
import polars as pl

from curation.core.errors import SourceError, UserError, decoded, did_you_mean, listed
from curation.core.record import draws
from curation.core.store import file_digest
from curation.read import dataset, hub
from curation.read.archives import parts
from curation.read.dataset_files import ABOUT, SAVED, SAVED_DICT
from curation.read.lookalikes import without_lists
from curation.read.mapping import map_columns
from curation.read.packed import PACKED, Budget
from curation.read.paths import expand_path, is_outside, matching, plain_part, refuse_special, refuse_system
from curation.read.readers import ENDINGS, ROW, File, Lost, Rows, read_file
from curation.read.rows import BATCH, compact, concat_batches
from curation.recipe.source import Source, Table, portable

FRESH = 2  # seconds within which a file system's clock may give two changes one time


def read_rows(table: Table, base: Path) -> Iterator[Rows]:
    """Return all rows of a table in batches of at most 50,000, numbered through from 0.

    A source with `sample: first` and a limit stops after the batch that fills it. `base` is the manifest's folder.

    Raises:
        SourceError: a file or dataset that is missing, unreadable or without rows.
    """
    first = table.limit if isinstance(table, Source) and table.sample == "first" else None
    return _read(table, base, first)


def input_digests(table: Table, base: Path) -> dict[str, str]:
    """Return digests of all that the rows depend on: by file, or one entry for a Hub dataset.

    Raises:
        SourceError: a file or dataset that is missing.
    """
    if _of_hub(table, base):
        return {str(table.path): hub.commit_of(table)}
    return {file.name: _digest(file.path) for file in _files(table, base)}


def file_states(table: Table, base: Path) -> dict[str, object]:
    """Return what differs as soon as anything that a table's rows are read from does: to be taken before `input_digests`.

    Of a file these are its place, size and times; of one that was written a moment ago also its digest, as a clock that
    ticks slowly gives the next change the same time. Of a dataset of the Hub it is its commit.
    """
    if _of_hub(table, base):
        return {str(table.path): hub.commit_of(table)}
    found: dict[str, object] = {}
    for file in _files(table, base):
        about, fresh = _about(file.path)
        found[file.name] = (about, file_digest(file.path) if fresh else None)
    return found


def _about(path: Path) -> tuple[tuple[int, ...], bool]:
    """Return a file's place, size and times, and whether it is fresh: written so recently that they may miss a change."""
    state = path.stat()
    about = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return about, time.time() - max(state.st_mtime, state.st_ctime) < FRESH


def _digest(path: Path) -> str:
    """Return the digest of a file's bytes; a file that has not changed since is read only once in a process."""
    about, fresh = _about(path)
    return file_digest(path) if fresh else _known_digest(path, about)


@functools.lru_cache(maxsize=1 << 16)
def _known_digest(path: Path, about: tuple[int, ...]) -> str:
    return file_digest(path)


@contextmanager
def fail_if_changed(before: list[dict[str, object]], tables: list[Table], base: Path) -> Iterator[None]:
    """Fail unless all that is read within is what it was when `file_states` gave `before`: else the digest is of other bytes.

    Raises:
        SourceError: a file, or a dataset of the Hub, changed meanwhile.
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
        check()  # what half a file makes a reader say is not what is wrong
        raise
    check()


def is_local(table: Table, base: Path) -> bool:
    """Tell whether a table's rows come from this machine: files, or a folder in Hub layout.

    Raises:
        SourceError: it names a local folder that is not there.
    """
    return not table.path or _folder(table, base) is not None


def total_bytes(table: Table, base: Path) -> int:
    """Return the bytes of a local table's files, none of which is read.

    Raises:
        SourceError: there are none.
    """
    return sum(file.path.stat().st_size for file in _files(table, base))


def files_outside(table: Table, base: Path) -> list[tuple[str, str]]:
    """Return what a table reads on this machine outside of the manifest's folder, links followed, none of it opened.

    Each as the manifest names it, and without the folders of this machine.

    Raises:
        SourceError: a file that is missing.
    """
    if _of_hub(table, base) or (table.path and _folder(table, base) is None):
        return []
    away = [file for file in _files(table, base) if is_outside(file.path, base)]
    links = [file for file in away if _spelled_inside(file.path, base)]  # their names are in the folder, and they are not
    named = [table.path] if table.path else table.files if len(links) < len(away) else []
    spelled = [name for name in named if not _spelled_inside(base / plain_part(expand_path(name, base), base), base)]
    found = {name: portable(name, folder=bool(table.path)) for name in spelled}
    return list((found | {f"{file.name} -> {file.path.resolve()}": f"{file.name}, a link" for file in links}).items())


def _spelled_inside(path: Path, base: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(base))


def take(
    source: Source, seed: int, limit: int | None, base: Path, advance: Callable[[int], None]
) -> tuple[pl.DataFrame, list[Lost]]:
    """Return a source's rows in row order (columns as in the files, and `ROW`) and the rows lost on the way.

    With a limit, rows are visited until that many are had: in file order for `sample: first`, else in the order of
    `schema.draws`, which needs all rows to be read but about two limits of memory. Lost rows count as far as they were
    visited, so their share is that of the whole source.

    Raises:
        SourceError: see `read_rows`; or parts of the source whose types do not go together.
    """
    parts: list[pl.DataFrame] = []
    lost: list[Lost] = []
    in_order = source.sample == "first"
    for rows in _read(source, base, limit if in_order else None):
        advance(len(rows.frame) + len(rows.lost))
        parts.append(rows.frame)
        lost += rows.lost
        if limit and sum(map(len, parts)) > 2 * limit:
            frame, lost = _visited(concat_batches(parts, _called(source)), lost, limit, None if in_order else (source, seed))
            parts = [frame]
    return _visited(concat_batches(parts, _called(source)), lost, limit, None if in_order else (source, seed))


def read_parts(
    source: Source, base: Path, size: int, advance: Callable[[int], None]
) -> Iterator[tuple[pl.DataFrame, list[Lost]]]:
    """Return a source's rows and those lost in parts of `size` bytes or a batch more, as `take` does without a limit.

    Raises:
        SourceError: see `take`.
    """
    parts: list[Rows] = []
    for rows in _read(source, base, None):
        advance(len(rows.frame) + len(rows.lost))
        parts.append(rows)
        if sum(one.frame.estimated_size() for one in parts) >= size:
            yield concat_batches([one.frame for one in parts], _called(source)), [lost for one in parts for lost in one.lost]
            parts = []
    if parts:
        yield concat_batches([one.frame for one in parts], _called(source)), [lost for one in parts for lost in one.lost]


def _visited(
    frame: pl.DataFrame, lost: list[Lost], limit: int | None, drawn: tuple[Source, int] | None
) -> tuple[pl.DataFrame, list[Lost]]:
    """Return the first `limit` rows, in row order or as drawn, and the lost rows that are met before the last of them."""
    if limit is None or len(frame) <= limit:
        return frame, lost
    rows, lost_rows = frame[ROW].to_numpy(), np.array([one.row for one in lost], dtype=np.uint64)
    if drawn:
        source, seed = drawn
        rows, lost_rows = (draws(seed, f"{source.name}/limit", numbers) for numbers in (rows, lost_rows))
    last = np.partition(rows, limit - 1)[limit - 1]
    return compact(frame.filter(rows <= last)), [one for one, early in zip(lost, lost_rows <= last, strict=True) if early]


def _called(table: Table) -> str:
    return table.path or listed(table.files, 3)


def _read(table: Table, base: Path, first: int | None) -> Iterator[Rows]:
    """Return rows in batches, to the end or until `first` of them could be read."""
    as_dataset = table.path and not table.files
    skip = table.skip if isinstance(table, Source) else 0
    wanted = first and skip + first
    batches = _merged(_dataset_rows(table, base, wanted) if as_dataset else _file_rows(table, base))
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
        raise SourceError(_called(table), "holds no rows")


def _dataset_rows(table: Table, base: Path, first: int | None) -> Generator[Rows]:
    for rows in dataset.rows(table, _folder(table, base), first):
        yield without_lists(_called(table), table, rows._replace(frame=map_columns(_called(table), rows.frame, table)))


def _file_rows(table: Table, base: Path) -> Generator[Rows]:
    start, budget = 0, Budget(table.max_unpacked)
    for file in _aligned(table, base) if table.reader == "aligned" else _files(table, base):
        with ExitStack() as stack:
            wholes = [stack.enter_context(closing(parts(one, table, budget, ENDINGS))) for one in (file, *file.beside)]
            before: list[str] = []
            for part, *beside in zip_longest(*wholes):
                if None in (part, *beside):
                    names = listed((one.name for one in (file, *file.beside)), 4)
                    raise SourceError(names, "hold unequal numbers of members", "line i of each makes a row")
                members = [one.name for one in (part, *beside)]
                if before:
                    _refuse_other_names(before)
                    _refuse_other_names(members)
                before = members
                for rows in read_file(part._replace(beside=tuple(beside)), table, start):
                    rows = without_lists(part.name, table, rows._replace(frame=map_columns(part.name, rows.frame, table)))
                    yield _with_file_name(table, file, rows)
                    start += len(rows.frame) + len(rows.lost)


def _aligned(table: Table, base: Path) -> list[File]:
    """Return the first pattern's files, each with those of the other patterns that have its name, up to what the pattern says.

    Raises:
        SourceError: a file has none beside it.
    """
    found = [(pattern, _files(table.model_copy(update={"files": [pattern]}), base)) for pattern in table.files]
    named = [{_varying(file, pattern): file for file in files} for pattern, files in found]
    if any(names.keys() != named[0].keys() for names in named):  # `en/*` and `de/*` may differ in their endings
        named = [{name.rpartition(".")[0] or name: file for name, file in names.items()} for names in named]
    for (pattern, files), names in zip(found, named, strict=True):
        if len(files) != len(found[0][1]):
            what = f"matches {len(files)} files, and '{table.files[0]}' {len(found[0][1])}"
            raise SourceError(pattern, what, "each has one beside it")
        if alone := sorted(named[0].keys() - names.keys()):
            what = f"matches no file '{alone[0]}', which '{table.files[0]}' does; it has {listed(sorted(names), 4)}"
            raise SourceError(pattern, what, "files whose lines belong together have one name, but for what the patterns say")
    return [file._replace(beside=tuple(names[name] for names in named[1:])) for name, file in named[0].items()]


def _refuse_other_names(members: list[str]) -> None:
    """Refuse members of several archives whose lines would be put together although they have other names.

    Raises:
        SourceError: they have, up to their endings.
    """
    named = [name.rpartition(":")[2] for name in members]
    if len({PurePath(name).with_suffix("") for name in named}) > 1:
        what = f"members of other names would be put together: {listed(members, 4)}"
        raise SourceError(members[0], what, "name one with `member:`, or pack them in one order under one name each")


def _varying(file: File, pattern: str) -> str:
    """Return what of a file's name stands where its pattern has signs; nothing for a pattern without any."""
    if not glob.has_magic(pattern):
        return ""
    start, end = re.split(r"[*?\[]", pattern)[0].rpartition("/")[2], re.split(r"[*?\]]", pattern)[-1]
    return os.path.relpath(file.path, file.root).removeprefix(start).removesuffix(end)


def _with_file_name(table: Table, file: File, rows: Rows) -> Rows:
    if table.file_column is None:
        return rows
    if table.file_column in rows.frame.columns:
        raise SourceError(file.name, f"has a column '{table.file_column}' itself", "give 'file_column' another name")
    name = PurePath(file.name).name
    name = name.removesuffix(PurePath(name).suffix) if name.lower().endswith(PACKED) else name
    called = name.rpartition(".")[0] or name
    return rows._replace(frame=rows.frame.with_columns(pl.lit(called).alias(table.file_column)))


def _merged(batches: Generator[Rows]) -> Generator[Rows]:
    """Put small batches with equal columns together: a file may hold a handful of rows."""
    held: list[Rows] = []
    many = 0  # rows in `held`
    with closing(batches):
        for rows in batches:
            if held and (many >= BATCH or rows.frame.schema != held[0].frame.schema):
                yield _one(held)
                held, many = [], 0
            held.append(rows)
            many += len(rows.frame) + len(rows.lost)
    if held:
        yield _one(held)


def _one(batches: list[Rows]) -> Rows:
    return Rows(pl.concat([rows.frame for rows in batches]), [lost for rows in batches for lost in rows.lost])


def _of_hub(table: Table, base: Path) -> bool:
    """Tell whether a table's rows are those of a dataset of the Hub, as it describes itself."""
    return bool(table.path) and not table.files and not is_local(table, base)


def _files(table: Table, base: Path) -> list[File]:
    """Return the files that a table reads, each once, sorted within each pattern; of a dataset also what describes it.

    Their names tell them apart, and hold no folders of this machine: of `/home/me/data/*.csv`, `a.csv`.

    Raises:
        SourceError: there are none, or one is no file, or the system's own.
    """
    folder = _folder(table, base)
    if folder and not table.files:
        names = [name for name in (*ABOUT, SAVED, SAVED_DICT) if (folder / name).is_file()]
        _, described = dataset.description_of(table, folder)
        names += [name for split in dataset.splits_of(table, described) for name in described.splits[split]]
        return [File(folder / name, name, folder) for name in dict.fromkeys(names)]
    if table.path:
        base = folder or hub.snapshot(table)
    found: dict[str, File] = {}
    names_taken: set[str] = set()
    for pattern in table.files:
        path = expand_path(pattern, base)
        if (base / path).is_file():
            names, plain = [str(path)], (base / path).parent
        else:
            names, plain = _matching(path, base), base / plain_part(path, base)
        if not names:
            raise _nothing(pattern, base / path, "*/*" if table.reader == "folders" else "*.jsonl")
        for name in names:
            if name not in found:
                shown = decoded(name)
                if path.is_absolute():
                    top = base if _spelled_inside(Path(name), base) else plain
                    shown = decoded(os.path.relpath(name, os.path.abspath(top)))
                    shown = next(one for n in count(1) if (one := shown if n == 1 else f"{n}/{shown}") not in names_taken)
                refuse_special(base / name, shown)
                names_taken.add(shown)
                found[name] = File(base / name, shown, plain)
    return list(found.values())


def _matching(pattern: Path, base: Path) -> list[str]:
    try:
        return matching(pattern, base)
    except OSError as error:
        raise SourceError(str(error.filename), f"cannot be read ({error.strerror})", "check path and permissions") from None


def _nothing(pattern: str, path: Path, inside: str) -> SourceError:
    """Return what to say where a pattern matches nothing."""
    if glob.has_magic(pattern):
        return SourceError(pattern, "matches no file", "paths count from the manifest's folder")
    if path.is_dir():
        return SourceError(pattern, "is a folder", f"name its files, such as `{pattern.rstrip('/')}/{inside}`")
    if path.exists():
        return SourceError(pattern, "is a pipe, socket or device, not a file", "save what it gives as a file, and name that")
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return SourceError(pattern, "no such file" + did_you_mean(path.name, beside), "paths count from the manifest's folder")


def _folder(table: Table, base: Path) -> Path | None:
    """Return the local folder in Hub layout that `path` names, or None for a Hub id.

    Raises:
        SourceError: there is no such folder, or a `revision` of it is asked for.
    """
    if not table.path:
        return None
    path = expand_path(table.path, base)
    if (base / path).is_dir():
        refuse_system(base / path, table.path)
        if table.revision:
            raise SourceError(table.path, "is a folder of this machine, to which `revision` means nothing", "leave it out")
        return base / path
    if path.is_absolute() or table.path.startswith(("./", "../", "~")) or path.is_dir():
        raise SourceError(table.path, "no such folder", "paths count from the manifest's folder")
    if (base / path).is_file():
        raise SourceError(table.path, "is a file", "name it with `files:`")
    hub.check_id(table.path)
    return None
