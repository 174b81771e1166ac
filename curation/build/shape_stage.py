"""The first stage of a build: one source is read, shaped and filtered, equal queries are merged, and queries are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curation.core.builds import Receipt
from curation.core.errors import SourceError
from curation.core.progress import Progress, silent
from curation.core.record import no_drops
from curation.core.store import digest_of
from curation.core.tables import write_parquet
from curation.core.texts import Facts, TextWriter, open_texts
from curation.engine.local import Here
from curation.engine.parts import in_order
from curation.engine.pool import Workers
from curation.read import remote
from curation.read.rows import Lost, Rows, compact, concat_batches
from curation.read.sources import (
    Span,
    fail_if_changed,
    file_states,
    files_outside,
    input_digests,
    read_parts,
    read_span,
    spans,
    table_rows,
)
from curation.recipe.job import Inputs, Job
from curation.recipe.source import ABOUT, Questions, Source, Table, TextTable, shape_of
from curation.shape.by_id import texts_for_ids
from curation.shape.chunks import DOCUMENTS, chunked, chunks_of_documents
from curation.shape.columns import (
    GRADES,
    TUPLES,
    Tuples,
    as_texts,
    check_readable,
    column,
    instruction_of,
    place_of,
    row_ids,
)
from curation.shape.numbered import LISTS, NUMBERED, numbers_of
from curation.shape.parts import PORTION, Columns, Filtered, NeedsAllRows, aligned, filtered, goes_in_parts, write_tuples
from curation.shape.questions import ask
from curation.shape.shapes import (
    TOGETHER,
    by_numbers,
    joined,
    queries_of,
    refuse_equal_ids,
    shape_qrels,
    texts_with_ids,
    to_tuples,
)

SYNTHETIC = ("model", "prompt", "per_document", "max_chars", "max_tokens")  # what the receipt says about questions of a model


def with_inputs(job: Job, progress: Progress = silent) -> Job:
    """Return a job with the digests of its source's files: each is fetched, if it is a URL, and digested here, then parsed.

    Raises:
        SourceError: a file or dataset is missing.
    """
    source = remote.pinned(job.source, progress)
    tables = tables_of(source)
    before = [file_states(table, job.base) for table in tables.values()]  # first, so that any later change is noticed
    digests = {
        f"{part}/{name}" if part else name: digest
        for part, table in tables.items()
        for name, digest in input_digests(table, job.base).items()
    }
    if isinstance(source.queries, Questions) and not source.queries.url:
        from training.model.files import find_model  # loads huggingface_hub

        digests["queries/model"] = digest_of(find_model(source.queries.model).digests())
    return job._replace(source=source, inputs=Inputs(before, digests))


def tables_of(source: Source) -> dict[str, Source | TextTable]:
    """Return what a source reads: its rows under '', and its corpus and queries if it has them."""
    parts = {"": source, "corpus": source.corpus, "queries": source.queries}
    return {part: table for part, table in parts.items() if isinstance(table, Table)}


def shape_depends(job: Job) -> list[Any]:
    """Return the source's entry in the manifest without its descriptions, the filters and the digests of its files."""
    assert job.inputs
    entry = job.source.model_dump(exclude=ABOUT)
    for key in ("chunk", "all"):
        if entry["corpus"] and not entry["corpus"][key]:
            del entry["corpus"][key]  # so that builds from before there was such a key stay current
    return [job.seed, entry, job.filters.model_dump(), job.inputs.digests]


