"""The look-up of decontamination in numpy and polars, for tests of the compiled loop."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.clean.overlap_index import CHAR_GRAMS, SEED_GRAMS, SHARED_TENTHS, WHOLE, WORD_GRAMS, Forms, Index
from curation.clean.overlap_lookup import FOUND
from curation.core.text import normalised


def looked_up(index: Index, texts: pl.Series) -> pl.DataFrame:
    """What `overlap_lookup.look_up` returns."""
    forms = Forms(normalised(texts).fill_null(""))
    with_words = np.diff(forms.starts) > 2  # a form without any word matches nothing
    whole, seeds, words = forms.grams(WHOLE, with_words), forms.grams(SEED_GRAMS), forms.grams(WORD_GRAMS)
    equal = postings(index, whole.text, whole.key).unique().with_columns(shared=pl.lit(1, pl.UInt32))
    by_words = postings(index, words.text, words.key).group_by("text", "entry").len("shared")
    met = postings(index, seeds.text, seeds.key).group_by("text", "entry").len()
    near = share_enough(index, forms, met.filter(pl.col("len") >= index.needs[met["entry"].to_numpy()]))
    parts = [equal.with_columns(kind=pl.lit(WHOLE), score=pl.lit(1.0))]
    for kind, part in ((CHAR_GRAMS, near), (WORD_GRAMS, by_words)):
        score = part["shared"] / np.maximum(index.sizes[part["entry"].to_numpy()].astype(np.int64), 1)
        part = part.with_columns(kind=pl.lit(kind), score=score.clip(upper_bound=1.0))
        parts.append(part.join(equal, on=["text", "entry"], how="anti"))
    return pl.concat([part.select(list(FOUND)).cast(FOUND) for part in parts]).sort("text", "entry")


def postings(index: Index, text: np.ndarray, keys: np.ndarray) -> pl.DataFrame:
    """Return text and entry of every gram that leads to an entry."""
    counts = np.diff(index.begins)
    known = pl.DataFrame({"key": np.repeat(index.keys, counts), "entry": index.entries.astype(np.int64)})
    return pl.DataFrame({"text": text, "key": keys}).join(known, on="key").select("text", "entry")


def share_enough(index: Index, forms: Forms, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return text, entry, shared of the candidates that share enough CHAR_GRAMS."""
    chars = forms.grams(CHAR_GRAMS)
    own = pl.DataFrame({"text": chars.text, "gram": chars.key}).unique()
    counts = np.diff(index.gram_begins)
    entries = pl.DataFrame({"entry": np.repeat(np.arange(len(counts)), counts), "gram": index.grams.astype(np.uint64)})
    both = candidates.join(entries, on="entry").join(own, on=["text", "gram"], how="semi").group_by("text", "entry").len("shared")
    both = both.join(own.group_by("text").len("distinct"), on="text", how="left")
    entry = both["entry"].to_numpy()
    both = both.with_columns(few=pl.Series(index.few[entry]), size=pl.Series(counts[entry]))
    least = pl.max_horizontal("size", pl.when("few").then("distinct").otherwise(0))
    return both.filter(pl.col("shared") * 10 >= least * SHARED_TENTHS).select("text", "entry", "shared")
