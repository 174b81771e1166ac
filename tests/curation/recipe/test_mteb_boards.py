"""Which tasks of MTEB's boards are zero-shot for a build: what sources say, what they read, and what was found in their texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate
from curation.core import store
from curation.recipe.manifest import load_manifest
from curation.recipe.mteb_boards import Board, boards_of, zero_shot
from curation.recipe.source import Source
from curation.share.publish import plan
from tests.curation.build.test_build import write_lines
from tests.curation.clean.test_decontaminate import ANSWER, QUESTION

MANIFEST = """\
name: x
licenses: all
decontaminate:
  mode: {mode}
  against: [{{name: SciFact, files: scifact.jsonl, fields: {{query: q, positive: a}}}}]
sources:
  - {{name: clean, files: clean.jsonl, task: retrieval, license: mit, mteb: [], fields: {{query: q, positive: a}}}}
  - {{name: planted, files: planted.jsonl, task: retrieval, license: mit, mteb: [], fields: {{query: q, positive: a}}}}
  - {{name: hotpot, files: hotpot.jsonl, task: retrieval, license: mit, mteb: [HotpotQA], fields: {{query: q, positive: a}}}}
"""


def built(folder: Path, text: str) -> Path:
    """Build the manifest with a source that holds a question of an evaluation set."""
    rows = {
        name: [{"q": f"what does the {name} number {n} hold", "a": f"the {name} answer {n}"} for n in range(4)]
        for name in ("clean", "planted", "hotpot")
    }
    rows["planted"].append({"q": QUESTION, "a": "it does, as everybody knows"})
    rows["scifact"] = [{"q": QUESTION, "a": ANSWER}]
    for name, some in rows.items():
        write_lines(folder / f"{name}.jsonl", some)
    (folder / "m.yaml").write_text(text)
    assert not build(folder / "m.yaml", folder / "b").failed
    return folder / "b"


def board(boards: list[Board], name: str) -> Board:
    (found,) = (one for one in boards if one.name == name)
    return found


@pytest.mark.parametrize("mode", ["report", "drop"])
def test_a_planted_source_is_named(tmp_path: Path, mode: str) -> None:
    made = built(tmp_path, MANIFEST.format(mode=mode))
    boards = zero_shot(made, ["clean", "planted", "hotpot"])
    beir = board(boards, "BEIR")
    found = {"SciFact": ["planted: 1 texts"]}
    assert beir.trained_on == {"HotpotQA": ["hotpot"], **(found if mode == "report" else {})}
    assert beir.removed == (found if mode == "drop" else {})
    assert (beir.compared, beir.unknown) == (["SciFact"], [])
    assert len(beir.zero_shot) == 15 - len(beir.trained_on)
    assert board(boards, "MTEB(eng, v2)").trained_on == {"HotpotQAHardNegatives": ["hotpot"]}  # the same data, as mteb sees it
    assert board(zero_shot(made, ["clean"]), "BEIR").zero_shot == [*sorted({*beir.zero_shot, *beir.trained_on})]

    line = ["BEIR", f"{len(beir.zero_shot)} of 15", "SciFact (planted: 1 texts)"]
    page = (made / "report.html").read_text()
    section = page[page.index('<section id="boards">') :].partition("</section>")[0]
    table = CliRunner().invoke(curate, ["stats", str(made)]).stdout
    card = plan(made, "org/x", need_lock=False).card
    for text in (section, table, card[card.index("## MTEB") :]):
        assert all(word in text.replace("\\", "") for word in line)
        assert "mteb 2." in text


@pytest.mark.filterwarnings("ignore")  # what mteb loads
def test_a_model_and_its_evaluation_say_it_too(tmp_path: Path) -> None:
    """Only the sources that a run was trained on count."""
    from tests.training.tiny_models import tiny_folder
    from training.model.export import export
    from training.model.load import load_model
    from training.mteb import zero_shot_line
    from training.publish import plan_upload

    made = built(tmp_path, MANIFEST.format(mode="report"))
    export(load_model(str(tiny_folder("bert", tmp_path / "base")), device="cpu"), made / "train" / "model")
    trained_on = {name: {"task": "retrieval", "tuples": 4} for name in ("clean", "planted")}
    store.write_json(made / "train" / store.RECEIPT, {"recipe": {"model": "org/base"}, "steps": 1, "trained_on": trained_on})
    card = plan_upload(made / "train", "org/model", "mit").card
    section = card[card.index("## MTEB") :].replace("\\", "")
    assert "| BEIR | 14 of 15 | 1 | SciFact (planted: 1 texts) |" in section
    assert "hotpot" not in section
    assert zero_shot_line(made / "train" / "model", ["SciFact", "HotpotQA"]) == (
        "1 of 2 tasks are zero-shot for its sources; 1 were compared; not zero-shot: SciFact (planted: 1 texts)"
    )
    assert zero_shot_line(tmp_path / "base", ["SciFact"]) == ""


def test_what_is_unknown_is_not_called_zero_shot(tmp_path: Path) -> None:
    text = MANIFEST.format(mode="drop").replace("mteb: [], ", "")
    beir = board(zero_shot(built(tmp_path, text), ["clean", "planted", "hotpot"]), "BEIR")
    assert (beir.zero_shot, list(beir.trained_on), len(beir.unknown)) == (["SciFact"], ["HotpotQA"], 13)


def test_of_sources_that_say_nothing_nothing_is_known(tmp_path: Path) -> None:
    text = MANIFEST.format(mode="drop").replace("mteb: [], ", "").replace("mteb: [HotpotQA], ", "")
    head, _, rest = text.partition("decontaminate:")
    made = built(tmp_path, head + rest[rest.index("sources:") :])
    assert zero_shot(made, ["clean", "planted", "hotpot"]) == []
    assert 'id="boards"' not in (made / "report.html").read_text()


def test_a_source_that_reads_a_tasks_dataset_is_its_data() -> None:
    keys = {"name": "s", "task": "retrieval", "mteb": [], "fields": {"query": "q", "positive": "p"}}
    boards = boards_of([Source.model_validate({**keys, "path": "mteb/nfcorpus"})], [], {}, "drop")
    assert board(boards, "BEIR").trained_on == {"NFCorpus": ["s"]}


def test_the_judgement_is_mtebs_own() -> None:
    """For each board, a task is not zero-shot exactly if mteb says so of a model with these training datasets."""
    import mteb

    names = ["HotpotQA", "NQ", "AmazonCounterfactualClassification", "STSBenchmark"]
    keys = {"name": "s", "files": "x", "task": "retrieval", "mteb": names, "fields": {"query": "q", "positive": "p"}}
    meta = mteb.models.ModelMeta.create_empty({"name": "org/x", "revision": "1"}).model_copy(
        update={"training_datasets": set(names)}
    )
    for one in boards_of([Source.model_validate(keys)], [], {}, "drop"):
        tasks = [*one.zero_shot, *one.trained_on]
        assert set(one.trained_on) == {task for task in tasks if not meta.is_zero_shot_on([task])}


def test_f2llms_manifest_says_what_its_authors_say() -> None:
    """mteb's metadata of F2LLM-0.6B names the same tasks of each English board; two more are the data of sources of ours."""
    import mteb

    theirs = mteb.get_model_meta("codefuse-ai/F2LLM-0.6B", fetch_from_hf=False)
    sources = load_manifest(Path(__file__).parents[3] / "manifests" / "f2llm.yaml").sources
    boards = boards_of(sources, [], {}, "drop")
    for name, more in (("MTEB(eng, v1)", {"AmazonReviewsClassification", "QuoraRetrieval"}), ("MTEB(eng, v2)", set())):
        one = board(boards, name)
        tasks = [*one.zero_shot, *one.trained_on]
        assert not one.unknown
        assert set(one.trained_on) == {task for task in tasks if not theirs.is_zero_shot_on([task])} | more


def test_the_recorded_boards_are_those_of_their_version() -> None:
    import mteb

    from curation.recipe.mteb_boards import BOARDS_FILE
    from tests.mteb_boards import recorded

    table = json.loads(BOARDS_FILE.read_text())
    assert {"BEIR", "MTEB(eng, v2)", "MTEB(Multilingual, v2)", "NanoBEIR"} <= table["boards"].keys()
    assert sorted({task for tasks in table["boards"].values() for task in tasks}) == list(table["datasets"])
    if table["source"] == f"mteb {mteb.__version__}":
        assert table == recorded()
