"""What a block of rows gets, and what a row looks like afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from curation.core import tables
from curation.core.record import CLASS, GIVEN, MINED, MINED_PAIRS, RANDOM, dropped_frame
from mining.classes import of_other_classes
from mining.lists import Ragged, distinct, ragged
from mining.negatives import Chosen

MOST_RANK = np.iinfo(np.uint16).max
TOO_FEW = "too_few_negatives"
BINS = 40  # of a histogram of scores


@dataclass(frozen=True)
class Found:
    """What a block of q rows gets: given negatives first, then `more`."""

    given: Ragged
    given_scores: np.ndarray  # (len(given.ids),) float64; nan where not scored
    more: Chosen
    origin: int  # of `more`
    positive_scores: np.ndarray  # (q,) float64, of positives[0]; nan where not scored
    seen: np.ndarray  # (q,) candidates looked at
    filled: dict[str, int] = field(default_factory=dict)  # shortage policy -> negatives it added


Fill = Callable[[pl.DataFrame, int, np.ndarray], Found]  # rows of pairs, number of the block, their numbers in the source


@dataclass
class Tally:
    """Counts over a source, as its receipt says them."""

    rows_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    filters: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=lambda: {"positives": [0] * BINS, "negatives": [0] * BINS})


def histogram(scores: np.ndarray) -> list[int]:
    """Count scores in `BINS` equal bins from 0 to 1; lower and higher ones are in the first and the last, nan in none."""
    return [int(count) for count in np.histogram(np.clip(scores[~np.isnan(scores)], 0, 1), BINS, (0, 1))[0]]


def by_class(classes: np.ndarray, own: np.ndarray, rows: np.ndarray, wanted: int, seed: int, source: str) -> Found:
    """Draw passages of other classes for the rows numbered `rows` (q,) of their source, whose classes are `own` (q,)."""
    ids = of_other_classes(classes, own, rows, wanted, seed, source)
    shape = ids.shape
    drawn = Chosen(ids, np.full(shape, np.nan, np.float64), np.full(shape, -1, np.int64), (ids >= 0).sum(axis=1), {})
    return _unscored(Ragged(np.zeros(len(rows) + 1, np.int64), np.empty(0, np.int64)), drawn)


def given_only(frame: pl.DataFrame, number: int, rows: np.ndarray, most: int) -> Found:
    """Return the first `most` negatives that a block of rows was built with, and the scores, if it was built with them.

    F2LLM's rule for classification: the other label.
    """
    given = ragged(frame["negatives"])  # distinct, and none a positive, by `curation.build.build.numbering`
    empty = (len(frame), 0)
    none = Chosen(
        np.empty(empty, np.int64), np.empty(empty, np.float64), np.empty(empty, np.int64), np.zeros(len(frame), np.int64), {}
    )
    found = _unscored(given.head(most), none)
    if "negative_scores" not in frame.columns:
        return found
    scores = frame["negative_scores"].explode(empty_as_null=False).cast(pl.Float64).to_numpy()
    return replace(
        found, given_scores=scores[given.heads(most)], positive_scores=frame["positive_score"].cast(pl.Float64).to_numpy()
    )


def padded(chosen: Chosen, drawn: np.ndarray, bad: np.ndarray, lacking: np.ndarray) -> int:
    """Fill rows, in place, with drawn passages (q, n) that are not `bad`, up to what each lacks (q,); return how many."""
    free = Ragged(np.concatenate([[0], (~bad).sum(axis=1).cumsum()]), drawn[~bad])
    taken = Ragged(np.concatenate([[0], chosen.found.cumsum()]), chosen.ids[chosen.ids >= 0])
    fresh = distinct(free, taken, len(drawn[0]) if len(drawn) else 0).head(lacking)
    row = fresh.row_of_each()
    chosen.ids[row, chosen.found[row] + np.arange(len(row)) - fresh.starts[row]] = fresh.ids
    chosen.found[:] += np.diff(fresh.starts)
    return len(row)


def rescored(found: Found, first: Ragged, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Found:
    """Return the same rows with other scores: `score` takes rows and pids; `first` is the first positive of each row."""
    more = found.more
    rows, columns = np.nonzero(np.arange(more.ids.shape[1]) < more.found[:, None])
    each = [(first.row_of_each(), first.ids), (found.given.row_of_each(), found.given.ids), (rows, more.ids[rows, columns])]
    scores = score(np.concatenate([row for row, _ in each]), np.concatenate([pids for _, pids in each]))
    positive, given, rest = np.split(scores.astype(np.float64), np.cumsum([len(pids) for _, pids in each])[:-1])
    own = np.full(more.scores.shape, np.nan)
    own[rows, columns] = rest
    return replace(found, positive_scores=positive, given_scores=given, more=replace(more, scores=own))


def finished(
    source: str, frame: pl.DataFrame, found: Found, wanted: int, shortage: str, tally: Tally
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows as `schema.MINED_PAIRS`, and those too short as `schema.DROPPED`; count both in `tally`.

    `negative_ranks` is the place among all that the search returned, known positives counted: 0 is the nearest passage.
    """
    have = np.diff(found.given.starts) + found.more.found
    short = have < wanted if shortage == "drop" else np.zeros(len(frame), bool)
    lists = _lists(found)
    positive = found.positive_scores.astype(np.float32)
    columns = {name: tables.lists(values, have, absent) for name, (values, absent) in lists.items()}
    columns["positive_score"] = pl.Series(positive, nan_to_null=True)
    rows = frame.with_columns(**columns).select(pl.col(name).cast(kind) for name, kind in MINED_PAIRS.items())
    rows = rows.filter(~short) if short.any() else rows
    scores = lists["negative_scores"][0][np.repeat(~short, have)]
    for kind, some in (("positives", positive[~short]), ("negatives", scores)):
        tally.histograms[kind] = [before + more for before, more in zip(tally.histograms[kind], histogram(some), strict=True)]
    lost = np.flatnonzero(short)
    evidence = pl.Series([_evidence(row, have, wanted, found) for row in lost.tolist()], dtype=pl.String)
    tally.rows_in += len(frame)
    tally.kept += len(rows)
    tally.candidates += int(found.seen.sum())
    if len(lost):
        tally.dropped[TOO_FEW] = tally.dropped.get(TOO_FEW, 0) + len(lost)
    for name, counts in found.more.removed.items():
        tally.filters[name] = tally.filters.get(name, 0) + int(counts.sum())
    for name, count in found.filled.items():
        tally.filled[name] = tally.filled.get(name, 0) + count
    return rows, dropped_frame(source, "mine", frame["id"].gather(lost), TOO_FEW, evidence)


