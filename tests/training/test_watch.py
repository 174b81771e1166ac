"""Evaluation while training: what is measured, which checkpoint is the best, when it ends; and all of it after a kill."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from test_deepspeed import torchrun
from tiny_build import retrieval, tiny_model, write_build

from curation.core import store
from curation.core.errors import BuildError, ManifestError
from curation.recipe.manifest import load_recipe
from curation.recipe.settings import Train
from training.evaluate import evaluate
from training.log import read_log
from training.model.encode import load_encoder
from training.train import train


class Killed(BaseException):
    """As a kill would, nothing catches it."""


def write_heldout(build, name, rows):
    folder = build / "heldout" / name
    (folder / "qrels").mkdir(parents=True)
    lines = {
        "corpus.jsonl": [json.dumps({"_id": str(row), "text": text}) for row, text in enumerate(rows["passages"])],
        "queries.jsonl": [json.dumps({"_id": f"q{row}", "text": text}) for row, text in enumerate(rows["queries"])],
        "qrels/test.tsv": [f"q{row}\t{row}\t1" for row in range(len(rows["queries"]))],
    }
    for path, text in lines.items():
        (folder / path).write_text("\n".join(text) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a model and a build of two sources with held-out queries and one without."""
    place = tmp_path_factory.mktemp("watch")
    tiny_model(place / "bert")
    sources = {
        "pairs": retrieval(24) | {"instruction": "Find it"},
        "more": retrieval(24, salt=1),
        "rest": retrieval(8, salt=2),
    }
    build = write_build(place / "b", sources)
    write_heldout(build, "pairs", retrieval(40, start=100))
    write_heldout(build, "more", retrieval(30, salt=1, start=100))
    return place


def recipe(place, **keys):
    common = {"max_tokens": 32, "batch": 8, "negatives": 2, "lr": 0.1, "warmup": 0, "epochs": 3, "dtype": "float32"}
    common |= {"steps": 12, "save_every": 5, "keep": 1, "log_every": 1, "evaluate_every": 2, "prompt": "instruct"}
    return Train(model=str(place / "bert"), **common | keys)


def weights(folder):
    """Return weights as bytes: a model's file has a word more in its head than a checkpoint's."""
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}


def measured(model, build):
    """Return the mean nDCG@10 that `train evaluate` finds for a written model."""
    encoder = load_encoder(str(model), max_tokens=32, device="cpu", prompt="instruct")
    sets = (("pairs", "Find it"), ("more", ""))
    return sum(evaluate(encoder, build / "heldout" / name, instruction)["ndcg@10"] for name, instruction in sets) / 2


def measurements(out):
    return [line for line in read_log(out / "log.jsonl") if "ndcg@10" in line]


@pytest.fixture(scope="module")
def whole(place):
    """Return the folder of an undisturbed run of which the best model is written."""
    train(place / "b", recipe(place, export="best"), out=place / "whole")
    return place / "whole"


def test_it_measures_what_evaluate_measures_of_the_checkpoint(place, whole):
    lines = measurements(whole)
    assert [line["step"] for line in lines] == [-1, 1, 3, 5, 7, 9, 11]
    assert all(set(line) == {"step", "ndcg@10", "sources", "best", "seconds"} for line in lines)
    receipt = store.read_receipt(whole)
    first, *lines = lines  # before the first step
    assert (receipt["before"], first["best"]) == (first["ndcg@10"], False)
    assert first["ndcg@10"] == pytest.approx(measured(place / "bert", place / "b"), abs=1e-9)
    assert receipt["history"] == {str(line["step"] + 1): line["ndcg@10"] for line in lines}
    best = max(lines, key=lambda line: line["ndcg@10"])
    assert receipt["best"] == {"step": best["step"] + 1, "ndcg@10": best["ndcg@10"]}
    assert best["ndcg@10"] > lines[-1]["ndcg@10"]  # else the test of the model would say nothing
    assert list(best["sources"]) == ["pairs", "more"]
    assert best["ndcg@10"] == pytest.approx(sum(best["sources"].values()) / 2, abs=1e-12)
    assert best["ndcg@10"] == pytest.approx(measured(whole / "model", place / "b"), abs=1e-9)


def test_the_best_checkpoint_is_kept_beside_the_last(place, whole):
    best = store.read_receipt(whole)["best"]["step"]
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())] == [f"step-{best:06d}", "step-000012"]
    trained = weights(whole / "model")
    assert trained == weights(whole / f"checkpoints/step-{best:06d}")
    train(place / "b", recipe(place), out=place / "last")
    last = weights(place / "last/checkpoints/step-000012")
    assert weights(place / "last/model") == last != trained
    train(place / "b", recipe(place, evaluate_every=None), out=place / "unwatched")
    assert weights(place / "unwatched/model") == last  # measuring changes no weight
    assert "history" not in store.read_receipt(place / "unwatched")


