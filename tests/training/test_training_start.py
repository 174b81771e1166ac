"""What training says at its start: tokenizers without a fast version, tokens of another tokenizer, nothing to learn, threads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from tiny_build import retrieval, sentence, tiny_model, write_build
from tiny_models import SMALL, TEXTS, tiny_folder

from curation.core import store
from curation.core.errors import BuildError
from curation.recipe.settings import OfSource, Train
from training import tokens
from training.data import Plan
from training.model.encode import load_encoder
from training.model.load import load_model
from training.tokens import load_sources, reader_digest
from training.train import train


def phobert(folder):
    """Write a random PhoBERT, whose tokenizer is Python alone: words with counts, and merges."""
    folder.mkdir()
    words = sorted({word for text in (*TEXTS, *(sentence(0, at) for at in range(30))) for word in text.split()})
    (folder / "vocab.txt").write_text("".join(f"{word} 1\n" for word in words))
    (folder / "bpe.codes").write_text("#version: 0.2\ne n 10\n")
    tokenizer = transformers.PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"), model_max_length=64)
    return saved(folder, tokenizer, transformers.RobertaModel, transformers.RobertaConfig, max_position_embeddings=130)


def japanese(folder):
    """Write a random BERT for Japanese, character by character."""
    folder.mkdir()
    letters = sorted({letter for text in (*TEXTS, *(sentence(0, at) for at in range(30))) for letter in text if letter.strip()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]) + "\n")
    kinds = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "character"}
    tokenizer = transformers.BertJapaneseTokenizer(str(folder / "vocab.txt"), model_max_length=64, **kinds)
    return saved(folder, tokenizer, transformers.BertModel, transformers.BertConfig)


def saved(folder, tokenizer, kind, config, **sizes):
    torch.manual_seed(1)
    tokenizer.save_pretrained(folder)
    kind(config(**SMALL | {"vocab_size": len(tokenizer) + 4} | sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [phobert, japanese])
def test_a_tokenizer_in_python_alone_trains_as_it_encodes(make, tmp_path):
    model = make(tmp_path / "model")
    build = write_build(tmp_path / "b", {"pairs": retrieval(12)})
    recipe = Train(model=str(model), max_tokens=32, batch=4, negatives=1, steps=2, warmup=0, lr=0.01, dtype="float32")
    receipt, _ = train(build, recipe, out=tmp_path / "run", device="cpu")
    assert receipt["steps"] == 2
    (source,) = load_sources(build, load_model(str(model), max_tokens=32, device="cpu"), "auto")
    query = retrieval(12)["queries"][3]
    wanted = load_model(str(model), max_tokens=32, device="cpu").tokenize([query]).ids
    number = source.query[3]
    assert source.ids[source.starts[number] : source.starts[number + 1]].tolist() == wanted.tolist()
    before, after = (load_encoder(str(path), device="cpu").encode([query]) for path in (model, tmp_path / "run/model"))
    assert 0 < np.abs(before - after).max() < 2  # it was trained, and what was written loads


def edited(name, **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def flipped(name):
    def change(folder):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("e n 10", "e m 10"))

    return change


CHANGES = {  # what makes tokens -> (kind of model, change of its folder, arguments)
    "truncation side": ("bert", edited("tokenizer_config.json", truncation_side="left"), {}),
    "longest text": ("bert", None, {"max_tokens": 20}),
    "merges of a tokenizer in Python": (phobert, flipped("bpe.codes"), {}),
    "lower case of a tokenizer in Python": (japanese, edited("tokenizer_config.json", do_lower_case=True), {}),
    "kind of words of a tokenizer in Python": (japanese, edited("tokenizer_config.json", do_word_tokenize=False), {}),
    "end token": ("qwen3", edited("tokenizer_config.json", eos_token="e"), {}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tokens_have_another_key_where_what_makes_them_is_another(name, tmp_path):
    kind, change, options = CHANGES[name]
    folder = kind(tmp_path / "model") if callable(kind) else tiny_folder(kind, tmp_path / "model")
    before = reader_digest(load_model(str(folder), device="cpu"))
    assert reader_digest(load_model(str(folder), device="cpu")) == before
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert reader_digest(load_model(str(moved), device="cpu")) == before  # wherever it is stored
    if change:
        change(folder)
    assert reader_digest(load_model(str(folder), device="cpu", **options)) != before


def test_tokens_of_another_version_of_the_packages_are_made_again(tmp_path, monkeypatch):
    build, model = write_build(tmp_path / "b", {"pairs": retrieval(6)}), load_model(tiny_model(tmp_path / "m"), device="cpu")
    folders = set()
    for version in ("1", "2", "2"):
        monkeypatch.setattr(tokens, "version_of", lambda package, version=version: version)
        load_sources(build, model, "auto")
        folders.add(len(list((build / "train/tokens").iterdir())))
    assert folders == {1, 2}


def test_tokens_beyond_the_length_of_a_vocabulary_with_gaps_are_whole(tmp_path):
    folder = tiny_folder("bert", tmp_path / "model")
    backbone = transformers.AutoModel.from_pretrained(folder)
    backbone.resize_token_embeddings(70_100)
    backbone.save_pretrained(folder)
    core = json.loads((folder / "tokenizer.json").read_text())
    core["model"]["vocab"]["one"] = 70_001
    (folder / "tokenizer.json").write_text(json.dumps(core))
    model = load_model(str(folder), device="cpu")
    assert len(model.tokenizer) < 1 << 16
    one = {"queries": ["one"], "passages": ["a dull film", "find"], "positives": [[0]], "negatives": [[1]]}
    (source,) = load_sources(write_build(tmp_path / "b", {"s": one}), model, "none")
    number = source.query[0]
    assert 70_001 in source.ids[source.starts[number] : source.starts[number + 1]].tolist()


NOTHING = "has nothing to learn from: {}or leave it out with `--only`"
OFF, EMPTY = "`negatives` is 0", "its tuples have no negatives"
GIVE = "give it negatives, "
NONE_EITHER = (
    f"and positives of other tuples do not count as negatives (`in_batch`); {GIVE}`sources: {{pairs: {{in_batch: yes}}}}`, "
)


@pytest.mark.parametrize(
    ("task", "keys", "own", "change", "wanted"),
    [
        ("classification", {"negatives": 0}, {}, {}, f"{OFF}, {NONE_EITHER}"),
        ("retrieval", {"negatives": 0}, {"in_batch": False}, {}, f"{OFF}, {NONE_EITHER}"),
        ("retrieval", {"negatives": 2}, {"in_batch": False, "negatives": 0}, {}, f"{OFF}, {NONE_EITHER}"),
        ("retrieval", {"negatives": 0, "loss": "infonce", "distill": 1.0}, {"in_batch": False}, {}, f"{OFF}, {NONE_EITHER}"),
        ("retrieval", {"negatives": 2}, {"in_batch": False}, {"negatives": [[]] * 8}, f"{EMPTY}, {NONE_EITHER}"),
        ("retrieval", {"negatives": 0, "batch": 1}, {}, {}, f"{OFF}, and a batch has one tuple; {GIVE}a larger `batch`, "),
        ("retrieval", {"negatives": 0}, {}, {"positives": [[0]] * 8}, f"{OFF}, and all of them have the same positive; {GIVE}"),
        ("retrieval", {"negatives": 0}, {}, {}, None),
        ("classification", {"negatives": 1}, {}, {}, None),
        ("classification", {"negatives": 0}, {"negatives": 1}, {}, None),
        ("classification", {"negatives": 0}, {"in_batch": True}, {}, None),
    ],
)
def test_a_source_whose_loss_is_always_zero_is_refused_before_the_first_step(task, keys, own, change, wanted, tmp_path):
    build = write_build(tmp_path / "b", {"other": retrieval(8), "pairs": retrieval(8, salt=1) | change | {"task": task}})
    recipe = Train(
        **{"model": tiny_model(tmp_path / "m"), "max_tokens": 32, "batch": 4, "steps": 1, "dtype": "float32"} | keys,
        sources={"pairs": OfSource(**own), "other": OfSource(negatives=1)},
    )
    if wanted is None:
        sources = load_sources(build, load_model(recipe.model, max_tokens=32, device="cpu"), "auto")
        return Plan(sources, 1, recipe).check()
    with pytest.raises(BuildError) as error:
        train(build, recipe, out=tmp_path / "run", device="cpu")
    assert str(error.value) == f"source 'pairs': {NOTHING.format(wanted)}"
    assert not (tmp_path / "run/log.jsonl").exists()


def test_the_receipt_holds_the_threads_and_a_resume_with_others_says_so(tmp_path):
    build = write_build(tmp_path / "b", {"pairs": retrieval(12)})
    recipe = Train(
        **{"model": tiny_model(tmp_path / "m"), "max_tokens": 32, "batch": 4, "negatives": 1, "steps": 3, "dtype": "float32"},
        warmup=0, save_every=1, log_every=1,
    )  # fmt: skip
    before, said = torch.get_num_threads(), []

    class Killed(BaseException):
        pass

    def say(line):
        said.append(line)
        if line.startswith("step 2/") and torch.get_num_threads() == 2:
            raise Killed

    try:
        torch.set_num_threads(2)
        with pytest.raises(Killed):
            train(build, recipe, out=tmp_path / "run", device="cpu", say=say)
        torch.set_num_threads(1)
        receipt, _ = train(build, recipe, out=tmp_path / "run", device="cpu", say=say)
        alone, _ = train(build, recipe, out=tmp_path / "alone", device="cpu")
    finally:
        torch.set_num_threads(before)
    assert (receipt["threads"], receipt["threads_before"]) == (1, [2])
    assert alone["threads"] == 1
    assert "threads_before" not in alone
    warning = (
        "continuing with 1 threads, earlier steps used 2: the weights will not equal those of an uninterrupted run bit by bit"
    )
    assert [line for line in said if "threads" in line] == [warning]
    assert store.read_json(tmp_path / "alone/checkpoints/step-000003/checkpoint.json")["threads"] == 1
