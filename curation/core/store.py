"""Files that are whole or absent: atomic writes, and the receipts that make runs resumable (tables: `curation/core/tables.py`).

A stage is a folder. It is written under a temporary name, its receipt `done.json` last, and then renamed; so a
folder with a receipt is whole. The receipt holds the digest of everything the stage depends on, and the digest of
each file in it. A stage runs if the first differs; a file that no longer has its digest was changed by hand.

A receipt also holds the digest of itself (SEAL), and build.json the digests of the receipts of its stages and of the files
beside it. So whoever trusts build.json knows each byte below it.
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

from curation.core.errors import BuildError, refusal

RECEIPT, BUILD, TIMINGS = "done.json", "build.json", "timings.json"
SEALED = {RECEIPT, BUILD, TIMINGS, "checkpoint.json", "meta.json", "encoders.json", "provenance.json"}
SHARD = re.compile(r"shard-\d+\.json")  # of vectors; sealed too
SEAL = "self_digest"  # the last key of these: the digest of the file as it would be without this key
AGAIN = "run `curate build` again"
LARGE = 1 << 26  # bytes: a larger file is read again only if something touched it since it was last read whole
SETTLED = 2_000_000_000  # nanoseconds after which another change of a file shows in its times
TEMPORARY = re.compile(r"\.tuplesmith-[0-9a-f]{16}\.tmp")
ELSEWHERE = re.compile(rf"(^|/){TEMPORARY.pattern}/|^\.cache/huggingface/")  # what another process writes; notes of `hf download`
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
    """Write JSON in the order given, atomically; the files of SEALED with their own digest in them."""
    with atomic(path) as file:
        holds_digest = isinstance(value, Mapping) and (path.name in SEALED or SHARD.fullmatch(path.name))
        file.write(sealed(value) if isinstance(value, Mapping) and holds_digest else _json(value))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, hint: str = AGAIN) -> Any:
    """Read JSON that a stage wrote, without its seal.

    Raises:
        BuildError: the file is not there, is no JSON, or has a seal that is not that of its bytes.
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
            raise BuildError(path, "was changed since it was written (its digest is another)", hint)
        del found[SEAL]
    return found


def sealed(value: Mapping[str, Any]) -> bytes:
    """Return JSON with SEAL as its last key."""
    bare = {key: part for key, part in value.items() if key != SEAL}
    return _json({**bare, SEAL: xxhash.xxh3_128_hexdigest(_json(bare))})


def read_sealed(path: Path, hint: str = AGAIN) -> dict[str, Any]:
    """Return what `write_json` wrote into a file of SEALED.

    Raises:
        BuildError: the file is not there, is no JSON, has no seal, or a byte of it was changed.
    """
    found = read_json(path, hint)
    if not has_seal(path):
        raise BuildError(path, "has no digest of itself: changed by hand, or of an earlier version?", hint)
    return dict(found)


def has_seal(path: Path) -> bool:
    """Tell whether a file of JSON ends with a seal, right or wrong."""
    return f'\n "{SEAL}": "'.encode() in path.read_bytes()[-100:]


def sealed_page(page: str) -> bytes:
    """Return an HTML page with the digest of itself as its last line."""
    return f"{page}<!-- {SEAL}: {xxhash.xxh3_128_hexdigest(page.encode())} -->\n".encode()


def is_sealed_page(path: Path) -> bool:
    """Tell whether a page is as `sealed_page` made it."""
    page = path.read_bytes()
    bare, mark, _ = page.rpartition(f"<!-- {SEAL}: ".encode())
    return bool(mark) and page == bare + f"<!-- {SEAL}: {xxhash.xxh3_128_hexdigest(bare)} -->\n".encode()


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


def digest_now(path: Path) -> str:
    """Return the digest of a file's bytes, of a LARGE one from the last time it was read whole, if nothing touched it since.

    That is remembered by size, times and inode, outside of the build: `~/.cache/tuplesmith`.
    """
    found = path.stat()
    if found.st_size < LARGE:
        return file_digest(path)
    mark = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tuplesmith"
    note = home / xxhash.xxh3_128_hexdigest(str(path.resolve()).encode())
    with suppress(OSError, ValueError, TypeError):
        known = json.loads(note.read_bytes())
        if known[:-1] == mark:
            return str(known[-1])
    digest = file_digest(path)
    if time.time_ns() - found.st_ctime_ns > SETTLED:
        with suppress(OSError):  # where the home cannot be written the file is read again next time
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
        told = re.search(r"^Version: *(\S+)", head, re.MULTILINE)  # `about.version` parses all of it, as a mail
        found[package] = told[1] if told else about.version
    return found


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """Return the receipt of a stage, or None where the stage is absent, unfinished, or of a version whose receipts had no seal.

    Raises:
        BuildError: it was changed since it was written.
    """
    path = folder / RECEIPT
    if not path.exists():
        return None
    found = read_json(path, _redo(folder))
    return dict(found) if has_seal(path) else None


def receipt_of(folder: Path, hint: str = AGAIN) -> dict[str, Any]:
    """Return the receipt of a stage that must be there.

    Raises:
        BuildError: it is absent, unfinished, or its receipt was changed since it was written.
    """
    receipt = read_receipt(folder)
    if receipt is None:
        raise BuildError(folder, "is missing or unfinished", hint)
    return receipt


def write_receipt(folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Write the receipt of a folder that is whole, with the digest of each file in it, and return it."""
    receipt = {**said, "files": digests(folder)}
    write_json(folder / RECEIPT, receipt)
    return receipt


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def changes(
    folder: Path,
    files: Mapping[str, str],
    besides: Iterable[str] = (RECEIPT,),
    digest_of_file: Callable[[Path], str] = digest_now,
) -> Iterator[tuple[Path, str]]:
    """Yield each file of a folder that is not what a receipt says, and what became of it; those of `besides` may be there too."""
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
    told = {"changed": "was changed since it was written (its digest is not the receipt's)"}
    told |= {"added": "was added after the folder was written", "removed": "was removed since it was written"}
    for path, what in changes(folder, receipt["files"], besides):
        raise BuildError(path, told[what], hint or _redo(folder))


def check_written(folder: Path) -> None:
    """Compare a folder with the receipt in it, or with that of the export which it is a part of; others' folders have none.

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


def _redo(folder: Path) -> str:
    return f"delete {folder} and run the command again to make it anew"


def is_current(folder: Path, digest: str) -> bool:
    """Return whether a folder holds a whole stage whose receipt has this digest: then there is nothing to run."""
    receipt = read_receipt(folder)
    return receipt is not None and receipt.get("digest") == digest


def run_stage(folder: Path, digest: str, work: Callable[[Path], Mapping[str, Any]]) -> tuple[dict[str, Any], bool]:
    """Run `work(folder)` unless the stage is current; return (receipt, whether it ran). Curation, mining and training use it.

    `work` writes its files into the folder that it gets, and returns what the receipt says in addition to their digests.

    Args:
        folder: where the stage is; it appears there whole, or not at all.
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
        said = work(part)
        receipt = write_receipt(part, {**said, "digest": digest, "versions": versions()})
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    sync_folder(folder.parent)
    return receipt, True
