"""Packed files and archives, unpacked as they are read; no byte is written to a folder, and every byte that comes out is counted.

gzip, bzip2, xz and zstd files unpack as streams. Members of zip and tar archives are read in place: those of a tar in its
order, in one pass; those of a zip in the order of its table of contents. Entries whose names or links lead out of the
archive are refused.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
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
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

import zstandard

from curation.core.errors import SourceError, decoded, did_you_mean, listed
from curation.read.blocks import BROKEN, reading_errors
from curation.read.paths import matches
from curation.read.rows import File
from curation.recipe.source import Table

PACKED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how the file begins that Git puts in the place of a large one
CHUNK = 1 << 16  # bytes
ZSTD_WINDOW = 1 << 31  # bytes; the farthest that `zstd --long=31` refers back
ZSTD_BITE = 1 << 12  # bytes fed at once: 4 of them can expand to 128 KiB, so at most 128 MiB come out
XZ_MEMORY = 1 << 30  # bytes that unpacking may take; the largest preset, -9, takes 65 MB
LONGEST_HEADER = 1 << 20  # bytes; honest tar archives have much smaller headers
FORGED = (*BROKEN, NotImplementedError, ValueError, OverflowError, struct.error)  # raised by `zipfile`, `tarfile` for bad headers


class Budget:
    """Bytes that a source may still unpack."""

    def __init__(self, gigabytes: float) -> None:
        self.most, self.left = gigabytes, int(gigabytes * 1e9)


class Member(NamedTuple):
    """An entry of an archive; `target` is where a link leads, from the top of the archive."""

    name: str
    kind: str  # file, folder, link, or device
    target: str | None
    open: Callable[[], IO[bytes]]


Members = Callable[[File, Budget], Generator[Member]]


# --- what a file contains ---


def ending_of(path: Path) -> str:
    """Return a file's ending in lower case, without the ending of its packing."""
    return PurePath(path.name[: -len(path.suffix)] if path.suffix.lower() in PACKED else path.name).suffix.lower()


def parts(file: File, table: Table, budget: Budget, known: Collection[str]) -> Generator[File]:
    """Return the files in a file: itself, unpacked as it is read, or the wanted members of an archive, in its order.

    A member must be opened before the generator moves on; its `path` and `root` are as if the archive were a folder.
    `known` are the endings of data files.

    Raises:
        SourceError: an archive that is broken, leads out of its folder, or lacks a member.
    """
    with reading_errors(file, table):
        if file.unpack is None:
            with file.open() as raw:
                _refuse_pointer(file.name, raw.read(len(LFS_POINTER)))
    name = file.path.name.lower()
    if not name.endswith((".zip", *TARS)):
        if table.member:
            what = "is not an archive, so `member:` does not apply"
            raise SourceError(file.name, what, "archives are zip, " + ", ".join(TARS))
        yield unpacking(file, budget)
        return
    with reading_errors(file, table):
        members = _zip_members if name.endswith(".zip") else _tar_members
        wanted = table.member
        if not wanted or any("[" in pattern for pattern in wanted):
            with closing(_safe_members(file, members(file, Budget(table.max_unpacked)))) as entries:
                contents = [(member.name, member.kind) for member in entries]
            if not wanted:  # the only data file: of a known ending, or of any ending if a reader is declared
                names = [name for name, kind in contents if kind == "file"]
                names = [
                    name for name in names if not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
                ]
                wanted = [name for name in names if ending_of(Path(name)) in known] or (names if table.reader else [])
                if len(wanted) != 1:
                    what = f"holds {len(wanted) or 'no'} data file{'s' * (len(wanted) != 1)}"
                    what += f": {listed(wanted or names) or 'nothing at all'}"
                    raise SourceError(file.name, what, "name one or more with `member:`")
            # a pattern that is, character by character, a member's name means only that member, as with files
            plain = {pattern for pattern in wanted if "[" in pattern} & {name for name, _ in contents}
        else:
            plain = set()
        seen: dict[str, None] = {}
        found: set[str] = set()
        with closing(_safe_members(file, members(file, budget))) as entries:
            for member in entries:
                hits = {one for one in wanted if member.name == one or (one not in plain and matches(member.name, one))}
                if hits and (member.kind != "folder" or member.name in wanted):
                    found |= hits
                    shown = f"{file.name}:{member.name}"
                    if member.kind != "file":
                        raise SourceError(
                            shown, f"is a {member.kind}, which is not followed", "name the file itself with `member:`"
                        )
                    if member.name in seen:
                        raise SourceError(shown, "is in the archive twice", "pack it again")
                    yield unpacking(File(file.path / member.name, shown, file.path, unpack=member.open), budget)
                seen[member.name] = None
        if missing := [pattern for pattern in wanted if pattern not in found]:
            what = "no member matches" if glob.has_magic(missing[0]) else "no member"
            near = did_you_mean(missing[0], seen) or f"; it holds {listed(seen, 6)}"
            raise SourceError(file.name, f"{what} '{missing[0]}'{near}")


