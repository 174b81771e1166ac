"""A build as a repository of the Hub: `curate publish`.

    README.md  provenance.json  manifest.yaml  manifest.lock  ATTRIBUTION.md  report.html
    SOURCE/train-00000-of-00002.parquet      query, passage, negative_1..n

One config per source, with F2LLM's columns. A row is a tuple with its first positive, the one that is trained on; `query`
contains its instruction, because F2LLM's trainer adds none. The shards are written below BUILD/publish as stages with
receipts, so after a change only what changed is written and sent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation.clean import decontaminate
from curation.core import locks, store, tables
from curation.core.builds import Receipt, check_beside, read_summary, receipts
from curation.core.card import card_problems
from curation.core.errors import BuildError, did_you_mean, listed
from curation.core.hub import MARK, Piece, Published, Say, check_name, listing, upload
from curation.core.progress import Advance, Progress, silent
from curation.core.record import NEGATIVES, ORIGINS, POSITIVE_ORIGINS
from curation.read.lock import read_lock
from curation.read.outside import hide_local_paths
from curation.recipe.manifest import load_manifest
from curation.recipe.mteb_boards import zero_shot
from curation.report.page import render as render_report
from curation.share.dataset_card import dataset_card
from curation.share.export import (
    CURATED_COLUMNS,
    FORMATS,
    MINED_COLUMNS,
    Constants,
    blocks_of,
    f2llm,
    fitting,
    mined_tuples,
    passages_with_keys,
    with_texts,
)

FILES_FORMAT = 2  # raised when the same build gives other files
SHARD_BYTES = 500_000_000  # bytes of text per file, before compression
GROUPS = ("positives", "ids", "scores", "provenance")  # of further columns
COMPANIONS = ("manifest.yaml", "manifest.lock", "ATTRIBUTION.md", "report.html")
RANKED = ("negative_ranks", "negative_origin")
COLUMN_KINDS: dict[Any, str] = {pl.String: "string", pl.Float32: "float32", pl.UInt16: "uint16"}


class Plan(NamedTuple):
    """What a repository is to hold."""

    repo: str
    pieces: dict[str, Piece]  # path -> file
    card: str
    left_out: dict[str, str]  # source -> why
    notes: list[str]  # which other files are not published, and why
    sources: dict[str, Receipt]

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(piece.size for piece in self.pieces.values())


def plan(
    build: Path,
    repo: str,
    lock: Path | None = None,
    allow: Iterable[str] = (),
    negatives: int | None = None,
    columns: Iterable[str] = (),
    progress: Progress = silent,
    need_lock: bool = True,
) -> Plan:
    """Write the files that a repository is to hold; nothing is sent.

    Args:
        build: a whole build.
        repo: ORG/NAME.
        lock: the lock file with all revisions and digests; by default manifest.lock in the build.
        allow: sources to publish although they are unverified, or their licence is unknown.
        negatives: the number of columns of negatives; by default as many as were mined.
        columns: further columns: positives (all positives of a tuple, in a list), ids, scores, provenance.
        progress: reports how far the work is.
        need_lock: refuse a build that has no lock file; a dry run does not.

    Raises:
        BuildError: no whole build, no lock file, a source that differs from its lock, no source left, or a card that the
            Hub would refuse.
        HubError: no repository can have such a name.
    """
    check_name(repo)
    found = receipts(build)
    summary = read_summary(build)
    left_out = _left_out(build, summary, list(allow))
    locked = _checked_lock(build, lock, {name: receipt for name, receipt in found.items() if name not in left_out}, need_lock)
    check_beside(build, "manifest.yaml", "ATTRIBUTION.md", *([] if lock else ["manifest.lock"]))
    manifest = load_manifest(build / "manifest.yaml")

    # the shards of each source
    with locks.locked(build, "curate publish"):
        made = {
            name: _shards(build, name, receipt, negatives, tuple(columns), progress)
            for name, receipt in found.items()
            if name not in left_out
        }
    for name in [name for name, one in made.items() if not one["rows"]]:
        left_out[name] = f"no tuple has {made.pop(name)['negatives']} negatives"
    if not made:
        raise BuildError(build, f"no source is left to publish ({listed(f'{name}: {why}' for name, why in left_out.items())})")
    pieces = {
        f"{name}/{file}": Piece(build / "publish" / name / file, shard["bytes"], shard["sha256"])
        for name, one in made.items()
        for file, shard in one["shards"].items()
    }

    # the card
    sources = {source.name: source for source in manifest.sources}
    allowed = [name for name in allow if name in made]
    evaluation = None
    if "decontaminate" in summary:
        held = [decontaminate.HELDOUT_SETS + name for name, entry in summary["sources"].items() if entry["heldout"]]
        evaluation = (store.receipt_of(build / "decontaminate")["sets"] + held, summary["decontaminate"])
    row = pl.scan_parquet(next(iter(pieces.values())).content).head(1).collect().row(0, named=True)
    boards = zero_shot(build, made)
    card = dataset_card(repo, summary["name"], sources, summary["sources"], made, left_out, allowed, row, evaluation, boards)
    card = hide_local_paths(card, manifest)
    if wrong := list(card_problems(card, pieces)):
        raise BuildError(build, f"the Hub would refuse its card: {wrong[0]}", "mend the manifest and build again")

    # the files next to it and the shards, without the folders of this machine, and records of sources that are left out
    hidden = left_out if any(name in left_out for name in found) else {}
    write_it = "`curate lock MANIFEST` writes it, and the next `curate build` copies it"
    notes = [] if locked else [f"manifest.lock: it does not exist, and publishing needs it; {write_it}"]
    report = build / "report.html"
    if report.is_file() and not store.is_sealed_page(report):
        raise BuildError(report, "was changed since it was written (its digest differs)", "run `curate report`")
    paths = {name: locked if name == "manifest.lock" else build / name for name in COMPANIONS}
    texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path and path.is_file()}
    if report.is_file() and hidden:
        texts["report.html"] = render_report(build, hidden)
        notes.append("report.html of the build: it shows every source; one of the published sources is written instead")
    companions = {name: Piece.of(hide_local_paths(text, manifest).encode()) for name, text in texts.items()}
    whole = {"README.md": Piece.of(card.encode())} | companions | pieces
    about = {"build": summary["name"], "seed": summary["seed"]}
    provenance = about | {"left_out": left_out, "files": listing(whole), "sources": made}
    mark = store.sealed(json.loads(hide_local_paths(json.dumps(provenance, ensure_ascii=False), manifest)))
    return Plan(repo, {"README.md": whole["README.md"], MARK: Piece.of(mark)} | whole, card, left_out, notes, made)


def publish(plan: Plan, private: bool = False, tag: str | None = None, say: Say = lambda line: None) -> Published:
    """Make the repository hold the plan's files, in one commit.

    Raises:
        HubError: see `upload`.
    """
    return upload(plan.repo, "dataset", plan.pieces, private, tag, say)


def _left_out(build: Path, summary: Mapping[str, Any], allow: list[str]) -> dict[str, str]:
    """Return {source: why it is not published}."""
    entries = summary["sources"]
    for name in allow:
        if name not in entries:
            raise BuildError(build, f"no source '{name}'" + did_you_mean(name, entries), f"sources: {listed(entries)}")
    reasons: dict[str, str] = {}
    for name, entry in entries.items():
        if name in allow:
            continue
        if not entry["license"]:
            reasons[name] = "it names no licence"
        elif entry["license_class"] == "unknown":
            reasons[name] = f"what its licence '{entry['license']}' allows is unknown"
        elif not entry["verified"]:
            reasons[name] = f"it is not verified: {entry['notes']}"
    return reasons | dict.fromkeys(summary["failed"], "it could not be built") | dict(summary.get("excluded", {}))


def _checked_lock(build: Path, lock: Path | None, found: Mapping[str, Receipt], need: bool) -> Path | None:
    """Return the lock file, checked: it names each source to publish, at the revision that was built; None if it does not exist.

    Raises:
        BuildError: it differs from the build, or it is needed and missing.
    """
    path = lock or build / "manifest.lock"
    known, again = read_lock(path), "run `curate lock` and `curate build` again"
    if known is None:
        if not need:
            return None
        hint = "`curate lock MANIFEST` writes it, and the next `curate build` copies it; or name one with --lock"
        raise BuildError(path, "no lock file, so the sources' revisions and digests are not pinned", hint)
    for name, receipt in found.items():
        if name not in known:
            raise BuildError(path, f"does not lock '{name}'", again)
        revision = known[name].get("revision")
        if revision and revision != receipt["revision"]:
            what = f"locks '{name}' at {revision}, and it was built at {receipt['revision'] or 'no revision'}"
            raise BuildError(path, what, again)
        for part in ("", "corpus", "queries"):
            entry = known[name].get(part) or {} if part else known[name]
            for file, digest in (entry.get("inputs") or {}).items():
                file = f"{part}/{file}" if part else file
                if receipt["inputs"].get(file) != digest:
                    raise BuildError(path, f"locks '{name}' with another '{file}' than it was built from", again)
    return path


def _shards(
    build: Path, name: str, receipt: Receipt, negatives: int | None, columns: tuple[str, ...], progress: Progress
) -> Receipt:
    """Write a source's shards unless they are current; return what provenance.json says about the source."""
    mined = mined_tuples(build, name)
    depends = [
        FILES_FORMAT,
        receipt["files"],
        receipt["task"],
        receipt["instruction"],
        mined and mined["files"],
        negatives,
        columns,
    ]
    work = partial(write_shards, build, receipt, mined, negatives, columns, progress)
    staged, _ = store.run_stage(build / "publish" / name, store.digest_of(depends), work)
    kept = ("rows", "negatives", "features", "shards", "left_out", "positives_left_out", "bytes")
    origin = {
        stage: one and {key: value for key, value in one.items() if key not in ("files", "dtype")}
        for stage, one in (("curated", receipt), ("mined", mined))
    }
    return {key: staged[key] for key in kept} | origin


