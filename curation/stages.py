"""The first stage of a source: read, shaped and filtered alone. Small jobs, fit for a worker process."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation.duplicates import equal
from curation.errors import SourceError
from curation.manifest import Dedup
from curation.manifest_decontaminate import Decontaminate
from curation.manifest_source import ABOUT, Filters, Source, TextTable, shape_of
from curation.progress import Progress, silent
from curation.reading.rows import Lost
from curation.reading.sources import inputs, read_rows, take
from curation.schema import dropped_frame
from curation.shaping import filters, holdout
from curation.shaping.answers import FILE as ANSWERS
from curation.shaping.answers import answers_of
from curation.shaping.columns import BAD, place_of
from curation.shaping.shapes import to_tuples
from curation.store import (
    digest_of,
    read_parquet,
    read_table,
    run_stage,
    stands,
    write_parquet,
    write_table,
)

FORMAT = 3  # of what the stages write; a new one makes every build run again
Receipt = dict[str, Any]


class Job(NamedTuple):
    """One source's part of a build; small, so that it travels to a worker process."""

    source: Source
    filters: Filters
    seed: int
    base: Path  # the manifest's folder: `files` are relative to it
    build: Path
    holding: tuple[str, ...]  # sources with held-out queries
    dedup: Dedup | None = None
    decontaminate: Decontaminate | None = None


class Done(NamedTuple):
    """One stage of one source."""

    receipt: Receipt
    ran: bool
    seconds: float


def shape_digest(job: Job) -> tuple[str, dict[str, str]]:
    """Return the digest of all that stage 1 depends on, and the digests of its inputs."""
    reads = inputs(job.source, job.base)
    for part, table in _extra(job.source):
        reads |= {f"{part}/{name}": digest for name, digest in inputs(table, job.base).items()}
    what = job.source.model_dump(exclude=ABOUT)
    return digest_of([FORMAT, "shape", job.seed, what, job.filters.model_dump(), reads]), reads


def shape_stands(job: Job) -> bool:
    """Tell whether stage 1 has nothing to do."""
    return stands(job.build / "shaped" / job.source.name, shape_digest(job)[0])


def shape_source(job: Job, progress: Progress = silent) -> Done:
    """Stage 1 of one source: read, shape, filter, merge, set apart."""
    started = time.time()
    digest, reads = shape_digest(job)
    receipt, ran = run_stage(job.build / "shaped" / job.source.name, digest, lambda folder: _shape(job, folder, reads, progress))
    heldout = job.build / "heldout" / job.source.name
    if job.source.holdout:
        run_stage(heldout, digest, lambda folder: _hold_out(job, folder))
    else:
        shutil.rmtree(heldout, ignore_errors=True)
    return Done(receipt, ran, time.time() - started)


def _hold_out(job: Job, folder: Path) -> Receipt:
    stage = job.build / "shaped" / job.source.name
    tuples, held = read_table(stage, "tuples"), read_parquet(stage / "heldout.parquet")
    texts = [
        tuples["positives"].explode(),
        tuples["negatives"].explode(empty_as_null=False),
        held["negatives"].explode(empty_as_null=False),
        read_parquet(stage / "corpus.parquet")["text"],
    ]
    holdout.write_beir(folder, held, pl.concat(texts).drop_nulls())
    return {"source": job.source.name, "queries": len(held)}


def _extra(source: Source) -> list[tuple[str, TextTable]]:
    return [(part, table) for part, table in (("corpus", source.corpus), ("queries", source.queries)) if table]


