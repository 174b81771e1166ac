"""File formats: each reader turns one file into batches of rows, and tells of every row it had to leave out.

    json     a list of objects                            jsonl    one object a line
    csv tsv  text cells; Python's csv module, strict      parquet  through polars
    squad    one row a question                           python   one row a function that has a docstring
    flagembedding  jsonl whose pos and neg are lists      tevatron  jsonl of passages, as query_id, query, positives, negatives
    embedding-training-data  jsonl of [text, text, ...] or {"set": [...]}, as query, positives, negatives
    aligned  line i of several files                      lines    a label and a text a line, or what `pattern` says
    folders  a text a file, labelled by its folder        xml      the elements at `records`

A row that cannot be read is a `Lost`, and the file goes on. A file that cannot be read raises a SourceError. What is
packed is unpacked on the way in (packed.py, archives.py). Python's own json and csv do the parsing: polars' are about
twice as fast, but fill the missing cells of a short row, take a blank line for a row, and read half of a surrogate pair
as NUL, all without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import polars as pl

from curation.delimited import read_delimited
from curation.errors import SourceError, listed
from curation.functions import functions_of
from curation.manifest_source import Reader, Table
from curation.packed import ending_of
from curation.rows import BATCH, ROW, File, Found, Lost, Reading, Record, Rows, batches, mendable, opened
from curation.text_files import read_aligned, read_folders, read_lines
from curation.xml_records import read_xml

__all__ = ["READERS", "ROW", "File", "Lost", "Rows", "read_file", "reader_of"]

ENDINGS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".py": "python",
}
Loss = tuple[str, str, bool]  # reason, evidence, whether it is bad
LineOf = Callable[[File, int, str], "Record | Loss"]
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half a character


def read_file(file: File, table: Table, start: int) -> Reading:
    """Return the rows of one file in batches, numbered from `start`.

    Raises:
        SourceError: the file cannot be read as what it should be.
    """
    with mendable(file, table):
        yield from READERS[reader_of(file, table)](file, table, start)


def reader_of(file: File, table: Table) -> str:
    """Return the reader's name: the declared one, or by the file's ending.

    Raises:
        SourceError: no reader is declared, and none is known for the ending.
    """
    ending = ending_of(file.path)
    if table.reader is None and ending not in ENDINGS:
        what = f"no reader for the ending '{ending}'" if ending else "no ending to tell the reader by"
        raise SourceError(file.name, what, f"say `reader:` and one of {listed(get_args(Reader), 20)}")
    return table.reader or ENDINGS[ending]


def _encodes(value: object) -> bool:
    """Tell whether a JSON value can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _document(file: File, table: Table) -> tuple[Any, bool]:
    """Return a whole JSON file, and whether it may hold half of a surrogate pair."""
    with opened(file, table) as lines:
        text = lines.read()
    if not text.strip():
        raise SourceError(file.name, "is empty")
    try:
        return json.loads(text), bool(SURROGATE.search(text))
    except json.JSONDecodeError as error:
        where = f"{file.name}:{error.lineno}"
        if error.msg == "Extra data" and error.lineno > 1:
            raise SourceError(where, "a second JSON value begins here: this is JSON Lines", "say `reader: jsonl`") from None
        raise SourceError(where, f"not readable as JSON ({error.msg})", "is the file cut off?") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise SourceError(file.name, f"not readable as JSON ({error})") from None


def _read_json(file: File, table: Table, start: int) -> Reading:
    document, suspect = _document(file, table)
    if not isinstance(document, list):
        hint = "say `reader: squad` for SQuAD, `reader: jsonl` for JSON Lines"
        raise SourceError(file.name, f"holds {_kind(document)}, not a list of objects", hint)
    return batches((_record(f"{file.name}: item {i}", item, suspect) for i, item in enumerate(document)), start)


