"""Other tools' training data as a manifest that reads it: which format it is, its columns, task and instruction.

The build does the work then, and takes an instruction that is rendered into queries off again (`schema.split_query`). What a
receipt of `curate export` beside the files, or FlagEmbedding's `prompt` and `type`, says of a source is taken over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from curation import store
from curation.errors import ManifestError, SourceError, listed
from curation.exchange.formats import TYPES
from curation.manifest import load_manifest
from curation.manifest_source import Table
from curation.reading import hub, hub_facts
from curation.reading.sources import read_rows

Entry = dict[str, Any]
ENDINGS = (".parquet", ".jsonl")
ABOUT = ("task", "instruction", "language", "license")
SCORES = {"positive_score": "pos_scores", "negative_scores": "neg_scores"}


class Layout(NamedTuple):
    """A format by its columns: what it maps, which column, or pattern, of negatives it may have, and what else."""

    name: str
    fields: dict[str, str]
    negatives: str = ""
    reader: str | None = None  # of JSON Lines
    more: Mapping[str, str] = {}


OURS = {"id": "id", "positive_score": "positive_score", "negative_scores": "negative_scores"}  # `curate publish --columns`
LAYOUTS = (  # the first whose columns are all there
    Layout("f2llm", {"query": "query", "positive": "positives"}, "negative_[0-9]*", more=OURS),  # positive_score: of the first
    Layout("f2llm", {"query": "query", "positive": "passage"}, "negative_[0-9]*", more=OURS),
    Layout("labeled-list", {"query": "query", "documents": "documents", "label": "labels"}),
    Layout("scored-list", {"query": "query", "documents": "documents", "score": "scores"}),
    Layout("sentence-transformers", {"query": "anchor", "positive": "positive"}, "negative*"),
    Layout("flagembedding", {"query": "query", "positive": "pos"}, "neg", "flagembedding", SCORES),
    Layout("tevatron", {"query": "query", "positive": "positive_passages"}, "negative_passages", "tevatron", {"id": "query_id"}),
    Layout("sentence-transformers", {"query": "query", "positive": "positive"}, "negative*"),
    Layout("sentence-transformers", {"query": "query", "positive": "answer"}, "negative*"),
    Layout("sentence-transformers", {"query": "question", "positive": "answer"}, "negative*"),
)


def write_manifest(what: str, out: Path) -> dict[str, str]:
    """Write the manifest at `out` that reads `what`: a file, a folder of them, or a Hub id; return each source's format.

    Raises:
        SourceError: there is nothing there, or no format is known that has its columns.
        ManifestError: `out` is there already.
    """
    if out.exists():
        raise ManifestError(out, "is there already", "name another file")
    base, path = out.resolve().parent, Path(what).expanduser()
    found = list(_here(path, base) if path.exists() else _on_the_hub(what))
    document: Entry = {"name": _named(path.name), "sources": [entry for _, entry in found]}
    if all({"negatives", "documents"} & set(entry.get("fields", {})) for _, entry in found):
        document["mine"] = {"candidates": "given"}  # a model, and another word here, mines anew
    with store.atomic(out) as file:
        file.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120).encode())
    load_manifest(out)
    return {entry["name"]: name for name, entry in found}


def _here(path: Path, base: Path) -> Iterator[tuple[str, Entry]]:
    """Yield (format, source) for a file, a BEIR folder, or all of these in a folder, an export's `data/` too."""
    inner = path / "data" if (path / "data").is_dir() and store.read_receipt(path) else path
    paths = [path] if path.is_file() or (path / "qrels").is_dir() else sorted(inner.iterdir())
    known = [one for one in paths if one.suffix in ENDINGS or (one / "qrels").is_dir()]
    if not known:
        raise SourceError(path, "holds neither parquet, JSON Lines nor a BEIR folder", "name a file, such as data/train.parquet")
    for one in known:
        name, files = _named(one.stem if one.is_file() else one.name), os.path.relpath(one.resolve(), base)
        said = _receipt(one)
        if one.is_dir():
            splits = sorted(file.stem for file in (one / "qrels").glob("*.tsv"))
            split = {} if "train" in splits or not splits else {"split": splits[0]}
            bare = (
                {"corpus": {"fields": {"text": "text"}}} if "language" in said else {}
            )  # it has no titles: texts stay as they are
            yield "beir", {"name": name, **said, "files": files, "reader": "beir", **split, **bare}
            continue
        with closing(_rows(files, base)) as rows:
            frame = next(rows).frame
        form, entry = _source(name, files, frame.columns, one.suffix == ".jsonl")
        if form == "flagembedding" and not said.get("instruction"):
            said |= _flagembedding(frame.row(0, named=True))
        yield form, {"name": name, **said, "files": files, **entry}


