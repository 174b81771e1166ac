"""Write a model as a folder that sentence-transformers and transformers load, with the same vectors."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from curation.errors import ModelError
from curation.store import write_json
from training.folders import replaced
from training.model import Model, quiet
from training.sentence_folder import POOLINGS

# As sentence-transformers 6.2 writes them; its earlier names still load, but not without a warning for ever.
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"
# How it was loaded or last called, which is no part of a tokenizer; and a switch that would append a second end.
LOADING = ("is_local", "local_files_only", "max_length", "stride", "truncation_strategy", "add_eos_token")
SAMPLE = ("", "one", "A text that is cut: 1, 2, 3. " * 2000)
POOLING_WORDS = {ours: theirs for theirs, ours in POOLINGS.items()}


def export(model: Model, folder: Path) -> None:
    """Write the model as a sentence-transformers folder, whole or not at all; one that is there is replaced.

    Weights are written in the dtype they have; the prompts serve `encode(..., prompt_name=...)`.

    Raises:
        ModelError: the tokenizer cannot be made to append the end-of-text token.
    """
    with replaced(folder) as part:
        with quiet():
            model.backbone.save_pretrained(part)
            _save_tokenizer(model, part)
        _write_modules(model, part)


def _write_modules(model: Model, folder: Path) -> None:
    modules = [("", TRANSFORMER), ("1_Pooling", POOLING), ("2_Normalize", NORMALIZE)]
    listing = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    write_json(folder / "modules.json", listing)
    words = [POOLING_WORDS[one] for one in model.pooling.split("+")]
    size = int(model.backbone.config.hidden_size)
    mode = words[0] if len(words) == 1 else words
    _write(folder / "1_Pooling", {"embedding_dimension": size, "pooling_mode": mode, "include_prompt": True})
    _write(folder / "2_Normalize", {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"})
    reading = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "max_seq_length": model.max_tokens,
    }
    write_json(folder / "sentence_bert_config.json", reading)
    about = {
        "__version__": {"transformers": metadata.version("transformers"), "pytorch": metadata.version("torch")},
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": "", **model.prompts},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", about)


def _write(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir()
    write_json(folder / "config.json", config)


def _save_tokenizer(model: Model, folder: Path) -> None:
    """Save the tokenizer so that by itself it gives the ids that ours gives, cut ones and the end of a text included."""
    model.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    config = {key: value for key, value in config.items() if key not in LOADING}
    config["model_max_length"] = model.max_tokens
    if (folder / "tokenizer.json").exists():
        core = json.loads((folder / "tokenizer.json").read_bytes())
        core["truncation"] = core["padding"] = None  # of the last call
        if model.appends_eos:
            core["post_processor"] = _with_end(core["post_processor"], model.tokenizer.eos_token, model.tokenizer.eos_token_id)
            # Classes for one family make their own post-processor anew at each loading; this one takes the file's.
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(folder / "tokenizer.json", core)
    write_json(folder / "tokenizer_config.json", config)
    saved = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    wanted = model.tokenize(SAMPLE)
    for text, start, end in zip(SAMPLE, wanted.starts, wanted.starts[1:], strict=False):
        if saved(text, truncation=True)["input_ids"] != wanted.ids[start:end].tolist():
            raise ModelError(model.name, "its tokenizer, saved, gives other tokens than before", "has it a tokenizer.json?")


def _with_end(post_processor: dict[str, Any] | None, token: str, number: int) -> dict[str, Any]:
    """Return tokenizer.json's post-processor with the end-of-text token after all that it adds already.

    There must be one template in all: a second one takes what the first one added for the second text of a pair.
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
