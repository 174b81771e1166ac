"""`curate import` of a dataset of the Hub trains on its training split alone."""

from __future__ import annotations

import json

import yaml

from tests.curation.share.small_published import start
from tests.servers.hub_server import hub

BEIR = """\
---
configs:
- config_name: default
  data_files: [{split: train, path: qrels/train.jsonl}, {split: dev, path: qrels/dev.jsonl}, {split: test, path: qrels/test.jsonl}]
- {config_name: corpus, data_files: [{split: corpus, path: corpus.jsonl}]}
- {config_name: queries, data_files: [{split: queries, path: queries.jsonl}]}
---
"""
CONFIGS = """\
---
configs:
- {config_name: en, data_files: [{split: train, path: en/train.jsonl}, {split: validation, path: en/dev.jsonl}]}
- {config_name: en-test, data_files: [{split: train, path: en/test.jsonl}]}
---
"""


def line(**keys: object) -> str:
    return json.dumps(keys) + "\n"


def test_splits_and_configs(tmp_path):
    pair = line(anchor="who", positive="she")
    qrels = {
        f"qrels/{split}.jsonl": line(**{"query-id": "q", "corpus-id": "d", "score": 1}) for split in ("train", "dev", "test")
    }
    texts = {
        "corpus.jsonl": line(_id="d", title="Oak", text="It bears acorns."),
        "queries.jsonl": line(_id="q", text="acorn tree"),
    }
    sets = {
        "org/plain": {f"data/{split}-00000-of-00001.jsonl": pair for split in ("train", "validation", "test")},
        "org/configs": {"README.md": CONFIGS, **{f"en/{split}.jsonl": pair for split in ("train", "dev", "test")}},
        "org/beir": {"README.md": BEIR, **qrels, **texts},
    }
    wanted = {
        "org/plain": (["plain"], ["plain-validation", "plain-test"]),
        "org/configs": (["en"], ["en-validation", "en-test"]),
        "org/beir": (["beir"], ["beir-dev", "beir-test"]),
    }
    with hub(tmp_path / "hub") as server:
        for name, files in sets.items():
            server.put("datasets", name, files)
        running = {name: start(server, "import", name, "-o", tmp_path / f"{name[4:]}.yaml") for name in sets}
        for name, process in running.items():
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            found = yaml.safe_load((tmp_path / f"{name[4:]}.yaml").read_text())
            made = [[one["name"] for one in some] for some in (found["sources"], found["decontaminate"]["against"])]
            assert tuple(made) == wanted[name]
            for called in wanted[name][1]:
                assert (
                    f"{called}: for development or tests by its name, so not trained on; its texts are removed from the sources\n"
                    in errors
                )
