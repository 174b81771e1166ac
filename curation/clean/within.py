"""Near-duplicates of one source: redundant queries are dropped; texts that match and stay share a group.

A query is dropped if a kept query matches it and has all its positives, up to near-duplicates of these. A query with another
positive stays: most such pairs differ by a year or a number. Passages always stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.pairs import Near, families
from curation.core.characters import INVISIBLE
from curation.core.errors import SourceError
from curation.core.record import dropped_frame, keys_of
from curation.core.tables import read_parquet, read_table
from curation.recipe.job import Job
from curation.recipe.manifest import Dedup
from curation.shape.columns import EVIDENCE_CHARS

ODD_SPACES = r"[\xA0\x{2000}-\x{200A}\x{202F}\x{205F}]"
EXAMPLE_CHARS = 60  # of a query in an error


class Links(NamedTuple):
    """Which texts of a source match."""

    texts: pl.DataFrame  # text; number, form, family u32: texts linked at the threshold, directly or not, have one family
    found: Near  # by number; between the texts of the table


def source_texts(stage: Path) -> pl.Series:
    """Return the distinct texts of a shaped source in order: queries, positives, negatives, corpus."""
    tuples = read_table(stage, "tuples", ["query", "positives", "negatives"])
    return distinct_texts(tuples, read_parquet(stage / "corpus.parquet")["text"])


def distinct_texts(tuples: pl.DataFrame, corpus: pl.Series) -> pl.Series:
    """Return the distinct texts of tuples and a corpus, in order."""
    lists = [tuples[name].explode(empty_as_null=False) for name in ("positives", "negatives")]
    return pl.concat([tuples["query"], *lists, corpus]).drop_nulls().unique(maintain_order=True).alias("text")


def links_of(job: Job, tuples: pl.DataFrame, corpus: pl.Series) -> Links:
    """Return which of a source's remaining texts match, from the pairs that the stage `near` found among all its texts."""
    assert job.dedup
    stage = job.build / "near" / job.source.name
    pairs, form = read_parquet(stage / "pairs.parquet"), read_parquet(stage / "form.parquet")["form"].cast(pl.UInt32)
    found = Near(form.to_numpy(), *(pairs[name].to_numpy() for name in ("left", "right", "score")))
    texts, remaining = source_texts(job.build / "shaped" / job.source.name), distinct_texts(tuples, corpus)
    return link(texts, found, remaining, job.dedup.threshold)


def link(texts: pl.Series, found: Near, remaining: pl.Series, threshold: float) -> Links:
    """Return which of the `remaining` texts match; `found` numbers all `texts`."""
    numbered = pl.DataFrame({"text": texts, "form": found.form}).with_row_index("number")
    numbered = numbered.join(remaining.alias("text").to_frame(), on="text", how="semi", maintain_order="left")
    alive = np.zeros(len(texts), bool)
    alive[numbered["form"].to_numpy()] = True
    kept = alive[found.left] & alive[found.right]
    found = Near(found.form, found.left[kept], found.right[kept], found.score[kept])
    family = families(found, threshold)[numbered["number"].to_numpy()]
    return Links(numbered.with_columns(pl.Series("family", family)), found)


def edges_of(links: Links) -> pl.DataFrame:
    """Return left, right (keys of the texts) and score of every verified pair, also of pairs below the threshold."""
    firsts = links.texts.unique("form", keep="first", maintain_order=True)
    firsts = firsts.select("form", keys_of(firsts["text"]))
    edges = pl.DataFrame({"left": links.found.left, "right": links.found.right, "score": links.found.score})
    for name in ("left", "right"):
        edges = edges.join(firsts, left_on=name, right_on="form", maintain_order="left").drop(name).rename({"key": name})
    return edges.select("left", "right", "score")


