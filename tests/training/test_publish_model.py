"""A trained model on a Hub of our own: the folder as it is, with its card, and the same vectors when loaded from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from curation.core import store
from curation.core.card import card_problems, head_of
from curation.core.errors import BuildError, ModelError
from tests.servers.hub_server import hub
from tests.training.tiny_models import tiny_folder
from training.model.export import export
from training.model.load import load_model
from training.publish import plan_upload, record_scores

RECEIPT = {
    "recipe": {"model": "org/base", "batch": 8},
    "steps": 12,
    "trained_on": {"faq": {"task": "retrieval", "tuples": 1234}, "tone": {"task": "classification", "tuples": 5}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder below a build, as `train` leaves it."""
    build = tmp_path_factory.mktemp("model") / "small"
    base = tiny_folder("qwen3", build.parent / "base")
    (build / "train").mkdir(parents=True)
    model = load_model(str(base), pooling="last", max_tokens=64, device="cpu")
    model.prompts = {"query": "Query: "}
    export(model, build / "train/model")
    store.write_json(build / "train" / store.RECEIPT, RECEIPT)
    store.write_json(build / "build.json", {"sources": {"faq": {"license": "mit"}, "tone": {"license": ""}}})
    return build / "train"


def test_the_card_names_use_data_and_recipe(run):
    made = plan_upload(run, "org/small", "apache-2.0", ("org/data",))
    head = head_of(made.card)
    assert list(card_problems(made.card)) == []
    assert (head["license"], head["base_model"], head["datasets"]) == ("apache-2.0", "org/base", ["org/data"])
    assert "32 dimensions, lasttoken pooling" in made.card
    assert 'model.encode(["how do I find empty files?"], prompt_name="query")' in made.card
    assert '| `query` | `"Query: "` |' in made.card
    assert "| `faq` | retrieval | 1,234 | mit |\n| `tone` | classification | 5 | not named |" in made.card
    assert "for 12 steps from `org/base`" in made.card
    assert "held-out queries" not in made.card
    files = {path.relative_to(run / "model").as_posix() for path in (run / "model").rglob("*") if path.is_file()}
    assert made.pieces.keys() == files | {"README.md", "provenance.json"}
    assert json.loads(made.pieces["provenance.json"].content)["run"]["trained_on"]["faq"]["license"] == "mit"


def test_the_card_names_the_score_of_the_model_that_is_written(run, tmp_path):
    (tmp_path / "train/model/1_Pooling").mkdir(parents=True)
    for name in ("modules.json", "config.json", "model.safetensors", "sentence_bert_config.json", "1_Pooling/config.json"):
        (tmp_path / "train/model" / name).write_bytes((run / "model" / name).read_bytes())
    about = store.read_json(run / "model/config_sentence_transformers.json")
    prompts = {"faq": "Instruct: Find the answer\nQuery: ", "tone": "Instruct: Name the tone\nQuery: "}
    store.write_json(tmp_path / "train/model/config_sentence_transformers.json", about | {"prompts": prompts})
    scores = {"history": {"4": 0.5, "8": 0.75, "12": 0.625}, "best": {"step": 8, "ndcg@10": 0.75}}
    for choice, said in (("last", "0.6250, at step 12"), ("best", "0.7500, at step 8")):
        folders = {"evaluate_on": [str(tmp_path), "NanoBEIR"], "distill_vectors": {"model": str(tmp_path / "train"), "weight": 2}}
        recipe = {"recipe": RECEIPT["recipe"] | {"export": choice} | (folders if choice == "best" else {})}
        store.write_json(tmp_path / "train" / store.RECEIPT, RECEIPT | scores | recipe)
        card = plan_upload(tmp_path / "train", "org/small").card
        others = f" and `{tmp_path.name}` and `NanoBEIR`" if choice == "best" else ""
        assert f"nDCG@10 on held-out queries{others}, the mean over their sources: {said}." in card
        assert str(tmp_path.parent) not in card
        assert 'model.encode(["how do I find empty files?"], prompt_name="faq")' in card  # a model with a prompt per task


