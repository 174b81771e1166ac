"""Texts as Arrow holds them, one run of bytes, for the compiled loops."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa


class Buffers(NamedTuple):
    """Texts as Arrow holds them: text i is `data[starts[i]:starts[i + 1]]`."""

    data: np.ndarray  # (bytes,) u8, UTF-8
    starts: np.ndarray  # (texts + 1,) i64


def buffers_of(texts: pl.Series) -> Buffers:
    """Return texts (no nulls) as one run of bytes."""
    array = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, starts, data = array.buffers()
    bounds = np.frombuffer(starts, dtype=np.int64)[array.offset : array.offset + len(texts) + 1]
    return Buffers(np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, np.uint8), bounds)


def texts_of(buffers: Buffers) -> pl.Series:
    """Return texts that stand in buffers, without a copy."""
    data, starts = buffers
    return pl.Series(pa.LargeStringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), pa.py_buffer(data)))
