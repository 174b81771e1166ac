"""What a manifest reads outside of its own folder: list it before it is read, refuse it, hide its paths when publishing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from curation.core.errors import ManifestError, SourceError, UserError
from curation.read.paths import expand_path, is_outside
from curation.read.sources import files_outside
from curation.recipe.addresses import is_of_this_machine, is_url, portable
from curation.recipe.evaluation import EvalSet
from curation.recipe.manifest import Manifest
from curation.recipe.source import Questions, Source, Table

CONFINED = "`--confined` reads nothing there"


def all_tables(manifest: Manifest) -> Iterator[tuple[str, Table]]:
    """Yield each table that a manifest reads, after its name in errors."""
    against = manifest.decontaminate.against if manifest.decontaminate else []
    named: list[tuple[str, Source | EvalSet]] = [(f"source '{source.name}'", source) for source in manifest.sources]
    for where, one in named + [(f"evaluation set '{one.title}'", one) for one in against]:
        yield where, one
        for part, table in (("corpus", one.corpus), ("queries", one.queries)):
            if isinstance(table, Table):
                yield f"{where} ({part})", table


def read_outside(manifest: Manifest, base: Path) -> dict[str, list[str]]:
    """Return the paths outside of the manifest's folder, links followed, by what reads them; none of them is opened.

    What does not exist is ignored here; whoever reads it reports it.
    """
    found: dict[str, list[str]] = {}
    for where, table in all_tables(manifest):
        try:
            names = [name for name, _ in files_outside(table, base)]
        except (UserError, OSError):
            names = []
        if names:
            found[where] = names
    allow = manifest.decontaminate.allow if manifest.decontaminate else []
    if isinstance(allow, str) and is_outside(base / expand_path(allow, base), base):
        found["decontaminate: allow"] = [allow]
    for where, name in _models(manifest):
        if is_url(name) or is_of_this_machine(name) or (Path(name).exists() and is_outside(Path(name), base)):
            found[where] = [name]
    return found


def _models(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the models that a manifest names, after the place of each; in place of a server's model the server's address."""
    asked = [(f"source '{source.name}' (queries)", source.queries) for source in manifest.sources]
    models = (
        *((where, one.url or one.model) for where, one in asked if isinstance(one, Questions)),
        ("mine: model", manifest.mine and manifest.mine.model),
        ("mine: reranker", manifest.mine and manifest.mine.reranker),
        ("train: model", manifest.train and manifest.train.model),
    )
    return [(where, name) for where, name in models if name]


def refuse_outside(manifest: Manifest, path: Path) -> dict[str, UserError]:
    """Return the sources of the manifest at `path` that read outside of its folder, and the error of each.

    Raises:
        ManifestError: an evaluation set, a file of allowed texts or a model is outside.
    """
    found = read_outside(manifest, path.parent)
    failed: dict[str, UserError] = {}
    for source in manifest.sources:
        where = f"source '{source.name}'"
        names = [name for part in ("", " (corpus)", " (queries)") for name in found.pop(f"{where}{part}", [])]
        if names:
            failed[source.name] = SourceError(where, f"reads '{names[0]}', outside of the manifest's folder", CONFINED)
    for where, names in found.items():
        raise ManifestError(path, f"{where} names '{names[0]}', outside of the manifest's folder", CONFINED)
    return failed


def hide_local_paths(text: str, manifest: Manifest) -> str:
    """Return a text to be published (plain, JSON or HTML) without the local folders that a manifest names."""
    files = [(name, False) for _, table in all_tables(manifest) for name in table.files]
    folders = [(str(table.path), True) for _, table in all_tables(manifest) if table.path]
    allow = manifest.decontaminate.allow if manifest.decontaminate else []
    more = ([(allow, False)] if isinstance(allow, str) else []) + [(name, True) for _, name in _models(manifest)]
    public = {name: portable(name, folder) for name, folder in files + folders + more if is_of_this_machine(name)}
    forms = {form: public[name] for name in public for form in (json.dumps(name, ensure_ascii=False)[1:-1], escape(name), name)}
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(rf"(?<![\w/.~-]){re.escape(form)}(?!\w)", forms[form].replace("\\", r"\\"), text)
    return text
