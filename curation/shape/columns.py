"""What the shapes share: the table they make, mapped columns as texts or numbers, and reasons for rows that are left out."""

from __future__ import annotations

import json
import re
from typing import NamedTuple
from urllib.parse import quote

import polars as pl
import xxhash

from curation.core.errors import SourceError, did_you_mean, listed
from curation.core.record import dropped_frame, split_query
from curation.core.text import unless
from curation.core.texts import Texts
from curation.read.rows import ROW, Lost
from curation.recipe.source import Source, TextFields

TUPLES = pl.Schema(
    {
        "row": pl.UInt64(),  # the number of the (first) row it was made from
        "id": pl.String(),
        "query": pl.String(),
        "positives": pl.List(pl.String),
        "negatives": pl.List(pl.String),
        "label": pl.String(),
    }
)
GRADES = "grades"  # list[f64], one per positive or null; dropped when equal queries are merged
EVIDENCE_CHARS = 200
SHOWN = 80  # characters of a value in an error
NO_NUMBERS = ("nan", "inf", "infinity", "null", "none")
LIST_IN_A_TEXT = r"^\s*\[.*\]\s*$"
BREAKS_A_LINE = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]|^\s|\s$"  # what may end a line or a cell
LONGEST_ID, HEAD_OF_ID = 1_000, 200  # characters; Python's csv module refuses a cell of 131,072 bytes
# Reasons of broken rows, which count against `max_bad`. Other reasons are choices of the manifest.
BAD = ("empty_query", "empty_positive", "bad_score", "unknown_query", "unknown_passage", "empty_text", "empty_label")


class Tuples(NamedTuple):
    """What a shape makes from a source."""

    tuples: pl.DataFrame  # TUPLES or NUMBERED, in order of their first rows; with GRADES where positives have grades
    dropped: pl.DataFrame  # DROPPED, one line per row that is in no tuple
    corpus: pl.Series  # further passages, which no tuple names
    instruction: str = ""  # the source's, or else the one its queries begin with
    scores: list[pl.DataFrame] | None = None  # `scores.SCORES` of each side, if the source has them
    answers: pl.DataFrame | None = None  # of `scores.answers_of`, if the source has them
    documents: pl.DataFrame | None = None  # of `chunks.own_documents`, if rows name documents
    texts_out: dict[str, int] | None = None  # texts left out of tuples, by reason, other than those removed by filters
    poor: pl.DataFrame | None = None  # DROPPED, further tuples, which the shape itself drops
    texts: Texts | None = None  # those that NUMBERED tuples name


def place_of(source: Source) -> str:
    """Return the name of a source in errors."""
    return f"source '{source.name}'"


