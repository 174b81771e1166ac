"""Many lines of JSON at once, where they are all alike: objects of texts, numbers and truth values."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json

LINE, OPENS, CLOSES = b"\n{}"
KINDS = {str: pa.string(), type(None): pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def plain_objects(block: bytes) -> pl.DataFrame | None:
    """Return the objects of a block of lines as a table; None unless each line is one object with the first one's columns.

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
    try:
        first = json.loads(data[: ends[0]])
        schema = pa.schema([(name, KINDS[type(value)]) for name, value in first.items()])
        options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    except (ValueError, KeyError, RecursionError):
        return None
    if "" in first:
        return None
    try:
        reading = pa.json.ReadOptions(use_threads=False, block_size=len(data))
        table = pa.json.read_json(pa.BufferReader(data), read_options=reading, parse_options=options)
    except pa.ArrowException:
        return None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    if len(frame) != len(ends) or not frame.width:
        return None
    return frame.with_columns(pl.lit(None).alias(one.name) for one in frame if one.null_count() == len(frame))
