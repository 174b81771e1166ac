"""Folders that are whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from curation.store import sync_folder


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` at the end; where an error ends it, nothing of it is left."""
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # a full disk is not made fuller
        raise
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    sync_folder(folder.parent)


def part_of(folder: Path) -> Path:
    """Return where a folder is written before it is whole."""
    return folder.with_name(folder.name + ".part")


def has_all(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Tell whether every file has its length; to read gigabytes for a digest at each start would cost more than it tells."""
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
