"""JSON and JSON Lines: lists of objects, records deeper down, lists of cells, SQuAD, and training data of other tools.

`records` is the path to the rows, with parts between `/`: `data/items`. A list on the way means each of its items,
`*` each value of an object, whose key becomes the column `key`. Texts, numbers and truth values of the objects on the
way become columns too. At the end of the path an object is a row, a list contains rows, and anything else becomes the
column `value`. If a row is a list, `header` names its columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from curation.core.errors import SourceError, did_you_mean, listed
from curation.read.blocks import lines_of, open_blocks, open_text
from curation.read.json_values import PIECE, RepeatedKeys, Text, decoder, items_of, plain_objects, values_of
from curation.read.mapping import column_map
from curation.read.rows import ROW, File, Found, Loss, Reading, Record, batches, number_rows, record_limit, too_large
from curation.recipe.source import Table

LineOf = Callable[[File, int, str], "Record | Loss"]
REPEATED = RepeatedKeys()
DECODER = decoder(REPEATED.object_of)
NO_LIST = "`records: data/items` would lead to a list, `records: '*'` takes each value; or say `reader: squad` or `jsonl`"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half a character


# --- JSON documents ---


def read_json_document(file: File, table: Table, start: int) -> Reading:
    """Read a JSON document: the list that it is, or the rows at `records`; or objects that follow each other.

    Raises:
        SourceError: it is not JSON, or there are no rows where they should be.
    """
    if table.records:
        document, suspect = _document(file, table)
        first = _path(table)[0]
        if not isinstance(document, dict | list):
            raise SourceError(file.name, f"holds {kind_of(document)}, so `records` leads nowhere")
        if isinstance(document, dict) and first != "*" and first not in document:
            near = did_you_mean(first, document) or f"; there are {listed(document, 6) or 'no keys at all'}"
            raise SourceError(file.name, f"has no '{first}', where `records` should be{near}")
        yield from batches(_rows_at(document, table, f"{file.name}: ", suspect), start, file, table)
        return
    with open_text(file, table) as lines:
        text = Text(file, table, lines.read)
        character = text.next_character()
        if not character:
            raise SourceError(file.name, "is empty")
        if character == "[":
            found = ((f"{file.name}: item {i}", item) for i, item in enumerate(items_of(text)))
        else:
            value = text.value("lead to its rows with `records:`, or raise it if a row is as large")
            if not text.next_character():
                raise SourceError(file.name, f"holds {kind_of(value.value)}, not a list of objects", NO_LIST)
            text.hint = "where lines may be broken, say `reader: jsonl`, which leaves them out"
            found = ((f"{file.name}:{one.line}", one) for one in chain([value], values_of(text)))
        rows = (
            ("bad_json", f"{where}: {one.wrong}", True)
            if one.wrong
            else _row(where, one.value, table, bool(SURROGATE.search(one.text)))
            for where, one in found
        )
        yield from batches(rows, start, file, table)


def _document(file: File, table: Table) -> tuple[Any, bool]:
    """Return a whole JSON file, and whether it may hold half of a surrogate pair."""
    # the text; no string in it may be larger than a record
    pieces, since, most = [], 0, record_limit(table)  # `since`: characters since the last quote
    with open_text(file, table) as lines:
        while piece := lines.read(min(PIECE, most)):
            if since + len(piece.partition('"')[0]) > most:
                raise too_large(file.name, "a text in it", table)
            since = len(piece.rpartition('"')[2]) + (0 if '"' in piece else since)
            pieces.append(piece)
    text = "".join(pieces)
    if not text.strip():
        raise SourceError(file.name, "is empty")
    repeated = RepeatedKeys()
    try:
        # if each key is a row, two equal ones are an error even if their values are equal
        document = decoder(_object_of_unique_keys if "*" in _path(table) else repeated.object_of).decode(text)
        if repeated:
            raise ValueError(repeated.take_error())
        return document, bool(SURROGATE.search(text))
    except json.JSONDecodeError as error:
        where = f"{file.name}:{error.lineno}"
        if error.msg == "Extra data" and error.lineno > 1:
            raise SourceError(where, "a second JSON value begins here: this is JSON Lines", "say `reader: jsonl`") from None
        raise SourceError(where, f"not readable as JSON ({error.msg})", "is the file cut off?") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise SourceError(file.name, f"not readable as JSON ({error})") from None


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key '{twice[:40]}' appears twice in an object")
    return found


def squad_rows(file: File, table: Table) -> Found:
    """Yield the questions of SQuAD's JSON: id, title, question, context, answers (distinct, in order), is_impossible.

    A question marked impossible is left out on purpose; a file without the mark keeps all. Ids become text.

    Raises:
        SourceError: the file is not SQuAD's JSON.
    """
    document, suspect = _document(file, table)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise SourceError(file.name, "is not SQuAD JSON: no list 'data'", "say `reader: json` for a list of objects")

    def inner(whole: Any, name: str) -> list[Any]:
        part = whole.get(name) if isinstance(whole, dict) else None
        return part if isinstance(part, list) else [{}]  # an article without paragraphs counts as one bad question

    for a, article in enumerate(document["data"]):
        for p, paragraph in enumerate(inner(article, "paragraphs")):
            for q, question in enumerate(inner(paragraph, "qas")):
                where = f"{file.name}: data[{a}].paragraphs[{p}].qas[{q}]"
                try:
                    identity = question.get("id")
                    record = {
                        "id": identity if identity is None else str(identity),
                        "title": article.get("title"),
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": list(dict.fromkeys(answer["text"] for answer in question.get("answers", []))),
                        "is_impossible": question.get("is_impossible"),
                    }
                except (KeyError, TypeError, AttributeError) as error:
                    yield "bad_question", f"{where}: {f'no {error}' if isinstance(error, KeyError) else 'not SQuAD'}", True
                    continue
                if str(record["is_impossible"]).lower() in ("true", "1"):
                    yield "unanswerable", where, False
                else:
                    yield record_of(where, record, suspect)


# --- from values to rows ---


def _path(table: Table) -> list[str]:
    return (table.records or "").strip("/").split("/")


def _rows_at(value: Any, table: Table, where: str, suspect: bool) -> Iterator[Record | Loss]:
    """Yield the rows at `records`, each with the columns of the objects around it."""
    for found, place, around in _walk(value, _path(table), where, {}):
        if isinstance(found, tuple):
            yield found
        else:
            row = _row(place, found if isinstance(found, (dict, list)) else {"value": found}, table, suspect=False)
            yield record_of(place, {**around, **row}, suspect) if isinstance(row, dict) else row


def _walk(value: Any, path: list[str], where: str, around: Record) -> Iterator[tuple[Any, str, Record]]:
    """Yield what is at the end of `path`, its place, and the columns of the objects around it; or a loss instead."""
    if not path:
        if value is None:
            yield ("no_records", f"{where}: null", True), where, around
        elif isinstance(value, list):
            yield from ((item, f"{where}[{i}]", around) for i, item in enumerate(value))
        else:
            yield value, where, around
    elif isinstance(value, list):
        for i, item in enumerate(value):
            place = f"{where}[{i}]"
            lost = ("no_records", f"{place}: a list in a list", True)
            yield from [(lost, place, around)] if isinstance(item, list) else _walk(item, path, place, around)
    elif not isinstance(value, dict) or (path[0] not in value and path[0] != "*"):
        what = f"no '{path[0]}'" if isinstance(value, dict) else f"{kind_of(value)}, not an object with '{path[0]}'"
        yield ("no_records", f"{where}: {what}", True), where, around
    elif path[0] == "*":
        for key, item in value.items():
            yield from _walk(item, path[1:], f"{where}/{key}", {**around, "key": key})
    else:
        here = {key: item for key, item in value.items() if key != path[0] and not isinstance(item, (dict, list))}
        yield from _walk(value[path[0]], path[1:], f"{where}/{path[0]}", {**around, **here})


def _row(where: str, value: Any, table: Table, suspect: bool) -> Record | Loss:
    """Return an object as it is, and a list as cells if `header` is declared.

    Raises:
        SourceError: `header` is declared for an object that has other keys.
    """
    if table.header is not True and isinstance(value, dict) and not set(table.header or ()).issuperset(value):
        raise SourceError(where, "is an object, so `header` does not apply", "leave it out: it names the cells of lists")
    if not isinstance(value, list) or table.header is True:
        return record_of(where, value, suspect)
    names = table.header or [f"column_{i}" for i in range(1, len(value) + 1)]
    if len(names) != len(value):
        return "wrong_number_of_fields", f"{where}: {len(value)} cells, `header` has {len(names)}", True
    return record_of(where, dict(zip(names, value, strict=True)), suspect)


def record_of(where: str, value: Any, suspect: bool) -> Record | Loss:
    """Return an object, or what is wrong with it; `suspect` if it may hold half of a surrogate pair."""
    if not isinstance(value, dict):
        return "not_an_object", f"{where}: {kind_of(value)}, not an object", True
    try:
        if suspect:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "bad_json", f"{where}: half of a surrogate pair", True
    return value


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words."""
    kinds = {dict: "one object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


# --- JSON Lines ---


def read_jsonl(file: File, table: Table, start: int, line_of: LineOf | None = None) -> Reading:
    """Read JSON Lines: one object per line, the rows at `records` in each, or what `line_of` makes of a line.

    Objects that are written on several lines each are read too.

    Raises:
        SourceError: the file is empty, or one JSON document.
    """
    with open_blocks(file, table) as blocks:
        held = _to_first_line(file, blocks) if file.first_line == 1 else []
        if not held and file.first_line == 1:
            raise SourceError(file.name, "is empty")
        blocks = chain(held, blocks)
        if held and _spans_lines(held):
            text = Text(file, table, lambda _: next(blocks, b"").decode())
            text.next_character()
            first = text.value()
            if not text.next_character():
                where = f"{file.name}:{first.line}"
                raise SourceError(where, "this is one JSON document, not JSON Lines", "say `reader: json`")
            every = ((one.line, one.text) for one in chain([first], values_of(text)))
        elif line_of is None and not table.records and table.header is True:
            # a block at once if its lines are alike, else one by one, to find the lines that are broken
            number, wanted = file.first_line, column_map(table)
            for block in blocks:
                frame = plain_objects(block, wanted)
                if frame is not None and ROW not in frame.columns:
                    yield from number_rows(frame, start)
                    start += len(frame)
                else:
                    lines = enumerate(lines_of([block]), number)
                    for rows in batches(
                        (read_line(file, at, line) for at, line in lines if not line.isspace()), start, file, table
                    ):
                        yield rows
                        start += len(rows.frame) + len(rows.lost)
                number += block.count(b"\n")
            return
        else:
            lines = enumerate(lines_of(blocks), file.first_line)
            every = ((number, line) for number, line in lines if not line.isspace())
        if line_of:
            yield from batches((line_of(file, *line) for line in every), start, file, table)
        else:
            yield from batches((row for number, line in every for row in _rows_of(file, table, number, line)), start, file, table)


def _to_first_line(file: File, blocks: Iterator[bytes]) -> list[bytes]:
    """Return the blocks up to the first line that is not blank; none if all lines are.

    Raises:
        SourceError: that line shows that the file is one JSON document.
    """
    held, number = [], 0
    for block in blocks:
        held.append(block)
        for line in lines_of([block]):
            number += 1
            if line.isspace():
                continue
            if not _spans_lines(held):
                try:
                    value = json.loads(line)
                    document = isinstance(value, list) and (not value or isinstance(value[0], dict))
                except (ValueError, RecursionError):
                    document = line.strip() in ("{", "[") or line.lstrip().startswith("[{")
                if document:
                    raise SourceError(f"{file.name}:{number}", "this is one JSON document, not JSON Lines", "say `reader: json`")
            return held
    return []


def _spans_lines(held: list[bytes]) -> bool:
    """Return whether a file, given its first blocks, begins with an object that is written on several lines."""
    text = b"".join(held).decode().lstrip()
    first_line = text.partition("\n")[0].rstrip()
    if not text.startswith("{") or first_line.endswith("}"):
        return False
    try:
        return "\n" in text[: json.JSONDecoder().raw_decode(text)[1]]
    except (ValueError, RecursionError):
        return False


def _rows_of(file: File, table: Table, number: int, line: str) -> Iterator[Record | Loss]:
    """Yield the rows of a line: those at `records`, or the line itself."""
    value, where, suspect = _parse_line(file, number, line), f"{file.name}:{number}", bool(SURROGATE.search(line))
    if isinstance(value, tuple):
        yield value
    elif table.records:
        yield from _rows_at(value, table, f"{where}: ", suspect)
    else:
        yield _row(where, value, table, suspect)


def read_line(file: File, number: int, line: str, change: Callable[[Any], Any] = lambda value: value) -> Record | Loss:
    """Return a line's object after `change`, whose ValueError says what is wrong with it; or a loss."""
    value = _parse_line(file, number, line, change)
    return value if isinstance(value, tuple) else record_of(f"{file.name}:{number}", value, bool(SURROGATE.search(line)))


def _parse_line(file: File, number: int, line: str, change: Callable[[Any], Any] = lambda value: value) -> Any | Loss:
    where = f"{file.name}:{number}"
    REPEATED.clear()
    try:
        value = DECODER.decode(line)
        if REPEATED:
            return "bad_json", f"{where}: {REPEATED.take_error()}", True
        return change(value)
    except json.JSONDecodeError as error:
        return "bad_json", f"{where}: {error.msg} at column {error.pos + 1}", True
    except (ValueError, RecursionError) as error:
        return "bad_json", f"{where}: {error}", True


# --- training data of other tools ---


def embedding_tuple(value: Any) -> Any:
    """Return the tuple in a line of sentence-transformers' embedding-training-data: pair, triplet, set, or query with lists."""
    if isinstance(value, dict) and isinstance(value.get("query"), str):
        query, positives, negatives = value["query"], value.get("pos"), value.get("neg") or []
    elif isinstance(value, dict) and isinstance(value.get("set"), list) and value["set"]:
        (query, *positives), negatives = value["set"], []
    elif isinstance(value, list) and len(value) > 1:
        query, positives, negatives = value[0], [value[1]], value[2:]
    else:
        raise ValueError(f"{kind_of(value)} that is not a pair, triplet, set or query")
    if not isinstance(positives, list) or not isinstance(negatives, list):
        raise ValueError("'pos' and 'neg' have to be lists")
    if not all(isinstance(text, str) for text in (query, *positives, *negatives)):
        raise ValueError("holds other things than texts")
    return {"query": query, "positives": positives, "negatives": negatives}


def flagembedding_line(file: File, number: int, line: str) -> Record | Loss:
    """Read FlagEmbedding's query, pos, neg, ...

    Raises:
        SourceError: a text in the place of a list, from which a trainer would take single characters.
    """
    record = read_line(file, number, line)
    if not isinstance(record, dict):
        return record
    for name in ("pos", "neg"):
        value, where = record.get(name), f"{file.name}:{number}"
        hint = f'write `"{name}": ["a text", ...]`, for one text too'
        if value is not None and not isinstance(value, list):
            raise SourceError(where, f"'{name}' is {kind_of(value)}, not a list of texts", hint)
        if not all(isinstance(text, str) for text in value or []):
            raise SourceError(where, f"'{name}' lists other things than texts", hint)
    return record


def tevatron_line(file: File, number: int, line: str) -> Record | Loss:
    """Read Tevatron's query_id, query, positive_passages, negative_passages; a passage becomes its title and text.

    Raises:
        SourceError: a passage without a text.
    """
    record = read_line(file, number, line)
    if not isinstance(record, dict):
        return record
    columns = {"positives": "positive_passages", "negatives": "negative_passages"}
    row = {name: value for name, value in record.items() if name not in columns.values()}
    for column, name in columns.items():
        value = record.get(name)
        whole = isinstance(value, list) and all(
            isinstance(one, dict) and isinstance(one.get("text"), str) and isinstance(one.get("title") or "", str)
            for one in value
        )
        if value is not None and not whole:
            hint = "each passage is {docid, title, text}"
            raise SourceError(f"{file.name}:{number}", f"'{name}' is not a list of passages with a text", hint)
        parts = ([one.get("title") or "", one["text"]] for one in value or [])
        row[column] = ["\n".join(part for part in both if part.strip()) for both in parts]
    return row
