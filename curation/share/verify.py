"""`curate verify`: each file against its receipt, each id against its table, each count against the rows.

A build is many independent checks, most of one folder each. They run where the work is done (`curation/engine`), and their
problems are joined in the order of the checks. Nothing is written to what is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation.core import store, tables
from curation.core.builds import CONSTANTS, COUNTS, Receipt, names_of, outdated_tuple, read_build
from curation.core.errors import BuildError, UserError
from curation.core.hub import MARK, Piece
from curation.core.progress import Progress, silent
from curation.core.record import ORIGINS, keys_of
from curation.engine.local import processors
from curation.engine.workers import workers

VERIFIED_STAGES = ("shaped", "near", "cleaned", "curated", "mined", "heldout", "publish")
MINED_LISTS = ("negative_scores", "negative_ranks", "negative_origin")
BY_ROWS = ("read", "shape")  # stages that drop rows; later ones drop tuples
REPORT, LOG = "report.html", "log.jsonl"
BYTES_PER_PROCESS = 256 << 20  # to check that one more process is started for
IN_A_MODEL = (store.RECEIPT, "README.md", MARK, ".gitattributes")  # what a model's folder may hold that its receipt does not list


class Problem(NamedTuple):
    """What is wrong, and where."""

    where: str
    what: str


Problems = Iterator[Problem]
Check = partial[Problems]  # a function of this module and its arguments: paths, and what their receipts say


def problems(
    build: Path, only: Iterable[str] = (), progress: Progress = silent, processes: int | None = 1, ray: str | None = None
) -> list[Problem]:
    """Return all that is wrong with a build, an export, a run of `train`, a model, or a downloaded version.

    Every file is read whole; passages and tuples are checked shard by shard. A stage whose files differ from its receipt is
    reported, and its tables are not checked. If everything is as it was written, the list is empty.

    Args:
        build: the folder.
        only: names of sources; by default all of them.
        progress: reports how far the work is.
        processes: how many; None starts several if there is enough to read. The problems and their order do not depend on it.
        ray: the address of a Ray cluster whose nodes do the work, instead of processes of this machine.

    Raises:
        BuildError: the folder holds none of these, or build.json does not name a source of `only`.
    """
    only = list(only)
    if not (build / store.BUILD).exists():
        if (build / MARK).is_file():
            return _run(_published_checks(build, only), [build], progress, processes, ray)
        if (build / "checkpoints").is_dir() or (build / "modules.json").is_file() or (build / "model").is_dir():
            return problems_of_model(build, None, progress, processes, ray)
        if (build / store.RECEIPT).is_file():
            return _run([partial(_file_problems, build)], [build], progress, processes, ray)
    elif wrong := _broken(build / store.BUILD):
        return [wrong]
    names = names_of(build, only)
    whole = read_build(build)
    checks: list[Check] = [partial(_top, build, whole)]
    # stages of all sources, stages of sources that build.json does not name, and shards of vectors
    folders = [*sorted(build.glob("across/*/")), *build.glob("decontaminate/")]
    folders += [folder for folder in sorted(build.glob("candidates/*/*/")) if not only or folder.parent.name in only]
    for stage in () if only else VERIFIED_STAGES:
        others = [folder for folder in sorted(build.glob(f"{stage}/*/")) if folder.name not in whole["sources"]]
        folders += [folder for folder in others if folder.name[0] != "."]
    checks += [partial(_file_problems, folder) for folder in folders]
    for folder in [*sorted(build.glob("embeddings/*/")), *sorted(build.glob("reranked/*/"))]:
        checks += [partial(_shard_problems, path) for path in sorted(folder.glob("shard-*.json"))]
        checks.append(partial(_unlisted_vectors, folder))
    checks += [partial(_source_problems, build, name, whole["sources"][name]) for name in names]
    if any(path.name[0] != "." for path in (build / "train").glob("*")):  # a run that was refused leaves an empty folder
        checks += _run_checks(build / "train", build)
    return _run(checks, [build], progress, processes, ray)


def problems_of_model(
    run: Path, build: Path | None = None, progress: Progress = silent, processes: int | None = 1, ray: str | None = None
) -> list[Problem]:
    """Return all that is wrong with a run of `train`, or with a model; with `build`, also with what it was trained on.

    Raises:
        BuildError: the folder holds neither.
    """
    return _run(_run_checks(run, build), [run, build] if build else [run], progress, processes, ray)


def _run(checks: list[Check], reads: list[Path], progress: Progress, processes: int | None, ray: str | None) -> list[Problem]:
    """Run checks of these folders where the work is done, and return their problems in the order of the checks."""
    if processes is None and ray is None:
        sizes = (path.stat().st_size for folder in reads for path in folder.rglob("*") if path.is_file())
        processes = min(processors(), 1 + sum(sizes) // BYTES_PER_PROCESS)
    numbered = list(enumerate(checks))
    found: dict[int, list[Problem]] = {}
    with (
        workers(None, min(processes or 1, len(checks)), ray, reads=reads) as some,
        progress("verify", len(checks), "checks") as advance,
    ):
        for (number, _), result in some.run(_found, numbered):
            found[number] = result()
            advance(1)
    every = [problem for number, _ in numbered for problem in found[number]]
    return list(dict.fromkeys(every))  # the stages that a model was trained on are checked twice


def _found(numbered: tuple[int, Check]) -> list[Problem]:
    return list(numbered[1]())


def _run_checks(run: Path, build: Path | None) -> list[Check]:
    """Return the checks of a run of `train`, or of a model."""
    if (run / "modules.json").is_file():
        return _published_checks(run, []) if (run / MARK).is_file() else [partial(_file_problems, run, IN_A_MODEL)]
    if not any((run / name).exists() for name in ("checkpoints", "tokens", "model", store.RECEIPT)):
        raise BuildError(run, "holds neither a run of `train` nor a model", "name a folder such as BUILD/train")
    folders = [*sorted(run.glob("tokens/*/*/")), *sorted(run.glob("checkpoints/step-*/"))]
    checks = [*(partial(_file_problems, folder) for folder in folders), partial(_run_problems, run)]
    if build and (run / store.RECEIPT).exists() and not _broken(run / store.RECEIPT):
        trained_on = store.read_sealed(run / store.RECEIPT).get("tables", {})
        checks += [partial(_trained_on, build, name, digest) for name, digest in trained_on.items()]
    return checks


def _run_problems(run: Path) -> Problems:
    """Check the model of a run, and the files that describe the run."""
    sealed = [run / name for name in (store.RECEIPT, store.TIMINGS, store.EVALUATION, REPORT)]
    yield from (wrong for path in sealed if path.exists() and (wrong := _broken(path)))
    if (run / "model").is_dir():
        yield from _file_problems(run / "model", IN_A_MODEL)
    if not (run / store.RECEIPT).exists() or _broken(run / store.RECEIPT):
        return  # the run has not ended
    receipt = store.read_sealed(run / store.RECEIPT)
    if not (run / "model" / store.RECEIPT).is_file() or store.file_digest(run / "model" / store.RECEIPT) != receipt.get("model"):
        yield Problem(str(run / "model"), f"is not the model that {store.RECEIPT} of the run names")
    yield from (Problem(str(run / name), "is missing") for name in (REPORT, store.TIMINGS) if not (run / name).is_file())
    if (run / store.TIMINGS).is_file() and not _broken(run / store.TIMINGS):
        logs = [run / LOG, *run.glob("tensorboard/**/*")]
        yield from _listed_files(run, store.read_sealed(run / store.TIMINGS)["files"], logs, store.TIMINGS)
    known = {store.RECEIPT, store.TIMINGS, store.EVALUATION, REPORT, LOG}
    extra = [path for path in sorted(run.iterdir()) if path.is_file() and path.name not in known and path.name[0] != "."]
    yield from (Problem(str(path), "was not written by `train`") for path in extra)


def _trained_on(build: Path, name: str, digest: str) -> Problems:
    """Compare the tables of a source with those that a model was trained on."""
    folders = [build / stage / name for stage in ("curated", "mined")]
    changed = [problem for folder in folders for problem in _file_problems(folder)]
    yield from changed
    if not changed and digest != store.digest_of([store.receipt_of(folder)["files"] for folder in folders]):
        yield Problem(str(build / "mined" / name), "holds other tuples than the model was trained on")


def _broken(path: Path) -> Problem | None:
    """Return what is wrong with a file that holds its own digest."""
    try:
        if path.name != REPORT:
            store.read_sealed(path)
        elif not store.is_sealed_page(path):
            return Problem(str(path), "was changed since it was written (its digest differs)")
    except UserError as error:
        return Problem(error.where, error.what)
    return None


def _top(build: Path, whole: Receipt) -> Problems:
    """Compare the files at the top of a build, and the receipts of its stages, with build.json."""
    if not (build / REPORT).is_file():
        yield Problem(str(build / REPORT), "is missing")
    for name in (REPORT, store.TIMINGS, "embeddings/encoders.json"):
        if (build / name).is_file() and (wrong := _broken(build / name)):
            yield wrong
    known = {store.BUILD, store.TIMINGS, REPORT}
    top_files = [path for path in build.iterdir() if path.name not in known and path.name[0] != "."]
    yield from _listed_files(build, whole.get("files", {}), top_files, store.BUILD)
    for stage, digest in whole.get("stages", {}).items():
        path = build / stage / store.RECEIPT
        if path.is_file() and store.file_digest(path) != digest:
            yield Problem(str(path), "is not the receipt that build.json lists")
        elif not path.is_file() and (build / stage).exists() is False:
            yield Problem(str(build / stage), "is missing, and build.json names it")
    try:
        if (found := whole.get("decontaminate")) and (path := build / "contamination.parquet").is_file():
            counts = (row for task in found["tasks"].values() for source in task.values() for row in source.values())
            yield from _equal(str(path), "rows", len(tables.read_parquet(path, ["task"])), "build.json's", sum(counts))
    except (UserError, pl.exceptions.PolarsError) as error:
        yield Problem(str(path), f"cannot be read ({type(error).__name__})")


def _listed_files(folder: Path, files: Mapping[str, str], there: Iterable[Path], receipt: str) -> Problems:
    """Compare files with those that a receipt lists."""
    for name, digest in files.items():
        if not (folder / name).is_file():
            yield Problem(str(folder / name), f"is missing, and {receipt} names it")
        elif store.file_digest(folder / name) != digest:
            yield Problem(str(folder / name), f"has another digest than {receipt} says")
    for path in sorted(there):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            yield Problem(str(path), f"is not in {receipt}")


def _shard_problems(path: Path) -> Problems:
    """Compare the files of a shard of stored vectors with its receipt."""
    if wrong := _broken(path):
        yield wrong
    else:
        yield from _listed_files(path.parent, _shard_files(path), (), path.name)


def _shard_files(path: Path) -> dict[str, str]:
    """Return the digests in the receipt of a shard of stored vectors, by name of the file."""
    digests = store.read_json(path).items()
    return {path.with_suffix(f".{ending}").name: digest for ending, digest in digests if ending != "rows"}


def _unlisted_vectors(folder: Path) -> Problems:
    """Check what describes stored vectors, and that each file next to it is one that a shard's receipt lists."""
    if wrong := _broken(folder / "meta.json"):
        yield wrong
    known = {"meta.json"}
    for path in folder.glob("shard-*.json"):
        known |= {path.name, *({} if _broken(path) else _shard_files(path))}
    extra = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in known]
    yield from (Problem(str(path), "is in no receipt") for path in extra)


