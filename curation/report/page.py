"""report.html: a build on one page that needs nothing else, with the figures of `curate stats --json`."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import polars as pl

from curation.core.builds import check_beside, checked_stage, read_summary
from curation.core.escape import as_html
from curation.core.store import atomic, digest_of, file_digest, is_sealed_page, read_receipt, sealed_page, versions
from curation.core.tables import read_parquet, read_table, shards
from curation.read.outside import hide_local_paths
from curation.recipe.manifest import load_manifest
from curation.report import figures, sections
from curation.report.samples import Lengths, drops, matched_queries, near_pairs, records
from curation.report.source import source as source_section

LAYOUT = 3  # of the page; a new one makes every report be written again
TEMPLATE = Path(__file__).with_name("report.template.html")
STATE = '<meta name="tuplesmith-state" content="{}">'


def write(folder: Path, again: bool = False) -> bool:
    """Write report.html of a build unless it already tells of what stands there; return whether it wrote.

    Same build, same bytes. `again` writes in any case.

    Raises:
        BuildError: there is no build, or a file of it was changed by hand.
    """
    summary = read_summary(folder)
    receipts = {name: receipt for name in summary["sources"] if (receipt := read_receipt(folder / "curated" / name))}
    target = folder / "report.html"
    mined = {name: found for name, receipt in receipts.items() if (found := _mined(folder, name, receipt))}
    state = STATE.format(_state(folder, summary, receipts, mined))
    if not again and _starts_with(target, state):
        return False
    for name in receipts:
        checked_stage(folder, f"curated/{name}")
    check_beside(folder, "manifest.yaml", "overlaps.parquet", "contamination.parquet")
    page = hide_local_paths(_page(folder, summary, receipts, mined, state), load_manifest(folder / "manifest.yaml"))
    with atomic(target) as file:
        file.write(sealed_page(page))
    return True


def _starts_with(page: Path, state: str) -> bool:
    if not page.exists() or not is_sealed_page(page):
        return False
    with page.open("rb") as file:
        return state.encode() in file.read(500)


def _mined(folder: Path, name: str, curated: dict[str, Any]) -> dict[str, Any] | None:
    """Return the receipt of a source's negatives, where they were mined from what stands there."""
    receipt = read_receipt(folder / "mined" / name)
    return receipt if receipt and receipt["curated"] == curated["digest"] and "histograms" in receipt else None


def _state(folder: Path, summary: dict[str, Any], receipts: dict[str, Any], mined: dict[str, Any]) -> str:
    """Return the digest of all that a report shows."""
    tables = [file_digest(path) for path in (folder / "overlaps.parquet", folder / "contamination.parquet") if path.exists()]
    said = [[receipt["digest"], receipt["files"]] for receipt in receipts.values()]
    look = [LAYOUT, versions()["tuplesmith"], file_digest(folder / "manifest.yaml"), file_digest(TEMPLATE)]
    return digest_of([*look, json.dumps(summary), said, tables, [receipt["digest"] for receipt in mined.values()]])


def _page(folder: Path, summary: dict[str, Any], receipts: dict[str, Any], mined: dict[str, Any], state: str) -> str:
    dedup = load_manifest(folder / "manifest.yaml").dedup
    threshold = dedup.threshold if dedup else 1.0
    contamination = _table(folder / "contamination.parquet")
    lengths, labels, counts, parts = {}, {}, {}, []
    for name, receipt in receipts.items():
        stage = folder / "curated" / name
        dropped = read_parquet(stage / "dropped.parquet")
        counts[name] = sections.counts(receipt, dropped)
        lengths[name], labels[name] = _lengths(stage), _labels(stage)
        left_out = drops(dropped, summary["seed"], name)
        near = near_pairs(folder, name, dropped, threshold, summary["seed"])
        texts = matched_queries({name: folder / "curated" / name for name in receipts}, left_out)
        shown = records(stage, summary["seed"], name, receipt["kept"])
        facts = receipt | summary["sources"][name]
        parts.append(source_section(name, facts, counts[name], shown, near, threshold, left_out, texts))
    overview = [
        sections.sources(summary, receipts, counts),
        sections.absent(summary),
        sections.overlap(_table(folder / "overlaps.parquet"), list(receipts)),
        sections.lengths(lengths),
        sections.scores(mined),
        sections.labels({name: found for name, found in labels.items() if found}),
        sections.contamination(summary.get("decontaminate"), contamination, summary["seed"]),
    ]
    values = {
        "title": as_html(summary["name"]),
        "state": state,
        "version": as_html(versions()["tuplesmith"]),
        "totals": sections.totals(summary, receipts, counts),
        "contents": sections.contents([part for part in overview if part], list(receipts)),
        "overview": "\n".join(part.body for part in overview if part),
        "sources": "\n".join(parts),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _table(path: Path) -> pl.DataFrame | None:
    return read_parquet(path) if path.exists() else None


def _lengths(stage: Path) -> Lengths:
    queries, used = [], []
    for shard in shards(stage, "pairs", ["query", "positives"]):
        queries.append(shard["query"].str.len_chars())
        used.append(shard["positives"].explode(empty_as_null=False).unique())
    pids = pl.concat(used).unique().implode()
    passages = [
        shard.filter(pl.col("pid").is_in(pids))["text"].str.len_chars() for shard in shards(stage, "passages", ["pid", "text"])
    ]
    both = pl.concat(queries), pl.concat(passages)
    up, down = (figures.length_bins(texts) for texts in both)
    first, second = (int(np.median(texts.to_numpy())) for texts in both)
    return Lengths(up, down, (first, second))


def _labels(stage: Path) -> list[tuple[str, int]]:
    """Return (label, tuples) of a labelled source, largest first."""
    labels = read_table(stage, "pairs", ["label"])["label"].drop_nulls()
    counted = labels.value_counts().sort("count", "label", descending=[True, False])
    return list(counted.iter_rows())
