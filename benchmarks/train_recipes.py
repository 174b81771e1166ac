"""What F2LLM's recipe gains by what came after it: attention both ways, more negatives in the softmax, a teacher, merging.

    python benchmarks/train_recipes.py DATA FOLDER [--seeds 1 2 3] [--steps 20] [--arms NAME ...]

DATA is the folder with the open datasets of `manifests/dev.yaml`. SOURCES of them are built, mined with all-MiniLM-L6-v2 and
trained on; UNSEEN is only measured on. The model is SmolLM2-135M cut to its first six layers, trained on the CPU. FOLDER keeps
the build and a file of scores per run, so that a second call continues; weights of an arm are deleted once they are measured.

All arms have the same tuples, in the same batches of each seed, and differ from F2LLM's recipe by what ARMS says. Measured is
nDCG@10 on 100 held-out queries of each of HELD_OUT, each set among 200 passages. A difference from F2LLM's recipe is paired by
query and seed; its interval is that of `train ablate`: 95 % of the bootstrap over queries and seeds. `merged` is the mean of
the weights of an arm's runs (`train merge`): one model, compared with F2LLM's recipe of each seed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from training_quality import LAYERS, MINILM, SMOLLM2, held_out
from unpack_gguf import unpack

import tuplesmith
from curation.core import store
from mining.mine import embed_build
from training.ablation import compare_runs
from training.checkpoint import merge_runs
from training.evaluate import measure_each, prompts_in_training
from training.model.encode import load_encoder

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("squad", "medquad", "scitldr", "nl2bash", "cosqa", "snli", "trec", "tweet-irony")  # the last two have classes
UNSEEN = "pubmedqa"
HELD_OUT = ("squad", "nl2bash", UNSEEN)
ROWS, TOKENS = 2_000, 32  # rows read of each source, tokens of a text
BOTH_WAYS = {"bidirectional": True, "pooling": "mean"}
RELATED = {"loss": "infonce", "query_query": True, "passage_passage": True, "mask_margin": 0.1}  # Qwen3-Embedding's loss
TEACHER = {"distill_vectors": {"model": MINILM}}  # of the default weight, 200
LIGHTER = {"distill_vectors": {"model": MINILM, "weight": 5}}
PLAIN = "F2LLM's recipe"
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {},  # the defaults: its loss, temperature, optimizer, last-token pooling, instructions before queries
    "+ bidirectional, mean pooling": BOTH_WAYS,
    "+ q-q and d-d terms": RELATED,
    "+ distillation": TEACHER,
    "+ distillation, weight 5": LIGHTER,
    "InfoNCE alone": {"loss": "infonce"},  # how much of the q-q and d-d terms' difference is that of the loss they need
    "mean pooling alone": {"pooling": "mean"},  # the same of attention both ways
    "+ all three, weight 5": BOTH_WAYS | RELATED | LIGHTER,
}


def built(data: Path, folder: Path) -> Path:
    """Build and mine the sources, and store the teacher's vectors of all their texts."""
    if (folder / "vectors.json").exists():
        return folder / "build"
    recipe = yaml.safe_load((ROOT / "manifests" / "dev.yaml").read_text().replace("../../shared/data", str(data.resolve())))
    chosen = [source | {"limit": ROWS} for source in recipe["sources"] if source["name"] in (*SOURCES, UNSEEN)]
    mine = {"model": MINILM, "dtype": "auto", "negatives": 7, "range_min": 5, "shortage": "keep", "max_tokens": 64}
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**recipe, "name": "recipes", "sources": chosen, "mine": mine}))
    build = tuplesmith.build(folder / "manifest.yaml", out=folder / "build", quiet=True)
    assert not build.failed, build.failed
    tuplesmith.mine(build, only=SOURCES, quiet=True)
    store.write_json(folder / "vectors.json", embed_build(build.path, only=SOURCES))
    return build.path


def scores(model: Path, build: Path) -> dict[str, list[float]]:
    """Return nDCG@10 of each held-out query by set."""
    encoder = load_encoder(str(model), device="cpu", dtype="auto", max_tokens=TOKENS)
    found = {}
    for name, (collection, instruction) in held_out(build, HELD_OUT).items():
        found[name] = measure_each(encoder, collection, prompts_in_training(encoder.prompts, instruction))[0].tolist()
    return found