def _published_checks(folder: Path, only: list[str]) -> list[Check]:
    """Return the checks of a published build or model: one per source, after one of the files that belong to no source."""
    sources = {} if _broken(folder / MARK) else store.read_json(folder / MARK).get("sources", {})
    return [partial(_published, folder, name) for name in ("", *(name for name in sources if not only or name in only))]


def _published(folder: Path, source: str) -> Problems:
    """Compare the files of a source of a published build with its MARK; or, if `source` is empty, the files of no source."""
    if wrong := _broken(folder / MARK):
        yield wrong
        return
    mark = store.read_json(folder / MARK)
    sources, bad = mark.get("sources", {}), False
    for name, entry in mark["files"].items():
        first = name.split("/")[0]
        if (first if first in sources else "") != source:
            continue
        if not (folder / name).is_file():
            bad = True
            yield Problem(str(folder / name), "is missing")
        elif Piece.of(folder / name).sha256 != entry["sha256"]:
            bad = True
            yield Problem(str(folder / name), f"has another digest than {MARK} says")
    if not source:
        known = dict.fromkeys(mark["files"], "")
        extra = [
            path for path, what in store.changes(folder, known, (MARK, ".gitattributes"), lambda path: "") if what == "added"
        ]
        yield from (Problem(str(path), f"is not in {MARK}") for path in extra)
    elif not bad:
        frame = pl.concat([tables.read_parquet(folder / source / shard) for shard in sources[source]["shards"]])
        yield from _equal(str(folder / source), "rows", len(frame), f"{MARK}'s", sources[source]["rows"])
        if frame.columns != [feature["name"] for feature in sources[source]["features"]]:
            yield Problem(str(folder / source), f"has other columns than {MARK} says")


