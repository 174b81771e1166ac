"""What the shapes share: the table they make, mapped columns as texts, and reasons for what is left out."""

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
from curation.read.rows import ROW
from curation.recipe.source import Source

TUPLES = pl.Schema(
    {
        "row": pl.UInt64(),  # the number of the (first) row it was made of
        "id": pl.String(),
        "query": pl.String(),
        "positives": pl.List(pl.String),
        "negatives": pl.List(pl.String),
        "label": pl.String(),
    }
)
GRADES = "grades"  # list[f64], a number a positive, null where it has none; until equal queries are merged
EVIDENCE_CHARS = 200
SHOWN = 80  # characters of a value in an error
NO_NUMBERS = ("nan", "inf", "infinity", "null", "none")
BREAKS_A_LINE = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]|^\s|\s$"  # what ends a line or a cell for some reader
LONGEST_ID, HEAD_OF_ID = 1_000, 200  # characters; Python's csv module refuses a cell of 131,072 bytes
# Rows that a reader of the source would call broken; they count against `max_bad`. Other reasons are choices.
BAD = ("empty_query", "empty_positive", "bad_score", "unknown_query", "unknown_passage", "empty_text", "empty_label")


class Tuples(NamedTuple):
    """What a shape makes of a source."""

    tuples: pl.DataFrame  # TUPLES, in order of their first rows; with GRADES where positives have grades
    dropped: pl.DataFrame  # DROPPED, one line a row that is in no tuple
    corpus: pl.Series  # texts that are passages although no tuple names them
    instruction: str = ""  # the source's, or else the one its queries came with
    scores: pl.DataFrame | None = None  # `scores.SCORES`, where the source has them
    texts_out: dict[str, int] | None = None  # texts that are in no tuple, by reason, beside those that filters leave out


def place_of(source: Source) -> str:
    """Return how errors name a source."""
    return f"source '{source.name}'"


