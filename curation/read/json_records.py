"""JSON and JSON Lines: lists of objects, records deeper down, lists of cells, and SQuAD's own shape.

`records` is the path to what is a row, parts between `/`: `data/items`. Lists on the way mean each of their items, `*`
each value of an object, whose key becomes the column `key`. What else the objects on the way hold, texts, numbers and
truth values, becomes columns too. At the end an object is a row, a list its rows, anything else the column `value`. A
row that is a list takes its columns' names from `header`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from curation.core.errors import SourceError, did_you_mean, listed
from curation.read.blocks import lines_of, opened_blocks
from curation.read.json_blocks import plain_objects
from curation.read.json_values import PIECE, Text, Twice, Value, decoder, items_of, values_of
from curation.read.mapping import column_map
from curation.read.rows import ROW, File, Found, Reading, Record, batches, opened, record_limit, sliced, too_large
from curation.recipe.source import Table

Loss = tuple[str, str, bool]  # reason, evidence, whether it is bad
LineOf = Callable[[File, int, str], "Record | Loss"]
TWICE = Twice()
DECODER = decoder(TWICE.each_once)
NO_LIST = "`records: data/items` would lead to a list, `records: '*'` takes each value; or say `reader: squad` or `jsonl`"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half a character


def _encodes(value: object) -> bool:
    """Tell whether a JSON value can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key '{twice[:40]}' stands twice in an object")
    return found


def _whole_text(file: File, table: Table) -> str:
    """Return the text of a file; no string in it is larger than a record may be."""
    pieces, since, most = [], 0, record_limit(table)  # `since`: characters since the last quote
    with opened(file, table) as lines:
        while piece := lines.read(min(PIECE, most)):
            if since + len(piece.partition('"')[0]) > most:
                raise too_large(file.name, "a text in it", table)
            since = len(piece.rpartition('"')[2]) + (0 if '"' in piece else since)
            pieces.append(piece)
    return "".join(pieces)


def _document(file: File, table: Table) -> tuple[Any, bool]:
    """Return a whole JSON file, and whether it may hold half of a surrogate pair."""
    text = _whole_text(file, table)
    if not text.strip():
        raise SourceError(file.name, "is empty")
    twice = Twice()
    try:
        hook = _each_once if "*" in _path(table) else twice.each_once  # where each key is a row, also equal ones are two
        document = decoder(hook).decode(text)
        if twice:
            raise ValueError(twice.told())
        return document, bool(SURROGATE.search(text))
    except json.JSONDecodeError as error:
        where = f"{file.name}:{error.lineno}"
        if error.msg == "Extra data" and error.lineno > 1:
            raise SourceError(where, "a second JSON value begins here: this is JSON Lines", "say `reader: jsonl`") from None
        raise SourceError(where, f"not readable as JSON ({error.msg})", "is the file cut off?") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise SourceError(file.name, f"not readable as JSON ({error})") from None


def read_json(file: File, table: Table, start: int) -> Reading:
    """Read a JSON document: the list that it is, or the rows at `records`; or objects one after another.

    Raises:
        SourceError: it is no JSON, or there are no rows where they should be.
    """
    if table.records:
        document, suspect = _document(file, table)
        _check_path(file, document, _path(table)[0])
        yield from batches(_at(document, table, f"{file.name}: ", suspect), start, file, table)
        return
    with opened(file, table) as lines:
        text = Text(file, table, lines.read)
        sign = text.next_sign()
        if not sign:
            raise SourceError(file.name, "is empty")
        if sign == "[":
            found = ((f"{file.name}: item {i}", item) for i, item in enumerate(items_of(text)))
        else:
            first = text.value("lead to its rows with `records:`, or raise it if a row is as large")
            if not text.next_sign():
                raise SourceError(file.name, f"holds {kind_of(first.value)}, not a list of objects", NO_LIST)
            text.hint = "where lines may be broken, say `reader: jsonl`, which leaves them out"
            found = ((f"{file.name}:{one.line}", one) for one in chain([first], values_of(text)))
        yield from batches((_value_row(where, one, table) for where, one in found), start, file, table)


