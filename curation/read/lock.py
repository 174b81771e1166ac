"""The lock file: what each source of a manifest was at one moment, so that a later build reads the same.

`f2llm.lock` beside `f2llm.yaml` is JSON. Per source: path, config, split, files, asked (the revision that the manifest
names), revision (the commit that it was), columns, rows, bytes, license, digest; for files of this machine and URLs inputs
(their digests by name); for URLs also objects (by the name in files: URL, version and bytes of each); for qrels also corpus
and queries. Columns of single files and rows that nobody counted are null.
"""

from __future__ import annotations

import fnmatch
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from curation.core.errors import ManifestError, SourceError, UserError, did_you_mean
from curation.core.hub import retrying
from curation.core.progress import Progress, silent
from curation.core.store import atomic, digest_of, read_json, write_json
from curation.core.tables import parquet_rows
from curation.read import remote
from curation.read.dataset import describe_commit, split_rows, splits_of
from curation.read.hub import hub_errors
from curation.read.rows import ROW
from curation.read.sources import fail_if_changed, file_states, input_digests, is_local, table_rows, total_bytes
from curation.recipe.addresses import is_url
from curation.recipe.manifest import Manifest
from curation.recipe.source import Source, Table

Entry = dict[str, Any]
LOCK_FORMAT = 1
TEXT_OR_NULL = (str, type(None))
VALUE_TYPES: dict[str, type | tuple[type, ...]] = {  # of the values of each entry
    "path": TEXT_OR_NULL, "config": TEXT_OR_NULL, "split": str, "files": list, "asked": TEXT_OR_NULL, "revision": TEXT_OR_NULL,
    "columns": (list, type(None)), "rows": (int, type(None)), "bytes": int, "digest": str,
}  # fmt: skip
HINT = "undo that, or run `curate lock` again"


def lock_path(manifest: Path) -> Path:
    """Return the path of a manifest's lock file."""
    return manifest.with_suffix(".lock")


def read_lock(path: Path) -> dict[str, Entry] | None:
    """Return the entries of a lock file by source, or None if the file does not exist.

    Raises:
        ManifestError: it is not a lock file.
    """
    if not path.exists():
        return None
    if not path.is_file():
        raise ManifestError(path, "is not a lock file", "delete it and run `curate lock` again")
    try:
        found = read_json(path)
    except UserError as error:
        raise ManifestError(path, "is not a lock file", "delete it and run `curate lock` again") from error
    if not isinstance(found, dict) or found.get("format") != LOCK_FORMAT or not isinstance(found.get("sources"), dict):
        raise ManifestError(path, "is not a lock file of this version", "run `curate lock` again")
    for name, entry in found["sources"].items():
        parts = [entry, *(entry[part] for part in ("corpus", "queries") if part in entry)] if isinstance(entry, dict) else [entry]
        for part in parts:
            wrong = [
                key for key, kinds in VALUE_TYPES.items() if not isinstance(part, dict) or not isinstance(part.get(key), kinds)
            ]
            wrong += [key for key in ("inputs", "objects") if isinstance(part, dict) and not isinstance(part.get(key, {}), dict)]
            if wrong:
                what = f"the entry of source '{name}' has no valid '{wrong[0]}'; was it changed by hand?"
                raise ManifestError(path, what, "delete it and run `curate lock` again")
    return dict(found["sources"])


def write_lock(
    path: Path, manifest: Manifest, only: list[str], progress: Progress = silent, refused: dict[str, UserError] | None = None
) -> dict[str, UserError]:
    """Write the lock file of the manifest at `path`; return the errors of the sources that could not be locked.

    Entries of sources that are not in `only` stay. Sources in `refused` are not read.
    """
    earlier = read_lock(lock_path(path)) or {}
    names = [source.name for source in manifest.sources]
    entries = {name: entry for name, entry in earlier.items() if name in names and name not in only}
    failed: dict[str, UserError] = {}
    with progress("lock", len(only), "sources") as advance:
        for source in manifest.sources:
            if source.name in only:
                try:
                    if refused and source.name in refused:
                        raise refused[source.name]
                    entry = _entry_of(source, path.parent) | {"license": source.license}
                    for part, table in (("corpus", source.corpus), ("queries", source.queries)):
                        if isinstance(table, Table):
                            entry[part] = _entry_of(table, path.parent)
                    entries[source.name] = entry
                except UserError as error:
                    failed[source.name] = error
                advance(1)
    sources = {name: entries[name] for name in sorted(entries)}
    write_json(lock_path(path), {"format": LOCK_FORMAT, "sources": sources})
    return failed


def copy_lock(path: Path, build: Path) -> None:
    """Copy a manifest's lock file into its build as manifest.lock; if there is none, delete an earlier copy."""
    lock, copy = lock_path(path), build / "manifest.lock"
    if not lock.exists():
        copy.unlink(missing_ok=True)
    elif not copy.exists() or copy.read_bytes() != lock.read_bytes():
        with atomic(copy) as file:
            file.write(lock.read_bytes())


def apply_lock(
    manifest: Manifest, path: Path, refused: dict[str, UserError] | None = None
) -> tuple[Manifest, dict[str, UserError]]:
    """Return the manifest at `path` with the revisions of its lock file, and the errors of sources that differ from it.

    Sources in `refused` are among the latter, and are not opened. Without a lock file the manifest stays as it is.
    """
    entries, refused = read_lock(lock_path(path)), refused or {}
    if entries is None:
        return manifest, refused
    sources, changed = [], dict[str, UserError]()
    for source in manifest.sources:
        try:
            if source.name in refused:
                raise refused[source.name]
            sources.append(_with_revisions(source, entries.get(source.name), path))
        except UserError as error:
            sources.append(source)
            changed[source.name] = error
    return manifest.model_copy(update={"sources": sources}), changed


