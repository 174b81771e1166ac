"""`curate build`: manifest in, tables with provenance for every row out. Reads as a table of contents.

    1. shape   each source alone: read -> shape -> filter -> merge equal queries -> set held-out queries apart
    2. near    which of its texts nearly match (with `dedup:`)
    3. clean   take out what is held out anywhere, or stands in an evaluation set (with `decontaminate:`)
    4. across  which of its tuples ask what an earlier source asks (with `dedup: {across: yes}`), all sources at once
    5. curate  drop near-duplicates -> number passages -> write

All are stages with receipts (`store.run_stage`): a stage runs if what it depends on has changed, and only then.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl

from curation.build import attribution, overlaps
from curation.build.cleaned import clean_source, clean_stands, near_source, near_stands
from curation.build.curated import curate_source, curate_stands
from curation.build.stages import extra_tables, shape_source, shape_stands
from curation.build.summary import summary_of, write_summary
from curation.clean import decontaminate
from curation.clean import mteb_sets as mteb_tasks
from curation.core.errors import (
    ManifestError,
    SourceError,
    UserError,
    did_you_mean,
    explain_refusal,
    first_line,
    is_disk_full,
    refusal,
)
from curation.core.locks import locked
from curation.core.progress import Progress, silent
from curation.core.store import write_json
from curation.engine import local
from curation.read.lock import keep as keep_lock
from curation.read.lock import pinned
from curation.read.outside import refuse
from curation.read.sources import is_local, sizes
from curation.recipe.job import Done, Job, Receipt
from curation.recipe.licenses import Excluded, Policy, allowed
from curation.recipe.manifest import Manifest, load_manifest
from curation.recipe.source import Source
from curation.report import page as report

R = TypeVar("R")
WORTH = 64 << 20  # bytes of input that are worth a process more: it takes seconds of a core to start, at each stage


class Outcome(NamedTuple):
    """What a build did."""

    folder: Path
    receipts: dict[str, Receipt]  # source -> the receipt of its curated stage
    ran: set[str]  # sources of which a stage ran
    failed: dict[str, UserError]
    excluded: list[Excluded]  # sources that the licence policy leaves out
    notes: list[str]  # what a person should know: sources with other rows than expected


def build(
    path: Path,
    out: Path | None = None,
    only: Iterable[str] = (),
    limit: int | None = None,
    workers: int | None = 1,
    progress: Progress = silent,
    licenses: Policy | None = None,
    confined: bool = False,
) -> Outcome:
    """Build a manifest into `out`, or `builds/<name>`; `licenses` is a policy instead of the manifest's.

    `workers` is a number of processes; None takes several where the input is large enough for them to pay.
    `confined` is for a manifest from somebody else: what reads outside of its folder fails.

    Revisions come from the lock file beside the manifest, where there is one; a source that is not as it was locked fails.

    A source that fails does not undo the others: it stands in `failed`, and in build.json.

    Raises:
        ManifestError: the manifest is wrong, or `only` names a source that it has not, or that the policy leaves out; or
            `confined`, and an evaluation set or a model is outside of the manifest's folder.
    """
    manifest, excluded = allowed(load_manifest(path), licenses)
    folder = out or Path("builds") / manifest.name
    chosen = pick(manifest, only, excluded)
    refused = refuse(manifest, path) if confined else {}
    manifest, changed = pinned(manifest, path, refused)
    jobs = [job_of(manifest, source, path.parent, folder, limit) for source in manifest.sources if source.name not in changed]
    changed = {name: error for name, error in changed.items() if name in chosen}
    with locked(folder, "curate build"):
        outcome = _build(path, manifest, folder, chosen, jobs, workers, progress, excluded, changed)
        report.write(folder)  # last: it tells of all the others
        return outcome


def _build(
    path: Path,
    manifest: Manifest,
    folder: Path,
    chosen: list[str],
    jobs: list[Job],
    workers: int | None,
    progress: Progress,
    excluded: list[Excluded],
    changed: dict[str, UserError],
) -> Outcome:
    started = time.time()
    across = manifest.dedup is not None and manifest.dedup.across
    needed = [job for job in jobs if across or job.source.name in chosen or job.source.holdout]
    shaped, failed = _each(shape_source, shape_stands, needed, workers, progress, "read and shape")
    holding = tuple(name for name in shaped if shaped[name].receipt["heldout"])
    jobs = [job._replace(holding=holding) for job in jobs]
    decontaminate.make_index(manifest.decontaminate, path.parent, folder, holding, progress)
    ready = [job for job in jobs if (across or job.source.name in chosen) and job.source.name in shaped]
    stages = {"shape": shaped}
    steps = [("near", near_source, near_stands)] if manifest.dedup else []
    for name, work, stand in (*steps, ("clean", clean_source, clean_stands)):
        stages[name], more = _each(work, stand, ready, workers, progress, name)
        failed |= more
        ready = [job for job in ready if job.source.name in stages[name]]
    if across and ready:
        from curation.clean.across import compare  # loads the compiled loops

        stages["across"] = compare(ready)
    ready = [job for job in ready if job.source.name in chosen]
    stages["curate"], more = _each(curate_source, curate_stands, ready, workers, progress, "curate")
    failed |= more | changed
    receipts = {name: done.receipt for name, done in stages["curate"].items()}
    current = [job.source.name for job in jobs if job.source.name not in chosen and _stands_still(job)]
    there = [job.source.name for job in jobs if job.source.name in {*receipts, *current}]
    overlaps.write(folder, there, across)
    leaks = decontaminate.gather(manifest.decontaminate, folder, there)
    keep_lock(path, folder)
    mteb_tasks.write_training_datasets(folder, manifest)
    summary = summary_of(folder, manifest, receipts, failed, current, excluded, leaks)
    attribution.write(folder, manifest, summary)
    write_summary(folder, path, manifest, summary)
    seconds = {f"{stage}/{name}": round(done.seconds, 3) for stage, all_done in stages.items() for name, done in all_done.items()}
    write_json(folder / "timings.json", {"seconds": round(time.time() - started, 3), "stages": seconds})
    ran = {name for all_done in stages.values() for name, done in all_done.items() if done.ran and name in receipts}
    notes = [note for job in jobs if job.source.name in receipts for note in _unexpected(job, shaped[job.source.name].receipt)]
    return Outcome(folder, receipts, ran, failed, excluded, notes)


def _unexpected(job: Job, receipt: Receipt) -> Iterator[str]:
    """Yield how the rows of a source, its corpus and its queries differ in number from what the manifest expects."""
    source, counts = job.source, receipt.get("table_rows", {})
    whole = source.limit is None or receipt["shape"] == "qrels"
    found = [("", source.expected_rows, receipt["rows_in"] + source.skip if whole else None)]
    found += [(f" ({part})", table.expected_rows, counts.get(part)) for part, table in extra_tables(source)]
    for part, expected, count in found:
        if None not in (expected, count) and expected != count:
            yield f"source '{source.name}'{part}: has {count:,} rows, and 'expected_rows' says {expected:,}"


def _stands_still(job: Job) -> bool:
    """Tell whether a source that was not asked for is still what it was, with all that is held out now."""
    needed = ("shaped", "cleaned", *(["near"] if job.dedup else []))
    there = all((job.build / stage / job.source.name / "done.json").exists() for stage in needed)
    return there and clean_stands(job) and (not job.dedup or near_stands(job)) and curate_stands(job)


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
            raise ManifestError("--only", f"no source '{name}'" + did_you_mean(name, names))
    return [name for name in names if name in set(only)] or names


def job_of(manifest: Manifest, source: Source, base: Path, folder: Path, limit: int | None) -> Job:
    """Return a source's job; with `limit`, a quick look: at most so many rows, and at most a fifth of them held out."""
    limited = source
    if limit is not None:
        fewer = {"limit": min(source.limit or limit, limit), "holdout": min(source.holdout, limit // 5)}
        limited = source.model_copy(update=fewer)
    holding = tuple(other.name for other in manifest.sources if other.holdout)
    return Job(
        limited, source.filters or manifest.filters, manifest.seed, base, folder, holding, manifest.dedup, manifest.decontaminate
    )


def _each(
    work: Callable[[Job, Progress], Done],
    stands: Callable[[Job], bool],
    jobs: list[Job],
    workers: int | None,
    progress: Progress,
    what: str,
) -> tuple[dict[str, Done], dict[str, UserError]]:
    """Run `work` over jobs, in this process or in several; the outcome does not depend on which."""
    done: dict[str, Done] = {}
    failed: dict[str, UserError] = {}
    to_do: list[Job] = []

    def note(job: Job, result: Callable[[], Done]) -> None:
        try:
            done[job.source.name] = result()
        except UserError as error:
            failed[job.source.name] = error

    for job in jobs:
        try:
            idle = _in_one_line(stands, job)
        except UserError as error:
            failed[job.source.name] = error
            continue
        if idle:
            note(job, functools.partial(_in_one_line, work, job, progress))
        else:
            to_do.append(job)
    count = min(len(to_do), workers or _workers_that_pay(to_do))
    if count <= 1:
        for job in to_do:
            note(job, functools.partial(_in_one_line, work, job, progress))
    else:
        with progress(what, len(to_do), "sources") as advance:
            for job, result in local.run(functools.partial(_in_one_line, work), to_do, count, to_do[0].build):
                note(job, result)
                advance(1)
    order = [job.source.name for job in jobs]
    return {name: done[name] for name in order if name in done}, {name: failed[name] for name in order if name in failed}


def _workers_that_pay(jobs: list[Job]) -> int:
    """Return how many processes to use: one, and a further one for each WORTH of input beside the largest source."""
    sizes = sorted(map(_size_of, jobs))
    return min(local.processors(), 1 + sum(sizes[:-1]) // WORTH)


def _size_of(job: Job) -> int:
    """Return the bytes of a source's files; of one of the Hub, for whose rows a process waits, WORTH."""
    tables = [table for table in (job.source, job.source.corpus, job.source.queries) if table]
    try:
        return sum(sizes(table, job.base) if is_local(table, job.base) else WORTH for table in tables)
    except (UserError, OSError):
        return 0  # the source will fail, and say why


def _in_one_line(work: Callable[..., R], job: Job, *more: object) -> R:
    """Return `work(job, ...)`; what goes wrong there and nobody foresaw fails this source alone.

    Raises:
        SourceError: in place of any exception but those that a person can mend, and what the system refuses in the build.
    """
    try:
        return work(job, *more)
    except UserError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # polars' own derives from BaseException
        if refused := refusal(error):
            where, what, hint = explain_refusal(refused, str(job.build))
            if is_disk_full(refused) or Path(where).absolute().is_relative_to(job.build.absolute()):
                raise
            raise SourceError(where, what, hint) from None
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} ({first_line(error)})"
        hint = "this is a fault of tuplesmith: please report it"
        raise SourceError(f"source '{job.source.name}'", what, hint) from error
