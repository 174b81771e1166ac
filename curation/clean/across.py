"""Near-duplicates of two sources: a tuple is dropped if a kept tuple of an earlier source has its query and its positives.

Two stages over all sources, `across/pairs` (compare) and `across/drops` (decide). What a source loses is in a file of its own,
and only a change of that file makes the source's tables be written again.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.pairs import (
    Near,
    append_texts,
    comparable,
    first_of_form,
    matching_pairs,
    open_corpus,
    open_files,
    without_siblings,
)
from curation.clean.signatures import prepare
from curation.clean.within import drop_queries, has_invisible, links_of, refuse_loss
from curation.core.builds import Receipt
from curation.core.errors import SourceError
from curation.core.record import DROPPED, dropped_frame, no_drops
from curation.core.store import receipt_of
from curation.core.tables import read_parquet, read_table, write_parquet
from curation.core.texts import Texts, open_texts
from curation.engine.pool import Workers
from curation.recipe.job import Job
from curation.shape.columns import EVIDENCE_CHARS
from curation.shape.numbered import corpus_texts, first_occurrences, flat, role_texts, source_texts

TUPLE_AND_NODE = {"better": pl.UInt32, "node": pl.UInt32}
NEAR_COUNTS = pl.Schema({"source_a": pl.String(), "source_b": pl.String(), "near": pl.UInt32()})


class Kept(NamedTuple):
    """The tuples kept of the sources visited so far. A node is a text, equal normalised forms are one node."""

    tuples: pl.DataFrame  # better (number of the tuple), node of its query, id, source, invisible (see `has_invisible`)
    positives: pl.DataFrame  # better, node of a positive


def find_pairs(jobs: list[Job], folder: Path, workers: Workers) -> Receipt:
    """Write `pairs.parquet`: left, right, score of the texts of two sources that nearly match."""
    assert jobs[0].dedup

    # 1. One corpus of the texts and sketches of all sources
    stages = [job.build / "near" / job.source.name for job in jobs]
    bands = len(list(stages[0].glob("keys-*")))
    texts = entries = total = 0
    able, owners = [], []
    with ExitStack() as closing:
        file = open_files(folder, bands, closing)
        for job, stage in zip(jobs, stages, strict=True):
            shaped = job.build / "shaped" / job.source.name
            for batch in open_texts(shaped).batches(source_texts(shaped, corpus_texts(shaped))):
                total = append_texts(file, prepare(batch), total)
            own = np.fromfile(stage / "entries", np.int64)
            form = read_parquet(stage / "form.parquet")["form"].to_numpy()
            able.append(comparable(form, own, np.fromfile(stage / "counts", np.uint32)))
            owners.append(entries)
            file["entries"].write(np.where(own < 0, own - texts, own + texts).tobytes())
            for name in ("counts", "forms", *(f"keys-{band}" for band in range(bands))):
                file[name].write((stage / name).read_bytes())
            texts, entries = texts + len(form), entries + len(own)
    corpus = open_corpus(folder)

    def texts_at(numbers: np.ndarray) -> pl.Series:
        data, starts = corpus.texts
        bounds = zip(starts[numbers].tolist(), starts[numbers + 1].tolist(), strict=True)
        return pl.Series([data[first:end].tobytes().decode() for first, end in bounds], dtype=pl.String)

    # 2. Its pairs of two sources
    left, right, score = matching_pairs(corpus, np.concatenate(able), jobs[0].dedup.stored, workers, np.array(owners))
    found = without_siblings(Near(corpus.forms, left, right, score), texts_at)
    table = pl.DataFrame({"left": found.left, "right": found.right, "score": found.score})
    for path in folder.iterdir():
        path.unlink()
    write_parquet(folder / "pairs.parquet", table)
    return {"sources": [job.source.name for job in jobs], "pairs": len(table)}


def choose_drops(jobs: list[Job], folder: Path) -> Receipt:
    """Write the tuples that each source loses to earlier sources, and how many texts any two sources share."""
    build, settings = jobs[0].build, jobs[0].dedup
    assert settings
    near = [job.build / "near" / job.source.name for job in jobs]
    node = first_of_form(np.concatenate([np.fromfile(stage / "forms", np.uint64) for stage in near]))
    starts = list(accumulate((receipt_of(stage)["texts"] for stage in near), initial=0))
    pairs = read_parquet(build / "across" / "pairs" / "pairs.parquet").filter(pl.col("score") >= settings.threshold)

    # node, other, score in both directions: which texts of two sources match
    ends = [node[pairs[name].to_numpy()] for name in ("left", "right")]
    links = pl.DataFrame({"node": np.concatenate(ends), "other": np.concatenate(ends[::-1]), "score": np.tile(pairs["score"], 2)})
    links = links.filter(pl.col("node") != pl.col("other")).unique(["node", "other"], maintain_order=True)

    kept = Kept(  # nothing so far
        pl.DataFrame(
            schema={"better": pl.UInt32, "node": pl.UInt32, "id": pl.String, "source": pl.String, "invisible": pl.Boolean}
        ),
        pl.DataFrame(schema={"better": pl.UInt32, "node": pl.UInt32}),
    )
    alive = np.zeros(len(node), bool)
    (folder / "sources").mkdir(exist_ok=True)
    for start, job in zip(starts, jobs, strict=False):
        stage = job.build / "cleaned" / job.source.name
        shaped = job.build / "shaped" / job.source.name
        texts, tuples = open_texts(shaped), read_table(stage, "tuples")
        compared, remaining = source_texts(shaped, corpus_texts(shaped)), source_texts(stage, corpus_texts(stage))
        own = np.zeros(len(texts), np.int64)  # by the number of a text
        own[compared] = np.arange(start, start + len(compared))
        alive[own[remaining]] = True
        own = node[own]
        drops = no_drops()
        if job.source.task != "clustering":  # a clustering has no positives yet, and its classes are its own
            queries, positives = _nodes(tuples, own)
            drops = _superseded_by_earlier(job.source.name, tuples, texts, queries, positives, kept, links)

            # what the source keeps itself: no tuple at all if it loses too many, as the stage `curate` fails with this error
            assert job.dedup
            stay = tuples.filter(~pl.col("id").is_in(drops["id"].implode()))
            own_links = links_of(job, texts, first_occurrences(np.concatenate([*role_texts([stay]), corpus_texts(stage)])))
            stays, near_drops = drop_queries(stay, stay["id"].gather, own_links, job.dedup, job.source.name, by_label=False)
            try:
                refuse_loss(pl.concat([drops, near_drops]), len(tuples), job.dedup, job.source.name)
                tuples = stay.filter(stays)
            except SourceError:
                tuples = tuples.head(0)
            queries, positives = _nodes(tuples, own)
            number = (pl.col("at") + len(kept.tuples)).cast(pl.UInt32).alias("better")
            source, invisible = pl.lit(job.source.name).alias("source"), has_invisible(tuples, texts).alias("invisible")
            kept = Kept(
                pl.concat([kept.tuples, queries.select(number, "node", tuples["id"], source, invisible)]),
                pl.concat([kept.positives, positives.select(number, "node")]),
            )
        write_parquet(folder / "sources" / f"{job.source.name}.parquet", drops.cast(DROPPED))

    # pairs of different texts that match, for each two sources, among the texts that remain
    names = [job.source.name for job in jobs]
    left, right = pairs["left"].to_numpy(), pairs["right"].to_numpy()
    counted = alive[left] & alive[right] & (node[left] != node[right])
    owners = (np.searchsorted(starts, half[counted], side="right") - 1 for half in (left, right))
    named = (pl.Series(names, dtype=pl.String).gather(owner) for owner in owners)
    table = pl.DataFrame(dict(zip(("source_a", "source_b"), named, strict=True)))
    counts = table.group_by("source_a", "source_b", maintain_order=True).agg(pl.len().alias("near")).cast(NEAR_COUNTS)
    write_parquet(folder / "counts.parquet", counts)
    return {"sources": names}


def _nodes(tuples: pl.DataFrame, node: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (at, node) of the queries of tuples, and of their positives; `node` is (texts,) of the number of a text."""
    at = np.arange(len(tuples), dtype=np.uint32)
    queries = pl.DataFrame({"at": at, "node": node[tuples["query"].to_numpy()]})
    lengths = tuples["positives"].list.len().to_numpy()
    positives = pl.DataFrame({"at": np.repeat(at, lengths), "node": node[flat(tuples, "positives")]})
    return queries, positives.unique(maintain_order=True)