def drop_queries(
    tuples: pl.DataFrame, links: Links, settings: Dedup, source: str, by_label: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (tuples kept, tuples dropped as near-duplicates, a DROPPED table).

    Tuples are visited in order of rank (`_superseded` says which of two survives). One is dropped only if it matches one
    already kept: matches do not chain.
    With `by_label` the label replaces the positives, which a clustering does not have yet.
    """
    match, score = np.full(len(tuples), -1, dtype=np.int64), np.zeros(len(tuples))
    for better, worse, value in _superseded(tuples, links, settings.threshold, by_label).iter_rows():
        if match[worse] < 0 and match[better] < 0:
            match[worse], score[worse] = better, value
    gone = np.flatnonzero(match >= 0)
    lost, kept = tuples[gone], tuples[match[gone]]
    shown = lost["query"].str.slice(0, EVIDENCE_CHARS)
    dropped = dropped_frame(source, "dedup", lost["id"], "near_duplicate_query", shown, kept["id"], source)
    return tuples.filter(pl.Series(match < 0)), dropped.with_columns(pl.Series("score", score[gone], dtype=pl.Float64))


def refuse_loss(dropped: pl.DataFrame, tuples: int, settings: Dedup, source: str) -> None:
    """Fail rather than drop most of a source.

    Raises:
        SourceError: all of the source's tuples are dropped, or more than `max_loss_per_source` allows.
    """
    if len(dropped) < tuples and len(dropped) <= settings.max_loss_per_source * tuples:
        return
    allowed = f"'max_loss_per_source' allows {settings.max_loss_per_source:.1%}"
    allowed = "none would be left" if settings.max_loss_per_source == 1 else allowed
    what = f"{len(dropped) / tuples:.1%} of its {tuples} tuples are near-duplicates, and {allowed}"
    first = dropped.row(0, named=True)
    match = f"{first['matched_id']}" + (f" of source '{first['matched_source']}'" if first["matched_source"] != source else "")
    raise SourceError(
        f"source '{source}'", what, f"for example {first['id']} {first['evidence'][:EXAMPLE_CHARS]!r} matches {match}"
    )


def has_invisible(tuples: pl.DataFrame) -> pl.Series:
    """Return which tuples have invisible characters in their query or a positive; such a tuple never supersedes a clean one."""
    positives = tuples.select("positives").with_row_index("at").explode("positives", empty_as_null=False).drop_nulls()
    hidden = positives.filter(pl.col("positives").str.contains(INVISIBLE))["at"]
    return tuples["query"].str.contains(INVISIBLE) | pl.Series(np.isin(np.arange(len(tuples)), hidden.to_numpy()))


def _superseded(tuples: pl.DataFrame, links: Links, threshold: float, by_label: bool) -> pl.DataFrame:
    """Return better, worse (positions of tuples) and score: queries that match, where `better` has all positives of `worse`.

    In order of the worse one's rank, then of score, then of the better one's rank.
    """
    # 1. The rank of each tuple: clean texts first, then more positives, the longer query, plain spaces, the smaller key,
    # the earlier tuple
    forms = tuples.select(pl.col("query").alias("text")).join(links.texts, on="text", how="left", maintain_order="left")["form"]
    facts = tuples.select(
        pl.Series("invisible", has_invisible(tuples)),
        pl.col("positives").list.len().alias("positives"),
        pl.col("query").str.len_chars().alias("chars"),
        pl.col("query").str.contains(ODD_SPACES).alias("odd"),
    )
    order = facts.with_columns(keys_of(tuples["query"]), forms.alias("form")).with_row_index("at")
    by = ["invisible", "positives", "chars", "odd", "key", "at"]
    ranked = order.sort(by, descending=[False, True, True, False, False, False]).select("at", "form").with_row_index("rank")

    # 2. Pairs of tuples whose queries match, or have the same form
    good = links.found.score >= threshold
    own = np.unique(forms.to_numpy())
    edges = pl.DataFrame(
        {
            "left": np.concatenate([links.found.left[good], own]),
            "right": np.concatenate([links.found.right[good], own]),
            "score": np.concatenate([links.found.score[good], np.ones(len(own))]),
        }
    )
    both = edges.join(ranked.select(pl.all().name.suffix("_l")), left_on="left", right_on="form_l")
    both = both.join(ranked.select(pl.all().name.suffix("_r")), left_on="right", right_on="form_r")
    both = both.filter((pl.col("left") != pl.col("right")) | (pl.col("at_l") < pl.col("at_r")))
    first = pl.col("rank_l") < pl.col("rank_r")
    pairs = both.select(
        pl.when(first).then("at_l").otherwise("at_r").alias("better"),
        pl.when(first).then("at_r").otherwise("at_l").alias("worse"),
        pl.min_horizontal("rank_l", "rank_r").alias("better_rank"),
        pl.max_horizontal("rank_l", "rank_r").alias("worse_rank"),
        "score",
    ).with_row_index("pair")

    # 3. at, family, families: the families of each tuple's positives and their number
    if by_label:
        label = tuples["label"].rank("dense").cast(pl.Int64)
        has = pl.DataFrame({"family": label}).with_row_index("at").with_columns(pl.lit(1, pl.UInt32).alias("families"))
    else:
        long = tuples.select(pl.col("positives").alias("text")).with_row_index("at").explode("text", empty_as_null=False)
        has = long.join(links.texts, on="text", how="inner").select("at", "family").unique()
        has = has.with_columns(pl.len().over("at").alias("families"))

    # 4. Of these pairs, those where the better tuple has every family of the worse one
    shared = pairs.join(has, left_on="worse", right_on="at").join(
        has, left_on=["better", "family"], right_on=["at", "family"], how="semi"
    )
    same = shared.group_by("pair").agg((pl.len() == pl.col("families").first()).alias("all")).filter("all")
    kept = pairs.join(same, on="pair", how="semi")
    return kept.sort("worse_rank", "score", "better_rank", descending=[False, True, False]).select("better", "worse", "score")
