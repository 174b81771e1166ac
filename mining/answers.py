"""Which passages hold an answer of a query, word for word."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl

from curation.core import tables
from curation.core.text import normalised
from mining.copies import WORD

FILE = "answers.parquet"  # of a curated source: `key` of a query, `answers` as a list


def answers_of(curated: Path) -> pl.DataFrame:
    """Return a row for each answer of a source, `key` of its query and `answer` in words; none where the source names none."""
    if not (curated / FILE).exists():
        return pl.DataFrame(schema={"key": pl.Binary, "answer": pl.String})
    lists = tables.read_parquet(curated / FILE).explode("answers", empty_as_null=False)
    return lists.select("key", _in_words(lists["answers"]).alias("answer")).drop_nulls().unique(maintain_order=True)


def answered(answers: pl.DataFrame, keys: pl.Series, ids: np.ndarray, texts: Callable[[np.ndarray], Iterable[str]]) -> np.ndarray:
    """Return (q, k) bool: whether a passage holds an answer of its row's query; letter case and punctuation do not matter.

    Args:
        answers: as `answers_of`.
        keys: (q,) of the rows' queries.
        ids: (q, k) pids; -1 stands for none.
        texts: gives the texts of ascending pids.
    """
    found = np.zeros(ids.shape, bool)
    asked = pl.DataFrame({"key": keys}).with_row_index("row").join(answers, on="key").select("row", "answer")
    rows = asked["row"].unique().sort().to_numpy()
    if not ids.size or not len(rows):
        return found
    needed = np.unique(np.maximum(ids[rows], 0))
    passages = pl.DataFrame({"pid": needed, "text": _in_words(pl.Series(list(texts(needed)), dtype=pl.String))})
    columns = np.arange(ids.shape[1])
    table = pl.DataFrame(
        {"row": np.repeat(rows, len(columns)), "column": np.tile(columns, len(rows)), "pid": ids[rows].reshape(-1)}
    )
    both = table.join(asked, on="row").join(passages, on="pid")
    hits = both.filter(pl.col("text").str.contains(pl.col("answer"), literal=True))
    found[hits["row"].to_numpy(), hits["column"].to_numpy()] = True
    return found


def _in_words(texts: pl.Series) -> pl.Series:
    """Return texts as words with a space before and after each, so that only whole words are found; null without any."""
    words = normalised(texts).str.extract_all(WORD).list.join(" ")
    return pl.select(pl.when(words != "").then(" " + words + " ")).to_series()