def _record(where: str, value: Any, suspect: bool) -> Record | Loss:
    if not isinstance(value, dict):
        return "not_an_object", f"{where}: {_kind(value)}, not an object", True
    if suspect and not _encodes(value):
        return "bad_json", f"{where}: half of a surrogate pair", True
    return value


def _kind(value: object) -> str:
    kinds = {dict: "one object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_jsonl(file: File, table: Table, start: int, line_of: LineOf | None = None) -> Reading:
    read = line_of or _json_line
    with opened(file, table) as lines:
        numbered = ((number, line) for number, line in enumerate(lines, 1) if not line.isspace())
        first = next(numbered, None)
        if first is None:
            raise SourceError(file.name, "is empty")
        _refuse_document(file, *first)
        yield from batches((read(file, *line) for line in chain([first], numbered)), start)


def _refuse_document(file: File, number: int, line: str) -> None:
    """Raise where the first line shows that the file is one JSON document."""
    try:
        value = json.loads(line)
        document = isinstance(value, list) and (not value or isinstance(value[0], dict))
    except (ValueError, RecursionError):
        document = line.strip() in ("{", "[") or line.lstrip().startswith("[{")
    if document:
        raise SourceError(f"{file.name}:{number}", "this is one JSON document, not JSON Lines", "say `reader: json`")


def _json_line(file: File, number: int, line: str) -> Record | Loss:
    return _line_of(file, number, line, lambda value: value)


def _line_of(file: File, number: int, line: str, record_of: Callable[[Any], Any]) -> Record | Loss:
    where = f"{file.name}:{number}"
    try:
        value = record_of(json.loads(line))
    except json.JSONDecodeError as error:
        return "bad_json", f"{where}: {error.msg} at column {error.pos + 1}", True
    except (ValueError, RecursionError) as error:
        return "bad_json", f"{where}: {error}", True
    return _record(where, value, bool(SURROGATE.search(line)))


def _flagembedding_line(file: File, number: int, line: str) -> Record | Loss:
    """Read FlagEmbedding's query, pos, neg, ...; a text for a list would give a trainer single characters."""
    record = _json_line(file, number, line)
    if isinstance(record, dict):
        for name in ("pos", "neg"):
            _refuse_text(file, number, record, name)
    return record


def _embedding_line(file: File, number: int, line: str) -> Record | Loss:
    """Read a line of sentence-transformers' embedding-training-data: pair, triplet, set, or query with lists."""
    return _line_of(file, number, line, _tuple_of)


def _tuple_of(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("query"), str):
        query, positives, negatives = value["query"], value.get("pos"), value.get("neg") or []
    elif isinstance(value, dict) and isinstance(value.get("set"), list) and value["set"]:
        (query, *positives), negatives = value["set"], []
    elif isinstance(value, list) and len(value) > 1:
        query, positives, negatives = value[0], [value[1]], value[2:]
    else:
        raise ValueError(f"{_kind(value)} that is no pair, triplet, set or query")
    if not isinstance(positives, list) or not isinstance(negatives, list):
        raise ValueError("'pos' and 'neg' have to be lists")
    if not all(isinstance(text, str) for text in (query, *positives, *negatives)):
        raise ValueError("holds other things than texts")
    return {"query": query, "positives": positives, "negatives": negatives}


def _tevatron_line(file: File, number: int, line: str) -> Record | Loss:
    """Read Tevatron's query_id, query, positive_passages, negative_passages; a passage becomes its title and text."""
    record = _json_line(file, number, line)
    if not isinstance(record, dict):
        return record
    passages = {"positives": "positive_passages", "negatives": "negative_passages"}
    others = {name: value for name, value in record.items() if name not in passages.values()}
    return others | {to: _passages(file, number, record, name) for to, name in passages.items()}


def _refuse_text(file: File, number: int, record: Record, name: str) -> None:
    value = record.get(name)
    hint = f'write `"{name}": ["a text", ...]`, for one text too'
    if value is not None and not isinstance(value, list):
        raise SourceError(f"{file.name}:{number}", f"'{name}' is {_kind(value)}, not a list of texts", hint)
    if not all(isinstance(text, str) for text in value or []):
        raise SourceError(f"{file.name}:{number}", f"'{name}' lists other things than texts", hint)


def _passages(file: File, number: int, record: Record, name: str) -> list[str]:
    value = record.get(name)
    whole = isinstance(value, list) and all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in value)
    if value is not None and not whole:
        hint = "each passage is {docid, title, text}"
        raise SourceError(f"{file.name}:{number}", f"'{name}' is not a list of passages with a text", hint)
    parts = ([str(one.get("title") or ""), one["text"]] for one in value or [])
    return ["\n".join(part for part in both if part.strip()) for both in parts]


