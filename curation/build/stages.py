"""The stages of a build; the table at the end of this file lists them. The first one is in `shape_stage.py`.

A stage has a folder below the build, a list of what it depends on, and a function that writes its files. `run` runs a
stage if its receipt is absent or if the digest of what it depends on has changed; `store.run_stage` decides that.
One more stage is run by `curation/clean/decontaminate.py`, the index of the evaluation sets: it reads files of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import polars as pl

from curation.build.numbering import Frames, Tables, number, write_tables
from curation.build.shape_stage import shape, shape_depends
from curation.clean import decontaminate
from curation.clean.shingles import SHINGLING
from curation.clean.siblings import SIBLING_RULES
from curation.core.builds import FORMAT, Receipt
from curation.core.errors import SourceError, listed
from curation.core.progress import Progress, silent
from curation.core.record import DROPPED, no_drops
from curation.core.store import digest_of, file_digest, receipt_of, run_stage
from curation.core.tables import (
    ROWS_PER_GROUP,
    chosen_rows,
    link_table,
    read_frames,
    read_groups,
    read_parquet,
    release_memory,
    replace_table,
    table_size,
    write_frames,
    write_parquet,
)
from curation.core.texts import LENGTHY, forget_pages, open_texts, sorted_distinct
from curation.engine.local import Here
from curation.engine.pool import Workers
from curation.recipe.job import Done, Job
from curation.recipe.source import Source
from curation.shape import holdout
from curation.shape.chunks import DOCUMENTS, OWN_DOCUMENTS
from curation.shape.columns import place_of, reason_counts
from curation.shape.labelled import pair_up
from curation.shape.numbered import (
    LISTS,
    NUMBERED,
    corpus_texts,
    first_occurrences,
    flat,
    names_any,
    replaced,
    role_texts,
    source_texts,
)
from curation.shape.scores import ANSWERS

# what the receipts of later stages repeat of the first one's
CARRIED = (  # `synthetic` where a model wrote the queries
    "rows_in", "rows_used", "rows_dropped", "tuples_made", "merged", "heldout", "inputs", "outside", "shape", "synthetic",
)  # fmt: skip
OVERLAP_COLUMNS = pl.Schema(
    {"source_a": pl.String(), "source_b": pl.String(), "equal": pl.UInt32(), "near": pl.UInt32(), "dropped": pl.UInt32()}
)
FORMS_AT_A_TIME = 1 << 22  # of all sources
T = TypeVar("T")


class Stage(NamedTuple, Generic[T]):
    """A stage of one source (T is Job), or of all sources together (T is list[Job])."""

    name: str  # in progress, timings and digests
    folder: str  # below the build; a source's stage writes to folder/SOURCE
    depends_on: Callable[[T], list[Any]]  # JSON values; the stage runs again when one changes
    work: Callable[[T, Path, Progress, Workers], Receipt]  # writes files into the folder it gets, returns what the receipt says


def digest(stage: Stage[T], of: T) -> str:
    """Return the digest of all that a stage depends on."""
    return digest_of([FORMAT, stage.name, *stage.depends_on(of)])


def folder_of(stage: Stage[T], of: T) -> Path:
    """Return the folder that a stage writes."""
    if isinstance(of, Job):
        return of.build / stage.folder / of.source.name
    assert isinstance(of, list)
    return Path(of[0].build / stage.folder)


def run(stage: Stage[T], of: T, progress: Progress = silent, known: str | None = None, workers: Workers | None = None) -> Done:
    """Run a stage unless it is current.

    Args:
        stage: the stage.
        of: what it is of.
        progress: reports how far the work is.
        known: its digest, where that is computed already.
        workers: work on the parts of a source; by default this process.
    """
    started, some = time.time(), workers or Here()
    receipt, ran = run_stage(
        folder_of(stage, of), known or digest(stage, of), lambda place: stage.work(of, place, progress, some)
    )
    release_memory()
    return Done(receipt, ran, time.time() - started)


# ---- hold out: the queries that were taken out, as an evaluation set in BEIR's layout ----


def hold_out_depends(job: Job) -> list[Any]:
    """Return the digest of the shaped source."""
    return [receipt_of(job.build / "shaped" / job.source.name)["digest"]]


def hold_out(job: Job, folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Write the held-out queries; their corpus is all passages of the source."""
    stage = job.build / "shaped" / job.source.name
    texts, held = open_texts(stage), read_parquet(stage / "heldout_numbers.parquet")
    numbers = [
        *role_texts(read_frames(stage, "tuples", list(LISTS)), LISTS),
        flat(held, "negatives"),
        corpus_texts(stage),
        flat(held, "positives"),
    ]
    passages = first_occurrences(np.concatenate(numbers), texts.key_number)
    holdout.write_beir(folder, held, texts, passages, workers)
    return {"source": job.source.name, "queries": len(held)}


