"""The tuples of a build get their negatives. For each source: encode, search, choose, write.

- Retrieval sources are searched; the corpus is the source's distinct positives.
- Clustering sources with labels draw texts of other classes, or search those.
- Classification sources keep the other label, with which they were built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.core import store, tables
from curation.core.builds import checked_stage, read_build
from curation.core.errors import ModelError, listed
from curation.core.progress import Progress, silent
from curation.core.record import CLASS, GIVEN, MINED, MINED_PAIRS, PROMOTED, RANDOM, dropped_frame
from curation.engine.local import Here
from curation.recipe.manifest import Manifest
from curation.recipe.settings import Mine
from curation.recipe.source import shape_of
from mining.calibrate import HISTOGRAM_BINS, calibrate_rules, histogram
from mining.candidates import Block, blocks, read_classes
from mining.encoders import ModelEncoder, OpenEncoder
from mining.jobs import SEARCHED, Job, Models, jobs, open_models, read_settings, read_sources, relevant_settings
from mining.lists import Ragged, ragged
from mining.negatives import Chosen, Judged, Negatives, draw_from_other_classes
from mining.source_search import Search

SLOWDOWN = 7  # an index searches a passage this many times slower than an exact search does
HIGHEST_RANK = np.iinfo(np.uint16).max
TOO_FEW = "too_few_negatives"


@dataclass
class Counts:
    """What the receipt of a source counts."""

    rows_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    without_negatives: int = 0  # rows that are kept, and whose candidates became positives
    filters: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(
        default_factory=lambda: {"positives": [0] * HISTOGRAM_BINS, "negatives": [0] * HISTOGRAM_BINS}
    )


def mine_build(
    build: Path,
    only: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
    load: OpenEncoder = ModelEncoder,
    processes: int | None = 1,
    ray: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Mine the sources of a build and return their receipts, each with `ran`: whether there was anything to do.

    The files do not depend on who encodes, searches and scores.

    Args:
        build: the build folder.
        only: names of sources; by default all of them.
        device: auto, cpu, cuda or cuda:N.
        progress: reports how far the work is.
        load: opens the encoder. One of the caller's own encodes in this process.
        processes: how many encode and search; None: one per GPU, without GPUs this process.
        ray: the address of a Ray cluster whose nodes do that instead, one worker per GPU, or per processor.

    Raises:
        BuildError: the folder holds no complete build, or was changed since it was built.
        ManifestError: its manifest has no usable `mine:` section.
        ModelError: the model cannot be loaded, or returns NaN or infinity.
    """
    receipts = dict[str, dict[str, Any]]()
    with open_models(build, device, load, processes, ray) as models:
        for job in list(jobs(models.build, only, models)):
            receipt, ran = store.run_stage(job.mined, job.digest, partial(_mine_source, job, models, progress))
            receipts[job.name] = {**receipt, "ran": ran}
    return receipts


def plan(
    build: Path, only: Sequence[str] = (), device: str = "auto", load: OpenEncoder = ModelEncoder
) -> dict[str, dict[str, Any]]:
    """Return what `mine_build` would do: for each source the strategy, the rows, and whether it would run."""
    found = {}
    for job in jobs(build, only, Models(build, read_settings(build), load, Here(device))):
        ran = not store.is_current(job.mined, job.digest)
        found[job.name] = {"strategy": job.strategy, "rows_in": job.entry["tuples"], "ran": ran}
    return found


def embed_build(
    build: Path,
    model: str = "",
    dtype: str = "",
    only: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
    load: OpenEncoder = ModelEncoder,
    processes: int | None = 1,
    ray: str | None = None,
) -> dict[str, dict[str, int]]:
    """Encode all texts that the mined tuples use and that are not stored yet; return for each source their number.

    Training reads the vectors: a teacher's, and those of queries by which it makes clusters. Returned are also the texts that
    were encoded now, {"texts": n, "encoded": m}.

    Args:
        model: the model, with its own prompts; by default that of the build's `mine:` section, with the prompts given there.
        dtype: float32, bfloat16 or auto; by default that of `mine:` for its own model, else float32.
        build, only, device, progress, load, processes, ray: as for `mine_build`.

    Raises:
        BuildError: as for `mine_build`, or a source was not mined.
        ModelError: as for `mine_build`, or there is no model.
    """
    settings = Mine.model_validate({"model": model}) if model else read_settings(build)
    if not settings.model:
        raise ModelError(build, "the `mine:` section names no model", "give one: `mine embed --model NAME`")
    if dtype:
        settings = settings.model_copy(update={"dtype": dtype})
    found = {}
    with open_models(build, device, load, processes, ray, settings) as models:
        entries = read_build(models.build)["sources"]
        for name in read_sources(models.build, only):
            mined, curated = models.build / "mined" / name, models.build / "curated" / name
            checked_stage(models.build, f"mined/{name}", f"run `mine negatives {build}` first")
            pairs = tables.read_table(mined, "pairs", ["query", "positives", "negatives"])
            used = pl.concat([pairs["positives"].explode(), pairs["negatives"].explode()]).drop_nulls().unique().implode()
            encoder, stored = models.encoder, models.vectors
            queries = (encoder.query(entries[name]["instruction"], text) for text in pairs["query"])
            shards = tables.shards(curated, "passages", ["pid", "text"])
            passages = chain.from_iterable(shard.filter(pl.col("pid").is_in(used))["text"] for shard in shards)
            count, before = len(pairs) + used.list.len().item(), len(stored)
            with progress(f"{name}: encode", count, "texts") as advance:
                stored.ensure(chain(queries, map(encoder.passage, passages)), advance, models.encoding)
            found[name] = {"texts": count, "encoded": len(stored) - before}
    return found


