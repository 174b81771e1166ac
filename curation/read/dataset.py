"""A dataset's splits: which files each has, as its README or the names of its files say, and the rows in them.

`datasets` decides which files belong to a split, from their names alone. The files are read by our own readers, so that
texts stay as they are written: `datasets` makes 2108 of "02108", null of "NA", and a time of a day. A dataset is one of the
Hub, or a local folder that is laid out like one or was saved by `save_to_disk`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import polars as pl

from curation.core.errors import SourceError, listed
from curation.core.hub import retrying
from curation.core.tables import label_names
from curation.read import hub
from curation.read.archives import Budget, ending_of, parts
from curation.read.paths import refuse_special
from curation.read.readers import READER_OF_ENDING, file_rows
from curation.read.rows import ROW, File, Rows
from curation.recipe.source import Table

CARDS = ("README.md", ".huggingface.yaml")
ABOUT_FILES = (*CARDS, "dataset_infos.json")  # files of a dataset that describe it
SAVED, SAVED_DICT = "state.json", "dataset_dict.json"  # what `save_to_disk` of `datasets` writes beside the Arrow files
PARQUET = (".parquet", ".geoparquet", ".gpq")
BY_HAND = "name its files with `files:` and say how to read them"
HARMLESS = (  # settings of `datasets` that change no row, or that `_reading_keys` looks at
    "name", "version", "data_dir", "data_files", "description", "features", "chunksize", "block_size", "use_threads", "columns",
    "newlines_in_values", "memory_map", "engine", "batch_size", "low_memory", "float_precision", "fragment_scan_options",
    "sep", "delimiter", "names", "column_names", "header", "encoding", "quoting", "field", "na_values", "keep_default_na",
    "na_filter", "on_mixed_types", "verbose", "mangle_dupe_cols",
)  # fmt: skip


class Description(NamedTuple):
    """The files of a dataset's config, and how to read them."""

    splits: dict[str, list[str]]  # split: its files, as paths from the top of the dataset
    keys: dict[str, Any]  # keys of a table to read them by
    labels: dict[str, list[str]]  # column: the names of its label numbers
    rows: dict[str, int]  # split: its rows, if the card counts them


# --- which files a dataset has ---


def describe(table: Table, folder: Path | None) -> tuple[str, Description]:
    """Return a dataset's commit, empty for a local folder, and the files of its config.

    A local folder is laid out as on the Hub, or was saved; nothing outside of it is opened.

    Raises:
        SourceError: the dataset or config does not exist, or cannot be downloaded or read.
    """
    if folder is None:
        commit = hub.dataset_commit(table)
        return commit, describe_commit(table, commit)
    where = str(table.path)
    with hub.hub_errors(table):
        if (folder / SAVED_DICT).is_file() or (folder / SAVED).is_file():
            # what Dataset.save_to_disk or DatasetDict.save_to_disk wrote: Arrow files, which contain their label names
            try:
                if (folder / SAVED_DICT).is_file():
                    folders = {str(split): f"{split}/" for split in json.loads((folder / SAVED_DICT).read_bytes())["splits"]}
                else:
                    folders = {str(json.loads((folder / SAVED).read_bytes()).get("_split") or "train"): ""}
                splits = {}
                for split, inner in folders.items():
                    state = json.loads((folder / inner / SAVED).read_bytes())
                    splits[split] = [inner + str(one["filename"]) for one in state["_data_files"]]
            except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
                what = f"was not saved by `save_to_disk` as it should be ({type(error).__name__}: {error})"
                raise SourceError(where, what, "save it again") from None
            for name in [name for names in splits.values() for name in names]:
                _refuse_link_outside(where, folder, folder / name)
                if not (folder / name).is_file():
                    raise SourceError(where, f"its file '{name}' is missing", "save it again")
            return "", Description(splits, {"reader": "arrow"}, {}, {})
        for name in ABOUT_FILES:
            if (folder / name).exists():
                _refuse_link_outside(where, folder, folder / name)
        _check_cards(where, [folder / name for name in CARDS if (folder / name).exists()])
        # patterns match the names of files in the folder, so it is named by its real path
        found = _description_of(where, _builder(str(folder.resolve()), table.config), folder.resolve().as_posix())
        for name in dict.fromkeys(name for names in found.splits.values() for name in names):
            _refuse_link_outside(where, folder, folder / name)
    return "", found


