"""A build as a repository of the Hub: one config a source, F2LLM's columns, and what tells where each row is from.

    README.md  provenance.json  manifest.yaml  manifest.lock  ATTRIBUTION.md  report.html
    SOURCE/train-00000-of-00002.parquet      query, passage, negative_1..n

A row is a tuple with its first positive, the one that is trained on; `query` is rendered with its instruction, as F2LLM's
trainer tokenises it. The shards are made below BUILD/publish with receipts of their own, so that only what changed is made
again, and sent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation.core import locks, store, tables
from curation.core.builds import check_beside, read_summary, receipts
from curation.core.card import problems
from curation.core.errors import BuildError, did_you_mean, listed
from curation.core.hub import MARK, Piece, Published, Say, listing, upload
from curation.core.progress import Advance, Progress, silent
from curation.core.record import NEGATIVES, ORIGINS
from curation.read.lock import read_lock
from curation.read.outside import hide_local_paths
from curation.recipe.manifest import Manifest, load_manifest
from curation.share.dataset_card import dataset_card
from curation.share.export import CURATED, MINED, blocks_of, stale, with_texts
from curation.share.formats import FORMATS, Constants, f2llm, fitting

Receipt = dict[str, Any]
FORMAT = 1  # raised when the same build gives other files
SHARD = 500_000_000  # bytes of text a file, before compression
GROUPS = ("positives", "ids", "scores", "provenance")
BESIDE = ("manifest.yaml", "manifest.lock", "ATTRIBUTION.md", "report.html")
RANKED = ("negative_ranks", "negative_origin")
KINDS: dict[Any, str] = {pl.String: "string", pl.Float32: "float32", pl.UInt16: "uint16"}


class Plan(NamedTuple):
    """What a repository is to hold."""

    repo: str
    pieces: dict[str, Piece]  # path -> file
    card: str
    left_out: dict[str, str]  # source -> why
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
) -> Plan:
    """Make the files that a repository is to hold; nothing is sent.

    Args:
        build: a whole build.
        repo: ORG/NAME.
        lock: the lock of all revisions and digests; by default manifest.lock in the build.
        allow: sources to publish although they are unverified, or their licence is unknown.
        negatives: columns of negatives; by default as many as were mined.
        columns: further ones: positives (all of a tuple, in a list), ids, scores, provenance.
        progress: how far it is.

    Raises:
        BuildError: no whole build, no lock, a source that is not as locked, nothing left, or a card that the Hub would refuse.
    """
    found = receipts(build)
    summary = read_summary(build)
    left_out = _left_out(build, summary, list(allow))
    locked = _locked(build, lock, {name: receipt for name, receipt in found.items() if name not in left_out})
    check_beside(build, "manifest.yaml", "ATTRIBUTION.md", *([] if lock else ["manifest.lock"]))
    manifest = load_manifest(build / "manifest.yaml")
    made: dict[str, Receipt] = {}
    with locks.locked(build, "curate publish"):
        for name in found.keys() - left_out.keys():
            made[name] = _staged(build, name, found[name], negatives, tuple(columns), progress)
    made = {name: made[name] for name in found if name in made}
    for name in [name for name, one in made.items() if not one["rows"]]:
        left_out[name] = f"no tuple has {made.pop(name)['negatives']} negatives"
    if not made:
        raise BuildError(build, f"no source is left to publish ({listed(f'{name}: {why}' for name, why in left_out.items())})")
    allowed = [name for name in allow if name in made]
    pieces = {
        f"{name}/{file}": Piece(build / "publish" / name / file, shard["bytes"], shard["sha256"])
        for name, one in made.items()
        for file, shard in one["shards"].items()
    }
    card = dataset_card(
        repo, summary["name"], {source.name: source for source in manifest.sources}, summary["sources"], made, left_out, allowed
    )
    card = hide_local_paths(card, manifest)
    if wrong := list(problems(card, pieces)):
        raise BuildError(build, f"the Hub would refuse its card: {wrong[0]}", "mend the manifest and build again")
    whole = {"README.md": Piece.of(card.encode())} | _beside(build, locked, bool(left_out), manifest) | pieces
    told = {"build": summary["name"], "seed": summary["seed"], "left_out": left_out, "files": listing(whole), "sources": made}
    mark = store.sealed(json.loads(hide_local_paths(json.dumps(told, ensure_ascii=False), manifest)))
    return Plan(repo, {"README.md": whole["README.md"], MARK: Piece.of(mark)} | whole, card, left_out, made)


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
    reasons = {name: _doubt(entry) for name, entry in entries.items() if name not in allow}
    broken = dict.fromkeys(summary["failed"], "it could not be built")
    return {name: why for name, why in reasons.items() if why} | broken | dict(summary.get("excluded", {}))


def _doubt(entry: Mapping[str, Any]) -> str | None:
    if not entry["license"]:
        return "it names no licence"
    if entry["license_class"] == "unknown":
        return f"what its licence '{entry['license']}' allows is unknown"
    return None if entry["verified"] else f"it is not verified: {entry['notes']}"


def _locked(build: Path, lock: Path | None, found: Mapping[str, Receipt]) -> Path:
    """Return the lock, checked: it names each source to publish, at the revision that was built.

    Raises:
        BuildError: it does not.
    """
    path = lock or build / "manifest.lock"
    known, make = read_lock(path), "run `curate lock` and `curate build` again"
    if known is None:
        hint = "`curate lock MANIFEST` makes it, and the next `curate build` keeps it; or name one with --lock"
        raise BuildError(path, "there is no lock of the sources' revisions and digests", hint)
    for name, receipt in found.items():
        if name not in known:
            raise BuildError(path, f"does not lock '{name}'", make)
        revision = known[name].get("revision")
        if revision and revision != receipt["revision"]:
            raise BuildError(
                path, f"locks '{name}' at {revision}, and it was built at {receipt['revision'] or 'no revision'}", make
            )
        parts = {"": known[name], **{f"{part}/": known[name].get(part) or {} for part in ("corpus", "queries")}}
        locked = {part + file: digest for part, entry in parts.items() for file, digest in (entry.get("inputs") or {}).items()}
        for file, digest in locked.items():
            if receipt["inputs"].get(file) != digest:
                raise BuildError(path, f"locks '{name}' with another '{file}' than it was built from", make)
    return path


def _beside(build: Path, lock: Path, partly: bool, manifest: Manifest) -> dict[str, Piece]:
    """Return the files that travel along, without the folders of this machine.

    The report shows records of all sources, so it does not where some are left out.
    """
    if (build / "report.html").is_file() and not store.is_sealed_page(build / "report.html"):
        raise BuildError(build / "report.html", "was changed since it was written (its digest is another)", "run `curate report`")
    names = {name: lock if name == "manifest.lock" else build / name for name in BESIDE if not (partly and name == "report.html")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in names.items() if path.is_file()}
    return {name: Piece.of(hide_local_paths(text, manifest).encode()) for name, text in texts.items()}


def _staged(
    build: Path, name: str, receipt: Receipt, negatives: int | None, columns: tuple[str, ...], progress: Progress
) -> Receipt:
    """Make a source's shards, unless they stand; return what provenance.json says of it."""
    folder = build / "mined" / name
    mined = store.read_receipt(folder)
    if mined is not None:
        store.check_files(folder, mined)
        if strange := stale(build, name):
            told = f"was mined from other tuples than curated/{name} now holds ({strange} is one)"
            raise BuildError(folder, told, "run `mine negatives` again")
    depends = [FORMAT, receipt["files"], receipt["task"], receipt["instruction"], mined and mined["files"], negatives, columns]
    work = partial(_shards_of, build, receipt, mined, negatives, columns, progress)
    staged, _ = store.run_stage(build / "publish" / name, store.digest_of(depends), work)
    origin = {"curated": _without_files(receipt), "mined": mined and _without_files(mined)}
    return {
        key: staged[key] for key in ("rows", "negatives", "features", "shards", "left_out", "positives_left_out", "bytes")
    } | origin


