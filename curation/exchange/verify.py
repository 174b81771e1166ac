"""Whether a build is what it says: each file against its receipt, each id against its table, each count against the rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation import store, tables
from curation.errors import UserError
from curation.exchange.export import stale
from curation.exchange.upload import MARK, Piece
from curation.look import names_of
from curation.progress import Progress, silent
from curation.schema import ORIGINS, keys_of
from curation.summary import CONSTANTS, COUNTS

Receipt = dict[str, Any]
STAGES = ("shaped", "near", "cleaned", "curated", "mined", "heldout")
LISTS = ("negative_scores", "negative_ranks", "negative_origin")
BY_ROWS = ("read", "shape")  # stages that drop rows; later ones drop tuples


class Problem(NamedTuple):
    """What is wrong, and where."""

    where: str
    what: str


def problems(build: Path, only: Iterable[str] = (), progress: Progress = silent) -> list[Problem]:
    """Return all that is wrong with a build, or a published one that was downloaded; nothing where all is as it was written.

    Passages and tuples are looked at shard by shard. A stage whose files are not those of its receipt is told of, and
    not looked into.

    Raises:
        BuildError: there is no build.json, or it does not name a source of `only`.
    """
    if (build / MARK).is_file() and not (build / "build.json").exists():
        return list(_published(build, only))
    names = names_of(build, only)
    entries = store.read_json(build / "build.json")["sources"]
    found = [] if (build / "manifest.yaml").is_file() else [Problem(str(build / "manifest.yaml"), "is missing")]
    for folder in [*sorted((build / "across").glob("*/")), *build.glob("decontaminate")]:
        found += _files(folder)
    found += _copies(build)
    with progress("verify", len(names), "sources") as advance:
        for name in names:
            found += _source(build, name, entries[name])
            advance(1)
    return found


def _published(folder: Path, only: Iterable[str]) -> Iterator[Problem]:
    """Compare the files of a published build with what its MARK says of them."""
    told = store.read_json(folder / MARK)
    yield from (Problem(str(folder / name), "is missing") for name in told["files"] if not (folder / name).is_file())
    for name, source in told["sources"].items():
        if only and name not in only:
            continue
        paths = {folder / name / shard: said["sha256"] for shard, said in source["shards"].items()}
        wrong = [path for path, digest in paths.items() if path.is_file() and Piece.of(path).sha256 != digest]
        yield from (Problem(str(path), f"has another digest than {MARK} says") for path in wrong)
        if not wrong and all(path.is_file() for path in paths):
            frame = pl.concat([tables.read_parquet(path) for path in paths])
            yield from _equal(str(folder / name), "rows", len(frame), f"{MARK}'s", source["rows"])
            if frame.columns != [feature["name"] for feature in source["features"]]:
                yield Problem(str(folder / name), f"has other columns than {MARK} says")


def _copies(build: Path) -> Iterator[Problem]:
    """Compare what stands at the top of a build with the stages it was gathered from."""
    path, leaks = build / "leaks.parquet", store.read_json(build / "build.json").get("decontaminate")
    try:
        if leaks and not path.exists():
            yield Problem(str(path), "is missing, and build.json counts leaks")
        elif leaks:
            counts = (row for task in leaks["tasks"].values() for source in task.values() for row in source.values())
            yield from _equal(str(path), "leaks", len(tables.read_parquet(path, ["task"])), "build.json's", sum(counts))
    except UserError as error:
        yield Problem(error.where, error.what)
    kept, made = build / "overlaps.parquet", build / "across" / "overlaps" / "overlaps.parquet"
    if made.exists() and not (kept.exists() and store.file_digest(kept) == store.file_digest(made)):
        yield Problem(str(kept), "is not the overlaps.parquet of across/overlaps")


def _source(build: Path, name: str, entry: Mapping[str, Any]) -> Iterator[Problem]:
    whole: dict[str, Receipt] = {}
    for stage in STAGES:
        folder = build / stage / name
        if not folder.exists():
            continue
        bad = list(_files(folder))
        yield from bad
        if not bad:
            whole[stage] = store.read_receipt(folder) or {}
    curated = whole.get("curated")
    if curated is None:
        if not (build / "curated" / name).exists():
            yield Problem(str(build / "curated" / name), "is missing, and build.json names it")
        return
    checks = [_curated(build / "curated" / name, entry, curated)]
    if "mined" in whole:
        checks.append(_mined(build, name, curated, whole["mined"]))
    if curated.get("heldout"):
        checks.append(_heldout(build / "heldout" / name, curated["heldout"]))
    for check in checks:
        try:
            yield from check
        except (KeyError, TypeError, UserError, pl.exceptions.PolarsError) as error:
            yield Problem(str(build / "*" / name), f"is not what a build holds ({type(error).__name__}: {error})")


def _files(folder: Path) -> Iterator[Problem]:
    """Compare the files of a stage with its receipt."""
    try:
        receipt = store.read_receipt(folder)
    except UserError as error:
        yield Problem(error.where, error.what)
        return
    if receipt is None or not isinstance(receipt.get("files"), dict):
        yield Problem(str(folder), "has no receipt done.json, so it is unfinished or was changed by hand")
        return
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {store.RECEIPT}
    for name, digest in receipt["files"].items():
        if name not in there:
            yield Problem(str(folder / name), "is missing, and the receipt names it")
        elif store.file_digest(folder / name) != digest:
            yield Problem(str(folder / name), "has another digest than the receipt says")
    for name in sorted(there - set(receipt["files"])):
        yield Problem(str(folder / name), "is not in the receipt")


def _curated(folder: Path, entry: Mapping[str, Any], receipt: Receipt) -> Iterator[Problem]:
    where = str(folder / store.RECEIPT)
    for key in (*CONSTANTS, *COUNTS, "tuples"):  # what else is told of a source stands in the manifest alone
        said, value = receipt["kept"] if key == "tuples" else receipt.get(key), entry.get(key)
        if said != value:
            yield Problem(where, f"says {said!r} for '{key}', and build.json says {value!r}")
    rows_dropped, dropped = sum(receipt["rows_dropped"].values()), sum(receipt["dropped"].values())
    parts = (receipt["kept"], receipt["merged"], receipt["heldout"], dropped)
    yield from _equal(where, "rows_in", receipt["rows_in"], "rows used + dropped", receipt["rows_used"] + rows_dropped)
    yield from _equal(where, "tuples_made", receipt["tuples_made"], "kept + merged + held out + dropped", sum(parts))
    lines = tables.read_parquet(folder / "dropped.parquet", ["stage", "reason"])
    by_rows, merged = pl.col("stage").is_in(BY_ROWS), pl.col("stage") == "merge"
    told = str(folder / "dropped.parquet")
    yield from _equal(told, "merged tuples", len(lines.filter(merged)), "the receipt's", receipt["merged"])
    for key, which in (("rows_dropped", by_rows), ("dropped", ~by_rows & ~merged)):
        counts = dict(lines.filter(which).group_by("reason").len().iter_rows())
        for reason in sorted({*counts, *receipt[key]}):
            yield from _equal(told, f"lines '{reason}'", counts.get(reason, 0), "the receipt's", receipt[key].get(reason, 0))
    passages = 0
    for shard in sorted(folder.glob("passages-[0-9]*.parquet")):
        frame = tables.read_parquet(shard, ["pid", "text", "key"])
        numbers = pl.int_range(passages, passages + len(frame), dtype=pl.UInt32, eager=True)
        yield from _rule(
            str(shard), "passages", frame["pid"], frame["pid"].ne_missing(numbers), "are not numbered by their place"
        )
        yield from _keys(shard, "passages", frame["pid"], frame["key"], frame["text"])
        passages += len(frame)
    yield from _equal(where, "passages", receipt["passages"], "rows in the tables", passages)
    yield from _tuples(folder, receipt["source"], receipt["kept"], passages, mined=False)


def _mined(build: Path, name: str, curated: Receipt, receipt: Receipt) -> Iterator[Problem]:
    folder, where = build / "mined" / name, str(build / "mined" / name / store.RECEIPT)
    dropped = sum(receipt["dropped"].values())
    yield from _equal(where, "rows_in", receipt["rows_in"], "curated tuples", curated["kept"])
    yield from _equal(where, "rows_in", receipt["rows_in"], "kept + dropped", receipt["kept"] + dropped)
    lines = len(tables.read_parquet(folder / "dropped.parquet", ["id"]))
    yield from _equal(str(folder / "dropped.parquet"), "lines", lines, "the receipt's dropped", dropped)
    yield from _tuples(folder, name, receipt["kept"], curated["passages"], mined=True)
    if strange := stale(build, name):
        yield Problem(str(folder), f"was mined from other tuples than curated/{name} now holds ({strange} is one)")


def _tuples(folder: Path, source: str, kept: int, passages: int, mined: bool) -> Iterator[Problem]:
    """Check the tuples of a stage: ids, keys, and the numbers of passages."""
    ids = []
    for shard in sorted(folder.glob("pairs-[0-9]*.parquet")):
        frame = tables.read_parquet(shard)
        broken = frame.select(_rules(source, passages, LISTS if mined else [name for name in LISTS if name in frame.columns]))
        for what in broken.columns:
            yield from _rule(str(shard), "tuples", frame["id"], broken[what].fill_null(True), what)
        yield from _keys(shard, "tuples", frame["id"], frame["key"], frame["query"])
        ids.append(frame["id"])
    every = pl.concat(ids) if ids else pl.Series("id", [], dtype=pl.String)
    yield from _equal(str(folder), "tuples", len(every), "the receipt's kept", kept)
    yield from _rule(str(folder), "tuples", every, every.is_duplicated(), "have the id of another")


def _rules(source: str, passages: int, lists: Iterable[str]) -> list[pl.Expr]:
    """Return one column a rule, true for the tuples that break it, named for what is then wrong with them.

    `lists` are those that go with the negatives: of curated tuples the scores, if they came with any.
    """
    positives, negatives = pl.col("positives"), pl.col("negatives")
    rules = {
        "have the id of another source": ~pl.col("id").str.starts_with(f"{source}/"),
        "have no positive": positives.list.len() == 0,
        f"name a passage that is not there ({passages:,} are)": pl.concat_list("positives", "negatives").list.max() >= passages,
        "have a negative that is a positive": positives.list.set_intersection(negatives).list.len() > 0,
        "name a positive twice": positives.list.n_unique() < positives.list.len(),
        "name a negative twice": negatives.list.n_unique() < negatives.list.len(),
    }
    for name in lists:
        rules[f"have not one of '{name}' a negative"] = pl.col(name).list.len() != negatives.list.len()
    if "negative_scores" in lists:
        odd = pl.element().is_nan() | pl.element().is_infinite()
        rules["have a score that is no number"] = pl.col("negative_scores").list.eval(odd).list.any()
    if "negative_origin" in lists:
        rules["have a negative of unknown origin"] = pl.col("negative_origin").list.max().fill_null(0) >= len(ORIGINS)
    return [rule.alias(what) for what, rule in rules.items()]


def _heldout(folder: Path, count: int) -> Iterator[Problem]:
    if not folder.exists():
        yield Problem(str(folder), f"is missing, and {count} queries are held out")
        return
    known = {}
    for name in ("queries", "corpus"):
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            known[name] = {json.loads(line)["_id"] for line in file}
    yield from _equal(str(folder / "queries.jsonl"), "queries", len(known["queries"]), "the receipt's held out", count)
    path = folder / "qrels" / "test.tsv"
    with path.open(encoding="utf-8") as file:
        next(file)
        lines = [line.rstrip("\n").split("\t") for line in file]
    for at, name in enumerate(("queries", "corpus")):
        strange = {line[at] for line in lines} - known[name]
        if strange:
            yield Problem(str(path), f"names {len(strange)} ids that {name}.jsonl does not have ({min(strange)} is one)")
    unasked = known["queries"] - {line[0] for line in lines}
    if unasked:
        yield Problem(str(path), f"has no passage for {len(unasked)} queries ({min(unasked)} is one)")


def _equal(where: str, what: str, found: int, other: str, expected: int) -> Iterator[Problem]:
    if found != expected:
        yield Problem(where, f"{what} {found:,} is not {other} {expected:,}")


def _keys(shard: Path, what: str, ids: pl.Series, keys: pl.Series, texts: pl.Series) -> Iterator[Problem]:
    wrong = keys.ne_missing(keys_of(texts))
    yield from _rule(str(shard), what, ids, wrong, f"have a key that is not their {texts.name}'s")


def _rule(where: str, what: str, ids: pl.Series, broken: pl.Series, complaint: str) -> Iterator[Problem]:
    count = int(broken.sum())
    if count:
        yield Problem(where, f"{count:,} {what} {complaint} ({ids.filter(broken)[0]} is the first)")
