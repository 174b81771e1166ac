"""What a report shows of a source's rows, the same few each time, drawn by the build's seed; and how it shows their texts."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curation.core.builds import checked_stage
from curation.core.escape import as_html
from curation.core.record import ORIGINS, draws
from curation.core.tables import ROWS_PER_GROUP, find_rows, read_frames, read_groups, read_parquet, read_rows
from curation.core.text import word_pattern
from curation.core.texts import open_texts

RECORDS = 3
PER_REASON = 3
PAIRS_SHOWN = 3  # near-duplicate pairs at or above the threshold, and as many below
NEGATIVES_SHOWN = 3
OPEN_CHARS = 320  # characters; longer texts fold
FOLDED_LINES = 5  # texts of as many lines fold
PAGE_CHARS = 1000  # characters of a text in the page
COMPARED_CHARS = 2500  # characters of two texts that are compared
EQUAL_CHARS = 120  # characters; longer equal runs are shortened
BY_CHARACTER = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # letters of scripts that are compared one by one


class Pair(NamedTuple):
    """Two texts that nearly match."""

    left: str
    right: str
    score: float  # exact Jaccard of their shingles
    verdict: str


class NearDuplicates(NamedTuple):
    """Near-duplicates of a source."""

    above: int  # verified pairs at or above the threshold
    below: int  # pairs at most 0.1 below it
    pairs: list[Pair]  # a few of both


def sampled(seed: int, purpose: str, count: int, wanted: int) -> list[int]:
    """Return `wanted` of the numbers below `count`, in order."""
    return sorted(np.argsort(draws(seed, f"report/{purpose}", np.arange(count)), kind="stable")[:wanted].tolist())


def sample_records(folder: Path, seed: int, name: str, count: int, mined: Path | None = None) -> list[dict[str, Any]]:
    """Return a few tuples of a source.

    Each has id, query, label, the text of its first positive, and of at most NEGATIVES_SHOWN negatives; `others` is the number of
    further positives, `more` of further negatives. If the tuples are mined, each negative has a line in `about`: its origin
    and score; and `positive_score` is the positive's.

    Args:
        folder: the curated source.
        seed: the build's.
        name: the source's.
        count: the number of its tuples.
        mined: the folder of its mined tuples, to sample from these.
    """
    wanted, rows, start = sampled(seed, f"records/{name}", count, RECORDS), [], 0
    columns = ["id", "query", "label", "positives", "negatives"]
    columns += ["positive_score", "negative_scores", "negative_origin"] if mined else []
    for shard in read_frames(mined or folder, "pairs", columns):
        rows += shard[[at - start for at in wanted if start <= at < start + len(shard)]].to_dicts()
        start += len(shard)
    pids = sorted({pid for row in rows for pid in row["positives"][:1] + row["negatives"][:NEGATIVES_SHOWN]})
    texts: dict[int, str] = {}
    for first in sorted({pid - pid % ROWS_PER_GROUP for pid in pids}):  # row number and pid are the same
        group = read_rows(folder, "passages", first, ROWS_PER_GROUP).select("pid", "text")
        texts |= dict(group.filter(pl.col("pid").is_in(pids)).iter_rows())
    for row in rows:
        row["others"] = len(row["positives"]) - 1
        row["more"] = max(0, len(row["negatives"]) - NEGATIVES_SHOWN)
        row |= {part: [texts[pid] for pid in row[part] if pid in texts] for part in ("positives", "negatives")}
        row["negatives"] = row["negatives"][:NEGATIVES_SHOWN]
        row["about"] = [
            ORIGINS[origin] + (f", score {score:.2f}" if score is not None else "")
            for origin, score in zip(row.get("negative_origin", ()), row.get("negative_scores", ()), strict=True)
        ]
        row.setdefault("positive_score", None)
    return rows


def drops(path: Path, dropped: pl.DataFrame, seed: int, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return a few dropped rows or tuples by reason; `dropped` has the reasons of those in the file at `path`."""
    places = dropped.select("reason", pl.int_range(pl.len()).alias("place"))
    chosen = {
        str(reason): rows["place"].gather(sampled(seed, f"drops/{name}/{reason}", len(rows), PER_REASON)).to_list()
        for (reason,), rows in places.group_by("reason", maintain_order=True)
    }
    start, lines = 0, dict[int, dict[str, Any]]()
    for frame in read_groups(path):
        here = sorted(place for some in chosen.values() for place in some if start <= place < start + len(frame))
        lines |= zip(here, frame[[place - start for place in here]].to_dicts(), strict=True)
        start += len(frame)
    return {reason: [lines[place] for place in some] for reason, some in chosen.items()}


