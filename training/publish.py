"""Publish a model on the Hub, with a card that says how to use it, and which data and recipe it was trained with.

If the folder is the model of a run, these come from the run's done.json. The folder's own README.md takes precedence over ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from curation.core import store
from curation.core.builds import read_build
from curation.core.card import card_problems, with_yaml, yaml_text
from curation.core.errors import ModelError
from curation.core.escape import as_block, as_code, as_markdown, markdown_table, visible
from curation.core.hub import MARK, Piece, check_name, listing
from curation.recipe.mteb_boards import BOARD_HEAD, board_lines, zero_shot
from training.model.files import check_model
from training.model.sentence_folder import POOLING_FLAGS

USE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repo}")
queries = model.encode(["how do I find empty files?"]{prompt})
passages = model.encode(["find . -size 0"])
print(model.similarity(queries, passages))
```
"""
OTHER_POSITIVES_NOTE = {
    "first": "Of a query's several positives the first was trained on; {:,} others were left out.",
    "all": "Each positive of a query was trained on in a tuple of its own, which makes {:,} tuples more than the table counts.",
    "sampled": "One of a query's several positives was drawn for each epoch; besides the first ones there are {:,}.",
}
LORA_NOTE = "Trained with LoRA: the model has the matrices merged, and `adapter/` has them as peft saves them."


class Upload(NamedTuple):
    """What a repository will contain."""

    pieces: dict[str, Piece]  # by path
    card: str


def plan_upload(folder: Path, repo: str, license: str = "unknown", datasets: tuple[str, ...] = ()) -> Upload:
    """Return the files of a model, or of the model of a run, with its card; nothing is sent.

    Args:
        folder: a model, or a run.
        repo: ORG/NAME.
        license: the model's licence, by its Hub id.
        datasets: Hub ids of the training data.

    Raises:
        ModelError: the folder has no complete model, or the Hub would refuse the card.
        HubError: no repository can have such a name.
    """
    check_name(repo)
    model = folder / "model" if (folder / "model" / "modules.json").is_file() else folder
    missing = [name for name in ("modules.json", "config.json") if not (model / name).is_file()]
    if not missing and not list(model.glob("*.safetensors")):
        missing = ["weights (model.safetensors)"]
    if missing:
        hint = "`train export RUN -o DIR` writes one"
        raise ModelError(folder, f"is not an exported model: it has no {missing[0]}", hint)
    check_model(model)
    run = run_of(model)
    own = model / "README.md"
    card = own.read_text(encoding="utf-8") if own.is_file() else _card(model, repo, run, license, datasets)
    if wrong := list(card_problems(card)):
        where = own if own.is_file() else repo
        raise ModelError(where, f"the Hub would refuse its card: {wrong[0]}", "correct it, or see --license")
    paths = [path for path in sorted(model.rglob("*")) if path.is_file() and path.name not in ("README.md", MARK)]
    pieces = {path.relative_to(model).as_posix(): Piece.of(path) for path in paths}
    whole = {"README.md": Piece.of(card.encode()), **pieces}
    provenance = store.sealed({"files": listing(whole), "run": run})
    return Upload({"README.md": whole["README.md"], MARK: Piece.of(provenance), **pieces}, card)


def run_of(model: Path) -> dict[str, Any] | None:
    """Return the receipt of the run that wrote a model, with the licences of its sources if the build exists; else None."""
    receipt = store.read_receipt(model.parent) if model.name == "model" else None
    if receipt is None or "recipe" not in receipt:
        return None
    build = model.parent.parent / "build.json"
    entries = read_build(build.parent)["sources"] if build.is_file() else {}
    sources = {name: one | {"license": entries.get(name, {}).get("license", "")} for name, one in receipt["trained_on"].items()}
    recipe = receipt["recipe"] | {"model": public_name(receipt["recipe"]["model"])}
    if recipe.get("evaluate_on"):
        recipe["evaluate_on"] = [public_name(name) for name in recipe["evaluate_on"]]
    if teacher := recipe.get("distill_vectors"):
        recipe["distill_vectors"] = teacher | {"model": public_name(teacher["model"])}
    return receipt | {"recipe": recipe, "trained_on": sources}


def public_name(name: str) -> str:
    """Return the name of a model without the folders of this machine."""
    return Path(name).name if Path(name).expanduser().exists() or name.startswith((".", "/", "~")) else name


def record_scores(model: Path, scores: Mapping[str, float], metric: str) -> None:
    """Keep scores of a run's model, by data set or task, in RUN/evaluation.json for its card; do nothing for other models.

    Raises:
        BuildError: evaluation.json was changed by hand.
    """
    model = model.resolve()
    if run_of(model) is None:
        return
    known = read_scores(model)
    known[metric] = {**known.get(metric, {}), **scores}
    with suppress(OSError):  # a run that may not be written to: its card then lacks the scores
        store.write_json(model.parent / store.EVALUATION, {"model": store.file_digest(model / store.RECEIPT), "scores": known})