def _without_files(receipt: Receipt) -> Receipt:
    return {key: value for key, value in receipt.items() if key not in ("files", "dtype")}


def _shards_of(
    build: Path,
    receipt: Receipt,
    mined: Receipt | None,
    negatives: int | None,
    columns: tuple[str, ...],
    progress: Progress,
    part: Path,
) -> Receipt:
    """Write a source's rows as shards of at most SHARD bytes, and return what its receipt says."""
    source = receipt["source"]
    n = 0 if mined is None else negatives or mined["settings"].get("negatives") or NEGATIVES[receipt["task"]]
    said: Receipt = {"rows": 0, "bytes": 0, "negatives": n, "left_out": {}, "positives_left_out": 0, "features": [], "shards": {}}
    with progress(f"publish {source}", receipt["kept"] if mined is None else mined["kept"], "tuples") as advance:
        waiting = _rows(build, receipt, n, columns, said, advance)
        block = next(waiting, None)
        while block is not None:

            def some() -> Iterator[pl.DataFrame]:
                nonlocal block
                size = 0
                while block is not None and size < SHARD:
                    size += sum(
                        int(block[name].str.len_bytes().sum()) for name, kind in block.schema.items() if kind == pl.String
                    )
                    yield block
                    block = next(waiting, None)

            said["bytes"] += tables.write_blocks(part / f"{len(list(part.iterdir())):05d}", some(), {"source": source})
    paths = sorted(part.iterdir())
    for number, path in enumerate(paths):
        name = f"train-{number:05d}-of-{len(paths):05d}.parquet"
        path = path.rename(part / name)
        piece = Piece.of(path)
        said["shards"][name] = {"bytes": piece.size, "sha256": piece.sha256}
    return said


