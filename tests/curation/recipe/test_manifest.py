"""Every complaint about a manifest has a file, a line, what is wrong and, for a misspelt word, the likely right one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from curation.core.errors import ManifestError
from curation.recipe.manifest import load_manifest, load_recipe, read_manifest
from curation.recipe.source import shape_of
from curation.recipe.yaml import merged_yaml

GOOD = """\
name: demo
sources:
  - name: a
    files: x.csv
    task: retrieval
    language: no
    citation: 0123e5
    limit: 0100
    fields: {query: q, positive: p}
mine: {model: x, relative_margin: 5e-2}
train: {model: x, lr: 1e-5, betas: [0.9, 0.98]}
"""


@pytest.fixture
def complain(tmp_path):
    def run(text: str | bytes, load=load_manifest) -> str:
        path = tmp_path / "m.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ManifestError) as caught:
            load(path)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return run


def test_traps_of_yaml_are_read_as_a_person_means_them(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(GOOD.replace("files: x.csv", "path: o/n").replace("citation", "revision"))
    manifest = load_manifest(path)
    source = manifest.sources[0]
    assert (source.language, source.revision, source.limit) == ("no", "0123e5", 100)
    assert manifest.mine is not None
    assert manifest.train is not None
    assert (manifest.mine.relative_margin, manifest.train.lr, manifest.train.betas) == (0.05, 1e-5, (0.9, 0.98))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("query: q", "qeury: q", "m.yaml:9: unknown key 'qeury' (did you mean 'query'?)"),
        ("limit: 0100", "feilds: 3", "m.yaml:8: unknown key 'feilds' (did you mean 'fields'?)"),
        ("limit: 0100", "limit: many", "m.yaml:8: sources[0].limit: 'many' is not a whole number"),
        ("limit: 0100", "limit: 1.5", "m.yaml:8: sources[0].limit: '1.5' is not a whole number"),
        ("limit: 0100", "both_ways: perhaps", "m.yaml:8: sources[0].both_ways: 'perhaps' is not yes or no"),
        ("limit: 0100", "holdout: -1", "m.yaml:8: sources[0].holdout: input should be greater than or equal to 0, not '-1'"),
        (
            "task: retrieval",
            "task: retreival",
            "m.yaml:5: sources[0].task: 'retreival' is not one of retrieval, classification or clustering (did you mean 'retrieval'?)",
        ),
        ("lr: 1e-5", "lr: fast", "m.yaml:11: train.lr: 'fast' is not a number"),
        ("lr: 1e-5", "hardness: -1", "m.yaml:11: train.hardness: input should be greater than or equal to 0, not '-1'"),
        ("lr: 1e-5", "spread_out: .nan", "m.yaml:11: train.spread_out: '.nan' is not a number"),
        (
            "lr: 1e-5",
            "query_query: yes",
            "m.yaml:11: 'query_query' requires `loss: infonce`, because its scores are in the same softmax",
        ),
        ("[0.9, 0.98]", "[0.9]", "m.yaml:11: train.betas: 1 of 2 values are given"),
        ("[0.9, 0.98]", "[0.9, 0.98, 1]", "m.yaml:11: train.betas: 3 values are given, but only 2 are allowed"),
        ("[0.9, 0.98]", "0.9", "m.yaml:11: train.betas: '0.9' is not a list"),
        ("[0.9, 0.98]", "[0.9, 1]", "m.yaml:11: each of 'betas' must be at least 0 and below 1"),
        ("lr: 1e-5", "matryoshka: [8, 8]", "m.yaml:11: 'matryoshka' names a dimension twice"),
        ("lr: 1e-5", "min_lr: 1e-3", "m.yaml:11: 'min_lr' 0.001 is above 'lr' 1e-05, the highest learning rate"),
        ("files: x.csv", "files: x.csv\n    files: y", "m.yaml:5: 'files' is given twice (first on line 4); keep one"),
        (
            "name: a",
            "name: A B",
            "m.yaml:3: sources[0].name: 'A B' is not a valid name; use small letters, digits, '-', '_' and '.'",
        ),
        ("    files: x.csv\n", "", "m.yaml:3: needs 'path' (a Hub id or a folder), 'files', or both"),
        ("mine: {model: x, relative_margin: 5e-2}", "mine: 3", "m.yaml:10: mine: '3' is not a set of keys"),
        ("mine: {model: x,", "mine: {range_min: 200, model: x,", "m.yaml:10: 'range_min' (200) must be below 'range_max' (100)"),
        ("    task: retrieval\n", "", "m.yaml:3: 'task' is missing in sources[0]"),
        ("name: demo\n", "", "m.yaml:1: 'name' is missing"),
        ("files: x.csv", "path: o/n\n    files: ../x.csv", "m.yaml:3: '../x.csv' is outside of 'o/n'"),
        (
            "limit: 0100",
            "license_checked: today",
            "m.yaml:8: sources[0].license_checked: 'today' is not a day or month, such as 2026-11-22",
        ),
        (
            "language: no",
            "language: !!python/name:os.system x",
            "m.yaml:6: tags such as tag:yaml.org,2002:python/name:os.system are not allowed; a manifest runs no code",
        ),
        ("language: no", "language: !x y", "m.yaml:6: tags such as !x are not allowed; a manifest runs no code"),
        ("language: no", "language: 'no", "m.yaml:12: not YAML: found unexpected end of stream"),
    ],
)
def test_each_complaint(complain, old, new, said):
    assert old in GOOD
    assert complain(GOOD.replace(old, new)) == said


def test_each_mistake_of_a_line_is_reported(complain):
    lines = complain(GOOD.replace("mine: {model: x,", "mine: {modell: x, negatives: ten, range_max: far,")).splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "unknown key 'modell' (did you mean 'model'?)",
        "mine.negatives: 'ten' is not a whole number",
        "mine.range_max: 'far' is not a whole number",
    ]


def test_complaints_about_the_whole_file(complain, tmp_path):
    assert complain("") == "m.yaml: holds no keys; a manifest begins with `name:` and `sources:`"
    assert complain(b"name: \xff") == "m.yaml: not UTF-8 (byte 6); save it as UTF-8"
    (tmp_path / "tickets.yaml").write_text("name: tickets")
    with pytest.raises(ManifestError, match=r"tikets.yaml: no such file \(did you mean 'tickets.yaml'\?\)"):
        load_manifest(tmp_path / "tikets.yaml")
    with pytest.raises(ManifestError, match="none.yaml: no such file"):
        load_manifest(tmp_path / "none.yaml")
    with pytest.raises(ManifestError, match="is a folder, not a manifest"):
        load_manifest(tmp_path)


def test_an_alias_bomb_ends(complain):
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert "too many values" in complain(bomb)


def test_an_endless_alias_and_endless_brackets_end(complain):
    assert complain("sources: &a [*a]\n") == "m.yaml: is nested too deeply (an alias inside itself?)"
    assert "nested too deeply" in complain("[" * 3000)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("labels: {a: b}", "'labels' has no effect: the columns in 'fields' make this a source of shape 'pairs'"),
        ("threshold: 1", "'threshold' has no effect: the columns in 'fields' make this a source of shape 'pairs'"),
        ('delimiter: "\\n"', "'delimiter' cannot be a line end or a quotation mark"),
        ("header: []", "'header' must be yes, no or a list of column names"),
        ("revision: v1", "'revision' is only for a dataset of the Hub, and these rows are on this machine"),
        ("verified: no", "'verified: no' needs 'notes' that say what is uncertain"),
        (
            "path: python:stdlib",
            "'path: python:stdlib': Python code is no longer read directly; write its functions to a JSON Lines file, "
            "as manifests/quickstart.py does, and name that in 'files'",
        ),
        ("path: o/n\n    config: c", "'config' has no effect with 'files'; remove it"),
    ],
)
def test_a_key_without_meaning_is_refused(complain, more, said):
    assert complain(GOOD.replace("limit: 0100", more)) == f"m.yaml:3: {said}"


def test_a_corpus_is_refused_where_no_column_holds_ids(complain):
    nli = GOOD.replace("limit: 0100", "corpus: {files: c.jsonl}").replace("positive: p", "positive: p, label: l")
    assert complain(nli) == "m.yaml:3: 'corpus' has no effect: the columns in 'fields' make this a source of shape 'nli'"


def test_names_of_sources_differ(complain):
    twice = GOOD.replace("mine:", "  - {name: a, files: y.csv, task: retrieval, fields: {query: q, positive: p}}\nmine:")
    assert complain(twice) == "m.yaml:1: two sources are named 'a'"


def test_settings_of_single_sources_name_sources(complain):
    named = GOOD.replace("lr: 1e-5", "sources: {aa: {weight: 2}}")
    assert complain(named) == "m.yaml:1: train.sources: no source is named 'aa' (did you mean 'a'?)"
    wrong = GOOD.replace("lr: 1e-5", "sources: {a: {wieght: 2}}")
    assert complain(wrong) == "m.yaml:11: unknown key 'wieght' (did you mean 'weight'?)"


def test_holdout_is_for_retrieval(complain):
    text = GOOD.replace("task: retrieval", "task: clustering\n    holdout: 5").replace("positive: p", "label: p")
    assert complain(text) == "m.yaml:3: 'holdout' is only for retrieval, and this source's task is clustering"


def test_a_recipe_is_a_file_of_its_own(tmp_path, complain):
    path = tmp_path / "r.yaml"
    path.write_text("model: x\nlr: 2e-5\n")
    assert load_recipe(path).lr == 2e-5
    assert complain("model: x\nlearning_rate: 1\n", load_recipe).startswith("m.yaml:2: unknown key 'learning_rate'")


@pytest.mark.parametrize(
    ("fields", "more", "shape"),
    [
        ("{query: q, positive: p}", "", "pairs"),
        ("{query: q, positive: p, negatives: n}", "", "pairs"),
        ("{query: q, positive: p, label: l}", "", "nli"),
        ("{query: q, positive: p, score: s}", "threshold: 4", "scored"),
        ("{query_id: q, positive_id: p}", "corpus: {files: c.jsonl}\n    queries: {files: q.jsonl}", "qrels"),
    ],
)
def test_mapped_columns_decide_the_shape(tmp_path, fields, more, shape):
    path = tmp_path / "m.yaml"
    path.write_text(GOOD.replace("{query: q, positive: p}", fields + "\n    " + more))
    assert shape_of(load_manifest(path).sources[0]) == shape


def test_a_score_needs_a_threshold(complain):
    said = complain(GOOD.replace("positive: p}", "positive: p, score: s}"))
    assert said == "m.yaml:3: a 'score' column needs 'threshold', the lowest score that makes a positive"


def test_the_manifests_that_ship_are_right():
    for path in sorted((Path(__file__).resolve().parents[3] / "manifests").glob("*.yaml")):
        assert load_manifest(path).sources


# --- a manifest that extends another ---

BASE = """\
name: base
seed: 7
filters: {min_chars: 9}
sources:
  - {name: a, files: x.csv, license: no, task: retrieval, fields: {query: q, positive: p}}
