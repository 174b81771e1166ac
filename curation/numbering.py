"""Tuples of texts to tables of ids: texts stand once, tuples hold their numbers."""

from __future__ import annotations

import polars as pl

from curation.dedup import distinct
from curation.schema import PAIRS, PASSAGES, keys_of
from curation.text import groups_of, normalised


def number(
    tuples: pl.DataFrame, corpus: pl.Series, task: str, families: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (PAIRS, PASSAGES): texts stand once, tuples hold their numbers, texts with a twin have a group.

    Passages come in order of first appearance: positives, given negatives, the rest of a corpus. Those of a
    clustering are all its texts, as each may be another's positive or negative. Twins are texts of one family
    (`families`: text, family), or without these, of one normalised form.
    """
    roles = [tuples["positives"].explode(), tuples["negatives"].explode(empty_as_null=False), corpus]
    texts = pl.concat([tuples["query"], *roles] if task == "clustering" else roles).drop_nulls()
    passages = distinct(texts).with_row_index("pid")
    keyed = tuples.with_columns(keys_of(tuples["query"]))
    both = pl.concat([keyed["query"], passages["text"]]), pl.concat([keyed["key"], passages["key"]])
    groups = groups_of(_same(both[0], families), both[1])
    pairs = keyed.with_columns(groups.head(len(keyed)).alias("group")).with_row_index("at")
    passages = passages.with_columns(groups.tail(len(passages)).alias("group"))
    positives = _pids(pairs, "positives", passages)
    negatives = _pids(pairs, "negatives", passages).join(positives, on=["at", "pid"], how="anti", maintain_order="left")
    for name, long in (("positives", positives), ("negatives", negatives)):
        lists = long.group_by("at", maintain_order=True).agg(pl.col("pid").alias(name))
        pairs = pairs.drop(name).join(lists, on="at", how="left", maintain_order="left").with_columns(pl.col(name).fill_null([]))
    return pairs.select(list(PAIRS)).cast(PAIRS), passages.select(list(PASSAGES)).cast(PASSAGES)


def _same(texts: pl.Series, families: pl.DataFrame | None) -> pl.Series:
    if families is None:
        return normalised(texts)
    return pl.DataFrame({"text": texts}).join(families, on="text", how="left", maintain_order="left")["family"]


def _pids(pairs: pl.DataFrame, name: str, passages: pl.DataFrame) -> pl.DataFrame:
    """Return at, pid: the distinct passages of a list column, in its order."""
    long = pairs.select("at", pl.col(name).alias("text")).explode("text", empty_as_null=False).drop_nulls("text")
    once = long.select("text").unique(maintain_order=True)
    known = once.with_columns(keys_of(once["text"])).join(passages.select("key", "pid"), on="key", how="left")
    return (
        long.join(known.select("text", "pid"), on="text", how="left", maintain_order="left")
        .select("at", "pid")
        .unique(maintain_order=True)
    )
