"""Which tasks of mteb's boards are zero-shot for a build: no source is their data, and none of their texts is trained on.

mteb_boards.json records mteb's boards of texts, so that a report needs no mteb and does not change with its version:
`boards` {board: tasks}, `datasets` {task: dataset on the Hub}, `families`: lists of tasks that mteb counts as the same data
(`ModelMeta.is_zero_shot_on`). `python -m tests.mteb_boards` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from curation.core.builds import read_summary
from curation.core.errors import listed
from curation.core.store import read_receipt
from curation.recipe.manifest import load_manifest
from curation.recipe.source import Source

BOARDS_FILE = Path(__file__).with_name("mteb_boards.json")
BOARD_HEAD = ("board", "zero-shot", "compared", "not zero-shot", "texts were removed", "unknown")
TASKS_SHOWN = 8  # tasks named on a line


class Board(NamedTuple):
    """What is known about the tasks of a board; each task is in one of `zero_shot`, `trained_on` and `unknown`."""

    name: str
    zero_shot: list[str]
    trained_on: dict[str, list[str]]  # task -> why: the sources that are its data, or that hold texts of it
    unknown: list[str]  # not compared, and sources do not say whether they are its data
    compared: list[str]  # tasks whose texts were looked for in the sources
    removed: dict[str, list[str]]  # task -> the sources from which texts of it were removed

    def line(self) -> tuple[str, str, int, str, str, int]:
        """Return the board as a line below BOARD_HEAD."""
        reasons, removed = (
            listed((f"{task} ({', '.join(why)})" for task, why in found.items()), TASKS_SHOWN)
            for found in (self.trained_on, self.removed)
        )
        tasks = len(self.zero_shot) + len(self.trained_on) + len(self.unknown)
        return self.name, f"{len(self.zero_shot)} of {tasks}", len(self.compared), reasons, removed, len(self.unknown)


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads(BOARDS_FILE.read_text(encoding="utf-8")))


def zero_shot(build: Path, names: Iterable[str], boards: Mapping[str, list[str]] | None = None) -> list[Board]:
    """Return what is known about boards for the sources `names` of a build; empty if nothing is, or without its manifest.

    A source is the data of the tasks in its `mteb:`, of tasks that mteb counts as the same, and of tasks whose dataset it
    reads. Without `mteb:`, whether it is the data of a task is unknown, unless their texts were compared.

    Args:
        build: a whole build.
        names: sources of the build.
        boards: {name: tasks}; by default mteb's boards of texts.
    """
    if not (build / "manifest.yaml").is_file():
        return []
    manifest, summary, chosen = load_manifest(build / "manifest.yaml"), read_summary(build), set(names)
    about = summary.get("decontaminate")
    compared = (read_receipt(build / "decontaminate") or {}).get("sets", []) if about else []
    sources = [source for source in manifest.sources if source.name in chosen]
    about = about or {"tasks": {}, "mode": "drop"}
    return boards_of(sources, compared, about["tasks"], about["mode"], boards)


def boards_of(
    sources: list[Source],
    compared: Iterable[str],
    overlaps: Mapping[str, Mapping[str, Mapping[str, int]]],
    mode: str,
    boards: Mapping[str, list[str]] | None = None,
) -> list[Board]:
    """Return what is known about boards; see `zero_shot`.

    Args:
        sources: those to judge.
        compared: names of the evaluation sets that all texts were compared with.
        overlaps: {evaluation set: {source: {query | positive | negative | corpus: number of texts}}}.
        mode: of `decontaminate:`; with `report` the overlapping texts were kept.
        boards: {name: tasks}; by default mteb's boards of texts.
    """
    table, compared = _table(), {*compared, *overlaps}
    family = {task: family for family in table["families"] for task in family}
    claims: dict[str, list[str]] = {}
    for source in sources:
        own = {task for name in source.mteb for task in family.get(name, [name])}
        own |= {task for task, path in table["datasets"].items() if source.path and source.path == path}
        for task in own:
            claims.setdefault(task, []).append(source.name)
    kept: dict[str, list[str]] = {}
    removed: dict[str, list[str]] = {}
    fields = ("query", "positive", "negative", *(["corpus"] if mode == "strict" else []))
    for task, by_source in overlaps.items():
        for source in sources:
            if texts := sum(by_source.get(source.name, {}).get(field, 0) for field in fields):
                (kept if mode == "report" else removed).setdefault(task, []).append(f"{source.name}: {texts:,} texts")
    silent = any("mteb" not in source.model_fields_set for source in sources)

    made = []
    for name, tasks in (table["boards"] if boards is None else boards).items():
        trained_on = {task: [*claims.get(task, []), *kept.get(task, [])] for task in tasks if task in claims or task in kept}
        there = [task for task in tasks if task in compared]
        unknown = [task for task in tasks if silent and task not in compared and task not in trained_on]
        good = [task for task in tasks if task not in trained_on and task not in unknown]
        if trained_on or there or not silent:
            made.append(Board(name, good, trained_on, unknown, there, {task: removed[task] for task in tasks if task in removed}))
    return made


def board_lines(boards: list[Board]) -> tuple[list[tuple[str, str, int, str, str, int]], list[str]]:
    """Return (lines below BOARD_HEAD, notes about them); boards of which no task is trained on or compared get no line."""
    lines = [board.line() for board in boards if board.trained_on or board.compared]
    rest = [board.name for board in boards if not (board.trained_on or board.compared)]
    notes = [
        f"Zero-shot: by what they say and read, no source is the data of the task ({_table()['source']}); where the task was "
        "compared, none of its queries and answers is trained on."
    ]
    if any(board.unknown for board in boards):
        notes.append("Unknown: the task was not compared, and not all sources say which tasks they are data of (`mteb:`).")
    if rest:
        notes.append(f"All tasks of {f'the {len(rest)} other' if lines else f'all {len(rest)}'} boards of texts are zero-shot.")
    return lines, notes if boards else []
