"""Rows that name texts by id: each id is replaced by the text that a corpus or a table of queries has for it.

    rows     query_id  document_ids   scores          queries  _id  text         corpus  _id  text
             q1        [d7, d2]       [11.5, 3.0]              q1   "capital?"           d2   "Lyon is ..."
                                                                                         d7   "Paris is ..."

LightOn, Tevatron and NeMo write training data like this; a text that many rows name is in their files once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from curation.core.errors import SourceError, listed
from curation.core.tables import lists
from curation.core.texts import Facts, Texts, TextWriter, digests, open_texts
from curation.read.rows import Lost, Rows
from curation.recipe.source import Questions, Source, TextTable
from curation.shape.columns import column, ids_and_texts, place_of, unpacked
from curation.shape.numbered import placed
from curation.shape.shapes import negative_columns


def texts_for_ids(
    source: Source, parts: Iterable[Rows], read: Callable[[str, TextTable], Iterable[pl.DataFrame]], place: Path, size: float
) -> tuple[Source, Iterator[Rows]]:
    """Return a source and its rows with columns of texts in place of those that hold ids.

    In memory are the ids that rows name, each once; rows and texts are in files.

    Args:
        source: pairs or lists of documents; with `by_id`, it has `corpus`, `queries` or both.
        parts: its rows, at least one part.
        read: returns the rows of its `corpus` or `queries`, in batches; only texts that the rows name are kept.
        place: a folder for the files.
        size: bytes of texts that a part has at most, if it has several rows.

    Raises:
        SourceError: a table has no ids, or two texts for one; or a row names an id that the table does not have.
    """
    assert not isinstance(source.queries, Questions)
    f = source.fields
    tables = {which: table for which, table in (("corpus", source.corpus), ("queries", source.queries)) if table}
    files: list[tuple[Path, list[Lost]]] = []
    named: dict[str, list[pl.Series]] = {which: [] for which in tables}
    for rows, lost in parts:
        negatives = negative_columns(source, rows) if source.corpus else list(f.negatives)
        columns = {"corpus": [name for name in (f.positive, f.documents, *negatives) if name], "queries": [str(f.query)]}
        for which in tables:
            for name in columns[which]:
                values = unpacked(column(place_of(source), rows, name))
                ids = values.cast(pl.List(pl.String)) if isinstance(values.dtype, pl.List) else values.cast(pl.String)
                rows = rows.with_columns(ids.alias(f"{name} (text)"))
                flat = ids.explode() if isinstance(ids.dtype, pl.List) else ids
                named[which].append(flat.drop_nulls().unique(maintain_order=True).alias("id"))
        files.append((place / f"rows-{len(files)}.arrow", lost))
        rows.write_ipc(files[-1][0])
    known: dict[str, tuple[pl.DataFrame, Texts]] = {}  # by column
    for which, table in tables.items():
        ids = pl.concat(named[which]).unique(maintain_order=True)
        of_ids = _texts_of(source, which, table, ids, columns[which], read(which, table), place / which)
        known |= {f"{name} (text)": of_ids for name in columns[which]}
    mapped = {name: f"{getattr(f, name)} (text)" for name in ("positive", "documents") if source.corpus and getattr(f, name)}
    mapped |= {"query": f"{f.query} (text)"} if source.queries else {}
    found = [f"{name} (text)" for name in negatives] if source.corpus else negatives
    fields = f.model_copy(update={**mapped, "negatives": found})
    return source.model_copy(update={"fields": fields}), _with_texts(files, known, size)


def _texts_of(
    source: Source,
    which: str,
    table: TextTable,
    wanted: pl.Series,
    columns: list[str],
    batches: Iterable[pl.DataFrame],
    place: Path,
) -> tuple[pl.DataFrame, Texts]:
    """Return id and number of the `wanted` ids, and the texts by number, which are written to the folder `place`."""
    there = f"{place_of(source)} ({which})"
    hashes = np.sort(np.append(wanted.hash().to_numpy(), np.uint64(2**64 - 1)))
    parts = [pl.DataFrame(schema={"id": pl.String, "number": pl.UInt32})]
    place.mkdir()
    with ExitStack() as closing:
        writer = TextWriter(place, closing)
        for batch in batches:
            ids, texts = ids_and_texts(there, batch, table.fields)
            if ids.null_count():
                raise SourceError(there, f"a row has no '{table.fields.id}': '{texts.filter(ids.is_null())[0]}'"[:200])
            hashed = ids.hash().to_numpy()
            some = pl.Series(hashes[np.searchsorted(hashes, hashed)] == hashed)
            ids, texts = ids.filter(some), texts.filter(some)
            there_are = texts.drop_nulls()
            raw = digests(there_are)
            first = writer.add(there_are, Facts(raw, raw, np.zeros(len(raw), np.uint8)))  # forms are not asked for
            numbers = placed(np.arange(first, writer.count, dtype=np.uint32), texts)
            parts.append(pl.DataFrame({"id": ids, "number": numbers}))
    texts_by_number = open_texts(place)
    known = pl.concat(parts)
    known = known.with_columns(pl.Series(texts_by_number.raw_number).gather(known["number"]).alias("number"))
    known = known.unique(maintain_order=True)
    if len(twice := known["id"].filter(known["id"].is_duplicated()).unique(maintain_order=True)):
        what = f"{len(twice)} ids have two texts, such as '{twice[0]}'"
        raise SourceError(there, what, "give each text an id of its own")
    if len(missing := wanted.filter(~wanted.is_in(known["id"].implode()))):
        what = f"{len(missing)} of {len(wanted)} ids in {listed(columns)} are not in it"
        hint = f"it is read from {listed(table.places)}, ids from its column '{table.fields.id}'"
        raise SourceError(there, f"{what}, such as {listed(missing.head(2).to_list())}", hint)
    return known, texts_by_number


def _with_texts(
    files: list[tuple[Path, list[Lost]]], known: dict[str, tuple[pl.DataFrame, Texts]], size: float
) -> Iterator[Rows]:
    """Yield rows with texts in place of ids, in parts of at most `size` bytes of texts, or a row more."""
    for path, lost in files:
        rows = pl.read_ipc(path)
        total = np.zeros(len(rows), np.int64)  # bytes of texts of each row
        for name, (numbers, texts) in known.items():
            long = rows.select(at=pl.int_range(pl.len()), id=pl.col(name))
            several = isinstance(long.schema["id"], pl.List)
            each = long.explode("id", empty_as_null=False) if several else long
            each = each.join(numbers, on="id", how="left", maintain_order="left")
            if several:
                long = long.join(each.group_by("at").agg("number"), on="at", how="left", maintain_order="left")
            rows = rows.with_columns((long["number"].fill_null([]) if several else each["number"]).alias(name))
            at, used = each.drop_nulls("number").select("at", "number")
            some = used.to_numpy()
            lengths = texts.starts[some + np.uint32(1)] - texts.starts[some]
            total += np.bincount(at.to_numpy(), lengths, minlength=len(rows)).astype(np.int64)
        cuts = np.flatnonzero(np.diff(np.cumsum(total) // size)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(rows)]):
            part = rows.slice(start, end - start)
            for name, (_, texts) in known.items():
                numbers_here = part[name]
                several = isinstance(numbers_here.dtype, pl.List)
                flat = numbers_here.explode(empty_as_null=False) if several else numbers_here
                spelled = placed(texts.at(flat.drop_nulls()), flat)
                if several:
                    spelled = lists(spelled, numbers_here.list.len().to_numpy().astype(np.int64), None)
                part = part.with_columns(spelled.alias(name))
            yield Rows(part, lost)
            lost = []
