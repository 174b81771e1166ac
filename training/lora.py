"""LoRA (arXiv 2106.09685) through peft: small matrices next to the linear layers are trained, the model's own weights are not."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curation.core.errors import ModelError, SetupError, listed
from curation.recipe.settings import Lora
from training.backend import trained_weights
from training.model.model import Model
from training.publish import public_name


def import_peft() -> Any:
    """Return the module peft.

    Raises:
        SetupError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise SetupError("peft", f"cannot be used ({error})", "pip install 'tuplesmith[lora]'") from None
    return peft


def lora_targets(model: Model, settings: Lora) -> list[str]:
    """Return the names of the linear layers that get LoRA's matrices: all of the transformer's, or those that the recipe names.

    Raises:
        ModelError: a target of the recipe names none of them.
    """
    linear = [
        name
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad  # not those of an unused pooler
    ]
    if not linear:
        raise ModelError(model.name, "has no linear layers, which LoRA needs", "remove `lora`")
    if settings.targets == "auto":
        return linear
    found = {target: {name for name in linear if f".{name}".endswith(f".{target}")} for target in settings.targets}
    if missing := [target for target, names in found.items() if not names]:
        kinds = dict.fromkeys(name.rpartition(".")[2] for name in linear)
        what = f"no linear layer is named '{missing[0]}' (`lora: targets`)"
        raise ModelError(model.name, what, f"it has {listed(kinds, 20)}")
    return [name for name in linear if any(name in names for names in found.values())]


def add_lora(model: Model, settings: Lora, seed: int = 0) -> None:
    """Put LoRA's matrices into a model, in place, and let nothing else of the transformer be trained.

    Vectors stay as they are at first: one matrix of each pair is 0, the other is drawn from the seed.
    """
    peft = import_peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=lora_targets(model, settings),
        base_model_name_or_path=public_name(model.name),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers 5 deprecates
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sets it right for GPT-2's kind of linear layer
        torch.manual_seed(seed)
        model.adapter = peft.PeftModel(model.backbone, config)


def whole_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights that training has changed, by name; with LoRA those of the layers, its matrices added."""
    if model.adapter is None:
        return trained_weights(model)
    return {
        **{f"after_pooling.{name}": weight for name, weight in model.head.named_parameters()},
        **{
            f"{name}.weight": module.base_layer.weight + module.get_delta_weight("default")
            for name, module in model.backbone.named_modules()
            if hasattr(module, "get_delta_weight")
        },
    }
