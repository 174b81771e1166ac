"""build.json: what a build holds, in the manifest's order; the one list that mining and training go by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.errors import UserError
from curation.manifest import Manifest
from curation.store import atomic, read_json, write_json

Receipt = dict[str, Any]
CONSTANTS = ("task", "instruction", "language", "license", "revision")
COUNTS = ("digest", "rows_in", "tuples_made", "merged", "heldout", "passages")


def write_summary(
    folder: Path, path: Path, manifest: Manifest, curated: dict[str, Receipt], failed: dict[str, UserError]
) -> None:
    """Write manifest.yaml and build.json; sources that this run did not touch keep their entries."""
    text = path.read_bytes()
    copy, summary = folder / "manifest.yaml", folder / "build.json"
    earlier = read_json(summary) if summary.exists() else {"sources": {}, "failed": {}}
    fresh = {name: _entry(receipt) for name, receipt in curated.items()}
    errors = {name: str(error) for name, error in failed.items()}
    names = [source.name for source in manifest.sources]
    entries = {name: earlier["sources"][name] for name in names if name in earlier["sources"] and name not in errors} | fresh
    broken = {name: text for name, text in (earlier["failed"] | errors).items() if name in names and name not in fresh}
    sources = {name: entries[name] for name in names if name in entries}
    whole = {"name": manifest.name, "seed": manifest.seed, "sources": sources, "failed": broken}
    if not copy.exists() or copy.read_bytes() != text:
        with atomic(copy) as file:
            file.write(text)
    if summary.exists() and earlier == whole and list(earlier["sources"]) == list(sources):
        summary.touch()  # the newest build is the one last asked for
    else:
        write_json(summary, whole)


def _entry(receipt: Receipt) -> Receipt:
    return {name: receipt[name] for name in CONSTANTS + COUNTS} | {"tuples": receipt["kept"]}
