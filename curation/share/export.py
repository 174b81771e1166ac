"""A build as another tool's training data, in a folder of its own: `data/`, which the tool reads, and the receipt beside it.

The receipt is no data, and some trainers read every file of a folder; so it stands one level up. Memory holds the
passages of one source and a block of its tuples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from curation.core import store, tables
from curation.core.builds import Receipt, receipts
from curation.core.errors import BuildError, listed
from curation.core.escape import text_table
from curation.core.progress import Advance, Progress, silent
from curation.share.formats import FORMATS, Constants, fitting

FORMAT = 2  # raised when the same build gives other files
BLOCK = 8192  # tuples: with 25 texts of 500 bytes, 100 MB
CURATED = ("id", "key", "query", "positives", "negatives")
MINED = (*CURATED, "positive_score", "negative_scores")


def export(
    build: Path, out: Path, name: str, only: Iterable[str] = (), negatives: int | None = None, progress: Progress = silent
) -> tuple[Receipt, bool]:
    """Write a build's sources in the format `name` under `out`; return (receipt, whether there was anything to do).

    Raises:
        BuildError: no whole build, no mined negatives where the format needs them, not one tuple that the format can
            hold, or `out` holds something that no export wrote.
    """
    sources = receipts(build, only)
    folders = {source: _tuples(build, source, FORMATS[name].mined) for source in sources}
    stages = [store.receipt_of(folder)["files"] for folder in folders.values()]
    digest = store.digest_of([FORMAT, name, negatives, [[key, receipt["files"]] for key, receipt in sources.items()], stages])
    out = _free(out.expanduser().resolve())

    def work(part: Path) -> Receipt:
        said = {}
        for source, receipt in sources.items():
            said[source] = _source(build, folders[source], part / "data", name, receipt, negatives, progress)
        if not any(one["used"] for one in said.values()):
            raise BuildError(build, f"not one tuple fits '{name}' ({_reasons(said)})", "ask for fewer with `--negatives`")
        return {"export": name, "build": build.name, "negatives": negatives, "sources": said}

    return store.run_stage(out, digest, work)


def exported_table(receipt: Receipt) -> str:
    """Return one line a source: tuples, those used, rows or lines written, and what was left out."""
    head = ("source", "tuples", "used", "rows", "left out", "further positives left out")
    lines = [
        (name, one["tuples"], one["used"], one["rows"], sum(one["left_out"].values()), one["positives_left_out"])
        for name, one in receipt["sources"].items()
    ]
    return text_table(head, lines)


def stale(build: Path, source: str) -> str | None:
    """Return the id of a mined tuple that the curated ones do not have: the source was built anew since; else None."""
    columns = ["id", "key", "positives"]
    known, found = (tables.read_table(build / stage / source, "pairs", columns) for stage in ("curated", "mined"))
    ours = pl.col("positives").hash(0)
    strange = found.select("id", "key", ours).join(known.select("id", "key", ours), on=columns, how="anti")
    return str(strange["id"][0]) if len(strange) else None


def _tuples(build: Path, source: str, mined: bool) -> Path:
    """Return the folder of the tuples to export, checked."""
    if not mined:
        return build / "curated" / source
    folder = build / "mined" / source
    receipt = store.read_receipt(folder)
    if receipt is None:
        raise BuildError(
            build, f"no mined negatives for '{source}', and this format needs them", f"run `mine negatives {build}` first"
        )
    store.check_files(folder, receipt)
    if strange := stale(build, source):
        told = f"was mined from other tuples than curated/{source} now holds ({strange} is one)"
        raise BuildError(folder, told, "run `mine negatives` again")
    return folder


def _free(out: Path) -> Path:
    """Return a folder to write, refusing one that holds anything but an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not out.is_dir():
        raise BuildError(out, "is a file", "name a folder that is not there yet")
    receipt = store.read_receipt(out)
    known = {out / store.RECEIPT, *(out / name for name in (receipt or {}).get("files", {}))}
    strange = [path for path in sorted(out.rglob("*")) if path.is_file() and path not in known]
    if receipt is None or "export" not in receipt or strange:
        first = (strange or [out / store.RECEIPT])[0].relative_to(out)
        raise BuildError(out, f"holds '{first}', which no export wrote", "name a folder that is not there yet")
    return out