@retrying
def describe_commit(table: Table, commit: str) -> Description:
    """Return the files of a Hub dataset's config at a commit. The answer is kept: a commit never changes.

    Raises:
        SourceError: the dataset, config or commit does not exist, or cannot be downloaded.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    path = str(table.path)
    answer = hub.answer_path(path, table.config, commit)
    with suppress(OSError, ValueError, TypeError):
        return Description(*json.loads(answer.read_text("utf-8")))
    with hub.hub_errors(table):
        cards = []
        for name in CARDS:
            with suppress(EntryNotFoundError):
                cards.append(Path(huggingface_hub.hf_hub_download(path, name, repo_type="dataset", revision=commit)))
        _check_cards(path, cards)
        builder = _builder(path, table.config, revision=commit)
        found = _description_of(path, builder, f"hf://datasets/{path}@{commit}")
    hub.write_answer(answer, found)
    return found


def _refuse_link_outside(where: str, folder: Path, path: Path) -> None:
    real, top, name = path.resolve(), folder.resolve(), path.relative_to(folder)
    refuse_special(path, f"{where}: {name}")
    blobs = top.parents[1] / "blobs" if top.parent.name == "snapshots" else top  # a snapshot in the Hub's cache has only links
    if not real.is_relative_to(top) and not real.is_relative_to(blobs):
        what = f"'{name}' is a link that leads out of the dataset"
        raise SourceError(where, what, "put the file itself there, or name it with `files:`")


def _check_cards(where: str, paths: list[Path]) -> None:
    """Read the YAML of a dataset's cards, as `datasets` does, and refuse data files that are not the dataset's own.

    Raises:
        SourceError: a URL, or a path that leads out of the dataset.
        ValueError: a card cannot be read.
    """
    import yaml
    from huggingface_hub import DatasetCard

    values: dict[str, Any] = {}
    try:
        for path in paths:
            found = DatasetCard.load(path, ignore_metadata_errors=True).data.to_dict() if path.suffix == ".md" else None
            values |= found if found is not None else yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    configs = values.get("configs")
    for config in configs if isinstance(configs, list) else []:
        for pattern in _strings([config.get("data_files"), config.get("data_dir")] if isinstance(config, dict) else []):
            if "://" in pattern:
                what = f"its README takes data from '{pattern}', which is elsewhere"
                raise SourceError(where, what, "download that, and name it with `files:`")
            if pattern.startswith(("/", "~")) or ".." in PurePosixPath(pattern).parts:
                what = f"its README takes data from '{pattern}', outside of the dataset"
                raise SourceError(where, what, "such files are never read")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(one)


def _builder(path: str, config: str | None, **more: Any) -> Any:
    """Return what `datasets` finds out about a dataset's files, without reading them.

    Raises:
        ValueError, OSError, RuntimeError: raised by `datasets`, also for a card that makes no sense.
    """
    import datasets

    try:
        return datasets.load_dataset_builder(path, config, **more)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"its README says what cannot be understood: {error}") from None


def _description_of(where: str, builder: Any, top: str) -> Description:
    """Return the files that a builder of `datasets` has found, as paths from `top`.

    Raises:
        SourceError: a file outside of `top`, of a format that is not read, or a setting that is not supported.
    """
    import datasets

    kind, config = type(builder).__module__.rpartition(".")[2], builder.config
    if kind not in ("csv", "json", "parquet", "arrow", "text"):
        raise SourceError(where, f"holds files for the builder '{kind}' of `datasets`, which are not read", BY_HAND)
    splits = {}
    for split, files in (config.data_files or {}).items():
        names = [str(file).removeprefix(f"{top}/") for file in files]
        if outside := [name for name, file in zip(names, files, strict=True) if name == str(file) or ".." in name.split("/")]:
            what = f"its data file '{outside[0]}' is outside of the dataset"
            raise SourceError(where, what, "such files are never read")
        splits[str(split)] = names
    features, counts = builder.info.features or {}, builder.info.splits or {}
    labels = {name: list(one.names) for name, one in features.items() if isinstance(one, datasets.ClassLabel)}
    rows = {str(name): one.num_examples for name, one in counts.items() if isinstance(one.num_examples, int)}
    return Description(splits, _reading_keys(where, kind, config), labels, rows)


def _reading_keys(where: str, kind: str, config: Any) -> dict[str, Any]:
    """Return the keys of a table that mean the same as a builder's settings."""
    usual = type(config)()
    odd = [one.name for one in dataclasses.fields(config) if getattr(config, one.name) != getattr(usual, one.name)]
    if strange := [name for name in odd if name not in HARMLESS]:
        raise SourceError(where, f"its README sets {listed(strange)} for its {kind} files, which is not read", BY_HAND)
    keys: dict[str, Any] = {"encoding": str(config.encoding)} if "encoding" in odd else {}
    if kind == "text":
        return {**keys, "reader": "lines", "pattern": "(?P<text>.*)"}
    if kind == "json" and config.field:
        return {**keys, "records": str(config.field)}
    if kind != "csv":
        return keys
    names = config.names
    fits = isinstance(names, list) and config.header in ("infer", None) if names else config.header in ("infer", 0, None)
    if not (isinstance(config.sep, str) and len(config.sep) == 1 and config.quoting in (0, 3) and fits):
        raise SourceError(where, "its README sets `sep`, `quoting`, `names` or `header` in a way that is not read", BY_HAND)
    files = [str(file).lower() for files in (config.data_files or {}).values() for file in files]
    usual_delimiter = "\t" if files and all(".tsv" in PurePosixPath(name).name for name in files) else ","
    keys |= {"delimiter": config.sep} if config.sep != usual_delimiter else {}
    keys |= {"quoting": False} if config.quoting == 3 else {}
    if names or config.header is None:
        keys["header"] = [str(name) for name in names] if names else False
    return keys


