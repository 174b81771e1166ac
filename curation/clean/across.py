"""Near-duplicates of two sources: a tuple goes where a kept one of an earlier source asks the same for the same.

Two stages over all sources, `across/pairs` (compare) and `across/drops` (decide). What goes of a source stands in a file
of its own, and that file alone decides whether the source's tables are written anew.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.near import Near, append_texts, files_for, firsts, own_entries, slices, without_siblings
from curation.clean.pairs import Corpus, matches, open_corpus
from curation.clean.shingles import forms_of
from curation.clean.signatures import read
from curation.clean.within import distinct, drop_queries, hides, links_of, refuse_loss, texts_of
from curation.core.errors import SourceError
from curation.core.record import DROPPED, dropped_frame, no_drops
from curation.core.store import receipt_of
from curation.core.tables import read_parquet, read_table, write_parquet
from curation.recipe.job import Job, Receipt
from curation.shape.columns import EVIDENCE_CHARS

COUNTS = pl.Schema({"source_a": pl.String(), "source_b": pl.String(), "near": pl.UInt32()})
POSITIVES = pl.Schema({"better": pl.UInt32(), "node": pl.UInt32()})
TUPLES = pl.Schema({**POSITIVES, "id": pl.String(), "source": pl.String(), "hides": pl.Boolean()})


class Kept(NamedTuple):
    """The tuples that are kept of the sources visited so far."""

    tuples: pl.DataFrame  # better (its number), node of its query, id, source, whether it hides invisible characters
    positives: pl.DataFrame  # better, node of a positive


def find_pairs(jobs: list[Job], folder: Path) -> Receipt:
    """Write `pairs.parquet`: left, right, score of the texts of two sources that nearly match."""
    assert jobs[0].dedup
    corpus, able, owners = _joined(jobs, folder)
    left, right, score = matches(corpus, able, jobs[0].dedup.stored, owners)
    found = without_siblings(Near(corpus.forms, left, right, score), partial(forms_of, corpus.texts))
    table = pl.DataFrame({"left": found.left, "right": found.right, "score": found.score})
    del corpus, found
    for path in folder.iterdir():
        path.unlink()
    write_parquet(folder / "pairs.parquet", table)
    return {"sources": [job.source.name for job in jobs], "pairs": len(table)}


def _joined(jobs: list[Job], folder: Path) -> tuple[Corpus, np.ndarray, np.ndarray]:
    """Put the texts and sketches of all sources into one corpus; return also the entries to compare, and each source's first."""
    stages = [job.build / "near" / job.source.name for job in jobs]
    bands = len(list(stages[0].glob("keys-*")))
    texts = entries = total = 0
    able, owners = [], []
    with ExitStack() as closing:
        file = files_for(folder, bands, closing)
        for job, stage in zip(jobs, stages, strict=True):
            for batch in slices(texts_of(job.build / "shaped" / job.source.name)):
                total = append_texts(file, read(batch), total)
            own = np.fromfile(stage / "entries", np.int64)
            form = read_parquet(stage / "form.parquet")["form"].to_numpy()
            able.append(own_entries(form, own, np.fromfile(stage / "counts", np.uint32)))
            owners.append(entries)
            file["entries"].write(np.where(own < 0, own - texts, own + texts).tobytes())
            for name in ("counts", "forms", *(f"keys-{band}" for band in range(bands))):
                file[name].write((stage / name).read_bytes())
            texts, entries = texts + len(form), entries + len(own)
    return open_corpus(folder), np.concatenate(able), np.array(owners)


def choose_drops(jobs: list[Job], folder: Path) -> Receipt:
    """Visit the sources in order, the first has priority; write the tuples that each one drops in favour of an earlier one."""
    build, wanted = jobs[0].build, jobs[0].dedup
    assert wanted
    node = firsts(np.concatenate([np.fromfile(build / "near" / job.source.name / "forms", np.uint64) for job in jobs]))
    starts = list(accumulate((receipt_of(job.build / "near" / job.source.name)["texts"] for job in jobs), initial=0))
    pairs = read_parquet(build / "across" / "pairs" / "pairs.parquet").filter(pl.col("score") >= wanted.threshold)
    links = _links(pairs, node)
    kept = Kept(pl.DataFrame(schema=TUPLES), pl.DataFrame(schema=POSITIVES))
    alive = np.zeros(len(node), bool)
    for start, job in zip(starts, jobs, strict=False):
        stage = job.build / "cleaned" / job.source.name
        tuples, corpus = read_table(stage, "tuples"), read_parquet(stage / "corpus.parquet")["text"]
        texts = texts_of(job.build / "shaped" / job.source.name).to_frame().with_row_index("number")
        texts = texts.with_columns(pl.Series("node", node[start : start + len(texts)]))
        left = texts.join(distinct(tuples, corpus).to_frame(), on="text", how="semi")["number"].to_numpy()
        alive[start + left] = True
        drops = no_drops()
        if job.source.task != "clustering":  # its texts have no positive yet, and its classes are its own
            drops = _give_way(job.source.name, tuples, texts, kept, links)
            kept = _with(kept, job.source.name, _left_over(job, tuples, corpus, drops), texts)
        (folder / "sources").mkdir(exist_ok=True)
        write_parquet(folder / "sources" / f"{job.source.name}.parquet", drops.cast(DROPPED))
    names = [job.source.name for job in jobs]
    write_parquet(folder / "counts.parquet", _counts(pairs, node, alive, np.array(starts), names))
    return {"sources": names}