def write_shards(
    build: Path,
    receipt: Receipt,
    mined: Receipt | None,
    negatives: int | None,
    columns: tuple[str, ...],
    progress: Progress,
    part: Path,
) -> dict[str, Any]:
    """Write a source's rows into the folder `part` as shards of at most SHARD_BYTES bytes; return what their receipt says."""
    source = receipt["source"]
    n = 0 if mined is None else negatives or mined["settings"].get("negatives") or NEGATIVES[receipt["task"]]
    entry: dict[str, Any] = {
        "rows": 0, "bytes": 0, "negatives": n, "left_out": {}, "positives_left_out": 0, "features": [], "shards": {}
    }  # fmt: skip
    with progress(f"publish {source}", receipt["kept"] if mined is None else mined["kept"], "tuples") as advance:
        waiting = _published_rows(build, receipt, n, columns, entry, advance)
        block = next(waiting, None)
        while block is not None:

            def blocks_of_a_shard() -> Iterator[pl.DataFrame]:
                nonlocal block
                size = 0
                while block is not None and size < SHARD_BYTES:
                    texts = [name for name, kind in block.schema.items() if kind == pl.String]
                    size += sum(int(block[name].str.len_bytes().sum()) for name in texts)
                    yield block
                    block = next(waiting, None)

            path = part / f"{len(list(part.iterdir())):05d}"
            entry["bytes"] += tables.write_blocks(path, blocks_of_a_shard(), {"source": source})
    paths = sorted(part.iterdir())
    for number, path in enumerate(paths):  # their names contain how many there are
        name = f"train-{number:05d}-of-{len(paths):05d}.parquet"
        piece = Piece.of(path.rename(part / name))
        entry["shards"][name] = {"bytes": piece.size, "sha256": piece.sha256}
    return entry