def _value_row(where: str, one: Value, table: Table) -> Record | Loss:
    if one.wrong:
        return "bad_json", f"{where}: {one.wrong}", True
    return _row(where, one.value, table, bool(SURROGATE.search(one.text)))


def _check_path(file: File, document: Any, first: str) -> None:
    if isinstance(document, list) or (isinstance(document, dict) and (first == "*" or first in document)):
        return
    if not isinstance(document, dict):
        raise SourceError(file.name, f"holds {kind_of(document)}, in which no `records` can be")
    near = did_you_mean(first, document) or f"; there are {listed(document, 6) or 'no keys at all'}"
    raise SourceError(file.name, f"has no '{first}', where `records` should be{near}")


def _at(value: Any, table: Table, where: str, suspect: bool) -> Iterator[Record | Loss]:
    for found, place, around in _walk(value, _path(table), where, {}):
        if isinstance(found, tuple):
            yield found
        else:
            row = _row(place, found if isinstance(found, (dict, list)) else {"value": found}, table, suspect=False)
            yield record_of(place, {**around, **row}, suspect) if isinstance(row, dict) else row


def _path(table: Table) -> list[str]:
    return (table.records or "").strip("/").split("/")


def _walk(value: Any, path: list[str], where: str, around: Record) -> Iterator[tuple[Any, str, Record]]:
    """Yield what stands at the end of `path`, its place, and the columns of the objects around it; or a loss for it."""
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
        raise SourceError(where, "is an object, to which `header` means nothing", "leave it out; it names the cells of lists")
    if not isinstance(value, list) or table.header is True:
        return record_of(where, value, suspect)
    names = table.header or [f"column_{i}" for i in range(1, len(value) + 1)]
    if len(names) != len(value):
        return "wrong_number_of_fields", f"{where}: {len(value)} cells, `header` has {len(names)}", True
    return record_of(where, dict(zip(names, value, strict=True)), suspect)


