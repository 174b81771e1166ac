"""Write a model as a folder that sentence-transformers and transformers load, with the same vectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch.nn import LayerNorm
from transformers import AutoTokenizer

from curation.core.errors import BuildError, ModelError
from curation.core.store import RECEIPT, read_receipt, sync_folder, temporary, versions, write_json, write_receipt
from training.model.model import Model, quiet
from training.model.pooling import LayerMix, Projection, Unit
from training.model.sentence_folder import POOLING_FLAGS, POOLING_NAMES

# How the tokenizer was loaded or last called, which is not part of it, and a switch that would append a second end token.
NOT_SAVED = ("is_local", "local_files_only", "max_length", "stride", "truncation_strategy", "add_eos_token")
ANOTHER_FOLDER = "name a folder that does not exist yet"
FAST = "PreTrainedTokenizerFast"
SAVED_CHECK = ("", "one", "A text that is cut: 1, 2, 3. " * 2000)  # texts that the saved tokenizer must cut as ours does


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` at the end; after an error nothing of it remains."""
    with temporary(folder) as part:
        part.mkdir()
        yield part
        mode = part.stat().st_mode & 0o666  # as the umask says; safetensors makes weights readable by their owner only
        for path in part.rglob("*"):
            if path.is_file():
                path.chmod(mode)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    sync_folder(folder.parent)


def refuse_other_files(folder: Path, run: Path | None = None) -> None:
    """Refuse to replace anything other than a model that `export` wrote, and the model of any run but `run`.

    Raises:
        BuildError: there is a file, or a folder that holds other files, or the model of a run.
    """
    if folder.exists() and not folder.is_dir():
        raise BuildError(folder, "is a file, and a model is a folder", ANOTHER_FOLDER)
    owner = folder.absolute().parent
    is_run = (owner / "checkpoints").is_dir() or (owner / "log.jsonl").is_file()
    if folder.name == "model" and is_run and owner != (run and run.absolute()):
        raise BuildError(folder, f"is where the run {folder.parent} keeps its model", ANOTHER_FOLDER)
    try:
        written = (read_receipt(folder) or {}).get("files", {})
    except BuildError:  # damaged, and replaced by a whole one
        written = {path.relative_to(folder).as_posix(): "" for path in folder.rglob("*")}
    known = {RECEIPT, *written} if "modules.json" in written else set()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in known:
            raise BuildError(folder, f"holds '{name}', which is not part of a model that `train` wrote", ANOTHER_FOLDER)


def export(model: Model, folder: Path) -> None:
    """Write the model as a sentence-transformers folder, completely or not at all; an existing folder is replaced.

    Weights are written in the dtype they have. The prompts are for `encode(..., prompt_name=...)`. What LoRA trained is merged
    into the model, which has no adapter afterwards, and written to `adapter/` as peft saves it.

    Raises:
        ModelError: the tokenizer cannot be made to append the end-of-text token.
    """
    with replaced(folder) as part:
        with quiet():
            if model.adapter is not None:
                adapter = part / "adapter"
                model.adapter.save_pretrained(adapter, save_embedding_layers=False)
                (adapter / "README.md").unlink()  # an empty model card
                config = json.loads((adapter / "adapter_config.json").read_bytes())
                sorted_targets = {"target_modules": sorted(config["target_modules"])}  # it was a set
                write_json(adapter / "adapter_config.json", config | sorted_targets)
                model.backbone, model.adapter = model.adapter.merge_and_unload(), None
            model.backbone.save_pretrained(part)
            _save_tokenizer(model, part)
        _write_modules(model, part)
        write_receipt(part, {"versions": versions()})


