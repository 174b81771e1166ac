"""The Hugging Face Hub: a dataset's rows, its files, and what the Hub says of it. Nothing of a dataset is ever run."""

from __future__ import annotations

import fnmatch
import gc
import re
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation.errors import SourceError, did_you_mean, listed
from curation.manifest_source import Table
from curation.reading.rows import BATCH, ROW, Rows
from curation.store import digest_of
from curation.tables import parquet_rows


def rows(table: Table, folder: Path | None, first: int | None) -> Generator[Rows]:
    """Return a dataset's rows through `datasets`: streamed where only the first are wanted, else from its cache.

    `folder` is a local one in Hub layout, or None for a Hub id.

    Raises:
        SourceError: there is no such dataset, config, split or revision, or it cannot be had.
    """
    start = 0
    with errors(table):
        import datasets

        at = {"path": str(folder)} if folder else {"path": table.path, "revision": table.revision}
        dataset = datasets.load_dataset(**at, name=table.config, split=table.split, streaming=first is not None)
        names = {name: kind.names for name, kind in (dataset.features or {}).items() if isinstance(kind, datasets.ClassLabel)}
        try:
            for batch in dataset.with_format("arrow").iter(min(first or BATCH, BATCH)):
                frame = pl.DataFrame(pl.from_arrow(batch)).with_columns(_named(name, names[name]) for name in names)
                yield Rows(frame.with_columns(pl.int_range(start, start + len(frame), dtype=pl.UInt64).alias(ROW)), [])
                start += len(frame)
        finally:  # a streaming iterator that is left half-read can abort the interpreter at exit, unless it is gone by then
            dataset = batch = None
            gc.collect()


def _named(column: str, names: list[str]) -> pl.Expr:
    """Return the names of a ClassLabel column; -1, no label, is null."""
    return pl.col(column).replace_strict(range(len(names)), names, default=None, return_dtype=pl.String)


def fingerprint(table: Table) -> str:
    """Return what changes with a dataset's content.

    Raises:
        SourceError: see `rows`.
    """
    with errors(table):
        import datasets

        builder = datasets.load_dataset_builder(table.path, table.config, revision=table.revision)
        return f"{table.revision or 'main'} {builder.hash}"


def layout(table: Table, base: Path) -> dict[str, list[str]]:
    """Return the splits of each config of a dataset; `path` is a Hub id, or a folder from `base`.

    Raises:
        SourceError: see `rows`.
    """
    with errors(table):
        import datasets

        folder = base / str(table.path)
        where = {"path": str(folder)} if folder.is_dir() else {"path": str(table.path), "revision": table.revision}
        configs = datasets.get_dataset_config_names(**where)
        return {config: datasets.get_dataset_split_names(**where, config_name=config) for config in configs}


def snapshot(table: Table) -> Path:
    """Return a folder with the files of a Hub dataset that `files` names, fetched where they are not here yet.

    Raises:
        SourceError: see `rows`.
    """
    with errors(table):
        import huggingface_hub

        path = huggingface_hub.snapshot_download(
            str(table.path), repo_type="dataset", revision=table.revision, allow_patterns=table.files
        )
        return Path(path)


@contextmanager
def errors(table: Table) -> Iterator[None]:
    """Keep `datasets` silent, and turn what it and the Hub's client raise into one line."""
    import datasets
    from httpx2 import HTTPError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError, datasets.exceptions.DatasetsError) as error:
        what, hint = _complaint(table, error)
        raise SourceError(table.path, what, hint) from None


def _complaint(table: Table, error: Exception) -> tuple[str, str]:
    from httpx2 import HTTPError
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )  # fmt: skip

    text = str(error)
    there_are = "there are: " + listed(re.findall(r"'([^']*)'", text.partition("[")[2].partition("]")[0]))
    if "scripts are no longer supported" in text:
        return "comes with a loading script, which would run code", "`revision: refs/convert/parquet` may hold the same rows"
    missing = isinstance(error, LocalEntryNotFoundError)
    if "OfflineModeIsEnabled" in text or "offline mode is enabled" in text or (missing and HF_HUB_OFFLINE):
        return "cannot be had while the Hub is switched off", "unset HF_HUB_OFFLINE, or name a local folder"
    lost = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)  # no answer at all
    if missing or lost or isinstance(error, ConnectionError):
        return "the Hub cannot be reached", "check the network, or name a local folder"
    if "gated dataset" in text or isinstance(error, GatedRepoError):
        return "is a gated dataset", "ask for access on its page, then `hf auth login`"
    if text.startswith("Revision") or isinstance(error, RevisionNotFoundError):
        return f"no revision '{table.revision}'", "name a commit, tag or branch of the dataset"
    if "doesn't exist on the Hub" in text or isinstance(error, RepositoryNotFoundError):
        what = "no such dataset on the Hub, or a private one" + _likely(str(table.path))
        return what, "check the id; `hf auth login` for a private one"
    if "BuilderConfig" in text and "not found" in text:
        return f"no config '{table.config}'", there_are
    if "Config name is missing" in text:
        return "needs a `config:`", there_are
    if text.startswith(("Unknown split", "Bad split")):
        return f"no split '{table.split}'", there_are
    cause = error.__cause__ or error
    return (
        f"`datasets` cannot read it ({(str(cause) or type(cause).__name__).splitlines()[0]})",
        "check path, config, split and revision",
    )