def record_of(where: str, value: Any, suspect: bool) -> Record | Loss:
    """Return an object, or what is wrong with it."""
    if not isinstance(value, dict):
        return "not_an_object", f"{where}: {kind_of(value)}, not an object", True
    if suspect and not _encodes(value):
        return "bad_json", f"{where}: half of a surrogate pair", True
    return value


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words."""
    kinds = {dict: "one object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def read_jsonl(file: File, table: Table, start: int, line_of: LineOf | None = None) -> Reading:
    """Read JSON Lines: an object a line, what is at `records` in each, or what `line_of` makes of a line.

    Objects that are written on several lines each are read too.

    Raises:
        SourceError: the file is empty, or one JSON document.
    """
    with opened_blocks(file, table) as blocks:
        held = _to_first_line(file, blocks)
        if not held:
            raise SourceError(file.name, "is empty")
        blocks = chain(held, blocks)
        if _spans_lines(held):
            every = ((one.line, one.text) for one in _long_values(file, table, blocks))
        elif line_of is None and not table.records and table.header is True:
            yield from _objects(file, table, blocks, start)
            return
        else:
            every = ((number, line) for number, line in enumerate(lines_of(blocks), 1) if not line.isspace())
        if line_of:
            yield from batches((line_of(file, *line) for line in every), start, file, table)
        else:
            yield from batches((row for number, line in every for row in _rows_of(file, table, number, line)), start, file, table)


def _to_first_line(file: File, blocks: Iterator[bytes]) -> list[bytes]:
    """Return the blocks up to the first line that is not blank; none where all are.

    Raises:
        SourceError: that line shows that the file is one JSON document.
    """
    held, number = [], 0
    for block in blocks:
        held.append(block)
        for line in lines_of([block]):
            number += 1
            if not line.isspace():
                if not _spans_lines(held):
                    _refuse_document(file, number, line)
                return held
    return []


def _spans_lines(held: list[bytes]) -> bool:
    """Tell whether a file, of which the first blocks are given, begins with an object that is written on several lines."""
    text = b"".join(held).decode().lstrip()
    first_line = text.partition("\n")[0].rstrip()
    if not text.startswith("{") or first_line.endswith("}"):
        return False
    try:
        return "\n" in text[: json.JSONDecoder().raw_decode(text)[1]]
    except (ValueError, RecursionError):
        return False


def _long_values(file: File, table: Table, blocks: Iterator[bytes]) -> Iterator[Value]:
    text = Text(file, table, lambda _: next(blocks, b"").decode())
    text.next_sign()
    first = text.value()
    if not text.next_sign():
        raise SourceError(f"{file.name}:{first.line}", "this is one JSON document, not JSON Lines", "say `reader: json`")
    yield from chain([first], values_of(text))


def _objects(file: File, table: Table, blocks: Iterator[bytes], start: int) -> Reading:
    """Read lines as objects: a block at once where they are alike, else one by one, to say which is none."""
    number, wanted = 1, column_map(table)
    for block in blocks:
        frame = plain_objects(block, wanted)
        if frame is not None and ROW not in frame.columns:
            yield from sliced(frame, start)
            start += len(frame)
        else:
            lines = enumerate(lines_of([block]), number)
            for rows in batches((read_line(file, at, line) for at, line in lines if not line.isspace()), start, file, table):
                yield rows
                start += len(rows.frame) + len(rows.lost)
        number += block.count(b"\n")


def _rows_of(file: File, table: Table, number: int, line: str) -> Iterator[Record | Loss]:
    """Yield the rows of a line: those at `records`, or the one that is the line."""
    parsed, where, suspect = _parsed(file, number, line), f"{file.name}:{number}", bool(SURROGATE.search(line))
    if isinstance(parsed, tuple):
        yield parsed
    elif table.records:
        yield from _at(parsed, table, f"{where}: ", suspect)
    else:
        yield _row(where, parsed, table, suspect)


def _refuse_document(file: File, number: int, line: str) -> None:
    """Raise where the first line shows that the file is one JSON document."""
    try:
        value = json.loads(line)
        document = isinstance(value, list) and (not value or isinstance(value[0], dict))
    except (ValueError, RecursionError):
        document = line.strip() in ("{", "[") or line.lstrip().startswith("[{")
    if document:
        raise SourceError(f"{file.name}:{number}", "this is one JSON document, not JSON Lines", "say `reader: json`")


def read_line(file: File, number: int, line: str, change: Callable[[Any], Any] = lambda value: value) -> Record | Loss:
    """Return a line's object, as `change` makes it of what stands there; its ValueError says why it cannot."""
    value = _parsed(file, number, line, change)
    return value if isinstance(value, tuple) else record_of(f"{file.name}:{number}", value, bool(SURROGATE.search(line)))


def _parsed(file: File, number: int, line: str, change: Callable[[Any], Any] = lambda value: value) -> Any | Loss:
    where = f"{file.name}:{number}"
    TWICE.clear()
    try:
        value = DECODER.decode(line)
        if TWICE:
            return "bad_json", f"{where}: {TWICE.told()}", True
        return change(value)
    except json.JSONDecodeError as error:
        return "bad_json", f"{where}: {error.msg} at column {error.pos + 1}", True
    except (ValueError, RecursionError) as error:
        return "bad_json", f"{where}: {error}", True


def read_squad(file: File, table: Table, start: int) -> Reading:
    """Read SQuAD's JSON: id, title, question, context, answers (distinct, in order), is_impossible.

    A question marked impossible is left out on purpose; a file without the mark keeps all. Ids become text.

    Raises:
        SourceError: the file is no SQuAD JSON.
    """
    document, suspect = _document(file, table)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise SourceError(file.name, "is not SQuAD JSON: no list 'data'", "say `reader: json` for a list of objects")
    return batches(_questions(file, document["data"], suspect), start, file, table)


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
                if str(record["is_impossible"]).lower() in ("true", "1"):
                    yield "unanswerable", where, False
                else:
                    yield record_of(where, record, suspect)


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
