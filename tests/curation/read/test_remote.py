"""URLs in `files`: real stores over loopback, what a build says of them, and what happens when they fail."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from curation.build.build import build
from curation.build.check import check
from curation.build.preview import preview
from curation.core.errors import ManifestError, SourceError
from curation.core.store import file_digest, read_json
from curation.read import remote, stores
from curation.read.lock import read_lock, write_lock
from curation.read.sources import file_states, input_digests, table_rows
from curation.recipe.addresses import public_names, public_url
from curation.recipe.evaluation import EvalSet
from curation.recipe.manifest import load_manifest
from curation.recipe.source import Table
from curation.share.publish import plan
from curation.share.verify import problems
from tests.servers.hub_server import hub
from tests.servers.store_server import web

SECRETS = ("hunter2", "deadbeef", "sesame")


def lines(name: str, count: int = 6) -> bytes:
    """Return rows whose texts nothing else has."""
    rows = ({"q": f"what is {name} number {n}", "a": f"{name} number {n} is a thing of its own"} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def manifest(folder: Path, head: str = "", **files: object) -> Path:
    """Write a manifest with a source for each of `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = "license: mit, task: retrieval, fields: {query: q, positive: a}"
    path = folder / "m.yaml"
    sources = "".join(f"  - {{name: {name}, files: {json.dumps(value)}, {fields}}}\n" for name, value in files.items())
    path.write_text(f"name: m\n{head}sources:\n{sources}")
    return path


def locked(path: Path) -> dict[str, str]:
    kept = load_manifest(path)
    return {name: str(error) for name, error in write_lock(path, kept, [source.name for source in kept.sources]).items()}


def failures(path: Path, folder: Path) -> dict[str, str]:
    return {name: str(error) for name, error in build(path, folder).failed.items()}


def rows_of(folder: Path, *files: str, **more: object) -> list[dict]:
    return [row for rows in table_rows(Table(files=list(files), **more), folder) for row in rows.frame.iter_rows(named=True)]


def refused(folder: Path, *files: str, **more: object) -> str:
    with pytest.raises(SourceError) as caught:
        input_digests(Table(files=list(files), **more), folder)
    return str(caught.value)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """A cache of its own, and short waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "STORE_WAITS", (0.01, 0.01))
    monkeypatch.setattr(stores, "SECONDS", 5)


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@contextmanager
def bucket(**objects: bytes):
    """Run an S3 with one bucket; yield (its client, the variables that lead there)."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        import boto3

        about = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
        about |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}"}
        client = boto3.client(
            "s3",
            endpoint_url=about["AWS_ENDPOINT_URL"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="texts")
        for key, value in objects.items():
            client.put_object(Bucket="texts", Key=key, Body=value)
        yield client, about
    finally:
        server.stop()


# --- what URLs name ---


def test_a_pattern_names_the_objects_that_a_store_lists(memory, tmp_path):
    for name in ("en/a.jsonl", "en/b.jsonl", "de/a.jsonl", "de/.hidden.jsonl", "c.csv"):
        memory.pipe(f"/data/{name}", lines(name, 1))
    found = input_digests(Table(files=["memory://data/**/*.jsonl", "memory://data/en/a.jsonl"]), tmp_path)
    assert list(found) == ["memory://data/de/a.jsonl", "memory://data/en/a.jsonl", "memory://data/en/b.jsonl"]
    (tmp_path / "a.jsonl").write_bytes(lines("en/a.jsonl", 1))
    assert found["memory://data/en/a.jsonl"] == file_digest(tmp_path / "a.jsonl")
    assert len(rows_of(tmp_path, "memory://data/*/a.jsonl", "a.jsonl")) == 3


def test_readers_see_folders_and_counterparts_as_in_files_of_this_machine(memory, tmp_path):
    for name, text in {"neg/1.txt": "bad", "pos/2.txt": "good", "x.en": "one\ntwo\n", "x.de": "eins\nzwei\n"}.items():
        memory.pipe(f"/data/{name}", text.encode())
    labelled = rows_of(tmp_path, "memory://data/*/*.txt", reader="folders")
    assert [(row["label"], row["text"]) for row in labelled] == [("neg", "bad"), ("pos", "good")]
    pairs = rows_of(tmp_path, "memory://data/*.en", "memory://data/*.de", reader="aligned", header=["en", "de"])
    assert [(row["en"], row["de"]) for row in pairs] == [("one", "eins"), ("two", "zwei")]


def test_packed_files_and_archives(memory, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in/a.jsonl", lines("zipped", 2))
    memory.pipe("/z.zip", (tmp_path / "z.zip").read_bytes())
    memory.pipe("/g.jsonl.gz", gzip.compress(lines("packed", 3)))
    assert [len(rows_of(tmp_path, f"memory://{name}")) for name in ("z.zip", "g.jsonl.gz")] == [2, 3]


def test_an_evaluation_set_and_qrels_may_be_anywhere(memory, tmp_path):
    memory.pipe("/test.jsonl", lines("shared", 2))
    memory.pipe("/beir/corpus.jsonl", b'{"_id": "d", "title": "Oak", "text": "Oaks bear acorns."}\n')
    memory.pipe("/beir/queries.jsonl", b'{"_id": "q", "text": "acorn tree"}\n')
    memory.pipe("/beir/qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq\td\t1\n")
    own = ("who wrote Faust", "Goethe"), ("where do storks spend winters", "in Africa"), ("how is glass made", "of molten sand")
    rows = [json.dumps({"q": query, "a": answer}) for query, answer in own]
    (tmp_path / "a.jsonl").write_bytes("\n".join(rows).encode() + b"\n" + lines("shared", 2))
    head = "decontaminate: {against: [{files: memory://test.jsonl, fields: {query: q, positive: a}}]}\n"
    path = manifest(tmp_path, head, own="a.jsonl")
    path.write_text(
        path.read_text() + "  - {name: ranked, reader: beir, files: memory://beir, split: test, license: mit, task: retrieval}\n"
    )
    outcome = build(path, tmp_path / "b")
    assert {name: receipt["kept"] for name, receipt in outcome.receipts.items()} == {"own": 3, "ranked": 1}
    assert locked(path) == {}
    assert list(read_lock(tmp_path / "m.lock")["ranked"]["corpus"]["inputs"]) == ["memory://beir/corpus.jsonl"]


# --- addresses ---


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a/*.csv", "s3://bucket/a/*.csv"),
        ("https://me:hunter2@host:8080/a.csv", "https://host:8080/a.csv"),
        ("https://hunter2@host/a.csv", "https://host/a.csv"),
        ("https://host/a.csv?X-Amz-Signature=deadbeef&X-Amz-Expires=9", "https://host/a.csv"),
        ("https://host/get?id=5&token=sesame#part", "https://host/get?id=5"),
        ("sftp://me:hunter2@host/a.csv", "sftp://host/a.csv"),
        ("abfs://container@account.dfs.core.windows.net/a.csv", "abfs://container@account.dfs.core.windows.net/a.csv"),
        ("hf://datasets/org/name@main/a.csv", "hf://datasets/org/name@main/a.csv"),
    ],
)
def test_a_url_without_its_credentials(url, shown):
    assert public_url(url) == shown
    assert public_url(shown) == shown


def test_addresses_that_differ_only_in_what_is_not_shown_get_numbers():
    names = ["https://h/d?key=1", "a.csv", "https://h/d?key=2", "https://h/d?key=1"]
    shown = ["https://h/d", "a.csv", "https://h/d#2", "https://h/d"]
    assert public_names(names) == Table(files=names, reader="csv").files == shown
    assert public_names(shown) == shown


def test_credentials_get_nowhere(tmp_path):
    with web({"/a.jsonl": lines("signed"), "/b/c.jsonl": lines("basic"), "/t.jsonl": lines("test")}) as server:
        signed = f"{server.url}/a.jsonl?X-Amz-Signature=deadbeef"
        basic = server.url.replace("://", "://me:hunter2@") + "/b/*.jsonl"
        head = f"decontaminate: {{against: [{{files: '{server.url}/t.jsonl?token=sesame', fields: {{query: q}}}}]}}\n"
        path = manifest(tmp_path / "in", head, signed=signed, basic=[basic], broken=f"{server.url}/no.jsonl?token=sesame")
        errors = [*locked(path).values(), *failures(path, tmp_path / "b").values()]
        assert errors == [f"{server.url}/no.jsonl: no such object; check the address", f"source 'broken': is not in m.lock; run `curate lock {path} --only broken`"]  # fmt: skip
        (tmp_path / "in/m.lock").unlink()
        errors += failures(path, tmp_path / "b").values()
        first = (tmp_path / "b/curated/signed/done.json").read_bytes()
        path.write_text(path.read_text().replace("deadbeef", "feedface"))  # signed again: nothing is built again
        assert build(path, tmp_path / "b").ran == set()
    assert (tmp_path / "b/curated/signed/done.json").read_bytes() == first
    found = [one for top in ("b", "cache") for one in (tmp_path / top).rglob("*") if one.is_file()]
    assert not [one for one in found if any(secret.encode() in one.read_bytes() for secret in (*SECRETS, "feedface"))]
    assert not any(secret in error for error in errors for secret in SECRETS)
    assert list(read_json(tmp_path / "b/curated/basic/done.json")["inputs"]) == [f"{server.url}/b/c.jsonl"]
    assert f"{server.url}/a.jsonl" in (tmp_path / "b/ATTRIBUTION.md").read_text().replace("\\", "")
    assert load_manifest(tmp_path / "b/manifest.yaml").sources[0].files == [f"{server.url}/a.jsonl"]
    assert problems(tmp_path / "b") == []


# --- the cache and the lock ---


def test_an_object_is_fetched_once_and_again_when_it_has_changed(tmp_path):
    with web({"/a.jsonl": lines("a"), "/d/b.jsonl": lines("b")}) as server:
        path = manifest(tmp_path, a=f"{server.url}/a.jsonl", b=f"{server.url}/d/*.jsonl")
        assert failures(path, tmp_path / "b") == {}
        assert sorted(set(server.gets()) - {"/d/"}) == ["/a.jsonl", "/d/b.jsonl"]
        before = len(server.gets())
        assert build(path, tmp_path / "b").ran == set()
        assert set(server.gets()[before:]) == {"/d/"}  # the index
        server.files["/a.jsonl"] = lines("other")
        assert build(path, tmp_path / "b").ran == {"a"}
        assert server.gets().count("/a.jsonl") == 2


@pytest.mark.parametrize("marks", [("Length", "Last-Modified"), ("Length",), ()])
def test_stores_without_etags(tmp_path, marks):
    with web({"/a.jsonl": lines("a")}) as server:
        server.marks = marks
        path = manifest(tmp_path, a=f"{server.url}/a.jsonl")
        assert locked(path) == {}
        assert failures(path, tmp_path / "b") == {}
        assert build(path, tmp_path / "b").ran == set()
        server.files["/a.jsonl"] = lines("other", 7)
        assert failures(path, tmp_path / "b") == {
            "a": f"source 'a': '{server.url}/a.jsonl' has changed since m.lock was written; undo that, or run `curate lock` again"
        }


def test_a_locked_source_is_compared_by_content_and_needs_no_store(tmp_path, caplog):
    with web({"/a.jsonl": lines("a"), "/d/b.jsonl": lines("b")}) as server:
        path = manifest(tmp_path, a=f"{server.url}/a.jsonl", b=f"{server.url}/d/*.jsonl")
        assert locked(path) == {}
        entry = read_lock(tmp_path / "m.lock")["b"]
        ((url, version, size),) = entry["objects"][f"{server.url}/d/*.jsonl"]
        assert (url, version[:5], size) == (f"{server.url}/d/b.jsonl", "etag ", len(lines("b")))
        assert failures(path, tmp_path / "b") == {}
        server.marks = ("Length", "Last-Modified")  # another version of the same content
        assert failures(path, tmp_path / "b") == {}
        server.files["/d/c.jsonl"] = lines("c")
        server.files["/a.jsonl"] = lines("other", 7)
        again = "since m.lock was written; undo that, or run `curate lock` again"
        assert failures(path, tmp_path / "b") == {
            "a": f"source 'a': '{server.url}/a.jsonl' has changed {again}",
            "b": f"source 'b': '{server.url}/d/c.jsonl' is new {again}",
        }
        notes = check(path, online=True)["notes"]
        assert [note.split(": is not")[0] for note in notes] == [
            f"{server.url}/{name}" for name in ("a.jsonl", "d/b.jsonl", "d/c.jsonl")
        ]
        server.faults["/a.jsonl"] = [403]  # as for a signature that has expired
        assert "a" not in failures(path, tmp_path / "b")
        assert f"{server.url}/a.jsonl: may not be read (403); its locked copies are read" in caplog.messages
        del server.files["/a.jsonl"], server.faults["/a.jsonl"]
        assert failures(path, tmp_path / "b")["a"] == f"{server.url}/a.jsonl: no such object; check the address"
    assert failures(path, tmp_path / "new") == {}  # the store is gone, and the copies are there
    assert problems(tmp_path / "new") == []
    (tmp_path / "m.lock").unlink()
    assert failures(path, tmp_path / "new")["a"].startswith(f"{server.url}/a.jsonl: cannot be reached (")


def test_check_asks_no_store_unless_online(tmp_path):
    with web({"/a.jsonl": lines("a", 40)}) as server:
        path = manifest(tmp_path, a=f"{server.url}/a.jsonl", b=f"{server.url}/no.jsonl")
        found = check(path)
        assert (found["problems"], server.requests) == ([], [])
        assert found["outside"] == {"source 'a'": [f"{server.url}/a.jsonl"], "source 'b'": [f"{server.url}/no.jsonl"]}
        found = check(path, online=True)
        assert found["problems"] == [f"source 'b': {server.url}/no.jsonl: no such object; check the address"]
        assert found["estimate"]["fetched_bytes"] == len(lines("a", 40))
        assert not [name for method, name in server.requests if method == "GET" and name == "/a.jsonl"]
        shown: list[str] = []
        preview(path, ["a"], None, shown.append)
        assert shown[0] == "a: retrieval, shape pairs, columns q, a"


def test_a_copy_that_was_cut_or_deleted_is_fetched_again(tmp_path):
    with web({"/a.jsonl": lines("a")}) as server:
        path = manifest(tmp_path, a=f"{server.url}/a.jsonl")
        assert locked(path) == {}
        (copy,) = (tmp_path / "cache/tuplesmith/remote").rglob("a.jsonl")
        copy.write_bytes(lines("a")[:50])
        assert failures(path, tmp_path / "b") == {}
        assert copy.read_bytes() == lines("a")
        copy.write_bytes(lines("b"))  # of the same size: only its content tells
        assert "has changed since m.lock was written" in failures(path, tmp_path / "b")["a"]
        copy.unlink()
        assert failures(path, tmp_path / "b") == {}


# --- confined ---


def test_a_confined_manifest_reads_no_url_but_those_of_the_hub(tmp_path):
    with web({"/a.jsonl": lines("a")}) as server:
        (tmp_path / "good.jsonl").write_bytes(lines("good"))
        path = manifest(tmp_path, good="good.jsonl", far=f"{server.url}/a.jsonl", far_too=["good.jsonl", "s3://bucket/*.jsonl"])
        said = "outside of the manifest's folder; `--confined` reads nothing there"
        outcome = build(path, tmp_path / "b", confined=True)
        assert {name: str(error) for name, error in outcome.failed.items()} == {
            "far": f"source 'far': reads '{server.url}/a.jsonl', {said}",
            "far_too": f"source 'far_too': reads 's3://bucket/*.jsonl', {said}",
        }
        head = f"decontaminate: {{against: [{{files: {server.url}/a.jsonl, fields: {{query: q}}}}]}}\n"
        with pytest.raises(ManifestError, match="evaluation set .* names .*a.jsonl', outside of the manifest's folder"):
            build(manifest(tmp_path, head, good="good.jsonl"), tmp_path / "b", confined=True)
        assert server.requests == []
    path = manifest(tmp_path, far="hf://datasets/org/name/a.jsonl")
    assert check(path, confined=True)["problems"] == []


# --- what bad input gets ---


def test_what_is_wrong_with_an_address(memory, tmp_path):
    memory.pipe("/data/a.jsonl", lines("a"))
    said = {
        "htps://host/a.csv": "unknown scheme 'htps' (did you mean 'https'?); s3, gs, https and hf are read",
        "file:///etc/passwd": "'file://' is not a store that can be read; name a file of this machine by its path alone",
        "memory://data": "is a folder; name its files, such as `memory://data/*.jsonl`",
        "memory://data/b.jsonl": "no such object (did you mean 'a.jsonl'?); check the address",
        "memory://data/*.csv": "matches no object; check the pattern",
        "hf://models/a.csv": "does not name files of a dataset; the form is hf://datasets/ORG/NAME/PATH, or NAME@REVISION",
        "simplecache::https://host/a.csv": None,
        "zip://a.csv::https://host/a.zip": "chains file systems, which is not read; name the object itself; `member:` names files in an archive",
    }  # fmt: skip
    for url, text in said.items():
        if text:
            assert refused(tmp_path, url) == f"{url}: {text}"
    with pytest.raises(ValueError, match="'s3://bucket/a.csv' is a URL, so 'path' has no effect; remove it"):
        Table(path="org/name", files=["s3://bucket/a.csv"])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for module in ("gcsfs", "s3fs", "aiohttp"):
        monkeypatch.setitem(sys.modules, module, None)
    for scheme, extra in {"gs": "gcs", "s3": "s3", "https": "http"}.items():
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
        line = refused(tmp_path, f"{scheme}://place/a.csv")
        assert line.startswith(f"{scheme}://place/a.csv: a package for '{scheme}://' is missing (")
        assert line.endswith(f"); pip install 'tuplesmith[{extra}]'")


