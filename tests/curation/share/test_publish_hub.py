"""Publishing to a Hub that is slow, refuses, or changes, by a client that is killed: whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time

import polars as pl
import pytest

from curation.core import store, tables
from curation.share import publish as publishing
from tests.curation.share.small_published import (
    curate,
    lies,
    loaded,
    lock,
    make,
    published,
    refused,
    rows_of,
    start,
)
from tests.servers.hub_server import hub
from tests.training.tiny_models import tiny_folder
from training.model.export import export
from training.model.load import load_model

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def calm(server):
    """No fault outlives its test."""
    yield
    server.faults.clear()
    server.before = None


def test_a_second_version_sends_only_what_changed(server, made, tmp_path):
    first = published(server, made, "org/versions", "--tag", "v1")
    whole = int(re.search(r"([\d,]+) bytes", first)[1].replace(",", ""))
    other = lock(make(tmp_path / "other", changed=10))
    server.requests.clear()
    _, out, _ = curate(server, "publish", other, "org/versions", "--tag", "v2", "--json", "-q")
    sent = json.loads(out)["sent"]
    assert sorted(path for path in sent if path.endswith(".parquet")) == ["faq/train-00000-of-00001.parquet"]
    assert [path for method, path, _ in server.requests if method == "PUT"] != []
    report = len(server.storage.files("org/versions")["report.html"])  # one page, which changes with every build
    assert server.sent() < 0.2 * (whole - report) + report
    assert loaded(server, "org/versions") == rows_of(other)
    assert loaded(server, "org/versions", revision="v1") == rows_of(made)


def test_files_of_an_earlier_version_go_and_those_of_others_stay(server, made, tmp_path):
    published(server, made, "org/fewer")
    server.put("datasets", "org/fewer", {"picture.svg": "<svg/>"})
    fewer = tmp_path / "fewer"
    shutil.copytree(made, fewer)
    summary = store.read_json(fewer / "build.json")
    summary["sources"]["topics"]["license"] = ""
    store.write_json(fewer / "build.json", summary)
    _, out, _ = curate(server, "publish", fewer, "org/fewer", "--json", "-q")
    assert json.loads(out)["deleted"] == ["topics/train-00000-of-00001.parquet"]
    assert "picture.svg" in server.storage.files("org/fewer")
    assert loaded(server, "org/fewer", ["faq", "tone"]) == {name: rows_of(made)[name] for name in ("faq", "tone")}


def test_a_busy_hub_and_a_lost_answer_are_waited_for(server, made):
    server.fail(503, 1, "PUT /lfs/")
    server.fail(429, 1, "POST .*/preupload/")
    server.fail(0, 1, "POST .*/preupload/")
    server.fail(500, 1, "POST .*/commit/")
    server.fail(1, 1, "POST .*/commit/")
    status, _, errors = curate(server, "publish", made, "org/busy", "--tag", "v1")
    assert status == 0, errors
    assert "the Hub answers 500; trying again in 1 s" in errors
    assert loaded(server, "org/busy", revision="v1") == rows_of(made)
    assert [one["title"] for one in server.storage.history("datasets", "org/busy", "main")] == [
        "Publish with tuplesmith: 9 files",
        "initial commit",
    ]


def test_a_network_that_dies_leaves_nothing_half_done(server, made):
    """The large files are on their way, and nothing is answered any more."""
    server.fail(0, 10**6, "(PUT /lfs|POST .*/objects/batch)")
    code = "import sys, time\ntime.sleep = lambda seconds: None  # the client's pauses add up to a minute\nfrom curation.cli import main\n"
    code += f"sys.argv = ['curate', 'publish', {str(made)!r}, 'org/dying', '-q']\nmain()"
    status, _, errors = server.client(code)
    assert status == 1
    assert re.fullmatch(
        r"curate: org/dying: the Hub cannot be reached \(.+\); run the same command again", errors.splitlines()[-1]
    )
    assert server.storage.files("org/dying") == {}
    server.faults.clear()
    published(server, made, "org/dying")
    assert loaded(server, "org/dying", ["tone"]) == {"tone": rows_of(made)["tone"]}


def test_killed_at_ten_moments_it_ends_the_same(server, made, tmp_path):
    published(server, made, "org/small", "--tag", "v1")
    wanted = server.storage.files("org/small")
    moments = [
        "whoami",
        "repos/create",
        "/tree/",
        "validate-yaml",
        "/preupload/",
        "objects/batch",
        "PUT /lfs",
        "/commit/",
        "/tag/",
        None,
    ]
    for number, moment in enumerate(moments):
        with hub(tmp_path / f"hub{number}") as fresh:
            if moment is None:
                shutil.rmtree(made / "publish")
            process = start(fresh, "publish", made, "org/small", "-q", "--tag", "v1")
            if moment is None:  # while the shards are made
                while not list(made.glob("publish/.tuplesmith-*")):
                    time.sleep(0.001)
                process.kill()
            else:
                fresh.before = lambda method, path: process.kill() if moment in f"{method} {path}" else None  # noqa: B023
            process.communicate(timeout=60)
            fresh.before = None
            assert process.returncode == -signal.SIGKILL
            if "org/small" in fresh.storage.names("datasets"):
                assert fresh.storage.files("org/small") in ({}, wanted)
            published(fresh, made, "org/small", "--tag", "v1")
            assert fresh.storage.files("org/small") == fresh.storage.files("org/small", "v1") == wanted


def test_somebody_was_faster(server, made):
    published(server, made, "org/race")
    before = server.storage.files("org/race")

    def commit_meanwhile(method, path):
        if "/preupload/" in path:
            server.before = None
            server.put("datasets", "org/race", {"theirs.txt": "mine!"})

    server.before = commit_meanwhile
    line = refused(server, made, "org/race", "--columns", "ids")
    assert (
        line
        == "curate: org/race: somebody else committed meanwhile; look at it, then run the same command again to publish on top"
    )
    assert server.storage.files("org/race") == before | {"theirs.txt": b"mine!"}
    published(server, made, "org/race", "--columns", "ids")
    assert "theirs.txt" in server.storage.files("org/race")
    assert loaded(server, "org/race", ["tone"])["tone"][0]["id"] == "tone/0"


def test_who_may_not(server, made):
    published(server, made, "org/open")
    server.put("datasets", "org/theirs", {"data.csv": "a"})
    refusals = {
        ("org/new", "hf_wrong"): "the token is not valid; `hf auth login`, or set HF_TOKEN",
        ("org/new", ""): "no token to publish with; `hf auth login`, or set HF_TOKEN, with a token that may write",
        (
            "org/new",
            "hf_reader",
        ): "the token may not write there; use a token with write permission, and an ORG that you belong to",
        (
            "org/new",
            "hf_other",
        ): "the token may not write there; use a token with write permission, and an ORG that you belong to",
        (
            "org/theirs",
            "hf_owner",
        ): "holds 'data.csv' but no provenance.json, so it was not made by a publishing command; choose another name",
        (
            "a/b/c",
            "hf_owner",
        ): "is not a valid name on the Hub (Repo id must be in the form 'repo_name' or 'namespace/repo_name': 'a/b/c'. Use `repo_type` argument if needed.); use the form ORG/NAME",
    }
    for (repo, token), words in refusals.items():
        assert refused(server, made, repo, token=token) == f"curate: {repo}: {words}"
    assert server.storage.names("datasets").count("org/new") == 0
    assert refused(server, made, "org/open", "--columns", "ids", token="hf_reader").startswith(
        "curate: org/open: the token may not write there"
    )
    assert (
        refused(server, made, "org/open", "--private")
        == "curate: org/open: already exists and is public; leave out `--private`, or make it private on its page"
    )


def test_private_and_gated(server, made):
    published(server, made, "org/closed", "--private")
    assert (
        "doesn't exist on the Hub"
        in server.client("import datasets\ndatasets.load_dataset('org/closed', 'faq')", "", server.folder / "home-none")[2]
    )
    repo = server.storage.repo("datasets", "org/closed")
    assert repo["private"]
    server.storage.save("datasets", "org/closed", repo | {"private": False, "gated": "auto"})
    published(server, made, "org/closed", "--tag", "v1")
    assert loaded(server, "org/closed") == rows_of(made)
    assert (
        "is a gated dataset"
        in server.client("import datasets\ndatasets.load_dataset('org/closed', 'faq')", "", server.folder / "home-none")[2]
    )


def test_a_tag_names_one_version(server, made):
    published(server, made, "org/tagged", "--tag", "v1")
    before = server.sent()
    line = refused(server, made, "org/tagged", "--tag", "v1", "--columns", "ids")
    assert line == "curate: org/tagged: already has a tag 'v1', for another version; choose another `--tag`"
    assert server.sent() == before


def test_a_shard_that_changes_meanwhile_is_not_published(server, made):
    published(server, made, "org/steady")
    shard = made / "publish/tone/train-00000-of-00001.parquet"
    before = shard.read_bytes()

    def change(method, path):
        if path.endswith("objects/batch"):
            shard.write_bytes(before[:100] + b"x" + before[101:])

    server.storage.blob(publishing.Piece.of(shard).sha256).unlink()  # so that it is sent
    server.before = change
    try:
        line = refused(server, made, "org/changing")
    finally:
        shard.write_bytes(before)
    assert (
        line == f"curate: {shard}: was changed while it was sent, so nothing was published; delete it and run the command again"
    )
    assert server.storage.files("org/changing") == {}
    server.before = None
    published(server, made, "org/changing")


def test_a_card_that_the_hub_refuses(server, made, tmp_path):
    other = tmp_path / "b"
    shutil.copytree(made, other)
    summary = store.read_json(other / "build.json")
    for entry in summary["sources"].values():
        entry["license"] = "zlib"
    store.write_json(other / "build.json", summary)
    before = len(server.requests)
    line = refused(server, other, "org/refused", "--allow", "nobody", "--allow", "doubt")
    assert line.startswith('curate: org/refused: the Hub refuses the card ({"errors": [{"message": "\\"license\\" must be one of')
    assert not any(method == "PUT" or "/commit/" in path for method, path, _ in server.requests[before:])
    assert server.storage.files("org/refused") == {}


def test_the_card_loads_and_trains_as_it_says(server, tmp_path):
    """Both blocks of code run as they stand, with a tiny model under the name that the card names."""
    made = lock(make(tmp_path / "b", rows=24))
    base = tiny_folder("bert", tmp_path / "base")
    export(load_model(str(base), max_tokens=32, device="cpu"), tmp_path / "model")
    server.put("models", "sentence-transformers/all-MiniLM-L6-v2", tmp_path / "model")
    published(server, made, "org/said", "--columns", "ids,scores,provenance")
    card = server.storage.files("org/said")["README.md"].decode()
    load, train = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    status, out, errors = server.client(load)
    first = rows_of(made)["faq"][0]
    assert (status, out) == (0, f"{first['query']} {first['passage']}\n"), errors
    status, out, errors = server.client(
        f"import os, warnings\nos.chdir({str(tmp_path)!r})\nwarnings.simplefilter('ignore')\n{train}"
    )
    assert (status, "'train_loss':" in out) == (0, True), errors
    columns = train[train.index(".select_columns") : train.index("\n", train.index(".select_columns"))]
    code = f"import datasets\nrows = datasets.load_dataset('org/said', 'faq', split='train')\nprint(rows.column_names)\nprint(rows{columns}.column_names)"
    _, out, _ = server.client(code)
    flat = ["query", "passage", "negative_1", "negative_2", "negative_3"]
    extra = [
        "id",
        "passage_id",
        "negative_ids",
        "positive_score",
        "negative_scores",
        "negative_ranks",
        "label",
        "positive_origin",
        "negative_origin",
    ]
    assert out.splitlines() == [str(flat + extra), str(flat)]
    frame = lies(server, "org/said", "faq")
    mined = tables.read_table(made / "mined/faq", "pairs").filter(pl.col("id").is_in(frame["id"].implode()))
    assert frame["id"].to_list() == mined["id"].to_list()
    assert frame["negative_scores"].to_list() == mined["negative_scores"].list.head(3).to_list()
    assert set(frame["negative_origin"].explode()) == {"mined"}
    assert frame["positive_origin"].list.len().to_list() == mined["positives"].list.len().to_list()
    assert set(frame["positive_origin"].explode()) == {"given"}