def run(arm: str, seeds: list[int], folder: Path, build: Path, common: dict[str, Any]) -> None:
    """Train an arm with each seed, merge the runs, and note the scores of each model; what is noted is not done again."""
    place = folder / "arms" / "".join(letter if letter.isalnum() else "-" for letter in arm)
    if (place / "merged.json").exists():
        return
    for seed in seeds:
        if not (place / f"{seed}.json").exists():
            begun, out = time.process_time(), place / f"run-{seed}"
            tuplesmith.train(build, recipe=common | ARMS[arm] | {"seed": seed}, out=out, only=SOURCES, device="cpu", quiet=True)
            trained = time.process_time()
            store.write_json(place / f"{seed}.json", scores(out / "model", build))
            spent = f"{trained - begun:.0f} CPU-seconds of training, {time.process_time() - trained:.0f} of measuring"
            print(f"{arm}, seed {seed}: {mean(store.read_json(place / f'{seed}.json')):.4f} ({spent})", flush=True)
    merge_runs([place / f"run-{seed}" for seed in seeds], place / "model")
    store.write_json(place / "merged.json", scores(place / "model", build))
    print(f"{arm}, merged: {mean(store.read_json(place / 'merged.json')):.4f}", flush=True)
    for one in [*(f"run-{seed}" for seed in seeds), "model"]:
        shutil.rmtree(place / one)


def mean(found: dict[str, list[float]]) -> float:
    """Return the mean over the sets."""
    return statistics.mean(statistics.mean(each) for each in found.values())


def table(folder: Path, seeds: list[int]) -> None:
    """Print a row per arm that is done, and one per arm and set."""
    before = {name: np.array(each) for name, each in store.read_json(folder / "before.json").items()}
    notes: dict[str, list[dict[str, list[float]]]] = {}
    for arm in ARMS:
        place = folder / "arms" / "".join(letter if letter.isalnum() else "-" for letter in arm)
        if (place / "merged.json").exists():
            notes[arm] = [store.read_json(place / f"{one}.json") for one in [*seeds, "merged"]]
    runs = {arm: [{name: np.array(each) for name, each in one.items()} for one in some] for arm, some in notes.items()}
    plain = runs[PLAIN][:-1]

    def against(some: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        return dict(compare_runs(before, {"": some, PLAIN: plain}, {PLAIN: []})["sources"][PLAIN])

    def cell(difference: list[float]) -> str:
        return f"{difference[0]:+.4f} ({difference[1]:+.4f} to {difference[2]:+.4f})"

    print("\n| nDCG@10 | " + " | ".join(f"seed {one}" for one in seeds) + " | mean | difference | merged | difference |")
    print("|---" * (len(seeds) + 5) + "|")
    print(f"| before training |{' |' * len(seeds)} {mean(before):.4f} | | | |")
    for arm, some in notes.items():
        each = [mean(one) for one in some]
        merged = cell(against([runs[arm][-1]] * len(seeds))["all_sets"])
        apart = "" if arm == PLAIN else cell(against(runs[arm][:-1])["all_sets"])
        cells = [*(f"{one:.4f}" for one in each[:-1]), f"{statistics.mean(each[:-1]):.4f}", apart, f"{each[-1]:.4f}", merged]
        print(f"| {arm} | " + " | ".join(cells) + " |")
    print("\n| difference, by set | " + " | ".join(HELD_OUT) + " |")
    print("|---" * (len(HELD_OUT) + 1) + "|")
    for arm in notes:
        rows = {f"{arm}, merged": [runs[arm][-1]] * len(seeds)} if arm == PLAIN else {arm: runs[arm][:-1]}
        for shown, taken in rows.items():
            found = against(taken)["sets"]
            print(f"| {shown} | " + " | ".join(cell(found[name]["difference"]) for name in HELD_OUT) + " |")


def main() -> None:
    """Print each result as it comes, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    build, model = built(given.data, given.folder), given.folder / "smollm2"
    if not model.exists():
        unpack(SMOLLM2, model, layers=LAYERS)
    common = {
        **{"model": str(model), "batch": given.batch, "negatives": given.negatives, "max_tokens": TOKENS, "lr": 1e-4},
        **{"warmup": given.steps // 10, "epochs": 1, "steps": given.steps, "keep": 1},
    }
    if not (given.folder / "before.json").exists():
        store.write_json(given.folder / "before.json", scores(model, build))
    print(f"before: {mean(store.read_json(given.folder / 'before.json')):.4f}", flush=True)
    for arm in given.arms:
        run(arm, given.seeds, given.folder, build, common)
    table(given.folder, given.seeds)


if __name__ == "__main__":
    main()
