"""How near-duplicate removal grows: CPU-seconds and memory against the number of texts, each size in a process of its own.

    python benchmarks/dedup_curve.py 10000,100000,1000000,5000000,60000000 [LOWEST]

Texts of `dedup_texts.synthesised`, pairs stored down to LOWEST (default: 0.7, as in a build). Draws `dedup.svg` beside this
file. "Own" memory is what is no page of a mapped file; the system takes those back when it wants to. A process that asks for
more than MOST fails. 60 million texts need 17 GB of disk (0.8), or 21 (0.7), beside 5 GB for the texts.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from dedup import load_compiled, peak_kb
from dedup_texts import synthesised

from curation.clean.pairs import families, near
from curation.core.tables import write_blocks

MOST = 3 * 10**9  # bytes of private memory, as the system counts them (RLIMIT_DATA): also what is asked for and never touched


def watch(held: list[int]) -> None:
    """Append, twenty times per second, how many kB of memory are this process's own, mapped files left out."""
    while True:
        held.append(int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]))
        time.sleep(0.05)


def one_size(path: Path, texts: int, lowest: float) -> None:
    """Print seconds and peak memory of `near` and `families` over the first texts of a file, reading included, at most MOST."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
    load_compiled()
    held = [0]
    Thread(target=watch, args=(held,), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        found = near(first_texts(path, texts), lowest, Path(folder))
        family = families(found, 0.8)
        seconds, used = time.perf_counter() - wall, time.process_time() - cpu
        size = (Path(folder) / "data").stat().st_size / 1e6
    result = {
        "texts": texts,
        "mb": size,
        "seconds": seconds,
        "cpu": used,
        "peak_gb": peak_kb() / 1e6,
        "own_gb": max(held) / 1e6,
        "pairs": len(found.score),
        "families": sum(int(np.count_nonzero(part == first + np.arange(len(part)))) for first, part in _parts(family)),
    }
    print(json.dumps(result))


def _parts(family: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a million numbers at a time: `np.unique` of sixty million takes more memory than all that came before."""
    for first in range(0, len(family), 1 << 20):
        yield first, family[first : first + (1 << 20)]


def first_texts(path: Path, texts: int) -> Iterator[pl.Series]:
    """Yield the first texts of a file in batches; without `pre_buffer=False` the reader would keep all that it has read."""
    for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(1 << 16):
        yield pl.Series(batch["text"])[:texts]
        texts -= min(len(batch), texts)
        if not texts:
            return


def curve(sizes: list[int], lowest: str) -> None:
    """Run each size in a process of its own, print the figures and draw the picture."""
    points = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.parquet"
        write_blocks(path, (batch.alias("text").to_frame() for batch in synthesised(max(sizes))))
        for size in sizes:
            command = [sys.executable, __file__, "size", str(path), str(size), lowest]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            points.append(json.loads(done.stdout.splitlines()[-1]))
            print(points[-1], flush=True)
    Path(__file__).with_name("dedup.svg").write_text(picture(points))


def picture(points: list[dict[str, float]]) -> str:
    """Return a log-log plot of CPU-seconds and peak memory against texts, as SVG."""
    left, low, wide, high = 60, 300, 460, 260
    most = 10 ** math.ceil(math.log10(max(max(one["cpu"], one["peak_gb"]) for one in points)))
    least = 10 ** math.floor(math.log10(min(min(one["cpu"], one["own_gb"]) for one in points)))
    first, last = points[0]["texts"], points[-1]["texts"]

    def x(texts: float) -> float:
        return left + wide * math.log(texts / first) / max(math.log(last / first), 1e-9)

    def y(value: float) -> float:
        return low - high * math.log(value / least) / math.log(most / least)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-family="sans-serif" font-size="13">']
    parts.append('<rect width="640" height="360" fill="white"/>')
    for power in range(round(math.log10(least)), round(math.log10(most)) + 1):
        parts.append(f'<path d="M{left} {y(10**power):.1f}h{wide}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(10**power) + 4:.1f}" text-anchor="end">{10**power:g}</text>')
    parts += [f'<text x="{x(one["texts"]):.1f}" y="{low + 20}" text-anchor="middle">{one["texts"]:,}</text>' for one in points]
    for key, name, colour in (
        ("cpu", "CPU-seconds", "#1f6fb2"),
        ("peak_gb", "peak GB", "#b2521f"),
        ("own_gb", "own GB", "#3f8f4f"),
    ):
        line = " ".join(f"{x(one['texts']):.1f},{y(one[key]):.1f}" for one in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(one["texts"]):.1f}" cy="{y(one[key]):.1f}" r="4" fill="{colour}"/>' for one in points]
        parts.append(f'<text x="{left + wide + 10}" y="{y(points[-1][key]) + 4:.1f}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{left + wide / 2}" y="345" text-anchor="middle">texts</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Read the arguments."""
    if sys.argv[1] == "size":
        return one_size(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    return curve([int(word) for word in sys.argv[1].split(",")], (*sys.argv[2:], "0.7")[0])


if __name__ == "__main__":
    main()
