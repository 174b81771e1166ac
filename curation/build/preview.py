"""`curate build --dry-run`: what each source of a manifest would become, from its first rows; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

from curation.build.build import job_of, pick
from curation.build.show import record_text
from curation.core.errors import SourceError, listed
from curation.core.record import render_query
from curation.read.lock import apply_lock
from curation.read.mapping import column_map, matching_columns
from curation.read.outside import refuse_outside
from curation.read.remote import first_objects
from curation.read.rows import ROW, Lost
from curation.read.sources import table_rows
from curation.recipe.licenses import Policy, allowed
from curation.recipe.manifest import load_manifest
from curation.recipe.source import Questions, shape_of
from curation.shape.columns import check_readable, column, place_of
from curation.shape.questions import documents_of, prompt_of
from curation.shape.shapes import to_tuples

PREVIEW_ROWS = 1000


def preview(
    path: Path,
    only: Iterable[str],
    limit: int | None,
    write: Callable[[str], None],
    licenses: Policy | None = None,
    confined: bool = False,
) -> None:
    """Show the shape of each source that a build would read, and a tuple made of its first rows; no file is written.

    Raises:
        ManifestError: as `build.build`.
        SourceError: a source cannot be read, or differs from its lock.
    """
    manifest, excluded = allowed(load_manifest(path), licenses)
    chosen = pick(manifest, only, excluded)
    manifest, changed = apply_lock(manifest, path, refuse_outside(manifest, path) if confined else {})
    for source in manifest.sources:
        if source.name not in chosen:
            continue
        if source.name in changed:
            raise changed[source.name]
        few = {"sample": "first", "limit": PREVIEW_ROWS}  # so that only the first rows are fetched from the Hub
        job = job_of(manifest, first_objects(source).model_copy(update=few), path.parent, Path(), limit)
        rows, lost = pl.DataFrame(), list[Lost]()  # the first batch that has rows, and what could not be read up to its end
        for batch in table_rows(job.source, job.base):
            lost += batch.lost
            if len(batch.frame):
                rows = batch.frame
                break
        check_readable(source, rows, lost)
        columns = [name for name in rows.columns if name != ROW]
        write(f"{source.name}: {source.task}, shape {shape_of(source)}, columns {listed(columns, 20)}")
        if lost:
            counts = sorted(Counter(one.reason for one in lost).items())
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts)
            write(f"  {len(lost):,} of the first {len(rows) + len(lost):,} rows are left out: {reasons}")
        for pattern in source.fields.negatives:
            if passed := matching_columns(pattern, rows.columns, column_map(source).names)[1]:
                write(f"  `{pattern}` passes over {listed(passed, 20)}: no texts by their names, or mapped as something else")
        if shape_of(source) == "qrels" or source.by_id:  # their texts are in other files
            continue
        fields = source.fields
        mapped = (fields.query, fields.title, fields.positive, fields.documents, fields.label, fields.score)
        for name in [name for name in mapped if name is not None]:
            column(place_of(source), rows, name)
        if isinstance(source.queries, Questions):
            texts = documents_of(source, rows.head(PREVIEW_ROWS)).drop_nulls()
            write(f"  a build asks {source.queries.place} about each document; of the first one:")
            write(record_text({"prompt": prompt_of(source.queries, texts[0])}) if len(texts) else "  no text")
            continue
        try:
            made = to_tuples(source, rows.head(PREVIEW_ROWS), job.seed)
        except SourceError as error:
            write(f"  of its first {min(len(rows), PREVIEW_ROWS):,} rows alone: {error.what}")
            continue
        for row in made.tuples.head(1).iter_rows(named=True):
            query = render_query(made.instruction, row["query"])
            write(record_text({"query": query, "positives": row["positives"], "negatives": row["negatives"]}))
