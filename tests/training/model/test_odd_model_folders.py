"""A model folder with anything in it gives vectors or one line: never a traceback, code that runs, or a question."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

from curation.core.errors import ModelError, UserError
from tests.training.model.model_folders import about, all_of, dense, edit, modules, settings
from tests.training.tiny_models import tiny_folder
from training.model.encode import load_encoder
from training.model.reranker import load_cross_encoder

TEXTS = ["find empty files", "Jane Austen wrote Emma in 1815"]
FILES = (
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"),
    *("2_Dense/config.json", "config.json", "tokenizer_config.json"),
)
VALUES: tuple[Any, ...] = (None, True, -1, 0, 3, 1.5, "x", [], {}, ["x"], {"x": 1})
IN_DEFAULT_SUITE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny encoder with a Dense and prompts, as sentence-transformers saves it."""
    plain = tiny_folder("bert", tmp_path_factory.mktemp("odd") / "bert")
    saved = plain.with_name("saved")
    sentence_transformers.SentenceTransformer(str(plain), device="cpu").save(str(saved), create_model_card=False)
    change = all_of(
        dense(), modules("Normalize"), about(prompts={"query": "query: "}), settings(max_seq_length=40, do_lower_case=True)
    )
    change(saved)
    return saved


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture(autouse=True)
def never_asked(monkeypatch):
    """Answer yes to whoever asks, and fail."""

    def asked(*_: object) -> str:
        raise AssertionError("something was asked for on standard input")

    monkeypatch.setattr("builtins.input", asked)


def complaint(folder: Path, load: Any = load_encoder) -> str:
    """Return the one line that a folder gets."""
    with pytest.raises(ModelError) as error:
        load(str(folder), device="cpu")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{folder}: ")
    return str(error.value).removeprefix(f"{folder}: ")


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value of a JSON document, the whole of it first."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(inner, (*at, key))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """Return a JSON document with another value at a place."""
    if not at:
        return new
    inner = put(value[at[0]], at[1:], new)
    return value | {at[0]: inner} if isinstance(value, dict) else [*value[: at[0]], inner, *value[at[0] + 1 :]]


def mutations(folder: Path) -> list[tuple[str, tuple[Any, ...], Any]]:
    """Return every place of every JSON file with every kind of value."""
    found = []
    for name in FILES:
        document = json.loads((folder / name).read_text())
        found += [(name, at, value) for at in paths(document) for value in VALUES]
    random.Random(7).shuffle(found)
    return found


def assert_one_line(error: UserError, mutation: object) -> None:
    assert "\n" not in str(error), mutation


def check(copy: Path, mutation: tuple[str, tuple[Any, ...], Any], peer: bool) -> None:
    """Change one value and see what comes of it; the folder is put back."""
    name, at, value = mutation
    before = (copy / name).read_text()
    (copy / name).write_text(json.dumps(put(json.loads(before), at, value)))
    try:
        try:
            encoder = load_encoder(str(copy), device="cpu")
            found = encoder.encode([encoder.query("", text) for text in TEXTS], unit=False)
        except UserError as error:
            assert_one_line(error, mutation)
            return
        assert np.isfinite(found).all(), mutation
        if not peer:
            return
        try:
            wanted = sentence_transformers.SentenceTransformer(str(copy), device="cpu").encode_query(TEXTS)
        except Exception:  # it reads less than we do
            return
        assert np.abs(found - wanted).max() < 1e-5, mutation
    finally:
        (copy / name).write_text(before)


@pytest.mark.filterwarnings("ignore")
def test_any_value_of_any_json_file_gives_vectors_or_one_line(copy):
    for mutation in mutations(copy)[:IN_DEFAULT_SUITE]:
        check(copy, mutation, peer=False)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(8))
def test_every_value_of_every_json_file_gives_the_vectors_of_sentence_transformers_or_one_line(copy, part):
    for mutation in mutations(copy)[part::8]:
        check(copy, mutation, peer=True)


def test_prompts_that_are_a_list(copy):
    about(prompts=["query: "])(copy)
    assert complaint(copy) == "config_sentence_transformers.json: 'prompts' is [\"query: \"], not an object"


@pytest.mark.parametrize("value", [[], "x", {"x": 1}])
def test_limits_of_a_tokenizer_that_are_no_numbers(copy, value):
    edit(copy / "tokenizer_config.json", model_max_length=value)
    assert complaint(copy)


def test_a_million_layers_are_refused_before_they_are_built(copy):
    edit(copy / "config.json", num_hidden_layers=1_000_000)
    assert complaint(copy) == "config.json sets num_hidden_layers to 1,000,000; does config.json belong to these weights?"


@pytest.mark.parametrize("key", ["vocab_size", "max_position_embeddings", "intermediate_size"])
def test_more_numbers_than_the_weights_hold_are_refused_before_they_are_made(copy, key):
    edit(copy / "config.json", **{key: 4_000_000_000})
    found = complaint(copy)
    assert found.startswith("config.json asks for ")
    assert found.endswith("does config.json belong to these weights?")


def test_no_heads_and_other_sizes_than_the_weights(copy):
    edit(copy / "config.json", num_attention_heads=0)
    assert complaint(copy).startswith("cannot be loaded (")
    edit(copy / "config.json", num_attention_heads=4, vocab_size=400)
    assert complaint(copy)


def test_code_of_a_folder_is_never_run_or_asked_for(copy, tmp_path):
    (copy / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n"
    )
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    edit(copy / "config.json", auto_map=code)
    edit(copy / "tokenizer_config.json", auto_map=code)
    (note,) = load_encoder(str(copy), device="cpu").described["notes"]
    assert note == "the model's own code (auto_map in its config.json) is never run; the code of transformers is used"
    edit(copy / "config.json", model_type="mine", auto_map=code)
    own = "needs code of its own (auto_map in its config.json), which is never run; name a model that transformers knows"
    assert complaint(copy) == own
    listing = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps([listing[0] | {"type": "evil.Model"}, *listing[1:]]))
    assert complaint(copy).startswith("modules.json names evil.Model, code of its own, which is never run")
    assert not (tmp_path / "ran").exists()


class Evil:
    """Something whose unpickling would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("where", [".", "2_Dense"])
