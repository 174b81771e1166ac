"""URLs in `files`: the objects that they name now in a store or on a web server, and copies of these objects in a cache.

An object is fetched once, whole, into `~/.cache/tuplesmith/remote` (or below XDG_CACHE_HOME), and is read from there as any
file. Its version is the store's etag; without one its size and date; without these its content. Files of `hf://datasets/`
are in the Hub's own cache, and their version is the commit.

A build asks a store once, when it begins; workers get the answer, and nodes of a cluster fetch the same versions for
themselves. For a source with an entry in the lock file copies are enough, if the store does not say what it has now.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from curation.core.errors import SourceError, did_you_mean
from curation.core.progress import Advance, Progress, silent
from curation.core.store import digest_of, file_digest, temporary, user_cache
from curation.read import hub
from curation.read.paths import matches
from curation.read.rows import File
from curation.read.stores import (
    LATER,
    NoAnswer,
    StoredObject,
    Truncated,
    at_once,
    is_web,
    list_objects,
    open_store,
    tried,
    version_of,
)
from curation.recipe.addresses import is_url
from curation.recipe.source import Table

STORE_WAITS: tuple[float, ...] = (1, 4)  # seconds between tries
LONGEST_PART = 200  # bytes of a part of a path in the cache
HUB = re.compile(r"hf://datasets/(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")
WEB_PAGE = (b"<!doctype html", b"<html")
AnyTable = TypeVar("AnyTable", bound=Table)


class Locked(NamedTuple):
    """The objects of a table in a lock file."""

    where: str  # the source, in errors
    lock: str  # name of the lock file
    objects: Mapping[str, list[StoredObject]]  # by the URL or pattern in `files`


# --- the objects of a table ---


def urls(table: Table) -> list[str]:
    """Return the URLs and patterns of URLs in `files`."""
    return [name for name in table.files if is_url(name)]


def files(table: Table, name: str, advance: Advance = lambda size: None) -> list[File]:
    """Return the files that a URL or pattern in `files` names, from the cache; those that are not in it are fetched.

    Raises:
        SourceError: there are none, they cannot be fetched, or they differ from the lock file.
    """
    objects = table._objects.get(name)
    locked = table._locked.objects.get(name) if table._locked and objects is None else None
    if objects is None:
        objects = current(table, name)
    if is_hub(name):
        paths = [_hub_parts(one.url)[1] for one in objects]
        found = [file.path for file in hub.fetched(_hub_parts(name)[0], objects[0].version, paths)]
        tops = [path.parents[inner.count("/")] for path, inner in zip(found, paths, strict=True)]
        parts = _hub_parts(name)[1].split("/")
    else:
        at_once(
            partial(_fetch, table._addresses.get(name, name), name, advance=advance),
            [one for one in objects if not _is_whole(one)],
        )
        found, tops, parts = [_place(one) for one in objects], [_folder(one) for one in objects], _parts(name)
    inner = list(takewhile(lambda part: not glob.has_magic(part), parts[:-1]))  # the folders that the pattern begins with
    made = [
        File(path, one.url, top.joinpath(*inner), version=one.version)
        for path, one, top in zip(found, objects, tops, strict=True)
    ]
    if locked is not None:
        now = {file.name: file_digest(file.path) for file in made}
        refuse_changes(table._locked.where, table._locked.lock, now, {one.url: str(one.digest) for one in locked})
    return made


def current(table: Table, name: str) -> list[StoredObject]:
    """Return the objects that a URL or pattern names now, in the order of their names; only the store is asked.

    Raises:
        SourceError: there are none, or the store refuses.
    """
    locked: list[StoredObject] | None = table._locked.objects.get(name) if table._locked else None
    if is_hub(name):
        if locked:
            return locked
        dataset, path = _hub_parts(name)
        commit = hub.dataset_commit(dataset)
        names = hub.file_names(dataset, commit)
        inner = [path] if path in names else [one for one in names if matches(one, path)]
        if not inner:
            what = "matches no file of the dataset" if glob.has_magic(path) else "no such file in the dataset"
            raise SourceError(name, what + did_you_mean(path, names))
        return [StoredObject(name.removesuffix(path) + one, commit) for one in inner]
    cached = locked is not None and all(map(_is_whole, locked))
    try:
        address = table._addresses.get(name, name)
        found = list_objects(address, name, () if cached else STORE_WAITS)
        # an object without etag or date is fetched, as its content is its version
        return [one if one.version else _fetch(address, name, one) for one in found]
    except NoAnswer as error:
        if locked is None or not cached:
            raise
        logging.getLogger("tuplesmith").warning("%s: %s; its locked copies are read", name, error.what)
        return locked


def pinned(table: AnyTable, progress: Progress = silent) -> AnyTable:
    """Return a table whose URLs name the objects of now, in whatever process it is read later; its corpus and queries too.

    Raises:
        SourceError: see `files`.
    """
    if not urls(table):
        made = table
    else:
        made = table.model_copy()
        with progress("fetch", None, "bytes") as advance:
            found = at_once(lambda name: files(table, name, advance), urls(table))
        objects = ([StoredObject(one.name, one.version, one.path.stat().st_size) for one in inner] for inner in found)
        made._objects = dict(zip(urls(table), objects, strict=True))
    parts = {
        part: pinned(inner, progress) for part in ("corpus", "queries") if isinstance(inner := getattr(table, part, None), Table)
    }
    return made.model_copy(update=parts) if any(parts[part] is not getattr(table, part) for part in parts) else made


def first_objects(table: AnyTable) -> AnyTable:
    """Return a table each of whose URLs names its first object only, for a look at some rows; nothing is fetched.

    Raises:
        SourceError: see `current`.
    """
    made = table.model_copy()
    made._objects = {name: current(table, name)[:1] for name in urls(table)}
    return made


def with_lock(table: AnyTable, where: str, lock: str, entry: Mapping[str, Any]) -> AnyTable:
    """Return a table that takes its objects from its entry in a lock file, where `files` compares them."""
    made = table.model_copy()
    inputs = entry["inputs"]
    objects = {
        name: [StoredObject(url, version, size, inputs.get(url)) for url, version, size in found]
        for name, found in entry.get("objects", {}).items()
    }
    made._locked = Locked(where, lock, objects)
    return made


def differences(table: Table) -> tuple[int, list[str]]:
    """Return the bytes of a table's objects as its stores list them now, and what differs from its lock file; nothing is fetched.

    Raises:
        SourceError: see `current`.
    """
    size, notes = 0, []
    for name in urls(table):
        objects = current(table, name)
        size += sum(one.size or 0 for one in objects)
        now = {one.url: one.version for one in objects}
        then = {one.url: one.version for one in table._locked.objects.get(name, [])} if table._locked else now
        changed = [url for url in sorted({*now, *then}) if now.get(url) != then.get(url)]
        notes += [f"{url}: is not as it was locked; a build compares its content" for url in changed]
    return size, notes


def refuse_changes(where: str, lock: str, now: Mapping[str, str], then: Mapping[str, str]) -> None:
    """Refuse files whose digests, by name, are not those in the lock file.

    Raises:
        SourceError: a file is new, gone or has changed.
    """
    for file in sorted({*now, *then}):
        if now.get(file) != then.get(file):
            how = "is new" if file not in then else "is gone" if file not in now else "has changed"
            raise SourceError(where, f"'{file}' {how} since {lock} was written", "undo that, or run `curate lock` again")


# --- datasets of the Hub ---


def is_hub(name: str) -> bool:
    """Return whether a URL names files of a dataset of the Hub."""
    return name.lower().startswith("hf://")


def _hub_parts(name: str) -> tuple[Table, str]:
    """Return the dataset in a URL, and the path or pattern in it.

    Raises:
        SourceError: it names something else than files of a dataset.
    """
    found = HUB.fullmatch(name)
    if not found:
        raise SourceError(name, "does not name files of a dataset", "the form is hf://datasets/ORG/NAME/PATH, or NAME@REVISION")
    revision = unquote(found["revision"]) if found["revision"] else None
    return Table(path=found["id"], revision=revision), found["path"]


# --- the cache ---


def cache() -> Path:
    """Return the folder of fetched objects. Whatever is deleted there is fetched again when it is needed."""
    return user_cache() / "remote"


def _parts(url: str) -> list[str]:
    """Return the parts of a URL's path, with its host or bucket first, as names of files."""
    path = url.partition("://")[2]
    path = re.split("[?#]", path)[0] if is_web(url) else path
    names = [part.replace("\0", "%00") for part in path.split("/") if part]
    names = ["%2E" * len(part) if part in (".", "..") else part for part in names]
    long = [len(os.fsencode(part)) > LONGEST_PART for part in names]
    return [f"{digest_of(part)}{part[-40:]}" if cut else part for part, cut in zip(names, long, strict=True)]


