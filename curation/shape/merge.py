"""Tuples with equal queries become one tuple."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.core.record import composed, dropped_frame, keys_of
from curation.core.text import forms, numbered
from curation.shape.columns import GRADES

LISTS = ("positives", "negatives")


def distinct_by_key(texts: pl.Series) -> pl.DataFrame:
    """Return text and key of each distinct text, in order of first appearance; texts are equal if their keys are."""
    once = pl.DataFrame({"text": texts.unique(maintain_order=True)})
    once = once.with_columns(composed(once["text"]).alias("same")).unique("same", keep="first", maintain_order=True)
    return once.select("text", keys_of(once["same"]))


def equals_a_positive(tuples: pl.DataFrame, negatives: pl.DataFrame, by: str) -> pl.Series:
    """Return which negatives (`by`, form) have the form of a positive of their tuple; `tuples` have `by` and positives."""
    there = tuples.join(negatives, on=by, how="semi").select(by, pl.col("positives").alias("text"))
    there = there.explode("text", empty_as_null=False).drop_nulls("text")
    positives = there.select(by, forms(there["text"]).alias("form")).unique()
    marked = negatives.join(positives.with_columns(own=True), on=[by, "form"], how="left", maintain_order="left")
    return marked["own"].fill_null(False)


def merge_queries(tuples: pl.DataFrame, source: str, no_echo: bool = True) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (tuples with distinct queries, merged tuples as a `DROPPED` table).

    Queries are equal if their keys are. The first tuple keeps its place and id. Positives and negatives are united in order;
    positives with grades are sorted by these, and the grades are dropped.
    """
    graded_lists = tuples.select("positives", GRADES) if GRADES in tuples.columns else None
    tuples = tuples.drop(GRADES, strict=False)
    same = composed(tuples["query"])
    at = np.arange(len(tuples))
    some = np.flatnonzero(same.hash().is_duplicated())  # few; equal hashes of different queries are separated below
    numbers, once = numbered(same.gather(some))
    if len(once) == len(some):
        return tuples, dropped_frame(source, "merge", tuples["id"].head(0), "same_query")
    places = np.flatnonzero(np.diff(np.maximum.accumulate(numbers), prepend=-1))  # the first place of each number
    earliest = at.copy()
    earliest[some] = some[places[numbers]]
    first = pl.Series("first", earliest, dtype=pl.UInt32)
    keyed = tuples.with_columns(first)
    repeats = keyed.filter(earliest != at)
    survivor = tuples["id"].gather(repeats["first"])
    merged = dropped_frame(source, "merge", repeats["id"], "same_query", repeats["query"].str.slice(0, 200), survivor, source)
    company = pl.col("first").is_in(repeats["first"].unique().implode())
    united = (
        keyed.filter(company)
        .group_by("first", maintain_order=True)
        .agg(
            *(pl.col(name).first() for name in ("row", "id", "query", "label")),
            *(pl.col(name).explode(empty_as_null=False).drop_nulls().unique(maintain_order=True) for name in LISTS),
        )
    )
    if graded_lists is not None:
        long = graded_lists.with_columns(first).filter(company).explode("positives", GRADES).drop_nulls("positives")
        long = long.sort("first", GRADES, descending=[False, True], nulls_last=True, maintain_order=True)
        best_first = long.group_by("first", maintain_order=True).agg(pl.col("positives").unique(maintain_order=True))
        united = united.drop("positives").join(best_first, on="first", how="left", maintain_order="left")
        united = united.with_columns(pl.col("positives").fill_null([]))
    if no_echo and (long := united.select("first", "negatives").explode("negatives", empty_as_null=False).drop_nulls()).height:
        own = equals_a_positive(united, long.select("first", forms(long["negatives"]).alias("form")), "first")
        others = long.filter(~own).group_by("first", maintain_order=True).agg("negatives")
        united = united.drop("negatives").join(others, on="first", how="left", maintain_order="left")
        united = united.with_columns(pl.col("negatives").fill_null([]))
    alone = keyed.filter(~company).with_columns(pl.col(LISTS).list.unique(maintain_order=True))
    return pl.concat([alone, united.select(keyed.columns)]).sort("first").drop("first"), merged
