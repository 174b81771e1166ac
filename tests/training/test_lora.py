"""LoRA: only its matrices are trained, they are really used, and the exported model and adapter give the trained vectors."""

from __future__ import annotations

import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import tiny_folder

from curation.core import store
from curation.core.errors import BuildError, ModelError, SetupError
from curation.recipe.settings import Train
from training.backend import Torch
from training.checkpoint import average_checkpoints, export_checkpoint, merge_runs
from training.data import Plan
from training.lora import add_lora
from training.model.encode import load_encoder
from training.model.load import load_model
from training.publish import plan_upload
from training.step import add_gradients
from training.tokens import load_sources
from training.train import train

LORA = {"rank": 4, "alpha": 8}
TEXTS = ["list open files", "a text of a few words", "one"]


def recipe(model, **keys):
    common = {"max_tokens": 32, "batch": 8, "negatives": 1, "lr": 1e-2, "warmup": 0, "dtype": "float32", "log_every": 1}
    return Train(model=model, **{**common, "steps": 4, "save_every": 2, "lora": LORA, **keys})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a build, a decoder, and a run of four steps."""
    place = tmp_path_factory.mktemp("lora")
    write_build(place / "b", {"pairs": retrieval(24)})
    tiny_model(place / "qwen3", "qwen3")
    train(place / "b", recipe(str(place / "qwen3")), out=place / "run", device="cpu")
    return place


def vectors_of(folder):
    return load_encoder(str(folder), device="cpu").encode(TEXTS)


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_a_step_changes_the_matrices_alone_and_each_layer_uses_its_own(place, tmp_path, kind):
    rule = recipe(tiny_model(tmp_path / "m", kind), token_budget=60)
    model = load_model(rule.model, max_tokens=32, device="cpu")
    plan = Plan(load_sources(place / "b", model, "auto"), 42, rule)
    ids = torch.from_numpy((tokens := model.tokenize(TEXTS)).ids.astype(np.int64))
    own = {name: weight.detach().clone() for name, weight in model.backbone.named_parameters()}
    plain = model.embed(ids, tokens.starts.tolist()).detach()
    add_lora(model, rule.lora, seed=1)
    assert torch.equal(model.embed(ids, tokens.starts.tolist()), plain)  # one matrix of each pair is 0
    backend = Torch(model, rule)
    linear = sum(isinstance(module, torch.nn.Linear) for module in load_model(rule.model, device="cpu").backbone.modules())
    assert len(backend.weights) == 2 * linear == 2 * {"qwen3": 14, "bert": 12}[kind]
    assert all(name.endswith((".lora_A.default.weight", ".lora_B.default.weight")) for name in backend.weights)
    for step in range(2):  # the first step moves only the matrices that are 0
        add_gradients(backend, plan.batch_at(step), rule)
        assert all(weight.grad.any() == (step > 0 or ".lora_B." in name) for name, weight in backend.weights.items())
        backend.step(rule.lr)
    now = {name.replace(".base_layer", ""): weight for name, weight in model.backbone.named_parameters() if ".lora_" not in name}
    assert now.keys() == own.keys()
    assert all(torch.equal(now[name], own[name]) for name in own)
    assert float((model.embed(ids, tokens.starts.tolist()).detach() - plain).abs().max()) > 1e-3


def test_layers_computed_twice_have_the_same_gradients(place):
    found = []
    for checkpointing in (False, True):
        rule = recipe(str(place / "qwen3"), checkpointing=checkpointing)
        model = load_model(rule.model, max_tokens=32, device="cpu")
        plan = Plan(load_sources(place / "b", model, "auto"), 42, rule)
        add_lora(model, rule.lora)
        backend = Torch(model, rule)
        add_gradients(backend, plan.batch_at(0), rule)
        found.append({name: weight.grad for name, weight in backend.weights.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_exported_model_is_merged_and_the_adapter_is_that_of_peft(place, tmp_path):
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer

    run, base = place / "run", transformers.AutoModel.from_pretrained(str(place / "qwen3"))
    merged = vectors_of(run / "model")
    assert np.abs(merged - vectors_of(place / "qwen3")).max() > 1e-3
    assert not [name for name in load_file(run / "model/model.safetensors") if "lora" in name or "base_layer" in name]
    theirs = SentenceTransformer(str(run / "model"), device="cpu")
    assert np.abs(theirs.encode(TEXTS) - merged).max() < 1e-5
    assert sorted(path.name for path in (run / "model/adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = store.read_json(run / "model/adapter/adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "qwen3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers 5 deprecates
        with_adapter = PeftModel.from_pretrained(base, str(run / "model/adapter")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(run / "model"))
    with torch.no_grad():
        states = [with_adapter(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in TEXTS]
    assert np.abs(torch.nn.functional.normalize(torch.stack(states)).numpy() - merged).max() < 1e-5
    assert "`adapter/` has them as peft saves them" in plan_upload(run, "org/small").card
    export_checkpoint(run, tmp_path / "again")
    for path in (run / "model").rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(run / "model")).read_bytes() == path.read_bytes()


def test_a_checkpoint_has_the_matrices_alone_and_another_rank_is_another_run(place):
    saved = load_file(place / "run/checkpoints/step-000004/model.safetensors")
    assert all(".lora_" in name for name in saved)
    other = recipe(str(place / "qwen3"), lora={**LORA, "rank": 2})
    with pytest.raises(BuildError, match=r"was made with recipe\.lora\.rank 4 \(now 2\)"):
        train(place / "b", other, out=place / "run", device="cpu")


def test_a_second_stage_with_lora_exports_its_checkpoints(place, tmp_path):
    rule = recipe(str(place / "qwen3"), steps=2)
    shutil.copytree(place / "run/model", tmp_path / "first")
    receipt, _ = train(place / "b", rule, out=tmp_path / "second", start=tmp_path / "first", device="cpu")
    assert receipt["from"]["run"] == "first"
    assert "from_folder" not in receipt
    export_checkpoint(tmp_path / "second", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "second/model/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(BuildError, match=r"was trained with LoRA on the weights of .*first, which are not there any more; put"):
        export_checkpoint(tmp_path / "second", tmp_path / "again")


def test_runs_are_mixed_by_their_whole_weights(place, tmp_path):
    train(place / "b", recipe(str(place / "qwen3"), seed=7), out=tmp_path / "other", device="cpu")
    merge_runs([place / "run", tmp_path / "other"], tmp_path / "merged")
    one, two, mixed = (
        load_file(path / "model.safetensors") for path in (place / "run/model", tmp_path / "other/model", tmp_path / "merged")
    )
    assert all(torch.allclose(mixed[name], (one[name] + two[name]) / 2, rtol=0, atol=1e-6) for name in mixed)
    assert any(float((one[name] - two[name]).abs().max()) > 1e-3 for name in one)
    average_checkpoints(place / "run", tmp_path / "average", last=1)
    assert np.abs(vectors_of(tmp_path / "average") - vectors_of(place / "run/model")).max() < 1e-6
    train(place / "b", recipe(str(place / "qwen3"), lora={**LORA, "rank": 2}), out=tmp_path / "small", device="cpu")
    with pytest.raises(BuildError, match=r"has other settings of `lora` than .*; merge runs with equal ones"):
        merge_runs([place / "run", tmp_path / "small"], tmp_path / "never")


def test_targets(place, tmp_path):
    model = load_model(str(place / "qwen3"), device="cpu")
    add_lora(model, recipe("m", lora={**LORA, "targets": ["q_proj", "1.self_attn.v_proj"]}).lora)
    names = {name for name, module in model.backbone.named_modules() if hasattr(module, "lora_A")}
    assert names == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"}
    wrong = recipe(str(place / "qwen3"), lora={"targets": ["q_proj", "query"]})
    says = (
        "no linear layer is named 'query' (`lora: targets`); it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )
    with pytest.raises(ModelError) as error:
        train(place / "b", wrong, out=tmp_path / "out", device="cpu")
    assert str(error.value) == f"{place / 'qwen3'}: {says}"
    for keys, said in (
        ({"rank": 0}, "greater than or equal to 1"),
        ({"alpha": 0}, "greater than 0"),
        ({"targets": []}, "'targets' names no layer; give some, or `auto`"),
    ):
        with pytest.raises(ValidationError, match=said):
            recipe("m", lora=keys)


def test_without_peft_one_line_says_how_to_install_it(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SetupError, match=r"^peft: cannot be used \(.*\); pip install 'tuplesmith\[lora\]'$"):
        train(place / "b", recipe(str(place / "qwen3")), out=tmp_path / "out", device="cpu")


def test_the_modules_after_the_pooling_are_trained_too(place, tmp_path):
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(str(tiny_folder("bert", tmp_path / "bert")))
    dense = models.Dense(32, 16, activation_function=torch.nn.Identity())
    SentenceTransformer(modules=[transformer, models.Pooling(32), dense], device="cpu").save(str(tmp_path / "dense"))
    train(place / "b", recipe(str(tmp_path / "dense")), out=tmp_path / "run", device="cpu")
    before, after = (load_file(next(path.glob("2_Dense/*.safetensors"))) for path in (tmp_path / "dense", tmp_path / "run/model"))
    assert all(float((before[name] - after[name]).abs().max()) > 1e-3 for name in before)
