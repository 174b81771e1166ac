"""Documents cut to the length that a model reads: `corpus: {chunk: {tokens: 256, overlap: 32}}`.

    documents   id  text                       chunks   id  text
                d1  "Oak trees bear acorns.    d1  "Oak trees bear acorns. They grow slowly."
                     They grow slowly. ..."    d1  "They grow slowly. Jays hide them ..."

A build knows no model, so a token here is at most four letters or digits of a word, one sign, or one character of a script
without spaces. MiniLM's tokenizer makes fewer: of chunks of 256 tokens of English science, prose and code, 99 of 100 have
at most 259 of its tokens. Chunks begin and end at white space or such a character, but a longer run of signs is cut.
"""

from __future__ import annotations

import re

import numpy as np
import polars as pl

from curation.core.characters import SPACELESS_RANGES
from curation.core.errors import SourceError, listed
from curation.core.record import keys_of
from curation.read.rows import ROW
from curation.recipe.source import Chunk, Source
from curation.shape.columns import column, place_of

OWN_DOCUMENTS = "own_documents.parquet"  # `key` of a query, `documents`: ids of those that its positives are from
DOCUMENTS = "documents.parquet"  # `document`: an id in OWN_DOCUMENTS, `passages`: keys of its chunks
WITHOUT_SPACES = "".join(f"{chr(first)}-{chr(last)}" for first, last in SPACELESS_RANGES)  # scripts, in a class of a pattern
TOKEN = re.compile(rf"([{WITHOUT_SPACES}])|[^\W_{WITHOUT_SPACES}]{{1,4}}|[^\w\s]|_")


def chunked(documents: pl.DataFrame, chunk: Chunk | None) -> pl.DataFrame:
    """Return id, text with a row per chunk of each document, in order; short documents, and all without `chunk`, as they are."""
    if chunk is None:
        return documents
    long = documents["text"].str.len_chars() > chunk.tokens  # others cannot have more tokens
    chunks = []  # of each document
    for text, cut in zip(documents["text"], long, strict=True):
        tokens = [(found.start(), found.end(), found[1] is not None) for found in TOKEN.finditer(text)] if cut else []
        if len(tokens) <= chunk.tokens:
            chunks.append([text])
            continue
        starts, ends, alone = np.array(tokens).T
        # tokens before which one may cut
        between = np.flatnonzero(np.append((starts[1:] > ends[:-1]) | (alone[1:] > 0), True)) + 1
        pieces, first, after = list[str](), 0, 0
        while after < len(tokens):
            after = min(first + chunk.tokens, len(tokens))
            earlier = between[np.searchsorted(between, after, side="right") - 1] if after >= between[0] else first
            after = int(earlier) if earlier > first else after
            pieces.append(text[starts[first] : ends[after - 1]])
            if after < len(tokens):
                later = int(between[np.searchsorted(between, after - chunk.overlap)])
                first = later if first < later <= after else after
        chunks.append(pieces)
    return documents.with_columns(pl.Series("text", chunks, dtype=pl.List(pl.String))).explode("text")


def own_documents(source: Source, rows: pl.DataFrame, tuples: pl.DataFrame) -> pl.DataFrame | None:
    """Return `key` (of a query) and `documents`: those that `positive_id` names for its tuples; None if no column is mapped.

    Args:
        source: pairs.
        rows: its rows, or some of them.
        tuples: TUPLES, made from the rows.
    """
    if source.fields.positive_id is None:
        return None
    ids = column(place_of(source), rows, source.fields.positive_id)
    named = pl.DataFrame({"row": rows[ROW].cast(pl.UInt64), "documents": ids.cast(pl.String)}).drop_nulls("documents")
    asked = tuples.select("row", keys_of(tuples["query"])).join(named, on="row", maintain_order="left")
    return asked.group_by("key", maintain_order=True).agg(pl.col("documents").unique(maintain_order=True))


def chunks_of_documents(source: Source, named: pl.Series, documents: pl.DataFrame) -> pl.DataFrame:
    """Return DOCUMENTS.

    Args:
        source: pairs with a `corpus` and `positive_id`.
        named: the ids of documents that its rows name, each once.
        documents: id and text of their chunks.

    Raises:
        SourceError: a row names a document that is not in the corpus.
    """
    assert source.corpus is not None
    if len(missing := named.filter(~named.is_in(documents["id"].implode()))):
        what = f"{len(missing)} ids in {source.fields.positive_id} are not in it, such as {listed(missing.head(2))}"
        hint = f"it is read from {listed(source.corpus.places)}, ids from its column '{source.corpus.fields.id}'"
        raise SourceError(f"{place_of(source)} (corpus)", what, hint)
    passages = documents.select(pl.col("id").alias("document"), keys_of(documents["text"]).alias("passages"))
    return passages.group_by("document", maintain_order=True).agg("passages")
