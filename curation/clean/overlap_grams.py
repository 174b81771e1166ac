"""The grams by which a copy of an evaluation text is recognised.

A text's normalised form, with a space before and after it, has four kinds of gram. Its script decides their width:

    WHOLE       the form itself
    CHAR_GRAMS  every 7 characters, spaces included         3 if most characters are of scripts without spaces
    WORD_GRAMS  every 13 words, with the spaces between     20 characters in these scripts
    SEED_GRAMS  14 characters from the space before a word  5 in these scripts, from any character

A gram's key is the hash of its UTF-8 bytes (`shingles`), marked by kind and width, mixed so that its bits are even, and rotated
by 4 bits; the key of CHAR_GRAMS is the first half of the hash, not mixed. `overlap_kernels` computes the keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from curation.core.characters import SPACELESS_CHARS

WHOLE, CHAR_GRAMS, WORD_GRAMS, SEED_GRAMS = range(4)
CHARS_WIDTH, SEEDS_WIDTH = (7, 3), (14, 5)  # characters; of texts with and without spaces
WORDS_WIDTH = (13, 20)  # words; characters
LONG = (25, 40)  # words, characters: from here on a text is recognised by its WORD_GRAMS, below by its CHAR_GRAMS
KIND_MARKS = np.array(  # by kind and script
    [
        [0x1D8E4E27C47D124F, 0x1D8E4E27C47D124F],
        [0xEB44ACCAB455D165, 0x6C9C83AF6FA8A76B],
        [0x27D4EB2F165667C5, 0x8EBC6AF09C88C6E3],
        [0x9FB21C651E98DF25, 0xA0761D6478BD642F],
    ],
    dtype=np.uint64,
)
MIX = 0xFF51AFD7ED558CCD
LEAST_CHARS = (12, 5)  # characters, of texts with and without spaces: a shorter text says too little


class Measures(NamedTuple):
    """How long normalised forms are."""

    spaceless: np.ndarray  # (texts,) i64: 1 if most characters are of scripts without spaces
    units: np.ndarray  # (texts,) i64: words; characters if spaceless
    chars: np.ndarray  # (texts,) i64
    long: np.ndarray  # (texts,) bool: see LONG
    tiny: np.ndarray  # (texts,) bool: see LEAST_CHARS


def measures_of(forms: pl.Series) -> Measures:
    """Measure normalised forms (no nulls)."""
    counts = pl.select(
        words=pl.when(forms != "").then(forms.str.count_matches(" ", literal=True) + 1).otherwise(0),
        chars=forms.str.len_chars(),
        spaceless=forms.str.count_matches(SPACELESS_CHARS),
    )
    words, chars, spaceless = (counts[name].to_numpy().astype(np.int64) for name in ("words", "chars", "spaceless"))
    dense = (2 * spaceless > chars - words + 1).astype(np.int64)
    units = np.where(dense == 1, chars, words)
    return Measures(dense, units, chars, units >= np.asarray(LONG)[dense], chars < np.asarray(LEAST_CHARS)[dense])
