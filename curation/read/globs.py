"""Patterns of file and member names, as `glob` has them, in time that grows with the names alone."""

from __future__ import annotations

import errno
import glob
import os
import stat
from fnmatch import fnmatchcase
from pathlib import Path


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
