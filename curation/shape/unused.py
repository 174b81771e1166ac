"""Rows that make no tuple: told with their reasons, counted, and refused where they are too many."""

from __future__ import annotations

import polars as pl

from curation.core.errors import SourceError
from curation.core.record import dropped_frame
from curation.read.rows import Lost
from curation.recipe.source import Source
from curation.shape.columns import BAD, place_of

SHOWN = 80  # characters of a value in an error


def unread(source: Source, lost: list[Lost]) -> pl.DataFrame:
    """Return lost rows as a `DROPPED` table."""
    number = "row " if source.fields.id or source.fields.query_id else ""  # no number is taken for a given id
    ids = pl.Series([f"{source.name}/{number}{one.row}" for one in lost], dtype=pl.String)
    reasons = pl.Series([one.reason for one in lost], dtype=pl.String)
    return dropped_frame(source.name, "read", ids, reasons, pl.Series([one.evidence for one in lost], dtype=pl.String))


def check_readable(source: Source, rows: pl.DataFrame, lost: list[Lost]) -> None:
    """Refuse a source of which no row could be read, and say why: it has no columns to look for either.

    Raises:
        SourceError: there is no row but lost ones.
    """
    if rows.is_empty():
        check_rows(source, len(lost), lost, unread(source, []), 0)


def check_rows(source: Source, rows_in: int, lost: list[Lost], dropped: pl.DataFrame, tuples: int) -> None:
    """Refuse a source without rows, with too many bad ones, or with none that makes a tuple.

    Raises:
        SourceError: it is one of these.
    """
    if rows_in == 0:
        raise SourceError(place_of(source), "has no rows", "check 'path', 'split' or 'files'")
    broken = dropped.filter(pl.col("reason").is_in(BAD))
    bad = sum(one.bad for one in lost) + len(broken)
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counts_of(pl.concat([unread(source, lost), dropped])).items()))
    if bad > source.max_bad * rows_in:
        first = next((one.evidence for one in lost if one.bad), None) or _told(broken)
        what = f"{bad} of {rows_in} rows are bad ({reasons}), and 'max_bad' allows {source.max_bad:.1%}"
        raise SourceError(place_of(source), what, f"first: {first}")
    if tuples == 0:
        hint = "check 'fields', 'labels' and 'threshold'" + (f"; first: {_told(dropped)}" if len(dropped) else "")
        raise SourceError(place_of(source), f"none of its {rows_in} rows makes a tuple ({reasons})", hint)


def _told(dropped: pl.DataFrame) -> str:
    """Return what there is to say of the first row of a DROPPED table, with the value that was wrong."""
    id_, reason, evidence = dropped.select("id", "reason", "evidence").row(0)
    return f"{id_} {reason}" + (f" '{evidence[:SHOWN]}'" if evidence else "")


def check_left(source: Source, left: int, tuples: int, poor: pl.DataFrame) -> None:
    """Refuse a source of whose tuples none is left.

    Raises:
        SourceError: none is; the filters' reasons are in it.
    """
    if not left:
        told = ", ".join(f"{reason} {n}" for reason, n in counts_of(poor).items())
        raise SourceError(place_of(source), f"filters leave none of its {tuples} tuples ({told})", "loosen 'filters'")


def counts_of(dropped: pl.DataFrame) -> dict[str, int]:
    """Return how many of a DROPPED table have each reason."""
    return dict(dropped.group_by("reason").len().sort("reason").iter_rows())
