# ruff: noqa: RUF001  (texts of several languages)
"""`curate import`: what each format was exported from comes back, by the manifest that it writes."""

from __future__ import annotations

import json

import polars as pl
import polars.testing
import pytest
import yaml
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate
from curation.core.errors import SourceError
from curation.core.record import GIVEN
from curation.core.store import read_json
from curation.core.tables import read_table
from curation.recipe.manifest import load_manifest
from curation.share.export import FORMATS, export
from curation.share.importing import write_manifest
from curation.share.verify import problems
from mining.cli import mine
from mining.mine import mine_build
from tests.curation.share import test_exchange
from tests.curation.share.small_published import start
from tests.curation.share.test_exchange import tuples_of
from tests.mining.small_build import files_of
from tests.servers.hub_server import hub

made = test_exchange.made  # the fixture
TITLES = dict.fromkeys(("pair", "triplet", "n-tuple"), "sentence-transformers")


@pytest.mark.parametrize("name", FORMATS)
def test_out_and_in_again(made, tmp_path, name):
    shape = FORMATS[name]
    receipt, _ = export(made, tmp_path / "out", name, negatives=3 if shape.fixed else None)
    sources = [source for source, said in receipt["sources"].items() if said["used"]]
    found = write_manifest(str(tmp_path / "out"), tmp_path / "m.yaml")
    best = "the document with the highest score of a list is its positive; `threshold` makes all that reach it"
    notes = [f"{source}: {best}" for source in sorted(sources)] if name == "scored-list" else []
    assert found == (dict.fromkeys(sorted(sources), TITLES.get(name, name)), {}, notes)
    outcome = build(tmp_path / "m.yaml", tmp_path / "b")
    assert not outcome.failed
    then, now = (read_json(folder / "build.json")["sources"] for folder in (made, tmp_path / "b"))
    for source in sources:
        keys = ("task", "instruction", "language", "license")
        assert [now[source][key] for key in keys] == [then[source][key] for key in keys]
        known = tuples_of(made, source, "mined" if shape.mined else "curated")
        whole = {q: (ps[:1] if shape.first else ps, ns if shape.mined else []) for q, (ps, ns) in known.items()}
        assert tuples_of(tmp_path / "b", source) == {
            q: (ps, ns) for q, (ps, ns) in whole.items() if (len(ns) == 3 or not shape.fixed) and (ns or not shape.mined)
        }
    if shape.mined:
        mine_build(tmp_path / "b", load=no_model)
    export(tmp_path / "b", tmp_path / "again", name, negatives=3 if shape.fixed else None)
    assert files_of(tmp_path / "again" / "data") == files_of(tmp_path / "out" / "data")
    if name in ("tevatron", "beir"):
        ids = [set(read_table(folder / "curated/faq", "pairs", ["id"])["id"]) for folder in (tmp_path / "b", made)]
        assert ids[0] == ids[1]


def no_model(settings, device):
    raise AssertionError("a model was asked for")


def test_scores_come_in_for_training(made, tmp_path):
    """A student learns from the scores that came along; nothing is mined anew."""
    export(made, tmp_path / "out", "flagembedding", ["faq"])
    write_manifest(str(tmp_path / "out"), tmp_path / "m.yaml")
    assert yaml.safe_load((tmp_path / "m.yaml").read_text())["mine"] == {"candidates": "given"}
    build(tmp_path / "m.yaml", tmp_path / "b")
    assert mine_build(tmp_path / "b", load=no_model)["faq"]["strategy"] == "given"
    then, now = (read_table(folder / "mined/faq", "pairs").sort("query") for folder in (made, tmp_path / "b"))
    for column in ("positive_score", "negative_scores"):
        pl.testing.assert_series_equal(now[column], then[column], abs_tol=1e-7)
    assert set(now["negative_origin"].explode()) == {GIVEN}
    assert problems(tmp_path / "b") == []
    done = CliRunner().invoke(mine, ["audit", str(tmp_path / "b")])
    assert str(done.exception).endswith("has no source whose negatives are searched; the other sources keep or draw theirs")


