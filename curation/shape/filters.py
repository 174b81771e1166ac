"""Texts that are too poor to train on are dropped with a reason; without a query or any positive, the whole tuple."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.core.characters import INVISIBLE
from curation.core.record import dropped_frame
from curation.core.text import normalised
from curation.core.texts import Texts
from curation.recipe.source import Filters
from curation.shape.columns import EVIDENCE_CHARS, GRADES
from curation.shape.merge import equals_a_positive
from curation.shape.numbered import LISTS

SHORT = 3  # characters: by default a shorter text is kept if it has CONTENT
CONTENT = r"[^\p{L}_]|[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]|.[^_]"  # more than one letter: no, 4, C#, 京
HIDDEN = 200  # characters: a longer text has visible characters too


def apply(
    tuples: pl.DataFrame, texts: Texts, filters: Filters, source: str, task: str
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Return (tuples kept, dropped tuples, {reason: texts removed from tuples that are kept}).

    A tuple is dropped if its query fails or all its positives fail; the reason is that of the query or of the first positive.
    The passages of a classification are its label texts, which are not filtered.

    Args:
        tuples: NUMBERED, with or without GRADES.
        texts: the texts that the tuples name.
        filters: the limits.
        source: the name of the source.
        task: its task.
    """
    if not len(tuples):
        return tuples, dropped_frame(source, "filter", tuples["id"], ""), {}
    frame = tuples.with_row_index("at")
    length_faults = pl.concat([_length_faults(some, filters) for some in texts.batches(np.arange(len(texts)))])
    query_fault = pl.select(pl.lit(length_faults.gather(frame["query"])) + "_query").to_series()
    if task == "classification":
        judged = frame.filter(query_fault.is_not_null())
        positives, negatives = (_long(judged, name).with_columns(fault=pl.lit(None, pl.String)) for name in LISTS)
    else:
        positives, negatives = (_faults(frame, name, texts, length_faults, filters.no_echo) for name in LISTS)
    faulty = [frame["at"].filter(query_fault.is_not_null())]
    faulty += [faults["at"].filter(faults["fault"].is_not_null()) for faults in (positives, negatives)]
    whole = ~frame["at"].is_in(pl.concat(faulty).implode())  # nearly all tuples: these stay as they are
    looked = frame.with_columns(query_fault.alias("fault")).filter(~whole)
    # a tuple without a good query or positive is dropped with the reason of its query or first positive
    kept = looked.drop("positives", "negatives")
    if GRADES in kept.columns:
        mine = positives.join(kept, on="at", how="semi", maintain_order="left")
        mine = mine.with_columns(nth=pl.int_range(pl.len()).over("at")).filter(pl.col("fault").is_null())
        places = mine.group_by("at", maintain_order=True).agg("nth")
        kept = kept.join(places, on="at", how="left", maintain_order="left")
        kept = kept.with_columns(pl.col(GRADES).list.gather(pl.col("nth").fill_null([]))).drop("nth")
    for name, faults in (("positives", positives), ("negatives", negatives)):
        good = faults.filter(pl.col("fault").is_null()).join(kept, on="at", how="semi", maintain_order="left")
        lists = good.group_by("at", maintain_order=True).agg(pl.col("text").alias(name))
        kept = kept.join(lists, on="at", how="left", maintain_order="left").with_columns(pl.col(name).fill_null([]))
    faults = positives.join(kept, on="at", how="semi", maintain_order="left")
    first = faults.group_by("at", maintain_order=True).agg(pl.col("fault").first().alias("first"), pl.col("text").first())
    kept = kept.join(first, on="at", how="left", maintain_order="left")
    none_left = pl.col("positives").list.len() == 0  # `first` is null without any positive, as in a clustering
    kept = kept.with_columns(pl.when(pl.col("fault").is_null() & none_left).then("first").otherwise("fault").alias("reason"))
    shown = pl.when(pl.col("fault").is_null()).then("text").otherwise("query")
    bad = pl.col("reason").is_not_null()
    left, gone = kept.filter(~bad), kept.filter(bad).with_columns(shown.alias("shown"))
    taken = pl.concat([positives, negatives]).filter(pl.col("fault").is_not_null()).join(left, on="at", how="semi")
    counts = dict(taken.group_by("fault").len().sort("fault").iter_rows())
    evidence = texts.at(gone["shown"]).str.slice(0, EVIDENCE_CHARS)
    dropped = dropped_frame(source, "filter", gone["id"], gone["reason"], evidence)
    stay = pl.concat([frame.filter(whole), left.select(frame.columns)]).sort("at") if len(left) else frame.filter(whole)
    return stay.select(tuples.columns), dropped, counts


def _length_faults(texts: pl.Series, filters: Filters) -> pl.Series:
    """Return short, long or null for each text; invisible characters and blanks at its ends do not count."""
    length = texts.str.strip_chars().str.len_chars()
    hidden = ((length < HIDDEN) & texts.str.contains(INVISIBLE)).arg_true()
    if len(hidden):
        length = length.scatter(hidden, texts.gather(hidden).str.replace_all(INVISIBLE, "").str.strip_chars().str.len_chars())
    short = length < (SHORT if filters.min_chars is None else filters.min_chars)
    if filters.min_chars is None:
        few = short.arg_true()
        short = short.scatter(few, ~normalised(texts.gather(few)).str.contains(CONTENT).fill_null(False))
    long = pl.lit(False) if filters.max_chars is None else pl.lit(length > filters.max_chars)
    fault = pl.when(pl.lit(short)).then(pl.lit("short")).when(long).then(pl.lit("long"))
    return pl.select(fault.cast(pl.String)).to_series()


def _long(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return at, text: one line per text of the list column `name`."""
    return frame.select("at", pl.col(name).alias("text")).explode("text", empty_as_null=False).drop_nulls("text")


def _faults(frame: pl.DataFrame, name: str, texts: Texts, length_faults: pl.Series, no_echo: bool) -> pl.DataFrame:
    """Return at, text, fault: one line per text of the list column `name`; fault is null for a good text."""
    role, long = name.removesuffix("s"), _long(frame, name)
    fault = pl.select(pl.lit(length_faults.gather(long["text"])) + f"_{role}").to_series()
    if no_echo and len(long):
        form = texts.form_number
        echo = pl.lit(pl.Series(form[long["text"].to_numpy()] == form[frame["query"].gather(long["at"]).to_numpy()]))
        fault = pl.select(pl.when(pl.lit(fault).is_null() & echo).then(pl.lit(f"echo_{role}")).otherwise(fault)).to_series()
        if name == "negatives":
            own = pl.lit(equals_a_positive(frame, long, texts, "at"))
            is_positive = pl.when(pl.lit(fault).is_null() & own).then(pl.lit("negative_is_positive"))
            fault = pl.select(is_positive.otherwise(fault)).to_series()
    return long.with_columns(fault.cast(pl.String).alias("fault"))
