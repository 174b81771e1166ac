"""Model folders of many kinds, and what becomes of each: docs/models.md lists them, tests/training/model/test_vectors.py checks them.

A case is what is done to a tiny folder that sentence-transformers made, and None where its vectors (or scores) are then
those of sentence-transformers, or else what the one line says that refuses it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]

# Decoders with and without an end token in the tokenizer; both are encoded as sentence-transformers does.
FAMILIES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi", "phi3", "olmo2"),
    *("granite", "starcoder2", "smollm3", "gpt_neox", "gpt2", "opt", "cohere", "exaone4"),
    *("gemma2", "stablelm", "bloom", "falcon"),
)


# How the texts of a batch share a forward, by family; tests/training/model/test_families.py checks each.
MODEL_FAMILIES = {
    "bert": "packed",
    "roberta": "packed",
    "xlm-roberta": "packed",
    "camembert": "packed",
    "distilbert": "packed",
    "electra": "packed",
    "albert": "packed",
    "ernie": "packed",
    "modernbert": "packed",
    "mpnet": "padded",
    "deberta": "padded",
    "deberta-v2": "padded",
    "t5": "padded",
    "mt5": "padded",
    "umt5": "padded",
    "xlnet": "padded",
    "convbert": "equal lengths",
    "luke": "padded",
    "mobilebert": "padded",
    "longformer": "padded",
    "xlm": "padded",
    "roformer": "padded",
    "squeezebert": "padded",
    "rembert": "padded",
    "mra": "padded",
    "qwen2": "packed",
    "qwen3": "packed",
    "llama": "packed",
    "mistral": "packed",
    "gemma": "packed",
    "gemma2": "padded",
    "gemma3_text": "packed",
    "phi3": "packed",
    "olmo2": "packed",
    "gpt2": "packed",
    "gpt_neox": "packed",
    "opt": "packed",
    "stablelm": "padded",
    "nemotron": "padded",
    "bloom": "padded",
    "falcon": "padded",
    "lfm2": "padded",
}


def edit(path: Path, **changes: Any) -> None:
    """Change values of a JSON object in a file, which may not be there yet; None takes a key out."""
    found = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in {**found, **changes}.items() if value is not None}
    path.write_text(json.dumps(kept))


def about(**changes: Any) -> Change:
    """Return the change of config_sentence_transformers.json."""
    return lambda folder: edit(folder / "config_sentence_transformers.json", **changes)


def settings(**changes: Any) -> Change:
    """Return the change of sentence_bert_config.json."""
    return lambda folder: edit(folder / "sentence_bert_config.json", **changes)


def pooling(**changes: Any) -> Change:
    """Return the change of 1_Pooling/config.json."""
    return lambda folder: edit(folder / "1_Pooling" / "config.json", **changes)


def modules(*kinds: str) -> Change:
    """Return the change of modules.json: further modules, each with its path and its whole class or its old short name."""

    def change(folder: Path) -> None:
        listing = json.loads((folder / "modules.json").read_text())
        for kind in kinds:
            path = "" if "Transformer" in kind else f"{len(listing)}_{kind.rsplit('.', 1)[-1]}"
            name = kind if "." in kind else f"sentence_transformers.models.{kind}"
            if "Transformer" in kind:
                listing[0]["type"] = name
            else:
                listing.append({"idx": len(listing), "name": str(len(listing)), "path": path, "type": name})
                (folder / path).mkdir(exist_ok=True)
        (folder / "modules.json").write_text(json.dumps(listing))

    return change


def dense(pickled: bool = False, place: int = 2, **config: Any) -> Change:
    """Return the change: a Dense of 32 to 24 dimensions follows, with random weights."""

    def change(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        modules("Dense")(folder)
        draw = torch.Generator().manual_seed(3)
        given = config.get("out_features", 24)
        weights = {"linear.weight": torch.randn(given, 32, generator=draw), "linear.bias": torch.randn(given, generator=draw)}
        if config.get("use_residual") and given != 32:
            weights["residual.weight"] = torch.randn(given, 32, generator=draw)
        if pickled:
            torch.save(weights, folder / f"{place}_Dense" / "pytorch_model.bin")
        else:
            save_file(weights, folder / f"{place}_Dense" / "model.safetensors")
        about_it = {
            "in_features": 32,
            "out_features": given,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        (folder / f"{place}_Dense" / "config.json").write_text(json.dumps(about_it | config))

    return change


def layer_norm(folder: Path) -> None:
    """Let a LayerNorm follow."""
    import torch
    from safetensors.torch import save_file

    modules("LayerNorm")(folder)
    draw = torch.Generator().manual_seed(4)
    weights = {f"norm.{name}": torch.randn(32, generator=draw) for name in ("weight", "bias")}
    save_file(weights, folder / "2_LayerNorm" / "model.safetensors")
    (folder / "2_LayerNorm" / "config.json").write_text('{"dimension": 32}')


def layer_pooling(folder: Path, start: int = 1) -> None:
    """Let a WeightedLayerPooling of random weights come before the pooling, and the transformer give it its layers."""
    import torch
    from safetensors.torch import save_file

    edit(folder / "config.json", output_hidden_states=True)
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    listing = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.WeightedLayerPooling"
    listing.insert(1, {"idx": 1, "name": "mix", "path": "9_WeightedLayerPooling", "type": kind})
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "9_WeightedLayerPooling").mkdir()
    weights = torch.rand(layers + 1 - start, generator=torch.Generator().manual_seed(5))
    save_file({"layer_weights": weights}, folder / "9_WeightedLayerPooling" / "model.safetensors")
    config = {"embedding_dimension": 32, "layer_start": start, "num_hidden_layers": layers}
    (folder / "9_WeightedLayerPooling" / "config.json").write_text(json.dumps(config))


def old_names(name: str) -> Change:
    """Return the change to the form of 2019: the transformer in a folder, another name for its settings, a flag for each pooling."""

    def change(folder: Path) -> None:
        inner = folder / "0_Transformer"
        inner.mkdir()
        for path in list(folder.iterdir()):
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
                shutil.move(path, inner / path.name)
        (inner / "sentence_bert_config.json").unlink()
        (inner / name).write_text('{"max_seq_length": 9, "do_lower_case": true}')
        kinds = ("mean_tokens", "cls_token", "max_tokens", "mean_sqrt_len_tokens")
        modes = {f"pooling_mode_{kind}": kind == "cls_token" for kind in kinds}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
        listing = [
            {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        (folder / "modules.json").write_text(json.dumps(listing))
        (folder / "config_sentence_transformers.json").unlink()

    return change


def cased(folder: Path) -> None:
    """Take the lower-casing out of the tokenizer and ask for it in the settings."""
    core = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(core | {"normalizer": None}))
    settings(do_lower_case=True)(folder)


def pickled(folder: Path) -> None:
    """Keep the weights as PyTorch pickles them."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_specials(folder: Path) -> None:
    """Let the tokenizer add nothing, so that an empty text has no token."""
    core = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(core | {"post_processor": None}))


