"""Near-duplicates and evaluation texts among texts in memory, without a build: the same rules as `curate build`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from os.path import isdir
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.clean.decontaminate import contaminated, take_out
from curation.clean.overlap_index import write_index
from curation.clean.overlap_texts import EVAL_TEXTS, QUERY, evaluation_texts
from curation.clean.pairs import near, slices, without_siblings
from curation.core.errors import SourceError, UserError, a_kind, listed
from curation.core.python_data import is_dataset, rows_of_texts, text_columns, texts_of_column, texts_of_list
from curation.core.tables import read_parquet
from curation.engine.local import Here, processors
from curation.recipe.evaluation import Decontaminate, EvalSet
from curation.shape.columns import TUPLES
from curation.shape.numbered import numbered

DUPLICATES = pl.Schema(
    {"row": pl.Int64(), "text": pl.String(), "kept_row": pl.Int64(), "kept_text": pl.String(), "score": pl.Float64()}
)
OVERLAPS = pl.Schema(
    {
        "row": pl.Int64(),
        "column": pl.String(),  # of the Dataset; null for a list of texts
        "text": pl.String(),  # the whole text that matches
        "found_in": pl.String(),  # the evaluation set
        "found_id": pl.String(),  # the id, or the row, of its text
        "rule": pl.String(),  # equal, chars (character 8-grams) or words (13-grams)
        "score": pl.Float64(),  # share of the evaluation text that is in ours
        "evidence": pl.String(),  # what both have in common
    }
)


def near_duplicates(data: Any, threshold: float, column: str | None = None) -> pl.DataFrame:
    """Return DUPLICATES: the rows to drop, each with a kept row that it matches.

    A row is dropped only if it matches an earlier row that is kept, so nothing chains: of a ~ b ~ c, where a and c differ, a and
    c stay.

    Args:
        data: texts, or a Dataset.
        threshold: the lowest Jaccard similarity of two texts' shingles that makes them duplicates, in (0, 1].
        column: the Dataset's column to compare; by default its first column of texts.

    Raises:
        UserError: a threshold out of range, or a column that does not exist.
        SourceError: a value that is not a text.
    """
    if not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise UserError("threshold", f"must be above 0 and at most 1, and is {threshold}")
    if is_dataset(data):
        name = column or next(iter(text_columns(data)), None)
        if name is None:
            raise SourceError("dataset", "has no column of texts", f"its columns are {listed(data.column_names)}")
        texts = texts_of_column(data, name)
    else:
        texts = texts_of_list("texts", data)
    first_row = texts.to_frame("text").with_row_index("row").unique("text", keep="first", maintain_order=True)
    distinct = first_row["text"]
    with tempfile.TemporaryDirectory(prefix="tuplesmith-") as folder:
        found = without_siblings(near(slices(distinct), threshold, Path(folder), Here(threads=processors())), distinct.gather)
    # visit the forms in order; the best kept match is the one with the highest score, then the earliest
    kept_form = found.form.astype(np.int64)
    score = np.ones(len(kept_form))
    order = np.lexsort((found.left, -found.score, found.right))
    for left, right, value in zip(
        found.left[order].tolist(), found.right[order].tolist(), found.score[order].tolist(), strict=True
    ):
        if value >= threshold and kept_form[right] == right and kept_form[left] == left:
            kept_form[right], score[right] = left, value
    matched = kept_form[found.form]
    per_text = pl.DataFrame({"text": distinct, "kept": matched, "score": score[found.form]})
    rows = texts.to_frame("text").with_row_index("row").join(per_text, on="text", how="left", maintain_order="left")
    kept = pl.DataFrame({"kept": np.arange(len(distinct)), "kept_row": first_row["row"], "kept_text": distinct})
    rows = rows.join(kept, on="kept", how="left", maintain_order="left").filter(pl.col("row") != pl.col("kept_row"))
    return rows.select(DUPLICATES.names()).cast(DUPLICATES)


def overlaps(data: Any, against: Any, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return OVERLAPS: the best match of each text with each evaluation set.

    Args:
        data: texts, or a Dataset.
        against: an evaluation set or several: folders in BEIR's layout, Datasets, or lists of texts. Documents of a folder that
            no query needs are not looked for, as in `curate build`.
        columns: the Dataset's columns to look at; by default all that hold texts or lists of texts.

    Raises:
        SourceError: an evaluation set cannot be read or holds no text, or a value is not a text.
        UserError: a column that does not exist.
    """
    columns = [columns] if isinstance(columns, str) else columns
    if is_dataset(data) and not (list(text_columns(data)) if columns is None else columns):
        raise SourceError("dataset", "has no column of texts", f"its columns are {listed(data.column_names)}")
    ours, sets = rows_of_texts("texts", data, columns), evaluation_sets(against)

    # one tuple per text, whose query it is
    nothing = pl.lit([], pl.List(pl.String))
    tuples = ours.select(
        pl.int_range(pl.len()).alias("row"),
        pl.int_range(pl.len()).cast(pl.String).alias("id"),
        pl.col("text").alias("query"),
        nothing.alias("positives"),
        nothing.alias("negatives"),
        pl.lit("").alias("label"),
    )
    numbers, none, once = numbered(tuples.select(TUPLES.names()).cast(TUPLES), pl.Series([], dtype=pl.String))

    def frames() -> Iterator[pl.DataFrame]:
        for name, one in sets:
            if isinstance(one, Path):
                beir = EvalSet.model_validate({"reader": "beir", "files": str(one.absolute()), "name": name})
                yield from evaluation_texts(beir, Path())
            else:
                texts = one.alias("text").to_frame().with_row_index("eval_id")
                yield texts.select(pl.lit(name).alias("task"), "eval_id", pl.lit(QUERY).alias("role"), "text").cast(EVAL_TEXTS)

    with tempfile.TemporaryDirectory(prefix="tuplesmith-") as place:
        folder = Path(place)
        (folder / "decontaminate").mkdir()
        write_index(folder / "decontaminate", frames(), pl.Series([], dtype=pl.String))
        matches = contaminated(folder / "decontaminate", once, np.arange(len(once)), Here(threads=processors()))
        take_out(Decontaminate(), folder / "decontaminate", folder, numbers, none, once, matches, "given")
        found = read_parquet(folder / "contamination.parquet").filter(pl.col("action") == "dropped")
    of_ours = ours.select("row", "column", "text")[found["id"].cast(pl.Int64)]
    found = pl.concat([of_ours, found.drop("source", "text", strict=False)], how="horizontal")
    return found.rename({"task": "found_in", "eval_id": "found_id"}).select(OVERLAPS.names()).cast(OVERLAPS)


