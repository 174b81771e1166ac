"""Folders that are whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from curation.core.store import sync_folder, temporary


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` at the end; where an error ends it, nothing of it is left."""
    with temporary(folder) as part:
        part.mkdir()
        yield part
        mode = part.stat().st_mode & 0o666  # as the umask has it; safetensors leaves weights to their owner alone
        for path in part.rglob("*"):
            if path.is_file():
                path.chmod(mode)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    sync_folder(folder.parent)


def has_all(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Tell whether every file has its length; to read gigabytes for a digest at each start would cost more than it tells."""
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
