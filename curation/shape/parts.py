"""The rows of a source, shaped part by part: texts to files, and tuples that hold the numbers of texts.

    part by part   rows -> tuples of texts -> filtered -> each text written once per part, tuples with numbers
    all parts      equal texts get one number -> equal queries are merged -> queries are held out

Where rows depend on each other (NLI, labelled texts), the texts of a part's rows are written to a file first:

    part by part   rows -> rows that hold numbers, and texts
    all rows       tuples with numbers, which go on in portions: filtered as above
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.core.errors import SourceError
from curation.core.record import no_drops
from curation.core.tables import read_frames, table_files, write_frames, write_parquet
from curation.core.texts import Facts, TextWriter, open_texts
from curation.engine.local import Here
from curation.read.mapping import add_missing_columns, column_map
from curation.read.rows import Lost, Rows, compact
from curation.recipe.job import Job
from curation.recipe.source import Filters, Source, shape_of
from curation.shape import filters
from curation.shape.chunks import OWN_DOCUMENTS
from curation.shape.columns import Tuples, check_rows, place_of, reason_counts, unpacked, unread_rows
from curation.shape.holdout import held_out
from curation.shape.merge import Merged
from curation.shape.numbered import LISTS, NUMBERED, flat, numbered, renumbered, spelled, with_own_texts
from curation.shape.scores import ANSWERS, united_lists, united_scores
from curation.shape.shapes import TOGETHER

PORTION = 1 << 24  # bytes of rows shaped at a time
ROWS_TABLE = "rows"  # the table of tuples before equal queries are merged


class Filtered(NamedTuple):
    """A part of a source: its tuples after filters, and what became of the others."""

    rows: int  # including those that could not be read; 0 for a part of a corpus
    tuples: int  # before filters
    lost: list[Lost]
    dropped: pl.DataFrame  # DROPPED, rows that are in no tuple
    poor: pl.DataFrame  # DROPPED, by filters
    ids: pl.Series | None  # a hash of each row's id, where ids are given
    instruction: str
    texts_out: Counter[str]
    left: pl.DataFrame  # NUMBERED; the numbers are places in `texts`
    corpus: np.ndarray  # (n,) places in `texts`
    texts: pl.Series  # those that are still used, each once
    facts: Facts
    scores: list[pl.DataFrame] | None  # as in Tuples
    answers: pl.DataFrame | None
    documents: pl.DataFrame | None


class Shaped(NamedTuple):
    """What became of a source's rows. Tuples, texts, and what was dropped, are in files."""

    rows_in: int
    tuples: int  # before filters and merging
    unused: dict[str, int]  # rows that are in no tuple, by reason
    poor: dict[str, int]  # tuples that filters dropped, by reason
    merged: int
    held: int
    instruction: str
    texts_out: dict[str, int]


class NeedsAllRows(Exception):
    """The source cannot be shaped part by part."""


def goes_in_parts(source: Source) -> bool:
    """Return whether a source can be read part by part."""
    return shape_of(source) in ("pairs", "scored", "listed", *TOGETHER)


class Columns:
    """The columns that parts of a source have, as far as all parts must agree in them."""

    def __init__(self) -> None:
        """Begin with no part."""
        self.there = set[str]()
        self.matching: list[str] | None = None  # by patterns
        self.kinds: dict[str, bool] = {}  # whether a column of numbers or ids holds lists, or lists written as texts

    def unite(self, other: Columns) -> None:
        """Add the columns of other parts.

        Raises:
            NeedsAllRows: parts match patterns by different columns, or only some have lists.
        """
        self.matching = other.matching if self.matching is None else self.matching
        if other.matching not in (None, self.matching):
            raise NeedsAllRows
        if any(self.kinds.setdefault(name, kind) != kind for name, kind in other.kinds.items()):
            raise NeedsAllRows
        self.there |= other.there

    def refuse_missing(self, source: Source) -> None:
        """Check that no mapped column is missing in all parts, which is best reported with all rows.

        Raises:
            NeedsAllRows: one is.
        """
        if not self.there.issuperset(column_map(source).names):
            raise NeedsAllRows


def aligned(source: Source, parts: Iterable[Rows], columns: Columns) -> Iterator[Rows]:
    """Yield parts with all mapped columns, null if a part lacks one; what the parts have is added to `columns`.

    Raises:
        NeedsAllRows: see `Columns.unite`.
    """
    wanted = column_map(source)
    for rows, lost in parts:
        has = Columns()
        has.there.update(rows.columns)
        has.matching = [name for name in rows.columns if wanted.patterns and wanted.has(name)]
        some = {*wanted.scores, *wanted.ids, *(has.matching if source.by_id else [])}
        some = {name for name in some if name in rows.columns and rows[name].null_count() < len(rows)}
        has.kinds = {name: isinstance(unpacked(rows[name]).dtype, pl.List) for name in some}
        columns.unite(has)
        yield Rows(add_missing_columns(rows, wanted.names), lost)