def shape(job: Job, folder: Path, progress: Progress, workers: Workers) -> Receipt:
    """Read a source and make its tuples: filter them, merge equal queries, and take out the queries to hold out."""
    assert job.inputs
    source = job.source
    tables, asked = tables_of(source), source.queries
    table_rows: dict[str, int] = {}
    with (
        fail_if_changed(job.inputs.marks, list(tables.values()), job.base),
        progress(f"read {source.name}", None, "rows") as advance,
    ):
        size = PORTION if goes_in_parts(source) else None
        try:
            parts = _filtered(job, folder, size, table_rows, advance, progress, workers)
            made = write_tuples(job, parts, folder, workers.threads)
        except NeedsAllRows:
            table_rows.clear()
            for path in folder.iterdir():
                path.unlink()
            parts = _filtered(job, folder, None, table_rows, advance, progress, Here())
            made = write_tuples(job, parts, folder, workers.threads)
    return {
        "source": source.name,
        "shape": shape_of(source),
        "instruction": made.instruction,
        "inputs": job.inputs.digests,
        "outside": sorted({name for table in tables.values() for _, name in files_outside(table, job.base)}),
        "rows_in": made.rows_in,
        "rows_used": made.rows_in - sum(made.unused.values()),
        "rows_dropped": made.unused,
        "tuples_made": made.tuples,
        "merged": made.merged,
        "heldout": made.held,
        "dropped": made.poor,
        "texts_out": made.texts_out,
        "table_rows": table_rows,
        **({"synthetic": {name: getattr(asked, name) for name in SYNTHETIC}} if isinstance(asked, Questions) else {}),
    }


def _filtered(
    job: Job,
    folder: Path,
    size: int | None,
    table_rows: dict[str, int],
    advance: Callable[[int], None],
    progress: Progress,
    workers: Workers,
) -> Iterator[Filtered]:
    """Yield the filtered tuples of a source, whose rows are read in parts of `size` bytes; None: all at once.

    Raises:
        SourceError: the source has a fault.
        NeedsAllRows: a part has one, or parts contradict each other; with all rows at once the error says more.
    """
    source, shape = job.source, shape_of(job.source)
    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        place = Path(name)
        limit = None if shape == "qrels" else source.limit  # of queries, when they are known
        parts = read_parts(source, job.seed, limit, job.base, size or inf, advance, place)
        if size is None:
            parts = _not_empty(source, parts)
        if shape == "qrels":
            yield from _tuples_of_qrels(job, list(parts), table_rows, place, workers)
            return
        if shape == "documents":
            yield from _tuples_of_documents(job, list(parts), progress)
            return
        if source.by_id:
            source, parts = _with_texts(job, parts, size, table_rows, place)
            if source.corpus and source.corpus.all:
                yield from _passages(job, {}, None, place, workers)
        elif source.corpus:
            yield from _passages_beside(job, folder, size, table_rows, place, workers)
        work = partial(_tuples_of_all if shape in TOGETHER else _tuples_of_each, size=size, place=place, workers=workers)
        cut = spans(source, job.base) if size and not source.by_id else []
        if cut and not isinstance(workers, Here):
            for made in work(job, cut):
                advance(made.rows)
                yield made
            return
        yield from work(job._replace(source=source), _parts_of(source, cut, advance) if cut else parts)


def _with_texts(
    job: Job, parts: Iterator[Rows], size: int | None, table_rows: dict[str, int], place: Path
) -> tuple[Source, Iterator[Rows]]:
    """Return a source that names texts by id, and its rows, with texts in place of ids."""
    columns, read = Columns(), partial(_count_rows, job.source, job.base, table_rows)
    with _faults_of(size):
        parts = parts if size is None else aligned(job.source, parts, columns)
        source, parts = texts_for_ids(job.source, parts, read, place, size or inf)
    if size is not None:
        columns.refuse_missing(job.source)
    return source, parts


def _parts_of(source: Source, cut: Iterable[Span], advance: Callable[[int], None]) -> Iterator[Rows]:
    """Yield the rows of spans in parts, and report how many."""
    for span in cut:
        for read in read_span(source, span, PORTION):
            advance(len(read.frame) + len(read.lost))
            yield read


def _tuples_of_each(
    job: Job, parts: Iterable[Rows | Span], size: int | None, place: Path, workers: Workers
) -> Iterator[Filtered]:
    """Yield the filtered tuples of rows that make tuples by themselves."""
    if size is not None:
        columns = Columns()
        for made, has in in_order(workers, partial(_tuples_of_part, job), parts, place):
            columns.unite(has)
            yield from made
        if not job.source.by_id:
            columns.refuse_missing(job.source)
        return
    for part in parts:
        assert isinstance(part, Rows)
        rows, lost = part
        yield from _in_portions(job, to_tuples(job.source, rows, job.seed), len(rows) + len(lost), lost)


