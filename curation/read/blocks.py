"""Text files: their encoding, their bytes in blocks of whole lines, and errors that say what is wrong with a file.

An encoding is suggested only if the text makes sense in it: nearly all bytes decode in most encodings, so decoding proves
nothing.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
import zstandard

from curation.core.errors import SourceError
from curation.read.rows import File, Lines, record_limit, too_large
from curation.recipe.source import Table

BLOCK = 1 << 22  # bytes
LONGEST_FIRST = 1 << 22  # bytes of the first line of a file that is cut
HEAD = 4096  # bytes at the beginning of a file that show its encoding
INLINE = 12  # bytes of a text that its view holds; the view of a longer text holds the first 4
FIRST_4, NEXT_8 = (np.array([(1 << 8 * size) - 1 for size in range(most + 1)], np.uint64) for most in (4, 8))
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, which is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PACKED_BY = {b"\x1f\x8b": "gz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zX": "xz"}
BROKEN = (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError, zstandard.ZstdError, lzma.LZMAError)
MULTIBYTE = ("shift_jis", "cp932", "euc_jp", "gb18030", "big5", "euc_kr")
FREQUENT = {  # the commonest characters of Chinese, simplified and traditional
    "gb18030": frozenset("的一是不了在有人这中大为上个国我以要他时来用们到说和地也子出就年"),
    "big5": frozenset("的一是不了在有人這中大為上個國我以要他時來用們到說和地也子出就年"),
}
WESTERN = frozenset("àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿœšžßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞŸŒŠŽ")
IN_WORDS = frozenset("\u2019\u2018\xb4\xb7\xad")  # characters that may occur between two letters


@contextmanager
def open_blocks(file: File, table: Table) -> Iterator[Iterator[bytes]]:
    """Open a text file as blocks of UTF-8, whatever its encoding; each ends with a line (in LF) or with the file.

    Raises:
        UnicodeError: the file does not decode.
        SourceError: a line is longer than a record may be, or lines end in CR alone.
    """
    size = min(BLOCK, record_limit(table))  # so that no line within a piece is too long
    if codec_name(file, table) != "utf-8":
        with open_text(file, table) as text:
            yield _whole_lines(file, table, iter(lambda: text.read(size).encode(), b""))
        return
    with file.open() as raw:
        first = raw.read(size)
        if file.first_line == 1:
            _refuse_other_encoding(file.name, "utf-8", first[:HEAD])
        pieces = chain([first.removeprefix(codecs.BOM_UTF8)], iter(partial(raw.read, size), b""))
        yield map(_check_utf8, _whole_lines(file, table, pieces))


def _whole_lines(file: File, table: Table, pieces: Iterable[bytes]) -> Iterator[bytes]:
    held, size, lines, most = [b""], 0, file.first_line, record_limit(table)  # the current line: its pieces, bytes and number
    old_mac = SourceError(file.name, "its lines end in CR alone", f"convert them: `tr '\\r' '\\n' < {file.name}`")
    for piece in pieces:
        if size + len(piece) > most and lines == 1 and b"\n" not in piece and b"\r" in piece:
            raise old_mac
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
        if lines == 1 and b"\r" in rest.rstrip(b"\r\n"):
            raise old_mac
        yield rest


def _check_utf8(block: bytes) -> bytes:
    ends = pa.py_buffer(np.array([0, len(block)], np.int64))
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(block)]).validate(full=True)
    except pa.ArrowInvalid:
        block.decode()  # raises with the position; Arrow's check takes a tenth of the time
        raise
    return block


def cut_lines(path: Path, size: int) -> list[tuple[Lines, int]]:
    """Cut a file of JSON objects, one per line, where about `size` bytes end; return the pieces and their numbers of lines.

    Return none if a line does not begin with an object, or the first one does not end with it: some may be blank, or parts of
    an object.
    """
    found = list[tuple[Lines, int]]()
    start, first, end, line, last = 0, 1, 0, 1, b"\n"  # of the piece, of what was read of the file, and its last byte
    with path.open("rb") as raw:
        if not raw.readline(LONGEST_FIRST).rstrip().endswith(b"}"):
            return []
        raw.seek(0)
        while block := raw.read(BLOCK):
            joined = last + (block if end else block.removeprefix(codecs.BOM_UTF8))
            if joined.count(b"\n", 0, -1) != joined.count(b"\n{"):
                return []
            lines, cut = block.count(b"\n"), end + block.rfind(b"\n") + 1
            end, line, last = end + len(block), line + lines, block[-1:]
            if lines and cut - start >= size:
                found.append((Lines(start, cut, first), line - first))
                start, first = cut, line
    return [*found, (Lines(start, end, first), line - first + (last != b"\n"))] if start < end else found


def lines_of(blocks: Iterable[bytes]) -> Iterator[str]:
    """Return the lines of blocks; they end in LF only and keep their ends."""
    for block in blocks:
        yield from io.TextIOWrapper(io.BytesIO(block), "utf-8", newline="\n")


def texts_at(padded: bytes, starts: np.ndarray, ends: np.ndarray) -> pl.Series:
    """Return the texts of a block between `starts` and `ends` (i64) as views of the block, without copying.

    `padded` is the block and INLINE more bytes, so that a word can be read from any position in the block.

    A view is 16 bytes: the length, then the text itself up to 12 bytes, or its first 4, the number of its buffer and
    its position there (Arrow's columnar format, "Variable-size Binary View Layout").
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


def codec_name(file: File, table: Table) -> str:
    """Return Python's name for the encoding of a table's files.

    Raises:
        SourceError: Python does not know the encoding.
    """
    try:
        "".encode(table.encoding)
    except (LookupError, ValueError):
        what = f"'{table.encoding}' is not a text encoding"
        raise SourceError(file.name, what, "such as utf-8, utf-16, latin-1, cp1252") from None
    return codecs.lookup(table.encoding).name


@contextmanager
def open_text(file: File, table: Table) -> Iterator[IO[str]]:
    """Open a text file: its lines end in LF only and keep their ends; a byte-order mark is skipped."""
    encoding = codec_name(file, table)
    with file.open() as raw:
        if isinstance(raw, io.BufferedReader):
            head = raw.peek(HEAD)[:HEAD]
            _refuse_other_encoding(file.name, encoding, head)
            if encoding not in ("utf-8", "utf-16", "utf-32"):  # Python itself skips the marks of these
                try:
                    mark = "\ufeff".encode(encoding)
                except UnicodeEncodeError:
                    mark = b""
                raw.read(len(mark) if head.startswith(mark) else 0)
        with io.TextIOWrapper(raw, "utf-8-sig" if encoding == "utf-8" else encoding, newline="\n") as text:
            yield text


def _refuse_other_encoding(name: str, encoding: str, head: bytes) -> None:
    """Refuse a file if a byte-order mark or the positions of zeros in its first bytes show another encoding."""
    shown = next((known for mark, known in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    little = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE))
    fits = {shown, f"{shown}-sig"} if shown == "utf-8" else {shown, f"{shown}-le" if little else f"{shown}-be"}
    if shown is None and (shown := _encoding_by_zeros(head)):
        fits = {shown}  # `utf-16` without an order asks for a mark
    if shown and encoding not in fits:
        raise SourceError(name, f"is {shown} text, not {encoding}", f"say `encoding: {shown}`")


def _encoding_by_zeros(data: bytes) -> str | None:
    """Return the encoding of two or four bytes per character that the positions of zeros show, if any."""
    zeros = [data[place::4].count(0) for place in range(4)]
    if sum(zeros) < max(2, len(data) // 5) and sum(zeros) < 8:
        return None
    quarter = max(1, len(data) // 4)
    for order, zero, low in (("utf-32-le", (2, 3), 0), ("utf-32-be", (0, 1), 3)):
        if all(zeros[place] >= 0.99 * quarter for place in zero) and zeros[low] <= 0.05 * quarter:
            return order
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    few, many = min(even, odd), max(even, odd)
    if few > many / 20:
        return None
    if many < 0.35 * len(data):  # a zero may also be a character of UTF-8
        try:
            codecs.getincrementaldecoder("utf-8")().decode(data)  # a character may be cut at the end
            return None
        except UnicodeDecodeError:
            pass
    return "utf-16-le" if odd > even else "utf-16-be"


def suggest_encoding(sample: bytes) -> str | None:
    """Return an encoding that makes sense of bytes that are not UTF-8, or None if none is certain."""
    shown = next((known for mark, known in BYTE_ORDER_MARKS.items() if sample.startswith(mark)), _encoding_by_zeros(sample))
    if shown:
        return shown
    western = "cp1252" if re.search(rb"[\x80-\x9f]", sample) else "latin-1"
    texts: dict[str, str] = {}
    for name in (*MULTIBYTE, western):
        try:
            texts[name] = sample.decode(name)
        except UnicodeDecodeError:
            continue
    # Japanese: at least a fifth kana, hardly any half-width or private characters
    for name in ("shift_jis", "cp932", "euc_jp"):
        characters = [character for character in texts.get(name, "") if not character.isascii()]
        kana = sum("\u3041" <= character <= "\u30fe" for character in characters)
        odd = sum("\uff61" <= character <= "\uff9f" or "\ue000" <= character <= "\uf8ff" for character in characters)
        if kana * 5 >= len(characters) > 0 and odd * 10 <= len(characters):
            return name
    # Chinese: a tenth or more are among the commonest characters
    for name, common in FREQUENT.items():
        characters = [character for character in texts.get(name, "") if not character.isascii()]
        if len(characters) >= 20 and sum(character in common for character in characters) * 10 >= len(characters):
            return name
    if texts.keys() - {western}:
        return None
    # Western European: few accents, and no symbol within a word
    if (text := texts.get(western)) is None or re.search(f"[{''.join(WESTERN)}]{{3}}", text):
        return None
    found = [
        (text[at - 1 : at], character, text[at + 1 : at + 2]) for at, character in enumerate(text) if not character.isascii()
    ]
    if len(found) > 3 and len(found) * 3 > sum(not character.isspace() for character in text):
        return None
    for before, character, after in found:
        inside = before.isalpha() and after.isalpha()
        odd = unicodedata.category(character)[0] in "LC" or inside  # another script's letter, a control character, a symbol
        if odd and character not in WESTERN and character not in IN_WORDS and character not in "ªºƒ\xa0":
            return None
    return western


@contextmanager
def reading_errors(file: File, table: Table) -> Iterator[None]:
    """Turn what is wrong with a file into an error of one line.

    Raises:
        SourceError: the file does not decode, cannot be unpacked, or cannot be opened.
    """
    again = "fetch the file again"
    try:
        yield
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        line, hint = _first_undecodable(file, table.encoding)
        raise SourceError(f"{file.name}:{line}", f"byte {byte} is not {table.encoding} text", hint) from None
    except UnicodeError as error:  # raised by a codec itself, such as for a missing mark
        raise SourceError(file.name, f"is not {table.encoding} text ({error})", "declare the file's own encoding") from None
    except EOFError:
        raise SourceError(file.name, "the packed data are cut off", again) from None
    except BROKEN as error:
        raise SourceError(file.name, f"cannot be unpacked ({error})", again) from None
    except OSError as error:
        raise SourceError(file.name, f"cannot be opened ({error.strerror or error})", "check path and permissions") from None


def _first_undecodable(file: File, encoding: str) -> tuple[int, str]:
    """Return the line of the first byte that does not decode, and what to try."""
    decoder, line, sample = codecs.getincrementaldecoder(encoding)(), file.first_line, b""
    with file.open() as raw:
        try:
            while block := raw.read(1 << 16):
                sample = sample or block[:4]
                line += decoder.decode(block).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(encoding, "replace").count("\n")
            for start, packing in PACKED_BY.items():
                if sample.startswith(start):
                    return line, f"it is packed: rename it so that it ends in .{packing}"
            if sample in (b"PAR1", b"ARRO"):
                return line, f"say `reader: {'parquet' if sample == b'PAR1' else 'arrow'}`"
            first = error.object.rfind(b"\n", 0, error.start) + 1
            sample = bytes(error.object[first:]) + raw.read(1 << 16)
            sample = sample[: sample.rfind(b"\n") + 1 or None]  # whole lines, so that no character is cut off
    guess = suggest_encoding(sample)
    return line, "declare the file's own encoding" + (f", perhaps `encoding: {guess}`" if guess else " with `encoding:`")
