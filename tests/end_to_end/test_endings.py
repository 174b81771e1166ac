"""Ctrl-C, SIGTERM, a closed terminal, a closed pipe, a locale without UTF-8: one line, a code, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import yaml

from curation.build import build as building
from curation.core.progress import silent
from curation.engine.local import Here, Processes

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "POLARS_MAX_THREADS": "1"}
ENDINGS = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "terminated"),
    signal.SIGHUP: (129, "the terminal was closed"),
}


def manifest(folder: Path, sources: int, rows: int = 5) -> Path:
    """Write a manifest of some sources and their files."""
    entries = []
    for number in range(sources):
        some = [{"q": f"what is {row} of {number}, é?", "p": f"it is {row} of {number}, ü"} for row in range(rows)]
        (folder / f"s{number}-ü.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
        entries.append({"name": f"s{number}", "files": f"s{number}-ü.jsonl", "task": "retrieval", "license": "mit"})
        entries[-1] |= {"instruction": "Trouve la réponse", "fields": {"query": "q", "positive": "p"}}
    (folder / "m.yaml").write_text(yaml.safe_dump({"name": "b", "sources": entries}, allow_unicode=True), encoding="utf-8")
    return folder / "m.yaml"


def living(group: int) -> bool:
    """Tell whether processes of a group still live after a while."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_signal_ends_a_build_in_one_line_and_leaves_nothing(forked, number, workers, tmp_path):
    manifest(tmp_path, 2, rows=60_000)
    group = forked.start("curate", "build", "m.yaml", "-o", "out", "-j", workers, cwd=tmp_path)
    while not list(tmp_path.glob("out/*/.tuplesmith-*.tmp/new")):
        time.sleep(0.02)
        os.kill(group, 0)  # it has not ended
    os.killpg(group, number)
    code, word = ENDINGS[number]
    assert forked.ended() == (code, "", f"curate: {word}; run the same command again to continue\n")
    assert not list(tmp_path.rglob(".tuplesmith-*"))
    assert not living(group)


def test_a_signal_while_workers_start_is_one_line(forked, tmp_path):
    manifest(tmp_path, 2)
    for pause in (0.0, 0.3, 0.9):
        group = forked.start("curate", "build", "m.yaml", "-o", f"out{pause}", "-j", 2, cwd=tmp_path)
        while not (tmp_path / f"out{pause}").is_dir():
            time.sleep(0.01)
        time.sleep(pause)
        with suppress(ProcessLookupError):  # it was faster
            os.killpg(group, signal.SIGINT)
        done = forked.ended()
        assert done.code in (0, 130), done.err
        assert "Traceback" not in done.err
        assert done.code == 0 or done.err == "curate: interrupted; run the same command again to continue\n"


