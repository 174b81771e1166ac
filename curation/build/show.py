"""What `curate show` and `curate stats` print: counts, reasons, and records as they are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from curation.core.builds import Receipt, query_origin, receipts
from curation.core.console import wrapped
from curation.core.escape import text_table, visible
from curation.core.record import DROPPED, render_query
from curation.core.tables import read_parquet, read_table

SCREEN = 80  # columns
MARGIN = 14  # columns left of a text
OVERLAPS_SHOWN = 10  # pairs of sources
TEXT_LINES = 6  # of a text; longer ones are cut
MOST_CHARS = 4 * SCREEN * TEXT_LINES  # of a line of a text; more cannot fit


def counts_table(found: dict[str, Receipt]) -> str:
    """Return one line per source: rows read and used, tuples made, and what became of them."""
    head = ("source", "rows", "used", "tuples", "merged", "dropped", "held", "kept", "passages")
    lines: list[tuple[Any, ...]] = []
    for name, receipt in found.items():
        made = (receipt[key] for key in ("rows_in", "rows_used", "tuples_made", "merged"))
        kept = (receipt[key] for key in ("heldout", "kept", "passages"))
        lines.append((name, *made, sum(receipt["dropped"].values()), *kept))
    if len(lines) > 1:
        lines.append(("all", *(sum(line[at] for line in lines) for at in range(1, len(head)))))
    return text_table(head, lines)


def reasons_table(found: dict[str, Receipt]) -> str:
    """Return one line per reason: rows that made no tuple, tuples dropped, texts removed from tuples that stayed.

    Below are the sources whose queries a model wrote.
    """
    kinds = (("rows_dropped", "row"), ("dropped", "tuple"), ("texts_out", "text"))
    lines: list[tuple[Any, ...]] = []
    for name, receipt in found.items():
        lines += [(name, what, reason, count) for key, what in kinds for reason, count in receipt[key].items()]
    origins = [f"\n{name}: {origin}" for name, receipt in found.items() if (origin := query_origin(receipt))]
    table = text_table(("source", "left out", "reason", "count"), lines) if lines else "nothing was left out"
    return table + "\n" * bool(origins) + "".join(origins)


def overlaps_of(build: Path, name: str) -> dict[str, dict[str, int | None]]:
    """Return {other source: equal, near, dropped (from the later source)} of a source."""
    path = build / "overlaps.parquet"
    found = {}
    for row in read_parquet(path).iter_rows(named=True) if path.exists() else ():
        both = {row.pop("source_a"), row.pop("source_b")}
        if name in both and len(both) == 2:
            found[next(iter(both - {name}))] = row
    return found


def overlaps_table(build: Path, names: list[str]) -> str:
    """Return the pairs of sources with the most equal texts as a table; empty if no two sources share anything."""
    path = build / "overlaps.parquet"
    if not path.exists():
        return ""
    shared = read_parquet(path).filter(pl.any_horizontal(pl.col("source_a", "source_b").is_in(names)))
    shared = shared.sort("equal", "near", descending=True, nulls_last=True, maintain_order=True).head(OVERLAPS_SHOWN)
    lines = [tuple("" if cell is None else cell for cell in line) for line in shared.rows()]
    return text_table(("source", "and", "equal texts", "near", "dropped"), lines) if lines else ""


def as_json(found: object) -> str:
    """Return JSON for programs."""
    return json.dumps(found, indent=1, ensure_ascii=False)


def records(build: Path, only: Iterable[str], count: int) -> Iterator[dict[str, Any]]:
    """Yield the first `count` tuples of each source as they are trained on: queries with instructions, texts in place of ids."""
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
                **({"query_origin": "synthetic"} if "synthetic" in receipt else {}),
            }


def dropped_records(build: Path, only: Iterable[str], count: int, reason: str | None) -> Iterator[dict[str, Any]]:
    """Yield `count` dropped rows or tuples of each source and reason, including those that mining dropped."""
    for name in receipts(build, only):
        paths = [build / stage / name / "dropped.parquet" for stage in ("curated", "mined")]
        dropped = pl.concat([read_parquet(path).cast(DROPPED) for path in paths if path.exists()])
        if reason is not None:
            dropped = dropped.filter(pl.col("reason") == reason)
        for row in dropped.group_by("reason", maintain_order=True).head(count).iter_rows(named=True):
            yield {key: value for key, value in row.items() if value is not None}


def record_text(record: dict[str, Any]) -> str:
    """Return a record as text of 80 columns; line breaks in texts are kept."""
    out, width = [], max(MARGIN - 2, *map(len, record))
    for key, value in record.items():
        many = isinstance(value, list)
        for text in value if many else [f"{value:.3f}" if isinstance(value, float) else value]:
            lines = []
            for part in visible(str(text).strip()).split("\n"):
                lines += [line.rstrip() for line in wrapped(part[:MOST_CHARS], SCREEN - width - 2)]
            if len(lines) > TEXT_LINES:
                lines = [*lines[: TEXT_LINES - 1], "..."]
            out.append(f"{key.removesuffix('s') if many else key:>{width}}  {lines[0]}")
            out += [" " * (width + 2) + more for more in lines[1:]]
    return "\n".join(out) + "\n"
