"""From the states of tokens to one vector per text: pooling, and the modules that may follow it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from curation.core.errors import ModelError, first_line, listed
from training.model.device import on_device
from training.model.sentence_folder import Module, check_file

POOLINGS = ("mean", "cls", "last", "max", "mean_sqrt_len_tokens", "weightedmean")
ACTIVATIONS = ("Identity", "Sigmoid", "Tanh", "ReLU", "GELU", "SiLU", "Softplus", "LogSigmoid", "ELU", "LeakyReLU")
SENTENCE = "sentence_embedding"


def pooled(states: Tensor, starts: Sequence[int], pooling: str) -> Tensor:
    """Return one vector per segment, (n, dim), of the token states (T, dim); poolings joined by "+" are concatenated."""
    if "+" in pooling:
        return torch.cat([pooled(states, starts, one) for one in pooling.split("+")], dim=1)
    bounds = on_device(np.asarray(starts, dtype=np.int64), states.device)
    if pooling == "cls":
        return states[bounds[:-1]]
    if pooling == "last":
        return states[bounds[1:] - 1]
    lengths = bounds.diff()
    if pooling in ("mean", "max"):
        return _reduced(states, pooling, lengths)
    if pooling == "mean_sqrt_len_tokens":
        return _reduced(states, "sum", lengths) / lengths.sqrt()[:, None]
    first = bounds[:-1].repeat_interleave(lengths, output_size=len(states))  # of each token's text
    places = torch.arange(len(states), device=states.device) - first + 1.0  # from 1 in each text
    return _reduced(states * places[:, None], "sum", lengths) / _reduced(places, "sum", lengths)[:, None]


def _reduced(states: Tensor, how: str, lengths: Tensor) -> Tensor:
    """Return the mean, max or sum of each segment's rows. `unsafe`: the lengths are right, and checking them waits for a GPU."""
    return torch.segment_reduce(states, how, lengths=lengths, axis=0, unsafe=True)


