"""Near-duplicates: ours and other tools on the same texts, each in a process of its own, in turns; medians and ratios.

    python benchmarks/dedup.py [TEXTS] [ROUNDS] [--peers PYTHON]
    python benchmarks/dedup.py --curve 10000,100000,1000000,5000000

Texts: those of ../shared/data, every twentieth once more with a word changed. `ours` stores pairs down to 0.7 (26 bands of 5
rows), `ours-16x6` down to 0.8. datasketch does the same work as the latter: the same normalising (polars), the same
shingles as Python sets, xxhash's 32 bits, `MinHash.bulk` with affine32, `MinHashLSH` with the same bands, the exact Jaccard of
every candidate pair. The other peers (`dedup_peers.py`) get normalised texts and take words in threes. Reading the file is in the
seconds of all, imports and loading of compiled code in none; `cold` is all of the process. `daft-raw` normalises too, Daft's way.
Recall and precision are over texts that have a near-duplicate, against all pairs with Jaccard >= 0.8, found by a join on each
text's rarest shingles.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import xxhash
from datasketch import MinHash, MinHashLSH

from curation.duplicates.near import bands_for, near, slices
from curation.duplicates.shingles import CHARS, EXACT, LONGER, SPACELESS, WIDTH, WORDS, kinds_of, shingle
from curation.schema import draws
from curation.store import write_blocks
from curation.text import normalised

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
THRESHOLD = 0.8
TEXTS, ROUNDS = 220_000, 3
LEAST_CHARS = 40
BORDER = 1 << 40  # added to the number of a text taken as a shorter one


def strings(value: object) -> Iterator[str]:
    """Yield every string within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def strings_of(path: Path) -> Iterator[str]:
    """Yield the texts of a file: JSON strings, cells, lines, or the files of an archive."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            yield from (archive.extractfile(member).read().decode("utf-8", "replace") for member in archive if member.isfile())
    elif path.suffix in (".json", ".jsonl"):
        yield from strings(json_of(path.read_text("utf-8", "replace")))
    elif path.suffix == ".csv":
        yield from (cell for row in csv.reader(path.read_text("utf-8", "replace").splitlines()) for cell in row)
    elif path.suffix in (".tsv", ".txt"):
        yield from (cell for line in path.read_text("utf-8", "replace").splitlines() for cell in line.split("\t"))


def json_of(whole: str) -> object:
    """Return a JSON document, or JSON Lines as a list."""
    try:
        return json.loads(whole)
    except ValueError:
        return [json.loads(line) for line in whole.splitlines()]


def corpus(count: int) -> pl.Series:
    """Return texts drawn evenly over all files; the last twentieth are others with one word changed."""
    every = (text for path in sorted(DATA.rglob("*")) if path.is_file() for text in strings_of(path))
    found = pl.Series(list(dict.fromkeys(text for text in every if len(text) >= LEAST_CHARS)))
    own = min(len(found), count - count // 20)
    texts = found.gather(np.linspace(0, len(found) - 1, own).astype(int)).to_list()
    edited = [text.split(" ") for text in texts[:: max(1, own // (count // 20))]]
    for at, words in enumerate(edited):
        words[at % len(words)] = "changed"
    return pl.Series([*texts, *(" ".join(words) for words in edited)])


def sets_of(forms: pl.Series) -> list[set[bytes]]:
    """Return the shingles of each normalised text, in Python."""
    made = []
    for form, kind in zip(forms, kinds_of(forms), strict=True):
        width = WIDTH[kind]
        if kind == WORDS:
            words = form.split(" ")
            made.append({" ".join(words[at : at + width]).encode() for at in range(len(words) - width + 1)})
        elif kind in (CHARS, SPACELESS):
            made.append({form[at : at + width].encode() for at in range(len(form) - width + 1)})
        else:
            made.append({form.encode()} if kind == EXACT and form else set())
    return made


def theirs(texts: pl.Series) -> set[int]:
    """Return the texts that have a near-duplicate, by datasketch and exact verification."""
    sets = sets_of(normalised(texts).fill_null(""))
    bands, rows = bands_for(THRESHOLD)
    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    made = MinHash.bulk(sets, num_perm=bands * rows, scheme="affine32", hashfunc=xxhash.xxh32_intdigest)
    found: set[int] = set()
    with index.insertion_session() as session:
        for at, sketch in enumerate(made):
            if sets[at]:
                session.insert(at, sketch, check_duplication=False)
    for at, sketch in enumerate(made):
        for other in index.query(sketch) if sets[at] else ():
            if other < at and len(sets[at] & sets[other]) >= THRESHOLD * len(sets[at] | sets[other]):
                found |= {at, other}
    return found


def ours(texts: pl.Series, lowest: float = 0.7) -> set[int]:
    """Return the texts that have a near-duplicate, by us: the production path, pairs stored down to `lowest`."""
    with tempfile.TemporaryDirectory() as folder:
        found = near(slices(texts), lowest, Path(folder))
    good = found.score >= THRESHOLD
    firsts, copies = np.unique(found.form, return_counts=True)
    some = np.concatenate([found.left[good], found.right[good], firsts[copies > 1]])
    return set(np.flatnonzero(np.isin(found.form, some)).tolist())


def truth(texts: pl.Series) -> set[int]:
    """Return the texts that have a near-duplicate: texts of Jaccard >= t share one of their rarest (1 - t) n + 1 shingles."""
    frames, first = [], 0
    for part in (texts.slice(start, 5000) for start in range(0, len(texts), 5000)):
        forms = normalised(part).fill_null("")
        made = shingle(forms)
        owner = first + np.repeat(np.arange(len(part)), np.diff(made.starts))
        exact = np.flatnonzero((made.kinds == EXACT) & (made.forms != 0))
        frames.append(
            pl.DataFrame(
                {
                    "text": np.append(owner, first + exact),
                    "kind": np.append(made.kinds[owner - first], made.kinds[exact]),
                    "hash": np.append(made.hashes, made.forms[exact]),
                }
            ).unique()
        )
        border = forms.filter(pl.Series((made.kinds == WORDS) & (np.diff(made.starts) <= LONGER - WIDTH[WORDS])))
        again = shingle(border, longer=True)
        owner = first + np.flatnonzero((made.kinds == WORDS) & (np.diff(made.starts) <= LONGER - WIDTH[WORDS]))
        owner = BORDER + np.repeat(owner, np.diff(again.starts))
        frames.append(pl.DataFrame({"text": owner, "kind": np.full(len(owner), CHARS, np.uint8), "hash": again.hashes}).unique())
        first += len(part)
    long = pl.concat(frames).with_columns(pl.len().over("hash").alias("often"), pl.len().over("text").alias("size"))
    rank = pl.struct("often", "hash").rank("ordinal").over("text")
    rare = long.filter(rank <= ((1 - THRESHOLD) * pl.col("size") + 1e-9).floor() + 1).select("text", "kind", "hash", "size")
    met = rare.join(rare, on=["hash", "kind"], suffix="_b").filter(pl.col("text") < pl.col("text_b"))
    sizes = pl.min_horizontal("size", "size_b") >= THRESHOLD * pl.max_horizontal("size", "size_b")
    met = met.filter(sizes).select("text", "text_b", "size", "size_b").unique()
    sets = dict(
        long.join(pl.concat([met["text"], met["text_b"]]).unique().to_frame(), on="text", how="semi")
        .group_by("text")
        .agg("hash")
        .iter_rows()
    )
    sets = {text: set(hashes) for text, hashes in sets.items()}
    found: set[int] = set()
    for a, b, n, m in met.iter_rows():
        both = len(sets[a] & sets[b])
        if both >= THRESHOLD * (n + m - both) and min(a, b) < BORDER:
            found |= {a % BORDER, b % BORDER}
    return found


def peak_kb() -> int:
    """Return the most memory this process had, mapped files included; ru_maxrss would begin with the parent's."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def load_compiled() -> None:
    """Have every compiled loop loaded: texts short and long, ASCII and not, with a pair among them."""
    words = [f"word{at}" for at in range(40)]
    ours(pl.Series([" ".join(words), " ".join([*words, "more"]), " ".join(words[:12]), "état"]))


