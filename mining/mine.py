"""A build's tuples get their negatives. For each source: encode, search, choose, write.

Retrieval sources are searched; the corpus is the source's distinct positives. Clustering sources with labels draw texts
of other classes, or search those. Classification sources keep the other label, which they were built with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from curation import locks, store, tables
from curation.errors import BuildError
from curation.manifest_models import Mine
from curation.progress import Progress, silent
from curation.schema import NEGATIVES
from mining import candidates
from mining.builds import described, selected, settings_of
from mining.calibrate import calibrated
from mining.classes import classes_of
from mining.models import Models, Open, device_of_rank, open_encoder
from mining.rows import Fill, Tally, by_class, finished, given_only
from mining.searching import Asked, Search, blocks

FORMAT = 2  # raised when the same settings give other rows
DEARER = 7  # times an exact search of the same passages that lists cost
NOT_RULES = {"model", "dtype", "max_tokens", "prompt", "store"}  # these are in the fingerprint or the texts


@dataclass(frozen=True)
class Job:
    """One source to mine, and all that its rows depend on."""

    build: Path
    name: str
    entry: Mapping[str, Any]  # the source in build.json
    settings: Mine
    seed: int
    way: str  # search, class or given
    digest: str
    described: Mapping[str, object]  # the encoder; empty where none is needed
    source: str  # the digest of the curated stage
    searched: str = ""  # the digest of what the candidates depend on
    device: str = "auto"

    @property
    def curated(self) -> Path:
        """Return the folder to read."""
        return self.build / "curated" / self.name

    @property
    def mined(self) -> Path:
        """Return the folder to write."""
        return self.build / "mined" / self.name

    @property
    def wanted(self) -> int:
        """Return the number of negatives a row."""
        return NEGATIVES["classification"] if self.way == "given" else self.settings.negatives

    @property
    def most(self) -> int:
        """Return how many given negatives a row keeps where none are searched."""
        return self.settings.negatives if self.settings.candidates == "given" else self.wanted

    def asked(self) -> Asked:
        """Return what is to be searched."""
        return Asked(
            name=self.name,
            curated=self.curated,
            candidates=self.build / "candidates" / self.name,
            embeddings=self.build / "embeddings",
            instruction=self.entry["instruction"],
            digest=self.searched,
            seed=self.seed,
            by_class=self.way == "hard",
            store=self.settings.store,
            method=self.settings.candidates,
            ivf=self.way == "search" and self.settings.index == "ivf",
            device=self.device,
        )


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
            with nullcontext() if rank is None else locks.claimed(build / "mined" / f".{job.name}.claim", wait=True):
                receipt, ran = store.run_stage(job.mined, job.digest, partial(_mine, job, models, progress))
            receipts[job.name] = {**receipt, "ran": ran}
    return receipts


def _together(job: Job, models: Models, progress: Progress) -> None:
    """Do this process's part of a source's encoding, searching and reranking."""
    if job.way in ("search", "hard") and not store.stands(job.mined, job.digest):
        search = searching(job, models, progress)
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
        found[job.name] = {"way": job.way, "rows_in": job.entry["tuples"], "ran": not store.stands(job.mined, job.digest)}
    return found


def jobs(build: Path, only: Sequence[str], models: Models) -> Iterator[Job]:
    """Return the sources to mine, checked, in the build's order."""
    whole = described(build)
    settings = settings_of(build)
    for name in selected(build, whole, only):
        entry, curated = whole["sources"][name], build / "curated" / name
        receipt = store.read_receipt(curated)
        if receipt is None or "digest" not in receipt:
            raise BuildError(curated, "is missing or unfinished", "run `curate build` again")
        store.check_files(curated, receipt)
        way = _way(entry["task"], curated, settings)
        fingerprint, about = models.identity() if way in ("search", "hard") else ("", {})
        depends = {"curated": receipt["digest"]}
        if fingerprint:
            depends |= {"encoder": [fingerprint, about, settings.store, settings.candidates], "instruction": entry["instruction"]}
        if way == "search" and settings.index != "exact":
            depends["index"] = [settings.index, int(whole["seed"])]
        searched = store.digest_of([candidates.FORMAT, depends, way])
        if fingerprint and models.reranker:
            depends |= {"reranker": models.reranker.fingerprint}
        depends |= _settings(way, settings) | {"format": FORMAT, "seed": int(whole["seed"])}
        digest = store.digest_of(depends)
        made = receipt["digest"]
        yield Job(build, name, entry, settings, int(whole["seed"]), way, digest, about, made, searched, models.device)


def signature(job: Job) -> str:
    """Return everything that shapes the negatives, in one line."""
    parts = {**job.described, **_settings(job.way, job.settings), "seed": job.seed, "format": FORMAT}
    return f"mine:{job.way}|" + "|".join(
        f"{key}:{value}" for key, value in parts.items() if value is not None and value is not False
    )


def warnings_of(name: str, receipt: Mapping[str, Any]) -> Iterator[str]:
    """Return a line for a source of which more than half the rows were lost, or to which a setting does not apply."""
    lost = sum(receipt["dropped"].values())
    taken = {key: count for key, count in receipt["filters"].items() if count}
    if lost * 2 > receipt["rows_in"]:
        text = f"{name}: {lost:,} of {receipt['rows_in']:,} rows have too few negatives and were dropped"
        if taken:
            most = max(taken, key=lambda key: taken[key])
            text += f"; '{most}' took most candidates ({taken[most]:,} of {receipt['candidates']:,}"
            text += f", which is {receipt['candidates'] // receipt['rows_in']} a row)"
        yield text
    index = receipt.get("index", {})
    if index.get("probes", 0) * DEARER > index.get("lists", 1):
        yield (
            f"{name}: 'index: ivf' searches {index['probes']:,} of {index['lists']:,} lists for each query, "
            "which takes longer than all passages at once; take `index: exact`"
        )
    if receipt.get("answers") == 0:
        yield f"{name}: 'exclude_answer' takes nothing, the source names no answers; name their column, `fields: {{answer: ...}}`"


def _way(task: str, curated: Path, settings: Mine) -> str:
    if task == "classification" or settings.candidates == "given":
        return "given"
    labelled = task == "clustering" and tables.read_table(curated, "pairs", ["label"])["label"].null_count() == 0
    if labelled:
        return "hard" if settings.classes == "hard" else "class"
    return "search"


def _settings(way: str, settings: Mine) -> dict[str, object]:
    """Return the settings that matter for a way, so that no other one makes it run again."""
    if way in ("search", "hard"):
        whole = way == "hard" or settings.index == "exact"
        return settings.model_dump(exclude=NOT_RULES | ({"index"} if whole else set()))
    counted = way == "class" or settings.candidates == "given"
    return {"shortage": settings.shortage} | ({"negatives": settings.negatives} if counted else {})


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
        search = searching(job, models, progress)
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
        "settings": _settings(job.way, job.settings),
    }
    return said | ({"encoder": dict(job.described)} if job.described else {})


def _filler(search: Search, job: Job, models: Models, progress: Progress) -> tuple[Fill, dict[str, Any]]:
    """Return the function that searches and chooses for a block of the source's rows, and what was calibrated."""
    rules, said = calibrated(search, lambda: searching(job, models, progress, hide=True), job.settings)
    return (lambda frame, number, rows: search.fill(frame, number, rows, rules, job.settings.shortage)), said


def searching(job: Job, models: Models, progress: Progress, hide: bool = False) -> Search:
    """Return the search of a source; with `hide` only the first positive of a row is known."""
    return Search(job.asked(), job.wanted, job.settings.range_max, models.encoder, progress, hide, models.reranker)


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
