"""Lists of ids, one per row, as two arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Ragged:
    """One list of ids per row: row i has `ids[starts[i]:starts[i + 1]]`."""

    starts: np.ndarray  # (rows + 1,) int64
    ids: np.ndarray  # (starts[-1],) int64

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts) - 1

    def row_of_each(self) -> np.ndarray:
        """Return the row that each id belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def rows(self, some: slice | np.ndarray) -> Ragged:
        """Return the lists of some rows: a slice, or row numbers in ascending order."""
        if isinstance(some, slice):
            starts = self.starts[some.start : some.stop + 1]
            return Ragged(starts - starts[0], self.ids[starts[0] : starts[-1]])
        keep = np.zeros(len(self), bool)
        keep[some] = True
        starts = np.concatenate([[0], np.diff(self.starts)[some].cumsum()])
        return Ragged(starts, self.ids[np.repeat(keep, np.diff(self.starts))])

    def heads(self, most: int | np.ndarray) -> np.ndarray:
        """Return (len(ids),) bool: whether an id is among the first `most` (one number, or one per row) of its row."""
        row = self.row_of_each()
        limit = most[row] if isinstance(most, np.ndarray) else most
        return np.asarray(np.arange(len(row)) - self.starts[row] < limit)

    def head(self, most: int | np.ndarray) -> Ragged:
        """Return the first `most` (one number, or one per row) ids of each row."""
        return Ragged(np.concatenate([[0], np.minimum(np.diff(self.starts), most).cumsum()]), self.ids[self.heads(most)])


def ragged(lists: pl.Series) -> Ragged:
    """Return a list column as arrays."""
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    return Ragged(np.concatenate([[0], lengths.cumsum()]), lists.explode().drop_nulls().to_numpy().astype(np.int64))


def contains(lists: Ragged, candidates: np.ndarray) -> np.ndarray:
    """Return (q, k) bool: whether a candidate is in its row's list; -1 marks an empty place and is in no list."""
    width = int(max(candidates.max(initial=0), lists.ids.max(initial=0))) + 2  # ids from -1 on
    if len(lists.ids) == len(lists) and (np.diff(lists.starts) == 1).all():
        return np.asarray(candidates == lists.ids[:, None])
    rows = np.arange(len(candidates))[:, None]
    return np.isin(rows * width + candidates + 1, lists.row_of_each() * width + lists.ids + 1)


def distinct(lists: Ragged, excluded: Ragged, most: int, same: np.ndarray | None = None) -> Ragged:
    """Return the first `most` distinct ids of each row's list that are not in its `excluded` list, in their order.

    Ids with one number in `same`, by id, count as one.
    """
    rows = lists.row_of_each()
    numbers, taken = (lists.ids, excluded.ids) if same is None else (same[lists.ids], same[excluded.ids])
    width = int(max(numbers.max(initial=0), taken.max(initial=0))) + 1
    codes = rows * width + numbers
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    first &= ~np.isin(codes, excluded.row_of_each() * width + taken)
    before = np.concatenate([[0], first.cumsum()])
    first &= before[:-1] - before[lists.starts[rows]] < most
    counts = np.bincount(rows[first], minlength=len(lists))
    return Ragged(np.concatenate([[0], counts.cumsum()]), lists.ids[first])
