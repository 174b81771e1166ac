"""Which columns a table maps, and the one rule by which their values become texts, for every format.

A mapped name is a column, or a path: `ans.text` is part `text` of the record `ans`, or of each record of a list.

    text, number, truth value    a text, as it is written: 8 is 8, and 0.10 is 0.10; NaN and infinities are missing
    list of these                a list of texts; with `join`, one text
    list of lists                with `join`, a list of texts; else an error, except in evaluation sets, which protect all
    list of title and text       a list of texts, title and text on lines of their own, as Tevatron and MIRACL mean them
    other records                an error that names their parts
    labels and ids               also texts, but 1.0 is 1; a number that a float cannot hold exactly is an error

Rows of JSON become columns here (`frame_of_records`); other formats come with columns (`map_columns`). An unmapped column
is null and only its name counts, so nothing in it can fail, or change what a mapped column is. A table without `fields` is
only looked at: all of its columns stay, and records in JSON become JSON again.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from curation.core.errors import SourceError, listed
from curation.recipe.evaluation import EvalSet
from curation.recipe.source import Table

ROW = "__row"
ID_FIELDS = ("id", "label", "query_id", "positive_id")  # `fields` whose values are compared with each other
SCORE_FIELDS = ("score", "positive_score", "negative_scores")
PASSAGE = {"title", "text", "id", "_id", "docid", "doc_id", "pid", "score", "rank", "url"}  # parts of a passage's record
EXACT_BELOW: dict[Any, int] = {pl.Float16: 1 << 11, pl.Float32: 1 << 24, pl.Float64: 1 << 53}  # whole numbers below are exact
LARGE_FLOAT = r"^-?\d(?:\.\d+)?[eE]\+\d+$"  # how programs write a large float; 1e5 may be a hash

# A pattern of negatives skips columns with one of these words in their names, unless a word for texts is the last
NO_TEXTS = re.compile(
    r"(?:doc|p|q|u)?ids?|uuid|idx|index|indices|counts?|num|len|length|margins?|weights?|confidence|distances?|sims?|origins?|types?"
    r"|lang|language|urls?|date|time|timestamp|hash|\w*(?:scores?|labels?|ranks?|logits?|probs?|probability|similarity)"
)
TEXTS = {"text", "texts", "passage", "passages", "doc", "docs", "document", "documents", "sentence", "sentences", "content"}
NAME_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class Number(str):
    """A number of JSON, as it is written there."""

    __slots__ = ()


PLAIN = {str, Number, type(None)}


class ColumnMap(NamedTuple):
    """The columns that a table maps."""

    names: tuple[str, ...]  # columns and paths
    patterns: tuple[str, ...]  # of columns
    ids: frozenset[str]
    scores: frozenset[str]  # columns whose number counts, not how it is written
    rest: bool  # whether all other columns stay too

    def has(self, column: str) -> bool:
        """Return whether a column is mapped as a whole."""
        return column in self.names or any(column in matching_columns(pattern, [column], ())[0] for pattern in self.patterns)

    def tops(self) -> list[str]:
        """Return the columns that are mapped by name, and those that paths lead into."""
        return list(dict.fromkeys(top for name in self.names for top in (name, name.split(".")[0])))

    def paths(self, columns: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
        """Yield each path into one of these columns: the path itself, the column, and the parts after it."""
        for name in self.names:
            first, *parts = name.split(".")
            if parts and name not in columns and first in columns:
                yield name, first, parts


def column_map(table: Table) -> ColumnMap:
    """Return the columns that a table maps."""
    fields = getattr(table, "fields", None)
    roles = list(fields.model_dump().items()) + list(table.guesses.items()) if fields else []
    named = [(role, name) for role, names in roles for name in ([names] if isinstance(names, str) else names or [])]
    named += [(role, name.removesuffix("?")) for role, name in named if role == "title" and name.endswith("?")]
    patterns = tuple(name for role, name in named if role == "negatives" and is_pattern(name))
    names = tuple(name for name in dict.fromkeys([*(name for _, name in named), *table.join]) if name not in patterns)
    by_id: tuple[str, ...] = ()
    if getattr(table, "by_id", False):
        by_id += ("positive", "documents", "negatives") if getattr(table, "corpus", None) else ()
        by_id += ("query",) if getattr(table, "queries", None) else ()
    ids, scores = (
        frozenset(name for role, name in named if role in roles) - {name for role, name in named if role not in roles}
        for roles in ((*ID_FIELDS, *by_id), SCORE_FIELDS)
    )
    return ColumnMap(names, patterns, ids, scores, fields is None)


def is_pattern(name: str) -> bool:
    """Return whether a name of negatives is a pattern of names."""
    return any(sign in name for sign in "*?[")


def matching_columns(pattern: str, columns: Sequence[str], otherwise: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the columns of texts that match a pattern of negatives, and the matching columns that it skips.

    It skips columns whose names contain a word for scores, ids, ranks, labels and the like that the pattern itself does not
    contain, and those that are mapped `otherwise`. A column of exactly that name is always taken.
    """
    if pattern in columns or not is_pattern(pattern):
        return [name for name in columns if name == pattern], []
    own = {word.lower() for word in NAME_PART.findall(pattern)}
    texts: list[str] = []
    others: list[str] = []
    for name in fnmatch.filter([column for column in columns if column != ROW], pattern):
        words = [word.lower() for word in NAME_PART.findall(name) if word.lower() not in own]
        no_texts = any(map(NO_TEXTS.fullmatch, words)) and words[-1] not in TEXTS
        (others if no_texts or name in otherwise else texts).append(name)
    return texts, others


