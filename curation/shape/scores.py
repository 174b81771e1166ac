"""Scores and answers that a source comes with, kept next to its tuples.

A score of a teacher or a miner belongs to a query and a text, whatever becomes of their lists: texts are filtered, queries
merged. So it is stored by the keys of both, and joined again when passages get their numbers.
"""

from __future__ import annotations

from math import inf

import polars as pl

from curation.core.errors import SourceError
from curation.core.record import keys_of
from curation.read.rows import ROW
from curation.recipe.source import Source
from curation.shape.columns import column, number_lists, place_of, text_lists, unpacked

ANSWERS = "answers.parquet"
SCORES = pl.Schema({"query": pl.Binary(), "text": pl.Binary(), "score": pl.Float32()})  # keys of both


def scores_of(source: Source, rows: pl.DataFrame, queries: pl.Series, sides: dict[str, pl.Series]) -> list[pl.DataFrame] | None:
    """Return SCORES of positives and negatives, or None if no column is mapped.

    Raises:
        SourceError: a row has more or fewer scores than texts; a row without any score is allowed.
    """
    mapped = {"positives": source.fields.positive_score, "negatives": source.fields.negative_scores}
    parts = []
    for side, name in mapped.items():
        if name is not None:
            one = not isinstance(unpacked(column(place_of(source), rows, name)).dtype, pl.List)  # of several positives, the first
            texts = sides[side].list.head(1) if one and side == "positives" else sides[side]
            numbers = number_lists(source, rows, name)
            _same_length(source, rows, texts, numbers, name, or_none=True)
            parts.append((texts, numbers))
    return [_score_table(queries, *part) for part in parts] or None


def grades_of(source: Source, rows: pl.DataFrame, positives: pl.Series) -> pl.Series | None:
    """Return a list of grades per row, one per positive: the score of a pair, or a teacher's scores; None if unmapped."""
    if (name := source.fields.score or source.fields.positive_score) is None:
        return None
    numbers = number_lists(source, rows, name)
    return pl.select(pl.lit(numbers).list.gather(pl.int_ranges(pl.lit(positives).list.len()), null_on_oob=True)).to_series()


def listed_sides(
    source: Source, rows: pl.DataFrame, queries: pl.Series
) -> tuple[dict[str, pl.Series], pl.Series | None, list[pl.DataFrame] | None, int]:
    """Return ({positives, negatives}, grades of the positives, SCORES or None, unlabelled) of lists of documents.

    `unlabelled` is the number of documents on neither side, as they have no label or score. Where a column names the positives,
    they keep its order and have no grades. Without it, labels and threshold, the first document with the highest score is the
    positive.

    Raises:
        SourceError: a row has more or fewer labels or scores than documents.
    """
    f = source.fields
    assert f.documents is not None
    documents = text_lists(source, rows, f.documents)
    known = {name: number_lists(source, rows, name) for name in (f.label, f.score) if name}
    for name, each in known.items():
        _same_length(source, rows, documents, each, name)
    scores = [_score_table(queries, documents, known[f.score])] if f.score else None
    if f.positive:
        positives = text_lists(source, rows, f.positive)
        frame = pl.DataFrame({"text": documents, "right": positives}).with_row_index("at")
        positive = frame.select("at", text="right").explode("text")
        others = frame.select("at", "text").explode("text").drop_nulls("text")
        others = others.join(positive, on=["at", "text"], how="anti", maintain_order="left")
        others = others.group_by("at", maintain_order=True).agg("text")
        negatives = frame.select("at").join(others, on="at", how="left", maintain_order="left")["text"].fill_null([])
        return {"positives": positives, "negatives": negatives}, None, scores, 0
    numbers = list(known.values())
    frame = pl.DataFrame({"text": documents, "number": numbers[0], "score": numbers[-1]})
    frame = frame.with_row_index("at")
    long = frame.filter(pl.col("text").list.len() > 0).explode("text", "number", "score")
    number = pl.col("number")
    if source.threshold is not None:
        right = number >= source.threshold
    elif f.label:
        right = number > 0
    else:
        scored = pl.when(pl.col("text").is_not_null()).then(number.fill_null(-inf))
        best = (pl.int_range(pl.len()).over("at") == scored.arg_max().over("at")).fill_null(False)
        right = pl.when(number.is_not_null()).then(best)
    long = long.with_columns(right.alias("right"))
    best_first = long.sort("at", "score", descending=[False, True], nulls_last=True, maintain_order=True)
    lists = [
        best_first.filter("right").group_by("at", maintain_order=True).agg(positives="text", grades="number"),
        long.filter(~pl.col("right")).group_by("at", maintain_order=True).agg(negatives="text"),
    ]
    both = frame.select("at")
    for table in lists:
        both = both.join(table, on="at", how="left", maintain_order="left")
    sides = {side: both[side].fill_null([]) for side in ("positives", "negatives")}
    unlabelled = long.filter(pl.col("right").is_null() & pl.col("text").is_not_null()).height
    return sides, both["grades"].fill_null([]), scores, unlabelled