@pytest.mark.parametrize("step", [2, *(pytest.param(step, marks=pytest.mark.long) for step in (5, 6, 11))])
def test_killed_and_run_again_it_chooses_the_same(place, whole, tmp_path, step):
    def say(line):
        if line.startswith(f"step {step:>2}/") and ("nDCG" in line or step % 2):
            raise Killed

    with pytest.raises(Killed):
        train(place / "b", recipe(place, export="best"), out=tmp_path, say=say)
    train(place / "b", recipe(place, export="best"), out=tmp_path)
    for name in ("done.json", "model/model.safetensors", "checkpoints/step-000012/checkpoint.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        path.name for path in sorted((whole / "checkpoints").iterdir())
    ]
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [line["step"] for line in read_log(whole / "log.jsonl")]


def test_patience_ends_the_run_and_a_kill_after_it_changes_nothing(place, whole, tmp_path):
    said = []
    history = {int(step): score for step, score in store.read_receipt(whole)["history"].items()}
    scores = list(history.values())
    end = next(2 * (i + 1) for i in range(1, len(scores)) if max(scores[: i + 1]) != scores[i])
    receipt, _ = train(place / "b", recipe(place, patience=1), out=tmp_path / "a", say=said.append)
    assert receipt["steps"] == end < 12
    assert max(map(int, receipt["history"])) == end
    assert f"step {end:>2}/12  nDCG@10 " in said[-1]
    assert not said[-1].endswith("the best so far")
    out = tmp_path / "a"
    before = {name: (out / name).read_bytes() for name in ("done.json", "model/model.safetensors")}
    (out / "done.json").unlink()
    train(place / "b", recipe(place, patience=1), out=out)
    assert before == {name: (out / name).read_bytes() for name in before}


def test_held_out_queries_that_changed_make_it_another_run(place, whole):
    path = place / "b/heldout/more/queries.jsonl"
    kept = path.read_text()
    path.write_text(kept.replace("list", "lists"))
    with pytest.raises(BuildError, match=r"whole: was made with heldout.more [0-9a-f]+ \(now [0-9a-f]+\)"):
        train(place / "b", recipe(place, export="best"), out=whole)
    path.write_text(kept)


def test_what_cannot_be_watched_is_reported(place, tmp_path):
    with pytest.raises(BuildError) as error:
        train(place / "b", recipe(place), out=tmp_path / "x", only=["rest"])
    what = "has no held-out queries for `evaluate_every`; give a source `holdout: N` and build again, or remove the key"
    assert str(error.value) == f"{place / 'b'}: {what}"
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\npatience: 3\n")
    with pytest.raises(
        ManifestError, match=r"^.*recipe.yaml:1: 'patience', 'evaluate_on' and `export: best` require 'evaluate_every'$"
    ):
        load_recipe(path)


def test_further_sets_count_in_the_mean_as_evaluate_measures_them(place, tmp_path):
    keys = {"steps": 2, "evaluate_on": [str(place / "b/heldout")], "prompt": "auto"}
    said = []
    train(place / "b", recipe(place, **keys), out=tmp_path / "a", only=["more"], say=said.append)
    *_, line = measurements(tmp_path / "a")
    encoder = load_encoder(str(tmp_path / "a/model"), device="cpu")
    wanted = [evaluate(encoder, place / "b/heldout" / name)["ndcg@10"] for name in ("more", "more", "pairs")]
    assert list(line["sources"].values()) == pytest.approx(wanted, abs=1e-9)
    assert list(line["sources"]) == ["more", str(place / "b/heldout/more"), "pairs"]
    assert line["ndcg@10"] == pytest.approx(sum(wanted) / 3, abs=1e-9)
    assert "nDCG@10 on pairs: queries begin with nothing, passages with nothing" in "\n".join(said)
    train(place / "b", recipe(place, **keys), out=tmp_path / "b", only=["rest"])  # without held-out queries of its own
    assert list(measurements(tmp_path / "b")[0]["sources"]) == ["more", "pairs"]


@pytest.mark.long
def test_two_processes_choose_what_one_does(place, whole, tmp_path):
    jobs = []
    for name, keys in (("plain", {}), ("zero3", {"deepspeed": {"zero": 3}})):
        rule = recipe(place, export="best", **keys).model_dump(mode="json")
        jobs.append({"build": str(place / "b"), "recipe": rule, "out": str(tmp_path / name)})
        torn = {**jobs[-1], "out": str(tmp_path / f"{name}-torn")}
        jobs += [{**torn, "stop": 5}, torn]
    torchrun(jobs, tmp_path)
    alone = store.read_receipt(whole)
    for name in ("plain", "zero3"):
        receipt = store.read_receipt(tmp_path / name)
        # At this learning rate rounding grows from step to step, so only the first measurement has to be that of one process.
        first = [next(iter(one["history"].values())) for one in (receipt, alone)]
        assert first[0] == pytest.approx(first[1], abs=1e-3)
        assert receipt["best"]["ndcg@10"] == max(receipt["history"].values())
        assert measured(tmp_path / name / "model", place / "b") == pytest.approx(receipt["best"]["ndcg@10"], abs=1e-9)
        for file in ("done.json", "model/model.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"{name}-torn" / file).read_bytes()
        assert len(measurements(tmp_path / name)) == 7
