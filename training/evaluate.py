"""Retrieval quality on a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv (or another split's).

nDCG@10 as trec_eval's `ndcg_cut_10`: gain = the grade itself, discount = log2(rank + 1), the ideal over all relevant
documents. recall@10 and MRR@10 count a document as relevant where its grade is above 0. All are means over the queries
that have a relevant document; the others are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.errors import SourceError
from curation.progress import Progress, silent
from curation.store import check_written, file_digest
from training.encode import Encoder

TOP = 10
QUERIES_PER_BLOCK, PASSAGES_PER_BLOCK = 1024, 16_384  # one block of scores is 64 MiB
LAYOUT = "a folder holds corpus.jsonl, queries.jsonl and qrels/test.tsv"


@dataclass(frozen=True)
class Collection:
    """What is searched and what should be found: `relevant[i]` maps corpus rows to the grades for `queries[i]`."""

    passages: list[str]
    queries: list[str]
    relevant: list[dict[int, float]]


def evaluate(
    encoder: Encoder, folder: Path, instruction: str = "", progress: Progress = silent, split: str = "test"
) -> dict[str, float | int]:
    """Return {"ndcg@10", "recall@10", "mrr@10", "queries"} of exact search in float32; the instruction is for queries only.

    Raises:
        SourceError: a file is missing or cannot be read as meant, or no query has a relevant document.
        ModelError: a text gets no vector.
    """
    return measure(encoder, read_collection(folder, split), instruction, progress)


def measure(encoder: Encoder, collection: Collection, instruction: str, progress: Progress = silent) -> dict[str, float | int]:
    """Return what `evaluate` does, of a collection that was read before."""
    queries = [encoder.query(instruction, text) for text in collection.queries]
    passages = [encoder.passage(text) for text in collection.passages]
    with progress("encode queries", len(queries), "texts") as advance:
        query_vectors = encoder.encode(queries, advance)
    with progress("encode passages", len(passages), "texts") as advance:
        passage_vectors = encoder.encode(passages, advance)
    found = nearest(query_vectors, passage_vectors, TOP, encoder.model.backbone.device)
    return scores(found, collection.relevant)


def scores(found: np.ndarray, relevant: list[dict[int, float]]) -> dict[str, float | int]:
    """Return the means over queries: `found` holds the corpus rows of each query's hits, best first, (n, at most 10)."""
    ndcg, recall, mrr = [], [], []
    discount = 1 / np.log2(np.arange(2, TOP + 2))
    for hits, grades in zip(found.tolist(), relevant, strict=True):
        gains = np.array([grades.get(hit, 0.0) for hit in hits])
        ideal = np.array(sorted(grades.values(), reverse=True)[:TOP])
        ndcg.append(float(gains @ discount[: len(gains)] / (ideal @ discount[: len(ideal)])))
        recall.append(float((gains > 0).sum() / len(grades)))
        mrr.append(1 / (1 + int(np.argmax(gains > 0))) if (gains > 0).any() else 0.0)
    means = {"ndcg@10": ndcg, "recall@10": recall, "mrr@10": mrr}
    return {**{name: float(np.mean(values)) for name, values in means.items()}, "queries": len(relevant)}


def nearest(queries: np.ndarray, passages: np.ndarray, top: int, device: torch.device) -> np.ndarray:
    """Return the rows of the `top` passages with the largest inner product, best first, (n, min(top, passages)) int64.

    Exact, block by block; of equal scores the smaller row comes first.
    """
    found = np.empty((len(queries), min(top, len(passages))), np.int64)
    for first in range(0, len(queries), QUERIES_PER_BLOCK):
        block = torch.from_numpy(queries[first : first + QUERIES_PER_BLOCK]).to(device)
        best, rows = torch.empty(len(block), 0, device=device), torch.empty(len(block), 0, dtype=torch.int64, device=device)
        for start in range(0, len(passages), PASSAGES_PER_BLOCK):
            products = block @ torch.from_numpy(passages[start : start + PASSAGES_PER_BLOCK]).to(device).T
            new_best, new_rows = _top(products, top)
            # Earlier blocks come first, so a stable sort leaves the smaller row in front.
            best, order = torch.cat([best, new_best], 1).sort(dim=1, descending=True, stable=True)
            rows = torch.cat([rows, new_rows + start], 1).gather(1, order)[:, :top]
            best = best[:, :top]
        found[first : first + QUERIES_PER_BLOCK] = rows.cpu().numpy()
    return found