class Facts(NamedTuple):
    """What the Hub says of a table, without its rows: where it stands now, what it has, how much, and a digest of its files."""

    revision: str  # commit
    columns: list[str] | None  # None of `files`, which only their reader knows
    rows: int | None  # None where neither the card nor parquet files say it
    bytes: int
    digest: str  # of the names and content hashes of the files that are read
    license: str | None  # the card's


def facts(table: Table) -> Facts:
    """Ask the Hub about a table: its id, revision, config, split and columns, or its files.

    Raises:
        SourceError: one of them is not there, or the dataset is gated, or comes with a loading script.
    """
    with errors(table):
        import huggingface_hub

        info = huggingface_hub.HfApi().dataset_info(str(table.path), revision=table.revision, files_metadata=True)
        known = {one.rfilename: one for one in info.siblings or []}
        pinned = table.model_copy(update={"revision": info.sha})
        if info.gated and known:  # its page is open to all, and its files are not
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(str(table.path), min(known), repo_type="dataset", revision=info.sha)
            )
        names, total = (_matching(table, list(known)), None) if table.files else _data_files(pinned)
        columns = None if table.files else _columns(pinned)
        if total is None and names and all(name.endswith(".parquet") for name in names):
            total = _parquet_rows(pinned, names)
        hashes = {name: large.sha256 if (large := known[name].lfs) else known[name].blob_id for name in names}
        size = sum(known[name].size or 0 for name in names)
        return Facts(str(info.sha), columns, total, size, digest_of(hashes), _card_license(info))


def splits(table: Table) -> dict[str, list[str]]:
    """Return the configs of a dataset, each with its splits.

    Raises:
        SourceError: see `rows`.
    """
    with errors(table):
        import datasets

        configs = datasets.get_dataset_config_names(str(table.path))
        return {name: list(datasets.get_dataset_split_names(str(table.path), name)) for name in configs}


def _card_license(info: Any) -> str | None:
    said = getattr(info.card_data, "license", None)
    return ", ".join(said) if isinstance(said, list) else said


def _matching(table: Table, names: list[str]) -> list[str]:
    for pattern in table.files:
        if not fnmatch.filter(names, pattern):
            raise SourceError(f"{table.path}: {pattern}", "matches no file of the dataset" + did_you_mean(pattern, names))
    return sorted({name for pattern in table.files for name in fnmatch.filter(names, pattern)})


def _data_files(table: Table) -> tuple[list[str], int | None]:
    """Return the names of a split's files, and its rows as the card counts them."""
    import datasets

    builder = datasets.load_dataset_builder(str(table.path), table.config, revision=table.revision)
    parts = [re.sub(r"\[.*", "", part).strip() for part in table.split.split("+")]
    files = builder.config.data_files or {}
    for part in parts:
        if part not in files:
            raise SourceError(table.path, f"no split '{part}'", f"there are: {listed(files)}")
    names = [str(name).partition(f"@{table.revision}/")[2] for part in parts for name in files[part]]
    counted = [builder.info.splits[part].num_examples for part in parts if part in (builder.info.splits or {})]
    whole = len(counted) == len(parts) and "[" not in table.split and all(counted)
    return names, sum(counted) if whole else None


def _columns(table: Table) -> list[str]:
    with closing(rows(table, None, 1)) as found:
        return [name for name in next(found).frame.columns if name != ROW]


def _parquet_rows(table: Table, names: list[str]) -> int:
    import huggingface_hub

    files = huggingface_hub.HfFileSystem()
    return sum(parquet_rows(files.open(f"datasets/{table.path}@{table.revision}/{name}", "rb")) for name in names)


def _likely(wanted: str) -> str:
    """Return ` (did you mean ...?)` of the Hub's datasets, or nothing where it has none alike or cannot be asked."""
    import huggingface_hub
    from httpx2 import HTTPError

    try:
        found = [one.id for one in huggingface_hub.HfApi().list_datasets(search=wanted.rpartition("/")[2], limit=50)]
    except (OSError, ValueError, HTTPError):
        return ""
    return did_you_mean(wanted, found) or (f" (did you mean '{found[0]}'?)" if found else "")
