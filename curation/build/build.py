"""`curate build`: a manifest in, tables with provenance for each tuple out. Reads as a table of contents.

    1. shape     each source alone: read -> shape -> filter -> merge equal queries -> hold queries out
    2. near      which of its texts nearly match (with `dedup:`)
    3. clean     remove what is held out in any source, or occurs in an evaluation set (with `decontaminate:`)
    4. across    which of its tuples an earlier source has already (with `dedup: {across: yes}`), all sources at once
    5. curate    drop near-duplicates -> number passages -> write
    6. overlaps  what each two sources share

Each is a stage of the table in `stages.py`: it runs if what it depends on has changed, and only then.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl

from curation.build import attribution, stages
from curation.build.shape_stage import tables_of, with_inputs
from curation.build.stages import Stage
from curation.build.summary import refuse_other_files, summary_of, write_summary
from curation.clean import decontaminate, mteb_sets
from curation.core.builds import Receipt
from curation.core.errors import (
    BuildError,
    ManifestError,
    SourceError,
    UserError,
    did_you_mean,
    explain_refusal,
    first_line,
    is_disk_full,
    listed,
    refusal,
)
from curation.core.locks import locked
from curation.core.progress import Progress, silent
from curation.core.store import RECEIPT, atomic, check_files, is_current, receipt_of, write_json
from curation.core.texts import DATA as TEXTS
from curation.engine.local import Here, Processes, processors
from curation.engine.local import memory as memory_here
from curation.engine.pool import Workers
from curation.engine.ray import Cluster
from curation.engine.workers import workers as open_workers
from curation.read.lock import apply_lock, copy_lock
from curation.read.outside import refuse_outside
from curation.read.sources import is_local, total_bytes
from curation.recipe.job import Done, Job
from curation.recipe.licenses import Excluded, Policy, allowed
from curation.recipe.manifest import Manifest, load_manifest
from curation.recipe.source import Source, Table
from curation.report import page as report

Returned = TypeVar("Returned")
MEMORY = 4.0  # GB of a worker, by default
MOST_THREADS = 4  # that work on the parts of one source
THREAD_BYTES, FIRST_BYTES = 250e6, 500e6  # of memory that a thread takes, and a process before
MOST_BYTES = 2 << 30  # of input that threads work on; processes take a second to start, and need less memory each
TOO_LARGE = 1.5  # times the share that one process of several has of all input
PROCESS_BYTES = 64 << 20  # of input that one more process is started for; to start takes it seconds of a core at each stage


class Outcome(NamedTuple):
    """What a build did."""

    folder: Path
    receipts: dict[str, Receipt]  # source -> the receipt of its last stage
    ran: set[str]  # sources for which a stage ran
    failed: dict[str, UserError]
    excluded: list[Excluded]  # sources that the licence policy leaves out
    notes: list[str]  # sources whose number of rows is not the expected one


class Places(NamedTuple):
    """Where the work is done."""

    nodes: Workers
    most: int  # processes
    asked: bool  # for so many; if not, fewer are started for little input
    threads: int  # at most, of this process, for the parts of one source


def build(
    path: Path,
    out: Path | None = None,
    only: Iterable[str] = (),
    limit: int | None = None,
    workers: int | None = 1,
    progress: Progress = silent,
    licenses: Policy | None = None,
    confined: bool = False,
    decontaminated: bool = True,
    ray: str | None = None,
    memory: float | None = None,
) -> Outcome:
    """Build the manifest at `path`.

    If the manifest has a lock file next to it, the pinned revisions are used, and a source that differs from its entry
    there fails. A source that fails does not stop the others: it is in `failed`, and in build.json.

    Args:
        path: the manifest.
        out: the build folder; by default `builds/<name>`.
        only: names of sources; by default all of them.
        limit: at most this many rows of each source.
        workers: the number of processes; None starts several if the input is large enough, and they fit into memory.
        progress: reports how far the work is.
        licenses: a policy to use instead of the manifest's.
        confined: refuse what the manifest reads outside its own folder, because somebody else wrote it.
        decontaminated: whether to apply `decontaminate:`; without it no evaluation set is read.
        ray: the address of a Ray cluster whose nodes do the work, instead of processes of this machine.
        memory: GB of a worker, 4 by default; tasks of a cluster take it of their nodes only if it is given.

    Raises:
        ManifestError: the manifest is wrong; `only` names a source that it does not have or that the policy leaves out;
            or, with `confined`, an evaluation set or a model is outside the manifest's folder.
    """
    manifest, excluded = allowed(load_manifest(path), licenses)
    if not decontaminated:
        manifest = manifest.model_copy(update={"decontaminate": None})
    folder = out or Path("builds") / manifest.name
    refuse_other_files(folder, path)
    chosen = pick(manifest, only, excluded)
    refused = refuse_outside(manifest, path) if confined else {}
    manifest, changed = apply_lock(manifest, path, refused)
    base, folder = (path.parent, folder) if ray is None else (path.parent.absolute(), folder.absolute())  # nodes work elsewhere
    jobs = [job_of(manifest, source, base, folder, limit) for source in manifest.sources if source.name not in changed]
    changed = {name: error for name, error in changed.items() if name in chosen}
    taken = round((memory or MEMORY) * 1e9)
    most = workers or max(1, min(processors(), memory_here() // taken))
    with locked(folder, "curate build"), open_workers(folder, most, ray, memory=taken if memory else None) as nodes:
        places = Places(nodes, most, workers is not None, max(1, min(MOST_THREADS, int((taken - FIRST_BYTES) // THREAD_BYTES))))
        outcome = _build(path, manifest, folder, chosen, jobs, places, progress, excluded, changed)
        report.write(folder)  # last, as it shows everything else
        return outcome


def _build(
    path: Path,
    manifest: Manifest,
    folder: Path,
    chosen: list[str],
    jobs: list[Job],
    places: Places,
    progress: Progress,
    excluded: list[Excluded],
    changed: dict[str, UserError],
) -> Outcome:
    started = time.time()
    done: dict[str, dict[str, Done]] = {}  # stage -> source -> what it did
    failed: dict[str, UserError] = {}

    def run(stage: Stage[Job], some: list[Job], label: str = "") -> list[Job]:
        """Run a stage for some sources; return those that did not fail."""
        done[stage.name], more = _run_each(stage, some, places, progress, label or stage.name)
        failed.update(more)
        return [job for job in some if job.source.name in done[stage.name]]

    # 1. shape. Other sources than the chosen ones matter if they hold queries out, or if sources are compared
    across = manifest.dedup is not None and manifest.dedup.across
    needed = [job for job in jobs if across or job.source.name in chosen or job.source.holdout]
    readable = []  # with the digests of their files; a source whose files are missing has failed
    for job in needed:
        try:
            readable.append(_guarded(job, with_inputs, job, progress))
        except UserError as error:
            failed[job.source.name] = error
    shaped = run(stages.SHAPE, readable, "read and shape")
    held = [job for job in shaped if job.source.holdout]
    run(stages.HOLD_OUT, held)
    shaped = [job for job in shaped if job.source.name not in failed]
    for job in shaped:
        if not job.source.holdout:
            shutil.rmtree(folder / stages.HOLD_OUT.folder / job.source.name, ignore_errors=True)
    holding = tuple(job.source.name for job in shaped if done["shape"][job.source.name].receipt["heldout"])
    jobs = [job._replace(holding=holding) for job in jobs]

    # 2. and 3. near, clean
    workers_for_sets = partial(_workers_for_tables, places, path.parent)
    decontaminate.make_index(manifest.decontaminate, path.parent, folder, holding, progress, workers_for_sets)
    ready = [job._replace(holding=holding) for job in shaped if across or job.source.name in chosen]
    if manifest.dedup:
        ready = run(stages.NEAR, ready)
    ready = run(stages.CLEAN, ready)

    # 4. across
    if across and ready:
        for stage in (stages.ACROSS, stages.DROPS):
            done[stage.name] = {"": stages.run(stage, ready, progress, workers=_workers_for(sum(map(_size_of, ready)), places))}

    # 5. curate
    run(stages.CURATE, [job for job in ready if job.source.name in chosen])
    failed |= changed
    receipts = {name: one.receipt for name, one in done["curate"].items()}

    # 6. overlaps, and the files that describe the whole build: the sources built now, and those that are still current
    current = []
    for job in jobs:
        try:
            if job.source.name not in {*chosen, *failed} and _is_current(job):
                current.append(job)
        except BuildError as error:
            failed[job.source.name] = error
    names = [job.source.name for job in current]
    present = [job for job in jobs if job.source.name in {*receipts, *names}]
    overlaps = folder / "overlaps.parquet"
    if len(present) < 2:
        overlaps.unlink(missing_ok=True)
    else:
        stages.run(stages.OVERLAP, present)
        found = (folder / stages.OVERLAP.folder / "overlaps.parquet").read_bytes()
        if not overlaps.exists() or overlaps.read_bytes() != found:
            with atomic(overlaps) as file:
                file.write(found)
    contaminated = decontaminate.gather(manifest.decontaminate, folder, [job.source.name for job in present])
    copy_lock(path, folder)
    mteb_sets.write_training_datasets(folder, manifest)
    summary = summary_of(folder, manifest, receipts, failed, names, excluded, contaminated)
    attribution.write_attribution(folder, manifest, summary)
    write_summary(folder, path, manifest, summary)
    seconds = {
        f"{stage}/{name}".removesuffix("/"): round(one.seconds, 3)
        for stage, by_name in done.items()
        for name, one in by_name.items()
    }
    write_json(folder / "timings.json", {"seconds": round(time.time() - started, 3), "stages": seconds})
    ran = {name for by_name in done.values() for name, one in by_name.items() if one.ran and name in receipts}
    notes = [
        note
        for job in jobs
        if job.source.name in receipts
        for note in _unexpected_rows(job, done["shape"][job.source.name].receipt)
    ]
    return Outcome(folder, receipts, ran, failed, excluded, notes)


def _unexpected_rows(job: Job, receipt: Receipt) -> list[str]:
    """Return where the number of rows of a source, its corpus and its queries is not the one that the manifest expects."""
    source, counts = job.source, receipt.get("table_rows", {})
    whole = source.limit is None or receipt["shape"] == "qrels"
    counts = {"": receipt["rows_in"] + source.skip if whole else None, **counts}
    notes = []
    for part, table in tables_of(source).items():
        expected, count = table.expected_rows, counts.get(part)
        if None not in (expected, count) and expected != count:
            named = f"source '{source.name}'" + (f" ({part})" if part else "")
            notes.append(f"{named}: has {count:,} rows, and 'expected_rows' says {expected:,}")
    return notes


def _is_current(job: Job) -> bool:
    """Return whether the tables of a source that was not asked for are still right, given what is held out now.

    Raises:
        BuildError: they would be, but one of their files was changed since it was written.
    """
    needed = [stages.NEAR, stages.CLEAN, stages.CURATE] if job.dedup else [stages.CLEAN, stages.CURATE]
    folders = [stages.folder_of(stage, job) for stage in (stages.SHAPE, *needed)]
    if not all((folder / RECEIPT).exists() for folder in folders[:-1]):
        return False
    if not all(is_current(folder, stages.digest(stage, job)) for stage, folder in zip(needed, folders[1:], strict=True)):
        return False
    for folder in folders:
        check_files(folder, receipt_of(folder))
    return True


def pick(manifest: Manifest, only: Iterable[str], excluded: Iterable[Excluded] = ()) -> list[str]:
    """Return the names of the sources to work on.

    Raises:
        ManifestError: there is no such source, or the licence policy leaves it out.
    """
    names, out = [source.name for source in manifest.sources], dict(excluded)
    for name in only:
        if name in out:
            raise ManifestError("--only", f"source '{name}' is left out: {out[name]}")
        if name not in names:
            raise ManifestError("--only", f"no source '{name}'" + did_you_mean(name, names), f"sources: {listed(names)}")
    return [name for name in names if name in set(only)] or names


def job_of(manifest: Manifest, source: Source, base: Path, folder: Path, limit: int | None) -> Job:
    """Return a source's job; with `limit`, at most that many rows are read, and at most a fifth of them held out."""
    limited = source
    if limit is not None:
        fewer = {"limit": min(source.limit or limit, limit), "holdout": min(source.holdout, limit // 5)}
        limited = source.model_copy(update=fewer)
    holding = tuple(other.name for other in manifest.sources if other.holdout)
    return Job(
        limited, source.filters or manifest.filters, manifest.seed, base, folder, holding, manifest.dedup, manifest.decontaminate
    )


def _run_each(
    stage: Stage[Job], jobs: list[Job], places: Places, progress: Progress, label: str
) -> tuple[dict[str, Done], dict[str, UserError]]:
    """Run a stage for each source: in this process, in several, or on a cluster. The result does not depend on where.

    Returns:
        what the stage did, and the sources that failed, both in the order of `jobs`.
    """
    done: dict[str, Done] = {}
    failed: dict[str, UserError] = {}
    digests: dict[str, str] = {}
    waiting: list[tuple[Job, str]] = []

    def note(job: Job, result: Callable[[], Done]) -> None:
        try:
            done[job.source.name] = result()
        except UserError as error:
            failed[job.source.name] = error

    # sources that are current need no process: only their files are checked
    for job in jobs:
        name = job.source.name
        try:
            digests[name] = _guarded(job, stages.digest, stage, job)
            current = _guarded(job, is_current, stages.folder_of(stage, job), digests[name])
        except UserError as error:
            failed[name] = error
            continue
        if current:
            note(job, partial(_guarded, job, stages.run, stage, job, progress, digests[name]))
        else:
            waiting.append((job, digests[name]))
    for job, result in _results(stage, waiting, places, progress, label):
        note(job, result)
    order = [job.source.name for job in jobs]
    return {name: done[name] for name in order if name in done}, {name: failed[name] for name in order if name in failed}


def _results(
    stage: Stage[Job], items: list[tuple[Job, str]], places: Places, progress: Progress, label: str
) -> Iterator[tuple[Job, Callable[[], Done]]]:
    """Yield each source with a function that returns what the stage did for it, or raises its error.

    One that is much larger than a worker's share comes first: as the others would wait for it, all workers work on its parts.
    """
    nodes, count = places.nodes, places.most if places.asked else _workers_that_pay([job for job, _ in items], places.most)
    count = min(nodes.processors() if isinstance(nodes, Cluster) else count, len(items))
    sizes = [_size_of(job) for job, _ in items]
    large = [size * count > TOO_LARGE * sum(sizes) for size in sizes]
    if count == 1 or len(items) - sum(large) == 1:
        large = [True] * len(items)
    for (job, digest), alone in zip(items, large, strict=True):
        if alone:
            yield job, partial(_guarded, job, stages.run, stage, job, progress, digest, _workers_for(_size_of(job), places))
    items = [item for item, alone in zip(items, large, strict=True) if not alone]
    if not items:
        return
    if isinstance(nodes, Processes):
        nodes.most = min(count, len(items))
    with progress(label, len(items), "sources") as advance:
        for (job, _), result in nodes.run(partial(_run_there, stage), items):
            yield job, result
            advance(1)


def _workers_for(size: int, places: Places) -> Workers:
    """Return who works on parts of so many bytes of input: few threads of this process, or processes, or a cluster."""
    if not isinstance(places.nodes, Processes):
        return places.nodes
    places.nodes.most = count = min(places.most, max(MOST_THREADS, size // PROCESS_BYTES))
    return places.nodes if count > MOST_THREADS or size > MOST_BYTES else Here(threads=min(count, places.threads))


def _run_there(stage: Stage[Job], item: tuple[Job, str]) -> Done:
    """Run a stage in a worker process, where nothing reports progress."""
    job, digest = item
    return _guarded(job, stages.run, stage, job, silent, digest)


def _workers_that_pay(jobs: list[Job], most: int) -> int:
    """Return how many processes to use: one, and one more for each PROCESS_BYTES of input beyond the largest source."""
    total_bytes = sorted(map(_size_of, jobs))
    return min(most, 1 + sum(total_bytes[:-1]) // PROCESS_BYTES)


def _size_of(job: Job) -> int:
    """Return the bytes of a source's files.

    For a dataset of the Hub those of its texts; before these are there PROCESS_BYTES, as its process waits for the network.
    """
    tables = tables_of(job.source).values()
    try:
        if all(is_local(table, job.base) for table in tables):
            return _bytes_of(tables, job.base)
    except (UserError, OSError):
        return 0  # the source will fail with this error
    texts = job.build / stages.SHAPE.folder / job.source.name / TEXTS
    return texts.stat().st_size if texts.exists() else PROCESS_BYTES


def _bytes_of(tables: Iterable[Table], base: Path) -> int:
    """Return the bytes of tables; PROCESS_BYTES for each that the Hub has."""
    return sum(total_bytes(table, base) if is_local(table, base) else PROCESS_BYTES for table in tables)


def _workers_for_tables(places: Places, base: Path, tables: list[Table]) -> Workers:
    """Return who works on the rows of some tables."""
    return _workers_for(_bytes_of(tables, base), places)


def _guarded(job: Job, function: Callable[..., Returned], *arguments: object) -> Returned:
    """Call a function for a source, so that an unforeseen error fails only this source.

    Raises:
        SourceError: in place of any error other than a UserError, or one that concerns the whole build, such as a full disk.
    """
    try:
        return function(*arguments)
    except (Exception, pl.exceptions.PanicException) as error:  # polars' own derives from BaseException
        passed: BaseException | None = error
        while passed:  # an error is kept to the end of the build; what its frames hold is not: tuples, texts, open files
            traceback.clear_frames(passed.__traceback__)
            passed = passed.__cause__ or passed.__context__
        if isinstance(error, UserError):
            raise
        if refused := refusal(error):
            where, what, hint = explain_refusal(refused, str(job.build))
            if is_disk_full(refused) or Path(where).absolute().is_relative_to(job.build.absolute()):
                raise
            raise SourceError(where, what, hint) from None
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} ({first_line(error)})"
        hint = "this is a fault of tuplesmith: please report it"
        raise SourceError(f"source '{job.source.name}'", what, hint) from error
