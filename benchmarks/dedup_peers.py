"""One run of another near-duplicate remover over a parquet file of normalised texts; `dedup.py` starts it, with their Python.

    python benchmarks/dedup_peers.py NAME TEXTS.parquet FOLDER

All take words in threes and 16 bands of 8 rows (`daft-16x6`: of 6); datatrove runs as shipped (5 words, 14 bands of 8, its
English tokenizer). Daft has no LSH of its own: each band is hashed to 64 bits here, and equal ones are found by sorting. None of
the peers verifies exactly; gaoya checks candidates by the sketch. Prints one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BANDS, ROWS, WORDS = 16, 8, 3


def daft_raw(table: pa.Table, folder: Path) -> int:
    """Do as `daft` on texts as they are, normalised by Daft."""
    import daft as tool
    from daft.functions import normalize

    raw = tool.col("text")
    return daft(table, folder, form=normalize(raw, remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True))


def daft(table: pa.Table, folder: Path, rows: int = ROWS, form: object = None) -> int:
    """Return how many texts share a band with another one, by Daft's minhash and numpy."""
    import daft
    from daft.functions import minhash

    sketch = minhash(
        daft.col("form") if form is None else form, num_hashes=BANDS * rows, ngram_size=WORDS, hash_function="xxhash64"
    )
    found = daft.from_arrow(table).select(sketch.alias("m")).to_arrow()["m"].combine_chunks()
    values = np.asarray(found.flatten()).reshape(len(table), BANDS, rows)
    odd = np.random.default_rng(0).integers(1 << 63, size=rows, dtype=np.uint64) | np.uint64(1)
    flagged = np.zeros(len(table), bool)
    for band in range(BANDS):
        keys = np.zeros(len(table), np.uint64)  # a band's values as one number
        for row in range(rows):
            keys = (keys ^ values[:, band, row]) * odd[row]
        order = np.argsort(keys)
        same = keys[order[1:]] == keys[order[:-1]]
        flagged[order[1:][same]] = flagged[order[:-1][same]] = True
    return int(flagged.sum())


def rensa(table: pa.Table, folder: Path) -> int:
    """Return how many texts share a band with another one, by rensa's matrix of R-MinHash sketches."""
    from rensa import RMinHash, RMinHashLSH

    words = (text.split(" ") for text in table["form"].to_pylist())
    sets = [{" ".join(some[at : at + WORDS]) for at in range(max(1, len(some) - WORDS + 1))} for some in words]
    matrix = RMinHash.digest_matrix_from_token_sets(sets, num_perm=BANDS * ROWS, seed=42)
    return sum(RMinHashLSH(threshold=0.8, num_perm=BANDS * ROWS, num_bands=BANDS).query_duplicate_flags_matrix_one_shot(matrix))


def gaoya(table: pa.Table, folder: Path) -> int:
    """Return how many texts gaoya's index finds another one for."""
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=32, jaccard_threshold=0.8, num_bands=BANDS, band_size=ROWS, analyzer="word", ngram_range=(WORDS, WORDS)
    )
    texts = table["form"].to_pylist()
    index.par_bulk_insert_docs(list(range(len(texts))), texts)
    return sum(len(found) > 1 for found in index.par_bulk_query(texts))


def text_dedup(table: pa.Table, folder: Path) -> int:
    """Return how many texts text-dedup's command drops."""
    source = folder / "in.parquet"
    pq.write_table(table.rename_columns(["text"]), source)
    wanted = {"path": "parquet", "data_files": source, "split": "train", "column": "text", "output": folder / "out"}
    wanted |= {"threshold": 0.8, "num_perm": BANDS * ROWS, "b": BANDS, "r": ROWS, "ngram": WORDS, "min_length": 1}
    wanted |= {"cache_dir": folder / "cache", "num_proc": os.cpu_count(), "hash_func": "xxh3", "batch_size": 10000}
    options = [part for key, value in wanted.items() for part in (f"--{key}", str(value))]
    subprocess.run([sys.executable, "-m", "text_dedup.minhash", *options], check=True, capture_output=True)
    import datasets

    return len(table) - len(datasets.load_from_disk(str(folder / "out")))


def datatrove(table: pa.Table, folder: Path) -> int:
    """Return how many texts datatrove's four steps drop."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig()
    (folder / "in").mkdir()
    lines = [json.dumps({"text": text, "id": str(at)}) for at, text in enumerate(table["form"].to_pylist())]
    (folder / "in" / "texts.jsonl").write_text("\n".join(lines))
    at = {name: str(folder / name) for name in ("in", "signatures", "buckets", "removed", "out")}
    buckets = MinhashDedupBuckets(input_folder=at["signatures"], output_folder=at["buckets"], config=config)
    cluster = MinhashDedupCluster(input_folder=at["buckets"], output_folder=at["removed"], config=config)
    steps = [
        ([JsonlReader(at["in"]), MinhashDedupSignature(output_folder=at["signatures"], config=config)], 1),
        ([buckets], config.num_buckets),
        ([cluster], 1),
        ([JsonlReader(at["in"]), MinhashDedupFilter(input_folder=at["removed"]), JsonlWriter(at["out"], compression=None)], 1),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / f"log{number}")).run()
    return len(table) - sum(len(path.read_text().splitlines()) for path in (folder / "out").iterdir())


def main() -> None:
    """Run one peer."""
    name, source, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    peers: dict[str, Callable[[pa.Table, Path], int]] = {"daft": daft, "daft-16x6": partial(daft, rows=6), "daft-raw": daft_raw}
    peers |= {"gaoya": gaoya, "rensa": rensa, "text-dedup": text_dedup, "datatrove": datatrove}
    work = peers[name]
    for module in {"daft": ["daft.functions"], "gaoya": ["gaoya.minhash"], "rensa": ["rensa"]}.get(name.partition("-")[0], []):
        importlib.import_module(module)
    wall = time.perf_counter()
    cpu = os.times()
    found = work(pq.read_table(source, columns=["text" if name == "daft-raw" else "form"]), folder)
    used = sum(os.times()[:4]) - sum(cpu[:4])
    own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    peak = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps({"seconds": time.perf_counter() - wall, "cpu": used, "peak_mb": peak / 1e3, "flagged": found}))


if __name__ == "__main__":
    main()
