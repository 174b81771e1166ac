"""`curate import` makes training sources of training data alone, and a manifest that can be read."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate
from curation.core.errors import UserError
from curation.core.tables import read_table
from curation.recipe.manifest import load_manifest


def put(folder: Path, *names: str, **columns: object) -> None:
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = columns or {"anchor": f"what is {name}", "positive": f"it is number {n}"}
        if path.suffix == ".parquet":
            pl.DataFrame([row]).write_parquet(path)
        else:
            path.write_text(json.dumps(row) + "\n")


def imported(folder: Path, what: str = "in") -> tuple[dict[str, list[str]], dict[str, list[str]], str]:
    """Return the files of sources and of evaluation sets by name, and what was printed."""
    done = CliRunner().invoke(curate, ["import", str(folder / what), "-o", str(folder / "m.yaml")])
    assert done.exit_code == 0, done.output
    found = yaml.safe_load((folder / "m.yaml").read_text())
    against = found.get("decontaminate", {}).get("against", [])
    tables = ({one["name"]: one["files"] for one in some} for some in (found["sources"], against))
    sources, sets = ({name: [files] if isinstance(files, str) else files for name, files in some.items()} for some in tables)
    load_manifest(folder / "m.yaml")
    return sources, sets, done.stderr


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        (["train.jsonl", "dev.jsonl", "test.jsonl"], {"in": 1}, 2),
        (["train.parquet", "valid.parquet"], {"in": 1}, 1),
        (["training.jsonl", "validation.jsonl", "evaluation.jsonl"], {"in": 1}, 2),
        (["trainSet.jsonl", "testSet.jsonl", "devset.jsonl"], {"in": 1}, 2),
        (["faq_train.jsonl", "faq_test.jsonl", "nli.train.jsonl", "nli.dev.jsonl"], {"faq": 1, "nli": 1}, 2),
        (["faq-train.jsonl", "faq-test-2016.jsonl"], {"faq": 1}, 1),
        (["faq/train.jsonl", "faq/test.jsonl", "nli/train.jsonl", "nli/eval.jsonl"], {"faq": 1, "nli": 1}, 2),
        (["train/faq.jsonl", "test/faq.jsonl", "dev/faq.jsonl"], {"faq": 1}, 2),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"], {"in": 2}, 1),
        (["en/train-00000-of-00001.parquet", "en/validation-00000-of-00001-0123abc.parquet", "de/train-00000-of-00001.parquet"],
         {"en": 1, "de": 1}, 1),
        (["contest.jsonl", "latest.jsonl", "deviation.jsonl", "retrieval.jsonl"],
         {"contest": 1, "latest": 1, "deviation": 1, "retrieval": 1}, 0),
        (["a.jsonl", "b.jsonl", "held-out.jsonl"], {"a": 1, "b": 1}, 1),
        (["trn.jsonl", "val.jsonl", "tst.jsonl"], {"in": 1}, 2),
        (["train.jsonl", "holdout.jsonl", "devtest.jsonl", "tests.jsonl", "validate.jsonl"], {"in": 1}, 4),
    ],
)  # fmt: skip
def test_what_is_for_tests_is_no_source(tmp_path, names, train, held_out):
    put(tmp_path / "in", *names)
    sources, sets, notes = imported(tmp_path)
    assert {name: len(files) for name, files in sources.items()} == train
    assert len(sets) == held_out
    assert sorted(f for files in [*sources.values(), *sets.values()] for f in files) == sorted(f"in/{name}" for name in names)
    for name in sets:
        assert (
            f"{name}: for development or tests by its name, so not trained on; its texts are removed from the sources\n" in notes
        )


def test_the_manifest_keeps_clear_of_what_it_leaves_out(tmp_path):
    put(tmp_path / "in", "train.jsonl", anchor="how high do larks fly", positive="rather high")
    put(tmp_path / "in", "test.jsonl")
    with (tmp_path / "in" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"anchor": "what is test.jsonl", "positive": "something else"}) + "\n")
    imported(tmp_path)
    outcome = build(tmp_path / "m.yaml", tmp_path / "b")
    assert (outcome.failed, outcome.receipts["in"]["dropped"]) == ({}, {"contaminated_query": 1})


def test_documents_of_an_evaluation_set_are_protected(tmp_path):
    put(tmp_path / "in", "train.jsonl", "test.jsonl", query="q", documents=["a", "b"], labels=[1, 0])
    imported(tmp_path)
    against = yaml.safe_load((tmp_path / "m.yaml").read_text())["decontaminate"]["against"]
    assert against[0]["fields"] == {"query": "query", "positive": "documents"}


def test_test_data_alone(tmp_path):
    put(tmp_path / "in", "dev.jsonl", "test.jsonl")
    done = CliRunner().invoke(curate, ["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.yaml")])
    assert "holds development or test data only" in str(done.exception)
    assert not (tmp_path / "m.yaml").exists()
    sources, sets, notes = imported(tmp_path, "in/test.jsonl")
    assert (list(sources), sets) == (["test"], {})
    assert notes.startswith("test: for development or tests by its name; it is a source as there is no other data\n")


def test_a_held_out_file_of_no_known_format_is_left_out_with_a_word(tmp_path):
    put(tmp_path / "in", "train.jsonl")
    put(tmp_path / "in", "test.jsonl", other="x")
    sources, sets, notes = imported(tmp_path)
    assert (list(sources), sets) == (["in"], {})
    assert "left out, for development or tests by its name: in/test.jsonl: has columns of no known format: other" in notes


def test_a_beir_folder_trains_on_its_training_split_alone(tmp_path):
    folder = tmp_path / "in" / "trees"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d", "title": "Oak", "text": "It bears acorns."}\n{"_id": "e", "title": "Sea", "text": "Salt water."}\n'
    )
    (folder / "queries.jsonl").write_text(
        '{"_id": "q", "text": "acorn tree"}\n{"_id": "r", "text": "what is an ocean made of"}\n'
    )
    for split, query in (("train", "r"), ("dev", "q"), ("test", "q")):
        document = "e" if split == "train" else "d"
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\t{document}\t1\n")
    sources, sets, _ = imported(tmp_path)
    assert list(sources) == ["trees"]
    assert sets == {"trees-dev": ["in/trees/qrels/dev.tsv"], "trees-test": ["in/trees/qrels/test.tsv"]}
    assert not build(tmp_path / "m.yaml", tmp_path / "b").failed


def test_names_that_collide_are_numbered(tmp_path):
    put(
        tmp_path / "in",
        "My Data.jsonl",
        "my-data.jsonl",
        "my_data.parquet",
        "MY DATA.parquet",
        f"{'x' * 70}a.jsonl",
        f"{'x' * 70}b.jsonl",
    )
    sources, _, _ = imported(tmp_path)
    assert len(sources) == 6
    assert {"my-data", "my-data-2", "my-data-3", "my_data"} <= set(sources)
    assert all(len(name) <= 63 for name in sources)


PROMPTS = [
    ([{"prompt": "A"}, {"prompt": "B"}], "has lines of 2 prompts or types: prompt 'A', type '' (in/x.jsonl, row 0); prompt 'B', type '' (in/x.jsonl, row 1)"),
    ([{"prompt": "A"}, {}], "has lines of 2 prompts or types: prompt 'A', type '' (in/x.jsonl, row 0); prompt '', type '' (in/x.jsonl, row 1)"),
    ([{"type": "symmetric_class"}, {"type": "normal"}], "has lines of 2 prompts or types: prompt '', type 'symmetric_class'"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "said"), PROMPTS)
def test_flagembedding_lines_of_several_prompts(tmp_path, lines, said):
    (tmp_path / "in").mkdir()
    rows = [{"query": f"q{n}", "pos": ["p"], "neg": ["n"], **line} for n, line in enumerate(lines)]
    (tmp_path / "in" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(curate, ["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.yaml")])
    assert said in str(done.exception)
    assert str(done.exception).endswith("put the lines of each into a file of their own")
    assert not (tmp_path / "m.yaml").exists()


@pytest.mark.parametrize("second", ["Instruct: B\nQuery: r", "r"])
def test_queries_with_several_rendered_instructions_are_refused(tmp_path, second):
    rows = [{"query": "Instruct: A\nQuery: q", "passage": "a text"}, {"query": second, "passage": "another text"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported(tmp_path, "x.jsonl")
    (failure,) = build(tmp_path / "m.yaml", tmp_path / "b").failed.values()
    assert "A'" in str(failure)
    assert str(failure).endswith("set `instruction:`, which replaces them all")


def test_what_is_left_out_by_its_ending_is_reported(tmp_path):
    put(tmp_path / "in", "train.jsonl")
    for name in ("test.csv", "more.jsonl.gz", "notes.md", ".hidden.csv"):
        (tmp_path / "in" / name).write_text("x")
    sources, sets, notes = imported(tmp_path)
    assert (list(sources), sets) == (["in"], {})
    assert "left out, because only .parquet and .jsonl are imported: more.jsonl.gz, test.csv\n" in notes


def test_a_shard_with_more_columns_counts_too(tmp_path):
    put(tmp_path / "in", "train-00000-of-00002.jsonl", anchor="what is this", positive="a thing")
    put(tmp_path / "in", "train-00001-of-00002.jsonl", anchor="what is that", positive="another", negative="no thing")
    imported(tmp_path)
    build(tmp_path / "m.yaml", tmp_path / "b")
    assert read_table(tmp_path / "b/curated/in", "passages")["text"].to_list() == ["a thing", "another", "no thing"]


def test_a_score_or_label_of_pairs_is_reported(tmp_path):
    put(tmp_path / "in", "x.jsonl", anchor="what is this", positive="a thing", score=0.1)
    assert (
        "x: each row is used as a positive pair, whatever its score says; map that column if it matters\n"
        in imported(tmp_path)[2]
    )
    put(tmp_path / "in", "x.jsonl", anchor="what is this", positive="a thing", negative="no thing")
    (tmp_path / "m.yaml").unlink()
    assert "whatever" not in imported(tmp_path)[2]


@pytest.mark.parametrize("prompt", [["A"], []])
def test_prompts_that_are_no_texts(tmp_path, prompt):
    put(tmp_path / "in", "x.jsonl", query="what is this", pos=["a thing"], neg=["no thing"], prompt=prompt)
    done = CliRunner().invoke(curate, ["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.yaml")])
    assert isinstance(done.exception, UserError)
    assert "in/x.jsonl: column 'prompt' holds" in str(done.exception)


@pytest.mark.parametrize("name", ["nothing.jsonl", "./nothing", "nothing.csv"])
def test_a_file_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(curate, ["import", name, "-o", "m.yaml"])
    assert str(done.exception) == f"{name}: no such file or folder; name a file, a folder, or a dataset of the Hub"
