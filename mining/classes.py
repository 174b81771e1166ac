"""Negatives of labelled texts: draws from other classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from curation.core import tables
from curation.core.record import draws

MOST_NEGATIVES = 1_024  # a row has this many draws of its own; the manifest allows 1,000 negatives


def of_other_classes(classes: np.ndarray, own: np.ndarray, rows: np.ndarray, wanted: int, seed: int, source: str) -> np.ndarray:
    """Draw for each row `wanted` distinct passages of other classes, uniformly: F2LLM's rule for clustering.

    Args:
        classes: (n,) class of each passage, -1 where it is unknown; such a passage is never drawn.
        own: (q,) class of each row, -1 where it has none; such a row draws nothing.
        rows: (q,) number of each row in its source.
        wanted: negatives a row, at most `MOST_NEGATIVES`.
        seed: the manifest's.
        source: the source's name.

    Returns:
        (q, wanted) int64 passages; -1 at the end of rows whose source has too few.

    Method: R. W. Floyd's sampling without replacement (Bentley, CACM 30(9), 1987), all rows at once; draw j of row r is
    a function of (seed, source, r, j).
    """
    order = np.argsort(classes, kind="stable")  # passages class by class, the unknown first
    order = order[np.searchsorted(classes[order], 0) :]
    first, after = (np.searchsorted(classes[order], own, side) for side in ("left", "right"))
    pool = np.where(own >= 0, len(order) - (after - first), 0)  # (q,) passages of other classes
    drawn = np.full((len(own), wanted), -1, np.int64)
    for step in range(wanted):
        top = pool - np.minimum(pool, wanted) + step  # Floyd's j: the draw is from 0..j
        numbers = draws(seed, f"{source}/negatives", rows * MOST_NEGATIVES + step)
        draw = (numbers % (np.maximum(top, 0) + 1).astype(np.uint64)).astype(np.int64)
        draw = np.where((drawn == draw[:, None]).any(axis=1), top, draw)
        drawn[:, step] = np.where(top < pool, draw, -1)
    drawn += np.where(drawn >= first[:, None], (after - first)[:, None], 0)  # step over the own class
    return np.where(drawn >= 0, order[drawn], -1) if len(order) else drawn


def classes_of(curated: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each passage (by pid) and of each row of a labelled source; -1 where it is unknown."""
    pairs = tables.read_table(curated, "pairs", ["key", "label"])
    labels = pairs["label"].drop_nulls().unique().sort()
    numbers = pl.DataFrame({"label": labels, "class": np.arange(len(labels))})
    of_key = pairs.unique("key", keep="first").join(numbers, on="label").select("key", "class")
    passages = tables.read_table(curated, "passages", ["pid", "key"])
    classes = passages.join(of_key, on="key", how="left", maintain_order="left")["class"].fill_null(-1)
    own = pairs.join(numbers, on="label", how="left", maintain_order="left")["class"].fill_null(-1)
    return classes.to_numpy(), own.to_numpy()