def _links(pairs: pl.DataFrame, node: np.ndarray) -> pl.DataFrame:
    """Return node, other, score both ways: which texts of two sources match; texts of equal form are one node."""
    ends = [node[pairs[name].to_numpy()] for name in ("left", "right")]
    both = pl.DataFrame({"node": np.concatenate(ends), "other": np.concatenate(ends[::-1]), "score": np.tile(pairs["score"], 2)})
    return both.filter(pl.col("node") != pl.col("other")).unique(["node", "other"], maintain_order=True)


def _give_way(source: str, tuples: pl.DataFrame, texts: pl.DataFrame, kept: Kept, links: pl.DataFrame) -> pl.DataFrame:
    """Return the tuples of a source that match a kept one of an earlier source and have its positives too, as DROPPED."""
    queries, positives = _nodes(tuples, texts)
    equal = queries.join(kept.tuples, on="node").with_columns(pl.lit(1.0).alias("score"))
    near = queries.join(links, on="node").join(kept.tuples, left_on="other", right_on="node").select(equal.columns)
    clean = pl.DataFrame({"at": np.flatnonzero(~hides(tuples).to_numpy())}, schema={"at": pl.UInt32})
    pairs = pl.concat([equal, near])
    pairs = pairs.join(clean.with_columns(hides=True), on=["at", "hides"], how="anti", maintain_order="left").with_row_index(
        "pair"
    )
    wanted = pairs.join(positives, on="at", suffix="_positive").rename({"node_positive": "positive"})
    reach = pl.concat(
        [
            wanted.select("pair", "better", "positive", pl.col("positive").alias("reached")),
            wanted.join(links.rename({"score": "_"}), left_on="positive", right_on="node").select(
                "pair", "better", "positive", pl.col("other").alias("reached")
            ),
        ]
    )
    shared = reach.join(kept.positives, left_on=["better", "reached"], right_on=["better", "node"], how="semi")
    shared = shared.unique(["pair", "positive"]).group_by("pair").agg(pl.len().alias("shared"))
    all_of_them = pairs.join(shared, on="pair").join(positives.group_by("at").agg(pl.len().alias("positives")), on="at")
    found = all_of_them.filter(pl.col("shared") == pl.col("positives")).sort(
        "at", "score", "better", descending=[False, True, False]
    )
    found = found.unique("at", keep="first", maintain_order=True)
    lost = tuples[found["at"]]
    shown = lost["query"].str.slice(0, EVIDENCE_CHARS)
    dropped = dropped_frame(source, "dedup", lost["id"], "near_duplicate_query", shown, found["id"], found["source"])
    return dropped.with_columns(found["score"])


def _nodes(tuples: pl.DataFrame, texts: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (at, node) of the queries of tuples, and of their positives."""
    numbered = tuples.with_row_index("at")
    queries = numbered.select("at", pl.col("query").alias("text"))
    positives = numbered.select("at", pl.col("positives").alias("text")).explode("text", empty_as_null=False)
    both = (table.join(texts, on="text", maintain_order="left").select("at", "node") for table in (queries, positives))
    queries, positives = both
    return queries, positives.unique(maintain_order=True)


def _left_over(job: Job, tuples: pl.DataFrame, corpus: pl.Series, drops: pl.DataFrame) -> pl.DataFrame:
    """Return the tuples that are kept of a source once its own near-duplicates are dropped too; none if too many are."""
    assert job.dedup
    left = tuples.filter(~pl.col("id").is_in(drops["id"].implode()))
    left, near = drop_queries(left, links_of(job, left, corpus), job.dedup, job.source.name, by_label=False)
    try:
        refuse_loss(pl.concat([drops, near]), len(tuples), job.dedup, job.source.name)
    except SourceError:
        return tuples.head(0)  # the source fails with this error when it is curated
    return left


def _with(kept: Kept, source: str, tuples: pl.DataFrame, texts: pl.DataFrame) -> Kept:
    queries, positives = _nodes(tuples, texts)
    number = (pl.col("at") + len(kept.tuples)).cast(pl.UInt32).alias("better")
    named = queries.select(number, "node", tuples["id"], pl.lit(source).alias("source"), hides(tuples).alias("hides"))
    return Kept(pl.concat([kept.tuples, named]), pl.concat([kept.positives, positives.select(number, "node")]))


def _counts(pairs: pl.DataFrame, node: np.ndarray, alive: np.ndarray, starts: np.ndarray, names: list[str]) -> pl.DataFrame:
    """Return how many pairs of different texts match across each two sources, of texts that are left."""
    left, right = pairs["left"].to_numpy(), pairs["right"].to_numpy()
    kept = alive[left] & alive[right] & (node[left] != node[right])
    ends = (np.searchsorted(starts, half[kept], side="right") - 1 for half in (left, right))
    named = (pl.Series(names, dtype=pl.String).gather(end) for end in ends)
    table = pl.DataFrame(dict(zip(("source_a", "source_b"), named, strict=True)))
    return table.group_by("source_a", "source_b", maintain_order=True).agg(pl.len().alias("near")).cast(COUNTS)
