"""What training tells queries is what evaluation tells them: in the log, with --data, with --mteb, and as mteb itself scores."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import pytrec_eval
import torch
import transformers
from click.testing import CliRunner
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import tiny_folder

from curation.core import store
from curation.core.errors import ModelError, SetupError, SourceError
from curation.recipe.settings import Train
from training.checkpoint import export_checkpoint
from training.cli import train_command as command
from training.collection import read_collection
from training.evaluate import encode_distinct, evaluate, evaluation_prompts, measure_each, nearest
from training.log import read_log
from training.model.encode import load_encoder
from training.model.export import export
from training.model.load import load_model
from training.train import train

QUERY = "Instruct: {}\nQuery: "
TEXTS = retrieval(12)


def folder_of(path, judged, documents=None, queries=None):
    """Write a folder in BEIR's layout; ids are `d0`, `q0` ... by place unless they are given."""
    (path / "qrels").mkdir(parents=True)
    documents = documents or {f"d{at}": text for at, text in enumerate(TEXTS["passages"])}
    queries = queries or {f"q{at}": text for at, text in enumerate(TEXTS["queries"])}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in judged))
    return path


def heldout(build, name):
    return folder_of(build / "heldout" / name, [(f"q{at}", f"d{at}", 1) for at in range(12)])


