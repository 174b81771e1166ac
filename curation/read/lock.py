"""The lock file: what each source of a manifest was at one moment, so that a build can be made of the same again.

`f2llm.lock` beside `f2llm.yaml` is JSON. Per source: path, config, split, files, asked (the revision that the manifest
names), revision (the commit that it was), columns, rows, bytes, license, digest; of qrels also corpus and queries. The
columns of single files and the rows that nobody counted are null.
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
from curation.read import hub
from curation.read.dataset import rows, splits_of
from curation.read.rows import ROW
from curation.read.sources import fail_if_changed, file_states, input_digests, is_local, read_rows, total_bytes
from curation.recipe.manifest import Manifest
from curation.recipe.source import Source, Table

Entry = dict[str, Any]
FORMAT = 1
HINT = "undo that, or run `curate lock` again"


def lock_path(manifest: Path) -> Path:
    """Return where a manifest's lock file stands."""
    return manifest.with_suffix(".lock")


def read_lock(path: Path) -> dict[str, Entry] | None:
    """Return the entries of a lock file by source, or None where there is no such file.

    Raises:
        ManifestError: it is no lock file.
    """
    if not path.exists():
        return None
    if not path.is_file():
        raise ManifestError(path, "is no lock file", "delete it and run `curate lock` again")
    try:
        found = read_json(path)
    except UserError as error:
        raise ManifestError(path, "is no lock file", "delete it and run `curate lock` again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("sources"), dict):
        raise ManifestError(path, "is no lock file of this version", "run `curate lock` again")
    return dict(found["sources"])


def write_lock(
    path: Path, manifest: Manifest, only: list[str], progress: Progress = silent, refused: dict[str, UserError] | None = None
) -> dict[str, UserError]:
    """Resolve the sources of a manifest that stands at `path`, and write them beside it; return those that cannot be.

    Entries of sources that are not in `only` stay. Those that are `refused` are not read.
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
                    entries[source.name] = _entry(source, path.parent)
                except UserError as error:
                    failed[source.name] = error
                advance(1)
    sources = {name: entries[name] for name in sorted(entries)}
    write_json(lock_path(path), {"format": FORMAT, "sources": sources})
    return failed


def copy_lock(path: Path, build: Path) -> None:
    """Put a manifest's lock file into its build as manifest.lock; where there is none, take an earlier one away."""
    lock, copy = lock_path(path), build / "manifest.lock"
    if not lock.exists():
        copy.unlink(missing_ok=True)
    elif not copy.exists() or copy.read_bytes() != lock.read_bytes():
        with atomic(copy) as file:
            file.write(lock.read_bytes())


def apply_lock(
    manifest: Manifest, path: Path, refused: dict[str, UserError] | None = None
) -> tuple[Manifest, dict[str, UserError]]:
    """Return the manifest at `path` with revisions as its lock file has them, and the sources that are not as they were locked.

    Sources that are `refused` are among the latter, and are not opened. Without a lock file, the manifest as it is.
    """
    entries, refused = read_lock(lock_path(path)), refused or {}
    if entries is None:
        return manifest, refused
    sources, changed = [], dict[str, UserError]()
    for source in manifest.sources:
        try:
            if source.name in refused:
                raise refused[source.name]
            sources.append(_pinned(source, entries.get(source.name), path))
        except UserError as error:
            sources.append(source)
            changed[source.name] = error
    return manifest.model_copy(update={"sources": sources}), changed


def _pinned(source: Source, entry: Entry | None, path: Path) -> Source:
    lock = lock_path(path).name
    if entry is None:
        raise SourceError(f"source '{source.name}'", f"is not in {lock}", f"run `curate lock {path} --only {source.name}`")
    update: dict[str, Any] = {}
    for part, table, locked in _tables(source, entry):
        where = f"source '{source.name}'" + (f" ({part})" if part else "")
        for key, said in _asked(table).items():
            if said != locked.get(key):
                name = "revision" if key == "asked" else key
                raise SourceError(where, f"'{name}' is {_shown(said)}, and {lock} has {_shown(locked.get(key))}", HINT)
        if is_local(table, path.parent):
            _same_files(where, lock, input_digests(table, path.parent), locked)
        else:
            commit = {"revision": locked["revision"]}
            update |= {part: table.model_copy(update=commit)} if part else commit
    if (source.license or None) != entry["license"]:
        raise SourceError(
            f"source '{source.name}'", f"'license' is {_shown(source.license)}, and {lock} has {_shown(entry['license'])}", HINT
        )
    return source.model_copy(update=update)


def _same_files(where: str, lock: str, now: dict[str, str], locked: Entry) -> None:
    then = locked["inputs"]
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            how = "is new" if name not in then else "is gone" if name not in now else "has changed"
            raise SourceError(where, f"'{name}' {how} since {lock} was written", HINT)


def _tables(source: Source, entry: Entry) -> list[tuple[str, Table, Entry]]:
    parts = [("corpus", source.corpus), ("queries", source.queries)]
    return [("", source, entry), *((part, table, entry.get(part) or {}) for part, table in parts if table)]


def _asked(table: Table) -> Entry:
    return {"path": table.path, "config": table.config, "split": table.split, "files": table.files, "asked": table.revision}


def _entry(source: Source, base: Path) -> Entry:
    whole = _table_entry(source, base) | {"license": source.license}
    for part, table in (("corpus", source.corpus), ("queries", source.queries)):
        if table:
            whole[part] = _table_entry(table, base)
    return whole


def _table_entry(table: Table, base: Path) -> Entry:
    if is_local(table, base):
        return _asked(table) | {"revision": None} | _local(table, base)
    found = hub_facts(table)
    return _asked(table) | {key: value for key, value in found._asdict().items() if key != "license"}


def _local(table: Table, base: Path) -> Entry:
    """Return what there is to say of files here: all rows are read, to be counted."""
    count, columns, before = 0, dict[str, None](), [file_states(table, base)]
    reads = input_digests(table, base)
    with fail_if_changed(before, [table], base):
        for rows in read_rows(table.model_copy(update={"sample": "random"} if isinstance(table, Source) else {}), base):
            count += len(rows.frame) + len(rows.lost)
            columns |= dict.fromkeys(name for name in rows.frame.columns if name != ROW)
    return {
        "columns": list(columns),
        "rows": count,
        "bytes": total_bytes(table, base),
        "digest": digest_of(reads),
        "inputs": reads,
    }


def _shown(value: object) -> str:
    return "not set" if value in (None, []) else f"'{value}'"


class Facts(NamedTuple):
    """What the Hub says of a table, without its rows: where it stands now, what it has, how much, and a digest of its files."""

    revision: str  # commit
    columns: list[str] | None  # None of `files`, which only their reader knows
    rows: int | None  # None where neither the card nor parquet files say it
    bytes: int
    digest: str  # of the names and content hashes of the files that are read
    license: str | None  # the card's


@retrying
def hub_facts(table: Table) -> Facts:
    """Ask the Hub about a table: its id, revision, config, split and columns, or its files.

    Raises:
        SourceError: one of them is not there, or the dataset is gated, or comes with a loading script.
    """
    with hub.hub_errors(table):
        import huggingface_hub

        info = huggingface_hub.HfApi().dataset_info(str(table.path), revision=table.revision, files_metadata=True)
        known = {one.rfilename: one for one in info.siblings or []}
        apply_lock = table.model_copy(update={"revision": info.sha})
        if info.gated and known:  # its page is open to all, and its files are not
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(str(table.path), min(known), repo_type="dataset", revision=info.sha)
            )
        if table.files:
            names, columns, total = _matching(table, list(known)), None, None
        else:
            made = hub.describe(apply_lock, str(info.sha))
            splits = splits_of(apply_lock, made)
            names = [name for split in splits for name in made.splits[split]]
            with closing(rows(apply_lock, None, 1)) as batches:
                columns = [name for name in next(batches).frame.columns if name != ROW]
            counted = [made.rows.get(split, 0) for split in splits]
            total = sum(counted) if all(counted) and "[" not in table.split else None
        if total is None and names and "[" not in table.split and all(name.endswith(".parquet") for name in names):
            total = _parquet_rows(apply_lock, names)
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