def _mine_source(job: Job, models: Models, progress: Progress, folder: Path) -> dict[str, Any]:
    """Write the tables of a source into `folder`, one shard for each shard of its pairs; return what the receipt says."""
    counts, receipt, settings = Counts(), dict[str, Any](), job.settings
    search = Search(job, models, progress) if job.strategy in SEARCHED else None
    if search:
        search.prepare()  # encode and search
        rules, receipt = calibrate_rules(search, settings)
        if settings.promote and job.strategy == "search":
            receipt["promotion"] = search.promote(rules, settings.promote.depth, settings.promote.min_score)
        progress = silent if search.reranker else progress  # the reranker has progress bars of its own
    if job.strategy == "other_classes":
        classes, own = read_classes(job.curated)

    constants = {key: str(job.entry.get(key, "")) for key in ("task", "instruction", "language")}
    constants |= {"source": job.name, "signature": job.signature}
    dropped = list[pl.DataFrame]()
    with progress(f"{job.name}: negatives", job.entry["tuples"], "rows") as advance:
        for shard, blocks_of_shard in groupby(blocks(job.curated), key=attrgetter("shard")):
            kept = list[pl.DataFrame]()
            for block in blocks_of_shard:
                if search:
                    found = search.fill(block, rules, settings.shortage)
                elif job.strategy == "other_classes":
                    drawn = draw_from_other_classes(classes, own[block.rows], block.rows, job.wanted, job.seed, job.name)
                    no_given = Ragged(np.zeros(len(block.rows) + 1, np.int64), np.empty(0, np.int64))
                    found = _without_candidates(no_given, drawn)
                else:
                    found = given_negatives(block, settings.negatives if settings.candidates == "given" else job.wanted)
                rows, lost = mined_tables(job.name, block.frame, found, job.wanted, settings, counts)
                kept.append(rows)
                dropped.append(lost)
                advance(len(block.frame))
            tables.write_parquet(folder / f"pairs-{shard:05d}.parquet", pl.concat(kept), constants)
    tables.write_parquet(folder / "dropped.parquet", pl.concat(dropped), constants)

    receipt |= search.receipt_entries() if search else {}
    receipt |= {**asdict(counts), "strategy": job.strategy, "curated": job.source}
    receipt |= {"signature": job.signature, "settings": relevant_settings(job.strategy, settings)}
    return receipt | ({"encoder": dict(job.described)} if job.described else {})


def given_negatives(block: Block, most: int) -> Negatives:
    """Return the first `most` negatives that each row was built with, and their scores if it has some.

    With `most` 1 this is F2LLM's rule for classification: the other label.
    """
    frame = block.frame
    given = ragged(frame["negatives"])  # distinct, and `curate build` leaves no positive among them
    found = _without_candidates(given.head(most), np.empty((len(frame), 0), np.int64))
    if "negative_scores" not in frame.columns:
        return found
    scores = frame["negative_scores"].explode(empty_as_null=False).cast(pl.Float64).to_numpy()[given.heads(most)]
    positive_scores = frame["positive_score"].cast(pl.Float64).to_numpy()
    return Negatives(found.given, scores, found.more, found.origin, positive_scores, found.seen)


def _without_candidates(given: Ragged, drawn: np.ndarray) -> Negatives:
    """Return given negatives, and drawn passages (q, n) with -1 in empty places, without scores or ranks."""
    rows = len(drawn)
    more = Chosen(drawn, np.full(drawn.shape, np.nan), np.full(drawn.shape, -1, np.int64), (drawn >= 0).sum(axis=1), {})
    return Negatives(given, np.full(len(given.ids), np.nan), more, CLASS, np.full(rows, np.nan), np.zeros(rows, np.int64))


