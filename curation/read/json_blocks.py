"""Many lines of JSON at once, where they are all alike: objects of texts, numbers, truth values and lists of texts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json

from curation.read.blocks import INLINE, texts_at
from curation.read.mapping import ColumnMap, parts_of

LINE, OPENS, CLOSES = b"\n{}"
WHOLE, FLOAT = pa.int64(), pa.float64()
KINDS = {str: pa.string(), type(None): pa.string(), int: WHOLE, float: FLOAT, bool: pa.bool_()}
TEXTS = pa.list_(pa.string())


def plain_objects(block: bytes, wanted: ColumnMap) -> pl.DataFrame | None:
    """Return the objects of a block of lines as a table; None unless each line is one object with the first one's columns.

    Of a table that maps columns by name only these have to be alike, and the others are null; the others of the first line,
    that is. Numbers are texts, as they are written.

    Arrow's parser is told the columns and refuses all else: other columns and types, a key that stands twice, half of a
    surrogate pair, brackets inside. It cares nothing for line ends, so these are counted: where as many lines begin
    with `{` and end with `}` as there are lines and objects, each line is one.
    """
    data = block.replace(b"\r\n", b"\n") if b"\r" in block else block
    data = data if data.endswith(b"\n") else data + b"\n"
    signs = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(signs == LINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not ((signs[starts] == OPENS) & (signs[ends - 1] == CLOSES)).all():
        return None
    every = wanted.rest or bool(wanted.patterns)
    try:
        first = json.loads(data[: ends[0]])
        columns = first if every else {name: first.get(name) for name in wanted.tops()}
        schema = pa.schema([(name, _kind(value)) for name, value in columns.items()])
    except (ValueError, KeyError, RecursionError):
        return None
    if "" in first or not columns:
        return None
    floats = pa.schema([(field.name, FLOAT if field.type == WHOLE else field.type) for field in schema])
    table = _parsed(data, schema, every) or (_parsed(data, floats, every) if floats != schema else None)
    if table is None:
        return None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    if len(frame) != len(ends) or not frame.width:
        return None
    # a whole number is written as it reads, but for -0
    exact = [one for one in frame if one.name not in wanted.scores]
    numbers = [one for one in exact if one.dtype == pl.Float64 or (one.dtype == pl.Int64 and b"-0" in data and (one == 0).any())]
    texts = {one.name: _as_written(data, starts, ends, one.cast(pl.Float64)) for one in numbers}
    if any(one is None or (name in wanted.ids and one.str.contains("[eE]").any()) for name, one in texts.items()):
        return None
    frame = frame.with_columns(pl.col(pl.Boolean, pl.Int64).cast(pl.String)).with_columns(
        *(one for one in texts.values() if one is not None)
    )
    empty = pl.Series([None], dtype=pl.Null).new_from_index(0, len(frame))
    found = {path: empty for key, value in first.items() for path in ([key] if key in columns else parts_of(key, value))}
    return pl.DataFrame(found | {one.name: one for one in frame if one.null_count() < len(one)})


def _parsed(data: bytes, schema: pa.Schema, every: bool) -> pa.Table | None:
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error" if every else "ignore")
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(data))
    try:
        return pa.json.read_json(pa.BufferReader(data), read_options=reading, parse_options=options)
    except pa.ArrowException:
        return None


def _kind(value: Any) -> pa.DataType:
    """Return the type of a column by its first value; KeyError where it holds records, or lists of other things than texts."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return TEXTS
    return KINDS[type(value)]


def _as_written(data: bytes, starts: np.ndarray, ends: np.ndarray, numbers: pl.Series) -> pl.Series | None:
    """Return the numbers of a column as they are written; None where that is not sure.

    In valid JSON a text is a key if and only if a colon follows it.
    """
    key = json.dumps(numbers.name, ensure_ascii=False)
    pattern = pl.escape_regex(key) + r"[ \t\r]*:[ \t\r]*(-?[0-9][0-9.eE+-]*)"
    lines = texts_at(data + bytes(INLINE), starts, ends)
    texts = lines.str.extract(pattern).alias(numbers.name)
    once = data.count(b"{") == len(lines) or lines.str.count_matches(key, literal=True).max() == 1
    sure = once and b"\\" + key.encode() not in data and numbers.is_finite().all()
    return texts if sure and (texts.is_null() == numbers.is_null()).all() else None
