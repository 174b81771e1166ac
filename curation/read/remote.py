"""URLs in `files`: the objects that they name now in a store or on a web server, and copies of these objects in a cache.

An object is fetched once, whole, into `~/.cache/tuplesmith/remote` (or below XDG_CACHE_HOME), and is read from there as any
file. Its version is the store's etag; without one its size and date; without these its content. Files of `hf://datasets/`
are in the Hub's own cache, and their version is the commit.

A build asks a store once, when it begins; workers get the answer, and nodes of a cluster fetch the same versions for
themselves. For a source with an entry in the lock file copies are enough, if the store does not say what it has now.
"""

from __future__ import annotations

import errno
import functools
import glob
import logging
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from curation.core.errors import SourceError, did_you_mean, first_line
from curation.core.hub import BUSY
from curation.core.progress import Advance, Progress, silent
from curation.core.store import digest_of, file_digest, temporary, user_cache
from curation.read import hub
from curation.read.archives import PACKED
from curation.read.paths import matches
from curation.read.rows import File
from curation.recipe.source import URL, Table, is_url, public_url


class NoAnswer(SourceError):
    """A store that does not say what it has: it cannot be reached, is busy, or refuses the credentials."""


STORE_WAITS: tuple[float, ...] = (1, 4)  # seconds between tries
SECONDS = 30  # that a store may take to answer, and then for each next piece of an object
AT_ONCE = 8  # objects that are fetched at the same time
LONGEST_PART = 200  # bytes of a part of a path in the cache
HUB = re.compile(r"hf://datasets/(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")
# of fsspec: file systems of this machine, and those that wrap others
NO_STORES = (
    "file", "local", "dir", "data", "zip", "tar", "libarchive", "reference", "generic", "git", "asynclocal", "cached",
    "blockcache", "filecache", "simplecache", "async_wrapper", "asyncwrapper",
)  # fmt: skip
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}  # of tuplesmith, by scheme
CREDENTIALS = {
    **dict.fromkeys(("s3", "s3a"), "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    **dict.fromkeys(("gs", "gcs"), "check GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"),
    **dict.fromkeys(("http", "https"), "a signed address may have expired; a login belongs into ~/.netrc"),
}
ETAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5")
DATES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "modificationTime", "created")
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)  # of the disk of the cache
LIBRARIES = (
    "aiohttp",
    "botocore",
    "aiobotocore",
    "fsspec",
    "gcsfs",
    "google",
    "adlfs",
    "azure",
    "requests",
    "urllib3",
    "paramiko",
)
LATER = "check the network and the address, or run the same command again in a while"
FAILURES = (  # parts of the names of error classes: kind of the failure, what it is
    ("Timeout", NoAnswer, "does not answer within {seconds:g} s"),
    ("PayloadError", OSError, "the download was cut off"),
    ("IncompleteRead", OSError, "the download was cut off"),
    ("ResponseStreaming", OSError, "the download was cut off"),
    ("Connect", NoAnswer, "cannot be reached ({kind})"),
    ("Disconnected", NoAnswer, "cannot be reached ({kind})"),
    ("gaierror", NoAnswer, "cannot be reached ({kind})"),
)
WEB_PAGE = (b"<!doctype html", b"<html")
Given = TypeVar("Given")
Got = TypeVar("Got")
AnyTable = TypeVar("AnyTable", bound=Table)


class Stored(NamedTuple):
    """An object of a store at one moment."""

    url: str  # without credentials
    version: str  # its etag, commit, size and date, or content
    size: int | None = None  # bytes, if the store says it
    digest: str | None = None  # of its bytes, where a lock file has it