def test_files_of_others(tmp_path):
    line = {"query": "who?", "pos": ["she"], "neg": ["he"], "prompt": "Name them", "type": "symmetric_clustering"}
    (tmp_path / "Some Data.jsonl").write_text(json.dumps(line) + "\n")
    done = CliRunner().invoke(curate, ["import", str(tmp_path / "Some Data.jsonl"), "-o", str(tmp_path / "m.yaml")])
    assert (done.exit_code, done.stdout) == (0, "some-data: flagembedding\n"), done.output
    assert yaml.safe_load((tmp_path / "m.yaml").read_text())["sources"] == [
        {
            "name": "some-data",
            "task": "clustering",
            "instruction": "Name them",
            "files": "Some Data.jsonl",
            "reader": "flagembedding",
            "fields": {"query": "query", "positive": "pos", "negatives": "neg"},
        }
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.jsonl", '{"a": 1}\n', "x.jsonl: has columns of no known format: a; write a source 'x' by hand, with `fields:`"),
        (
            "x.txt",
            "a",
            "in: holds no parquet, no JSON Lines, no csv and no BEIR folder; name the file of questions and answers; `reader: folders` reads text "
            "files, as the corpus of your questions, or for a model that writes questions (docs/your-data.md, 'A folder of documents')",
        ),
        ("x.CSV", "q,a", "x.CSV: holds no rows"),
        ("x.png", "a", "in: holds no parquet, no JSON Lines, no csv and no BEIR folder; name a file, such as data/train.parquet"),
        ("m.yaml", "name: m", "m.yaml: exists already; name another file"),
    ],
)
def test_what_cannot_be_imported(tmp_path, monkeypatch, name, text, said):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ("m.yaml" if name == "m.yaml" else f"in/{name}")).write_text(text)
    done = CliRunner().invoke(curate, ["import", "in", "-o", "m.yaml"])
    assert done.exit_code == 1
    assert str(done.exception).removeprefix("in/") == said
    assert (tmp_path / "m.yaml").exists() == (name == "m.yaml")


def test_a_build_in_the_folder_is_not_imported(tmp_path):
    (tmp_path / "faq.jsonl").write_text('{"question": "what is one thing", "answer": "it is a thing of one"}\n')
    write_manifest(str(tmp_path), tmp_path / "m.yaml")
    assert not build(tmp_path / "m.yaml", tmp_path / "builds/faq").failed
    assert write_manifest(str(tmp_path), tmp_path / "again.yaml").sources == {"faq": "sentence-transformers"}
    with pytest.raises(
        SourceError, match=r"builds/faq: is a build; import what `curate export .*faq --format ids -o DIR` writes"
    ):
        write_manifest(str(tmp_path / "builds/faq"), tmp_path / "third.yaml")


CARD = """\
---
license: mit
configs:
- {config_name: default, data_files: [{split: test, path: qrels/test.jsonl}]}
- {config_name: corpus, data_files: [{split: corpus, path: corpus.jsonl}]}
- {config_name: queries, data_files: [{split: queries, path: queries.jsonl}]}
---
"""


def test_mtebs_and_others_from_the_hub(tmp_path):
    lines = {
        "qrels/test.jsonl": [
            {"query-id": "q1", "corpus-id": "d1", "score": 1},
            {"query-id": "q1", "corpus-id": "d2", "score": 0},
        ],
        "corpus.jsonl": [
            {"_id": "d1", "title": "Oak", "text": "It bears acorns."},
            {"_id": "d2", "title": "Ash", "text": "It bears keys."},
        ],
        "queries.jsonl": [{"_id": "q1", "text": "acorn tree"}],
    }
    files = {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in lines.items()}
    with hub(tmp_path / "hub") as server:
        commit = server.put("datasets", "mteb/trees", {"README.md": CARD, **files})
        rendered = json.dumps({"query": "Instruct: Find trees\nQuery: acorn tree", "passage": "An oak.", "negative_1": "A fern."})
        server.put("datasets", "org/flat", {"trees/train.jsonl": rendered + "\n"})
        for name, form in (("trees", "beir"), ("flat", "f2llm")):
            path = tmp_path / f"{name}.yaml"
            for words in (
                ("import", f"{'mteb' if name == 'trees' else 'org'}/{name}", "-o", path),
                ("build", path, "-o", tmp_path / name, "-q"),
            ):
                process = start(server, *words)
                out, errors = process.communicate(timeout=120)
                assert process.returncode == 0, errors
                assert words[0] == "build" or out == f"{name}: {form}\n"
    entry = yaml.safe_load((tmp_path / "trees.yaml").read_text())["sources"][0]
    wanted = {"path": "mteb/trees", "split": "test", "revision": commit, "reader": "beir", "license": "mit", "task": "retrieval"}
    assert entry == {"name": "trees", **wanted}
    assert tuples_of(tmp_path / "trees", "trees") == {"acorn tree": (["Oak\nIt bears acorns."], [])}
    assert tuples_of(tmp_path / "flat", "flat") == {"acorn tree": (["An oak."], ["A fern."])}
    assert read_json(tmp_path / "flat" / "build.json")["sources"]["flat"]["instruction"] == "Find trees"


