"""Real datasets through the whole build, one manifest each: counts, and the first, tenth and last record.

Three records catch wrong columns, order, truncation and encoding. The golden file was read against the files' own
SOURCE notes; `python -m tests.curation.test_datasets` prints it anew for a look at what changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from curation.build import build
from curation.manifest import load_manifest
from curation.manifest_source import shape_of
from curation.store import read_table
from tests.conftest import SHARED
from tests.curation.dataset_manifests import DATASETS, manifest_of

GOLDEN = Path(__file__).with_name("datasets_golden.json")
COUNTS = ("rows_in", "rows_used", "rows_dropped", "tuples_made", "merged", "dropped", "kept", "passages")


def facts(name: str, data: Path, folder: Path) -> dict[str, object]:
    """Build one dataset and return what must not change."""
    (folder / "m.yaml").write_text(manifest_of(name, data))
    outcome = build(folder / "m.yaml", folder / "b")
    assert not outcome.failed, outcome.failed
    receipt = outcome.receipts[name]
    curated = folder / "b" / "curated" / name
    pairs, texts = read_table(curated, "pairs"), read_table(curated, "passages")["text"]
    records = []
    for at in (0, 9, len(pairs) - 1):
        row = pairs.row(at, named=True)
        cut = [texts[pid][:30] for pid in row["positives"]], [texts[pid][:30] for pid in row["negatives"]]
        records.append([row["id"], row["query"][:40], *cut, row["label"]])
    return {"counts": {name: receipt[name] for name in COUNTS}, "records": records}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_dataset(name, shared_data, tmp_path):
    assert facts(name, shared_data, tmp_path) == json.loads(GOLDEN.read_text())[name]


def test_every_shape_of_rows_is_among_them(tmp_path):
    shapes = set()
    for name in DATASETS:
        (tmp_path / "m.yaml").write_text(manifest_of(name, Path("x")))
        (source,) = load_manifest(tmp_path / "m.yaml").sources
        shapes.add((shape_of(source), source.task))
    assert shapes == {
        ("pairs", "retrieval"),
        ("nli", "retrieval"),
        ("scored", "retrieval"),
        ("labelled", "clustering"),
        ("labelled", "classification"),
    }  # qrels: test_build.py, on the held-out folder of a build


if __name__ == "__main__":
    found = {}
    for dataset in sorted(DATASETS):
        with TemporaryDirectory() as scratch:
            found[dataset] = facts(dataset, SHARED, Path(scratch))
    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
