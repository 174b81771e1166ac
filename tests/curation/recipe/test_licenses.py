"""Licences: a name's class, what a policy leaves out and says of it, and the attribution that comes with every build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate
from curation.core.errors import ManifestError
from curation.recipe.licenses import CLASS_OF, CLASSES, TABLE, allowed, class_of
from curation.recipe.manifest import load_manifest

MANIFEST = """\
name: mixed
sources:
  - name: free
    files: rows.jsonl
    license: MIT
    license_url: https://example.org/free
    license_checked: 2026-11-22
    citation: A. Uthor, The free | rows, 2020
    task: retrieval
    fields: {query: q, positive: a}
  - {name: same, files: rows.jsonl, license: "cc-by-4.0, cc-by-sa-3.0", task: retrieval, fields: {query: q, positive: a}}
  - {name: closed, files: rows.jsonl, license: cc-by-nc-4.0, task: retrieval, fields: {query: q, positive: a}}
  - {name: odd, files: rows.jsonl, license: cc-by-sa4.0, task: retrieval, fields: {query: q, positive: a}}
  - name: silent
    files: rows.jsonl
    verified: no
    notes: nobody has seen its page
    substitute_for: lost/rows, which is gone
    task: retrieval
    fields: {query: q, positive: a}
"""
REASONS = {
    "same": "its licence cc-by-4.0, cc-by-sa-3.0 is share-alike, and the policy is `licenses: permissive`",
    "closed": "its licence cc-by-nc-4.0 is non-commercial, and the policy is `licenses: no-nc`",
    "odd": "the class of its licence 'cc-by-sa4.0' is unknown (did you mean 'cc-by-sa-4.0'?), "
    "and `licenses: no-nc` allows known licences only",
    "silent": "it names no licence, and `licenses: no-nc` allows known licences only",
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    rows = [{"q": f"question number {n}", "a": f"the answer {n}"} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "m.yaml").write_text(MANIFEST)
    return tmp_path / "m.yaml"


def test_the_table_names_each_licence_once_and_in_small_letters():
    names = " ".join(TABLE.values()).split()
    assert len(names) == len(set(names)) == len(CLASS_OF)
    assert all(name == name.lower() and "," not in name for name in names)
    assert set(TABLE) == set(CLASSES) - {"unknown"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mit", "permissive"),
        (" CC-BY-4.0 ", "permissive"),
        ("cc-by-sa-3.0", "share-alike"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("msr-la-nc", "non-commercial"),
        ("mit, cc-by-sa-3.0", "share-alike"),
        ("cc-by-nc-4.0, mit", "non-commercial"),
        ("mit, other", "unknown"),
        ("mit,", "unknown"),
        ("cc-by-nc-4.0, other", "unknown"),
        ("other", "unknown"),
        ("mit license", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_class_of_a_name(name, kind):
    assert class_of(name) == kind


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("all", ["free", "same", "closed", "odd", "silent"]), ("no-nc", ["free", "same"]), ("permissive", ["free"])],
)
def test_a_policy_takes_what_it_knows(recipe, policy, kept):
    manifest, out = allowed(load_manifest(recipe), policy)
    assert [source.name for source in manifest.sources] == kept
    assert {*kept, *(one.source for one in out)} == {"free", "same", "closed", "odd", "silent"}
    for one in out:
        assert one.reason == REASONS[one.source].replace("no-nc", policy).replace("permissive`", f"{policy}`")


def test_the_manifest_has_a_policy_and_the_flag_another(recipe, tmp_path):
    recipe.write_text(MANIFEST + "licenses: no-nc\n")
    assert list(build(recipe, tmp_path / "a").receipts) == ["free", "same"]
    assert list(build(recipe, tmp_path / "b", licenses="all").receipts) == ["free", "same", "closed", "odd", "silent"]
    recipe.write_text(MANIFEST + "licenses: maybe\n")
    with pytest.raises(ManifestError, match=r"m\.yaml:21: licenses: 'maybe' is not one of all, no-nc or permissive"):
        load_manifest(recipe)


def test_a_build_says_what_it_leaves_out_and_keeps_it_out(recipe, tmp_path):
    run = CliRunner()
    whole = run.invoke(curate, ["build", str(recipe), "-o", str(tmp_path / "b"), "-j", "1", "-q"])
    assert whole.exit_code == 0, whole.output
    part = run.invoke(curate, ["build", str(recipe), "-o", str(tmp_path / "b"), "-j", "1", "-q", "--licenses", "no-nc"])
    assert part.exit_code == 0
    lines = [f"curate: {recipe}: source '{name}' is left out: {REASONS[name]}" for name in ("closed", "odd", "silent")]
    assert part.stderr.splitlines() == lines
    summary = json.loads((tmp_path / "b/build.json").read_text())
    assert summary["licenses"] == "no-nc"
    assert list(summary["sources"]) == ["free", "same"]
    assert summary["excluded"] == {name: REASONS[name] for name in ("closed", "odd", "silent")}
    free = summary["sources"]["free"]
    about = ("license", "license_class", "license_url", "license_checked", "verified", "notes")
    assert [free[key] for key in about] == ["MIT", "permissive", "https://example.org/free", "2026-11-22", True, None]
    only = run.invoke(curate, ["show", str(tmp_path / "b"), "--only", "closed"])
    assert isinstance(only.exception, Exception)
    assert str(only.exception).startswith(f"{tmp_path}/b: no source 'closed'")


def test_one_cannot_ask_for_what_is_left_out(recipe, tmp_path):
    with pytest.raises(ManifestError) as caught:
        build(recipe, tmp_path / "b", only=["closed"], licenses="no-nc")
    assert str(caught.value) == f"--only: source 'closed' is left out: {REASONS['closed']}"
    recipe.write_text(MANIFEST.replace("license: MIT", "license: gpl").replace("cc-by-4.0, cc", "cc0, cc"))
    with pytest.raises(ManifestError) as caught:
        build(recipe, tmp_path / "b", licenses="permissive")
    assert str(caught.value) == (
        "licenses: permissive: leaves no source; for example 'free': the class of its licence 'gpl' is unknown "
        "(did you mean 'gpl-3.0'?), and `licenses: permissive` allows known licences only"
    )


def test_a_preview_shows_what_a_build_would_take(recipe):
    done = CliRunner().invoke(curate, ["build", str(recipe), "--dry-run", "--licenses", "permissive"])
    assert done.exit_code == 0, done.output
    assert [line for line in done.output.splitlines() if "shape" in line] == ["free: retrieval, shape pairs, columns q, a"]


def test_the_copy_of_an_extending_manifest_stands_alone(recipe, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("name: child\nextends: m.yaml\nlicenses: permissive\n")
    build(child, tmp_path / "b")
    copy = tmp_path / "b/manifest.yaml"
    assert load_manifest(copy) == load_manifest(child)
    assert copy.read_text().startswith("# child.yaml and m.yaml, which it extends\n")


ATTRIBUTION = """\
# Attribution: mixed

