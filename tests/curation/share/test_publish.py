"""A build published on a Hub of our own with the real clients: the same rows when loaded back, and what the card says."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from curation.build.build import build
from curation.core import store, tables
from curation.core.card import head_of
from curation.core.errors import BuildError, HubError
from curation.core.escape import as_markdown
from curation.core.progress import silent
from curation.share import publish as publishing
from curation.share.importing import write_manifest
from curation.share.publish import plan
from curation.share.verify import problems
from mining.mine import mine_build
from tests.curation.share.small_published import (
    PUBLISHED,
    curate,
    expected,
    loaded,
    lock,
    make,
    published,
    rows_of,
)
from tests.mining.small_build import FakeEncoder
from tests.servers.hub_server import hub
from training.publish import plan_upload


@pytest.mark.parametrize("xet", [False, pytest.param(True, marks=pytest.mark.long)])
def test_each_config_comes_back_row_by_row(made, tmp_path, xet):
    with hub(tmp_path / "hub", xet=xet) as server:
        assert re.fullmatch(
            rf"{server.endpoint}/datasets/org/small at [0-9a-f]{{12}}: 9 of 9 files, [\d,]+ bytes\n",
            published(server, made, "org/small", "--tag", "v1"),
        )
        assert any(path.startswith("/lfs/") for _, path, _ in server.requests) is not xet
        rows = rows_of(made)
        assert min(map(len, rows.values())) > 300
        assert loaded(server, "org/small") == rows
        assert loaded(server, "org/small", revision="v1") == rows
        assert loaded(server, "org/small", streaming=True) == rows
        before = server.sent()
        assert published(server, made, "org/small", "--tag", "v1").endswith(": nothing to do\n")
        assert server.sent() == before
        names = [path for path in server.storage.files("org/small") if not path.endswith(".parquet")]
        assert names == ["ATTRIBUTION.md", "README.md", "manifest.lock", "manifest.yaml", "provenance.json", "report.html"]
        assert server.storage.files("org/small")["manifest.yaml"] == (made / "manifest.yaml").read_bytes()


def test_a_dry_run_shows_all_and_asks_nobody(server, made):
    before = len(server.requests)
    _, out, _ = curate(server, "publish", made, "org/dry", "--dry-run", "--json", "-q", token="")
    shown = json.loads(out)
    assert len(server.requests) == before
    assert shown["bytes"] == sum(shown["files"].values())
    assert shown["left_out"] == {"nobody": "it names no licence", "doubt": "it is not verified: who wrote it is open"}
    _, out, _ = curate(server, "publish", made, "org/dry", "--dry-run", "-q", token="")
    lines = out.splitlines()
    assert re.fullmatch(r"README.md +[\d,]+", lines[2])
    assert out.endswith(shown["card"] + "\n")


def test_the_card_tells_where_all_is_from(made):
    card = plan(made, "org/small").card
    head = head_of(card)
    assert (head["license"], head["license_name"]) == ("other", "mixture")
    assert [config["data_files"][0]["path"] for config in head["configs"]] == ["faq/train-*", "topics/train-*", "tone/train-*"]
    assert [info["splits"][0]["num_examples"] for info in head["dataset_info"]] == [len(rows) for rows in rows_of(made).values()]
    assert "| `faq` | faq.jsonl | - | [mit](https://example.org/faq), seen 2026-11-20 | retrieval | 400 | 395 |" in card
    assert "| `faq` | tuple | held out for evaluation | 5 |" in card
    assert "- `nobody`: it names no licence\n" in card
    assert "- `faq`: Faq, 2026\n" in card
    row = rows_of(made)["faq"][0]
    first, last = row["negative_1"], row["negative_3"]
    example = f"The first row of `faq`:\n\n| column | value |\n| --- | --- |\n| `query` | {as_markdown(row['query'])} |\n"
    assert (
        f"{example}| `passage` | {cut(row['passage'])} |\n| `negative_1` | {cut(first)} |\n| ... |  |\n| `negative_3` | {cut(last)} |\n"
        in card
    )
    window = "preset f2llm; the 30 nearest candidates that pass the filters; score at most 1; score at most 1 of the positive's"
    assert f"| `faq` | 3, passages that are nearest | `fake`, float32, 256 tokens | {window} |\n" in card
    assert "| `topics` | 3, texts of other classes | - | at random |\n| `tone` | 1, given by the source | - |  |\n" in card
    assert "- The texts were not compared with any evaluation set.\n" in card
    found = plan(made, "org/small", allow=["doubt", "nobody"])
    whole = found.pieces["report.html"].content.decode()
    part = plan(made, "org/small").pieces["report.html"].content.decode()
    for name in (*PUBLISHED, "nobody", "doubt"):
        assert f'<section class="source" id="source-{name}">' in whole
        assert (f'<section class="source" id="source-{name}">' in part) == (name in PUBLISHED)
    assert "it is not verified: who wrote it is open" in part
    allowed = found.card
    assert "`doubt` was published although it is in doubt: not verified (who wrote it is open)." in allowed
    assert "`nobody` was published although it is in doubt: its licence is 'not named'." in allowed
    assert "Sources left out" not in allowed


def cut(text):
    return as_markdown(text[:300] + ("..." if len(text) > 300 else ""))


def test_the_card_names_evaluation_sets_with_counts(made, tmp_path):
    """One set holds a query and an answer of the faq, another holds nothing of it; held-out queries are a set too."""
    other = tmp_path / "b"
    shutil.copytree(made.parent, other)
    lines = [json.loads(line) for line in (other / "faq.jsonl").read_text().splitlines()]
    for name, texts in (
        ("ours", [lines[7]["q"], lines[8]["a"][0]]),
        ("far", ["how many moons does the planet have in all its years"]),
    ):
        (other / f"{name}.jsonl").write_text(
            "".join(json.dumps({"q": text, "a": f"an answer of {name}"}) + "\n" for text in texts)
        )
    sets = [{"name": name, "files": f"{name}.jsonl", "fields": {"query": "q", "positive": "a"}} for name in ("ours", "far")]
    manifest = (other / "small.yaml").read_text()
    for mode, said in (("drop", "were dropped; negatives that do were removed"), ("report", "were counted, **and kept**")):
        (other / "small.yaml").write_text(manifest + f"decontaminate: {json.dumps({'mode': mode, 'against': sets})}\n")
        assert not build(other / "small.yaml", other / "build").failed
        mine_build(other / "build", load=lambda settings, device: FakeEncoder())
        card = plan(other / "build", "org/small", need_lock=False).card
        assert "not compared with any evaluation set" not in card
        assert said in card
        assert "| `ours` | 1 | 1 | 0 | 0 |\n" in card
        assert "\nNothing was found of `far`, `heldout/faq`.\n" in card


def test_pairs_alone_are_said_to_be_pairs(tmp_path):
    made = make(tmp_path / "b", rows=20, mined=False)
    dry = plan(made, "org/pairs", need_lock=False)  # as `--dry-run` does
    assert dry.notes == [
        "manifest.lock: it does not exist, and publishing needs it; `curate lock MANIFEST` writes it, and the next `curate build` copies it",
        "report.html of the build: it shows every source; one of the published sources is written instead",
    ]
    assert "manifest.lock" not in dry.pieces
    found = plan(lock(made), "org/pairs")
    assert found.notes == dry.notes[1:]
    assert "No hard negatives were mined: these are pairs only." in found.card
    frame = pl.read_parquet(found.pieces["faq/train-00000-of-00001.parquet"].content)
    assert frame.rows(named=True) == expected(made, "faq", 0)


def test_a_downloaded_version_is_verified_and_two_readers_agree(made, server, tmp_path):
    """What pyarrow reads from the files is what `datasets` loads; `curate verify` finds what is wrong with them."""
    published(server, made, "org/read", "--columns", "positives,ids,scores")
    folder = tmp_path / "copy"
    for path, data in server.storage.files("org/read").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    rows = loaded(server, "org/read")
    for source in PUBLISHED:
        (shard,) = (folder / source).iterdir()
        assert pq.read_table(shard).to_pylist() == rows[source]
    several = [row for row in rows["faq"] if len(row["positives"]) > 1]
    assert len(several) > 20
    assert {row["positives"][0] for row in several} == {row["passage"] for row in several}
    assert problems(folder) == []
    assert "further positives" not in (folder / "README.md").read_text()
    shard = folder / "tone/train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes() + b"x")
    (folder / "manifest.lock").unlink()
    assert [(Path(one.where).name, one.what) for one in problems(folder)] == [
        ("manifest.lock", "is missing"),
        (shard.name, "has another digest than provenance.json says"),
    ]
    mark = store.read_json(folder / "provenance.json")
    mark["sources"]["faq"] |= {"rows": 7, "features": []}
    store.write_json(folder / "provenance.json", mark)
    assert [one.what for one in problems(folder, ["faq"])] == [
        "is missing",
        f"rows {len(rows['faq'])} is not provenance.json's 7",
        "has other columns than provenance.json says",
    ]


def test_a_published_version_is_imported_with_ids_scores_and_all_positives(made, tmp_path):
    found = plan(made, "org/small", columns=["positives", "ids", "scores"])
    (tmp_path / "data").mkdir()
    for source in PUBLISHED:
        shutil.copy(found.pieces[f"{source}/train-00000-of-00001.parquet"].content, tmp_path / f"data/{source}.parquet")
    write_manifest(str(tmp_path / "data"), tmp_path / "m.yaml")
    assert not build(tmp_path / "m.yaml", tmp_path / "again").failed
    mine_build(tmp_path / "again")
    then, now = (tables_of(folder) for folder in (made, tmp_path / "again"))
    assert len(now) == len(rows_of(made)["faq"]) > 300
    assert now == {id_: then[id_] for id_ in now}


def tables_of(folder):
    """Return {id: texts and scores} of the mined faq."""
    texts = tables.read_table(folder / "curated/faq", "passages", ["text"])["text"]
    rows = tables.read_table(folder / "mined/faq", "pairs").iter_rows(named=True)
    named = {row["id"]: row for row in rows}
    return {
        id_: (
            [texts[pid] for pid in row["positives"]],
            [texts[pid] for pid in row["negatives"]],
            row["positive_score"],
            row["negative_scores"],
        )
        for id_, row in named.items()
    }


def test_large_sources_are_cut_into_shards(made, monkeypatch, tmp_path):
    monkeypatch.setattr(publishing, "SHARD_BYTES", 10_000)
    monkeypatch.setattr("curation.share.export.BLOCK_TUPLES", 64)
    receipts = [store.read_receipt(made / stage / "faq") for stage in ("curated", "mined")]
    names = list(publishing.write_shards(made, *receipts, None, (), silent, tmp_path)["shards"])
    assert len(names) > 3
    assert names == [f"train-{number:05d}-of-{len(names):05d}.parquet" for number in range(len(names))]
    frame = pl.concat([pl.read_parquet(tmp_path / name) for name in names])
    assert frame.rows(named=True) == expected(made, "faq", 3)


@pytest.mark.parametrize("repo", ["", "name", "org/", "a/b/c", "org/näme", "a/b c", "org/..", "o/" + "a" * 99])
def test_a_dry_run_refuses_a_name_that_the_hub_would(made, repo):
    for planned in (partial(plan, made, need_lock=False), partial(plan_upload, made)):
        with pytest.raises(HubError, match="is not a valid name on the Hub .*; use the form ORG/NAME$"):
            planned(repo=repo)


def test_what_cannot_be_published(made, tmp_path):
    other = tmp_path / "b"
    shutil.copytree(made, other)
    with pytest.raises(
        BuildError, match=r"no source 'tones' \(did you mean 'tone'\?\); sources: faq, topics, tone, nobody, doubt"
    ):
        plan(other, "org/x", allow=["tones"])
    path = other / "manifest.lock"
    whole = store.read_json(path)
    entries = whole["sources"]

    def locking(**changed):
        store.write_json(path, whole | {"sources": {name: one for name, one in (entries | changed).items() if one}})

    again = r"; run `curate lock` and `curate build` again"
    locking(tone=None)
    with pytest.raises(BuildError, match=r"manifest\.lock: does not lock 'tone'" + again):
        plan(other, "org/x")
    locking(tone=entries["tone"] | {"revision": "4457176"})
    with pytest.raises(BuildError, match="locks 'tone' at 4457176, and it was built at no revision" + again):
        plan(other, "org/x")
    locking(tone=entries["tone"] | {"inputs": {"topics.jsonl": "another"}})
    with pytest.raises(BuildError, match="locks 'tone' with another 'topics.jsonl' than it was built from" + again):
        plan(other, "org/x")
    path.unlink()
    with pytest.raises(
        BuildError,
        match=r"manifest\.lock: no lock file, so the sources' revisions and digests are not pinned; `curate lock MANIFEST` writes it",
    ):
        plan(other, "org/x")
    assert plan(other, "org/x", lock=made / "manifest.lock").sources.keys() == set(PUBLISHED)
    with pytest.raises(BuildError, match="no source is left to publish .*topics: no tuple has 999 negatives"):
        plan(made, "org/x", negatives=999)
    summary = store.read_json(other / "build.json")
    store.write_json(other / "build.json", {key: value for key, value in summary.items() if key not in ("files", "stages")})
    receipt = store.read_json(other / "curated/faq/done.json")
    store.write_json(other / "curated/faq/done.json", receipt | {"language": "English"})
    store.write_json(path, whole)
    with pytest.raises(
        BuildError, match="the Hub would refuse its card: language 'English' is not an ISO 639 code; mend the manifest"
    ):
        plan(other, "org/x")
