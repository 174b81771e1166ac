"""Decontamination: the evaluation sets are indexed once, and what occurs in them is removed from each source.

A contaminated query or positive drops its tuple; a contaminated negative, or passage of the source's corpus, is removed alone.
A text shared with an evaluation corpus that no evaluation query needs is only reported, unless `mode: strict`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curation.clean.overlap_index import INDEX_RULES, INDEXED_AT_A_TIME, Index, leading_to, read_index, read_texts, write_index
from curation.clean.overlap_texts import (
    CORPUS,
    DOCUMENT,
    EVAL_TEXTS,
    QUERY,
    evaluation_tables,
    evaluation_texts,
)
from curation.clean.siblings import SIBLING_RULES, capitalised_words, siblings
from curation.core.builds import read_build
from curation.core.errors import ManifestError
from curation.core.progress import Progress
from curation.core.record import dropped_frame, no_drops
from curation.core.store import digest_of, receipt_of, run_stage
from curation.core.tables import read_groups, read_parquet, write_blocks, write_parquet
from curation.core.text import normalised
from curation.core.texts import Texts
from curation.engine.local import Here
from curation.engine.parts import in_order
from curation.engine.pool import Workers, held
from curation.read.paths import expand_path, refuse_special
from curation.read.remote import pinned
from curation.read.sources import fail_if_changed, file_states, input_digests
from curation.recipe.evaluation import Decontaminate
from curation.recipe.source import Table
from curation.shape.columns import EVIDENCE_CHARS

HELDOUT_SETS = "heldout/"  # the held-out queries of a source are an evaluation set with the name `heldout/SOURCE`
CONTAMINATION = pl.Schema(
    {
        "source": pl.String(),
        "id": pl.String(),  # of the tuple; null for a passage of a corpus
        "field": pl.String(),  # query, positive, negative; corpus for a passage, ours or theirs, that no query needs
        "task": pl.String(),
        "eval_id": pl.String(),
        "eval_field": pl.String(),  # query, document
        "rule": pl.String(),  # equal, chars, words: see `overlap_lookup`
        "score": pl.Float64(),
        "evidence": pl.String(),  # what both have in common
        "action": pl.String(),  # dropped, negative_out, reported
    }
)

MATCHES = pl.Schema(
    {
        "text": pl.UInt32(),  # number of a text of the source
        "number": pl.UInt32(),  # of the text of the index that it matches
        "task": pl.Categorical(),
        "role": EVAL_TEXTS["role"],
        "kind": pl.UInt8(),  # see `overlap_lookup.RULES`
        "score": CONTAMINATION["score"],
    }
)
ROWS_AT_A_TIME = 1 << 17
LOOKED_UP_AT_A_TIME = 1 << 18


class Cleaned(NamedTuple):
    """A source without its contaminated texts."""

    tuples: pl.DataFrame  # NUMBERED
    corpus: np.ndarray  # numbers of texts
    dropped: pl.DataFrame  # DROPPED
    texts_out: dict[str, int]


def make_index(
    settings: Decontaminate | None,
    base: Path,
    build: Path,
    holding: tuple[str, ...],
    progress: Progress,
    workers_for: Callable[[list[Table]], Workers],
) -> None:
    """Index the evaluation sets and the held-out queries, unless the index is current; without `decontaminate:`, remove it.

    Args:
        settings: the manifest's `decontaminate:`.
        base: the manifest's folder.
        build: the build folder.
        holding: sources with held-out queries.
        progress: where to report progress.
        workers_for: returns who works on the texts of some tables.

    Raises:
        SourceError: an evaluation set cannot be read.
        ManifestError: the file of allowed texts cannot be read.
    """
    folder = build / "decontaminate"
    if settings is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    sets = [pinned(one, progress) for one in settings.against]
    if settings.mteb:
        from curation.clean.mteb_sets import eval_sets  # loads mteb

        sets += eval_sets(settings.mteb, base)
    stages = {name: build / "shaped" / name for name in holding}
    held = {name: receipt_of(stage)["files"]["heldout.parquet"] for name, stage in stages.items()}
    parts = [table for one in sets for _, table in evaluation_tables(one)]
    before = [file_states(table, base) for table in parts]
    reads = [
        [
            one.model_dump(),
            {
                f"{part}{name}": digest
                for part, table in evaluation_tables(one)
                for name, digest in input_digests(table, base).items()
            },
        ]
        for one in sets
    ]
    lines = settings.allow  # texts that never count as contaminated, or the name of a file of them
    if isinstance(lines, str):
        try:
            path = base / expand_path(lines, base)
            refuse_special(path, "decontaminate: allow")
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = "is not utf-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
            what = f"'{settings.allow}' {why}"
            raise ManifestError("decontaminate: allow", what, "name a file with one text per line") from None
    allowed = pl.Series(lines, dtype=pl.String)

    def frames() -> Iterator[pl.DataFrame]:
        with progress("read evaluation sets", len(sets), "sets") as advance:
            for one in sets:
                yield from evaluation_texts(one, base)
                advance(1)
        for name, stage in stages.items():
            held_out = read_parquet(stage / "heldout.parquet")
            queries = held_out.select("id", pl.col("query").alias("text"), pl.lit(QUERY).alias("role"))
            answers = held_out.select("id", pl.col("positives").alias("text"), pl.lit(DOCUMENT).alias("role")).explode("text")
            named = (pl.lit(HELDOUT_SETS + name).alias("task"), pl.col("id").alias("eval_id"), "role", "text")
            yield pl.concat([queries, answers]).drop_nulls("text").select(*named).cast(EVAL_TEXTS)

    def work(part: Path) -> dict[str, Any]:
        with fail_if_changed(before, parts, base):
            counts = write_index(part, frames(), normalised(allowed).drop_nulls(), workers_for(parts))
            return {"sets": [one.title for one in sets], **counts}

    run_stage(folder, digest_of([INDEX_RULES, SIBLING_RULES, reads, held, allowed.to_list()]), work)


def depends_on(settings: Decontaminate | None, build: Path) -> list[object]:
    """Return what a source's cleaned tuples depend on, for a digest."""
    if settings is None:
        return []
    receipt = receipt_of(build / "decontaminate")
    return [settings.mode, receipt["digest"], receipt["files"]]


