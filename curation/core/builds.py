"""Reading a build folder: build.json and the receipts of its stages, with every digest checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from curation.core import tables
from curation.core.errors import BuildError, did_you_mean, listed
from curation.core.store import (
    AGAIN,
    BUILD,
    RECEIPT,
    check_files,
    digest_now,
    file_digest,
    read_json,
    read_sealed,
    receipt_of,
)

Receipt = dict[str, Any]

FORMAT = 6  # of the files that `curate build` writes; a higher number rebuilds every build
REBUILD = "run `curate build MANIFEST` to rebuild it"
CONSTANTS = ("task", "instruction", "language", "license", "revision")
COUNTS = ("digest", "rows_in", "tuples_made", "merged", "heldout", "passages")


def query_origin(receipt: Receipt) -> str:
    """Return who wrote the queries of a source, if a language model did; else an empty text."""
    made = receipt.get("synthetic")
    return f"synthetic queries: {made['model']} wrote at most {made['per_document']} for each document" if made else ""


def read_build(build: Path) -> Any:
    """Return build.json. If it lists no files, it was made by hand and is not checked.

    Raises:
        BuildError: it does not exist, was changed since it was written, or was written by another version of the format.
    """
    hint = f"delete it and {AGAIN}"
    found = read_json(build / BUILD, hint)
    if not isinstance(found, dict) or not {"files", "stages"} & found.keys():
        return found
    written = found.get("format", 0)
    if written < FORMAT:
        raise BuildError(build / BUILD, "was written by an older version of tuplesmith", REBUILD)
    if written > FORMAT:
        raise BuildError(build / BUILD, "was written by a newer version of tuplesmith", "update tuplesmith")
    return read_sealed(build / BUILD, hint)


def is_older(build: Path) -> bool:
    """Return whether an older version of tuplesmith wrote build.json."""
    found = read_json(build / BUILD, f"delete it and {AGAIN}")
    return isinstance(found, dict) and bool({"files", "stages"} & found.keys()) and found.get("format", 0) < FORMAT


def check_beside(build: Path, *names: str, hint: str = AGAIN) -> None:
    """Compare the other files next to build.json with the digests in it; a file that it does not list must be absent.

    Raises:
        BuildError: a file was changed, added or removed since.
    """
    if "files" not in (whole := read_build(build)):
        return
    for name in names:
        path, digest = build / name, whole["files"].get(name)
        if digest is None and path.exists():
            raise BuildError(path, "is not in build.json", f"delete it and {hint}")
        if digest is not None and not path.exists():
            raise BuildError(path, "was removed since it was written", hint)
        if digest is not None and digest_now(path) != digest:
            raise BuildError(path, "was changed since it was written (its digest is not build.json's)", hint)


def checked_stage(build: Path, stage: str, hint: str = AGAIN) -> dict[str, Any]:
    """Return the receipt of a stage of a build, such as `curated/squad`, after checking it and the files that it lists.

    Raises:
        BuildError: the stage is absent or unfinished, or one of its files was changed since.
    """
    folder = build / stage
    receipt = receipt_of(folder, hint)
    known = read_build(build).get("stages", {}).get(stage)
    if known is not None and file_digest(folder / RECEIPT) != known:
        raise BuildError(folder / RECEIPT, "is not the receipt that build.json lists", AGAIN)
    check_files(folder, receipt)
    return receipt


def newest_build(root: Path) -> Path:
    """Return the build under `root` whose build.json is newest.

    Raises:
        BuildError: `root` holds no build.
    """
    marks = [path for path in root.glob("*/build.json") if path.is_file()]
    if not marks:
        raise BuildError(root, "holds no build", "run `curate build MANIFEST` first, or name a build folder")
    return max(marks, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def read_summary(folder: Path) -> dict[str, Any]:
    """Return build.json.

    Raises:
        BuildError: it is missing, or no build wrote it.
    """
    found = read_build(folder)
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in ("sources", "failed")):
        raise BuildError(folder / "build.json", "was not written by `curate build`", "delete it and run `curate build` again")
    return found


def names_of(build: Path, only: Iterable[str] = ()) -> list[str]:
    """Return the names of a build's sources, or those of `only`, in the build's order.

    Raises:
        BuildError: the build or a source does not exist.
    """
    names = list(read_summary(build)["sources"])
    for name in only:
        if name not in names:
            raise BuildError(build, f"no source '{name}'" + did_you_mean(name, names), f"sources: {listed(names)}")
    return [name for name in names if name in set(only)] or names


def receipts(build: Path, only: Iterable[str] = ()) -> dict[str, Receipt]:
    """Return the receipt of each source of a build, after checking its files.

    Raises:
        BuildError: the build or a source does not exist, or a file was changed.
    """
    found = {}
    for name in names_of(build, only):
        found[name] = checked_stage(build, f"curated/{name}")
    return found


def outdated_tuple(build: Path, source: str) -> str | None:
    """Return the id of a mined tuple that is not among the curated ones: then the source was built again since; else None."""
    columns = ["id", "key", "positives"]
    known, found = (tables.read_table(build / stage / source, "pairs", columns) for stage in ("curated", "mined"))
    known = known.rename({"positives": "known"})
    both = found.join(known, on=["id", "key"], how="left", nulls_equal=True, maintain_order="left")
    same = pl.col("positives").list.head(pl.col("known").list.len()) == pl.col("known")  # mining may add positives after them
    strange = both.filter(~same.fill_null(False))
    return str(strange["id"][0]) if len(strange) else None
