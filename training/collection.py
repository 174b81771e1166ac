"""Evaluation sets: a corpus, queries and judgements, in BEIR's layout or as NanoBEIR's parquet files.

SciFact/      corpus.jsonl  queries.jsonl  qrels/test.tsv                          (or another split's)
NanoSciFact/  corpus/train-00000-of-00001.parquet  queries/...  qrels/...          (zeta-alpha-ai/NanoSciFact, mteb's Nano tasks)
NanoBEIR-en/  corpus/NanoSciFact-00000-of-00001.parquet  corpus/NanoNQ-... ...     (sentence-transformers/NanoBEIR-en: 13 sets)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curation.core.errors import SourceError, first_line, listed
from curation.core.python_data import UNPAIRED
from curation.core.store import check_written, file_digest

LARGEST_GRADE = 2**31  # the largest that trec_eval accepts
LAYOUT = "the folder needs corpus.jsonl, queries.jsonl and qrels/test.tsv"
NANOBEIR = "sentence-transformers/NanoBEIR-en"  # the Hub's repository whose local copy is read by name
NANO = {  # NanoBEIR's sets, and their instructions: F2LLM's, as mteb has them; of the three that it lacks, mteb's own
    "NanoArguAna": "Given a claim, find documents that refute the claim.",
    "NanoClimateFEVER": "Given a claim about climate change, retrieve documents that support or refute the claim.",
    "NanoDBPedia": "Given a query, retrieve relevant entity descriptions.",
    "NanoFEVER": "Given a claim, retrieve documents that support or refute the claim.",
    "NanoFiQA2018": "Given a financial question, retrieve passages that answer the question.",
    "NanoHotpotQA": "Given a multi-hop question, retrieve passages that answer the question.",
    "NanoMSMARCO": "Given a web search query, retrieve relevant passages that answer the query",
    "NanoNFCorpus": "Given a question, retrieve relevant documents that best answer the question",
    "NanoNQ": "Given a question, retrieve Wikipedia passages that answer the question",
    "NanoQuoraRetrieval": "Retrieve questions that are semantically equivalent to the given one.",
    "NanoSCIDOCS": "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper.",
    "NanoSciFact": "Given a scientific claim, retrieve passages that support or refute the claim.",
    "NanoTouche2020": "Given a question, retrieve passages that answer the question.",
}


class EvaluationSet(NamedTuple):
    """Where an evaluation set is; `split` names its qrels, or in NanoBEIR's layout its files."""

    name: str
    folder: Path
    split: str

    def read(self) -> Collection:
        """Return the set, see `read_collection`."""
        return read_collection(self.folder, self.split)

    def digests(self) -> list[str]:
        """Return the digests of its files."""
        kinds = ("corpus", "queries", "qrels")
        if (self.folder / "corpus").is_dir():
            return [file_digest(path) for kind in kinds for path in _parquet_files(self.folder, kind, self.split)]
        return [file_digest(self.folder / name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{self.split}.tsv")]


def evaluation_sets(given: Sequence[str | Path], split: str = "test") -> list[EvaluationSet]:
    """Return the evaluation sets that folders and names mean, each with a name of its own.

    Args:
        given: a set's folder, a folder of such folders (BUILD/heldout), `NanoBEIR`, or one of its sets, such as `NanoSciFact`
            or, as mteb has it, `NanoSciFactRetrieval`; of those the copy in the Hub's cache on this machine is read.
        split: the split of the qrels in BEIR's layout.

    Raises:
        SourceError: NanoBEIR was not downloaded, or two sets have one name.
    """
    found: list[EvaluationSet] = []
    for one in given:
        folder, name = Path(one), str(one)
        is_nano = name in ("NanoBEIR", *NANO) or (name.endswith("Retrieval") and nano_instruction(name))
        if is_nano and not folder.exists():
            repository, copy = _local_copy(name)
            below = _sets_below(copy, split)
            # mteb's copies have one set each, whose files are named for their split
            named = below if repository == NANOBEIR else [each._replace(name=name) for each in below]
            chosen = [each for each in named if name in ("NanoBEIR", each.name)]
            if not chosen:
                raise SourceError(copy, f"has no parquet files of {name}", f"run `hf download {repository} --repo-type dataset`")
            found += chosen
        else:
            if not folder.is_dir():
                raise SourceError(one, "no such folder", LAYOUT)
            if (folder / "build.json").is_file():
                raise SourceError(
                    one, "is a build", f"its held-out queries are in {folder / 'heldout'}, if `holdout:` asked for any"
                )
            found += _sets_below(folder, split) or [EvaluationSet(folder.resolve().name, folder, split)]
    names = [one.name for one in found]
    for number, one_set in enumerate(found):
        if one_set in found[:number]:
            raise SourceError(one_set.folder, f"'{one_set.name}' is named twice", "name each evaluation set once")
    return [one if names.count(one.name) == 1 else one._replace(name=str(one.folder)) for one in found]


def nano_instruction(name: str) -> str | None:
    """Return the instruction of a set of NanoBEIR, by its name there or in mteb (NanoSciFactRetrieval); None for other sets."""
    plain = name.lower().removesuffix("retrieval")
    return next((text for known, text in NANO.items() if known.lower().removesuffix("retrieval") == plain), None)


def _sets_below(folder: Path, split: str) -> list[EvaluationSet]:
    """Return the sets in a folder: itself, those of its parquet files' splits, or its subfolders; nothing if there are none."""
    if (folder / "corpus.jsonl").is_file() or not folder.is_dir():
        return []
    splits = sorted({path.name.rsplit("-of-", 1)[0].rsplit("-", 1)[0] for path in (folder / "corpus").glob("*-of-*.parquet")})
    if splits:
        return [EvaluationSet(folder.resolve().name if len(splits) == 1 else one, folder, one) for one in splits]
    below = sorted(path for path in folder.iterdir() if (path / "corpus.jsonl").is_file() or (path / "corpus").is_dir())
    return [one for path in below for one in _sets_below(path, split) or [EvaluationSet(path.name, path, split)]]


def _local_copy(name: str) -> tuple[str, Path]:
    """Return which of the Hub's repositories with NanoBEIR, or with one of its sets, is in the cache, and its folder there.

    Raises:
        SourceError: none is; nothing is downloaded.
    """
    from huggingface_hub import snapshot_download

    repositories = [NANOBEIR] if name in ("NanoBEIR", *NANO) else []
    repositories += [f"mteb/{name}"] if name.endswith("Retrieval") else []
    for repository in repositories:
        try:
            return repository, Path(snapshot_download(repository, repo_type="dataset", local_files_only=True))
        except OSError:
            continue
    hint = f"run `hf download {repositories[0]} --repo-type dataset` once, or give the folder of a copy"
    raise SourceError(name, "is not on this machine", hint)


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


def read_collection(folder: Path, split: str = "test") -> Collection:
    """Read a folder in BEIR's or NanoBEIR's layout; a passage is the document's title, a space and its text.

    Raises:
        SourceError: a file is missing, a line is malformed, or no query has a relevant document.
        BuildError: `curate` wrote the folder, and it was changed since.
    """
    check_written(folder)
    if (folder / "corpus").is_dir():
        judged = folder / "qrels"
        corpus, asking = (iter(_parquet_records(folder, kind, split)) for kind in ("corpus", "queries"))
        qrels = [
            (row["query-id"], row["corpus-id"], float(row.get("score", 1))) for row in _parquet_records(folder, "qrels", split)
        ]
    else:
        judged = folder / "qrels" / f"{split}.tsv"
        qrels = _read_qrels(judged)
        corpus, asking = (_records(folder / f"{kind}.jsonl") for kind in ("corpus", "queries"))
    passages = {record["_id"]: f"{record.get('title') or ''} {record['text']}".strip() for record in corpus}
    queries = {record["_id"]: record["text"] for record in asking}
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
        if "\\ud" in line.lower() and UNPAIRED.search(f"{record['_id']} {record.get('title')} {record['text']}"):
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


def _parquet_files(folder: Path, kind: str, split: str) -> list[Path]:
    """Return the parquet files of a set: its corpus, queries or qrels.

    Raises:
        SourceError: there is none.
    """
    found = sorted((folder / kind).glob(f"{split}-*-of-*.parquet"))
    if not found:
        hint = "give a copy of a set of NanoBEIR, with corpus/, queries/ and qrels/ of parquet files"
        raise SourceError(folder / kind, f"has no file {split}-00000-of-00001.parquet", hint)
    return found


def _parquet_records(folder: Path, kind: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of parquet files: `_id`, `text` and perhaps `title`; of qrels `query-id`, `corpus-id` and perhaps `score`.

    Raises:
        SourceError: a column is missing or holds something else, an id occurs twice, or a file cannot be read.
    """
    wanted = ("query-id", "corpus-id") if kind == "qrels" else ("_id", "text")
    files = _parquet_files(folder, kind, split)
    try:
        frame = pl.read_parquet(files)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SourceError(files[0], f"cannot be read as parquet ({first_line(error)})") from None
    if "id" in frame.columns and "_id" not in frame.columns:  # as mteb writes its own copies
        frame = frame.rename({"id": "_id"})
    if missing := [name for name in wanted if name not in frame.columns]:
        raise SourceError(files[0], f"has no column '{missing[0]}'", f"it has {listed(frame.columns)}")
    if empty := [name for name in wanted if frame[name].null_count()]:
        raise SourceError(files[0], f"has empty values in column '{empty[0]}'")
    if nested := [name for name in wanted if frame[name].dtype.is_nested() or frame[name].dtype == pl.Binary]:
        raise SourceError(files[0], f"holds {frame[nested[0]].dtype} in column '{nested[0]}', not texts")
    frame = frame.with_columns(pl.col(name).cast(pl.String) for name in wanted)
    if kind != "qrels" and frame["_id"].is_duplicated().any():
        raise SourceError(files[0], f"repeats the _id '{frame['_id'].filter(frame['_id'].is_duplicated())[0]}' of an earlier row")
    if kind == "qrels" and "score" in frame.columns:
        scores = frame["score"]
        grades = pl.Series("score", [np.nan]) if scores.dtype.is_nested() else scores.cast(pl.Float64, strict=False)
        if not (grades.fill_null(np.nan).abs() <= LARGEST_GRADE).all():  # NaN is larger than any number
            raise SourceError(files[0], "has a score that is not a number", "give query-id, corpus-id and score")
        frame = frame.with_columns(grades)
    return frame.to_dicts()
