"""manifests/dev.yaml, thirty real datasets in one build: every row is what plain Python reads, and every count with it.

`plain_datasets.py` reads the files without our code. The golden file holds each source's first, tenth and last record, to
be read by eye; `python -m tests.curation.build.test_dev BUILD` prints it anew, and refuses records that plain Python denies.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curation.build.build import build
from curation.core.store import file_digest, read_json, read_receipt
from curation.core.tables import read_table
from curation.recipe.manifest import load_manifest
from curation.recipe.source import shape_of
from tests.conftest import SHARED
from tests.curation.build import plain_datasets as plain

pytestmark = pytest.mark.timeout(
    1800
)  # seconds; the build is waited for by the first test, and killed and made again by the last
BUILD = [sys.executable, "-c", "from curation.cli import curate; curate()", "build", str(plain.DEV), "-q", "-j", "2", "-o"]
GOLDEN = Path(__file__).with_name("dev_golden.json")


@pytest.fixture(scope="module")
def dev(shared_data, once):
    """The folder with the build of manifests/dev.yaml."""
    assert shared_data.samefile(plain.DEV.parent / "../../shared/data")

    def make(folder):
        outcome = build(plain.DEV, folder / "build", workers=2)
        assert not outcome.failed, outcome.failed

    return once("dev", make) / "build"


def tuples(folder: Path, name: str) -> pl.DataFrame:
    """All tuples of a source: kept, and held out."""
    curated = folder / "curated" / name
    pairs, texts = read_table(curated, "pairs"), read_table(curated, "passages")["text"]
    return pairs.with_columns(
        *(
            pl.Series(side, [[texts[pid] for pid in pids] for pids in pairs[side]], pl.List(pl.String))
            for side in ("positives", "negatives")
        )
    )


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def denied(folder: Path, name: str, readings: dict[str, tuple[str, set[str], str | None]]) -> list[str]:
    """Ids of the tuples that are not what plain Python reads in the rows that they are named for."""
    wrong = []
    for one in tuples(folder, name).select("id", "query", "positives", "label").iter_rows(named=True):
        query, positives, label = readings.get(one["id"], ("", set(), None))
        right = nfc(query) == nfc(one["query"]) and label == one["label"]
        if positives:  # equal queries were merged: theirs is one of several
            right &= not set(map(nfc, positives)).isdisjoint(map(nfc, one["positives"]))
        if not right:
            wrong.append(one["id"])
    return wrong


def records(folder: Path, name: str) -> list[list[Any]]:
    """The first, the tenth and the last tuple of a source, cut to be looked at."""
    table = tuples(folder, name)
    found = []
    for at in (0, 9, len(table) - 1):
        row = table.row(at, named=True)
        texts = [[text[:60] for text in row[side][:3]] for side in ("positives", "negatives")]
        found.append([row["id"], row["query"][:80], *texts, row["label"]])
    return found


@pytest.mark.shared_data
@pytest.mark.parametrize("name", plain.SOURCES)
def test_a_source_is_what_plain_python_reads(dev, shared_data, name):
    rows, made, readings = plain.expected(name, shared_data)
    receipt = read_receipt(dev / "curated" / name)
    assert (receipt["rows_in"], receipt["tuples_made"]) == (rows, made)
    assert receipt["rows_in"] == receipt["rows_used"] + sum(receipt["rows_dropped"].values())
    assert made == receipt["kept"] + receipt["merged"] + receipt["heldout"] + sum(receipt["dropped"].values())
    assert denied(dev, name, readings) == []
    assert records(dev, name) == json.loads(GOLDEN.read_text())[name]


def contents(folder):
    """Every file of a build but its timings, locks and what kills have left of unfinished files, by its digest."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("timings.json", ".curate-build.lock")
    ]
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


@pytest.mark.long
@pytest.mark.shared_data
def test_ten_kills_change_no_byte(dev, tmp_path):
    """Killed at ten random moments, a build ends with the bytes of the one that nobody disturbed."""
    usual, dice, kills = read_json(dev / "timings.json")["seconds"], random.Random(7), 0
    while kills < 10:
        process = subprocess.Popen([*BUILD, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=dice.uniform(0.03, 0.2) * usual)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:  # it came to the end of what earlier ones had left: the next one begins anew
            shutil.rmtree(tmp_path / "killed")
    subprocess.run([*BUILD, str(tmp_path / "killed")], check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "killed") == contents(dev)


def test_all_thirty_datasets_and_every_shape_are_in_it():
    sources = load_manifest(plain.DEV).sources
    assert [source.name for source in sources] == list(plain.SOURCES)
    folders = {file.split("/")[4] for source in sources for file in source.files}
    assert len(folders) == 30
    if SHARED.is_dir():
        assert folders == {path.name for path in SHARED.iterdir() if path.is_dir()}
    assert {(shape_of(source), source.task) for source in sources} == {
        ("pairs", "retrieval"),
        ("nli", "retrieval"),
        ("scored", "retrieval"),
        ("labelled", "clustering"),
        ("labelled", "classification"),
    }  # qrels: test_build.py, on the held-out folder of a build, and test_text_readers.py


if __name__ == "__main__":
    build_folder, golden = Path(sys.argv[1]), {}
    for one in plain.SOURCES:
        assert denied(build_folder, one, plain.expected(one, SHARED)[2]) == [], one
        golden[one] = records(build_folder, one)
    sys.stdout.write(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
