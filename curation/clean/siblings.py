"""Which matching texts are siblings, not copies: made from one template, as `What is the population of France?` and `of Spain?`.

What differs in a match decides. A text is a sibling of another text if

- both are short and about as long, and each has a number, or a name, that the other lacks; or
- it lacks a word in a slot of the other text: of CROWD or more texts that match the other, at least half lack that word, and no
  single word replaces it in half of them.

Typos, inflections, word order and repeats do not count. A text that only lacks words, or only has more of them, is a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from curation.clean.shingles import WORDS_FROM
from curation.core.characters import SPACELESS_CHARS

# in a normalised form: a word, a sign, or one character in scripts without spaces
WORD_OR_SIGN = rf"{SPACELESS_CHARS}|[\S--{SPACELESS_CHARS}]+"
NAME = r"\p{Lu}[\p{Lu}\p{Ll}\p{M}\p{N}]*"
NUMBER_WORD = r"^\pN+$|^\pL{0,3}\pN+\pL{0,3}\pN{0,3}$"  # 1969, 3rd, b12, h1n1
IDENTIFIER = r"\d"  # a digit among other characters, as in the end of a short address: ignored
HAS_NUMBER, HAS_NAME = 1, 2  # kinds of words
CROWD = 3  # matches that a text needs before it can have a slot
JUDGED_AT_A_TIME = 1 << 15
SIBLING_RULES = f"siblings {CROWD}|2"
Read = Callable[[np.ndarray], tuple[pl.Series, pl.Series]]


def capitalised_words(texts: pl.Series) -> pl.Series:
    """Return the capitalised words of each text, in lower case: not its first word, and none if most words are capitalised."""
    rest = texts.str.replace(r"^\PL*" + NAME, "").str.normalize("NFKC")
    words = rest.str.extract_all(NAME)
    few = 2 * words.list.len() <= rest.str.count_matches(r"\p{L}+")
    lower = words.list.eval(pl.element().str.to_lowercase())
    return pl.select(pl.when(few).then(lower).otherwise(pl.lit([], pl.List(pl.String)))).to_series().alias("names")


def siblings(left: np.ndarray, right: np.ndarray, read: Read) -> np.ndarray:
    """Return (pairs,) bool: whether text `right[i]` is a sibling of text `left[i]`, given all pairs of that left text.

    `read` returns the normalised forms (no nulls) of texts by number, ascending, and their `capitalised_words`.
    """
    found = np.zeros(len(left), bool)
    order = np.argsort(left, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(left[order]) != 0, True)[: len(order)]) + 1
    end = 0
    while end < len(order):  # pairs of one left text stay together as far as they fit
        start, last = end, ends[np.searchsorted(ends, end + JUDGED_AT_A_TIME, side="right") - 1]
        end = int(last) if last > start else min(start + JUDGED_AT_A_TIME, len(order))
        some = order[start:end]
        numbers, at = np.unique(np.concatenate([left[some], right[some]]), return_inverse=True)
        pairs = {"pair": some, "left": at[: len(some)], "right": at[len(some) :]}
        found[_judged(pl.DataFrame(pairs).cast(pl.UInt32), *read(numbers))] = True
    return found


def _judged(pairs: pl.DataFrame, forms: pl.Series, names: pl.Series) -> np.ndarray:
    """Return the pairs that are siblings; left and right are positions in forms and names."""
    # most pairs of long texts have no crowd: their words need not be compared
    lists = forms.str.extract_all(WORD_OR_SIGN).list.unique().alias("word")
    sizes = lists.list.len().to_numpy()
    one, other = (sizes[pairs[side].to_numpy()] for side in ("left", "right"))
    short = pl.Series((np.maximum(one, other) < WORDS_FROM) & (other <= one + one // 2 + 2))
    crowd = pairs.group_by("left").len("crowd").filter(pl.col("crowd") >= CROWD)
    pairs = pairs.with_columns(short.alias("short")).filter(pl.col("short") | pl.col("left").is_in(crowd["left"].implode()))
    if not len(pairs):
        return np.zeros(0, np.uint32)

    numbers = pl.int_range(len(forms), dtype=pl.UInt32, eager=True).alias("text")
    used = pl.Series(np.isin(numbers, np.concatenate([pairs["left"], pairs["right"]])))
    words = pl.DataFrame([numbers, lists]).filter(used).explode("word", empty_as_null=False).drop_nulls()
    named = pl.DataFrame([numbers, names.alias("word")]).explode("word", empty_as_null=False).drop_nulls().unique()
    words = words.join(named.with_columns(named=True), on=["text", "word"], how="left", maintain_order="left")
    words = words.filter(~pl.col("word").str.contains(IDENTIFIER) | pl.col("word").str.contains(NUMBER_WORD))
    kind = pl.when(pl.col("word").str.contains(NUMBER_WORD)).then(HAS_NUMBER).when("named").then(HAS_NAME).otherwise(0)
    words = words.with_columns(kind.cast(pl.UInt8).alias("kind"), pl.col("word").rank("dense").alias("code"))
    missing, extra = _words_lacking(pairs, words, "left", "right"), _words_lacking(pairs, words, "right", "left")
    marked = _replaced(missing.filter(pl.col("kind") > 0), extra, ["pair", "kind"])
    both = pairs.filter("short").join(marked, on="pair", how="semi")

    # slots: words of a left text that at least half of its CROWD or more right texts lack, without one common replacement
    often = extra.group_by("left", "code").len("often").group_by("left").agg(pl.col("often").max())
    crowd = crowd.join(often, on="left").filter(2 * pl.col("often") < pl.col("crowd"))
    slots = missing.group_by("left", "code").len("lacking").join(crowd, on="left")
    slots = slots.filter((pl.col("lacking") >= CROWD) & (2 * pl.col("lacking") >= pl.col("crowd")))
    in_slots = _replaced(missing.join(slots, on=["left", "code"], how="semi"), extra, ["pair"])["pair"].unique()
    return np.union1d(both["pair"].to_numpy(), in_slots.to_numpy())


def _words_lacking(pairs: pl.DataFrame, words: pl.DataFrame, one: str, other: str) -> pl.DataFrame:
    """Return the words that one text of a pair has and the other lacks: pair, left, word, code and kind."""
    whole = pairs.join(words, left_on=one, right_on="text", coalesce=False)
    return whole.join(words, left_on=[other, "code"], right_on=["text", "code"], how="anti").select(
        "pair", "left", "word", "code", "kind"
    )


def _replaced(missing: pl.DataFrame, extra: pl.DataFrame, on: list[str]) -> pl.DataFrame:
    """Return the rows of `missing` that match rows of `extra`, none of which has the same word mistyped or inflected.

    Of two words that are `alike`, at least the first two or the last two characters are equal: other words are not compared.
    """
    differ = missing.join(extra, on=on, how="semi")
    ends = pl.concat_list(pl.col("word").str.head(2), pl.lit("-") + pl.col("word").str.tail(2)).alias("end")
    one, other = (rows.select(*on, "word", ends).explode("end", empty_as_null=False) for rows in (differ, extra))
    near = one.join(other, on=[*on, "end"], suffix="_own").select("pair", "word", "word_own")
    words = near.select("word", "word_own").unique()
    same = pl.Series([alike(word, own) for word, own in words.iter_rows()], dtype=pl.Boolean)
    typos = near.join(words.filter(same), on=["word", "word_own"], how="semi")
    return differ.join(typos, on=["pair", "word"], how="anti")


def alike(one: str, two: str) -> bool:
    """Return whether two words may be one word, mistyped or inflected; never true of numbers and short words."""
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
