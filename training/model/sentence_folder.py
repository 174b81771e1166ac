"""Read the settings of a sentence-transformers folder as sentence-transformers 6 does; refuse what is not supported, by name.

modules.json                       the modules in order, and the folder of each
config_sentence_transformers.json  kind of model, prompts, similarity, dimensions kept, activation
sentence_bert_config.json          how the transformer reads texts; old folders use one of six other names
1_Pooling/config.json, ...         a folder with config.json, and weights, for each further module
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.core.errors import ModelError, listed

MODULES, ABOUT = "modules.json", "config_sentence_transformers.json"
SETTINGS_FILES = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
LARGEST = 1 << 26  # bytes; a larger JSON file is refused
SUPPORTED = ("Transformer", "WeightedLayerPooling", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "LogitScore")
POOLING_NAMES = {  # sentence-transformers' word: ours
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
POOLING_FLAGS = {  # in the order in which their vectors are concatenated
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Arguments of `from_pretrained` that change no vector: where the files are, and how fast the same numbers are computed.
WHERE = {"subfolder", "token", "cache_dir", "revision", "local_files_only", "trust_remote_code", "code_revision"}
HARMLESS = {
    "model": {"dtype", "torch_dtype", "attn_implementation", "device_map", "low_cpu_mem_usage", "add_pooling_layer", "use_cache"},
    "tokenizer": {"use_fast", "clean_up_tokenization_spaces"},
    "config": {"use_cache", "attn_implementation", "dtype", "torch_dtype"},
}
TOKENIZER_ARGUMENTS = {"padding_side", "truncation_side", "do_lower_case", "add_eos_token", "add_bos_token", "add_prefix_space"}
CHECKED_OR_HARMLESS = {
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}  # settings that are checked below, or change nothing


@dataclass(frozen=True)
class Module:
    """One module after the transformer: its class, its folder and its config.json."""

    kind: str
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Sentence:
    """The settings of a sentence-transformers folder."""

    transformer: Path
    kind: str = "SentenceTransformer"  # or CrossEncoder
    modules: tuple[Module, ...] = ()
    task: str = "feature-extraction"
    pooling: str | None = None  # our name; several joined by "+" are concatenated
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    trained_prompt: str | None = None  # of a model that `train` wrote: how its queries were rendered, as `prompts.Prompts.used`
    prompt_pooled: bool = True  # False: tokens of the prompt are left out of the pooling
    similarity: str = "cosine"
    truncate: int | None = None  # leading dimensions that are kept
    activation: str | None = None  # of a cross-encoder
    chat: str = ""  # flat or structured: pairs go through the tokenizer's chat template
    chat_arguments: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_arguments: Mapping[str, Any] = field(default_factory=dict)
    config_arguments: Mapping[str, Any] = field(default_factory=dict)


def read_sentence_folder(name: str, folder: Path) -> Sentence | None:
    """Return the settings of a folder, or None if it has no modules.json.

    Raises:
        ModelError: a file is damaged, a value has the wrong type, or a setting is not supported.
    """
    listing = read_json(name, folder / MODULES)
    if listing is None:
        return None
    if not isinstance(listing, list):
        raise ModelError(name, f"{MODULES} is not a list of modules")
    modules = [_module(name, folder, number, entry) for number, entry in enumerate(listing)]
    about = _Values(name, folder / ABOUT)
    kind = about.text("model_type") or "SentenceTransformer"
    if about.all.get("model_type", kind) is None:  # sentence-transformers would then ignore all modules but the transformer
        raise ModelError(name, f"{ABOUT}: 'model_type' is null", "remove it, or set it to SentenceTransformer")
    if not modules or modules[0].kind != "Transformer":
        raise ModelError(name, f"{MODULES} does not begin with a Transformer", f"it names {listed(m.kind for m in modules)}")
    if [module.kind for module in modules].count("Transformer") > 1:
        raise ModelError(name, f"{MODULES} names several Transformers", "only one is supported")
    settings = _transformer_settings(name, modules[0].folder) | _model_settings(name, about)
    further = tuple(module for module in modules[1:] if module.kind != "Dropout")
    first = next((module for module in further if module.kind != "WeightedLayerPooling"), None)
    if first and first.kind == "Pooling":
        settings |= _pooling(_Values(name, first.folder / "config.json"))
    return Sentence(transformer=modules[0].folder, kind=kind, modules=further, **settings)


def _module(name: str, folder: Path, number: int, entry: Any) -> Module:
    """Return an entry of modules.json. Classes other than sentence-transformers' own are refused, so no foreign code runs."""
    kind, path = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(path, str):
        raise ModelError(name, f"{MODULES}: module {number} needs 'type' and 'path', both text")
    if not kind.startswith("sentence_transformers."):
        raise ModelError(name, f"{MODULES} names {kind}, code of its own, which is never run", "name a model without custom code")
    word = kind.rsplit(".", 1)[-1]
    if word not in SUPPORTED:
        raise ModelError(name, f"{MODULES} names {word}", f"only {listed(SUPPORTED)} are supported")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ModelError(name, f"{MODULES}: the path '{path}' leaves the folder")
    if entry.get("kwargs"):
        raise ModelError(name, f"{MODULES}: {word} has 'kwargs'", "they are not supported")
    # transformers itself reads the config.json of the transformer.
    config = {} if word == "Transformer" else _Values(name, folder / path / "config.json").all
    return Module(word, folder / path, config)


