"""With each option of a recipe, a run that was killed ends with the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import MINILM

from curation.recipe.settings import Train
from mining.mine import embed_build
from training.train import train

ALL = {  # other than the defaults, so that each is in use
    **{"max_tokens": 32, "batch": 8, "negatives": 2, "temperature": 0.1, "lr": 1e-2, "min_lr": 1e-4, "warmup": 2, "epochs": 2},
    **{"steps": 6, "weight_decay": 0.1, "betas": (0.8, 0.9), "clip": 0.5, "dtype": "float32"},
    **{"save_every": 2, "keep": 1, "log_every": 1},
}
LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "o_proj"]}
JOINT = {"loss": "infonce", "query_query": True, "passage_passage": True, "mask_margin": 0.1}
BOTH_WAYS = {"bidirectional": True, "pooling": "mean"}
F2LLM = {"symmetric": True, "mask_margin": 0.1, "hardness": 5.0, "spread_out": 0.5, "matryoshka": [8, 16], "distill": 0.5}
SINGLE = {  # the model, and what the recipe says besides ALL
    "seed": ("bert", {"seed": 7}),
    "symmetric": ("bert", {"symmetric": True}),
    "mask_margin": ("bert", {"mask_margin": 0.1}),
    "no mask": ("bert", {"mask_false_negatives": False}),
    "hardness": ("bert", {"hardness": 5.0}),
    "spread_out": ("bert", {"spread_out": 0.5}),
    "matryoshka": ("bert", {"matryoshka": [8, 16]}),
    "distill": ("bert", {"distill": 0.5}),
    "distill_vectors": ("bert", {"distill_vectors": {"model": MINILM}}),
    "cluster_batches": ("bert", {"cluster_batches": 4}),
    "query_query": ("bert", {"loss": "infonce", "query_query": True}),
    "passage_passage": ("bert", {"loss": "infonce", "passage_passage": True}),
    "token_budget": ("bert", {"token_budget": 60}),
    "checkpointing": ("bert", {"checkpointing": True}),
    "all positives": ("bert", {"positives": "all"}),
    "sampled positives": ("bert", {"positives": "sampled"}),
    "evenness": ("bert", {"evenness": 2.0}),
    "sources": ("bert", {"sources": {"more": {"weight": 2.0, "negatives": 1, "in_batch": False}}}),
    "prompts": ("bert", {"prompts": {"query": "query: ", "passage": "passage: "}}),
    "no prompt": ("qwen3", {"prompt": "none"}),
    "bidirectional": ("qwen3", BOTH_WAYS),
    "lora": ("qwen3", {"lora": LORA}),
    "lora by chunks": ("qwen3", {"lora": LORA, "token_budget": 60, "checkpointing": True}),
    "padded": ("mpnet", {"token_budget": 60}),
    "from": ("qwen3", BOTH_WAYS),
}
TOGETHER = {  # in the default suite: nearly all of them, at once
    "f2llm": (
        "bert",
        {"seed": 7, **F2LLM, "token_budget": 60, "checkpointing": True, "positives": "sampled", "evenness": 2.0}
        | {"sources": {"more": {"weight": 2.0}}},
    ),
    "from, lora, infonce": (
        "qwen3",
        {**BOTH_WAYS, **JOINT, "hardness": 5.0, "spread_out": 0.5, "matryoshka": [8], "lora": LORA, "token_budget": 60}
        | {"distill_vectors": {"model": MINILM}, "cluster_batches": 4, "prompt": "none", "positives": "all"},
    ),
}
ELSEWHERE = {  # the keys that another file resumes with
    "deepspeed": "test_deepspeed.py",
    "reproduce_f2llm": "test_reproduce.py: it needs several processes, and is a case of those",
    "evaluate_every": "test_watch.py",
    "evaluate_on": "test_watch.py",
    "patience": "test_watch.py",
    "export": "test_watch.py",
}


class Killed(BaseException):
    """As a kill would, nothing catches it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three models, a build whose queries have several positives, a teacher's vectors of it, and a run to start from."""
    place = tmp_path_factory.mktemp("resume")
    for kind in ("bert", "qwen3", "mpnet"):
        tiny_model(place / kind, kind)
    several = retrieval(40) | {"positives": [[row, (row + 1) % 40] if row % 2 else [row] for row in range(40)]}
    several["negatives"] = [[(row + step) % 40 for step in (5, 6, 7)] for row in range(40)]
    write_build(place / "b", {"several": several, "more": retrieval(24, salt=1) | {"instruction": "Find it"}})
    embed_build(place / "b", MINILM, device="cpu")
    train(place / "b", Train(model=str(place / "qwen3"), **ALL | BOTH_WAYS | {"steps": 2}), out=place / "first", device="cpu")
    return place


CASES = [pytest.param(name, *case, marks=pytest.mark.long) for name, case in SINGLE.items()]
CASES += [pytest.param(name, *case) for name, case in TOGETHER.items()]


@pytest.mark.parametrize(("name", "model", "keys"), CASES, ids=[*SINGLE, *(f"together: {name}" for name in TOGETHER)])
def test_a_killed_run_ends_with_the_same_bytes(place, tmp_path, name, model, keys):
    recipe, start = Train(model=str(place / model), **ALL | keys), place / "first" if name.startswith("from") else None
    said = []

    def die(line):
        if line.startswith("step 5/6"):
            raise Killed

    train(place / "b", recipe, out=tmp_path / "whole", start=start, device="cpu")
    with pytest.raises(Killed):
        train(place / "b", recipe, out=tmp_path / "torn", start=start, device="cpu", say=die)
    train(place / "b", recipe, out=tmp_path / "torn", start=start, device="cpu", say=said.append)
    assert f"continuing from {tmp_path / 'torn/checkpoints/step-000004'}" in said
    files = [
        "done.json",
        "model/model.safetensors",
        *(f"checkpoints/step-000006/{kind}.safetensors" for kind in ("model", "optimizer")),
    ]
    files += ["model/adapter/adapter_model.safetensors"] if "lora" in keys else []
    for file in files:
        assert (tmp_path / "torn" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_each_key_of_a_recipe_is_resumed_with():
    used = {"model"}.union(ALL, *(keys for _, keys in SINGLE.values()))
    assert used.isdisjoint(ELSEWHERE)
    assert used | ELSEWHERE.keys() == set(Train.model_fields)
    assert all((Path(__file__).parent / why.split(":")[0]).exists() for why in ELSEWHERE.values())
