"""`reader: beir` of a manifest, written out."""

from __future__ import annotations

from typing import Any


def beir(data: dict[str, Any]) -> dict[str, Any]:
    """Write out what `reader: beir` says in a word: qrels of a split, corpus and queries, of a folder or of the Hub."""
    split, said = data.get("split", "train"), {key: value for key, value in data.items() if key != "reader"}
    if data.get("path"):
        hub = {key: data[key] for key in ("path", "revision") if key in data}
        tables = [{}, *({**hub, "config": part, "split": part} for part in ("corpus", "queries"))]
    else:
        files = data.get("files")
        folder = str(files[0] if isinstance(files, list) and files else files).rstrip("/")
        tables = [{"files": f"{folder}/{name}"} for name in (f"qrels/{split}.tsv", "corpus.jsonl", "queries.jsonl")]
        said = {key: value for key, value in said.items() if key not in ("files", "split")}
    qrels, corpus, queries = tables
    fields = {"query_id": "query-id", "positive_id": "corpus-id", "score": "score"}
    more = {"corpus": {"fields": {"title": "title?"}}, "queries": {}}
    whole = {part: table | more[part] | dict(data.get(part) or {}) for part, table in (("corpus", corpus), ("queries", queries))}
    return {"fields": fields, **qrels, **said, **whole}
