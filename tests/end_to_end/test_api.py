"""`import tuplesmith`: every example of its docstrings runs, negatives are sentence-transformers', errors are one line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

import tuplesmith
from curation.build.build import build as build_sources
from mining.encoders import CustomEncoder
from mining.mine import mine_build
from tests.end_to_end.test_readme import write_tickets
from tests.servers.hub_server import hub
from tests.test_docs import HEAVY
from tests.training.tiny_models import MINILM
from training.model.files import find_model

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = """\
name: tickets
sources:
  - name: tickets
    files: tickets/*.csv
    license: cc-by-4.0
    verified: yes
    task: retrieval
    instruction: Given a question, retrieve the answer that solves it
    fields: {query: question, positive: answer}
    holdout: 20
mine: {model: sentence-transformers/all-MiniLM-L6-v2, preset: nv-retriever, containment: null, negatives: 4}
train: {model: sentence-transformers/all-MiniLM-L6-v2, batch: 8, negatives: 2, max_tokens: 32}
"""
# the examples build on one another: a build is mined before it is trained on
ORDER = ["build", "mine", "load_build", "Build", "train", "evaluate"]
EXAMPLES = """
import doctest, json, sys
import tuplesmith
order = json.loads(sys.argv[1])
found = {one.name.removeprefix("tuplesmith."): one for one in doctest.DocTestFinder().find(tuplesmith) if one.examples}
names = sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
runner = doctest.DocTestRunner()
for name in names:
    runner.run(found[name])
print(json.dumps(names))
sys.exit(runner.failures)
"""
FOLDERS = "name a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv; texts are a list in the list"
FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")


def texts_to_vectors(texts):
    """Vectors of few distinct directions made exact in float32, so that equal texts alone have equal scores."""
    found = np.stack([np.random.default_rng(list(text.encode())).standard_normal(16) for text in texts])
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class Model:
    """The least that a model must have."""

    def encode(self, texts):
        return texts_to_vectors(texts)


class Prompted(Model):
    """Has the methods and the prompts of a SentenceTransformer."""

    def __init__(self):
        self.prompts = {"query": "query: "}

    encode_query = encode_document = Model.encode


class Constant:
    """Gives all texts one vector."""

    def encode(self, texts):
        return np.ones((len(texts), 4))


class PeerModel:
    """What sentence-transformers' function calls of a model, with products in float64."""

    def __init__(self):
        import torch
        from sentence_transformers.util import dot_score, pairwise_dot_score

        self.device, self.similarity, self.similarity_pairwise = torch.device("cpu"), dot_score, pairwise_dot_score

    def encode_query(self, texts, prompt=None, **_):
        return texts_to_vectors([(prompt or "") + text for text in texts]).astype(np.float64)

    encode_document = encode_query


class Overlap:
    """A reranker without a model: the share of letters that two texts have in common, and a little so that no scores are equal."""

    def predict(self, pairs, convert_to_tensor=False, **_):
        import torch

        found = [len(set(a) & set(b)) / len(set(a) | set(b)) + zlib.crc32((a + b).encode()) / 2**40 for a, b in pairs]
        return torch.tensor(found, dtype=torch.float64) if convert_to_tensor else found


class Scores:
    """A reranker whose scores are what a function makes of the number of pairs."""

    def __init__(self, scores):
        self.scores = scores

    def predict(self, pairs):
        return self.scores(len(pairs))


def peer(dataset, model=None, **settings):
    from sentence_transformers.util import mine_hard_negatives

    return mine_hard_negatives(dataset, model or PeerModel(), verbose=False, **settings)


def assert_same(ours, theirs):
    """Equal columns, rows and types; scores to float32's rounding."""
    assert ours.column_names == theirs.column_names
    if not len(theirs):
        assert not len(ours)
        return
    assert ours.features == theirs.features
    one, other = ours.to_dict(), theirs.to_dict()
    for name in ours.column_names:
        if "score" in name:
            one[name], other[name] = (np.concatenate([np.atleast_1d(row) for row in found[name]]) for found in (one, other))
            assert one[name] == pytest.approx(other[name], abs=1e-6)
        else:
            assert one[name] == other[name]


def pairs_of(numbers):
    return Dataset.from_dict({"q": [f"query {one}" for one, _ in numbers], "p": [f"document {two}" for _, two in numbers]})


def random_pairs(count=60, queries=20, documents=40):
    draw = random.Random(7)
    return pairs_of([(draw.randrange(queries), draw.randrange(documents)) for _ in range(count)])


numbers = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 25)), min_size=1, max_size=40)
limit = st.one_of(st.none(), st.integers(-10, 10).map(lambda n: n / 10))


@given(
    numbers,
    st.integers(0, 3),
    st.integers(1, 5),
    limit,
    limit,
    limit,
    limit,
    st.sampled_from(FORMATS),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=15)
@pytest.mark.filterwarnings("ignore")  # sentence-transformers' own
def test_rows_of_sentence_transformers(rows, low, count, highest, lowest, absolute, relative, shape, scores, samples):
    asked = {"range_min": low, "num_negatives": count, "max_score": highest, "min_score": lowest}
    asked |= {"absolute_margin": absolute, "relative_margin": relative, "output_format": shape, "output_scores": scores}
    asked |= {"sampling_strategy": "random" if samples else "top"}
    dataset = pairs_of(rows)
    random.seed(1)
    theirs = peer(dataset, **asked)
    random.seed(1)
    assert_same(tuplesmith.mine_hard_negatives(dataset, Model(), verbose=False, **asked), theirs)


@pytest.mark.parametrize(
    "asked",
    [
        {"corpus": [f"further {n}" for n in range(30)] + ["document 3"]},
        {"include_positives": True, "num_negatives": 6},
        {"query_prompt": "ask: ", "corpus_prompt": "text: "},
        {"range_max": 9, "range_min": 2, "sampling_strategy": "random", "num_negatives": 4},
        {"cross_encoder": Overlap(), "max_score": 0.7, "num_negatives": 4},
        {"cross_encoder": Overlap(), "relative_margin": 0.1, "min_score": 0.1},
        {"cross_encoder": Overlap()},
        {"anchor_column_name": "p", "positive_column_name": "q"},
        {"range_max": 500, "num_negatives": 30},
    ],
)
@pytest.mark.parametrize("shape", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_further_arguments_of_sentence_transformers(asked, shape):
    dataset = random_pairs()
    random.seed(5)
    theirs = peer(dataset, output_format=shape, output_scores=True, **asked)
    random.seed(5)
    ours = tuplesmith.mine_hard_negatives(dataset, Model(), output_format=shape, output_scores=True, verbose=False, **asked)
    assert_same(ours, theirs)


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
def test_two_thousand_real_pairs(shared_data):
    """all-MiniLM by its path, and as a SentenceTransformer, against sentence-transformers' own function."""
    from sentence_transformers import SentenceTransformer

    folder = shared_data / "squad_v1_nqg"
    questions, answers = ((folder / name).read_text("utf-8").split("\n")[:2000] for name in ("tgt-dev.txt", "src-dev.txt"))
    dataset = Dataset.from_dict({"question": questions, "answer": answers})
    asked = {"range_min": 2, "max_score": 0.8, "relative_margin": 0.05, "num_negatives": 5, "output_format": "n-tuple"}
    path = find_model(MINILM).transformer
    model = SentenceTransformer(str(path), device="cpu")
    for given_model, pairs in ((str(path), dataset), (model, dataset.select(range(300)))):
        theirs = peer(pairs, model, output_scores=True, **asked)
        ours = tuplesmith.mine_hard_negatives(pairs, given_model, output_scores=True, verbose=False, device="cpu", **asked)
        assert_same_but_for_ties(ours, theirs)


def assert_same_but_for_ties(ours, theirs):
    """Rows are equal; where a text differs, its score is that of theirs to float32's rounding."""
    by_pair = [{(row["question"], row["answer"]): row for row in found} for found in (ours, theirs)]
    both = by_pair[0].keys() & by_pair[1].keys()
    assert len(both) >= 0.998 * len(by_pair[0].keys() | by_pair[1].keys())
    differing = [pair for pair in both if any(by_pair[0][pair][n] != by_pair[1][pair][n] for n in ours.column_names[:-1])]
    assert len(differing) <= 0.002 * len(both)
    for pair in both:
        assert by_pair[0][pair]["scores"] == pytest.approx(by_pair[1][pair]["scores"], abs=2e-6) or pair in differing


@pytest.mark.parametrize("preset", ["f2llm", "nv-retriever", "clean"])
def test_presets_are_those_of_mine(tmp_path, preset):
    """A preset gives the negatives of `mine negatives` on a build with the same texts."""
    (tmp_path / "tickets").mkdir()
    write_tickets(tmp_path / "tickets" / "2026.csv")
    text = MANIFEST.replace("holdout: 20", "holdout: 0").replace(MANIFEST.split("mine: ")[1].split("\n")[0], "{MINE}")
    (tmp_path / "m.yaml").write_text(text.replace("{MINE}", f"{{model: given, preset: {preset}, negatives: 6, shortage: keep}}"))
    folder = build_sources(tmp_path / "m.yaml", tmp_path / "b").folder
    model = Words()
    mine_build(folder, device="cpu", load=lambda settings, device: CustomEncoder(model, settings, device))
    built = tuplesmith.load_build(folder).tuples()
    dataset = Dataset.from_dict({"q": built["query"].to_list(), "p": built["positives"].list.first().to_list()})
    found = tuplesmith.mine_hard_negatives(
        dataset, model, num_negatives=6, preset=preset, output_format="labeled-list", verbose=False, device="cpu"
    )
    negatives = {row["q"]: row["p"][1:] for row in found}
    assert sum(map(len, negatives.values())) > 500
    assert [negatives.get(query, []) for query in built["query"]] == built["negatives"].to_list()


class Words:
    """Vectors by words, so that texts that share words are near."""

    def encode(self, texts):
        known = {}
        found = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                if word not in known:
                    known[word] = np.random.default_rng(list(word.encode())).standard_normal(64)
                found[row] += known[word]
        return found


def test_cached_vectors_are_used_again(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_model(MINILM).transformer), device="cpu")
    dataset = Dataset.from_dict({"q": ["what is a cat", "what is a dog"], "p": ["a cat is an animal", "a dog is an animal"]})
    for one in (model, MINILM):
        first = tuplesmith.mine_hard_negatives(dataset, one, num_negatives=1, cache_folder=tmp_path, verbose=False)
        shards = sorted(tmp_path.rglob("shard-*"))
        assert (
            tuplesmith.mine_hard_negatives(dataset, one, num_negatives=1, cache_folder=tmp_path, verbose=False).to_dict()
            == first.to_dict()
        )
        assert sorted(tmp_path.rglob("shard-*")) == shards


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"output_format": "triplets"}, "output_format: 'triplets' is unknown (did you mean 'triplet'?); choose one of triplet, n-tuple, labeled-pair, labeled-list"),
        ({"sampling_strategy": "best"}, "sampling_strategy: 'best' is unknown; choose top or random"),
        ({"preset": "clear"}, "preset: 'clear' is unknown (did you mean 'clean'?); choose one of f2llm, nv-retriever, clean"),
        ({"num_negatives": 0}, "num_negatives: must be at least 1, and is 0"),
        ({"range_min": -1}, "range_min: must not be negative, and is -1"),
        ({"range_max": 2}, "num_negatives: 3 negatives do not fit between range_min 0 and range_max 2; lower num_negatives or range_min, or raise range_max"),
        ({"use_multi_process": True}, "use_multi_process: is not supported; leave it out: one process uses all cores"),
        ({"anchor_column_name": "querry"}, "dataset: has no column 'querry' (did you mean 'query'?); its columns are query, positive, number"),
        ({"positive_column_name": "query"}, "positive_column_name: anchors and positives are both column 'query'; name two columns"),
        ({"positive_column_name": "number"}, "dataset: column 'number' holds Int64, not texts; choose another column"),
        ({"dataset": Dataset.from_dict({"q": ["a", None], "p": ["b", "c"]})}, "dataset: row 1 has no text in column 'q'; remove such rows, with dataset.filter"),
        ({"dataset": Dataset.from_dict({"q": [], "p": []})}, "dataset: is empty; give at least one pair"),
        ({"dataset": Dataset.from_dict({"q": ["a"]})}, "dataset: has one column; give a column of anchors and a column of positives"),
        ({"dataset": pl.DataFrame({"q": ["a"], "p": ["b"]})}, "dataset: is a DataFrame, not a datasets.Dataset; make it with Dataset.from_polars"),
        ({"dataset": [("a", "b")]}, "dataset: is a list, not a datasets.Dataset; make it with Dataset.from_dict"),
        ({"dataset": DatasetDict()}, "dataset: is a DatasetDict, not a datasets.Dataset; give one split, such as dataset['train']"),
        ({"corpus": ["a", 3]}, "corpus: entry 1 is an int, not a text"),
        ({"corpus": "abc"}, "corpus: is one text; give a list of texts"),
        ({"corpus": {"a": "b"}}, "corpus: is a dict; give a list of texts, or a datasets.Dataset"),
        ({"corpus": ["a", "b \ud800"]}, "corpus: entry 1 holds half of a surrogate pair, which is not text"),
        ({"corpus": Dataset.from_dict({"text": ["a"], "id": [1]})},
         "corpus: is a Dataset with columns text, id; give one column of it as a list, such as list(corpus['text'])"),
        ({"dataset": Dataset.from_dict({"q": ["a"], "p": ["b"]}).to_iterable_dataset()},
         "dataset: is an IterableDataset, not a datasets.Dataset; make it with Dataset.from_list(list(dataset))"),
        ({"model": Model}, "model: is the class Model itself; give an object of it, or a path"),
        ({"model": Prompted(), "query_prompt_name": "qury"}, "Prompted: has no prompt 'qury' (did you mean 'query'?); it has query"),
        ({"num_negatives": 1.5}, "num_negatives: must be a whole number, and is 1.5"),
        ({"max_score": float("nan")}, "max_score: must be a number, and is nan"),
        ({"model": 3}, "model: an int has no method 'encode'; give a path, a SentenceTransformer, or an object with `encode(texts)`"),
        ({"query_prompt_name": "query"}, "Model: has no prompt 'query'; it has none: give query_prompt instead"),
        ({"cache_folder": "x"}, "Model: cannot be recognised when it is loaded again; give no cache_folder, or the path of a model"),
        ({"model": Constant(), "dataset": Dataset.from_dict({"q": ["a b", "c", "d"], "p": ["a", "b", "e"]})}, "model: gives 3 different texts the same vector, such as 'a b'; does it know their language? are its weights whole?"),
        ({"cross_encoder": 3, "max_score": 0.5}, "cross_encoder: an int has no method 'predict'; give a CrossEncoder"),
        ({"cross_encoder": Scores(lambda n: [float("nan")] * n), "max_score": 0.5},
         "cross_encoder: `predict` returned NaN or infinity for 'a b' and 'c'; are its weights whole? try float32"),
        ({"cross_encoder": Scores(lambda n: [[0.1, 0.9]] * n), "max_score": 0.5},
         "cross_encoder: `predict` returned an array of shape (6, 2) for 6 pairs of texts; give a CrossEncoder with one number for each pair"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(change, line):
    dataset = Dataset.from_dict({"query": ["a b", "c d"], "positive": ["a", "c"], "number": [1, 2]})
    with pytest.raises(tuplesmith.UserError) as raised:
        tuplesmith.mine_hard_negatives(**{"dataset": dataset, "model": Model(), "verbose": False, **change})
    assert str(raised.value) == line


def test_columns_that_nobody_named_are_printed(capsys):
    dataset = Dataset.from_dict({"query": ["a b", "c d"], "positive": ["a", "c"], "number": [1, 2]})
    tuplesmith.mine_hard_negatives(dataset, Model(), num_negatives=1)
    assert "anchors are column 'query', positives are column 'positive'; not used: number\n" in capsys.readouterr().err
    tuplesmith.mine_hard_negatives(dataset, Model(), num_negatives=1, anchor_column_name="query", positive_column_name="positive")
    assert "anchors" not in capsys.readouterr().err


def test_empty_texts_are_counted(capsys):
    dataset = Dataset.from_dict({"query": ["a b", "", "c"], "positive": ["a", "c", " "]})
    tuplesmith.mine_hard_negatives(dataset, Model(), num_negatives=1)
    said = capsys.readouterr().err
    for name in ("query", "positive"):
        assert f"1 of 3 texts in column '{name}' are empty, and are used like others\n" in said


def test_duplicates_name_the_kept_row():
    long = "please tell me how I can reset the password of my account when I have lost the phone that gets the codes"
    texts = [long, "another text", long.upper() + "!", long.replace("lost the", "lost that"), "Another  text.", "a third"]
    result = tuplesmith.deduplicate(texts, threshold=0.7)
    assert result.kept == [texts[0], texts[1], texts[5]]
    rows = result.dropped.select("row", "kept_row", "score").rows()
    assert [row[:2] for row in rows] == [(2, 0), (3, 0), (4, 1)]
    assert rows[0][2] == rows[2][2] == 1
    assert 0.7 <= rows[1][2] < 1
    assert tuplesmith.deduplicate(texts, threshold=1).kept == [texts[0], texts[1], texts[3], texts[5]]
    dataset = Dataset.from_dict({"number": list(range(6)), "text": texts})
    assert tuplesmith.deduplicate(dataset, 0.7).kept["number"][:] == [0, 1, 5]
    assert tuplesmith.deduplicate([]).kept == []


def test_no_chain_of_duplicates():
    """Each dropped row matches a kept one at the threshold, and no two kept rows do."""
    draw = random.Random(3)
    words = [f"word{n}" for n in range(40)]
    base = [" ".join(draw.sample(words, 14)) for _ in range(6)]
    texts = []
    for text in base:
        for _ in range(12):
            changed = text.split()
            changed[draw.randrange(14)] = draw.choice(words)
            text = " ".join(changed)
            texts.append(text)
    result = tuplesmith.deduplicate(texts, threshold=0.5)
    kept = [texts.index(text) for text in result.kept]
    assert 6 <= len(kept) < len(texts)
    assert set(result.dropped["kept_row"]) <= set(kept)
    for row, kept_row, score in result.dropped.select("row", "kept_row", "score").iter_rows():
        grams = [{text[at : at + 5] for at in range(len(text) - 4)} for text in (texts[row], texts[kept_row])]
        assert score == pytest.approx(len(grams[0] & grams[1]) / len(grams[0] | grams[1]))


def test_evaluation_texts_are_found(tmp_path):

    question = "which enzyme unwinds the double helix before a chromosome is copied"
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q7", "text": question}) + "\n")
    (tmp_path / "corpus.jsonl").write_text(
        json.dumps({"_id": "d1", "text": "helicase unwinds the double helix of the chromosome"}) + "\n"
    )
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq7\td1\t1\n")
    dataset = Dataset.from_dict(
        {
            "query": [
                "Which enzyme unwinds the double helix, before a chromosome is copied?",
                "who wrote Emma",
                "what is the capital of France",
            ],
            "positive": ["helicase", "Jane Austen", "Paris is the capital of France"],
            "negatives": [["x"], ["Emma is a novel", "helicase unwinds the double helix of the chromosome"], []],
        }
    )
    result = tuplesmith.decontaminate(dataset, against=tmp_path)
    assert result.kept["query"][:] == ["what is the capital of France"]
    assert result.dropped.select("row", "column", "found_id", "rule").rows() == [
        (0, "query", "q7", "equal"),
        (1, "negatives", "d1", "equal"),
    ]
    assert result.dropped["text"][0] == dataset["query"][0]
    only = tuplesmith.decontaminate(dataset, against=[tmp_path, [question]], columns=["positive"])
    assert len(only.kept) == 3
    by_dataset = tuplesmith.decontaminate(dataset["query"][:], against=Dataset.from_dict({"text": [question], "id": [1]}))
    assert by_dataset.kept == dataset["query"][1:]
    assert by_dataset.dropped["found_in"].to_list() == ["against[0]"]
    paragraph = question + ", and which others keep the strands apart while it works" * 9  # longer than any name of a file
    for texts in ([paragraph], (one for one in [paragraph]), [["and/or"], [paragraph]], [question, "and/or", paragraph]):
        assert tuplesmith.decontaminate([paragraph, "who wrote Emma"], against=texts).kept == ["who wrote Emma"]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: tuplesmith.deduplicate(["a"], threshold=0), "threshold: must be above 0 and at most 1, and is 0"),
        (lambda: tuplesmith.deduplicate("text"), "texts: is one text; give a list of texts"),
        (lambda: tuplesmith.deduplicate(DatasetDict()), "texts: is a DatasetDict; give a list of texts, or a datasets.Dataset"),
        (lambda: tuplesmith.deduplicate(pl.DataFrame({"q": ["a"]})),
         "texts: is a DataFrame with columns q; give one column of it as a list, such as list(texts['q'])"),
        (lambda: tuplesmith.deduplicate(random_pairs(), column=["q"]), "['q']: is a list, not the name of a column; columns are q, p"),
        (lambda: tuplesmith.decontaminate(random_pairs(), [["x"]], columns="texts"), "dataset: has no column 'texts'; its columns are q, p"),
        (lambda: tuplesmith.deduplicate(text for text in "ab"), "texts: is a generator; give a list of texts, or a datasets.Dataset"),
        (lambda: tuplesmith.deduplicate(["a"], "high"), "threshold: must be above 0 and at most 1, and is high"),
        (lambda: tuplesmith.decontaminate(["a"], None), "against: is a NoneType; give a folder, a Dataset or a list of texts"),
        (lambda: tuplesmith.decontaminate(["a"], [["", " "]]), "against[0]: holds no text, so nothing would be kept clear of it"),
        (lambda: tuplesmith.deduplicate(Dataset.from_dict({"n": [1]})), "dataset: has no column of texts; its columns are n"),
        (lambda: tuplesmith.decontaminate(["a"], against="nowhere"), "nowhere: no such folder; " + FOLDERS),
        (lambda: tuplesmith.decontaminate(["a"], against=["beir/scifact", "beir/fiqa"]), "beir/scifact: no such folder; " + FOLDERS),
        (lambda: tuplesmith.decontaminate(["a"], against=[".", "fiqa"]), "fiqa: no such folder; " + FOLDERS),
        (lambda: tuplesmith.build("m.yaml", limit=0), "limit: must be a whole number of at least 1, and is 0"),
        (lambda: tuplesmith.build("m.yaml", limit=2.5), "limit: must be a whole number of at least 1, and is 2.5"),
        (lambda: tuplesmith.mine("b", workers=True), "workers: must be a whole number of at least 1, and is True"),
        (lambda: tuplesmith.export("b", "pair", "x", negatives=-1), "negatives: must be a whole number of at least 1, and is -1"),
        (lambda: tuplesmith.mine_hard_negatives(random_pairs(), Model(), query_prompt=3), "query_prompt: must be a text, and is 3"),
        (lambda: tuplesmith.decontaminate(["a"], against=[[]]), "against[0]: holds no text, so nothing would be kept clear of it"),
        (lambda: tuplesmith.decontaminate(["a"], against=[]), "against: names no evaluation set; give a folder, a Dataset or a list of texts"),
        (lambda: tuplesmith.load_build(3), "build: is an int; give a Build, or its folder"),
        (lambda: tuplesmith.evaluate(Model(), "x"), "model: is a Model, not a folder or a Hub id; save it, for instance with `model.save(DIR)`, and give the folder"),
        (lambda: tuplesmith.load_build("nowhere"), "nowhere: holds no build; run `curate build MANIFEST` first, or name a build folder"),
        (lambda: tuplesmith.export("nowhere", "parquet", "x"), "format: 'parquet' is unknown; choose one of f2llm, pair, triplet, n-tuple, labeled-list, scored-list, flagembedding, tevatron, tevatron-ids, nemo, beir, ids"),
    ],
)  # fmt: skip
def test_other_mistakes_are_one_line(call, line):
    with pytest.raises(tuplesmith.UserError) as raised:
        call()
    assert str(raised.value) == line


def test_a_build_gives_its_tuples(tmp_path):
    (tmp_path / "tickets").mkdir()
    write_tickets(tmp_path / "tickets" / "2026.csv")
    (tmp_path / "tickets" / "2027.csv").write_text("question,answer\nWhere is it?,\nWhere is it?,Here\nWhere is it?,There\n")
    (tmp_path / "m.yaml").write_text(MANIFEST)
    build = tuplesmith.build(tmp_path / "m.yaml", out=tmp_path / "b", quiet=True)
    tuples = build.tuples("tickets")
    assert tuples.columns == ["id", "query", "positives", "negatives", "label"]
    assert tuples.filter(pl.col("query") == "Where is it?")["positives"].to_list() == [["Here", "There"]]
    counts = build.counts().row(0, named=True)
    assert counts["kept"] == len(tuples)
    assert counts["rows_in"] == 291
    assert counts["heldout"] == 20
    assert build.drops()["reason"].sort().to_list() == ["empty_positive", "same_query"]
    assert build.receipts()["tickets"]["mined"] is None
    dataset = build.dataset()
    assert dataset.column_names == tuples.columns
    assert dataset["positives"][:] == tuples["positives"].to_list()
    with pytest.raises(tuplesmith.UserError, match="no source 'ticket' .did you mean 'tickets'"):
        build.tuples("ticket")
    with pytest.raises(tuplesmith.UserError, match="negatives: no tuple has 2; call `mine` first"):
        build.dataset(negatives=2)
    with pytest.raises(tuplesmith.UserError, match="unknown key 'stepps' .did you mean 'steps'"):
        tuplesmith.train(build, recipe={"model": "x", "stepps": 3})
    with pytest.raises(tuplesmith.UserError) as error:
        tuplesmith.train(build, recipe={"model": "x", "batch": "big", "lr": "fast"})
    assert str(error.value) == "recipe: batch: 'big' is not a whole number\nrecipe: lr: 'fast' is not a number"
    with pytest.raises(tuplesmith.UserError, match="recipe: is a list; give a YAML file, or a mapping of the keys of `train:`"):
        tuplesmith.train(build, recipe=["batch"])
    table = tmp_path / "tickets" / "2026.csv"
    with pytest.raises(tuplesmith.UserError) as error:
        tuplesmith.build(table)
    assert (
        str(error.value)
        == f"{table}: holds data, and is not a manifest; `curate import {table} -o m.yaml` writes one that reads it"
    )


def test_several_held_out_sets_are_measured_at_once(tmp_path):
    for name, words in (("tickets", "the router"), ("orders", "an invoice")):
        write_tickets(tmp_path / f"{name}.csv")
        (tmp_path / f"{name}.csv").write_text((tmp_path / f"{name}.csv").read_text().replace("router", words))
    source = "license: mit, task: retrieval, fields: {query: question, positive: answer}, holdout: 20"
    lines = [f"  - {{name: {name}, files: {name}.csv, {source}}}" for name in ("tickets", "orders")]
    (tmp_path / "m.yaml").write_text("\n".join(["name: m", "sources:", *lines]) + "\n")
    build = tuplesmith.build(tmp_path / "m.yaml", out=tmp_path / "b", quiet=True)
    folders = [build.path / "heldout" / name for name in build.sources]
    alone = [tuplesmith.evaluate(MINILM, folder, quiet=True) for folder in folders]
    found = tuplesmith.evaluate(MINILM, build, quiet=True)
    assert sorted(found) == ["mean", "orders", "tickets"]
    for name, one in zip(build.sources, alone, strict=True):
        assert {key: found[name][key] for key in one} == one
        low, high = found[name]["intervals"]["ndcg@10"]
        assert low <= one["ndcg@10"] <= high
    assert found["mean"]["ndcg@10"] == pytest.approx((alone[0]["ndcg@10"] + alone[1]["ndcg@10"]) / 2, abs=1e-12)
    assert found["mean"]["queries"] == alone[0]["queries"] + alone[1]["queries"]
    assert tuplesmith.evaluate(MINILM, [folders[0].parent], quiet=True) == found
    (tmp_path / "bare.yaml").write_text("\n".join(["name: m", "sources:", *lines]).replace(", holdout: 20", "") + "\n")
    bare = tuplesmith.build(tmp_path / "bare.yaml", out=tmp_path / "c", quiet=True)
    with pytest.raises(tuplesmith.UserError) as error:
        tuplesmith.evaluate(MINILM, bare, quiet=True)
    assert str(error.value) == f"{bare.path}: has no held-out queries; give a source `holdout: N` and build again"
    with pytest.raises(tuplesmith.UserError) as error:
        tuplesmith.evaluate(MINILM, [], quiet=True)
    assert str(error.value) == "data: names no evaluation set; give a Build or folders in BEIR's layout"


@pytest.mark.long  # encodes, trains and evaluates with all-MiniLM
@pytest.mark.timeout(1800)
def test_examples_of_docstrings_run(tmp_path):
    here = tmp_path / "here"
    (here / "tickets").mkdir(parents=True)
    write_tickets(here / "tickets" / "2026.csv")
    (here / "tickets.yaml").write_text(MANIFEST)
    with hub(tmp_path / "hub") as server:
        server.put("models", "sentence-transformers/all-MiniLM-L6-v2", find_model(MINILM).transformer)
        env = os.environ | server.environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        lock = "from curation.cli import main; main()"
        for command in (["-c", lock, "lock", "tickets.yaml"], ["-c", EXAMPLES, json.dumps(ORDER)]):
            done = subprocess.run([sys.executable, *command], cwd=here, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    ran = json.loads(done.stdout.splitlines()[-1])
    functions = {name for name in tuplesmith.__all__ if name[0].islower()}
    assert functions | {"Build", "Build.tuples", "Build.dataset", "Build.counts", "Build.drops", "Build.receipts"} <= set(ran)


def test_the_import_is_light():
    code = f"import sys, tuplesmith; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_that_hides_a_package_is_named(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").touch()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", "import tuplesmith"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last
        == f"ImportError: tuplesmith: {tmp_path / 'training'} hides tuplesmith's package 'training'; rename it, or run from another folder"
    )


def test_bars_in_a_notebook(monkeypatch, capsys):
    """In a Jupyter kernel, progress is a bar of tqdm, which needs no terminal."""

    class ZMQInteractiveShell:
        pass

    class IPython:
        @staticmethod
        def get_ipython():
            return ZMQInteractiveShell()

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    tuplesmith.mine_hard_negatives(random_pairs(), Model(), num_negatives=1)
    shown = capsys.readouterr().err
    assert "search" in shown
    assert "17 queries have 17 negatives" in shown
