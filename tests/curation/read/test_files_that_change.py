"""A file that changes while it is read fails its source in one line: a receipt's digest is that of the bytes that were read."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from curation.build import stages
from curation.build.build import build, job_of
from curation.build.shape_stage import with_inputs
from curation.core.errors import SourceError
from curation.core.store import file_digest, read_receipt
from curation.read.lock import lock_path, write_lock
from curation.recipe.manifest import load_manifest

ROWS = 25_000  # of 190 bytes: two blocks, and two batches
SAID = "changed while it was read; run again when nothing writes to it"
MANIFEST = """\
name: m
sources:
  - {name: s, files: "big.*", license: mit, task: retrieval, fields: {query: q, positive: a}}
  - {name: t, files: other.jsonl, license: mit, task: retrieval, fields: {query: q, positive: a}}
"""


def write(path: Path, word: str) -> None:
    questions = [
        f"{word} question number {n:06d} about things that are long enough to fill a line, {'x' * 90}" for n in range(ROWS)
    ]
    answers = [f"{word}{n:06d}" for n in range(ROWS)]
    if path.suffix == ".parquet":
        pl.DataFrame({"q": questions, "a": answers}).write_parquet(path, row_group_size=5000, compression="uncompressed")
    elif path.suffix == ".csv":
        path.write_text("q,a\n" + "".join(f"{q},{a}\n" for q, a in zip(questions, answers, strict=True)))
    else:
        path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in zip(questions, answers, strict=True)))


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contents")
    for ending in ("jsonl", "csv", "parquet"):
        for word in ("aaa", "bbb"):
            write(folder / f"{word}.{ending}", word)
    return folder


def overwritten(path: Path, new: bytes) -> None:
    with path.open("r+b") as file:
        file.write(new)


def overwritten_with_its_old_time(path: Path, new: bytes) -> None:
    then = path.stat()
    overwritten(path, new)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


def truncated(path: Path, new: bytes) -> None:
    os.truncate(path, 1000)


def appended(path: Path, new: bytes) -> None:
    with path.open("ab") as file:
        file.write(new[-1000:])


def replaced(path: Path, new: bytes) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(new)
    beside.replace(path)


def removed(path: Path, new: bytes) -> None:
    path.unlink()


def joined_by_another(path: Path, new: bytes) -> None:
    path.with_name("big.2" + path.suffix).write_bytes(new)


CHANGES = [overwritten, overwritten_with_its_old_time, truncated, appended, replaced, removed, joined_by_another]


@contextmanager
def meanwhile(
    what: str, total: int | None, unit: str, *, change: Callable[[], None], when: str, after: int
) -> Iterator[Callable]:
    """Report progress, and make a change as soon as `after` batches of the stage `when` were read."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += 1
        if what == when and done == after:
            change()

    if what == when and after == 0:
        change()
    yield advance


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("after", [0, 1])
def test_a_source_that_changes_fails(contents, tmp_path, ending, change, after):
    path = tmp_path / f"big.{ending}"
    path.write_bytes((contents / f"aaa.{ending}").read_bytes())
    (tmp_path / "other.jsonl").write_text('{"q": "what is it", "a": "it is that"}\n')
    (tmp_path / "m.yaml").write_text(MANIFEST)
    new = (contents / f"bbb.{ending}").read_bytes()

    def progress(what, total, unit):
        return meanwhile(what, total, unit, change=lambda: change(path, new), when="read s", after=after)

    manifest = load_manifest(tmp_path / "m.yaml")
    with pytest.raises(SourceError, match=f"^big.*{SAID}$"):
        stages.run(stages.SHAPE, with_inputs(job_of(manifest, manifest.sources[0], tmp_path, tmp_path / "b", None)), progress)
    assert not (tmp_path / "b" / "shaped" / "s").exists()


@pytest.mark.parametrize("change", [overwritten, replaced], ids=lambda change: change.__name__)
def test_the_other_sources_are_built_and_the_next_run_takes_the_new_rows(contents, tmp_path, change):
    path = tmp_path / "big.parquet"
    path.write_bytes((contents / "aaa.parquet").read_bytes())
    (tmp_path / "other.jsonl").write_text('{"q": "what is it", "a": "it is that"}\n')
    (tmp_path / "m.yaml").write_text(MANIFEST)

    def progress(what, total, unit):
        new = (contents / "bbb.parquet").read_bytes()
        return meanwhile(what, total, unit, change=lambda: change(path, new), when="read s", after=1)

    outcome = build(tmp_path / "m.yaml", tmp_path / "b", progress=progress)
    assert {name: str(error) for name, error in outcome.failed.items()} == {"s": f"big.parquet: {SAID}"}
    assert list(outcome.receipts) == ["t"]
    again = build(tmp_path / "m.yaml", tmp_path / "b")
    assert again.receipts["s"]["inputs"] == {"big.parquet": file_digest(path)}
    queries = pl.read_parquet(tmp_path / "b" / "curated" / "s" / "pairs-*.parquet")["query"]
    assert queries.str.starts_with("bbb").all()


def writing(path: Path, contents: Path) -> tuple[threading.Thread, threading.Event]:
    """Overwrite a file again and again until asked to stop."""
    stop = threading.Event()
    both = [(contents / f"{word}.jsonl").read_bytes() for word in ("aaa", "bbb")]

    def work() -> None:
        while not stop.is_set():
            for new in both:
                overwritten(path, new)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, stop


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_file_that_is_written_all_the_time_is_never_taken(contents, tmp_path, workers):
    (tmp_path / "big.jsonl").write_bytes((contents / "aaa.jsonl").read_bytes())
    (tmp_path / "other.jsonl").write_text('{"q": "what is it", "a": "it is that"}\n')
    (tmp_path / "m.yaml").write_text(MANIFEST)
    thread, stop = writing(tmp_path / "big.jsonl", contents)
    try:
        outcome = build(tmp_path / "m.yaml", tmp_path / "b", workers=workers)
        failed = write_lock(tmp_path / "m.yaml", load_manifest(tmp_path / "m.yaml"), ["s", "t"]) if workers == 1 else {}
    finally:
        stop.set()
        thread.join()
    assert {name: str(error) for name, error in outcome.failed.items()} == {"s": f"big.jsonl: {SAID}"}
    if workers == 1:
        assert {name: str(error) for name, error in failed.items()} == {"s": f"big.jsonl: {SAID}"}
        assert list(json.loads(lock_path(tmp_path / "m.yaml").read_text())["sources"]) == ["t"]


def test_an_evaluation_set_that_changes_stops_the_build(contents, tmp_path):
    (tmp_path / "big.jsonl").write_bytes((contents / "aaa.jsonl").read_bytes())
    (tmp_path / "other.jsonl").write_text('{"q": "what is it", "a": "it is that"}\n')
    (tmp_path / "m.yaml").write_text(
        "name: m\ndecontaminate: {against: [{files: big.jsonl, fields: {query: q}}]}\n"
        "sources:\n  - {name: t, files: other.jsonl, task: retrieval, fields: {query: q, positive: a}}\n"
    )
    new = (contents / "bbb.jsonl").read_bytes()

    def progress(what, total, unit):
        change = lambda: overwritten(tmp_path / "big.jsonl", new)  # noqa: E731
        return meanwhile(what, total, unit, change=change, when="read evaluation sets", after=0)

    with pytest.raises(SourceError, match=f"^big.jsonl: {SAID}$"):
        build(tmp_path / "m.yaml", tmp_path / "b", progress=progress)
    assert read_receipt(tmp_path / "b" / "decontaminate") is None
