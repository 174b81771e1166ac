"""Aligned files, lines, folders, XML, embedding-training-data, and what `join` and `reader: beir` write out."""

from __future__ import annotations

import gzip
import json
import time
import zipfile

import pytest
from pydantic import ValidationError

from curation.build.build import build
from curation.core.errors import SourceError
from curation.core.tables import read_table
from curation.read.sources import input_digests, table_rows
from curation.recipe.source import Source, Table
from tests.curation.read.test_readers import read, write

XML = '<?xml version="1.0" encoding="{}"?>\n<doc><pairs>{}</pairs></doc>'


def refusal(base, files, **keys):
    with pytest.raises(SourceError) as refused:
        list(table_rows(Table(files=files, **keys), base))
    return str(refused.value)


ALIGNED = [
    ("snli_esnli", ["s1.*", "s2.*", "labels.*"], 19_666),
    ("nl2bash", ["all.nl", "all.cm"], 12_606),  # 12,607 in the original; the copy lacks one
    ("squad_v1_nqg", ["tgt-*.txt", "src-*.txt"], 22_447),
    ("tweeteval/hate", ["*_text.txt", "*_labels.txt"], 12_970),
]


@pytest.mark.shared_data
@pytest.mark.parametrize(("folder", "files", "count"), ALIGNED, ids=[case[0] for case in ALIGNED])
def test_aligned_files_equal_a_plain_zip(shared_data, folder, files, count):
    table = Table(files=[f"{folder}/{name}" for name in files], reader="aligned", header=list("abc"[: len(files)]))
    got = [row[:-1] for batch in table_rows(table, shared_data) for row in batch.frame.rows()]
    columns = []
    for name in files:
        texts = [path.read_bytes().decode() for path in sorted((shared_data / folder).glob(name))]
        columns.append([line.strip() for text in texts for line in text.removesuffix("\n").split("\n")])
    assert len(got) == count
    assert got == list(zip(*columns, strict=True))


def test_aligned_files_of_unequal_length(tmp_path):
    write(tmp_path, "a.txt", "1\n2\n\n")
    write(tmp_path, "b.txt", "1\n2\n")
    message = (
        "a.txt: files to be aligned differ in length: a.txt has 3 lines, b.txt has 2 lines; line i of each file makes one row"
    )
    assert refusal(tmp_path, ["a.txt", "b.txt"], reader="aligned", header=["x", "y"]) == message


def test_aligned_patterns_that_match_unequal_numbers_of_files(tmp_path):
    for name in ("a.1", "a.2", "b.1"):
        write(tmp_path, name, "1\n")
    message = "b.*: matches 1 files, and 'a.*' 2; each file needs its counterpart"
    assert refusal(tmp_path, ["a.*", "b.*"], reader="aligned", header=["x", "y"]) == message


def test_aligned_files_keep_empty_lines_and_lose_white_space_around_texts(tmp_path):
    write(tmp_path, "a.txt", b"\xef\xbb\xbfone \r\n\n three\x0bx\n")
    write(tmp_path, "b.txt", "1\n2\n3")
    rows, lost = read(tmp_path, "a.txt", reader="aligned", header=["x"])
    assert (rows, lost) == ([{"x": "one"}, {"x": ""}, {"x": "three\x0bx"}], [])
    table = Table(files=["a.txt", "b.txt"], reader="aligned", header=["x", "y"])
    assert [row[:-1] for batch in table_rows(table, tmp_path) for row in batch.frame.rows()][1:] == [
        ("", "2"),
        ("three\x0bx", "3"),
    ]
    assert set(input_digests(table, tmp_path)) == {"a.txt", "b.txt"}


def test_what_is_wrong_with_one_aligned_file_is_reported_for_that_file(tmp_path):
    write(tmp_path, "a.txt", b"1\n2\n")
    write(tmp_path, "b.txt", b"1\n\xf0\n")
    message = "b.txt:2: byte 0xf0 is not utf-8 text; declare the file's own encoding, perhaps `encoding: latin-1`"
    assert refusal(tmp_path, ["a.txt", "b.txt"], reader="aligned", header=["x", "y"]) == message
    write(tmp_path, "b.txt", b"")
    assert "a.txt has 2 lines, b.txt has 0 lines" in refusal(tmp_path, ["a.txt", "b.txt"], reader="aligned", header=["x", "y"])
    write(tmp_path, "a.txt", b"")
    assert refusal(tmp_path, ["a.txt", "b.txt"], reader="aligned", header=["x", "y"]) == "a.txt: is empty"


