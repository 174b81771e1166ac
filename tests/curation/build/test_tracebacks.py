"""Names and manifests that no program expects: each is read rightly, or refused in one line, and the other sources are built."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation.build import stages
from curation.build.build import build
from curation.build.show import records
from curation.cli import curate
from curation.core.errors import ManifestError, SourceError, did_you_mean
from curation.read.lock import write_lock
from curation.recipe.manifest import load_manifest
from tests.curation.read.broken import build_all, build_one, manifest

LINE = b'{"q": "what is this", "a": "an answer"}\n'
PAIR = ("what is this", ["an answer"])
LATIN = b"caf\xe9.jsonl"  # no UTF-8


def tar(names: list[str], format: int = tarfile.GNU_FORMAT) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz", encoding="latin-1", format=format) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(LINE)
            archive.addfile(info, io.BytesIO(LINE))
    return whole.getvalue()


def test_tars_whose_names_are_latin_1_are_read(tmp_path):
    files = {"gnu.tar.gz": tar(["café.jsonl"]), "ustar.tgz": tar(["café.jsonl"], tarfile.USTAR_FORMAT)}
    keys = ["", ", member: '*.jsonl'", r", member: 'caf\xe9.jsonl'", ", file_column: from"]
    sources = [f"files: {name}{key}" for name in files for key in keys]
    assert [one.pairs for one in build_all(tmp_path, files, sources)] == [[PAIR]] * 8


def test_names_in_latin_1_are_named_in_errors(tmp_path):
    error = build_one(tmp_path, {"x.tar.gz": tar(["café.jsonl", "b.jsonl"])}, "files: x.tar.gz, member: nope").error
    assert error == r"x.tar.gz: no member 'nope'; it holds caf\xe9.jsonl, b.jsonl"


def test_globs_that_meet_a_name_that_is_no_utf_8(tmp_path):
    folder = tmp_path / "in"
    inner = os.path.join(os.fsencode(folder), b"d\xff")
    os.makedirs(inner)
    for place in (os.fsencode(folder), inner):
        with open(os.path.join(place, LATIN), "wb") as file:
            file.write(LINE)
    shown = "files: '*/*.jsonl', reader: folders, filters: {no_echo: no}, fields: {query: label, positive: file}"
    path = manifest(folder, ["files: 'c*.jsonl', file_column: from", shown])
    outcome = build(path, tmp_path / "b")
    assert outcome.failed == {}
    assert [one["query"] for one in records(tmp_path / "b", ["s0", "s1"], 9)] == ["what is this", r"d\xff"]
    assert outcome.receipts["s0"]["inputs"].keys() == {r"caf\xe9.jsonl"}
    assert write_lock(path, load_manifest(path), ["s0", "s1", "good"]) == {}
    again = build(path, tmp_path / "b")
    assert (again.failed, again.ran) == ({}, set())


def test_names_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    one, here = socket.socket(socket.AF_UNIX), Path.cwd()
    os.chdir(tmp_path)  # a socket's whole path must be short
    one.bind("socket")
    os.chdir(here)
    no_file = "is a pipe, socket or device, not a file; save its output as a file, and name that"
    messages = {
        "a" * 300: "a" * 80 + "...: cannot be opened (File name too long); check path and permissions",
        "a/" * 3000: "a/" * 40 + "...: cannot be opened (File name too long); check path and permissions",
        "~nouser/x.jsonl": "~nouser/x.jsonl: no such user, so no home folder; write the path in full",
        "pipe": f"pipe: {no_file}",
        "socket": f"socket: {no_file}",
    }
    files = [*messages, "/dev/zero", "/dev/null", "/dev/stdin"]
    done = build_all(
        tmp_path, {}, [f"files: {name}" for name in files] + [f"path: {n if n[0] in '/~' else './' + n}" for n in files]
    )
    assert [one.error for one in done[: len(messages)]] == list(messages.values())
    assert all(one.error for one in done)
    one.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (r'notes: "\ud800"', "half of a surrogate pair is not text; write the character itself"),
        (r'records: "a\udce9"', "half of a surrogate pair is not text; write the character itself"),
        (r'"\ud800": x', "half of a surrogate pair is not text; write the character itself"),
        (r'notes: "a\0b"', "the character NUL is not text; write the character itself"),
        ("max_unpacked: 1e309", "sources[1].max_unpacked: input should be a finite number, not '1e309'"),
        ("max_unpacked: .nan", "sources[1].max_unpacked: '.nan' is not a number"),
        ("max_unpacked: nan", "sources[1].max_unpacked: input should be a finite number, not 'nan'"),
        ("threshold: -inf", "sources[1].threshold: input should be a finite number, not '-inf'"),
        ("max_bad: nan", "sources[1].max_bad: input should be a finite number, not 'nan'"),
        ("limit: 1" + "0" * 30, "1" + "0" * 30 + " is out of range: the largest whole number is 2^63 - 1"),
        ("skip: 1" + "0" * 30, "1" + "0" * 30 + " is out of range: the largest whole number is 2^63 - 1"),
        ("holdout: " + "9" * 5000, "sources[1].holdout: "),
    ],
)
def test_values_that_no_manifest_may_have(tmp_path, keys, message):
    with pytest.raises(ManifestError) as caught:
        load_manifest(manifest(tmp_path, [f"files: good.jsonl, {keys}"]))
    line = str(caught.value)
    assert message in line
    assert line.startswith(f"{tmp_path / 'm.yaml'}:5: ")
    assert len(line.encode().splitlines()) == 1


def test_a_manifest_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "m.yaml")
    for name, message in (
        ("m.yaml", "is a pipe, socket or device"),
        ("/dev/zero", "is a pipe, socket or device"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(ManifestError, match=message):
            load_manifest(tmp_path / name)
    (tmp_path / "n.yaml").write_text(f"name: n\nextends: {'b' * 300}\n")
    with pytest.raises(ManifestError, match="File name too long"):
        load_manifest(tmp_path / "n.yaml")


@pytest.mark.parametrize("allow", ["pipe", "/dev/zero", "~nouser/x", "a" * 300, "."])
def test_allowed_texts_in_what_is_no_file(tmp_path, allow):
    os.mkfifo(tmp_path / "pipe")
    head = f"decontaminate: {{allow: {allow}, against: [{{files: good.jsonl, fields: {{query: q}}}}]}}"
    with pytest.raises((ManifestError, SourceError)) as caught:
        build(manifest(tmp_path, [], head), tmp_path / "b")
    assert len(str(caught.value).splitlines()) == 1


def test_a_lock_that_is_no_file(tmp_path):
    path = manifest(tmp_path, [])
    os.mkfifo(tmp_path / "m.lock")
    with pytest.raises(ManifestError, match="m.lock: is not a lock file"):
        build(path, tmp_path / "b")


def test_a_source_of_which_all_is_a_near_duplicate(tmp_path):
    error = build_one(tmp_path, {}, "files: good.jsonl", "dedup: {across: yes, max_loss_per_source: 1}").error
    assert error.startswith("source 's0': 100.0% of its 4 tuples are near-duplicates, and none would be left; for example s0/0 ")


def test_what_nobody_foresaw_fails_one_source_in_one_line(tmp_path, monkeypatch):
    def broken(job, folder, progress, workers):
        if job.source.name != "good":
            raise KeyError("oh\nno")
        return stages.shape(job, folder, progress, workers)

    monkeypatch.setattr(stages, "SHAPE", stages.SHAPE._replace(work=broken))
    outcome = build(manifest(tmp_path, ["files: good.jsonl"]), tmp_path / "b")
    assert str(outcome.failed["s0"]).startswith("source 's0': KeyError in test_tracebacks.py:")
    assert str(outcome.failed["s0"]).endswith("('oh\\nno'); this is a fault of tuplesmith: please report it")
    assert outcome.receipts["good"]["kept"] == 4


def test_a_broken_source_ends_the_command_with_1_and_a_line(tmp_path):
    path = manifest(tmp_path, ["files: good.jsonl", f"files: {'a' * 300}"])
    command = ["build", str(path), "-o", str(tmp_path / "b"), "-j", "1", "-q"]
    done = CliRunner().invoke(curate, command, standalone_mode=False)
    assert (done.return_value, len(done.stderr.splitlines())) == (1, 1)


def test_a_guess_ignores_case():
    assert did_you_mean("FIELDS", ["files", "fields"]) == " (did you mean 'fields'?)"


def test_a_source_whose_rows_are_all_unreadable_shows_the_first(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "one", "p": "two"},\n' * 3)
    source = {"name": "s", "task": "retrieval", "files": "a.jsonl", "max_bad": 1, "fields": {"query": "q", "positive": "p"}}
    (tmp_path / "m.yaml").write_text(json.dumps({"name": "m", "sources": [source]}))
    (error,) = build(tmp_path / "m.yaml", tmp_path / "b").failed.values()
    what = "none of its 3 rows makes a tuple (bad_json 3)"
    assert str(error) == f"source 's': {what}; first: a.jsonl:1: Extra data at column 25"
