"""For compiled loops: numba with a cache that notices changed files, and texts as the buffers of Arrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from curation.core.store import digest_of, file_digest

ROOMS = Path(__file__).resolve().parents[1]
# numba itself recompiles a loop only when the loop's own file changes, not when a file that it imports does
MADE_OF = ("core/characters.py", "core/fold_kernels.py", "clean/*.py")
STAMP = digest_of([file_digest(path) for pattern in MADE_OF for path in sorted(ROOMS.glob(pattern))])


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function; threads run it in parallel."""
    from numba import njit

    try:
        made = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no writable folder for its cache: each process compiles for itself, which takes seconds
        return njit(nogil=True)(function)
    if cache := getattr(made, "_cache", None):  # absent if NUMBA_DISABLE_JIT is set
        cache._cache_file._source_stamp = STAMP
    return made


class Buffers(NamedTuple):
    """Texts as Arrow stores them: text i is `data[starts[i]:starts[i + 1]]`."""

    data: np.ndarray  # (bytes,) u8, UTF-8
    starts: np.ndarray  # (texts + 1,) i64


def buffers_of(texts: pl.Series) -> Buffers:
    """Return the buffers of texts (no nulls), without a copy if they are one chunk."""
    array = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, starts, data = array.buffers()
    bounds = np.frombuffer(starts, dtype=np.int64)[array.offset : array.offset + len(texts) + 1]
    return Buffers(np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, np.uint8), bounds)


def texts_of(buffers: Buffers) -> pl.Series:
    """Return the texts of buffers, without a copy."""
    data, starts = buffers
    return pl.Series(pa.LargeStringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), pa.py_buffer(data)))


def bytes_of(buffers: Buffers) -> pl.Series:
    """Return the values of buffers as Binary, without a copy."""
    data, starts = buffers
    return pl.Series(
        pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts) - 1, [None, pa.py_buffer(starts), pa.py_buffer(data)])
    )