def all_of(*changes: Change) -> Change:
    """Return all changes, one after the other."""

    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


MESSAGE = {"method": "forward", "method_output_name": "last_hidden_state"}
VARIANTS: dict[str, tuple[Change, str | None]] = {
    "as sentence-transformers 6 saves it": (all_of(), None),
    "of 2019: 0_Transformer, flags of poolings, `sentence_distilbert_config.json`": (
        old_names("sentence_distilbert_config.json"),
        None,
    ),
    "of 2019, `sentence_xlm-roberta_config.json`": (old_names("sentence_xlm-roberta_config.json"), None),
    "`max_seq_length`": (settings(max_seq_length=7), None),
    "`do_lower_case` with a tokenizer that keeps case": (cased, None),
    "pooling cls": (pooling(pooling_mode="cls"), None),
    "pooling max": (pooling(pooling_mode="max"), None),
    "pooling lasttoken of an encoder": (pooling(pooling_mode="lasttoken"), None),
    "pooling weightedmean": (pooling(pooling_mode="weightedmean"), None),
    "poolings mean_sqrt_len_tokens, cls and mean, one after the other": (
        pooling(pooling_mode=["mean_sqrt_len_tokens", "cls", "mean"]),
        None,
    ),
    "old flags of two poolings": (
        pooling(pooling_mode=None, pooling_mode_max_tokens=True, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
        None,
    ),
    "Normalize": (modules("Normalize"), None),
    "no Normalize, `similarity_fn_name: dot`": (about(similarity_fn_name="dot"), None),
    "Dense, then Normalize": (all_of(dense(), modules("Normalize")), None),
    "Dense with pickled weights": (dense(pickled=True), None),
    "Dense with a residual": (dense(use_residual=True, activation_function="torch.nn.modules.linear.Identity"), None),
    "WeightedLayerPooling": (layer_pooling, None),
    "LayerNorm, Dropout": (all_of(layer_norm, modules("Dropout")), None),
    "`truncate_dim`": (about(truncate_dim=12), None),
    "prompts query and document": (about(prompts={"query": "query: ", "document": "passage: "}), None),
    "prompts query and passage": (about(prompts={"query": "query: ", "passage": "passage: "}), None),
    "prompts search_query and search_document": (about(prompts={"search_query": "find: ", "search_document": "text: "}), None),
    "`default_prompt_name`": (about(prompts={"s2s": "one: "}, default_prompt_name="s2s"), None),
    "`include_prompt: false` without prompts": (pooling(include_prompt=False), None),
    "arguments of the tokenizer": (settings(tokenizer_args={"model_max_length": 8, "truncation_side": "left"}), None),
    "arguments of model and config that change nothing": (
        settings(model_args={"torch_dtype": "float32"}, config_args={"use_cache": False, "layer_norm_eps": 0.1}),
        None,
    ),
    "pickled weights": (pickled, None),
    "a tokenizer without special tokens": (no_specials, None),
    "`include_prompt: false` with prompts": (
        all_of(pooling(include_prompt=False), about(prompts={"query": "query: "})),
        "leaves the prompt out of the pooling",
    ),
    "code of its own (`custom_st.Transformer`)": (modules("custom_st.Transformer"), "code of its own, which is never run"),
    "Router": (modules("Router"), "modules.json names Router"),
    "WeightedLayerPooling of another number of layers": (
        all_of(layer_pooling, lambda folder: edit(folder / "9_WeightedLayerPooling" / "config.json", layer_start=2)),
        "9_WeightedLayerPooling has weights",
    ),
    "a chat template": (
        settings(
            modality_config={"text": MESSAGE, "message": MESSAGE | {"format": "flat"}}, module_output_name="token_embeddings"
        ),
        "puts texts into a chat template",
    ),
    "`query_length`": (settings(query_length=8), "sets 'query_length'"),
    "arguments of the model that change it": (settings(model_args={"ignore_mismatched_sizes": True}), "ignore_mismatched_sizes"),
    "a SparseEncoder": (about(model_type="SparseEncoder"), "is a SparseEncoder, which gives no vectors"),
    "an adapter": (lambda folder: edit(folder / "adapter_config.json", r=8), "is an adapter"),
    "no Pooling": (lambda folder: keep_first(folder), "does not have Pooling"),
}


def keep_first(folder: Path) -> None:
    """Leave the first module alone."""
    listing = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(listing[:1]))