def add_missing_columns(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Return rows with all of these columns: null where no record of these rows has them."""
    return frame.with_columns(pl.lit(None).alias(name) for name in names if name not in frame.columns)


# --- rows of JSON ---


def frame_of_records(where: str, records: Sequence[dict[str, Any]], rows: Sequence[int], table: Table) -> pl.DataFrame:
    """Return records of JSON as a table of texts and lists of texts, with `ROW`; columns in order of appearance.

    A key that a record lacks is null. If some values are lists, the others become lists of one.

    Raises:
        SourceError: a record where a text belongs, or a text where a path asks for records.
    """
    wanted = column_map(table)
    keys = list(dict.fromkeys(key for record in records for key in record if key != ROW))
    columns: dict[str, pl.Series] = {}
    paths = list(wanted.paths(keys))
    for key in keys:
        values = [record.get(key) for record in records]
        for name, _, parts in (one for one in paths if one[1] == key):
            found = [_value_at(where, key, row, value, parts) for row, value in zip(rows, values, strict=True)]
            if any(map(_holds_any, found)):
                columns[name] = _texts_of_values(where, name, found, rows, wanted)
        if wanted.rest or wanted.has(key):
            columns[key] = _texts_of_values(where, key, values, rows, wanted)
            continue
        some = next((value for value in values if value), None)  # an empty list does not show what lists hold
        for name in parts_of(key, some):
            columns.setdefault(name, pl.Series([None] * len(records), dtype=pl.Null))
    return pl.DataFrame(columns | {ROW: pl.Series(rows, dtype=pl.UInt64)})


def _holds_any(value: Any) -> bool:
    return any(map(_holds_any, value)) if isinstance(value, list) else value is not None


class _Flattened(list[Any]):
    """The values that a path finds in the records of a list."""


def _value_at(where: str, column: str, row: int, value: Any, parts: list[str]) -> Any:
    """Return what is at a path in a value; lists of records within each other make one list."""
    if not parts or value is None or (isinstance(value, str) and not value.strip()):
        return value if not parts else None
    if isinstance(value, dict):
        return _value_at(where, column, row, value.get(parts[0]), parts[1:])
    if isinstance(value, list):
        found = _Flattened()
        for item in value:
            one = _value_at(where, column, row, item, parts)
            found.extend(one) if isinstance(one, _Flattened) else found.append(one)
        return found
    raise _not_a_record(where, column, row, _scalar(value), ".".join(parts))


def parts_of(name: str, value: Any) -> list[str]:
    """Return the paths of the parts of a record, or of the first record of a list; for other values, their name."""
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, dict)), None)
    if not isinstance(value, dict):
        return [name]
    return [path for key, part in list(value.items())[:20] for path in parts_of(f"{name}.{key}", part)][:50]


def _texts_of_values(where: str, name: str, values: list[Any], rows: Sequence[int], wanted: ColumnMap) -> pl.Series:
    """Return values of JSON as texts, or as lists of texts, all as deep as the deepest."""
    # columns of texts, and of lists of texts
    kinds = {type(value) for value in values}
    whole = name in wanted.ids and any({"e", "E"} & set(value) for value in values if isinstance(value, Number))
    if kinds <= PLAIN and not whole:
        return pl.Series(values, dtype=pl.String if kinds - {type(None)} else pl.Null)
    if kinds <= {list, type(None)} and {type(item) for value in values for item in value or ()} <= PLAIN:
        return pl.Series(values, dtype=pl.List(pl.String))

    # anything else, value by value
    def text(value: Any, row: int, in_list: bool = False) -> Any:
        if isinstance(value, list):
            return [text(item, row, in_list=True) for item in value]
        if not isinstance(value, dict):
            return _without_exponent(value) if whole and isinstance(value, Number) else _scalar(value)
        if wanted.rest:
            return json.dumps(value, ensure_ascii=False)
        if in_list and value.keys() <= PASSAGE and not any(isinstance(part, (list, dict)) for part in value.values()):
            both = (_scalar(value.get("title")), _scalar(value.get("text")))
            return "\n".join(part for part in both if part and part.strip()) or None
        raise _unexpected_record(where, name, row, parts_of(name, value))

    texts = [text(value, row) for row, value in zip(rows, values, strict=True)]
    depth = max(map(_depth, texts), default=0)
    kind: pl.DataType = pl.String()
    for _ in range(depth):
        kind = pl.List(kind)
    return pl.Series([_nested(one, depth) for one in texts], dtype=kind)


def _scalar(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_exponent(number: Number) -> str:
    """Return an id or a label that is a number of JSON without its exponent, as far as a float is exact."""
    if not {"e", "E"} & set(number) or (value := float(number)) == 0.5:
        return number
    return str(int(value)) if abs(value) <= EXACT_BELOW[pl.Float64] and value.is_integer() else f"{value}"


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _nested(value: Any, depth: int) -> Any:
    """Return a value as lists of so many levels."""
    if value is None or not depth:
        return value
    return [_nested(item, depth - 1) for item in value] if _depth(value) == depth else [_nested(value, depth - 1)]


# --- rows with columns ---


def map_columns(where: str, frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """Return rows with the mapped columns as texts, lists of texts or numbers, and paths as columns of their own.

    Raises:
        SourceError: a mapped column holds records or lists of lists; a path leads into texts; or labels or ids are no
            longer exact.
    """
    wanted = column_map(table)
    columns: dict[str, pl.Series] = {}
    for values in frame:
        name, kind = values.name, values.dtype
        if name == ROW or (wanted.rest and not wanted.has(name)):
            columns[name] = values
        elif wanted.has(name):
            columns[name] = _map_column(where, values, frame, table, wanted)
        else:
            for path in _paths(name, kind):
                columns.setdefault(path, pl.Series(path, [None], dtype=pl.Null).new_from_index(0, len(frame)))
    for name, first, parts in wanted.paths(frame.columns):
        found = _column_at(where, frame, first, parts)
        if found is not None:
            columns[name] = _map_column(where, found.alias(name), frame, table, wanted)
    return pl.DataFrame(columns)


def _innermost(kind: Any) -> tuple[Any, int]:
    """Return the type inside of lists, and the number of levels of lists."""
    depth = 0
    while isinstance(kind, pl.List | pl.Array):
        kind, depth = kind.inner, depth + 1
    return kind, depth


def _paths(name: str, kind: Any) -> list[str]:
    """Return the paths of the parts of a column of records, or its name."""
    kind, _ = _innermost(kind)
    if not isinstance(kind, pl.Struct):
        return [name]
    return [path for field in kind.fields for path in _paths(f"{name}.{field.name}", field.dtype)][:50]


def _column_at(where: str, frame: pl.DataFrame, first: str, parts: list[str]) -> pl.Series | None:
    """Return what is at a path in a column of records, or None if it has no such part."""
    values, (kind, depth) = frame[first], _innermost(frame.schema[first])
    if isinstance(kind, pl.Struct):
        found = _expression_at(pl.col(first), values.dtype, parts)
        return None if found is None else frame.select(found[0].alias(first))[first]
    _refuse_maps(where, first, kind)
    # the column has no records: it may be empty or blank, but hold no texts
    texts = values
    for _ in range(depth):
        texts = texts.explode()
    texts = texts.drop_nulls()
    odd = texts.cast(pl.String, strict=False).str.contains(r"\S").fill_null(True)  # bytes may not be text
    if odd.any():
        row = frame[ROW][int(values.is_not_null().arg_max() or 0)]
        raise _not_a_record(where, first, row, texts[int(odd.arg_max() or 0)], ".".join(parts))
    return None


def _expression_at(values: pl.Expr, kind: Any, parts: list[str]) -> tuple[pl.Expr, bool] | None:
    """Return what is at a path, and whether it is inside of lists; None if there is no such part."""
    if not parts:
        return values, False
    if isinstance(kind, pl.Struct):
        inner = {field.name: field.dtype for field in kind.fields}.get(parts[0])
        return None if inner is None else _expression_at(values.struct.field(parts[0]), inner, parts[1:])
    if not isinstance(kind, pl.List | pl.Array):
        return None
    found = _expression_at(pl.element(), kind.inner, parts)
    if found is None:
        return None
    lists = values.arr.to_list() if isinstance(kind, pl.Array) else values
    return lists.list.eval(found[0].explode(empty_as_null=False) if found[1] else found[0]), True


def _map_column(where: str, values: pl.Series, frame: pl.DataFrame, table: Table, wanted: ColumnMap) -> pl.Series:
    """Return a mapped column as texts, lists of texts, or numbers."""
    name, (kind, depth) = values.name, _innermost(values.dtype)
    _refuse_maps(where, name, kind)
    if isinstance(kind, pl.Struct):
        parts = [field.name for field in kind.fields]
        simple = set(parts) <= PASSAGE and "text" in parts and not any(field.dtype.is_nested() for field in kind.fields)
        if not (depth and simple):
            raise _unexpected_record(where, name, frame[ROW][int(values.is_not_null().arg_max() or 0)], _paths(name, kind))
        values = _change_inside(values, depth, lambda record: _title_and_text(record, parts))
    elif kind.is_float() and name in wanted.ids and not depth:
        inexact = values.filter(values.is_finite() & (values.abs() >= EXACT_BELOW[type(values.dtype)]))
        if len(inexact):
            raise _inexact_ids(where, values.name, inexact)
        finite = values.to_frame().select(pl.when(pl.first().is_finite()).then(pl.first()))[values.name]
        values = finite.cast(pl.String).str.replace(r"\.0$", "").replace("-0", "0")
    elif kind.is_float():
        values = _change_inside(values, depth, lambda number: pl.when(number.is_finite()).then(number))
    elif depth:
        values = _change_inside(values, depth, lambda each: each)
    elif name in wanted.ids and (kind == pl.String or kind.is_decimal()):
        values = _texts_as_ids(where, values.cast(pl.String))
    if depth and name in table.join:
        depth -= 1  # the innermost lists become texts
        separator = table.join[name]
        values = _change_inside(
            values, depth, lambda texts: texts.cast(pl.List(pl.String)).list.join(separator, ignore_nulls=True)
        )
    nested = depth > 1 and not isinstance(table, EvalSet)
    for _ in range(1, depth):
        values = values.list.eval(pl.element().explode(empty_as_null=False))
    if nested and len(values.explode(empty_as_null=False).drop_nulls()):  # empty lists have a type, but no text
        hint = f"`join: {{{name}: ' '}}` makes one text of each inner list"
        raise SourceError(where, f"column '{name}' holds lists of lists, not texts", hint)
    return values


def _change_inside(values: pl.Series, depth: int, change: Callable[[pl.Expr], Any]) -> pl.Series:
    """Return a column with `change` applied to what is inside of so many levels of lists; arrays on the way become lists."""

    def at(each: pl.Expr, kind: Any, level: int) -> Any:
        if not level:
            return change(each)
        lists = each.arr.to_list() if isinstance(kind, pl.Array) else each
        return lists.list.eval(at(pl.element(), kind.inner, level - 1))

    return values.to_frame().select(at(pl.col(values.name), values.dtype, depth).alias(values.name))[values.name]


def _title_and_text(record: pl.Expr, parts: list[str]) -> pl.Expr:
    """Return the text of a record {title, text}, null if both are blank."""
    texts = [record.struct.field(name).cast(pl.String) for name in ("title", "text") if name in parts]
    given = [pl.when(text.str.contains(r"\S")).then(text) for text in texts]
    both = pl.concat_str(given, separator="\n", ignore_nulls=True)
    return pl.when(both.str.contains(r"\S")).then(both)


# --- labels and ids ---


def labels_by_form(labels: Mapping[str, str]) -> dict[str, str]:
    """Return what labels mean, by the forms in which they occur: 1.0 as 1, and true in any letter case."""
    keys = _texts_as_ids("labels", pl.Series("labels", list(labels), dtype=pl.String)).to_list()
    known = dict(zip(keys, labels.values(), strict=True))
    truths = [key for key in known if key.lower() in ("true", "false")]
    return {form: known[key] for key in truths for form in (key.lower(), key.title(), key.upper())} | known


def _texts_as_ids(where: str, values: pl.Series) -> pl.Series:
    """Return labels or ids that are texts with `1.0` as `1`, and with 1e+05, a large float, as 100000."""
    values = values.str.replace(r"^(-?\d+)\.0+$", "${1}").replace("-0", "0")
    large = values.str.contains(LARGE_FLOAT).fill_null(False)
    if not large.any():
        return values
    floats = values.filter(large).cast(pl.Float64)
    if (floats.abs() > EXACT_BELOW[pl.Float64]).any():
        raise _inexact_ids(where, values.name, values.filter(large).filter(floats.abs() > EXACT_BELOW[pl.Float64]))
    whole = floats == floats.round()
    places = large.arg_true().filter(whole)
    return values.scatter(places, floats.filter(whole).cast(pl.Int64).cast(pl.String)) if len(places) else values


# --- errors ---


def _not_a_record(where: str, column: str, row: int, value: object, parts: str) -> SourceError:
    what = f"column '{column}' holds '{str(value)[:60]}' (row {row}), not a record with '{parts}'"
    return SourceError(where, what, "map columns that are of one kind throughout")


def _unexpected_record(where: str, column: str, row: int, parts: list[str]) -> SourceError:
    hint = "map a column of texts" if parts in ([], [column]) else f"map one of their parts: {listed(parts, 8)}"
    return SourceError(where, f"column '{column}' holds records (row {row}), not texts", hint)


def _refuse_maps(where: str, name: str, kind: Any) -> None:
    if kind.is_nested() and not isinstance(kind, pl.Struct):
        raise SourceError(where, f"column '{name}' holds maps, not texts or records", "write records, or a column of texts")


def _inexact_ids(where: str, name: str, values: pl.Series) -> SourceError:
    seen = listed(values.unique(maintain_order=True).to_list(), 2)
    what = f"column '{name}' holds {seen} as floats, which are not exact that far: different ids may be equal"
    return SourceError(where, what, "write labels and ids as whole numbers or as texts")
