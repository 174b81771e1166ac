"""ATTRIBUTION.md: whose data a build is made of, under which licences, as claimed by its sources; one with every build."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from curation.core.escape import Markdown, as_link, as_markdown
from curation.core.store import atomic
from curation.recipe.licenses import CLASSES
from curation.recipe.manifest import Manifest
from curation.recipe.source import Source, Table

HEAD = ("source", "dataset", "revision", "licence as claimed", "class", "seen on", "tuples")


def write(folder: Path, manifest: Manifest, summary: dict[str, Any]) -> None:
    """Write ATTRIBUTION.md of the sources that build.json is to have. No date of today: equal builds, equal bytes."""
    sources = [source for source in manifest.sources if source.name in summary["sources"]]
    text = ("\n".join(_lines(summary, sources)) + "\n").encode()
    target = folder / "ATTRIBUTION.md"
    if not target.exists() or target.read_bytes() != text:
        with atomic(target) as file:
            file.write(text)


def _lines(summary: dict[str, Any], sources: list[Source]) -> list[str]:
    entries = summary["sources"]
    classes = Counter(entries[source.name]["license_class"] for source in sources)
    counts = ", ".join(f"{classes[kind]} {kind}" for kind in CLASSES if classes[kind])
    lines = [
        f"# Attribution: {as_markdown(summary['name'])}",
        "",
        f"Made of {len(sources)} sources ({counts or 'none'}), each under its own licence as its publisher claims it.",
        "The classes are tuplesmith's reading of the names, and no legal advice.",
        "",
        _row(HEAD),
        _row(Markdown("---") for _ in HEAD),
        *(_row(_cells(source, entries[source.name])) for source in sources),
    ]
    lines += _list("Cite", [(source.name, source.citation) for source in sources])
    lines += _list("In place of another dataset", [(source.name, source.substitute_for) for source in sources])
    lines += _list("To know", [(source.name, _doubt(source)) for source in sources])
    return lines + _list("Left out", list(summary["excluded"].items()))


def _cells(source: Source, entry: dict[str, Any]) -> list[str]:
    license = as_link(entry["license"] or "none seen", source.license_url or "")
    revision = entry["revision"] or ("the newest" if source.path else "")
    seen, tuples = source.license_checked or "", f"{entry['tuples']:,}"
    return [source.name, _dataset(source), revision, license, entry["license_class"], seen, tuples]


def _dataset(table: Table) -> str:
    """Return the dataset's id with a link, or the files."""
    if not table.path:
        return ", ".join(table.places)
    parts = [part for part in (table.config, *table.files) if part]
    local = table.path.startswith((".", "/", "~")) or table.path.count("/") != 1
    name = as_markdown(table.places[0]) if local else as_link(table.path, f"https://huggingface.co/datasets/{table.path}")
    return Markdown(name + as_markdown(f" ({', '.join(parts)})")) if parts else name


def _doubt(source: Source) -> str | None:
    return source.notes if source.verified else f"Not verified. {source.notes}"


def _list(title: str, items: list[tuple[str, str | None]]) -> list[str]:
    told = [f"- {as_markdown(name)}: {as_markdown(text)}" for name, text in items if text]
    return ["", f"## {title}", "", *told] if told else []


def _row(cells: Any) -> str:
    return "| " + " | ".join(as_markdown(cell) for cell in cells) + " |"
