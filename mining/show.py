"""`mine show`: tuples with their negatives, as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curation.core import store, tables
from curation.core.builds import checked_stage
from curation.core.console import shortened, wrapped
from curation.core.errors import BuildError, listed
from curation.core.escape import visible
from curation.core.record import GIVEN, ORIGINS, POSITIVE_ORIGINS
from curation.core.text import word_pattern
from mining.jobs import read_sources

WIDTH = 78  # columns of a line
RUN = 3  # words in a row that a negative shares with a positive before they are marked


def mined_sources(build: Path, only: Sequence[str]) -> list[str]:
    """Return the sources of a build that have been mined, or those of them in `only`.

    Raises:
        BuildError: nothing has been mined.
    """
    names = [name for name in read_sources(build, only) if store.read_receipt(build / "mined" / name)]
    if not names:
        what = f"holds nothing mined{f' for {listed(only)}' if only else ''}"
        raise BuildError(build / "mined", what, "run `mine negatives` first")
    return names


def promotion_line(build: Path, name: str) -> str:
    """Return how many candidates of a source were promoted, or dropped as uncertain; empty if neither was asked for."""
    receipt = store.read_receipt(build / "mined" / name) or {}
    parts = []
    if promotion := receipt.get("promotion"):
        parts.append(f"{promotion['promoted']:,} candidates of {promotion['rows']:,} tuples were promoted to positives")
    if (uncertain := receipt.get("filters", {}).get("uncertain")) is not None:
        parts.append(f"{uncertain:,} uncertain candidates were dropped")
    return f"{name}: {'; '.join(parts)}" if parts else ""


def mined_tuples(build: Path, name: str, number: int) -> list[dict[str, Any]]:
    """Return the first tuples of a mined source with their texts; negatives as (marked text, score, rank, origin)."""
    checked_stage(build, f"curated/{name}")
    checked_stage(build, f"mined/{name}", "run `mine negatives` again")
    rows = tables.read_table(build / "mined" / name, "pairs").head(number)
    needed = pl.concat([rows["positives"].explode(), rows["negatives"].explode()]).drop_nulls().unique()
    passages = tables.read_table(build / "curated" / name, "passages", ["pid", "text"])
    passages = passages.filter(pl.col("pid").is_in(needed.implode()))
    texts = dict(zip(passages["pid"], passages["text"], strict=True))
    found = []
    for row in rows.iter_rows(named=True):
        positives = [texts[pid] for pid in row["positives"]]
        columns = (row[name] for name in ("negatives", "negative_scores", "negative_ranks", "negative_origin"))
        negatives = [
            (mark_shared(texts[pid], positives), score, rank, ORIGINS[origin])
            for pid, score, rank, origin in zip(*columns, strict=True)
        ]
        kept = {key: row.get(key) for key in ("id", "query", "positive_score", "positive_rank")}
        origins = [POSITIVE_ORIGINS[at] for at in row.get("positive_origin") or [GIVEN] * len(positives)]
        kept |= {"positive_origin": origins, "positive_reranked": row.get("positive_reranked") or [None] * len(positives)}
        found.append({**kept, "positives": positives, "negatives": negatives})
    return found


def mark_shared(text: str, others: Sequence[str]) -> str:
    """Return a text with [[ ]] around each run of three or more words that one of the other texts contains too."""

    word_of = re.compile(word_pattern())

    def runs(words: list[str]) -> list[tuple[str, ...]]:
        return list(zip(*(words[start:] for start in range(RUN)), strict=False))

    seen = {run for other in others for run in runs([word.lower() for word in word_of.findall(other)])}
    words = list(word_of.finditer(text))
    shared = [False] * len(words)
    for at, run in enumerate(runs([word.group().lower() for word in words])):
        if run in seen:
            shared[at : at + RUN] = [True] * RUN
    found, last = "", 0
    for at, word in enumerate(words):
        found += text[last : word.start()]
        found += "[[" if shared[at] and not (at and shared[at - 1]) else ""
        found += word.group() + ("]]" if shared[at] and shared[at + 1 : at + 2] != [True] else "")
        last = word.end()
    return found + text[last:]


def as_text(row: dict[str, Any], whole: bool) -> str:
    """Return a tuple as lines of at most `WIDTH` columns: one per text, or with `whole` as many as each text needs."""
    texts = [("query", None, None, row["query"])]
    columns = (row[name] for name in ("positives", "positive_origin", "positive_reranked"))
    for place, (text, origin, reranked) in enumerate(zip(*columns, strict=True)):
        first = (row["positive_score"], row["positive_rank"]) if not place else (None, None)
        score, rank = (reranked, None) if origin == "promoted" else first
        texts.append(("positive" if origin == "given" else origin, score, rank, text))
    texts += [(origin, score, rank, text) for text, score, rank, origin in row["negatives"]]
    lines = [visible(" ".join(row["id"].split()))]
    for what, score, rank, text in texts:
        numbers = f"{'' if score is None else format(score, '.3f')} {'' if rank is None else rank}"
        shown, head = visible(" ".join(text.split())), f"  {what:<9}{numbers:<10}"
        parts = wrapped(shown, WIDTH - len(head)) if whole else [shortened(shown, WIDTH - len(head))]
        lines += [head + parts[0], *(" " * len(head) + part.rstrip() for part in parts[1:])]
    return "\n".join(lines)
