"""Builds and encoders for tests, made by the floor alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.core import store, tables
from curation.core.record import PAIRS, PASSAGES, keys_of, no_drops

MANIFEST = """\
name: {name}
seed: 42
sources:
{sources}
{mine}
"""


def make_build(
    folder: Path,
    sources: Mapping[str, Mapping[str, Any]],
    mine: str | None = "model: fake",
    failed: Mapping[str, str] | None = None,
) -> Path:
    """Write a build as `curate build` does.

    A source is {"task", "instruction", "tuples", "passages"}: tuples are dicts of query, positives, negatives, label
    (texts); passages, optional, are texts that come before those of the tuples.
    """
    entries = {name: _source(folder / "curated" / name, name, source) for name, source in sources.items()}
    listed = "\n".join(
        f"  - {{name: {name}, files: x.jsonl, task: {source.get('task', 'retrieval')}, fields: {{query: q, "
        + ("label: l" if source.get("task", "retrieval") != "retrieval" else "positive: p")
        + "}}"
        for name, source in sources.items()
    )
    section = "" if mine is None else f"mine: {{{mine}}}"
    (folder / "manifest.yaml").write_text(MANIFEST.format(name=folder.name, sources=listed, mine=section))
    store.write_json(folder / "build.json", {"name": folder.name, "seed": 42, "sources": {}, "failed": {}})
    whole = {"name": folder.name, "seed": 42, "sources": entries, "failed": dict(failed or {})}
    (folder / "build.json").write_text(json.dumps(whole))  # not sorted: the order of sources is the manifest's
    return folder


def _source(folder: Path, name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    tuples = list(source["tuples"])
    texts = list(source.get("passages", []))
    for row in tuples:
        texts += [*row["positives"], *row.get("negatives", [])]
    texts = list(dict.fromkeys(texts))
    pid = {text: number for number, text in enumerate(texts)}
    entry = write_curated(
        folder,
        name,
        [row["query"] for row in tuples],
        texts,
        [[pid[text] for text in row["positives"]] for row in tuples],
        [[pid[text] for text in dict.fromkeys(row.get("negatives", [])) if text not in row["positives"]] for row in tuples],
        labels=[row.get("label") for row in tuples],
    )
    return entry | {"task": source.get("task", "retrieval"), "instruction": source.get("instruction", "")}


def write_curated(
    folder: Path,
    name: str,
    queries: Sequence[str],
    passages: Sequence[str],
    positives: Sequence[list[int]],
    negatives: Sequence[list[int]],
    groups: Sequence[int | None] | None = None,
    labels: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """Write curated/NAME as `curate build` does, from queries and the numbers of their passages; return its entry of build.json."""
    table = pl.DataFrame(
        {
            "pid": range(len(passages)),
            "text": passages,
            "key": keys_of(passages),
            "group": groups or [None] * len(passages),
        },
        schema=PASSAGES,
    )
    pairs = pl.DataFrame(
        {
            "id": [f"{name}/{row}" for row in range(len(queries))],
            "query": queries,
            "key": keys_of(queries),
            "group": [None] * len(queries),
            "positives": positives,
            "negatives": negatives,
            "label": labels or [None] * len(queries),
        },
        schema=PAIRS,
    )

    def work(part: Path) -> dict[str, Any]:
        tables.write_table(part, "pairs", pairs)
        tables.write_table(part, "passages", table)
        tables.write_parquet(part / "dropped.parquet", no_drops())
        return {"rows_in": len(queries), "kept": len(queries)}

    digest = store.digest_of([queries, passages, positives, negatives, groups, labels])
    store.run_stage(folder, digest, work)
    return {"language": "en", "digest": digest, "tuples": len(queries), "passages": len(passages)}


def pairs_source(queries: Sequence[str], positives: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return a retrieval source: equal queries are one row with several positives, as curation merges them."""
    merged: dict[str, dict[str, None]] = {}
    for query, positive in zip(queries, positives, strict=True):
        merged.setdefault(query, {})[positive] = None
    return {"tuples": [{"query": query, "positives": list(found)} for query, found in merged.items()], **more}


def hashed(texts: Iterable[str], dim: int = 256) -> np.ndarray:
    """Return unit vectors of hashed character 3- to 5-grams, each with a weight of its own: texts alike score high."""
    texts = list(texts)
    found = np.zeros((len(texts), dim))
    for row, text in enumerate(texts):
        text = f" {text} "
        grams = [text[i : i + n].encode() for n in (3, 4, 5) for i in range(len(text) - n + 1)]
        codes = np.array([zlib.crc32(gram) for gram in grams], np.uint64)
        weights = (1 + (codes >> 8) % 1000 / 1000) * np.where((codes >> 20) & 1, 1, -1)
        found[row] = np.bincount((codes % dim).astype(int), weights, dim)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class FakeEncoder:
    """Hashed vectors with the interface of `training.model.encode.Encoder`; keeps what it was asked."""

    def __init__(
        self,
        fingerprint: str = "fake",
        dim: int = 256,
        prompt: str = "",
        vectors: Callable[[list[str]], np.ndarray] | None = None,
    ) -> None:
        self.fingerprint, self.dim, self.prompt = fingerprint, dim, prompt
        self.described: dict[str, object] = {
            "model": "fake",
            "dtype": "float32",
            "prompt": prompt or "none",
            "pooling": "mean",
            "max_tokens": 256,
        }
        self.vectors = vectors or (lambda texts: hashed(texts, dim))
        self.calls: list[list[str]] = []

    def query(self, instruction: str, text: str) -> str:
        return f"{self.prompt}{instruction}{text}"

    def passage(self, text: str) -> str:
        return text

    def encode(self, texts: Sequence[str], advance: Callable[[int], None] = lambda n: None) -> np.ndarray:
        self.calls.append(list(texts))
        advance(len(texts))
        return self.vectors(list(texts))


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