def write_tuples(job: Job, parts: Iterator[Filtered], folder: Path, threads: int) -> Shaped:
    """Put parts together, merge equal queries, hold queries out, and write tuples, held-out tuples and texts.

    Raises:
        SourceError: too few rows make tuples, no tuple is left, or the queries to hold out cannot be.
        NeedsAllRows: parts contradict each other; with all rows at once the error says more.
    """
    source, total = job.source, _Totals()
    with ExitStack() as closing:
        writer = TextWriter(folder, closing)
        left = write_frames(folder, ROWS_TABLE, (_written(one, total, writer) for one in parts), compression="lz4")
    if len(total.instructions) > 1 or (total.ids and pl.concat(total.ids).is_duplicated().any()):
        raise NeedsAllRows
    dropped, poor = pl.concat(total.dropped), pl.concat(total.poor)
    check_rows(source, total.rows, total.lost, dropped, total.tuples)
    if not left:
        why = ", ".join(f"{reason} {n}" for reason, n in reason_counts(poor).items())
        raise SourceError(place_of(source), f"filters drop all of its {total.tuples} tuples ({why})", "loosen 'filters'")
    texts = open_texts(folder)
    number = texts.raw_number  # parts may have texts in common

    def frames() -> Iterator[pl.DataFrame]:
        return (renumbered(frame, number) for frame in read_frames(folder, ROWS_TABLE))

    merged = Merged(frames, texts, source.name, job.filters.no_echo)
    total.texts_out["negative_is_positive"] += merged.removed
    held = np.zeros(0, bool)  # which tuples to hold out; empty for none
    if source.holdout:
        tuples = pl.concat([frame.select("row", "query", "positives") for frame in merged.tuples()])
        held = held_out(tuples, texts, source.holdout, job.seed, source.name)
    some: list[pl.DataFrame] = [pl.DataFrame(schema=NUMBERED)]

    def to_train() -> Iterator[pl.DataFrame]:
        start = 0
        for frame in merged.tuples():
            out = pl.Series(held[start : start + len(frame)]) if len(held) else None
            start += len(frame)
            if out is not None and out.any():
                some.append(frame.filter(out))
                frame = frame.filter(~out)
            yield frame

    unread = unread_rows(source, total.lost)
    writes: list[Callable[[], object]] = [
        lambda: write_frames(folder, "tuples", to_train(), compression="lz4"),
        lambda: write_parquet(folder / "dropped.parquet", chain([unread, dropped, poor], merged.dropped())),
    ]
    for _, written in Here().run(lambda write: write(), writes, threads):
        written()
    for path in table_files(folder, ROWS_TABLE):
        path.unlink()
    numbers = pl.concat(some)
    write_parquet(folder / "heldout_numbers.parquet", numbers)
    write_parquet(folder / "heldout.parquet", spelled(numbers, texts))
    if total.answers:
        write_parquet(folder / ANSWERS, united_lists(total.answers, "answers"))
    if total.documents:
        write_parquet(folder / OWN_DOCUMENTS, united_lists(total.documents, "documents"))
    if total.scores:
        write_parquet(folder / "scores.parquet", united_scores(total.scores))
    corpus = np.concatenate([np.zeros(0, np.uint32), *total.corpus])
    write_parquet(folder / "corpus.parquet", pl.DataFrame({"text": number[corpus]}))
    instruction = next(iter(total.instructions), "")
    out = {reason: count for reason, count in sorted(total.texts_out.items()) if count}
    unused, reasons = reason_counts(pl.concat([unread, dropped])), reason_counts(poor)
    return Shaped(total.rows, total.tuples, unused, reasons, merged.count, len(numbers), instruction, out)


class _Totals:
    """What adds up over the parts."""

    def __init__(self) -> None:
        self.rows = self.tuples = 0
        self.lost: list[Lost] = []
        self.dropped, self.poor = [no_drops()], [no_drops()]
        self.ids: list[pl.Series] = []
        self.corpus: list[np.ndarray] = []
        self.instructions: set[str] = set()
        self.texts_out: Counter[str] = Counter()
        self.scores: list[list[pl.DataFrame]] = []
        self.answers: list[pl.DataFrame] = []
        self.documents: list[pl.DataFrame] = []


def filtered(
    source: Source, wanted: Filters, made: Tuples, rows: int, lost: list[Lost], ids: pl.Series | None = None
) -> Filtered:
    """Return a part with its tuples filtered, and with the texts that these still have."""
    if made.texts is None:
        numbers, extra, texts = numbered(made.tuples, made.corpus)
    else:
        (numbers, texts), extra = with_own_texts(made.tuples, made.texts), np.zeros(0, np.uint32)
    left, poor, out = filters.apply(numbers, texts, wanted, source.name, source.task)
    used = np.zeros(len(texts), bool)
    used[extra] = True
    used[left["query"].to_numpy()] = True
    for name in LISTS:
        used[flat(left, name)] = True
    some = np.flatnonzero(used)
    place = (np.cumsum(used) - 1).astype(np.uint32)
    texts_out = Counter(out) + Counter(made.texts_out or {})
    left, dropped = renumbered(left, place), compact(made.dropped)
    tuples, instruction = len(made.tuples), made.instruction
    if made.poor is not None:
        tuples, poor = tuples + len(made.poor), pl.concat([made.poor, poor])
    return Filtered(
        rows, tuples, lost, dropped, compact(poor), ids, instruction, texts_out, left, place[extra], texts.at(some),
        texts.facts(some), made.scores, made.answers, made.documents,
    )  # fmt: skip


def _written(part: Filtered, total: _Totals, writer: TextWriter) -> pl.DataFrame:
    """Return the tuples of a part, write its texts, and add what else it has to the totals."""
    total.rows += part.rows
    total.tuples += part.tuples
    total.lost += part.lost
    total.dropped.append(part.dropped)
    total.poor.append(part.poor)
    total.instructions.update([part.instruction] if part.rows else [])
    total.texts_out.update(part.texts_out)
    if part.ids is not None:
        total.ids.append(part.ids)
    if part.scores is not None:
        total.scores.append(part.scores)
    if part.answers is not None:
        total.answers.append(part.answers)
    if part.documents is not None:
        total.documents.append(part.documents)
    first = np.uint32(writer.add(part.texts, part.facts))
    total.corpus.append(part.corpus + first)
    return renumbered(part.left, np.arange(first, writer.count, dtype=np.uint32))
