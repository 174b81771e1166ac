"""Write a model as a folder that sentence-transformers and transformers load, with the same vectors."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from curation.core.errors import ModelError
from curation.core.store import versions, write_json, write_receipt
from training.model.folders import replaced
from training.model.model import Model, quiet
from training.model.sentence_folder import OLD_POOLINGS, POOLINGS

# The layout of sentence-transformers before 5.4, which every version and every server reads. Some servers look for
# `pooling_mode_mean_tokens`, and take the first token where they find the newer `pooling_mode`.
MODULES = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
# How it was loaded or last called, which is no part of a tokenizer; and a switch that would append a second end.
LOADING = ("is_local", "local_files_only", "max_length", "stride", "truncation_strategy", "add_eos_token")
FAST = "PreTrainedTokenizerFast"
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
        write_receipt(part, {"versions": versions()})


def _write_modules(model: Model, folder: Path) -> None:
    listing = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(MODULES)
    ]
    write_json(folder / "modules.json", listing)
    words = [POOLING_WORDS[one] for one in model.pooling.split("+")]
    pooling: dict[str, Any] = {key: word in words for key, word in OLD_POOLINGS.items()}
    if words != [word for word in OLD_POOLINGS.values() if word in words]:  # another order, which only the new layout can say
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
        "similarity_fn_name": "cosine",
        **({"trained_prompt": model.trained_prompt} if model.trained_prompt else {}),
    }
    write_json(folder / "config_sentence_transformers.json", about)


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
            config["tokenizer_class"] = FAST
        if config.get("tokenizer_class") == "TokenizersBackend":  # its name in transformers 5, which version 4 does not know
            config["tokenizer_class"] = FAST
        write_json(folder / "tokenizer.json", core)
    write_json(folder / "tokenizer_config.json", config)
    saved = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    wanted = model.tokenize(SAMPLE)
    for text, start, end in zip(SAMPLE, wanted.starts, wanted.starts[1:], strict=False):
        found = saved(text, truncation=True)["input_ids"]
        if found and found != wanted.ids[start:end].tolist():  # for a text of no token, another one stands in
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
