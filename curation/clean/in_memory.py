"""Near-duplicates and evaluation texts among texts in memory, without a build: the same rules as `curate build`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from curation.clean.decontaminate import contaminated, take_out
from curation.clean.overlap_index import write_index
from curation.clean.overlap_texts import EVAL_TEXTS, QUERY, evaluation_texts
from curation.clean.pairs import near, slices, without_siblings
from curation.core.tables import read_parquet
from curation.recipe.evaluation import Decontaminate, EvalSet
from curation.shape.columns import TUPLES
from curation.shape.numbered import numbered

DUPLICATES = pl.Schema(
    {"row": pl.Int64(), "text": pl.String(), "kept_row": pl.Int64(), "kept_text": pl.String(), "score": pl.Float64()}
)
OVERLAPS = pl.Schema(
    {
        "row": pl.Int64(),
        "text": pl.String(),  # the whole text of the row that matches
        "found_in": pl.String(),  # the evaluation set
        "found_id": pl.String(),  # the id, or the row, of its text
        "rule": pl.String(),  # equal, chars (character 8-grams) or words (13-grams)
        "score": pl.Float64(),  # share of the evaluation text that is in ours
        "evidence": pl.String(),  # what both have in common
    }
)


def near_duplicates(texts: pl.Series, threshold: float) -> pl.DataFrame:
    """Return DUPLICATES: the rows to drop, each with a kept row that it matches.

    A row is dropped only if it matches an earlier row that is kept, so nothing chains: of a ~ b ~ c, where a and c differ, a and
    c stay.

    Args:
        texts: no nulls.
        threshold: the lowest Jaccard similarity of two texts' shingles that makes them duplicates, in (0, 1].
    """
    first_row = texts.to_frame("text").with_row_index("row").unique("text", keep="first", maintain_order=True)
    distinct = first_row["text"]
    with tempfile.TemporaryDirectory(prefix="tuplesmith-") as folder:
        found = without_siblings(near(slices(distinct), threshold, Path(folder)), distinct.gather)
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


def overlaps(texts: pl.Series, against: Iterable[tuple[str, Path | pl.Series]]) -> pl.DataFrame:
    """Return OVERLAPS: the best match of each text with each evaluation set.

    Args:
        texts: no nulls.
        against: (name, a folder in BEIR's layout or the texts of an evaluation set). Documents of a folder that no query needs
            are not looked for, as in `curate build`.

    Raises:
        SourceError: an evaluation set cannot be read, or holds no text.
    """
    nothing = pl.lit([], pl.List(pl.String))
    tuples = texts.alias("query").to_frame().with_row_index("row")
    tuples = tuples.with_columns(
        pl.col("row").cast(pl.String).alias("id"),
        nothing.alias("positives"),
        nothing.alias("negatives"),
        pl.lit("").alias("label"),
    )
    numbers, none, once = numbered(tuples.select(TUPLES.names()).cast(TUPLES), pl.Series([], dtype=pl.String))

    def frames() -> Iterator[pl.DataFrame]:
        for name, one in against:
            if isinstance(one, Path):
                yield from evaluation_texts(
                    EvalSet.model_validate({"reader": "beir", "files": str(one.absolute()), "name": name}), Path()
                )
            else:
                numbered = one.alias("text").to_frame().with_row_index("eval_id")
                yield numbered.select(pl.lit(name).alias("task"), "eval_id", pl.lit(QUERY).alias("role"), "text").cast(EVAL_TEXTS)

    with tempfile.TemporaryDirectory(prefix="tuplesmith-") as place:
        folder = Path(place)
        (folder / "decontaminate").mkdir()
        write_index(folder / "decontaminate", frames(), pl.Series([], dtype=pl.String))
        matches = contaminated(folder / "decontaminate", once, np.arange(len(once)))
        take_out(Decontaminate(), folder, numbers, none, once, matches, "given")
        found = read_parquet(folder / "contamination.parquet").filter(pl.col("action") == "dropped")
    row = found["id"].cast(pl.Int64)
    found = found.with_columns(row.alias("row"), texts.gather(row).alias("text"))
    return found.rename({"task": "found_in", "eval_id": "found_id"}).select(OVERLAPS.names()).cast(OVERLAPS)
