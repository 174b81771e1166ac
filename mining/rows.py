"""From a block of pairs to the same rows with negatives: the three ways, and what a row looks like afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from curation.schema import CLASS, GIVEN, MINED, MINED_PAIRS, dropped_frame
from mining.negatives import Chosen, Ragged, Rules, choose, distinct, of_other_classes
from mining.search import Vectors, nearest, scores_of

MOST_RANK = np.iinfo(np.uint16).max
TOO_FEW = "too_few_negatives"


@dataclass(frozen=True)
class Found:
    """What a block of q rows gets: given negatives first, then `more`."""

    given: Ragged
    given_scores: np.ndarray  # (len(given.ids),) float64; nan where not scored
    more: Chosen
    origin: int  # of `more`
    positive_scores: np.ndarray  # (q,) float64, of positives[0]; nan where not scored
    seen: np.ndarray  # (q,) candidates looked at


@dataclass
class Tally:
    """Counts over a source, as its receipt says them."""

    rows_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    filters: dict[str, int] = field(default_factory=dict)


def ragged(lists: pl.Series) -> Ragged:
    """Return a list column as arrays."""
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    return Ragged(np.concatenate([[0], lengths.cumsum()]), lists.explode().drop_nulls().to_numpy().astype(np.int64))


def by_search(
    frame: pl.DataFrame, queries: np.ndarray, passages: Vectors, corpus: np.ndarray, wanted: int, widest: int, rules: Rules
) -> Found:
    """Search the corpus for a block of rows and choose.

    sentence-transformers looks at range_max + the most positives of any query, for every query. Here a query is looked
    at with range_max + 1 candidates, and again with as many as there only if those were too few: the same rows.

    Args:
        frame: (q rows) of `schema.PAIRS`.
        queries: (q, dim) float32, their vectors.
        passages: vectors by pid.
        corpus: (n,) int64 pids to search, ascending.
        wanted: negatives a row.
        widest: candidates a query at most.
        rules: the filters.
    """
    positives = ragged(frame["positives"])
    given = distinct(ragged(frame["negatives"]), positives, wanted)
    lacking = wanted - np.diff(given.starts)
    positive_scores = _scores(queries, passages, positives)
    searched = _Part(passages, corpus)

    def look(rows: np.ndarray, k: int) -> Chosen:
        ids, scores = nearest(queries[rows], searched, k)
        own, extra = rows_of(positives, rows), rows_of(given, rows)
        scored = Ragged(positives.starts, positive_scores)
        return choose(corpus[ids], scores, own, rows_of(scored, rows).ids, extra, lacking[rows], rules)

    rows = np.arange(len(frame))
    more = look(rows, rules.range_max + 1)
    seen = np.full(len(frame), min(rules.range_max + 1, len(corpus)))
    short = np.flatnonzero(more.found < lacking)
    if len(short) and min(widest, len(corpus)) > seen[0]:
        more = _replaced(more, short, look(short, widest))
        seen[short] = min(widest, len(corpus))
    return Found(given, _scores(queries, passages, given), more, MINED, positive_scores[positives.starts[:-1]], seen)


def by_class(frame: pl.DataFrame, classes: np.ndarray, own: np.ndarray, first: int, wanted: int, seed: int, source: str) -> Found:
    """Draw passages of other classes for a block of rows whose first is row number `first` of its source."""
    rows = np.arange(first, first + len(frame))
    ids = of_other_classes(classes, own, rows, wanted, seed, source)
    shape = ids.shape
    drawn = Chosen(ids, np.full(shape, np.nan, np.float64), np.full(shape, -1, np.int64), (ids >= 0).sum(axis=1), {})
    return _unscored(Ragged(np.zeros(len(frame) + 1, np.int64), np.empty(0, np.int64)), drawn)


def given_only(frame: pl.DataFrame, first: int) -> Found:
    """Return the negatives that a block of rows was built with; F2LLM's rule for classification, the other label."""
    given = distinct(ragged(frame["negatives"]), ragged(frame["positives"]), 1)
    empty = (len(frame), 0)
    none = Chosen(
        np.empty(empty, np.int64), np.empty(empty, np.float64), np.empty(empty, np.int64), np.zeros(len(frame), np.int64), {}
    )
    return _unscored(given, none)


