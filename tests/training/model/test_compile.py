"""Compiled layers give the numbers of the plain ones, from few graphs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tiny_models import CONFIGS, tiny_folder
from torch._dynamo.utils import counters

from curation.recipe.settings import Lora
from training.backend import Torch, checkpoint_layers
from training.lora import add_lora
from training.model import attention, encode
from training.model.attention import PACKED, VARLEN, packed_inputs
from training.model.compile import compile_layers, tokens_worth_compiling
from training.model.device import capability_of
from training.model.encode import load_encoder
from training.model.load import load_model
from training.train import compiles
from training.zero import DeepSpeed

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at every tensor's
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def traceable(query, key, value, segments, scaling, window):
    """Attend as torch's variable-length kernel does, from the same arguments, by one product of all tokens with all tokens."""
    place = torch.arange(len(query), device=query.device)
    text = torch.searchsorted(segments.cumulative(query.device), place.int(), right=True)
    back = place[:, None] - place[None, :]
    left, right = window
    seen = text[:, None] == text[None, :]
    seen = seen & (back <= left) if left >= 0 else seen
    seen = seen & (back >= -right) if right >= 0 else seen
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
    scores = query.transpose(0, 1) @ key.permute(1, 2, 0) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    shares = scores.masked_fill(~seen, -torch.inf).softmax(-1) + 0 * segments.longest
    return (shares @ value.transpose(0, 1)).transpose(0, 1)


@pytest.fixture
def gpu_path(monkeypatch):
    """Take the path of a GPU on the CPU, where the kernel is part of the compiled graph."""
    monkeypatch.setattr(attention, "_candidates", lambda *_: (VARLEN,) if capability_of(torch.device("cuda")) else ())
    monkeypatch.setattr(attention, "_verdicts", {})
    monkeypatch.setattr(attention, "_chosen", {})
    monkeypatch.setitem(attention.KERNELS, VARLEN, traceable)
    monkeypatch.setattr(attention, "by_runs", attention.by_runs)  # `compile_layers` replaces it
    torch._dynamo.reset()
    counters.clear()


def backbone_of(kind, device="cpu"):
    torch.manual_seed(1)
    return transformers.AutoModel.from_config(CONFIGS[kind](), attn_implementation=PACKED).eval().to(device)


def batch(seed, device="cpu"):
    """Return the arguments of a forward over a few texts; another seed gives other lengths and another number of texts."""
    random = np.random.default_rng(seed)
    starts = np.concatenate([[0], random.integers(1, 20, 2 + seed).cumsum()])
    ids = torch.from_numpy(random.integers(5, 400, starts[-1])).to(device)
    return packed_inputs(ids, starts.tolist(), 0)


def computed(backbone, seed, device="cpu"):
    """Return the token states of a batch, and all gradients of a function of them."""
    backbone.zero_grad()
    states = backbone(**batch(seed, device)).last_hidden_state
    (states * torch.linspace(-1, 1, states.numel(), device=device).view(states.shape)).sum().backward()
    return states.detach(), {name: one.grad.clone() for name, one in backbone.named_parameters() if one.grad is not None}


def same(one, other, most):
    """Assert that states and gradients differ by at most `most`, gradients relative to the largest."""
    assert (one[0] - other[0]).abs().max() <= most
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert (gradient - other[1][name]).abs().max() <= most * max(1.0, float(gradient.abs().max())), name


def distances(one, other):
    """Return how far states and gradients are from others, relative to these."""
    flat = [torch.cat([gradient.float().flatten() for gradient in each[1].values()]) for each in (one, other)]
    pairs = ((one[0].float(), other[0].float()), flat)
    return [float((found - right).norm() / right.norm()) for found, right in pairs]


def as_near(found, rough, exact):
    """Assert that numbers computed in bfloat16 are about as near to exact ones as autocast's are."""
    for ours, plain in zip(distances(found, exact), distances(rough, exact), strict=True):
        assert ours <= 1.5 * plain + 1e-3


