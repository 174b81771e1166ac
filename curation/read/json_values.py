"""JSON parsing: the values of a text one by one, and blocks of lines whose objects are all alike at once.

Value by value, no more of the text is held than one value and one piece of the file. The values are the items of a list,
or follow each other, on one line each or on several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json

from curation.core.errors import SourceError
from curation.read.blocks import INLINE, texts_at
from curation.read.mapping import ColumnMap, Number, parts_of
from curation.read.rows import File, record_limit, too_large
from curation.recipe.source import Table

WHITE = re.compile(r"[ \t\n\r]*")
PIECE = 1 << 22  # characters
LONGEST_TOKEN = 16  # characters that may be cut off at the end of a piece: `-Infinity`, two `\\uXXXX`
LINE, OPENS, CLOSES = b"\n{}"
INTEGER, FLOAT = pa.int64(), pa.float64()
TEXT_LIST = pa.list_(pa.string())
ARROW_TYPES = {str: pa.string(), type(None): pa.string(), int: INTEGER, float: FLOAT, bool: pa.bool_()}


class Value(NamedTuple):
    """A value, the line on which it begins, its own text, and what is wrong with it, such as a repeated key."""

    line: int
    value: Any
    text: str
    wrong: str


class RepeatedKeys(list[str]):
    """The keys that an object repeats with different values, since this list was last emptied."""

    def object_of(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object for `json`, and note the keys that it repeats."""
        found = dict(pairs)
        if len(found) < len(pairs):
            self.extend(key for key, value in pairs if found[key] != value)
        return found

    def take_error(self) -> str:
        """Return what is wrong, or nothing if no key was repeated, and forget the keys."""
        key = self[0][:40] if self else ""
        error = f"the key '{key}' appears twice in an object, with different values" if self else ""
        self.clear()
        return error


def decoder(hook: Callable[[list[tuple[str, Any]]], Any]) -> json.JSONDecoder:
    """Return a decoder that keeps numbers as they are written; NaN and infinities, which JSON does not have, are missing."""
    return json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=lambda _: None, object_pairs_hook=hook)


