"""Files that are complete or absent: atomic writes, JSON with its own digest, and the receipts that make runs resumable.

A stage is a folder. It is written under a temporary name, with its receipt `done.json` last, and then renamed; so a folder with
a receipt is complete. The receipt holds the digest of everything that the stage depends on, and the digest of each file. A
stage runs again if the first differs; a file whose digest differs was changed by hand.

A receipt also holds its own digest (SEAL), and build.json holds the digests of the receipts of its stages and of the files
next to it. So build.json determines every byte of a build. (Tables: `curation/core/tables.py`.)
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import xxhash

from curation.core.errors import BuildError, SetupError, refusal

RECEIPT, BUILD, TIMINGS = "done.json", "build.json", "timings.json"
EVALUATION = "evaluation.json"  # in the folder of a training run: what `train evaluate` measured of its model
SEALED = {RECEIPT, BUILD, TIMINGS, EVALUATION, "checkpoint.json", "meta.json", "encoders.json", "provenance.json"}
SHARD = re.compile(r"shard-\d+\.json")  # of stored vectors; sealed too
SEAL = "self_digest"  # the last key of a sealed file: the digest of the file without this key
AGAIN = "run `curate build` again"
LARGE = 1 << 26  # bytes: a larger file is read again only if its size, times or inode changed since its last digest
SETTLED = 2_000_000_000  # nanoseconds after which another change of a file certainly changes its times
TEMPORARY = re.compile(r"\.tuplesmith-[0-9a-f]{16}\.tmp")
ELSEWHERE = re.compile(rf"(^|/){TEMPORARY.pattern}/|^\.cache/huggingface/")  # other processes' files; notes of `hf download`
PACKAGES = ("tuplesmith", "polars", "pyarrow", "torch", "transformers", "faiss-cpu", "faiss-gpu", "datasets", "datasketch")


# --- files ---


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """Yield a path to write to, on the disk of `target`; the caller renames it to `target`, and anything left is removed.

    The path is in a folder next to `target`, `.tuplesmith-<16 hex digits>.tmp`. The random name is not shared by two processes,
    also not on different hosts, and is not a valid name of a source. The folder's file `lock` is locked while the process
    lives, so `sweep` can recognise folders of killed processes.

    Raises:
        OSError: the system refused to write; it names `target`, or the file inside it.
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
    """Lock a temporary folder; return None if another process has the lock, or has removed the folder meanwhile."""
    try:
        lock = (folder / "lock").open("ab")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        ours = os.fstat(lock.fileno()).st_nlink > 0
    except OSError:  # another process has it, or the file system does not support locks, and then `sweep` removes nothing
        ours = wait
    if ours:
        return lock
    lock.close()
    return None


def sweep(folder: Path, depth: int = 0) -> None:
    """Remove the temporary folders of killed processes in a folder, and in `depth` levels of folders below it."""
    for level in range(depth + 1):
        for path in folder.glob("*/" * level + ".tuplesmith-*.tmp"):
            with suppress(OSError):
                if TEMPORARY.fullmatch(path.name) and (lock := _locked(path)):
                    with lock:
                        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under `path` only when it is complete and on the disk.

    Raises:
        BuildError: `path` is a folder, a device or the like.
    """
    if path.exists() and not path.is_file():
        raise BuildError(path, "is a folder" if path.is_dir() else "is not a regular file", "name another file to write")
    with temporary(path) as part:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that they survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- digests ---


def digest_of(value: object) -> str:
    """Return the digest of a value that JSON can hold."""
    return str(xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()))


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return str(state.hexdigest())


def user_cache() -> Path:
    """Return the folder that this program may fill, and anybody may delete: `~/.cache/tuplesmith`, or below XDG_CACHE_HOME.

    Raises:
        SetupError: this user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "tuplesmith"
    except RuntimeError:
        raise SetupError("the cache", "this user has no home folder to keep it in", "set HOME or XDG_CACHE_HOME") from None


