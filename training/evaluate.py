"""Retrieval quality on a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv (or another split's).

nDCG@10 is trec_eval's `ndcg_cut_10`, as in mteb: gain = the grade itself, discount = log2(rank + 1), the ideal is over all
relevant documents, and among equal scores the document with the larger id comes first. recall@10 and MRR@10 count a document
as relevant if its grade is above 0. All are means over the queries in qrels; a query without a relevant document counts 0.

Queries get the same prompts as in training: see `evaluation_prompts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from curation.core.builds import read_build
from curation.core.errors import SetupError, SourceError
from curation.core.progress import Progress, silent
from curation.core.record import render_query
from curation.core.store import check_written, file_digest
from training.model.encode import Encoder, similarities
from training.model.prompts import Prompts

TOP = 10
QUERIES_PER_BLOCK, PASSAGES_PER_BLOCK = 1024, 8192  # one block of scores is 64 MiB
LARGEST_GRADE = 2**31  # the largest that trec_eval accepts
LAYOUT = "the folder needs corpus.jsonl, queries.jsonl and qrels/test.tsv"
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Collection:
    """A corpus, queries, and the judgements: `relevant[i]` maps corpus rows to grades above 0 for `queries[i]`.

    Passages are sorted by decreasing id, compared as bytes, so among equal scores the first row is the one that trec_eval
    ranks first.
    """

    passages: list[str]
    queries: list[str]
    relevant: list[dict[int, float]]
    passage_ids: list[str]
    query_ids: list[str]


class EvaluationPrompts(NamedTuple):
    """The text before queries and before passages, and where it comes from."""

    query: str
    passage: str
    origin: str

    def summary(self) -> str:
        """Return the prompts in words."""
        before = [json.dumps(text, ensure_ascii=False) if text else "nothing" for text in (self.query, self.passage)]
        return f"queries begin with {before[0]}, passages with {before[1]} ({self.origin})"


def evaluation_prompts(encoder: Encoder, folder: Path, instruction: str = "") -> EvaluationPrompts:
    """Return the prompts for the queries and passages of a folder: those of training, unless an instruction is given.

    A model with prompts of its own for queries or passages gets these. A model that reads instructions gets the instruction
    that was saved with it under the folder's name, else that of the build's source to which the held-out queries belong.

    Raises:
        SetupError: both an instruction and `prompt: none` are given.
    """
    check_instruction(encoder, instruction)
    model = encoder.model
    if instruction:
        return EvaluationPrompts(render_query(instruction, ""), "", "from --instruction")
    if encoder.prompts.used in ("own", "given"):
        return EvaluationPrompts(encoder.query("", ""), encoder.passage(""), "the model's own prompts")
    if encoder.prompts.used == "none":
        trained = "the model was trained without" if model.trained_prompt == "none" else "the model has no prompts"
        return EvaluationPrompts("", "", "--prompt none" if encoder.prompt == "none" else trained)
    name = folder.resolve().name
    if name in model.prompts:
        return EvaluationPrompts(model.prompts[name], "", f"saved with the model for '{name}'")
    of_source = instruction_of(folder)
    if of_source is None:
        return EvaluationPrompts("", "", f"no instruction is known for '{name}'; --instruction gives one")
    return EvaluationPrompts(render_query(of_source, ""), "", f"the instruction of source '{name}'")


def prompts_in_training(prompts: Prompts, instruction: str) -> EvaluationPrompts:
    """Return the prompts that training uses for a source with this instruction."""
    return EvaluationPrompts(prompts.of_query(instruction, ""), prompts.of_passage(""), "as in training")


def check_instruction(encoder: Encoder, instruction: str) -> None:
    """Refuse an instruction if queries are to have no prompt.

    Raises:
        SetupError: both an instruction and `prompt: none` are given.
    """
    if instruction and encoder.prompt == "none":
        raise SetupError("--instruction", "goes before queries, but `--prompt none` forbids that", "give only one of them")


def instruction_of(folder: Path) -> str | None:
    """Return the source's instruction if the folder is BUILD/heldout/SOURCE, else None."""
    whole = folder.resolve()
    build = whole.parent.parent / "build.json"
    if whole.parent.name != "heldout" or not build.is_file():
        return None
    entry = read_build(build.parent)["sources"].get(whole.name)
    return None if entry is None else str(entry.get("instruction", ""))


