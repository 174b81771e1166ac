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

SYSTEM = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))  # they contain processes and devices: no data, but secrets
MEMORY = Path("/dev/shm")  # a memory disk, whose files are ordinary files
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
    """Refuse what is not an ordinary file, belongs to the system (links followed), or may not be read.

    Raises:
        SourceError: a folder, pipe, socket or device, a file below /proc, /sys or /dev, or one without read permission.
    """
    refuse_system(path, name)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise SourceError(name, "is a pipe, socket or device, not a file", "save its output as a file, and name that")
    if path.exists() and not os.access(path, os.R_OK):
        raise SourceError(name, "may not be read by this user", "check its permissions and those of its folder")


def refuse_system(path: Path, name: str) -> None:
    """Refuse a path that leads into /proc, /sys or /dev, links followed.

    Raises:
        SourceError: it does.
    """
    real = path.resolve()
    for folder in SYSTEM:
        if real.is_relative_to(folder) and not real.is_relative_to(MEMORY):
            what = f"leads into {folder}, which holds the system's own state and no data"
            raise SourceError(name, what, "it is never read")


def is_outside(path: Path, base: Path) -> bool:
    """Return whether a file is outside of a folder, with all links followed."""
    return not path.resolve().is_relative_to(base.resolve())


def is_named_inside(path: Path, base: Path) -> bool:
    """Return whether a path is inside of a folder by its name, whatever its links lead to."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(base))


# --- patterns ---
# A place in a pattern is the number of its parts that were matched; several places are possible at once because of `**`.


def matches(name: str, pattern: str) -> bool:
    """Return whether a path matches a pattern of `*`, `?`, `[...]`, and `**` for any folders. Hidden files must be named."""
    parts = _for_files(pattern.split("/"))
    places = _with_empty_folders({0}, parts)
    for part in name.split("/"):
        places = _places_after(places, part, parts)
    return name == pattern or len(parts) in places


def matching(pattern: Path, base: Path) -> list[str]:
    """Return the files below `base` that match a pattern, sorted.

    Raises:
        OSError: a folder on the way cannot be read.
    """
    start = plain_part(pattern, base)
    parts = _for_files(list(pattern.parts[len(start.parts) :]))
    found = []
    # folders still to be searched: path, places in the pattern, and the folders that contain it
    stack: list[tuple[Path, set[int], frozenset[tuple[int, int]]]] = [(start, _with_empty_folders({0}, parts), frozenset())]
    while stack:
        folder, places, above = stack.pop()
        try:
            about = (base / folder).stat()
            here = (about.st_dev, about.st_ino)
            wanted = {parts[place] for place in places if place < len(parts)}
            if not stat.S_ISDIR(about.st_mode) or (here in above and "**" in wanted):
                continue  # a link to a folder that contains it would never end
            plain = not any(map(glob.has_magic, wanted))
            names = wanted if plain else [*os.listdir(base / folder), *({".."} & wanted)]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue
            raise
        for name in names:
            following = _places_after(places, name, parts)
            if len(parts) in following and (base / folder / name).is_file():
                found.append(str(folder / name))
            if following - {len(parts)}:
                stack.append((folder / name, following, above | {here} if name != ".." else frozenset()))
    return sorted(found)


def plain_part(pattern: Path, base: Path) -> Path:
    """Return the folders that a pattern begins with: those without wildcards, and those that exist under exactly that name."""
    start = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part) and not (base / start / part).is_dir():
            break
        start /= part
    return start


def _for_files(pattern: list[str]) -> list[str]:
    return [*pattern, "*"] if pattern[-1:] == ["**"] else pattern  # `a/**` is all files in `a`, not a file `a`


def _with_empty_folders(places: set[int], pattern: list[str]) -> set[int]:
    """Return places in a pattern, and those that follow without a name, since `**` also matches no folder at all."""
    found = set(places)
    for place in places:
        while place < len(pattern) and pattern[place] == "**":
            place += 1
            found.add(place)
    return found


def _places_after(places: set[int], name: str, pattern: list[str]) -> set[int]:
    """Return the places in a pattern that a name leads to; a part matches a name that is equal to it in any case."""
    found = set()
    for place, part in ((place, pattern[place]) for place in places if place < len(pattern)):
        if part == "**":
            found |= {place} if not name.startswith(".") else set()
        elif name == part or ((part.startswith(".") or not name.startswith(".")) and fnmatchcase(name, part)):
            found.add(place + 1)
    return _with_empty_folders(found, pattern)
