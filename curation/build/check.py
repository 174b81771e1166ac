"""`curate check`: a manifest looked over before anything is fetched. What it should give, what that costs, what is in doubt.

Expected tuples of a source are its `expected_tuples`; else its rows (as far as known) and its limit, whichever is less, a
third of that for NLI (three rows a premise), twice that both ways. What is fetched and read: all rows, or the first ones.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from curation.core.errors import ManifestError, SetupError, SourceError, UserError, did_you_mean, listed
from curation.core.escape import text_table as drawn
from curation.read.lock import apply_lock, hub_facts, lock_path, read_lock
from curation.read.outside import all_tables, read_outside, refuse_outside
from curation.read.sources import is_local, total_bytes
from curation.recipe.evaluation import EvalSet
from curation.recipe.licenses import CLASSES, allowed, class_of
from curation.recipe.manifest import Manifest, load_manifest
from curation.recipe.source import Source, Table, TextTable, shape_of

Found = dict[str, Any]
# Assumed of a row and of a machine: bytes as fetched, which the Hub's cache keeps; of a tuple in all of a build;
# rows read and tuples made in a second by one process (measured: 100,000 rows of 1.1 kB); bytes fetched in a second.
FETCHED, BUILT = 400, 1000
READ, MADE, NETWORK = 30_000, 8_000, 20_000_000
NLI_ROWS = 3
WIDTH = 80


def check(path: Path, online: bool = False, confined: bool = False) -> Found:
    """Return all there is to say of a manifest as one JSON value; `problems` is empty where all is well.

    With `confined`, what it reads outside of its folder is a problem.

    `online` asks the Hub whether ids, revisions, configs, splits, columns and files are there. No rows are read.

    Raises:
        ManifestError: it cannot be read as meant, or its licence policy leaves no source.
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
    problems += [str(error) for error in apply_lock(kept, path, refused)[1].values()]
    notes: list[str] = []
    local: dict[str, int] = {}  # what is read from this machine -> its bytes
    for where, table in all_tables(kept):
        try:
            if is_local(table, path.parent):
                local[where] = total_bytes(table, path.parent)
            elif online:
                notes += _ask(table, path)
        except SourceError as error:
            problems.append(f"{where}: {error}")
    told, wrong = _mteb(kept)
    return {
        "manifest": str(path),
        "policy": manifest.licenses,
        "sources": {source.name: _about(source) for source in kept.sources},
        "excluded": dict(out),
        "tasks": _tasks(kept),
        "licenses": _licenses(kept),
        "outside": away,
        "estimate": _estimate(kept, list(local), sum(local.values())),
        "locked": read_lock(lock_path(path)) is not None,
        "online": online,
        "notes": list(dict.fromkeys(notes + told)),
        "problems": list(dict.fromkeys(problems + wrong)),
    }


