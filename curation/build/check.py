"""`curate check`: what a manifest should give, what that costs, and what is in doubt, before anything is fetched.

A source's expected tuples are its `expected_tuples`; without that key the smaller one of its rows, if they are known, and
its limit: a third of that for NLI (three rows per premise), twice that with `both_ways`, and of documents without queries as
many times as questions are asked for about each.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from curation.build.costs import (
    BUILT,
    CORPUS_BUILT,
    FETCHED,
    NEGATIVES_TRAINED,
    NETWORK,
    PASSAGE_TOKENS,
    QUERY_TOKENS,
    VECTOR,
    amount,
    costs,
    duration,
)
from curation.core.errors import ManifestError, SetupError, SourceError, UserError, did_you_mean, listed
from curation.core.escape import text_table
from curation.read import remote
from curation.read.lock import apply_lock, hub_facts, lock_path, read_lock
from curation.read.outside import all_tables, read_outside, refuse_outside
from curation.read.sources import is_local, total_bytes
from curation.recipe.evaluation import EvalSet
from curation.recipe.licenses import CLASSES, allowed, class_of
from curation.recipe.manifest import Manifest, load_manifest
from curation.recipe.source import Questions, Source, Table, TextTable, shape_of

Checked = dict[str, Any]
NLI_ROWS = 3  # per premise
LINE_WIDTH = 80  # characters


def check(path: Path, online: bool = False, confined: bool = False) -> Checked:
    """Return what is known about a manifest as a JSON value; if nothing is wrong, `problems` is empty. No rows are read.

    Args:
        path: the manifest.
        online: ask the Hub whether ids, revisions, configs, splits, columns and files exist, and stores whether objects do.
        confined: what the manifest reads outside its folder is a problem.

    Raises:
        ManifestError: the manifest is wrong, or its licence policy leaves no source.
    """
    manifest = load_manifest(path)
    kept, out = allowed(manifest)
    away = read_outside(kept, path.parent)
    refused: dict[str, UserError] = {}
    problems: list[str] = []
    try:
        refused = refuse_outside(kept, path) if confined else {}
    except ManifestError as error:
        problems.append(str(error))
    locked, differing = apply_lock(kept, path, refused)
    problems += [str(error) for error in differing.values()]

    # the files, objects and datasets that the manifest names; the Hub and stores are asked only `online`
    local, far = dict[str, int](), dict[str, int]()  # what is read from this machine, and from stores -> its bytes
    notes: list[str] = []
    for (where, table), (_, locked_table) in zip(all_tables(kept), all_tables(locked), strict=True):
        try:
            if remote.urls(table):
                if online:
                    far[where], more = remote.differences(locked_table)
                    notes += more
            elif is_local(table, path.parent):
                local[where] = total_bytes(table, path.parent)
            elif online:
                notes += _ask(table, path)
        except SourceError as error:
            problems.append(f"{where}: {error}")
    for source in kept.sources:
        if isinstance(source.queries, Questions):
            key = ", with the key in OPENAI_API_KEY," if source.queries.url and os.environ.get("OPENAI_API_KEY") else ""
            notes.append(f"source '{source.name}': a build asks {source.queries.place}{key} about each document")
    mteb_notes, mteb_problems = _mteb(kept)
    sources = {
        source.name: {
            "task": source.task,
            "expected_tuples": expected(source),
            "rows_read": rows_read(source),
            "license": source.license,
            "license_class": class_of(source.license),
            "verified": source.verified,
            "notes": source.notes,
            "substitute_for": source.substitute_for,
        }
        for source in kept.sources
    }
    licences: Checked = {}
    for kind in CLASSES:
        if of_kind := [one for one in sources.values() if one["license_class"] == kind]:
            licences[kind] = {"sources": len(of_kind), "expected": sum(one["expected_tuples"] or 0 for one in of_kind)}
    tasks: Checked = {}
    for task in dict.fromkeys([*kept.aim, *(source.task for source in kept.sources)]):
        numbers = {source.name: expected(source) for source in kept.sources if source.task == task}
        tasks[task] = {
            "sources": len(numbers),
            "expected": sum(number or 0 for number in numbers.values()),
            "aim": kept.aim.get(task),
            "unknown": [name for name, number in numbers.items() if number is None],
        }
    return {
        "manifest": str(path),
        "policy": manifest.licenses,
        "sources": sources,
        "excluded": dict(out),
        "tasks": tasks,
        "licenses": licences,
        "outside": away,
        "estimate": _estimate(kept, [*local, *far], sum(local.values()), sum(far.values())),
        "locked": read_lock(lock_path(path)) is not None,
        "online": online,
        "notes": list(dict.fromkeys(notes + mteb_notes)),
        "problems": list(dict.fromkeys(problems + mteb_problems)),
    }


def _mteb(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return (notes, problems) about the mteb tasks that a manifest names; their datasets are not looked up."""
    if not manifest.decontaminate or not manifest.decontaminate.mteb:
        return [], []
    from curation.clean.mteb_sets import PLACE, tasks_of, unreadable  # loads mteb

    try:
        tasks = tasks_of(manifest.decontaminate.mteb)
        out = unreadable(manifest.decontaminate.mteb, tasks)
        left_out = f"; not compared, as their layouts cannot be read: {listed(out, 8)}" if out else ""
        return [f"{PLACE}: {len(tasks)} tasks of the installed mteb{left_out}"], []
    except SetupError as error:
        return [f"{error}; its tasks were not checked, and a build needs them"], []
    except ManifestError as error:
        return [], [str(error)]