def read_scores(model: Path) -> dict[str, dict[str, float]]:
    """Return the scores recorded for a run's model by metric; those of an earlier model of the run do not count."""
    path, receipt = model.parent / store.EVALUATION, model / store.RECEIPT
    found = store.read_sealed(path, f"delete {path} and measure again") if path.is_file() and receipt.is_file() else {}
    return dict(found["scores"]) if found and found["model"] == store.file_digest(receipt) else {}


def _card(model: Path, repo: str, run: Mapping[str, Any] | None, license: str, datasets: tuple[str, ...]) -> str:
    """Return the card: YAML for the Hub, what the model is, how to use it, its prompts, and its training."""
    about = json.loads((model / "config_sentence_transformers.json").read_bytes())
    pooling = json.loads((model / "1_Pooling" / "config.json").read_bytes())
    tokens = json.loads((model / "sentence_bert_config.json").read_bytes())["max_seq_length"]
    scores = read_scores(model) if run else {}

    # What the Hub reads.
    head: dict[str, Any] = {"license": license, "library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    head["tags"] = ["sentence-transformers", "feature-extraction", "sentence-similarity", "tuplesmith"]
    if run and run["recipe"]["model"].count("/") == 1 and ":" not in run["recipe"]["model"]:
        head["base_model"] = run["recipe"]["model"]
    if datasets:
        head["datasets"] = list(datasets)
    if scores:
        results = [
            {
                "task": {"type": "sentence-similarity"},
                "dataset": {"name": data, "type": "tuplesmith" if metric == "nDCG@10" else "mteb", "config": data},
                "metrics": [{"type": "ndcg_at_10" if metric == "nDCG@10" else "main_score", "value": round(score, 4)}],
            }
            for metric, found in scores.items()
            for data, score in found.items()
        ]
        head["model-index"] = [{"name": repo.partition("/")[2], "results": results}]

    # What people read.
    prompts = {name: text for name, text in about["prompts"].items() if text}
    size = pooling.get("word_embedding_dimension") or pooling["embedding_dimension"]
    modes = pooling.get("pooling_mode") or [word for key, word in POOLING_FLAGS.items() if pooling.get(key)]
    kind = as_markdown(f"{size} dimensions, {modes if isinstance(modes, str) else ' and '.join(modes)} pooling")
    name = next((name for name in ("query", *(run or {}).get("trained_on", {})) if name in prompts), None)
    body = [
        f"# {as_markdown(repo.partition('/')[2])}",
        "",
        f"A text-embedding model: {kind}, vectors of length 1 (compare by cosine), texts of up to {tokens:,} tokens.",
        "",
        USE.format(repo=repo, prompt=f", prompt_name={visible(json.dumps(name, ensure_ascii=False))}" if name else ""),
    ]
    if prompts:
        lines = [(as_code(name), as_code(json.dumps(text, ensure_ascii=False))) for name, text in prompts.items()]
        body += ["## Prompts", "", markdown_table(("name", "text before a query or passage"), lines), ""]
    if scores:
        measured = [
            (as_code(data), as_code(metric), f"{score:.4f}") for metric, found in scores.items() for data, score in found.items()
        ]
        body += ["## Evaluation", "", markdown_table(("data", "metric", "score"), measured), ""]
    if run and (model.parent.parent / store.BUILD).is_file():
        rows, notes = board_lines(zero_shot(model.parent.parent, run["trained_on"]))
        table = [markdown_table(BOARD_HEAD, rows), ""] if rows else []
        body += ["## MTEB", "", *table, *notes, "What the base model was trained on is not part of this.", ""] if notes else []
    return with_yaml(head, "\n".join(body + (_training(run) if run else [])).rstrip() + "\n")


def _training(run: Mapping[str, Any]) -> list[str]:
    """Return the lines of the card on training: scores on held-out queries, sources with licences, and the recipe."""
    sources = [
        (as_code(name), one["task"], one["tuples"], one["license"] or "not named") for name, one in run["trained_on"].items()
    ]
    history, found = run.get("history", {}), ""
    if history:
        step = str(run["best"]["step"]) if run["recipe"].get("export") == "best" else max(history, key=int)
        before = f" ({run['before']:.4f} before training)" if "before" in run else ""
        others = "".join(f" and {as_code(name)}" for name in run["recipe"].get("evaluate_on", []))
        found = f"nDCG@10 on held-out queries{others}, the mean over their sources: {history[step]:.4f}, at step {step}{before}."
    further = sum(one.get("further_positives", 0) for one in run["trained_on"].values())
    several = OTHER_POSITIVES_NOTE[run["recipe"].get("positives", "first")].format(further) if further else ""
    start = f"from {as_code(run['recipe']['model'])}"
    if first := run.get("from"):
        start = f"from the run {as_code(first['run'])} {start} (its model has the digest {as_code(first['model'])})"
    return [
        "## Training",
        "",
        *([found, ""] if found else []),
        f"Trained with tuplesmith for {run['steps']:,} steps {start} on the tuples below.",
        "The licences are as the sources claim them; nobody has checked what they mean for the model.",
        "",
        markdown_table(("source", "task", "tuples", "licence"), sources),
        "",
        *([several, ""] if several else []),
        *([LORA_NOTE, ""] if run["recipe"].get("lora") else []),
        as_block(yaml_text({"train": run["recipe"]}), "yaml"),
    ]
