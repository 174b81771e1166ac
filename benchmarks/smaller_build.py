"""A mined build with fewer tuples of each source, for benchmarks that train few steps; the whole one is only read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curation.core import store, tables
from curation.core.record import draws


def smaller(build: Path, folder: Path, rows: int, only: Sequence[str] = ()) -> Path:
    """Write a build of some sources of another, by default of all that are mined, with a draw of the tuples of each."""
    folder.mkdir()
    (folder / "curated").symlink_to(build.resolve() / "curated")
    entries = store.read_json(build / "build.json")
    there = [name for name in entries["sources"] if (build / "mined" / name / store.RECEIPT).exists()]
    mined = [name for name in there if not only or name in only]
    store.write_json(folder / "build.json", {**entries, "sources": {name: entries["sources"][name] for name in mined}})
    for name in mined:
        pairs = tables.read_table(build / "mined" / name, "pairs")
        pairs = pairs[np.sort(np.argsort(draws(0, f"{name}/smaller", np.arange(len(pairs))))[:rows])]
        receipt = store.read_receipt(build / "mined" / name) or {}

        def write(part: Path, pairs=pairs, receipt=receipt) -> dict[str, object]:
            tables.write_table(part, "pairs", pairs)
            return {"curated": receipt["curated"]}

        store.run_stage(folder / "mined" / name, f"{receipt['digest']}/{rows}", write)
    return folder
