"""Many lines of JSON at once, where they are all alike: objects of texts, numbers and truth values."""

from __future__ import annotations

import json

import polars as pl
import pyarrow as pa
import pyarrow.json

KINDS = {str: pa.string(), type(None): pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def plain_objects(lines: list[str]) -> pl.DataFrame | None:
    """Return the objects of lines as a table; None unless each line is blank or one object with the first one's columns.

    Arrow's parser is told the columns and refuses all else: other columns and types, a key that stands twice, half of a
    surrogate pair, brackets inside. It cares nothing for line ends, so these are counted: where as many lines begin
    with `{` and end with `}` as there are lines and objects, each line is one.
    """
    try:
        first = json.loads(next(line for line in lines if not line.isspace()))
        schema = pa.schema([(name, KINDS[type(value)]) for name, value in first.items()])
        options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    except (StopIteration, ValueError, AttributeError, KeyError, RecursionError):
        return None
    whole = "".join(lines).replace("\r\n", "\n").removesuffix("\n") + "\n"
    count = len(lines) - sum(map(str.isspace, lines))
    if "" in first or not count == whole.count("\n{") + whole.startswith("{") == whole.count("}\n"):
        return None
    data = whole.encode()
    try:
        reading = pa.json.ReadOptions(use_threads=False, block_size=len(data))
        table = pa.json.read_json(pa.BufferReader(data), read_options=reading, parse_options=options)
    except pa.ArrowException:
        return None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    if len(frame) != count or not frame.width:
        return None
    return frame.with_columns(pl.lit(None).alias(one.name) for one in frame if one.null_count() == count)