def column(where: str, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column, or a part of one that holds records: `answers.text`.

    Raises:
        SourceError: there is no such column; the error names those there are.
    """
    if wanted not in rows.columns:
        there = [other for other in rows.columns if other != ROW]
        what = f"no column '{wanted}'" + did_you_mean(wanted, there)
        raise SourceError(where, what, f"columns there are: {listed(there, 20)}" + _undivided(wanted, there))
    return rows[wanted]


def _undivided(wanted: str, there: list[str]) -> str:
    """Return what to try where one column's name is a whole header, `question;answer`."""
    signs = [sign for sign in ";\t|," if len(there) == 1 and wanted in there[0].split(sign)]
    return f"; perhaps `delimiter: {json.dumps(signs[0])}`" if signs else ""


def texts_of(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as text, null where it is blank."""
    texts = as_texts(place_of(source), wanted, column(place_of(source), rows, wanted))
    return unless(~texts.str.contains(r"\S"), texts)


def as_texts(where: str, name: str, values: pl.Series) -> pl.Series:
    """Return values as texts.

    Raises:
        SourceError: they are lists, records, or bytes that are no text.
    """
    try:
        if not values.dtype.is_nested():
            return values.alias("text").cast(pl.String)
    except pl.exceptions.PolarsError:
        raise SourceError(where, f"column '{name}' holds {values.dtype}, not text", "map a column of texts") from None
    hint = "map a column of texts" + (", or `join` its lists" if isinstance(values.dtype, pl.List) else "")
    raise SourceError(where, f"column '{name}' holds {_kind(values)}, not text", hint)


def numbers_of(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as finite numbers, null where it holds none; true is 1."""
    texts = as_texts(place_of(source), wanted, column(place_of(source), rows, wanted))
    return texts.to_frame().select(_number(pl.first()))["text"]


def _number(text: pl.Expr) -> pl.Expr:
    bare = text.str.strip_chars()
    number = bare.cast(pl.Float64, strict=False)
    truth = bare.str.to_lowercase().replace_strict({"true": 1.0, "false": 0.0}, default=None, return_dtype=pl.Float64)
    return pl.when(number.is_finite()).then(number).otherwise(truth)


def queries_of(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as queries: text, after its title, without a rendered instruction, null where blank."""
    bare = split_query(texts_of(source, rows, wanted))[1]
    if source.fields.title is not None:
        titles = texts_of(source, rows, source.fields.title)
        bare = pl.select(
            pl.when(bare.is_not_null()).then(pl.concat_str([titles, bare], separator="\n", ignore_nulls=True))
        ).to_series()
    return unless(~bare.str.contains(r"\S"), bare)


def instruction_of(source: Source, queries: pl.Series) -> str:
    """Return the instruction of a source: the manifest's, or the one that is rendered into its queries.

    Raises:
        SourceError: the manifest has none, and the queries have several.
    """
    if source.instruction or queries.dtype != pl.String:
        return source.instruction
    rendered = split_query(queries.alias("query"))[0]
    found = rendered.drop_nulls().unique().sort()
    if len(found) and (rendered.is_null() & queries.str.contains(r"\S")).any():
        what = f"some of its queries begin with the instruction '{found[0]}', and others with none"
        raise SourceError(place_of(source), what, "say `instruction:`, which then stands for all of them")
    if len(found) > 1:
        what = f"its queries begin with {len(found)} instructions, '{found[0]}' and '{found[1]}' among them"
        raise SourceError(place_of(source), what, "say `instruction:`, which then stands for all of them")
    return str(found[0]) if len(found) else ""


def ids_of(source: Source, rows: pl.DataFrame) -> pl.Series:
    """Return each row's id: `name/row`, or with the id that the source gives it, as `named` writes it.

    Raises:
        SourceError: a row has none, or that of another.
    """
    if source.fields.id is None:
        return rows.select(_id(source))["id"]
    given = texts_of(source, rows, source.fields.id)
    ids = named(source, given)
    hint = "leave out `id`, and rows have their numbers for ids"
    for wrong, what in ((ids.is_null(), "has no '{}'"), (ids.is_duplicated(), "has the '{}' of another row, {}")):
        if wrong.any():
            at = int(wrong.arg_max() or 0)
            raise SourceError(place_of(source), f"row {rows[ROW][at]} {what.format(source.fields.id, given[at])}", hint)
    return ids


def named(source: Source, given: pl.Series) -> pl.Series:
    """Return `name/given id` of each row; an id that begins with the name keeps it.

    Ids are keys of tab-separated files and of lines, so control characters, line separators and white space at the ends are
    written as in URLs: a tab is %09. A very long id is its head and its digest. An id that was written so stays as it is.
    """
    bare = pl.select(pl.lit(given).str.strip_prefix(f"{source.name}/")).to_series()
    unsafe = (bare.str.contains(BREAKS_A_LINE) | (bare.str.len_chars() > LONGEST_ID)).fill_null(False).arg_true()
    if len(unsafe):
        bare = bare.scatter(unsafe, [_safe_id(id_) for id_ in bare.gather(unsafe)])
    return pl.select((f"{source.name}/" + pl.lit(bare)).alias("id")).to_series()


def _safe_id(given: str) -> str:
    ends = len(given) - len(given.lstrip()), len(given.rstrip())
    inner = re.sub(BREAKS_A_LINE, lambda sign: quote(sign[0], safe=""), given[ends[0] : ends[1]])
    safe = quote(given[: ends[0]], safe="") + inner + quote(given[ends[1] :], safe="")
    return safe if len(safe) <= LONGEST_ID else f"{safe[:HEAD_OF_ID]}~{xxhash.xxh3_128_hexdigest(given.encode())}"


def text_lists(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as lists of texts, a text as a list of one; a blank is null, so that each keeps its place."""
    values = column(place_of(source), rows, wanted).alias("texts")
    if not isinstance(values.dtype, pl.List):
        texts = texts_of(source, rows, wanted)
        return pl.select(pl.concat_list(texts)).to_series()
    lists = values.cast(pl.List(pl.String)).fill_null([])
    return lists.list.eval(pl.when(pl.element().str.strip_chars() != "").then(pl.element()))


def number_lists(source: Source, rows: pl.DataFrame, wanted: str) -> pl.Series:
    """Return a mapped column as lists of finite numbers, a number as a list of one; null for blanks and infinities.

    Raises:
        SourceError: it holds what is no number, but for the score of a pair.
    """
    values = column(place_of(source), rows, wanted)
    if not isinstance(values.dtype, pl.List):
        if wanted == source.fields.score:  # of a pair; its row is lost
            return pl.select(pl.concat_list(numbers_of(source, rows, wanted))).to_series()
        values = pl.select(pl.concat_list(as_texts(place_of(source), wanted, values))).to_series()
    elif values.dtype.inner.is_numeric():
        return values.cast(pl.List(pl.Float64)).fill_null([])
    texts = values.cast(pl.List(pl.String)).fill_null([])
    numbers = texts.list.eval(_number(pl.element()))
    blank = numbers.list.eval(pl.element().is_null().cast(pl.UInt32)).list.sum()
    for row in range(len(texts)) if blank.sum() else ():
        for text, number in zip(texts[row], numbers[row], strict=True) if blank[row] else ():
            if number is None and text and text.strip() and text.strip().lower().lstrip("+-") not in NO_NUMBERS:
                what = f"column '{wanted}' holds '{text[:SHOWN]}' (row {rows[ROW][row]}), which is no number"
                raise SourceError(place_of(source), what, "map numbers, or lists of them")
    return numbers


def _kind(values: pl.Series) -> str:
    return "lists" if isinstance(values.dtype, pl.List) else "records"


def labels_of(source: Source, rows: pl.DataFrame) -> pl.Series:
    """Return the label column as text."""
    assert source.fields.label is not None
    return texts_of(source, rows, source.fields.label)


def finish(source: Source, frame: pl.DataFrame, evidence: str = "evidence") -> Tuples:
    """Split rows with a `reason` from the tuples."""
    kept = frame.filter(pl.col("reason").is_null())
    gone = frame.filter(pl.col("reason").is_not_null())
    grades = [pl.col(GRADES).cast(pl.List(pl.Float64))] if GRADES in kept.columns else []
    tuples = kept.select(*(pl.col(name).cast(dtype) for name, dtype in TUPLES.items()), *grades)
    return Tuples(tuples, dropped_rows(source, gone, evidence), pl.Series("text", [], dtype=pl.String))


def graded(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with each row's positives by falling grade, each once and no blank one, and their grades in step.

    Equal grades stay in order, and positives without a grade come last.
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


def dropped_rows(source: Source, gone: pl.DataFrame, evidence: str = "evidence") -> pl.DataFrame:
    """Return a `DROPPED` line for each row that made no tuple."""
    shown = gone[evidence].cast(pl.String).str.slice(0, EVIDENCE_CHARS)
    return dropped_frame(source.name, "shape", gone["id"], gone["reason"], shown)


def _id(source: Source) -> pl.Expr:
    return pl.format("{}/{}", pl.lit(source.name), pl.col(ROW)).alias("id")


def reason_of(*cases: tuple[pl.Expr, str]) -> pl.Expr:
    """Return the reason of the first case that holds, else null."""
    return pl.coalesce([pl.when(case).then(pl.lit(reason)) for case, reason in cases]).alias("reason")