def _model_settings(name: str, about: _Values) -> dict[str, Any]:
    """Return the settings in config_sentence_transformers.json."""
    prompts = about.mapping("prompts")
    if wrong := [key for key, text in prompts.items() if not isinstance(text, str | None)]:
        raise ModelError(name, f"{ABOUT}: the prompt '{wrong[0]}' is not text")
    similarity, truncate = about.text("similarity_fn_name") or "cosine", about.whole("truncate_dim")
    if similarity not in SIMILARITIES:
        raise ModelError(name, f"{ABOUT}: similarity_fn_name is '{similarity}'", f"use one of {listed(SIMILARITIES)}")
    default = about.text("default_prompt_name")
    if default is not None and default not in {"query", "document", *prompts}:
        raise ModelError(name, f"{ABOUT}: default_prompt_name '{default}' is not among its prompts", f"it has {listed(prompts)}")
    return {
        "prompts": {key: text or "" for key, text in prompts.items()},
        "default_prompt": default,
        "trained_prompt": about.text("trained_prompt"),
        "similarity": similarity,
        "truncate": truncate,
        "activation": about.text("activation_fn"),
    }


def _transformer_settings(name: str, folder: Path) -> dict[str, Any]:
    """Return how the transformer reads texts, from the first settings file that is not empty."""
    values = next((one for one in (_Values(name, folder / file) for file in SETTINGS_FILES) if one.all), None)
    if values is None:
        return {}
    here, name = values.path.name, values.name
    unsupported = ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path")
    refused = [key for key in values.all if key not in SETTINGS_KEYS or (key in unsupported and values.all[key])]
    if refused:
        raise ModelError(name, f"{here} sets '{refused[0]}'", "it is not supported")
    arguments = {kind: _arguments(values, kind, old, new) for kind, old, new in ARGUMENTS}
    task = values.text("transformer_task") or "feature-extraction"
    least, chat_arguments = _processing(values)
    given = arguments["tokenizer"].pop("model_max_length", values.whole("max_seq_length"))  # the first takes precedence
    if given is not None and not _is_whole(given):
        raise ModelError(name, f"{here}: model_max_length is {given!r}, not a whole number above 0")
    return {
        "task": task,
        "max_tokens": min((limit for limit in (least, given) if limit is not None), default=None),
        "lower_case": values.yes("do_lower_case", False),
        "chat": _chat(values, "last_hidden_state" if task == "feature-extraction" else "logits"),
        "chat_arguments": chat_arguments,
        "tokenizer_arguments": arguments["tokenizer"],
        "config_arguments": arguments["config"],
    }


def _chat(values: _Values, output: str) -> str:
    """Return how texts go into the chat template (flat or structured), or "" if the model does not read messages."""
    name, here, modalities = values.name, values.path.name, values.mapping("modality_config")
    if "modality_config" in values.all and not {"text", "message"} & set(modalities):
        raise ModelError(name, f"{here}: it reads {listed(modalities) or 'nothing'}", "only models of text are supported")
    for kind, entry in modalities.items():
        method = (entry.get("method"), entry.get("method_output_name")) if isinstance(entry, dict) else ()
        if kind in ("text", "message") and method != ("forward", output):
            raise ModelError(name, f"{here}: '{kind}' is not read by forward, to {output}", "nothing else is supported")
    if output == "last_hidden_state" and values.all.get("module_output_name") not in (None, "token_embeddings"):
        raise ModelError(name, f"{here}: module_output_name is not token_embeddings", "nothing else is supported")
    if "message" not in modalities:
        return ""
    form = modalities["message"].get("format", "auto")
    if form not in ("flat", "structured"):
        raise ModelError(name, f"{here}: the format of 'message' is {_short(form)}", "only flat and structured are supported")
    return str(form)


