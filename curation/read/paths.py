"""Paths and patterns of a manifest: `~`, globs, files that are never read, and files outside of the manifest's folder.

Patterns are those of `glob`, matched in time that grows with the names alone.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
from fnmatch import fnmatchcase
from pathlib import Path

from curation.core.errors import SourceError

SYSTEM = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))  # they hold processes and devices: no data, and secrets
MEMORY = Path("/dev/shm")  # a memory disk, whose files are files
LONGEST_NAME = 80  # characters of a path in an error


def expand_path(name: str, base: Path) -> Path:
    """Return a path that a manifest in `base` names, with the home folder for `~` or `~user`.

    Raises:
        SourceError: there is no such user, or no file can have the name.
    """
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    try:
        path = Path(name).expanduser()
        (base / path).exists()
    except RuntimeError:
        raise SourceError(shown, "no such user, so no home folder", "write the path in full") from None
    except OSError as error:
        raise SourceError(shown, f"cannot be opened ({error.strerror})", "check path and permissions") from None
    return path


def refuse_special(path: Path, name: str) -> None:
    """Refuse what is no plain file, what the system makes up, wherever links lead from `path`, and what may not be read.

    Raises:
        SourceError: a folder, pipe, socket or device, a file below /proc, /sys or /dev, or one of somebody else.
    """
    refuse_system(path, name)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise SourceError(name, "is a pipe, socket or device, not a file", "save what it gives as a file, and name that")
    if path.exists() and not os.access(path, os.R_OK):
        raise SourceError(name, "may not be read by this user", "see its permissions and its folder's")


def refuse_system(path: Path, name: str) -> None:
    """Refuse what leads into /proc, /sys or /dev.

    Raises:
        SourceError: it does.
    """
    real = path.resolve()
    for folder in SYSTEM:
        if real.is_relative_to(folder) and not real.is_relative_to(MEMORY):
            raise SourceError(name, f"leads into {folder}, which holds the system's own state and no data", "it is never read")


def is_outside(path: Path, base: Path) -> bool:
    """Tell whether a file lies outside of a folder, with all links followed."""
    return not path.resolve().is_relative_to(base.resolve())


def matches(name: str, pattern: str) -> bool:
    """Tell whether a path matches a pattern: `*`, `?`, `[...]`, and `**` for any folders. Hidden files only where named."""
    parts = _for_files(pattern.split("/"))
    places = _reached({0}, parts)
    for part in name.split("/"):
        places = _after(places, part, parts)
    return name == pattern or len(parts) in places


def _for_files(pattern: list[str]) -> list[str]:
    return [*pattern, "*"] if pattern[-1:] == ["**"] else pattern  # `a/**` is all files in `a`, not a file `a`


def _reached(places: set[int], pattern: list[str]) -> set[int]:
    """Return places in a pattern with those that follow without a name, as `**` may stand for no folder at all."""
    found = set(places)
    for place in places:
        while place < len(pattern) and pattern[place] == "**":
            place += 1
            found.add(place)
    return found


def _after(places: set[int], name: str, pattern: list[str]) -> set[int]:
    """Return the places in a pattern that a name leads to; a name that is written there itself matches whatever its signs."""
    found = set()
    for place, part in ((place, pattern[place]) for place in places if place < len(pattern)):
        if part == "**":
            found |= {place} if not name.startswith(".") else set()
        elif name == part or ((part.startswith(".") or not name.startswith(".")) and fnmatchcase(name, part)):
            found.add(place + 1)
    return _reached(found, pattern)


def matching(pattern: Path, base: Path) -> list[str]:
    """Return the files below `base` that a pattern matches, sorted.

    Raises:
        OSError: a folder on the way cannot be read.
    """
    start = plain_part(pattern, base)
    parts = _for_files(list(pattern.parts[len(start.parts) :]))
    found = []
    # folders still to be searched: where, its places in the pattern, and the folders that hold it
    stack: list[tuple[Path, set[int], frozenset[tuple[int, int]]]] = [(start, _reached({0}, parts), frozenset())]
    while stack:
        folder, places, above = stack.pop()
        try:
            about = (base / folder).stat()
            here = (about.st_dev, about.st_ino)
            wanted = {parts[place] for place in places if place < len(parts)}
            if not stat.S_ISDIR(about.st_mode) or (here in above and "**" in wanted):
                continue  # a link to a folder that holds it has no end
            plain = not any(map(glob.has_magic, wanted))
            names = wanted if plain else [*os.listdir(base / folder), *({".."} & wanted)]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue
            raise
        for name in names:
            following = _after(places, name, parts)
            if len(parts) in following and (base / folder / name).is_file():
                found.append(str(folder / name))
            if following - {len(parts)}:
                stack.append((folder / name, following, above | {here} if name != ".." else frozenset()))
    return sorted(found)


def plain_part(pattern: Path, base: Path) -> Path:
    """Return the folders that a pattern begins with: those without signs, and those that are there under the very name."""
    start = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part) and not (base / start / part).is_dir():
            break
        start /= part
    return start