def test_pickles_that_would_run_are_refused(copy, tmp_path, where):
    (copy / where / "model.safetensors").unlink()
    torch.save({"linear.weight": Evil(tmp_path / "ran")}, copy / where / "pytorch_model.bin")
    assert "pytorch_model.bin cannot be read" in complaint(copy) or complaint(copy).startswith("cannot be loaded (")
    (copy / where / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    assert complaint(copy)
    assert not (tmp_path / "ran").exists()


def test_queues_links_and_paths_that_lead_out(copy):
    listing = (copy / "modules.json").read_text()
    (copy / "modules.json").write_text(listing.replace("1_Pooling", "../1_Pooling"))
    assert complaint(copy) == "modules.json: the path '../1_Pooling' leaves the folder"
    (copy / "modules.json").unlink()
    os.mkfifo(copy / "modules.json")
    assert complaint(copy) == "modules.json is not a file that can be read; is it a broken link?"
    (copy / "modules.json").unlink()
    (copy / "modules.json").write_text(listing)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(copy / "nowhere")
    assert complaint(copy) == "model.safetensors is not a file that can be read; is it a broken link?"


@pytest.mark.parametrize("value", [[], {}, {"weight_map": []}, {"weight_map": {"x": 1}}])
def test_an_index_that_maps_no_weights(copy, value):
    (copy / "model.safetensors.index.json").write_text(json.dumps(value))
    wanted = "model.safetensors.index.json does not map each weight to a file ('weight_map'); is the folder complete?"
    assert complaint(copy) == wanted


@pytest.mark.parametrize("part", ["../outside.safetensors", "sub/part.safetensors", "/tmp/outside.safetensors"])
def test_an_index_that_leads_out_of_the_folder(copy, part):
    shutil.copy(copy / "model.safetensors", copy.parent / "outside.safetensors")
    (copy / "sub").mkdir()
    shutil.move(copy / "model.safetensors", copy / "sub/part.safetensors")
    shutil.copy(copy.parent / "outside.safetensors", copy / "model-00001-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embeddings.LayerNorm.weight": part}}))
    assert complaint(copy).startswith(f"model.safetensors.index.json names '{part}', which is not next to it; ")


@pytest.mark.parametrize("value", [[], {}, 0, "", "other"])
def test_a_dense_whose_output_goes_elsewhere(copy, value):
    edit(copy / "2_Dense/config.json", module_output_name=value)
    assert complaint(copy).endswith("only sentence_embedding is supported")


@pytest.mark.parametrize("text", ["[" * 100_000, "\xff", "[1, 2", '"modules"', "3"])
def test_modules_that_are_no_list(copy, text):
    (copy / "modules.json").write_bytes(text.encode("latin-1"))
    assert complaint(copy).startswith("modules.json is ")
    assert complaint(copy, load_cross_encoder).startswith("modules.json is ")
