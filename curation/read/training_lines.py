"""Lines of other tools' training data: FlagEmbedding, Tevatron, and sentence-transformers' embedding-training-data."""

from __future__ import annotations

from typing import Any

from curation.core.errors import SourceError
from curation.read.json_records import Loss, kind_of, read_line
from curation.read.rows import File, Record


def flagembedding_line(file: File, number: int, line: str) -> Record | Loss:
    """Read FlagEmbedding's query, pos, neg, ...; a text for a list would give a trainer single characters."""
    record = read_line(file, number, line)
    if isinstance(record, dict):
        for name in ("pos", "neg"):
            _refuse_text(file, number, record, name)
    return record


def embedding_line(file: File, number: int, line: str) -> Record | Loss:
    """Read a line of sentence-transformers' embedding-training-data: pair, triplet, set, or query with lists."""
    return read_line(file, number, line, _tuple_of)


def _tuple_of(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("query"), str):
        query, positives, negatives = value["query"], value.get("pos"), value.get("neg") or []
    elif isinstance(value, dict) and isinstance(value.get("set"), list) and value["set"]:
        (query, *positives), negatives = value["set"], []
    elif isinstance(value, list) and len(value) > 1:
        query, positives, negatives = value[0], [value[1]], value[2:]
    else:
        raise ValueError(f"{kind_of(value)} that is no pair, triplet, set or query")
    if not isinstance(positives, list) or not isinstance(negatives, list):
        raise ValueError("'pos' and 'neg' have to be lists")
    if not all(isinstance(text, str) for text in (query, *positives, *negatives)):
        raise ValueError("holds other things than texts")
    return {"query": query, "positives": positives, "negatives": negatives}


def tevatron_line(file: File, number: int, line: str) -> Record | Loss:
    """Read Tevatron's query_id, query, positive_passages, negative_passages; a passage becomes its title and text."""
    record = read_line(file, number, line)
    if not isinstance(record, dict):
        return record
    passages = {"positives": "positive_passages", "negatives": "negative_passages"}
    others = {name: value for name, value in record.items() if name not in passages.values()}
    return others | {to: _passages(file, number, record, name) for to, name in passages.items()}


def _refuse_text(file: File, number: int, record: Record, name: str) -> None:
    value = record.get(name)
    hint = f'write `"{name}": ["a text", ...]`, for one text too'
    if value is not None and not isinstance(value, list):
        raise SourceError(f"{file.name}:{number}", f"'{name}' is {kind_of(value)}, not a list of texts", hint)
    if not all(isinstance(text, str) for text in value or []):
        raise SourceError(f"{file.name}:{number}", f"'{name}' lists other things than texts", hint)


def _passages(file: File, number: int, record: Record, name: str) -> list[str]:
    value = record.get(name)
    whole = isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("text"), str) and isinstance(one.get("title") or "", str) for one in value
    )
    if value is not None and not whole:
        hint = "each passage is {docid, title, text}"
        raise SourceError(f"{file.name}:{number}", f"'{name}' is not a list of passages with a text", hint)
    parts = ([one.get("title") or "", one["text"]] for one in value or [])
    return ["\n".join(part for part in both if part.strip()) for both in parts]
