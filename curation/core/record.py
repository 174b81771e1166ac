"""The record: what a source becomes, and what every later stage reads and writes.

A source becomes two tables and a few constants. Tuples hold ids; each text is stored once:

    passages                                pairs
    pid  text             group             id         query                positives  negatives  label
    0    "Paris is ..."   null              squad/0    "Capital of France?" [0]        []         null
    1    "Find . -size"   7                 squad/1    "find empty files"   [1]        []         null
    2    "find ! -size"   7                 squad/4    "who wrote Emma?"    [3, 4]     [0]        null
    3    "Jane Austen.."  null              news/12    "rates rise again"   [5]        []         "business"
    4    "Austen's Emma"  null              imdb/3     "a dull film"        [6]        [7]        "negative"

`pid` is the row number. `positives[0]` is trained on. `key` (in both tables) is the identity of a text;
`group` gathers texts of one source whose normalised form is equal, queries and passages alike (with `dedup:`,
near-duplicates too), and is null for a text that has no duplicate. `mine negatives` adds scores, ranks and
origins, and negatives, to `pairs`; a source that comes with scores has `positive_score` and `negative_scores` from the start.

Decided here too: the identity of a text (`key_of`), how an instruction is put before a query (`render_query`), how many
negatives a tuple of each task has (NEGATIVES), and every random choice among rows, a function of the manifest's seed (`draws`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np
import polars as pl
import xxhash

TASKS = ("retrieval", "classification", "clustering")
# Per tuple, as in arXiv 2510.02294, section 2. "retrieval" is the default of `mine: {negatives: N}`.
NEGATIVES = {"retrieval": 24, "clustering": 24, "classification": 1}
ORIGINS = ("given", "mined", "class", "random")  # `negative_origin` is an index into this
GIVEN, MINED, CLASS, RANDOM = range(4)
POSITIVE_ORIGINS = ("given", "promoted")  # `positive_origin` is an index into this
PROMOTED = 1  # a candidate that the reranker puts above the positives, see `mine: {promote: ...}`

PASSAGES = pl.Schema({"pid": pl.UInt32(), "text": pl.String(), "key": pl.Binary(), "group": pl.UInt32()})
PAIRS = pl.Schema(
    {
        "id": pl.String(),
        "query": pl.String(),
        "key": pl.Binary(),
        "group": pl.UInt32(),
        "positives": pl.List(pl.UInt32),
        "negatives": pl.List(pl.UInt32),
        "label": pl.String(),
    }
)
MINED_PAIRS = pl.Schema(
    {
        **PAIRS,
        "positive_score": pl.Float32(),  # of positives[0]; null if nothing was scored
        "positive_rank": pl.UInt32(),  # passages that score higher than positives[0], without positives; null if unknown
        "positive_origin": pl.List(pl.UInt8),  # one entry per positive: index into POSITIVE_ORIGINS
        "positive_reranked": pl.List(pl.Float32),  # one entry per positive: the reranker's score; null if it was not scored
        "negative_scores": pl.List(pl.Float32),  # one entry per negative; null if it was not scored
        "negative_ranks": pl.List(pl.UInt16),  # 0 = nearest candidate; null if it was not ranked
        "negative_origin": pl.List(pl.UInt8),  # index into ORIGINS
    }
)
DROPPED = pl.Schema(
    {
        "id": pl.String(),
        "source": pl.String(),
        "stage": pl.String(),  # read, shape, ask, filter, merge, decontaminate, dedup, pair, mine
        "reason": pl.String(),
        "evidence": pl.String(),
        "matched_id": pl.String(),
        "matched_source": pl.String(),
        "score": pl.Float64(),
    }
)

RENDERED = r"(?s)^Instruct: (.*?)\nQuery: ?(.*)$"  # as `render_query` writes it; some data has no space after `Query:`
# Any character except those that NFC never changes and never joins to the one before: see UAX #15, "quick check"
UNSURE = (
    r"[^\x00-\x{2ff}\x{370}-\x{373}\x{391}-\x{482}\x{48a}-\x{52f}\x{2010}-\x{2027}\x{2030}-\x{205e}\x{20a0}-\x{20bf}"
    r"\x{3001}-\x{3029}\x{3041}-\x{3096}\x{30a1}-\x{30ff}\x{4e00}-\x{9fff}\x{ac00}-\x{d7a3}\x{ff01}-\x{ffee}\x{1f300}-\x{1f64f}]"
)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def render_query(instruction: str, query: str) -> str:
    """Return the query as a decoder model sees it; an empty instruction gives the query alone."""
    return f"Instruct: {instruction}\nQuery: {query}" if instruction else query


def split_query(queries: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Undo `render_query`: return (instructions, null if a query has none; queries without them)."""
    if not queries.str.starts_with("Instruct: ").any():
        return queries.clear(len(queries)), queries
    return queries.str.extract(RENDERED, 1), queries.str.extract(RENDERED, 2).fill_null(queries)


def key_of(text: str) -> bytes:
    """Return the identity of a text: xxh3-128 of its NFC form, 16 bytes."""
    return xxhash.xxh3_128_digest(unicodedata.normalize("NFC", text).encode())


def keys_of(texts: Iterable[str]) -> pl.Series:
    """Return the key of each text, as a binary series."""
    given = composed(pl.Series(texts, dtype=pl.String)).cast(pl.Binary).to_list()
    return pl.Series("key", list(map(xxhash.xxh3_128_digest, given)), dtype=pl.Binary)


def composed(texts: pl.Series) -> pl.Series:
    """Return texts in NFC, so that texts with equal keys are equal. Few texts contain characters that NFC may change."""
    beyond = texts.str.contains(UNSURE).arg_true()
    unsure = zip(beyond.to_list(), texts.gather(beyond).to_list(), strict=True)
    changed = {at: unicodedata.normalize("NFC", text) for at, text in unsure if not unicodedata.is_normalized("NFC", text)}
    return texts.clone().scatter(list(changed), list(changed.values())) if changed else texts


def draws(seed: int, purpose: str, numbers: np.ndarray) -> np.ndarray:
    """Return one random u64 per number, a function of (seed, purpose, number) only, so rows do not influence each other.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over a state made of the seed, the purpose and the number.
    """
    start = np.uint64(xxhash.xxh3_64_intdigest(f"{seed}/{purpose}".encode()))
    with np.errstate(over="ignore"):
        z = start + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def dropped_frame(
    source: str,
    stage: str,
    ids: pl.Series,
    reason: str | pl.Series,
    evidence: pl.Series | str = "",
    matched_id: pl.Series | None = None,
    matched_source: pl.Series | str | None = None,
) -> pl.DataFrame:
    """Return a `DROPPED` table: why the rows or tuples `ids` were dropped."""
    columns = {
        "id": ids,
        "source": pl.lit(source),
        "stage": pl.lit(stage),
        "reason": pl.lit(reason) if isinstance(reason, str) else reason,
        "evidence": pl.lit(evidence) if isinstance(evidence, str) else evidence,
        "matched_id": pl.lit(None) if matched_id is None else matched_id,
        "matched_source": pl.lit(matched_source) if matched_source is None or isinstance(matched_source, str) else matched_source,
        "score": pl.lit(None),
    }
    return pl.DataFrame({"id": ids}).select(
        [
            (value if isinstance(value, pl.Expr) else pl.lit(value)).cast(DROPPED[name]).alias(name)
            for name, value in columns.items()
        ]
    )


def no_drops() -> pl.DataFrame:
    """Return an empty `DROPPED` table."""
    return pl.DataFrame(schema=DROPPED)