Made of 3 sources (1 permissive, 1 share-alike, 1 unknown), each under its own licence as its publisher claims it.
The classes are tuplesmith's reading of the names; they are not legal advice.

| source | dataset | revision | licence as claimed | class | seen on | tuples |
| --- | --- | --- | --- | --- | --- | --- |
| free | rows.jsonl |  | [MIT](https://example.org/free) | permissive | 2026-11-22 | 9 |
| same | rows.jsonl |  | cc-by-4.0, cc-by-sa-3.0 | share-alike |  | 9 |
| silent | rows.jsonl |  | none seen | unknown |  | 9 |

## Cite

- free: A. Uthor, The free \\| rows, 2020

## In place of another dataset

- silent: lost/rows, which is gone

## To know

- silent: Not verified. nobody has seen its page
"""


def test_an_attribution_comes_with_every_build(recipe, tmp_path):
    lines = [line for line in MANIFEST.splitlines() if "name: closed" not in line and "name: odd" not in line]
    recipe.write_text("\n".join(lines) + "\n")
    build(recipe, tmp_path / "b")
    assert (tmp_path / "b/ATTRIBUTION.md").read_text() == ATTRIBUTION
    build(recipe, tmp_path / "b", licenses="no-nc")
    again = (tmp_path / "b/ATTRIBUTION.md").read_text()
    assert again.endswith("\n## Left out\n\n- silent: " + REASONS["silent"].replace("`", "\\`") + "\n")
    assert "1 permissive, 1 share-alike)" in again


def test_another_word_about_a_source_builds_nothing_again(recipe, tmp_path):
    build(recipe, tmp_path / "b")
    recipe.write_text(MANIFEST.replace("nobody has seen", "who saw"))
    outcome = build(recipe, tmp_path / "b")
    assert not outcome.ran
    assert json.loads((tmp_path / "b/build.json").read_text())["sources"]["silent"]["notes"] == "who saw its page"
    assert "Not verified. who saw its page" in (tmp_path / "b/ATTRIBUTION.md").read_text()
