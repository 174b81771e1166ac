"""Labelled texts to tuples: a classification has two labels, a clustering any number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

import numpy as np
import polars as pl

from curation.core.errors import SourceError, did_you_mean, listed
from curation.core.record import draws, dropped_frame
from curation.core.text import forms
from curation.core.texts import Texts
from curation.read.mapping import labels_by_form
from curation.read.rows import compact
from curation.recipe.source import Source
from curation.shape.columns import Tuples, first_reason, place_of, split_dropped
from curation.shape.numbered import NUMBERED

BEGINNING = 32  # characters by which most forms are sorted
NUMBER = re.compile(r"-?(0|[1-9]\d{0,40})(\.\d{1,40})?([eE][+-]?\d{1,3})?")  # without leading zeros: codes have these


def _labelled(source: Source, frame: pl.DataFrame, texts: Texts) -> pl.DataFrame:
    """Return a labelled frame with a reason for each row that is in no class."""
    skipped = labels_by_form(dict.fromkeys(source.skip_labels, ""))
    there = frame["evidence"].drop_nulls().unique().sort().to_list()
    absent = [label for label in source.skip_labels if not {*labels_by_form({label: ""})} & {*there}]
    for label in absent if source.limit is None else ():  # a sample may lack it
        what = f"no row has the label '{label}' of 'skip_labels'" + did_you_mean(label, there)
        raise SourceError(place_of(source), what, f"labels there are: {listed(there, 20)}")
    refuse_typos(source, source.labels, there)
    seen: dict[Decimal | str, str] = {}  # labels by meaning: 0.5 equals 0.50, true equals True, `a` equals `a `
    for label in frame["label"].unique().drop_nulls().sort().to_list():
        bare = " ".join(label.split())
        truth = bare.lower() if bare.lower() in ("true", "false") else bare
        other = seen.setdefault(Decimal(bare) if NUMBER.fullmatch(bare) else truth, label)
        if other != label:
            what = f"column '{source.fields.label}' has the labels '{other}' and '{label}', which may be the same"
            raise SourceError(place_of(source), what, "map each to its text under 'labels'")
    form = pl.Series("form", texts.form_number).gather(frame["query"])  # equal for texts that count as the same
    return frame.with_columns(form).with_columns(
        first_reason(
            (pl.col("query").is_null(), "empty_text"),
            (pl.col("evidence").is_null(), "empty_label"),
            (pl.col("evidence").is_in(list(skipped)), "skipped_label"),
            (pl.col("label").is_null(), "unknown_label"),
            (pl.col("label").drop_nulls().n_unique().over("form") > 1, "conflicting_label"),
        )
    )


def refuse_typos(source: Source, labels: Mapping[str, str], there: list[str]) -> None:
    """Fail if rows have a label that the manifest lacks while it has a label that no row has: a class would be left out.

    Raises:
        SourceError: both exist, or two keys are one label; in a sample, which may lack a label, only if two labels look alike.
    """
    for n, key in enumerate(labels):
        twice = [other for other in list(labels)[:n] if {*labels_by_form({other: ""})} & {*labels_by_form({key: ""})}]
        if twice and labels[twice[0]] != labels[key]:
            what = f"the keys '{twice[0]}' and '{key}' of 'labels' are the same label with two meanings"
            raise SourceError(place_of(source), what, "keep one")
    known = {*labels_by_form(labels), *labels_by_form(dict.fromkeys(source.skip_labels, ""))}
    unknown = sorted(set(there) - known)
    absent = [label for label in labels if not {*labels_by_form({label: ""})} & {*there}]
    for label in unknown if absent else ():
        near = did_you_mean(label, absent)
        if near or (source.labels and source.limit is None and len(unknown) < len(set(there))):
            what = f"rows have the label '{label}', which is not in 'labels', and no row has '{absent[0]}'{near}"
            raise SourceError(place_of(source), what, f"labels there are: {listed(sorted(there), 20)}")


def classification(source: Source, frame: pl.DataFrame, texts: Texts) -> Tuples:
    """Make a tuple from each text: its label's text is the positive, the other label's text the only negative."""
    frame = _labelled(source, frame, texts)
    there = sorted(frame.filter(pl.col("reason").is_null())["label"].unique().to_list())
    if len(frame) and source.labels and frame["label"].null_count() == len(frame):
        seen = listed(sorted(frame["evidence"].drop_nulls().unique().to_list()))
        what = f"no value of column '{source.fields.label}' is one of 'labels' ({listed(source.labels)})"
        raise SourceError(place_of(source), what, f"values there are: {seen}")
    if len(frame) and len(there) != 2:
        what = f"classification takes two labels, and column '{source.fields.label}' has {len(there)}" + (
            f": {listed(there)}" if there else ""
        )
        hint = "use `task: clustering` for more than two" if len(there) > 2 else "one class alone teaches nothing"
        raise SourceError(place_of(source), what, hint)
    used = frame.filter(pl.col("label").is_in(there)).unique("label").sort("label")["other"].to_list()
    other = dict(zip(used, reversed(used), strict=True))
    negative = pl.col("other").replace_strict(other, default=None, return_dtype=pl.UInt32)
    both = [pl.concat_list("other").alias("positives"), pl.concat_list(negative).alias("negatives")]
    return split_dropped(source, frame.with_columns(both), NUMBERED)


def clustering(source: Source, frame: pl.DataFrame, texts: Texts) -> Tuples:
    """Make a tuple from each text, without a positive: `pair_up` draws it later, from the texts that are kept."""
    empty = pl.lit([], dtype=pl.List(pl.UInt32))
    both = [empty.alias("positives"), empty.alias("negatives")]
    return split_dropped(source, _labelled(source, frame, texts).with_columns(both), NUMBERED)


def pair_up(tuples: pl.DataFrame, texts: Texts, seed: int, source: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Give each text of a clustering a positive; return (NUMBERED tuples, dropped tuples: those alone in their class).

    Raises:
        SourceError: fewer than two classes have two texts.
    """
    # forms by their place in alphabetical order, of which memory holds the beginnings, and whole those that begin alike
    form = texts.form_number[tuples["query"].to_numpy()]
    each = np.unique(form)
    heads = [compact(forms(some).str.slice(0, BEGINNING).to_frame("head")) for some in texts.batches(each)]
    begun = pl.concat([pl.DataFrame(schema={"head": pl.String}), *heads]).with_columns(whole=pl.lit(None, pl.String))
    alike = begun["head"].is_duplicated().arg_true()
    begun = begun.with_columns(begun["whole"].scatter(alike, forms(texts.at(each[alike.to_numpy()]))))
    place = begun.select(pl.struct("head", "whole").rank("ordinal"))["head"]
    frame = tuples.with_columns(place.gather(np.searchsorted(each, form)).alias("form"))
    paired = pl.col("form").n_unique().over("label") > 1
    kept, alone = frame.filter(paired), frame.filter(~paired)
    if kept["label"].n_unique() < 2:
        raise SourceError(f"source '{source}'", "fewer than two of its classes have two texts each", "check the label column")

    # another text of each text's class, drawn by its row number: first one of the class's other forms, then a text of that form,
    # so that copies have no more weight
    order = kept.with_row_index("at").sort("label", "form", "at")
    new_form = (
        (order["form"].ne_missing(order["form"].shift()) | order["label"].ne_missing(order["label"].shift()))
        .fill_null(True)
        .to_numpy()
    )
    form = np.cumsum(new_form) - 1  # (n,) number of the form of each sorted text
    form_start = np.flatnonzero(new_form)
    form_size = np.diff(np.append(form_start, len(order)))
    new_class = order["label"].ne_missing(order["label"].shift()).fill_null(True).to_numpy()
    class_number = np.cumsum(new_class) - 1
    class_first = form[np.flatnonzero(new_class)]  # first form of each class
    class_forms = np.diff(np.append(class_first, len(form_start)))
    rows = order["row"].to_numpy()
    first, count = class_first[class_number], class_forms[class_number].astype(np.uint64)
    step = 1 + (draws(seed, f"{source}/positive form", rows) % (count - np.uint64(1))).astype(np.int64)
    chosen = first + (form - first + step) % count.astype(np.int64)
    inside = (draws(seed, f"{source}/positive text", rows) % form_size[chosen].astype(np.uint64)).astype(np.int64)
    at = order["at"].to_numpy()
    partner = np.empty(len(order), dtype=np.int64)
    partner[at] = at[form_start[chosen] + inside]
    positives = kept["query"].gather(partner)
    dropped = dropped_frame(source, "pair", alone["id"], "lonely_class", alone["label"])
    return kept.with_columns(pl.concat_list(positives).alias("positives")).select(tuples.columns), dropped
