"""A draft of what mteb asks to know of a model that it is to list: Python text, as in its own model_implementations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curation.core import store
from curation.core.builds import check_beside
from curation.core.record import render_query
from training.model.encode import Encoder
from training.publish import public, run_of

PLAIN = "from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper as Loader\n", "{{}}"
TOLD = (  # its task, as F2LLM's models are
    "from mteb.models.instruct_wrapper import InstructSentenceTransformerModel as Loader\n"
    "from mteb.models.model_implementations.codefuse_models import prompts_dict\n",
    "dict(instruction_template={!r}, apply_instruction_to_passages=False, prompts_dict=prompts_dict)",
)
TEXT = '''"""Draft of a model's metadata for mteb's models/model_implementations: fill in what is None."""

{imports}from mteb.models.model_meta import ModelMeta

model = ModelMeta(
    loader=Loader,
    loader_kwargs={arguments},
    name="ORG/NAME",  # on the Hub
    revision=None,  # its commit
    release_date=None,  # such as "2026-11-22"
    languages=None,  # such as ["eng-Latn"]
    n_parameters={weights},
    n_embedding_parameters={embedding},
    memory_usage_mb={megabytes},
    max_tokens={tokens},
    embed_dim={dims},
    license=None,  # such as "apache-2.0"
    open_weights=True,
    public_training_code=None,  # a link
    public_training_data=None,  # a link
    framework=["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
    similarity_fn_name="cosine",
    use_instructions={told},
    adapted_from={base!r},
    training_datasets={tasks},{unknown}
)
'''


def write(path: Path, folder: Path, encoder: Encoder) -> Path | None:
    """Write a module that makes the `ModelMeta` of a run's model and return its path, or None where the folder is of no run."""
    run = run_of(folder.resolve())
    if run is None:
        return None
    with store.atomic(path) as file:
        file.write(_text(run, folder.resolve(), encoder).encode())
    return path


def _text(run: Mapping[str, Any], folder: Path, encoder: Encoder) -> str:
    used, backbone = encoder.prompts.used, encoder.model.backbone
    imports, arguments = TOLD if used == "instruct" else PLAIN
    weights = list(backbone.parameters())
    tasks, unknown = _training_datasets(folder, list(run["trained_on"]))
    return TEXT.format(
        imports=imports,
        arguments=arguments.format(render_query("{instruction}", "")),
        weights=sum(weight.numel() for weight in weights),
        embedding=backbone.get_input_embeddings().weight.numel(),
        megabytes=round(sum(weight.numel() * weight.element_size() for weight in weights) / 2**20),
        tokens=encoder.model.max_tokens,
        dims=[*run["recipe"]["matryoshka"], encoder.dim] if run["recipe"]["matryoshka"] else encoder.dim,
        told=used != "none",
        base=public(run["recipe"]["model"]),
        tasks=f"{{{', '.join(map(repr, tasks))}}}" if tasks else "set()",
        unknown=f"  # and what {', '.join(unknown)} may be part of: the manifest names no `mteb:` task" if unknown else "",
    )


def _training_datasets(folder: Path, sources: list[str]) -> tuple[list[str], list[str]]:
    """Return mteb's tasks whose data the sources are part of, as the build tells it, and the sources that say nothing."""
    path = folder.parent.parent / "mteb_training_datasets.json"
    if (path.parent / store.BUILD).is_file():
        check_beside(path.parent, path.name)
    of_source: dict[str, list[str]] = store.read_json(path)["sources"] if path.is_file() else {}
    tasks = {task for source in sources for task in of_source.get(source, [])}
    return sorted(tasks), [source for source in sources if source not in of_source]