def _source_problems(build: Path, name: str, entry: Mapping[str, Any]) -> Problems:
    """Check the stages of one source, and the tables of those whose files are as they were written."""
    whole: dict[str, Receipt] = {}
    for stage in VERIFIED_STAGES:
        folder = build / stage / name
        if not folder.exists():
            continue
        bad = list(_file_problems(folder))
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
        checks.append(_mined_problems(build, name, curated, whole["mined"]))
    held = build / "heldout" / name
    if curated.get("heldout") and ("heldout" in whole or not held.exists()):
        checks.append(_heldout(held, curated["heldout"]))
    for check in checks:
        try:
            yield from check
        except (KeyError, TypeError, ValueError, UserError, pl.exceptions.PolarsError) as error:
            yield Problem(str(build / "*" / name), f"does not have the form of a build ({type(error).__name__}: {error})")


def _file_problems(folder: Path, besides: Iterable[str] = (store.RECEIPT,)) -> Problems:
    """Compare the files of a stage with its receipt."""
    try:
        receipt = store.read_receipt(folder)
    except UserError as error:
        yield Problem(error.where, error.what)
        return
    if receipt is None or not isinstance(receipt.get("files"), dict):
        yield Problem(str(folder), "has no receipt done.json, so it is unfinished or was changed by hand")
        return
    texts = {"removed": "is missing, and the receipt names it", "changed": "has another digest than the receipt says"}
    for path, what in store.changes(folder, receipt["files"], besides, store.file_digest):
        yield Problem(str(path), texts.get(what, "is not in the receipt"))


