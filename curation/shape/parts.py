"""Large sources, shaped part by part. In memory are a hash per query, and a line per row that makes no tuple."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from curation.core.errors import SourceError
from curation.core.record import composed, no_drops
from curation.core.tables import read_frames, table_files, write_frames
from curation.read.mapping import add_missing_columns, column_map
from curation.read.rows import Lost, compact
from curation.recipe.source import Filters, Source, shape_of
from curation.shape import filters
from curation.shape.columns import GRADES, TUPLES, check_left, check_rows, row_ids, unread_rows
from curation.shape.merge import LISTS, merge_queries
from curation.shape.shapes import to_tuples

PORTION = 1 << 26  # bytes of rows shaped at a time; a source with fewer is shaped whole
Part = tuple[pl.DataFrame, list[Lost]]


class Shaped(NamedTuple):
    """What became of a source's rows, without the tuples, which are in files."""

    rows_in: int
    tuples: int  # before filters and merging
    unused: pl.DataFrame  # DROPPED, rows that are in no tuple
    poor: pl.DataFrame  # DROPPED, by filters
    merged: pl.DataFrame  # DROPPED
    held: pl.DataFrame  # TUPLES, held out
    corpus: pl.Series
    instruction: str
    texts_out: dict[str, int]
    table_rows: dict[str, int]  # of qrels: rows of the corpus and of the queries


class _NeedsAllRows(Exception):
    """The source cannot be shaped part by part."""


def rows_are_independent(source: Source) -> bool:
    """Return whether each row makes its tuple by itself, whatever the other rows hold."""
    f = source.fields
    together = source.limit or source.holdout or f.answer or f.positive_score or f.negative_scores
    return shape_of(source) in ("pairs", "scored", "listed") and not together


def shape_parts(source: Source, wanted: Filters, seed: int, parts: Iterator[Part], folder: Path) -> Shaped | None:
    """Shape a source part by part, and write its tuples; the result equals that of shaping it whole.

    None, with nothing written, if parts differ in columns or instructions, or on an error: with all rows at once it is
    reported better.
    """
    total = _Totals()
    try:
        frames = (_shape_part(source, wanted, seed, part, total) for part in _aligned(source, parts))
        left = write_frames(folder, "tuples", frames, compression="lz4")
        dropped, poor = pl.concat(total.dropped), pl.concat(total.poor)
        check_rows(source, total.rows, total.lost, dropped, total.tuples)
        check_left(source, left, total.tuples, poor)
        if len(total.instructions) > 1 or (total.ids and pl.concat(total.ids).is_duplicated().any()):
            raise _NeedsAllRows
        grades = pl.concat(total.grades) if total.grades else None
        merged = _merge(folder, pl.concat(total.queries).is_duplicated(), grades, source.name, wanted.no_echo)
    except (SourceError, _NeedsAllRows):
        for path in folder.iterdir():
            path.unlink()
        return None
    return Shaped(
        total.rows,
        total.tuples,
        pl.concat([unread_rows(source, total.lost), dropped]),
        poor,
        merged,
        pl.DataFrame(schema=TUPLES),
        pl.Series("text", [], dtype=pl.String),
        next(iter(total.instructions), ""),
        dict(sorted(total.texts_out.items())),
        {},
    )


def in_turn(held: list[Part], parts: Iterator[Part]) -> Iterator[Part]:
    """Yield the parts in `held`, releasing each, and then the remaining parts."""
    while held:
        yield held.pop(0)
    yield from parts


class _Totals:
    """What adds up over the parts."""

    def __init__(self) -> None:
        self.rows = self.tuples = 0
        self.lost: list[Lost] = []
        self.dropped, self.poor = [no_drops()], [no_drops()]
        self.queries: list[pl.Series] = []  # hashes, equal for equal queries within this process
        self.ids: list[pl.Series] = []
        self.grades: list[pl.Series] = []  # one list per tuple, if positives have grades
        self.instructions: set[str] = set()
        self.texts_out: Counter[str] = Counter()


def _aligned(source: Source, parts: Iterator[Part]) -> Iterator[Part]:
    """Yield parts with all mapped columns, null if a part lacks one; all parts must match patterns by the same columns.

    A column that all parts lack is best reported with all rows at once.
    """
    wanted, found, there = column_map(source), None, set[str]()
    for rows, lost in parts:
        matching = [name for name in rows.columns if wanted.patterns and wanted.has(name)]
        found = matching if found is None else found
        if matching != found:
            raise _NeedsAllRows
        there.update(rows.columns)
        yield add_missing_columns(rows, wanted.names), lost
    if not there.issuperset(wanted.names):
        raise _NeedsAllRows


def _shape_part(source: Source, wanted: Filters, seed: int, part: Part, total: _Totals) -> pl.DataFrame:
    """Return the filtered tuples of a part, and add what else it has to the totals."""
    rows, lost = part
    made = to_tuples(source, rows, seed)
    if made.scores is not None:
        raise _NeedsAllRows
    total.rows += len(rows) + len(lost)
    total.tuples += len(made.tuples)
    total.lost += lost
    total.dropped.append(compact(made.dropped))
    total.instructions.add(made.instruction)
    if source.fields.id is not None:
        total.ids.append(row_ids(source, rows).hash())
    left, poor, out = filters.apply(made.tuples, wanted, source.name, source.task)
    total.poor.append(compact(poor))
    total.texts_out.update(out)
    total.texts_out.update(made.texts_out or {})
    total.queries.append(composed(left["query"]).hash())
    if GRADES in left.columns:
        total.grades.append(left[GRADES].rechunk())
    return left.drop(GRADES, strict=False)


def _merge(folder: Path, again: pl.Series, grades: pl.Series | None, source: str, no_echo: bool) -> pl.DataFrame:
    """Merge tuples with equal queries, all of them marked `again`, in the files; return the merged ones as a `DROPPED` table."""
    company, start = [pl.DataFrame(schema=TUPLES)], 0
    for frame in read_frames(folder, "tuples") if again.any() else ():
        places = pl.int_range(start, start + len(frame), dtype=pl.UInt64, eager=True)
        company.append(compact(frame.with_columns(row=places).filter(again[start : start + len(frame)])))
        start += len(frame)
    together = pl.concat(company)
    if grades is not None and len(together):
        together = together.with_columns(grades.filter(again).alias(GRADES))
    left, merged = merge_queries(together, source, no_echo)
    if len(merged):
        write_frames(folder, "merged", _with_merged(folder, again, left), compression="lz4")
        for path in table_files(folder, "tuples"):
            path.unlink()
        for path in table_files(folder, "merged"):
            path.rename(path.with_name(path.name.replace("merged", "tuples")))
    return compact(merged)


def _with_merged(folder: Path, again: pl.Series, left: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the tuples not marked `again`, and in their places those `left` of the others, whose `row` is their place."""
    start = 0
    for frame in read_frames(folder, "tuples"):
        frame = frame.with_columns(at=pl.int_range(start, start + len(frame), dtype=pl.UInt64, eager=True))
        alone = frame.filter(~again[start : start + len(frame)])
        alone = alone.with_columns(pl.col(LISTS).list.unique(maintain_order=True))
        here = left.filter(pl.col("row").is_between(start, start + len(frame), closed="left")).with_columns(at="row")
        here = here.with_columns(frame["row"].gather(here["at"] - start))
        yield pl.concat([alone, here.select(alone.columns)]).sort("at").drop("at")
        start += len(frame)
