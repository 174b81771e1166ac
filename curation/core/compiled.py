"""Compiled loops that numba keeps on disk for as long as every file they are made of stays the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

from curation.core.store import digest_of, file_digest

ROOMS = Path(__file__).resolve().parent
# of numba's own accord only a change of the file in which a loop stands makes it anew, not one of what that file imports
MADE_OF = (
    "*kernels.py",
    "*/*kernels.py",
    "characters.py",
    "folding.py",
    "duplicates/shingles.py",
    "leaks/grams.py",
)
STAMP = digest_of([file_digest(path) for pattern in MADE_OF for path in sorted(ROOMS.glob(pattern))])


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function; threads run it side by side.

    Raises:
        RuntimeError: there is no folder in which it could be kept.
    """
    made = njit(nogil=True, cache=True)(function)
    if cache := getattr(made, "_cache", None):  # none where NUMBA_DISABLE_JIT is set
        cache._cache_file._source_stamp = STAMP
    return made
