"""The names in `files` and `path` of a manifest: URLs, paths of this machine, and what of them may be published."""

from __future__ import annotations

import glob
import re
from itertools import count, takewhile
from pathlib import PurePath
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# Parameters of a URL's query that a build may hold. Any other may be a credential, such as `X-Amz-Signature`.
PLAIN_PARAMETERS = (
    "id",
    "download",
    "dl",
    "raw",
    "file",
    "filename",
    "format",
    "export",
    "gid",
    "alt",
    "ref",
    "version",
    "versionId",
)


def is_of_this_machine(name: str) -> bool:
    """Return whether a path in a manifest is valid on this machine only."""
    return name.startswith("~") or PurePath(name).is_absolute()


def portable(name: str, folder: bool = False) -> str:
    """Return a path or pattern of a manifest without folders of this machine: `/home/me/data/*.csv` becomes `*.csv`.

    A relative path does not change. A `folder` becomes `./name`, so that nobody takes it for a Hub id.
    """
    if not is_of_this_machine(name):
        return name
    parts = PurePath(name).parts
    plain = len(list(takewhile(lambda part: not glob.has_magic(part), parts)))
    rest = "/".join(parts[min(plain, len(parts) - 1) :]).strip("/~") or "folder"
    return f"./{rest}" if folder else rest


def is_url(name: str) -> bool:
    """Return whether a name in `files` is a URL or a pattern of URLs."""
    return bool(URL.match(name))


def public_url(url: str) -> str:
    """Return a URL without what may be a credential: user and password, and most parameters of a web address."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, bare = host.rpartition("@")
    web = scheme.lower() in ("http", "https")
    if at and (web or ":" in user):  # the container in `abfs://container@account` is no user
        host = bare
    if web:
        parts = urlsplit(url)
        kept = [(key, value) for key, value in parse_qsl(parts.query) if key in PLAIN_PARAMETERS]
        slash, path = "", parts.path + (f"?{urlencode(kept)}" if kept else "")
    return f"{scheme}://{host}{slash}{path}"


def public_names(names: list[str]) -> list[str]:
    """Return the names in `files` with `public_url` for each URL; addresses that differ only in what that drops get numbers."""
    taken: dict[str, str] = {}
    found = []
    for name in names:
        public = public_url(name) if is_url(name) else name
        numbered = (public if n == 1 else f"{public}#{n}" for n in count(1))
        found.append(next(one for one in numbered if taken.setdefault(one, name) == name))
    return found


def without_credentials(value: Any) -> Any:
    """Return the keys of a manifest with the public form of each URL in `files`."""
    if isinstance(value, list):
        return [without_credentials(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: without_credentials(one) for key, one in value.items()}
    files = found.get("files")
    if isinstance(files, str):
        found["files"] = public_names([files])[0]
    elif isinstance(files, list):
        found["files"] = public_names([str(name) for name in files])
    return found