def _safe_members(file: File, members: Generator[Member]) -> Generator[Member]:
    """Return members under normalised names, and refuse those that would be written outside of the archive's folder."""

    def leads_out(name: str) -> bool:
        name = name.replace("\\", "/")
        return name.startswith("/") or bool(re.match("[A-Za-z]:/", name)) or posixpath.normpath(name).split("/")[0] == ".."

    try:
        for member in members:
            if leads_out(member.name) or (member.target is not None and leads_out(member.target)):
                leads = f", which leads to '{member.target}'," if member.target else ""
                what = f"member '{member.name}'{leads} would be written outside of the archive's folder"
                raise SourceError(file.name, what, "nothing in it is read; pack it again if you trust it")
            yield member._replace(name=posixpath.normpath(decoded(member.name)))
    except FORGED as error:
        raise SourceError(file.name, f"not readable as an archive ({error})", "fetch the file again") from None
    finally:
        members.close()


def _zip_members(file: File, budget: Budget) -> Generator[Member]:
    with zipfile.ZipFile(file.path) as archive:
        for info in archive.infolist():
            link = stat.S_ISLNK(info.external_attr >> 16)
            name = f"{file.name}:{info.filename}"
            kind = "folder" if info.is_dir() else "link" if link else "file"
            target = b"".join(islice(_zip_chunks(archive, info, name), 1))[:4096].decode(errors="replace") if link else None
            target = target and posixpath.join(posixpath.dirname(info.filename), target)
            opened = partial(_zip_chunks, archive, info, name)
            yield Member(info.filename, kind, target, partial(_counted, opened, budget, name))


def _zip_chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    if info.flag_bits & 1:
        raise SourceError(name, "is encrypted", "unpack it with its password, and name the file itself")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(name, f"is packed by method {info.compress_type}, which is not read", "pack it with deflate")
    try:
        opened = archive.open(info)
    except FORGED as error:
        raise SourceError(name, f"cannot be unpacked ({error})", "fetch the file again") from None
    with opened:
        yield from iter(partial(opened.read, CHUNK), b"")


def _tar_members(file: File, budget: Budget) -> Generator[Member]:
    with closing(_Tape(unpacking(file, budget), budget)) as tape:
        archive = tarfile.TarFile(fileobj=tape, mode="r")  # type: ignore[arg-type]
        while info := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # or it keeps them all
            plain, link = info.isreg() and not info.issparse(), info.issym() or info.islnk()
            kind = "file" if plain else "folder" if info.isdir() else "link" if link else "device"
            target = posixpath.join(posixpath.dirname(info.name) if info.issym() else "", info.linkname) if link else None
            yield Member(info.name, kind, target, partial(archive.extractfile, info))  # type: ignore[arg-type]
        if tape.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut off or broken at byte {tape.position}")
        while tape.raw.read(CHUNK):  # on to the end of the file, so that its checksum is compared too
            pass