@retrying
def config_splits(table: Table, base: Path) -> dict[str, list[str]]:
    """Return the splits of each config of a dataset; `path` is a Hub id, or a folder from `base`.

    Raises:
        SourceError: see `describe`.
    """
    with hub.hub_errors(table):
        import datasets

        folder = base / str(table.path)
        _check_cards(str(table.path), [folder / name for name in CARDS if (folder / name).is_file()])
        where = {"path": str(folder)} if folder.is_dir() else {"path": str(table.path), "revision": table.revision}
        configs = datasets.get_dataset_config_names(**where)
        return {config: list(datasets.get_dataset_split_names(**where, config_name=config)) for config in configs}


# --- the rows of a split ---


def splits_of(table: Table, found: Description) -> list[str]:
    """Return the splits that a table names, such as `train` for `train[:10%]`.

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
        hint = "such as train, train+test, train[:1000], train[10%:20%]"
        raise SourceError(table.path, f"no split '{table.split}'", hint) from None


def split_rows(table: Table, folder: Path | None, first: int | None) -> Generator[Rows]:
    """Return the rows of a split. Files of the Hub are streamed if only the `first` rows are wanted, else downloaded.

    Raises:
        SourceError: see `describe`; or a file that cannot be read.
    """
    commit, found = describe(table, folder)
    names, made = splits_of(table, found), 0
    sliced = any(one.from_ is not None or one.to is not None for one in _instruction(table)._relative_instructions)
    pieces = [(name, 0, 0) for name in names]
    if sliced:  # count the rows, to know what a percentage or a negative number means
        read = partial(_whole_split, table, folder, commit, found)
        counts = {name: sum(len(one.frame) + len(one.lost) for one in read(name)) for name in names}
        try:
            absolute = _instruction(table).to_absolute(counts)
        except ValueError as error:
            what = f"split '{table.split}' cannot be taken ({error})"
            raise SourceError(str(table.path), what, "name rows, such as train[:50]") from None
        pieces = [(one.splitname, one.from_ or 0, counts[one.splitname] if one.to is None else one.to) for one in absolute]
    for name, start, stop in pieces:
        end = made
        with closing(_whole_split(table, folder, commit, found, name, streamed=first is not None)) as batches:
            for frame, lost in batches:
                if sliced:
                    frame = frame.filter((pl.col(ROW) >= start) & (pl.col(ROW) < stop))
                    lost = [one for one in lost if start <= one.row < stop]
                shift = made - start
                shifted = frame.with_columns((pl.col(ROW).cast(pl.Int64) + shift).cast(pl.UInt64))
                yield Rows(shifted, [one._replace(row=one.row + shift) for one in lost])
                end += len(frame) + len(lost)
                if sliced and end - made >= stop - start:
                    break
        made = end


def _whole_split(
    table: Table, folder: Path | None, commit: str, found: Description, split: str, streamed: bool = False
) -> Generator[Rows]:
    """Return all rows of one split, numbered from 0."""
    names, reading = found.splits[split], table.model_copy(update=found.keys)
    budget, start = Budget(table.max_unpacked), 0
    if folder is not None:
        files = [File(folder / name, f"{table.path}/{name}", folder) for name in names]
    else:
        files = hub.streamed(table, commit, names) if streamed else hub.fetched(table, commit, names)
    for file in files:
        with closing(parts(file, reading, budget, READER_OF_ENDING)) as inner:
            for part in inner:
                ending, labels = ending_of(part.path), found.labels
                reader: str | None = reading.reader
                if reader is None:  # by its ending, but jsonl for a `.json` that holds JSON Lines
                    reader = "parquet" if ending in PARQUET else READER_OF_ENDING.get(ending)
                    if ending == ".json" and not reading.records and _is_json_lines(part):
                        reader = "jsonl"
                if reader in ("parquet", "arrow"):
                    with part.on_disk() as place:
                        labels = label_names(place, reader == "arrow") | labels
                for batch in file_rows(part, reading.model_copy(update={"reader": reader}), start):
                    yield batch._replace(frame=_with_label_names(str(table.path), batch.frame, labels))
                    start += len(batch.frame) + len(batch.lost)


def _is_json_lines(file: File) -> bool:
    """Return whether the first line of a file that is not blank is a JSON object."""
    with file.open() as raw:
        line = next((line for line in iter(partial(raw.readline, 1 << 24), b"") if line.strip()), b"")
    with suppress(ValueError):
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    return False


def _with_label_names(where: str, frame: pl.DataFrame, labels: dict[str, list[str]]) -> pl.DataFrame:
    """Replace label numbers by their names; -1 means no label and becomes null. A file may hold the names themselves.

    If names look like other label numbers, as stars from 1 on do, each value is a number, as for `datasets`.

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
            what = f"'{strange[0]}' in column '{column}' is not one of its labels"
            raise SourceError(where, what, f"these are {listed(names, 6)}")
        frame = frame.with_columns(made.alias(column))
    return frame