def _top(products: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `top` values of each row and their columns, equal values by rising column.

    topk picks any of several equal values, so all that are as good as the last one are looked at where there are more.
    """
    top = min(top, products.shape[1])
    best, columns = products.topk(top, dim=1)
    crowded = ((products >= best[:, -1:]).sum(dim=1) > top).nonzero()[:, 0]
    if len(crowded):
        values, places = products[crowded].sort(dim=1, descending=True, stable=True)
        best[crowded], columns[crowded] = values[:, :top], places[:, :top]
    columns, order = columns.sort(dim=1)
    best, again = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, columns.gather(1, again)


def read_collection(folder: Path, split: str = "test") -> Collection:
    """Read a folder in BEIR's layout; a document's text is its title, a space and its text.

    Raises:
        SourceError: a file is missing, a line is not what it should be, or no query has a relevant document.
        BuildError: `curate` wrote the folder, and it was changed since.
    """
    check_written(folder)
    judged = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(judged)
    passages = {
        record["_id"]: f"{record.get('title') or ''} {record['text']}".strip() for record in _records(folder / "corpus.jsonl")
    }
    queries = {record["_id"]: record["text"] for record in _records(folder / "queries.jsonl")}
    row_of = {name: row for row, name in enumerate(passages)}
    _refuse_unknown(judged, "query", [query for query, _, _ in qrels if query not in queries])
    _refuse_unknown(judged, "document", [document for _, document, _ in qrels if document not in passages])
    grades: dict[str, dict[int, float]] = {}
    for query, document, grade in qrels:
        if grade > 0:
            grades.setdefault(query, {})[row_of[document]] = grade
    asked = [name for name in queries if name in grades]
    if not asked:
        raise SourceError(judged, "no query has a relevant document", LAYOUT)
    return Collection(list(passages.values()), [queries[name] for name in asked], [grades[name] for name in asked])


def file_digests(folder: Path, split: str = "test") -> list[str]:
    """Return the digests of the three files of a folder that can be read."""
    return [file_digest(folder / name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file; each has text in `_id`, unlike the others', and in `text`."""
    seen = set()
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{path}:{number}", f"not readable as JSON ({error})", "give one JSON object a line") from None
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("_id", "text")):
            raise SourceError(f"{path}:{number}", "lacks '_id' or 'text', or they are no strings")
        if record["_id"] in seen:
            raise SourceError(f"{path}:{number}", f"has the _id '{record['_id']}' of an earlier line")
        seen.add(record["_id"])
        yield record


def _read_qrels(path: Path) -> list[tuple[str, str, float]]:
    """Return (query id, document id, grade) of a tab-separated file whose first line may be a header."""
    found = []
    for number, line in _lines(path):
        fields = line.split("\t")
        if number == 1 and fields[-1].strip() == "score":
            continue
        try:
            query, document, grade = fields
            found.append((query, document, float(grade)))
        except ValueError:
            hint = "give query-id, corpus-id and score, tab-separated"
            raise SourceError(f"{path}:{number}", "is not a query, a document and a number", hint) from None
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(path, "no such file", LAYOUT) from None
    except UnicodeDecodeError as error:
        raise SourceError(path, f"is not UTF-8 ({error.reason} at byte {error.start})") from None


def _refuse_unknown(judged: Path, kind: str, names: list[str]) -> None:
    distinct = list(dict.fromkeys(names))
    if distinct:
        file = "queries.jsonl" if kind == "query" else "corpus.jsonl"
        many = f"{len(distinct)} {kind} id{'s' if len(distinct) > 1 else ''}"
        what = f"names {many} that {file} does not have, the first is '{distinct[0]}'"
        raise SourceError(judged, what, "are the three files of one dataset?")