def _published_rows(
    build: Path, receipt: Receipt, n: int, columns: tuple[str, ...], entry: dict[str, Any], advance: Advance
) -> Iterator[pl.DataFrame]:
    """Yield blocks of the published rows, and count them in `entry`."""
    source, shape = receipt["source"], FORMATS["f2llm" if n else "pair"]
    passages = passages_with_keys(build, source)
    constants = Constants(receipt["task"], receipt["instruction"])

    def origins(column: str, names: tuple[str, ...]) -> pl.Expr:
        """Return a list column of numbers as words."""
        word = pl.element().replace_strict(range(len(names)), names, default=None, return_dtype=pl.String)
        return pl.col(column).list.eval(word)

    folder = build / ("mined" if n else "curated") / source
    columns_there = pl.read_parquet_schema(tables.table_files(folder, "pairs")[0])  # mined format 3 had no `positive_origin`
    of_positives = [origins("positive_origin", POSITIVE_ORIGINS)] if "positive_origin" in columns_there else []
    of_queries = [pl.lit("synthetic").alias("query_origin")] if "synthetic" in receipt else []
    # the further columns; those of mined tables only if there are negatives
    ids = [pl.col("id"), pl.col("positive_ids").list.first().alias("passage_id")]
    groups = {
        "positives": [pl.col("positives")],
        "ids": ids + ([pl.col("negative_ids")] if n else []),
        "scores": [pl.col("positive_score"), pl.col("negative_scores"), pl.col("negative_ranks").list.head(n)] if n else [],
        "provenance": [pl.col("label"), *of_queries, *of_positives]
        + ([origins("negative_origin", ORIGINS).list.head(n)] if n else []),
    }
    further = [expression for name in groups if name in columns for expression in groups[name]]
    read = [
        *(MINED_COLUMNS if n else CURATED_COLUMNS),
        "label",
        *(RANKED if n else ()),
        *(["positive_origin"] if of_positives else []),
    ]
    for pairs in blocks_of(folder, read):
        rows, _, left_out = fitting(with_texts(pairs, passages), shape, receipt["task"], n or None)
        made = pl.concat([f2llm(rows, constants, n), rows.select(further)], how="horizontal")
        entry["rows"] += len(made)
        if "positives" not in columns:
            entry["positives_left_out"] += int(rows["positives"].list.len().sum()) - len(rows)
        for reason, count in left_out.items():
            entry["left_out"][reason] = entry["left_out"].get(reason, 0) + count
        entry["features"] = [
            {"name": name, "list": COLUMN_KINDS[kind.inner.base_type()]}
            if isinstance(kind, pl.List)
            else {"name": name, "dtype": COLUMN_KINDS[kind.base_type()]}
            for name, kind in made.schema.items()
        ]
        advance(len(pairs))
        if len(made):
            yield made