@pytest.mark.parametrize(
    "kind", ["qwen3", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("bert", "mistral", "modernbert"))]
)
def test_compiled_layers_give_the_same_numbers_from_one_graph_whatever_the_batch(kind, gpu_path):
    backbone, graphs = backbone_of(kind), 2 if kind == "modernbert" else 1  # ModernBERT's first layer has no norm
    plain = [computed(backbone, seed) for seed in range(5)]
    compile_layers(backbone, "aot_eager")
    for seed in range(5):
        same(computed(backbone, seed), plain[seed], 1e-5)
        assert counters["stats"]["unique_graphs"] == graphs
    for seed in range(3):  # passes without gradients have a graph of their own
        with torch.no_grad():
            first = backbone(**batch(seed)).last_hidden_state
        assert (first - plain[seed][0]).abs().max() < 1e-5
        assert (computed(backbone, seed)[0] - first).abs().max() < 1e-6  # the two passes of GradCache
    assert counters["stats"]["unique_graphs"] == 2 * graphs
    assert not counters["graph_break"]


@pytest.mark.long
def test_compiled_layers_with_lora_give_the_same_numbers(gpu_path, tmp_path):
    model = load_model(str(tiny_folder("qwen3", tmp_path / "model")), device="cpu")
    add_lora(model, Lora(rank=4, alpha=8, targets="auto"))
    for name, weight in model.backbone.named_parameters():
        if "lora_B" in name:  # else the pairs of matrices add nothing
            torch.nn.init.normal_(weight, std=0.1)
    plain = [computed(model.backbone, seed) for seed in range(5)]
    assert plain[0][1]
    assert all("lora_" in name for name in plain[0][1])
    compile_layers(model.backbone, "aot_eager")
    for seed in range(5):
        same(computed(model.backbone, seed), plain[seed], 1e-5)
    assert counters["stats"]["unique_graphs"] == 2  # what the first layer gets has no gradients
    assert not counters["graph_break"]


def test_compiled_layers_honour_activation_checkpointing(gpu_path):
    backbone = backbone_of("qwen3")
    plain = [computed(backbone, seed) for seed in range(3)]
    checkpoint_layers(backbone)
    backbone.train()
    compile_layers(backbone, "aot_eager")
    saved = []
    for seed in range(3):
        with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
            same(computed(backbone, seed), plain[seed], 1e-5)
    assert counters["stats"]["unique_graphs"] <= 2
    backbone.eval()
    kept = len(saved)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        computed(backbone, 0)
    assert len(saved) - kept > kept / 3  # without checkpointing more is kept


