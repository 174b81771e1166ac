"""Tuples that hold the numbers of texts: between TUPLES, which hold the texts, and the tables that are published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from curation.core.tables import lists, read_frames, read_parquet
from curation.core.texts import Facts, Texts, digests, distinct, facts_of
from curation.shape.columns import TUPLES

NUMBERED = pl.Schema({**TUPLES, "query": pl.UInt32(), "positives": pl.List(pl.UInt32), "negatives": pl.List(pl.UInt32)})
LISTS = ("positives", "negatives")


def numbered(tuples: pl.DataFrame, corpus: pl.Series) -> tuple[pl.DataFrame, np.ndarray, Texts]:
    """Return (TUPLES as NUMBERED, the texts of a corpus as numbers, the distinct texts of both)."""
    parts = [tuples["query"], *(tuples[name].explode(empty_as_null=False).drop_nulls() for name in LISTS), corpus]
    (query, *values, extra), once, facts = numbers_of(parts)
    columns = dict(zip(LISTS, map(_lists, (tuples[name] for name in LISTS), values), strict=True))
    return tuples.with_columns(query=pl.Series(query), **columns), extra, Texts.of(once, facts)


def numbers_of(columns: list[pl.Series]) -> tuple[list[np.ndarray], pl.Series, Facts]:
    """Return (the numbers of the texts of each column (n,) u32, the distinct texts of all, their facts); nulls are left out."""
    every = pl.concat([texts.drop_nulls().alias("text") for texts in columns])
    raw = digests(every)
    places, number = distinct(raw)
    once = every.gather(places)
    ends = np.cumsum([len(texts) - texts.null_count() for texts in columns])
    return np.split(number, ends[:-1]), once, facts_of(once, raw[places])


def placed(values: np.ndarray | pl.Series, like: pl.Series) -> pl.Series:
    """Return the values one after the other in the places where `like` is not null; the others are null."""
    at = pl.when(like.is_not_null()).then(like.is_not_null().cum_sum() - 1)
    return pl.Series(like.name, values).gather(pl.select(at).to_series())


def with_own_texts(tuples: pl.DataFrame, texts: Texts) -> tuple[pl.DataFrame, Texts]:
    """Return NUMBERED tuples with the numbers of their own texts, and these texts, in memory."""
    used = first_occurrences(np.concatenate(role_texts([tuples])))
    place = np.empty(len(texts), np.uint32)
    place[used] = np.arange(len(used), dtype=np.uint32)
    return renumbered(tuples, place), Texts.of(texts.at(used), texts.facts(used))


def renumbered(tuples: pl.DataFrame, number: np.ndarray) -> pl.DataFrame:
    """Return NUMBERED tuples with `number[text]` in place of each text."""
    columns = {name: _lists(tuples[name], number[flat(tuples, name)]) for name in LISTS}
    return tuples.with_columns(query=pl.Series(number[tuples["query"].to_numpy()]), **columns)


def spelled(tuples: pl.DataFrame, texts: Texts) -> pl.DataFrame:
    """Return NUMBERED tuples as TUPLES."""
    columns = {name: _lists(tuples[name], texts.at(flat(tuples, name))) for name in LISTS}
    return tuples.with_columns(query=texts.at(tuples["query"]), **columns).select(TUPLES.names()).cast(TUPLES)


def _lists(like: pl.Series, values: np.ndarray | pl.Series) -> pl.Series:
    """Return lists as long as those of `like`, of the next values each."""
    return lists(values, like.list.len().to_numpy().astype(np.int64), None)


def flat(tuples: pl.DataFrame, name: str) -> np.ndarray:
    """Return all texts of a list column, (n,) u32."""
    return np.asarray(tuples[name].explode(empty_as_null=False).drop_nulls().to_numpy())


def source_texts(stage: Path, corpus: np.ndarray) -> np.ndarray:
    """Return the texts of the tuples in a folder and of a corpus, each once, in order: queries, positives, negatives, corpus."""
    roles = ("query", *LISTS)
    return first_occurrences(np.concatenate([*role_texts(read_frames(stage, "tuples", list(roles)), roles), corpus]))


def role_texts(frames: Iterable[pl.DataFrame], roles: tuple[str, ...] = ("query", *LISTS)) -> list[np.ndarray]:
    """Return the texts of tuples, for each role (n,) u32."""
    found: dict[str, list[np.ndarray]] = {role: [np.zeros(0, np.uint32)] for role in roles}
    for frame in frames:
        for role in roles:
            found[role].append(frame[role].to_numpy() if role == "query" else flat(frame, role))
    return [np.concatenate(found[role]) for role in roles]


def corpus_texts(stage: Path) -> np.ndarray:
    """Return the texts of a source's corpus, (n,) u32."""
    return np.asarray(read_parquet(stage / "corpus.parquet")["text"].to_numpy())


def first_occurrences(numbers: np.ndarray, same: np.ndarray | None = None) -> np.ndarray:
    """Return each number once, in order of first appearance; with `same`, the first of those for which it is equal."""
    if not len(numbers):
        return numbers
    as_one = numbers if same is None else same[numbers]
    places = np.arange(len(numbers), dtype=np.uint32)
    place = np.zeros(int(as_one.max()) + 1, np.uint32)
    place[as_one[::-1]] = places[::-1]  # written from the end, so the first occurrence is written last
    return np.asarray(numbers[place[as_one] == places])


def names_any(tuples: pl.DataFrame, marked: np.ndarray, lists_of_texts: tuple[str, ...] = LISTS) -> np.ndarray:
    """Return which tuples (n,) bool have a query, or a text in these lists, that is `marked`, (texts,) bool."""
    found = marked[tuples["query"].to_numpy()]
    for name in lists_of_texts:
        at = np.repeat(np.arange(len(tuples)), tuples[name].list.len().to_numpy())
        found = found | (np.bincount(at, marked[flat(tuples, name)], minlength=len(tuples)) > 0)
    return np.asarray(found)


def replaced(frames: Iterable[pl.DataFrame], marked: np.ndarray, by: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield frames of a table with other rows in place of those `marked`, (rows,) bool.

    `by` has the columns of the frames and `place`, u64 and ascending: the place of the row that it replaces. Rows that are
    marked and not in `by` are left out.
    """
    places, start = by["place"].to_numpy(), 0
    for frame in frames:
        end = start + len(frame)
        if marked[start:end].any():
            low, high = np.searchsorted(places, [start, end])
            kept = frame.with_columns(place=pl.int_range(start, end, dtype=pl.UInt64, eager=True))
            kept = kept.filter(pl.Series(~marked[start:end]))
            frame = pl.concat([kept, by[low:high].select(kept.columns)]).sort("place").drop("place")
        yield frame
        start = end