RERANKERS: dict[str, str | None] = {
    "one logit, sigmoid": None,
    "one logit, `activation_fn=Identity`": None,
    "one logit, a prompt before each query": None,
    "one logit, padding on the left": None,
    "Transformer, Pooling, Dense": None,
    "a language model with LogitScore, chat template and prompt, as Qwen3-Reranker": None,
    "a language model with LogitScore of one token, structured messages": None,
    "three labels": "gives 3 scores per pair",
    "an embedding model": "which does not score pairs",
    "a chat model": "nothing says that it is a reranker; a reranker has a modules.json with LogitScore",
}


def table() -> str:
    """Return docs/models.md."""
    lines = [
        "# Model folders",
        "",
        "What has a `modules.json` gives the vectors of sentence-transformers' `encode_query` and `encode_document`, and a reranker",
        "the scores of its `predict`, within 1e-5 (float32, CPU; where numbers exceed 1, of the largest); or it is refused in a line that names what is not supported.",
        "`tests/training/model/test_vectors.py` compares each case below, on tiny random models.",
        "",
        "Code of a folder never runs. A decoder without a `modules.json` gets an end token appended where its tokenizer adds none; the",
        "receipt and the log say so.",
        "",
        "Families. Each encodes, trains a step, exports and loads in sentence-transformers; the vectors before and after the export",
        "differ from those of sentence-transformers by less than 1e-5 (`tests/training/model/test_families.py`, texts given to it one at a",
        "time). *Packed*: no padding at all. *Padded*: attention that cannot be packed; texts of similar length share a forward, and at",
        "most one token in eight is padding (`pad_share` in the log says how many). *Equal lengths*: padding changes the vectors too.",
        "An encoder-decoder other than T5, mT5 and UMT5 is refused in one line.",
        "",
        "| family | attention | encode | train a step | export, load in sentence-transformers | greatest difference |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {way} | yes | yes | yes | < 1e-5 |" for name, way in MODEL_FAMILIES.items()),
        "",
        "| decoders, with or without an end token in the tokenizer | |",
        "|---|---|",
        *(f"| {name} | equal |" for name in FAMILIES),
        "",
        "| sentence-transformers folder | |",
        "|---|---|",
        *(f"| {name} | {'equal' if why is None else f'refused: ... {why}'} |" for name, (_, why) in VARIANTS.items()),
        "",
        "| reranker | |",
        "|---|---|",
        *(f"| {name} | {'equal' if why is None else f'refused: ... {why}'} |" for name, why in RERANKERS.items()),
        "",
    ]
    return "\n".join(lines)
