"""What is packed: `.gz` and `.zst` peeled off as they are read, and every byte counted that comes out, whatever headers say."""

from __future__ import annotations

import gzip
import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from curation.errors import SourceError
from curation.reading.rows import File

PACKED = (".gz", ".tgz", ".zst")
BLOCK = 1 << 16  # bytes
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
    return Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def unpacking(file: File, budget: Budget) -> File:
    """Return a file, and those beside it, that unpack as they are read where their names say that they are packed."""
    file = file._replace(beside=tuple(unpacking(one, budget) for one in file.beside))
    if not file.path.name.lower().endswith(PACKED):
        return file
    return file._replace(unpack=lambda: counted(_unpacked(file), budget, file.name), remote=False)


def _unpacked(file: File) -> Iterator[bytes]:
    with file.open() as raw:
        if file.path.name.lower().endswith(".zst"):
            yield from _zstd_blocks(raw)
        else:
            with gzip.GzipFile(fileobj=raw) as plain:
                yield from blocks_of(plain)


def blocks_of(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """Return a file's bytes, block by block."""
    return iter(lambda: file.read(BLOCK), b"")


def _zstd_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    """Unpack frame after frame; unlike `zstandard`'s own reader, this one sees that a file is cut off."""
    frame, fresh = zstandard.ZstdDecompressor().decompressobj(), True
    while bite := raw.read(ZSTD_BITE):
        while bite:
            if frame.eof:
                frame, fresh = zstandard.ZstdDecompressor().decompressobj(), True
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