def _source(
    build: Path, folder: Path, data: Path, name: str, receipt: Receipt, negatives: int | None, progress: Progress
) -> dict[str, Any]:
    """Write one source; return what the receipt says of it."""
    source, shape = receipt["source"], FORMATS[name]
    said = {key: receipt[key] for key in ("task", "instruction", "language", "license", "revision")}
    said |= {"tuples": 0, "used": 0, "rows": 0, "left_out": {}, "positives_left_out": 0}
    passages = tables.read_table(build / "curated" / source, "passages", ["text", "key"])
    passages = passages.with_columns(pl.col("key").bin.encode("hex"))
    with progress(f"export {source}", receipt["kept"], "tuples") as advance:
        if shape.make is None:
            _beir(data / source, blocks_of(folder, MINED if shape.mined else CURATED), passages, said, advance)
            return said
        data.mkdir(exist_ok=True)
        blocks = _made(folder, passages, name, said, negatives, advance)
        path = data / f"{source}.{shape.ending}"
        if shape.ending == "parquet":
            constants = {key: str(said[key]) for key in ("task", "language", "instruction", "license")}
            tables.write_blocks(path, blocks, {"source": source, **constants})
        else:
            store.write_lines(path, chain.from_iterable(blocks))
    if not said["used"]:
        path.unlink()  # a trainer has no use for a file without rows
    return said


def _made(
    folder: Path, passages: pl.DataFrame, name: str, said: dict[str, Any], negatives: int | None, advance: Advance
) -> Iterator[Any]:
    """Yield blocks of the format's rows or lines, and count them in `said`."""
    shape = FORMATS[name]
    assert shape.make is not None
    constants = Constants(said["task"], said["instruction"])
    for pairs in blocks_of(folder, MINED if shape.mined else CURATED):
        rows, most, left_out = fitting(with_texts(pairs, passages), shape, said["task"], negatives)
        made = shape.make(rows, constants, most)
        said["tuples"] += len(pairs)
        said["used"] += len(rows)
        said["rows"] += len(made) if isinstance(made, pl.DataFrame) else len(rows)
        said["left_out"] = _sum(said["left_out"], left_out)
        if shape.first:
            said["positives_left_out"] += int(rows["positives"].list.len().sum()) - len(rows)
        yield made
        advance(len(pairs))


def blocks_of(folder: Path, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
    """Yield the tuples of a stage in blocks, at least one."""
    for pairs in tables.shards(folder, "pairs", list(columns)):
        yield from pairs.iter_slices(BLOCK) if len(pairs) else [pairs]


def with_texts(pairs: pl.DataFrame, passages: pl.DataFrame) -> pl.DataFrame:
    """Return tuples with the texts of their passages for the numbers, and the texts' ids beside them."""
    lists: dict[str, pl.Series] = {}
    for role in ("positive", "negative"):
        numbers = pairs[f"{role}s"]
        lists |= {f"{role}s": gathered(numbers, passages["text"]), f"{role}_ids": gathered(numbers, passages["key"])}
    return pairs.with_columns(values.alias(name) for name, values in lists.items())


def gathered(lists: pl.Series, values: pl.Series) -> pl.Series:
    """Return for lists of numbers the lists of values that stand at these numbers."""
    rows = pl.DataFrame({"number": lists}).with_row_index("at")
    long = rows.explode("number", empty_as_null=False).drop_nulls("number")
    taken = long.select("at", values.gather(long["number"]).alias("value")).group_by("at", maintain_order=True).agg("value")
    return rows.join(taken, on="at", how="left", maintain_order="left").select(pl.col("value").fill_null([]))["value"]


def _beir(folder: Path, blocks: Iterator[pl.DataFrame], passages: pl.DataFrame, said: dict[str, Any], advance: Advance) -> None:
    """Write a source as BEIR does: all its passages, the bare queries, and which is right for which."""
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
            said["tuples"] += len(pairs)
            said["used"] += len(pairs)
            said["rows"] += len(right)
            advance(len(pairs))


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {**left, **{reason: left.get(reason, 0) + count for reason, count in right.items()}}


def _reasons(said: Mapping[str, Any]) -> str:
    total: dict[str, int] = {}
    for one in said.values():
        total = _sum(total, one["left_out"])
    return listed(f"{reason} {count}" for reason, count in total.items()) or "there are none"