# ---- near: the near-duplicates among all texts of a source ----


def near_depends(job: Job) -> list[Any]:
    """Return the source's texts, and the lowest similarity that is stored."""
    assert job.dedup
    mine = receipt_of(job.build / "shaped" / job.source.name)
    texts = {name: digest for name, digest in mine["files"].items() if name.startswith(("tuples-", "corpus.", "texts."))}
    return [texts, job.dedup.stored, job.dedup.across, SHINGLING, SIBLING_RULES]


def find_near(job: Job, folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Find the pairs of texts of a source that nearly match."""
    from curation.clean.pairs import near, without_siblings  # loads the compiled loops

    assert job.dedup
    stage = job.build / "shaped" / job.source.name
    texts, numbers = open_texts(stage), source_texts(stage, corpus_texts(stage))
    found = near(texts.portions(numbers), job.dedup.stored, folder, workers, texts.at)
    found = without_siblings(found, lambda some: texts.at(numbers[some]))
    write_parquet(folder / "pairs.parquet", pl.DataFrame({"left": found.left, "right": found.right, "score": found.score}))
    write_parquet(folder / "form.parquet", pl.DataFrame({"form": found.form}))
    for path in folder.iterdir():  # the comparison with other sources reads the sketches, nothing else does
        for_others = path.name.startswith(("entries", "counts", "forms", "keys-")) and job.dedup.across
        if path.suffix != ".parquet" and not for_others:
            path.unlink()
    return {"source": job.source.name, "texts": len(found.form), "pairs": len(found.score), "lowest": job.dedup.stored}


# ---- clean: remove what is held out in any source, or occurs in an evaluation set ----


def clean_depends(job: Job) -> list[Any]:
    """Return the shaped source, the held-out queries of all sources, and the index of the evaluation sets."""
    mine = receipt_of(job.build / "shaped" / job.source.name)
    held = {name: receipt_of(stage)["files"]["heldout.parquet"] for name, stage in _holding(job).items()}
    return [mine["digest"], mine["files"], held, *decontaminate.depends_on(job.decontaminate, job.build)]


def _holding(job: Job) -> dict[str, Path]:
    """Return the folders of the shaped sources that hold queries out."""
    stages = {name: job.build / "shaped" / name for name in job.holding}
    return {name: stage for name, stage in stages.items() if (stage / "done.json").exists()}


def clean(job: Job, folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Remove from a source what is held out anywhere, and what occurs in an evaluation set."""
    source, stage = job.source, job.build / "shaped" / job.source.name
    shaped, texts = receipt_of(stage), open_texts(stage)
    heldout = holdout.heldout_forms([(name, read_parquet(path / "heldout.parquet")) for name, path in _holding(job).items()])
    held = holdout.held_out_texts(texts, heldout)
    corpus = corpus_texts(stage)
    corpus = corpus[~np.isin(corpus, held["text"])]
    drops, out = [no_drops()], Counter[str]()

    def without_heldout() -> Iterator[pl.DataFrame]:
        for frame in read_frames(stage, "tuples"):
            tuples, dropped, negatives = holdout.remove_heldout(frame, texts, held, source.name)
            drops.append(dropped)
            out["heldout_negative"] += negatives
            yield tuples

    if len(held):
        left = write_frames(folder, "tuples", without_heldout(), compression="lz4")
        if not left:
            raise _emptied(source, "held-out texts", pl.concat(drops))
    else:  # nothing to remove: the same file
        link_table(stage, folder, "tuples")
    if job.decontaminate:
        numbers = source_texts(folder, corpus)
        matches = decontaminate.contaminated(job.build / "decontaminate", texts, numbers, workers, folder)
        named = np.zeros(len(texts), bool)
        named[matches["text"].to_numpy()] = True
        some, marks, start = [pl.DataFrame(schema=NUMBERED).with_columns(place=pl.lit(0, pl.UInt64))], [], 0
        for frame in read_frames(folder, "tuples"):
            marks.append(names_any(frame, named))
            some.append(frame.with_columns(place=pl.int_range(start, start + len(frame), dtype=pl.UInt64)).filter(marks[-1]))
            start += len(frame)
        tuples, corpus, dropped, more_out = decontaminate.take_out(
            job.decontaminate, job.build / "decontaminate", folder, pl.concat(some), corpus, texts, matches, source.name
        )
        drops, out = [*drops, dropped], out + Counter(more_out)
        if len(dropped) or more_out:
            if len(dropped) == start:
                raise _emptied(source, "decontamination", pl.concat(drops))
            frames = replaced(read_frames(folder, "tuples"), np.concatenate(marks), tuples)
            write_frames(folder, "left", frames, compression="lz4")
            replace_table(folder, "left", "tuples")
    write_parquet(folder / "corpus.parquet", pl.DataFrame({"text": corpus}))
    write_parquet(folder / "dropped.parquet", _more_dropped(stage, *drops))
    # each text once, sorted: the stage `overlaps` counts what two sources share
    numbers = source_texts(folder, corpus)
    shared = texts.forms[numbers[texts.marks[numbers] & LENGTHY > 0], 1]
    forget_pages(texts.forms)
    del numbers
    write_parquet(folder / "forms.parquet", pl.DataFrame({"form": sorted_distinct(shared)}))
    counts: dict[str, Any] = {
        "dropped": shaped["dropped"] | reason_counts(pl.concat(drops)),
        "texts_out": shaped["texts_out"] | {name: count for name, count in out.items() if count},
    }
    return {"source": source.name, **{name: shaped[name] for name in ("instruction", *CARRIED) if name in shaped}, **counts}


def _more_dropped(stage: Path, *dropped: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield what an earlier stage dropped, and then what this one does."""
    yield from read_groups(stage / "dropped.parquet")
    yield from (frame.cast(DROPPED) for frame in dropped)


def _emptied(source: Source, by: str, drops: pl.DataFrame) -> SourceError:
    """Return the error for a source that has no tuple left: what removed them, and which sets they match."""
    counts = drops.group_by("matched_source", maintain_order=True).len().sort("len", descending=True)
    matched = listed([f"{name} {count}" for name, count in counts.iter_rows()], 5)
    own = {source.name, decontaminate.HELDOUT_SETS + source.name} & set(counts["matched_source"])
    hint = f"its own held-out queries match the others: lower its 'holdout: {source.holdout}'" if own else "leave the source out"
    if by == "decontamination":
        hint += ", or see what matches with `mode: report`"
    return SourceError(place_of(source), f"{by} removed all {len(drops)} tuples (matched: {matched})", hint)


# ---- across: near-duplicates of two sources ----


def across_depends(jobs: list[Job]) -> list[Any]:
    """Return the near-duplicates and sketches of each source, in the order of the manifest."""
    near = [receipt_of(job.build / "near" / job.source.name) for job in jobs]
    return [[[job.source.name, one["digest"], one["files"]] for job, one in zip(jobs, near, strict=True)]]


def find_across(jobs: list[Job], folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Find the pairs of texts of two sources that nearly match."""
    from curation.clean.across import find_pairs  # loads the compiled loops

    return find_pairs(jobs, folder, workers)


def drops_depends(jobs: list[Job]) -> list[Any]:
    """Return the settings, the pairs within and across sources, and the cleaned sources."""
    assert jobs[0].dedup
    pairs = receipt_of(jobs[0].build / "across" / "pairs")["files"]
    cleaned = [receipt_of(job.build / "cleaned" / job.source.name) for job in jobs]
    sources = [[job.source.name, job.source.task, one["digest"], one["files"]] for job, one in zip(jobs, cleaned, strict=True)]
    return [jobs[0].dedup.model_dump(), *across_depends(jobs), pairs, sources]


def decide_drops(jobs: list[Job], folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Decide which tuples are dropped because an earlier source has them; the order of jobs is the order of priority."""
    from curation.clean.across import choose_drops  # loads the compiled loops

    return choose_drops(jobs, folder)


# ---- curate: near-duplicates dropped, passages numbered, tables written ----


def curate_depends(job: Job) -> list[Any]:
    """Return the cleaned source; with `dedup:` also its near-duplicates and what is dropped in favour of earlier sources."""
    mine = receipt_of(job.build / "cleaned" / job.source.name)
    near = []
    if job.dedup:
        across = _across(job)
        pairs = receipt_of(job.build / "near" / job.source.name)
        near = [job.dedup.model_dump(), pairs["digest"], pairs["files"], file_digest(across) if across else None]
    return [mine["digest"], mine["files"], *near]


def _across(job: Job) -> Path | None:
    """Return the file of a source's tuples that are dropped in favour of an earlier source."""
    path = job.build / "across" / "drops" / "sources" / f"{job.source.name}.parquet"
    return path if job.dedup and job.dedup.across and path.exists() else None


def curate(job: Job, folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Drop near-duplicates, number the passages, and write the tables."""
    source, stage = job.source, job.build / "cleaned" / job.source.name
    cleaned = receipt_of(stage)
    texts, corpus = open_texts(job.build / "shaped" / source.name), corpus_texts(stage)
    dropped, families = no_drops(), None
    pairing = source.task == "clustering" and cleaned["shape"] == "labelled"
    scores = job.build / "shaped" / source.name / "scores.parquet"
    stays = np.ones(table_size(stage, "tuples"), bool)
    staying = partial(chosen_rows, stage, "tuples", stays)  # `stays` changes below
    frames: Frames = staying
    if job.dedup:
        from curation.clean.within import drop_queries, edges_of, links_of, refuse_loss  # loads the compiled loops

        across, by_label = _across(job), source.task == "clustering"
        dropped = read_parquet(across) if across else no_drops()
        gone = dropped["id"].implode()
        stays[:] = np.concatenate([(~frame["id"].is_in(gone)).to_numpy() for frame in staying(["id"])])
        remaining = first_occurrences(np.concatenate([*role_texts(staying(["query", *LISTS])), corpus]))
        links = links_of(job, texts, remaining)
        tuples = pl.concat(staying(["query", "positives", *(["label"] if by_label else [])]))

        def ids_at(places: np.ndarray) -> pl.Series:
            wanted, distinct = np.zeros(len(stays), bool), np.unique(places)
            wanted[np.flatnonzero(stays)[distinct]] = True
            return pl.concat(chosen_rows(stage, "tuples", wanted, ["id"]))["id"].gather(np.searchsorted(distinct, places))

        left, within = drop_queries(tuples, ids_at, links, job.dedup, source.name, by_label)
        del tuples
        stays[stays] = left
        dropped = pl.concat([dropped, within])
        refuse_loss(dropped, len(stays), job.dedup, source.name)
        write_parquet(folder / "near.parquet", edges_of(links, remaining))
        families = np.where(links.node < 0, 0, links.family[links.node]).astype(np.uint32)  # 0: it was not compared
        del links, remaining
    if pairing:
        tuples, alone = pair_up(pl.concat(frames()), texts, job.seed, source.name)
        dropped = pl.concat([_same_reason(dropped, alone), alone])
        frames, stays = tuples.iter_slices, np.ones(len(tuples), bool)
    numbers = number(frames, texts, corpus, source.task, families)
    constants, known = _constants(job, cleaned), read_parquet(scores) if scores.exists() else None
    between = partial(_slices, tuples) if pairing else partial(_staying_between, stage, stays)
    removed = write_tables(Tables(folder, between, texts, numbers, known, constants), stays, workers)
    texts_out = Counter[str](cleaned["texts_out"]) + Counter(negative_is_positive=removed)
    if source.fields.answer is not None:
        _of_queries(job, folder, ANSWERS, constants)
    if (job.build / "shaped" / source.name / OWN_DOCUMENTS).exists():
        _of_queries(job, folder, OWN_DOCUMENTS, constants)
        write_parquet(folder / DOCUMENTS, read_parquet(job.build / "shaped" / source.name / DOCUMENTS), constants)
    write_parquet(folder / "dropped.parquet", _more_dropped(stage, dropped))
    counts = {"kept": int(stays.sum()), "passages": len(numbers.passages), "dropped": cleaned["dropped"] | reason_counts(dropped)}
    counts["texts_out"] = {reason: count for reason, count in sorted(texts_out.items()) if count}
    return {**constants, **{name: cleaned[name] for name in CARRIED if name in cleaned}, **counts}


def _staying_between(stage: Path, stays: np.ndarray, first: int, end: int) -> Iterator[pl.DataFrame]:
    """Yield the tuples of a table from a row to before another that stay, at least one frame."""
    some = np.zeros(len(stays), bool)
    some[first:end] = stays[first:end]
    return chosen_rows(stage, "tuples", some)


def _slices(tuples: pl.DataFrame, first: int, end: int) -> Iterator[pl.DataFrame]:
    """Yield tuples from a row to before another."""
    return tuples.slice(first, end - first).iter_slices(ROWS_PER_GROUP)


def _of_queries(job: Job, folder: Path, name: str, constants: dict[str, str]) -> None:
    """Write a table of what belongs to queries, by their `key`, for the queries that are left."""
    found = read_parquet(job.build / "shaped" / job.source.name / name)
    asked = pl.concat(read_frames(folder, "pairs", ["key"]))["key"]
    write_parquet(folder / name, found.filter(pl.col("key").is_in(asked.implode())), constants)


def _same_reason(dropped: pl.DataFrame, alone: pl.DataFrame) -> pl.DataFrame:
    """Return dropped tuples; a duplicate of a tuple that is alone in its class is dropped for the same reason as that tuple."""
    labels = alone.select(pl.col("id").alias("matched_id"), pl.col("evidence").alias("label"))
    also = pl.col("label").is_not_null()
    return (
        dropped.join(labels, on="matched_id", how="left")
        .with_columns(
            pl.when(also).then(pl.lit("pair")).otherwise("stage").alias("stage"),
            pl.when(also).then(pl.lit("lonely_class")).otherwise("reason").alias("reason"),
            pl.when(also).then("label").otherwise("evidence").alias("evidence"),
            *(pl.when(~also).then(name).alias(name) for name in ("matched_id", "matched_source", "score")),
        )
        .select(dropped.columns)
    )


def _constants(job: Job, cleaned: Receipt) -> dict[str, str]:
    """Return what is the same for every tuple of a source; the receipt and the metadata of its parquet files hold it."""
    source = job.source
    used = ",".join(f"{name}={value}" for name, value in sorted(job.filters.model_dump(exclude_none=True).items()))
    signature = f"tuplesmith:{FORMAT}|seed:{job.seed}|shape:{cleaned['shape']}|limit:{source.limit or 'none'}|filters:{used}"
    if job.dedup:
        signature += f"|dedup:{job.dedup.threshold}" + (",across" if job.dedup.across else "")
    made = {"query_origin": "synthetic"} if "synthetic" in cleaned else {}
    return {
        "source": source.name,
        "task": source.task,
        "language": source.language,
        "instruction": cleaned["instruction"],
        "revision": source.revision or "",
        "license": source.license or "",
        "signature": signature,
        **made,
    }


# ---- overlaps: what each two sources share, before near-duplicates are dropped ----


def overlaps_depends(jobs: list[Job]) -> list[Any]:
    """Return the texts of each source, and with `dedup: {across: yes}` what is dropped in favour of earlier sources."""
    texts = [[job.source.name, receipt_of(job.build / "cleaned" / job.source.name)["files"]["forms.parquet"]] for job in jobs]
    across = jobs[0].dedup is not None and jobs[0].dedup.across
    return [texts, receipt_of(jobs[0].build / "across" / "drops")["files"] if across else None]


def count_overlaps(jobs: list[Job], folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Write OVERLAP_COLUMNS: each two sources that share equal texts or near-duplicates, in the order of the manifest."""
    build, names, pair = jobs[0].build, [job.source.name for job in jobs], ["source_a", "source_b"]
    counts = _equal_forms([read_parquet(build / "cleaned" / name / "forms.parquet")["form"].to_numpy() for name in names])
    named = (pl.Series(name, names, dtype=pl.String).gather(counts[at]) for name, at in zip(pair, ("at", "at_b"), strict=True))
    found = pl.DataFrame([*named, counts["equal"]])
    if jobs[0].dedup is not None and jobs[0].dedup.across:
        lists = [read_parquet(path) for path in sorted((build / "across" / "drops" / "sources").iterdir())]
        dropped = pl.concat(lists).group_by(pl.col("matched_source").alias("source_a"), pl.col("source").alias("source_b"))
        near = read_parquet(build / "across" / "drops" / "counts.parquet")
        for table in (near, dropped.agg(pl.len().alias("dropped"))):
            found = found.join(table, on=pair, how="full", coalesce=True)
        found = found.with_columns(pl.col("equal", "near", "dropped").fill_null(0))
    else:
        found = found.with_columns(pl.lit(None).alias("near"), pl.lit(0).alias("dropped"))
    order = {name: at for at, name in enumerate(names)}
    found = found.filter(pl.all_horizontal(pl.col(pair).is_in(names)))
    found = found.sort([pl.col(name).replace_strict(order, return_dtype=pl.Int64) for name in pair])
    write_parquet(folder / "overlaps.parquet", found.select(list(OVERLAP_COLUMNS)).cast(OVERLAP_COLUMNS))
    return {"sources": names}


def _equal_forms(forms: list[np.ndarray]) -> pl.DataFrame:
    """Return at, at_b, equal: how many forms each two sources share. Those of a source are distinct and in order, (n,) u64."""
    parts = 1 + sum(map(len, forms)) // FORMS_AT_A_TIME
    limits = np.array([2**64 // parts * part for part in range(1, parts)], np.uint64)
    cut = [np.split(one, np.searchsorted(one, limits)) for one in forms]
    counts = [pl.DataFrame(schema={"at": pl.UInt16, "at_b": pl.UInt16, "equal": pl.UInt32})]
    for part in range(parts):
        tables = [pl.DataFrame({"form": one[part]}).with_columns(at=pl.lit(at, pl.UInt16)) for at, one in enumerate(cut)]
        both = pl.concat(tables)
        both = both.filter(both["form"].is_duplicated())
        met = both.join(both, on="form", suffix="_b").filter(pl.col("at") < pl.col("at_b"))
        counts.append(met.group_by("at", "at_b").agg(pl.len().alias("equal")))
    return pl.concat(counts).group_by("at", "at_b").agg(pl.col("equal").sum())


# ---- the table; stages run in this order ----

SHAPE: Stage[Job] = Stage("shape", "shaped", shape_depends, shape)
HOLD_OUT: Stage[Job] = Stage("hold out", "heldout", hold_out_depends, hold_out)  # where `holdout:` is set
NEAR: Stage[Job] = Stage("near", "near", near_depends, find_near)  # with `dedup:`
CLEAN: Stage[Job] = Stage("clean", "cleaned", clean_depends, clean)
ACROSS: Stage[list[Job]] = Stage("across", "across/pairs", across_depends, find_across)  # with `dedup: {across: yes}`
DROPS: Stage[list[Job]] = Stage("drops", "across/drops", drops_depends, decide_drops)  # with `dedup: {across: yes}`
CURATE: Stage[Job] = Stage("curate", "curated", curate_depends, curate)
OVERLAP: Stage[list[Job]] = Stage("overlaps", "across/overlaps", overlaps_depends, count_overlaps)  # of two or more sources
