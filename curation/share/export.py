"""A build as another tool's training data: `curate export`.

    f2llm          query (with its instruction), passage, negative_1..n   F2LLM's trainer
    pair           anchor, positive                                       sentence-transformers; one row per positive
    triplet        anchor, positive, negative                             sentence-transformers; one row per negative
    n-tuple        anchor, positive, negative_1..n                        sentence-transformers
    labeled-list   query, documents, labels                               sentence-transformers, listwise losses of rerankers
    scored-list    query, documents, scores                               the same, with the miner's scores as labels
    flagembedding  query, pos, neg, pos_scores, neg_scores, ...           FlagEmbedding (bge)
    tevatron       query_id, query, positive_passages, ...                Tevatron, MIRACL
    tevatron-ids   query_id, query_text, positive_document_ids, ...;      Tevatron 2
                   corpus: each text once
    nemo           question_id, question, pos_doc, neg_doc;               NeMo Automodel
                   corpus: each text once
    beir           corpus.jsonl, queries.jsonl, qrels/train.tsv           retrieval toolkits
    ids            query_id, document_ids, scores, positive_ids;          sentence-transformers' `resolve_ids`, and us
                   queries, documents: each text once

sentence-transformers goes by the order of columns, and uses the first of label, labels, score, scores as the label: in a
file with both labels and scores it would read the scores as texts, so these are two formats.

The files are in `data/`, the receipt is one level up: it is not data, and some trainers read every file of a folder. In
memory are the passages of one source and a block of its tuples: a table of id, query, positives, positive_ids, negatives,
negative_ids, positive_score, negative_scores, with texts and the ids of these texts in lists.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation.core import store, tables
from curation.core.builds import Receipt, outdated_tuple, receipts
from curation.core.errors import BuildError, listed
from curation.core.escape import text_table
from curation.core.progress import Advance, Progress, silent
from curation.core.record import NEGATIVES, render_query

EXPORT_FORMAT = 2  # raised when the same build gives other files
BLOCK_TUPLES = 8192  # tuples: with 25 texts of 500 bytes, 100 MB
CURATED_COLUMNS = ("id", "key", "query", "positives", "negatives")
MINED_COLUMNS = (*CURATED_COLUMNS, "positive_score", "negative_scores")
SCORE_DIGITS = 7  # of a float32 in JSON
TYPES = {"retrieval": "normal", "classification": "only_1neg", "clustering": "symmetric_clustering"}  # FlagEmbedding's


class Constants(NamedTuple):
    """What is the same for each tuple of a source."""

    task: str
    instruction: str
    source: str = ""


class Format(NamedTuple):
    """A format, and which tuples it can hold."""

    make: Callable[[pl.DataFrame, Constants, int], pl.DataFrame | Iterator[dict[str, Any]]] | None  # n: negatives per tuple
    ending: str
    mined: bool = True  # needs negatives
    fixed: bool = False  # negatives have columns of their own, so each tuple must have all n
    first: bool = False  # holds one positive per tuple, the first
    scored: bool = False  # needs a score for each text
    corpus: str = ""  # the table of passages, if tuples name them by id: the file of tuples is `train`, in the source's folder


def f2llm(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return F2LLM's columns; its trainer adds no instruction to `query`, so the query contains it."""
    query = pl.lit(render_query(source.instruction, "")) + pl.col("query")
    return rows.select(query.alias("query"), pl.col("positives").list.first().alias("passage"), *_negative_columns(n))