def take_out(
    settings: Decontaminate,
    index_folder: Path,
    folder: Path,
    tuples: pl.DataFrame,
    corpus: np.ndarray,
    texts: Texts,
    matches: pl.DataFrame,
    source: str,
) -> Cleaned:
    """Return tuples and a corpus without contaminated texts; write `contamination.parquet` into `folder`.

    Args:
        settings: the manifest's `decontaminate:`.
        index_folder: the index of the evaluation sets.
        folder: to write to.
        tuples: NUMBERED.
        corpus: numbers of the texts of the source's corpus, (n,) u32.
        texts: the texts that both name.
        matches: from `contaminated`.
        source: the name of the source.
    """
    # 1. Every contaminated text in each of its roles, and what to do with it; `at` is null for the corpus
    frame, hits = tuples.with_row_index("at"), [pl.DataFrame()]
    roles = [frame.select("at", "id", pl.lit("query").alias("field"), pl.col("query").alias("text"))]
    for name, field in (("positives", "positive"), ("negatives", "negative")):
        texts_of_role = frame.select("at", "id", pl.lit(field).alias("field"), pl.col(name).alias("text"))
        roles.append(texts_of_role.explode("text", empty_as_null=False).drop_nulls("text"))
    nothing = (pl.lit(None, pl.UInt32).alias("at"), pl.lit(None, pl.String).alias("id"), pl.lit("corpus").alias("field"))
    once = pl.DataFrame({"text": pl.Series(corpus, dtype=pl.UInt32).unique(maintain_order=True)})
    roles.append(once.select(*nothing, "text"))
    shared = pl.col("role") == CORPUS
    removed = pl.lit(settings.mode != "report") & (~shared | (settings.mode == "strict"))
    asked = pl.when(pl.col("field").is_in(["query", "positive"])).then(pl.lit("dropped")).otherwise(pl.lit("negative_out"))
    action = pl.when(~removed).then(pl.lit("reported")).otherwise(asked).alias("action")
    evaluation = pl.when(pl.col("role") == QUERY).then(pl.lit("query")).otherwise(pl.lit("document")).alias("eval_field")
    as_field = pl.when(shared).then(pl.lit("corpus")).otherwise("field").alias("field")

    def rows() -> Iterator[pl.DataFrame]:
        yield pl.DataFrame(schema=CONTAMINATION)
        for role in roles:
            for some in role.iter_slices(ROWS_AT_A_TIME):
                begins, ends = (np.searchsorted(matches["text"], some["text"], side) for side in ("left", "right"))
                each = np.repeat(np.arange(len(some)), ends - begins)
                if not len(each):
                    continue
                found = matches[_ranges(begins, ends - begins)].drop("text")
                part = _with_evidence(index_folder, some[each].with_columns(*found), texts).with_columns(action, evaluation)
                hits.append(part.filter(pl.col("action") != "reported"))
                yield part.with_columns(as_field, source=pl.lit(source)).select(CONTAMINATION.names()).cast(CONTAMINATION)

    write_parquet(folder / "contamination.parquet", rows())
    if not any(map(len, hits)):
        return Cleaned(tuples, corpus, no_drops(), {})
    removals = pl.concat(hits[1:])

    # 2. Tuples with a contaminated query or positive are dropped
    gone = removals.filter(pl.col("action") == "dropped").unique("at", keep="first", maintain_order=True).sort("at")
    reason = pl.when(shared).then(pl.lit("shared_corpus")).otherwise(pl.lit("contaminated_") + pl.col("field"))
    gone = gone.with_columns(reason.alias("reason"))
    dropped = dropped_frame(
        source, "decontaminate", gone["id"], gone["reason"], gone["evidence"], gone["eval_id"], gone["task"]
    ).with_columns(gone["score"])
    left = frame.join(gone, on="at", how="anti", maintain_order="left")

    # 3. Contaminated negatives and passages are removed alone
    out = removals.filter(pl.col("action") == "negative_out")
    mine = out.filter(pl.col("field") == "negative").join(left, on="at", how="semi").select("at", "text").unique()
    negatives = 0
    if len(mine):
        long = left.select("at", pl.col("negatives").alias("text")).explode("text", empty_as_null=False).drop_nulls()
        good = long.join(mine, on=["at", "text"], how="anti", maintain_order="left")
        negatives = len(long) - len(good)
        lists = good.group_by("at", maintain_order=True).agg(pl.col("text").alias("negatives"))
        left = left.drop("negatives").join(lists, on="at", how="left", maintain_order="left")
        left = left.with_columns(pl.col("negatives").fill_null([]))
    passages = out.filter(pl.col("field") == "corpus")["text"].unique().to_numpy()
    counts = {"contaminated_negative": negatives, "contaminated_passage": len(passages)}
    texts_out = {name: count for name, count in counts.items() if count}
    return Cleaned(left.select(tuples.columns), corpus[~np.isin(corpus, passages)], dropped, texts_out)


