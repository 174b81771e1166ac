"""`curate import` of a dataset of the Hub trains on its training split alone."""

from __future__ import annotations

import json

import yaml

from tests.curation.share.small_published import start
from tests.curation.share.test_exchange import tuples_of
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


LIGHTON = """\
---
configs:
- {config_name: queries, data_files: [{split: train, path: queries.jsonl}]}
- {config_name: documents, data_files: [{split: train, path: documents.jsonl}]}
- {config_name: train, data_files: [{split: train, path: dataset.jsonl}, {split: test, path: test.jsonl}]}
---
"""


def test_tuples_of_ids_as_lighton_publishes_them(tmp_path):
    """The layout of lightonai/ms-marco-en-bge, by the features on its card."""
    texts = {"d1": "An oak bears acorns.", "d2": "A fern has spores.", "d3": "An ash bears keys."}
    files = {
        "README.md": LIGHTON,
        "queries.jsonl": line(query_id="q1", text="acorn tree"),
        "documents.jsonl": "".join(line(document_id=name, text=text) for name, text in texts.items()),
        **dict.fromkeys(
            ("dataset.jsonl", "test.jsonl"), line(query_id="q1", document_ids=["d1", "d3", "d2"], scores=[0.9, 0.5, 0.1])
        ),
    }
    with hub(tmp_path / "hub") as server:
        commit = server.put("datasets", "org/marco", files)
        for words in (
            ("import", "org/marco", "-o", tmp_path / "m.yaml"),
            ("build", tmp_path / "m.yaml", "-o", tmp_path / "b", "-q"),
        ):
            process = start(server, *words)
            out, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            assert words[0] == "build" or out == "marco: ids\n"
            assert (
                words[0] == "build" or "left out, for development or tests by its name: marco-test: names texts by id" in errors
            )
    (source,) = yaml.safe_load((tmp_path / "m.yaml").read_text())["sources"]
    assert source["revision"] == source["corpus"]["revision"] == commit
    assert tuples_of(tmp_path / "b", "marco") == {"acorn tree": ([texts["d1"]], [texts["d3"], texts["d2"]])}
