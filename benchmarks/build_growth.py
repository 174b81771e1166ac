"""Time, memory and disk of `curate build` as sources grow: `python benchmarks/build_growth.py 10000 100000 1000000`.

    pairs   rows of 1.2 kB: near-duplicates, held-out queries and contaminated ones are looked for; a fifth of the queries repeats
    plain   the same rows, without these
    qrels   passages of 500 B, one judgement for each ten
    ids     the same, and each judgement names nine other passages as negatives (`by_id: yes`)
    nli, classification, clustering, answers, scores, limit
            plain rows with a label or an answer; three rows of NLI have one premise, of 50 B; `limit` takes a third

The rows are made of 60,000 made-up words, drawn by their frequency, and written as parquet before the clock starts. Each build is
a process of its own; memory is the largest resident size of one process, memory maps included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

ROWS = 50_000  # made at a time
PAIRS = """\
name: growth
{more}sources:
  - {{name: rows, files: rows.parquet, license: mit, {fields}}}
"""
CHECKED = """\
dedup: {}
decontaminate: {against: [{reader: jsonl, files: evaluation.jsonl, name: evaluation, fields: {query: query}}]}
"""
FIELDS = {
    "nli": "task: retrieval, fields: {query: premise, positive: positive, label: side}, labels: {'0': positive, '1': negative}",
    "classification": "task: classification, fields: {query: positive, label: side}",
    "clustering": "task: clustering, fields: {query: positive, label: label}",
    "answers": "task: retrieval, fields: {query: query, positive: positive, answer: answer}",
    "scores": "task: retrieval, fields: {query: query, positive: positive, positive_score: score}",
}
QRELS_FIELDS = {
    "qrels": "fields: {query_id: query, positive_id: passage}",
    "ids": "fields: {query: query, positive: passage, negatives: others}\n    by_id: yes",
}
QRELS = """\
name: growth
sources:
  - name: rows
    task: retrieval
    license: mit
    files: rows.parquet
    {fields}
    corpus: {{files: corpus.parquet, fields: {{id: id, text: text}}}}
    queries: {{files: queries.parquet, fields: {{id: id, text: text}}}}
"""


class Words:
    """Draws texts of made-up words."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(7)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        words = {"".join(self.draw.choice(letters, self.draw.integers(2, 11))) for _ in range(60_000)}
        self.words = self.draw.permutation(sorted(words))
        shares = 1 / np.arange(1, len(words) + 1) ** 0.8
        self.until = np.cumsum(shares / shares.sum())

    def texts(self, count: int, least: int, most: int) -> list[str]:
        """Return texts of `least` to `most` words."""
        lengths = self.draw.integers(least, most, count)
        words = self.words[np.searchsorted(self.until, self.draw.random(lengths.sum()))]
        ends = np.cumsum(lengths)
        return [" ".join(words[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


def write(path: Path, frames: Iterable[pl.DataFrame]) -> None:
    """Write frames as one parquet file."""
    writer = None
    for frame in frames:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer
    writer.close()


def make_pairs(folder: Path, rows: int, more: bool) -> None:
    """Write rows of query and positive, a fifth of the queries twice, a fiftieth near-duplicates; and an evaluation set.

    `more` adds premises, labels, scores and answers.
    """
    words, asked = Words(), []

    def frames() -> Iterator[pl.DataFrame]:
        for first in range(0, rows, ROWS):
            count = min(ROWS, rows - first)
            queries, positives = words.texts(count, 7, 13), words.texts(count, 120, 190)
            for at in np.flatnonzero(words.draw.random(count) < 0.2):
                queries[at] = asked[words.draw.integers(len(asked))] if asked else queries[at // 2]
            for at in np.flatnonzero(words.draw.random(count) < 0.02)[1:]:
                other = words.draw.integers(at)
                queries[at], positives[at] = queries[other] + " again", positives[other][:-8] + " changed"
            asked[:] = (asked + queries[:500])[-20_000:]
            made = pl.DataFrame({"query": queries, "positive": positives})
            if more:
                numbers = np.arange(first, first + count)
                labels = {"label": numbers % 20, "side": numbers % 2, "score": numbers / rows}
                premises, answers = [queries[at // 3 * 3] for at in range(count)], [text[:20] for text in positives]
                made = made.with_columns(pl.DataFrame({"premise": premises, "answer": answers, **labels}))
            yield made

    write(folder / "rows.parquet", frames())
    with (folder / "evaluation.jsonl").open("w") as file:
        for query in asked[::20] + words.texts(2_000, 7, 13):
            file.write(json.dumps({"query": query}) + "\n")


def make_qrels(folder: Path, passages: int) -> None:
    """Write passages, a query for each twenty, and two judgements for each query, with other passages."""
    words, queries = Words(), passages // 20

    def corpus() -> Iterator[pl.DataFrame]:
        for first in range(0, passages, ROWS):
            count = min(ROWS, passages - first)
            yield pl.DataFrame({"id": [f"p{at}" for at in range(first, first + count)], "text": words.texts(count, 60, 90)})

    write(folder / "corpus.parquet", corpus())
    ids = [f"q{at}" for at in range(queries)]
    pl.DataFrame({"id": ids, "text": words.texts(queries, 7, 13)}).write_parquet(folder / "queries.parquet")
    judged = words.draw.choice(passages, 2 * queries, replace=False)
    judgements = pl.DataFrame({"query": ids * 2, "passage": [f"p{at}" for at in judged]})
    others = [[f"p{at}" for at in some] for some in words.draw.integers(0, passages, (2 * queries, 9))]
    judgements.with_columns(pl.Series("others", others)).write_parquet(folder / "rows.parquet")


def build(folder: Path, workers: int) -> tuple[float, float, int, int]:
    """Build the manifest in a folder; return seconds, CPU seconds, bytes of memory and bytes on disk."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    started = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from curation.cli import main; main()",
        "build",
        "m.yaml",
        "-o",
        "out",
        "-q",
        "-j",
        str(workers),
    ]
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.execv(sys.executable, command)
    _, status, used = os.wait4(child, 0)
    assert status == 0, "the build failed"
    disk = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, disk


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--kind", choices=("pairs", "plain", "qrels", "ids", "limit", *FIELDS), default="pairs")
    parser.add_argument("-j", "--workers", type=int, nargs="+", default=[1], help="of one build each, one after the other")
    given = parser.parse_args()
    print(given.kind)
    print(f"{'rows':>12} {'-j':>3} {'input MB':>9} {'seconds':>8} {'CPU-s':>7} {'memory MB':>10} {'disk MB':>8}")
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if given.kind in QRELS_FIELDS:
                make_qrels(folder, rows)
            else:
                make_pairs(folder, rows, given.kind in FIELDS)
            checked = given.kind == "pairs"
            fields = FIELDS.get(given.kind, "task: retrieval, fields: {query: query, positive: positive}")
            more = ", holdout: 1000" if checked else f", limit: {rows // 3}" if given.kind == "limit" else ""
            pairs = PAIRS.format(more=CHECKED if checked else "", fields=fields + more)
            named = QRELS_FIELDS.get(given.kind)
            (folder / "m.yaml").write_text(QRELS.format(fields=named) if named else pairs)
            size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
            for workers in given.workers:
                seconds, cpu, memory, disk = build(folder, workers)
                took = f"{seconds:>8.1f} {cpu:>7.1f} {memory / 1e6:>10.0f} {disk / 1e6:>8.0f}"
                print(f"{rows:>12,} {workers:>3} {size / 1e6:>9.0f} {took}", flush=True)


if __name__ == "__main__":
    main()
