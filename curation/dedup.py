"""What is the same: equal queries become one tuple. (Near-duplicates join here: signatures, verified edges, survivors.)"""

from __future__ import annotations

import polars as pl

from curation.schema import dropped_frame, keys_of


def distinct(texts: pl.Series) -> pl.DataFrame:
    """Return text and key of each distinct text, in order of first appearance; texts are the same when their keys are."""
    once = pl.DataFrame({"text": texts}).unique("text", keep="first", maintain_order=True)
    return once.with_columns(keys_of(once["text"])).unique("key", keep="first", maintain_order=True)


def merge_queries(tuples: pl.DataFrame, source: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (tuples with distinct queries, merged ones as a `DROPPED` table).

    Queries are equal when their keys are. The first keeps its place and id; positives and negatives are united in order.
    """
    if not len(tuples):
        return tuples, dropped_frame(source, "merge", tuples["id"], "same_query")
    keyed = tuples.with_columns(keys_of(tuples["query"]))
    survivor = pl.col("id").first().over("key").alias("survivor")
    keyed = keyed.with_columns(survivor)
    twins = keyed.filter(pl.col("id") != pl.col("survivor"))
    merged = dropped_frame(
        source, "merge", twins["id"], "same_query", twins["query"].str.slice(0, 200), twins["survivor"], source
    )
    if not len(twins):
        return tuples, merged
    united = keyed.group_by("key", maintain_order=True).agg(
        *(pl.col(name).first() for name in ("row", "id", "query", "label")),
        *(
            pl.col(name).explode(empty_as_null=False).drop_nulls().unique(maintain_order=True)
            for name in ("positives", "negatives")
        ),
    )
    return united.select(tuples.columns), merged
