"""Tuples with equal queries become one tuple: the first keeps its place and id, and has the positives and negatives of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from curation.core.record import dropped_frame
from curation.core.texts import Texts
from curation.shape.columns import EVIDENCE_CHARS, GRADES
from curation.shape.numbered import LISTS


class Merged:
    """The tuples of a source after those with equal queries (equal keys) are merged, frame by frame.

    In memory are a few numbers per tuple, and the lists of tuples whose query occurs again.
    """

    def __init__(self, frames: Callable[[], Iterator[pl.DataFrame]], texts: Texts, source: str, no_echo: bool = True) -> None:
        """Find the equal queries; `frames` returns NUMBERED tuples, with or without GRADES, the same each time."""
        self._frames, self._texts, self._source = frames, texts, source
        keys = np.concatenate([np.zeros(0, np.uint32), *(texts.key_number[frame["query"].to_numpy()] for frame in frames())])
        places = np.arange(len(keys), dtype=np.uint32)
        first = np.zeros(len(texts), np.uint32)
        first[keys[::-1]] = places[::-1]  # written from the end, so the first place is written last
        self._survivor = first[keys]  # (tuples,) u32: the place of the first tuple with this query
        self._later = self._survivor != places
        self.count = int(self._later.sum())  # of tuples that are merged into earlier ones
        self.removed = 0  # negatives that equal a positive of another tuple with the same query
        several = np.zeros(len(keys), bool)
        several[self._survivor[self._later]] = True
        self._again = several[self._survivor]  # which tuples have a query that others have too
        self._united = self._unite(no_echo) if self.count else pl.DataFrame()

    def tuples(self) -> Iterator[pl.DataFrame]:
        """Yield NUMBERED tuples with distinct queries, without GRADES. Of each list, equal texts stay once."""
        start = 0
        for frame in self._frames():
            some, start = slice(start, start + len(frame)), start + len(frame)
            frame = frame.drop(GRADES, strict=False)
            if self.count:
                frame = frame.with_columns(pl.col(LISTS).list.unique(maintain_order=True))
            if self._again[some].any():
                bounds = np.searchsorted(self._united["first"].to_numpy(), [some.start, some.stop])
                firsts = pl.Series(self._again[some] & ~self._later[some])
                united = frame.filter(firsts).with_columns(self._united[name][slice(*bounds)] for name in LISTS)
                places = pl.int_range(len(frame), dtype=pl.UInt32, eager=True)
                alone = pl.Series(~self._again[some])
                both = [
                    frame.filter(alone).with_columns(place=places.filter(alone)),
                    united.with_columns(place=places.filter(firsts)),
                ]
                frame = pl.concat(both).sort("place").drop("place")
            yield frame

    def dropped(self) -> Iterator[pl.DataFrame]:
        """Yield the merged tuples as DROPPED; there is at least one frame."""
        firsts, start = np.flatnonzero(self._again & ~self._later), 0
        yield dropped_frame(self._source, "merge", pl.Series([], dtype=pl.String), "same_query")
        ids = [pl.Series([], dtype=pl.String)]
        for frame in self._frames() if self.count else ():
            some, start = slice(start, start + len(frame)), start + len(frame)
            ids.append(frame["id"].filter(pl.Series(self._again[some] & ~self._later[some])))
        survivors, start = pl.concat([one.alias("id") for one in ids]), 0
        for frame in self._frames() if self.count else ():
            some, start = slice(start, start + len(frame)), start + len(frame)
            gone = frame.filter(pl.Series(self._later[some]))
            shown = self._texts.at(gone["query"]).str.slice(0, EVIDENCE_CHARS)
            kept = survivors.gather(np.searchsorted(firsts, self._survivor[some][self._later[some]]))
            yield dropped_frame(self._source, "merge", gone["id"], "same_query", shown, kept, self._source)

    def _unite(self, no_echo: bool) -> pl.DataFrame:
        """Return first (the place of a tuple) and its lists, for the tuples whose query occurs again, in order."""
        parts, start = [], 0
        for frame in self._frames():
            some, start = slice(start, start + len(frame)), start + len(frame)
            first = pl.Series("first", self._survivor[some])
            parts.append(frame.select(*LISTS, *([GRADES] if GRADES in frame.columns else [])).with_columns(first))
            parts[-1] = parts[-1].filter(pl.Series(self._again[some]))
        company = pl.concat(parts)
        # positives and negatives are united in order; positives with grades are sorted by these
        united = company.group_by("first", maintain_order=True).agg(
            pl.col(name).explode(empty_as_null=False).drop_nulls().unique(maintain_order=True) for name in LISTS
        )
        if GRADES in company.columns:
            long = company.select("first", "positives", GRADES).explode("positives", GRADES).drop_nulls("positives")
            long = long.sort("first", GRADES, descending=[False, True], nulls_last=True, maintain_order=True)
            best_first = long.group_by("first", maintain_order=True).agg(pl.col("positives").unique(maintain_order=True))
            united = united.drop("positives").join(best_first, on="first", how="left", maintain_order="left")
            united = united.with_columns(pl.col("positives").fill_null([]))
        long = united.select("first", pl.col("negatives").alias("text")).explode("text", empty_as_null=False).drop_nulls()
        if no_echo and len(long):
            others = long.filter(~equals_a_positive(united, long, self._texts, "first"))
            self.removed = len(long) - len(others)
            lists = others.group_by("first", maintain_order=True).agg(pl.col("text").alias("negatives"))
            united = united.drop("negatives").join(lists, on="first", how="left", maintain_order="left")
            united = united.with_columns(pl.col("negatives").fill_null([]))
        return united.sort("first")


def equals_a_positive(tuples: pl.DataFrame, negatives: pl.DataFrame, texts: Texts, by: str) -> pl.Series:
    """Return which negatives (`by`, text) have the form of a positive of their tuple; `tuples` have `by` and positives."""
    there = tuples.join(negatives, on=by, how="semi").select(by, pl.col("positives").alias("text"))
    there = there.explode("text", empty_as_null=False).drop_nulls("text")
    form = pl.Series("form", texts.form_number)
    positives = there.select(by, form.gather(there["text"])).unique()
    marked = negatives.select(by, form.gather(negatives["text"])).join(
        positives.with_columns(own=True), on=[by, "form"], how="left", maintain_order="left"
    )
    return marked["own"].fill_null(False)
