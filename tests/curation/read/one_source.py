"""One source in many formats: the same rows written as each, built by a manifest, and what becomes of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from curation.build.build import build
from curation.core.errors import SourceError
from curation.core.tables import read_parquet, read_table
from curation.read.rows import concat_batches
from curation.read.sources import table_rows, take
from curation.recipe.source import Source
from curation.shape.shapes import to_tuples

TUPLE, TABLES = ("query", "positives", "negatives", "label"), ("corpus", "queries")
Rows = list[dict[str, Any]]


def _jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _delimited(sign: str) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        text = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, names, delimiter=sign, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    return write


def _frame(rows: Rows) -> pl.DataFrame:
    return pl.DataFrame(rows, strict=False, infer_schema_length=None)


def _parquet(rows: Rows) -> bytes:
    whole = io.BytesIO()
    _frame(rows).write_parquet(whole)
    return whole.getvalue()


def _arrow(rows: Rows) -> bytes:
    whole = io.BytesIO()
    _frame(rows).write_ipc(whole)
    return whole.getvalue()


NESTED: dict[str, Callable[[Rows], bytes]] = {  # formats that hold lists and records
    "jsonl": _jsonl,
    "json": lambda rows: json.dumps(rows).encode(),
    "jsonl.gz": lambda rows: gzip.compress(_jsonl(rows)),
    "parquet": _parquet,
    "arrow": _arrow,
}
TEXTS = {**NESTED, "csv": _delimited(","), "tsv": _delimited("\t")}


def built(base: Path, files: str | list[str], fields: dict[str, Any], **more: Any) -> dict[str, tuple[Any, ...]] | str:
    """Build a source; return its tuples, {id: (query, positives, negatives, label)}, or why it failed."""
    said = {"task": "retrieval", "filters": {"min_chars": 0, "no_echo": False}, **more}
    above = {key: said.pop(key) for key in ("decontaminate",) if key in said}
    manifest = {"name": "m", **above, "sources": [{"name": "s", "files": files, "fields": fields, **said}]}
    (base / "m.yaml").write_text(yaml.safe_dump(manifest, allow_unicode=True))
    outcome = build(base / "m.yaml", base / "build")
    if outcome.failed:
        return str(outcome.failed["s"])
    texts = read_table(base / "build/curated/s", "passages")["text"].to_list()
    pairs = read_table(base / "build/curated/s", "pairs")
    return {
        row["id"]: (row["query"], [texts[at] for at in row["positives"]], [texts[at] for at in row["negatives"]], row["label"])
        for row in pairs.iter_rows(named=True)
    }


def shaped(base: Path, files: str | list[str], fields: dict[str, Any], **more: Any) -> dict[str, tuple[Any, ...]] | str:
    """Do the same without a build: rows read and shaped, all of them at once."""
    given = {"name": "s", "task": "retrieval", "files": files, "fields": fields, **more}
    source = Source.model_validate(given)
    try:
        rows, lost = take(source, 0, None, base, lambda rows: None)
        assert not lost
        tables = {
            part: concat_batches([one.frame for one in table_rows(getattr(source, part), base)], part)
            for part in TABLES
            if part in given
        }
        tuples = to_tuples(source, rows, 0, **tables).tuples
    except SourceError as error:
        return str(error)
    return {row["id"]: tuple(row[name] for name in TUPLE) for row in tuples.iter_rows(named=True)}


def dropped(base: Path) -> dict[str, str]:
    """Return the reason of each dropped row of that build."""
    frame = read_parquet(base / "build/curated/s/dropped.parquet")
    return dict(zip(frame["id"], frame["reason"], strict=True))