def pair(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return anchor, positive: one row per positive."""
    return rows.select(pl.col("query").alias("anchor"), pl.col("positives").alias("positive")).explode("positive")


def triplet(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return anchor, positive, negative: one row per negative."""
    first = pl.col("positives").list.first().alias("positive")
    return rows.select(pl.col("query").alias("anchor"), first, pl.col("negatives").alias("negative")).explode("negative")


def n_tuple(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return anchor, positive, negative_1..n."""
    first = pl.col("positives").list.first().alias("positive")
    return rows.select(pl.col("query").alias("anchor"), first, *_negative_columns(n))


def labeled_list(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return query, documents, labels: positives (1) before negatives (0)."""
    counted = rows.with_columns(
        pl.lit(1, pl.Int64).repeat_by(pl.col("positives").list.len()).alias("ones"),
        pl.lit(0, pl.Int64).repeat_by(pl.col("negatives").list.len()).alias("zeros"),
    )
    documents = pl.concat_list("positives", "negatives").alias("documents")
    return counted.select("query", documents, pl.concat_list("ones", "zeros").alias("labels"))


def scored_list(rows: pl.DataFrame, source: Constants, n: int) -> pl.DataFrame:
    """Return query, documents, scores: the first positive before the negatives."""
    documents = pl.concat_list(pl.col("positives").list.first(), "negatives").alias("documents")
    return rows.select("query", documents, pl.concat_list("positive_score", "negative_scores").alias("scores"))


def flagembedding(rows: pl.DataFrame, source: Constants, n: int) -> Iterator[dict[str, Any]]:
    """Yield FlagEmbedding's records; `prompt` is the bare instruction, a score is null if a text has none."""
    for row in rows.iter_rows(named=True):
        scores = _scores_of(row)
        yield {
            "query": row["query"],
            "pos": row["positives"],
            "neg": row["negatives"],
            "pos_scores": scores["positive"],
            "neg_scores": scores["negative"],
            "prompt": source.instruction,
            "type": TYPES[source.task],
        }


def tevatron(rows: pl.DataFrame, source: Constants, n: int) -> Iterator[dict[str, Any]]:
    """Yield Tevatron's records; the id of a passage is its text's key."""
    for row in rows.iter_rows(named=True):
        passages = {
            f"{role}_passages": [
                {"docid": id_, "title": "", "text": text} for id_, text in zip(row[f"{role}_ids"], row[f"{role}s"], strict=True)
            ]
            for role in ("positive", "negative")
        }
        yield {"query_id": row["id"], "query": row["query"], **passages}


def tevatron_ids(rows: pl.DataFrame, source: Constants, n: int) -> Iterator[dict[str, Any]]:
    """Yield the records of Tevatron 2, which ignores the scores."""
    for row in rows.iter_rows(named=True):
        ids = {f"{role}_document_ids": row[f"{role}_ids"] for role in ("positive", "negative")}
        scores = {f"{role}_scores": some for role, some in _scores_of(row).items()}
        yield {"query_id": row["id"], "query_text": row["query"], **ids, **scores}


def nemo(rows: pl.DataFrame, source: Constants, n: int) -> Iterator[dict[str, Any]]:
    """Yield NeMo's records, which are one list in a JSON object."""
    for row in rows.iter_rows(named=True):
        documents = {
            f"{role[:3]}_doc": [{"id": id_, "score": score} for id_, score in zip(row[f"{role}_ids"], scores, strict=True)]
            for role, scores in _scores_of(row).items()
        }
        yield {"question_id": row["id"], "question": row["query"], "corpus_id": source.source, **documents}


def _scores_of(row: dict[str, Any]) -> dict[str, list[float | None]]:
    """Return the scores of a tuple's positives, of which the first has one, and of its negatives, as JSON holds them."""
    first, *others = [
        score if score is None else round(score, SCORE_DIGITS) for score in (row["positive_score"], *row["negative_scores"])
    ]
    return {"positive": [first, *[None] * (len(row["positives"]) - 1)], "negative": others}


def _negative_columns(n: int) -> list[pl.Expr]:
    return [pl.col("negatives").list.get(at, null_on_oob=True).alias(f"negative_{at + 1}") for at in range(n)]


FORMATS = {
    "f2llm": Format(f2llm, "parquet", fixed=True, first=True),
    "pair": Format(pair, "parquet", mined=False),
    "triplet": Format(triplet, "parquet", first=True),
    "n-tuple": Format(n_tuple, "parquet", fixed=True, first=True),
    "labeled-list": Format(labeled_list, "parquet"),
    "scored-list": Format(scored_list, "parquet", first=True, scored=True),
    "flagembedding": Format(flagembedding, "jsonl"),
    "tevatron": Format(tevatron, "jsonl"),
    "tevatron-ids": Format(tevatron_ids, "jsonl", corpus="corpus.jsonl"),
    "nemo": Format(nemo, "json", fixed=True, corpus="corpus/train.parquet"),
    "beir": Format(None, "", mined=False),
    "ids": Format(None, ""),
}


def fitting(rows: pl.DataFrame, shape: Format, task: str, wanted: int | None) -> tuple[pl.DataFrame, int, dict[str, int]]:
    """Return (tuples that the format can hold, most negatives per tuple, {reason: tuples left out}).

    Negatives after the first `wanted` are cut. By default that is the task's number if they have columns of their own,
    and else none is cut.
    """
    if not shape.mined:
        return rows, 0, {}
    have = rows["negatives"].list.len()
    longest = have.to_numpy().max(initial=1)
    most = wanted or (NEGATIVES[task] if shape.fixed else int(longest))
    enough = have >= (most if shape.fixed else 1)
    cut = rows.filter(enough).with_columns(pl.col("negatives", "negative_ids", "negative_scores").list.head(most))
    left_out = {"too_few_negatives": len(rows) - len(cut)}
    if shape.scored:
        scores = pl.concat_list("positive_score", "negative_scores").list
        whole = cut.filter(scores.drop_nulls().list.len() == scores.len())
        left_out["no_scores"] = len(cut) - len(whole)
        cut = whole
    return cut, most, {reason: count for reason, count in left_out.items() if count}


def export(
    build: Path, out: Path, name: str, only: Iterable[str] = (), negatives: int | None = None, progress: Progress = silent
) -> tuple[Receipt, bool]:
    """Write a build's sources in the format `name` under `out`; return (receipt, whether there was anything to do).

    Raises:
        BuildError: no whole build; no mined negatives, and the format needs them; the format can hold no tuple; or `out`
            holds something that no export wrote.
    """
    sources = receipts(build, only)
    folders = {source: build / ("mined" if FORMATS[name].mined else "curated") / source for source in sources}
    for source in sources if FORMATS[name].mined else ():
        if mined_tuples(build, source) is None:
            what = f"'{source}' has no mined negatives, and this format needs them"
            raise BuildError(build, what, f"run `mine negatives {build}` first")
    stages = [store.receipt_of(folder)["files"] for folder in folders.values()]
    digest = store.digest_of(
        [EXPORT_FORMAT, name, negatives, [[key, receipt["files"]] for key, receipt in sources.items()], stages]
    )
    out = _checked_target(out.expanduser().resolve())

    def work(part: Path) -> Receipt:
        exported = {
            source: _export_source(build, folders[source], part / "data", name, receipt, negatives, progress)
            for source, receipt in sources.items()
        }
        if not any(one["used"] for one in exported.values()):
            reasons = sum((Counter(one["left_out"]) for one in exported.values()), Counter())
            why = listed(f"{reason} {count}" for reason, count in reasons.items()) or "there are none"
            raise BuildError(build, f"'{name}' can hold none of the tuples ({why})", "ask for fewer with `--negatives`")
        return {"export": name, "build": build.name, "negatives": negatives, "sources": exported}

    return store.run_stage(out, digest, work)


def exported_table(receipt: Receipt) -> str:
    """Return one line per source: tuples, those used, rows or lines written, and what was left out."""
    head = ("source", "tuples", "used", "rows", "left out", "further positives left out")
    lines = [
        (name, one["tuples"], one["used"], one["rows"], sum(one["left_out"].values()), one["positives_left_out"])
        for name, one in receipt["sources"].items()
    ]
    return text_table(head, lines)


def mined_tuples(build: Path, source: str) -> Receipt | None:
    """Return the receipt of a source's mined tuples, checked; None if there are none.

    Raises:
        BuildError: a file was changed, or the source was built again since they were mined.
    """
    folder = build / "mined" / source
    receipt = store.read_receipt(folder)
    if receipt is not None:
        store.check_files(folder, receipt)
        if strange := outdated_tuple(build, source):
            what = f"was mined from other tuples than curated/{source} now holds ({strange} is one)"
            raise BuildError(folder, what, "run `mine negatives` again")
    return receipt


def _checked_target(out: Path) -> Path:
    """Return the folder to write; refuse one that holds anything other than an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not out.is_dir():
        raise BuildError(out, "is a file", "name a folder that does not exist yet")
    receipt = store.read_receipt(out)
    known = {out / store.RECEIPT, *(out / name for name in (receipt or {}).get("files", {}))}
    strange = [path for path in sorted(out.rglob("*")) if path.is_file() and path not in known]
    if receipt is None or "export" not in receipt or strange:
        first = (strange or [out / store.RECEIPT])[0].relative_to(out)
        raise BuildError(out, f"holds '{first}', which no export wrote", "name a folder that does not exist yet")
    return out


def _export_source(
    build: Path, folder: Path, data: Path, name: str, receipt: Receipt, negatives: int | None, progress: Progress
) -> dict[str, Any]:
    """Write one source; return what the receipt says about it."""
    source, shape = receipt["source"], FORMATS[name]
    entry = {key: receipt[key] for key in ("task", "instruction", "language", "license", "revision")}
    entry |= {"tuples": 0, "used": 0, "rows": 0, "left_out": {}, "positives_left_out": 0}
    if name == "ids":
        with progress(f"export {source}", receipt["kept"], "tuples") as advance:
            _write_ids(data / source, build / "curated" / source, folder, negatives, entry, advance)
        return entry
    constants = Constants(entry["task"], entry["instruction"], source)
    passages = passages_with_keys(build, source)
    columns = MINED_COLUMNS if shape.mined else CURATED_COLUMNS

    def made(make: Callable[[pl.DataFrame, Constants, int], Any], advance: Advance) -> Iterator[Any]:
        """Yield blocks of rows or lines, and count them."""
        for pairs in blocks_of(folder, columns):
            rows, most, left_out = fitting(with_texts(pairs, passages), shape, entry["task"], negatives)
            block = make(rows, constants, most)
            entry["tuples"] += len(pairs)
            entry["used"] += len(rows)
            entry["rows"] += len(block) if isinstance(block, pl.DataFrame) else len(rows)
            for reason, count in left_out.items():
                entry["left_out"][reason] = entry["left_out"].get(reason, 0) + count
            if shape.first:
                entry["positives_left_out"] += int(rows["positives"].list.len().sum()) - len(rows)
            yield block
            advance(len(pairs))

    with progress(f"export {source}", receipt["kept"], "tuples") as advance:
        if name == "beir":
            _write_beir(data / source, blocks_of(folder, columns), passages, entry, advance)
            return entry
        assert shape.make
        path = data / source / f"train.{shape.ending}" if shape.corpus else data / f"{source}.{shape.ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = made(shape.make, advance)
        if shape.corpus:
            _write_corpus(data / source / shape.corpus, constants, passages)
        if shape.ending == "json":
            with store.atomic(path) as file:
                file.write(b'{"corpus": [{"path": "corpus"}], "data": [\n')
                for number, row in enumerate(chain.from_iterable(blocks)):
                    file.write(b",\n" * (number > 0) + store.json_line(row).rstrip(b"\n"))
                file.write(b"\n]}\n")
        elif shape.ending == "parquet":
            metadata = {key: str(entry[key]) for key in ("task", "language", "instruction", "license")}
            tables.write_blocks(path, blocks, {"source": source, **metadata})
        else:
            store.write_lines(path, chain.from_iterable(blocks))
    if not entry["used"]:  # some trainers fail on a file without rows
        shutil.rmtree(path.parent) if shape.corpus else path.unlink()
    return entry


def _write_corpus(path: Path, source: Constants, passages: pl.DataFrame) -> None:
    """Write the passages of a source with their ids: JSON Lines for Tevatron, or a folder with metadata for NeMo."""
    if path.suffix == ".jsonl":
        store.write_lines(path, ({"docid": id_, "text": text} for id_, text in passages.select("key", "text").iter_rows()))
        return
    path.parent.mkdir()
    tables.write_parquet(path, passages.select(pl.col("key").alias("id"), "text"), {})
    asked = render_query(source.instruction, "")
    about = {"class": "TextQADataset", "corpus_id": source.source, "task_type": source.task, "query_instruction": asked}
    store.write_json(path.with_name("merlin_metadata.json"), about)


def _write_beir(
    folder: Path, blocks: Iterator[pl.DataFrame], passages: pl.DataFrame, entry: dict[str, Any], advance: Advance
) -> None:
    """Write a source in BEIR's layout: all its passages, its queries without instructions, and which passages are right."""
    (folder / "qrels").mkdir(parents=True)
    lines = ({"_id": id_, "title": "", "text": text} for id_, text in passages.select("key", "text").iter_rows())
    store.write_lines(folder / "corpus.jsonl", lines)
    with store.atomic(folder / "queries.jsonl") as queries, store.atomic(folder / "qrels" / "train.tsv") as qrels:
        qrels.write(b"query-id\tcorpus-id\tscore\n")
        for pairs in blocks:
            asked = pairs.select(_id="id", text="query")
            queries.writelines(store.json_line(row) for row in asked.iter_rows(named=True))
            right = pairs.select("id", key=gathered(pairs["positives"], passages["key"])).explode("key")
            qrels.writelines(f"{id_}\t{key}\t1\n".encode() for id_, key in right.iter_rows())
            entry["tuples"] += len(pairs)
            entry["used"] += len(pairs)
            entry["rows"] += len(right)
            advance(len(pairs))


def _write_ids(folder: Path, curated: Path, mined: Path, negatives: int | None, entry: dict[str, Any], advance: Advance) -> None:
    """Write a source as three tables in LightOn's layout: tuples of ids, and the texts of queries and passages, each once.

    The first of `document_ids` is the positive that is trained on, the others are negatives; `positive_ids` lists all
    positives. An id of a document is the number of its passage. Without any score there is no column `scores`: a trainer
    would take it for labels.
    """
    folder.mkdir(parents=True)
    scores = tables.read_table(mined, "pairs", ["positive_score", "negative_scores"])
    scored = scores["positive_score"].count() + scores["negative_scores"].explode().count() > 0
    about = {"source": folder.name, **{key: str(entry[key]) for key in ("task", "language", "instruction", "license")}}
    ids = pl.List(pl.Int64)

    def tuples() -> Iterator[pl.DataFrame]:
        for pairs in blocks_of(mined, MINED_COLUMNS):
            cut = pairs.with_columns(pl.col("negatives", "negative_scores").list.head(negatives)) if negatives else pairs
            first = pl.col("positives").list.head(1)
            columns = [pl.col("id").alias("query_id"), pl.concat_list(first, "negatives").cast(ids).alias("document_ids")]
            columns += [pl.concat_list("positive_score", "negative_scores").alias("scores")] if scored else []
            yield cut.select(*columns, pl.col("positives").cast(ids).alias("positive_ids"))
            for key in ("tuples", "used", "rows"):
                entry[key] += len(pairs)
            advance(len(pairs))

    queries = (pairs.select(query_id="id", text="query") for pairs in blocks_of(mined, ["id", "query"]))
    passages = (
        frame.select(pl.col("pid").cast(pl.Int64).alias("document_id"), "text")
        for frame in tables.read_frames(curated, "passages", ["pid", "text"])
    )
    for name, blocks in (("train", tuples()), ("queries", queries), ("documents", passages)):
        tables.write_blocks(folder / f"{name}.parquet", blocks, about)
    if not entry["used"]:
        shutil.rmtree(folder)


def passages_with_keys(build: Path, source: str) -> pl.DataFrame:
    """Return text, key (as hex) of a source's passages, in the order of their numbers."""
    passages = tables.read_table(build / "curated" / source, "passages", ["text", "key"])
    return passages.with_columns(pl.col("key").bin.encode("hex"))


def blocks_of(folder: Path, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
    """Yield the tuples of a stage in blocks, at least one."""
    for pairs in tables.shards(folder, "pairs", list(columns)):
        yield from pairs.iter_slices(BLOCK_TUPLES) if len(pairs) else [pairs]


def with_texts(pairs: pl.DataFrame, passages: pl.DataFrame) -> pl.DataFrame:
    """Return tuples with the texts of their passages in place of the numbers, and the texts' ids next to them."""
    lists: dict[str, pl.Series] = {}
    for role in ("positive", "negative"):
        numbers = pairs[f"{role}s"]
        lists |= {f"{role}s": gathered(numbers, passages["text"]), f"{role}_ids": gathered(numbers, passages["key"])}
    return pairs.with_columns(values.alias(name) for name, values in lists.items())


def gathered(lists: pl.Series, values: pl.Series) -> pl.Series:
    """Return lists of values, given lists of their numbers."""
    rows = pl.DataFrame({"number": lists}).with_row_index("at")
    long = rows.explode("number", empty_as_null=False).drop_nulls("number")
    taken = long.select("at", values.gather(long["number"]).alias("value")).group_by("at", maintain_order=True).agg("value")
    return rows.join(taken, on="at", how="left", maintain_order="left").select(pl.col("value").fill_null([]))["value"]