"""


@pytest.fixture
def extended(tmp_path, complain):
    (tmp_path / "base.yaml").write_text(BASE)
    return complain


def test_keys_of_the_extended_manifest_count_but_for_those_that_stand_here(extended, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("name: child\nextends: base.yaml\nfilters: {no_echo: no}\nlicenses: no-nc\n")
    manifest = load_manifest(path)
    assert (manifest.name, manifest.seed, manifest.licenses) == ("child", 7, "no-nc")
    assert (manifest.filters.min_chars, manifest.filters.no_echo) == (None, False)  # replaced whole
    assert manifest.sources == load_manifest(tmp_path / "base.yaml").sources
    whole = tmp_path / "whole.yaml"
    whole.write_bytes(merged_yaml(read_manifest(path)))
    assert whole.read_text().startswith("# m.yaml and base.yaml, which it extends\n")
    assert load_manifest(whole) == manifest
    assert merged_yaml(read_manifest(tmp_path / "base.yaml")).decode() == BASE


@pytest.mark.parametrize(
    ("base", "child", "said"),
    [
        ("min_chars: 9", "name: m\nextends: base.yaml\nfilters: {min_char: 1}\n",
         "m.yaml:3: unknown key 'min_char' (did you mean 'min_chars'?)"),
        ("min_char: 9", "name: m\nextends: base.yaml\n", "base.yaml:3: unknown key 'min_char' (did you mean 'min_chars'?)"),
        ("min_chars: x", "name: m\nextends: base.yaml\n", "base.yaml:3: filters.min_chars: 'x' is not a whole number"),
        ("min_chars: 9", "extends: base.yaml\nsources:\n  - {name: a}\n", "m.yaml:3: 'task' is missing in sources[0]\nm.yaml:3: 'fields' is missing in sources[0]"),
        ("min_chars: 9", "name: m\nextends: ../base.yaml\n", "m.yaml:2: 'extends' must be the name of a manifest in the same folder"),
        ("min_chars: 9", "name: m\nextends: [base.yaml]\n", "m.yaml:2: 'extends' must be the name of a manifest in the same folder"),
        ("min_chars: 9", "name: m\nextends: bose.yaml\n", "bose.yaml: no such file (did you mean 'base.yaml'?)"),
        ("min_chars: 9}\nextends: m.yaml\nmine: {model: x", "name: m\nextends: base.yaml\n",
         "m.yaml:2: 'base.yaml' itself extends another; extend that one"),
    ],
)  # fmt: skip
def test_complaints_name_the_file_that_has_the_key(extended, tmp_path, base, child, said):
    (tmp_path / "base.yaml").write_text(BASE.replace("min_chars: 9", base))
    assert extended(child) == said


def test_all_mistakes_are_reported_unknown_keys_first(complain):
    text = (
        GOOD.replace("limit: 0100", "limit: many")
        .replace("lr: 1e-5", "batsh: 3")
        .replace("fields:", "feilds:")
        .replace("[0.9, 0.98]", "[0.9]")
    )
    assert complain(text).splitlines() == [
        "m.yaml:9: unknown key 'feilds' (did you mean 'fields'?)",
        "m.yaml:11: unknown key 'batsh' (did you mean 'batch'?)",
        "m.yaml:8: sources[0].limit: 'many' is not a whole number",
        "m.yaml:11: train.betas: 1 of 2 values are given",
    ]


def test_mistakes_survive_the_way_back_from_a_worker():
    error = ManifestError("m:1", "a", "b", [ManifestError("m:2", "c")])
    assert str(pickle.loads(pickle.dumps(error))) == "m:1: a; b\nm:2: c"


def test_a_manifest_that_json_wrote_has_its_characters(tmp_path):
    source = {"name": "s", "task": "retrieval", "files": "\U0001f642.csv", "fields": {"query": "\U0001f600", "positive": "p"}}
    (tmp_path / "m.yaml").write_text(json.dumps({"name": "m", "sources": [source]}))
    (read,) = load_manifest(tmp_path / "m.yaml").sources
    assert (read.files, read.fields.query) == (["\U0001f642.csv"], "\U0001f600")