def matched_queries(stages: dict[str, Path], samples: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return the queries of tuples in whose favour near-duplicates were dropped, by id; `stages` are the sources' folders."""
    wanted: dict[str, set[str]] = {}
    for row in (row for rows in samples.values() for row in rows):
        if row["stage"] == "dedup" and row["matched_id"] and row["matched_source"] in stages:
            wanted.setdefault(row["matched_source"], set()).add(row["matched_id"])
    texts: dict[str, str] = {}
    for source, ids in wanted.items():
        for rows in find_rows(stages[source], "pairs", "id", pl.Series(sorted(ids)), ["id", "query"]):
            texts |= dict(rows.iter_rows())
    return texts


def near_pairs(build: Path, name: str, dropped: pl.DataFrame, threshold: float, seed: int) -> NearDuplicates:
    """Return how many verified near-duplicates a source has, and a few pairs, from both sides of the threshold.

    Raises:
        BuildError: a file that holds their texts was changed since it was written.
    """
    path = build / "curated" / name / "near.parquet"
    if not path.exists():
        return NearDuplicates(0, 0, [])
    near = read_parquet(path, ["left", "right", "score"])
    sides = (near.filter(pl.col("score") >= threshold), near.filter(pl.col("score") < threshold))
    rows = pl.concat([side[sampled(seed, f"near/{name}/{at}", len(side), PAIRS_SHOWN)] for at, side in enumerate(sides)])
    keys = pl.concat([rows["left"], rows["right"]]).unique()

    # the texts: queries that are still there, passages, and queries that were dropped as near-duplicates
    texts: dict[bytes, str] = {}
    for table, column in (("pairs", "query"), ("passages", "text")):
        for found in find_rows(build / "curated" / name, table, "key", keys, ["key", column]):
            texts |= dict(found.iter_rows())
    gone: dict[bytes, str] = {}
    ids, shaped = dropped.filter(pl.col("stage") == "dedup")["id"], build / "shaped" / name
    if len(ids) and shaped.is_dir():
        checked_stage(build, f"shaped/{name}")
        numbers = pl.concat(
            frame.filter(pl.col("id").is_in(ids.implode()))["query"] for frame in read_frames(shaped, "tuples", ["id", "query"])
        ).to_numpy()
        written = open_texts(shaped)
        keyed = pl.DataFrame({"key": written.key_series(numbers), "query": written.at(numbers)})
        gone = dict(keyed.filter(pl.col("key").is_in(keys.implode())).iter_rows())
    texts |= gone

    pairs = []
    for left, right, score in rows.iter_rows():
        if left in texts and right in texts:
            same = "dropped" if left in gone or right in gone else "one group"
            pairs.append(Pair(texts[left], texts[right], score, same if score >= threshold else "both stay"))
    return NearDuplicates(len(sides[0]), len(sides[1]), pairs)


def shown(text: str) -> str:
    """Return a text as a block of HTML; a long one folds, and says how much of it is left out."""
    text = text.strip()
    body = as_html(text[:PAGE_CHARS])
    if len(text) > PAGE_CHARS:
        body += f'<span class="cut"> … {len(text) - PAGE_CHARS:,} more characters</span>'
    if len(text) <= OPEN_CHARS and text.count("\n") < FOLDED_LINES:
        return f'<div class="text" dir="auto">{body}</div>'
    return f'<details class="text"><summary dir="auto">{body}</summary></details>'


def compared(left: str, right: str) -> str:
    """Return two texts as one: words of `left` alone struck out, words of `right` alone underlined, long equal runs shortened."""
    tokens = re.compile(rf"{BY_CHARACTER}|{word_pattern()}|\s+|[^\w\s]")
    one, two = (tokens.findall(text.strip()[:COMPARED_CHARS]) for text in (left, right))
    parts, old, new = [], "", ""

    def marked() -> list[str]:
        return [f"<{tag}>{as_html(text)}</{tag}>" for tag, text in (("del", old), ("ins", new)) if text]

    for what, a, b, c, d in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        gone, come = "".join(one[a:b]), "".join(two[c:d])
        if what == "equal" and (not gone.isspace() or not old + new):
            parts += marked()
            parts.append(as_html(_ends(gone, first=a == c == 0, last=b == len(one) and d == len(two))))
            old = new = ""
        else:  # a space between two changes is part of them
            old, new = old + gone, new + come
    return f'<div class="text" dir="auto">{"".join(parts + marked())}</div>'


def _ends(text: str, first: bool, last: bool) -> str:
    """Return the ends of a long run of equal words: those next to what differs."""
    if len(text) <= EQUAL_CHARS:
        return text
    half = EQUAL_CHARS // 2
    head = "" if first else text[:half]
    tail = "" if last else text[-half:]
    return f"{head} … {tail}" if head or tail else text[:EQUAL_CHARS] + " …"