def _processing(values: _Values) -> tuple[int | None, dict[str, Any]]:
    """Return from `processing_kwargs` the maximum number of tokens and the arguments of the chat template."""
    given = {key: _dict(values.name, values.where, value) for key, value in values.mapping("processing_kwargs").items()}
    text, chat = {**given.get("text", {}), **given.get("common", {})}, given.get("chat_template", {})
    most = text.pop("max_length", None)
    usual = text.pop("padding", True) is True and text.pop("truncation", True) in (True, "longest_first")
    plain = all(isinstance(value, bool | str) and key not in SIZES for key, value in chat.items())
    if text or not usual or not plain or not (most is None or _is_whole(most)):
        raise ModelError(values.name, f"{values.where}: processing_kwargs is {_short(given)}", "it is not supported")
    return most, chat


SIZES = ("padding", "truncation", "max_length", "return_tensors")
ARGUMENTS = (
    ("model", "model_args", "model_kwargs"),
    ("tokenizer", "tokenizer_args", "processor_kwargs"),
    ("config", "config_args", "config_kwargs"),
)
SETTINGS_KEYS = {
    *(key for _, *both in ARGUMENTS for key in both),
    *("max_seq_length", "do_lower_case", "transformer_task", "processing_kwargs", *CHECKED_OR_HARMLESS),
    *("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"),
}


def _arguments(values: _Values, kind: str, old: str, new: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that change vectors; refuse those that are not supported."""
    given = values.mapping(old if old in values.all else new)
    left = {key: value for key, value in given.items() if key not in WHERE | HARMLESS[kind]}
    passed = {"tokenizer": TOKENIZER_ARGUMENTS | {"model_max_length"}, "config": set(left), "model": set()}[kind]
    for key, value in left.items():
        if key not in passed or not isinstance(value, bool | int | (str if kind == "tokenizer" else float)):
            raise ModelError(values.name, f"{values.path.name} sets '{key}' of the {kind} to {value!r}", "it is not supported")
    return left


def _pooling(values: _Values) -> dict[str, Any]:
    """Return our names for the pooling, from the old or the new form of its config.json."""
    dimension = values.whole("embedding_dimension") or values.whole("word_embedding_dimension")
    if dimension is None:
        raise ModelError(values.name, f"{values.where} does not give its embedding_dimension", "is the folder complete?")
    old = [word for key, word in POOLING_FLAGS.items() if values.yes(key, False)]
    mode = values.all.get("pooling_mode", old or "mean")
    modes = [mode] if isinstance(mode, str) else mode
    if not isinstance(modes, list) or not modes or not all(isinstance(one, str) and one in POOLING_NAMES for one in modes):
        raise ModelError(values.name, f"{values.where}: pools by {mode!r}", f"only {listed(POOLING_NAMES)} are supported")
    return {"pooling": "+".join(POOLING_NAMES[one] for one in modes), "prompt_pooled": values.yes("include_prompt", True)}


class _Values:
    """The values of a JSON object in a file, with type checks; a missing file counts as an empty object."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.where = path.name if path.name in (ABOUT, *SETTINGS_FILES) else f"{path.parent.name}/{path.name}"
        self.all: dict[str, Any] = _dict(name, self.where, read_json(name, path) or {})

    def text(self, key: str) -> str | None:
        return self._typed(key, self.all.get(key), isinstance(self.all.get(key), str | None), "text")  # type: ignore[no-any-return]

    def whole(self, key: str) -> int | None:
        value = self.all.get(key)
        return self._typed(key, value, value is None or _is_whole(value), "a whole number above 0")  # type: ignore[no-any-return]

    def yes(self, key: str, default: bool) -> bool:
        value = self.all.get(key, default)
        return self._typed(key, value, isinstance(value, bool), "true or false")  # type: ignore[no-any-return]

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.all.get(key)
        return dict(self._typed(key, value, isinstance(value, dict | None), "an object") or {})

    def _typed(self, key: str, value: Any, right: bool, wanted: str) -> Any:
        if not right:
            raise ModelError(self.name, f"{self.where}: '{key}' is {_short(value)}, not {wanted}")
        return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _dict(name: str, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(name, f"{where} has {_short(value)} where an object is expected")
    return value


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def read_json(name: str, path: Path) -> Any:
    """Return the content of a JSON file, or None if it does not exist.

    Raises:
        ModelError: it is not a regular file, too large, or not JSON.
    """
    if not path.exists() and not path.is_symlink():
        return None
    check_file(name, path, LARGEST)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(name, f"{path.name} is not readable as JSON ({error})") from None


def check_file(name: str, path: Path, largest: int | None = None) -> None:
    """Check that a path is a regular file (not a device, a queue or a broken link) and not too large.

    Raises:
        ModelError: it is not a regular file, or larger than `largest` bytes.
    """
    if not path.is_file():
        raise ModelError(name, f"{path.name} is not a file that can be read", "is it a broken link?")
    if largest is not None and path.stat().st_size > largest:
        raise ModelError(name, f"{path.name} has {path.stat().st_size:,} bytes", f"at most {largest:,} are read")