def digest_now(path: Path) -> str:
    """Return the digest of a file's bytes; for a LARGE file that did not change since, the digest found last time.

    Digests of large files are remembered by size, times and inode in `~/.cache/tuplesmith`.
    """
    found = path.stat()
    if found.st_size < LARGE:
        return file_digest(path)
    mark = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
    try:
        home = user_cache()
    except SetupError:
        return file_digest(path)
    note = home / xxhash.xxh3_128_hexdigest(str(path.resolve()).encode())
    with suppress(OSError, ValueError, TypeError):
        known = json.loads(note.read_bytes())
        if known[:-1] == mark:
            return str(known[-1])
    digest = file_digest(path)
    if time.time_ns() - found.st_ctime_ns > SETTLED:
        with suppress(OSError):  # if the home folder cannot be written, the file is read again next time
            write_json(note, [*mark, digest])
    return digest


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
        line = re.search(r"^Version: *(\S+)", head, re.MULTILINE)  # `about.version` is slow: it parses the whole file
        found[package] = line[1] if line else about.version
    return found


# --- JSON and pages with their own digest ---


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def sealed(value: Mapping[str, Any]) -> bytes:
    """Return a value as JSON with SEAL as its last key."""
    bare = {key: part for key, part in value.items() if key != SEAL}
    return _json({**bare, SEAL: xxhash.xxh3_128_hexdigest(_json(bare))})


