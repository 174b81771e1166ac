"""Held-out queries for evaluation, and their removal from all training tuples.

Tuples that share a positive or a query (equal normalised form) are held out together, so that no held-out passage is a training
positive.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from curation.core.errors import SourceError
from curation.core.record import draws, dropped_frame, key_of
from curation.core.store import atomic, write_lines
from curation.core.text import connected, forms
from curation.shape.columns import EVIDENCE_CHARS
from curation.shape.merge import distinct_by_key

HELDOUT = pl.Schema({"form": pl.String(), "id": pl.String(), "source": pl.String()})


def split_held_out(tuples: pl.DataFrame, wanted: int, seed: int, source: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (tuples to train on, held-out tuples): whole groups of tuples that share texts, drawn by seed, at most `wanted`.

    Raises:
        SourceError: no tuple would be left to train on, or no group is small enough.
    """
    if not wanted:
        return tuples, tuples.head(0)
    where = f"source '{source}'"
    if wanted >= len(tuples):
        raise SourceError(where, f"'holdout: {wanted}' leaves none of its {len(tuples)} tuples to train on", "hold out fewer")
    long = pl.concat(
        [
            tuples.with_row_index("at").select("at", pl.col("positives").alias("text")).explode("text"),
            tuples.with_row_index("at").select("at", pl.col("query").alias("text")),
        ]
    )
    node = forms(long["text"]).rank("dense").to_numpy().astype(np.int64) - 1 + len(tuples)
    family = connected(long["at"].to_numpy(), node, len(tuples) + len(long))[: len(tuples)]
    members, sizes = np.unique(family, return_counts=True)
    taken, total = [], 0
    for at in np.argsort(draws(seed, f"{source}/holdout", tuples["row"].to_numpy()[members]), kind="stable"):
        if total + sizes[at] <= wanted:
            taken.append(members[at])
            total += int(sizes[at])
        if total == wanted:
            break
    if not taken:
        raise SourceError(where, f"its tuples share texts in groups larger than 'holdout: {wanted}'", "hold out more, or none")
    held = pl.Series(np.isin(family, taken))
    return tuples.filter(~held), tuples.filter(held)


def heldout_forms(held: list[tuple[str, pl.DataFrame]]) -> pl.DataFrame:
    """Return a HELDOUT table of (source, its held-out tuples): the form of every query and positive, with its tuple's id."""
    tables = [pl.DataFrame(schema=HELDOUT)]
    for source, tuples in held:
        queries = tuples.select("id", pl.col("query").alias("text"))
        both = pl.concat([queries, tuples.select("id", pl.col("positives").alias("text")).explode("text")])
        tables.append(both.select(forms(both["text"]).alias("form"), "id", pl.lit(source).alias("source")).cast(HELDOUT))
    return pl.concat(tables).unique("form", keep="first", maintain_order=True)


def remove_heldout(tuples: pl.DataFrame, heldout: pl.DataFrame, source: str) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Return (tuples kept, dropped tuples, number of removed negatives): no held-out text stays in any role.

    A held-out query, or the last positive, drops its tuple; a negative is removed alone. The evidence is the text.
    """
    if not len(heldout) or not len(tuples):
        return tuples, dropped_frame(source, "decontaminate", tuples["id"].head(0), ""), 0
    frame = tuples.with_row_index("at")
    queries = _held_out(frame.select("at", pl.col("query").alias("text")), heldout)
    positives, negatives = (
        _held_out(frame.select("at", pl.col(name).alias("text")).explode("text", empty_as_null=False).drop_nulls(), heldout)
        for name in ("positives", "negatives")
    )
    if not sum(table["matched_id"].count() for table in (queries, positives, negatives)):
        return tuples, dropped_frame(source, "decontaminate", tuples["id"].head(0), ""), 0
    clean = frame.drop("positives", "negatives")
    for name, table in (("positives", positives), ("negatives", negatives)):
        good = table.filter(pl.col("matched_id").is_null()).group_by("at", maintain_order=True).agg(pl.col("text").alias(name))
        clean = clean.join(good, on="at", how="left", maintain_order="left").with_columns(pl.col(name).fill_null([]))
    first = pl.concat(
        [queries.with_columns(reason=pl.lit("heldout_query")), positives.with_columns(reason=pl.lit("heldout_positive"))]
    )
    first = first.filter(pl.col("matched_id").is_not_null()).unique("at", keep="first", maintain_order=True)
    clean = clean.join(first.rename({"source": "matched_source"}), on="at", how="left", maintain_order="left")
    emptied = (pl.col("reason") == "heldout_positive") & (pl.col("positives").list.len() == 0)
    out = ((pl.col("reason") == "heldout_query") | emptied).fill_null(False)
    gone = clean.filter(out)
    dropped = dropped_frame(
        source,
        "decontaminate",
        gone["id"],
        gone["reason"],
        gone["text"].str.slice(0, EVIDENCE_CHARS),
        gone["matched_id"],
        gone["matched_source"],
    )
    left = clean.filter(~out)
    taken = negatives.filter(pl.col("matched_id").is_not_null()).join(left, on="at", how="semi")
    return left.select(tuples.columns), dropped, len(taken)


def _held_out(long: pl.DataFrame, heldout: pl.DataFrame) -> pl.DataFrame:
    """Return at, text, matched_id, source; matched_id is null for a text that is not held out."""
    found = long.with_columns(forms(long["text"]).alias("form")).join(heldout, on="form", how="left", maintain_order="left")
    return found.select("at", "text", pl.col("id").alias("matched_id"), "source")


def write_beir(folder: Path, held: pl.DataFrame, corpus: pl.Series) -> None:
    """Write held-out queries as a BEIR folder: corpus.jsonl, queries.jsonl, qrels/test.tsv.

    The corpus is all passages of the source, including those of training tuples: they are the distractors.
    """
    (folder / "qrels").mkdir(parents=True)
    passages = distinct_by_key(pl.concat([corpus, held["positives"].explode()]))
    write_lines(folder / "corpus.jsonl", ({"_id": key.hex(), "title": "", "text": text} for text, key in passages.iter_rows()))
    write_lines(folder / "queries.jsonl", ({"_id": id_, "text": text} for id_, text in held.select("id", "query").iter_rows()))
    with atomic(folder / "qrels" / "test.tsv") as file:
        file.write(b"query-id\tcorpus-id\tscore\n")
        for id_, positives in held.select("id", "positives").iter_rows():
            file.writelines(f"{id_}\t{key_of(text).hex()}\t1\n".encode() for text in positives)