class Unit(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the vectors (n, dim) divided by their lengths."""
        return functional.normalize(vectors, dim=-1)


class LayerMix(nn.Module):
    """sentence-transformers' WeightedLayerPooling: the weighted mean of the token states of the last layers."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(weights)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Return (..., dim) float32 of the states of all layers, the embeddings first, each (..., dim)."""
        last = layers[len(layers) - len(self.layer_weights) :]
        mixed = sum(weight * states.float() for weight, states in zip(self.layer_weights, last, strict=True))
        return torch.as_tensor(mixed) / self.layer_weights.sum()


class Projection(nn.Module):
    """sentence-transformers' Dense: a linear map and an activation, perhaps with a residual connection."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (n, out) of (n, in)."""
        found: Tensor = self.activation(self.linear(vectors))
        return found if self.residual is None else found + self.residual(vectors)


def layer_mix(name: str, module: Module, layers: int) -> LayerMix:
    """Return a WeightedLayerPooling, for a transformer of so many layers.

    Raises:
        ModelError: it cannot be read, or it belongs to another number of layers.
    """
    weights, first = _weights(name, module.folder).get("layer_weights"), module.config.get("layer_start", 4)
    if weights is None or not isinstance(first, int) or tuple(weights.shape) != (layers + 1 - first,):
        given = "no weights" if weights is None else f"weights {tuple(weights.shape)}"
        what = f"{module.folder.name} has {given} and layer_start {first!r}, and the transformer {layers} layers"
        raise ModelError(name, what, "do the files belong to one model?")
    return LayerMix(weights.float())


def head_of(name: str, modules: Sequence[Module], dim: int, output: str = SENTENCE) -> tuple[nn.Sequential, int]:
    """Return the modules after the pooling of vectors (n, dim), and the dimension of their result.

    `output` is the name that the last module may give its result.

    Raises:
        ModelError: a module cannot be read, does not fit, or asks for what is not supported.
    """
    steps: list[nn.Module] = []
    for number, module in enumerate(modules):
        last = number == len(modules) - 1
        names = [module.config.get(key, SENTENCE) for key in ("module_input_name", "module_output_name")]
        if names[0] != SENTENCE or names[1] not in (None, SENTENCE, output if last else SENTENCE):
            raise ModelError(name, f"{module.kind} computes {names[1]} from {names[0]}", f"only {SENTENCE} is supported")
        if module.kind == "Normalize":
            steps.append(Unit())
        elif module.kind == "Dense":
            weights, config = _weights(name, module.folder), module.config
            taken = _fits(name, module, "in_features", weights.get("linear.weight"), 1, dim)
            dim = _fits(name, module, "out_features", weights.get("linear.weight"), 0, None)
            bias, adds = config.get("bias", True), config.get("use_residual", False)
            if not isinstance(bias, bool) or not isinstance(adds, bool):
                raise ModelError(name, f"{module.folder.name}/config.json: 'bias' and 'use_residual' must be true or false")
            linear = _filled(name, module, nn.Linear(taken, dim, bias=bias), weights, "linear.")
            residual: nn.Module | None = None
            if adds:
                same = taken == dim
                plain = nn.Linear(taken, dim, bias=False)
                residual = nn.Identity() if same else _filled(name, module, plain, weights, "residual.")
            steps.append(Projection(linear, activation_of(name, config.get("activation_function", "torch.nn.Tanh")), residual))
        elif module.kind == "LayerNorm":
            weights = _weights(name, module.folder)
            norm = nn.LayerNorm(_fits(name, module, "dimension", weights.get("norm.weight"), 0, dim))
            steps.append(_filled(name, module, norm, weights, "norm."))
        else:
            raise ModelError(name, f"modules.json names {module.kind} after Pooling", "it is not supported there")
    return nn.Sequential(*steps).requires_grad_(False).eval(), dim


def activation_of(name: str, word: object) -> nn.Module:
    """Return an activation of torch by its path, such as torch.nn.modules.activation.Tanh.

    Raises:
        ModelError: it is not supported.
    """
    short = str(word).rsplit(".", 1)[-1]
    if not isinstance(word, str) or not word.startswith("torch.nn.") or short not in ACTIVATIONS:
        raise ModelError(name, f"asks for the activation '{word}'", f"only {listed(ACTIVATIONS)} of torch.nn are supported")
    made: nn.Module = getattr(nn, short)()
    return made


def _fits(name: str, module: Module, key: str, weight: Tensor | None, axis: int, dim: int | None) -> int:
    """Return a dimension from config.json, after comparing it with the weights and with the module before."""
    size = module.config.get(key)
    held = weight.shape[axis] if weight is not None and weight.ndim > axis else None
    if not isinstance(size, int) or size != held or dim not in (None, size):
        what = f"{module.folder.name}/config.json: '{key}' is {size!r}, its weights have {held}"
        raise ModelError(name, what + ("" if dim is None else f", its input has {dim}"), "do the files belong to one model?")
    return size


def _filled(name: str, module: Module, made: Any, weights: dict[str, Tensor], prefix: str) -> Any:
    """Return a torch module with those of the weights whose names begin with the prefix."""
    mine = {key.removeprefix(prefix): value.float() for key, value in weights.items() if key.startswith(prefix)}
    try:
        made.load_state_dict(mine)
    except RuntimeError as error:
        raise ModelError(name, f"{module.folder.name}: its weights do not fit ({str(error).splitlines()[-1].strip()})") from None
    return made


def _weights(name: str, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a module. Of a pickled file only numbers are read, so nothing in it can run."""
    found = [path for path in (folder / "model.safetensors", folder / "pytorch_model.bin") if path.exists() or path.is_symlink()]
    if not found:
        raise ModelError(name, f"{folder.name} has no weights", "put its model.safetensors there")
    check_file(name, found[0])
    try:
        if found[0].suffix == ".safetensors":
            return dict(load_file(found[0]))
        with warnings.catch_warnings(action="ignore"):  # raised for odd pickles
            loaded: Any = torch.load(found[0], map_location="cpu", weights_only=True)
        if isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values()):
            return dict(loaded)
        raise ValueError("it contains more than weights")
    except Exception as error:  # a pickle may contain anything
        raise ModelError(name, f"{folder.name}/{found[0].name} cannot be read ({first_line(error)})") from None
