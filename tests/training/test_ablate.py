"""`train ablate`: its runs, their resumption, its figures, and its messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tiny_build import retrieval, tiny_model, write_build

import tuplesmith
from curation.core import store
from curation.core.errors import BuildError, ManifestError
from curation.core.record import draws
from curation.recipe.manifest import load_manifest, load_recipe
from curation.recipe.settings import OfSource
from training.ablate import ablate, checked_groups
from training.ablation import check_suggestion, compare_runs, page_of, table_lines, write_suggestion
from training.cli import train_command
from training.train import train

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def shuffled(columns: dict[str, list]) -> dict[str, list]:
    """Return the columns of a source with each query's positive replaced by another's, and its own among the negatives."""
    rows = len(columns["positives"])
    positives = [[(row + 7) % rows] for row in range(rows)]
    return columns | {"positives": positives, "negatives": [[row, (row + 3) % rows] for row in range(rows)]}


def write_heldout(build: Path, name: str, salt: int, rows: int = 100) -> None:
    """Write the held-out queries of a source in BEIR's layout."""
    folder, columns = build / "heldout" / name, retrieval(rows, salt=salt)
    (folder / "qrels").mkdir(parents=True)
    for kind, texts in (("corpus", columns["passages"]), ("queries", columns["queries"])):
        lines = [json.dumps({"_id": f"{kind}{number}", "text": text}) for number, text in enumerate(texts)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines))
    qrels = ["query-id\tcorpus-id\tscore", *(f"queries{number}\tcorpus{number}\t1" for number in range(rows))]
    (folder / "qrels/test.tsv").write_text("\n".join(qrels))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a build of three sources, one of them garbage, and a recipe."""
    place = tmp_path_factory.mktemp("ablate")
    recipe = {"model": tiny_model(place / "bert"), "max_tokens": 32, "batch": 8, "negatives": 2, "lr": 3e-3, "warmup": 2}
    sources = {"good": retrieval(64), "more": retrieval(64, salt=1), "garbage": shuffled(retrieval(192, salt=3))}
    build = write_build(place / "tiny", sources)
    for salt, name in enumerate(("good", "more"), start=5):
        write_heldout(build, name, salt)
    (place / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "save_every": 2}))
    return place


@pytest.fixture(scope="module")
def done(made):
    """Return an ablation of it, and the lines that it printed."""
    lines = []
    found = ablate(made / "tiny", load_recipe(made / "recipe.yaml"), seeds=1, steps=24, say=lines.append)
    return found, lines


def call(*args):
    return CliRunner().invoke(train_command, ["ablate", *map(str, args)], prog_name="train", catch_exceptions=True)


def test_garbage_is_found_and_all_comparisons_share_the_run_with_all_sources(done, made):
    found, lines = done
    garbage = found["sources"]["garbage"]
    assert garbage["verdict"] == "harms", garbage
    assert garbage["all_sets"][2] < 0
    assert garbage["own_sets"] is None
    assert garbage["other_sets"] == garbage["all_sets"]
    assert {found["sources"][what]["verdict"] for what in ("good", "more")} == {"helps"}
    assert sum(one["steps"] for one in found["sources"].values()) == found["steps"] == 24
    assert lines[0].startswith("4 runs of 24 steps (1 with all sources, 3 without one), 4 of them to do: about ")
    assert [line.split(":")[0] for line in lines[1:]] == [
        *("1/4 all-42", "2/4 without-good-42", "3/4 without-more-42", "4/4 without-garbage-42")
    ]
    assert list((made / "tiny/ablation/runs").iterdir()) == []
    assert json.loads((made / "tiny/ablation/ablation.json").read_text()) == found


def test_the_figures_are_those_of_training_and_evaluating_by_hand(done, made, tmp_path):
    found, _ = done
    recipe = load_recipe(made / "recipe.yaml").model_copy(update={"steps": 24, "epochs": 24})

    def scores_of(model):
        arguments = ["evaluate", str(model), "--data", str(made / "tiny/heldout"), "--json", "-q"]
        said = json.loads(CliRunner().invoke(train_command, arguments).stdout)
        return [said[name]["ndcg@10"] for name in ("good", "more")]

    scores = []
    for only in (("good", "more", "garbage"), ("good", "more")):
        train(made / "tiny", recipe, out=tmp_path / "run", only=only, restart=True)
        scores.append(scores_of(tmp_path / "run/model"))
    apart = np.subtract(*scores)
    assert list(found["before"]["sets"].values()) == pytest.approx(scores_of(recipe.model), abs=1e-12)
    assert list(found["all"]["sets"].values()) == pytest.approx(scores[0], abs=1e-12)
    sets = found["sources"]["garbage"]["sets"].values()
    assert [one["without"] for one in sets] == pytest.approx(scores[1], abs=1e-12)
    assert [one["difference"][0] for one in sets] == pytest.approx(apart, abs=1e-12)
    assert found["sources"]["garbage"]["all_sets"][0] == pytest.approx(apart.mean(), abs=1e-12)


@pytest.mark.long
def test_after_a_kill_finished_runs_are_kept_and_the_run_under_way_continues(done, made, tmp_path):
    arguments = [made / "tiny", "--recipe", made / "recipe.yaml", "--seeds", 1, "--steps", 24, "-o", tmp_path / "out"]
    code = "from training.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ablate", *map(str, arguments)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    try:
        while not list(tmp_path.glob("out/runs/without-good-*/checkpoints/step-000006/done.json")):
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    scores = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/scores/*-42-*/done.json")}
    assert [name.rpartition("-")[0] for name in scores] == ["all-42"]
    (under_way,) = tmp_path.glob("out/runs/*/log.jsonl")
    before = under_way.read_text().splitlines()[:6]
    lines = []
    found = ablate(made / "tiny", load_recipe(made / "recipe.yaml"), seeds=1, steps=24, out=tmp_path / "out", say=lines.append)
    assert found == done[0]
    assert lines[0].startswith("4 runs of 24 steps (1 with all sources, 3 without one), 3 of them to do: about ")
    for name, changed in scores.items():
        assert (tmp_path / "out/scores" / name / "done.json").stat().st_mtime_ns == changed
    log = (tmp_path / "out/scores" / under_way.parent.name / "log.jsonl").read_text().splitlines()
    assert log[:6] == before  # clock times too: these steps were not done again
    assert len(log) == 24


def test_intervals_are_over_queries_and_seeds():
    number = np.random.default_rng(0)
    before = {"a": number.random(50), "b": number.random(30)}
    runs = {what: [{name: number.random(len(each)) for name, each in before.items()} for _ in range(3)] for what in ("", "x")}
    found = compare_runs(before, runs, {"x": ["b"]})["sources"]["x"]
    seeds = draws(0, "seeds/bootstrap", np.arange(4000)).reshape(2000, 2) % np.uint64(3)
    means = {}
    for name, each in before.items():
        n = len(each)
        queries = draws(0, f"{name}/bootstrap", np.arange(2000 * n)).reshape(2000, n) % np.uint64(n)
        apart = np.array([with_it[name] - without[name] for with_it, without in zip(runs[""], runs["x"], strict=True)])
        means[name] = np.array([apart[np.ix_(s, q)].mean() for s, q in zip(seeds.astype(int), queries.astype(int), strict=True)])
        assert found["sets"][name]["difference"] == pytest.approx([apart.mean(), *np.percentile(means[name], [2.5, 97.5])])
    assert found["all_sets"][1:] == pytest.approx(np.percentile((means["a"] + means["b"]) / 2, [2.5, 97.5]))
    assert found["own_sets"] == found["sets"]["b"]["difference"]
    assert found["other_sets"] == found["sets"]["a"]["difference"]


def test_the_table_fits_80_columns_and_the_page_needs_no_other_file(done, made):
    table = "\n".join(table_lines(done[0])).splitlines()
    assert max(map(len, table)) <= 80
    garbage = done[0]["sources"]["garbage"]
    figures = "{:+.4f}  {:+.4f} to {:+.4f}".format(*(value := garbage["all_sets"]))
    (line,) = [line for line in table if line.startswith("garbage  ")]
    assert line.split() == ["garbage", f"{garbage['steps']:.0f}", *figures.split(), "-", f"{value[0]:+.4f}"]
    some = garbage | {"sets": {f"set-{number}" * 9: garbage["sets"]["good"] for number in range(9)}}
    many = {f"long-{number}" * 9: some | {"verdict": ("helps", "unclear", "harms")[number % 3]} for number in range(30)}
    scores = {**done[0]["all"], "sets": dict.fromkeys(some["sets"], 0.5)}
    table = "\n".join(table_lines({**done[0], "sources": many, "all": scores, "not_trained_on": ["small"]})).splitlines()
    assert max(map(len, table)) <= 80
    assert "small: no step trained on it." in table
    assert [line.split()[0] for line in table if "  steps  all sets" in line] == ["helps", "unclear", "harms"]
    page = (made / "tiny/ablation/ablation.html").read_text()
    assert f"{value[0]:+.4f}" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;b&gt;" in page_of(done[0] | {"build": "<b>"})


def test_a_group_is_left_out_as_a_whole_and_unknown_ones_are_refused(made, tmp_path):
    (tmp_path / "groups.yaml").write_text("pair: [more, garbage]\n")
    common = (made / "tiny", "--recipe", made / "recipe.yaml", "--seeds", 1, "--steps", 4, "-o", tmp_path / "out")
    result = call(*common, "--groups", tmp_path / "groups.yaml", "--json", "-q")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["sources"].keys() == {"pair"}
    assert said["sources"]["pair"]["sources"] == ["more", "garbage"]
    assert said["intervals"] == "95 %, 2,000 resamples of the queries; too narrow, with one seed"
    for text, message in (
        ("pair: [mor]", "group 'pair': no source 'mor' (did you mean 'more'?); {build} has good, more, garbage"),
        ("pair: []", "group 'pair': names no source; {build} has good, more, garbage"),
        ("pair: [more, good, garbage]", "group 'pair': leaves nothing to train on; {build} has good, more, garbage"),
        ("pair: more", "{file}:1: holds no groups; write a line `NAME: [SOURCE, SOURCE]` for each"),
        ("a/b: [more]", "{file}:1: 'a/b' cannot name a group; use letters, digits, - and _"),
    ):
        (tmp_path / "groups.yaml").write_text(text)
        message = message.format(build=made / "tiny", file=tmp_path / "groups.yaml")
        assert str(call(*common, "--groups", tmp_path / "groups.yaml").exception) == message


def test_less_weight_of_garbage_helps_and_is_suggested(made, done, tmp_path):
    (tmp_path / "groups.yaml").write_text("bad: [garbage]\n")
    common = (made / "tiny", "--recipe", made / "recipe.yaml", "--seeds", 1, "--steps", 24, "--groups", tmp_path / "groups.yaml")
    result = call(*common, "--weight", 0.1)
    assert result.exit_code == 0, result.output
    assert "2 runs of 24 steps (1 with all sources, 1 with 0.1 times the weight of a group), 1 of them to do" in result.output
    assert "sources. Below: nDCG@10 at 0.1 times the weight less nDCG@10, one seed.\n\nhelps " in result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    found = store.read_json(made / "tiny/ablation/ablation.json")
    whole, less = done[0], found["sources"]["bad"]
    assert found["all"] == whole["all"]
    names = list(less["sets"])
    assert less["all_sets"][0] == pytest.approx(np.mean([less["sets"][name]["without"] for name in names]) - whole["all"]["mean"])


def test_what_cannot_be_compared_is_refused(made, tmp_path):
    recipe = load_recipe(made / "recipe.yaml")
    build = write_build(tmp_path / "bare", {"good": retrieval(16), "more": retrieval(16, salt=1)})
    bare = "give a source `holdout: N` and build again, or name an evaluation set with --data"
    for only, message in (
        ((), f"{build}: has no held-out queries to measure on; {bare}"),
        (("god",), f"{build}: has no source 'god'; it has good, more"),
    ):
        with pytest.raises(BuildError) as refused:
            ablate(build, recipe, only=only)
        assert str(refused.value) == message
    with pytest.raises(BuildError) as refused:
        checked_groups(build, None, ["good"])
    assert str(refused.value) == f"{build}: has one source to train on, 'good'; an ablation needs two or more"
    write_heldout(build, "good", 5)
    receipt = store.read_json(build / "mined/more/done.json")
    store.write_json(build / "mined/more/done.json", {**receipt, "curated": "other"})
    with pytest.raises(BuildError, match="was mined before curated/more was rebuilt; run `mine negatives` again"):
        ablate(build, recipe)


def test_a_suggested_manifest_builds_without_what_harms(made, tmp_path, done, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        rows = [json.dumps({"q": f"query {name} {row}", "p": f"passage {name} {row}"}) for row in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    source = {"task": "retrieval", "fields": {"query": "q", "positive": "p"}}
    sources = [{"name": name, "files": f"{name}.jsonl", **source} for name in ("a", "b")]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"name": "tiny", "sources": sources}))
    build = tuplesmith.build("tiny.yaml", quiet=True).path
    harm = {"verdict": "harms", "all_sets": [-0.03, -0.05, -0.01], "sources": ["b"]}
    found = {**done[0], "sources": {"a": {"verdict": "helps"}, "b": harm}}
    assert write_suggestion(build, found, tmp_path / "better.yaml") == ["b"]
    better = load_manifest(tmp_path / "better.yaml")
    assert (better.name, [one.name for one in better.sources]) == ("better", ["a", "b"])
    assert better.without == {"b": "train ablate: nDCG@10 -0.0300 with it (-0.0500 to -0.0100, 24 steps, seeds 42)"}
    assert list(store.read_json(tuplesmith.build("better.yaml", quiet=True).path / "build.json")["sources"]) == ["a"]
    helps = {"verdict": "helps", "all_sets": [0.03, 0.01, 0.05], "sources": ["b"]}
    more = {**found, "weight": 3.0, "sources": {"a": harm, "b": helps}}
    with pytest.raises(ManifestError) as refused:
        check_suggestion(build, tmp_path / "more.yaml", 3.0)
    what = "has no `train:` section to write weights into; move the recipe there, and build again"
    assert str(refused.value) == f"{tmp_path / 'tiny.yaml'}: {what}"
    recipe = {"model": "m", "sources": {"b": {"weight": 2, "negatives": 1}}}
    (tmp_path / "with.yaml").write_text(yaml.safe_dump({"name": "with", "sources": sources, "train": recipe}))
    assert write_suggestion(tuplesmith.build("with.yaml", quiet=True).path, more, tmp_path / "more.yaml") == ["b"]
    assert load_manifest(tmp_path / "more.yaml").train.sources == {"b": OfSource(weight=6.0, negatives=1)}
    why = "# b: train ablate: nDCG@10 +0.0300 with 3 times its weight (+0.0100 to +0.0500, 24 steps, seeds 42)\n"
    assert (tmp_path / "more.yaml").read_text().startswith(why)
    assert write_suggestion(build, {**found, "sources": {}}, tmp_path / "same.yaml") == []
    assert not (tmp_path / "same.yaml").exists()
    for path, message in (
        (tmp_path / "better.yaml", "exists already; give --suggest another name"),
        (
            tmp_path / "builds/new.yaml",
            f"no manifest in {tmp_path / 'builds'} is that of {build}; put it into the folder of the manifest that {build} was "
            "made from; `extends` and relative paths need that",
        ),
    ):
        with pytest.raises(ManifestError) as refused:
            write_suggestion(build, found, path)
        assert str(refused.value) == f"{path}: {message}"
