"""The weights of a model that is trained: which they are, what optimizes them, and how checkpoints hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from curation.core.errors import BuildError, ModelError
from curation.recipe.settings import Train
from training.model.model import Model

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"  # NAME, and NAME|KEY of what AdamW keeps


def prepared(model: Model, recipe: Train) -> tuple[dict[str, Tensor], torch.optim.AdamW]:
    """Make a model ready to train: float32, without dropout; return the trained weights by name, and their optimizer."""
    model.backbone.float().eval()
    if recipe.checkpointing:
        checkpoint_activations(model)
    weights = trained(model)
    decays = zip(decayed(model.backbone), (recipe.weight_decay, 0.0), strict=True)
    groups = [{"params": [weights[name] for name in names], "weight_decay": decay} for names, decay in decays]
    return weights, torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def trained(model: Model) -> dict[str, Tensor]:
    """Return the weights that are trained, by name; an unused pooler is not."""
    return {name: weight for name, weight in model.backbone.named_parameters() if weight.requires_grad}


def decayed(backbone: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the trained weights that decay, and of those that do not.

    Matrices do. Norms, biases and embeddings do not: a shorter embedding row is not a simpler model, and rows of rare
    tokens would shrink without ever being trained.
    """
    embeddings = {id(module.weight) for module in backbone.modules() if isinstance(module, nn.Embedding)}
    names: tuple[list[str], list[str]] = ([], [])
    for name, weight in backbone.named_parameters():
        if weight.requires_grad:
            names[weight.ndim < 2 or id(weight) in embeddings].append(name)
    return names


def checkpoint_activations(model: Model) -> None:
    """Let the layers keep only their inputs for the backward, which computes them a second time.

    Raises:
        ModelError: the architecture's layers cannot.
    """
    layers = [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            model.name, "its layers cannot be computed again", "set `checkpointing: no`, and perhaps a `token_budget`"
        )
    model.backbone.activation_checkpointing_enable()
    for layer in layers:
        layer.training = True  # which they ask for; what is in them, dropout too, stays in evaluation mode


def load_weights(model: Model, folder: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        BuildError: they are the weights of another model.
    """
    found = load_file(folder / WEIGHTS)
    weights = trained(model)
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in weights.items()}:
        raise BuildError(folder, f"holds the weights of another model than {model.name}", "start anew with `--restart`")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name])


def copied(value: Tensor) -> Tensor:
    """Return a copy for a file to hold."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
