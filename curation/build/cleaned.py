"""The stages of a source between shaping and curating: which of its texts match, and what is left without the leaks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import xxhash

from curation.build.stages import CARRIED
from curation.clean import decontaminate
from curation.clean.shingles import SHINGLING
from curation.clean.siblings import RULES as SIBLINGS
from curation.core.errors import SourceError, listed
from curation.core.progress import Progress, silent
from curation.core.record import DROPPED, no_drops
from curation.core.store import digest_of, receipt_of, run_stage, stands
from curation.core.tables import link_table, read_frames, read_parquet, read_table, write_frames, write_parquet
from curation.core.text import forms
from curation.recipe.job import FORMAT, Done, Job, Receipt
from curation.recipe.source import Source
from curation.shape import holdout
from curation.shape.columns import place_of
from curation.shape.unused import counts_of

SHORTEST = 12  # characters of a text that counts as shared by two sources


def near_digest(job: Job) -> str:
    """Return the digest of all that the pairs depend on: the source's own texts, and how far down they are wanted."""
    assert job.dedup
    mine = receipt_of(job.build / "shaped" / job.source.name)
    texts = {name: digest for name, digest in mine["files"].items() if name.startswith(("tuples-", "corpus."))}
    return digest_of([FORMAT, "near", texts, job.dedup.stored, job.dedup.across, SHINGLING, SIBLINGS])


def near_stands(job: Job) -> bool:
    """Tell whether the pairs of a source stand."""
    return stands(job.build / "near" / job.source.name, near_digest(job))


def near_source(job: Job, progress: Progress = silent) -> Done:
    """Find the near-duplicates among all texts of a source."""
    started = time.time()
    receipt, ran = run_stage(job.build / "near" / job.source.name, near_digest(job), lambda folder: _near(job, folder))
    return Done(receipt, ran, time.time() - started)


def _near(job: Job, folder: Path) -> Receipt:
    from curation.clean.near import near, slices, without_siblings
    from curation.clean.within import texts_of  # loads the compiled loops

    assert job.dedup
    texts = texts_of(job.build / "shaped" / job.source.name)
    found = without_siblings(near(slices(texts), job.dedup.stored, folder), texts.gather)
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
    mine = receipt_of(job.build / "shaped" / job.source.name)
    leaks = {name: receipt_of(stage)["files"]["heldout.parquet"] for name, stage in _holding(job).items()}
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
    shaped = receipt_of(stage)
    heldout = holdout.forms_of([(name, read_parquet(path / "heldout.parquet")) for name, path in _holding(job).items()])
    corpus = read_parquet(stage / "corpus.parquet")["text"]
    corpus = corpus.filter(~forms(corpus).is_in(heldout["form"].implode()))
    drops, out, hashes = [no_drops()], Counter[str](), []

    def kept(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        for frame in frames:
            tuples, leaked, negatives = holdout.take_out_leaks(frame, heldout, source.name)
            drops.append(leaked)
            out["heldout_negative"] += negatives
            hashes.append(_hashes(tuples))
            yield tuples

    if job.decontaminate:
        tuples = pl.concat(kept([read_table(stage, "tuples")]))
        if not len(tuples):
            raise _emptied(source, "held-out texts", pl.concat(drops))
        tuples, corpus, leaked, more_out = decontaminate.take_out(
            job.decontaminate, job.build, folder, tuples, corpus, source.name
        )
        drops, hashes, out = [*drops, leaked], [_hashes(tuples)], out + Counter(more_out)
        left = write_frames(folder, "tuples", [tuples], compression="lz4")
    elif len(heldout):
        left = write_frames(folder, "tuples", kept(read_frames(stage, "tuples")), compression="lz4")
    else:
        link_table(stage, folder, "tuples")
        left = sum(map(len, kept(read_frames(stage, "tuples"))))
    if not left:
        raise _emptied(source, "decontamination" if job.decontaminate else "held-out texts", pl.concat(drops))
    write_parquet(folder / "corpus.parquet", pl.DataFrame({"text": corpus}))
    write_parquet(folder / "dropped.parquet", pl.concat([read_parquet(stage / "dropped.parquet"), *drops]).cast(DROPPED))
    write_parquet(folder / "forms.parquet", _united([*hashes, _hashes_of(corpus)]))
    texts_out = shaped["texts_out"] | {name: count for name, count in out.items() if count}
    counts: dict[str, Any] = {"dropped": shaped["dropped"] | counts_of(pl.concat(drops)), "texts_out": texts_out}
    return {"source": source.name, **{name: shaped[name] for name in ("instruction", *CARRIED)}, **counts}


def _emptied(source: Source, by: str, drops: pl.DataFrame) -> SourceError:
    """Return the error of a source of which no tuple is left: what removed them, and which sets they match."""
    counts = drops.group_by("twin_source", maintain_order=True).len().sort("len", descending=True)
    matched = listed([f"{name} {count}" for name, count in counts.iter_rows()], 5)
    own = {source.name, decontaminate.HELDOUT + source.name} & set(counts["twin_source"])
    hint = f"its own held-out queries match the others: lower its 'holdout: {source.holdout}'" if own else "leave the source out"
    if by == "decontamination":
        hint += ", or see what matches with `mode: report`"
    return SourceError(place_of(source), f"{by} removed all {len(drops)} tuples (matched: {matched})", hint)


def _hashes(tuples: pl.DataFrame) -> pl.Series:
    lists = [tuples[name].explode(empty_as_null=False) for name in ("positives", "negatives")]
    return _hashes_of(pl.concat([tuples["query"], *lists]).drop_nulls())


def _hashes_of(texts: pl.Series) -> pl.Series:
    """Return a hash (u64) of the form of each text that is not very short."""
    texts = texts.unique()
    texts = texts.filter(texts.str.len_chars() >= SHORTEST)
    hashes = map(xxhash.xxh3_64_intdigest, forms(texts).cast(pl.Binary).to_list())
    return pl.Series("form", list(hashes), dtype=pl.UInt64)


def _united(hashes: list[pl.Series]) -> pl.DataFrame:
    """Return the hashes of all texts of a source once, sorted: two sources share those they both have."""
    return pl.concat(hashes).unique().sort().to_frame()
