"""nDCG, recall and MRR against a plain double loop and against sentence-transformers; and what bad folders get."""

import json
import math
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from tiny_models import MINILM

from curation.core.errors import SourceError
from training import evaluate as module
from training.collection import evaluation_sets, read_collection
from training.evaluate import compared, evaluate, means, nearest, scores
from training.model.encode import load_encoder
from training.model.files import find_model

CPU = torch.device("cpu")
PASSAGES = {
    "a": ("Paris", "is the capital of France."),
    "b": ("", "The cat sat on the mat."),
    "c": ("Cats", "A cat is a small animal that purrs."),
    "d": ("Emma", "a novel by Jane Austen, 1815"),
    "e": ("", "Stock markets fell on Monday."),
    **{f"f{number}": ("", f"Filler number {number} about nothing much.") for number in range(12)},
}
QUERIES = {
    "1": "capital of France?",
    "2": "pets that purr",
    "3": "who wrote Emma?",
    "4": "never judged",
    "5": "judged with zeros",
}
QRELS = [("1", "a", 2), ("2", "c", 3), ("2", "b", 1), ("2", "e", 0), ("3", "d", 1), ("3", "f3", 1), ("5", "e", 0)]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(MINILM)


def write_folder(path, qrels=QRELS):
    (path / "qrels").mkdir()
    corpus = ({"_id": name, "title": title, "text": text} for name, (title, text) in PASSAGES.items())
    (path / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in corpus))
    (path / "queries.jsonl").write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in QUERIES.items()))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (path / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return path


def by_double_loop(similarities, relevant):
    """Return the three means by the plainest code there is."""
    ndcg = recall = mrr = 0.0
    for row, grades in zip(similarities, relevant, strict=True):
        order = sorted(range(len(row)), key=lambda place: (-row[place], place))[:10]
        dcg = ideal = 0.0
        for rank, place in enumerate(order, 1):
            dcg += grades.get(place, 0) / math.log2(rank + 1)
        for rank, grade in enumerate(sorted(grades.values(), reverse=True)[:10], 1):
            ideal += grade / math.log2(rank + 1)
        ndcg += dcg / ideal
        recall += len([place for place in order if place in grades]) / len(grades)
        for rank, place in enumerate(order, 1):
            if place in grades:
                mrr += 1 / rank
                break
    return {"ndcg@10": ndcg / len(relevant), "recall@10": recall / len(relevant), "mrr@10": mrr / len(relevant)}


def test_equal_to_a_double_loop_and_queries_without_relevant_documents_count_zero(folder, encoder):
    found = evaluate(encoder, folder)
    texts = [f"{title} {text}".strip() for title, text in PASSAGES.values()]
    similarities = encoder.encode([QUERIES[name] for name in "123"]) @ encoder.encode(texts).T
    rows = {name: row for row, name in enumerate(PASSAGES)}
    relevant = [{rows["a"]: 2}, {rows["c"]: 3, rows["b"]: 1}, {rows["d"]: 1, rows["f3"]: 1}]
    expected = by_double_loop(similarities.tolist(), relevant)
    four = {name: value * 3 / 4 for name, value in expected.items()}  # the fifth query is judged with a zero, as trec_eval counts
    assert found == pytest.approx({**four, "queries": 4})
    assert 0 < found["ndcg@10"] < 1


def test_equal_to_sentence_transformers_evaluator(tmp_path, encoder):
    write_folder(tmp_path, [row for row in QRELS if row[2] > 0])  # it knows relevant or not, no grades
    collection = read_collection(tmp_path)
    ones = [dict.fromkeys(grades, 1.0) for grades in collection.relevant]
    queries = {str(number): text for number, text in enumerate(collection.queries)}
    corpus = {f"{number:03d}": text for number, text in enumerate(collection.passages)}
    relevant = {str(number): {f"{row:03d}" for row in grades} for number, grades in enumerate(ones)}
    theirs = SentenceTransformer(str(find_model(MINILM).transformer), device="cpu")
    measured = InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False)(theirs)
    hits = nearest(encoder.encode(collection.queries), encoder.encode(collection.passages), 10, CPU)
    found = means(scores(hits, ones))
    assert found["ndcg@10"] == pytest.approx(measured["cosine_ndcg@10"])
    assert found["recall@10"] == pytest.approx(measured["cosine_recall@10"])
    assert found["mrr@10"] == pytest.approx(measured["cosine_mrr@10"])