def test_scores_of_the_runs_model_are_kept_for_its_card(run, tmp_path):
    shutil.copytree(run, tmp_path / "train")
    model = tmp_path / "train/model"
    record_scores(tmp_path, {"faq": 0.1}, "nDCG@10")  # not a run's model
    record_scores(model, {"faq": 0.5}, "nDCG@10")
    record_scores(model, {"tone": 0.25}, "nDCG@10")
    record_scores(model, {"SciFact": 0.75}, "mteb's main score")
    card = plan_upload(model, "org/small").card
    assert list(card_problems(card)) == []
    assert "| `faq` | `nDCG@10` | 0.5000 |\n| `tone` | `nDCG@10` | 0.2500 |\n| `SciFact` | `mteb's main score` | 0.7500 |" in card
    (index,) = head_of(card)["model-index"]
    assert [(one["dataset"]["name"], one["metrics"][0]["value"]) for one in index["results"]] == [
        ("faq", 0.5), ("tone", 0.25), ("SciFact", 0.75)
    ]  # fmt: skip
    read = ModelCard(card).data
    assert (read.base_model, read.license, read.model_name) == ("org/base", "unknown", "small")
    assert [(one.dataset_config, one.metric_value) for one in read.eval_results] == [
        ("faq", 0.5),
        ("tone", 0.25),
        ("SciFact", 0.75),
    ]
    path = tmp_path / "train/evaluation.json"
    path.write_text(path.read_text().replace("0.25", "0.95"))
    with pytest.raises(BuildError, match=r"evaluation\.json: was changed"):
        plan_upload(model, "org/small")


def test_no_folder_of_this_machine_is_published(run, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/model").symlink_to(run / "model")
    store.write_json(tmp_path / "train" / store.RECEIPT, RECEIPT | {"recipe": {"model": str(run.parent.parent / "base")}})
    made = plan_upload(tmp_path / "train/model", "org/small")
    assert "from `base`" in made.card
    text = made.card + made.pieces["provenance.json"].content.decode() + (run / "model/config.json").read_text()
    assert str(run.parent.parent) not in text
    assert "base_model" not in head_of(made.card)


def test_what_is_no_model_or_no_licence(run, tmp_path):
    with pytest.raises(
        ModelError, match=r"is not an exported model: it has no modules\.json; `train export RUN -o DIR` writes one"
    ):
        plan_upload(tmp_path, "org/small")
    with pytest.raises(
        ModelError,
        match="org/small: the Hub would refuse its card: license 'free' is not a licence that the Hub knows; correct it, or see --license",
    ):
        plan_upload(run, "org/small", "free")


@pytest.mark.long
def test_published_it_gives_the_same_vectors(run, tmp_path):
    code = "import sys\nfrom sentence_transformers import SentenceTransformer\nprint(SentenceTransformer(sys.argv[1], device='cpu').encode(['one', 'a dull film']).tolist())"
    with hub(tmp_path / "hub") as server:
        env = (
            os.environ
            | server.environment()
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "default"}
        )

        def command(*arguments):
            done = subprocess.run([sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=120)
            return done.returncode, done.stdout, done.stderr.splitlines()[-1:]

        train = ("-c", "from training.cli import main; main()", "publish", run, "org/small", "--tag", "v1")
        status, out, errors = command(*train, "--private")
        assert status == 0, errors
        assert out.startswith(f"{server.endpoint}/org/small at ")
        found = server.storage.files("org/small", kind="models")
        assert {path: data for path, data in found.items() if path not in ("README.md", "provenance.json")} == {
            path.relative_to(run / "model").as_posix(): path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()
        }
        assert server.storage.repo("models", "org/small")["private"]
        assert command(*train)[1].endswith(": nothing to do, 0 bytes\n")
        local, remote = command("-c", code, run / "model"), command("-c", code, "org/small")
        assert local[0] == remote[0] == 0, remote[2]
        assert remote[1] == local[1] != ""
