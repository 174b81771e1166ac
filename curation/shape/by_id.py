"""Rows that name texts by id: each id is replaced by the text that a corpus or a table of queries has for it.

    rows     query_id  document_ids   scores          queries  _id  text         corpus  _id  text
             q1        [d7, d2]       [11.5, 3.0]              q1   "capital?"           d2   "Lyon is ..."
                                                                                         d7   "Paris is ..."

LightOn, Tevatron and NeMo write training data like this; a text that many rows name is in their files once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import polars as pl

from curation.core.errors import SourceError, listed
from curation.recipe.source import Questions, Source, TextTable
from curation.shape.columns import column, ids_and_texts, place_of, unpacked
from curation.shape.shapes import negative_columns


def texts_for_ids(
    source: Source, rows: pl.DataFrame, read: Callable[[str, TextTable], Iterable[pl.DataFrame]]
) -> tuple[Source, pl.DataFrame]:
    """Return a source and its rows with columns of texts in place of those that hold ids; unchanged without `by_id`.

    Args:
        source: pairs or lists of documents; with `by_id`, it has `corpus`, `queries` or both.
        rows: its rows.
        read: returns the rows of its `corpus` or `queries`, in batches; only texts that the rows name are held.

    Raises:
        SourceError: a table has no ids, or two texts for one; or a row names an id that the table does not have.
    """
    if not source.by_id:
        return source, rows
    assert not isinstance(source.queries, Questions)
    f = source.fields
    negatives = negative_columns(source, rows) if source.corpus else list(f.negatives)
    of_corpus = [name for name in (f.positive, f.documents, *negatives) if name]
    for which, table, names in (("corpus", source.corpus, of_corpus), ("queries", source.queries, [f.query])):
        for name in names if table else ():
            values = unpacked(column(place_of(source), rows, str(name)))
            lists = values.cast(pl.List(pl.String)) if isinstance(values.dtype, pl.List) else values.cast(pl.String)
            rows = rows.with_columns(lists.alias(f"{name} (text)"))
        if table:
            # the texts of these ids; only texts that the rows name are held
            columns = [f"{name} (text)" for name in names]
            there = f"{place_of(source)} ({which})"
            flat = [rows[name].explode() if isinstance(rows.schema[name], pl.List) else rows[name] for name in columns]
            wanted = pl.concat([values.alias("id") for values in flat]).drop_nulls().unique(maintain_order=True)
            parts = [pl.DataFrame(schema={"id": pl.String, "text": pl.String})]
            for batch in read(which, table):
                ids, texts = ids_and_texts(there, batch, table.fields)
                if ids.null_count():
                    raise SourceError(there, f"a row has no '{table.fields.id}': '{texts.filter(ids.is_null())[0]}'"[:200])
                parts.append(pl.DataFrame({"id": ids, "text": texts}).filter(ids.is_in(wanted.implode())))
            known = pl.concat(parts).unique(maintain_order=True)
            if len(twice := known["id"].filter(known["id"].is_duplicated()).unique(maintain_order=True)):
                what = f"{len(twice)} ids have two texts, such as '{twice[0]}'"
                raise SourceError(there, what, "give each text an id of its own")
            if len(missing := wanted.filter(~wanted.is_in(known["id"].implode()))):
                what = f"{len(missing)} of {len(wanted)} ids in {listed(names)} are not in it"
                hint = f"it is read from {listed(table.places)}, ids from its column '{table.fields.id}'"
                raise SourceError(there, f"{what}, such as {listed(missing.head(2).to_list())}", hint)
            for name in columns:
                long = rows.select(at=pl.int_range(pl.len()), id=pl.col(name))
                if not isinstance(long.schema["id"], pl.List):
                    texts = long.join(known, on="id", how="left", maintain_order="left")["text"]
                    rows = rows.with_columns(texts.alias(name))
                    continue
                each = long.explode("id", empty_as_null=False).join(known, on="id", how="left", maintain_order="left")
                joined = long.join(each.group_by("at").agg("text"), on="at", how="left", maintain_order="left")
                rows = rows.with_columns(joined["text"].alias(name))
    mapped = {name: f"{getattr(f, name)} (text)" for name in ("positive", "documents") if source.corpus and getattr(f, name)}
    mapped |= {"query": f"{f.query} (text)"} if source.queries else {}
    found = [f"{name} (text)" for name in negatives] if source.corpus else negatives
    return source.model_copy(update={"fields": f.model_copy(update={**mapped, "negatives": found})}), rows