@pytest.mark.shared_data
def test_lines_of_trec(shared_data):
    keys = {"reader": "lines", "encoding": "latin-1"}
    rows, lost = read(shared_data, "trec6/TREC.*", **keys)
    raw = [line for name in ("test", "train") for line in (shared_data / f"trec6/TREC.{name}").read_bytes().split(b"\n") if line]
    assert lost == []
    assert [f"{row['label']} {row['text']}" for row in rows] == [line.decode("latin-1").rstrip("\r") for line in raw]
    rows, lost = read(shared_data, "trec6/TREC.train", pattern=r"(?P<coarse>\w+):(?P<fine>\w+) (?P<text>.*)", **keys)
    assert len(rows) == 5_452
    assert len({row["coarse"] for row in rows}) == 6
    assert rows[0] == {"coarse": "DESC", "fine": "manner", "text": "How did serfdom develop in and then leave Russia ?"}


def test_lines_that_do_not_fit_are_reported(tmp_path):
    write(tmp_path, "a.txt", "A:b one  two\r\n\nalone\n \n\tC three\nD four\x0c\n")
    rows, lost = read(tmp_path, "a.txt", reader="lines")
    assert rows == [{"label": "A:b", "text": "one  two"}, {"label": "D", "text": "four\x0c"}]
    assert [(one.row, one.reason, one.evidence, one.bad) for one in lost] == [
        (1, "no_match", "a.txt:3: alone", True),
        (2, "no_match", "a.txt:5: \tC three", True),
    ]
    write(tmp_path, "b.txt", "__label__pos good\n")
    assert read(tmp_path, "b.txt", reader="lines", pattern="__label__(?P<l>[a-z]+) (?P<t>.*)") == (
        [{"l": "pos", "t": "good"}],
        [],
    )


BAD_PATTERNS = [
    ("(?P<a>", "a.txt: `pattern` is not a regular expression that Rust's regex accepts (error: unclosed group); no look-around, no back-references"),
    ("(?P<a>x)(?=y)", "a.txt: `pattern` is not a regular expression that Rust's regex accepts (error: look-around, including look-ahead and look-behind, is not supported); no look-around, no back-references"),
    ("(x)", r"a.txt: `pattern` needs a name for each of its groups; such as (?P<label>\S+) (?P<text>.*)"),
    ("x", r"a.txt: `pattern` needs a name for each of its groups; such as (?P<label>\S+) (?P<text>.*)"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "message"), BAD_PATTERNS)
def test_a_bad_pattern(tmp_path, pattern, message):
    write(tmp_path, "a.txt", "x y\n")
    assert refusal(tmp_path, ["a.txt"], reader="lines", pattern=pattern) == message


def test_a_pattern_takes_linear_time(tmp_path):
    write(tmp_path, "a.txt", "a" * 50_000 + "!\n")
    started = time.perf_counter()
    _, lost = read(tmp_path, "a.txt", reader="lines", pattern="(?P<x>(a+)+)b".replace("(a+)", "(?:a+)"))
    assert len(lost) == 1
    assert time.perf_counter() - started < 30  # seconds; a backtracking engine would outlive us


def test_folders(tmp_path):
    cats = " of a folded field\nFrom: a\nSubject: b\n  folded\n \n\nMiau: it said.\n\nBye"
    for folder, text in (("cats", cats), ("dogs", "No: head here\n wau\n\nwau")):
        (tmp_path / "posts" / folder).mkdir(parents=True)
        write(tmp_path, f"posts/{folder}/1.txt", text)
    write(tmp_path, "posts/dogs/2.txt", b"\xf0\xf0")
    write(tmp_path, "posts/dogs/.DS_Store", b"\x00")
    rows, lost = read(tmp_path, "posts/**/*", reader="folders")
    assert [(row["label"], row["file"], row["body"]) for row in rows] == [
        ("cats", "1.txt", "Miau: it said.\n\nBye"),
        ("dogs", "1.txt", "No: head here\n wau\n\nwau"),
    ]
    assert [row["path"] for row in rows] == ["cats/1.txt", "dogs/1.txt"]
    assert rows[0]["text"] == cats
    assert [(one.reason, one.evidence) for one in lost] == [("undecodable", "posts/dogs/2.txt: byte 0 is not utf-8 text")]


