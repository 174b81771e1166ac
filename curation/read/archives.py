"""Archives: members of zip and tar, read where they stand; nothing is unpacked to a folder.

A file of a source is opened through `parts`, which hands on a plain file as it is, a packed one so that it unpacks as
it is read, and an archive as the members that `member:` names. Members of a tar are read in its order, in one pass; a
zip's in the order of its table of contents. Entries whose names or links lead out of the archive are refused.
"""

from __future__ import annotations

import glob
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from curation.core.errors import SourceError, decoded, did_you_mean, listed
from curation.read.packed import BLOCK, POINTER, Budget, blocks_of, counted, ending_of, refuse_pointer, unpacking
from curation.read.paths import matches
from curation.read.rows import BROKEN, File, mendable
from curation.recipe.source import Table

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
LONGEST_HEADER = 1 << 20  # bytes; no honest tar says more of a member
FORGED = (*BROKEN, NotImplementedError, ValueError, OverflowError, struct.error)  # what `zipfile`, `tarfile` raise of bad headers


class Member(NamedTuple):
    """An entry of an archive; `target` is where a link leads, from the archive's top."""

    name: str
    kind: str  # file, folder, link, or device
    target: str | None
    open: Callable[[], IO[bytes]]


Members = Callable[[File, Budget], Generator[Member]]


def parts(file: File, table: Table, budget: Budget, known: Collection[str]) -> Generator[File]:
    """Return the files in a file: itself, unpacked as it is read, or the wanted members of an archive, in its order.

    A member must be opened while the generator stands at it; its `path` and `root` are as if the archive were a folder.
    `known` are the endings of data files.

    Raises:
        SourceError: an archive that is broken, leads out of its folder, or lacks a member.
    """
    with mendable(file, table):
        if file.unpack is None:
            with file.open() as raw:
                refuse_pointer(file.name, raw.read(len(POINTER)))
    name = file.path.name.lower()
    if name.endswith((".zip", *TARS)):
        yield from _wanted(file, table, budget, known, _zip_members if name.endswith(".zip") else _tar_members)
    elif table.member:
        raise SourceError(file.name, "is no archive, so `member:` means nothing", "archives are zip, " + ", ".join(TARS))
    else:
        yield unpacking(file, budget)


def _wanted(file: File, table: Table, budget: Budget, known: Collection[str], members: Members) -> Generator[File]:
    with mendable(file, table):
        wanted = table.member or [_only(file, table, known, members)]
        plain = _named_plainly(file, table, wanted, members)
        seen: dict[str, None] = {}
        found: set[str] = set()
        with closing(_sound(file, members(file, budget))) as entries:
            for member in entries:
                hits = {one for one in wanted if member.name == one or (one not in plain and matches(member.name, one))}
                if hits and (member.kind != "folder" or member.name in wanted):
                    found |= hits
                    yield unpacking(_member(file, member, seen), budget)
                seen[member.name] = None
        if missing := [pattern for pattern in wanted if pattern not in found]:
            what = "no member matches" if glob.has_magic(missing[0]) else "no member"
            near = did_you_mean(missing[0], seen) or f"; it holds {listed(seen, 6)}"
            raise SourceError(file.name, f"{what} '{missing[0]}'{near}")


def _named_plainly(file: File, table: Table, wanted: list[str], members: Members) -> set[str]:
    """Return the patterns that are, sign by sign, a member's name: as with files, they mean no other."""
    signs = {one for one in wanted if glob.has_magic(one) and "[" in one}
    if not signs:
        return set()
    with closing(_sound(file, members(file, Budget(table.max_unpacked)))) as entries:
        return signs & {member.name for member in entries}


def _member(file: File, member: Member, seen: Collection[str]) -> File:
    shown = f"{file.name}:{member.name}"
    if member.kind != "file":
        raise SourceError(shown, f"is a {member.kind}, which is not followed", "name the file itself with `member:`")
    if member.name in seen:
        raise SourceError(shown, "stands twice in the archive", "pack it anew")
    return File(file.path / member.name, shown, file.path, unpack=member.open)