def _mteb(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return (what to know, problems) of the mteb tasks that a manifest names; their datasets are not asked for."""
    if not manifest.decontaminate or not manifest.decontaminate.mteb:
        return [], []
    from curation.clean.mteb_sets import PLACE, tasks_of  # loads mteb

    try:
        return [f"{PLACE}: {len(tasks_of(manifest.decontaminate.mteb))} tasks of the installed mteb"], []
    except SetupError as error:
        return [f"{error}; its tasks were not looked at, and a build needs them"], []
    except ManifestError as error:
        return [], [str(error)]


def _ask(table: Table, path: Path) -> list[str]:
    """Ask the Hub about a table; return what a person should know.

    Raises:
        SourceError: what the manifest names is not there.
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
    """Return the tuples a source should give, or None where nothing bounds them."""
    if source.expected_tuples is not None:
        return source.expected_tuples
    rows = None if source.expected_rows is None else max(source.expected_rows - source.skip, 0)
    bounds = [number for number in (rows, source.limit) if number is not None]
    if not bounds:
        return None
    return min(bounds) // (NLI_ROWS if shape_of(source) == "nli" else 1) * (2 if source.both_ways else 1)


def rows_read(source: Source) -> int:
    """Return the rows that have to be fetched and read, as far as known: up to a limit of the first ones, else all."""
    if source.sample == "first" and source.limit is not None:
        return source.skip + source.limit
    own = source.expected_rows or source.limit or expected(source) or 0
    return own + sum(table.expected_rows or 0 for table in (source.corpus, source.queries) if table)


def unverified(manifest: Manifest) -> dict[str, str]:
    """Return the sources that must not be published yet, and why."""
    return {source.name: source.notes or "" for source in manifest.sources if not source.verified}


def _about(source: Source) -> Found:
    return {
        "task": source.task,
        "expected_tuples": expected(source),
        "rows_read": rows_read(source),
        "license": source.license,
        "license_class": class_of(source.license),
        "verified": source.verified,
        "notes": source.notes,
        "substitute_for": source.substitute_for,
    }


def _tasks(manifest: Manifest) -> Found:
    tasks = dict.fromkeys([*manifest.aim, *(source.task for source in manifest.sources)])
    found: Found = {}
    for task in tasks:
        all_of = [(source.name, expected(source)) for source in manifest.sources if source.task == task]
        known = [number for _, number in all_of if number is not None]
        unknown = [name for name, number in all_of if number is None]
        found[task] = {"sources": len(all_of), "expected": sum(known), "aim": manifest.aim.get(task), "unknown": unknown}
    return found


def _licenses(manifest: Manifest) -> Found:
    found: Found = {}
    for kind in CLASSES:
        of_kind = [source for source in manifest.sources if class_of(source.license) == kind]
        if of_kind:
            found[kind] = {"sources": len(of_kind), "expected": sum(expected(source) or 0 for source in of_kind)}
    return found


def _estimate(manifest: Manifest, local: list[str], local_bytes: int) -> Found:
    """Return what reading and building takes. Of local sources nothing is fetched; uncounted rows have `FETCHED` bytes."""
    remote = sum(rows_read(source) for source in manifest.sources if f"source '{source.name}'" not in local)
    counted = sum(rows_read(source) for source in manifest.sources) - remote
    rows = remote + (counted or local_bytes // FETCHED)
    tuples = sum(expected(source) or 0 for source in manifest.sources)
    return {
        "rows": rows,
        "local_bytes": local_bytes,
        "fetched_bytes": remote * FETCHED,
        "disk_bytes": remote * FETCHED + tuples * BUILT,
        "fetch_seconds": remote * FETCHED // NETWORK,
        "build_seconds": rows // READ + tuples // MADE,
    }


def as_text(found: Found) -> str:
    """Return what `check` found, to read at 80 columns."""
    tasks = [(task, one["sources"], one["expected"], one["aim"] or 0) for task, one in found["tasks"].items()]
    head = ("task", "sources", "expected", "aim")
    if not any(line[3] for line in tasks):
        head, tasks = head[:3], [line[:3] for line in tasks]  # type: ignore[assignment,misc]
    classes = [(kind, one["sources"], one["expected"]) for kind, one in found["licenses"].items()]
    parts = [drawn(head, tasks), drawn(("licence class", "sources", "expected"), classes), _estimate_text(found["estimate"])]
    unknown = [name for one in found["tasks"].values() for name in one["unknown"]]
    if unknown:
        parts.append(_wrapped(f"Nothing says how many tuples to expect of {listed(unknown)}; they count as none."))
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


def verdict(found: Found) -> str:
    """Return what it comes to, in a sentence."""
    count = len(found["problems"])
    asked = "the Hub was asked" if found["online"] else "the Hub was not asked (`--online`)"
    lock = "locked" if found["locked"] else "not locked (`curate lock`)"
    return _wrapped(f"{found['manifest']}: {f'{count} problem' + 's' * (count > 1) if count else 'no problem'}; {asked}; {lock}")


def _estimate_text(one: Found) -> str:
    text = (
        f"Reads about {one['rows']:,} rows: {_size(one['local_bytes'])} of local files; {_size(one['fetched_bytes'])} to fetch, "
        f"{_time(one['fetch_seconds'])}; {_size(one['disk_bytes'])} of disk; {_time(one['build_seconds'])} of one processor. "
        f"Assumed: a row of {FETCHED} bytes "
        f"fetched and kept in the Hub's cache, {BUILT:,} bytes a tuple in the build, {NETWORK // 10**6} MB a second, "
        f"{READ:,} rows read and {MADE:,} tuples made a second. Rows and corpora that nothing counts are not in it."
    )
    return _wrapped(text)


def _section(title: str, items: dict[str, str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, text in items.items():
        names.setdefault(" ".join(text.split()), []).append(name)
    lines = [_wrapped(f"- {', '.join(alike)}: {text}", "  ") for text, alike in names.items()]
    return ["\n".join([f"{title}:", *lines])] if lines else []


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"


def _time(seconds: int) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{max(seconds / 60, 1):,.0f} min"
