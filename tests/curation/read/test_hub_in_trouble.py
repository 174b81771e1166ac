"""A Hub that is busy or cuts connections while it is read from: asked again as when publishing, and reported when it stays so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.hub_server import hub

ROOT = Path(__file__).resolve().parents[3]
QUICK = "import sys, time\ntime.sleep = lambda seconds: None\nfrom curation.cli import main\nmain()"
ROWS = "".join(f'{{"q": "what is number {at}", "p": "it is number {at} here"}}\n' for at in range(8))
MANIFEST = """\
name: far
sources:
  - {name: rows, path: org/rows, files: rows.jsonl, task: retrieval, license: mit, fields: {query: q, positive: p}}
  - {name: near, files: near.jsonl, task: retrieval, license: mit, fields: {query: q, positive: p}}
"""
TROUBLES = (
    (503, "the Hub answers 503"),
    pytest.param(429, "the Hub answers 429", marks=pytest.mark.long),
    pytest.param(500, "the Hub answers 500", marks=pytest.mark.long),
    (0, "the Hub cannot be reached"),
)


@pytest.fixture
def server(tmp_path):
    with hub(tmp_path / "hub") as server:
        server.put("datasets", "org/rows", {"rows.jsonl": ROWS})
        (tmp_path / "m.yaml").write_text(MANIFEST)
        (tmp_path / "near.jsonl").write_text(ROWS.replace("number", "neighbour"))
        yield server


def curate(server, *words):
    environment = os.environ | server.environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *words],
        env=environment,
        cwd=server.folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("status", "said"), TROUBLES, ids=lambda value: str(value))
def test_locking_and_building_ask_again(status, said, server):
    for words in (("lock", "m.yaml", "-q"), ("build", "m.yaml", "-o", "out", "-j", "1", "-q")):
        server.faults.clear()
        for path in ("/api/datasets", "/resolve/"):
            server.fail(status, times=2, path=path)
        code, err = curate(server, *words)
        assert code == 0, err
        lines = err.splitlines()  # the Hub's own client asks again for some of it, and says nothing
        assert all(line.startswith(said) and line.endswith((" trying again in 1 s", " trying again in 2 s")) for line in lines), (
            err
        )
        assert lines or words[0] == "build"


def test_a_hub_that_stays_busy_is_one_line_and_the_other_sources_are_built(server):
    server.fail(503, times=10**6)
    code, err = curate(server, "build", "m.yaml", "-o", "out", "-j", "1", "-q")
    lines = err.splitlines()
    assert code == 1
    assert "Traceback" not in err
    assert lines[:6] == [f"the Hub answers 503; trying again in {wait} s" for wait in (1, 2, 4, 8, 16, 32)]
    assert "org/rows" in lines[-1]
    assert "503" in lines[-1]
    assert (server.folder.parent / "out" / "curated" / "near" / "done.json").exists()


def test_what_is_not_there_is_not_asked_for_again(server):
    (server.folder.parent / "m.yaml").write_text(MANIFEST.replace("org/rows", "org/nothing"))
    code, err = curate(server, "build", "m.yaml", "-o", "out", "-j", "1", "-q")
    assert code == 1
    assert "trying again" not in err
    assert "no such dataset on the Hub" in err
