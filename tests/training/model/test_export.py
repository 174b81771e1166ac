"""The exported folder gives the same vectors in sentence-transformers, in transformers and here."""

import json
import logging
import subprocess
import sys
import venv

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tiny_models import MINILM, TEXTS, tiny_folder
from tokenizers import Tokenizer, processors
from torch.nn import functional

from curation.core.errors import ModelError
from training.model.encode import load_encoder
from training.model.export import export
from training.model.load import load_model

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


def test_the_folder_has_the_layout_that_every_version_reads(exported):
    model, folder = exported
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    assert json.loads((folder / "modules.json").read_bytes()) == [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_bytes())
    on = {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens"}[model.pooling]
    assert [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value] == [on]
    assert pooling["word_embedding_dimension"] == model.dim
    assert json.loads((folder / "sentence_bert_config.json").read_bytes()) == {"max_seq_length": 48, "do_lower_case": False}
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    assert config["model_max_length"] == 48
    assert config["tokenizer_class"] != "TokenizersBackend"  # transformers 4 does not know it


OLDER = """
import sys, numpy as np, sentence_transformers, transformers
assert sentence_transformers.__version__ == "5.1.2" and transformers.__version__.startswith("4."), transformers.__version__
model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
print(model.max_seq_length, np.abs(model.encode(sys.argv[3:]) - np.load(sys.argv[2])).max() < 1e-5)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_older_sentence_transformers_gives_the_same_vectors(tmp_path):
    """Version 5.1 with transformers 4, installed beside the torch of this environment."""
    venv.create(tmp_path / "venv", with_pip=True)
    site = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    older = ["sentence-transformers==5.1.2", "transformers==4.57.1", "tokenizers==0.22.1", "huggingface_hub==0.36.0"]
    older += ["datasets==4.0.0", "dill==0.3.8", "multiprocess==0.70.16", "fsspec==2025.3.0"]
    pip = [str(tmp_path / "venv" / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "--no-deps", *older]
    subprocess.run(pip, check=True, capture_output=True, timeout=600)
    (site / "zz_base.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    for kind in KINDS:
        name = MINILM if kind == "minilm" else str(tiny_folder(kind, tmp_path / kind))
        model = load_model(name, max_tokens=48)
        export(model, tmp_path / f"{kind}-exported")
        np.save(tmp_path / "vectors.npy", vectors_of(model))
        python = [str(tmp_path / "venv" / "bin" / "python"), "-c", OLDER]
        given = [str(tmp_path / f"{kind}-exported"), str(tmp_path / "vectors.npy"), *TEXTS]
        done = subprocess.run([*python, *given], capture_output=True, text=True, timeout=300, check=False)
        assert done.stdout.split() == ["48", "True"], done.stderr


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
    what = "its saved tokenizer gives other tokens than before; does it have a tokenizer.json?"
    assert str(error.value) == f"{tmp_path / 'bert'}: {what}"
    assert not (tmp_path / "out").exists()
