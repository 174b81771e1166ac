"""What a run starts from: the recipe's model, with another run's weights if it is a second stage (`train --from RUN`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from curation.core import store
from curation.core.errors import BuildError, a_kind
from curation.recipe.settings import Prompts, Train
from training.model.load import TOLERANCE, load_model
from training.model.model import Model
from training.tokens import TOKENIZER_SAMPLE


def model_of(recipe: Train, device: str = "cpu", weights: bool = True) -> Model:
    """Return the model that a recipe trains, as `load_model` does."""
    return load_model(
        recipe.model,
        pooling=recipe.pooling,
        max_tokens=recipe.max_tokens,
        device=device,
        weights=weights,
        prompts=Prompts.by_name(recipe.prompts),
        bidirectional=recipe.bidirectional,
    )


def model_folder(start: Path, out: Path) -> Path:
    """Return the folder of the model that a run starts from: `start` is a run, or a model that `train` wrote.

    Raises:
        BuildError: it holds no such model, or is the run's own folder.
    """
    folder = start / "model" if (start / "model").is_dir() else start
    if {start.resolve(), folder.resolve()} & {out.resolve(), (out / "model").resolve()}:
        raise BuildError(start, "a run cannot start from its own folder", "write the new run to another one with `-o`")
    if not (folder / "config.json").is_file() or store.read_receipt(folder) is None:
        raise BuildError(
            start, "has no model to start from", "give the folder of a finished run, or of what `train export` wrote"
        )
    return folder


def start_from(model: Model, folder: Path, recipe: Train) -> dict[str, str]:
    """Give the recipe's model the weights of another run's model; return that run's name, and the digest of its model's receipt.

    Everything else, such as tokenizer and prompts, stays as the recipe says.

    Raises:
        BuildError: it has another tokenizer, another architecture, or its vectors are made in another way.
    """
    other = load_model(str(folder), max_tokens=recipe.max_tokens, device="cpu")
    hint = "set `train: {model: ...}` to the model that the first stage was trained from"
    sample, theirs = model.tokenize(TOKENIZER_SAMPLE), other.tokenize(TOKENIZER_SAMPLE)
    if model.tokenizer.get_vocab() != other.tokenizer.get_vocab() or not np.array_equal(sample.ids, theirs.ids):
        raise BuildError(folder, f"has another tokenizer than {recipe.model}", hint)
    for mine, its in ((model.backbone, other.backbone), (model.head, other.head)):
        shapes, found = ({name: value.shape for name, value in one.state_dict().items()} for one in (mine, its))
        if type(mine) is not type(its) or shapes != found:
            different = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
            kinds = f"{a_kind(its)}, not {a_kind(mine)}"
            why = kinds if type(mine) is not type(its) else f"its {different[0]} is another"
            what = f"is another architecture than {recipe.model} ({why})"
            raise BuildError(folder, what, hint)
        mine.load_state_dict(its.state_dict())

    # The same weights must give the same vectors; pooling, for instance, is no weight.
    short = sample.starts[:-1]  # without the last text, which is long
    ids = torch.from_numpy(sample.ids[: short[-1]].astype(np.int64))
    with torch.no_grad():
        before, after = (one.embed(ids, short.tolist()).cpu() for one in (other, model))
    if before.shape != after.shape or float((before - after).abs().max()) > TOLERANCE[torch.float32]:
        both_ways = "yes" if getattr(other.backbone.config, "is_causal", None) is False else "no"
        what = f"its weights give other vectors with this recipe, whose pooling is `{model.pooling}`"
        hint = f"set what the model was trained with: `pooling: {other.pooling}`, `bidirectional: {both_ways}`"
        raise BuildError(folder, what, hint)
    run = folder.resolve()
    run = run.parent if run.name == "model" else run
    name = run.parent.name if run.name == "train" else run.name
    return {"run": name, "model": store.file_digest(folder / store.RECEIPT)}