def test_signals_stay_held_while_the_first_process_starts():
    code = """
import multiprocessing, signal
from curation.engine.local import _signals_held

if __name__ == "__main__":
    with _signals_held():
        multiprocessing.get_context("spawn").Process(target=print).start()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
    result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path):
    manifest(tmp_path, 1)
    code = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    words = [sys.executable, "-c", "from curation.cli import main; main()", "build", "m.yaml", "-o", "out", "-q"]
    with subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        while not (tmp_path / "out").is_dir():
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        process.communicate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    manifest(folder, 2, rows=40)
    building.build(folder / "m.yaml", folder / "out")
    return folder


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `curate` is the command."""
    script = f"set -o pipefail; curate() {{ {sys.executable} -c 'from curation.cli import main; main()' \"$@\"; }}; {line}"
    run = ["bash", "-c", script]
    return subprocess.run(
        run,
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize("line", [
    "curate show out -n 40 | head -n 1 > first", "curate show out --json -n 40 | true", "curate stats out >&-",
    "curate show out -n 40 2>&- >&-", "curate stats nowhere 2>&- || true", "curate build m.yaml -o other 2>&- >&-",
])  # fmt: skip
def test_a_reader_that_goes_or_was_never_there_ends_a_command_in_silence(line, built):
    done = shell(line, built)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_device_behind_the_output_is_one_line(built):
    done = shell("curate show out > /dev/full", built)
    assert (done.returncode, done.stderr) == (
        1, "curate: output: the disk is full; free some space and run the same command again to continue\n"
    )  # fmt: skip


LOCALES = {
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX"},
    "no UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii out": {"PYTHONIOENCODING": "ascii"},
    "strict ascii out": {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"LC_ALL": "tuplesmith_latin1"},
}


@pytest.mark.parametrize("name", LOCALES)
def test_any_locale_builds_the_same_and_prints_without_a_traceback(name, built, tmp_path):
    environment = dict(LOCALES[name])
    if name == "latin-1":
        made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "tuplesmith_latin1")]
        known = (
            subprocess.run(made, capture_output=True, check=False).returncode in (0, 1)
            and (tmp_path / "tuplesmith_latin1").is_dir()
        )
        environment |= {"LOCPATH": str(tmp_path)} if known else LOCALES["no UTF-8 mode"]
    out = tmp_path / "out"
    done = shell(f"curate build m.yaml -o {out} -j {1 + (name == 'latin-1')} && curate show {out}", built, **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for path in sorted((built / "out" / "curated").rglob("*")):
        if path.is_file():
            assert (out / "curated" / path.relative_to(built / "out" / "curated")).read_bytes() == path.read_bytes()
    assert "what is 0 of 0" in done.stdout


def test_small_builds_start_no_other_process(tmp_path):
    manifest(tmp_path, 4, rows=100)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    building.build(tmp_path / "m.yaml", tmp_path / "out", workers=None)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime == before


def test_large_builds_have_a_process_more_for_what_lies_beside_the_largest_source(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    asked = []
    monkeypatch.setattr(building, "_size_of", lambda job: asked[int(job.source.name[1:])])
    recipe = building.load_manifest(manifest(tmp_path, 6))
    jobs = [building.job_of(recipe, source, tmp_path, tmp_path / "out", None) for source in recipe.sources]
    mega = 1 << 20
    for sizes, workers in (
        ([1, 1, 1, 1, 1, 1], 1), ([900 * mega, 1, 1, 1, 1, 1], 1), ([900 * mega, 63 * mega, 0, 0, 0, 0], 1),
        ([900 * mega, 64 * mega, 0, 0, 0, 0], 2), ([40 * mega] * 6, 4), ([500 * mega] * 6, 4), ([30 * mega] * 6, 3),
    ):  # fmt: skip
        asked[:] = sizes
        assert building._workers_that_pay(jobs, 4) == workers, sizes


def test_a_dataset_of_the_hub_is_as_large_as_its_texts(tmp_path):
    (tmp_path / "m.yaml").write_text(
        "name: m\nsources:\n  - {name: s, path: org/name, task: retrieval, fields: {query: q, positive: p}}\n"
    )
    recipe = building.load_manifest(tmp_path / "m.yaml")
    job = building.job_of(recipe, recipe.sources[0], tmp_path, tmp_path / "out", None)
    assert building._size_of(job) == building.PROCESS_BYTES
    (tmp_path / "out" / "shaped" / "s").mkdir(parents=True)
    (tmp_path / "out" / "shaped" / "s" / building.TEXTS).write_bytes(b"x" * 77)
    assert building._size_of(job) == 77


@pytest.mark.parametrize(
    ("sizes", "workers", "here"),
    [
        ([90, 2, 2, 2, 2, 2], 2, "a"), ([90, 2, 2, 2, 2, 2], 4, "a"), ([40, 40, 5, 5, 5, 5], 4, "ab"), ([99, 1, 0, 0, 0, 0], 3, "a"),
        ([40, 40, 5, 5, 5, 5], 2, ""), ([1, 1, 1, 1, 1, 1], 6, ""), ([0, 0, 0, 0, 0, 0], 2, ""), ([9, 1, 1, 1, 1, 1], 1, "abcdef"),
    ],
)  # fmt: skip
def test_all_threads_work_on_a_source_of_more_than_its_share(tmp_path, monkeypatch, sizes, workers, here):
    recipe = building.load_manifest(manifest(tmp_path, 6))
    jobs = [building.job_of(recipe, source, tmp_path, tmp_path / "out", None) for source in recipe.sources]
    names = [job.source.name for job in jobs]
    monkeypatch.setattr(building, "_size_of", lambda job: sizes[names.index(job.source.name)])
    monkeypatch.setattr(building.stages, "run", lambda *given: given)

    class Several(Processes):
        def run(self, function, items):
            sent.extend(job.source.name for job, _ in items)
            return [(item, partial(function, item)) for item in items]

    sent = []
    pool = Several(workers)
    places = building.Places(pool, workers, True, 9)
    found = list(building._results(building.stages.SHAPE, [(job, "") for job in jobs], places, silent, "shape"))
    by_threads = {job.source.name: result()[-1].threads for job, result in found if job.source.name not in sent}
    assert by_threads == {name: workers for name, letter in zip(names, "abcdef", strict=True) if letter in here}
    assert sorted([*sent, *by_threads]) == sorted(names)
    assert pool.most == (min(workers, len(sent)) if sent else workers)


@pytest.mark.parametrize(
    ("gigabytes", "workers", "memory", "most", "threads"),
    [
        (24, None, None, 4, 4),
        (9, None, None, 2, 4),
        (9, None, 1, 4, 2),
        (9, 3, 8, 3, 4),
        (1, None, None, 1, 4),
        (64, None, 0.5, 4, 1),
    ],
)
def test_no_more_processes_are_started_than_fit(tmp_path, monkeypatch, gigabytes, workers, memory, most, threads):
    manifest(tmp_path, 1)
    monkeypatch.setattr(building, "processors", lambda: 4)
    monkeypatch.setattr(building, "memory_here", lambda: gigabytes * 10**9)
    seen = []
    run = building._results
    monkeypatch.setattr(building, "_results", lambda *given: seen.append(given[2]) or run(*given))
    building.build(tmp_path / "m.yaml", tmp_path / "out", workers=workers, memory=memory)
    assert {(one.most, one.threads) for one in seen} == {(most, threads)}


@pytest.mark.parametrize(
    ("size", "workers", "threads"),
    [(1, 2, 2), (1, 16, 4), (5 << 26, 16, 5), (5 << 26, 3, 3), (90 << 26, 16, 16), (90 << 26, 2, 2), (5 << 26, 1, 1)],
)
def test_processes_work_on_a_source_that_is_worth_it(size, workers, threads):
    pool = Processes(workers) if workers > 1 else Here()
    found = building._workers_for(size, building.Places(pool, workers, True, 4))
    assert (found.most if found is pool and workers > 1 else found.threads) == threads
    assert isinstance(found, Here) == (workers == 1 or (threads <= 4 and size < 90 << 26))
