"""The rows of a dataset's split: its files, read by our own readers, with the names of its labels."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from curation.core.errors import SourceError, listed
from curation.core.hub import retrying
from curation.core.tables import label_names
from curation.read import hub
from curation.read.archives import parts
from curation.read.dataset_files import ABOUT, Description, card_of, check_card, describe_folder
from curation.read.packed import Budget, ending_of
from curation.read.readers import ENDINGS, File, Rows, read_file
from curation.read.rows import ROW
from curation.recipe.source import Table

PARQUET = (".parquet", ".geoparquet", ".gpq")


def description_of(table: Table, folder: Path | None) -> tuple[str, Description]:
    """Return a dataset's commit, empty for a local folder, and what its config is made of.

    Raises:
        SourceError: there is no such dataset or config, or it cannot be had or read.
    """
    if folder is None:
        commit = hub.commit_of(table)
        return commit, hub.describe(table, commit)
    with hub.hub_errors(table):
        return "", describe_folder(str(table.path), folder, table.config)


def splits_of(table: Table, found: Description) -> list[str]:
    """Return the splits that a table names, such as `train` of `train[:10%]`.

    Raises:
        SourceError: there is no such split.
    """
    names = [one.splitname for one in _instruction(table)._relative_instructions]
    for name in names:
        if name not in found.splits:
            raise SourceError(table.path, f"no split '{name}'", f"there are: {listed(found.splits)}")
    return names


def _instruction(table: Table) -> Any:
    import datasets

    try:
        return datasets.ReadInstruction.from_spec(table.split)
    except (ValueError, AssertionError):
        raise SourceError(
            table.path, f"no split '{table.split}'", "such as train, train+test, train[:1000], train[10%:20%]"
        ) from None


@retrying
def config_splits(table: Table, base: Path) -> dict[str, list[str]]:
    """Return the splits of each config of a dataset; `path` is a Hub id, or a folder from `base`.

    Raises:
        SourceError: see `rows`.
    """
    with hub.hub_errors(table):
        import datasets

        folder = base / str(table.path)
        check_card(str(table.path), card_of([folder / name for name in ABOUT[:2] if (folder / name).is_file()]))
        where = {"path": str(folder)} if folder.is_dir() else {"path": str(table.path), "revision": table.revision}
        configs = datasets.get_dataset_config_names(**where)
        return {config: datasets.get_dataset_split_names(**where, config_name=config) for config in configs}


def rows(table: Table, folder: Path | None, first: int | None) -> Generator[Rows]:
    """Return the rows of a split; of a dataset of the Hub, files are streamed where only the first are wanted, else fetched.

    Raises:
        SourceError: see `description_of`; or a file that cannot be read.
    """
    commit, found = description_of(table, folder)
    names, made = splits_of(table, found), 0
    sliced = any(one.from_ is not None or one.to is not None for one in _instruction(table)._relative_instructions)
    pieces = [(name, 0, 0) for name in names]
    if sliced:
        counts = {
            name: sum(len(one.frame) + len(one.lost) for one in _split(table, folder, commit, found, name)) for name in names
        }
        try:
            absolute = _instruction(table).to_absolute(counts)
        except ValueError as error:
            raise SourceError(
                str(table.path), f"split '{table.split}' cannot be taken ({error})", "name rows, such as train[:50]"
            ) from None
        pieces = [(one.splitname, one.from_ or 0, counts[one.splitname] if one.to is None else one.to) for one in absolute]
    for name, start, stop in pieces:
        end = made
        with closing(_split(table, folder, commit, found, name, streamed=first is not None)) as batches:
            for batch in batches:
                inside = _between(batch, start, stop) if sliced else batch
                shift = made - start
                frame = inside.frame.with_columns((pl.col(ROW).cast(pl.Int64) + shift).cast(pl.UInt64))
                yield Rows(frame, [one._replace(row=one.row + shift) for one in inside.lost])
                end += len(inside.frame) + len(inside.lost)
                if sliced and end - made >= stop - start:
                    break
        made = end


def _between(batch: Rows, start: int, stop: int) -> Rows:
    inside = (pl.col(ROW) >= start) & (pl.col(ROW) < stop)
    return Rows(batch.frame.filter(inside), [one for one in batch.lost if start <= one.row < stop])


def _split(
    table: Table, folder: Path | None, commit: str, found: Description, split: str, streamed: bool = False
) -> Generator[Rows]:
    """Return the rows of one split, numbered from 0."""
    names, reading = found.splits[split], table.model_copy(update=found.keys)
    budget, start = Budget(table.max_unpacked), 0
    if folder is not None:
        files = [File(folder / name, f"{table.path}/{name}", folder) for name in names]
    else:
        files = hub.streamed(table, commit, names) if streamed else hub.fetched(table, commit, names)
    for file in files:
        with closing(parts(file, reading, budget, ENDINGS)) as inner:
            for part in inner:
                kind = _reader(part, reading)
                labels = found.labels
                if kind.reader in ("parquet", "arrow"):
                    with part.on_disk() as place:
                        labels = label_names(place, kind.reader == "arrow") | labels
                for batch in read_file(part, kind, start):
                    yield batch._replace(frame=_named(str(table.path), batch.frame, labels))
                    start += len(batch.frame) + len(batch.lost)


def _reader(file: File, table: Table) -> Table:
    """Return the table with the reader of a file: by its ending, but for `.json` that holds JSON Lines, as it often does."""
    if table.reader is not None:
        return table
    ending = ending_of(file.path)
    reader = "parquet" if ending in PARQUET else ENDINGS.get(ending)
    if ending == ".json" and not table.records:
        with file.open() as raw:
            line = next((line for line in iter(partial(raw.readline, 1 << 24), b"") if line.strip()), b"")
        with suppress(ValueError):
            reader = "jsonl" if isinstance(json.loads(line.decode("utf-8-sig")), dict) else reader
    return table.model_copy(update={"reader": reader})


def _named(where: str, frame: pl.DataFrame, labels: dict[str, list[str]]) -> pl.DataFrame:
    """Put names in place of label numbers; -1, no label, is null. A file may hold the names themselves.

    Where names look like other label numbers, as stars from 1 on do, each value is a number, as for `datasets`.

    Raises:
        SourceError: a label that is neither a number nor a name of the column.
    """
    for column, names in labels.items():
        if column not in frame.columns or isinstance(frame[column].dtype, pl.List | pl.Struct):
            continue
        texts = frame[column].cast(pl.String).str.replace(r"^(-?\d+)\.0+$", "${1}")
        numbers = {str(number): name for number, name in enumerate(names)}
        themselves = {} if any(numbers.get(name, name) != name for name in names) else {name: name for name in names}
        known = themselves | numbers | {"-1": None, "": None}
        made = texts.replace_strict(known, default=None, return_dtype=pl.String)
        if len(strange := texts.filter(made.is_null() & ~texts.is_in(["-1", ""]) & texts.is_not_null())):
            raise SourceError(where, f"'{strange[0]}' in column '{column}' is no label of it", f"it has {listed(names, 6)}")
        frame = frame.with_columns(made.alias(column))
    return frame
