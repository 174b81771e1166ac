"""Layers with their weights laid out once: the same products, for every architecture, and torch's own where that can't be done."""

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, TEXTS, tiny_folder

from training.model.device import Prepacked, prepack
from training.model.encode import load_encoder


def layers(encoder, kind):
    return [name for name, module in encoder.model.backbone.named_modules() if type(module) is kind]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_layer_is_prepacked_and_the_vectors_stay(kind, tmp_path, monkeypatch):
    folder = str(tiny_folder(kind, tmp_path))
    packed, kind_here = load_encoder(folder), Prepacked if torch.backends.mkldnn.is_available() else torch.nn.Linear
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = load_encoder(folder)
    assert layers(packed, kind_here) == layers(plain, torch.nn.Linear) != []
    assert layers(plain, Prepacked) == []
    assert np.abs(packed.encode(TEXTS) - plain.encode(TEXTS)).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_products_of_any_shape_are_those_of_the_layer(dtype, bias):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias))
    layer = model[0]
    wanted = torch.nn.Linear(24, 40, bias=bias)
    wanted.load_state_dict(layer.state_dict())
    prepack(model.requires_grad_(False), dtype, 64)
    for states in (torch.randn(1, 1, 24), torch.randn(1, 77, 24), torch.randn(40, 77).T[:, 3:27], torch.randn(2, 3, 5, 24)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = model(states)
        assert found.dtype == dtype
        assert found.shape == (*states.shape[:-1], 40)
        assert (found.float() - wanted(states)).abs().max() < (1e-5 if dtype == torch.float32 else 3e-2)


def test_a_layer_of_another_kind_is_only_cast():
    other = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(3, 4)
    model = torch.nn.Sequential(other)
    prepack(model.requires_grad_(False), torch.bfloat16, 8)
    assert model[0] is other
    assert other.weight.dtype == torch.bfloat16
