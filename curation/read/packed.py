"""What is packed by gzip, bzip2, xz or zstd: unpacked as it is read, and each byte that comes out is counted."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any

import zstandard

from curation.core.errors import SourceError
from curation.read.rows import File

PACKED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
POINTER = b"version https://git-lfs.github.com/spec/"
BLOCK = 1 << 16  # bytes
ZSTD_WINDOW = 1 << 31  # bytes; what `zstd --long=31` writes may point back as far as that, and no other file farther
XZ_MEMORY = 1 << 30  # bytes that unpacking may take; the largest preset, -9, takes 65 MB
ZSTD_BITE = 1 << 12  # bytes fed at once: 4 of them can stand for 128 KiB, so at most 128 MiB come out


class Budget:
    """Bytes that a source may still unpack."""

    def __init__(self, gigabytes: float) -> None:
        self.most, self.left = gigabytes, int(gigabytes * 1e9)

    def spend(self, size: int, name: str) -> None:
        """Count bytes that came out of `name`.

        Raises:
            SourceError: they are more than the source may unpack.
        """
        self.left -= size
        if self.left < 0:
            what = f"the source unpacks to more than the {self.most:g} GB of its `max_unpacked`"
            raise SourceError(name, what, "a decompression bomb? raise the limit if you know the file")


def ending_of(path: Path) -> str:
    """Return a file's ending in lower case, without what says that it is packed."""
    return PurePath(path.name[: -len(path.suffix)] if path.suffix.lower() in PACKED else path.name).suffix.lower()


def unpacking(file: File, budget: Budget) -> File:
    """Return a file, and those beside it, that unpack as they are read where their names say that they are packed."""
    plain = file._replace(beside=tuple(unpacking(one, budget) for one in file.beside))
    if file.path.name.lower().endswith(PACKED):
        return plain._replace(unpack=lambda: _no_pointer(counted(_unpacked(file), budget, file.name), file), remote=False)
    return plain if file.unpack is None or file.remote else plain._replace(unpack=lambda: _no_pointer(file.open(), file))


def _no_pointer(raw: IO[bytes], file: File) -> IO[bytes]:
    assert isinstance(raw, io.BufferedReader)
    refuse_pointer(file.name, raw.peek(len(POINTER)))
    return raw


def refuse_pointer(name: str, start: bytes) -> None:
    """Refuse a file by its first bytes.

    Raises:
        SourceError: it is what Git puts in the place of a large file.
    """
    if start.startswith(POINTER):
        raise SourceError(name, "is a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`")


def _unpacked(file: File) -> Iterator[bytes]:
    with file.open() as raw:
        if isinstance(raw, io.BufferedReader):
            refuse_pointer(file.name, raw.peek(len(POINTER)))
        ending = file.path.suffix.lower()
        if ending == ".zst":
            yield from _zstd_blocks(raw)
        elif ending in (".bz2", ".tbz2"):
            yield from _stream_blocks(raw, bz2.BZ2Decompressor)
        elif ending in (".xz", ".txz"):
            yield from _stream_blocks(raw, partial(lzma.LZMADecompressor, memlimit=XZ_MEMORY))
        else:
            with gzip.GzipFile(fileobj=raw) as plain:
                yield from blocks_of(plain)


def blocks_of(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """Return a file's bytes, block by block."""
    return iter(lambda: file.read(BLOCK), b"")


def _stream_blocks(raw: IO[bytes], fresh: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> Iterator[bytes]:
    """Unpack stream after stream; no more comes out at once than a block."""
    stream = fresh()
    while True:
        bite = b""
        if stream.eof:
            bite = stream.unused_data.lstrip(b"\0") or raw.read(BLOCK).lstrip(b"\0")  # xz pads with zeros
            if not bite:
                return
            stream = fresh()
        elif stream.needs_input and not (bite := raw.read(BLOCK)):
            raise EOFError
        try:
            yield stream.decompress(bite, BLOCK)
        except OSError as error:  # how bz2 says that its data are broken
            raise lzma.LZMAError(str(error)) from None


def _zstd_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    """Unpack frame after frame; unlike `zstandard`'s own reader, this one sees that a file is cut off."""
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


class _Stream(io.RawIOBase):
    """Blocks of bytes as a file that counts what comes out."""

    def __init__(self, blocks: Iterator[bytes], budget: Budget, name: str) -> None:
        self.blocks, self.budget, self.called, self.rest = blocks, budget, name, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            block = next(self.blocks, None)
            if block is None:
                return 0
            self.budget.spend(len(block), self.called)
            self.rest = memoryview(block)
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size

    def close(self) -> None:
        if not self.closed and isinstance(self.blocks, Generator):
            self.blocks.close()
        super().close()


def counted(blocks: Iterator[bytes], budget: Budget, name: str) -> IO[bytes]:
    """Return blocks of bytes as a file; what comes out is counted in the name of `name`."""
    return io.BufferedReader(_Stream(blocks, budget, name), BLOCK)
