"""The small Hub of the tests answers the real huggingface_hub and datasets as the Hub does."""

from __future__ import annotations

import json

import pytest

from tests.servers.hub_server import hub

API = "from huggingface_hub import HfApi, CommitOperationAdd\nimport json\napi = HfApi()\n"
SAY = "\ndef tried(call):\n    try:\n        call()\n    except Exception as error:\n        print(type(error).__name__, getattr(getattr(error, 'response', None), 'status_code', ''), str(error).replace('\\n', ' ')[:300])\n    else:\n        print('done')\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


def run(server, code, token="hf_owner"):
    status, out, errors = server.client(API + SAY + code, token, server.folder / f"home-{token}")
    assert status == 0, errors
    return out


def test_a_repository_from_its_making_to_its_end(server, tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "en/train-00000-of-00001.csv").write_text("query,passage\na,1\nb,2\n")
    (tmp_path / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: en\n  data_files: en/train-*\n---\n# card\n")
    code = f"""
print(api.whoami()["name"])
print(api.create_repo("org/first", repo_type="dataset"))
print(api.create_repo("org/first", repo_type="dataset", exist_ok=True))
tried(lambda: api.create_repo("org/first", repo_type="dataset"))
api.upload_folder(repo_id="org/first", folder_path="{tmp_path}", repo_type="dataset")
api.create_tag("org/first", tag="v1", repo_type="dataset")
old = api.dataset_info("org/first").sha
add = [CommitOperationAdd("data.parquet", b"PAR1" + bytes(5000)), CommitOperationAdd("note.txt", b"second")]
new = api.create_commit("org/first", add, commit_message="more", repo_type="dataset", parent_commit=old).oid
tried(lambda: api.create_commit("org/first", [CommitOperationAdd("note.txt", b"third")], commit_message="late", repo_type="dataset", parent_commit=old))
print(sorted(api.list_repo_files("org/first", repo_type="dataset")), sorted(api.list_repo_files("org/first", repo_type="dataset", revision="v1")))
print([one.title for one in api.list_repo_commits("org/first", repo_type="dataset")])
refs = api.list_repo_refs("org/first", repo_type="dataset")
print([one.name for one in refs.branches], [(one.name, one.target_commit == old) for one in refs.tags])
print([(one.path, one.size, one.lfs is not None) for one in api.get_paths_info("org/first", ["data.parquet", "en", "none"], repo_type="dataset") if hasattr(one, "lfs")])
print([one.path for one in api.list_repo_tree("org/first", repo_type="dataset")])
info = api.dataset_info("org/first", revision="v1")
print(info.card_data.license, info.tags, info.sha == old)
print(open(api.hf_hub_download("org/first", "note.txt", repo_type="dataset")).read())
print(api.get_hf_file_metadata(url="{server.endpoint}/datasets/org/first/resolve/main/data.parquet").size)
print([one.id for one in api.list_datasets(search="FIRST")])
tried(lambda: api.hf_hub_download("org/first", "none.txt", repo_type="dataset"))
tried(lambda: api.dataset_info("org/first", revision="v9"))
tried(lambda: api.upload_file(path_or_fileobj=b"---\\nlicense: free\\n---\\n", path_in_repo="README.md", repo_id="org/first", repo_type="dataset"))
api.delete_repo("org/first", repo_type="dataset")
tried(lambda: api.dataset_info("org/first"))
"""
    lines = run(server, code).splitlines()
    assert lines[:3] == ["owner", f"{server.endpoint}/datasets/org/first", f"{server.endpoint}/datasets/org/first"]
    assert lines[3].startswith("HfHubHTTPError 409")
    assert lines[4].startswith("HfHubHTTPError 412")
    first = [".gitattributes", "README.md", "en/train-00000-of-00001.csv"]
    assert lines[5] == f"{sorted([*first, 'data.parquet', 'note.txt'])} {first}"
    assert lines[6] == "['more', 'Upload folder using huggingface_hub', 'initial commit']"
    assert lines[7] == "['main'] [('v1', True)]"
    assert lines[8] == "[('data.parquet', 5004, True)]"
    assert sorted(json.loads(lines[9].replace("'", '"'))) == [".gitattributes", "README.md", "data.parquet", "en", "note.txt"]
    assert lines[10:14] == ["mit ['license:mit'] True", "second", "5004", "['org/first']"]
    assert lines[14].startswith("RemoteEntryNotFoundError 404")
    assert lines[15].startswith("RevisionNotFoundError 404")
    assert lines[16].startswith('ValueError  Invalid metadata in README.md. - "license" must be one of')
    assert lines[17].startswith("RepositoryNotFoundError 404")


def test_who_may_what(server):
    server.put("datasets", "org/open", {"a.txt": "1"})
    server.put("datasets", "org/hidden", {"a.txt": "1"}, private=True)
    server.put("datasets", "org/gated", {"a.txt": "1"}, gated="auto")
    code = """
for id_ in ("org/open", "org/hidden", "org/gated"):
    tried(lambda: api.dataset_info(id_))
    tried(lambda: api.hf_hub_download(id_, "a.txt", repo_type="dataset"))
    tried(lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="b.txt", repo_id=id_, repo_type="dataset"))
tried(lambda: api.create_repo("org/new", repo_type="dataset", private=True))
"""
    outcomes = {
        token: [" ".join(line.split(" ")[:2]) for line in run(server, code, token).splitlines()]
        for token in ("hf_owner", "hf_reader", "hf_other", "", "hf_wrong")
    }
    missing, refused, anonymous = "RepositoryNotFoundError 404", "HfHubHTTPError 403", "RepositoryNotFoundError 401"
    assert outcomes["hf_owner"] == ["done"] * 10
    assert outcomes["hf_reader"] == ["done", "done", refused] * 3 + [refused]
    assert outcomes["hf_other"] == [
        "done",
        "done",
        refused,
        missing,
        missing,
        missing,
        "done",
        "GatedRepoError 403",
        refused,
        refused,
    ]
    unsigned = "HfHubHTTPError 401"
    assert outcomes[""] == [
        "done",
        "done",
        unsigned,
        anonymous,
        anonymous,
        anonymous,
        "done",
        "GatedRepoError 401",
        unsigned,
        unsigned,
    ]
    assert set(outcomes["hf_wrong"]) == {"HfHubHTTPError 401"}


def test_datasets_load_by_config_tag_stream_and_converted_branch(server):
    card = "---\nconfigs:\n- config_name: en\n  data_files: en/train-*\n- config_name: de\n  data_files: de/train-*\n---\n"
    files = {"README.md": card, "en/train-0.csv": "q,p\na,1\nb,2\n", "de/train-0.csv": "q,p\nc,3\n"}
    server.put("datasets", "org/words", files, tag="v1")
    server.put("datasets", "org/words", {"en/train-0.csv": "q,p\nz,9\n"})
    server.put("datasets", "org/words", {"en/train/0000.jsonl": '{"q": "converted"}\n'}, rev="refs/convert/parquet")
    code = """
import datasets
print(datasets.get_dataset_config_names("org/words"))
for name, more in (("en", {}), ("de", {}), ("en", {"revision": "v1"}), ("en", {"streaming": True})):
    print([row["q"] for row in datasets.load_dataset("org/words", name, split="train", **more)])
print(datasets.load_dataset("org/words", revision="refs/convert/parquet", data_files="en/train/*.jsonl", split="train")["q"][:])
tried(lambda: datasets.load_dataset("org/none", split="train"))
"""
    lines = run(server, code).splitlines()
    assert lines[:6] == ["['en', 'de']", "['z']", "['c']", "['a', 'b']", "['z']", "['converted']"]
    assert lines[6].startswith("DatasetNotFoundError  Dataset 'org/none' doesn't exist on the Hub")


def test_a_gated_dataset_is_named_as_such(server):
    server.put("datasets", "org/closed", {"train.csv": "q\na\n"}, gated="manual")
    code = "import datasets\ntried(lambda: datasets.load_dataset('org/closed', split='train'))"
    assert "is a gated dataset" in run(server, code, "")
    assert run(server, code) == "done\n"


def test_models_load(server):
    server.put("models", "org/model", {"config.json": "{}", "model.safetensors": b"\x00" * 10})
    code = """
print(sorted(name for name in api.list_repo_files("org/model")))
from pathlib import Path
print(sorted(path.name for path in Path(api.snapshot_download("org/model")).iterdir()))
"""
    files = [".gitattributes", "config.json", "model.safetensors"]
    assert run(server, code).splitlines() == [str(files), str(files)]


def test_faults_come_when_they_were_asked_for(server):
    server.put("datasets", "org/faulty", {"a.txt": "1"})
    code = "tried(lambda: api.upload_file(path_or_fileobj=b'x', path_in_repo='b.txt', repo_id='org/faulty', repo_type='dataset'))"
    server.fail(503, 1, "POST .*/commit/")
    assert run(server, code).startswith("HfHubHTTPError 503")
    assert run(server, code) == "done\n"


def test_xet_keeps_what_was_sent_and_gives_it_back(tmp_path):
    with hub(tmp_path / "hub", xet=True) as server:
        content = bytes(range(256)) * 2000
        code = """
content = bytes(range(256)) * 2000
api.create_repo("org/large", repo_type="dataset")
api.create_commit("org/large", [CommitOperationAdd("x.bin", content), CommitOperationAdd("README.md", b"text")], commit_message="large", repo_type="dataset")
"""
        run(server, code)
        assert not any(path.startswith("/lfs") for _, path, _ in server.requests)
        assert server.storage.files("org/large") == {"README.md": b"text", "x.bin": content}
        assert (
            run(server, "print(len(open(api.hf_hub_download('org/large', 'x.bin', repo_type='dataset'), 'rb').read()))")
            == "512000\n"
        )
