"""Runs the CUDA paths on fake tensors, which have shapes, dtypes and devices but no numbers: no GPU is needed.

Fake tensors refuse operations that mix devices. Every operation that would make the host wait for the GPU is counted. A torch
that is built for CPUs cannot run a backward of CUDA tensors, even of fake ones: test_kernels.py does that on a GPU.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import CONFIGS, GROUPED, SMALL
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from training.model import attention
from training.model.attention import EFFICIENT, FLASH, PACKED, VARLEN, packed_inputs
from training.model.load import positions_of
from training.model.pooling import POOLINGS, pooled

DEVICE = torch.device("cuda:0")  # "cuda" without a number needs a torch with CUDA
STARTS = [0, 3, 4, 11, 40]
ARCHITECTURES = CONFIGS | {
    "minilm": lambda: transformers.BertConfig(hidden_size=384, num_attention_heads=12, num_hidden_layers=2, vocab_size=420),
    "narrow bert": lambda: transformers.BertConfig(**SMALL | {"hidden_size": 52, "num_attention_heads": 2}),  # heads of 26
    "qwen3 both ways": lambda: transformers.Qwen3Config(**SMALL, **GROUPED, is_causal=False),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, **GROUPED, sliding_window=8),
    "gemma3 both ways": lambda: transformers.Gemma3TextConfig(
        **SMALL, **GROUPED, sliding_window=8, use_bidirectional_attention=True
    ),
}
# Operations whose result's size or value the host needs, so it waits until the GPU has computed them.
WAITING = {
    "aten::_local_scalar_dense",  # item, tolist, bool
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
}


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for the GPU, by name."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, tensors = func._schema.name, [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        if any(one.is_cuda for one in tensors):
            unsized = name == "aten::repeat_interleave" and not isinstance(kwargs.get("output_size"), int)
            checked = name == "aten::segment_reduce" and not kwargs.get("unsafe")
            by_mask = name.startswith("aten::index") and any(
                isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)
                for one in (args[1] if isinstance(args[1], list | tuple) else ())
            )
            if name in WAITING or unsized or checked or by_mask:
                self.found[name] += 1
        if name == "aten::_to_copy" and self._crosses(args[0], kwargs):
            self.found["copy that waits"] += 1
        return func(*args, **kwargs)

    @staticmethod
    def _crosses(tensor, kwargs):
        """Return whether a copy goes from the host to the GPU or back, and waits."""
        other = torch.device(kwargs.get("device") or tensor.device)
        return other.type != tensor.device.type and not kwargs.get("non_blocking")


def add_device_guard():
    """Give a torch that is built for CPUs a guard of CUDA devices that does nothing; indexing, for one, asks for it.

    FakeTensorMode replaces the guard of a torch with CUDA that finds no GPU; a torch for CPUs has none. So the guard of Lazy
    devices, of which there are none either, takes the place of CUDA's until torch has replaced it.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * 18).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, lazy = 1, 17  # c10::DeviceType
    if guards[cuda] is None:
        guards[cuda] = guards[lazy]
    torch._C._ensureCUDADeviceGuardSet()


@contextmanager
def fake_cuda(monkeypatch, capability=(9, 0)):
    """Make tensors fake, and "cuda:0" a GPU of a capability; yield the counted waits."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(attention, "_verdicts", {})
    monkeypatch.setattr(attention, "_chosen", {})
    monkeypatch.setattr(attention, "_failure", lambda kernel, *_: "not installed" if kernel == FLASH else None)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)  # autocast asks
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # fake tensors cannot be pinned
    # transformers leaves out what would wait for a GPU if it sees fake tensors.
    monkeypatch.setattr(transformers.utils.import_utils, "is_fake_tensor", lambda tensor: False)
    add_device_guard()
    waits = Waits()
    with FakeTensorMode(), waits, torch.no_grad():
        yield waits


def backbone_of(kind):
    """Return a model of an architecture on the CPU."""
    config = ARCHITECTURES[kind]()
    return transformers.AutoModel.from_config(config, attn_implementation=PACKED).eval().requires_grad_(False)


def move(backbone):
    """Replace the weights and buffers of a model by fake ones on the fake GPU; `to` does not do that for fake tensors."""
    for module in backbone.modules():
        for name, one in module._parameters.items():
            if one is not None:
                new = torch.nn.Parameter(torch.empty(one.shape, dtype=one.dtype, device=DEVICE), requires_grad=False)
                module._parameters[name] = new
        for name, one in module._buffers.items():
            if one is not None:
                module._buffers[name] = torch.empty(one.shape, dtype=one.dtype, device=DEVICE)


def forward(backbone, pooling, dtype):
    """Return the pooled vectors of four texts, as `Model.embed` computes them."""
    ids = attention.on_device(np.arange(STARTS[-1]), DEVICE)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        states = backbone(**packed_inputs(ids, STARTS, positions_of(backbone)[0])).last_hidden_state[0]
    return pooled(states.float(), STARTS, pooling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_no_forward_mixes_devices_or_waits_for_the_gpu(kind, dtype, monkeypatch):
    backbone = backbone_of(kind)
    with fake_cuda(monkeypatch) as waits:
        move(backbone)
        vectors = forward(backbone, "mean", dtype)
        assert (vectors.device, vectors.dtype) == (DEVICE, torch.float32)
    size = attention.head_size_of(backbone.config)
    assert attention.kernel_of(DEVICE, dtype, size) == (EFFICIENT if dtype == torch.float32 else VARLEN)
    assert not waits.found


@pytest.mark.parametrize("pooling", [*POOLINGS, "mean+cls"])
def test_no_pooling_waits_for_the_gpu(pooling, monkeypatch):
    with fake_cuda(monkeypatch) as waits:
        vectors = pooled(torch.empty(STARTS[-1], 32, device=DEVICE), STARTS, pooling)
        assert (vectors.device, vectors.shape) == (DEVICE, (4, 32 * len(pooling.split("+"))))
    assert not waits.found


def test_an_older_gpu_takes_the_same_path_in_float32(monkeypatch):
    backbone = backbone_of("qwen3")
    with fake_cuda(monkeypatch, capability=(7, 5)) as waits:
        move(backbone)
        forward(backbone, "last", torch.float32)
    assert [key[0] for key, reason in attention._verdicts.items() if reason is None] == [EFFICIENT]
    assert not waits.found


def test_what_waits_is_counted(monkeypatch):
    with fake_cuda(monkeypatch) as waits:
        tensor = torch.empty(4, device=DEVICE)
        tensor.cpu()
        torch.empty(4).to(DEVICE)
        torch.segment_reduce(tensor, "sum", lengths=torch.ones(4, dtype=torch.int64, device=DEVICE))
        for ask in (
            lambda: tensor.sum().item(),
            lambda: bool(tensor.any()),
            lambda: tensor[tensor > 0],
            lambda: tensor.nonzero(),
        ):
            with pytest.raises(Exception, match="aten"):
                ask()
    assert sum(waits.found.values()) == 7, waits.found
