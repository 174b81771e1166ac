"""What a person looks at: counts, reasons, records as they will be trained on, and a preview of a manifest."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from curation.build import job_of, pick
from curation.errors import BuildError, SourceError, did_you_mean, listed
from curation.licenses import Policy, allowed
from curation.lock import pinned
from curation.manifest import load_manifest
from curation.manifest_source import Source, shape_of
from curation.outside import refuse
from curation.reading.mapped import found_by
from curation.reading.mapped import mapped as named_by
from curation.reading.rows import ROW, Lost
from curation.reading.sources import read_rows
from curation.schema import DROPPED, render_query
from curation.shaping.columns import column, place_of
from curation.shaping.shapes import to_tuples
from curation.shaping.unused import check_readable
from curation.stages import Job
from curation.store import checked_stage
from curation.summary import read_summary
from curation.tables import read_parquet, read_table
from curation.visible import visible

Receipt = dict[str, Any]
PREVIEW_ROWS = 1000
WIDTH = 80
MARGIN = 14
TEXT_LINES = 6


def names_of(build: Path, only: Iterable[str] = ()) -> list[str]:
    """Return the names of a build's sources, or those of `only`, in the build's order.

    Raises:
        BuildError: no build, or no such source.
    """
    names = list(read_summary(build)["sources"])
    for name in only:
        if name not in names:
            raise BuildError(build, f"no source '{name}'" + did_you_mean(name, names), f"sources: {listed(names)}")
    return [name for name in names if name in set(only)] or names


def receipts(build: Path, only: Iterable[str] = ()) -> dict[str, Receipt]:
    """Return the receipt of each source of a build, files checked.

    Raises:
        BuildError: no build, no such source, or a file was changed by hand.
    """
    found = {}
    for name in names_of(build, only):
        found[name] = checked_stage(build, f"curated/{name}")
    return found


def counts_table(found: dict[str, Receipt]) -> str:
    """Return one line a source: rows in and used, tuples made, and what became of them."""
    head = ("source", "rows", "used", "tuples", "merged", "dropped", "held", "kept", "passages")
    lines = [_counts(name, receipt) for name, receipt in found.items()]
    if len(lines) > 1:
        lines.append(("all", *(sum(line[at] for line in lines) for at in range(1, len(head)))))
    return table(head, lines)


def _counts(name: str, receipt: Receipt) -> tuple[Any, ...]:
    dropped = sum(receipt["dropped"].values())
    return (name, *(receipt[key] for key in ("rows_in", "rows_used", "tuples_made", "merged")), dropped,
            receipt["heldout"], receipt["kept"], receipt["passages"])  # fmt: skip


def reasons_table(found: dict[str, Receipt]) -> str:
    """Return one line a reason: rows that made no tuple, tuples dropped, texts taken out of tuples that stayed."""
    kinds = (("rows_dropped", "row"), ("dropped", "tuple"), ("texts_out", "text"))
    lines: list[tuple[Any, ...]] = []
    for name, receipt in found.items():
        lines += [(name, what, reason, count) for key, what in kinds for reason, count in receipt[key].items()]
    return table(("source", "left out", "reason", "count"), lines) if lines else "nothing was left out"


def table(head: tuple[str, ...], lines: list[tuple[Any, ...]]) -> str:
    """Return an aligned table; numbers to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line] for line in lines]
    widths = [max(len(row[at]) for row in [list(head), *cells]) for at in range(len(head))]
    right = [all(isinstance(line[at], int) for line in lines) for at in range(len(head))]

    def draw(row: Iterable[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([draw(head), "  ".join("-" * w for w in widths), *(draw(row) for row in cells)])


def as_json(found: object) -> str:
    """Return JSON for programs."""
    return json.dumps(found, indent=1, ensure_ascii=False)


def as_line(record: object) -> str:
    """Return one line of JSON."""
    return json.dumps(record, ensure_ascii=False)


def records(build: Path, only: Iterable[str], count: int) -> Iterator[dict[str, Any]]:
    """Yield the first `count` tuples of each source as they will be trained on: instruction rendered, ids as texts."""
    for name, receipt in receipts(build, only).items():
        folder = build / "curated" / name
        texts = read_table(folder, "passages", ["text"])["text"]
        for row in read_table(folder, "pairs").head(count).iter_rows(named=True):
            yield {
                "id": row["id"],
                "query": render_query(receipt["instruction"], row["query"]),
                "positives": [texts[pid] for pid in row["positives"]],
                "negatives": [texts[pid] for pid in row["negatives"]],
                **({"label": row["label"]} if row["label"] is not None else {}),
            }


def dropped_records(build: Path, only: Iterable[str], count: int, reason: str | None) -> Iterator[dict[str, Any]]:
    """Yield `count` dropped rows or tuples of each source and reason, those that mining dropped too."""
    for name in receipts(build, only):
        paths = [build / stage / name / "dropped.parquet" for stage in ("curated", "mined")]
        dropped = pl.concat([read_parquet(path).cast(DROPPED) for path in paths if path.exists()])
        if reason is not None:
            dropped = dropped.filter(pl.col("reason") == reason)
        for row in dropped.group_by("reason", maintain_order=True).head(count).iter_rows(named=True):
            yield {key: value for key, value in row.items() if value is not None}


def as_text(record: dict[str, Any]) -> str:
    """Return a record to read at 80 columns; the lines of code stay lines."""
    out = []
    for key, value in record.items():
        many = isinstance(value, list)
        for text in value if many else [value]:
            shown = _short(str(text))
            out.append(f"{key.removesuffix('s') if many else key:>12}  {shown[0]}")
            out += [" " * MARGIN + more for more in shown[1:]]
    return "\n".join(out) + "\n"


def _short(text: str) -> list[str]:
    """Return a text as a few lines of the screen."""
    width = WIDTH - MARGIN
    shown = visible(text.strip()).split("\n")
    lines = [part.rstrip() for line in shown for part in textwrap.wrap(line, width, drop_whitespace=False) or [""]]
    return lines if len(lines) <= TEXT_LINES else [*lines[: TEXT_LINES - 1], "..."]


def preview(
    path: Path,
    only: Iterable[str],
    limit: int | None,
    write: Callable[[str], None],
    licenses: Policy | None = None,
    confined: bool = False,
) -> None:
    """Show the shape of each source that a build would take, and a first tuple made of its first rows; write no file.

    Raises:
        ManifestError: as `build.build`.
        SourceError: a source cannot be read, or is not as it was locked.
    """
    manifest, excluded = allowed(load_manifest(path), licenses)
    chosen = pick(manifest, only, excluded)
    manifest, changed = pinned(manifest, path, refuse(manifest, path) if confined else {})
    for source in manifest.sources:
        if source.name not in chosen:
            continue
        if source.name in changed:
            raise changed[source.name]
        few = {"sample": "first", "limit": PREVIEW_ROWS}  # streams from the Hub
        job = job_of(manifest, source.model_copy(update=few), path.parent, Path(), limit)
        rows, lost = _first_rows(job)
        check_readable(source, rows, lost)
        there = [name for name in rows.columns if name != ROW]
        write(f"{source.name}: {source.task}, shape {shape_of(source)}, columns {listed(there, 20)}")
        if lost:
            counts = sorted(Counter(one.reason for one in lost).items())
            told = ", ".join(f"{reason} {count:,}" for reason, count in counts)
            write(f"  {len(lost):,} of the first {len(rows) + len(lost):,} rows are left out: {told}")
        for pattern, passed in _passed_over(source, rows.columns).items():
            write(f"  `{pattern}` passes over {listed(passed, 20)}: no texts, by their names or what else maps them")
        if shape_of(source) == "qrels":  # a tuple of qrels needs the whole corpus
            continue
        for name in mapped(source):
            column(place_of(source), rows, name)
        try:
            made = to_tuples(source, rows.head(PREVIEW_ROWS), manifest.seed)
        except SourceError as error:
            write(f"  of its first {min(len(rows), PREVIEW_ROWS):,} rows alone: {error.what}")
            continue
        for row in made.tuples.head(1).iter_rows(named=True):
            query = render_query(made.instruction, row["query"])
            write(as_text({"query": query, "positives": row["positives"], "negatives": row["negatives"]}))


def _passed_over(source: Source, columns: list[str]) -> dict[str, list[str]]:
    """Return what each pattern of negatives fits and does not take."""
    passed = {one: found_by(one, columns, named_by(source).names)[1] for one in source.fields.negatives}
    return {one: names for one, names in passed.items() if names}


def _first_rows(job: Job) -> tuple[pl.DataFrame, list[Lost]]:
    """Return the first batch that has rows, and those that were lost up to its end."""
    lost: list[Lost] = []
    for batch in read_rows(job.source, job.base):
        lost += batch.lost
        if len(batch.frame):
            return batch.frame, lost
    return pl.DataFrame(), lost


def mapped(source: Source) -> list[str]:
    """Return the columns that a source maps by name."""
    fields = source.fields
    found = (fields.query, fields.title, fields.positive, fields.documents, fields.label, fields.score)
    return [name for name in found if name is not None]
