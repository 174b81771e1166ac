"""ATTRIBUTION.md: whose data a build contains, and under which licences, as its sources claim them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curation.core.escape import Markdown, as_link, as_markdown, markdown_table
from curation.core.store import atomic
from curation.recipe.licenses import CLASSES, claim
from curation.recipe.manifest import Manifest
from curation.recipe.source import Source


def write_attribution(folder: Path, manifest: Manifest, summary: dict[str, Any]) -> None:
    """Write ATTRIBUTION.md for the sources in build.json; it has no date, so equal builds have equal bytes."""
    entries = summary["sources"]
    sources = [source for source in manifest.sources if source.name in entries]
    classes = Counter(entries[source.name]["license_class"] for source in sources)
    counts = ", ".join(f"{classes[kind]} {kind}" for kind in CLASSES if classes[kind])
    lines = [
        f"# Attribution: {as_markdown(summary['name'])}",
        "",
        f"Made of {len(sources)} sources ({counts or 'none'}), each under its own licence as its publisher claims it.",
        "The classes are tuplesmith's reading of the names; they are not legal advice.",
        "",
        sources_table(sources, entries),
    ]
    for title, items in (
        ("Cite", [(source.name, source.citation) for source in sources]),
        ("In place of another dataset", [(source.name, source.substitute_for) for source in sources]),
        ("To know", [(source.name, source.notes if source.verified else f"Not verified. {source.notes}") for source in sources]),
        ("Left out", list(summary["excluded"].items())),
    ):
        if listed := [f"- {as_markdown(name)}: {as_markdown(text)}" for name, text in items if text]:
            lines += ["", f"## {title}", "", *listed]
    text = ("\n".join(lines) + "\n").encode()
    target = folder / "ATTRIBUTION.md"
    if not target.exists() or target.read_bytes() != text:
        with atomic(target) as file:
            file.write(text)


def sources_table(sources: list[Source], entries: Mapping[str, Any]) -> str:
    """Return one line per source in Markdown; `entries` are those of build.json."""
    lines = []
    for source in sources:
        entry = entries[source.name]
        license, url, day = claim(entry)
        # the dataset's id with a link, or the files
        dataset = ", ".join(source.places)
        if source.path:
            local = source.path.startswith((".", "/", "~")) or source.path.count("/") != 1
            address = f"https://huggingface.co/datasets/{source.path}"
            dataset = as_markdown(source.places[0]) if local else as_link(source.path, address)
            if parts := [part for part in (source.config, *source.files) if part]:
                dataset = Markdown(dataset + as_markdown(f" ({', '.join(parts)})"))
        revision = entry["revision"] or ("the newest" if source.path else "")
        lines.append((source.name, dataset, revision, as_link(license, url), entry["license_class"], day, entry["tuples"]))
    return markdown_table(("source", "dataset", "revision", "licence as claimed", "class", "seen on", "tuples"), lines)
