"""The stages of a source between shaping and curating: which of its texts match, and what is left without the leaks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
import xxhash

from curation.duplicates.shingles import SHINGLING
from curation.errors import SourceError
from curation.leaks import decontaminate
from curation.progress import Progress, silent
from curation.schema import DROPPED
from curation.shaping import holdout
from curation.shaping.columns import place_of
from curation.stages import FORMAT, Done, Job, Receipt, counts_of
from curation.store import digest_of, read_json, read_parquet, read_table, run_stage, stands, write_parquet, write_table
from curation.text import forms

SHORTEST = 12  # characters of a text that counts as shared by two sources


def near_digest(job: Job) -> str:
    """Return the digest of all that the pairs depend on: the source's own texts, and how far down they are wanted."""
    assert job.dedup
    mine = read_json(job.build / "shaped" / job.source.name / "done.json")
    texts = {name: digest for name, digest in mine["files"].items() if name.startswith(("tuples-", "corpus."))}
    return digest_of([FORMAT, "near", texts, job.dedup.stored, job.dedup.across, SHINGLING])


def near_stands(job: Job) -> bool:
    """Tell whether the pairs of a source stand."""
    return stands(job.build / "near" / job.source.name, near_digest(job))


def near_source(job: Job, progress: Progress = silent) -> Done:
    """Find the near-duplicates among all texts of a source."""
    started = time.time()
    receipt, ran = run_stage(job.build / "near" / job.source.name, near_digest(job), lambda folder: _near(job, folder))
    return Done(receipt, ran, time.time() - started)


def _near(job: Job, folder: Path) -> Receipt:
    from curation.duplicates.near import near, slices
    from curation.duplicates.within import texts_of  # loads the compiled loops

    assert job.dedup
    found = near(slices(texts_of(job.build / "shaped" / job.source.name)), job.dedup.stored, folder)
    pairs = pl.DataFrame({"left": found.left, "right": found.right, "score": found.score})
    write_parquet(folder / "pairs.parquet", pairs)
    write_parquet(folder / "form.parquet", pl.DataFrame({"form": found.form}))
    for path in folder.iterdir():
        for_others = path.name.startswith(("entries", "counts", "forms", "keys-")) and job.dedup.across
        if path.suffix != ".parquet" and not for_others:
            path.unlink()
    return {"source": job.source.name, "texts": len(found.form), "pairs": len(found.score), "lowest": job.dedup.stored}


def clean_digest(job: Job) -> str:
    """Return the digest of all that is left of a source depends on: its stage 1, and what is held out anywhere."""
    mine = read_json(job.build / "shaped" / job.source.name / "done.json")
    leaks = {name: read_json(stage / "done.json")["files"]["heldout.parquet"] for name, stage in _holding(job).items()}
    guard = decontaminate.depends_on(job.decontaminate, job.build)
    return digest_of([FORMAT, "clean", mine["digest"], mine["files"], leaks, *guard])


def _holding(job: Job) -> dict[str, Path]:
    stages = {name: job.build / "shaped" / name for name in job.holding}
    return {name: stage for name, stage in stages.items() if (stage / "done.json").exists()}


def clean_stands(job: Job) -> bool:
    """Tell whether a source's clean tuples stand."""
    return stands(job.build / "cleaned" / job.source.name, clean_digest(job))


def clean_source(job: Job, progress: Progress = silent) -> Done:
    """Take out of a source what is held out anywhere."""
    started = time.time()
    receipt, ran = run_stage(job.build / "cleaned" / job.source.name, clean_digest(job), lambda folder: _clean(job, folder))
    return Done(receipt, ran, time.time() - started)


def _clean(job: Job, folder: Path) -> Receipt:
    source, stage = job.source, job.build / "shaped" / job.source.name
    shaped = read_json(stage / "done.json")
    heldout = holdout.forms_of([(name, read_parquet(path / "heldout.parquet")) for name, path in _holding(job).items()])
    tuples, gone, negatives_out = holdout.take_out_leaks(read_table(stage, "tuples"), heldout, source.name)
    if not len(tuples):
        raise SourceError(place_of(source), "every tuple of it is held out somewhere", "hold out fewer")
    corpus = read_parquet(stage / "corpus.parquet")["text"]
    corpus = corpus.filter(~forms(corpus).is_in(heldout["form"].implode()))
    more_out: dict[str, int] = {}
    if job.decontaminate:
        tuples, corpus, leaked, more_out = decontaminate.take_out(
            job.decontaminate, job.build, folder, tuples, corpus, source.name
        )
        gone = pl.concat([gone, leaked])
        if not len(tuples):
            raise SourceError(place_of(source), "every tuple of it is a leak", "see `mode: report`, or leave the source out")
    write_table(folder, "tuples", tuples)
    write_parquet(folder / "corpus.parquet", pl.DataFrame({"text": corpus}))
    write_parquet(folder / "dropped.parquet", pl.concat([read_parquet(stage / "dropped.parquet"), gone]).cast(DROPPED))
    write_parquet(folder / "forms.parquet", _forms(tuples, corpus))
    texts_out = shaped["texts_out"] | ({"heldout_negative": negatives_out} if negatives_out else {}) | more_out
    carried = ("instruction", "rows_in", "rows_used", "rows_dropped", "tuples_made", "merged", "heldout", "inputs", "shape")
    counts: dict[str, Any] = {"dropped": shaped["dropped"] | counts_of(gone), "texts_out": texts_out}
    return {"source": source.name, **{name: shaped[name] for name in carried}, **counts}


def _forms(tuples: pl.DataFrame, corpus: pl.Series) -> pl.DataFrame:
    """Return the hashes of the forms of all texts that are not very short, sorted: two sources share those they both have."""
    lists = [tuples[name].explode(empty_as_null=False) for name in ("positives", "negatives")]
    texts = pl.concat([tuples["query"], *lists, corpus]).drop_nulls().unique()
    texts = texts.filter(texts.str.len_chars() >= SHORTEST)
    hashes = map(xxhash.xxh3_64_intdigest, forms(texts).cast(pl.Binary).to_list())
    return pl.Series("form", list(hashes), dtype=pl.UInt64).unique().sort().to_frame()
