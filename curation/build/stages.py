"""The first stage of a source: read, shaped and filtered alone. Small jobs, fit for a worker process."""

from __future__ import annotations

import shutil
import time
from itertools import islice
from pathlib import Path

import polars as pl

from curation.core.errors import SourceError
from curation.core.progress import Progress, silent
from curation.core.store import digest_of, run_stage, stands
from curation.core.tables import read_parquet, read_table, write_parquet, write_table
from curation.read.rows import Lost, joined
from curation.read.sources import inputs, marks, outside, portions, read_rows, take, unchanged
from curation.recipe.job import FORMAT, Done, Job, Receipt
from curation.recipe.source import ABOUT, Source, TextTable, shape_of
from curation.shape import filters, holdout
from curation.shape import merge as equal
from curation.shape.answers import FILE as ANSWERS
from curation.shape.answers import answers_of
from curation.shape.columns import place_of
from curation.shape.parts import PORTION, Part, Shaped, in_turn, shape_parts, shapes_alone
from curation.shape.shapes import to_tuples
from curation.shape.unused import check_left, check_readable, check_rows, counts_of, unread

# what later stages' receipts repeat of the first one's
CARRIED = ("rows_in", "rows_used", "rows_dropped", "tuples_made", "merged", "heldout", "inputs", "outside", "shape")


def shape_digest(job: Job) -> tuple[str, dict[str, str]]:
    """Return the digest of all that stage 1 depends on, and the digests of its inputs."""
    reads = inputs(job.source, job.base)
    for part, table in extra_tables(job.source):
        reads |= {f"{part}/{name}": digest for name, digest in inputs(table, job.base).items()}
    what = job.source.model_dump(exclude=ABOUT)
    return digest_of([FORMAT, "shape", job.seed, what, job.filters.model_dump(), reads]), reads


def shape_stands(job: Job) -> bool:
    """Tell whether stage 1 has nothing to do."""
    return stands(job.build / "shaped" / job.source.name, shape_digest(job)[0])


def shape_source(job: Job, progress: Progress = silent) -> Done:
    """Stage 1 of one source: read, shape, filter, merge, set apart."""
    started = time.time()
    tables = [job.source, *(table for _, table in extra_tables(job.source))]
    before = [marks(table, job.base) for table in tables]
    digest, reads = shape_digest(job)

    def work(folder: Path) -> Receipt:
        with unchanged(before, tables, job.base):
            return _shape(job, folder, reads, progress)

    receipt, ran = run_stage(job.build / "shaped" / job.source.name, digest, work)
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


def extra_tables(source: Source) -> list[tuple[str, TextTable]]:
    """Return the corpus and the queries of a source, where it has them, each with its key."""
    return [(part, table) for part, table in (("corpus", source.corpus), ("queries", source.queries)) if table]


def _shape(job: Job, folder: Path, reads: dict[str, str], progress: Progress) -> Receipt:
    source, made = job.source, None
    held: list[Part] = []
    by_rows = shape_of(source) != "qrels"  # a limit of qrels counts queries, and is taken when they are known
    with progress(f"read {source.name}", None, "rows") as advance:
        if shapes_alone(source):
            parts = portions(source, job.base, PORTION, advance)
            held = list(islice(parts, 2))
            if len(held) > 1:
                made = shape_parts(source, job.filters, job.seed, in_turn(held, parts), folder)
                held = []
        if made is None:
            limit = source.limit if by_rows else None
            rows, lost = held[0] if held else take(source, job.seed, limit, job.base, advance)
    made = made or _shape_whole(job, rows, lost, folder)
    write_parquet(folder / "corpus.parquet", pl.DataFrame({"text": made.corpus}))
    write_parquet(folder / "heldout.parquet", made.held)
    write_parquet(folder / "dropped.parquet", pl.concat([made.unused, made.poor, made.merged]))
    tables = (source, *dict(extra_tables(source)).values())
    return {
        "source": source.name,
        "shape": shape_of(source),
        "instruction": made.instruction,
        "inputs": reads,
        "outside": sorted({name for table in tables for _, name in outside(table, job.base)}),
        "rows_in": made.rows_in,
        "rows_used": made.rows_in - len(made.unused),
        "rows_dropped": counts_of(made.unused),
        "tuples_made": made.tuples,
        "merged": len(made.merged),
        "heldout": len(made.held),
        "dropped": counts_of(made.poor),
        "texts_out": made.texts_out,
        "table_rows": made.table_rows,
    }


def _shape_whole(job: Job, rows: pl.DataFrame, lost: list[Lost], folder: Path) -> Shaped:
    source = job.source
    check_readable(source, rows, lost)
    tables = {part: _read_whole(f"{place_of(source)} ({part})", table, job.base) for part, table in extra_tables(source)}
    tuples, dropped, corpus, instruction, scores, unlabelled = to_tuples(source, rows, job.seed, **tables)
    table_rows = {part: len(table) for part, table in tables.items()}
    answers = answers_of(source, rows, tuples)
    rows_in, tuples_made = len(rows) + len(lost), len(tuples)
    del rows, tables  # from here on the tuples alone
    check_rows(source, rows_in, lost, dropped, tuples_made)
    tuples, poor, texts_out = filters.apply(tuples, job.filters, source.name, source.task)
    texts_out |= unlabelled or {}
    check_left(source, len(tuples), tuples_made, poor)
    tuples, merged = equal.merge_queries(tuples, source.name, job.filters.no_echo)
    train, held = holdout.set_apart(tuples, source.holdout, job.seed, source.name)
    if answers is not None:
        write_parquet(folder / ANSWERS, answers)
    write_table(folder, "tuples", train, compression="lz4")
    if scores is not None:
        write_parquet(folder / "scores.parquet", scores)
    unused = pl.concat([unread(source, lost), dropped])
    return Shaped(rows_in, tuples_made, unused, poor, merged, held, corpus, instruction, texts_out, table_rows)


def _read_whole(where: str, table: TextTable, base: Path) -> pl.DataFrame:
    """Return all rows of a corpus or of queries, which must be readable to the last."""
    batches = list(read_rows(table, base))
    for lost in (one for batch in batches for one in batch.lost if one.bad):
        raise SourceError(where, f"row {lost.row} is unreadable ({lost.reason})", lost.evidence)
    return joined([batch.frame for batch in batches], where)
