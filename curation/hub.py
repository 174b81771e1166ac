"""The Hugging Face Hub: a dataset's rows, its files, and what the Hub says of it. Nothing of a dataset is ever run."""

from __future__ import annotations

import gc
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from curation.errors import SourceError, listed
from curation.manifest_source import Table
from curation.rows import BATCH, ROW, Rows


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
    """Keep `datasets` silent, and turn what it raises into one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        what, hint = _complaint(table, error)
        raise SourceError(table.path, what, hint) from None


def _complaint(table: Table, error: Exception) -> tuple[str, str]:
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    text = str(error)
    there_are = "there are: " + listed(re.findall(r"'([^']*)'", text.partition("[")[2].partition("]")[0]))
    if "scripts are no longer supported" in text:
        return "comes with a loading script, which would run code", "`revision: refs/convert/parquet` may hold the same rows"
    missing = isinstance(error, LocalEntryNotFoundError)
    if "OfflineModeIsEnabled" in text or "offline mode is enabled" in text or (missing and HF_HUB_OFFLINE):
        return "cannot be had while the Hub is switched off", "unset HF_HUB_OFFLINE, or name a local folder"
    if missing or isinstance(error, ConnectionError):
        return "the Hub cannot be reached", "check the network, or name a local folder"
    if "gated dataset" in text or isinstance(error, GatedRepoError):
        return "is a gated dataset", "ask for access on its page, then `hf auth login`"
    if text.startswith("Revision") or isinstance(error, RevisionNotFoundError):
        return f"no revision '{table.revision}'", "name a commit, tag or branch of the dataset"
    if "doesn't exist on the Hub" in text or isinstance(error, RepositoryNotFoundError):
        return "no such dataset on the Hub, or a private one", "check the id; `hf auth login` for a private one"
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
