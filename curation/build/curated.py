"""The last stage of a source: near-duplicates out, passages numbered, tables written."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import polars as pl

from curation.build.numbering import Frames, number, pairs_of, passages_of
from curation.build.stages import CARRIED
from curation.core.progress import Progress, silent
from curation.core.record import DROPPED, no_drops
from curation.core.store import digest_of, file_digest, receipt_of, run_stage, stands
from curation.core.tables import read_frames, read_parquet, read_table, write_frames, write_parquet
from curation.recipe.job import FORMAT, Done, Job, Receipt
from curation.recipe.manifest import Dedup
from curation.shape.answers import FILE as ANSWERS
from curation.shape.labelled import pair_up
from curation.shape.scores import with_scores
from curation.shape.unused import counts_of


def curate_digest(job: Job) -> str:
    """Return the digest of all that the tables depend on."""
    mine = receipt_of(job.build / "cleaned" / job.source.name)
    near = []
    if job.dedup:
        drops = _drops(job)
        pairs = receipt_of(job.build / "near" / job.source.name)
        near = [job.dedup.model_dump(), pairs["digest"], pairs["files"], file_digest(drops) if drops else None]
    return digest_of([FORMAT, "curate", mine["digest"], mine["files"], *near])


def _drops(job: Job) -> Path | None:
    """Return the file of what goes of a source for an earlier one's sake."""
    path = job.build / "across" / "drops" / "sources" / f"{job.source.name}.parquet"
    return path if job.dedup and job.dedup.across and path.exists() else None


def curate_stands(job: Job) -> bool:
    """Tell whether the tables of a source stand."""
    return stands(job.build / "curated" / job.source.name, curate_digest(job))


def curate_source(job: Job, progress: Progress = silent) -> Done:
    """Drop near-duplicates, group, number, write."""
    started = time.time()
    target = job.build / "curated" / job.source.name
    receipt, ran = run_stage(target, curate_digest(job), lambda folder: _curate(job, folder))
    return Done(receipt, ran, time.time() - started)


def _curate(job: Job, folder: Path) -> Receipt:
    source, stage = job.source, job.build / "cleaned" / job.source.name
    clean = receipt_of(stage)
    corpus, gone, families = read_parquet(stage / "corpus.parquet")["text"], no_drops(), None
    pairing = source.task == "clustering" and clean["shape"] == "labelled"
    scores = job.build / "shaped" / source.name / "scores.parquet"
    frames: Frames = partial(read_frames, stage, "tuples")
    if job.dedup or pairing or scores.exists():  # what looks at all of them at once
        tuples = read_table(stage, "tuples")
        if job.dedup:
            tuples, gone, families = _without_twins(job, job.dedup, tuples, corpus, folder)
        if pairing:
            tuples, lonely = pair_up(tuples, job.seed, source.name)
            gone = pl.concat([_lonely_too(gone, lonely), lonely])
        frames = partial(iter, [tuples])
    numbers = number(frames, corpus, source.task, families)
    constants = _constants(job, clean)
    pairs = pairs_of(frames, numbers)
    if scores.exists():
        pairs = (with_scores(some, numbers.keys, read_parquet(scores)) for some in pairs)
    kept = write_frames(folder, "pairs", pairs, constants)
    write_frames(folder, "passages", passages_of(frames, numbers, source.task), constants)
    if source.fields.answer is not None:
        answers, asked = read_parquet(job.build / "shaped" / source.name / ANSWERS), numbers.keys.gather(numbers.roles["query"])
        write_parquet(folder / ANSWERS, answers.filter(pl.col("key").is_in(asked.implode())), constants)
    write_parquet(folder / "dropped.parquet", pl.concat([read_parquet(stage / "dropped.parquet"), gone.cast(DROPPED)]))
    counts = {"kept": kept, "passages": numbers.passages, "dropped": clean["dropped"] | counts_of(gone)}
    return {**constants, **{name: clean[name] for name in (*CARRIED, "texts_out")}, **counts}


def _without_twins(
    job: Job, wanted: Dedup, tuples: pl.DataFrame, corpus: pl.Series, folder: Path
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return (tuples left, dropped ones, families of texts); write the verified pairs."""
    from curation.clean.within import drop_queries, edges_of, links_of, refuse_loss

    every = len(tuples)
    drops = _drops(job)
    across = read_parquet(drops) if drops else no_drops()
    tuples = tuples.filter(~pl.col("id").is_in(across["id"].implode()))
    links = links_of(job, tuples, corpus)
    left, twins = drop_queries(tuples, links, wanted, job.source.name, by_label=job.source.task == "clustering")
    gone = pl.concat([across, twins])
    refuse_loss(gone, every, wanted, job.source.name)
    write_parquet(folder / "near.parquet", edges_of(links))
    return left, gone, links.texts.select("text", "family")


def _lonely_too(gone: pl.DataFrame, lonely: pl.DataFrame) -> pl.DataFrame:
    """Return dropped tuples: one whose kept twin is alone in its class was in no other company, and goes for the same reason."""
    with_it = gone.join(lonely.select(pl.col("id").alias("twin_id"), pl.col("evidence").alias("label")), on="twin_id", how="left")
    alone = pl.col("label").is_not_null()
    return with_it.with_columns(
        pl.when(alone).then(pl.lit("pair")).otherwise("stage").alias("stage"),
        pl.when(alone).then(pl.lit("lonely_class")).otherwise("reason").alias("reason"),
        pl.when(alone).then("label").otherwise("evidence").alias("evidence"),
        *(pl.when(~alone).then(name).alias(name) for name in ("twin_id", "twin_source", "score")),
    ).select(gone.columns)


def _constants(job: Job, clean: Receipt) -> dict[str, str]:
    """Return what is the same for every row of a source; it stands in the receipt and in the parquet metadata."""
    source = job.source
    used = job.filters.model_dump(exclude_none=True)
    said = ",".join(f"{name}={value}" for name, value in sorted(used.items()))
    signature = f"tuplesmith:{FORMAT}|seed:{job.seed}|shape:{clean['shape']}|limit:{source.limit or 'none'}|filters:{said}"
    if job.dedup:
        signature += f"|dedup:{job.dedup.threshold}" + (",across" if job.dedup.across else "")
    return {
        "source": source.name,
        "task": source.task,
        "language": source.language,
        "instruction": clean["instruction"],
        "revision": source.revision or "",
        "license": source.license or "",
        "signature": signature,
    }
