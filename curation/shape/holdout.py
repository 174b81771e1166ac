"""Held-out queries for evaluation, and their removal from all training tuples.

Tuples that share a positive or a query (equal normalised form) are held out together, so that no held-out passage is a training
positive.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from curation.core.errors import SourceError
from curation.core.jit import buffers_of
from curation.core.record import draws, dropped_frame
from curation.core.store import atomic, write_lines
from curation.core.text import connected, forms
from curation.core.texts import Texts, binary_keys, digests
from curation.engine.parts import in_order
from curation.engine.pool import Workers
from curation.shape.columns import EVIDENCE_CHARS
from curation.shape.numbered import LISTS

LINES = 1 << 13  # passages written at a time
HELDOUT = pl.Schema({"form": pl.Binary(), "id": pl.String(), "source": pl.String()})


def held_out(tuples: pl.DataFrame, texts: Texts, wanted: int, seed: int, source: str) -> np.ndarray:
    """Return which tuples (n,) bool to hold out: whole groups of tuples that share texts, drawn by seed, at most `wanted`.

    Args:
        tuples: row, query and positives of NUMBERED.
        texts: the texts that the tuples name.
        wanted: the number of tuples to hold out.
        seed: of the manifest.
        source: the name of the source.

    Raises:
        SourceError: no tuple would be left to train on, or no group is small enough.
    """
    if not wanted:
        return np.zeros(len(tuples), bool)
    where = f"source '{source}'"
    if wanted >= len(tuples):
        raise SourceError(where, f"'holdout: {wanted}' leaves none of its {len(tuples)} tuples to train on", "hold out fewer")
    form, lengths = texts.form_number, tuples["positives"].list.len().to_numpy()
    queries = form[tuples["query"].to_numpy()]
    positives = form[tuples["positives"].explode(empty_as_null=False).to_numpy()]
    family = connected(np.repeat(queries, lengths), positives, len(form))[queries]
    _, members, sizes = np.unique(family, return_index=True, return_counts=True)
    order = np.argsort(members)  # a family is named by its first tuple
    members, sizes = members[order], sizes[order]
    taken, total = [], 0
    for at in np.argsort(draws(seed, f"{source}/holdout", tuples["row"].to_numpy()[members]), kind="stable"):
        if total + sizes[at] <= wanted:
            taken.append(family[members[at]])
            total += int(sizes[at])
        if total == wanted:
            break
    if not taken:
        raise SourceError(where, f"its tuples share texts in groups larger than 'holdout: {wanted}'", "hold out more, or none")
    return np.asarray(np.isin(family, taken))


def heldout_forms(held: list[tuple[str, pl.DataFrame]]) -> pl.DataFrame:
    """Return a HELDOUT table of (source, its held-out TUPLES): the form of every query and positive, with its tuple's id."""
    tables = [pl.DataFrame(schema=HELDOUT)]
    for source, tuples in held:
        queries = tuples.select("id", pl.col("query").alias("text"))
        both = pl.concat([queries, tuples.select("id", pl.col("positives").alias("text")).explode("text")])
        form = binary_keys(digests(forms(both["text"]))).alias("form")
        tables.append(both.select(form, "id", pl.lit(source).alias("source")).cast(HELDOUT))
    return pl.concat(tables).unique("form", keep="first", maintain_order=True)


def held_out_texts(texts: Texts, heldout: pl.DataFrame) -> pl.DataFrame:
    """Return text (number), matched_id and source of the texts that HELDOUT has."""
    schema = {"text": pl.UInt32, "matched_id": pl.String, "source": pl.String}
    if not len(heldout) or not len(texts):
        return pl.DataFrame(schema=schema)
    half = np.frombuffer(b"".join(heldout["form"].to_list()), np.uint64)[::2]  # compared first, as whole forms take longer
    maybe = pl.Series(np.ascontiguousarray(texts.forms[:, 0])).is_in(pl.Series(half).implode()).arg_true()
    found = pl.DataFrame({"text": maybe, "form": binary_keys(texts.forms[maybe.to_numpy()])})
    found = found.join(heldout, on="form", maintain_order="left").rename({"id": "matched_id"})
    return found.select(list(schema)).cast(schema)  # type: ignore[arg-type]