@given(st.data())
def test_scores_equal_a_double_loop(data):
    passages, queries = data.draw(st.integers(1, 15)), data.draw(st.integers(1, 4))
    row = st.lists(st.integers(-3, 3), min_size=passages, max_size=passages)
    similarities = data.draw(st.lists(row, min_size=queries, max_size=queries))
    grades = st.dictionaries(st.integers(0, passages - 1), st.integers(1, 4), min_size=1)
    relevant = data.draw(st.lists(grades, min_size=queries, max_size=queries))
    found = nearest(np.array(similarities, np.float32), np.eye(passages, dtype=np.float32), 10, CPU)
    assert means(scores(found, relevant)) == pytest.approx({**by_double_loop(similarities, relevant), "queries": queries})


def test_intervals_are_those_of_scipys_bootstrap_and_differences_are_paired():
    draw = np.random.default_rng(5)
    one = {"a": draw.random((3, 40)), "b": draw.random((3, 90)) ** 2}
    other = {name: np.clip(rows + draw.normal(0.05, 0.05, rows.shape), 0, 1) for name, rows in one.items()}
    found = compared({"one": one, "other": other})
    options = {"method": "percentile", "n_resamples": 20_000, "rng": np.random.default_rng(6)}

    def close(pair, theirs):
        low, high = theirs.confidence_interval
        assert pair == pytest.approx([low, high], abs=0.06 * (high - low))

    for name, rows in one.items():
        for at, measure in enumerate(("ndcg@10", "recall@10", "mrr@10")):
            close(found["one"][name]["intervals"][measure], scipy.stats.bootstrap((rows[at],), np.mean, **options))
            change, low, high = found["other"][name]["difference"][measure]
            theirs = scipy.stats.bootstrap(
                (other[name][at], rows[at]), lambda x, y, axis: (x - y).mean(axis), paired=True, **options
            )
            assert change == pytest.approx(other[name][at].mean() - rows[at].mean(), abs=1e-12)
            close([low, high], theirs)
    mean = found["one"]["mean"]
    both = scipy.stats.bootstrap(
        tuple(rows[0] for rows in one.values()), lambda x, y, axis: (x.mean(axis) + y.mean(axis)) / 2, **options
    )
    assert (mean["ndcg@10"], mean["queries"]) == (pytest.approx((one["a"][0].mean() + one["b"][0].mean()) / 2), 130)
    close(mean["intervals"]["ndcg@10"], both)
    assert compared({"one": one})["one"]["a"]["intervals"] == found["one"]["a"]["intervals"]  # whatever it is compared with