def test_settings_of_a_store_that_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    line = refused(tmp_path, "s3://texts/a.csv")
    assert (
        line
        == "s3://texts/a.csv: cannot be read (ProfileNotFound: The config profile (nobody) could not be found); check the address"
    )
    assert refused(tmp_path, "https://host:port/a.csv").startswith("https://host:port/a.csv: cannot be read (")


AGAIN = "check the network and the address, or run the same command again in a while"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, "may not be read (401); a signed address may have expired; a login belongs into ~/.netrc"),
        (403, "may not be read (403); a signed address may have expired; a login belongs into ~/.netrc"),
        (404, "no such object; check the address"),
        (416, "the store answers 416; check the address"),
        (503, f"the store answers 503; {AGAIN}"),
        (302, "redirects in a loop, or to no web address; name the address that it leads to in a browser"),
        ("cut", f"the download was cut off; {AGAIN}"),
        ("hang", f"does not answer within 0.3 s; {AGAIN}"),
    ],
)
def test_a_store_that_fails(tmp_path, monkeypatch, fault, said):
    monkeypatch.setattr(stores, "SECONDS", 0.3)
    with web({"/a.jsonl": lines("a", 400)}) as server:
        server.faults["/a.jsonl"] = [fault]
        assert refused(tmp_path, f"{server.url}/a.jsonl") == f"{server.url}/a.jsonl: {said}"
    assert not [one for one in (tmp_path / "cache").rglob("*") if one.is_file() and one.name != "lock"]


