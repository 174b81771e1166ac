"""manifests/f2llm.yaml unchanged, from the Hub to a published dataset: all 62 sources, by the commands and the real clients."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from curation.core import store, tables
from curation.read.lock import read_lock
from curation.recipe.licenses import class_of
from curation.recipe.manifest import load_manifest
from tests.curation.share.small_published import expected, loaded, start
from tests.curation.share.test_exchange import tuples_of
from tests.end_to_end.f2llm_repos import GOLDEN, WORDS, fill
from tests.servers.hub_server import hub

MANIFEST = Path(__file__).resolve().parents[2] / "manifests" / "f2llm.yaml"
ADDED = re.compile(rf" (?:(?:{'|'.join(WORDS)}) ){{8}}\d+")  # the words that tell one made-up row from the next
COUNTS = {"amazon_reviews": 75, **dict.fromkeys(("qqp", "sts12", "sts22", "stsbenchmark"), 100)}  # tuples; else 50


def finished(process, seconds=900):
    """Return what a command printed, once it is done."""
    out, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors
    return out, errors


def without(texts):
    return [ADDED.sub("", text) for text in texts]


@pytest.fixture
def server(tmp_path):
    with hub(tmp_path / "hub") as running:
        fill(running, load_manifest(MANIFEST), tmp_path / "models")
        yield running


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_of_f2llm_from_the_hub_to_the_hub(server, tmp_path):
    recipe = Path(shutil.copy(MANIFEST, tmp_path / "f2llm.yaml"))
    made, manifest = tmp_path / "build", load_manifest(MANIFEST)
    (tmp_path / "asked").mkdir()
    checking = start(server, "check", shutil.copy(MANIFEST, tmp_path / "asked"), "--online", "--json")  # while the others work
    finished(start(server, "lock", recipe, "-q"))
    _is_locked(server, manifest, read_lock(tmp_path / "f2llm.lock"))
    finished(start(server, "build", recipe, "-o", made, "--limit", 200, "-j", 2, "-q"))
    _is_built(manifest, made)
    found = json.loads(finished(checking)[0])
    assert (found["problems"], len(found["sources"]), found["online"]) == ([], 62, True)
    assert "sentence-transformers/paq: has 469,436 rows, and the manifest expects 64,371,441" in found["notes"]
    finished(start(server, "negatives", made, "-q", main="mining.cli"))
    wanted = {source.name: 1 if source.task == "classification" else 24 for source in manifest.sources}
    for name, count in wanted.items():
        negatives = tables.read_table(made / "mined" / name, "pairs", ["negatives"])["negatives"]
        assert len(negatives) > 10, name
        assert set(negatives.list.len()) == {count}, name
    finished(start(server, made, "--steps", 2, "-q", main="training.cli"))
    steps = [json.loads(line) for line in (made / "train" / "log.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert (made / "train" / "model" / "model.safetensors").exists()
    _is_published(server, manifest, made, wanted)


def _is_locked(server, manifest, entries):
    assert sorted(entries) == sorted(source.name for source in manifest.sources)
    for source in manifest.sources:
        revision = entries[source.name]["revision"]
        assert revision == server.storage.resolve("datasets", source.path, source.revision or "main")[1]["oid"]
        assert source.revision in (None, "refs/convert/parquet", revision)


def _is_built(manifest, made):
    summary = store.read_json(made / "build.json")
    assert list(summary["sources"]) == [source.name for source in manifest.sources]
    for source in manifest.sources:
        assert store.read_receipt(made / "curated" / source.name)["kept"] == COUNTS.get(source.name, 50), source.name
        golden = GOLDEN[source.name]["tuples"]
        tuples = tuples_of(made, source.name)
        if source.task == "clustering":
            assert {*without(tuples)} == {query for query, *_ in golden}
        else:
            texts = {
                (query, *map(tuple, map(without, lists))) for query, lists in zip(without(tuples), tuples.values(), strict=True)
            }
            assert texts == {(query, tuple(positives), tuple(negatives)) for query, positives, negatives, *_ in golden}, (
                source.name
            )
    found = tables.read_parquet(made / "contamination.parquet").filter(source="banking77", field="query", rule="equal")
    assert found["task"].to_list() == ["Banking77Classification"]
    assert ADDED.sub("", found["evidence"][0]) == "Where is my card?"
    assert summary["decontaminate"]["mode"] == "report"


def _is_published(server, manifest, made, wanted):
    _, errors = finished(start(server, "publish", made, "org/f2llm", "-q"))
    doubtful = [one.name for one in manifest.sources if not one.verified or class_of(one.license) == "unknown"]
    assert [line.split(": ")[1] for line in errors.splitlines() if line.startswith("left out: ")] == doubtful
    card = server.storage.files("org/f2llm")["README.md"].decode()
    assert all(f"- `{name}`: " in card for name in doubtful)
    published = [source.name for source in manifest.sources if source.name not in doubtful]
    assert len(published) == 17
    for name, rows in loaded(server, "org/f2llm", published).items():
        assert rows == expected(made, name, wanted[name])