def _read_parquet(file: File, table: Table, start: int) -> Reading:
    with file.on_disk() as place:
        if not (place.stat().st_size if isinstance(place, Path) else place.peek(1)):
            raise SourceError(file.name, "is empty")
        try:
            for frame in pl.scan_parquet(place, glob=False).collect_batches(chunk_size=BATCH, maintain_order=True):
                yield Rows(frame.with_row_index(ROW, start).with_columns(pl.col(ROW).cast(pl.UInt64)), [])
                start += len(frame)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            what = str(error).splitlines()[0].removeprefix("parquet: ")
            raise SourceError(file.name, f"not readable as parquet ({what})", "fetch the file again") from None


def _read_squad(file: File, table: Table, start: int) -> Reading:
    """Read SQuAD's JSON: id, title, question, context, answers (distinct, in order), is_impossible.

    A question marked impossible is left out on purpose; a file without the mark keeps all. Ids become text.
    """
    document, suspect = _document(file, table)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise SourceError(file.name, "is not SQuAD JSON: no list 'data'", "say `reader: json` for a list of objects")
    return batches(_questions(file, document["data"], suspect), start)


def _questions(file: File, articles: list[Any], suspect: bool) -> Found:
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_part(article, "paragraphs")):
            for q, question in enumerate(_part(paragraph, "qas")):
                where = f"{file.name}: data[{a}].paragraphs[{p}].qas[{q}]"
                try:
                    record = _question(article, paragraph, question)
                except (KeyError, TypeError, AttributeError) as error:
                    yield "bad_question", f"{where}: {f'no {error}' if isinstance(error, KeyError) else 'not SQuAD'}", True
                    continue
                if record["is_impossible"]:
                    yield "unanswerable", where, False
                else:
                    yield _record(where, record, suspect)


def _part(whole: Any, name: str) -> list[Any]:
    part = whole.get(name) if isinstance(whole, dict) else None
    return part if isinstance(part, list) else [{}]  # an article without paragraphs is one bad question


def _question(article: Any, paragraph: Any, question: Any) -> dict[str, Any]:
    identity = question.get("id")
    return {
        "id": identity if identity is None else str(identity),
        "title": article.get("title"),
        "question": question["question"],
        "context": paragraph["context"],
        "answers": list(dict.fromkeys(answer["text"] for answer in question.get("answers", []))),
        "is_impossible": question.get("is_impossible"),
    }


def _read_python(file: File, table: Table, start: int) -> Reading:
    with file.open() as raw:
        return batches(list(functions_of(raw.read(), file.path, file.name, file.root)), start)


READERS: dict[str, Callable[[File, Table, int], Reading]] = {
    "json": _read_json,
    "jsonl": _read_jsonl,
    "csv": partial(read_delimited, comma=True),
    "tsv": partial(read_delimited, comma=False),
    "parquet": _read_parquet,
    "flagembedding": partial(_read_jsonl, line_of=_flagembedding_line),
    "tevatron": partial(_read_jsonl, line_of=_tevatron_line),
    "embedding-training-data": partial(_read_jsonl, line_of=_embedding_line),
    "aligned": read_aligned,
    "lines": read_lines,
    "folders": read_folders,
    "xml": read_xml,
    "squad": _read_squad,
    "python": _read_python,
}