def test_xml_records(tmp_path):
    pair = '<pair id="{}"><q kind="k">Who &amp; <i>what</i>?</q><a> {} </a></pair>'
    write(tmp_path, "a.xml", XML.format("utf-8", pair.format(1, "A&#xe4;") + pair.format(2, "B</a><a>C") + "<pair/>"))
    rows, lost = read(tmp_path, "a.xml", reader="xml", records="pairs/pair")
    assert lost == []
    assert rows == [
        {"@id": "1", "q/@kind": "k", "q/i": "what", "q": "Who & what?", "a": ["Aä"], ".": None},
        {"@id": "2", "q/@kind": "k", "q/i": "what", "q": "Who & what?", "a": ["B", "C"], ".": None},
        {"@id": None, "q/@kind": None, "q/i": None, "q": None, "a": None, ".": ""},
    ]
    assert read(tmp_path, "a.xml", reader="xml", records="q/i")[0] == [{".": "what"}] * 2


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "utf-16", "cp1252"])
def test_xml_tells_its_own_encoding(tmp_path, encoding):
    write(tmp_path, "a.xml", XML.format(encoding, "<pair>ä</pair>").encode(encoding))
    assert read(tmp_path, "a.xml", reader="xml", records="pair") == ([{".": "ä"}], [])


def test_xml_without_records_is_a_bad_row(tmp_path):
    write(tmp_path, "a.xml", XML.format("utf-8", "<Pair/>"))
    rows, (lost,) = read(tmp_path, "a.xml", reader="xml", records="pair")
    assert rows == []
    assert lost == (0, "no_records", "a.xml: no element 'pair'; elements there are: Pair, doc, pairs", True)


ENTITY = "entities can unpack to gigabytes: write them out"
BAD_XML = [
    ('<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><d><pair>&b;</pair></d>', f"a.xml: declares the entity 'a'; {ENTITY}"),
    ('<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><d><pair>&x;</pair></d>', f"a.xml: declares the entity 'x'; {ENTITY}"),
    ('<!DOCTYPE d [<!ENTITY % x SYSTEM "http://localhost/x">%x;]><d/>', f"a.xml: declares the entity 'x'; {ENTITY}"),
    ('<!DOCTYPE d SYSTEM "d.dtd"><d><pair>&nbsp;</pair></d>', "a.xml: uses the entity 'nbsp', which is defined in another file; write it out"),
    ("<d><pair>&nbsp;</pair></d>", "a.xml:1: not readable as XML (undefined entity); is the file cut off?"),
    ("<d>\n<pair>x</pair>\n", "a.xml:3: not readable as XML (no element found); is the file cut off?"),
    ("", "a.xml:1: not readable as XML (no element found); is the file cut off?"),
    ("<d><pair>\x01</pair></d>", "a.xml:1: not readable as XML (not well-formed (invalid token)); is the file cut off, or has it another `encoding`?"),
    ('<?xml version="1.0" encoding="klingon"?><d/>', "a.xml: not readable as XML (unknown encoding: klingon); declare another `encoding`"),
    ('<?xml version="1.0" encoding="gb18030"?><d/>', "a.xml: not readable as XML (multi-byte encodings are not supported); declare another `encoding`"),
    ("<pair>" + "<b>" * 200 + "</b>" * 200 + "</pair>", "a.xml: a record nests more than 100 elements"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_XML)
def test_bad_xml(tmp_path, content, message):
    write(tmp_path, "a.xml", content)
    assert refusal(tmp_path, ["a.xml"], reader="xml", records="pair") == message


def test_embedding_training_data(tmp_path):
    lines = [
        ["a", "p"],
        ["a", "p", "n", "m"],
        {"set": ["a", "p", "q"]},
        {"query": "a", "pos": ["p"], "neg": ["n"]},
        {"query": "a", "pos": ["p"]},
    ]
    bad = [["a"], ["a", None], {"set": "ap"}, {"query": "a", "pos": "p"}, "ap", {"a": "p"}]
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines + bad)
    rows, lost = read(tmp_path, "x.jsonl.gz", reader="embedding-training-data")
    assert [tuple(row.values()) for row in rows] == [
        ("a", ["p"], []),
        ("a", ["p"], ["n", "m"]),
        ("a", ["p", "q"], []),
        ("a", ["p"], ["n"]),
        ("a", ["p"], []),
    ]
    assert [one.evidence for one in lost] == [
        "x.jsonl.gz:6: a list that is not a pair, triplet, set or query",
        "x.jsonl.gz:7: holds other things than texts",
        "x.jsonl.gz:8: one object that is not a pair, triplet, set or query",
        "x.jsonl.gz:9: 'pos' and 'neg' have to be lists",
        "x.jsonl.gz:10: text that is not a pair, triplet, set or query",
        "x.jsonl.gz:11: one object that is not a pair, triplet, set or query",
    ]
    assert all(one.bad for one in lost)


