"""Rows to tuples: the six shapes. Which one a source has follows from its mapped columns (`manifest.shape_of`).

    pairs      query + positive [+ negatives]             one row, one tuple
    listed     query + documents + labels or scores       one row, one tuple: documents are positives or negatives
    nli        premise + hypothesis + label               rows of one premise, one tuple: entailed = positive, others = negatives
    scored     text + text + score                        pairs with score >= threshold, both ways where asked
    labelled   text + label                               classification: label texts are passages, the other is the negative
                                                          clustering: positive = another text of the class
    qrels      query id + passage id, corpus, queries     one query, one tuple

Every row is either in a tuple or in `dropped`. Of several positives the one with the highest grade
or score comes first, and those without a grade last; equal ones keep the order of the source.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.core.errors import SourceError, listed
from curation.core.record import draws, split_query
from curation.core.texts import Facts, Texts
from curation.read.mapping import column_map, labels_by_form, matching_columns
from curation.read.rows import ROW
from curation.recipe.source import Source, TextTable, shape_of
from curation.shape.chunks import chunked, own_documents
from curation.shape.columns import (
    TUPLES,
    Tuples,
    dropped_rows,
    first_reason,
    ids_and_texts,
    instruction_of,
    named,
    number_column,
    place_of,
    query_column,
    row_ids,
    sort_by_grade,
    split_dropped,
    text_column,
    text_lists,
)
from curation.shape.labelled import classification, clustering, refuse_typos
from curation.shape.numbered import NUMBERED, numbers_of, placed, spelled
from curation.shape.scores import answers_of, grades_of, listed_sides, scores_of

TOGETHER = ("nli", "labelled")  # shapes whose rows make tuples together: `by_numbers`, then `joined`
NLI_LABELS = {"entailment": "positive", "neutral": "negative", "contradiction": "negative"}


def to_tuples(
    source: Source, rows: pl.DataFrame, seed: int, corpus: pl.DataFrame | None = None, queries: pl.DataFrame | None = None
) -> Tuples:
    """Shape the rows of a source.

    Args:
        source: its fields, task, labels and threshold.
        rows: the columns of the source, and `__row`, the number of each row.
        seed: of the manifest.
        corpus: qrels only: the rows of the source's `corpus`, or those of them that `rows` name.
        queries: qrels only: the rows of the source's `queries`.

    Raises:
        SourceError: a mapped column is missing or of the wrong kind, or there are too few or too many labels.
    """
    shape = shape_of(source)
    if shape == "qrels":
        assert corpus is not None
        assert queries is not None
        assert isinstance(source.queries, TextTable)
        assert source.corpus is not None
        passages = chunked(texts_with_ids(source, "corpus", source.corpus, corpus), source.corpus.chunk)
        made = shape_qrels(source, rows, seed, passages, queries_of(source, queries))
        return made._replace(corpus=passages["text"], instruction=instruction_of(source, queries[source.queries.fields.text]))
    assert source.fields.query is not None
    if shape in TOGETHER:
        frame, once, facts = by_numbers(source, rows)
        texts = Texts.of(once, facts)
        made = joined(source, frame, texts)
        made = made._replace(tuples=spelled(made.tuples, texts), texts=None)
    else:
        made = _shape_pairs(source, rows, scored=shape == "scored")
        answers, documents = answers_of(source, rows, made.tuples), own_documents(source, rows, made.tuples)
        made = made._replace(answers=answers, documents=documents)
    return made._replace(instruction=instruction_of(source, rows[source.fields.query]))


def by_numbers(source: Source, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, Facts]:
    """Return rows of one of the shapes TOGETHER with numbers in place of texts, the distinct texts, and their facts.

    The columns are row, id, query and other (numbers, null for a blank text), evidence (the label as it is written), and label.
    `other` is the second text of NLI, and the text of the label of a classification.

    Raises:
        SourceError: a mapped column is missing or of the wrong kind.
    """
    f = source.fields
    assert f.query is not None
    assert f.label is not None
    evidence = text_column(source, rows, f.label)
    known = labels_by_form(source.labels or (NLI_LABELS if shape_of(source) == "nli" else {}))
    labels = evidence.replace_strict(known, default=None, return_dtype=pl.String) if known else evidence
    columns = {"query": query_column(source, rows, f.query)}
    if f.positive is not None:
        columns["other"] = text_column(source, rows, f.positive)
    elif source.task == "classification":
        columns["other"] = labels
    numbers, once, facts = numbers_of(list(columns.values()))
    frame = pl.DataFrame({"row": rows[ROW], "id": row_ids(source, rows), "evidence": evidence, "label": labels})
    for (name, texts), values in zip(columns.items(), numbers, strict=True):
        frame = frame.with_columns(placed(values, texts).alias(name))
    return frame, once, facts


def joined(source: Source, frame: pl.DataFrame, texts: Texts) -> Tuples:
    """Return the NUMBERED tuples that all rows make together.

    Args:
        source: of one of the shapes TOGETHER.
        frame: its rows, of `by_numbers`; equal texts have one number.
        texts: the texts that the rows name.

    Raises:
        SourceError: there are too few or too many labels, or some that may be mistyped.
    """
    if shape_of(source) == "nli":
        made = _shape_nli(source, frame)
    else:
        made = (classification if source.task == "classification" else clustering)(source, frame, texts)
    return made._replace(texts=texts)


def _shape_pairs(source: Source, rows: pl.DataFrame, scored: bool) -> Tuples:
    f = source.fields
    assert f.query is not None
    queries = query_column(source, rows, f.query)
    grades: pl.Series | None
    unlabelled = 0
    if f.documents:
        sides, grades, scores, unlabelled = listed_sides(source, rows, queries)
    else:
        assert f.positive is not None
        found = [(name, text_lists(source, rows, name)) for name in negative_columns(source, rows)]
        positives = text_lists(source, rows, f.positive)
        doubtful = [(name, lists) for name, lists in found if name not in f.negatives and _all_numbers(lists)]
        if doubtful and not _all_numbers(positives):
            name, lists = doubtful[0]
            seen = listed(lists.explode().drop_nulls().unique(maintain_order=True).head(3).to_list())
            what = f"column '{name}', which matches a pattern of 'negatives', holds only numbers ({seen})"
            what += ", and the positives are texts"
            raise SourceError(place_of(source), what, "name the columns of negatives one by one")
        none = pl.Series([[]], dtype=pl.List(pl.String)).new_from_index(0, len(rows))
        united = pl.select(pl.concat_list([lists for _, lists in found])).to_series() if found else none
        sides = {"positives": positives, "negatives": united}
        grades, scores = grades_of(source, rows, sides["positives"]), scores_of(source, rows, queries, sides)
    frame = pl.DataFrame(
        {
            "row": rows[ROW],
            "id": row_ids(source, rows),
            "query": queries,
            "positives": sides["positives"],
            "negatives": sides["negatives"].list.drop_nulls(),
            "label": pl.Series([None], dtype=pl.String).new_from_index(0, len(rows)),
            "evidence": text_column(source, rows, f.query),
        }
    )
    if grades is None:
        frame = frame.with_columns(pl.col("positives").list.drop_nulls())
    else:
        frame = sort_by_grade(frame.with_columns(grades.alias("grades")))
    cases = [(pl.col("query").is_null(), "empty_query"), (pl.col("positives").list.len() == 0, "empty_positive")]
    if scored:
        assert f.score is not None
        shown = text_column(source, rows, f.score)
        frame = frame.with_columns(number_column(source, rows, f.score).alias("score"), shown.alias("evidence"))
        cases += [(pl.col("score").is_null(), "bad_score"), (pl.col("score") < source.threshold, "below_threshold")]
    made = split_dropped(source, frame.with_columns(first_reason(*cases)))._replace(
        scores=scores, texts_out={"unlabelled_document": unlabelled} if unlabelled else {}
    )
    if not source.both_ways:
        return made

    # each pair in the other direction too, right after it
    if made.tuples["positives"].list.len().max() not in (None, 1):
        raise SourceError(place_of(source), "'both_ways' needs one positive per row, and some rows have several")
    back = made.tuples.with_columns(
        pl.col("id") + "/r", pl.col("positives").list.first().alias("query"), pl.concat_list("query").alias("positives"),
        pl.lit([], dtype=pl.List(pl.String)).alias("negatives"),
    )  # fmt: skip
    return made._replace(tuples=pl.concat([made.tuples, back]).sort("row", maintain_order=True))


def _all_numbers(lists: pl.Series) -> bool:
    """Return whether all texts are numbers, and there are any; for most columns the first 100 decide."""
    for some in (lists.head(100), lists):
        texts = some.explode().drop_nulls()
        if not texts.str.contains(r"^\s*(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|(?i:true|false))\s*$").all():
            return False
    return len(texts) > 0


def negative_columns(source: Source, rows: pl.DataFrame) -> list[str]:
    """Return the columns of negatives; a pattern such as `negative_*` gives all columns it matches, in order."""
    found: dict[str, None] = {}
    otherwise = column_map(source).names
    for name in source.fields.negatives:
        texts, others = matching_columns(name, rows.columns, otherwise)
        if not texts:
            there = listed([other for other in rows.columns if other != ROW], 20)
            passed = f" except {listed(others)}, whose names say that they hold no texts" if others else ""
            raise SourceError(place_of(source), f"no column matches '{name}'{passed}", f"columns there are: {there}")
        found |= dict.fromkeys(texts)
    return list(found)


def _shape_nli(source: Source, frame: pl.DataFrame) -> Tuples:
    sides, frame = source.labels or NLI_LABELS, frame.rename({"label": "side"})
    if not set(sides.values()) <= {"positive", "negative"}:
        raise SourceError(place_of(source), "an NLI source's 'labels' map each label to 'positive' or 'negative'")
    refuse_typos(source, sides, frame["evidence"].unique().drop_nulls().to_list())
    if len(frame) and frame["side"].null_count() == len(frame):
        seen = listed(sorted(frame["evidence"].drop_nulls().unique().to_list()))
        raise SourceError(
            place_of(source), f"no label is one of {listed(sides)}", f"labels there are: {seen}; map them under 'labels'"
        )
    pair = ["query", "other"]
    frame = frame.with_columns(
        first_reason(
            (pl.col("query").is_null(), "empty_query"),
            (pl.col("other").is_null(), "empty_positive"),
            (pl.col("side").is_null(), "unknown_label"),
            (pl.col("side").drop_nulls().n_unique().over(pair) > 1, "conflicting_label"),
        )
    )
    good = pl.col("reason").is_null()
    entailed = (good & (pl.col("side") == "positive")).any().over("query")
    frame = frame.with_columns(pl.when(good & ~entailed).then(pl.lit("no_positive")).otherwise("reason").alias("reason"))
    tuples = (
        frame.filter(pl.col("reason").is_null())
        .group_by("query", maintain_order=True)
        .agg(
            pl.col("row", "id").first(),
            pl.col("other").filter(pl.col("side") == "positive").unique(maintain_order=True).alias("positives"),
            pl.col("other").filter(pl.col("side") == "negative").unique(maintain_order=True).alias("negatives"),
        )
        .with_columns(pl.lit(None).alias("reason"), pl.lit(None).alias("label"), pl.lit(None).alias("evidence"))
    )
    made = split_dropped(source, tuples, NUMBERED)
    return made._replace(dropped=dropped_rows(source, frame.filter(pl.col("reason").is_not_null())))


def queries_of(source: Source, queries: pl.DataFrame) -> pl.DataFrame:
    """Return id and text of the queries of qrels, without rendered instructions.

    Raises:
        SourceError: see `texts_with_ids`; or two have one id.
    """
    assert isinstance(source.queries, TextTable)
    asked = texts_with_ids(source, "queries", source.queries, queries)
    refuse_equal_ids(source, "queries", asked["id"])
    return asked.with_columns(split_query(asked["text"])[1])


def shape_qrels(
    source: Source, rows: pl.DataFrame, seed: int, passages: pl.DataFrame, asked: pl.DataFrame, schema: pl.Schema = TUPLES
) -> Tuples:
    """Return the tuples of judgements.

    Args:
        source: with qrels.
        rows: its judgements.
        seed: of the manifest.
        passages: id and text of the judged passages, several of one id if they are chunks; or numbers in place of texts.
        asked: id and text, or number, of the queries.
        schema: TUPLES, or NUMBERED with numbers.

    Raises:
        SourceError: a mapped column is missing or of the wrong kind, or two queries get the same id.
    """
    f = source.fields
    assert f.query_id is not None
    assert f.positive_id is not None
    frame = pl.DataFrame(
        {
            "row": rows[ROW],
            "query_id": text_column(source, rows, f.query_id),
            "passage_id": text_column(source, rows, f.positive_id),
        }
    ).with_columns(
        (number_column(source, rows, f.score) if f.score else pl.lit(1.0)).alias("score"),
        pl.format("{}/row {}", pl.lit(source.name), "row").alias("id"),  # so that no row number equals the id of a query
        pl.format("{} -> {}", pl.col("query_id").fill_null(""), pl.col("passage_id").fill_null("")).alias("evidence"),
    )
    if f.score:
        scored = pl.format("{}: {}", "evidence", text_column(source, rows, f.score).fill_null(""))
        frame = frame.with_columns(pl.when(pl.col("score").is_null()).then(scored).otherwise("evidence").alias("evidence"))
    frame = frame.join(asked.rename({"id": "query_id", "text": "query"}), on="query_id", how="left", maintain_order="left")
    frame = frame.join(
        passages.rename({"id": "passage_id", "text": "positive"}), on="passage_id", how="left", maintain_order="left"
    )
    frame = frame.with_columns(
        first_reason(
            (pl.col("score").is_null(), "bad_score"),
            (pl.col("score") < (1.0 if source.threshold is None else source.threshold), "below_threshold"),
            (pl.col("query").is_null(), "unknown_query"),
            (pl.col("positive").is_null(), "unknown_passage"),
        )
    )
    good = pl.col("reason").is_null()
    if source.limit is not None:
        asked_for = frame.filter(good)["query_id"].unique(maintain_order=True)  # drawn by their order of appearance
        drawn = draws(seed, f"{source.name}/limit", np.arange(len(asked_for))).argsort(kind="stable")
        sampled = asked_for.gather(np.sort(drawn[: source.limit]))
        over = ~pl.col("query_id").is_in(sampled.implode())
        frame = frame.with_columns(pl.when(good & over).then(pl.lit("over_limit")).otherwise("reason").alias("reason"))
    tuples = (
        frame.filter(good)
        .group_by("query_id", maintain_order=True)
        .agg(
            pl.col("row").first(),
            pl.col("query").first(),
            pl.col("positive").alias("positives"),
            *([pl.col("score").alias("grades")] if f.score else []),
        )
        .with_columns(
            pl.lit(None).alias("reason"), pl.lit(None).alias("label"), pl.lit(None).alias("evidence"),
            pl.lit([], dtype=schema["negatives"]).alias("negatives"),
        )
    )  # fmt: skip
    tuples = tuples.with_columns(named(source, tuples["query_id"]).alias("id"))
    if (twice := tuples["id"].is_duplicated()).any():  # such as `7` and `name/7`
        given = tuples.filter(twice).sort("id", maintain_order=True)["query_id"].head(2).to_list()
        raise SourceError(place_of(source), f"the queries {given[0]!r} and {given[1]!r} get the same id", "rename one of them")
    tuples = sort_by_grade(tuples) if f.score else tuples.with_columns(pl.col("positives").list.unique(maintain_order=True))
    bad = frame.filter(~good).unique("row", maintain_order=True)  # a row for each chunk of its document is one row
    return split_dropped(source, tuples, schema)._replace(dropped=dropped_rows(source, bad))


def texts_with_ids(source: Source, which: str, table: TextTable, rows: pl.DataFrame) -> pl.DataFrame:
    """Return id and text of a corpus or of queries, without blank texts.

    Raises:
        SourceError: a column is missing, or a text has no id.
    """
    where = f"{place_of(source)} ({which})"
    ids, texts = ids_and_texts(where, rows, table.fields)
    frame = pl.DataFrame({"id": ids, "text": texts}).filter(pl.col("text").str.strip_chars() != "")
    if frame["id"].null_count():
        raise SourceError(where, f"a row has no '{table.fields.id}': '{frame.filter(pl.col('id').is_null())['text'][0][:60]}'")
    return frame


def refuse_equal_ids(source: Source, which: str, ids: pl.Series) -> None:
    """Refuse a corpus or queries of which two have the same id.

    Raises:
        SourceError: they have.
    """
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        raise SourceError(f"{place_of(source)} ({which})", f"id '{twice[0]}' occurs twice")
