"""What changed between two builds, or between a build and a published version: `curate diff`.

It compares recipes, sources, counts and rows, with the reason for each row where it is known. Rows are matched by their
query, which occurs once in a source. A build is compared with a published version as it would be published: the first
positive, as many negatives as the version has, and only tuples that have so many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curation.core import store, tables
from curation.core.builds import check_beside, read_summary, receipts
from curation.core.errors import BuildError, HubError, did_you_mean, listed
from curation.core.escape import text_table
from curation.core.hub import MARK, Piece, read_file, repo_commit
from curation.core.progress import Progress, silent
from curation.core.record import render_query
from curation.recipe.addresses import portable
from curation.recipe.yaml import read_yaml
from curation.share.export import gathered

PUBLISHED = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")
FACTS = ("task", "instruction", "language", "license", "revision")
COMPARED_COUNTS = ("rows_in", "rows_used", "tuples_made", "merged", "heldout", "kept", "passages")
FIRST = 5  # rows to show


class Side(NamedTuple):
    """A build or a published version."""

    name: str
    build: Path | None
    repo: str
    revision: str
    manifest: Path
    sources: dict[str, Any]  # source -> {"curated": receipt, "mined": receipt or None, "negatives": n if published, ...}
    left_out: dict[str, str]  # source -> why it is not in it


def open_side(name: str) -> Side:
    """Return a build folder, or what ORG/NAME or ORG/NAME@REVISION holds on the Hub.

    Raises:
        BuildError: it is neither.
        HubError: the version cannot be fetched.
    """
    folder = Path(name)
    if folder.exists() or not (found := PUBLISHED.fullmatch(name)):
        summary = read_summary(folder)
        check_beside(folder, "manifest.yaml")
        sources: dict[str, Any] = {}
        for source, receipt in receipts(folder).items():
            mined = store.read_receipt(folder / "mined" / source)
            if mined is not None:
                store.check_files(folder / "mined" / source, mined)
            sources[source] = {"curated": receipt, "mined": mined}
        left_out = summary["failed"] | summary.get("excluded", {})
        return Side(name, folder, "", "", folder / "manifest.yaml", sources, left_out)
    repo = found["repo"]
    try:
        revision = repo_commit(repo, found["revision"])
    except HubError as error:
        if found["revision"] or not error.what.startswith("no such"):
            raise
        raise HubError(repo, f"is not a folder here, and on the Hub: {error.what}", error.hint) from None
    provenance = store.read_json(read_file(repo, revision, MARK))
    manifest = read_file(repo, revision, "manifest.yaml")
    if isinstance(provenance["files"], dict):  # earlier versions named no digests
        _check_digest(manifest, provenance["files"]["manifest.yaml"]["sha256"])
    return Side(name, None, repo, revision, manifest, provenance["sources"], provenance["left_out"])


def _check_digest(path: Path, sha256: str) -> None:
    if Piece.of(path).sha256 != sha256:
        raise BuildError(path, f"has another digest than {MARK} says", "delete it, and it is fetched again")


def diff(a: str, b: str, only: Iterable[str] = (), progress: Progress = silent) -> dict[str, Any]:
    """Return what changed: {"recipe": [...], "only_a": [...], "only_b": [...], "left_out": {...}, "sources": {source: {...}}}.

    Changes lead from `a` to `b`. Of a build and a published version the version is always `a`, the older one, however they
    are given: the changes are those since it was published. Sources that a version says it leaves out are listed in
    `left_out`, and do not count as a difference.

    Raises:
        BuildError: one of them is neither a build nor a published version, or does not have a source of `only`.
    """
    left, right = open_side(a), open_side(b)
    if left.build is not None and right.build is None:
        left, right, a, b = right, left, b, a
    known = [*left.sources, *(name for name in right.sources if name not in left.sources)]
    for name in only:
        if name not in known:
            raise BuildError(a, f"no source '{name}'" + did_you_mean(name, known), f"sources: {listed(known)}")
    chosen = [name for name in known if name in set(only)] or known
    excused = {name: why for side in (left, right) if side.build is None for name, why in side.left_out.items() if name in chosen}
    both = [name for name in chosen if name in left.sources and name in right.sources]
    found: dict[str, Any] = {"a": a, "b": b, "recipe": _recipe(left.manifest, right.manifest)}
    found["only_a"] = [name for name in chosen if name not in right.sources and name not in excused]
    found["only_b"] = [name for name in chosen if name not in left.sources and name not in excused]
    found |= {"left_out": excused, "sources": {}}
    with progress("compare", len(both), "sources") as advance:
        for name in both:
            if changes := _changes(left, right, name):
                found["sources"][name] = changes
            advance(1)
    return found


def differs(found: Mapping[str, Any]) -> bool:
    """Return whether anything changed."""
    return any(found[key] for key in ("recipe", "only_a", "only_b", "sources"))


def _recipe(a: Path, b: Path) -> list[dict[str, Any]]:
    """Return the keys whose values differ in two manifests; a source's keys are `sources.NAME.KEY`."""
    left, right = _flat(read_yaml(a).value), _flat(read_yaml(b).value)
    names = [*left, *(name for name in right if name not in left)]
    differ = [name for name in names if _without_folders(left.get(name)) != _without_folders(right.get(name))]
    return [{"key": name, "a": left.get(name), "b": right.get(name)} for name in differ]


