"""What work costs, from rates that were measured once (benchmarks/RESULTS.md): for `curate check` and docs/clusters.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CORE, GPU = "one core, AMD EPYC", "one H200"
RATES = {  # step -> (per second, of what, on what)
    "read": (100_000, "rows", CORE),  # 200,000 rows of 1.2 kB in parquet, of which 10,000 are used
    "build": (
        10_000,
        "tuples",
        CORE,
    ),  # all 200,000, with `dedup:`, `decontaminate:` and `holdout:`; passages of a corpus as fast
    "encode": (340_751, "tokens", GPU),  # Qwen3-0.6B's shape in bfloat16
    "search": (17_368_000_000, "pairs of texts", GPU),  # 17,368 queries in 1,000,000 x 1,024, rescoring included
    "choose": (117_000, "tuples", CORE),  # 24 negatives of 100 candidates, by ids: 100,000 in .85 CPU-seconds
    "train, 1 epoch": (105_407, "tokens", GPU),  # Qwen3-0.6B's shape in bfloat16, 7 negatives, checkpointed layers
}
BUILT = 3000  # bytes of a tuple in all stages of a build: the 200,000 rows took 577 MB
CORPUS_BUILT = 1000  # bytes of a corpus passage more: 2.6 million took 2.7 GB, indexes of evaluation sets included
# What is assumed of texts, not measured
FETCHED = 400  # bytes of a row as fetched; the Hub's cache keeps them
NETWORK = 20_000_000  # bytes fetched per second
QUERY_TOKENS, PASSAGE_TOKENS = 50, 150  # tokens; a query with its instruction
NEGATIVES_TRAINED = 7  # of a tuple, in training
VECTOR = 4096  # bytes of 1,024 float32


class Cost(NamedTuple):
    """What a step takes on one core or one GPU."""

    step: str
    amount: int
    unit: str
    seconds: float
    on: str


def costs(rows: int, tuples: int, searched: Iterable[tuple[int, int]], passages: int = 0) -> list[Cost]:
    """Return the cost of each step from rows to a model, without fetching.

    Args:
        rows: rows to read.
        tuples: tuples to build and train on.
        searched: (queries, passages) of each source that is mined by search.
        passages: passages of all corpora; building one takes about as long as a tuple.
    """
    pairs = list(searched)
    amounts = {
        "read": rows,
        "build": tuples + passages,
        "encode": sum(queries * QUERY_TOKENS + passages * PASSAGE_TOKENS for queries, passages in pairs),
        "search": sum(queries * passages for queries, passages in pairs),
        "choose": sum(queries for queries, _ in pairs),
        "train, 1 epoch": tuples * (QUERY_TOKENS + (1 + NEGATIVES_TRAINED) * PASSAGE_TOKENS),
    }
    units = {step: unit for step, (_, unit, _) in RATES.items()} | ({"build": "tuples, passages"} if passages else {})
    return [Cost(step, amounts[step], units[step], amounts[step] / rate, on) for step, (rate, _, on) in RATES.items()]


def amount(number: int, unit: str) -> str:
    """Return an amount as text, such as 213 rows or 3.9 billion tokens."""
    for name, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {name} {unit}"
    return f"{number:,} {unit}"


def duration(seconds: float) -> str:
    """Return a time as text, such as 12 min or 3.4 hours."""
    if seconds < 60:
        return "under 1 min"
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.0f} min"