def test_lists_are_joined_as_declared(tmp_path):
    write(tmp_path, "a.jsonl", '{"a": ["x", null, "y"], "b": ["1", "2"]}\n{"a": [], "b": ["3"]}\n')
    rows, _ = read(tmp_path, "a.jsonl", join={"a": " | "})
    assert rows == [{"a": "x | y", "b": ["1", "2"]}, {"a": "", "b": ["3"]}]


def source(**keys):
    return Source(**({"name": "s", "task": "retrieval", "fields": {"query": "q", "positive": "p"}} | keys))


BAD_KEYS = [
    ({"files": ["a", "b"], "reader": "aligned"}, "'reader: aligned' needs 'header', a list with one name for each of 'files'"),
    ({"files": ["a", "b"], "reader": "aligned", "header": ["a"]}, "'reader: aligned' needs 'header', a list with one name for each of 'files'"),
    ({"files": "a.xml", "reader": "xml"}, "'reader: xml' needs 'records', the path of the elements that become rows"),
    ({"files": "a.txt", "pattern": "x"}, "'pattern' is only for 'reader: lines'"),
    ({"files": "a.jsonl", "join": {"x": ""}}, "'join' names the column 'x', which 'fields' does not use"),
    ({"path": "x", "corpus": {"path": "x", "reader": "beir"}}, "'reader: beir' is for a whole source, not for its corpus or queries alone"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), BAD_KEYS)
def test_keys_that_do_not_go_together(keys, message):
    with pytest.raises(ValidationError, match=message):
        source(**keys)


def test_beir_of_a_folder_and_of_the_hub():
    keys = {"name": "s", "task": "retrieval", "reader": "beir", "split": "test"}
    (here, hub) = Source(files="scifact/", **keys), Source(path="mteb/scifact", revision="abc", **keys)
    assert (here.files, here.split, here.reader) == (["scifact/qrels/test.tsv"], "train", None)
    assert here.corpus.files == ["scifact/corpus.jsonl"]
    assert here.queries.files == ["scifact/queries.jsonl"]
    assert (hub.path, hub.split, hub.config, hub.revision) == ("mteb/scifact", "test", None, "abc")
    assert [(one.path, one.config, one.split, one.revision) for one in (hub.corpus, hub.queries)] == [
        ("mteb/scifact", part, part, "abc") for part in ("corpus", "queries")
    ]
    assert {one.fields.query_id for one in (here, hub)} == {"query-id"}
    assert here.corpus.fields.title == "title?"


def test_a_beir_folder_is_built_from_one_line(tmp_path):
    (tmp_path / "b" / "qrels").mkdir(parents=True)
    passages = [{"_id": f"p{i}", "title": f"Title {i}", "text": f"text number {i}"} for i in range(3)]
    write(tmp_path, "b/corpus.jsonl", "".join(json.dumps(one) + "\n" for one in passages))
    write(tmp_path, "b/queries.jsonl", '{"_id": "q1", "text": "which one?"}\n')
    write(tmp_path, "b/qrels/train.tsv", "query-id\tcorpus-id\tscore\nq1\tp0\t1\nq1\tp1\t0\n")
    write(tmp_path, "m.yaml", "name: m\nsources: [{name: s, task: retrieval, reader: beir, files: b}]\n")
    outcome = build(tmp_path / "m.yaml", tmp_path / "out")
    assert outcome.receipts["s"]["rows_dropped"] == {"below_threshold": 1}
    curated = tmp_path / "out" / "curated" / "s"
    assert read_table(curated, "pairs").select("query", "positives").rows() == [("which one?", [0])]
    assert read_table(curated, "passages")["text"].to_list() == [f"Title {i}\ntext number {i}" for i in range(3)]


def test_packed_files_are_aligned_too(tmp_path):
    for name, text in (("a.txt.gz", "x\ny\n"), ("b.txt.gz", "1\n2\n")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    table = Table(files=["a.txt.gz", "b.txt.gz"], reader="aligned", header=["x", "y"])
    assert [row[:-1] for batch in table_rows(table, tmp_path) for row in batch.frame.rows()] == [("x", "1"), ("y", "2")]


def test_members_of_an_archive_are_posts(tmp_path):
    with zipfile.ZipFile(tmp_path / "posts.zip", "w") as file:
        for name in ("posts/cats/1", "posts/dogs/2", "posts/.DS_Store", "posts/dogs/.DS_Store"):
            file.writestr(name, f"From: me\n\nin {name}")
    rows, lost = read(tmp_path, "posts.zip", member="posts/*/*", reader="folders")
    assert [(row["label"], row["body"]) for row in rows] == [("cats", "in posts/cats/1"), ("dogs", "in posts/dogs/2")]
    assert lost == []
