"""Tuples of texts to tables of ids: texts stand once, tuples hold their numbers."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.schema import PAIRS, PASSAGES, composed, keys_of
from curation.text import normalised, numbered


def number(
    tuples: pl.DataFrame, corpus: pl.Series, task: str, families: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (PAIRS, PASSAGES): texts stand once, tuples hold their numbers, texts with a twin have a group.

    Passages come in order of first appearance: positives, given negatives, the rest of a corpus. Those of a
    clustering are all its texts, as each may be another's positive or negative. Twins are texts of one family
    (`families`: text, family), or without these, of one normalised form.
    """
    frame, queries = tuples.with_row_index("at"), tuples["query"]
    longs = [
        frame.select("at", pl.col(name).alias("text")).explode("text", empty_as_null=False).drop_nulls("text")
        for name in ("positives", "negatives")
    ]
    roles = [*([queries] if task == "clustering" else []), *(long["text"] for long in longs), corpus]
    numbers, texts = _once(pl.concat([role.alias("text") for role in (*roles, queries)]))
    *of_roles, asked = np.split(numbers, np.cumsum([len(role) for role in roles]))
    passages = int(max((some.max() for some in of_roles if len(some)), default=-1)) + 1
    keys, groups = keys_of(texts), _groups(texts, families, np.concatenate([asked, np.arange(passages)]))
    positives, negatives = (
        long.select("at", pl.Series("pid", pids, dtype=pl.UInt32)).unique(maintain_order=True)
        for long, pids in zip(longs, of_roles[-3:-1], strict=True)
    )
    negatives = negatives.join(positives, on=["at", "pid"], how="anti", maintain_order="left")
    pairs = frame.drop("positives", "negatives").with_columns(keys.gather(asked), groups.gather(asked))
    for name, long in (("positives", positives), ("negatives", negatives)):
        lists = long.group_by("at", maintain_order=True).agg(pl.col("pid").alias(name))
        pairs = pairs.join(lists, on="at", how="left", maintain_order="left").with_columns(pl.col(name).fill_null([]))
    table = pl.DataFrame([texts, keys, groups]).head(passages).with_row_index("pid")
    return pairs.select(list(PAIRS)).cast(PAIRS), table.select(list(PASSAGES)).cast(PASSAGES)


def _once(texts: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return a number for each text, and the first spelling of each number: texts are the same when their keys are."""
    numbers, values = numbered(texts)
    same = composed(values)
    if same is values:
        return numbers, values
    again, _ = numbered(same)
    return again[numbers], values.gather(np.unique(again, return_index=True)[1])


def _groups(texts: pl.Series, families: pl.DataFrame | None, order: np.ndarray) -> pl.Series:
    """Return a group (u32) for each text that has a twin, else null; numbers count up as their texts come in `order`."""
    same = normalised(texts)
    if families is not None:
        same = pl.DataFrame({"text": texts}).join(families, on="text", how="left", maintain_order="left")["family"]
    place = np.empty(len(texts), np.int64)
    place[order[::-1]] = np.arange(len(order))[::-1]  # its first one, as the last to be written
    frame = pl.DataFrame({"same": same, "place": place})
    twin = pl.col("same").is_not_null() & pl.col("same").is_duplicated()
    first = pl.when(twin).then(pl.col("place").min().over("same"))
    return frame.select((first.rank("dense") - 1).cast(pl.UInt32).alias("group"))["group"]
