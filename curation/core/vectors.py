"""Stored vectors, as mining writes them and training reads them: each text once, found by its key.

    embeddings/encoders.json                            the encoders that vectors were made with, see `encoders_of`
               <fingerprint>/meta.json                  one encoder: model, pooling, dtype, ...; dim; format
                             shard-00000.f32            rows x dim float32 (.f16: float16), nothing else
                             shard-00000.keys           rows x 16 bytes: `key_of` each text as encoded
                             shard-00000.json           rows and digests of both files: the receipt, written last

The text as encoded includes its prompt, so a query and a passage with the same words have one vector each. Shards are only
added, and read through memory maps. A shard without a receipt, or whose files differ from it, counts as absent.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np

from curation.core import store
from curation.core.errors import BuildError

ROWS = 4_096  # texts per shard: encoded together, and the most that a kill can lose
RESIDENT = 1 << 28  # bytes of shards read before their pages are released; otherwise all that was ever read counts as ours
ENDINGS = {"float32": "f32", "float16": "f16"}
KEY = np.dtype("S16")  # compared byte by byte; a fixed width keeps a trailing zero byte
ENCODE_AGAIN = "run `mine embed`, with the same `--model`, or `mine negatives` again: they encode what is missing"
ENCODERS = "encoders.json"  # digest of the request for a model -> `Known` of the model that was loaded


class Known(NamedTuple):
    """What encoders.json notes about an encoder."""

    fingerprint: str
    described: dict[str, Any]
    dim: int
    prompts: dict[str, Any]  # the fields of `training.model.prompts.Prompts`


def read_encoders(build: Path) -> list[Known]:
    """Return what is noted of the encoders of a build's vectors."""
    path = build / "embeddings" / ENCODERS
    notes = store.read_sealed(path, "delete it and run the command again, which keeps the vectors") if path.exists() else {}
    return [Known(*entry) for entry in notes.values() if isinstance(entry, list) and len(entry) == len(Known._fields)]


def encoders_of(build: Path, model: str) -> list[Known]:
    """Return what is noted of the encoders of a build's vectors whose model has this name, or is in this folder."""
    known = [(str(one.described["model"]), one) for one in read_encoders(build)]
    here = Path(model)  # two paths may name one folder
    return [one for name, one in known if name == model or (here.exists() and Path(name).exists() and here.samefile(name))]


class Stored:
    """Stored vectors, read by their places: shard number * ROWS + row in the shard."""

    def __init__(self, folder: Path, dim: int, kind: str = "float32") -> None:
        """Open a folder of shards; `kind` is float32 or float16."""
        self.folder, self.dim, self.kind = folder, dim, np.dtype(kind)
        self.shards: dict[int, np.ndarray] = {}  # number -> (rows, dim) memory map
        self.resident: dict[int, int] = {}  # shards read through their maps -> bytes; the system may load a whole one at once
        self.lock = Lock()  # of `resident`: several threads read at once
        self.keys = np.empty(0, KEY)  # sorted
        self.places = np.empty(0, np.int64)  # of each key
        self.new: list[tuple[np.ndarray, np.ndarray]] = []  # keys and places that are not in `keys` and `places` yet

    def __len__(self) -> int:
        """Return the number of vectors in the shards that were opened."""
        return sum(map(len, self.shards.values()))

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Return the vectors (n, dim) float32 at these places, in the given order."""
        found = np.empty((len(places), self.dim), np.float32)
        ascending = bool((np.diff(places) >= 0).all())
        order = np.arange(len(places)) if ascending else np.argsort(places, kind="stable")  # shard by shard
        for here in np.split(order, np.flatnonzero(np.diff(places[order] // ROWS)) + 1) if len(order) else []:
            number = int(places[here[0]] // ROWS)
            shard, rows = self.open(number).view(np.ndarray), places[here] % ROWS
            if ascending and shard.dtype == found.dtype:  # straight into its place: "clip" lets `take` write there
                shard.take(rows, axis=0, out=found[here[0] : here[-1] + 1], mode="clip")
            else:
                found[here] = shard[rows]
            with self.lock:
                self.resident[number] = self.shards[number].nbytes
                if sum(self.resident.values()) > RESIDENT:
                    for number in self.resident:
                        cast(Any, self.shards[number])._mmap.madvise(mmap.MADV_DONTNEED)
                    self.resident.clear()
        return found

    def open(self, number: int, check: bool = True) -> np.ndarray:
        """Return a shard (rows, dim) as a memory map; without `check`, its files are not digested when it is opened.

        Raises:
            BuildError: a file of the shard is missing, or differs from its receipt.
        """
        if number not in self.shards:
            receipt = store.read_json(self.path(number, "json"), ENCODE_AGAIN)
            for ending in (ENDINGS[self.kind.name], "keys"):
                path = self.path(number, ending)
                if not path.is_file():
                    raise BuildError(path, "was removed since it was written", ENCODE_AGAIN)
                if check and (not isinstance(receipt, dict) or store.digest_now(path) != receipt.get(ending)):
                    raise BuildError(path, "was changed since it was written (its digest is not the receipt's)", ENCODE_AGAIN)
            shape = (int(receipt["rows"]), self.dim)
            self.shards[number] = np.memmap(self.path(number, ENDINGS[self.kind.name]), self.kind, "r", shape=shape)
        return self.shards[number]

    def path(self, number: int, ending: str) -> Path:
        """Return a file of a shard: f32 or f16, keys, or json."""
        return self.folder / f"shard-{number:05d}.{ending}"

    def load(self) -> list[Path]:
        """Read the keys of all shards on disk, for `find`; return the receipts of damaged ones."""
        damaged = []
        for receipt in sorted(self.folder.glob("shard-*.json")):
            number = int(receipt.stem.removeprefix("shard-"))
            try:
                self.open(number)
                self.add(number, np.fromfile(self.path(number, "keys"), KEY))
            except (BuildError, FileNotFoundError, KeyError, TypeError, ValueError):
                damaged.append(receipt)
        return damaged

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the place of each key, -1 where it has none."""
        if self.new:  # merge the keys of shards added since the last call
            fresh = np.concatenate([keys for keys, _ in self.new])
            order = np.argsort(fresh, kind="stable")
            at = np.searchsorted(self.keys, fresh[order])
            self.keys = np.insert(self.keys, at, fresh[order])
            self.places = np.insert(self.places, at, np.concatenate([places for _, places in self.new])[order])
            self.new.clear()
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.places[at], -1)

    def add(self, number: int, keys: np.ndarray) -> None:
        """Add a shard that was just written, or opened."""
        self.open(number, check=False)
        self.new.append((keys, number * ROWS + np.arange(len(keys))))
