"""The memory that a step takes, counted before it runs, and the token budget that follows from it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tiny_build import retrieval, write_build
from tiny_models import CONFIGS, tiny_folder, tiny_tokenizer

from curation.core.errors import SetupError
from curation.recipe.settings import Train
from training import memory
from training.memory import explain_without_room, kept_bytes, with_budget
from training.model.load import load_model
from training.plan import as_table, estimate

QWEN3 = {
    "hidden_size": 1024, "num_attention_heads": 16, "head_dim": 128, "num_key_value_heads": 8, "intermediate_size": 3072,
    "num_hidden_layers": 3, "vocab_size": 100,
}  # fmt: skip
CONFIG = CONFIGS["qwen3"]()


def test_a_layer_of_qwen3_keeps_what_was_counted_by_hand():
    plain, short = (
        kept_bytes(transformers.Qwen3Config(**QWEN3), torch.bfloat16, checkpointing) for checkpointing in (False, True)
    )
    stored = transformers.Qwen3Config(**QWEN3, dtype="bfloat16")  # of the files; weights are trained in float32
    assert kept_bytes(stored, torch.bfloat16, False) == plain
    two = kept_bytes(transformers.Qwen3Config(**QWEN3 | {"num_hidden_layers": 2}), torch.bfloat16, False)
    assert plain.per_token - two.per_token == pytest.approx(82_600, rel=0.01)
    matrices = 1024 * (2048 + 2 * 1024) + 2048 * 1024 + 3 * 1024 * 3072
    assert plain.fixed == pytest.approx(2 * 3 * matrices, rel=0.01)  # the weights in bfloat16
    assert short.per_token == pytest.approx(3 * 4 * 1024 + plain.per_token / 3, rel=0.1)  # each layer's input in float32


@pytest.mark.parametrize("kind", ["bert", "llama", "roberta"])
def test_a_real_forward_keeps_as_much(kind, tmp_path):
    model = load_model(str(tiny_folder(kind, tmp_path / "m")), device="cpu")
    model.backbone.requires_grad_(True)
    weights, kept = {weight.untyped_storage()._cdata for weight in model.backbone.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.embed(torch.from_numpy(np.arange(100) % 90 + 5), [0, 100])
    real = sum(storage.nbytes() for storage in kept.values()) / 100
    assert kept_bytes(model.backbone.config, torch.float32, False).per_token == pytest.approx(real, rel=0.15)


def gpu(monkeypatch, free, weights=1_000_000, **keys):
    """Return a backend on a GPU with so many bytes free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 3_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2_000_000)
    model = SimpleNamespace(backbone=SimpleNamespace(config=CONFIGS["qwen3"]()))
    return SimpleNamespace(
        device=torch.device("cuda:0"), world=1, model=model, weights={"w": torch.empty(weights, device="meta")}
    )


def test_the_budget_follows_from_the_free_memory(monkeypatch):
    backend, said, circumstances = gpu(monkeypatch, 100_000_000), [], {"threads": 1}
    kept = kept_bytes(CONFIG, torch.bfloat16, False)
    recipe = with_budget(Train(model="m"), backend, CONFIG, 0, circumstances, said.append)
    expected = int((0.8 * (100_000_000 - 12 * 1_000_000) - kept.fixed) / kept.per_token)  # 4 of gradients, 8 of AdamW
    assert recipe.token_budget == circumstances["token_budget"] == expected
    assert said == [f"token_budget: {expected:,}, chosen because 0.1 GB of the GPU are free and a token takes 0.00 MB"]

    # A run that continues keeps it, whatever is free then; its optimizer is in memory already.
    again, said = {"threads": 1, "token_budget": 777}, []
    assert with_budget(Train(model="m"), gpu(monkeypatch, 50_000_000), CONFIG, 5, again, said.append).token_budget == 777
    assert (again["token_budget"], said) == (777, [])
    # The recipe's own budget comes first.
    again = {"token_budget": 777}
    assert with_budget(Train(model="m", token_budget=5), backend, CONFIG, 5, again, said.append).token_budget == 5
    assert (again, said) == ({}, [])


def test_nothing_changes_on_a_cpu():
    recipe, backend = Train(model="m"), SimpleNamespace(device=torch.device("cpu"))
    assert with_budget(recipe, backend, CONFIG, 0, {"threads": 1}, print) is recipe


def test_weights_without_room_are_one_line(monkeypatch):
    expected = (
        r"^cuda:0: out of memory: the gradients and the optimizer alone do not fit; besides the weights they take 12.0 GB, "
        r"and 9.0 of 80.0 GB are free; use a smaller model, or share them out over several GPUs with `deepspeed: {zero: 2}`$"
    )
    for keys in ({}, {"token_budget": 4}):
        with pytest.raises(SetupError, match=expected):
            with_budget(Train(model="m", **keys), gpu(monkeypatch, 9_000_000_000, 1_000_000_000), CONFIG, 0, {}, print)
    expected = (
        r"^cuda:1: out of memory: the weights of m, their gradients and the optimizer alone do not fit \(16 bytes per weight\)"
    )
    with pytest.raises(SetupError, match=expected), explain_without_room(torch.device("cuda:1"), "m"):
        raise torch.OutOfMemoryError
    with pytest.raises(RuntimeError, match="another"), explain_without_room(torch.device("cuda:1"), "m"):
        raise RuntimeError("another")


def test_an_architecture_that_cannot_be_counted_trains_without_a_budget(monkeypatch):
    def fail(*arguments):
        raise NotImplementedError("no such operation\nand more")

    said, recipe = [], Train(model="m")
    monkeypatch.setattr(memory, "kept_bytes", fail)
    assert with_budget(recipe, gpu(monkeypatch, 100_000_000), CONFIG, 0, {}, said.append) is recipe
    assert said == ["token_budget: none, because the memory of a step cannot be counted (no such operation)"]


def test_a_plan_without_a_budget_chooses_one_as_a_run_does(tmp_path):
    build = write_build(tmp_path / "b", {"pairs": retrieval(2000)})
    tiny_tokenizer(True).save_pretrained(tmp_path / "m")
    transformers.Qwen3Config(**QWEN3 | {"num_hidden_layers": 28, "vocab_size": 151_936}).save_pretrained(tmp_path / "m")
    kept = kept_bytes(transformers.Qwen3Config(**QWEN3 | {"num_hidden_layers": 28}), torch.bfloat16, False)
    chosen, given = (estimate(build, Train(model=str(tmp_path / "m"), token_budget=budget)) for budget in (None, 16_384))
    weights = 16 * chosen["weights"]
    assert chosen["token_budget"] == pytest.approx((0.8 * (80e9 - weights) - kept.fixed) / kept.per_token, rel=0.01)
    assert chosen["chunks_per_step"] == -(-chosen["tokens_per_step"] // chosen["token_budget"]) > 1
    assert chosen["memory_gb_per_gpu"]["activations"] == pytest.approx(0.8 * (80e9 - weights) / 1e9, rel=0.01)
    assert "RTX 4090" in chosen["fits"]  # with a smaller budget
    assert given["memory_gb_per_gpu"]["activations"] == pytest.approx((kept.per_token * 16_384 + kept.fixed) / 1e9, abs=0.1)
    assert given["fits"] == ["H100 PCIe", "H100 NVL", "H100", "H200 NVL", "H200", "B200", "A100", "MI300X"]
    table = as_table(chosen)
    assert "from the memory of an H100" in table
    assert "fits into 24 GB (RTX 4090), with a smaller budget" in table
    assert "fits into 80 GB (H100 PCIe)" in as_table(given)
    assert max(map(len, table.splitlines())) <= 80