MODELS = {  # kind of model, recipe's prompt -> what queries of source `instructed`, with an instruction, and `bare` begin with
    ("bert", "auto"): ("", ""),
    ("bert", "instruct"): (QUERY.format("Find it"), ""),
    ("bert", "none"): ("", ""),
    ("qwen3", "auto"): (QUERY.format("Find it"), ""),
    ("qwen3", "none"): ("", ""),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("protocol")
    build = write_build(place / "b", {"instructed": retrieval(8) | {"instruction": "Find it"}, "bare": retrieval(8, salt=1)})
    for name in ("instructed", "bare"):
        heldout(build, name)
    for kind in ("bert", "qwen3"):
        tiny_model(place / kind, kind)
    return place


@pytest.mark.parametrize(("kind", "prompt"), MODELS)
def test_the_log_evaluate_and_exports_say_one_number(place, kind, prompt, tmp_path):
    recipe = Train(
        **{"model": str(place / kind), "prompt": prompt, "max_tokens": 32, "batch": 8, "negatives": 1, "steps": 2, "warmup": 0},
        evaluate_every=2, dtype="bfloat16",
    )  # fmt: skip
    said = []
    train(place / "b", recipe, out=tmp_path / "run", device="cpu", say=said.append)
    _, line = [line for line in read_log(tmp_path / "run/log.jsonl") if "ndcg@10" in line]  # before and after
    wanted = dict(zip(("instructed", "bare"), MODELS[kind, prompt], strict=True))
    for name, before in wanted.items():
        prompt_shown = json.dumps(before) if before else "nothing"
        assert f"nDCG@10 on heldout/{name}: queries begin with {prompt_shown}, passages with nothing (as in training)" in said
    export_checkpoint(tmp_path / "run", tmp_path / "exported")  # without the run's receipt beside it
    elsewhere = shutil.copytree(place / "b/heldout", tmp_path / "elsewhere")  # without a build beside them
    for model in (tmp_path / "run/model", tmp_path / "exported"):
        encoder = load_encoder(str(model), device="cpu")
        for folder in (place / "b/heldout", elsewhere):
            for name, before in wanted.items():
                assert evaluation_prompts(encoder, folder / name)[:2] == (before, "")
                found = evaluate(encoder, folder / name)["ndcg@10"]
                assert found == pytest.approx(line["sources"][name], abs=1e-6)


def test_an_instruction_takes_effect_whatever_the_prompt(place):
    folder = place / "b/heldout/instructed"
    for kind in ("bert", "qwen3"):
        for prompt in ("auto", "instruct"):
            asked = evaluation_prompts(load_encoder(str(place / kind), device="cpu", prompt=prompt), folder, "Look")
            assert asked == (QUERY.format("Look"), "", "from --instruction")
        with pytest.raises(SetupError) as error:
            evaluation_prompts(load_encoder(str(place / kind), device="cpu", prompt="none"), folder, "Look")
        what = "--instruction: goes before queries, but `--prompt none` forbids that; give only one of them"
        assert str(error.value) == what
    # A model that was never trained here has the instruction of the build if it reads instructions, else none.
    assert evaluation_prompts(load_encoder(str(place / "qwen3"), device="cpu"), folder).query == QUERY.format("Find it")
    assert evaluation_prompts(load_encoder(str(place / "bert"), device="cpu"), folder).query == ""


def test_the_output_says_what_was_put_before(place):
    line = ["evaluate", str(place / "qwen3"), "--data", str(place / "b/heldout/instructed"), "--device", "cpu"]
    done = CliRunner().invoke(command, line)
    shown = json.dumps(QUERY.format("Find it"))
    wanted = f"{place / 'qwen3'}: queries begin with {shown}, passages with nothing (the instruction of source 'instructed')\n"
    assert wanted in done.stderr
    said = json.loads(CliRunner().invoke(command, [*line, "--json", "-q"]).stdout)
    assert said["prompt"] == {"query": QUERY.format("Find it"), "passage": "", "origin": "the instruction of source 'instructed'"}


FOLDERS = {  # judgements, documents, queries: where None, the texts of the build
    "one each": ([(f"q{at}", f"d{at}", 1) for at in range(12)], None, None),
    "grades and several positives": (
        [(f"q{at}", f"d{(at + step) % 12}", 1 + (at * step) % 4) for at in range(12) for step in range(4)], None, None
    ),
    "zeros, negatives, and a query with nothing else": (
        [("q0", "d0", 2), ("q0", "d1", 0), ("q0", "d2", -1), ("q1", "d3", 0), ("q2", "d2", 1), ("q2", "d5", -2)], None, None
    ),
    "judged twice": ([("q0", "d0", 3), ("q0", "d0", 0), ("q0", "d4", 1), ("q1", "d1", 1), ("q1", "d1", 2)], None, None),
    "documents of one text": (
        [("q0", "d3", 1), ("q1", "d7", 2), ("q1", "d8", 1)],
        {f"d{at}": TEXTS["passages"][at // 6] for at in range(12)}, None,
    ),
    "more documents of one text than are looked at": (
        [("q0", "d10", 1), ("q0", "d2", 3)], {f"d{at}": "the same text" for at in range(30)}, {"q0": "the same", "q1": "another"}
    ),
    "queries whose id and text are in the corpus": (
        [("a", "b", 1), ("b", "a", 2)], {"a": "list open file", "b": "sort merge", "c": "read"}, {"a": "list open file", "b": "sort"}
    ),
    "ids beyond ASCII": ([("q", "é", 1), ("q", "z", 2)], {"z": "one", "é": "one", "Z": "one"}, {"q": "one"}),
    "an empty document and an empty query": ([("q", "a", 1), ("r", "b", 1)], {"a": "", "b": "text"}, {"q": "", "r": "text"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_each_querys_figures_are_trec_evals(name, place, tmp_path):
    folder = folder_of(tmp_path / "folder", *FOLDERS[name])
    encoder = load_encoder(str(place / "bert"), device="cpu")
    wanted, collection = by_trec_eval(encoder, folder), read_collection(folder)
    each = measure_each(encoder, collection, evaluation_prompts(encoder, folder))
    for query, ndcg, recall, mrr in zip(collection.query_ids, *each.tolist(), strict=True):
        one = wanted.pop(query)
        assert ndcg == pytest.approx(one["ndcg_cut_10"], abs=1e-6)
        assert recall == pytest.approx(one["recall_10"], abs=1e-6)
        assert mrr == pytest.approx(one["recip_rank"] if one["recip_rank"] >= 0.1 else 0, abs=1e-6)
    assert wanted == {}
    assert evaluate(encoder, folder)["ndcg@10"] == pytest.approx(each[0].mean(), abs=1e-12)


def by_trec_eval(encoder, folder):
    """Return what pytrec_eval makes of all scores of each query, of the files as they are written."""
    texts = {}
    for kind in ("corpus", "queries"):
        lines = map(json.loads, (folder / f"{kind}.jsonl").read_text().splitlines())
        texts[kind] = {record["_id"]: record["text"] for record in lines}
    qrels = {}
    for line in (folder / "qrels/test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)
    queries, passages = (encode_distinct(encoder, "", list(texts[kind].values())) for kind in ("queries", "corpus"))
    found = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32).tolist()
    run = {query: dict(zip(texts["corpus"], row, strict=True)) for query, row in zip(texts["queries"], found, strict=True)}
    return pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10", "recip_rank"}).evaluate(run)


def test_fractional_grades_count_as_written(place, tmp_path):
    folder = folder_of(tmp_path / "f", [("q0", "d0", 0.5), ("q0", "d1", 1.5)], {"d0": "list", "d1": "open"}, {"q0": "list"})
    collection, encoder = read_collection(folder), load_encoder(str(place / "bert"), device="cpu")
    order = nearest(
        *(encode_distinct(encoder, "", some) for some in (collection.queries, collection.passages)), 10, torch.device("cpu")
    )
    first, second = ({"d0": 0.5, "d1": 1.5}[collection.passage_ids[row]] for row in order[0])
    wanted = (first + second / math.log2(3)) / (1.5 + 0.5 / math.log2(3))
    assert evaluate(encoder, folder)["ndcg@10"] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("grade", ["nan", "inf", "-inf", "1e308"])
def test_a_grade_that_is_no_number_is_refused(grade, tmp_path):
    folder = folder_of(tmp_path / "f", [("q0", "d0", grade)])
    with pytest.raises(Exception, match=r"qrels/test.tsv:2: is not a query id, a document id and a number"):
        read_collection(folder)


@pytest.mark.parametrize("key", ["_id", "title", "text"])
def test_half_of_a_surrogate_pair_is_refused_where_it_is(key, tmp_path):
    folder = folder_of(tmp_path / "f", [("q0", "d0", 1)])
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d0", "text": "\U0001f600"} | {key: "x\ud83d"}) + "\n")
    with pytest.raises(SourceError, match=r"corpus.jsonl:1: has half of a surrogate pair"):
        read_collection(folder)


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path):
    folder = folder_of(tmp_path / "f", [("q0", "d0", 1)])
    for path in (folder / "corpus.jsonl", folder / "queries.jsonl"):
        path.write_text("\ufeff" + path.read_text())
    (folder / "qrels/test.tsv").write_text("\ufeffq0\td0\t1\n")
    assert read_collection(folder).query_ids == ["q0"]


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
def test_a_model_is_measured_by_its_own_similarity(similarity, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = load_model(str(tiny_folder("bert", tmp_path / "plain")), device="cpu")
    export(model, tmp_path / "m")
    (tmp_path / "m" / store.RECEIPT).unlink(missing_ok=True)  # what is edited is no longer what was written
    path = tmp_path / "m/config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"similarity_fn_name": similarity}))
    modules = json.loads((tmp_path / "m/modules.json").read_text())
    (tmp_path / "m/modules.json").write_text(json.dumps(modules[:2]))  # without Normalize
    folder = folder_of(tmp_path / "folder", [(f"q{at}", f"d{at}", 1) for at in range(12)])
    theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    collection = read_collection(folder)
    near = theirs.similarity(theirs.encode(collection.queries), theirs.encode(collection.passages)).tolist()
    run = {q: dict(zip(collection.passage_ids, row, strict=True)) for q, row in zip(collection.query_ids, near, strict=True)}
    qrels = {f"q{at}": {f"d{at}": 1} for at in range(12)}
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    wanted = np.mean([one["ndcg_cut_10"] for one in measured.values()])
    assert evaluate(load_encoder(str(tmp_path / "m"), device="cpu"), folder)["ndcg@10"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(value, tmp_path):
    folder = tiny_folder("bert", tmp_path / "m")
    backbone = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight[410, 3] = value  # of a token that no text here has
    backbone.save_pretrained(folder)
    with pytest.raises(ModelError) as error:
        load_encoder(str(folder), device="cpu")
    what = "NaN" if math.isnan(value) else "infinity"
    line = f"its weights contain {what}: embeddings.word_embeddings.weight; was the file damaged, or did the training diverge?"
    assert str(error.value) == f"{folder}: {line}"


def test_a_model_that_does_not_say_how_long_texts_may_be_is_one_line(tmp_path):
    folder = tiny_folder("bert", tmp_path / "m")
    config = transformers.XLNetConfig(vocab_size=420, d_model=32, n_head=2, n_layer=2, d_inner=48)
    transformers.XLNetModel(config).save_pretrained(folder)
    with pytest.raises(ModelError) as error:
        load_model(str(folder), device="cpu")
    assert str(error.value) == f"{folder}: does not say how many tokens it can read; give max_tokens"