def _curated(folder: Path, entry: Mapping[str, Any], receipt: Receipt) -> Problems:
    where = str(folder / store.RECEIPT)
    for key in (*CONSTANTS, *COUNTS, "tuples"):  # the other keys of a source come from the manifest
        in_receipt, in_build = receipt["kept"] if key == "tuples" else receipt.get(key), entry.get(key)
        if in_receipt != in_build:
            yield Problem(where, f"says {in_receipt!r} for '{key}', and build.json says {in_build!r}")
    rows_dropped, dropped = sum(receipt["rows_dropped"].values()), sum(receipt["dropped"].values())
    parts = (receipt["kept"], receipt["merged"], receipt["heldout"], dropped)
    yield from _equal(where, "rows_in", receipt["rows_in"], "rows used + dropped", receipt["rows_used"] + rows_dropped)
    yield from _equal(where, "tuples_made", receipt["tuples_made"], "kept + merged + held out + dropped", sum(parts))
    lines = tables.read_parquet(folder / "dropped.parquet", ["stage", "reason"])
    by_rows, merged = pl.col("stage").is_in(BY_ROWS), pl.col("stage") == "merge"
    table = str(folder / "dropped.parquet")
    yield from _equal(table, "merged tuples", len(lines.filter(merged)), "the receipt's", receipt["merged"])
    for key, which in (("rows_dropped", by_rows), ("dropped", ~by_rows & ~merged)):
        counts = dict(lines.filter(which).group_by("reason").len().iter_rows())
        for reason in sorted({*counts, *receipt[key]}):
            yield from _equal(table, f"lines '{reason}'", counts.get(reason, 0), "the receipt's", receipt[key].get(reason, 0))
    passages = 0
    for shard in sorted(folder.glob("passages-[0-9]*.parquet")):
        frame = tables.read_parquet(shard, ["pid", "text", "key"])
        numbers = pl.int_range(passages, passages + len(frame), dtype=pl.UInt32, eager=True)
        yield from _rule(
            str(shard), "passages", frame["pid"], frame["pid"].ne_missing(numbers), "are not numbered by their place"
        )
        wrong = frame["key"].ne_missing(keys_of(frame["text"]))
        yield from _rule(str(shard), "passages", frame["pid"], wrong, "have a key that is not their text's")
        passages += len(frame)
    yield from _equal(where, "passages", receipt["passages"], "rows in the tables", passages)
    yield from _tuple_problems(folder, receipt["source"], receipt["kept"], passages, mined=False)


