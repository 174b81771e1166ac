"""What two texts must share to count as the same one."""

from __future__ import annotations

import numpy as np
import polars as pl

BLOCK = 10_000  # texts at a time, so that they stay in the cache
BETWEEN = "\x80"  # stands in no ASCII text
PLAIN = bytes(ord(chr(code).lower()) if chr(code).isalnum() or code in (95, 128) else 32 for code in range(256))


def normalised(texts: pl.Series) -> pl.Series:
    """Return each text as NFKC, lower case, word characters with one space between words.

    A text without any word character gives null: `!!!` and `???` are not the same text. ASCII texts go a faster way.
    """
    plain = (texts.str.len_bytes() == texts.str.len_chars()).fill_null(False)
    if not plain.all():
        parts = [normalised(texts.filter(plain)), _beyond_ascii(texts.filter(~plain))]
        place = np.argsort(np.argsort(~plain.to_numpy(), kind="stable"), kind="stable")
        return pl.concat(parts).gather(place)
    blocks = [_plain_words(texts.slice(start, BLOCK)) for start in range(0, len(texts), BLOCK)]
    return _or_null(pl.concat(blocks) if blocks else texts).alias(texts.name)


def _beyond_ascii(texts: pl.Series) -> pl.Series:
    frame = pl.DataFrame({"text": texts})
    once = frame.unique("text")  # contexts and premises repeat, and this is slow
    once = once.with_columns(_or_null(words_of(once["text"])).alias("words"))
    return frame.join(once, on="text", how="left", maintain_order="left", nulls_equal=True)["words"]


def words_of(texts: pl.Series) -> pl.Series:
    """Return texts as NFKC, lower case, a space for each run of other characters than word characters."""
    return texts.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[^\w]+", " ")


def _or_null(words: pl.Series) -> pl.Series:
    words = words.str.strip_chars()
    return unless(words == "", words)


def unless(blank: pl.Series, texts: pl.Series) -> pl.Series:
    """Return texts with null where `blank` says so; few are, and `when` would copy all the others."""
    places = np.arange(len(texts), dtype=np.uint32)
    return texts.gather(pl.Series(places).set(blank.fill_null(True), None)) if blank.any() else texts


def _plain_words(texts: pl.Series) -> pl.Series:
    """Return ASCII texts in lower case, a space for each run of other characters than letters, digits and `_`."""
    whole = (texts.str.join(BETWEEN)[0] or "").encode("latin-1").translate(PLAIN)
    signs = np.frombuffer(whole, dtype=np.uint8)
    space = signs == ord(" ")
    kept = np.ones(len(signs), dtype=bool)
    np.logical_not(space[1:] & space[:-1], out=kept[1:])
    words = pl.Series([signs[kept].tobytes().decode("latin-1")]).str.split(BETWEEN)
    return words.explode()


def forms(texts: pl.Series) -> pl.Series:
    """Return what counts as the same text: the normalised form, or the text itself where that is empty."""
    return normalised(texts).fill_null(texts)


def numbered(texts: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return a number (i32) for each text, and the distinct texts, in order of first appearance; none may be null."""
    coded = texts.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    return coded.indices.to_numpy(), pl.Series(texts.name, coded.dictionary)


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