def _shape(job: Job, folder: Path, reads: dict[str, str], progress: Progress) -> Receipt:
    source = job.source
    by_rows = shape_of(source) != "qrels"  # a limit of qrels counts queries, and is taken when they are known
    with progress(f"read {source.name}", None, "rows") as advance:
        rows, lost = take(source, job.seed, source.limit if by_rows else None, job.base, advance)
    check_readable(source, rows, lost)
    tables = {part: _read_whole(f"{place_of(source)} ({part})", table, job.base) for part, table in _extra(source)}
    tuples, dropped, corpus, instruction, scores = to_tuples(source, rows, job.seed, **tables)
    answers = answers_of(source, rows, tuples)
    rows_in, tuples_made = len(rows) + len(lost), len(tuples)
    del rows, tables  # from here on the tuples alone
    _check_rows(source, rows_in, lost, dropped, tuples_made)
    tuples, poor, texts_out = filters.apply(tuples, job.filters, source.name, source.task)
    if not len(tuples):
        told = ", ".join(f"{reason} {n}" for reason, n in counts_of(poor).items())
        raise SourceError(place_of(source), f"filters leave none of its {tuples_made} tuples ({told})", "loosen 'filters'")
    tuples, merged = equal.merge_queries(tuples, source.name)
    train, held = holdout.set_apart(tuples, source.holdout, job.seed, source.name)
    dropped_rows = pl.concat([_unread(source, lost), dropped])
    if answers is not None:
        write_parquet(folder / ANSWERS, answers)
    write_table(folder, "tuples", train)
    if scores is not None:
        write_parquet(folder / "scores.parquet", scores)
    write_parquet(folder / "corpus.parquet", pl.DataFrame({"text": corpus}))
    write_parquet(folder / "heldout.parquet", held)
    write_parquet(folder / "dropped.parquet", pl.concat([dropped_rows, poor, merged]))
    return {
        "source": source.name,
        "shape": shape_of(source),
        "instruction": instruction,
        "inputs": reads,
        "rows_in": rows_in,
        "rows_used": rows_in - len(dropped_rows),
        "rows_dropped": counts_of(dropped_rows),
        "tuples_made": tuples_made,
        "merged": len(merged),
        "heldout": len(held),
        "dropped": counts_of(poor),
        "texts_out": texts_out,
    }


def _read_whole(where: str, table: TextTable, base: Path) -> pl.DataFrame:
    """Return all rows of a corpus or of queries, which must be readable to the last."""
    batches = list(read_rows(table, base))
    for lost in (one for batch in batches for one in batch.lost if one.bad):
        raise SourceError(where, f"row {lost.row} is unreadable ({lost.reason})", lost.evidence)
    return pl.concat([batch.frame for batch in batches], how="diagonal_relaxed")


def _unread(source: Source, lost: list[Lost]) -> pl.DataFrame:
    number = "row " if source.fields.id or source.fields.query_id else ""  # no number is taken for a given id
    ids = pl.Series([f"{source.name}/{number}{one.row}" for one in lost], dtype=pl.String)
    reasons = pl.Series([one.reason for one in lost], dtype=pl.String)
    return dropped_frame(source.name, "read", ids, reasons, pl.Series([one.evidence for one in lost], dtype=pl.String))


def check_readable(source: Source, rows: pl.DataFrame, lost: list[Lost]) -> None:
    """Refuse a source of which no row could be read, and say why: it has no columns to look for either.

    Raises:
        SourceError: there is no row but lost ones.
    """
    if rows.is_empty():
        _check_rows(source, len(lost), lost, _unread(source, []), 0)


def _check_rows(source: Source, rows_in: int, lost: list[Lost], dropped: pl.DataFrame, tuples: int) -> None:
    """Refuse a source without rows, with too many bad ones, or with none that makes a tuple."""
    if rows_in == 0:
        raise SourceError(place_of(source), "has no rows", "check 'path', 'split' or 'files'")
    broken = dropped.filter(pl.col("reason").is_in(BAD))
    bad = sum(one.bad for one in lost) + len(broken)
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counts_of(pl.concat([_unread(source, lost), dropped])).items()))
    if bad > source.max_bad * rows_in:
        first = next((one.evidence for one in lost if one.bad), None) or f"{broken['id'][0]} {broken['reason'][0]}"
        what = f"{bad} of {rows_in} rows are bad ({reasons}), and 'max_bad' allows {source.max_bad:.1%}"
        raise SourceError(place_of(source), what, f"first: {first}")
    if tuples == 0:
        raise SourceError(
            place_of(source), f"none of its {rows_in} rows makes a tuple ({reasons})", "check 'fields', 'labels' and 'threshold'"
        )


def counts_of(dropped: pl.DataFrame) -> dict[str, int]:
    """Return how many of a DROPPED table have each reason."""
    return dict(dropped.group_by("reason").len().sort("reason").iter_rows())
