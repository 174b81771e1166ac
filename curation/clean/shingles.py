"""The shingles of a text: which runs of words or characters are compared, and how one is hashed (`kernels` does the work).

A text's normalised form (`text.normalised`), its length and its script decide what its shingles are:

    WORDS      25 words or more                    every 3 words in a row, with the spaces between them
    CHARS      8 to 24 words                       every 5 characters in a row
    SPACELESS  mostly of scripts without spaces,   every 3 characters in a row
               12 characters or more
    EXACT      anything shorter                    none: only texts with equal forms match

So a text of 25 words would never meet its near-duplicate of 24. Therefore texts of 25 to 29 words also get CHARS shingles, and
meet shorter texts by these; two long texts are compared by words alone.

A shingle's hash is a polynomial over its UTF-8 bytes, modulo 2^64; MinHash takes its upper half:

    def shingle_hash(shingle: bytes) -> int:
        return sum(byte * pow(BASE, at + 1, 2**64) for at, byte in enumerate(shingle)) % 2**64
"""

from __future__ import annotations

BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)
EXACT, WORDS, CHARS, SPACELESS = range(4)
WIDTH = (0, 3, 5, 3)  # words or characters per shingle, by kind
WORDS_FROM, CHARS_FROM, SPACELESS_FROM = 25, 8, 12  # words, words, characters: the shortest text of each kind
WORDS_ONLY = 30  # words: from here on a text gets no CHARS
SHINGLING = (
    f"words{WIDTH[WORDS]}>={WORDS_FROM}|chars{WIDTH[CHARS]}>={CHARS_FROM}<{WORDS_ONLY}"
    f"|spaceless{WIDTH[SPACELESS]}>={SPACELESS_FROM}|poly64:{BASE:x}|forms2"
)