def finished(
    source: str, frame: pl.DataFrame, found: Found, wanted: int, shortage: str, tally: Tally
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows as `schema.MINED_PAIRS`, and those too short as `schema.DROPPED`; count both in `tally`.

    `negative_ranks` is the place among all that the search returned, known positives counted: 0 is the nearest passage.
    """
    have = np.diff(found.given.starts) + found.more.found
    short = have < wanted if shortage == "drop" else np.zeros(len(frame), bool)
    rows = frame.drop("negatives").with_columns(_lists(found, len(frame)))
    rows = rows.with_columns(pl.Series("positive_score", found.positive_scores).fill_nan(None))
    schema: Any = MINED_PAIRS
    rows = rows.filter(~short).select(schema.keys()).cast(schema)
    lost = np.flatnonzero(short)
    evidence = pl.Series([_evidence(row, have, wanted, found) for row in lost.tolist()], dtype=pl.String)
    tally.rows_in += len(frame)
    tally.kept += len(rows)
    tally.candidates += int(found.seen.sum())
    if len(lost):
        tally.dropped[TOO_FEW] = tally.dropped.get(TOO_FEW, 0) + len(lost)
    for name, counts in found.more.removed.items():
        tally.filters[name] = tally.filters.get(name, 0) + int(counts.sum())
    return rows, dropped_frame(source, "mine", frame["id"].gather(lost), TOO_FEW, evidence)


def rows_of(lists: Ragged, rows: np.ndarray) -> Ragged:
    """Return the lists of some rows, in ascending order of row."""
    keep = np.isin(lists.row_of_each(), rows)
    return Ragged(np.concatenate([[0], np.diff(lists.starts)[rows].cumsum()]), lists.ids[keep])


class _Part:
    """The vectors of some passages, as an array-like of their own."""

    def __init__(self, passages: Vectors, pids: np.ndarray) -> None:
        self.passages, self.pids = passages, pids

    def __len__(self) -> int:
        return len(self.pids)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.passages[self.pids[rows]]


def _scores(queries: np.ndarray, passages: Vectors, lists: Ragged) -> np.ndarray:
    """Return the score (len(lists.ids),) of each id with its row's query."""
    return scores_of(queries[lists.row_of_each()], passages, lists.ids[:, None])[:, 0]


def _replaced(all_rows: Chosen, rows: np.ndarray, some: Chosen) -> Chosen:
    """Return `all_rows` with the rows `rows` taken from `some`."""
    width = some.ids.shape[1]
    for old, new in ((all_rows.ids, some.ids), (all_rows.scores, some.scores), (all_rows.ranks, some.ranks)):
        old[rows, :width] = new
    all_rows.found[rows] = some.found
    for name, counts in some.removed.items():
        all_rows.removed[name][rows] = counts
    return all_rows


def _unscored(given: Ragged, more: Chosen) -> Found:
    nothing = np.full(len(more.found), np.nan, np.float64)
    return Found(given, np.full(len(given.ids), np.nan, np.float64), more, CLASS, nothing, np.zeros(len(nothing), np.int64))


def _lists(found: Found, count: int) -> list[pl.Series]:
    """Return the four columns of negatives, given ones first."""
    rows, columns = np.nonzero(np.arange(found.more.ids.shape[1]) < found.more.found[:, None])
    given_rows = found.given.row_of_each()
    order = np.argsort(np.concatenate([given_rows, rows]), kind="stable")
    unranked = np.full(len(given_rows), -1)
    ranks = np.minimum(found.more.ranks[rows, columns], MOST_RANK)
    flat: Mapping[str, np.ndarray] = {
        "row": np.concatenate([given_rows, rows]),
        "negatives": np.concatenate([found.given.ids, found.more.ids[rows, columns]]),
        "negative_scores": np.concatenate([found.given_scores, found.more.scores[rows, columns]]),
        "negative_ranks": np.concatenate([unranked, ranks]),
        "negative_origin": np.concatenate([np.full(len(given_rows), GIVEN), np.full(len(rows), found.origin)]),
    }
    entries = pl.DataFrame({name: values[order] for name, values in flat.items()}).with_columns(
        pl.col("negative_scores").fill_nan(None), pl.when(pl.col("negative_ranks") >= 0).then("negative_ranks")
    )
    lists = entries.group_by("row", maintain_order=True).agg(pl.exclude("row"))
    every = pl.DataFrame({"row": np.arange(count)}).join(lists, on="row", how="left", maintain_order="left").drop("row")
    return [column.fill_null(pl.Series([[]], dtype=column.dtype)) for column in every]


def _evidence(row: int, have: np.ndarray, wanted: int, found: Found) -> str:
    taken = ", ".join(f"{name} took {counts[row]}" for name, counts in found.more.removed.items() if counts[row])
    text = f"{have[row]} of {wanted} negatives"
    return text + (f" among {found.seen[row]} candidates: {taken}" if taken else "")
