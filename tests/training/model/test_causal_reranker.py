"""Scores of a language model that says yes or no, against the way of Qwen3-Reranker's model card."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from tiny_models import CONFIGS, TEXTS, tiny_reranker

from curation.core.errors import ModelError
from training.model import reranker
from training.model.reranker import AFTER, ANSWER_TOKENS, BEFORE, load_causal_reranker

TASK = "Find the sentence that answers."
QUERIES = [text for text in TEXTS if text] * 2
PASSAGES = [*TEXTS[::-1][: len(QUERIES) // 2], *(f"{text} {text}" for text in TEXTS[: len(QUERIES) // 2])]


def by_the_card(folder, query, passage, room):
    """Score one pair alone: no padding, softmax over the two answers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    middle = tokenizer.encode(f"<Instruct>: {TASK}\n<Query>: {query}\n<Document>: {passage}", add_special_tokens=False)
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (BEFORE, AFTER))
    ids = torch.tensor([before + middle[: room - len(before) - len(after)] + after])
    with torch.no_grad():
        last = model(input_ids=ids).logits[0, -1]
    both = torch.stack([last[tokenizer.convert_tokens_to_ids(word)] for word in ("no", "yes")])
    return float(torch.log_softmax(both, 0)[1].exp())


@pytest.mark.parametrize("room", [8_192, 420])  # 420: the frame and the beginning of a long pair
def test_the_scores_of_the_model_card(tmp_path, monkeypatch, room):
    folder = tiny_reranker(tmp_path / "model", ANSWER_TOKENS)
    monkeypatch.setattr(reranker, "MOST_TOKENS", room)
    loaded = load_causal_reranker(str(folder), device="cpu")
    found = loaded.scores([f"<Instruct>: {TASK}\n<Query>: {query}" for query in QUERIES], PASSAGES)
    room = min(room, 1_024)
    wanted = [by_the_card(folder, query, passage, room) for query, passage in zip(QUERIES, PASSAGES, strict=True)]
    assert np.abs(found - np.array(wanted)).max() < 1e-5
    assert np.ptp(found) > 0.05
    assert found.dtype == np.float32


def test_a_language_model_that_knows_no_answers(tmp_path):
    folder = tiny_reranker(tmp_path / "model", ANSWER_TOKENS[1:])
    with pytest.raises(ModelError) as error:
        load_causal_reranker(str(folder), device="cpu")
    assert str(error.value) == f"{folder}: has no token for <|im_start|>; name a reranker tuned as Qwen3-Reranker is"


def test_weights_that_are_missing(tmp_path):
    folder = tiny_reranker(tmp_path / "model", ANSWER_TOKENS)
    transformers.AutoModel.from_config(CONFIGS["qwen3"]()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(ModelError) as error:
        load_causal_reranker(str(folder), device="cpu")
    assert str(error.value) == f"{folder}: its weights lack lm_head.weight; does config.json belong to these weights?"