def _unscored(given: Ragged, more: Chosen) -> Found:
    nothing = np.full(len(more.found), np.nan, np.float64)
    return Found(given, np.full(len(given.ids), np.nan, np.float64), more, CLASS, nothing, np.zeros(len(nothing), np.int64))


def _lists(found: Found) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the four columns of negatives, given ones first: values row by row, and which of them are null."""
    more = np.arange(found.more.ids.shape[1]) < found.more.found[:, None]
    given_rows = found.given.row_of_each()
    order = np.argsort(np.concatenate([given_rows, np.nonzero(more)[0]]), kind="stable")
    ids = np.concatenate([found.given.ids, found.more.ids[more]])[order]
    scores = np.concatenate([found.given_scores, found.more.scores[more]])[order].astype(np.float32)
    ranks = np.concatenate([np.full(len(given_rows), -1), found.more.ranks[more]])[order]
    origin = np.where((ranks < 0) & (found.origin == MINED), RANDOM, found.origin)
    origin[order < len(given_rows)] = GIVEN
    known = np.zeros(len(ids), bool)
    return {
        "negatives": (ids.astype(np.uint32), known),
        "negative_scores": (scores, np.isnan(scores)),
        "negative_ranks": (np.clip(ranks, 0, MOST_RANK).astype(np.uint16), ranks < 0),
        "negative_origin": (origin.astype(np.uint8), known),
    }


def _evidence(row: int, have: np.ndarray, wanted: int, found: Found) -> str:
    taken = ", ".join(f"{name} took {counts[row]}" for name, counts in found.more.removed.items() if counts[row])
    text = f"{have[row]} of {wanted} negatives"
    return text + (f" among {found.seen[row]} candidates: {taken}" if taken else "")
