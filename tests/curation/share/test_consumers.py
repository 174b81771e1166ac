"""Each export is read by its own consumer: the loaders of the tools that it is for, at work on a small build."""

from __future__ import annotations

import json

import pytest

from curation.core.record import render_query
from curation.share.export import export
from tests.curation.share import test_exchange
from tests.curation.share.test_exchange import INSTRUCTION, lines_of, tuples_of

made = test_exchange.made  # the fixture
pytestmark = pytest.mark.long  # the tools take their time to load


@pytest.mark.parametrize("name", ["pair", "triplet", "n-tuple"])
def test_sentence_transformers_trains_a_step(made, tmp_path, name):
    import datasets
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from tests.training.tiny_models import tiny_folder

    export(made, tmp_path / "out", name, ["faq"], None if name == "pair" else 3)
    path = str(tmp_path / "out/data/faq.parquet")
    rows = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    model = SentenceTransformer(str(tiny_folder("bert", tmp_path / "model")), device="cpu")
    batch = SentenceTransformerDataCollator(preprocess_fn=model.preprocess)([rows[i] for i in range(4)])
    assert "label" not in batch
    names = rows.column_names
    columns = [{key.removeprefix(f"{one}_"): v for key, v in batch.items() if key.startswith(f"{one}_")} for one in names]
    assert all("input_ids" in column for column in columns)
    loss, optimizer, values = MultipleNegativesRankingLoss(model), torch.optim.SGD(model.parameters(), lr=1e-4), []
    for _ in range(2):
        model.eval()  # no dropout: the second loss differs by the step alone
        value = loss(columns, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[1] < values[0]


def test_tevatron_tokenises_it(made, tmp_path):
    """Tevatron 0.1.0's loader of a folder, with its preprocessor, which of local files expects tokens by default."""
    from tevatron.arguments import DataArguments
    from tevatron.datasets import HFTrainDataset, TrainPreProcessor
    from transformers import AutoTokenizer

    from tests.training.tiny_models import tiny_folder

    export(made, tmp_path / "out", "tevatron", ["faq"])
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder("bert", tmp_path / "model")))
    arguments = DataArguments(train_dir=str(tmp_path / "out/data"), dataset_proc_num=1)
    loader = HFTrainDataset(tokenizer, arguments, str(tmp_path / "cache"))
    loader.preprocessor = TrainPreProcessor

    def tokens(text, most):
        return tokenizer.encode(text, add_special_tokens=False, max_length=most, truncation=True)

    assert list(loader.process()) == [
        {"query": tokens(query, 32), "positives": [tokens(t, 256) for t in right], "negatives": [tokens(t, 256) for t in wrong]}
        for query, (right, wrong) in tuples_of(made, "faq", "mined").items()
    ]


def test_tevatron_2_finds_texts_by_id(made, tmp_path):
    """Its training set, restated after its README and loader: that version is in no package index."""
    import datasets

    export(made, tmp_path / "out", "tevatron-ids", ["faq"])
    folder, cache = tmp_path / "out/data/faq", str(tmp_path / "cache")
    rows, corpus = (
        datasets.load_dataset("json", data_files=str(folder / f"{name}.jsonl"), split="train", cache_dir=cache)
        for name in ("train", "corpus")
    )
    places = {docid: place for place, docid in enumerate(corpus["docid"])}
    texts = {
        row["query_text"]: tuple(
            [corpus[places[docid]]["text"] for docid in row[f"{role}_document_ids"]] for role in ("positive", "negative")
        )
        for row in rows
    }
    assert texts == tuples_of(made, "faq", "mined")


def test_nemo_finds_texts_by_id(made, tmp_path):
    """Automodel's corpus-id JSON, restated after its guide: that package wants much that we do not."""
    import datasets

    export(made, tmp_path / "out", "nemo", ["faq"], 3)
    file = tmp_path / "out/data/faq/train.json"
    document = json.loads(file.read_text())
    corpora = {}
    for one in document["corpus"]:
        path = file.parent / one["path"]  # relative to the file
        about = json.loads((path / "merlin_metadata.json").read_text())
        assert about["class"] == "TextQADataset"
        assert about["query_instruction"] == render_query(INSTRUCTION, "")
        read = datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"))["train"]
        corpora[about["corpus_id"]] = dict(zip(read["id"], read["text"], strict=True))
    texts = {
        row["question"]: tuple([corpora[row["corpus_id"]][one["id"]] for one in row[key]] for key in ("pos_doc", "neg_doc"))
        for row in document["data"]
    }
    assert all(row["question_id"] and row["neg_doc"][0]["score"] is not None for row in document["data"])
    assert texts == tuples_of(made, "faq", "mined")


@pytest.mark.parametrize("distil", [False, True])
def test_flagembedding_finds_its_schema(made, tmp_path, distil):
    """What FlagEmbedding 1.4.2's training set asks of a file, restated: that package wants much that we do not."""
    import datasets

    export(made, tmp_path / "out", "flagembedding", ["faq"])
    path = tmp_path / "out/data/faq.jsonl"
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows.column_names) >= {"query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type"}
    assert len(rows) == len(lines_of(path))
    for row in rows:
        assert isinstance(row["query"], str)
        assert isinstance(row["prompt"], str)
        assert row["type"] == "normal"
        for texts, scores in (("pos", "pos_scores"), ("neg", "neg_scores")):
            assert row[texts]
            assert all(isinstance(text, str) for text in row[texts])
            if distil and len(row["pos"]) == 1:
                assert [type(score) for score in row[scores]] == [float] * len(row[texts])


def test_a_reranker_learns_from_lists(made, tmp_path):
    """sentence-transformers' listwise losses take the file's columns as they stand: query, documents, labels or scores."""
    import datasets
    import torch
    from sentence_transformers.cross_encoder import CrossEncoder
    from sentence_transformers.cross_encoder.losses import LambdaLoss

    from tests.training.tiny_models import tiny_folder

    model = CrossEncoder(str(tiny_folder("bert", tmp_path / "model")), num_labels=1, device="cpu")
    for name, labels in (("labeled-list", "labels"), ("scored-list", "scores")):
        export(made, tmp_path / name, name, ["faq"])
        path = str(tmp_path / name / "data/faq.parquet")
        rows = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
        batch = rows[:4]
        known = [torch.tensor(one) for one in batch[labels]]
        value = LambdaLoss(model)([batch["query"], batch["documents"]], known)
        assert torch.isfinite(value)
