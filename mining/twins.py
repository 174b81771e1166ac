"""Which passages count as the same text as a row's query, or as its positives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from curation.core import tables
from mining.lists import Ragged, contains, ragged


@dataclass(frozen=True)
class Twins:
    """A source's groups and keys, as arrays."""

    groups: np.ndarray  # (passages,) int64 by pid: the number of the group; -1 where a text has no twin
    query_groups: np.ndarray  # (rows,) int64, in the same numbers
    own: np.ndarray  # (rows,) int64: the passage that is the query itself; -1 where there is none
    barred: Ragged  # a row: `_codes` of its positives, and of the positives of queries of its group

    def same_query(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return (q, k) bool: whether a candidate counts as the same text as the query of its row."""
        groups = self.query_groups[rows, None]
        return np.asarray((ids == self.own[rows, None]) | ((groups >= 0) & (self.groups[ids] == groups)))

    def same_group(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return (q, k) bool: whether a candidate counts as the same text as a positive of its row or of a twin of its query."""
        return contains(self.barred.rows(rows), _codes(self.groups, ids))


def twins_of(curated: Path, hide: bool = False) -> Twins:
    """Read the groups and keys of a source, and the lists of its pairs; with `hide` of each only the first positive."""
    passages = tables.read_table(curated, "passages", ["pid", "key", "group"])
    pairs = tables.read_table(curated, "pairs", ["key", "group", "positives"]).with_row_index("row")
    if hide:
        pairs = pairs.with_columns(pl.col("positives").list.head(1))
    groups = _numbers(passages["group"])
    own = pairs.select("key").join(passages.select("key", "pid"), on="key", how="left", maintain_order="left")["pid"]
    kin = pairs.drop_nulls("group").select("group", "row")
    others = kin.join(pairs.drop_nulls("group").select("group", "positives"), on="group").select("row", "positives")
    lists = pl.concat([pairs.select("row", "positives"), others]).explode("positives", empty_as_null=False, keep_nulls=False)
    lists = lists.unique().sort("row", "positives")
    grouped = pairs.select("row").join(
        lists.group_by("row", maintain_order=True).agg("positives"), on="row", how="left", maintain_order="left"
    )
    positives = ragged(grouped["positives"])
    return Twins(groups, _numbers(pairs["group"]), _numbers(own), Ragged(positives.starts, _codes(groups, positives.ids)))


def _codes(groups: np.ndarray, pids: np.ndarray) -> np.ndarray:
    """Return a number that is equal for passages of one group: the group's, or one of the passage's own."""
    return np.where(groups[pids] >= 0, groups[pids], int(groups.max(initial=-1)) + 1 + pids)


def _numbers(column: pl.Series) -> np.ndarray:
    return column.cast(pl.Int64).fill_null(-1).to_numpy()