def column(where: str, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column, or a field of a column of records: `answers.text`.

    Raises:
        SourceError: there is no such column; the error lists the columns.
    """
    if wanted not in rows.columns:
        there = [other for other in rows.columns if other != ROW]
        what = f"no column '{wanted}'" + did_you_mean(wanted, there)
        # a single column named `question;answer` is a header that was not split
        signs = [sign for sign in ";\t|," if len(there) == 1 and wanted in there[0].split(sign)]
        delimiter = f"; perhaps `delimiter: {json.dumps(signs[0])}`" if signs else ""
        raise SourceError(where, what, f"columns there are: {listed(there, 20)}{delimiter}")
    return rows[wanted]


def text_column(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as texts, null if blank."""
    texts = as_texts(place_of(source), wanted, column(place_of(source), rows, wanted))
    return unless(~texts.str.contains(r"\S"), texts)


def as_texts(where: str, name: str, values: pl.Series) -> pl.Series:
    """Return values as texts.

    Raises:
        SourceError: they are lists, records or bytes.
    """
    try:
        if not values.dtype.is_nested():
            return values.alias("text").cast(pl.String)
    except pl.exceptions.PolarsError:
        raise SourceError(where, f"column '{name}' holds {values.dtype}, not text", "map a column of texts") from None
    if isinstance(values.dtype, pl.List):
        raise SourceError(where, f"column '{name}' holds lists, not text", "map a column of texts, or `join` its lists")
    raise SourceError(where, f"column '{name}' holds records, not text", "map a column of texts")


def ids_and_texts(where: str, rows: pl.DataFrame, fields: TextFields) -> tuple[pl.Series, pl.Series]:
    """Return the ids and texts of a corpus or of queries; a title, if the table has one, is put before the text."""
    ids, texts = (as_texts(where, name, column(where, rows, name)) for name in (fields.id, fields.text))
    title = fields.title
    if title is not None and title.endswith("?") and title not in rows.columns:  # a column that may be missing
        title = title[:-1] if title[:-1] in rows.columns else None
    if title is not None:
        titles = as_texts(where, title, column(where, rows, title))
        texts = pl.select(pl.concat_str([titles, texts], separator="\n", ignore_nulls=True).str.strip_chars()).to_series()
    return ids, texts


def number_column(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as finite numbers, else null; true is 1."""
    texts = as_texts(place_of(source), wanted, column(place_of(source), rows, wanted))
    return texts.to_frame().select(_as_number(pl.first()))["text"]


def _as_number(text: pl.Expr) -> pl.Expr:
    bare = text.str.strip_chars()
    number = bare.cast(pl.Float64, strict=False)
    truth = bare.str.to_lowercase().replace_strict({"true": 1.0, "false": 0.0}, default=None, return_dtype=pl.Float64)
    return pl.when(number.is_finite()).then(number).otherwise(truth)


def query_column(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as queries: title and text without a rendered instruction, null if blank."""
    bare = split_query(text_column(source, rows, wanted))[1]
    bare = titled(source, rows, bare)
    return unless(~bare.str.contains(r"\S"), bare)


def titled(source: Source, rows: pl.DataFrame, texts: pl.Series) -> pl.Series:
    """Return each text after its title, if titles are mapped; null stays null."""
    if source.fields.title is None:
        return texts
    both = [text_column(source, rows, source.fields.title), texts]
    return pl.select(pl.when(texts.is_not_null()).then(pl.concat_str(both, separator="\n", ignore_nulls=True))).to_series()


def instruction_of(source: Source, queries: pl.Series) -> str:
    """Return the instruction of a source: the manifest's, or else the one that its queries begin with.

    Raises:
        SourceError: the manifest has none, and the queries begin with several.
    """
    if source.instruction or queries.dtype != pl.String:
        return source.instruction
    rendered = split_query(queries.alias("query"))[0]
    found = rendered.drop_nulls().unique().sort()
    if len(found) and (rendered.is_null() & queries.str.contains(r"\S")).any():
        what = f"some of its queries begin with the instruction '{found[0]}', and others with none"
        raise SourceError(place_of(source), what, "set `instruction:`, which replaces them all")
    if len(found) > 1:
        what = f"its queries begin with {len(found)} instructions, '{found[0]}' and '{found[1]}' among them"
        raise SourceError(place_of(source), what, "set `instruction:`, which replaces them all")
    return str(found[0]) if len(found) else ""


def row_ids(source: Source, rows: pl.DataFrame) -> pl.Series:
    """Return each row's id: `name/row number`, or the mapped id as `named` writes it.

    Raises:
        SourceError: a mapped id is null or not unique.
    """
    if source.fields.id is None:
        return rows.select(pl.format("{}/{}", pl.lit(source.name), pl.col(ROW)).alias("id"))["id"]
    given = text_column(source, rows, source.fields.id)
    ids = named(source, given)
    hint = "leave out `id` to use row numbers as ids"
    for wrong, what in ((ids.is_null(), "has no '{}'"), (ids.is_duplicated(), "repeats the '{}' of another row, {}")):
        if wrong.any():
            at = int(wrong.arg_max() or 0)
            raise SourceError(place_of(source), f"row {rows[ROW][at]} {what.format(source.fields.id, given[at])}", hint)
    return ids


def named(source: Source, given: pl.Series) -> pl.Series:
    """Return `name/given id` of each row; an id that begins with the name keeps it.

    Ids are keys in tab-separated files, so control characters, line separators and white space at the ends are percent-encoded:
    a tab is %09. A very long id becomes its head and its digest. An encoded id stays as it is.
    """
    bare = pl.select(pl.lit(given).str.strip_prefix(f"{source.name}/")).to_series()
    unsafe = (bare.str.contains(BREAKS_A_LINE) | (bare.str.len_chars() > LONGEST_ID)).fill_null(False).arg_true()
    safe = []
    for one in bare.gather(unsafe):
        start, end = len(one) - len(one.lstrip()), len(one.rstrip())
        inner = re.sub(BREAKS_A_LINE, lambda sign: quote(sign[0], safe=""), one[start:end])
        encoded = quote(one[:start], safe="") + inner + quote(one[end:], safe="")
        long = len(encoded) > LONGEST_ID
        safe.append(f"{encoded[:HEAD_OF_ID]}~{xxhash.xxh3_128_hexdigest(one.encode())}" if long else encoded)
    if safe:
        bare = bare.scatter(unsafe, safe)
    return pl.select((f"{source.name}/" + pl.lit(bare)).alias("id")).to_series()


def text_lists(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as lists of texts, a single text as a list of one; blanks are null, so that positions stay."""
    values = column(place_of(source), rows, wanted).alias("texts")
    if not isinstance(values.dtype, pl.List):
        texts = text_column(source, rows, wanted)
        return pl.select(pl.concat_list(texts)).to_series()
    lists = values.cast(pl.List(pl.String)).fill_null([])
    return lists.list.eval(pl.when(pl.element().str.strip_chars() != "").then(pl.element()))


def unpacked(values: pl.Series) -> pl.Series:
    """Return lists that are written as texts, such as `[d7, d2]` and `[0.83, 0.5]`, as lists of texts; other values unchanged.

    LightOn's msmarco writes lists of ids and scores like this.
    """
    if values.dtype != pl.String or not values.str.contains(LIST_IN_A_TEXT).all() or values.null_count() == len(values):
        return values
    inner = values.str.strip_chars().str.strip_chars("[]").str.split(",")
    bare = inner.list.eval(pl.element().str.strip_chars(" '\""))
    return pl.select(pl.when(pl.lit(bare) == pl.lit([""])).then([]).otherwise(bare).alias(values.name)).to_series()


def number_lists(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as lists of finite numbers, a single number as a list of one; null for blanks and infinities.

    Raises:
        SourceError: a value is not a number, unless it is the score of a pair.
    """
    values = unpacked(column(place_of(source), rows, wanted))
    if not isinstance(values.dtype, pl.List):
        if wanted == source.fields.score:  # of a pair: the row is dropped instead
            return pl.select(pl.concat_list(number_column(source, rows, wanted))).to_series()
        values = pl.select(pl.concat_list(as_texts(place_of(source), wanted, values))).to_series()
    elif values.dtype.inner.is_numeric():
        return values.cast(pl.List(pl.Float64)).fill_null([])
    texts = values.cast(pl.List(pl.String)).fill_null([])
    numbers = texts.list.eval(_as_number(pl.element()))
    blank = numbers.list.eval(pl.element().is_null().cast(pl.UInt32)).list.sum()
    for row in range(len(texts)) if blank.sum() else ():
        for text, number in zip(texts[row], numbers[row], strict=True) if blank[row] else ():
            if number is None and text and text.strip() and text.strip().lower().lstrip("+-") not in NO_NUMBERS:
                what = f"column '{wanted}' holds '{text[:SHOWN]}' (row {rows[ROW][row]}), which is not a number"
                point = text.strip().replace(",", ".")
                comma = "," in text and point.replace(".", "", 1).lstrip("+-").isdigit()
                raise SourceError(place_of(source), what, f"write it as {point}" if comma else "map numbers, or lists of them")
    return numbers


def split_dropped(source: Source, frame: pl.DataFrame, schema: pl.Schema = TUPLES) -> Tuples:
    """Return the rows without a `reason` as tuples of this schema, and the others as dropped."""
    kept = frame.filter(pl.col("reason").is_null())
    gone = frame.filter(pl.col("reason").is_not_null())
    grades = [pl.col(GRADES).cast(pl.List(pl.Float64))] if GRADES in kept.columns else []
    tuples = kept.select(*(pl.col(name).cast(dtype) for name, dtype in schema.items()), *grades)
    return Tuples(tuples, dropped_rows(source, gone), pl.Series("text", [], dtype=pl.String))


def sort_by_grade(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with each row's positives by falling grade, distinct and without blanks, and with their grades.

    Equal grades stay in order, positives without a grade come last.
    """
    several = frame["positives"].list.len() != 1
    several |= frame["positives"].list.first().is_null()
    if not several.any():
        return frame
    frame = frame.with_row_index("at_graded")
    some = frame.filter(several)
    long = some.select("at_graded", "positives", GRADES).filter(pl.col("positives").list.len() > 0)
    long = long.explode("positives", GRADES).drop_nulls("positives")
    long = long.sort("at_graded", GRADES, descending=[False, True], nulls_last=True, maintain_order=True)
    long = long.unique(["at_graded", "positives"], keep="first", maintain_order=True)
    lists = long.group_by("at_graded", maintain_order=True).agg("positives", GRADES)
    some = some.drop("positives", GRADES).join(lists, on="at_graded", how="left", maintain_order="left")
    some = some.with_columns(pl.col("positives", GRADES).fill_null([])).select(frame.columns)
    return pl.concat([frame.filter(~several), some]).sort("at_graded").drop("at_graded")


def dropped_rows(source: Source, gone: pl.DataFrame) -> pl.DataFrame:
    """Return a `DROPPED` line per row that made no tuple."""
    shown = gone["evidence"].cast(pl.String).str.slice(0, EVIDENCE_CHARS)
    return dropped_frame(source.name, "shape", gone["id"], gone["reason"], shown)


def first_reason(*cases: tuple[pl.Expr, str]) -> pl.Expr:
    """Return the reason of the first case that is true, else null."""
    return pl.coalesce([pl.when(case).then(pl.lit(reason)) for case, reason in cases]).alias("reason")


# ---- rows that make no tuple: counted, and an error if there are too many ----


def unread_rows(source: Source, lost: list[Lost]) -> pl.DataFrame:
    """Return rows that could not be read as a `DROPPED` table."""
    number = "row " if source.fields.id or source.fields.query_id else ""  # so that no row number equals a given id
    ids = pl.Series([f"{source.name}/{number}{one.row}" for one in lost], dtype=pl.String)
    reasons = pl.Series([one.reason for one in lost], dtype=pl.String)
    return dropped_frame(source.name, "read", ids, reasons, pl.Series([one.evidence for one in lost], dtype=pl.String))


def check_readable(source: Source, rows: pl.DataFrame, lost: list[Lost]) -> None:
    """Fail if no row of a source could be read; without rows there are no columns to check either.

    Raises:
        SourceError: no row could be read.
    """
    if rows.is_empty():
        check_rows(source, len(lost), lost, unread_rows(source, []), 0)


def check_rows(source: Source, rows_in: int, lost: list[Lost], dropped: pl.DataFrame, tuples: int) -> None:
    """Fail if a source has no rows, too many bad ones, or none that makes a tuple.

    Raises:
        SourceError: one of these is the case.
    """
    if rows_in == 0:
        raise SourceError(place_of(source), "has no rows", "check 'path', 'split' or 'files'")
    broken = dropped.filter(pl.col("reason").is_in(BAD))
    bad = sum(one.bad for one in lost) + len(broken)
    reasons = ", ".join(
        f"{reason} {n}" for reason, n in sorted(reason_counts(pl.concat([unread_rows(source, lost), dropped])).items())
    )
    if bad > source.max_bad * rows_in:
        first = next((one.evidence for one in lost if one.bad), None) or _first_dropped(broken)
        what = f"{bad} of {rows_in} rows are bad ({reasons}), and 'max_bad' allows {source.max_bad:.1%}"
        raise SourceError(place_of(source), what, f"first: {first}")
    if tuples == 0:
        hint = f"check 'fields', 'labels' and 'threshold'; first: {_first_dropped(dropped)}" if len(dropped) else ""
        hint = hint or f"first: {lost[0].evidence}"  # all rows are unreadable
        raise SourceError(place_of(source), f"none of its {rows_in} rows makes a tuple ({reasons})", hint)


def _first_dropped(dropped: pl.DataFrame) -> str:
    """Return the id, reason and wrong value of the first row of a DROPPED table."""
    id_, reason, evidence = dropped.select("id", "reason", "evidence").row(0)
    return f"{id_} {reason}" + (f" '{evidence[:SHOWN]}'" if evidence else "")


def reason_counts(dropped: pl.DataFrame) -> dict[str, int]:
    """Return the number of rows of a DROPPED table by reason."""
    return dict(dropped.group_by("reason").len().sort("reason").iter_rows())