def _ask(table: Table, path: Path) -> list[str]:
    """Ask the Hub about a table; return what a person should know.

    Raises:
        SourceError: something that the manifest names does not exist.
    """
    facts = hub_facts(table)
    mapped = table.fields.model_dump().values() if isinstance(table, Source | EvalSet | TextTable) else []
    for name in [name for value in mapped for name in (value if isinstance(value, list) else [value])]:
        if name is None or "*" in name or name.endswith("?"):
            continue
        if facts.columns is not None and name.split(".")[0] not in facts.columns:
            guess = did_you_mean(name, facts.columns) or f"; columns there are: {listed(facts.columns, 20)}"
            raise SourceError(table.path, f"no column '{name}'{guess}")
    notes = []
    expected = table.expected_rows
    if facts.rows is not None and expected is not None and facts.rows != expected:
        notes.append(f"{table.path}: has {facts.rows:,} rows, and the manifest expects {expected:,}")
    if isinstance(table, Source):
        if facts.license and table.license and facts.license.lower() != table.license.lower():
            notes.append(f"{table.path}: its card says licence {facts.license}, and the manifest {table.license}")
        locked = (read_lock(lock_path(path)) or {}).get(table.name)
        if locked and locked["revision"] != facts.revision:
            then, now = str(locked["revision"])[:12], facts.revision[:12]
            notes.append(f"{table.path}: has moved from {then} to {now} since it was locked; the build takes {then}")
    return notes


def expected(source: Source) -> int | None:
    """Return the number of tuples that a source should give; None if nothing bounds it."""
    if source.expected_tuples is not None:
        return source.expected_tuples
    rows = None if source.expected_rows is None else max(source.expected_rows - source.skip, 0)
    bounds = [number for number in (rows, source.limit) if number is not None]
    if not bounds:
        return None
    each = source.queries.per_document if isinstance(source.queries, Questions) else 2 if source.both_ways else 1
    return min(bounds) // (NLI_ROWS if shape_of(source) == "nli" else 1) * each


def rows_read(source: Source) -> int:
    """Return how many rows are fetched and read, as far as known: all, or with `sample: first` those up to the limit."""
    if source.sample == "first" and source.limit is not None:
        return source.skip + source.limit
    own = source.expected_rows or source.limit or expected(source) or 0
    return own + sum(table.expected_rows or 0 for table in (source.corpus, source.queries) if isinstance(table, Table))


