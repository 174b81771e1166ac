"""Files that are whole or absent: atomic writes, and the receipts that make runs resumable (tables: `curation/tables.py`).

A stage is a folder. It is written under a temporary name, its receipt `done.json` last, and then renamed; so a
folder with a receipt is whole. The receipt holds the digest of everything the stage depends on, and the digest of
each file in it. A stage runs if the first differs; a file that no longer has its digest was changed by hand.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import xxhash

from curation.errors import BuildError
from curation.refusals import refusal

RECEIPT = "done.json"
TEMPORARY = re.compile(r"\.tuplesmith-[0-9a-f]{16}\.tmp")
PACKAGES = ("tuplesmith", "polars", "pyarrow", "torch", "transformers", "faiss-cpu", "faiss-gpu", "datasets", "datasketch")


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """Yield a path that does not exist yet, on the disk of `target`, for what will be renamed to it; at the end nothing is left.

    It lies in a folder beside `target`, `.tuplesmith-<16 hex digits>.tmp`, a name that no source has and no two processes
    share, on whatever host. Its file `lock` is locked while the process lives, so that `sweep` knows what was left behind.

    Raises:
        OSError: the system refused to write there; it names `target`, or the file in it.
    """
    folder = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        while True:
            folder = target.with_name(f".tuplesmith-{secrets.token_hex(8)}.tmp")
            folder.mkdir()
            if lock := _locked(folder, wait=True):
                with lock:
                    yield folder / "new"
                return
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        file = target if isinstance(refused.filename, int | None) else Path(os.fsdecode(refused.filename))
        if folder and file.is_relative_to(folder):
            file = target.joinpath(*file.relative_to(folder).parts[1:])
        raise OSError(refused.errno, refused.strerror, str(file)) from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path, wait: bool = False) -> IO[bytes] | None:
    """Take the lock of a temporary folder; None where another process has it, or has removed the folder meanwhile."""
    try:
        lock = (folder / "lock").open("ab")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        ours = os.fstat(lock.fileno()).st_nlink > 0
    except OSError:  # another has it; or the file system knows no locks, and then nothing is ever swept there
        ours = wait
    if ours:
        return lock
    lock.close()
    return None


def sweep(folder: Path, depth: int = 0) -> None:
    """Remove what processes that are gone have left unfinished in a folder, and so many levels below it."""
    for level in range(depth + 1):
        for path in folder.glob("*/" * level + ".tuplesmith-*.tmp"):
            with suppress(OSError):
                if TEMPORARY.fullmatch(path.name) and (lock := _locked(path)):
                    with lock:
                        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only when it is whole and on the disk.

    Raises:
        BuildError: `path` is a folder, a device or the like.
    """
    if path.exists() and not path.is_file():
        raise BuildError(path, "is a folder" if path.is_dir() else "is no regular file", "name another file to write")
    with temporary(path) as part:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    sync_folder(path.parent)


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
    if folder.is_file():
        raise BuildError(folder, "is a file, not a folder", "delete it and run the command again")
    with temporary(folder) as part:
        part.mkdir()
        said = work(part)
        files = {str(path.relative_to(part)): file_digest(path) for path in sorted(part.rglob("*")) if path.is_file()}
        receipt = {**said, "digest": digest, "files": files, "versions": versions()}
        write_json(part / RECEIPT, receipt)
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