def _rows(files: str, base: Path) -> Any:
    return read_rows(Table.model_validate({"files": [files]}), base)


def _receipt(path: Path) -> Entry:
    """Return what `curate export` said of a source, where it wrote this one."""
    receipt = store.read_receipt(path.parent.parent) if path.parent.name == "data" else None
    said = (
        (receipt or {}).get("sources", {}).get(path.stem if path.is_file() else path.name, {})
        if "export" in (receipt or {})
        else {}
    )
    return {"task": "retrieval"} | {key: said[key] for key in ABOUT if said.get(key)}


def _flagembedding(row: Entry) -> Entry:
    tasks = {word: task for task, word in TYPES.items()}
    said = {"task": tasks.get(row.get("type") or "", "retrieval")}
    return said | ({"instruction": row["prompt"]} if row.get("prompt") else {})


def _source(where: str, called: str, columns: list[str], lines: bool) -> tuple[str, Entry]:
    """Return the format that has these columns, and the keys of a source that read it."""
    for layout in LAYOUTS:
        if set(layout.fields.values()) <= set(columns):
            fields, reader = dict(layout.fields), {"reader": layout.reader} if lines and layout.reader else {}
            pattern = re.compile(layout.negatives.replace("*", ".*") or "$")
            if any(pattern.fullmatch(name) for name in columns):
                fields["negatives"] = layout.negatives
            if reader.get("reader") == "tevatron":
                fields = {"query": "query", "positive": "positives", "negatives": "negatives"}
            told = {key: name for key, name in layout.more.items() if name in columns}
            fields |= told if "negatives" in fields else {key: name for key, name in told.items() if key != "negative_scores"}
            return layout.name, {**reader, "fields": fields}
    there = [name for name in columns if not name.startswith("__")]
    raise SourceError(
        called, f"has columns of no known format: {listed(there, 20)}", f"write a source '{where}' by hand, with `fields:`"
    )


def _on_the_hub(id_: str) -> Iterator[tuple[str, Entry]]:
    """Yield (format, source) for each config of a dataset; qrels with corpus and queries are one source of `reader: beir`."""
    splits = hub.splits(Table.model_validate({"path": id_}))
    beir = {"corpus", "queries"} <= set(splits)
    told = [name for name in splits if name not in ("corpus", "queries")]
    for config in told:
        split = {} if "train" in splits[config] else {"split": splits[config][0]}
        at = {"path": id_, **({} if config == "default" else {"config": config}), **split}
        facts = hub_facts.facts(Table.model_validate(at))
        name = _named(id_.rpartition("/")[2] if len(told) == 1 else config)
        said = {
            "name": name,
            "task": "retrieval",
            **({"license": facts.license} if facts.license else {}),
            **at,
            "revision": facts.revision,
        }
        if beir:
            yield "beir", said | {"reader": "beir"}
        else:
            form, entry = _source(name, f"{id_} ({config})", facts.columns or [], lines=False)
            yield form, said | entry


def _named(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-._")[:63] or "imported"
