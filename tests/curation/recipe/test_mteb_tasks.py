"""mteb's tasks by name: resolved, read from a dataset in the task's layout, and complained of in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curation.build.build import build
from curation.clean import mteb_sets
from curation.clean.overlap_texts import CORPUS, DOCUMENT, QUERY, evaluation_texts
from curation.core.errors import UserError
from tests.curation.build.test_build import write_lines
from tests.curation.clean.test_decontaminate import ANSWER, EDITED, QUESTION, SHARED

SOURCE = "name: x\nsources:\n  - {name: a, files: a.jsonl, task: retrieval, fields: {query: q, positive: a}}\n"
CARD = """\
---
configs:
- config_name: default
  data_files: [{split: test, path: qrels.jsonl}]
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
---
"""


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A task whose dataset is a local folder in the layout of its own."""

    def place(name: str, **files) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "README.md").write_text(files.pop("card", ""))
        for stem, rows in files.items():
            write_lines(folder / f"{stem}.jsonl", rows)
        import mteb  # takes half a minute

        kind = type(mteb.get_task(name))
        where = {"path": str(folder), "revision": "main"}
        monkeypatch.setattr(kind, "metadata", kind.metadata.model_copy(update={"dataset": where}))

    return place


def scifact(local):
    local(
        "SciFact",
        card=CARD,
        queries=[{"_id": "1", "text": QUESTION}, {"_id": "2", "text": "in no qrels of this split at all"}],
        corpus=[{"_id": "7", "title": "Ljubljanica", "text": ANSWER}, {"_id": "8", "title": "", "text": SHARED}],
        qrels=[{"query-id": "1", "corpus-id": "7", "score": 1}],
    )


def test_a_retrieval_task(local, tmp_path):
    scifact(local)
    (one,) = mteb_sets.eval_sets(["SciFact"], tmp_path)
    rows = [row for frame in evaluation_texts(one, tmp_path) for row in frame.iter_rows()]
    assert rows == [
        ("SciFact", "1", QUERY, QUESTION),
        ("SciFact", "7", DOCUMENT, f"Ljubljanica\n{ANSWER}"),
        ("SciFact", "8", CORPUS, SHARED),
    ]


@pytest.mark.parametrize(
    ("name", "rows", "texts"),
    [
        ("STSBenchmark", [{"sentence1": "a dog", "sentence2": "a cat", "score": 1.0}], [(QUERY, "a dog"), (DOCUMENT, "a cat")]),
        ("Banking77Classification", [{"text": "my card", "label": 1}], [(QUERY, "my card")]),
        ("TwentyNewsgroupsClustering.v2", [{"sentences": "about hockey", "labels": 1}], [(QUERY, "about hockey")]),
        ("SprintDuplicateQuestions", [{"sentence1": ["one", "two"], "sentence2": ["three", "four"], "labels": [0, 1]}],
         [(QUERY, "one"), (QUERY, "two"), (DOCUMENT, "three"), (DOCUMENT, "four")]),
    ],
)  # fmt: skip
def test_other_tasks(local, tmp_path, name, rows, texts):
    local(name, test=rows)
    sets = mteb_sets.eval_sets([name], tmp_path)
    assert [row[2:] for one in sets for frame in evaluation_texts(one, tmp_path) for row in frame.iter_rows()] == texts


def test_a_build_against_a_task(local, tmp_path):
    scifact(local)
    write_lines(tmp_path / "a.jsonl", [{"q": EDITED, "a": "another river"}, {"q": "something else", "a": SHARED}])
    path = tmp_path / "m.yaml"
    path.write_text(SOURCE.replace("a.jsonl,", "a.jsonl, mteb: [NQ, HotpotQA],") + "decontaminate: {mteb: [SciFact]}\n")
    outcome = build(path, tmp_path / "out")
    assert not outcome.failed
    tasks = json.loads((tmp_path / "out" / "build.json").read_text())["decontaminate"]["tasks"]
    assert tasks == {"SciFact": {"a": {"query": 1, "positive": 0, "negative": 0, "corpus": 1}}}
    said = json.loads((tmp_path / "out" / "mteb_training_datasets.json").read_text())
    assert said == {"training_datasets": ["HotpotQA", "NQ"], "sources": {"a": ["HotpotQA", "NQ"]}}
    path.write_text(SOURCE)
    build(path, tmp_path / "out")
    assert not Path(tmp_path / "out" / "mteb_training_datasets.json").exists()


def test_a_benchmark_stands_for_its_tasks():
    names = [task.metadata.name for task in mteb_sets.tasks_of(["MTEB(eng, v2)"]).values()]
    assert len(names) == 41
    assert {"ArguAna", "STSBenchmark"} <= set(names)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("[SciFakt]", "decontaminate: mteb: no task or benchmark 'SciFakt' (did you mean 'SciFact'?)"),
        ("['MTEB(eng, v3)']", "decontaminate: mteb: no task or benchmark 'MTEB(eng, v3)' (did you mean 'MTEB(eng, v2)'?)"),
        (
            "[SciFact]",
            "mteb/scifact: cannot be downloaded while the Hub is switched off; unset HF_HUB_OFFLINE, or name a local folder",
        ),
    ],
)
def test_what_cannot_be_had(tmp_path, names, line):
    write_lines(tmp_path / "a.jsonl", [{"q": "who", "a": "me"}])
    path = tmp_path / "m.yaml"
    path.write_text(SOURCE + f"decontaminate: {{mteb: {names}}}\n")
    with pytest.raises(UserError) as caught:
        build(path, tmp_path / "out")
    assert str(caught.value) == line


SCORED_ON_TRAIN = """  # as F2LLM's authors list them, https://github.com/embeddings-benchmark/results/pull/492 (2026-06-16), up to NanoFEVER
    BibleNLPBitextMining NollySentiBitextMining NusaTranslationBitextMining NusaXBitextMining SIB200Classification
    CodeEditSearchRetrieval DanFeverRetrieval TwitterHjerneRetrieval ChemHotpotQARetrieval NanoArguAnaRetrieval
    NanoClimateFeverRetrieval NanoDBPediaRetrieval NanoFEVERRetrieval
""".partition("\n")[2].split()


def test_tasks_that_are_scored_on_a_train_split():
    tasks = mteb_sets.tasks_of(["scored-on-train"])
    assert set(SCORED_ON_TRAIN) <= set(tasks)
    assert all("train" in split for task in tasks.values() for split in task.eval_splits if len(task.eval_splits) == 1)
    assert mteb_sets.unreadable(["scored-on-train"], tasks) == ["BibleNLPBitextMining"]


def test_a_board_is_compared_without_the_tasks_that_cannot_be_read(local, tmp_path):
    """Pairs of sentences are read; a task that brings its own loader is left out of its board, and an error by its own name."""
    rows = [{"sentence1": "det er en dag", "sentence2": "it is a day"}]
    local("BornholmBitextMining", test=rows)
    (one,) = mteb_sets.eval_sets(["BornholmBitextMining"], tmp_path)
    assert [row[2:] for frame in evaluation_texts(one, tmp_path) for row in frame.iter_rows()] == [
        (QUERY, "det er en dag"),
        (DOCUMENT, "it is a day"),
    ]
    names = ["MTEB(Multilingual, v2)"]
    out = mteb_sets.unreadable(names, mteb_sets.tasks_of(names))
    assert out == ["BibleNLPBitextMining", "FloresBitextMining", "IN22GenBitextMining", "NTREXBitextMining"]
    with pytest.raises(UserError, match="'NTREXBitextMining' has a type that cannot be read"):
        mteb_sets.eval_sets(["NTREXBitextMining"], tmp_path)
