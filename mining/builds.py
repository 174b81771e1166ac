"""A build as mining sees it: what it says of itself, which sources it has, and what was mined."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curation.core import store, tables
from curation.core.builds import check_beside, checked_stage, read_build
from curation.core.errors import BuildError, ManifestError, did_you_mean, listed
from curation.core.record import ORIGINS
from curation.recipe.manifest import load_manifest
from curation.recipe.settings import Mine

WORD, RUN = re.compile(r"\w+"), 3
KEYS_OF_BUILD = ("name", "seed", "sources")
KEYS_OF_SOURCE = ("task", "instruction", "tuples")


def settings_of(build: Path) -> Mine:
    """Return the `mine:` section of a build's manifest.

    Raises:
        BuildError: there is none.
        ManifestError: its numbers contradict each other.
    """
    path = build / "manifest.yaml"
    check_beside(build, "manifest.yaml")
    settings = load_manifest(path).mine
    if settings is None:
        raise BuildError(
            path, "has no 'mine:' section", "add `mine: {model: HUB_ID}` to your manifest and run `curate build` again"
        )
    if settings.negatives > settings.range_max - settings.range_min:
        raise ManifestError(
            path,
            f"mine: {settings.negatives} negatives do not fit between range_min {settings.range_min} "
            f"and range_max {settings.range_max}",
            "raise 'range_max' or lower 'negatives'",
        )
    return settings


def failed_sources(build: Path) -> dict[str, str]:
    """Return the sources that the build could not make, and why."""
    return {name: str(why) for name, why in described(build).get("failed", {}).items()}


def described(build: Path) -> dict[str, Any]:
    """Return build.json.

    Raises:
        BuildError: it is absent or not what `curate build` writes.
    """
    path = build / "build.json"
    if not build.is_dir():
        raise BuildError(build, "no such build folder", "run `curate build MANIFEST` first")
    found = read_build(build)
    missing = _missing(KEYS_OF_BUILD, found)
    for name, entry in {} if missing else found["sources"].items():
        missing += [f"sources.{name}.{key}" for key in _missing(KEYS_OF_SOURCE, entry)]
    if missing:
        raise BuildError(path, f"lacks {listed(missing)}: changed by hand?", "run `curate build` again")
    return dict(found)


def mined_sources(build: Path, only: Sequence[str]) -> list[str]:
    """Return the sources of a build that have been mined.

    Raises:
        BuildError: none has, or not the one that was asked for.
    """
    names = [name for name in selected(build, described(build), only) if store.read_receipt(build / "mined" / name)]
    if not names:
        raise BuildError(
            build / "mined", f"holds nothing mined{f' for {listed(only)}' if only else ''}", "run `mine negatives` first"
        )
    return names


def shown(build: Path, name: str, number: int) -> list[dict[str, Any]]:
    """Return the first tuples of a mined source with their texts; negatives as (text, score, rank, origin).

    In a negative, words that stand in the same order in a positive, three or more in a row, are in [[ ]].
    """
    checked_stage(build, f"curated/{name}")
    checked_stage(build, f"mined/{name}", "run `mine negatives` again")
    rows = tables.read_table(build / "mined" / name, "pairs").head(number)
    needed = pl.concat([rows["positives"].explode(), rows["negatives"].explode()]).drop_nulls().unique()
    passages = tables.read_table(build / "curated" / name, "passages", ["pid", "text"]).filter(
        pl.col("pid").is_in(needed.implode())
    )
    texts = dict(zip(passages["pid"], passages["text"], strict=True))
    found = []
    for row in rows.iter_rows(named=True):
        parts = zip(row["negatives"], row["negative_scores"], row["negative_ranks"], row["negative_origin"], strict=True)
        found.append(
            {
                "id": row["id"],
                "query": row["query"],
                "positives": [texts[pid] for pid in row["positives"]],
                "positive_score": row["positive_score"],
                "negatives": [
                    (marked(texts[pid], [texts[other] for other in row["positives"]]), score, rank, ORIGINS[origin])
                    for pid, score, rank, origin in parts
                ],
            }
        )
    return found


def marked(text: str, others: Sequence[str]) -> str:
    """Return a text with [[ ]] around the runs of words, three or more, that one of the others has too."""
    seen = {run for other in others for run in _runs([word.group().lower() for word in WORD.finditer(other)])}
    words = list(WORD.finditer(text))
    shared = [False] * len(words)
    for at, run in enumerate(_runs([word.group().lower() for word in words])):
        if run in seen:
            shared[at : at + RUN] = [True] * RUN
    found, last = "", 0
    for at, word in enumerate(words):
        found += text[last : word.start()]
        found += "[[" if shared[at] and not (at and shared[at - 1]) else ""
        found += word.group() + ("]]" if shared[at] and shared[at + 1 : at + 2] != [True] else "")
        last = word.end()
    return found + text[last:]


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(RUN)), strict=False))


def selected(build: Path, whole: Mapping[str, Any], only: Sequence[str]) -> list[str]:
    """Return the names of the sources, or of those asked for.

    Raises:
        BuildError: it failed in the build, or there is none of that name, or none at all.
    """
    names, failed = list(whole["sources"]), whole.get("failed", {})
    for name in only:
        if name in failed:
            raise BuildError(
                build, f"source '{name}' failed in the build: {failed[name]}", "mend it and run `curate build` again"
            )
        if name not in names:
            raise BuildError(build, f"has no source '{name}'{did_you_mean(name, names)}", f"it has {listed(names)}")
    if not names:
        first = next((f": {why}" for why in failed.values()), "")
        raise BuildError(build, f"has no source with tuples{first}", "mend it and run `curate build` again")
    return [name for name in names if name in only] or names


def _missing(keys: tuple[str, ...], found: object) -> list[str]:
    return [key for key in keys if not isinstance(found, dict) or key not in found]