def has_seal(path: Path) -> bool:
    """Return whether a JSON file ends with a seal, correct or not."""
    return f'\n "{SEAL}": "'.encode() in path.read_bytes()[-100:]


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, with keys in the given order; files named in SEALED get their own digest as last key."""
    with atomic(path) as file:
        holds_digest = isinstance(value, Mapping) and (path.name in SEALED or SHARD.fullmatch(path.name))
        file.write(sealed(value) if isinstance(value, Mapping) and holds_digest else _json(value))


def read_json(path: Path, hint: str = AGAIN) -> Any:
    """Read JSON that a stage wrote; a seal is checked and removed.

    Raises:
        BuildError: the file does not exist, is not JSON, or has a seal that does not fit its bytes.
    """
    try:
        found = json.loads(raw := path.read_bytes())
    except FileNotFoundError:
        raise BuildError(path, "no such file", "run `curate build` first") from None
    except NotADirectoryError:
        raise BuildError(path.parent, "is a file, not a folder", "name a build folder") from None
    except (ValueError, RecursionError) as error:
        raise BuildError(path, f"not readable as JSON ({error})", "delete this file and run the command again") from None
    if isinstance(found, dict) and SEAL in found:
        if raw != sealed(found):
            raise BuildError(path, "was changed since it was written (its digest differs)", hint)
        del found[SEAL]
    return found


def read_sealed(path: Path, hint: str = AGAIN) -> dict[str, Any]:
    """Read a file named in SEALED, which `write_json` wrote.

    Raises:
        BuildError: the file does not exist, is not JSON, has no seal, or was changed.
    """
    found = read_json(path, hint)
    if not has_seal(path):
        raise BuildError(path, "does not hold its own digest: changed by hand, or written by an older version?", hint)
    return dict(found)


def sealed_page(page: str) -> bytes:
    """Return an HTML page with its own digest as its last line."""
    return f"{page}<!-- {SEAL}: {xxhash.xxh3_128_hexdigest(page.encode())} -->\n".encode()


def is_sealed_page(path: Path) -> bool:
    """Return whether a page is unchanged since `sealed_page` made it."""
    page = path.read_bytes()
    bare, mark, _ = page.rpartition(f"<!-- {SEAL}: ".encode())
    return bool(mark) and page == bare + f"<!-- {SEAL}: {xxhash.xxh3_128_hexdigest(bare)} -->\n".encode()


def json_line(row: Mapping[str, object]) -> bytes:
    """Return one line of JSON Lines."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def write_lines(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    """Write JSON Lines atomically."""
    with atomic(path) as file:
        file.writelines(json_line(row) for row in rows)


# --- receipts ---


def _redo(folder: Path) -> str:
    return f"delete {folder} and run the command again to rebuild it"


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """Return the receipt of a stage; None if the stage is absent or unfinished, or its receipt has no seal (old versions).

    Raises:
        BuildError: the receipt was changed since it was written.
    """
    path = folder / RECEIPT
    if not path.exists():
        return None
    found = read_json(path, _redo(folder))
    return dict(found) if has_seal(path) else None


def receipt_of(folder: Path, hint: str = AGAIN) -> dict[str, Any]:
    """Return the receipt of a stage that must exist.

    Raises:
        BuildError: the stage is absent or unfinished, or its receipt was changed since it was written.
    """
    receipt = read_receipt(folder)
    if receipt is None:
        raise BuildError(folder, "is missing or unfinished", hint)
    return receipt


def write_receipt(folder: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Write the receipt of a complete folder, with the digest of each file, and return it. All files are on the disk first."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in folder.rglob("*/"):
        sync_folder(path)
    receipt = {**entries, "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files}}
    write_json(folder / RECEIPT, receipt)
    return receipt


def changes(
    folder: Path,
    files: Mapping[str, str],
    besides: Iterable[str] = (RECEIPT,),
    digest_of_file: Callable[[Path], str] = digest_now,
) -> Iterator[tuple[Path, str]]:
    """Yield each file of a folder that differs from `files`, with "added", "removed" or "changed".

    Args:
        folder: the folder.
        files: the digests in its receipt, by path.
        besides: further files that may exist.
        digest_of_file: computes the digest of a file.
    """
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    there = {name for name in there if not ELSEWHERE.search(name)}
    yield from ((folder / name, "added") for name in sorted(there - set(files) - set(besides)))
    for name, digest in files.items():
        if name not in there:
            yield folder / name, "removed"
        elif digest_of_file(folder / name) != digest:
            yield folder / name, "changed"


def check_files(folder: Path, receipt: Mapping[str, Any], hint: str = "", besides: Iterable[str] = (RECEIPT,)) -> None:
    """Compare every file of a stage with its receipt.

    Raises:
        BuildError: a file was changed, added or removed since.
    """
    sentences = {
        "changed": "was changed since it was written (its digest is not the receipt's)",
        "added": "was added after the folder was written",
        "removed": "was removed since it was written",
    }
    for path, what in changes(folder, receipt["files"], besides):
        raise BuildError(path, sentences[what], hint or _redo(folder))


def check_written(folder: Path) -> None:
    """Compare a folder with its receipt, or with the receipt of the export that it is part of; other folders pass.

    Raises:
        BuildError: a file was changed, added or removed since it was written.
    """
    if receipt := read_receipt(folder):
        return check_files(folder, receipt)
    whole, part = folder.resolve().parents[1], "/".join(folder.resolve().parts[-2:]) + "/"
    if receipt := read_receipt(whole):
        files = {name.removeprefix(part): digest for name, digest in receipt.get("files", {}).items() if name.startswith(part)}
        if files:
            check_files(folder, {"files": files}, f"delete {whole} and run `curate export` again")


# --- stages ---


def is_current(folder: Path, digest: str) -> bool:
    """Return whether a folder holds a complete stage whose receipt has this digest, so that it need not run."""
    receipt = read_receipt(folder)
    return receipt is not None and receipt.get("digest") == digest


def run_stage(folder: Path, digest: str, work: Callable[[Path], Mapping[str, Any]]) -> tuple[dict[str, Any], bool]:
    """Run `work(folder)` unless the stage is current; return (receipt, whether it ran). Curation, mining and training use it.

    `work` writes its files into the folder that it gets, and returns what the receipt says in addition to their digests.

    Args:
        folder: where the stage is; it appears there complete, or not at all.
        digest: of everything that the stage depends on.
        work: the stage.

    Raises:
        BuildError: a file of a current stage was changed, or `folder` is a file.
    """
    if is_current(folder, digest):
        receipt = receipt_of(folder)
        check_files(folder, receipt)
        return receipt, False
    if folder.is_file():
        raise BuildError(folder, "is a file, not a folder", "delete it and run the command again")
    with temporary(folder) as part:
        part.mkdir()
        entries = work(part)
        receipt = write_receipt(part, {**entries, "digest": digest, "versions": versions()})
        if is_current(folder, digest):  # a worker that was thought lost was faster
            return receipt_of(folder), True
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    sync_folder(folder.parent)
    return receipt, True
