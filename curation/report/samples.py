"""What a report shows of a source's rows: the same few each time, drawn by the build's seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curation.core.record import draws, keys_of
from curation.core.tables import read_parquet, read_table, shards

RECORDS = 3
PER_REASON = 3
PAIRS = 3  # near-duplicate pairs at or above the threshold, and as many below
NEGATIVES = 3


class Pair(NamedTuple):
    """Two texts that are nearly the same."""

    left: str
    right: str
    score: float  # exact Jaccard of their shingles
    verdict: str


class Near(NamedTuple):
    """Near-duplicates of a source."""

    above: int  # verified pairs at or above the threshold
    below: int  # and at most 0.1 below it
    pairs: list[Pair]  # a few of both


def drawn(seed: int, purpose: str, count: int, wanted: int) -> list[int]:
    """Return `wanted` of the numbers below `count`, in order."""
    return sorted(np.argsort(draws(seed, f"report/{purpose}", np.arange(count)), kind="stable")[:wanted].tolist())


def records(folder: Path, seed: int, name: str, count: int) -> list[dict[str, Any]]:
    """Return a few of the `count` tuples of a curated source.

    Each with id, query, label, the texts of its first positive and of at most NEGATIVES negatives, and how many `others`
    of the positives and `more` of the negatives there are.
    """
    wanted, rows, start = drawn(seed, f"records/{name}", count, RECORDS), [], 0
    for shard in shards(folder, "pairs", ["id", "query", "label", "positives", "negatives"]):
        rows += shard[[at - start for at in wanted if start <= at < start + len(shard)]].to_dicts()
        start += len(shard)
    for row in rows:
        row["more"] = max(0, len(row["negatives"]) - NEGATIVES)
        row["negatives"] = row["negatives"][:NEGATIVES]
    pids = sorted({pid for row in rows for pid in row["positives"][:1] + row["negatives"]})
    texts: dict[int, str] = {}
    for shard in shards(folder, "passages", ["pid", "text"]):
        texts |= dict(shard.filter(pl.col("pid").is_in(pids)).iter_rows())
    for row in rows:
        row["others"] = len(row["positives"]) - 1
        row |= {part: [texts[pid] for pid in row[part] if pid in texts] for part in ("positives", "negatives")}
    return rows


def drops(dropped: pl.DataFrame, seed: int, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return a few dropped rows or tuples by reason."""
    found = {}
    for (reason,), rows in dropped.group_by("reason", maintain_order=True):
        found[str(reason)] = rows[drawn(seed, f"drops/{name}/{reason}", len(rows), PER_REASON)].to_dicts()
    return found


def matched_queries(stages: dict[str, Path], samples: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return the queries of the kept tuples that near-duplicates gave way to, by id; `stages` are the sources' folders."""
    wanted: dict[str, set[str]] = {}
    for row in (row for rows in samples.values() for row in rows):
        if row["stage"] == "dedup" and row["matched_id"] and row["matched_source"] in stages:
            wanted.setdefault(row["matched_source"], set()).add(row["matched_id"])
    texts: dict[str, str] = {}
    for source, ids in wanted.items():
        for shard in shards(stages[source], "pairs", ["id", "query"]):
            texts |= dict(shard.filter(pl.col("id").is_in(sorted(ids))).iter_rows())
    return texts


def near_pairs(build: Path, name: str, dropped: pl.DataFrame, threshold: float, seed: int) -> Near:
    """Return how many verified near-duplicates a source has, and a few of them, from both sides of the threshold."""
    path = build / "curated" / name / "near.parquet"
    if not path.exists():
        return Near(0, 0, [])
    near = read_parquet(path, ["left", "right", "score"])
    sides = (near.filter(pl.col("score") >= threshold), near.filter(pl.col("score") < threshold))
    rows = pl.concat([side[drawn(seed, f"near/{name}/{at}", len(side), PAIRS)] for at, side in enumerate(sides)])
    keys = pl.concat([rows["left"], rows["right"]]).unique()
    gone = _dropped_queries(build / "shaped" / name, dropped, keys)
    texts = _texts(build / "curated" / name, keys) | gone
    pairs = []
    for left, right, score in rows.iter_rows():
        if left in texts and right in texts:
            alike = "dropped" if left in gone or right in gone else "one group"
            pairs.append(Pair(texts[left], texts[right], score, alike if score >= threshold else "both stay"))
    return Near(len(sides[0]), len(sides[1]), pairs)


def _dropped_queries(shaped: Path, dropped: pl.DataFrame, keys: pl.Series) -> dict[bytes, str]:
    """Return those of the texts with these keys that were queries of dropped near-duplicates."""
    ids = dropped.filter(pl.col("stage") == "dedup")["id"]
    if not len(ids) or not shaped.is_dir():
        return {}
    queries = read_table(shaped, "tuples", ["id", "query"]).filter(pl.col("id").is_in(ids.implode()))["query"]
    return dict(pl.DataFrame({"key": keys_of(queries), "query": queries}).filter(pl.col("key").is_in(keys.implode())).iter_rows())


def _texts(folder: Path, keys: pl.Series) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for table, column in (("pairs", "query"), ("passages", "text")):
        for shard in shards(folder, table, ["key", column]):
            found |= dict(shard.filter(pl.col("key").is_in(keys.implode())).iter_rows())
    return found


class Lengths(NamedTuple):
    """Characters of the texts of a source."""

    queries: np.ndarray  # (bins,) i64
    positives: np.ndarray
    middle: tuple[int, int]  # medians
