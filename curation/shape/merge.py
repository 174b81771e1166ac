"""Tuples with equal queries become one tuple."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.core.record import dropped_frame
from curation.core.texts import Texts
from curation.shape.columns import EVIDENCE_CHARS, GRADES
from curation.shape.numbered import LISTS


def equals_a_positive(tuples: pl.DataFrame, negatives: pl.DataFrame, texts: Texts, by: str) -> pl.Series:
    """Return which negatives (`by`, text) have the form of a positive of their tuple; `tuples` have `by` and positives."""
    there = tuples.join(negatives, on=by, how="semi").select(by, pl.col("positives").alias("text"))
    there = there.explode("text", empty_as_null=False).drop_nulls("text")
    form = pl.Series("form", texts.form_number)
    positives = there.select(by, form.gather(there["text"])).unique()
    marked = negatives.select(by, form.gather(negatives["text"])).join(
        positives.with_columns(own=True), on=[by, "form"], how="left", maintain_order="left"
    )
    return marked["own"].fill_null(False)


def merge_queries(tuples: pl.DataFrame, texts: Texts, source: str, no_echo: bool = True) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (tuples with distinct queries, merged tuples as a `DROPPED` table).

    Queries are equal if their keys are. The first tuple keeps its place and id. Positives and negatives are united in order;
    positives with grades are sorted by these, and the grades are dropped. `tuples` are NUMBERED, with or without GRADES.
    """
    graded_lists = tuples.select("positives", GRADES) if GRADES in tuples.columns else None
    tuples = tuples.drop(GRADES, strict=False)
    numbers = texts.key_number[tuples["query"].to_numpy()]
    _, firsts, which = np.unique(numbers, return_index=True, return_inverse=True)
    first = pl.Series("first", firsts[which], dtype=pl.UInt32)
    later = firsts[which] != np.arange(len(tuples))
    if not later.any():
        return tuples, dropped_frame(source, "merge", tuples["id"].head(0), "same_query")
    keyed = tuples.with_columns(first)
    repeats = keyed.filter(later)
    survivor = tuples["id"].gather(repeats["first"])
    shown = texts.at(repeats["query"]).str.slice(0, EVIDENCE_CHARS)
    merged = dropped_frame(source, "merge", repeats["id"], "same_query", shown, survivor, source)
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
    long = united.select("first", pl.col("negatives").alias("text")).explode("text", empty_as_null=False).drop_nulls()
    if no_echo and len(long):
        others = long.filter(~equals_a_positive(united, long, texts, "first")).group_by("first", maintain_order=True)
        lists = others.agg(pl.col("text").alias("negatives"))
        united = united.drop("negatives").join(lists, on="first", how="left", maintain_order="left")
        united = united.with_columns(pl.col("negatives").fill_null([]))
    alone = keyed.filter(~company).with_columns(pl.col(LISTS).list.unique(maintain_order=True))
    return pl.concat([alone, united.select(keyed.columns)]).sort("first").drop("first"), merged