def evaluation_sets(against: Any) -> list[tuple[str, Any]]:
    """Return (name, folder or texts) of each evaluation set.

    Raises:
        SourceError: a folder does not exist, a set holds no text, or there is no set.
    """
    alone = isinstance(against, str | Path) or is_dataset(against)
    against = [against] if alone else against
    if not isinstance(against, Iterable):
        raise SourceError("against", f"is {a_kind(against)}", "give a folder, a Dataset or a list of texts")
    against = list(against)
    # texts alone are one set, unless one of them is a folder, or all look like one: a misspelt folder protects from nothing
    texts = against and not alone and all(isinstance(one, str) for one in against)
    if texts and not (any(map(isdir, against)) or all(re.fullmatch(r"\S*/\S*", one) for one in against)):
        against = [against]
    sets: list[tuple[str, Any]] = []
    for number, one in enumerate(against):
        if isinstance(one, str | Path):
            if not isdir(one):
                hint = "name a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv; texts are a list in the list"
                raise SourceError(str(one)[:200], "no such folder", hint)
            sets.append((str(one), Path(one)))
        elif is_dataset(one):
            columns = [rows_of_texts("", one, [name])["text"] for name in text_columns(one)]
            sets.append((f"against[{number}]", pl.concat([pl.Series("text", [], dtype=pl.String), *columns])))
        else:
            sets.append((f"against[{number}]", texts_of_list(f"against[{number}]", one)))
    for name, one in sets:
        if not isinstance(one, Path) and not one.str.contains(r"\S").any():
            raise SourceError(name, "holds no text, so nothing would be kept clear of it")
    if not sets:
        raise SourceError("against", "names no evaluation set", "give a folder, a Dataset or a list of texts")
    return sets