def _rows(
    build: Path, receipt: Receipt, n: int, columns: tuple[str, ...], said: Receipt, advance: Advance
) -> Iterator[pl.DataFrame]:
    """Yield blocks of the published rows, and count them in `said`."""
    source, shape = receipt["source"], FORMATS["f2llm" if n else "pair"]
    passages = tables.read_table(build / "curated" / source, "passages", ["text", "key"])
    passages = passages.with_columns(pl.col("key").bin.encode("hex"))
    names = [*(MINED if n else CURATED), "label", *(RANKED if n else ())]
    constants = Constants(receipt["task"], receipt["instruction"])
    for pairs in blocks_of(build / ("mined" if n else "curated") / source, names):
        rows, _, left_out = fitting(with_texts(pairs, passages), shape, receipt["task"], n or None)
        made = pl.concat([f2llm(rows, constants, n), rows.select(_extras(columns, n))], how="horizontal")
        said["rows"] += len(made)
        if "positives" not in columns:
            said["positives_left_out"] += int(rows["positives"].list.len().sum()) - len(rows)
        for reason, count in left_out.items():
            said["left_out"][reason] = said["left_out"].get(reason, 0) + count
        said["features"] = [_feature(name, kind) for name, kind in made.schema.items()]
        advance(len(pairs))
        if len(made):
            yield made


def _extras(columns: Iterable[str], n: int) -> list[pl.Expr]:
    """Return the columns asked for beside F2LLM's; those of negatives only where there are negatives."""
    origins = pl.element().replace_strict(range(len(ORIGINS)), ORIGINS, default=None, return_dtype=pl.String)
    ids = [pl.col("id"), pl.col("positive_ids").list.first().alias("passage_id")]
    known = {
        "positives": [pl.col("positives")],
        "ids": ids + ([pl.col("negative_ids")] if n else []),
        "scores": [pl.col("positive_score"), pl.col("negative_scores"), pl.col("negative_ranks").list.head(n)] if n else [],
        "provenance": [pl.col("label")] + ([pl.col("negative_origin").list.head(n).list.eval(origins)] if n else []),
    }
    return [expression for name in known if name in columns for expression in known[name]]


def _feature(name: str, kind: pl.DataType) -> dict[str, Any]:
    """Return how the card describes a column."""
    if isinstance(kind, pl.List):
        return {"name": name, "list": KINDS[kind.inner.base_type()]}
    return {"name": name, "dtype": KINDS[kind.base_type()]}
