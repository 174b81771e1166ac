"""Files that are whole or absent: atomic writes, and the receipts that make runs resumable (tables: `curation/tables.py`).

A stage is a folder. It is written under `<folder>.<process>.part`, its receipt `done.json` last, and then renamed; so a
folder with a receipt is whole. The receipt holds the digest of everything the stage depends on, and the digest of
each file in it. A stage runs if the first differs; a file that no longer has its digest was changed by hand.
"""

from __future__ import annotations

import errno
import functools
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import xxhash

from curation.errors import BuildError

RECEIPT = "done.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PACKAGES = ("tuplesmith", "polars", "pyarrow", "torch", "transformers", "faiss-cpu", "faiss-gpu", "datasets", "datasketch")


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if _ended(left_over.name.split(".")[-2]):
            left_over.unlink(missing_ok=True)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # so that a full disk can be told by its place
        raise
    sync_folder(path.parent)


def _ended(process: str) -> bool:
    """Tell whether no process has this number, so that what it was writing will never be whole."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, PermissionError):
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write JSON in the order given, atomically."""
    with atomic(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON that a stage wrote.

    Raises:
        BuildError: the file is not there, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BuildError(path, "no such file", "run `curate build` first") from None
    except NotADirectoryError:
        raise BuildError(path.parent, "is a file, not a folder", "name a build folder") from None
    except ValueError as error:
        raise BuildError(path, f"not readable as JSON ({error})", "delete this file and run the command again") from None


def write_lines(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    """Write JSON Lines, atomically."""
    with atomic(path) as file:
        file.writelines(json_line(row) for row in rows)


def json_line(row: Mapping[str, object]) -> bytes:
    """Return one line of JSON Lines."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def digest_of(value: object) -> str:
    """Return the digest of anything that JSON can hold."""
    return str(xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()))


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return str(state.hexdigest())


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a result."""
    found = {}
    for package in PACKAGES:
        try:
            about = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        head = (about.read_text("METADATA") or about.read_text("PKG-INFO") or "").partition("\n\n")[0]
        told = re.search(r"^Version: *(\S+)", head, re.MULTILINE)  # `about.version` parses all of it, as a mail
        found[package] = told[1] if told else about.version
    return found


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """Return the receipt of a stage, or None where the stage is absent or unfinished."""
    path = folder / RECEIPT
    return dict(read_json(path)) if path.exists() else None


def check_files(folder: Path, receipt: Mapping[str, Any]) -> None:
    """Compare every file of a stage with its receipt.

    Raises:
        BuildError: a file was changed, added or removed since.
    """
    redo = f"delete {folder} and run the command again to make it anew"
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECEIPT and str(path.relative_to(folder)) not in receipt["files"]:
            raise BuildError(path, "was added after the folder was written", redo)
    for name, digest in receipt["files"].items():
        path = folder / name
        if not path.exists():
            raise BuildError(path, "was removed since it was written", redo)
        if file_digest(path) != digest:
            raise BuildError(path, "was changed since it was written (its digest is not the receipt's)", redo)


def stands(folder: Path, digest: str) -> bool:
    """Tell whether a whole stage with this digest stands there."""
    receipt = read_receipt(folder)
    return receipt is not None and receipt.get("digest") == digest


def run_stage(folder: Path, digest: str, work: Callable[[Path], Mapping[str, Any]]) -> tuple[dict[str, Any], bool]:
    """Run `work(folder)` unless a whole stage with this digest stands there; return (receipt, whether it ran).

    `work` writes its files into the folder it is given and returns what the receipt should say beside them.
    """
    receipt = read_receipt(folder)
    if receipt is not None and receipt.get("digest") == digest:
        check_files(folder, receipt)
        return receipt, False
    for left_over in folder.parent.glob(f"{folder.name}.*.part"):
        if left_over.name[len(folder.name) + 1 : -len(".part")].isdigit():  # `squad.v2.17.part` is another stage's
            shutil.rmtree(left_over, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        said = work(part)
        files = {str(path.relative_to(part)): file_digest(path) for path in sorted(part.rglob("*")) if path.is_file()}
        receipt = {**said, "digest": digest, "files": files, "versions": versions()}
        write_json(part / RECEIPT, receipt)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.is_file():
        raise BuildError(folder, "is a file, not a folder", "delete it and run the command again")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    sync_folder(folder.parent)
    return receipt, True


def newest_build(root: Path) -> Path:
    """Return the build under `root` whose build.json is newest.

    Raises:
        BuildError: there is none.
    """
    marks = [path for path in root.glob("*/build.json") if path.is_file()]
    if not marks:
        raise BuildError(root, "holds no build", "run `curate build MANIFEST` first, or name a build folder")
    return max(marks, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def no_room(error: OSError) -> bool:
    """Tell whether an error means that the disk, or the quota on it, is full."""
    return error.errno in NO_ROOM