def child(name: str, source: Path, out: Path) -> None:
    """Run one of ours or datasketch in this process; print seconds, CPU-seconds and peak memory, and write what was found."""
    load_compiled()
    wall, cpu = time.perf_counter(), time.process_time()
    texts = pl.read_parquet(source, columns=["text"])["text"]
    found = {"ours": ours, "ours-16x6": lambda some: ours(some, THRESHOLD), "datasketch": theirs}[name](texts)
    told = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "flagged": len(found)}
    np.save(out / "found.npy", np.array(sorted(found)))
    print(json.dumps({**told, "peak_mb": peak_kb() / 1e3}))


def run(name: str, source: Path, python: str) -> dict[str, float]:
    """Run one remover in a process of its own; `cold` is the whole process, imports and compiled code included."""
    here = Path(__file__)
    with tempfile.TemporaryDirectory() as folder:
        own = name.startswith("ours") or name == "datasketch"
        command = [sys.executable, str(here), "child", name] if own else [python, str(here.with_name("dedup_peers.py")), name]
        started = time.perf_counter()
        done = subprocess.run([*command, str(source), folder], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            return {}
        told = {**json.loads(done.stdout.splitlines()[-1]), "cold": time.perf_counter() - started}
        return told | ({"found": set(np.load(Path(folder) / "found.npy").tolist())} if own else {})


def compare(count: int, rounds: int, python: str | None, slow: int) -> None:
    """Print every remover's medians; the slow peers run once, over `slow` of the texts."""
    texts = corpus(count)
    print(f"{len(texts):,} texts, {texts.str.len_bytes().sum() / 1e6:.1f} MB")
    taken: dict[str, list[dict[str, float]]] = {}
    fast = ["ours", "ours-16x6", "datasketch", *(["daft", "daft-raw", "gaoya"] if python else [])]
    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder) / "texts.parquet", Path(folder) / "part.parquet"
        frame = pl.DataFrame({"text": texts, "form": normalised(texts).fill_null("")})
        frame.write_parquet(whole)
        frame.gather_every(max(1, len(texts) // slow)).write_parquet(part)
        for name in fast * rounds:
            taken.setdefault(name, []).append(run(name, whole, python or ""))
        for name in ("text-dedup", "datatrove") if python else ():
            taken[name] = [run(name, part, python or "")]
        few = len(pl.read_parquet(part))
    known = truth(texts)
    print(f"{len(known):,} texts have a near-duplicate")
    rates: dict[str, tuple[float, float]] = {}
    for name, found in taken.items():
        good = [one for one in found if one]
        if not good:
            continue
        wall, cpu, peak, cold = (statistics.median(one[key] for one in good) for key in ("seconds", "cpu", "peak_mb", "cold"))
        size = len(texts) if name in fast else few
        rates[name] = size / wall, size / cpu
        line = f"{name}: {size:,} texts, {wall:.2f} s (cold {cold:.2f}), {cpu:.2f} CPU-s, {size / wall:,.0f} texts/s, "
        line += f"{size / cpu:,.0f} texts/CPU-s, peak {peak:,.0f} MB, ours {rates['ours'][0] / rates[name][0]:.1f}x in seconds, "
        line += f"{rates['ours'][1] / rates[name][1]:.1f}x in CPU-seconds"
        if "found" in good[0]:
            flagged = good[0]["found"]
            line += f", recall {len(flagged & known) / len(known):.5f}, precision {len(flagged & known) / len(flagged):.5f}"
        print(line, flush=True)


def synthesised(count: int, batch: int = 1 << 16) -> Iterator[pl.Series]:
    """Yield batches of texts made of runs of 6 words of real ones, as long as these; one in twenty is an edit of another."""
    real = corpus(100_000).to_list()
    words = [text.split() for text in real]
    pieces = [" ".join(text[at : at + 6]) for text in words for at in range(0, len(text), 6)]
    lengths = np.array([max(1, len(text) // 6) for text in words])
    for first in range(0, count, batch):
        numbers = np.arange(first, min(first + batch, count))
        sizes = lengths[draws(1, "length", numbers) % len(lengths)]
        ends = np.cumsum(sizes)
        chosen = (draws(1, f"pieces {first}", np.arange(ends[-1])) % len(pieces)).tolist()
        made = [
            " ".join([pieces[at] for at in chosen[end - size : end]])
            for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)
        ]
        made[1::20] = [text.rsplit(" ", 1)[0] + " changed" for text in made[0::20][: len(made[1::20])]]
        yield pl.Series(made)


def watch(held: list[int]) -> None:
    """Append, twenty times a second, how many kB of memory are this process's own, mapped files left out."""
    while True:
        held.append(int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]))
        time.sleep(0.05)


def one_size(path: Path) -> None:
    """Print seconds and peak memory of `near` over the texts of a file, reading included."""
    file = pq.ParquetFile(path)
    batches = (pl.Series(batch["text"]) for batch in file.iter_batches(1 << 16))
    load_compiled()
    held = [0]
    Thread(target=watch, args=(held,), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        found = near(batches, 0.7, Path(folder))
        seconds, used = time.perf_counter() - wall, time.process_time() - cpu
        size = (Path(folder) / "data").stat().st_size / 1e6
    told = {
        "texts": file.metadata.num_rows,
        "mb": size,
        "seconds": seconds,
        "cpu": used,
        "peak_gb": peak_kb() / 1e6,
        "own_gb": max(held) / 1e6,
        "pairs": len(found.score),
    }
    print(json.dumps(told))


def curve(sizes: list[int]) -> None:
    """Run each size in a process of its own, print the figures and draw `dedup.svg` beside this file."""
    points = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "texts.parquet"
            write_blocks(path, (batch.alias("text").to_frame() for batch in synthesised(size)))
            done = subprocess.run([sys.executable, __file__, "size", str(path)], capture_output=True, text=True, check=True)
            points.append(json.loads(done.stdout.splitlines()[-1]))
            print(points[-1], flush=True)
    Path(__file__).with_suffix(".svg").write_text(picture(points))


def picture(points: list[dict[str, float]]) -> str:
    """Return a log-log plot of CPU-seconds and peak memory against texts, as SVG."""
    left, low, wide, high = 60, 300, 460, 260
    most = 10 ** math.ceil(math.log10(max(max(one["cpu"], one["peak_gb"]) for one in points)))
    least = 10 ** math.floor(math.log10(min(min(one["cpu"], one["peak_gb"]) for one in points)))
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
    for key, name, colour in (("cpu", "CPU-seconds", "#1f6fb2"), ("peak_gb", "peak GB", "#b2521f")):
        line = " ".join(f"{x(one['texts']):.1f},{y(one[key]):.1f}" for one in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(one["texts"]):.1f}" cy="{y(one[key]):.1f}" r="4" fill="{colour}"/>' for one in points]
        parts.append(f'<text x="{left + wide + 10}" y="{y(points[-1][key]) + 4:.1f}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{left + wide / 2}" y="345" text-anchor="middle">texts</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Read the arguments."""
    if sys.argv[1:2] == ["child"]:
        return child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    if sys.argv[1:2] == ["size"]:
        return one_size(Path(sys.argv[2]))
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("texts", nargs="?", type=int, default=TEXTS)
    reader.add_argument("rounds", nargs="?", type=int, default=ROUNDS)
    reader.add_argument(
        "--peers",
        default=os.environ.get("PEERS_PYTHON"),
        help="a Python that has daft, gaoya, text-dedup and datatrove; default: PEERS_PYTHON",
    )
    reader.add_argument("--slow", type=int, default=20_000, help="texts for text-dedup and datatrove")
    reader.add_argument("--curve", help="sizes, such as 10000,100000: only draw the curve")
    wanted = reader.parse_args()
    if wanted.curve:
        return curve([int(word) for word in wanted.curve.split(",")])
    return compare(wanted.texts, wanted.rounds, wanted.peers, wanted.slow)


if __name__ == "__main__":
    main()