def mined_tables(
    source: str, frame: pl.DataFrame, found: Negatives, wanted: int, settings: Mine, counts: Counts
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows as `record.MINED_PAIRS`, and those that `settings` drop as `record.DROPPED`; add both to `counts`.

    Dropped are rows with a doubtful positive, and with `shortage: drop` those with too few negatives.

    `negative_ranks` is the place among all that the search returned, known positives included: 0 is the nearest passage.
    """
    have = np.diff(found.given.starts) + found.more.found
    reasons, evidence = _why_dropped(found, have, wanted, settings)
    lost = np.flatnonzero([reason is not None for reason in reasons])
    short = np.zeros(len(frame), bool)
    short[lost] = True

    # the columns of negatives, row by row, given ones first
    more = np.arange(found.more.ids.shape[1]) < found.more.found[:, None]
    given_rows = found.given.row_of_each()
    order = np.argsort(np.concatenate([given_rows, np.nonzero(more)[0]]), kind="stable")
    ids = np.concatenate([found.given.ids, found.more.ids[more]])[order]
    scores = np.concatenate([found.given_scores, found.more.scores[more]])[order].astype(np.float32)
    ranks = np.concatenate([np.full(len(given_rows), -1), found.more.ranks[more]])[order]
    origin = np.where((ranks < 0) & (found.origin == MINED), RANDOM, found.origin)
    origin[order < len(given_rows)] = GIVEN
    never_null = np.zeros(len(ids), bool)
    positive_scores = found.positive_scores.astype(np.float32)
    columns = {
        "negatives": tables.lists(ids.astype(np.uint32), have, never_null),
        "negative_scores": tables.lists(scores, have, np.isnan(scores)),
        "negative_ranks": tables.lists(np.clip(ranks, 0, HIGHEST_RANK).astype(np.uint16), have, ranks < 0),
        "negative_origin": tables.lists(origin.astype(np.uint8), have, never_null),
        "positive_score": pl.Series(positive_scores, nan_to_null=True),
    }
    columns |= _positive_columns(frame, found.judged)
    rows = frame.with_columns(**columns).select(pl.col(name).cast(kind) for name, kind in MINED_PAIRS.items())
    rows = rows.filter(~short) if short.any() else rows

    why = [pl.Series([texts[row] for row in lost.tolist()], dtype=pl.String) for texts in (reasons, evidence)]
    dropped = dropped_frame(source, "mine", frame["id"].gather(lost), *why)

    counts.rows_in += len(frame)
    counts.kept += len(rows)
    if found.judged is not None:
        counts.without_negatives += int((~short & (have == 0) & (found.judged.promoted > 0)).sum())
    counts.candidates += int(found.seen.sum())
    for reason in why[0]:
        counts.dropped[reason] = counts.dropped.get(reason, 0) + 1
    for name, counted in found.more.removed.items():
        counts.filters[name] = counts.filters.get(name, 0) + int(counted.sum())
    for name, count in found.filled.items():
        counts.filled[name] = counts.filled.get(name, 0) + count
    of_kept = {"positives": positive_scores[~short], "negatives": scores[np.repeat(~short, have)]}
    for kind, some in of_kept.items():
        both = zip(counts.histograms[kind], histogram(some), strict=True)
        counts.histograms[kind] = [before + now for before, now in both]
    return rows, dropped


def _why_dropped(found: Negatives, have: np.ndarray, wanted: int, settings: Mine) -> tuple[list[str | None], list[str | None]]:
    """Return for each row why it is dropped, and the evidence; None for a row that is kept."""
    reasons: list[str | None] = [None] * len(have)
    evidence: list[str | None] = [None] * len(have)
    one = found.judged
    limits: list[tuple[str, np.ndarray, Callable[[int], str]]] = []  # the reason is the setting's name
    if one and settings.positive_rank is not None:
        most = settings.positive_rank
        limits.append(
            (
                "positive_rank",
                one.ranks >= most,
                lambda row: f"{one.ranks[row]}{' or more' * bool(one.beyond[row])} passages score higher; {most} may not",
            )
        )
    if one and settings.positive_min_score is not None:
        least = settings.positive_min_score
        limits.append(("positive_min_score", one.scores < least, lambda row: f"{one.scores[row]:.4f} is below {least}"))
    if one and settings.positive_reranker_min is not None:
        lowest, first = settings.positive_reranker_min, one.reranked[one.positives.starts[:-1]]
        limits.append(("positive_reranker_min", first < lowest, lambda row: f"{first[row]:.4f} is below {lowest}"))
    for name, bad, say in limits:
        for row in np.flatnonzero(bad).tolist():
            if reasons[row] is None:
                reasons[row], evidence[row] = name, say(row)

    # a row with too few negatives says which filters dropped its candidates
    for row in np.flatnonzero(have < wanted).tolist() if settings.shortage == "drop" else ():
        if reasons[row] is None:
            took = ", ".join(f"{name} took {counted[row]}" for name, counted in found.more.removed.items() if counted[row])
            reasons[row] = TOO_FEW
            evidence[row] = f"{have[row]} of {wanted} negatives" + (
                f" among {found.seen[row]} candidates: {took}" if took else ""
            )
    return reasons, evidence


def _positive_columns(frame: pl.DataFrame, judged: Judged | None) -> dict[str, pl.Series]:
    """Return the columns about positives of `record.MINED_PAIRS`, and `positives` with those that were promoted."""
    lengths = frame["positives"].list.len().to_numpy().astype(np.int64)
    if judged is None:
        nothing = pl.Series([None], dtype=pl.UInt32).new_from_index(0, len(frame))
        origin = tables.lists(np.full(lengths.sum(), GIVEN, np.uint8), lengths, None)
        reranked = tables.lists(np.zeros(lengths.sum(), np.float32), lengths, np.ones(lengths.sum(), bool))
        return {"positive_rank": nothing, "positive_origin": origin, "positive_reranked": reranked}
    all_of = np.diff(judged.positives.starts)
    place = np.arange(len(judged.positives.ids)) - np.repeat(judged.positives.starts[:-1], all_of)
    origins = np.where(place < np.repeat(lengths, all_of), GIVEN, PROMOTED).astype(np.uint8)
    known = pl.Series(~judged.beyond)
    ranks = pl.select(pl.when(known).then(pl.Series(judged.ranks))).to_series()
    return {
        "positives": tables.lists(judged.positives.ids.astype(np.uint32), all_of, None),
        "positive_rank": ranks,
        "positive_origin": tables.lists(origins, all_of, None),
        "positive_reranked": tables.lists(judged.reranked, all_of, np.isnan(judged.reranked)),
    }


def warnings_of(name: str, receipt: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning if a source lost more than half of its rows or negatives, or if a setting does not help it."""
    lost, settings = sum(receipt["dropped"].values()), receipt["settings"]
    wanted, found = receipt["kept"] * settings.get("negatives", 0), sum(receipt["histograms"]["negatives"])
    taken = {key: count for key, count in receipt["filters"].items() if count}
    most = ""
    if taken:
        key = max(taken, key=lambda key: taken[key])
        most = f"; '{key}' dropped most candidates ({taken[key]:,} of {receipt['candidates']:,}"
        most += f", which is {receipt['candidates'] // receipt['rows_in']} per row)"
    if lost * 2 > receipt["rows_in"]:
        yield f"{name}: {lost:,} of {receipt['rows_in']:,} rows have too few negatives and were dropped{most}"
    elif taken and settings["shortage"] == "keep" and found * 2 < wanted:
        yield f"{name}: only {found:,} of {wanted:,} negatives were found; rows with fewer were kept{most}"
    index = receipt.get("index", {})
    if index.get("probes", 0) * SLOWDOWN > index.get("lists", 1):
        yield (
            f"{name}: 'index: ivf' searches {index['probes']:,} of {index['lists']:,} lists per query, "
            "which takes longer than an exact search; use `index: exact`"
        )
    if receipt.get("vectors_alike"):
        so = "negatives are no harder than random ones"
        yield f"{name}: the model gives all texts the same vector, so {so}; use another `model`"
    if far := receipt.get("far_positives"):
        rows, nearest = f"{far['rows']:,} of {receipt['rows_in']:,} queries", f"the {far['nearest']} nearest passages"
        yield f"{name}: the positive of {rows} is not among {nearest}; does `model` know the language of these texts?"
    if receipt.get("alike"):
        so = "nothing was promoted" if "promotion" in receipt else "its limits keep or drop all candidates"
        yield f"{name}: the reranker scores all texts alike, so {so}; use another `reranker`"
    if receipt.get("without_negatives"):
        count = receipt["without_negatives"]
        yield f"{name}: promotion left {count:,} rows without negatives, which are kept; raise `promote: {{margin: ...}}`"
    if receipt.get("answers") == 0:
        column = "`fields: {answer: ...}`"
        yield f"{name}: 'exclude_answer' drops nothing, because the source has no answers; name their column: {column}"


def unsearched_documents(manifest: Manifest, receipts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one warning if searched sources have documents that are nobody's positive, and `mine: corpus` leaves them out."""
    assert manifest.mine
    names = [
        source.name
        for source in manifest.sources
        if source.corpus
        and (source.corpus.all or (not source.by_id and shape_of(source) == "pairs"))
        and manifest.mine.corpus_of(source.name) != "all"
    ]
    left_out = [name for name in names if receipts.get(name, {}).get("strategy") == "search"]
    what = "negatives are searched among positives only, so the documents of `corpus:` are not used; set `mine: {corpus: all}`"
    return [f"{listed(left_out)}: {what}"] if left_out else []