def remove_heldout(tuples: pl.DataFrame, texts: Texts, held: pl.DataFrame, source: str) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Return (tuples kept, dropped tuples, number of removed negatives): no held-out text stays in any role.

    A held-out query, or the last positive, drops its tuple; a negative is removed alone. The evidence is the text.

    Args:
        tuples: NUMBERED.
        texts: the texts that the tuples name.
        held: from `held_out_texts`.
        source: the name of the source.
    """
    nothing = tuples, dropped_frame(source, "decontaminate", tuples["id"].head(0), ""), 0
    if not len(held) or not len(tuples):
        return nothing
    frame = tuples.with_row_index("at")
    queries = frame.select("at", pl.col("query").alias("text")).join(held, on="text", maintain_order="left")
    positives, negatives = (
        frame.select("at", pl.col(name).alias("text")).explode("text", empty_as_null=False).drop_nulls() for name in LISTS
    )
    found = [long.join(held, on="text", maintain_order="left") for long in (positives, negatives)]
    if not len(queries) and not any(map(len, found)):
        return nothing
    clean = frame.drop(LISTS)
    for name, long in zip(LISTS, (positives, negatives), strict=True):
        good = long.join(held, on="text", how="anti", maintain_order="left").group_by("at", maintain_order=True)
        lists = good.agg(pl.col("text").alias(name))
        clean = clean.join(lists, on="at", how="left", maintain_order="left").with_columns(pl.col(name).fill_null([]))
    first = pl.concat(
        [queries.with_columns(reason=pl.lit("heldout_query")), found[0].with_columns(reason=pl.lit("heldout_positive"))]
    ).unique("at", keep="first", maintain_order=True)
    clean = clean.join(first.rename({"source": "matched_source"}), on="at", how="left", maintain_order="left")
    emptied = (pl.col("reason") == "heldout_positive") & (pl.col("positives").list.len() == 0)
    out = ((pl.col("reason") == "heldout_query") | emptied).fill_null(False)
    gone = clean.filter(out)
    shown = texts.at(gone["text"]).str.slice(0, EVIDENCE_CHARS)
    dropped = dropped_frame(
        source, "decontaminate", gone["id"], gone["reason"], shown, gone["matched_id"], gone["matched_source"]
    )
    left = clean.filter(~out)
    return left.select(tuples.columns), dropped, len(found[1].join(left, on="at", how="semi"))


def write_beir(folder: Path, held: pl.DataFrame, texts: Texts, passages: np.ndarray, workers: Workers) -> None:
    """Write held-out queries as a BEIR folder: corpus.jsonl, queries.jsonl, qrels/test.tsv.

    The corpus is all passages of the source, including those of training tuples: they are the distractors.

    Args:
        folder: to write to.
        held: the held-out tuples, NUMBERED.
        texts: the texts that they name.
        passages: (n,) u32, distinct by key.
        workers: prepare the lines.
    """
    (folder / "qrels").mkdir(parents=True)
    with atomic(folder / "corpus.jsonl") as file:
        some = (passages[start : start + LINES] for start in range(0, len(passages), LINES))
        file.writelines(in_order(workers, partial(_corpus_lines, texts), some, folder))
    asked = zip(held["id"], texts.at(held["query"]), strict=True)
    write_lines(folder / "queries.jsonl", ({"_id": id_, "text": text} for id_, text in asked))
    with atomic(folder / "qrels" / "test.tsv") as file:
        file.write(b"query-id\tcorpus-id\tscore\n")
        for id_, positives in held.select("id", "positives").iter_rows():
            keys = texts.key_series(np.array(positives))
            file.writelines(f"{id_}\t{key.hex()}\t1\n".encode() for key in keys)


def _corpus_lines(texts: Texts, some: np.ndarray) -> bytes:
    """Return lines of JSON as `json.dumps` writes them, several times as fast."""
    frame = pl.DataFrame({"key": texts.key_series(some).bin.encode("hex"), "text": texts.at(some)})
    escaped = pl.col("text").str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
    frame = frame.with_columns(escaped.alias("inside"))
    odd = frame["text"].str.contains(r"[\x00-\x1f]").arg_true()
    if len(odd):
        written = [json.dumps(text, ensure_ascii=False)[1:-1] for text in frame["text"].gather(odd)]
        frame = frame.with_columns(frame["inside"].scatter(odd, written))
    line = pl.concat_str(pl.lit('{"_id": "'), "key", pl.lit('", "title": "", "text": "'), "inside", pl.lit('"}\n'))
    data, starts = buffers_of(frame.select(line)["literal"])
    return data[starts[0] : starts[-1]].tobytes()