def test_a_failure_that_passes_is_tried_again(tmp_path, caplog):
    cut_twice = iter(["cut", "cut"])
    with web({"/a.jsonl": lines("a", 400), "/b.jsonl": lines("b")}) as server:
        server.faults["/a.jsonl"] = [lambda method: next(cut_twice, None) if method == "GET" else None]
        server.faults["/b.jsonl"] = [503, 503, None]
        assert len(rows_of(tmp_path, f"{server.url}/a.jsonl", f"{server.url}/b.jsonl")) == 406
        assert server.gets().count("/a.jsonl") == 3
    assert f"{server.url}/a.jsonl: the download was cut off; trying again in 0.01 s" in caplog.messages


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on_where_it_ended(tmp_path, ranges):
    whole = lines("a", 400)
    cut_once = iter(["cut"])
    with web({"/a.jsonl": whole}) as server:
        server.marks = ("ETag", "Length", *(["Ranges"] if ranges else []))
        server.faults["/a.jsonl"] = [lambda method: next(cut_once, None) if method == "GET" else None]
        assert len(rows_of(tmp_path, f"{server.url}/a.jsonl")) == 400
        assert server.sent == (len(whole) if ranges else len(whole) // 2 + 2 * len(whole))
    (copy,) = (tmp_path / "cache").rglob("a.jsonl")
    assert copy.read_bytes() == whole


def test_without_a_version_no_object_is_put_together_from_two(tmp_path):
    before, after = lines("a", 400), lines("b", 400)
    with web({"/a.jsonl": before}) as server:
        server.marks = ("Length", "Ranges")
        gets = iter(range(9))

        def change(method: str) -> str | None:
            number = next(gets) if method == "GET" else -1
            if number > 0:
                server.files["/a.jsonl"] = after
            return "cut" if number == 0 else None

        server.faults["/a.jsonl"] = [change]
        rows_of(tmp_path, f"{server.url}/a.jsonl")
    assert len(before) == len(after)
    (copy,) = (tmp_path / "cache").rglob("a.jsonl")
    assert copy.read_bytes() == after


def test_a_store_that_nobody_answers_for(tmp_path):
    with web({}) as server:
        pass
    for name in ("a.jsonl", "d/*.jsonl"):
        assert refused(tmp_path, f"{server.url}/{name}").startswith(
            f"{server.url}/{name}: cannot be reached (ConnectionRefusedError); "
        )


def test_an_object_that_changes_while_it_is_fetched(tmp_path):
    with web({"/a.jsonl": lines("a")}) as server:

        def change(method: str) -> None:
            if method == "GET":
                server.files["/a.jsonl"] = lines("b")

        server.faults["/a.jsonl"] = [change]
        line = refused(tmp_path, f"{server.url}/a.jsonl")
        assert line == f"{server.url}/a.jsonl: changed while it was fetched; run again when nothing writes to it"
        assert len(rows_of(tmp_path, f"{server.url}/a.jsonl")) == 6


def test_a_web_page_is_no_data(tmp_path):
    with web({"/a.jsonl": b"\n <!DOCTYPE html><title>Sign in</title>", "/b.html": b"<html>text</html>\n"}) as server:
        line = refused(tmp_path, f"{server.url}/a.jsonl")
        assert (
            line
            == f"{server.url}/a.jsonl: is a web page, not a data file; name the address that its download link leads to; a login may be needed"
        )
        assert len(rows_of(tmp_path, f"{server.url}/b.html", reader="lines", pattern="(?P<q>.*)")) == 1


def test_a_packed_file_that_the_server_declares_as_encoded(tmp_path):
    with web({"/d/a.jsonl.gz": gzip.compress(lines("a"))}) as server:
        assert len(rows_of(tmp_path, f"{server.url}/d/a.jsonl.gz")) == 6
        shutil.rmtree(tmp_path / "cache")
        assert len(rows_of(tmp_path, f"{server.url}/d/*")) == 6


# --- S3, a web server and the Hub in one manifest ---


def test_three_stores_in_one_manifest_locked_built_verified_and_rebuilt_without_a_fetch(tmp_path):
    code = "from curation.cli import curate; curate()"

    def run(environment: dict[str, str], *words: object) -> str:
        done = subprocess.run([sys.executable, "-c", code, *map(str, words)], env=os.environ | environment, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    objects = {"data/a.jsonl": lines("a"), "data/b.jsonl": lines("b"), "other.txt": b"x"}
    with (
        bucket(**objects) as (_, aws),
        web({"/c.jsonl": lines("c")}) as server,
        hub(tmp_path / "hub") as far,
    ):
        far.put("datasets", "org/name", {"train/d.jsonl": lines("d").decode(), "train/e.jsonl": lines("e").decode()})
        where = far.environment(home=tmp_path / "hf") | aws
        path = manifest(
            tmp_path / "in",
            s3="s3://texts/data/*.jsonl",
            web=f"{server.url}/c.jsonl",
            hub="hf://datasets/org/name/train/*.jsonl",
        )
        run(where, "lock", path)
        run(where, "build", path, "-o", tmp_path / "b", "-j", "2")
        assert problems(tmp_path / "b") == []
        assert server.gets() == ["/c.jsonl"]
        fetched = [name for method, name, _ in far.requests if method == "GET" and "/resolve/" in name]
        run(where, "build", path, "-o", tmp_path / "again", "-j", "1")
        assert server.gets() == ["/c.jsonl"]
        assert [name for method, name, _ in far.requests if method == "GET" and "/resolve/" in name] == fetched
        far.put("datasets", "org/name", {"train/d.jsonl": lines("newer").decode()})
        run(where, "build", path, "-o", tmp_path / "again")  # the commit is locked
    for switched in ("0", "1"):  # all three stores are gone
        run(where | {"HF_HUB_OFFLINE": switched}, "build", path, "-o", tmp_path / f"offline{switched}")
    for name in ("again", "offline0", "offline1"):
        assert {one.relative_to(tmp_path / name): one.read_bytes() for one in (tmp_path / name).rglob("*") if one.is_file() and one.name != "timings.json"} == {
            one.relative_to(tmp_path / "b"): one.read_bytes() for one in (tmp_path / "b").rglob("*") if one.is_file() and one.name != "timings.json"
        }  # fmt: skip
    made = read_json(tmp_path / "b/build.json")["sources"]
    assert {name: entry["tuples"] for name, entry in made.items()} == {"s3": 12, "web": 6, "hub": 12}
    assert [*read_json(tmp_path / "b/curated/hub/done.json")["inputs"]] == [
        f"hf://datasets/org/name/train/{name}.jsonl" for name in "de"
    ]
    assert plan(tmp_path / "b", "me/set").pieces


def test_an_s3_object_that_changed_or_may_not_be_read(tmp_path, monkeypatch):
    with bucket(**{"a.jsonl": lines("a")}) as (client, aws):
        for name, value in aws.items():
            monkeypatch.setenv(name, value)
        path = manifest(tmp_path, a="s3://texts/*.jsonl")
        assert locked(path) == {}
        client.put_object(Bucket="texts", Key="a.jsonl", Body=lines("b"))
        assert failures(path, tmp_path / "b") == {
            "a": "source 'a': 's3://texts/a.jsonl' has changed since m.lock was written; undo that, or run `curate lock` again"
        }
        assert refused(tmp_path, "s3://nobody/a.jsonl") == "s3://nobody/a.jsonl: no such object; check the address"
        assert (
            refused(tmp_path, "s3://texts/b.jsonl")
            == "s3://texts/b.jsonl: no such object (did you mean 'a.jsonl'?); check the address"
        )
        assert EvalSet(files="s3://texts/a.jsonl", fields={"query": "q"}).title == "s3://texts/a.jsonl"


# --- elsewhere, and together ---


def test_another_node_fetches_the_same_version_or_fails(tmp_path, monkeypatch):
    with web({"/a.jsonl": lines("a"), "/b.jsonl": lines("b")}) as server:
        table = remote.pinned(Table(files=[f"{server.url}/a.jsonl?token=sesame", f"{server.url}/b.jsonl"]))
        sent, states = pickle.dumps(table), file_states(table, tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
        server.files["/b.jsonl"] = lines("c")
        there = pickle.loads(sent)
        with pytest.raises(SourceError, match=r"b.jsonl: changed while it was fetched; run again when nothing writes to it"):
            file_states(there, tmp_path)
        server.files["/b.jsonl"] = lines("b")
        assert file_states(there, tmp_path) == states
        assert ("GET", "/a.jsonl?token=sesame") in server.requests[-8:]


def test_signed_addresses_that_allow_no_head_request(tmp_path):
    with web({"/a.jsonl": lines("a")}) as server:
        server.faults["/a.jsonl"] = [lambda method: 403 if method == "HEAD" else None]
        assert len(rows_of(tmp_path, f"{server.url}/a.jsonl?X-Amz-Signature=deadbeef")) == 6


def test_many_objects_are_fetched_at_the_same_time_and_the_first_error_is_reported(tmp_path):
    names = [f"/{n}.jsonl" for n in range(20)]
    with web(dict.fromkeys(names, lines("a"))) as server:
        server.faults = {name: [lambda method: time.sleep(0.1)] for name in names}
        start = time.monotonic()
        assert len(input_digests(remote.pinned(Table(files=[server.url + name for name in names])), tmp_path)) == 20
        assert time.monotonic() - start < 20 * 3 * 0.1
        for name in ("/3.jsonl", "/17.jsonl"):
            server.faults[name] = [404]
        with pytest.raises(SourceError, match="/3.jsonl: no such object"):
            remote.pinned(Table(files=[server.url + name for name in names]))


def test_a_preview_fetches_one_object(tmp_path):
    with web({"/d/a.jsonl": lines("a"), "/d/b.jsonl": lines("b")}) as server:
        shown: list[str] = []
        preview(manifest(tmp_path, a=f"{server.url}/d/*.jsonl"), [], None, shown.append)
        assert "a number 0 is a thing of its own" in shown[1]
        assert set(server.gets()) == {"/d/", "/d/a.jsonl"}
