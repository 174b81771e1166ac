"""What each two sources share: equal texts, near-duplicates, and tuples dropped for it. `overlaps.parquet` of a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from curation.core.store import atomic, digest_of, receipt_of, run_stage
from curation.core.tables import read_parquet, write_parquet
from curation.recipe.job import FORMAT

OVERLAPS = pl.Schema(
    {"source_a": pl.String(), "source_b": pl.String(), "equal": pl.UInt32(), "near": pl.UInt32(), "dropped": pl.UInt32()}
)
PAIR = ["source_a", "source_b"]


def write(build: Path, names: list[str], across: bool) -> None:
    """Write a row for each two sources of `names` (in order of the manifest) that share anything, before it is dropped."""
    whole = build / "overlaps.parquet"
    if len(names) < 2:
        whole.unlink(missing_ok=True)
        return
    forms = {name: receipt_of(build / "cleaned" / name)["files"]["forms.parquet"] for name in names}
    drops = receipt_of(build / "across" / "drops")["files"] if across else None
    stage = build / "across" / "overlaps"
    digest = digest_of([FORMAT, "overlaps", list(forms.items()), drops])
    run_stage(stage, digest, lambda folder: _write(build, names, across, folder))
    found = (stage / "overlaps.parquet").read_bytes()
    if not whole.exists() or whole.read_bytes() != found:
        with atomic(whole) as file:
            file.write(found)


def _write(build: Path, names: list[str], across: bool, folder: Path) -> dict[str, Any]:
    found = _equal(build, names)
    if across:
        lists = [read_parquet(path) for path in sorted((build / "across" / "drops" / "sources").iterdir())]
        dropped = pl.concat(lists).group_by(pl.col("twin_source").alias("source_a"), pl.col("source").alias("source_b"))
        near = read_parquet(build / "across" / "drops" / "counts.parquet")
        for table in (near, dropped.agg(pl.len().alias("dropped"))):
            found = found.join(table, on=PAIR, how="full", coalesce=True)
        found = found.with_columns(pl.col("equal", "near", "dropped").fill_null(0))
    else:
        found = found.with_columns(pl.lit(None).alias("near"), pl.lit(0).alias("dropped"))
    order = {name: at for at, name in enumerate(names)}
    found = found.filter(pl.all_horizontal(pl.col(PAIR).is_in(names)))
    found = found.sort([pl.col(name).replace_strict(order, return_dtype=pl.Int64) for name in PAIR])
    write_parquet(folder / "overlaps.parquet", found.select(list(OVERLAPS)).cast(OVERLAPS))
    return {"sources": names}


def _equal(build: Path, names: list[str]) -> pl.DataFrame:
    """Return source_a, source_b, equal: how many forms both have."""
    tables = [
        read_parquet(build / "cleaned" / name / "forms.parquet").with_columns(pl.lit(at, pl.UInt16).alias("at"))
        for at, name in enumerate(names)
    ]
    both = pl.concat(tables)
    both = both.filter(pl.len().over("form") > 1)
    met = both.join(both, on="form", suffix="_b").filter(pl.col("at") < pl.col("at_b"))
    counts = met.group_by("at", "at_b").agg(pl.len().alias("equal"))
    named = (pl.Series(name, names, dtype=pl.String).gather(counts[at]) for name, at in zip(PAIR, ("at", "at_b"), strict=True))
    return pl.DataFrame([*named, counts["equal"]])


def of_source(build: Path, name: str) -> dict[str, dict[str, int | None]]:
    """Return {other source: equal, near, dropped (of the later one)} of a source."""
    whole = build / "overlaps.parquet"
    table = read_parquet(whole) if whole.exists() else pl.DataFrame(schema=OVERLAPS)
    found = {}
    for row in table.iter_rows(named=True):
        both = {row.pop("source_a"), row.pop("source_b")}
        if name in both and len(both) == 2:
            found[next(iter(both - {name}))] = row
    return found


def largest(build: Path, names: list[str], count: int = 10) -> list[tuple[Any, ...]]:
    """Return the rows with the most equal texts, as lines of a table."""
    whole = build / "overlaps.parquet"
    table = read_parquet(whole) if whole.exists() else pl.DataFrame(schema=OVERLAPS)
    table = table.filter(pl.any_horizontal(pl.col(PAIR).is_in(names)))
    lines = table.sort("equal", "near", descending=True, nulls_last=True, maintain_order=True).head(count).rows()
    return [tuple("" if cell is None else cell for cell in line) for line in lines]
