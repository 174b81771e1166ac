"""Paths of a manifest as they are published: without the folders of one machine."""

from __future__ import annotations

import glob
from itertools import takewhile
from pathlib import PurePath


def is_of_this_machine(name: str) -> bool:
    """Tell whether a path of a manifest means something on this machine alone."""
    return name.startswith("~") or PurePath(name).is_absolute()


def portable(name: str, folder: bool = False) -> str:
    """Return a path or pattern of a manifest without the folders of this machine: `/home/me/data/*.csv` is `*.csv`.

    A relative one stays as it is; a `folder` is written `./name`, so that it is taken for no Hub id.
    """
    if not is_of_this_machine(name):
        return name
    parts = PurePath(name).parts
    plain = len(list(takewhile(lambda part: not glob.has_magic(part), parts)))
    rest = "/".join(parts[min(plain, len(parts) - 1) :]).strip("/~") or "folder"
    return f"./{rest}" if folder else rest