def _write_modules(model: Model, folder: Path) -> None:
    """Write the files that sentence-transformers adds to a transformers folder.

    The layout is that before version 5.4, which every version and every server reads: some servers look for
    `pooling_mode_mean_tokens`, and use the first token if they find the newer `pooling_mode` instead. A model that compares
    by cosine ends with Normalize.
    """
    steps, dot = list(model.head), model.similarity == "dot"
    if not dot and not (steps and isinstance(steps[-1], Unit)):
        steps.append(Unit())
    kinds = {Unit: "Normalize", Projection: "Dense", LayerNorm: "LayerNorm"}
    listing = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if steps and isinstance(mix := steps[0], LayerMix):
        path, layers, steps = "0_WeightedLayerPooling", int(model.backbone.config.num_hidden_layers), steps[1:]
        listing.insert(1, (path, "WeightedLayerPooling"))
        (folder / path).mkdir()
        count = {"layer_start": layers + 1 - len(mix.layer_weights), "num_hidden_layers": layers}
        write_json(folder / path / "config.json", {"word_embedding_dimension": int(model.backbone.config.hidden_size), **count})
        save_file({"layer_weights": mix.layer_weights.detach().cpu().contiguous()}, folder / path / "model.safetensors")
    for place, step in enumerate(steps, 2):
        kind = kinds[type(step)]
        listing.append((f"{place}_{kind}", kind))
        if isinstance(step, Unit):
            continue
        (folder / f"{place}_{kind}").mkdir()
        weights = {name: weight.detach().cpu().contiguous() for name, weight in step.named_parameters()}
        if isinstance(step, Projection):
            linear = step.linear
            config: dict[str, Any] = {
                "in_features": linear.in_features,
                "out_features": linear.out_features,
                "bias": linear.bias is not None,
                "activation_function": f"torch.nn.{type(step.activation).__name__}",
                **({"use_residual": True} if step.residual is not None else {}),
            }
        else:
            config = {"dimension": int(step.weight.numel())}  # type: ignore[operator]
            weights = {f"norm.{name}": weight for name, weight in weights.items()}
        write_json(folder / f"{place}_{kind}" / "config.json", config)
        save_file(weights, folder / f"{place}_{kind}" / "model.safetensors")
    entries = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(listing)
    ]
    write_json(folder / "modules.json", entries)
    theirs = {ours: name for name, ours in POOLING_NAMES.items()}
    words = [theirs[one] for one in model.pooling.split("+")]
    pooling: dict[str, Any] = {key: word in words for key, word in POOLING_FLAGS.items()}
    if words != [word for word in POOLING_FLAGS.values() if word in words]:  # an order that only the new layout can express
        pooling = {"pooling_mode": words}
    (folder / "1_Pooling").mkdir()
    size = int(model.backbone.config.hidden_size)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": size, **pooling, "include_prompt": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": model.max_tokens, "do_lower_case": False})
    about = {
        "__version__": {"transformers": metadata.version("transformers"), "pytorch": metadata.version("torch")},
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": "", **model.prompts},
        "default_prompt_name": None,
        "similarity_fn_name": "dot" if dot else "cosine",
        **({"trained_prompt": model.trained_prompt} if model.trained_prompt else {}),
    }
    write_json(folder / "config_sentence_transformers.json", about)


def _save_tokenizer(model: Model, folder: Path) -> None:
    """Save the tokenizer so that, loaded by anyone, it gives the same tokens as ours: truncation and end token included."""
    model.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    config = {key: value for key, value in config.items() if key not in NOT_SAVED}
    config["model_max_length"] = model.max_tokens
    if (folder / "tokenizer.json").exists():
        core = json.loads((folder / "tokenizer.json").read_bytes())
        core["truncation"] = core["padding"] = None  # the state of the last call
        if model.appends_eos:
            core["post_processor"] = _with_end(core["post_processor"], model.tokenizer.eos_token, model.tokenizer.eos_token_id)
            # Tokenizer classes of a model family create their own post-processor when loaded; this class uses the file's.
            config["tokenizer_class"] = FAST
        if config.get("tokenizer_class") == "TokenizersBackend":  # the name in transformers 5, which version 4 does not know
            config["tokenizer_class"] = FAST
        write_json(folder / "tokenizer.json", core)
    write_json(folder / "tokenizer_config.json", config)
    saved = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    wanted = model.tokenize(SAVED_CHECK)
    for text, start, end in zip(SAVED_CHECK, wanted.starts, wanted.starts[1:], strict=False):
        found = saved(text, truncation=True)["input_ids"]
        if found and found != wanted.ids[start:end].tolist():  # a text without tokens has a substitute in ours
            raise ModelError(model.name, "its saved tokenizer gives other tokens than before", "does it have a tokenizer.json?")


def _with_end(post_processor: dict[str, Any] | None, token: str, number: int) -> dict[str, Any]:
    """Return tokenizer.json's post-processor with the end-of-text token after everything that it adds already.

    There must be only one template: a second one would treat the tokens of the first as the second text of a pair.
    """
    steps = [] if post_processor is None else post_processor.get("processors", [post_processor])
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        first, second = ({"Sequence": {"id": text, "type_id": kind}} for kind, text in enumerate("AB"))
        template = {"type": "TemplateProcessing", "single": [first], "pair": [first, second], "special_tokens": {}}
        steps = [*steps, template]
    end, second_end = ({"SpecialToken": {"id": token, "type_id": kind}} for kind in (0, 1))
    after_first = 1 + next(place for place, piece in enumerate(template["pair"]) if piece.get("Sequence", {}).get("id") == "A")
    template["single"] = [*template["single"], end]
    template["pair"] = [*template["pair"][:after_first], end, *template["pair"][after_first:], second_end]
    template["special_tokens"][token] = {"id": token, "ids": [number], "tokens": [token]}
    return {"type": "Sequence", "processors": steps}