def with_scores(pairs: pl.DataFrame, keys: pl.Series, scores: pl.DataFrame) -> pl.DataFrame:
    """Return PAIRS with `positive_score` and `negative_scores` as in MINED_PAIRS, null for a text without a score.

    `keys` are the keys of the passages, by number.
    """
    tuples = pairs.with_row_index("at")
    first = tuples.select("at", pl.col("key").alias("query"), pl.col("positives").list.first().alias("pid"))
    others = tuples.select("at", pl.col("key").alias("query"), pl.col("negatives").alias("pid"))
    others = others.explode("pid", empty_as_null=False).drop_nulls("pid")
    first, others = (
        long.with_columns(keys.gather(long["pid"]).alias("text")).join(
            scores, on=["query", "text"], how="left", maintain_order="left"
        )
        for long in (first, others)
    )
    lists = others.group_by("at", maintain_order=True).agg(pl.col("score").alias("negative_scores"))
    lists = tuples.select("at").join(lists, on="at", how="left", maintain_order="left")
    return pairs.with_columns(first["score"].alias("positive_score"), lists["negative_scores"].fill_null([]))


def _score_table(queries: pl.Series, texts: pl.Series, scores: pl.Series) -> pl.DataFrame:
    """Return SCORES of lists of texts and their scores."""
    asked = queries.is_not_null()
    keys = keys_of(queries.filter(asked)).alias("query")
    long = pl.DataFrame([keys, texts.filter(asked).alias("text"), scores.filter(asked).alias("score")])
    long = long.filter(pl.col("score").list.drop_nulls().list.len() > 0).explode("text", "score").drop_nulls()
    return long.with_columns(keys_of(long["text"]).alias("text")).cast(SCORES)


def united_scores(parts: list[list[pl.DataFrame]]) -> pl.DataFrame:
    """Return the scores of all parts of a source: of each query and text the first one, those of positives before others."""
    long: pl.DataFrame = pl.concat([table for side in zip(*parts, strict=True) for table in side])
    return long.unique(["query", "text"], keep="first", maintain_order=True)


def _same_length(
    source: Source, rows: pl.DataFrame, texts: pl.Series, numbers: pl.Series, name: str, or_none: bool = False
) -> None:
    """Fail if a row has another number of texts than of numbers; with `or_none`, a row without any number is allowed."""
    have, wanted = numbers.list.len(), texts.list.len()
    wrong = have != wanted
    if or_none:
        wrong &= numbers.list.drop_nulls().list.len() > 0
    if wrong.any():
        at = int(wrong.arg_max() or 0)
        what = f"row {rows[ROW][at]} has {wanted[at]} texts and {have[at]} numbers in '{name}'"
        raise SourceError(place_of(source), what, "give each text a number or null, or leave the column out of 'fields'")


def answers_of(source: Source, rows: pl.DataFrame, tuples: pl.DataFrame) -> pl.DataFrame | None:
    """Return `key` (of a query) and `answers`, for tuples whose rows have any; None if no column is mapped.

    Answers are not part of a tuple, but evidence that a negative is false. The second tuple of `both_ways` has none, as it
    asks for something else.
    """
    if source.fields.answer is None:
        return None
    answers = text_lists(source, rows, source.fields.answer).list.drop_nulls()
    named = pl.DataFrame({"row": rows[ROW].cast(pl.UInt64), "answers": answers})
    asked = tuples.select("row", keys_of(tuples["query"])).unique("row", keep="first", maintain_order=True)
    both = asked.join(named.filter(pl.col("answers").list.len() > 0), on="row", maintain_order="left")
    return both.select("key", "answers")


def united_lists(parts: list[pl.DataFrame], name: str) -> pl.DataFrame:
    """Return `key` (of a query) and the distinct values of its lists in the column `name`, of all parts of a source."""
    lists = pl.concat(parts).group_by("key", maintain_order=True).agg(pl.col(name).explode(empty_as_null=False))
    return lists.with_columns(pl.col(name).list.unique(maintain_order=True))