@pytest.mark.parametrize(
    ("name", "text", "keys", "note"),
    [
        (
            "tickets.csv",
            "ticket_id,Subject,Body,Agent Reply,category\n1,No print at all,It is on,Restart the spooler,hw\n",
            {"task": "retrieval", "fields": {"query": "Subject", "positive": "Agent Reply"}},
            "tickets: columns guessed by their names: query 'Subject', positive 'Agent Reply'; not used: ticket_id, Body, category",
        ),
        (
            "intents.tsv",
            "message\tintentId\tintent\nwhere is my card\t1\tcard\nI lost the card\t2\tlost\n",
            {"task": "classification", "fields": {"query": "message", "label": "intent"}},
            "intents: columns guessed by their names: query 'message', label 'intent'; not used: intentId",
        ),
        (
            "anfragen.csv",
            'Nr;Frage;Antwort\r\n1;Warum hört man das Gerät über Nacht, „zu laut“?;"Es ist für Büros; schließen Sie die Tür"\r\n'.encode(
                "cp1252"
            ),
            {"task": "retrieval", "encoding": "cp1252", "delimiter": ";", "fields": {"query": "Frage", "positive": "Antwort"}},
            "anfragen: columns guessed by their names: query 'Frage', positive 'Antwort'; not used: Nr",
        ),
        (
            "excel.tsv",
            'Question\tAnswer\r\n"Where, and how?"\t"Here, and so"\r\n'.encode("utf-16"),
            {"task": "retrieval", "encoding": "utf-16", "fields": {"query": "Question", "positive": "Answer"}},
            "excel: columns guessed by their names: query 'Question', positive 'Answer'",
        ),
        (
            "thai.csv",
            "รหัส,คำถาม,คำตอบ\n1,เปิดเครื่องอย่างไร,กดปุ่มสีแดง\n".encode("utf-8-sig"),
            {"task": "retrieval", "language": "th", "fields": {"query": "คำถาม", "positive": "คำตอบ"}},
            "thai: columns guessed by their names: query 'คำถาม', positive 'คำตอบ'; not used: รหัส; language 'th' guessed by the script",
        ),
        (
            "zh.csv",
            "问题,答案\n这台打印机为什么不工作？,因为它没有电，请你把它和电源连上，这是最常见的问题。\n".encode("gbk"),
            {"task": "retrieval", "language": "zh", "encoding": "gb18030", "fields": {"query": "问题", "positive": "答案"}},
            "zh: columns guessed by their names: query '问题', positive '答案'; language 'zh' guessed by the script",
        ),
        (
            "ja.csv",
            "質問,回答\nプリンターが動かないのはなぜですか,電源が入っていないからです\n".encode("cp932"),
            {"task": "retrieval", "language": "ja", "encoding": "shift_jis", "fields": {"query": "質問", "positive": "回答"}},
            "ja: columns guessed by their names: query '質問', positive '回答'; language 'ja' guessed by the script",
        ),
        (
            "two.csv",
            "wanted|given\nWhere is my card?|In the drawer, on the left\n",
            {"task": "retrieval", "delimiter": "|", "fields": {"query": "wanted", "positive": "given"}},
            "two: columns guessed by their order: query 'wanted', positive 'given'",
        ),
    ],
)
def test_a_table_gives_a_first_manifest_whose_columns_are_guessed(tmp_path, name, text, keys, note):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    found = write_manifest(str(tmp_path / name), tmp_path / "m.yaml")
    document = yaml.safe_load((tmp_path / "m.yaml").read_text())
    stem, ending = name.split(".")
    assert document == {"name": stem, "sources": [{"name": stem, "files": name, **keys}]}
    assert found == ({stem: ending}, {}, [note])
    lines = (tmp_path / "m.yaml").read_text().splitlines()
    (tmp_path / "whole.yaml").write_text("\n".join(line.removeprefix("# ") for line in lines if not line.startswith("# For ")))
    whole = load_manifest(tmp_path / "whole.yaml")
    assert (whole.mine.model, whole.train.model) == ("sentence-transformers/all-MiniLM-L6-v2",) * 2
    assert not build(tmp_path / "m.yaml", tmp_path / "b").failed


def test_a_folder_of_tables_gives_a_source_of_each_and_test_data_an_evaluation_set(tmp_path):
    (tmp_path / "in").mkdir()
    for name, delimiter in (("2025", ","), ("2026", ";"), ("test", ";")):
        (tmp_path / f"in/{name}.csv").write_text(f"question{delimiter}answer\nWhere is card {name}?{delimiter}In drawer {name}\n")
    (tmp_path / "in/notes.json").write_text("[]")
    found = write_manifest(str(tmp_path / "in"), tmp_path / "m.yaml")
    document = yaml.safe_load((tmp_path / "m.yaml").read_text())
    fields = {"query": "question", "positive": "answer"}
    source = {"task": "retrieval", "files": "in/2025.csv", "fields": fields}
    assert document["sources"] == [
        {"name": "2025"} | source,
        {"name": "2026"} | source | {"files": "in/2026.csv", "delimiter": ";"},
    ]
    assert [one.get("delimiter") for one in document["decontaminate"]["against"]] == [";"]
    assert "in: left out, because only .csv and .tsv are imported: notes.json" in found.notes
    assert not build(tmp_path / "m.yaml", tmp_path / "b").failed


def test_a_table_whose_columns_say_nothing_is_refused(tmp_path):
    for header in ("a,b,c", "text,score", "Where is the card that you sent me last week?,In the mail"):
        (tmp_path / "odd.csv").write_text(f"{header}\n1,2\n")
        with pytest.raises(SourceError) as error:
            write_manifest(str(tmp_path / "odd.csv"), tmp_path / "m.yaml")
        hint = "write a source 'odd' by hand, with `fields:`, and with `header: [...]` if the first line holds no names"
        assert str(error.value).endswith(f"has columns of no known format: {header.replace(',', ', ')}; {hint}")