def _portions_of(source: Source, part: Rows | Span, columns: Columns) -> Iterable[Rows]:
    """Return the rows of a part, a portion each, with all mapped columns; texts for ids came with all of them."""
    portions = read_span(source, part, PORTION) if isinstance(part, Span) else [part]
    return portions if source.by_id else aligned(source, portions, columns)


def _tuples_of_part(job: Job, part: Rows | Span) -> tuple[list[Filtered], Columns]:
    """Return the filtered tuples of some rows, a portion each, and the columns of the rows."""
    source, made, columns = job.source, list[Filtered](), Columns()
    for rows, lost in _portions_of(source, part, columns):
        with _faults_of(PORTION):
            tuples = to_tuples(source, rows, job.seed)
            ids = row_ids(source, rows).hash() if source.fields.id is not None else None
        made.append(filtered(source, job.filters, tuples, len(rows) + len(lost), lost, ids))
    return made, columns


class _Numbered(NamedTuple):
    """Rows that make tuples together, by the numbers of their texts."""

    frame: pl.DataFrame
    texts: pl.Series
    facts: Facts
    instruction: str
    lost: list[Lost]


def _numbers_of_part(source: Source, size: int | None, part: Rows | Span) -> tuple[list[_Numbered], Columns]:
    """Return some rows by the numbers of their texts, a portion each, and the columns of the rows."""
    made, columns = list[_Numbered](), Columns()
    for rows, lost in [part] if size is None and isinstance(part, Rows) else _portions_of(source, part, columns):
        with _faults_of(size):
            made.append(_Numbered(*by_numbers(source, rows), instruction_of(source, rows[str(source.fields.query)]), lost))
    return made, columns


def _tuples_of_all(job: Job, parts: Iterable[Rows | Span], size: int | None, place: Path, workers: Workers) -> Iterator[Filtered]:
    """Yield the filtered tuples of rows that make tuples together; their texts go to a file in `place`."""
    source = job.source
    frames, every_lost, instructions = list[pl.DataFrame](), list[Lost](), set[str]()
    columns = Columns()
    with ExitStack() as closing:
        writer = TextWriter(place, closing)
        for portions, has in in_order(workers, partial(_numbers_of_part, source, size), parts, place):
            columns.unite(has)
            for frame, once, facts, instruction, lost in portions:
                names = [name for name in ("query", "other") if name in frame.columns]
                frames.append(frame.with_columns(pl.col(names) + writer.add(once, facts)))
                instructions.add(instruction)
                every_lost += lost
    if size is not None and not source.by_id:
        columns.refuse_missing(source)
    texts = open_texts(place)
    first = pl.Series(texts.raw_number)  # parts may have texts in common
    frame = pl.concat(frames)
    frame = frame.with_columns(first.gather(frame[name]).alias(name) for name in names)
    if len(instructions) > 1 or (source.fields.id is not None and frame["id"].is_duplicated().any()):
        raise NeedsAllRows
    made = joined(source, frame, texts)._replace(instruction=instructions.pop())
    count = len(frame) + len(every_lost)
    del frames, frame, first  # only the tuples are needed from here on
    yield from _in_portions(job, made, count, every_lost)


def _not_empty(source: Source, parts: Iterator[Rows]) -> Iterator[Rows]:
    """Yield parts of which each must have a row that could be read."""
    for rows, lost in parts:
        check_readable(source, rows, lost)
        yield Rows(rows, lost)


@contextmanager
def _faults_of(size: int | None) -> Iterator[None]:
    """Read all rows at once if one of several parts has a fault."""
    try:
        yield
    except SourceError:
        if size is None:
            raise
        raise NeedsAllRows from None


