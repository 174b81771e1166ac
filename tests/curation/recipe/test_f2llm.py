"""The manifests of F2LLM's sources: each maps the columns that its source documents, and the sums are the paper's.

The rows in f2llm_golden.json are made up, in the columns of each source, and the tuples beside them were written by hand.
"""

from __future__ import annotations

import fnmatch
import gzip
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation.build.check import check
from curation.cli import curate
from curation.read.sources import table_rows, take
from curation.recipe.licenses import class_of
from curation.recipe.manifest import load_manifest, load_recipe
from curation.recipe.source import Source, shape_of
from curation.shape.shapes import to_tuples
from tests.end_to_end.f2llm_repos import FACTS

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
GOLDEN = json.loads((Path(__file__).parent / "f2llm_golden.json").read_text())
F2LLM = load_manifest(MANIFESTS / "f2llm.yaml")
CATEGORIES = {"retrieval": 38, "clustering": 19, "classification": 5}


def lines(path: Path, rows: list) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)


def local(source: Source, golden: dict, folder: Path) -> Source:
    """Return the source with its rows in files here: under the dataset's own names where the manifest names files."""
    if source.files:
        for name, rows in golden["files"].items():
            lines(folder / name, rows)
        return source.model_copy(update={"path": str(folder), "skip": 0})
    if any("." in name for name in source.join):  # parts of records, which our own reader leaves as JSON
        (folder / "set").mkdir()
        lines(folder / "set" / "train.jsonl", golden["rows"])
        return source.model_copy(update={"path": str(folder / "set"), "config": None, "revision": None})
    lines(folder / "rows.jsonl", golden["rows"])
    here = {"path": None, "config": None, "revision": None, "files": [str(folder / "rows.jsonl")], "skip": 0}
    for part in ("corpus", "queries"):
        if part in golden:
            lines(folder / f"{part}.jsonl", golden[part])
            where = {"path": None, "config": None, "files": [str(folder / f"{part}.jsonl")]}
            here[part] = getattr(source, part).model_copy(update=where)
    return source.model_copy(update=here)


@pytest.mark.parametrize("source", F2LLM.sources, ids=lambda source: source.name)
def test_each_source_maps_the_columns_that_it_documents(source, tmp_path):
    golden = GOLDEN[source.name]
    here = local(source, golden, tmp_path)
    rows, lost = take(here, 1, None, tmp_path, lambda n: None)
    assert not lost
    tables = {part: next(table_rows(getattr(here, part), tmp_path)).frame for part in ("corpus", "queries") if part in golden}
    made = to_tuples(here, rows, 1, **tables).tuples
    labels = shape_of(source) == "labelled"
    columns = ["query", "positives", "negatives", *(["label"] if labels else [])]
    assert [list(row) for row in made.select(columns).iter_rows()] == golden["tuples"]


def test_ids_configs_splits_revisions_and_columns_are_those_that_were_seen():
    facts = {(fact["source"], fact["part"]): fact for fact in FACTS}
    for source in F2LLM.sources:
        parts = {part: getattr(source, part) for part in ("corpus", "queries") if getattr(source, part)}
        for part, table in {"": source, **parts}.items():
            fact = facts[source.name, part]
            assert (table.path, table.config or "", table.split) == (fact["id"], fact["config"], fact["split"])
            assert (table.revision or "") in (fact["revision"], ""), source.name
        if source.name != "eli5":  # lines of lists, whose columns its reader names
            mapped = [name for name in source.fields.model_dump(exclude={"negatives"}).values() if name] + source.fields.negatives
            known = f"{facts[source.name, '']['texts']} {facts[source.name, '']['others']}".split()
            assert {name.partition(".")[0] for name in mapped} <= {*known, source.file_column}, source.name
        assert source.verified == all(facts[source.name, part]["seen"] for part in ("", *parts)), source.name
    seen = {(fact["id"], fact["config"], fact["split"], fact["revision"]) for fact in FACTS if fact["source"] not in GOLDEN}
    for one in F2LLM.decontaminate.against:
        for table in (one, one.corpus, one.queries):
            assert table is None or (table.path, table.config or "", table.split, table.revision) in seen


def test_no_source_is_missing():
    assert list(GOLDEN) == [source.name for source in F2LLM.sources]
    counts = {task: sum(source.task == task for source in F2LLM.sources) for task in CATEGORIES}
    assert counts == CATEGORIES


def test_the_halves_of_a_dataset_share_no_row():
    of = {source.name: source for source in F2LLM.sources}
    assert of["paq_part2"].skip == of["paq"].limit
    assert of["reddit_clustering_s2s"].skip == of["reddit_clustering_p2p"].limit
    for name in ("3dprinting", "academia", "mathoverflow.net", "stackoverflow.com-Posts", "zh.wikipedia"):
        parts = [
            any(fnmatch.fnmatch(f"{name}.jsonl.gz", one) for one in of[half].files)
            for half in ("stackexchange", "stackexchange_part2")
        ]
        assert sorted(parts) == [False, True]


