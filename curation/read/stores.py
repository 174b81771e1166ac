"""A store or a web server, by fsspec: what it has now, how it is opened, and what its errors mean.

Nothing is fetched here; `curation/read/remote.py` does that.
"""

from __future__ import annotations

import errno
import functools
import logging
import multiprocessing
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from curation.core.errors import SourceError, did_you_mean, first_line
from curation.core.hub import BUSY
from curation.core.store import user_cache
from curation.read.archives import PACKED
from curation.read.paths import matches
from curation.recipe.addresses import URL, public_url


class NoAnswer(SourceError):
    """A store that does not say what it has: it cannot be reached, is busy, or refuses the credentials."""


class Truncated(SourceError):
    """An object that arrived in part."""


SECONDS = 30  # that a store may take to answer, and then for each next piece of an object
AT_ONCE = 8  # objects that are fetched at the same time
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
Given = TypeVar("Given")
Got = TypeVar("Got")


class StoredObject(NamedTuple):
    """An object of a store at one moment."""

    url: str  # without credentials
    version: str  # its etag, commit, size and date, or content; empty if the store says none of them
    size: int | None = None  # bytes, if the store says it
    digest: str | None = None  # of its bytes, where a lock file has it


def at_once(function: Callable[[Given], Got], items: Sequence[Given], most: int = AT_ONCE) -> list[Got]:
    """Return what a function returns for each of some items, `most` of them at the same time.

    Raises:
        SourceError: that of the first item with one; what the function does for later items may go on for a while.
    """
    results: list[Got] = []
    if not items:
        return results
    with ThreadPool(min(most, len(items))) as pool:  # of daemon threads: nothing waits for them after an error or a signal
        answers = pool.imap(function, items)
        while len(results) < len(items):
            with suppress(multiprocessing.TimeoutError):  # polars' handler of SIGINT does not interrupt a longer wait
                results.append(answers.next(timeout=1))
    return results


def list_objects(address: str, name: str, waits: Iterable[float]) -> list[StoredObject]:
    """Return the objects that an address names now, in the order of their names; their version is empty if no store says it."""
    store, path = open_store(address, name)

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
        return files_only | dict(at_once(lambda one: (one, store.info(one)), without_etag))

    found = tried(name, ask, waits, store, path)
    if not found:
        raise SourceError(name, "matches no object", "does the store list its objects?" if is_web(name) else "check the pattern")
    start = address.removesuffix(path) if address.endswith(path) else f"{URL.match(address)[1]}://"  # type: ignore[index]
    objects = []
    for one, info in found.items():
        if info.get("type") == "directory":
            raise SourceError(name, "is a folder", f"name its files, such as `{name.rstrip('/')}/*.jsonl`")
        url = name if one == path and not _is_pattern(name) else public_url(start + one)
        objects.append(StoredObject(url, version_of(info), info.get("size")))
    return objects


def version_of(info: Mapping[str, Any]) -> str:
    """Return the version of an object: its etag, or its size and date; an empty text if the store says neither."""
    etag = next((str(info[key]) for key in ETAGS if info.get(key)), "").strip('"')
    date = next((str(info[key]) for key in DATES if info.get(key)), "")
    return f"etag {etag}" if etag else f"{info['size']} bytes, {date}" if date and info.get("size") is not None else ""


def is_web(name: str) -> bool:
    """Return whether a URL is one of a web server."""
    return name.lower().startswith(("http://", "https://"))


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in ("*[" if is_web(name) else "*?["))


def open_store(address: str, name: str) -> tuple[Any, str]:
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
        raise SourceError(name, f"'{scheme}://' is not a store that can be read", "name a file of this machine by its path alone")
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


def tried(name: str, call: Callable[[], Got], waits: Iterable[float], store: Any, path: str) -> Got:
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
                if kind is FileNotFoundError and not is_web(name):
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
        return SourceError, error.what, error.hint, isinstance(error, Truncated)
    causes: list[BaseException] = []  # the error, and those that it came from
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    cache = str(user_cache())
    if any(isinstance(one, OSError) and (one.errno in LOCAL or str(one.filename).startswith(cache)) for one in causes):
        return OSError, "", "", False
    kinds, scheme = " ".join(type(one).__name__ for one in causes), name.partition("://")[0].lower()
    status = 0  # of HTTP, in the first error that has one
    for one in causes:
        answer = getattr(one, "response", None)
        said = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
        if type(one).__module__.startswith("gcsfs"):
            said = getattr(one, "code", None)  # elsewhere it may be another number
        found = said or getattr(answer, "status_code", None) or getattr(one, "status", None)
        status = status or (found if isinstance(found, int) else 0)
    if status in (401, 403) or "PermissionError" in kinds or "Credentials" in kinds:
        what = f"may not be read ({status})" if status else "may not be read with these credentials"
        return NoAnswer, what, CREDENTIALS.get(scheme, "check your credentials"), False
    if status in (404, 410) or (not status and type(error) is FileNotFoundError and len(causes) == 1):
        return FileNotFoundError, "no such object", "check the address", False
    if status in BUSY:
        return NoAnswer, f"the store answers {status}", LATER, True
    if status >= 400:
        return OSError, f"the store answers {status}", "check the address", False
    if "Redirect" in kinds:
        return OSError, "redirects in a loop, or to no web address", "name the address that it leads to in a browser", False
    for word, kind, what in FAILURES:
        if word in kinds:
            return kind, what.format(seconds=SECONDS, kind=type(causes[-1]).__name__), LATER, True
    if isinstance(error, OSError | ValueError | NotImplementedError) or type(error).__module__.split(".")[0] in LIBRARIES:
        shown = type(error).__name__ if is_web(name) else f"{type(error).__name__}: {first_line(error)}"
        return OSError, f"cannot be read ({shown})", "check the address", False
    return type(error), "", "", False
