"""Other tools' training data: from tuples with their texts to the rows or lines that those tools read.

    f2llm          query (rendered), passage, negative_1..n          F2LLM's trainer
    pair           anchor, positive                                  sentence-transformers; one row a positive
    triplet        anchor, positive, negative                        sentence-transformers; one row a negative
    n-tuple        anchor, positive, negative_1..n                   sentence-transformers
    labeled-list   query, documents, labels                          sentence-transformers, listwise losses of rerankers
    scored-list    query, documents, scores                          the same, with the miner's scores for labels
    flagembedding  query, pos, neg, pos_scores, neg_scores, ...      FlagEmbedding (bge)
    tevatron       query_id, query, positive_passages, ...           Tevatron, MIRACL
    beir           corpus.jsonl, queries.jsonl, qrels/train.tsv      retrieval toolkits; see `export.py`

sentence-transformers goes by the order of columns, and takes for the label the first of label, labels, score, scores:
a file with both labels and scores would pass the scores for texts, so these are two formats.

A block of tuples is a table of id, query, positives, positive_ids, negatives, negative_ids, positive_score,
negative_scores: texts and the ids of these texts in lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import polars as pl

from curation.core.record import NEGATIVES, render_query

SCORE_DIGITS = 7  # of a float32 in JSON
TYPES = {"retrieval": "normal", "classification": "only_1neg", "clustering": "symmetric_clustering"}  # FlagEmbedding's


class Constants(NamedTuple):
    """What is the same for each tuple of a source."""

    task: str
    instruction: str


class Format(NamedTuple):
    """A format, and which tuples it can hold."""

    make: Callable[[pl.DataFrame, Constants, int], pl.DataFrame | Iterator[dict[str, Any]]] | None
    ending: str
    mined: bool = True  # needs negatives
    fixed: bool = False  # negatives have columns of their own, so that each tuple must have all n
    first: bool = False  # holds one positive a tuple, the first
    scored: bool = False  # needs a score for each text


def f2llm(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return F2LLM's columns; its trainer tokenises `query` as it stands, so the instruction is rendered into it."""
    query = pl.lit(render_query(source.instruction, "")) + pl.col("query")
    return rows.select(query.alias("query"), pl.col("positives").list.first().alias("passage"), *_columns(n))


def pair(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return anchor, positive: one row a positive."""
    return rows.select(pl.col("query").alias("anchor"), pl.col("positives").alias("positive")).explode("positive")


def triplet(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return anchor, positive, negative: one row a negative."""
    first = pl.col("positives").list.first().alias("positive")
    return rows.select(pl.col("query").alias("anchor"), first, pl.col("negatives").alias("negative")).explode("negative")


def n_tuple(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return anchor, positive, negative_1..n."""
    return rows.select(pl.col("query").alias("anchor"), pl.col("positives").list.first().alias("positive"), *_columns(n))


def labeled_list(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return query, documents, labels: positives (1) before negatives (0)."""
    counted = rows.with_columns(
        pl.lit(1, pl.Int64).repeat_by(pl.col("positives").list.len()).alias("ones"),
        pl.lit(0, pl.Int64).repeat_by(pl.col("negatives").list.len()).alias("zeros"),
    )
    documents = pl.concat_list("positives", "negatives").alias("documents")
    return counted.select("query", documents, pl.concat_list("ones", "zeros").alias("labels"))


def scored_list(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return query, documents, scores: the first positive before the negatives."""
    documents = pl.concat_list(pl.col("positives").list.first(), "negatives").alias("documents")
    return rows.select("query", documents, pl.concat_list("positive_score", "negative_scores").alias("scores"))


def flagembedding(rows: pl.DataFrame, source: Constants, n: int) -> Iterator[dict[str, Any]]:
    """Yield FlagEmbedding's records; `prompt` is the bare instruction, a score is null where a text has none."""
    for row in rows.iter_rows(named=True):
        yield {
            "query": row["query"],
            "pos": row["positives"],
            "neg": row["negatives"],
            "pos_scores": [_rounded(row["positive_score"]), *[None] * (len(row["positives"]) - 1)],
            "neg_scores": [_rounded(score) for score in row["negative_scores"]],
            "prompt": source.instruction,
            "type": TYPES[source.task],
        }


def tevatron(rows: pl.DataFrame, source: Constants, n: int) -> Iterator[dict[str, Any]]:
    """Yield Tevatron's records; the id of a passage is its text's key."""
    for row in rows.iter_rows(named=True):
        yield {
            "query_id": row["id"],
            "query": row["query"],
            "positive_passages": _passages(row["positive_ids"], row["positives"]),
            "negative_passages": _passages(row["negative_ids"], row["negatives"]),
        }


FORMATS = {
    "f2llm": Format(f2llm, "parquet", fixed=True, first=True),
    "pair": Format(pair, "parquet", mined=False),
    "triplet": Format(triplet, "parquet", first=True),
    "n-tuple": Format(n_tuple, "parquet", fixed=True, first=True),
    "labeled-list": Format(labeled_list, "parquet"),
    "scored-list": Format(scored_list, "parquet", first=True, scored=True),
    "flagembedding": Format(flagembedding, "jsonl"),
    "tevatron": Format(tevatron, "jsonl"),
    "beir": Format(None, "", mined=False),
}


def fitting(rows: pl.DataFrame, shape: Format, task: str, wanted: int | None) -> tuple[pl.DataFrame, int, dict[str, int]]:
    """Return (tuples that the format can hold, negatives a tuple at most, {reason: tuples left out}).

    Negatives are cut after `wanted`: by default the task's number where they have columns of their own, else none is cut.
    """
    if not shape.mined:
        return rows, 0, {}
    have = rows["negatives"].list.len()
    longest = have.to_numpy().max(initial=1)
    most = wanted or (NEGATIVES[task] if shape.fixed else int(longest))
    enough = have >= (most if shape.fixed else 1)
    cut = rows.filter(enough).with_columns(pl.col("negatives", "negative_ids", "negative_scores").list.head(most))
    left_out = {"too_few_negatives": len(rows) - len(cut)}
    if shape.scored:
        scores = pl.concat_list("positive_score", "negative_scores").list
        known = scores.drop_nulls().list.len() == scores.len()
        whole = cut.filter(known)
        left_out["no_scores"] = len(cut) - len(whole)
        cut = whole
    return cut, most, {reason: count for reason, count in left_out.items() if count}


def _columns(n: int) -> list[pl.Expr]:
    return [pl.col("negatives").list.get(at, null_on_oob=True).alias(f"negative_{at + 1}") for at in range(n)]


def _passages(ids: list[str], texts: list[str]) -> list[dict[str, str]]:
    return [{"docid": id_, "title": "", "text": text} for id_, text in zip(ids, texts, strict=True)]


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, SCORE_DIGITS)
