"""What two texts must share to count as the same one."""

from __future__ import annotations

import numpy as np
import polars as pl


def normalised(texts: pl.Series) -> pl.Series:
    """Return each text as NFKC, lower case, word characters with one space between words.

    A text without any word character gives null: `!!!` and `???` are not the same text.
    """
    words = texts.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[^\w]+", " ").str.strip_chars()
    return pl.select(pl.when(words != "").then(words)).to_series()


def forms(texts: pl.Series) -> pl.Series:
    """Return what counts as the same text: the normalised form, or the text itself where that is empty."""
    return normalised(texts).fill_null(texts)


def groups_of(same: pl.Series, keys: pl.Series) -> pl.Series:
    """Return a group number (u32) for each text that has a twin: equal in `same`, another key; else null.

    `same` is the normalised form, or the family of near-duplicates. Numbers count up in order of first appearance.
    """
    forms = pl.DataFrame({"form": same, "key": keys})
    twins = (
        forms.drop_nulls("form")
        .group_by("form", maintain_order=True)
        .agg(pl.col("key").n_unique().alias("spellings"))
        .filter(pl.col("spellings") > 1)
        .select("form")
        .with_row_index("group")
    )
    return forms.join(twins, on="form", how="left", maintain_order="left")["group"].cast(pl.UInt32)


def connected(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Return for each of `count` nodes the smallest node it is linked to, through edges `left[i] - right[i]`.

    Label propagation with pointer jumping: every pass halves the longest path, so a few passes end it.
    """
    label = np.arange(count)
    while True:
        low = np.minimum(label[left], label[right])
        before = label.copy()
        np.minimum.at(label, left, low)
        np.minimum.at(label, right, low)
        np.minimum.at(label, before, label)
        label = label[label]
        if np.array_equal(label, before):
            return label