def _estimate(manifest: Manifest, sized: list[str], local_bytes: int, far_bytes: int) -> Checked:
    """Return what reading and building takes. Rows that `sized` sources do not state are estimated from bytes."""
    unsized = sum(rows_read(source) for source in manifest.sources if f"source '{source.name}'" not in sized)
    counted = sum(rows_read(source) for source in manifest.sources) - unsized
    rows = unsized + (counted or (local_bytes + far_bytes) // FETCHED)
    fetched = unsized * FETCHED + far_bytes
    tuples = sum(expected(source) or 0 for source in manifest.sources)
    passages = sum(source.corpus.expected_rows or 0 for source in manifest.sources if source.corpus)
    pairs = [] if manifest.mine and manifest.mine.candidates == "given" else [_searched(one) for one in manifest.sources]
    return {
        "rows": rows,
        "local_bytes": local_bytes,
        "fetched_bytes": fetched,
        "disk_bytes": fetched + tuples * BUILT + passages * CORPUS_BUILT,
        "vector_bytes": sum(map(sum, pairs)) * VECTOR,
        "fetch_seconds": fetched // NETWORK,
        "steps": [cost._asdict() for cost in costs(rows, tuples, pairs, passages)],
    }


def _searched(source: Source) -> tuple[int, int]:
    """Return how many queries are searched in how many passages when a source is mined; none if its labels give negatives."""
    if source.task == "classification" or shape_of(source) == "labelled":
        return 0, 0
    queries = expected(source) or 0
    return queries, max(queries, (source.corpus.expected_rows or 0) if source.corpus else 0)


def check_text(found: Checked) -> str:
    """Return what `check` found as text of 80 columns."""

    def shown(expected: int, sources: list[Checked]) -> int | str:
        known = [one for one in sources if one["expected_tuples"] is not None]
        return expected if len(known) == len(sources) else f"at least {expected:,}" if known else "unknown"

    every = list(found["sources"].values())
    tasks = []
    for task, one in found["tasks"].items():
        number = shown(one["expected"], [source for source in every if source["task"] == task])
        tasks.append((task, one["sources"], number, one["aim"] or 0))
    head = ("task", "sources", "expected", "aim")
    if not any(line[3] for line in tasks):
        head, tasks = head[:3], [line[:3] for line in tasks]  # type: ignore[assignment,misc]
    classes = []
    for kind, one in found["licenses"].items():
        number = shown(one["expected"], [source for source in every if source["license_class"] == kind])
        classes.append((kind, one["sources"], number))
    cost = found["estimate"]
    steps = [
        (each["step"], amount(each["amount"], each["unit"]), duration(each["seconds"]), each["on"]) for each in cost["steps"]
    ]
    unknown = [name for one in found["tasks"].values() for name in one["unknown"]]
    parts = [text_table(head, tasks), text_table(("licence class", "sources", "expected"), classes)]
    read = f"{_size(cost['local_bytes'])} of local files; {_size(cost['fetched_bytes'])} to fetch"
    if every and len(unknown) == len(every):
        parts.append(
            _wrapped(
                f"Reads {read}. How many tuples {listed(unknown)} will give is unknown, so time and disk are not estimated: set "
                "`expected_tuples`, or look at a first build with `curate build --limit 1000`."
            )
        )
    else:
        parts += [
            _wrapped(
                f"Reads about {cost['rows']:,} rows: {read}, {duration(cost['fetch_seconds'])}. The build takes "
                f"{_size(cost['disk_bytes'])} of disk, the vectors of `mine negatives` {_size(cost['vector_bytes'])}."
            ),
            text_table(("step", "work", "time", "on"), steps),
            _wrapped(
                "Rates were measured once (docs/clusters.md), on a GPU with the shape of Qwen3-0.6B. Assumed: "
                f"{FETCHED} bytes of a row fetched, {BUILT:,} of a tuple built and {CORPUS_BUILT:,} of a corpus passage; "
                f"{NETWORK // 10**6} MB fetched per second; {QUERY_TOKENS} tokens of a query with its instruction, "
                f"{PASSAGE_TOKENS} of a passage; {NEGATIVES_TRAINED} negatives. Rows of unknown number are not included."
            ),
        ]
        if unknown:
            parts.append(_wrapped(f"The number of tuples of {listed(unknown)} is unknown; it counts as 0."))
    doubtful = {name: one["notes"] for name, one in found["sources"].items() if not one["verified"]}
    parts += _section(f"{len(doubtful)} sources are not verified; publishing refuses them", doubtful)
    stand_ins = {name: one["substitute_for"] for name, one in found["sources"].items() if one["substitute_for"]}
    parts += _section("In place of another dataset", stand_ins)
    parts += _section(f"Left out (`licenses: {found['policy']}`)", found["excluded"])
    parts += _section(
        "Read outside of the manifest's folder", {where: ", ".join(names) for where, names in found["outside"].items()}
    )
    if found["notes"]:
        parts.append("\n".join(["To know:", *(_wrapped(f"- {note}", "  ") for note in found["notes"])]))
    if found["problems"]:
        parts.append("\n".join(["Problems:", *(_wrapped(f"- {problem}", "  ") for problem in found["problems"])]))
    return "\n\n".join(parts)


def verdict(found: Checked) -> str:
    """Return the result in a sentence."""
    count = len(found["problems"])
    asked = "the Hub was asked" if found["online"] else "the Hub was not asked (`--online`)"
    lock = "locked" if found["locked"] else "not locked (`curate lock`)"
    return _wrapped(f"{found['manifest']}: {f'{count} problem' + 's' * (count > 1) if count else 'no problem'}; {asked}; {lock}")


def _section(title: str, items: dict[str, str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, text in items.items():
        names.setdefault(" ".join(text.split()), []).append(name)
    lines = [_wrapped(f"- {', '.join(alike)}: {text}", "  ") for text, alike in names.items()]
    return ["\n".join([f"{title}:", *lines])] if lines else []


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, LINE_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"
