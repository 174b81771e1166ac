"""MTEB through mteb: a local folder scores as `train evaluate` scores it, and what goes wrong is one line."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from test_evaluate import write_folder
from test_train_cli import ENVIRONMENT
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import MINILM

from curation.build.build import build
from curation.core import store
from curation.core.errors import SourceError
from curation.recipe.settings import Train
from curation.share.export import export
from training.cli import train_command
from training.collection import evaluation_sets, nano_instruction
from training.model.encode import load_encoder
from training.train import train as train_model

pytestmark = [
    pytest.mark.long,  # mteb alone takes half a minute to import
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # what mteb and what it loads do is theirs
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def call(*args):
    return CliRunner().invoke(train_command, [str(arg) for arg in args], prog_name="train", catch_exceptions=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "held").mkdir()
    write_folder(tmp_path / "held")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_scores_as_evaluate_scores_it_and_models_are_compared(place):
    plain = json.loads(call("evaluate", MINILM, "--data", "held", "--json", "-q").stdout)
    result = call("evaluate", MINILM, "--mteb", "held", "-o", "results", "--json")
    assert result.exit_code == 0, result.exception
    (found,) = json.loads(result.stdout).values()
    ((name, score),) = found["tasks"].items()
    assert name.startswith("held-")
    assert score == pytest.approx(plain["ndcg@10"], abs=1e-6)
    assert found["prompts"] == {name: {"query": "", "passage": ""}}
    assert f"{MINILM}, {name}: prompts query: none, passage: none\n" in result.stderr
    assert 0 < score < 1
    assert found["means"] == {"Retrieval": score}
    assert found["mean"] == score
    (written,) = (place / "results").rglob(f"{name}.json")
    assert written.parts[-3] == MINILM.replace(":", "__")  # ORG__NAME, as mteb has it
    kept = json.loads(written.read_text())
    assert kept["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(score, abs=1e-6)  # mteb writes six digits
    before = written.stat().st_mtime_ns
    again = call("evaluate", MINILM, "--mteb", "held", "-o", "results")
    assert written.stat().st_mtime_ns == before  # what is there is not computed again
    assert [line.split() for line in again.stdout.splitlines()] == [
        [MINILM], [name, f"{score:.4f}"], ["mean", "of", "Retrieval", f"{score:.4f}"], ["mean", f"{score:.4f}"]
    ]  # fmt: skip


def test_an_export_is_a_task(place):
    """What `curate export --format beir` writes, mteb evaluates, and with our own score."""
    rows = [
        {"q": f"what is {word}?", "a": f"it is said of {word} that it is {word}"} for word in ("an oak", "rain", "a kite", "tin")
    ]
    (place / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = "{query: q, positive: a}"
    (place / "m.yaml").write_text(f"name: m\nsources: [{{name: faq, files: faq.jsonl, task: retrieval, fields: {fields}}}]\n")
    build(place / "m.yaml", place / "b")
    export(place / "b", place / "out", "beir")
    folder = str(place / "out/data/faq")
    plain = json.loads(call("evaluate", MINILM, "--data", folder, "--split", "train", "--json", "-q").stdout)
    result = call("evaluate", MINILM, "--mteb", folder, "--split", "train", "--json")
    assert result.exit_code == 0, result.exception
    (found,) = json.loads(result.stdout).values()
    assert list(found["tasks"].values()) == [pytest.approx(plain["ndcg@10"], abs=1e-6)]


def test_a_query_gets_its_task_and_a_document_nothing():
    import mteb
    from mteb.types import PromptType

    from training.mteb import MtebEncoder

    encoder, read = load_encoder(MINILM, prompt="instruct"), []
    encoder.encode = lambda texts, unit: read.extend(texts)
    batches = [{"text": ["a"]}, {"text": ["b"]}]
    for task, kind in (
        ("SciFact", PromptType.query),
        ("SciFact", PromptType.document),
        ("STS12", None),
        ("ArguAna", PromptType.query),
    ):
        MtebEncoder("x/y", encoder, "").encode(batches, task_metadata=mteb.get_task(task).metadata, prompt_type=kind)
    MtebEncoder("x/y", encoder, "Mine").encode(batches[:1], task_metadata=mteb.get_task("STS12").metadata)
    assert read == [
        "Instruct: Given a scientific claim, retrieve documents that support or refute the claim\nQuery: a",  # the task's
        "Instruct: Given a scientific claim, retrieve documents that support or refute the claim\nQuery: b",
        "a",
        "b",
        "Instruct: Retrieve semantically similar text.\nQuery: a",  # F2LLM's
        "Instruct: Retrieve semantically similar text.\nQuery: b",
        "Instruct: Given a claim, find documents that refute the claim.\nQuery: a",
        "Instruct: Given a claim, find documents that refute the claim.\nQuery: b",
        "Instruct: Mine\nQuery: a",
    ]


def test_a_folder_of_any_grades_scores_as_evaluate_scores_it(place):
    """Ties, several positives, fractions and what trec_eval makes of them: test_one_protocol_of_evaluation.py has it of `train evaluate`."""
    from test_one_protocol_of_evaluation import FOLDERS, folder_of

    from training.evaluate import evaluate
    from training.mteb import evaluate_tasks, tasks_of

    encoder = load_encoder(tiny_model(place / "bert"), device="cpu")
    fractions = {"fractions": ([("q0", "d0", 0.5), ("q0", "d1", 1.5), ("q1", "d2", 0.3)], None, None)}
    for number, files in enumerate((FOLDERS | fractions).values()):
        folder = folder_of(place / f"f{number}", *files)
        (found,) = evaluate_tasks("local/x", encoder, tasks_of([str(folder)]), place / "out")["tasks"].values()
        assert found == pytest.approx(evaluate(encoder, folder)["ndcg@10"], abs=1e-9)


PROMPTS = {
    "query and passage": ({"query": "query: ", "document": "passage: "}, None),
    "by kind of task": ({"query": "q: ", "document": "", "STS": "sts: ", "Retrieval-document": "doc: "}, None),
    "by task": ({"query": "q: ", "document": "d: ", "SciFact": "fact: ", "Banking77Classification": "bank: "}, None),
    "a default": ({"query": "q: ", "document": "d: ", "plain": "plain: "}, "plain"),
    "a default alone": ({"plain": "plain: "}, "plain"),
    "names of nothing": ({"search_query": "q: "}, None),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_a_model_go_where_mteb_puts_them_for_sentence_transformers(name, place):
    import mteb
    import numpy as np
    from datasets import Dataset
    from mteb.types import PromptType
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

    from training.model.export import export
    from training.model.load import load_model
    from training.mteb import MtebEncoder

    model = load_model(tiny_model(place / "bert"), device="cpu")
    prompts, default = PROMPTS[name]
    export(model, place / "m")
    (place / "m" / store.RECEIPT).unlink(missing_ok=True)  # what is edited is no longer what was written
    path = place / "m/config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts, "default_prompt_name": default}))
    for modules in (3, 2):  # with and without Normalize
        listing = json.loads((place / "m/modules.json").read_text())
        (place / "m/modules.json").write_text(json.dumps(listing[:modules]))
        theirs = mteb.models.SentenceTransformerEncoderWrapper(SentenceTransformer(str(place / "m"), device="cpu"))
        ours = MtebEncoder("a/b", load_encoder(str(place / "m"), device="cpu"), "")
        texts = DataLoader(Dataset.from_dict({"text": ["one file", "two"]}), batch_size=2)
        for task, kinds in (
            ("SciFact", (PromptType.query, PromptType.document)),
            ("STS12", (None,)),
            ("Banking77Classification", (None,)),
        ):
            about = mteb.get_task(task).metadata
            for kind in kinds:
                options = {"hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
                wanted = theirs.encode(texts, task_metadata=about, prompt_type=kind, **options)
                found = ours.encode(texts, task_metadata=about, prompt_type=kind)
                assert np.abs(np.asarray(wanted) - found).max() < 1e-5, (task, kind)


def test_a_benchmark_is_its_tasks_and_an_unknown_name_is_reported():
    from training.mteb import tasks_of

    tasks = tasks_of(["MTEB(eng, v2)", "STS12"])
    assert len(tasks) == 41
    for name, near in (("SciFactt", "SciFact"), ("MTEB(eng,v2)", "MTEB(eng, v2)")):
        with pytest.raises(SourceError) as error:
            tasks_of([name])
        assert str(error.value) == f"--mteb: '{name}' is not a task, a benchmark or a folder (did you mean '{near}'?)"


def test_data_that_cannot_be_had_is_reported(place):
    code = "from training.cli import main; main()"
    line = [sys.executable, "-c", code, "evaluate", MINILM, "--mteb", "SciFact", "-q"]
    offline = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hf")}
    done = subprocess.run(line, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("train: mteb task SciFact: its data cannot be loaded (")
    assert done.stderr.endswith("); is the network available, and HF_HUB_OFFLINE unset?\n")
    assert done.stderr.count("\n") == 1


def test_without_mteb_it_says_what_to_install(place):
    code = "import sys; sys.modules['mteb'] = None\nfrom training.cli import main; main()"
    line = [sys.executable, "-c", code, "evaluate", MINILM, "--mteb", "SciFact"]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("train: mteb: cannot be used (")
    assert done.stderr.endswith("); pip install 'tuplesmith[mteb]'\n")


def test_one_of_the_two_ways_has_to_be_chosen(place):
    for args in (["m"], ["m", "--data", "held", "--mteb", "STS12"]):
        result = call("evaluate", *args)
        assert result.exit_code == 2
        assert result.stderr.endswith("Give either '--data' or '--mteb'.\n")


def test_of_a_runs_model_it_drafts_the_metadata_that_mteb_validates(place):
    from mteb.models import ModelMeta

    build = write_build(place / "b", {"pairs": retrieval(16), "more": retrieval(8, salt=1), "left": retrieval(8, salt=2)})
    of_source = {"pairs": ["NQ", "HotpotQA"], "left": ["MSMARCO"]}
    store.write_json(build / "mteb_training_datasets.json", {"training_datasets": [], "sources": of_source})
    for kind, loader in (("bert", "SentenceTransformerEncoderWrapper"), ("qwen3", "InstructSentenceTransformerModel")):
        recipe = {
            "model": tiny_model(place / kind, kind),
            "max_tokens": 32,
            "batch": 8,
            "negatives": 1,
            "steps": 1,
            "matryoshka": [16],
        }
        train_model(build, Train(**recipe), out=build / kind, device="cpu", only=["pairs", "more"])
        result = call("evaluate", build / kind / "model", "--mteb", "held", "-o", "results", "--prompt", "auto")
        (draft,) = [line for line in result.stderr.splitlines() if line.startswith("draft of mteb's metadata: ")]
        namespace = runpy.run_path(draft.removeprefix("draft of mteb's metadata: "))
        meta = ModelMeta.model_validate(namespace["model"].model_dump())
        assert meta.training_datasets == {"NQ", "HotpotQA"}  # of the sources it was trained on
        assert meta.loader.__name__ == loader
        assert meta.embed_dim == [16, 32]
        assert meta.max_tokens == 32
        assert meta.n_parameters == sum(value.numel() for value in load_file(build / kind / "model/model.safetensors").values())
        assert meta.n_embedding_parameters > 900_000
        assert meta.use_instructions == (kind == "qwen3")
        text = (place / draft.removeprefix("draft of mteb's metadata: ")).read_text()
        assert "# perhaps also tasks of more: the manifest has no `mteb:` for them" in text
        assert str(place) not in text
    assert meta.loader_kwargs["instruction_template"] == "Instruct: {instruction}\nQuery: "


def test_a_copy_of_each_nano_task_of_mteb_is_found_by_its_name_and_read_as_mteb_reads_it(tmp_path, monkeypatch):
    """The layout is the one that mteb's tasks declare and that its own loader reads: three configs, the split `train`."""
    import mteb
    import polars as pl
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    tasks = list(mteb.get_benchmark("NanoBEIR").tasks)
    assert len(tasks) == 13
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    frames = {
        "corpus": pl.DataFrame({"id": ["d1", "d2"], "title": ["Paris", None], "text": ["is a city", "a cat sat"]}),
        "queries": pl.DataFrame({"id": ["q2", "q1"], "text": ["what sat?", "which city?"]}),
        "qrels": pl.DataFrame({"query-id": ["q1", "q2"], "corpus-id": ["d1", "d2"], "score": [2, 1]}),
    }
    configs = [{"config_name": kind, "data_files": [{"split": "train", "path": f"{kind}/train-*"}]} for kind in frames]
    for task in tasks:
        name, described = task.metadata.name, task.metadata.dataset
        assert described["path"] == f"mteb/{name}"
        assert (described.get("name"), task.metadata.eval_splits) == (None, ["train"])
        assert nano_instruction(name)
        place = tmp_path / f"datasets--mteb--{name}"
        snapshot = place / "snapshots" / described["revision"]
        for kind, frame in frames.items():
            (snapshot / kind).mkdir(parents=True)
            frame.write_parquet(snapshot / kind / "train-00000-of-00001.parquet")
        (snapshot / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
        (place / "refs").mkdir()
        (place / "refs/main").write_text(described["revision"])
        (found,) = evaluation_sets([name])
        assert (found.name, found.split) == (name, "train")
        ours = found.read()
        theirs = RetrievalDatasetLoader(str(snapshot), None, split="train").load()
        assert dict(zip(ours.query_ids, ours.queries, strict=True)) == dict(
            zip(theirs["queries"]["id"], theirs["queries"]["text"], strict=True)
        )
        assert ours.passage_ids == sorted(theirs["corpus"]["id"], reverse=True)
        judged = {
            query: {ours.passage_ids[row]: grade for row, grade in grades.items()}
            for query, grades in zip(ours.query_ids, ours.relevant, strict=True)
        }
        assert judged == theirs["relevant_docs"]
