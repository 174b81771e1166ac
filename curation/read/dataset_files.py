"""Which files belong to each split of a dataset, and how they are read: as its README says, or the names of its files.

`datasets` decides that, from the names alone. The files are read by our own readers, so that texts stay as they are written:
`datasets` makes 2108 of "02108", null of "NA", and a time of a day.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from curation.core.errors import SourceError, listed
from curation.read.paths import refuse_special

ABOUT = ("README.md", ".huggingface.yaml", "dataset_infos.json")  # files of a dataset that describe it
SAVED, SAVED_DICT = "state.json", "dataset_dict.json"  # what `save_to_disk` of `datasets` writes beside the Arrow files
BY_HAND = "name its files with `files:` and say how to read them"
PLAIN = (  # settings that change no row, or are looked at below
    "name", "version", "data_dir", "data_files", "description", "features", "chunksize", "block_size", "use_threads", "columns",
    "newlines_in_values", "memory_map", "engine", "batch_size", "low_memory", "float_precision", "fragment_scan_options",
    "sep", "delimiter", "names", "column_names", "header", "encoding", "quoting", "field", "na_values", "keep_default_na",
    "na_filter", "on_mixed_types", "verbose", "mangle_dupe_cols",
)  # fmt: skip


class Description(NamedTuple):
    """What a dataset's config is made of."""

    splits: dict[str, list[str]]  # split -> its files, by their names from the dataset's top
    keys: dict[str, Any]  # of a table, to read them by
    labels: dict[str, list[str]]  # column -> the names of its numbers
    rows: dict[str, int]  # split -> its rows, where the card counts them


def check_card(where: str, values: dict[str, Any]) -> None:
    """Refuse a card whose data files are not the dataset's own; `values` is its YAML.

    Raises:
        SourceError: a URL, or a path that leads out of the dataset.
    """
    configs = values.get("configs")
    for config in configs if isinstance(configs, list) else []:
        for pattern in _patterns([config.get("data_files"), config.get("data_dir")] if isinstance(config, dict) else []):
            if "://" in pattern:
                what = f"its README takes data from '{pattern}', which is elsewhere"
                raise SourceError(where, what, "download that, and name it with `files:`")
            if pattern.startswith(("/", "~")) or ".." in PurePosixPath(pattern).parts:
                raise SourceError(where, f"its README takes data from '{pattern}', outside of it", "nothing of it is read")


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _patterns(one)
    elif isinstance(value, dict):
        yield from _patterns(list(value.values()))


def card_of(paths: list[Path]) -> dict[str, Any]:
    """Return the YAML of a dataset's card and of what stands in its place, as `datasets` puts them together.

    Raises:
        ValueError: it cannot be read.
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
    return values


def builder_of(path: str, config: str | None, **more: Any) -> Any:
    """Return what `datasets` finds of a dataset's files, none of which it reads.

    Raises:
        ValueError, OSError, RuntimeError: as `datasets` says it; also where its card is no card.
    """
    import datasets

    try:
        return datasets.load_dataset_builder(path, config, **more)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"its README says what cannot be understood: {error}") from None


def described(where: str, builder: Any, top: str) -> Description:
    """Return what a builder of `datasets` has found, whose files are named from `top` on.

    Raises:
        SourceError: a file outside of `top`, of a kind that is not read, or a setting that would be.
    """
    import datasets

    kind, config = type(builder).__module__.rpartition(".")[2], builder.config
    if kind not in ("csv", "json", "parquet", "arrow", "text"):
        raise SourceError(where, f"holds files for the builder '{kind}' of `datasets`, which are not read", BY_HAND)
    splits = {}
    for split, files in (config.data_files or {}).items():
        names = [str(file).removeprefix(f"{top}/") for file in files]
        if strange := [name for name, file in zip(names, files, strict=True) if name == str(file) or ".." in name.split("/")]:
            raise SourceError(where, f"its data file '{strange[0]}' is outside of it", "nothing of it is read")
        splits[str(split)] = names
    features = builder.info.features or {}
    labels = {name: list(one.names) for name, one in features.items() if isinstance(one, datasets.ClassLabel)}
    counts = {
        str(name): one.num_examples for name, one in (builder.info.splits or {}).items() if isinstance(one.num_examples, int)
    }
    return Description(splits, _keys(where, kind, config), labels, counts)


def _keys(where: str, kind: str, config: Any) -> dict[str, Any]:
    """Return the keys of a table that say the same as a builder's settings."""
    usual = type(config)()
    odd = [one.name for one in dataclasses.fields(config) if getattr(config, one.name) != getattr(usual, one.name)]
    if strange := [name for name in odd if name not in PLAIN]:
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
    plain = "\t" if files and all(".tsv" in PurePosixPath(name).name for name in files) else ","
    keys |= {"delimiter": config.sep} if config.sep != plain else {}
    keys |= {"quoting": False} if config.quoting == 3 else {}
    if names or config.header is None:
        keys["header"] = [str(name) for name in names] if names else False
    return keys


def describe_folder(where: str, folder: Path, config: str | None) -> Description:
    """Return what a local folder in Hub layout is made of; nothing outside of it is opened.

    Raises:
        SourceError: see `check_card` and `described`; or a link that leads out of the folder.
        ValueError, OSError, RuntimeError: as `datasets` says it.
    """
    if (folder / SAVED_DICT).is_file() or (folder / SAVED).is_file():
        return _saved(where, folder)
    about = [folder / name for name in ABOUT if (folder / name).exists()]
    for path in about:
        _refuse_leading_out(where, folder, path)
    check_card(where, card_of([path for path in about if path.name != "dataset_infos.json"]))
    # patterns are resolved by the names that stand in the folder, so it goes by its real one
    builder = builder_of(str(folder.resolve()), config)
    found = described(where, builder, folder.resolve().as_posix())
    for name in dict.fromkeys(name for names in found.splits.values() for name in names):
        _refuse_leading_out(where, folder, folder / name)
    return found


def _saved(where: str, folder: Path) -> Description:
    """Return what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made: Arrow files, whose features name their labels.

    Raises:
        SourceError: it is broken, or names a file outside of the folder.
    """
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
        _refuse_leading_out(where, folder, folder / name)
        if not (folder / name).is_file():
            raise SourceError(where, f"its file '{name}' is missing", "save it again")
    return Description(splits, {"reader": "arrow"}, {}, {})


def _refuse_leading_out(where: str, folder: Path, path: Path) -> None:
    real, top = path.resolve(), folder.resolve()
    refuse_special(path, f"{where}: {path.relative_to(folder)}")
    blobs = top.parents[1] / "blobs" if top.parent.name == "snapshots" else top  # a snapshot of the Hub's cache is all links
    if not real.is_relative_to(top) and not real.is_relative_to(blobs):
        name = path.relative_to(folder)
        raise SourceError(
            where, f"'{name}' is a link that leads out of it", "put the file itself there, or name it with `files:`"
        )