def _mined_problems(build: Path, name: str, curated: Receipt, receipt: Receipt) -> Problems:
    folder, where = build / "mined" / name, str(build / "mined" / name / store.RECEIPT)
    dropped = sum(receipt["dropped"].values())
    yield from _equal(where, "rows_in", receipt["rows_in"], "curated tuples", curated["kept"])
    yield from _equal(where, "rows_in", receipt["rows_in"], "kept + dropped", receipt["kept"] + dropped)
    lines = len(tables.read_parquet(folder / "dropped.parquet", ["id"]))
    yield from _equal(str(folder / "dropped.parquet"), "lines", lines, "the receipt's dropped", dropped)
    yield from _tuple_problems(folder, name, receipt["kept"], curated["passages"], mined=True)
    if receipt["curated"] != curated["digest"]:
        yield Problem(where, f"was mined before curated/{name} was built again")
    if strange := outdated_tuple(build, name):
        yield Problem(str(folder), f"was mined from other tuples than curated/{name} now holds ({strange} is one)")


def _tuple_problems(folder: Path, source: str, kept: int, passages: int, mined: bool) -> Problems:
    """Check the tuples of a stage: ids, keys, and the numbers of passages."""
    positives, negatives = pl.col("positives"), pl.col("negatives")
    highest, ids = pl.concat_list("positives", "negatives").list.max(), []
    for shard in sorted(folder.glob("pairs-[0-9]*.parquet")):
        frame = tables.read_parquet(shard)
        # one column per rule, true for the tuples that break it; curated tuples have scores if they came with scores
        lists = MINED_LISTS if mined else [name for name in MINED_LISTS if name in frame.columns]
        rules = {
            "have the id of another source": ~pl.col("id").str.starts_with(f"{source}/"),
            "have no positive": positives.list.len() == 0,
            f"name a passage that does not exist ({passages:,} do)": highest >= passages,
            "have a negative that is a positive": positives.list.set_intersection(negatives).list.len() > 0,
            "name a positive twice": positives.list.n_unique() < positives.list.len(),
            "name a negative twice": negatives.list.n_unique() < negatives.list.len(),
        }
        for name in lists:
            rules[f"do not have one of '{name}' per negative"] = pl.col(name).list.len() != negatives.list.len()
        if "negative_scores" in lists:
            odd = pl.element().is_nan() | pl.element().is_infinite()
            rules["have a score that is not a number"] = pl.col("negative_scores").list.eval(odd).list.any()
        if "negative_origin" in lists:
            rules["have a negative of unknown origin"] = pl.col("negative_origin").list.max().fill_null(0) >= len(ORIGINS)
        broken = frame.select(rule.alias(what) for what, rule in rules.items())
        for what in broken.columns:
            yield from _rule(str(shard), "tuples", frame["id"], broken[what].fill_null(True), what)
        wrong = frame["key"].ne_missing(keys_of(frame["query"]))
        yield from _rule(str(shard), "tuples", frame["id"], wrong, "have a key that is not their query's")
        ids.append(frame["id"])
    every = pl.concat(ids) if ids else pl.Series("id", [], dtype=pl.String)
    yield from _equal(str(folder), "tuples", len(every), "the receipt's kept", kept)
    yield from _rule(str(folder), "tuples", every, every.is_duplicated(), "have the id of another")


def _heldout(folder: Path, count: int) -> Problems:
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


def _equal(where: str, what: str, found: int, other: str, expected: int) -> Problems:
    if found != expected:
        yield Problem(where, f"{what} {found:,} is not {other} {expected:,}")


def _rule(where: str, what: str, ids: pl.Series, broken: pl.Series, complaint: str) -> Problems:
    count = int(broken.sum())
    if count:
        yield Problem(where, f"{count:,} {what} {complaint} ({ids.filter(broken)[0]} is the first)")
