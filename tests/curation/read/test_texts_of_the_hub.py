"""A dataset of the Hub is read as it is written: fetched whole, streamed where only its first rows are wanted, and again offline."""

from __future__ import annotations

import io
import json

import polars as pl
import pytest

from tests.servers.hub_server import hub

TEXTS = ["02108", "NA", "null", "1969-07-20", "1e5", "nan"]
CARD = """\
---
configs:
- {config_name: one, data_files: [{split: train, path: one/*.csv}, {split: test, path: test.csv}]}
- {config_name: two, data_files: two.csv}
dataset_info:
- config_name: one
  features:
  - {name: q, dtype: string}
  - {name: a, dtype: string}
  - name: label
    dtype:
      class_label: {names: {'0': bad, '1': good}}
---
"""


def parquet() -> bytes:
    file = io.BytesIO()
    pl.DataFrame({"q": [f"0{n}" for n in range(50_000)], "a": [f"answer {n}" for n in range(50_000)]}).write_parquet(file)
    return file.getvalue()


FILES = {
    "org/csv": {
        "README.md": CARD,
        "one/a.csv": "q,a,label\n" + "".join(f"{text} {text},NA,1\n" for text in TEXTS[:3]),
        "one/b.csv": "q,a,label\n" + "".join(f"{text} {text},007,0\n" for text in TEXTS[3:]),
        "test.csv": "q,a,label\nx,y,0\n",
        "two.csv": "q,a\nx,y\n",
    },
    "org/parquet": {"data/train-00000-of-00001.parquet": parquet()},
}
PATTERNS = {
    "/etc/passwd": "its README takes data from '/etc/passwd', outside of the dataset",
    "../../../../../etc/passwd": "outside of the dataset; such files are never read",
    "https://example.org/x.csv": "its README takes data from 'https://example.org/x.csv', which is elsewhere",
    "hf://datasets/org/parquet/data/train-00000-of-00001.parquet": "which is elsewhere; download that",
}
READS = {
    "all": {"path": "org/csv", "config": "one"},
    "first": {"path": "org/csv", "config": "one", "sample": "first", "limit": 6},
    "parquet": {"path": "org/parquet", "sample": "first", "limit": 3},
    "both splits": {"path": "org/csv", "config": "one", "split": "train+test"},
    **{pattern: {"path": f"org/bad{n}"} for n, pattern in enumerate(PATTERNS)},
}
OFFLINE = {"both splits": READS["both splits"], "never read": {"path": "org/csv", "config": "two"}}
READ = """\
import json
from pathlib import Path
from curation.core.errors import SourceError
from curation.recipe.source import Source
from curation.read.sources import input_digests, take

for name, keys in json.loads(reads).items():
    label = {'answer': 'label'} if keys.get('config') == 'one' else {}
    source = Source(name='s', task='retrieval', fields={'query': 'q', 'positive': 'a', **label}, **keys)
    try:
        rows, lost = take(source, 1, source.limit, Path(), lambda n: None)
        print(json.dumps([name, [list(input_digests(source, Path()).values()), rows.drop('__row').rows()]]))
    except SourceError as error:
        print(json.dumps([name, str(error)]))
"""


def read(server, reads, offline=False):
    head = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" if offline else ""
    code, out, errors = server.client(f"{head}reads = {json.dumps(reads)!r}\n{READ}")
    assert code == 0, errors
    return dict(map(json.loads, out.splitlines()))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What was read of each online, then offline; and how many requests the latter made."""
    with hub(tmp_path_factory.mktemp("hub")) as server:
        commits = {name: server.put("datasets", name, files) for name, files in FILES.items()}
        for n, pattern in enumerate(PATTERNS):
            card = f"---\nconfigs:\n- {{config_name: a, data_files: '{pattern}'}}\n---\n"
            server.put("datasets", f"org/bad{n}", {"README.md": card, "train.csv": "q,a\n1,2\n"})
        online = read(server, READS)
        before = len(server.requests)
        return online, read(server, OFFLINE, offline=True), len(server.requests) - before, commits


@pytest.mark.parametrize("sample", ["all", "first"])
def test_texts_and_labels_of_a_csv(found, sample):
    digests, rows = found[0][sample]
    wanted = [[f"{text} {text}", "NA" if n < 3 else "007", "good" if n < 3 else "bad"] for n, text in enumerate(TEXTS)]
    assert rows == wanted
    assert digests == [found[3]["org/csv"]]


def test_the_first_rows_of_a_parquet_file_are_streamed(found):
    assert found[0]["parquet"][1] == [["00", "answer 0"], ["01", "answer 1"], ["02", "answer 2"]]


def test_what_was_read_once_is_read_again_offline(found):
    online, offline, requests, _ = found
    assert offline["both splits"] == online["both splits"]
    assert len(offline["both splits"][1]) == 7
    assert "cannot be downloaded while the Hub is switched off" in offline["never read"]
    assert requests == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_card_of_the_hub_leads_nowhere_else(found, pattern):
    assert PATTERNS[pattern] in found[0][pattern]