def _without_folders(value: Any) -> Any:
    """Return a value of a manifest as it is published: without the folders of one machine."""
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    return portable(value).removeprefix("./") if isinstance(value, str) else value


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, list) and at == "sources":
        value = {entry["name"]: entry for entry in value}
    if not isinstance(value, dict):
        return {at: value}
    return {key: inner for name, one in value.items() for key, inner in _flat(one, f"{at}.{name}" if at else str(name)).items()}


def _changes(left: Side, right: Side, name: str) -> dict[str, Any]:
    """Return what changed in a source: facts, counts, rows removed, added and changed; empty if nothing did."""
    a, b = left.sources[name], right.sources[name]
    facts = {key: [a["curated"][key], b["curated"][key]] for key in FACTS if a["curated"][key] != b["curated"][key]}
    counts = {key: [a["curated"][key], b["curated"][key]] for key in COMPARED_COUNTS if a["curated"][key] != b["curated"][key]}
    mined = [one["mined"]["kept"] if one["mined"] else None for one in (a, b)]
    if mined[0] != mined[1]:
        counts["with_negatives"] = mined
    wanted = next((one["negatives"] for one in (a, b) if "negatives" in one), None)
    both_mined = bool(a["mined"] and b["mined"]) if wanted is None else bool(wanted)
    before, after = (
        _rows_of_version(side, name) if side.build is None else _rows_of_build(side.build, name, both_mined, wanted)
        for side in (left, right)
    )
    found: dict[str, Any] = {key: value for key, value in (("facts", facts), ("counts", counts)) if value}
    same_input = a["curated"]["inputs"] == b["curated"]["inputs"] and a["curated"]["revision"] == b["curated"]["revision"]
    removed = before.join(after, on="query", how="anti", maintain_order="left")
    added = after.join(before, on="query", how="anti", maintain_order="left")
    if len(removed):
        found["removed"] = _with_reasons(removed, right, name, same_input)
    if len(added):
        found["added"] = _with_reasons(added, left, name, same_input)
    joined = before.join(after, on="query", suffix="_b", maintain_order="left")
    changed = {
        key: joined[key].ne_missing(joined[f"{key}_b"])
        for key in ("positives", "negatives", "label")
        if f"{key}_b" in joined.columns
    }
    moved = joined.filter(pl.any_horizontal(*changed.values()))
    if len(moved):
        what = {key: int(mask.sum()) for key, mask in changed.items() if mask.any()}
        found["changed"] = {"count": len(moved), "what": what, "first": _first(moved)}
    return found