def _superseded_by_earlier(
    source: str,
    tuples: pl.DataFrame,
    texts: Texts,
    queries: pl.DataFrame,
    positives: pl.DataFrame,
    kept: Kept,
    links: pl.DataFrame,
) -> pl.DataFrame:
    """Return the tuples whose query matches a kept tuple of an earlier source that also has all their positives, as DROPPED."""
    # 1. Pairs of a tuple and a kept tuple with a matching query; one with invisible characters never supersedes a clean one
    equal = queries.join(kept.tuples, on="node").with_columns(pl.lit(1.0).alias("score"))
    near = queries.join(links, on="node").join(kept.tuples, left_on="other", right_on="node").select(equal.columns)
    clean = pl.DataFrame({"at": np.flatnonzero(~has_invisible(tuples, texts).to_numpy())}, schema={"at": pl.UInt32})
    pairs = pl.concat([equal, near]).join(
        clean.with_columns(invisible=True), on=["at", "invisible"], how="anti", maintain_order="left"
    )
    pairs = pairs.with_row_index("pair")

    # 2. Of these, the pairs where the kept tuple has each positive, itself or a near-duplicate of it
    wanted = pairs.join(positives, on="at", suffix="_positive").rename({"node_positive": "positive"})
    matched = wanted.join(links.rename({"score": "_"}), left_on="positive", right_on="node")
    reach = pl.concat(
        [
            wanted.select("pair", "better", "positive", pl.col("positive").alias("reached")),
            matched.select("pair", "better", "positive", pl.col("other").alias("reached")),
        ]
    )
    shared = reach.join(kept.positives, left_on=["better", "reached"], right_on=["better", "node"], how="semi")
    shared = shared.unique(["pair", "positive"]).group_by("pair").agg(pl.len().alias("shared"))
    counted = pairs.join(shared, on="pair").join(positives.group_by("at").agg(pl.len().alias("positives")), on="at")
    whole = counted.filter(pl.col("shared") == pl.col("positives"))

    # 3. The best match of each tuple
    found = whole.sort("at", "score", "better", descending=[False, True, False]).unique("at", keep="first", maintain_order=True)
    lost = tuples[found["at"]]
    shown = texts.at(lost["query"]).str.slice(0, EVIDENCE_CHARS)
    dropped = dropped_frame(source, "dedup", lost["id"], "near_duplicate_query", shown, found["id"], found["source"])
    return dropped.with_columns(found["score"])