class _Tape:
    """A tar file as `tarfile` sees it: read forwards, without headers of gigabytes; to go back, it starts from the beginning."""

    def __init__(self, file: File, budget: Budget) -> None:
        self.file, self.budget = file, budget
        self.raw, self.position, self.last = file.open(), 0, b""

    def seekable(self) -> bool:
        return False  # so that readers of a member do not seek

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
        while self.position < position and self.read(min(position - self.position, CHUNK)):
            pass

    def close(self) -> None:
        self.raw.close()


# --- streams ---


def unpacking(file: File, budget: Budget) -> File:
    """Return a file, and those beside it, that unpack as they are read if their names say that they are packed."""

    def without_pointer(raw: IO[bytes]) -> IO[bytes]:
        assert isinstance(raw, io.BufferedReader)
        _refuse_pointer(file.name, raw.peek(len(LFS_POINTER)))
        return raw

    plain = file._replace(beside=tuple(unpacking(one, budget) for one in file.beside))
    if file.path.name.lower().endswith(PACKED):
        return plain._replace(unpack=lambda: without_pointer(_counted(partial(_unpack, file), budget, file.name)), remote=False)
    return plain if file.unpack is None or file.remote else plain._replace(unpack=lambda: without_pointer(file.open()))


def _refuse_pointer(name: str, start: bytes) -> None:
    if start.startswith(LFS_POINTER):
        raise SourceError(name, "is a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`")


def _unpack(file: File) -> Iterator[bytes]:
    with file.open() as raw:
        if isinstance(raw, io.BufferedReader):
            _refuse_pointer(file.name, raw.peek(len(LFS_POINTER)))
        ending = file.path.suffix.lower()
        if ending == ".zst":
            # frame after frame; unlike the reader of `zstandard`, notice that a file is cut off
            packed = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
            frame, fresh = packed.decompressobj(), True
            while bite := raw.read(ZSTD_BITE):
                while bite:
                    if frame.eof:
                        frame, fresh = packed.decompressobj(), True
                    yield frame.decompress(bite)
                    bite, fresh = frame.unused_data, False
            if fresh or not frame.eof:
                raise EOFError
        elif ending in (".bz2", ".tbz2"):
            yield from _unpack_streams(raw, bz2.BZ2Decompressor)
        elif ending in (".xz", ".txz"):
            yield from _unpack_streams(raw, partial(lzma.LZMADecompressor, memlimit=XZ_MEMORY))
        else:
            with gzip.GzipFile(fileobj=raw) as plain:
                yield from iter(partial(plain.read, CHUNK), b"")


def _unpack_streams(raw: IO[bytes], fresh: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> Iterator[bytes]:
    """Unpack stream after stream, at most CHUNK bytes at once."""
    stream = fresh()
    while True:
        bite = b""
        if stream.eof:
            bite = stream.unused_data.lstrip(b"\0") or raw.read(CHUNK).lstrip(b"\0")  # xz pads with zeros
            if not bite:
                return
            stream = fresh()
        elif stream.needs_input and not (bite := raw.read(CHUNK)):
            raise EOFError
        try:
            yield stream.decompress(bite, CHUNK)
        except OSError as error:  # raised by bz2 for broken data
            raise lzma.LZMAError(str(error)) from None


class _Stream(io.RawIOBase):
    """Chunks of bytes as a file that counts what comes out."""

    def __init__(self, chunks: Iterator[bytes], budget: Budget, name: str) -> None:
        self.chunks, self.budget, self.called, self.rest = chunks, budget, name, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.budget.left -= len(chunk)
            if self.budget.left < 0:
                what = f"the source unpacks to more than the {self.budget.most:g} GB of its `max_unpacked`"
                raise SourceError(self.called, what, "a decompression bomb? raise the limit if you know the file")
            self.rest = memoryview(chunk)
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size

    def close(self) -> None:
        if not self.closed and isinstance(self.chunks, Generator):
            self.chunks.close()
        super().close()


def _counted(unpack: Callable[[], Iterator[bytes]], budget: Budget, name: str) -> IO[bytes]:
    return io.BufferedReader(_Stream(unpack(), budget, name), CHUNK)
