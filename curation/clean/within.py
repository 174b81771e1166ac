"""Near-duplicates of one source: redundant queries are dropped; texts that match and stay share a group.

A query is dropped if a kept query matches it and has all its positives, up to near-duplicates of these. A query with another
positive stays: most such pairs differ by a year or a number. Passages always stay.

Of two tuples that match, the one without invisible characters survives, then the one with more positives, then the longer query;
`_superseded` has all rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clean.pairs import Near, families
from curation.core.characters import INVISIBLE
from curation.core.errors import SourceError
from curation.core.record import dropped_frame
from curation.core.tables import read_parquet
from curation.core.texts import Texts
from curation.recipe.job import Job
from curation.recipe.manifest import Dedup
from curation.shape.columns import EVIDENCE_CHARS
from curation.shape.numbered import corpus_texts, flat, names_any, source_texts

ODD_SPACES = r"[\xA0\x{2000}-\x{200A}\x{202F}\x{205F}]"
EXAMPLE_CHARS = 60  # of a query in an error


class Links(NamedTuple):
    """Which texts of a source match. Nodes number the texts that the stage `near` compared."""

    texts: Texts
    node: np.ndarray  # (texts,) i32: of the number of a text; -1 for one that was not compared
    compared: np.ndarray  # (nodes,) u32: the numbers of the texts
    found: Near  # pairs of nodes that remain
    family: np.ndarray  # (nodes,) u32: nodes linked at the threshold, directly or not, have one family


def links_of(job: Job, texts: Texts, remaining: np.ndarray) -> Links:
    """Return which of a source's `remaining` texts (n,) u32 match, from what the stage `near` found among all its texts."""
    assert job.dedup
    shaped, near = job.build / "shaped" / job.source.name, job.build / "near" / job.source.name
    pairs, form = read_parquet(near / "pairs.parquet"), read_parquet(near / "form.parquet")["form"].cast(pl.UInt32)
    found = Near(form.to_numpy(), *(pairs[name].to_numpy() for name in ("left", "right", "score")))
    return link(texts, source_texts(shaped, corpus_texts(shaped)), found, remaining, job.dedup.threshold)


def link(texts: Texts, compared: np.ndarray, found: Near, remaining: np.ndarray, threshold: float) -> Links:
    """Return which of the `remaining` texts match; `found` numbers all texts that were `compared`."""
    node = np.full(len(texts), -1, np.int32)
    node[compared] = np.arange(len(compared), dtype=np.int32)
    alive = np.zeros(len(compared), bool)
    alive[found.form[node[remaining]]] = True
    kept = alive[found.left] & alive[found.right]
    found = Near(found.form, found.left[kept], found.right[kept], found.score[kept])
    return Links(texts, node, compared, found, families(found, threshold))


def edges_of(links: Links, remaining: np.ndarray) -> pl.DataFrame:
    """Return left, right (keys of the texts) and score of every verified pair, also of pairs below the threshold.

    Of texts with one normalised form the first that remains represents all.
    """
    form, nodes = links.found.form, links.node[remaining]
    nodes.sort()
    first = np.zeros(len(form), np.int32)
    first[form[nodes[::-1]]] = nodes[::-1]
    ends = {name: links.compared[first[at]] for name, at in (("left", links.found.left), ("right", links.found.right))}
    keys = {name: links.texts.key_series(numbers).alias(name) for name, numbers in ends.items()}
    return pl.DataFrame({**keys, "score": links.found.score})