def _ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return begins[0], begins[0] + 1, ... as many as counts[0], then those of the next."""
    counts = counts.astype(np.int64)
    offsets = np.repeat(begins.astype(np.int64) - np.cumsum(counts) + counts, counts)
    return np.asarray(np.arange(len(offsets)) + offsets)


def contaminated(
    index_folder: Path, texts: Texts, numbers: np.ndarray, workers: Workers | None = None, folder: Path | None = None
) -> pl.DataFrame:
    """Return MATCHES: the contaminated ones of some texts, for each task the best match, in order of the texts.

    Of one text, matches with a task's queries and answers come before others.

    Args:
        index_folder: the index of the evaluation sets.
        texts: the texts of a source.
        numbers: of the texts to look up, (n,) u32, in any order.
        workers: look the texts up; by default this process.
        folder: for their files, where they are not this process.
    """
    index, nothing = read_index(index_folder), pl.DataFrame(schema=MATCHES)
    if index is None:
        return nothing
    workers, folder = workers or Here(), folder or index_folder
    parts = list(in_order(workers, partial(_looked_up, index_folder, texts), texts.portions(np.unique(numbers)), folder))
    if not any(map(len, parts)):
        return nothing
    found = pl.concat(parts)
    templates = _template_matches(index_folder, index, found, texts, workers, folder)
    found = found.join(templates, on=["text", "entry"], how="anti", maintain_order="left")

    # the texts of each entry, and of these for each task the best
    best, starts = [nothing], np.flatnonzero(np.append(True, np.diff(found["text"].to_numpy()) != 0)[: len(found)])
    for begin, end in pairwise([*starts[::LOOKED_UP_AT_A_TIME].tolist(), len(found)]):
        met = found[begin:end]
        begins, ends = (index.text_begins[met["entry"].to_numpy() + np.uint32(shift)] for shift in (0, 1))
        number, each = index.text_numbers[_ranges(begins, ends - begins)], np.repeat(np.arange(len(met)), ends - begins)
        there = read_texts(index_folder, index, number, ["task", "eval_id", "role"])
        matches = met[each].with_columns(*there, pl.Series("number", number), (there["role"] == CORPUS).alias("shared"))
        unlike = (matches["kind"] > 0).arg_true().to_numpy()
        forms = read_texts(index_folder, index, number[unlike], ["form"])["form"]
        form = pl.repeat("", len(matches), dtype=pl.String, eager=True).scatter(unlike, forms)
        order = ("text", "task", "shared", "kind", -pl.col("score"), "role", "eval_id", "form")
        matches = matches.with_columns(form.alias("form")).sort(order, maintain_order=True)
        rows = matches.unique(["text", "task"], keep="first", maintain_order=True)
        rows = rows.sort("text", "shared", "kind", "task", maintain_order=True)
        best.append(rows.select(MATCHES.names()).cast(MATCHES))
    return pl.concat(best)


def _looked_up(index_folder: Path, texts: Texts, numbers: np.ndarray) -> pl.DataFrame:
    """Return which of the texts with these numbers, (n,) u32, match an entry: FOUND by the numbers of the texts."""
    from curation.clean.overlap_lookup import look_up  # loads the compiled loops

    index = read_index(index_folder)
    assert index
    found = look_up(index, texts.at(numbers))
    of_source = pl.Series("text", numbers[found["text"].to_numpy()], dtype=pl.UInt32)
    return found.with_columns(of_source).cast({"entry": pl.UInt32, "kind": pl.UInt8})


def _with_evidence(index_folder: Path, matches: pl.DataFrame, texts: Texts) -> pl.DataFrame:
    """Return matches with the id of the text of the evaluation set, the rule, and what both texts have in common, cut off."""
    from curation.clean.overlap_lookup import RULES, spans_of  # loads the compiled loops

    index = read_index(index_folder)
    assert index  # it has matches
    rule = pl.Series("rule", RULES).gather(matches["kind"])
    spelled, part = texts.at(matches["text"]), rule != "equal"
    forms = read_texts(index_folder, index, matches["number"].filter(part).to_numpy(), ["form"])["form"]
    shown = spelled.scatter(part.arg_true(), spans_of(spelled.filter(part), forms, rule.filter(part)))
    ids = read_texts(index_folder, index, matches["number"].to_numpy(), ["eval_id"])
    return matches.with_columns(*ids, rule, shown.str.slice(0, EVIDENCE_CHARS).alias("evidence"))


def _texts_of(index_folder: Path, index: Index, entries: np.ndarray, columns: list[str]) -> pl.DataFrame:
    """Return columns of the first text of each of some entries."""
    return read_texts(index_folder, index, index.text_numbers[index.text_begins[entries]], columns)


def _matching_entries(index_folder: Path, unsure: np.ndarray, some: np.ndarray) -> pl.DataFrame:
    """Return left, right: entries, of `unsure` and of `some`, of which the second has enough grams of the first."""
    from curation.clean.overlap_lookup import look_up  # loads the compiled loops

    index = read_index(index_folder)
    assert index
    made = (index_folder / "keys.u8").stat()
    known = (str(index_folder), made.st_ino, made.st_mtime_ns, unsure.tobytes())
    few = held("unsure entries", known, partial(leading_to, index, unsure))
    near = look_up(few, _texts_of(index_folder, index, some, ["form"])["form"]).filter(pl.col("kind") > 0)
    return near.select(pl.col("entry").cast(pl.UInt32).alias("left"), pl.Series("right", some[near["text"].to_numpy()]))


def _template_matches(
    index_folder: Path, index: Index, found: pl.DataFrame, texts: Texts, workers: Workers, folder: Path
) -> pl.DataFrame:
    """Return text, entry of the matches that are siblings, not copies; matches between the entries are evidence too."""
    unsure = found.filter(pl.col("kind") > 0).select("text", "entry")
    if not len(unsure):
        return unsure
    entries = np.unique(found["entry"].to_numpy())
    portions = (entries[start : start + INDEXED_AT_A_TIME] for start in range(0, len(entries), INDEXED_AT_A_TIME))
    matching = partial(_matching_entries, index_folder, np.unique(unsure["entry"].to_numpy()))
    near = pl.concat(in_order(workers, matching, portions, folder))
    count = len(index.sizes)  # texts of the source are numbered after the entries

    def read(numbers: np.ndarray) -> tuple[pl.Series, pl.Series]:
        entry, own = numbers[numbers < count], numbers[numbers >= count] - count
        there = _texts_of(index_folder, index, entry, ["form", "names"])
        spelled = texts.at(own)
        forms = pl.concat([there["form"], normalised(spelled).fill_null("").alias("form")])
        return forms, pl.concat([there["names"], capitalised_words(spelled)])

    left = np.concatenate([unsure["entry"].to_numpy(), near["left"].to_numpy()])
    right = np.concatenate([unsure["text"].to_numpy().astype(np.int64) + count, near["right"].to_numpy()])
    return unsure.filter(pl.Series(siblings(left.astype(np.int64), right, read)[: len(unsure)]))


def table_of(build: Path, only: list[str]) -> list[tuple[str, str, int, int, int, int]]:
    """Return task, source and the counts of contaminated queries, positives, negatives and corpus texts, for `curate stats`."""
    tasks = read_build(build).get("decontaminate", {"tasks": {}})["tasks"]
    return [
        (task, source, counts["query"], counts["positive"], counts["negative"], counts["corpus"])
        for task, sources in tasks.items()
        for source, counts in sources.items()
        if source in only
    ]


def gather(settings: Decontaminate | None, build: Path, sources: list[str]) -> dict[str, Any] | None:
    """Write the build's contamination.parquet, and return build.json's part: contaminated texts by task, source and field."""
    path = build / "contamination.parquet"
    (build / "leaks.parquet").unlink(missing_ok=True)  # its name up to format 4
    if settings is None:
        path.unlink(missing_ok=True)
        return None
    stages = [build / "cleaned" / name / "contamination.parquet" for name in sources]
    there = [stage for stage in stages if stage.exists()]
    write_blocks(
        path, (block for stage in there for block in read_groups(stage)) if there else [pl.DataFrame(schema=CONTAMINATION)]
    )
    tasks: dict[str, dict[str, dict[str, int]]] = {}
    asked = ["task", "source", "field"]
    counts = [pl.DataFrame(schema=CONTAMINATION).select(asked).with_columns(len=pl.lit(0, pl.UInt32))]
    for stage in there:
        counts += [block.group_by(asked, maintain_order=True).len() for block in read_groups(stage, asked)]
    total = pl.concat(counts).group_by(asked, maintain_order=True).agg(pl.col("len").sum())
    for task, source, field, count in total.sort("task", maintain_order=True).iter_rows():
        row = tasks.setdefault(task, {}).setdefault(source, dict.fromkeys(("query", "positive", "negative", "corpus"), 0))
        row[field] = count
    return {"mode": settings.mode, "tasks": tasks}
