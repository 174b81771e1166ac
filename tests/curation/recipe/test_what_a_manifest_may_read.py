"""What a manifest reads: no state of the system, nothing outside of its folder without a word, no place of this machine published."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.build.check import check
from curation.cli import curate
from curation.core.errors import ManifestError, SourceError
from curation.core.store import read_json
from curation.read.sources import input_digests, table_rows
from curation.recipe.addresses import portable
from curation.recipe.source import Table
from curation.share.publish import plan
from curation.share.verify import problems

ROW = {"q": "how high do larks fly", "a": "rather high"}


def rows(path: Path, *found: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found or (ROW,)))
    return path


def manifest(folder: Path, files: str, more: str = "", head: str = "") -> Path:
    """Write a manifest with a good source, and one that reads `files`."""
    rows(folder / "good.jsonl", {"q": "what is salt", "a": "a mineral"})
    path = folder / "m.yaml"
    fields = "license: mit, task: retrieval, fields: {query: q, positive: a}"
    path.write_text(
        f"name: m\n{head}sources:\n  - {{name: good, files: good.jsonl, {fields}}}\n  - {{name: other, {files}, {fields}{more}}}\n"
    )
    return path


# --- what is never read ---


@pytest.mark.parametrize(
    "name", ["/proc/self/environ", "/proc/self/../self/environ", "/dev/zero", "/dev/stdin", "/dev/fd/0", "/sys/kernel/vmcoreinfo", "/proc/self/envir*"]
)  # fmt: skip
@pytest.mark.parametrize("how", ["named", "link", "linked folder"])
def test_the_systems_own_files_are_never_read(tmp_path, monkeypatch, name, how):
    monkeypatch.setenv("SOME_TOKEN", "hf_secret_of_mine")
    if how == "link" and "*" not in name:
        (tmp_path / "x.jsonl").symlink_to(name)
        name = "x.jsonl"
    elif how == "linked folder":
        (tmp_path / "folder").symlink_to(os.path.dirname(name))
        name = f"folder/{os.path.basename(name)}"
    table = Table(files=[name], reader="lines", pattern="(?P<q>.*)")
    for reading in (input_digests, lambda table, base: list(table_rows(table, base))):
        with pytest.raises(SourceError) as caught:
            reading(table, tmp_path)
        said = str(caught.value)
        assert any(
            part in said
            for part in ("which holds the system's own state", "is a pipe, socket or device", "no such file", "matches no file")
        )
        assert "\n" not in said
    if "environ" in name:
        assert "leads into /proc" in said or "matches no file" in said or how == "link"


def test_pipes_and_sockets_are_never_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    there = socket.socket(socket.AF_UNIX)
    there.bind(str(tmp_path / "socket.jsonl"))
    (tmp_path / "link.jsonl").symlink_to("pipe.jsonl")
    os.mkfifo(tmp_path / "README.md")
    for name in ("pipe.jsonl", "socket.jsonl", "link.jsonl"):
        with pytest.raises(SourceError, match="is a pipe, socket or device, not a file"):
            input_digests(Table(files=[name]), tmp_path)
    with pytest.raises(SourceError, match="is a pipe, socket or device, not a file|matches no file"):
        input_digests(Table(path=str(tmp_path)), tmp_path)
    there.close()


@pytest.mark.parametrize("path", ["/proc", "/proc/self", "/dev", "/sys"])
def test_the_systems_folders_are_no_datasets(tmp_path, path):
    with pytest.raises(SourceError, match="which holds the system's own state"):
        input_digests(Table(path=path), tmp_path)


PROC = "{files: /proc/self/environ, reader: lines, pattern: '(?P<q>.*)', fields: {query: q}}"


@pytest.mark.parametrize("head", [f"decontaminate: {{against: [{PROC}]}}\n", "decontaminate: {against: [{files: good.jsonl, fields: {query: q}}], allow: /proc/self/environ}\n"])  # fmt: skip
def test_evaluation_sets_and_allowed_texts_neither(tmp_path, head):
    rows(tmp_path / "x.jsonl")
    path = manifest(tmp_path, "files: x.jsonl", head=head)
    with pytest.raises((SourceError, ManifestError), match="leads into /proc"):
        build(path, tmp_path / "b")


def test_a_secret_of_the_environment_gets_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_mine")
    path = manifest(tmp_path, "files: /proc/self/environ, reader: lines, pattern: '(?P<q>[^=]*)=(?P<a>.*)'")
    outcome = build(path, tmp_path / "b")
    assert str(outcome.failed["other"]).endswith(
        "leads into /proc, which holds the system's own state and no data; it is never read"
    )
    assert list(outcome.receipts) == ["good"]
    assert not [one for one in (tmp_path / "b").rglob("*") if one.is_file() and b"hf_secret_of_mine" in one.read_bytes()]


# --- what lies outside of the manifest's folder ---

OUTSIDE = {
    "absolute": ("files: {away}/x.jsonl", "{away}/x.jsonl", "x.jsonl"),
    "pattern": ("files: '{away}/*.jsonl'", "{away}/*.jsonl", "*.jsonl"),
    "above": ("files: ../away/x.jsonl", "../away/x.jsonl", "../away/x.jsonl"),
    "link": ("files: link.jsonl", "link.jsonl -> {away}/x.jsonl", "link.jsonl, a link"),
    "linked folder": ("files: linked/*.jsonl", "linked/x.jsonl -> {away}/x.jsonl", "linked/x.jsonl, a link"),
    "folder": ("path: {away}", "{away}", "./away"),
    "home": ("files: ~/x.jsonl", "~/x.jsonl", "x.jsonl"),
}


@pytest.fixture
def away(tmp_path, monkeypatch) -> Path:
    rows(tmp_path / "away" / "x.jsonl")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link.jsonl").symlink_to(tmp_path / "away" / "x.jsonl")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "away")
    monkeypatch.setenv("HOME", str(tmp_path / "away"))
    return tmp_path / "away"


def test_of_many_files_outside_the_first_are_printed(away, tmp_path):
    (tmp_path / "here" / "links").mkdir()
    for number in range(20):
        rows(away / f"{number}.jsonl")
        (tmp_path / "here" / "links" / f"{number}.jsonl").symlink_to(away / f"{number}.jsonl")
    path = manifest(tmp_path / "here", "files: links/*.jsonl")
    done = CliRunner().invoke(curate, ["build", str(path), "-o", str(tmp_path / "b"), "-j", "1"])
    (line,) = [line for line in done.stderr.splitlines() if "reads outside" in line]
    assert line.endswith(" and 8 more, see `curate check`")
    assert line.count(" -> ") == 12
    assert len(check(path)["outside"]["source 'other'"]) == 20


@pytest.mark.parametrize("case", OUTSIDE)
def test_what_lies_outside_is_listed_named_and_refused_where_confined(away, tmp_path, case):
    keys, shown, published = (one.format(away=away) for one in OUTSIDE[case])
    path = manifest(tmp_path / "here", keys)
    assert check(path)["outside"] == {"source 'other'": [shown]}
    assert check(path)["problems"] == []
    done = CliRunner().invoke(curate, ["build", str(path), "-o", str(tmp_path / "b"), "-j", "1"])
    assert done.exit_code == 0, done.output
    assert f"{path}: source 'other' reads outside of the manifest's folder: {shown}\n" in done.stderr
    assert read_json(tmp_path / "b" / "curated" / "other" / "done.json")["outside"] == [published]
    page = (tmp_path / "b" / "report.html").read_text()
    assert "Read from outside of the manifest" in page
    assert str(away) not in page
    assert problems(tmp_path / "b") == []

    said = f"source 'other': reads '{shown}', outside of the manifest's folder; `--confined` reads nothing there"
    outcome = build(path, tmp_path / "c", confined=True)
    assert {name: str(error) for name, error in outcome.failed.items()} == {"other": said}
    assert list(outcome.receipts) == ["good"]
    assert said in check(path, confined=True)["problems"]
    done = CliRunner().invoke(curate, ["lock", str(path), "--confined"], standalone_mode=False)
    assert done.return_value == 1
    assert said in done.stderr


def test_a_manifest_in_its_own_folder_is_confined_anyway(tmp_path):
    rows(tmp_path / "here" / "data" / "x.jsonl")
    (tmp_path / "here" / "link.jsonl").symlink_to("data/x.jsonl")
    path = manifest(tmp_path / "here", f"files: [data/*.jsonl, link.jsonl, '{tmp_path}/here/data/x.jsonl']")
    assert check(path)["outside"] == {}
    assert build(path, tmp_path / "b", confined=True).failed == {}


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            "decontaminate: {against: [{files: ../away/x.jsonl, fields: {query: q}}]}\n",
            "evaluation set '../away/x.jsonl' names '../away/x.jsonl'",
        ),
        (
            "decontaminate: {against: [{files: good.jsonl, fields: {query: q}}], allow: ../away/x.jsonl}\n",
            "decontaminate: allow names '../away/x.jsonl'",
        ),
        ("mine: {model: /models/mini}\n", "mine: model names '/models/mini'"),
        ("mine: {model: o/n, reranker: ~/mini, reranker_scores: yes}\n", "mine: reranker names '~/mini'"),
        ("train: {model: /models/mini}\n", "train: model names '/models/mini'"),
    ],
)
def test_a_confined_manifest_protects_itself_whole_or_is_refused(away, tmp_path, head, said):
    rows(tmp_path / "here" / "x.jsonl")
    path = manifest(tmp_path / "here", "files: x.jsonl", head=head)
    with pytest.raises(ManifestError) as caught:
        build(path, tmp_path / "b", confined=True)
    assert f"{said}, outside of the manifest's folder; `--confined` reads nothing there" in str(caught.value)
    assert any(said in problem for problem in check(path, confined=True)["problems"])
    assert not (tmp_path / "b").exists()


# --- what is published ---


@pytest.mark.parametrize(
    ("name", "folder", "wanted"),
    [
        ("/home/me/data/*.csv", False, "*.csv"),
        ("/home/me/data/a.csv", False, "a.csv"),
        ("/home/me/**/b/*.csv", False, "**/b/*.csv"),
        ("~/a.csv", False, "a.csv"),
        ("/home/me/set", True, "./set"),
        ("../data/*.csv", False, "../data/*.csv"),
        ("org/name", True, "org/name"),
    ],
)
def test_a_path_without_its_machine(name, folder, wanted):
    assert portable(name, folder) == wanted


def test_places_of_this_machine_are_not_published(tmp_path):
    secret = tmp_path / "home" / "somebody" / "clients"
    for name in ("a/x.jsonl", "b/x.jsonl"):
        texts = [{"q": f"what is number {n} of {name[0]}", "a": f"it is the {n}th of {name}"} for n in range(8)]
        rows(secret / name, *texts)
        with (secret / name).open("a") as file:
            file.write("broken\n")
    rows(secret / "set" / "train.jsonl", *({"q": f"how far is {n}", "a": f"as far as {n}"} for n in range(8)))
    rows(secret / "test.jsonl", {"q": "how far is 3", "a": "very far"})
    (secret / "allow.txt").write_text("nothing\n")
    (tmp_path / "here").mkdir()
    path = manifest(
        tmp_path / "here",
        f"files: [{secret}/a/x.jsonl, {secret}/b/x.jsonl]",
        ", max_bad: 0.5}\n  - {name: set, path: "
        + f"{secret}/set, license: mit, task: retrieval, fields: {{query: q, positive: a}}",
        f"decontaminate: {{against: [{{files: {secret}/test.jsonl, fields: {{query: q}}}}], allow: {secret}/allow.txt}}\n",
    )
    for command in (["lock", str(path)], ["build", str(path), "-o", str(tmp_path / "b"), "-j", "1"]):
        done = CliRunner().invoke(curate, command)
        assert done.exit_code == 0, done.output
    assert read_json(tmp_path / "b/curated/other/done.json")["inputs"].keys() == {"x.jsonl", "2/x.jsonl"}
    made = plan(tmp_path / "b", "me/set")
    for name, piece in made.pieces.items():
        content = piece.content if isinstance(piece.content, bytes) else Path(piece.content).read_bytes()
        assert str(tmp_path).encode() not in content, name
        assert b"somebody" not in content, name
        target = tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert problems(tmp_path / "copy") == []
    assert str(tmp_path) not in (tmp_path / "b" / "ATTRIBUTION.md").read_text()
    assert str(tmp_path) not in (tmp_path / "b" / "report.html").read_text()
    evidence = pl.read_parquet(tmp_path / "b" / "curated" / "other" / "dropped.parquet")["evidence"].drop_nulls()
    assert not evidence.str.contains("somebody").any()
    copied = (tmp_path / "copy" / "manifest.yaml").read_text()
    assert "files: [x.jsonl, x.jsonl]" in copied
    assert "path: ./set" in copied
