"""Near-duplicates: ours and other tools on the same texts, each in a process of its own, in turns; medians and ratios.

    python benchmarks/dedup.py [TEXTS] [ROUNDS] [--peers PYTHON]

Texts: those of ../shared/data, every twentieth once more with a word changed. `ours` stores pairs down to 0.7 (26 bands of 5
rows), `ours-16x6` down to 0.8. datasketch does the same work as the latter: the same normalising (polars), the same
shingles as Python sets, xxhash's 32 bits, `MinHash.bulk` with affine32, `MinHashLSH` with the same bands, the exact Jaccard of
every candidate pair. The other peers (`dedup_peers.py`) get normalised texts and take words in threes. text-dedup and
datatrove get a part of the texts, and ours runs over the same part beside them. All but ours and Daft run once.
Reading the file is in the seconds of all, imports and loading of compiled code in none; `cold` is all of the process.
`daft-raw` normalises too, with Daft's own function. Recall and precision are over texts that have a near-duplicate, against all
pairs with Jaccard >= 0.8, found by a join on each text's rarest shingles.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import xxhash
from datasketch import MinHash, MinHashLSH
from dedup_texts import corpus, truth
from shingle_oracle import kinds_of

from curation.clean.pairs import bands_for, near, slices
from curation.clean.shingles import CHARS, EXACT, SPACELESS, WIDTH, WORDS
from curation.core.text import normalised

THRESHOLD = 0.8
TEXTS, ROUNDS = 220_000, 3
FAST = ("ours", "ours-16x6", "daft", "daft-16x6")
ONCE = ("daft-raw", "rensa", "gaoya", "datasketch", "text-dedup", "datatrove")
OWN = ("ours", "ours-16x6", "datasketch")  # what runs in our Python
PART = {"text-dedup": 50_000, "datatrove": 10_000}  # texts


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
    measured = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "flagged": len(found)}
    np.save(out / "found.npy", np.array(sorted(found)))
    print(json.dumps({**measured, "peak_mb": peak_kb() / 1e3}))


def run(name: str, source: Path, python: str) -> dict[str, float]:
    """Run one remover in a process of its own; `cold` is the whole process, imports and compiled code included."""
    here = Path(__file__)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(here), "child", name]
        if name not in OWN:
            command = [python, str(here.with_name("dedup_peers.py")), name]
        before, started = used_by_children(), time.perf_counter()
        done = subprocess.run([*command, str(source), folder], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return {}
        measured = {**json.loads(done.stdout.splitlines()[-1]), "cold": time.perf_counter() - started}
        measured["cold_cpu"] = used_by_children() - before
        print(name, {key: round(value, 2) for key, value in measured.items()}, flush=True)
        return measured | ({"found": set(np.load(Path(folder) / "found.npy").tolist())} if name in OWN else {})


def used_by_children() -> float:
    """Return the CPU-seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(count: int, rounds: int, python: str | None) -> None:
    """Print every remover's medians, and how many times as fast ours is on the same texts."""
    texts = corpus(count)
    print(f"{len(texts):,} texts, {texts.str.len_bytes().sum() / 1e6:.1f} MB")
    known = truth(texts, THRESHOLD)
    print(f"{len(known):,} texts have a near-duplicate")
    with tempfile.TemporaryDirectory() as place:
        frame = pl.DataFrame({"text": texts, "form": normalised(texts).fill_null("")})
        whole = written(frame, Path(place))
        runs: dict[str, list[dict[str, float]]] = {}
        run("ours", whole, "")  # not counted: it compiles what the cache on disk does not hold yet
        for name in FAST * rounds + tuple(name for name in ONCE if name not in PART):
            if python or name in OWN:
                runs.setdefault(name, []).append(run(name, whole, python or ""))
        show(runs, len(frame), known)
        for name in PART if python else ():
            part = frame.gather_every(max(1, len(frame) // PART[name]))
            once = [run(name, written(part, Path(place)), python or "")]
            own = {ours: [run(ours, written(part, Path(place)), "") for _ in range(rounds)] for ours in FAST[:2]}
            show({**own, name: once}, len(part), None)


def written(frame: pl.DataFrame, folder: Path) -> Path:
    """Write texts for the removers to read."""
    path = folder / f"{len(frame)}.parquet"
    frame.write_parquet(path)
    return path


def show(runs: dict[str, list[dict[str, float]]], count: int, known: set[int] | None) -> None:
    """Print a line for each remover that ran over the same `count` texts."""
    runs = {name: good for name, found in runs.items() if (good := [one for one in found if one])}
    cpu = {name: statistics.median(one["cpu"] for one in good) for name, good in runs.items()}
    cold = {name: statistics.median(one["cold_cpu"] for one in good) for name, good in runs.items()}
    for name, seconds in cpu.items():
        ratios = ", ".join(
            f"{ours} {seconds / cpu[ours]:.2f}x (whole process {cold[name] / cold[ours]:.2f}x)"
            for ours in FAST[:2]
            if ours in cpu
        )
        print(f"{name}: {count:,} texts, {medians_of(runs[name])}, {count / seconds:,.0f} texts/CPU-s; {ratios}", end="")
        flagged = runs[name][0].get("found") if known else None
        both = len(flagged & known) if flagged else 0
        print(f"; recall {both / len(known):.5f}, precision {both / len(flagged):.5f}" if flagged else "", flush=True)


def medians_of(runs: list[dict[str, float]]) -> str:
    """Return medians with the least and the most."""
    parts = []
    for key, unit in (("seconds", "s"), ("cpu", "CPU-s"), ("cold", "s cold"), ("cold_cpu", "CPU-s cold"), ("peak_mb", "MB")):
        values = sorted(one[key] for one in runs)
        parts.append(f"{statistics.median(values):.2f} {unit} ({values[0]:.2f} to {values[-1]:.2f})")
    return ", ".join(parts)


def main() -> None:
    """Read the arguments."""
    if sys.argv[1:2] == ["child"]:
        return child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("texts", nargs="?", type=int, default=TEXTS)
    reader.add_argument("rounds", nargs="?", type=int, default=ROUNDS)
    reader.add_argument(
        "--peers",
        default=os.environ.get("PEERS_PYTHON"),
        help="a Python that has daft, rensa, gaoya, text-dedup and datatrove; default: PEERS_PYTHON",
    )
    wanted = reader.parse_args()
    return compare(wanted.texts, wanted.rounds, wanted.peers)


if __name__ == "__main__":
    main()