def _only(file: File, table: Table, known: Collection[str], members: Members) -> str:
    """Return the archive's only data file: of a known ending, or of any where a reader is declared."""
    with closing(_sound(file, members(file, Budget(table.max_unpacked)))) as entries:
        names = [member.name for member in entries if member.kind == "file" and not _hidden(member.name)]
    data = [name for name in names if ending_of(Path(name)) in known] or (names if table.reader else [])
    if len(data) != 1:
        what = f"holds {len(data) or 'no'} data file{'s' * (len(data) != 1)}: {listed(data or names) or 'nothing at all'}"
        raise SourceError(file.name, what, "name one or more with `member:`")
    return data[0]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _sound(file: File, members: Generator[Member]) -> Generator[Member]:
    """Hand entries on under their plain names, and refuse those that would be written outside of the archive's folder."""
    try:
        for member in members:
            if _leads_out(member.name) or (member.target is not None and _leads_out(member.target)):
                leads = f", which leads to '{member.target}'," if member.target else ""
                what = f"member '{member.name}'{leads} would be written outside of the archive's folder"
                raise SourceError(file.name, what, "nothing of it is read; pack it anew if you trust it")
            yield member._replace(name=posixpath.normpath(decoded(member.name)))
    except FORGED as error:
        raise SourceError(file.name, f"not readable as an archive ({error})", "fetch the file again") from None
    finally:
        members.close()


def _leads_out(name: str) -> bool:
    name = name.replace("\\", "/")
    return name.startswith("/") or bool(re.match("[A-Za-z]:/", name)) or posixpath.normpath(name).split("/")[0] == ".."


def _zip_members(file: File, budget: Budget) -> Generator[Member]:
    with zipfile.ZipFile(file.path) as archive:
        for info in archive.infolist():
            link = stat.S_ISLNK(info.external_attr >> 16)
            name = f"{file.name}:{info.filename}"
            kind = "folder" if info.is_dir() else "link" if link else "file"
            blocks = partial(_zip_blocks, archive, info, name)
            target = b"".join(islice(blocks(), 1))[:4096].decode(errors="replace") if link else None
            target = target and posixpath.join(posixpath.dirname(info.filename), target)
            yield Member(info.filename, kind, target, partial(_opened, blocks, budget, name))


def _opened(blocks: Callable[[], Iterator[bytes]], budget: Budget, name: str) -> IO[bytes]:
    return counted(blocks(), budget, name)


def _zip_blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    if info.flag_bits & 1:
        raise SourceError(name, "is encrypted", "unpack it with its password, and name the file itself")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(name, f"is packed by method {info.compress_type}, which is not read", "pack it with deflate")
    try:
        opened = archive.open(info)
    except FORGED as error:
        raise SourceError(name, f"cannot be unpacked ({error})", "fetch the file again") from None
    with opened:
        yield from blocks_of(opened)


def _tar_members(file: File, budget: Budget) -> Generator[Member]:
    with closing(_Tape(unpacking(file, budget), budget)) as tape:
        archive = tarfile.TarFile(fileobj=tape, mode="r")  # type: ignore[arg-type]
        while info := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # or it keeps them all
            plain, link = info.isreg() and not info.issparse(), info.issym() or info.islnk()
            kind = "file" if plain else "folder" if info.isdir() else "link" if link else "device"
            target = posixpath.join(posixpath.dirname(info.name) if info.issym() else "", info.linkname) if link else None
            yield Member(info.name, kind, target, partial(archive.extractfile, info))  # type: ignore[arg-type]
        tape.finish()


class _Tape:
    """A tar as `tarfile` sees it: read forwards, without a header of gigabytes; to go back, it begins anew."""

    def __init__(self, file: File, budget: Budget) -> None:
        self.file, self.budget = file, budget
        self.raw, self.position, self.last = file.open(), 0, b""

    def seekable(self) -> bool:
        return False  # as far as a reader of a member may know

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.raw.read(size)
        self.position += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        if position < self.position:
            self.raw.close()
            self.budget.left += self.position if self.file.unpack else 0
            self.raw, self.position = self.file.open(), 0
        while self.position < position and self.read(min(position - self.position, BLOCK)):
            pass

    def finish(self) -> None:
        """Read on to the end of the file, so that its checksum is compared too.

        Raises:
            tarfile.ReadError: `tarfile` saw an end that is none.
        """
        if self.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut off or broken at byte {self.position}")
        while self.raw.read(BLOCK):
            pass

    def close(self) -> None:
        self.raw.close()
