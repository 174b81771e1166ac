"""What a build becomes for other tools: each format as its tool wants it, and back as the source that it came from."""

from __future__ import annotations

import json
import re
import shutil

import polars as pl
import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate
from curation.cli_share import EXPORTS as OFFERED
from curation.core import store, tables
from curation.core.errors import BuildError, SourceError
from curation.core.record import render_query
from curation.report import page
from curation.share.export import FORMATS, export
from mining.mine import mine_build
from tests.mining.small_build import FakeEncoder, files_of
from training.collection import read_collection

INSTRUCTION = "Given a {question}, find\nits answer"
MANIFEST = """\
name: small
seed: 7
sources:
  - name: faq
    files: faq.jsonl
    task: retrieval
    license: mit
    instruction: "Given a {question}, find\\nits answer"
    fields: {query: q, positive: a}
    holdout: 2
  - {name: topics, files: topics.jsonl, task: clustering, fields: {query: text, label: topic}}
  - {name: tone, files: topics.jsonl, task: classification, fields: {query: text, label: tone}}
mine: {model: fake, negatives: 3, range_min: 0, range_max: 30, max_score: 1, relative_margin: 0, shortage: keep}
"""
NUMBERS = [
    "naught",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
]


def answers(i: int) -> list[str]:
    both = [f"{NUMBERS[i]} {NUMBERS[i]}: what is {NUMBERS[i]}? It is \u2028{i} of 16", f"  what {NUMBERS[i]} means, again\ttold"]
    return both if i % 3 == 0 else both[:1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange")
    rows = [{"q": f"what is {NUMBERS[i]}?", "a": answers(i)} for i in range(len(NUMBERS))]
    (folder / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    topics = [{"text": f"text {i} on {i % 3}", "topic": f"topic {i % 3}", "tone": ["good", "bad"][i % 2]} for i in range(18)]
    (folder / "topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in topics))
    (folder / "m.yaml").write_text(MANIFEST)
    assert not build(folder / "m.yaml", folder / "b").failed
    mine_build(folder / "b", load=lambda settings, device: FakeEncoder())
    return folder / "b"


def tuples_of(folder, source, stage="curated"):
    """Each query with its positives and negatives, as texts."""
    texts = tables.read_table(folder / "curated" / source, "passages", ["text"])["text"]
    pairs = tables.read_table(folder / stage / source, "pairs")
    return {
        row["query"]: ([texts[pid] for pid in row["positives"]], [texts[pid] for pid in row["negatives"]])
        for row in pairs.iter_rows(named=True)
    }


def back(tmp_path, entry):
    """Build one source from an export; return the build."""
    path = tmp_path / "back.yaml"
    path.write_text(f"name: back\nsources:\n  - {entry}\n")
    outcome = build(path, tmp_path / "back")
    if outcome.failed:
        raise next(iter(outcome.failed.values()))
    return outcome.folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_the_command_offers_every_format():
    assert tuple(FORMATS) == OFFERED


def test_f2llm(made, tmp_path):
    receipt, ran = export(made, tmp_path / "out", "f2llm", negatives=3)
    assert ran
    faq = receipt["sources"]["faq"]
    mined = tables.read_table(made / "mined" / "faq", "pairs")
    few = len(mined.filter(pl.col("negatives").list.len() < 3))
    assert faq["left_out"] == ({"too_few_negatives": few} if few else {})
    assert faq["rows"] == faq["used"] == len(mined) - few > 8
    assert faq["positives_left_out"] > 0
    frame = pl.read_parquet(tmp_path / "out/data/faq.parquet")
    assert frame.columns == ["query", "passage", "negative_1", "negative_2", "negative_3"]
    assert frame.null_count().sum_horizontal()[0] == 0
    known = tuples_of(made, "faq", "mined")
    assert dict(zip(frame["query"], frame.rows(), strict=True)) == {
        render_query(INSTRUCTION, query): (render_query(INSTRUCTION, query), positives[0], *negatives)
        for query, (positives, negatives) in known.items()
        if len(negatives) == 3
    }
    assert not (tmp_path / "out/data/tone.parquet").exists()  # its one negative is fewer than 3
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) == ["faq.parquet", "topics.parquet"]
    entry = f"{{name: faq, files: {tmp_path}/out/data/faq.parquet, task: retrieval, fields: {{query: query, positive: passage, negatives: negative_*}}}}"
    again = back(tmp_path, entry)
    assert tuples_of(again, "faq") == {q: (p[:1], n) for q, (p, n) in known.items() if len(n) == 3}
    assert store.read_json(again / "build.json")["sources"]["faq"]["instruction"] == INSTRUCTION


def test_f2llm_takes_one_negative_for_a_classification_and_refuses_where_nothing_fits(made, tmp_path):
    receipt, _ = export(made, tmp_path / "out", "f2llm", ["tone"])
    assert receipt["sources"]["tone"]["rows"] == 18
    frame = pl.read_parquet(tmp_path / "out/data/tone.parquet")
    assert frame.columns == ["query", "passage", "negative_1"]
    assert set(frame.select("passage", "negative_1").rows()) == {("good", "bad"), ("bad", "good")}
    with pytest.raises(BuildError, match=r"'f2llm' can hold none of the tuples \(too_few_negatives 18\); ask for fewer"):
        export(made, tmp_path / "topics", "f2llm", ["topics"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_clustering_comes_back(made, tmp_path):
    export(made, tmp_path / "out", "f2llm", ["topics"], negatives=3)
    fields = "{query: query, positive: passage, negatives: negative_*}"
    again = back(tmp_path, f"{{name: topics, files: {tmp_path}/out/data/topics.parquet, task: clustering, fields: {fields}}}")
    assert tuples_of(again, "topics") == tuples_of(made, "topics", "mined")


@pytest.mark.parametrize("name", ["flagembedding", "tevatron"])
def test_json_lines_and_back(made, tmp_path, name):
    receipt, _ = export(made, tmp_path / "out", name)
    known = tuples_of(made, "faq", "mined")
    assert receipt["sources"]["faq"]["rows"] == len(known)
    lines = lines_of(tmp_path / "out/data/faq.jsonl")
    if name == "flagembedding":
        assert all(list(line) == ["query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type"] for line in lines)
        assert {line["query"]: (line["pos"], line["neg"]) for line in lines} == known
        assert all(len(line["pos"]) == len(line["pos_scores"]) and len(line["neg"]) == len(line["neg_scores"]) for line in lines)
        assert all(-1 <= score <= 1 for line in lines for score in [line["pos_scores"][0], *line["neg_scores"]])
        assert {(line["prompt"], line["type"]) for line in lines} == {(INSTRUCTION, "normal")}
        fields = "{query: query, positive: pos, negatives: neg}"
    else:
        assert all(list(line) == ["query_id", "query", "positive_passages", "negative_passages"] for line in lines)
        passages = [one for line in lines for one in line["positive_passages"] + line["negative_passages"]]
        assert all(list(one) == ["docid", "title", "text"] for one in passages)
        texts = {one["docid"]: one["text"] for one in passages}
        assert all(texts[one["docid"]] == one["text"] for one in passages)
        assert [line["query_id"] for line in lines] == tables.read_table(made / "mined/faq", "pairs")["id"].to_list()
        fields = "{query: query, positive: positives, negatives: negatives}"
    entry = f"{{name: faq, files: {tmp_path}/out/data/faq.jsonl, reader: {name}, task: retrieval, fields: {fields}}}"
    assert tuples_of(back(tmp_path, entry), "faq") == known


def test_sentence_transformers_columns(made, tmp_path):
    known = tuples_of(made, "faq", "mined")
    frames = {}
    for name in ("pair", "triplet", "n-tuple", "labeled-list", "scored-list"):
        export(made, tmp_path / name, name, ["faq"], 3 if name == "n-tuple" else None)
        frames[name] = pl.read_parquet(tmp_path / name / "data/faq.parquet")
    assert frames["pair"].rows() == [(q, p) for q, (ps, _) in tuples_of(made, "faq").items() for p in ps]
    assert frames["triplet"].rows() == [(q, ps[0], n) for q, (ps, ns) in known.items() for n in ns]
    assert frames["n-tuple"].rows() == [(q, ps[0], *ns) for q, (ps, ns) in known.items() if len(ns) == 3]
    wanted = [(q, ps + ns, [1] * len(ps) + [0] * len(ns)) for q, (ps, ns) in known.items()]
    assert frames["labeled-list"].rows() == wanted
    assert [row[:2] for row in frames["scored-list"].rows()] == [(q, ps[:1] + ns) for q, (ps, ns) in known.items()]
    mined = tables.read_table(made / "mined/faq", "pairs")
    assert frames["scored-list"]["scores"].to_list() == [
        [r["positive_score"], *r["negative_scores"]] for r in mined.rows(named=True)
    ]
    assert {name: frame.columns for name, frame in frames.items()} == {
        "pair": ["anchor", "positive"],
        "triplet": ["anchor", "positive", "negative"],
        "n-tuple": ["anchor", "positive", "negative_1", "negative_2", "negative_3"],
        "labeled-list": ["query", "documents", "labels"],
        "scored-list": ["query", "documents", "scores"],
    }
    with pytest.raises(BuildError, match=r"'scored-list' can hold none of the tuples \(no_scores 18\)"):
        export(made, tmp_path / "tone", "scored-list", ["tone"])
    for name, pattern in (("triplet", "negative"), ("n-tuple", "negative_*")):
        fields = f"{{query: anchor, positive: positive, negatives: {pattern}}}"
        again = back(tmp_path, f"{{name: faq, files: {tmp_path}/{name}/data/faq.parquet, task: retrieval, fields: {fields}}}")
        assert tuples_of(again, "faq") == {q: (ps[:1], ns) for q, (ps, ns) in known.items() if len(ns) == 3 or name == "triplet"}
    entry = (
        f"{{name: faq, files: {tmp_path}/pair/data/faq.parquet, task: retrieval, fields: {{query: anchor, positive: positive}}}}"
    )
    assert tuples_of(back(tmp_path, entry), "faq") == {q: (ps, []) for q, (ps, _) in tuples_of(made, "faq").items()}


def test_beir_is_read_by_our_evaluation_and_comes_back(made, tmp_path):
    export(made, tmp_path / "out", "beir")
    folder = tmp_path / "out/data/faq"
    collection = read_collection(folder, "train")
    known = tuples_of(made, "faq")
    assert collection.queries == list(known)
    found = [{collection.passages[row] for row in rows} for rows in collection.relevant]
    assert found == [{text.strip() for text in positives} for positives, _ in known.values()]
    assert len(lines_of(folder / "corpus.jsonl")) == len(tables.read_table(made / "curated/faq", "passages"))
    entry = (
        f"{{name: faq, files: {folder}/qrels/train.tsv, task: retrieval, fields: {{query_id: query-id, positive_id: corpus-id, score: score}}, "
        f"corpus: {{files: {folder}/corpus.jsonl}}, queries: {{files: {folder}/queries.jsonl}}}}"
    )
    assert tuples_of(back(tmp_path, entry), "faq") == {q: (ps, []) for q, (ps, _) in known.items()}


def test_an_export_repeats_to_the_byte_and_overwrites_only_itself(made, tmp_path, monkeypatch):
    export(made, tmp_path / "a", "tevatron")
    assert not export(made, tmp_path / "a", "tevatron")[1]
    export(made, tmp_path / "b", "tevatron")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    monkeypatch.setattr("curation.share.export.BLOCK_TUPLES", 3)
    export(made, tmp_path / "c", "tevatron")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")
    export(made, tmp_path / "b", "pair")
    assert sorted(files_of(tmp_path / "b")) == ["data/faq.parquet", "data/tone.parquet", "data/topics.parquet", "done.json"]
    (tmp_path / "b/data/mine.txt").write_text("mine")
    with pytest.raises(
        BuildError, match=r"b: holds 'data/mine.txt', which no export wrote; name a folder that does not exist yet"
    ):
        export(made, tmp_path / "b", "beir")
    with pytest.raises(BuildError, match=r"holds '.*', which no export wrote"):
        export(made, made, "pair")
    assert not list(tmp_path.glob(".tuplesmith-*"))


def test_without_mined_negatives(made, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(made, bare, ignore=shutil.ignore_patterns("mined", "embeddings"))
    for name, shape in FORMATS.items():
        if shape.mined:
            with pytest.raises(
                BuildError, match=r"'faq' has no mined negatives, and this format needs them; run `mine negatives"
            ):
                export(bare, tmp_path / name, name)
        else:
            export(bare, tmp_path / name, name)
            assert (tmp_path / name / "data").is_dir()


def test_the_command(made, tmp_path):
    run = CliRunner().invoke
    done = run(
        curate, ["export", str(made), "--format", "triplet", "-o", str(tmp_path / "x"), "--negatives", "2", "--only", "topics"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].split() == ["topics", "18", "18", "36", "0", "0"]
    done = run(curate, ["export", str(made), "--format", "pair", "-o", str(tmp_path / "y"), "--negatives", "2"])
    assert done.exit_code == 2
    done = run(curate, ["verify", str(made), "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            {"query": "who?", "pos": ["a text"], "neg": "another"},
            r"f.jsonl:2: 'neg' is text, not a list of texts; write `\"neg\": \[\"a text\"",
        ),
        ({"query": "who?", "pos": "a text", "neg": []}, r"f.jsonl:2: 'pos' is text, not a list of texts"),
        ({"query": "who?", "pos": ["a text"], "neg": [["b"]]}, r"f.jsonl:2: 'neg' lists other things than texts"),
    ],
)
def test_a_text_for_a_list_is_an_error(tmp_path, line, complaint):
    good = {"query": "what?", "pos": ["this one"], "neg": []}
    (tmp_path / "f.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(SourceError, match=complaint):
        back(
            tmp_path,
            "{name: f, files: f.jsonl, reader: flagembedding, task: retrieval, fields: {query: query, positive: pos, negatives: neg}}",
        )


def test_tevatron_passages_have_titles(tmp_path):
    passages = {"positive_passages": [{"docid": "1", "title": "Emma", "text": "a novel"}], "negative_passages": []}
    (tmp_path / "t.jsonl").write_text(json.dumps({"query_id": "7", "query": "Austen?"} | passages) + "\n")
    entry = "{name: t, files: t.jsonl, reader: tevatron, task: retrieval, fields: {query: query, positive: positives, negatives: negatives}}"
    assert tuples_of(back(tmp_path, entry), "t") == {"Austen?": (["Emma\na novel"], [])}
    (tmp_path / "t.jsonl").write_text(json.dumps({"query": "Austen?", "positive_passages": ["Emma"]}) + "\n")
    with pytest.raises(
        SourceError, match="t.jsonl:1: 'positive_passages' is not a list of passages with a text; each passage is"
    ):
        back(tmp_path, entry)
    frame = pl.DataFrame({"query": ["Austen?"], **{name: [value] for name, value in passages.items()}})
    frame.write_parquet(tmp_path / "t.parquet")  # MIRACL's own layout on the Hub
    entry = "{name: t, files: t.parquet, task: retrieval, fields: {query: query, positive: positive_passages}}"
    assert tuples_of(back(tmp_path, entry), "t") == {"Austen?": (["Emma\na novel"], [])}


def test_an_instruction_is_taken_off_and_never_doubled(tmp_path):
    rows = [{"q": render_query(f"Find {word}", f"query of {word}"), "p": f"passage of {word}"} for word in ("cats", "dogs")]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = "{name: r, files: r.jsonl, task: retrieval, fields: {query: q, positive: p}%s}"
    with pytest.raises(
        SourceError, match="its queries begin with 2 instructions, 'Find cats' and 'Find dogs' among them; set `instr"
    ):
        back(tmp_path, entry % "")
    again = back(tmp_path, entry % ", instruction: Search")
    assert list(tuples_of(again, "r")) == ["query of cats", "query of dogs"]
    assert store.read_json(again / "build.json")["sources"]["r"]["instruction"] == "Search"


def test_patterns_of_negatives(tmp_path):
    (tmp_path / "n.jsonl").write_text(json.dumps({"q": "what?", "p": "this one", "n_2": "second", "n_10": "tenth"}) + "\n")
    entry = "{name: n, files: n.jsonl, task: retrieval, fields: {query: q, positive: p, negatives: %s}}"
    assert tuples_of(back(tmp_path, entry % '"n_*"'), "n") == {"what?": (["this one"], ["second", "tenth"])}
    with pytest.raises(SourceError, match=r"no column matches 'x_\*'; columns there are: q, p, n_2, n_10"):
        back(tmp_path, entry % '"x_*"')


def test_the_report_shows_what_was_mined(made, tmp_path):
    whole = tmp_path / "b"
    shutil.copytree(made, whole, ignore=shutil.ignore_patterns("embeddings"))
    assert 'id="negatives"' not in (whole / "report.html").read_text()  # written by the build, before the mining
    assert page.write(whole)
    assert not page.write(whole)
    text = (whole / "report.html").read_text()
    scores = text[text.index('<section id="negatives">') :].split("</section>")[0]
    receipt = store.read_receipt(whole / "mined" / "faq")
    rows = tables.read_table(whole / "mined" / "faq", "pairs")
    assert sum(receipt["histograms"]["positives"]) == len(rows) == receipt["kept"]
    assert sum(receipt["histograms"]["negatives"]) == rows["negative_scores"].list.len().sum()
    shown = re.fullmatch(r".*aria-label=\"faq: median positive (.*), median negative (.*?)\".*", scores, re.DOTALL)
    medians = rows["positive_score"].median(), rows["negative_scores"].explode().median()
    assert [float(number) for number in shown.groups()] == pytest.approx(medians, abs=0.026)
    assert f"{receipt['kept']} of {receipt['rows_in']} tuples" in scores
    assert scores.count("<figure>") == 1  # the other sources' negatives have no scores
