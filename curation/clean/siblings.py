"""Which matching texts are no copies but siblings: of one template, as `What is the population of France?` and `of Spain?`.

Of a match, what differs decides. A text is a sibling of another one where

- both are short, about as long, and each has a number that the other has not, or a name; or
- it lacks a word that stands in a slot of the other one: of MANY texts or more that match the other, half or more lack that word,
  and no single word stands there instead in half of them.

Typos and inflections do not count, nor do word order and repeats. A text that only lacks words, or only has more, is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from curation.clean.shingles import WORDS_FROM
from curation.core.characters import SPACELESS_CHARS

WORD = (
    rf"{SPACELESS_CHARS}|[\S--{SPACELESS_CHARS}]+"  # of a normalised form: a word, a sign, or a character where spaces are rare
)
NAME = r"\p{Lu}[\p{Lu}\p{Ll}\p{M}\p{N}]*"
NUMBER = r"^\pN+$|^\pL{0,3}\pN+\pL{0,3}\pN{0,3}$"  # 1969, 3rd, b12, h1n1
IDENTIFIER = r"\d"  # with any other characters, such as the end of a short address: says nothing
NUMBERS, NAMES = 1, 2  # kinds of words
MANY = 3  # texts that match another one, before a slot is seen
PAIRS = 1 << 15  # judged at a time
RULES = f"siblings {MANY}|2"
Read = Callable[[np.ndarray], tuple[pl.Series, pl.Series]]


def names_of(texts: pl.Series) -> pl.Series:
    """Return the words of each text that begin with a capital, in lower case: not its first one, and none where most do."""
    rest = texts.str.replace(r"^\PL*" + NAME, "").str.normalize("NFKC")
    words = rest.str.extract_all(NAME)
    few = 2 * words.list.len() <= rest.str.count_matches(r"\p{L}+")
    lower = words.list.eval(pl.element().str.to_lowercase())
    return pl.select(pl.when(few).then(lower).otherwise(pl.lit([], pl.List(pl.String)))).to_series().alias("names")


def siblings(left: np.ndarray, right: np.ndarray, read: Read) -> np.ndarray:
    """Return (pairs,) bool: whether text `right[i]` is a sibling of text `left[i]`, seen among all pairs of that left one.

    `read` gives the normalised forms (no nulls) of texts by their numbers, ascending, and what `names_of` says of them.
    """
    found = np.zeros(len(left), bool)
    for some in _runs(left):
        numbers, at = np.unique(np.concatenate([left[some], right[some]]), return_inverse=True)
        pairs = {"pair": some, "left": at[: len(some)], "right": at[len(some) :]}
        found[_judged(pl.DataFrame(pairs).cast(pl.UInt32), *read(numbers))] = True
    return found


def _runs(left: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of pairs, PAIRS at a time or less, those of a left one together as far as they fit."""
    order = np.argsort(left, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(left[order]) != 0, True)[: len(order)]) + 1
    start = 0
    while start < len(order):
        end = ends[np.searchsorted(ends, start + PAIRS, side="right") - 1]
        end = int(end) if end > start else min(start + PAIRS, len(order))
        yield order[start:end]
        start = end


def _judged(pairs: pl.DataFrame, forms: pl.Series, names: pl.Series) -> np.ndarray:
    """Return which pairs (pair, left and right as places in forms and names) are siblings."""
    numbers = pl.int_range(len(forms), dtype=pl.UInt32, eager=True).alias("text")
    words = pl.DataFrame([numbers, forms.str.extract_all(WORD).list.unique().alias("word")])
    words = words.explode("word", empty_as_null=False).drop_nulls()
    sizes = np.bincount(words["text"].to_numpy(), minlength=len(forms))
    named = pl.DataFrame([numbers, names.alias("word")]).explode("word", empty_as_null=False).drop_nulls().unique()
    words = words.join(named.with_columns(named=True), on=["text", "word"], how="left", maintain_order="left")
    words = words.filter(~pl.col("word").str.contains(IDENTIFIER) | pl.col("word").str.contains(NUMBER))
    kind = pl.when(pl.col("word").str.contains(NUMBER)).then(NUMBERS).when("named").then(NAMES).otherwise(0)
    words = words.with_columns(kind.cast(pl.UInt8).alias("kind"), pl.col("word").rank("dense").alias("code"))
    missing, extra = _lacking(pairs, words, "left", "right"), _lacking(pairs, words, "right", "left")
    told = missing.filter(pl.col("kind") > 0).join(extra, on=["pair", "kind"], suffix="_own")
    both = _replaced(told).select("pair").unique().join(pairs, on="pair")
    one, other = (sizes[both[side].to_numpy()] for side in ("left", "right"))
    both = both.filter(pl.Series((np.maximum(one, other) < WORDS_FROM) & (other <= one + one // 2 + 2)))
    return np.union1d(both["pair"].to_numpy(), _in_slots(pairs, missing, extra))


def _lacking(pairs: pl.DataFrame, words: pl.DataFrame, one: str, other: str) -> pl.DataFrame:
    """Return the words that `one` text of a pair has and the other lacks: pair, left, word, code and kind."""
    whole = pairs.join(words, left_on=one, right_on="text", coalesce=False)
    return whole.join(words, left_on=[other, "code"], right_on=["text", "code"], how="anti").select(
        "pair", "left", "word", "code", "kind"
    )


def _in_slots(pairs: pl.DataFrame, missing: pl.DataFrame, extra: pl.DataFrame) -> np.ndarray:
    """Return the pairs whose right text has something else in a slot of the left one."""
    crowd = pairs.group_by("left").len("crowd").filter(pl.col("crowd") >= MANY)
    often = extra.group_by("left", "code").len("often").group_by("left").agg(pl.col("often").max())
    crowd = crowd.join(often, on="left").filter(2 * pl.col("often") < pl.col("crowd"))
    slots = missing.group_by("left", "code").len("lacking").join(crowd, on="left")
    slots = slots.filter((pl.col("lacking") >= MANY) & (2 * pl.col("lacking") >= pl.col("crowd")))
    told = missing.join(slots, on=["left", "code"], how="semi").join(extra, on="pair", suffix="_own")
    return _replaced(told)["pair"].unique().to_numpy()


def _replaced(told: pl.DataFrame) -> pl.DataFrame:
    """Return the lines of (pair, word, word_own) whose word is none of its pair's own words, mistyped or inflected."""
    unlike = told.select("word", "word_own").unique()
    same = pl.Series([alike(one, two) for one, two in unlike.iter_rows()], dtype=pl.Boolean)
    typos = told.join(unlike.filter(same), on=["word", "word_own"], how="semi")
    return told.join(typos, on=["pair", "word"], how="anti")


def alike(one: str, two: str) -> bool:
    """Tell whether two words may be one, mistyped or inflected; no numbers, and no short ones."""
    short, long = sorted((one, two), key=len)
    if len(short) < 4 or len(long) - len(short) > 3 or any(char.isdigit() for char in one + two):
        return False
    start = next((at for at, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if start >= 4 and start >= 0.65 * len(long):  # walk, walked
        return True
    ends = zip(reversed(short[start:]), reversed(long[start:]), strict=False)
    end = next((at for at, (a, b) in enumerate(ends) if a != b), len(short) - start)
    left, right = short[start : len(short) - end], long[start : len(long) - end]
    return len(short) >= 5 and (len(right) <= 1 or (len(left) == 2 and left == right[::-1]))
