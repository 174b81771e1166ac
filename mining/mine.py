"""A build's tuples get their negatives. For each source: encode, search, choose, write.

Retrieval sources are searched; the corpus is the source's distinct positives. Clustering sources with labels draw texts
of other classes, or search those. Classification sources keep the other label, which they were built with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from curation.core import locks, store, tables
from curation.core.progress import Progress, silent
from mining.builds import described, settings_of
from mining.calibrate import calibrated
from mining.classes import classes_of
from mining.jobs import Job, jobs, settings_that_matter, signature
from mining.models import Models, Open, device_of_rank, open_encoder
from mining.rows import Fill, Tally, by_class, finished, given_only
from mining.searching import Search, blocks

DEARER = 7  # times an exact search of the same passages that lists cost


def mine_build(
    build: Path,
    only: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
    load: Open = open_encoder,
    rank: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Mine the sources of a build and return their receipts, each with `ran`: whether there was anything to do.

    Processes that give each its own `rank` may do this at once: they share the encoding and the search by shards and blocks,
    and the sources; where one dies, the others do its part. The files are those of one process.

    Raises:
        BuildError: the folder holds no whole build, or was changed by hand.
        ManifestError: its manifest has no usable `mine:` section.
        ModelError: the model cannot be loaded, or gives numbers that are none.
    """
    described(build)  # complain before anything is written
    models = Models(build, settings_of(build), device_of_rank(device, rank), load)
    receipts = dict[str, dict[str, Any]]()
    with locks.locked(build, "mine negatives" + ("" if rank is None else f" rank {rank}")):
        todo = list(jobs(build, only, models))
        for job in todo if rank is not None else ():
            _together(job, models, progress)
        for job in todo:
            with locks.claimed(build / "mined" / f".{job.name}.claim", wait=True):
                receipt, ran = store.run_stage(job.mined, job.digest, partial(_mine, job, models, progress))
            receipts[job.name] = {**receipt, "ran": ran}
    return receipts


def _together(job: Job, models: Models, progress: Progress) -> None:
    """Do this process's part of a source's encoding, searching and reranking."""
    if job.way in ("search", "hard") and not store.is_current(job.mined, job.digest):
        search = Search(job, models, progress)
        for wait in (False, True):
            for _, number, rows, frame in blocks(job.curated):
                search.prepare(frame, number, rows, wait)
        if models.reranker:
            fill, _ = _filler(search, job, models, progress)
            for _, number, rows, frame in blocks(job.curated):
                fill(frame, number, rows)  # what it chooses is not written here: the scores that it needed are


def plan(build: Path, only: Sequence[str] = (), device: str = "auto", load: Open = open_encoder) -> dict[str, dict[str, Any]]:
    """Return what `mine_build` would do: for each source the way, the rows, and whether it would run."""
    found = {}
    for job in jobs(build, only, Models(build, settings_of(build), device, load)):
        found[job.name] = {"way": job.way, "rows_in": job.entry["tuples"], "ran": not store.is_current(job.mined, job.digest)}
    return found


def warnings_of(name: str, receipt: Mapping[str, Any]) -> Iterator[str]:
    """Return a line for a source that lost more than half its rows or negatives, or to which a setting does not apply."""
    lost, settings = sum(receipt["dropped"].values()), receipt["settings"]
    wanted, found = receipt["kept"] * settings.get("negatives", 0), sum(receipt["histograms"]["negatives"])
    taken = {key: count for key, count in receipt["filters"].items() if count}
    most = ""
    if taken:
        key = max(taken, key=lambda key: taken[key])
        most = f"; '{key}' took most candidates ({taken[key]:,} of {receipt['candidates']:,}"
        most += f", which is {receipt['candidates'] // receipt['rows_in']} a row)"
    if lost * 2 > receipt["rows_in"]:
        yield f"{name}: {lost:,} of {receipt['rows_in']:,} rows have too few negatives and were dropped{most}"
    elif taken and settings["shortage"] == "keep" and found * 2 < wanted:
        yield f"{name}: {found:,} of {wanted:,} negatives were found, and rows short of them kept{most}"
    index = receipt.get("index", {})
    if index.get("probes", 0) * DEARER > index.get("lists", 1):
        yield (
            f"{name}: 'index: ivf' searches {index['probes']:,} of {index['lists']:,} lists for each query, "
            "which takes longer than all passages at once; take `index: exact`"
        )
    if receipt.get("answers") == 0:
        yield f"{name}: 'exclude_answer' takes nothing, the source names no answers; name their column, `fields: {{answer: ...}}`"


def _mine(job: Job, models: Models, progress: Progress, folder: Path) -> dict[str, Any]:
    """Do one source: files into `folder`, and what its receipt says."""
    said: dict[str, Any] = {}
    search: Search | None = None
    fill: Fill
    if job.way == "given":
        fill = partial(given_only, most=job.most)
    elif job.way == "class":
        fill = _drawer(job)
    else:
        search = Search(job, models, progress)
        fill, said = _filler(search, job, models, progress)
    tally = _write(job, folder, fill, progress)
    said |= search.said() if search else {}
    if search and job.settings.exclude_answer:
        said["answers"] = len(search.answers)
    said |= {
        **asdict(tally),
        "way": job.way,
        "curated": job.source,
        "signature": signature(job),
        "settings": settings_that_matter(job.way, job.settings),
    }
    return said | ({"encoder": dict(job.described)} if job.described else {})


def _filler(search: Search, job: Job, models: Models, progress: Progress) -> tuple[Fill, dict[str, Any]]:
    """Return the function that searches and chooses for a block of the source's rows, and what was calibrated."""
    rules, said = calibrated(search, lambda: Search(job, models, progress, hide=True), job.settings)
    return (lambda frame, number, rows: search.fill(frame, number, rows, rules, job.settings.shortage)), said


def _drawer(job: Job) -> Fill:
    """Return the function that draws texts of other classes for a block of rows."""
    classes, own = classes_of(job.curated)
    return lambda frame, number, rows: by_class(classes, own[rows], rows, job.wanted, job.seed, job.name)


def _write(job: Job, folder: Path, fill: Fill, progress: Progress) -> Tally:
    """Fill all rows block by block; a shard is written for each shard read."""
    tally, dropped, shards = Tally(), [], dict[int, list[pl.DataFrame]]()
    constants = {key: str(job.entry.get(key, "")) for key in ("task", "instruction", "language")}
    constants |= {"source": job.name, "signature": signature(job)}
    with progress(f"{job.name}: negatives", job.entry["tuples"], "rows") as advance:
        for shard, number, rows, frame in blocks(job.curated):
            if shard not in shards:
                _flush(folder, shards, constants)
            kept, lost = finished(job.name, frame, fill(frame, number, rows), job.wanted, job.settings.shortage, tally)
            shards.setdefault(shard, []).append(kept)
            dropped.append(lost)
            advance(len(frame))
    _flush(folder, shards, constants)
    tables.write_parquet(folder / "dropped.parquet", pl.concat(dropped), constants)
    return tally


def _flush(folder: Path, shards: dict[int, list[pl.DataFrame]], constants: Mapping[str, str]) -> None:
    """Write what is whole, and forget it."""
    for shard, kept in shards.items():
        tables.write_parquet(folder / f"pairs-{shard:05d}.parquet", pl.concat(kept), constants)
    shards.clear()
