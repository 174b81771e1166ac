"""The exported folder gives the same vectors in sentence-transformers, in transformers and here."""

import json
import logging

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tiny_models import MINILM, TEXTS, tiny_folder
from tokenizers import Tokenizer, processors
from torch.nn import functional

from curation.errors import ModelError
from training.encode import load_encoder
from training.export import export
from training.model import load_model

KINDS = ("qwen3", "llama", "bert", "minilm")


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """Return (model, the folder it was exported to)."""
    kind = request.param
    name = MINILM if kind == "minilm" else str(tiny_folder(kind, tmp_path_factory.mktemp(kind)))
    model = load_model(name, max_tokens=48)
    folder = tmp_path_factory.mktemp("exported") / kind
    model.prompts = {"query": "Instruct: find it\nQuery: "}
    export(model, folder)
    return model, folder


def vectors_of(model, texts=TEXTS):
    tokens = model.tokenize(texts)
    return model.embed(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist()).detach().numpy()


def test_sentence_transformers_gives_the_same_vectors_and_says_nothing(exported, caplog):
    model, folder = exported
    with caplog.at_level(logging.WARNING):
        theirs = SentenceTransformer(str(folder), device="cpu")
        found = theirs.encode(list(TEXTS))
        with_prompt = theirs.encode(list(TEXTS), prompt_name="query")
    assert not caplog.records
    assert theirs.max_seq_length == 48
    assert np.abs(found - vectors_of(model)).max() < 1e-5
    assert np.abs(with_prompt - vectors_of(model, [f"Instruct: find it\nQuery: {text}" for text in TEXTS])).max() < 1e-5


def test_transformers_gives_the_same_vectors(exported):
    model, folder = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backbone = transformers.AutoModel.from_pretrained(folder)
    tokens = model.tokenize(TEXTS)
    rows = []
    for text, start, end in zip(TEXTS, tokens.starts, tokens.starts[1:], strict=False):
        batch = tokenizer(text, truncation=True, return_tensors="pt")
        assert batch["input_ids"][0].tolist() == tokens.ids[start:end].tolist()
        states = backbone(**batch).last_hidden_state[0]
        rows.append(states[-1] if model.pooling == "last" else states.mean(0))
    assert np.abs(functional.normalize(torch.stack(rows), dim=-1).detach().numpy() - vectors_of(model)).max() < 1e-5


def test_it_loads_here_again_as_the_same_model(exported):
    model, folder = exported
    again = load_model(str(folder))
    assert (again.pooling, again.max_tokens, again.dim, again.is_decoder) == (model.pooling, 48, model.dim, model.is_decoder)
    assert again.prompts == {"query": "Instruct: find it\nQuery: ", "document": ""}
    assert not again.appends_eos  # its tokenizer does it now, and it is not done twice
    assert np.array_equal(again.tokenize(TEXTS).ids, model.tokenize(TEXTS).ids)
    assert np.abs(load_encoder(str(folder)).encode(TEXTS) - vectors_of(model)).max() < 1e-5


def test_the_end_of_a_decoders_text_outlives_truncation(exported):
    model, folder = exported
    tokens = model.tokenize(["x y z " * 100])
    assert len(tokens.ids) == 48
    saved = transformers.AutoTokenizer.from_pretrained(folder)
    end = saved.eos_token_id if model.is_decoder else saved.sep_token_id
    assert tokens.ids[-1] == end
    assert saved("x y z " * 100, truncation=True)["input_ids"][-1] == end
    assert saved("x")["input_ids"].count(end) == 1


def test_the_folder_holds_what_sentence_transformers_itself_writes(exported, tmp_path):
    _, folder = exported
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "theirs"), create_model_card=False)
    names = {str(path.relative_to(tmp_path / "theirs")) for path in (tmp_path / "theirs").rglob("*") if path.is_file()}
    assert names <= {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    for name in ("modules.json", "1_Pooling/config.json", "2_Normalize/config.json"):
        assert json.loads((folder / name).read_bytes()) == json.loads((tmp_path / "theirs" / name).read_bytes())
    assert json.loads((folder / "tokenizer_config.json").read_bytes())["model_max_length"] == 48


def begin(number):
    return processors.TemplateProcessing(single="! $A", pair="! $A ! $B:1", special_tokens=[("!", number)])


@pytest.mark.parametrize(
    ("before", "begins"),
    [
        (lambda number: processors.ByteLevel(), False),
        (begin, True),
        (lambda number: processors.Sequence([processors.ByteLevel(), begin(number)]), True),
    ],
)
def test_the_end_is_added_after_what_the_tokenizer_adds_itself(before, begins, tmp_path):
    tiny_folder("llama", tmp_path / "plain")
    core = Tokenizer.from_file(str(tmp_path / "plain" / "tokenizer.json"))
    first, end = core.token_to_id("!"), core.token_to_id("<|end|>")
    core.post_processor = before(first)
    core.save(str(tmp_path / "plain" / "tokenizer.json"))
    model = load_model(str(tmp_path / "plain"))
    assert model.appends_eos
    export(model, tmp_path / "out")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    one, two = (core.encode(text, add_special_tokens=False).ids for text in ("one", "two"))
    start = [first] if begins else []
    assert saved("one")["input_ids"] == model.tokenize(["one"]).ids.tolist() == [*start, *one, end]
    assert saved("one", "two")["input_ids"] == [*start, *one, end, *start, *two, end]


def test_an_export_replaces_the_one_before_and_a_failed_one_leaves_it(tmp_path, monkeypatch):
    model = load_model(str(tiny_folder("bert", tmp_path / "bert")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    (tmp_path / "out.part").mkdir()  # somebody else's
    export(model, tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "old" not in kept
    model.tokenizer.add_tokens(["cut:"])
    monkeypatch.setattr(model.tokenizer, "save_pretrained", lambda folder: (tmp_path / "nowhere" / "x").write_text(""))
    with pytest.raises(FileNotFoundError):
        export(model, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "out", "out.part"]


def test_a_tokenizer_that_changes_when_saved_is_refused(tmp_path):
    model = load_model(str(tiny_folder("bert", tmp_path / "bert")))

    class PreTrainedTokenizerFast(type(model.tokenizer)):
        def __call__(self, texts, **options):
            return super().__call__([text[::-1] for text in texts], **options)

    model.tokenizer.__class__ = PreTrainedTokenizerFast
    with pytest.raises(ModelError) as error:
        export(model, tmp_path / "out")
    what = "its tokenizer, saved, gives other tokens than before; has it a tokenizer.json?"
    assert str(error.value) == f"{tmp_path / 'bert'}: {what}"
    assert not (tmp_path / "out").exists()