def test_copies_of_nanobeir_are_read_as_beirs_layout_and_found_by_name(folder, tmp_path, monkeypatch):
    def copy(where, split):
        for kind, frame in frames.items():
            (where / kind).mkdir(parents=True, exist_ok=True)
            frame.write_parquet(where / kind / f"{split}-00000-of-00001.parquet")

    wanted = read_collection(folder)
    corpus = pl.DataFrame([{"_id": name, "title": title, "text": text} for name, (title, text) in PASSAGES.items()])
    qrels = pl.DataFrame(QRELS, schema=["query-id", "corpus-id", "score"], orient="row")
    frames = {
        "corpus": corpus,
        "queries": pl.DataFrame([{"_id": name, "text": text} for name, text in QUERIES.items()]),
        "qrels": qrels,
    }
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    with pytest.raises(SourceError) as error:
        evaluation_sets(["NanoBEIR"])
    hint = "run `hf download sentence-transformers/NanoBEIR-en --repo-type dataset` once, or give the folder of a copy"
    assert str(error.value) == f"NanoBEIR: is not on this machine; {hint}"
    snapshot = hub / "datasets--sentence-transformers--NanoBEIR-en"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs/main").write_text("abc")
    for name in ("NanoNQ", "NanoSciFact"):
        copy(snapshot / "snapshots/abc", name)
    (alone,) = evaluation_sets(["NanoSciFact"])
    assert (alone.name, alone.read()) == ("NanoSciFact", wanted)
    assert [one.name for one in evaluation_sets(["NanoBEIR", folder])] == ["NanoNQ", "NanoSciFact", folder.name]
    frames["corpus"] = corpus.rename({"_id": "id"})  # as mteb writes it
    copy(tmp_path / "sets/NanoFEVERRetrieval", "train")
    (own,) = evaluation_sets([tmp_path / "sets"])
    assert (own.name, own.read()) == ("NanoFEVERRetrieval", wanted)
    mteb = hub / "datasets--mteb--NanoFEVERRetrieval"
    (mteb / "refs").mkdir(parents=True)
    (mteb / "refs/main").write_text("abc")
    copy(mteb / "snapshots/abc", "train")
    (by_name,) = evaluation_sets(["NanoFEVERRetrieval"])
    assert (by_name.name, by_name.read()) == ("NanoFEVERRetrieval", wanted)
    with pytest.raises(SourceError) as error:
        evaluation_sets(["NanoNQRetrieval"])
    hint = "run `hf download mteb/NanoNQRetrieval --repo-type dataset` once, or give the folder of a copy"
    assert str(error.value) == f"NanoNQRetrieval: is not on this machine; {hint}"
    encoder = load_encoder(MINILM, prompt="instruct")
    for one, instruction in (
        (alone, "Given a scientific claim, retrieve passages that support or refute the claim."),
        (own, "Given a claim, retrieve documents that support or refute the claim."),
    ):
        found = module.evaluation_prompts(encoder, one.folder, name=one.name)
        assert found.query == f"Instruct: {instruction}\nQuery: "


@pytest.mark.parametrize(
    ("kind", "change", "what"),
    [
        ("corpus", pl.col("_id").first(), "repeats the _id 'd0' of an earlier row"),
        ("queries", pl.col("_id").first(), "repeats the _id 'q0' of an earlier row"),
        ("corpus", pl.concat_list("text").alias("text"), "holds List(String) in column 'text', not texts"),
        ("qrels", pl.lit(None, pl.Int64).alias("score"), "has a score that is not a number; give query-id, corpus-id and score"),
        ("qrels", pl.lit(float("nan")).alias("score"), "has a score that is not a number; give query-id, corpus-id and score"),
        ("qrels", pl.lit("good").alias("score"), "has a score that is not a number; give query-id, corpus-id and score"),
    ],
)
def test_parquet_files_are_as_strict_as_lines(tmp_path, kind, change, what):
    frames = {
        "corpus": pl.DataFrame({"_id": ["d0", "d1"], "text": ["a text", "another"]}),
        "queries": pl.DataFrame({"_id": ["q0", "q1"], "text": ["a question", "another"]}),
        "qrels": pl.DataFrame({"query-id": ["q0", "q1"], "corpus-id": ["d0", "d1"], "score": [1, 2]}),
    }
    for name, frame in frames.items():
        (tmp_path / name).mkdir()
        frame.write_parquet(tmp_path / name / "test-00000-of-00001.parquet")
    assert read_collection(tmp_path).relevant == [{1: 1.0}, {0: 2.0}]
    path = tmp_path / kind / "test-00000-of-00001.parquet"
    frames[kind].with_columns(change).write_parquet(path)
    with pytest.raises(SourceError) as error:
        read_collection(tmp_path)
    assert str(error.value) == f"{path}: {what}"


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 12), st.integers(1, 4))
def test_nearest_is_exact_over_blocks_and_ties_go_to_the_smaller_row(seed, passages, top, levels):
    draw = np.random.default_rng(seed)
    matrix = draw.integers(-levels, levels, (passages, 3)).astype(np.float32)  # many equal scores
    queries = draw.integers(-2, 3, (7, 3)).astype(np.float32)
    expected = [sorted(range(passages), key=lambda place: (-row[place], place))[:top] for row in (queries @ matrix.T).tolist()]
    for per_block in (8, 16_384):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PASSAGES_PER_BLOCK", per_block)
            patch.setattr(module, "QUERIES_PER_BLOCK", 3)
            assert nearest(queries, matrix, top, CPU).tolist() == expected


