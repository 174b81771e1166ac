"""The answers that a source's questions come with: no part of a tuple, but what tells a false negative."""

from __future__ import annotations

import polars as pl

from curation.core.record import keys_of
from curation.read.rows import ROW
from curation.recipe.source import Source
from curation.shape.columns import text_lists

FILE = "answers.parquet"


def answers_of(source: Source, rows: pl.DataFrame, tuples: pl.DataFrame) -> pl.DataFrame | None:
    """Return `key` (of a query) and `answers` (its distinct ones) of the tuples whose rows name any; None where none is mapped.

    A tuple made the other way round asks for something else, and has none.
    """
    if source.fields.answer is None:
        return None
    answers = text_lists(source, rows, source.fields.answer).list.drop_nulls()
    named = pl.DataFrame({"row": rows[ROW].cast(pl.UInt64), "answers": answers})
    asked = tuples.select("row", keys_of(tuples["query"])).unique("row", keep="first", maintain_order=True)
    both = asked.join(named.filter(pl.col("answers").list.len() > 0), on="row", maintain_order="left")
    lists = both.group_by("key", maintain_order=True).agg(pl.col("answers").explode(empty_as_null=False))
    return lists.with_columns(pl.col("answers").list.unique(maintain_order=True))
