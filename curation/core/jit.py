"""What compiled loops need: numba with a cache that notices changes, and texts as the one run of bytes that Arrow holds."""

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
    except RuntimeError:  # no folder is writable for numba's cache: each process compiles for itself, which takes seconds
        return njit(nogil=True)(function)
    if cache := getattr(made, "_cache", None):  # none where NUMBA_DISABLE_JIT is set
        cache._cache_file._source_stamp = STAMP
    return made


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