def _in_portions(job: Job, made: Tuples, rows: int, lost: list[Lost]) -> Iterator[Filtered]:
    """Yield the tuples that all rows of a source make, some at a time; what became of the rows comes with the first."""
    tuples, total = made.tuples, 0  # bytes of texts
    for texts in (tuples["query"], *(tuples[name].explode(empty_as_null=False).drop_nulls() for name in LISTS)):
        if made.texts is None:
            total += int(texts.str.len_bytes().sum())
        else:
            numbers = texts.to_numpy()
            total += int((made.texts.starts[numbers + np.uint32(1)] - made.texts.starts[numbers]).sum())
    portion = max(1, len(tuples) * PORTION // max(total, PORTION))
    for start in range(0, max(1, len(tuples)), portion):
        yield filtered(job.source, job.filters, made._replace(tuples=tuples.slice(start, portion)), rows, lost)
        rows, lost = 0, []
        made = made._replace(dropped=made.dropped.clear(), texts_out=None, poor=None, scores=None, answers=None, documents=None)


def _tuples_of_documents(job: Job, parts: list[Rows], progress: Progress) -> Iterator[Filtered]:
    """Yield the filtered tuples of documents for which a model writes queries; all rows are held."""
    rows, lost = parts.pop()  # there is one
    yield from _in_portions(job, ask(job.source, rows, progress), len(rows) + len(lost), lost)


def _passages_beside(
    job: Job, folder: Path, size: int | None, table_rows: dict[str, int], place: Path, workers: Workers
) -> Iterator[Filtered]:
    """Yield the filtered passages of a corpus beside pairs; if these name documents, they are read for their ids before."""
    source, name = job.source, job.source.fields.positive_id
    if name is None:
        yield from _passages(job, table_rows, None, place, workers)
        return
    ids, own, spare = list[pl.Series](), list[pl.DataFrame](), place / "ids"
    spare.mkdir()
    parts = read_parts(source, job.seed, source.limit, job.base, size or inf, lambda count: None, spare)
    for rows, _ in _not_empty(source, parts) if size is None else aligned(source, parts, Columns()):
        with _faults_of(size):
            texts = as_texts(place_of(source), name, column(place_of(source), rows, name))
        ids.append(texts.drop_nulls().unique(maintain_order=True))
    named = pl.concat(ids).unique(maintain_order=True)
    yield from _passages(job, table_rows, named, place, workers, own.append)
    write_parquet(folder / DOCUMENTS, chunks_of_documents(source, named, pl.concat(own)))


def _tuples_of_qrels(
    job: Job, parts: list[Rows], table_rows: dict[str, int], place: Path, workers: Workers
) -> Iterator[Filtered]:
    """Yield the filtered passages and tuples of qrels; the texts of queries and judged passages go to a file in `place`."""
    source, (rows, lost) = job.source, parts.pop()  # there is one
    assert isinstance(source.queries, TextTable)
    ids = column(place_of(source), rows, str(source.fields.positive_id))
    named = as_texts(place_of(source), str(source.fields.positive_id), ids)
    judged: list[pl.DataFrame] = []
    with ExitStack() as closing:
        writer = TextWriter(place, closing)

        def numbered_texts(some: pl.DataFrame) -> pl.DataFrame:
            (numbers,), once, facts = numbers_of([some["text"]])
            return some.select(compact(some.select("id"))["id"], text=pl.Series(numbers + np.uint32(writer.add(once, facts))))

        yield from _passages(job, table_rows, named, place, workers, lambda some: judged.append(numbered_texts(some)))
        asked = concat_batches(list(_readable_rows(source, "queries", source.queries, job.base)), f"{place_of(source)} (queries)")
        table_rows["queries"] = len(asked)
        queries = numbered_texts(queries_of(source, asked))
    texts = open_texts(place)
    first = pl.Series(texts.raw_number)
    passages, queries = (some.with_columns(first.gather(some["text"]).alias("text")) for some in (pl.concat(judged), queries))
    made = shape_qrels(source, rows, job.seed, passages, queries, NUMBERED)
    made = made._replace(texts=texts, instruction=instruction_of(source, asked[source.queries.fields.text]))
    count = len(rows) + len(lost)
    del rows, asked, passages, queries, first  # only the tuples are needed from here on
    yield from _in_portions(job, made, count, lost)


class _Passages(NamedTuple):
    """What some rows of a corpus make."""

    made: Filtered
    rows: int
    chunks: int
    ids: np.ndarray  # (rows,) u64 hashes
    named: pl.DataFrame  # id and text of those that rows of the source name


def _passages(
    job: Job,
    table_rows: dict[str, int],
    named: pl.Series | None,
    place: Path,
    workers: Workers,
    keep: Callable[[pl.DataFrame], None] = lambda some: None,
) -> Iterator[Filtered]:
    """Yield the passages of a corpus, count its rows, and `keep` id and text of passages with the ids `named`.

    Raises:
        SourceError: two documents have one id, or there are too many chunks.
    """
    source = job.source
    assert source.corpus is not None
    hashes: list[np.ndarray] = []  # of ids
    chunk, chunks, rows = source.corpus.chunk, 0, _readable_rows(source, "corpus", source.corpus, job.base)
    for some in in_order(workers, partial(_passages_of_rows, job, named), rows, place):
        table_rows["corpus"] = table_rows.get("corpus", 0) + some.rows
        hashes.append(some.ids)
        chunks += some.chunks
        if chunk and chunks > chunk.most:
            what = f"its documents give more than {chunk.most:,} chunks of {chunk.tokens} tokens"
            raise SourceError(f"{place_of(source)} (corpus)", what, "raise `chunk: {most: ...}`, or `tokens`")
        keep(some.named)
        yield some.made
    every = np.sort(np.concatenate(hashes))
    if len(twice := every[1:][every[1:] == every[:-1]]):
        again = (
            texts_with_ids(source, "corpus", source.corpus, some)["id"]
            for some in _readable_rows(source, "corpus", source.corpus, job.base)
        )
        refuse_equal_ids(source, "corpus", pl.concat(one.filter(one.hash().is_in(pl.Series(twice).implode())) for one in again))


def _passages_of_rows(job: Job, named: pl.Series | None, rows: pl.DataFrame) -> _Passages:
    """Return the filtered passages of some rows of a corpus."""
    source, f = job.source, job.source.fields
    assert source.corpus is not None
    graded = f.score or f.positive_score if not f.documents else not f.positive
    nothing = pl.DataFrame(schema={**TUPLES, **({GRADES: pl.List(pl.Float64)} if graded else {})})
    passages = texts_with_ids(source, "corpus", source.corpus, rows)
    ids = passages["id"].hash().to_numpy()
    passages = chunked(passages, source.corpus.chunk)
    kept = passages.clear() if named is None else compact(passages.filter(passages["id"].is_in(named.implode())))
    made = filtered(source, job.filters, Tuples(nothing, no_drops(), passages["text"]), 0, [])
    return _Passages(made, len(rows), len(passages), ids, kept)


def _count_rows(source: Source, base: Path, table_rows: dict[str, int], part: str, table: TextTable) -> Iterator[pl.DataFrame]:
    """Yield the rows of a corpus or of queries as `_readable_rows`, and count them in `table_rows`."""
    table_rows[part] = 0
    for some in _readable_rows(source, part, table, base):
        table_rows[part] = table_rows.get(part, 0) + len(some)
        yield some


def _readable_rows(source: Source, part: str, table: Table, base: Path) -> Iterator[pl.DataFrame]:
    """Yield the rows of a corpus or of queries in batches.

    Raises:
        SourceError: a row cannot be read; an id may refer to it.
    """
    for batch in table_rows(table, base):
        for lost in batch.lost:
            if lost.bad:
                raise SourceError(f"{place_of(source)} ({part})", f"row {lost.row} is unreadable ({lost.reason})", lost.evidence)
        yield batch.frame