def evaluate(
    encoder: Encoder, folder: Path, instruction: str = "", progress: Progress = silent, split: str = "test"
) -> dict[str, float | int]:
    """Return {"ndcg@10", "recall@10", "mrr@10", "queries"} of an exact search, with the prompts of `evaluation_prompts`.

    Raises:
        SetupError: the instruction contradicts the prompt.
        SourceError: a file is missing or cannot be read, or no query has a relevant document.
        ModelError: a vector is not finite.
    """
    return measure(encoder, read_collection(folder, split), evaluation_prompts(encoder, folder, instruction), progress)


def measure(
    encoder: Encoder, collection: Collection, prompts: EvaluationPrompts, progress: Progress = silent
) -> dict[str, float | int]:
    """Return the same as `evaluate` for a collection in memory."""
    with progress("encode queries", len(collection.queries), "texts") as advance:
        queries = encode_distinct(encoder, prompts.query, collection.queries, advance)
    with progress("encode passages", len(collection.passages), "texts") as advance:
        passages = encode_distinct(encoder, prompts.passage, collection.passages, advance)
    found = nearest(queries, passages, TOP, encoder.model.backbone.device, encoder.similarity)
    return scores(found, collection.relevant)


def encode_distinct(
    encoder: Encoder, prompt: str, texts: list[str], advance: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Return a vector per text, (n, dim) float32, of unit length if the model compares by cosine.

    Each distinct text is encoded once, so that equal texts have equal vectors, bit by bit, and tie.
    """
    number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode([prompt + text for text in number], advance, encoder.similarity == "cosine")
    return vectors if len(number) == len(texts) else vectors[[number[text] for text in texts]]


def scores(found: np.ndarray, relevant: list[dict[int, float]]) -> dict[str, float | int]:
    """Return the means over queries; `found` (n, at most 10) has the corpus rows of each query's hits, best first."""
    recall, mrr = [], []
    for hits, grades in zip(found.tolist(), relevant, strict=True):
        right = [hit in grades for hit in hits]
        recall.append(sum(right) / len(grades) if grades else 0.0)
        mrr.append(1 / (1 + right.index(True)) if any(right) else 0.0)
    means = {"recall@10": float(np.mean(recall)), "mrr@10": float(np.mean(mrr))}
    return {"ndcg@10": ndcg_at(found.tolist(), relevant, TOP), **means, "queries": len(relevant)}


def ndcg_at(found: Sequence[Sequence[int]], relevant: list[dict[int, float]], top: int) -> float:
    """Return the mean nDCG@top; `found` has the corpus rows of each query's hits, best first."""
    discount, each = 1 / np.log2(np.arange(2, top + 2)), []
    for hits, grades in zip(found, relevant, strict=True):
        gains = np.array([grades.get(hit, 0.0) for hit in hits[:top]])
        ideal = np.array(sorted(grades.values(), reverse=True)[:top])
        best = float(ideal @ discount[: len(ideal)])
        each.append(float(gains @ discount[: len(gains)]) / best if best else 0.0)
    return float(np.mean(each))


def nearest(queries: np.ndarray, passages: np.ndarray, top: int, device: torch.device, similarity: str = "cosine") -> np.ndarray:
    """Return the rows of the `top` nearest passages, best first, (n, min(top, passages)) int64; `similarity` is an encoder's.

    The search is exact, block by block. Among equal scores the smaller row comes first. Products are summed in float64 and
    rounded to float32 once, so that equal vectors have equal scores whatever their place in a block.
    """
    found = np.empty((len(queries), min(top, len(passages))), np.int64)
    for first in range(0, len(queries), QUERIES_PER_BLOCK):
        block = torch.from_numpy(queries[first : first + QUERIES_PER_BLOCK]).to(device, torch.float64)
        best, rows = torch.empty(len(block), 0, device=device), torch.empty(len(block), 0, dtype=torch.int64, device=device)
        for start in range(0, len(passages), PASSAGES_PER_BLOCK):
            part = torch.from_numpy(passages[start : start + PASSAGES_PER_BLOCK]).to(device, torch.float64)
            products = similarities(block, part, similarity).float()
            new_best, new_rows = _top(products, top)
            # Earlier blocks come first, so a stable sort leaves the smaller row in front.
            best, order = torch.cat([best, new_best], 1).sort(dim=1, descending=True, stable=True)
            rows = torch.cat([rows, new_rows + start], 1).gather(1, order)[:, :top]
            best = best[:, :top]
        found[first : first + QUERIES_PER_BLOCK] = rows.cpu().numpy()
    return found


def _top(products: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `top` values of each row and their columns; equal values in order of their columns."""
    top = min(top, products.shape[1])
    best, columns = products.topk(top, dim=1)
    # topk picks any of several equal values. If more values equal the last one, sort the whole row.
    crowded = ((products >= best[:, -1:]).sum(dim=1) > top).nonzero()[:, 0]
    if len(crowded):
        values, places = products[crowded].sort(dim=1, descending=True, stable=True)
        best[crowded], columns[crowded] = values[:, :top], places[:, :top]
    columns, order = columns.sort(dim=1)
    best, again = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, columns.gather(1, again)


def read_collection(folder: Path, split: str = "test") -> Collection:
    """Read a folder in BEIR's layout; a passage is the document's title, a space and its text.

    Raises:
        SourceError: a file is missing, a line is malformed, or no query has a relevant document.
        BuildError: `curate` wrote the folder, and it was changed since.
    """
    check_written(folder)
    judged = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(judged)
    passages = {
        record["_id"]: f"{record.get('title') or ''} {record['text']}".strip() for record in _records(folder / "corpus.jsonl")
    }
    queries = {record["_id"]: record["text"] for record in _records(folder / "queries.jsonl")}
    for kind, file, names in (
        ("query", "queries.jsonl", [query for query, _, _ in qrels if query not in queries]),
        ("document", "corpus.jsonl", [document for _, document, _ in qrels if document not in passages]),
    ):
        if unknown := list(dict.fromkeys(names)):
            many = f"{len(unknown)} {kind} id{'s' if len(unknown) > 1 else ''}"
            what = f"has {many} that {file} does not have, the first is '{unknown[0]}'"
            raise SourceError(judged, what, "do the three files belong to one dataset?")
    order = sorted(passages, key=lambda name: name.encode("utf-8", "surrogatepass"), reverse=True)
    row_of = {name: row for row, name in enumerate(order)}
    grades: dict[str, dict[int, float]] = {}
    for query, document, grade in qrels:  # if a document is judged twice, the last line counts
        grades.setdefault(query, {})[row_of[document]] = grade
    relevant = {query: {row: grade for row, grade in some.items() if grade > 0} for query, some in grades.items()}
    asked = [name for name in queries if name in grades]
    if not any(relevant.values()):
        raise SourceError(judged, "no query has a relevant document", LAYOUT)
    return Collection(
        [passages[name] for name in order], [queries[name] for name in asked], [relevant[name] for name in asked], order, asked
    )


def file_digests(folder: Path, split: str = "test") -> list[str]:
    """Return the digests of the three files of a folder."""
    return [file_digest(folder / name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file; each has a string in `text` and a unique string in `_id`."""
    seen = set()
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{path}:{number}", f"cannot be read as JSON ({error})", "give one JSON object per line") from None
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("_id", "text")):
            raise SourceError(f"{path}:{number}", "lacks '_id' or 'text', or they are not strings")
        if "\\ud" in line.lower() and SURROGATE.search(f"{record['_id']} {record.get('title')} {record['text']}"):
            raise SourceError(f"{path}:{number}", "has half of a surrogate pair, which is not a character", "remove the \\ud...")
        if record["_id"] in seen:
            raise SourceError(f"{path}:{number}", f"repeats the _id '{record['_id']}' of an earlier line")
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
            query, document, grade = fields[0], fields[1], float(fields[2])
            if len(fields) > 3 or not abs(grade) <= LARGEST_GRADE:
                raise ValueError
            found.append((query, document, grade))
        except (ValueError, IndexError):
            hint = "give query-id, corpus-id and score, tab-separated"
            raise SourceError(f"{path}:{number}", "is not a query id, a document id and a number", hint) from None
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are not blank, with their numbers."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(path, "no such file", LAYOUT) from None
    except UnicodeDecodeError as error:
        raise SourceError(path, f"is not UTF-8 ({error.reason} at byte {error.start})") from None