class Locked(NamedTuple):
    """The objects of a table in a lock file."""

    where: str  # the source, in errors
    lock: str  # name of the lock file
    objects: Mapping[str, list[Stored]]  # by the URL or pattern in `files`


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
        _at_once(
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


def current(table: Table, name: str) -> list[Stored]:
    """Return the objects that a URL or pattern names now, in the order of their names; only the store is asked.

    Raises:
        SourceError: there are none, or the store refuses.
    """
    locked: list[Stored] | None = table._locked.objects.get(name) if table._locked else None
    if is_hub(name):
        return locked or _hub_objects(name)
    cached = locked is not None and all(map(_is_whole, locked))
    try:
        return _listed(table._addresses.get(name, name), name, () if cached else STORE_WAITS)
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
            found = _at_once(lambda name: files(table, name, advance), urls(table))
        objects = ([Stored(one.name, one.version, one.path.stat().st_size) for one in inner] for inner in found)
        made._objects = dict(zip(urls(table), objects, strict=True))
    parts = {part: pinned(inner, progress) for part in ("corpus", "queries") if (inner := getattr(table, part, None))}
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
        name: [Stored(url, version, size, inputs.get(url)) for url, version, size in found]
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


def lock_objects(table: Table) -> dict[str, Any]:
    """Return what a lock file holds of a pinned table's objects: by name in `files`, their URLs, versions and sizes in bytes."""
    return {"objects": {name: [one[:3] for one in table._objects[name]] for name in urls(table)}} if urls(table) else {}


def refuse_changes(where: str, lock: str, now: Mapping[str, str], then: Mapping[str, str]) -> None:
    """Refuse files whose digests, by name, are not those in the lock file.

    Raises:
        SourceError: a file is new, gone or has changed.
    """
    for file in sorted({*now, *then}):
        if now.get(file) != then.get(file):
            how = "is new" if file not in then else "is gone" if file not in now else "has changed"
            raise SourceError(where, f"'{file}' {how} since {lock} was written", "undo that, or run `curate lock` again")


def _at_once(function: Callable[[Given], Got], items: Sequence[Given]) -> list[Got]:
    """Return what a function returns for each of some items, AT_ONCE of them at the same time.

    Raises:
        SourceError: that of the first item with one; what the function does for later items may go on for a while.
    """
    results: list[Got] = []
    if not items:
        return results
    with ThreadPool(min(AT_ONCE, len(items))) as pool:  # of daemon threads: nothing waits for them after an error or a signal
        answers = pool.imap(function, items)
        while len(results) < len(items):
            with suppress(multiprocessing.TimeoutError):  # polars' handler of SIGINT does not interrupt a longer wait
                results.append(answers.next(timeout=1))
    return results


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


def _hub_objects(name: str) -> list[Stored]:
    dataset, path = _hub_parts(name)
    commit = hub.dataset_commit(dataset)
    names = hub.file_names(dataset, commit)
    found = [path] if path in names else [one for one in names if matches(one, path)]
    if not found:
        what = "matches no file of the dataset" if glob.has_magic(path) else "no such file in the dataset"
        raise SourceError(name, what + did_you_mean(path, names))
    return [Stored(name.removesuffix(path) + one, commit) for one in found]


# --- stores ---


def _listed(address: str, name: str, waits: Iterable[float]) -> list[Stored]:
    """Return the objects that an address names now; one without etag or date is fetched, as its content is its version."""
    store, path = _store(address, name)

    def ask() -> dict[str, dict[str, Any]]:
        store.invalidate_cache()
        if not _is_pattern(name):
            return {path: store.info(path)}
        found = {str(one): info for one, info in store.glob(path, detail=True).items() if matches(str(one), path)}
        files_only = {one: info for one, info in sorted(found.items()) if info["type"] == "file" and not one.endswith("/")}
        if not files_only and "[" in path:  # a name with a bracket?
            with suppress(FileNotFoundError):
                return {path: store.info(path)}
        if not files_only:  # a search of a store reports an empty folder where it was refused
            with suppress(FileNotFoundError):
                store.ls(path[: re.search(r"[*?[]", path).start()].rpartition("/")[0] + "/")  # type: ignore[union-attr]
        without_etag = [one for one, info in files_only.items() if not any(info.get(key) for key in ETAGS)]
        return files_only | dict(_at_once(lambda one: (one, store.info(one)), without_etag))

    found = _tried(name, ask, waits, store, path)
    if not found:
        raise SourceError(name, "matches no object", "does the store list its objects?" if _is_web(name) else "check the pattern")
    start = address.removesuffix(path) if address.endswith(path) else f"{URL.match(address)[1]}://"  # type: ignore[index]
    objects = []
    for one, info in found.items():
        if info.get("type") == "directory":
            raise SourceError(name, "is a folder", f"name its files, such as `{name.rstrip('/')}/*.jsonl`")
        url = name if one == path and not _is_pattern(name) else public_url(start + one)
        size, version = info.get("size"), _version_of(info)
        objects.append(Stored(url, version, size) if version else _fetch(address, name, Stored(url, "", size)))
    return objects


def _version_of(info: Mapping[str, Any]) -> str:
    """Return the version of an object: its etag, or its size and date; an empty text if the store says neither."""
    etag = next((str(info[key]) for key in ETAGS if info.get(key)), "").strip('"')
    date = next((str(info[key]) for key in DATES if info.get(key)), "")
    return f"etag {etag}" if etag else f"{info['size']} bytes, {date}" if date and info.get("size") is not None else ""


def _is_web(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in ("*[" if _is_web(name) else "*?["))


def _store(address: str, name: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    Raises:
        SourceError: its scheme is unknown or leads to this machine, or a package is missing.
    """
    import fsspec

    scheme = URL.match(address)[1].lower()  # type: ignore[index]
    if "::" in address:
        raise SourceError(
            name, "chains file systems, which is not read", "name the object itself; `member:` names files in an archive"
        )
    if scheme in NO_STORES:
        raise SourceError(name, f"'{scheme}://' is no store", "name a file of this machine by its path alone")
    known = [one for one in fsspec.available_protocols() if one not in NO_STORES]
    if scheme not in known:
        raise SourceError(name, f"unknown scheme '{scheme}'" + did_you_mean(scheme, known), "s3, gs, https and hf are read")
    try:
        store = fsspec.get_filesystem_class(scheme)
        found, path = fsspec.core.url_to_fs(scheme + address[len(scheme) :], **_options(scheme, name))
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        hint = f"pip install 'tuplesmith[{extra}]'" if extra else "install it with pip"
        raise SourceError(name, f"a package for '{scheme}://' is missing ({first_line(error)})", hint) from None
    except Exception as error:  # settings of the store, such as a profile that does not exist
        _, what, hint, _ = _explained(name, error)
        if not what:
            raise
        raise SourceError(name, what, hint) from None
    if hasattr(store, "retries"):
        found.retries = 2  # tries of s3fs and gcsfs themselves
    return found, str(path)


def _options(scheme: str, name: str) -> dict[str, Any]:
    """Return the time-outs of a file system and its other options."""
    if scheme in ("http", "https"):
        import aiohttp

        wait = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)
        # proxies and ~/.netrc; a packed file is saved as it is, even if the server declares its packing as an encoding
        packed = urlsplit(name).path.lower().endswith((*PACKED, ".zip"))
        return {"client_kwargs": {"trust_env": True, "timeout": wait, "auto_decompress": not packed}}
    if scheme in ("s3", "s3a"):
        config = {"connect_timeout": SECONDS, "read_timeout": SECONDS, "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": config, "anon": not _has_aws_credentials()}
    return {"timeout": SECONDS} if scheme in ("gs", "gcs") else {}


@functools.cache
def _has_aws_credentials() -> bool:
    """Return whether botocore finds credentials; public buckets are read without."""
    import botocore.session

    return botocore.session.Session().get_credentials() is not None


def _tried(name: str, call: Callable[[], Got], waits: Iterable[float], store: Any, path: str) -> Got:
    """Return the result of a call to a store; after a failure that may pass, wait and call again.

    Raises:
        SourceError: what the store says, in one line.
    """
    for wait in (*waits, None):
        try:
            return call()
        except Exception as error:
            kind, what, hint, passes = _explained(name, error)
            if not what:
                raise
            if wait is None or not passes:
                if kind is FileNotFoundError and not _is_web(name):
                    with suppress(Exception):
                        what += did_you_mean(
                            path.rpartition("/")[2],
                            [one.rpartition("/")[2] for one in store.ls(path.rpartition("/")[0], detail=False)],
                        )
                raise (NoAnswer if kind is NoAnswer else SourceError)(name, what, hint) from None
        logging.getLogger("tuplesmith").warning("%s: %s; trying again in %g s", name, what, wait)
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _explained(name: str, error: Exception) -> tuple[type[Exception], str, str, bool]:
    """Return (kind, what, what to try, whether another try may help) for what a store or its library raised.

    `what` is empty for a fault of this program, and for what the disk of the cache refuses. Messages of web libraries are not
    repeated: they hold whole addresses.
    """
    if isinstance(error, SourceError):
        return SourceError, error.what, error.hint, isinstance(error, _Truncated)
    causes: list[BaseException] = []  # the error, and those that it came from
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    if any(isinstance(one, OSError) and (one.errno in LOCAL or str(one.filename).startswith(str(cache()))) for one in causes):
        return OSError, "", "", False
    kinds, scheme = " ".join(type(one).__name__ for one in causes), name.partition("://")[0].lower()
    status = next((number for one in causes if (number := _status(one))), 0)
    if status in (401, 403) or "PermissionError" in kinds or "Credentials" in kinds:
        what = f"may not be read ({status})" if status else "may not be read with these credentials"
        return NoAnswer, what, CREDENTIALS.get(scheme, "check your credentials"), False
    if status in (404, 410) or (not status and type(error) is FileNotFoundError and len(causes) == 1):
        return FileNotFoundError, "no such object", "check the address", False
    if status in BUSY:
        return NoAnswer, f"the store answers {status}", LATER, True
    if status >= 400:
        return OSError, f"the store answers {status}", "check the address", False
    for word, kind, what in FAILURES:
        if word in kinds:
            return kind, what.format(seconds=SECONDS, kind=type(causes[-1]).__name__), LATER, True
    if isinstance(error, OSError | ValueError | NotImplementedError) or type(error).__module__.split(".")[0] in LIBRARIES:
        shown = type(error).__name__ if _is_web(name) else f"{type(error).__name__}: {first_line(error)}"
        return OSError, f"cannot be read ({shown})", "check the address", False
    return type(error), "", "", False


def _status(error: BaseException) -> int:
    """Return the HTTP status in the error of a library, or 0."""
    answer = getattr(error, "response", None)
    said = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    if type(error).__module__.startswith("gcsfs"):
        said = getattr(error, "code", None)  # elsewhere it may be another number
    found = said or getattr(answer, "status_code", None) or getattr(error, "status", None)
    return found if isinstance(found, int) else 0


# --- the cache ---


class _Truncated(SourceError):
    """An object that arrived in part."""


def cache() -> Path:
    """Return the folder of fetched objects. Whatever is deleted there is fetched again when it is needed."""
    return user_cache() / "remote"


def _parts(url: str) -> list[str]:
    """Return the parts of a URL's path, with its host or bucket first, as names of files."""
    path = url.partition("://")[2]
    path = re.split("[?#]", path)[0] if _is_web(url) else path
    names = [part.replace("\0", "%00") for part in path.split("/") if part]
    names = ["%2E" * len(part) if part in (".", "..") else part for part in names]
    long = [len(os.fsencode(part)) > LONGEST_PART for part in names]
    return [f"{digest_of(part)}{part[-40:]}" if cut else part for part, cut in zip(names, long, strict=True)]


def _folder(one: Stored) -> Path:
    digest = digest_of([one.url, one.version])
    return cache() / digest[:2] / digest[2:]


def _place(one: Stored) -> Path:
    """Return where the copy of an object is: its last folders are those of its URL, as some readers take labels from them."""
    return _folder(one).joinpath(*_parts(one.url))


def _is_whole(one: Stored) -> bool:
    path = _place(one)
    return path.is_file() and one.size in (None, path.stat().st_size)


def _fetch(address: str, name: str, one: Stored, advance: Advance = lambda size: None) -> Stored:
    """Fetch an object into the cache. Without a version, or with its content as version, the content is digested.

    Raises:
        SourceError: it cannot be fetched, is cut off, is a web page, or is not the version that is wanted.
    """
    store, path = _store(address, one.url)
    if one.url != name:  # a file that a pattern matched
        path = str(store._strip_protocol(one.url))
        user, at, _ = address.partition("://")[2].partition("/")[0].rpartition("@")
        path = path.replace("://", f"://{user}@", 1) if at and _is_web(path) else path
    changed = SourceError(one.url, "changed while it was fetched", "run again when nothing writes to it")
    by_content = not one.version or one.version.startswith("content ")

    from fsspec.callbacks import Callback

    class Watch(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    def fetch(part: Path) -> Stored:
        done = part.stat().st_size if part.exists() and _is_web(address) else 0  # other libraries fetch pieces in any order
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
            made = Stored(one.url, f"content {file_digest(part)}", size)
        if one.version and one.version != (made.version if by_content else _version_of(now)):
            raise changed
        if one.size not in (None, size):
            if done:  # a server that knows no ranges sent all again
                part.unlink()
            raise _Truncated(one.url, f"the download was cut off after {size:,} of {one.size:,} bytes", LATER)
        with part.open("rb") as file:
            start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
            os.fsync(file.fileno())
        page = start.startswith(WEB_PAGE) or (now.get("mimetype") == "text/html" and start.startswith(b"<"))
        if _is_web(address) and page and not one.url.lower().endswith((".html", ".htm", ".xhtml", ".xml")):
            what = "is a web page, not a data file"
            raise SourceError(one.url, what, "name the address that its download link leads to; a login may be needed")
        place = _place(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)
        return made

    with temporary(_folder(one) / "object") as part:
        return _tried(one.url, partial(fetch, part), STORE_WAITS, store, path)
