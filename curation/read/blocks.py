"""Text files as blocks of bytes: whole lines, checked to be UTF-8, in which cells stand without being copied."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain

import numpy as np
import polars as pl
import pyarrow as pa

from curation.read.encodings import HEAD, refuse_other
from curation.read.rows import File, encoding_of, opened, record_limit, too_large
from curation.recipe.source import Table

BLOCK = 1 << 22  # bytes
INLINE = 12  # bytes of a text that stands in its view; of a longer one its first 4 do
FIRST_4, NEXT_8 = (np.array([(1 << 8 * size) - 1 for size in range(most + 1)], np.uint64) for most in (4, 8))


@contextmanager
def opened_blocks(file: File, table: Table) -> Iterator[Iterator[bytes]]:
    """Open a text file as blocks of UTF-8, whatever its encoding; each ends where a line does (in LF) or with the file.

    Raises:
        UnicodeError: the file does not decode.
        SourceError: a line is longer than a record may be.
    """
    size = min(BLOCK, record_limit(table))  # so that no line within a piece is too long
    if encoding_of(file, table) != "utf-8":
        with opened(file, table) as text:
            yield _whole_lines(file, table, iter(lambda: text.read(size).encode(), b""))
        return
    with file.open() as raw:
        first = raw.read(size)
        refuse_other(file.name, "utf-8", first[:HEAD])
        pieces = chain([first.removeprefix(codecs.BOM_UTF8)], iter(partial(raw.read, size), b""))
        yield map(_checked, _whole_lines(file, table, pieces))


def _whole_lines(file: File, table: Table, pieces: Iterable[bytes]) -> Iterator[bytes]:
    held, size, lines, most = [b""], 0, 1, record_limit(table)  # the line at hand: its pieces, bytes and number
    for piece in pieces:
        if size + len(piece) > most and size + len(piece.partition(b"\n")[0]) > most:
            raise too_large(f"{file.name}:{lines}", "this line", table)
        if end := piece.rfind(b"\n") + 1:
            block = b"".join((*held, piece[:end]))
            lines += block.count(b"\n")
            yield block
            held, size = [piece[end:]], len(piece) - end
        else:
            held.append(piece)
            size += len(piece)
    if rest := b"".join(held):
        yield rest


def _checked(block: bytes) -> bytes:
    ends = pa.py_buffer(np.array([0, len(block)], np.int64))
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(block)]).validate(full=True)
    except pa.ArrowInvalid:
        block.decode()  # says where; Arrow's check takes a tenth of the time
        raise
    return block


def lines_of(blocks: Iterable[bytes]) -> Iterator[str]:
    """Return the lines of blocks; they end in LF alone and keep their ends."""
    for block in blocks:
        yield from io.TextIOWrapper(io.BytesIO(block), "utf-8", newline="\n")


def texts_at(padded: bytes, starts: np.ndarray, ends: np.ndarray) -> pl.Series:
    """Return the texts that stand in a block between `starts` and `ends` (i64), as views of it, none of them copied.

    The block is `padded` with INLINE bytes more, so that a word can be read from any place in it.

    A view is 16 bytes: the length, then the text itself up to 12 bytes, or its first 4, the number of its buffer and
    its place there (Arrow's columnar format, "Variable-size Binary View Layout").
    """
    fours, eights = (np.ndarray((len(padded) - size,), f"<u{size}", padded, strides=(1,)) for size in (4, 8))
    sizes = ends - starts
    views = np.empty((len(sizes), 2), "<u8")
    first = fours[starts] & FIRST_4[np.minimum(sizes, 4)]
    views[:, 0] = sizes.astype(np.uint64) | (first << np.uint64(32))
    inline = eights[starts + 4] & NEXT_8[np.clip(sizes - 4, 0, 8)]
    views[:, 1] = np.where(sizes > INLINE, starts.astype(np.uint64) << np.uint64(32), inline)
    texts = pa.Array.from_buffers(pa.string_view(), len(sizes), [None, pa.py_buffer(views), pa.py_buffer(padded)])
    return pl.Series(texts)
