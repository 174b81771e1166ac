"""An exported model as a repository of the Hub, with a card that says from which data and recipe it came.

Where the folder is the model of a run, the run's done.json tells that; the folder's own README.md goes before ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from curation.core import store
from curation.core.builds import read_build
from curation.core.card import problems, with_yaml, yaml_text
from curation.core.errors import ModelError
from curation.core.escape import as_block, as_code, as_markdown, markdown_table, visible
from curation.core.hub import MARK, Piece, listing
from training.model.files import check_model
from training.model.sentence_folder import OLD_POOLINGS

NEEDED = ("modules.json", "config.json")
USE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repo}")
queries = model.encode(["how do I find empty files?"]{prompt})
passages = model.encode(["find . -size 0"])
print(model.similarity(queries, passages))
```
"""

FURTHER = {
    "first": "Of a query with several positives the first was trained on, and {:,} further ones were left out.",
    "all": "Of a query with several positives each was trained on in a tuple of its own; {:,} tuples more than the table counts.",
    "sampled": "Of a query with several positives one was drawn for each epoch; there are {:,} besides the first ones.",
}


class Plan(NamedTuple):
    """What a repository is to hold."""

    pieces: dict[str, Piece]  # path -> file
    card: str


def plan(folder: Path, repo: str, license: str = "unknown", datasets: tuple[str, ...] = ()) -> Plan:
    """Return the files of a model, or of the model of a run, with its card; nothing is sent.

    `repo` is ORG/NAME, `license` the model's, as the Hub names it, and `datasets` are Hub ids of what it was trained on.

    Raises:
        ModelError: no whole model, or a card that the Hub would refuse.
    """
    model = folder / "model" if (folder / "model" / "modules.json").is_file() else folder
    if missing := [name for name in NEEDED if not (model / name).is_file()] or _weightless(model):
        raise ModelError(folder, f"is no exported model: it has no {missing[0]}", "`train export RUN -o DIR` makes one")
    check_model(model)
    run = run_of(model)
    own = model / "README.md"
    card = own.read_text(encoding="utf-8") if own.is_file() else _card(model, repo, run, license, datasets)
    if wrong := list(problems(card)):
        raise ModelError(
            own if own.is_file() else repo, f"the Hub would refuse its card: {wrong[0]}", "mend it, or see --license"
        )
    paths = [path for path in sorted(model.rglob("*")) if path.is_file() and path.name not in ("README.md", MARK)]
    pieces = {path.relative_to(model).as_posix(): Piece.of(path) for path in paths}
    whole = {"README.md": Piece.of(card.encode()), **pieces}
    told = store.sealed({"files": listing(whole), "run": run})
    return Plan({"README.md": whole["README.md"], MARK: Piece.of(told), **pieces}, card)


def _weightless(model: Path) -> list[str]:
    return [] if list(model.glob("*.safetensors")) else ["weights (model.safetensors)"]


def run_of(model: Path) -> dict[str, Any] | None:
    """Return the receipt of the run that made a model, with the licences of its sources where the build is there."""
    receipt = store.read_receipt(model.parent) if model.name == "model" else None
    if receipt is None or "recipe" not in receipt:
        return None
    build = model.parent.parent / "build.json"
    entries = read_build(build.parent)["sources"] if build.is_file() else {}
    sources = {name: one | {"license": entries.get(name, {}).get("license", "")} for name, one in receipt["trained_on"].items()}
    recipe = receipt["recipe"] | {"model": public(receipt["recipe"]["model"])}
    return receipt | {"recipe": recipe, "trained_on": sources}


def public(name: str) -> str:
    """Return the name of a model without the folders of this machine."""
    return Path(name).name if Path(name).expanduser().exists() or name.startswith((".", "/", "~")) else name


def _card(model: Path, repo: str, run: Mapping[str, Any] | None, license: str, datasets: tuple[str, ...]) -> str:
    about = json.loads((model / "config_sentence_transformers.json").read_bytes())
    pooling = json.loads((model / "1_Pooling" / "config.json").read_bytes())
    tokens = json.loads((model / "sentence_bert_config.json").read_bytes())["max_seq_length"]
    head: dict[str, Any] = {"license": license, "library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    head["tags"] = ["sentence-transformers", "feature-extraction", "sentence-similarity", "tuplesmith"]
    if run and run["recipe"]["model"].count("/") == 1 and ":" not in run["recipe"]["model"]:
        head["base_model"] = run["recipe"]["model"]
    if datasets:
        head["datasets"] = list(datasets)
    prompts = {name: text for name, text in about["prompts"].items() if text}
    body = [f"# {as_markdown(repo.partition('/')[2])}", ""]
    size = pooling.get("word_embedding_dimension") or pooling["embedding_dimension"]
    modes = pooling.get("pooling_mode") or [word for key, word in OLD_POOLINGS.items() if pooling.get(key)]
    kind = as_markdown(f"{size} dimensions, {modes if isinstance(modes, str) else ' and '.join(modes)} pooling")
    body += [
        f"A text-embedding model: {kind}, vectors of length 1 (compare by cosine), texts of up to {tokens:,} tokens.",
        "",
    ]
    name = next((name for name in ("query", *(run or {}).get("trained_on", {})) if name in prompts), None)
    body += [USE.format(repo=repo, prompt=f", prompt_name={visible(json.dumps(name, ensure_ascii=False))}" if name else "")]
    if prompts:
        lines = [(as_code(name), as_code(json.dumps(text, ensure_ascii=False))) for name, text in prompts.items()]
        body += ["## Prompts", "", markdown_table(("name", "put before a text"), lines), ""]
    return with_yaml(head, "\n".join(body + (_training(run) if run else [])).rstrip() + "\n")


def _training(run: Mapping[str, Any]) -> list[str]:
    lines = [
        (as_code(name), one["task"], one["tuples"], one["license"] or "not named") for name, one in run["trained_on"].items()
    ]
    scores = run.get("history", {})
    step = str(run["best"]["step"]) if scores and run["recipe"].get("export") == "best" else max(scores, key=int, default="")
    further = sum(one.get("further_positives", 0) for one in run["trained_on"].values())
    several = FURTHER[run["recipe"].get("positives", "first")].format(further) if further else ""
    found = f"nDCG@10 on held-out queries, the mean over their sources: {scores[step]:.4f}, at step {step}." if step else ""
    return [
        "## Training",
        "",
        *([found, ""] if found else []),
        f"Trained with tuplesmith for {run['steps']:,} steps from {as_code(run['recipe']['model'])} on the tuples below.",
        "The licences are as the sources claim them; nobody has checked what they mean for the model.",
        "",
        markdown_table(("source", "task", "tuples", "licence"), lines),
        "",
        *([several, ""] if several else []),
        as_block(yaml_text({"train": run["recipe"]}), "yaml"),
    ]