class Text:
    """A JSON text that is read piece by piece, and a position in it."""

    def __init__(self, file: File, table: Table, read: Callable[[int], str]) -> None:
        self.file, self.table, self.most, self.read = file, table, record_limit(table), read
        self.held, self.at, self.line = "", 0, 1  # the piece of text, a position in it, the line on which it begins
        self.hint = "is the file cut off?"
        self.repeated = RepeatedKeys()
        self.decoder = decoder(self.repeated.object_of)

    def next_character(self) -> str:
        """Move to the next character that is not white space, and return it, or nothing at the end."""
        while True:
            self.at = WHITE.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held) or not self._read_more():
                return self.held[self.at : self.at + 1]

    def value(self, if_large: str = "raise it if the file is right") -> Value:
        """Return the value that begins here, and move behind it.

        Raises:
            SourceError: it is not JSON, or too large.
        """
        while True:
            try:
                value, end = self.decoder.raw_decode(self.held, self.at)
                after = WHITE.match(self.held, end).end()  # type: ignore[union-attr]
                if after < len(self.held) or not self._read_more():  # else it may be half a number
                    break
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or not self.held[error.pos + LONGEST_TOKEN :]
                if len(self.held) - self.at > self.most and cut_off:
                    raise self._too_large(if_large) from None
                if not cut_off or not self._read_more():
                    raise self.broken(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self.broken(str(error), self.at) from None
            self.repeated.clear()
        if end - self.at > self.most:
            raise self._too_large(if_large)
        found = Value(self.line_of(self.at), value, self.held[self.at : end], self.repeated.take_error())
        self.at = end
        return found

    def broken(self, what: str, at: int | None = None) -> SourceError:
        """Return the error for a text that is not JSON."""
        line = self.line_of(self.at if at is None else at)
        return SourceError(f"{self.file.name}:{line}", f"not readable as JSON ({what})", self.hint)

    def line_of(self, at: int) -> int:
        """Return the line of a position in the current piece."""
        return self.line + self.held.count("\n", 0, at)

    def _too_large(self, hint: str) -> SourceError:
        return too_large(f"{self.file.name}:{self.line_of(self.at)}", "the value that begins here", self.table, hint)

    def _read_more(self) -> bool:
        """Hold more of the text, and forget what is behind the position; return whether there was more."""
        more = self.read(min(PIECE, self.most + 1))
        if not more:
            return False
        self.line += self.held.count("\n", 0, self.at)
        self.held, self.at = self.held[self.at :] + more, 0
        return True


def items_of(text: Text) -> Iterator[Value]:
    """Yield the items of the list that begins here; nothing may follow it.

    Raises:
        SourceError: it is not JSON.
    """
    text.at += 1
    if text.next_character() != "]":
        while True:
            yield text.value()
            if (character := text.next_character()) != ",":
                break
            text.at += 1
            text.next_character()
        if character != "]":
            raise text.broken("Expecting ',' delimiter")
    text.at += 1
    if text.next_character():
        where = f"{text.file.name}:{text.line_of(text.at)}"
        raise SourceError(where, "a second JSON value begins here: this is JSON Lines", "say `reader: jsonl`")


def values_of(text: Text) -> Iterator[Value]:
    """Yield values that follow each other, with or without white space between them.

    Raises:
        SourceError: what follows is not JSON.
    """
    while text.next_character():
        yield text.value()


def plain_objects(block: bytes, wanted: ColumnMap) -> pl.DataFrame | None:
    """Return the objects of a block of lines as a table; None unless each line is one object with the first one's columns.

    If columns are mapped by name, only these must be alike; the other columns of the first line are null. Numbers become
    texts, as they are written.

    Arrow's parser is given the columns and refuses everything else: other columns and types, a repeated key, half of a
    surrogate pair, brackets inside. It does not look at line ends, so these are counted: if as many lines begin with `{`
    and end with `}` as there are lines and objects, each line is one.
    """
    data = block.replace(b"\r\n", b"\n") if b"\r" in block else block
    data = data if data.endswith(b"\n") else data + b"\n"
    characters = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(characters == LINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not ((characters[starts] == OPENS) & (characters[ends - 1] == CLOSES)).all():
        return None
    # the columns, from the first line
    every = wanted.rest or bool(wanted.patterns)
    try:
        first = json.loads(data[: ends[0]])
        columns = first if every else {name: first.get(name) for name in wanted.tops()}
        lists = {
            name for name, value in columns.items() if isinstance(value, list) and all(isinstance(one, str) for one in value)
        }
        kinds = {name: TEXT_LIST if name in lists else ARROW_TYPES[type(value)] for name, value in columns.items()}
        schema = pa.schema(list(kinds.items()))
    except (ValueError, KeyError, RecursionError):  # KeyError: records, or lists of anything but texts
        return None
    if "" in first or not columns:
        return None
    # whole numbers first; if that fails, a later line may have a fraction
    floats = pa.schema([(field.name, FLOAT if field.type == INTEGER else field.type) for field in schema])
    table = _parse_objects(data, schema, every) or (_parse_objects(data, floats, every) if floats != schema else None)
    if table is None:
        return None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    if len(frame) != len(ends) or not frame.width:
        return None
    # numbers as they are written; a parsed whole number is written the same, except for -0
    exact = [one for one in frame if one.name not in wanted.scores]
    numbers = [one for one in exact if one.dtype == pl.Float64 or (one.dtype == pl.Int64 and b"-0" in data and (one == 0).any())]
    texts = {one.name: _as_written(data, starts, ends, one.cast(pl.Float64)) for one in numbers}
    if any(one is None or (name in wanted.ids and one.str.contains("[eE]").any()) for name, one in texts.items()):
        return None
    frame = frame.with_columns(pl.col(pl.Boolean, pl.Int64).cast(pl.String))
    frame = frame.with_columns(one for one in texts.values() if one is not None)
    empty = pl.Series([None], dtype=pl.Null).new_from_index(0, len(frame))
    found = {path: empty for key, value in first.items() for path in ([key] if key in columns else parts_of(key, value))}
    return pl.DataFrame(found | {one.name: one for one in frame if one.null_count() < len(one)})


def _parse_objects(data: bytes, schema: pa.Schema, every: bool) -> pa.Table | None:
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error" if every else "ignore")
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(data))
    try:
        return pa.json.read_json(pa.BufferReader(data), read_options=reading, parse_options=options)
    except pa.ArrowException:
        return None


def _as_written(data: bytes, starts: np.ndarray, ends: np.ndarray, numbers: pl.Series) -> pl.Series | None:
    """Return the numbers of a column as they are written; None if that is not certain.

    In valid JSON a text is a key if and only if a colon follows it.
    """
    key = json.dumps(numbers.name, ensure_ascii=False)
    pattern = pl.escape_regex(key) + r"[ \t\r]*:[ \t\r]*(-?[0-9][0-9.eE+-]*)"
    lines = texts_at(data + bytes(INLINE), starts, ends)
    texts = lines.str.extract(pattern).alias(numbers.name)
    once = data.count(b"{") == len(lines) or lines.str.count_matches(key, literal=True).max() == 1
    sure = once and b"\\" + key.encode() not in data and numbers.is_finite().all()
    return texts if sure and (texts.is_null() == numbers.is_null()).all() else None
