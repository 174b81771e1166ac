"""What the Hub says of a table, without its rows: what a lock file pins, and what `curate check --online` compares."""

from __future__ import annotations

import fnmatch
from contextlib import closing
from typing import Any, NamedTuple

from curation.core.errors import SourceError, did_you_mean
from curation.core.hub import retrying
from curation.core.store import digest_of
from curation.core.tables import parquet_rows
from curation.read import hub
from curation.read.dataset import rows, splits_of
from curation.read.rows import ROW
from curation.recipe.source import Table


class Facts(NamedTuple):
    """What the Hub says of a table, without its rows: where it stands now, what it has, how much, and a digest of its files."""

    revision: str  # commit
    columns: list[str] | None  # None of `files`, which only their reader knows
    rows: int | None  # None where neither the card nor parquet files say it
    bytes: int
    digest: str  # of the names and content hashes of the files that are read
    license: str | None  # the card's


@retrying
def facts(table: Table) -> Facts:
    """Ask the Hub about a table: its id, revision, config, split and columns, or its files.

    Raises:
        SourceError: one of them is not there, or the dataset is gated, or comes with a loading script.
    """
    with hub.errors(table):
        import huggingface_hub

        info = huggingface_hub.HfApi().dataset_info(str(table.path), revision=table.revision, files_metadata=True)
        known = {one.rfilename: one for one in info.siblings or []}
        pinned = table.model_copy(update={"revision": info.sha})
        if info.gated and known:  # its page is open to all, and its files are not
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(str(table.path), min(known), repo_type="dataset", revision=info.sha)
            )
        if table.files:
            names, columns, total = _matching(table, list(known)), None, None
        else:
            made = hub.describe(pinned, str(info.sha))
            splits = splits_of(pinned, made)
            names = [name for split in splits for name in made.splits[split]]
            with closing(rows(pinned, None, 1)) as batches:
                columns = [name for name in next(batches).frame.columns if name != ROW]
            counted = [made.rows.get(split, 0) for split in splits]
            total = sum(counted) if all(counted) and "[" not in table.split else None
        if total is None and names and "[" not in table.split and all(name.endswith(".parquet") for name in names):
            total = _parquet_rows(pinned, names)
        hashes = {name: large.sha256 if (large := known[name].lfs) else known[name].blob_id for name in names}
        size = sum(known[name].size or 0 for name in names)
        return Facts(str(info.sha), columns, total, size, digest_of(hashes), _card_license(info))


def _card_license(info: Any) -> str | None:
    said = getattr(info.card_data, "license", None)
    return ", ".join(said) if isinstance(said, list) else said


def _matching(table: Table, names: list[str]) -> list[str]:
    for pattern in table.files:
        if not fnmatch.filter(names, pattern):
            raise SourceError(f"{table.path}: {pattern}", "matches no file of the dataset" + did_you_mean(pattern, names))
    return sorted({name for pattern in table.files for name in fnmatch.filter(names, pattern)})


def _parquet_rows(table: Table, names: list[str]) -> int:
    import huggingface_hub

    files = huggingface_hub.HfFileSystem()
    return sum(parquet_rows(files.open(f"datasets/{table.path}@{table.revision}/{name}", "rb")) for name in names)
