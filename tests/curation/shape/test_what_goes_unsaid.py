"""What a manifest or a file says and rows do not bear out is reported: labels, counts, names of aligned files, odd values."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate
from curation.core.errors import ManifestError, SourceError
from curation.recipe.manifest import load_manifest, load_recipe
from tests.curation.read.broken import build_all, build_one, manifest


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


SORTED = lines(*({"q": f"text number {n}", "label": label} for n, label in enumerate(["pos", "neg", "neutral"] * 3)))
NLI = lines(
    *(
        {"q": f"a premise {n // 3}", "a": f"a text {n}", "label": label}
        for n, label in enumerate(["entailment", "neutral", "contradiction"] * 3)
    )
)
THREE = "task: clustering, fields: {query: q, label: label}"


def test_a_typo_among_the_keys_of_labels_is_reported(tmp_path):
    nli = "fields: {query: q, positive: a, label: label}"
    sources = [
        f"files: x.jsonl, {THREE}, labels: {{pos: good, neg: bad, netural: so so}}",
        f"files: x.jsonl, {THREE}, labels: {{Pos: good, neg: bad, neutral: so so}}",
        f"files: x.jsonl, {THREE}, limit: 9, labels: {{pos: good, neg: bad, netural: so so}}",
        f"files: x.jsonl, {THREE}, labels: {{pos: good, neg: bad, other: so so}}",
        f"files: nli.jsonl, {nli}, labels: {{entailment: positive, neutral: negative, contradicton: negative}}",
    ]
    done = build_all(tmp_path, {"x.jsonl": SORTED, "nli.jsonl": NLI}, sources)
    there = "labels there are: neg, neutral, pos"
    assert [one.error for one in done] == [
        f"source 's0': rows have the label 'neutral', which is not in 'labels', and no row has 'netural' (did you mean 'netural'?); {there}",
        f"source 's1': rows have the label 'pos', which is not in 'labels', and no row has 'Pos' (did you mean 'Pos'?); {there}",
        f"source 's2': rows have the label 'neutral', which is not in 'labels', and no row has 'netural' (did you mean 'netural'?); {there}",
        f"source 's3': rows have the label 'neutral', which is not in 'labels', and no row has 'other'; {there}",
        "source 's4': rows have the label 'contradiction', which is not in 'labels', and no row has 'contradicton' (did you mean "
        "'contradicton'?); labels there are: contradiction, entailment, neutral",
    ]


def test_labels_that_are_left_out_on_purpose_are_no_typo(tmp_path):
    sources = [
        f"files: x.jsonl, {THREE}, labels: {{pos: good, neg: bad}}",
        f"files: x.jsonl, {THREE}, labels: {{pos: good, neg: bad, neutral: x, other: y}}",
    ]
    sources.append(f"files: x.jsonl, {THREE}, labels: {{pos: good, neg: bad, mixed: x}}, skip_labels: [neutral]")
    done = build_all(tmp_path, {"x.jsonl": SORTED}, sources)
    assert [one.error for one in done] == ["", "", ""]
    assert done[0].receipt["rows_dropped"] == {"unknown_label": 3}


def test_aligned_files_are_paired_by_name(tmp_path):
    files = {}
    for folder, ending in (("q", "en"), ("a", "de")):
        for name in ("dev", "train"):
            files[f"{folder}/{name}.{ending}"] = f"{name} {folder}\n"
    files |= {"b/test.de": "test a\n", "b/train.de": "train a\n", "c/train.txt": "train a\n"}
    keys = ", reader: aligned, header: [q, a]"
    both = [("dev q", ["dev a"]), ("train q", ["train a"])]
    for patterns, wanted in {
        "['q/*.en', 'a/*.de']": both,
        "['q/*', 'a/*']": both,
        "['q/*.en', 'a/*']": both,
        "['q/**', 'a/**']": both,
        "[q/dev.en, a/train.de]": [("dev q", ["train a"])],  # as it is said
        "['q/*.en', 'b/*.de']": "b/*.de: matches no file 'dev', which 'q/*.en' does; it has test, train; files whose lines belong "
        "together have the same name, except for the parts that the patterns match",
        "['q/d*.en', 'c/*.txt']": "c/*.txt: matches no file 'ev', which 'q/d*.en' does",
        "['q/*.en', 'c/*.txt']": "c/*.txt: matches 1 files, and 'q/*.en' 2; each file needs its counterpart",
    }.items():
        done = build_one(tmp_path, files, f"files: {patterns}{keys}")
        assert done.pairs == wanted if isinstance(wanted, list) else done.error.startswith(wanted), patterns


def test_rows_that_are_more_or_fewer_than_expected_are_reported(tmp_path):
    (tmp_path / "c.jsonl").write_text(lines({"_id": "d", "text": "a passage"}, {"_id": "e", "text": "another"}))
    (tmp_path / "t.jsonl").write_text(lines({"_id": "q", "text": "a query"}))
    (tmp_path / "r.tsv").write_text("q\ta\nq\td\n")
    qrels = "fields: {query_id: q, positive_id: a}, corpus: {files: c.jsonl, expected_rows: 3}, queries: {files: t.jsonl, expected_rows: 1}"
    sources = [
        "files: good.jsonl, expected_rows: 4",
        "files: good.jsonl, expected_rows: 1000",
        "files: good.jsonl, limit: 2, expected_rows: 7",
    ]
    sources += [
        "files: good.jsonl, skip: 1, expected_rows: 4",
        "files: good.jsonl, skip: 1, expected_rows: 3",
        f"files: r.tsv, {qrels}",
    ]
    path = manifest(tmp_path, sources)
    for _ in range(2):  # the second does nothing, and says so too
        done = CliRunner().invoke(curate, ["build", str(path), "-o", str(tmp_path / "b"), "-j", "1", "-q"], standalone_mode=False)
        assert not done.return_value
        assert [line.partition("m.yaml: ")[2] for line in done.stderr.splitlines()] == [
            "source 's1': has 4 rows, and 'expected_rows' says 1,000",
            "source 's4': has 4 rows, and 'expected_rows' says 3",
            "source 's5' (corpus): has 2 rows, and 'expected_rows' says 3",
        ]


def test_documents_without_a_label_are_counted(tmp_path):
    rows = lines(
        {"q": "what is x", "d": ["a text", "another", "a third"], "l": [1, None, 0]},
        {"q": "what is y", "d": ["one", "two"], "l": [1, 0]},
    )
    done = build_one(tmp_path, {"x.jsonl": rows}, "files: x.jsonl, fields: {query: q, documents: d, label: l}")
    assert done.pairs == [("what is x", ["a text"]), ("what is y", ["one"])]
    assert done.receipt["texts_out"] == {"unlabelled_document": 1}


def test_a_wrong_value_is_shown(tmp_path):
    files = {
        "scores.jsonl": lines(*({"q": f"what is {n}", "a": "an answer", "s": "good"} for n in range(3))),
        "lists.jsonl": lines({"q": "what is x", "d": ["a text", "another"], "l": ["yes", "no"]}),
        "qrels.tsv": "q\ta\ts\nq1\td9\t1\n",
        "grades.tsv": "q\ta\ts\nq1\td1\thigh\n",
        "c.jsonl": lines({"_id": "d1", "text": "a passage"}),
        "t.jsonl": lines({"_id": "q1", "text": "a query"}),
        "ids.jsonl": lines({"q": "what is x", "a": "an answer", "id": True}, {"q": "what is y", "a": "an answer", "id": True}),
        "low.csv": "q,a,s\nwhat is x,an answer,0.1\n",
    }
    qrels = "fields: {query_id: q, positive_id: a, score: s}, corpus: {files: c.jsonl}, queries: {files: t.jsonl}"
    sources = {
        "files: scores.jsonl, threshold: 1, fields: {query: q, positive: a, score: s}": "s0/0 bad_score 'good'",
        "files: lists.jsonl, fields: {query: q, documents: d, label: l}": "column 'l' holds 'yes' (row 0), which is not a number",
        f"files: qrels.tsv, {qrels}": "unknown_passage 'q1 -> d9'",
        f"files: grades.tsv, {qrels}": "bad_score 'q1 -> d1: high'",
        "files: ids.jsonl, fields: {query: q, positive: a, id: id}": "row 0 repeats the 'id' of another row, true",
        "files: low.csv, threshold: 1, fields: {query: q, positive: a, score: s}": "first: s5/0 below_threshold '0.1'",
    }
    for (source, message), one in zip(sources.items(), build_all(tmp_path, files, list(sources)), strict=True):
        assert message in one.error, source


SECTIONS = {  # a key of each section that is needed, misspelt, and what was meant
    "sources: [{name: s, task: retrieval, files: x, feilds: {query: q}}]": ("feilds", "fields"),
    "sources: [{nmae: s, task: retrieval, files: x, fields: {query: q, positive: a}}]": ("nmae", "name"),
    "sources: [{name: s, taks: retrieval, files: x, fields: {query: q, positive: a}}]": ("taks", "task"),
    "sources: [{name: s, Task: retrieval, files: x, fields: {query: q, positive: a}}]": ("Task", "task"),
    "sources: [{name: s, task: retrieval, fils: x, fields: {query: q, positive: a}}]": ("fils", "files"),
    "sources: [{name: s, task: retrieval, files: x, fields: {qurey: q, positive: a}}]": ("qurey", "query"),
    "soruces: [{name: s, task: retrieval, files: x, fields: {query: q, positive: a}}]": ("soruces", "sources"),
    "sources: [{name: s, task: retrieval, reader: beir, fils: x}]": ("fils", "files"),
    "sources: [{name: s, task: retrieval, files: x, fields: {query_id: q, positive_id: a}, corpus: {file: c}, queries: {files: q}}]": ("file", "files"),
    "decontaminate: {against: [{files: x, feilds: {query: q}}]}\nsources: [{name: s, task: retrieval, files: x, fields: {query: q, positive: a}}]": ("feilds", "fields"),
    "train: {modle: x}\nsources: [{name: s, task: retrieval, files: x, fields: {query: q, positive: a}}]": ("modle", "model"),
    "mine: {modle: x}\nsources: [{name: s, task: retrieval, files: x, fields: {query: q, positive: a}}]": ("modle", "model"),
}  # fmt: skip


@pytest.mark.parametrize("text", SECTIONS)
def test_a_misspelt_key_that_is_needed_is_reported_as_such(tmp_path, text):
    path = tmp_path / "m.yaml"
    path.write_text(f"name: m\n{text}\n")
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    wrong, meant = SECTIONS[text]
    assert str(caught.value).endswith(f"unknown key '{wrong}' (did you mean '{meant}'?)")


def test_a_misspelt_key_of_a_recipe(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("modl: x\n")
    with pytest.raises(ManifestError, match=r"unknown key 'modl' \(did you mean 'model'\?\)"):
        load_recipe(tmp_path / "r.yaml")


def zipped(**members: str) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return whole.getvalue()


def test_members_of_two_archives_are_paired_by_name(tmp_path):
    files = {
        "q.zip": zipped(dev_txt="dev q\n", test_txt="test q\n"),
        "same.zip": zipped(dev_de="dev a\n", test_de="test a\n"),
        "turned.zip": zipped(test_txt="test a\n", dev_txt="dev a\n"),
        "other.zip": zipped(a_txt="test a\n", dev_txt="dev a\n"),
        "one.zip": zipped(dev_txt="dev q\n"),
        "two.zip": zipped(dev_fr="dev a\n"),
        "three.zip": zipped(other_fr="other a\n"),
    }
    keys = ", reader: aligned, header: [q, a]"
    several = f", member: ['*.txt', '*.de']{keys}"
    sources = [f"files: [q.zip, {other}.zip]{several}" for other in ("same", "turned", "other")]
    sources += [f"files: [one.zip, {other}.zip]{keys}" for other in ("two", "three")]
    done = build_all(tmp_path, files, sources)
    assert done[0].error == "q.zip: no member matches '*.de'; it holds dev.txt, test.txt"
    for one, second in zip(done[1:3], ("test", "a"), strict=True):
        assert "members of other names would be put together: q.zip:dev.txt, " in one.error
        assert f":{second}.txt; name one with `member:`, or pack them in one order under one name each" in one.error
    assert [one.pairs for one in done[3:]] == [[("dev q", ["dev a"])], [("dev q", ["other a"])]]
    done = build_one(tmp_path, files, f"files: [q.zip, same.zip], member: '*'{keys}")
    assert done.pairs == [("dev q", ["dev a"]), ("test q", ["test a"])]


TABLES = {
    "c.jsonl": lines({"_id": 2, "text": "a passage of it"}),
    "t.jsonl": lines({"_id": 1, "text": "what is thing number 1?"}),
}
QRELS = "fields: {query_id: q, positive_id: d}, corpus: {files: c.jsonl}, queries: {files: t.jsonl}"
PROTECTS_NOTHING = [
    ('{"q": " "}\n{"q": null}\n', "files: e.jsonl, fields: {query: q}", "evaluation set 'e.jsonl': holds no text, so nothing can be compared with it"),
    ('{"q": [], "a": [null]}\n', "files: e.jsonl, fields: {query: q, positive: a}", "evaluation set 'e.jsonl': holds no text"),
    ('{"q": 9, "d": 2}\n', f"files: e.jsonl, {QRELS}", "evaluation set 'e.jsonl' (queries): has none of the ids that its qrels name, such as '9'"),
    ('{"q": 1, "d": 9}\n', f"files: e.jsonl, {QRELS}", "evaluation set 'e.jsonl' (corpus): has none of the ids that its qrels name, such as '9'"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "keys", "message"), PROTECTS_NOTHING)
def test_an_evaluation_set_that_would_protect_nothing_is_reported(tmp_path, rows, keys, message):
    with pytest.raises(SourceError) as caught:
        build_all(tmp_path, {"e.jsonl": rows, **TABLES}, [], f"decontaminate: {{against: [{{{keys}}}]}}")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_beir_folder_is_an_evaluation_set_in_a_word(tmp_path, split):
    files = {f"e/{name.replace('c.', 'corpus.').replace('t.', 'queries.')}": text for name, text in TABLES.items()}
    files[f"e/qrels/{split}.tsv"] = "query-id\tcorpus-id\tscore\n1\t2\t1\n"
    files["x.jsonl"] = lines(
        {"q": "what is thing number 1?", "a": "an answer to that"}, {"q": "how are larks", "a": "they are well"}
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    said = "" if split == "test" else f", split: {split}"
    path = manifest(tmp_path, ["files: x.jsonl"], f"decontaminate: {{against: [{{reader: beir, files: e{said}}}]}}")
    outcome = build(path, tmp_path / "b")
    assert outcome.receipts["s0"]["dropped"] == {"contaminated_query": 1}


def test_documents_without_a_score_are_on_neither_side(tmp_path):
    rows = lines(
        {"q": "what is x", "d": ["a text", "another", "a third"], "s": [None, 0.2, 0.9]},
        {"q": "what is y", "d": ["one text", "two texts"], "s": [None, None]},
    )
    keys = "fields: {query: q, documents: d, score: s}, max_bad: 0.5"
    done = build_all(tmp_path, {"x.jsonl": rows}, [f"files: x.jsonl, {keys}", f"files: x.jsonl, {keys}, threshold: 0.5"])
    for one in done:
        assert one.pairs == [("what is x", ["a third"])]
        assert one.receipt["texts_out"] == {"unlabelled_document": 3}
        assert one.receipt["rows_dropped"] == {"empty_positive": 1}