def _folder(one: StoredObject) -> Path:
    digest = digest_of([one.url, one.version])
    return cache() / digest[:2] / digest[2:]


def _place(one: StoredObject) -> Path:
    """Return where the copy of an object is: its last folders are those of its URL, as some readers take labels from them."""
    return _folder(one).joinpath(*_parts(one.url))


def _is_whole(one: StoredObject) -> bool:
    path = _place(one)
    return path.is_file() and one.size in (None, path.stat().st_size)


def _fetch(address: str, name: str, one: StoredObject, advance: Advance = lambda size: None) -> StoredObject:
    """Fetch an object into the cache. Without a version, or with its content as version, the content is digested.

    Raises:
        SourceError: it cannot be fetched, is cut off, is a web page, or is not the version that is wanted.
    """
    store, path = open_store(address, one.url)
    if one.url != name:  # a file that a pattern matched
        path = str(store._strip_protocol(one.url))
        user, at, _ = address.partition("://")[2].partition("/")[0].rpartition("@")
        path = path.replace("://", f"://{user}@", 1) if at and is_web(path) else path
    changed = SourceError(one.url, "changed while it was fetched", "run again when nothing writes to it")
    by_content = not one.version or one.version.startswith("content ")

    from fsspec.callbacks import Callback

    class Watch(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    def fetch(part: Path) -> StoredObject:
        # other libraries fetch pieces in any order; without a version, the rest might be that of another object
        done = part.stat().st_size if part.exists() and is_web(address) and one.version else 0
        if done and one.size is not None and done < one.size:
            with part.open("ab") as file:
                store.get_file(path, file, callback=Watch(), headers={"Range": f"bytes={done}-"})
        else:
            done = 0
            store.get_file(path, str(part), callback=Watch())
        size, made = part.stat().st_size, one
        store.invalidate_cache()
        now = {} if by_content else store.info(path)
        if by_content:
            made = StoredObject(one.url, f"content {file_digest(part)}", size)
        if one.version and one.version != (made.version if by_content else version_of(now)):
            raise changed
        if one.size not in (None, size):
            if done:  # a server that knows no ranges sent all again
                part.unlink()
            raise Truncated(one.url, f"the download was cut off after {size:,} of {one.size:,} bytes", LATER)
        with part.open("rb") as file:
            start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
            os.fsync(file.fileno())
        page = start.startswith(WEB_PAGE) or (now.get("mimetype") == "text/html" and start.startswith(b"<"))
        if is_web(address) and page and not one.url.lower().endswith((".html", ".htm", ".xhtml", ".xml")):
            what = "is a web page, not a data file"
            raise SourceError(one.url, what, "name the address that its download link leads to; a login may be needed")
        place = _place(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)
        return made

    with temporary(_folder(one) / "object") as part:
        return tried(one.url, partial(fetch, part), STORE_WAITS, store, path)