def drop_queries(
    tuples: pl.DataFrame, ids_at: Callable[[np.ndarray], pl.Series], links: Links, settings: Dedup, source: str, by_label: bool
) -> tuple[np.ndarray, pl.DataFrame]:
    """Return which tuples stay (n,) bool, and those dropped as near-duplicates, a DROPPED table.

    Tuples are visited in order of rank (`_superseded` says which of two survives). One is dropped only if it matches one
    already kept: matches do not chain.

    Args:
        tuples: query, positives and label of NUMBERED.
        ids_at: returns the ids of the tuples at some places.
        links: which texts match.
        settings: the manifest's.
        source: its name.
        by_label: whether the label replaces the positives, which a clustering does not have yet.
    """
    pairs = _superseded(tuples, links, settings.threshold, by_label)
    gone, taken = np.zeros(len(tuples), bool), list[int]()
    for number, (better, worse) in enumerate(pairs.select("better", "worse").iter_rows()):
        if not gone[worse] and not gone[better]:
            gone[worse] = True
            taken.append(number)
    pairs = pairs[taken].sort("worse")
    shown = links.texts.at(tuples["query"].gather(pairs["worse"])).str.slice(0, EVIDENCE_CHARS)
    lost, kept = (ids_at(pairs[name].to_numpy()) for name in ("worse", "better"))
    dropped = dropped_frame(source, "dedup", lost, "near_duplicate_query", shown, kept, source)
    return ~gone, dropped.with_columns(pairs["score"])


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


def has_invisible(tuples: pl.DataFrame, texts: Texts) -> pl.Series:
    """Return which tuples have invisible characters in their query or a positive; such a tuple never supersedes a clean one."""
    numbers = np.unique(np.concatenate([tuples["query"].to_numpy(), flat(tuples, "positives")]))
    hidden = np.zeros(len(texts), bool)
    first = 0
    for some in texts.batches(numbers):
        hidden[numbers[first : first + len(some)]] = some.str.contains(INVISIBLE).to_numpy()
        first += len(some)
    return pl.Series(names_any(tuples, hidden, ("positives",)))


def _superseded(tuples: pl.DataFrame, links: Links, threshold: float, by_label: bool) -> pl.DataFrame:
    """Return better, worse (positions of tuples) and score: queries that match, where `better` has all positives of `worse`.

    In order of the worse one's rank, then of score, then of the better one's rank.
    """
    # 1. The tuples whose query matches another's, and the rank of each
    good = links.found.score >= threshold
    every = links.found.form[links.node[tuples["query"].to_numpy()]]
    forms = np.sort(every)
    linked = np.zeros(len(links.compared), bool)
    linked[forms[1:][forms[1:] == forms[:-1]]] = True
    del forms
    linked[links.found.left[good]] = linked[links.found.right[good]] = True
    at = np.flatnonzero(linked[every])
    some, forms = tuples[at], every[at]
    # clean texts first, then those with more positives, the longer query, plain spaces, the smaller key, the earlier tuple
    queries = links.texts.at(some["query"])
    order = pl.DataFrame(
        {
            "invisible": has_invisible(some, links.texts),
            "positives": some["positives"].list.len(),
            "chars": queries.str.len_chars(),
            "odd": queries.str.contains(ODD_SPACES),
            "key": links.texts.key_series(some["query"].to_numpy()),
            "form": forms,
            "at": at.astype(np.uint32),
        }
    )
    by = ["invisible", "positives", "chars", "odd", "key", "at"]
    ranked = order.sort(by, descending=[False, True, True, False, False, False]).select("at", "form").with_row_index("rank")

    # 2. Pairs of tuples whose queries match, or have the same form
    own = np.unique(forms)
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
        families_of = links.family[links.node[flat(some, "positives")]]
        lengths = some["positives"].list.len().to_numpy()
        has = pl.DataFrame({"at": np.repeat(at.astype(np.uint32), lengths), "family": families_of}).unique()
        has = has.with_columns(pl.len().over("at").cast(pl.UInt32).alias("families"))

    # 4. Of these pairs, those where the better tuple has every family of the worse one
    shared = pairs.join(has, left_on="worse", right_on="at").join(
        has, left_on=["better", "family"], right_on=["at", "family"], how="semi"
    )
    same = shared.group_by("pair").agg((pl.len() == pl.col("families").first()).alias("all")).filter("all")
    kept = pairs.join(same, on="pair", how="semi")
    return kept.sort("worse_rank", "score", "better_rank", descending=[False, True, False]).select("better", "worse", "score")