def test_every_source_stays_clear_of_its_own_scored_split():
    against = {one.path: one for one in F2LLM.decontaminate.against}
    assert len(against) == len(F2LLM.decontaminate.against)
    for source in F2LLM.sources:
        if source.path.startswith("mteb/") and source.path in against:
            assert (source.split, source.revision) == ("train", against[source.path].revision)
            assert against[source.path].split != "train"
        elif source.path.startswith("mteb/raw_"):
            assert source.path.replace("raw_", "") + "-clustering-p2p" in against


def test_doubts_and_substitutes_are_reported():
    of = {source.name: source for source in F2LLM.sources}
    for name in ("eli5", "amazon_reviews", "bioasq", "coliee"):
        assert of[name].substitute_for
    assert all(source.notes for source in F2LLM.sources if not source.verified)
    for source in F2LLM.sources:
        assert (source.license is None) == (source.license_url is None) == (source.license_checked is None), source.name
        assert source.license or "No licence was seen" in (source.notes or ""), source.name
        assert not source.path.startswith("mteb/") or "clustering" not in source.path, f"{source.name} is the scored split"
    assert class_of(of["snli"].license) == "share-alike"
    assert class_of(of["msmarco"].license) == "non-commercial"


def test_the_check_passes_and_its_sums_are_near_the_papers():
    found = check(MANIFESTS / "f2llm.yaml")
    assert found["problems"] == []
    for task, aim in (("retrieval", 4918949), ("classification", 193038), ("clustering", 822001)):
        one = found["tasks"][task]
        assert (one["sources"], one["aim"], one["unknown"]) == (CATEGORIES[task], aim, [])
        assert 0.97 * aim < one["expected"] < 1.01 * aim
    done = CliRunner().invoke(curate, ["check", str(MANIFESTS / "f2llm.yaml")])
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_clean_one_takes_known_licences_only():
    clean = load_manifest(MANIFESTS / "f2llm-clean.yaml")
    assert clean.sources == F2LLM.sources
    assert (F2LLM.decontaminate.mode, clean.decontaminate.mode) == ("report", "strict")
    assert clean.decontaminate.mteb == ["MTEB(eng, v1)", "MTEB(eng, v2)"]
    found = check(MANIFESTS / "f2llm-clean.yaml")
    assert found["problems"] == []
    assert set(found["licenses"]) == {"permissive", "share-alike"}
    assert len(found["sources"]) + len(found["excluded"]) == 62
    assert "non-commercial" in found["excluded"]["msmarco"]
    assert "ArguAna" in found["excluded"]["arguana"]


def test_the_clean_one_is_clear_of_all_that_the_other_reports():
    from curation.clean.mteb_sets import RETRIEVAL, _columns, tasks_of

    tasks = tasks_of(load_manifest(MANIFESTS / "f2llm-clean.yaml").decontaminate.mteb)
    read = {
        (task.metadata.dataset["path"], task.metadata.dataset["revision"], split)
        for task in tasks.values()
        for split in task.eval_splits
    }
    assert {(one.path, one.revision, one.split) for one in F2LLM.decontaminate.against} <= read
    for task in tasks.values():
        assert task.metadata.type in RETRIEVAL or _columns(task)
    notes = check(MANIFESTS / "f2llm-clean.yaml")["notes"]
    assert f"decontaminate: mteb: {len(tasks)} tasks of the installed mteb" in notes


def test_the_check_says_what_it_skips_without_mteb(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    found = check(MANIFESTS / "f2llm-clean.yaml")
    assert found["problems"] == []
    (note,) = (note for note in found["notes"] if "mteb" in note)
    assert note == (
        "decontaminate: mteb: mteb is not installed; `pip install 'tuplesmith[mteb]'`, or name the sets in `against`; "
        "its tasks were not checked, and a build needs them"
    )


def test_the_recipes_of_the_second_version_are_those_of_its_table():
    table = {  # arXiv 2603.19223, table 1: learning rate, epochs, teacher; whether the size has a first stage
        "80m": (4e-5, 4, "0.6B", False),
        "160m": (3e-5, 3, "0.6B", False),
        "330m": (2e-5, 3, "0.6B", False),
        "0.6b": (1e-5, 2, "1.7B", True),
        "1.7b": (9e-6, 2, "4B", True),
        "4b": (7e-6, 2, None, True),
        "8b": (6e-6, 2, None, True),
        "14b": (5e-6, 2, None, True),
    }
    stages = [1 + both for *_, both in table.values()]
    assert len(list((MANIFESTS / "train").glob("f2llm-v2-*.yaml"))) == sum(stages)
    for size, (lr, epochs, teacher, both) in table.items():
        for ending in ("", "-stage1") if both else ("",):
            recipe = load_recipe(MANIFESTS / "train" / f"f2llm-v2-{size}{ending}.yaml")
            assert (recipe.lr, recipe.epochs, recipe.batch, recipe.matryoshka[:2]) == (lr, epochs, 512, [8, 16])
            assert recipe.prompt == ("none" if ending else "instruct")
            named = recipe.distill_vectors and recipe.distill_vectors.model
            assert named == (f"codefuse-ai/F2LLM-v2-{teacher}" if teacher and not ending else None)
