"""The texts of an evaluation set: its queries, the documents that answer them, and the rest of its corpus, each with its id."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import polars as pl

from curation.core.errors import SourceError
from curation.core.record import split_query
from curation.read.mapping import add_missing_columns, column_map, is_pattern, matching_columns
from curation.read.rows import ROW
from curation.read.sources import table_rows
from curation.recipe.evaluation import EvalSet
from curation.recipe.source import Table, TextFields, TextTable
from curation.shape.columns import as_texts, column, ids_and_texts

QUERY, DOCUMENT, CORPUS = range(3)  # a corpus document is one that no query needs
EVAL_TEXTS = pl.Schema({"task": pl.String(), "eval_id": pl.String(), "role": pl.UInt8(), "text": pl.String()})


class Guessed(TextTable):
    """A table of a benchmark: its id column may be called `id`, and a title, if it has one, is put before the text."""

    guesses: ClassVar[dict[str, str]] = {"id": "id", "title": "title"}


def evaluation_texts(one: EvalSet, base: Path) -> Iterator[pl.DataFrame]:
    """Yield the texts of an evaluation set in batches, EVALUATION, without blank texts.

    Raises:
        SourceError: see `sources.read_rows`; or a mapped column is missing or holds no texts, or all texts are blank.
    """
    frames, some = _of_qrels(one, base) if one.corpus and one.queries else _of_rows(one, base), False
    for frame in frames:
        good = frame.drop_nulls("text").filter(pl.col("text").str.strip_chars() != "")
        some = some or len(good) > 0
        yield good.select(pl.lit(one.title).alias("task"), "eval_id", pl.col("role").cast(pl.UInt8), "text").cast(EVAL_TEXTS)
    if not some:
        raise SourceError(f"evaluation set '{one.title}'", "holds no text, so nothing can be compared with it", "check 'fields'")


def evaluation_tables(one: EvalSet) -> list[tuple[str, Table]]:
    """Return (prefix of its files, table) of all tables that an evaluation set is read from."""
    parts: list[tuple[str, Table | None]] = [("", one), ("corpus/", one.corpus), ("queries/", one.queries)]
    return [(part, table) for part, table in parts if table]


def _frames(where: str, table: Table, base: Path, names: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield a table's rows with all columns of these names; every row must be readable, or contamination by it would go unseen.

    Raises:
        SourceError: also if a column is in no row.
    """
    there: dict[str, pl.DataType] = {}
    for rows in table_rows(table, base):
        for lost in rows.lost:
            if lost.bad:
                raise SourceError(where, f"row {lost.row} is unreadable ({lost.reason})", lost.evidence)
        there |= rows.frame.schema
        yield add_missing_columns(rows.frame, names)
    for name in names:
        column(where, pl.DataFrame(schema=there), name)


def _of_rows(one: EvalSet, base: Path) -> Iterator[pl.DataFrame]:
    where = f"evaluation set '{one.title}'"
    fields = one.fields
    wanted = [(fields.query, QUERY), (fields.positive, DOCUMENT), *((name, CORPUS) for name in fields.negatives)]
    named = [(name, role) for name, role in wanted if name is not None]
    for frame in _frames(where, one, base, [name for name, _ in named if not is_pattern(name)]):
        for pattern, role in named:
            for name in matching_columns(pattern, frame.columns, column_map(one).names)[0]:
                long = pl.DataFrame({"eval_id": frame[ROW].cast(pl.String), "text": column(where, frame, name)})
                while isinstance(long["text"].dtype, pl.List | pl.Array):  # nested lists are flattened
                    long = long.explode("text")
                texts = as_texts(where, name, long["text"]).alias("text")
                yield long.with_columns(split_query(texts)[1].alias("text"), pl.lit(role).alias("role"))


def _of_qrels(one: EvalSet, base: Path) -> Iterator[pl.DataFrame]:
    assert one.corpus
    assert one.queries
    where = f"evaluation set '{one.title}'"
    asked, answers = [], []
    columns = [name for name in (one.fields.query_id, one.fields.positive_id) if name]
    scored = [one.fields.score] if one.fields.score else []
    for frame in _frames(where, one, base, columns + scored):
        ids = [as_texts(where, name, column(where, frame, name)) for name in columns]
        good = pl.lit(True)
        if one.fields.score:
            scores = as_texts(where, one.fields.score, column(where, frame, one.fields.score))
            good = pl.lit(scores.str.strip_chars().cast(pl.Float64, strict=False) >= one.threshold)
        asked.append(ids[0])
        answers.append(pl.select(pl.lit(ids[1]).filter(good)).to_series())
    yield from _by_id(f"{where} (queries)", one.queries, base, pl.concat(asked).unique(), (QUERY, None))
    yield from _by_id(f"{where} (corpus)", one.corpus, base, pl.concat(answers).unique(), (DOCUMENT, CORPUS))


def _by_id(where: str, table: TextTable, base: Path, wanted: pl.Series, roles: tuple[int, int | None]) -> Iterator[pl.DataFrame]:
    """Yield eval_id, role and text of a table's rows: wanted ids get the first role, others the second or, if null, are skipped.

    Wanted ids that the table does not have are counted in a warning.

    Raises:
        SourceError: also if the table has none of the wanted ids.
    """
    fields = table.fields
    required = [fields.title] if fields.title and not fields.title.endswith("?") else []
    names = [] if table.guesses else [fields.id, fields.text, *required]
    missing = wanted.drop_nulls()
    some = len(missing)
    for frame in _frames(where, table, base, names):
        if isinstance(table, Guessed):
            id_, title = ("_id" if "_id" in frame.columns else "id"), ("title" if "title" in frame.columns else None)
            fields = TextFields(id=id_, title=title)
        ids, texts = ids_and_texts(where, frame, fields)
        named = ids.is_in(wanted.implode())
        missing = missing.filter(~missing.is_in(ids.implode()))
        role = pl.when(named).then(pl.lit(roles[0])).otherwise(pl.lit(roles[1], pl.Int32))
        yield pl.DataFrame({"eval_id": ids, "text": texts}).with_columns(role.alias("role")).drop_nulls("role")
    if some and len(missing) == some:
        what = f"has none of the ids that its qrels name, such as '{missing[0]}'"
        raise SourceError(where, what, "check the columns of ids under 'fields'")
    if len(missing):
        what = f"lacks {len(missing):,} of the {some:,} ids that its qrels name, such as '{missing[0]}'; these are not looked for"
        logging.getLogger("tuplesmith").warning("%s: %s", where, what)