def _with_revisions(source: Source, entry: Entry | None, path: Path) -> Source:
    """Return a source with the revisions of its entry.

    Raises:
        SourceError: it has no entry, or differs from it.
    """
    lock, name = lock_path(path).name, f"source '{source.name}'"
    if entry is None:
        raise SourceError(name, f"is not in {lock}", f"run `curate lock {path} --only {source.name}`")
    update: dict[str, Any] = {}
    parts = [("corpus", source.corpus), ("queries", source.queries)]
    for part, table, locked in [
        ("", source, entry),
        *((part, table, entry.get(part) or {}) for part, table in parts if isinstance(table, Table)),
    ]:
        where = f"{name} ({part})" if part else name
        for key, value in _question(table).items():
            if value != locked.get(key):
                shown = "revision" if key == "asked" else key
                raise SourceError(where, f"'{shown}' is {_quoted(value)}, and {lock} has {_quoted(locked.get(key))}", HINT)
        if not is_local(table, path.parent):
            commit = {"revision": locked["revision"]}
            update |= {part: table.model_copy(update=commit)} if part else commit
            continue
        near = table.model_copy(update={"files": [file for file in table.files if not is_url(file)]})
        if remote.urls(table):  # compared when the store is asked
            if part:
                update[part] = remote.with_lock(table, where, lock, locked)
            else:
                source = remote.with_lock(source, where, lock, locked)
        if near.files or near.path:
            then = {file: digest for file, digest in locked.get("inputs", {}).items() if not is_url(file)}
            remote.refuse_changes(where, lock, input_digests(near, path.parent), then)
    if (source.license or None) != entry.get("license"):
        what = f"'license' is {_quoted(source.license)}, and {lock} has {_quoted(entry.get('license'))}"
        raise SourceError(name, what, HINT)
    return source.model_copy(update=update)


def _quoted(value: object) -> str:
    return "not set" if value in (None, []) else f"'{value}'"


def _question(table: Table) -> Entry:
    """Return what a manifest asks for."""
    return {"path": table.path, "config": table.config, "split": table.split, "files": table.files, "asked": table.revision}


def _entry_of(table: Table, base: Path) -> Entry:
    """Return the entry of a table; all rows of local files are read, to count them."""
    if not is_local(table, base):
        found = hub_facts(table)
        return _question(table) | {key: value for key, value in found._asdict().items() if key != "license"}
    table = remote.pinned(table)
    count, columns, before = 0, dict[str, None](), [file_states(table, base)]
    digests = input_digests(table, base)
    with fail_if_changed(before, [table], base):
        for batch in table_rows(table.model_copy(update={"sample": "random"} if isinstance(table, Source) else {}), base):
            count += len(batch.frame) + len(batch.lost)
            columns |= dict.fromkeys(name for name in batch.frame.columns if name != ROW)
    facts: Entry = {"revision": None, "columns": list(columns), "rows": count, "bytes": total_bytes(table, base)}
    facts |= {"digest": digest_of(digests), "inputs": digests}
    if names := remote.urls(table):  # URL, version and bytes of each object
        facts["objects"] = {name: [one[:3] for one in table._objects[name]] for name in names}
    return _question(table) | facts


class HubFacts(NamedTuple):
    """What the Hub says about a table without its rows: its commit, its content, and a digest of its files."""

    revision: str  # commit
    columns: list[str] | None  # None for `files`, whose columns only their reader knows
    rows: int | None  # None if neither the card nor parquet files say it
    bytes: int
    digest: str  # of the names and content hashes of the files that are read
    license: str | None  # the card's


@retrying
def hub_facts(table: Table) -> HubFacts:
    """Ask the Hub about a table: its id, revision, config, split and columns, or its files.

    Raises:
        SourceError: one of them does not exist, or the dataset is gated, or comes with a loading script.
    """
    with hub_errors(table):
        import huggingface_hub

        info = huggingface_hub.HfApi().dataset_info(str(table.path), revision=table.revision, files_metadata=True)
        known = {one.rfilename: one for one in info.siblings or []}
        at_commit = table.model_copy(update={"revision": info.sha})
        if info.gated and known:  # everybody may see its page, but not its files
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(str(table.path), min(known), repo_type="dataset", revision=info.sha)
            )
        # files, columns and rows
        columns, total = None, None
        if table.files:
            found = {pattern: fnmatch.filter(known, pattern) for pattern in table.files}
            for pattern in [pattern for pattern, names in found.items() if not names]:
                what = "matches no file of the dataset" + did_you_mean(pattern, list(known))
                raise SourceError(f"{table.path}: {pattern}", what)
            names = sorted({name for names in found.values() for name in names})
        else:
            described = describe_commit(at_commit, str(info.sha))
            splits = splits_of(at_commit, described)
            names = [name for split in splits for name in described.splits[split]]
            with closing(split_rows(at_commit, None, 1)) as batches:
                columns = [name for name in next(batches).frame.columns if name != ROW]
            counted = [described.rows.get(split, 0) for split in splits]
            total = sum(counted) if all(counted) and "[" not in table.split else None
        if total is None and names and "[" not in table.split and all(name.endswith(".parquet") for name in names):
            remote, top = huggingface_hub.HfFileSystem(), f"datasets/{table.path}@{info.sha}"
            total = sum(parquet_rows(remote.open(f"{top}/{name}", "rb")) for name in names)
        # digest, size and licence
        hashes = {name: large.sha256 if (large := known[name].lfs) else known[name].blob_id for name in names}
        size = sum(known[name].size or 0 for name in names)
        license = getattr(info.card_data, "license", None)
        license = ", ".join(license) if isinstance(license, list) else license
        return HubFacts(str(info.sha), columns, total, size, digest_of(hashes), license)