def _rows_of_build(build: Path, name: str, mined: bool, negatives: int | None) -> pl.DataFrame:
    """Return id, query, and digests of positives and negatives, one row per tuple.

    With `negatives` the rows are those that would be published with that many; without, all rows, and their labels.
    """
    passages = tables.read_table(build / "curated" / name, "passages", ["text"])["text"].hash()
    columns = ["id", "query", "positives", "negatives", "label"]
    pairs = tables.read_table(build / ("mined" if mined else "curated") / name, "pairs", columns)
    if negatives is None:
        lists = {key: gathered(pairs[key], passages) for key in ("positives", "negatives")}
        return pairs.select("id", "query", "label", *(lists[key].hash().alias(key) for key in lists))
    pairs = pairs.filter(pl.col("negatives").list.len() >= negatives)
    lists = {key: gathered(pairs[key].list.head(most), passages) for key, most in (("positives", 1), ("negatives", negatives))}
    return pairs.select("id", "query", *(lists[key].hash().alias(key) for key in lists))


def _rows_of_version(side: Side, name: str) -> pl.DataFrame:
    """Return the rows of a published version in the form of `_rows_of_build`."""
    entry = side.sources[name]
    prefix = render_query(entry["curated"]["instruction"], "")
    negatives = [pl.col(f"negative_{at + 1}").hash() for at in range(entry["negatives"])]
    none = pl.lit(pl.Series([[]], dtype=pl.List(pl.UInt64))).first()
    frames = []
    for shard, about in entry["shards"].items():
        path = read_file(side.repo, side.revision, f"{name}/{shard}")
        _check_digest(path, about["sha256"])
        frame = tables.read_parquet(path)
        frames.append(
            frame.select(
                (pl.col("id") if "id" in frame.columns else pl.lit(None, pl.String)).alias("id"),
                pl.col("query").str.strip_prefix(prefix),
                pl.concat_list(pl.col("passage").hash()).hash().alias("positives"),
                (pl.concat_list(negatives) if negatives else none).hash().alias("negatives"),
            )
        )
    return pl.concat(frames)


def _with_reasons(rows: pl.DataFrame, other: Side, name: str, same_input: bool) -> dict[str, Any]:
    """Return how many rows the other side does not have, its reasons if they are known, and the first of the rows.

    An id is the number of a row of the input. So if both sides read the same input, a row is looked up by its id among
    those that the other side dropped.
    """
    reasons = pl.Series([None], dtype=pl.String).new_from_index(0, len(rows))
    if not same_input:
        reasons = reasons.fill_null("other input")
    elif other.build is not None:
        paths = [other.build / stage / name / "dropped.parquet" for stage in ("curated", "mined")]
        known = [tables.read_parquet(path, ["id", "reason"]) for path in paths if path.exists()]
        lines = pl.concat(known).unique("id", keep="last", maintain_order=True)
        reasons = rows.join(lines, on="id", how="left", maintain_order="left")["reason"]
    counts = reasons.fill_null("not said").value_counts(sort=True)
    return {"count": len(rows), "reasons": dict(counts.iter_rows()), "first": _first(rows.with_columns(reason=reasons))}


def _first(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return rows.select([name for name in ("id", "query", "reason") if name in rows.columns]).head(FIRST).rows(named=True)


def diff_text(found: Mapping[str, Any]) -> str:
    """Return the differences for a person."""
    lines = [f"changes from {found['a']} to {found['b']}"] if differs(found) else []
    lines += [f"recipe: {one['key']}: {one['a']!r} -> {one['b']!r}" for one in found["recipe"]]
    lines += [f"source only in {found[side]}: {name}" for side in ("a", "b") for name in found[f"only_{side}"]]
    lines += [f"not published: {name}: {why}" for name, why in found["left_out"].items()]
    counts = []
    for name, changes in found["sources"].items():
        for key, (before, after) in (changes.get("facts", {}) | changes.get("counts", {})).items():
            lines.append(f"{name}: {key}: {before!r} -> {after!r}")
        if changes.keys() & {"added", "removed", "changed"}:
            why = [
                f"{key} {reason} {count:,}"
                for key in ("added", "removed")
                for reason, count in changes.get(key, {}).get("reasons", {}).items()
            ]
            why += [f"other {what} {count:,}" for what, count in changes.get("changed", {}).get("what", {}).items()]
            counts.append((name, *(changes.get(key, {}).get("count", 0) for key in ("added", "removed", "changed")), listed(why)))
    if counts:
        lines.append(text_table(("source", "added", "removed", "changed", "why"), counts))
    return "\n".join(lines) or "no difference"