def test_compiled_layers_compute_bfloat16_under_autocast(gpu_path):
    backbone = backbone_of("qwen3")
    exact = [computed(backbone, seed) for seed in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        rough = [computed(backbone, seed) for seed in range(3)]
        compile_layers(backbone, "aot_eager")
        for seed in range(3):
            as_near(computed(backbone, seed), rough[seed], exact[seed])
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.long
def test_no_graph_is_one_too_many(gpu_path):
    config = CONFIGS["modernbert"]()
    config.num_hidden_layers, config.global_attn_every_n_layers = 4, 3
    config.layer_types = None
    torch.manual_seed(1)
    config = type(config)(**{**config.to_dict(), "layer_types": None})
    backbone = transformers.AutoModel.from_config(config, attn_implementation=PACKED).eval()
    compile_layers(backbone, "aot_eager")
    for seed in range(4):
        with torch.no_grad():
            backbone(**batch(seed))
        with torch.autocast("cpu", torch.bfloat16):
            computed(backbone, seed)
            with torch.no_grad():
                backbone(**batch(seed))
    assert counters["stats"]["unique_graphs"] > 8  # torch.compile's own limit, after which it would compile no more
    assert not counters["graph_break"]


def test_without_a_kernel_that_can_be_traced_attention_stays_outside_of_the_graphs(monkeypatch):
    monkeypatch.setattr(attention, "by_runs", attention.by_runs)
    torch._dynamo.reset()
    counters.clear()
    backbone = backbone_of("qwen3")
    plain = [computed(backbone, seed) for seed in range(3)]
    compile_layers(backbone, "aot_eager")
    for seed in range(3):
        same(computed(backbone, seed), plain[seed], 1e-5)
        assert counters["stats"]["unique_graphs"] <= 6
    assert len(counters["graph_break"]) == 1


def test_layers_that_cannot_be_compiled_stay_as_they_are(caplog, monkeypatch):
    monkeypatch.setattr(attention, "by_runs", attention.by_runs)
    torch._dynamo.reset()
    backbone = backbone_of("bert")
    plain = computed(backbone, 1)

    def backend(graph, inputs):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    compile_layers(backbone, backend)
    for _ in range(2):
        same(computed(backbone, 1), plain, 1e-6)
    (line,) = [record.message for record in caplog.records if record.name == "tuplesmith"]
    assert line.startswith("layers are not compiled, so they are slower (torch.compile: backend='backend' raised:")


def test_the_tokens_that_are_worth_compiling_grow_as_layers_shrink():
    sizes = transformers.Qwen3Config(num_hidden_layers=28, hidden_size=1024), transformers.BertConfig(hidden_size=384)
    assert [round(tokens_worth_compiling(one) / 1e6, 1) for one in sizes] == [1.7, 10.9]


def test_long_runs_on_a_gpu_compile_their_layers():
    backend = object.__new__(Torch)
    weights = {"embed_tokens": torch.empty(10**9, device="meta"), "layers.0": torch.empty(440_000_000, device="meta")}
    backend.model = SimpleNamespace(padded="", backbone=SimpleNamespace(named_parameters=weights.items))
    for device, steps, expected in (("cuda", 114, True), ("cuda", 113, False), ("cpu", 1_000, False)):
        backend.device = torch.device(device)
        assert compiles(backend, steps) == expected
    backend.device, backend.model.padded = torch.device("cuda"), "its attention cannot be packed"
    assert not compiles(backend, 1_000)
    assert not compiles(object.__new__(DeepSpeed), 1_000)


def test_an_encoder_on_a_gpu_compiles_its_layers_for_many_texts(tmp_path, monkeypatch):
    encoder, compiled = load_encoder(str(tiny_folder("bert", tmp_path)), device="cpu"), []
    monkeypatch.setattr(encode, "compile_layers", lambda backbone: compiled.append("compile"))
    enough = tokens_worth_compiling(encoder.model.backbone.config) // encode.TOKENS_OF_A_TEXT + 1
    encoder.prepare_for(enough)
    assert compiled == []  # on the CPU never
    monkeypatch.setattr(type(encoder.model.backbone), "device", torch.device("cuda"))
    encoder.prepare_for(enough - 2)
    assert compiled == []
    encoder.prepare_for(enough)
    assert compiled == ["compile"]


# On a GPU.


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernels_of_a_gpu_are_part_of_the_compiled_graph(dtype):
    torch._dynamo.reset()
    counters.clear()
    backbone = backbone_of("qwen3", "cuda")
    exact = [computed(backbone, seed, "cuda") for seed in range(3)]
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = [computed(backbone, seed, "cuda") for seed in range(3)]
        compile_layers(backbone, "aot_eager")
        for seed in range(3):
            as_near(computed(backbone, seed, "cuda"), plain[seed], exact[seed])
    assert (counters["stats"]["unique_graphs"], len(counters["graph_break"])) == (1, 0)


@pytest.mark.gpu
@on_gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler's own imports
def test_a_step_on_a_gpu_runs_through_kernels_that_torch_compile_wrote(caplog):
    torch._dynamo.reset()
    backbone = backbone_of("qwen3", "cuda")
    backbone.config.num_hidden_layers = 1  # compiling takes some ten seconds
    exact = [computed(backbone, seed, "cuda") for seed in range(2)]
    with torch.autocast("cuda", torch.bfloat16):
        rough = [computed(backbone, seed, "cuda") for seed in range(2)]
        compile_layers(backbone)
        for seed in range(2):
            as_near(computed(backbone, seed, "cuda"), rough[seed], exact[seed])
    assert not [record.message for record in caplog.records if record.name == "tuplesmith"]