def test_the_instruction_goes_to_queries_only(folder, encoder):
    read = []

    class Listening:
        model, prompt, similarity = encoder.model, encoder.prompt, encoder.similarity

        def encode(self, texts, advance, unit):
            read.append(list(texts))
            return encoder.encode(texts, advance, unit)

    evaluate(Listening(), folder, "Find it")
    assert read[0] == [f"Instruct: Find it\nQuery: {QUERIES[name]}" for name in "1235"]
    assert read[1][-1] == "Paris is the capital of France."  # of the smallest id
    assert read[1][-2] == "The cat sat on the mat."


LAYOUT = "the folder needs corpus.jsonl, queries.jsonl and qrels/test.tsv"


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    assert_refused(folder, f"{folder / name}: no such file; {LAYOUT}")


def assert_refused(folder, text):
    with pytest.raises(SourceError) as error:
        read_collection(folder)
    assert str(error.value) == text
    assert "\n" not in text


def test_a_line_that_is_no_json_is_named_by_its_number(folder):
    path = folder / "corpus.jsonl"
    path.write_text(path.read_text() + "{\n")
    what = "cannot be read as JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"
    assert_refused(folder, f"{path}:18: {what}; give one JSON object per line")


@pytest.mark.parametrize("line", ['{"_id": 3, "text": "x"}', '{"_id": "3"}', "[]", '{"_id": "3", "text": null}'])
def test_a_line_without_id_or_text_is_named(line, folder):
    path = folder / "queries.jsonl"
    path.write_text(path.read_text() + "\n" + line + "\n")
    assert_refused(folder, f"{path}:7: lacks '_id' or 'text', or they are not strings")


def test_an_id_that_stands_twice_is_named(folder):
    path = folder / "corpus.jsonl"
    path.write_text(path.read_text() + '{"_id": "b", "text": "again"}\n')
    assert_refused(folder, f"{path}:18: repeats the _id 'b' of an earlier line")


@pytest.mark.parametrize("line", ["1\ta", "1\ta\thigh", "1 a 1"])
def test_a_judgement_that_cannot_be_read_is_named(line, folder):
    path = folder / "qrels" / "test.tsv"
    path.write_text(path.read_text() + line + "\n")
    hint = "give query-id, corpus-id and score, tab-separated"
    assert_refused(folder, f"{path}:9: is not a query id, a document id and a number; {hint}")


def test_unknown_ids_are_counted_and_the_first_is_named(folder):
    path = folder / "qrels" / "test.tsv"
    hint = "do the three files belong to one dataset?"
    right = path.read_text()
    path.write_text(right + "1\tzz\t1\n1\tyy\t1\n2\tzz\t1\n")
    assert_refused(folder, f"{path}: has 2 document ids that corpus.jsonl does not have, the first is 'zz'; {hint}")
    path.write_text(right + "9\ta\t1\n")
    assert_refused(folder, f"{path}: has 1 query id that queries.jsonl does not have, the first is '9'; {hint}")


def test_a_folder_where_no_query_has_a_relevant_document(tmp_path):
    write_folder(tmp_path, [("1", "a", 0)])
    assert_refused(tmp_path, f"{tmp_path / 'qrels' / 'test.tsv'}: no query has a relevant document; {LAYOUT}")


def test_bytes_that_are_no_utf8_are_reported(folder):
    path = folder / "queries.jsonl"
    path.write_bytes(path.read_bytes() + b"\xff")
    assert_refused(folder, f"{path}: is not UTF-8 (invalid start byte at byte {len(path.read_bytes()) - 1})")


def test_a_qrels_file_without_header_and_with_windows_ends_is_read(folder):
    expected = read_collection(folder)
    path = folder / "qrels" / "test.tsv"
    path.write_bytes(b"\r\n".join(path.read_bytes().splitlines()[1:]))
    assert read_collection(folder) == expected


def test_progress_is_reported_of_every_text(folder, encoder):
    progressed = []

    @contextmanager
    def progress(what, total, unit):
        done = []
        yield done.append
        progressed.append((what, total, sum(done), unit))

    evaluate(encoder, folder, progress=progress)
    assert progressed == [("encode queries", 4, 4, "texts"), ("encode passages", 17, 17, "texts")]
