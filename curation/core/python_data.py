"""What callers of the Python API give and get: lists of texts, and a `datasets.Dataset`, which is imported only to make one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import polars as pl

from curation.core.errors import SourceError, UserError, a_kind, did_you_mean, listed

Dataset: TypeAlias = Any  # datasets.Dataset
UNPAIRED = re.compile("[\ud800-\udfff]")  # of a surrogate pair


def is_dataset(data: Any) -> bool:
    """Return whether this is a Dataset, and not a dictionary of its splits."""
    return hasattr(data, "column_names") and hasattr(data, "select") and isinstance(data.column_names, list)


def text_columns(dataset: Dataset) -> Iterator[str]:
    """Yield the columns of a Dataset that hold texts, or lists of texts."""
    for name, feature in dataset.features.items():
        inner = getattr(feature, "feature", feature)
        if getattr(inner, "dtype", "") in ("string", "large_string"):
            yield name


def texts_of_column(dataset: Dataset, name: str, nulls: bool = False, lists: bool = False) -> pl.Series:
    """Return a column of a Dataset as texts, or with `lists` as lists of texts."""
    if not isinstance(name, str):
        raise UserError(repr(name), f"is {a_kind(name)}, not the name of a column", f"columns are {listed(dataset.column_names)}")
    if name not in dataset.column_names:
        hint = f"its columns are {listed(dataset.column_names)}"
        raise UserError("dataset", f"has no column '{name}'{did_you_mean(name, dataset.column_names)}", hint)
    column: Any = pl.from_arrow(dataset.select_columns([name]).with_format("arrow")[:])
    texts: pl.Series = column[name]
    if texts.dtype == pl.Null:
        texts = texts.cast(pl.String)
    if texts.dtype != pl.String and not (lists and texts.dtype == pl.List(pl.String)):
        raise SourceError("dataset", f"column '{name}' holds {texts.dtype}, not texts", "choose another column")
    if not nulls and texts.null_count():
        row = texts.is_null().arg_true()[0]
        raise SourceError("dataset", f"row {row} has no text in column '{name}'", "remove such rows, with dataset.filter")
    return texts


def texts_of_list(where: str, texts: Sequence[str]) -> pl.Series:
    """Return a list of texts as a column; `where` names the argument in errors."""
    if isinstance(texts, str):
        raise SourceError(where, "is one text", "give a list of texts")
    if len(columns := list(getattr(texts, "columns", ()) or getattr(texts, "column_names", ()))):
        what = f"is {a_kind(texts)} with columns {listed(columns)}"
        raise SourceError(where, what, f"give one column of it as a list, such as list({where}[{str(columns[0])!r}])")
    if isinstance(texts, Mapping) or not (hasattr(texts, "__len__") and hasattr(texts, "__getitem__")):
        raise SourceError(where, f"is {a_kind(texts)}", "give a list of texts, or a datasets.Dataset")
    found = list(texts)
    for row, text in enumerate(found):
        if not isinstance(text, str):
            raise SourceError(where, f"entry {row} is {a_kind(text)}, not a text")
        if not text.isascii() and UNPAIRED.search(text):
            raise SourceError(where, f"entry {row} holds half of a surrogate pair, which is not text")
    return pl.Series("text", found, dtype=pl.String)


def rows_of_texts(where: str, data: Any, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return row, column (null for a list) and text: a list of texts, or texts and lists of texts of a Dataset, without nulls."""
    if not is_dataset(data):
        return texts_of_list(where, data).to_frame().with_row_index("row").with_columns(column=pl.lit(None, pl.String))
    tables = [pl.DataFrame(schema={"row": pl.UInt32, "text": pl.String, "column": pl.String})]
    for name in text_columns(data) if columns is None else columns:
        texts = texts_of_column(data, name, nulls=True, lists=True)
        table = texts.alias("text").to_frame().with_row_index("row").with_columns(column=pl.lit(name))
        tables.append(table.explode("text", empty_as_null=False) if isinstance(texts.dtype, pl.List) else table)
    return pl.concat(tables).drop_nulls("text").sort("row", maintain_order=True)


def without_rows(data: Any, rows: set[int]) -> Any:
    """Return a Dataset or a list of texts without some rows."""
    kept = [row for row in range(len(data)) if row not in rows]
    return data.select(kept) if is_dataset(data) else [data[row] for row in kept]


def to_dataset(table: pl.DataFrame) -> Dataset:
    """Return a polars table as a Dataset."""
    import datasets

    names = {pl.String: "string", pl.Float32: "float32", pl.Float64: "float64", pl.Int64: "int64"}
    names |= {pl.UInt8: "uint8", pl.UInt16: "uint16", pl.UInt32: "uint32"}

    def feature(kind: Any) -> Any:
        if isinstance(kind, pl.List):
            return datasets.Sequence(feature(kind.inner))
        return datasets.Value(names[kind.base_type()])

    features = datasets.Features({name: feature(kind) for name, kind in table.schema.items()})
    return datasets.Dataset.from_dict(table.to_dict(as_series=False), features=features)
