"""Adding to the store of vectors (`curation.core.vectors`): each distinct text is encoded once and kept on disk.

One process cuts the missing texts into shards; workers may encode them. A shard without a receipt, or whose files differ from
it, is encoded again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np

from curation.core import store, vectors
from curation.core.progress import Advance
from curation.core.record import key_of
from curation.core.vectors import ENDINGS, KEY, Stored
from curation.engine.local import Here
from curation.engine.pool import Workers, held

FORMAT = 1  # raised with any change of the files, or of `vectors.ROWS`, which places depend on
GPU_THREADS = 3  # shards that a worker with a GPU encodes at once: one is tokenised, one computed, one written


class Vectors(Protocol):
    """Vectors of unit length or shorter, float32: an array, a memory map, or a part of the embedding store."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Vectoriser(Protocol):
    """What the store needs: a function from texts to vectors, and an identity for all that the vectors depend on."""

    fingerprint: str
    dim: int
    described: dict[str, object]

    def encode(self, texts: Sequence[str], advance: Advance = ...) -> np.ndarray:
        """Return (n, dim) float32, a function of `texts` alone."""
        ...


class Shard(NamedTuple):
    """Texts to be encoded together."""

    number: int
    texts: list[str]


class Embeddings(Stored):
    """An open store: `ensure` adds the missing texts, and indexing by places reads vectors."""

    def __init__(self, folder: Path, encoder: Vectoriser, kind: str = "float32") -> None:
        """Open, or start, the store of an encoder under `folder`; `kind` is float32 or float16.

        A store in the format of another version is emptied. Damaged shards lose their receipts. One process at a time may
        have a store open.

        Raises:
            BuildError: its meta.json is damaged.
        """
        own = encoder.fingerprint + ("" if kind == "float32" else f"-{ENDINGS[kind]}")
        super().__init__(folder / own, encoder.dim, kind)
        self.encoder = encoder
        path, meta = self.folder / "meta.json", {"format": FORMAT, "dim": self.dim, "encoder": encoder.described}
        self.folder.mkdir(parents=True, exist_ok=True)
        found = store.read_json(path) if path.exists() else None
        if not isinstance(found, dict) or (found.get("format"), found.get("dim")) != (FORMAT, self.dim):
            for old in self.folder.glob("shard-*"):  # of another version, whose vectors cannot be used
                old.unlink(missing_ok=True)
            store.write_json(path, meta)
        elif found.keys() != meta.keys():  # earlier versions wrote it without its own digest
            store.read_sealed(path, "delete it and run the command again, which keeps the vectors")
        for receipt in self.load():
            receipt.unlink(missing_ok=True)

    def ensure(self, texts: Iterable[str], advance: Advance = lambda n: None, workers: Workers | None = None) -> np.ndarray:
        """Encode the texts that are not in the store, in order of first need, and return the place (n,) int64 of each.

        Shards are cut from the missing texts alone, so interrupted runs, and any number of workers, write the same shards.

        Args:
            texts: the texts, read once.
            advance: called with the number of texts that are done: known texts at once, others when they are encoded.
            workers: who encodes; by default this process.
        """
        workers, counting = workers or Here(), Lock()
        keys, writing = list[np.ndarray](), dict[int, dict[bytes, str]]()  # writing: shards that are being encoded

        def advance_alone(count: int) -> None:  # from one thread at a time
            with counting:
                advance(count)

        def cut(missing: dict[bytes, str]) -> Shard:
            """Move the first missing texts into a shard."""
            number = next(n for n in itertools.count() if n not in self.shards and n not in writing)
            writing[number] = {key: missing.pop(key) for key in list(itertools.islice(missing, vectors.ROWS))}
            return Shard(number, list(writing[number].values()))

        def shards() -> Iterator[Shard]:
            missing, rest = dict[bytes, str](), iter(texts)
            while some := list(itertools.islice(rest, vectors.ROWS)):
                own = [key_of(text) for text in some]
                keys.append(np.array(own, KEY))
                new, before = np.flatnonzero(self.find(keys[-1]) < 0), len(missing)
                missing |= {own[i]: some[i] for i in new if not any(own[i] in one for one in (missing, *writing.values()))}
                advance_alone(len(some) - (len(missing) - before))
                while len(missing) >= vectors.ROWS:
                    yield cut(missing)
            if missing:
                yield cut(missing)

        if isinstance(workers, Here):
            encode = partial(write_shard, self.encoder, self.folder, self.kind.name, advance=advance_alone)
            for shard, done in workers.run(encode, shards(), getattr(self.encoder, "threads", 1)):
                done()
                self.add(shard.number, np.array(list(writing.pop(shard.number)), KEY))
        else:
            with store.temporary(self.folder / "texts") as folder:
                folder.mkdir()
                there = partial(_write_shard_there, self.encoder, self.folder, self.kind.name)
                files = (_save_texts(folder, shard) for shard in shards())
                for file, done in workers.run(there, files, GPU_THREADS if workers.device == "cuda" else 1):
                    done()
                    file.unlink()
                    some = writing.pop(int(file.stem))
                    self.add(int(file.stem), np.array(list(some), KEY))
                    advance(len(some))
        return self.find(np.concatenate(keys)) if keys else np.empty(0, np.int64)


def write_shard(encoder: Vectoriser, folder: Path, kind: str, shard: Shard, advance: Advance = lambda n: None) -> None:
    """Encode texts and write them as a shard, its receipt last."""
    stored, keys = Stored(folder, encoder.dim, kind), np.array([key_of(text) for text in shard.texts], KEY)
    vectors = np.ascontiguousarray(encoder.encode(shard.texts, advance), kind)
    assert vectors.shape == (len(keys), encoder.dim), f"the encoder gave {vectors.shape} for {len(keys)} texts"
    receipt: dict[str, object] = {"rows": len(keys)}
    for ending, values in ((ENDINGS[kind], vectors.tobytes()), ("keys", keys.tobytes())):
        path = stored.path(shard.number, ending)
        with store.atomic(path) as file:
            file.write(values)
        receipt[ending] = store.file_digest(path)
    store.write_json(stored.path(shard.number, "json"), receipt)


def _save_texts(folder: Path, shard: Shard) -> Path:
    """Write the texts of a shard for a worker, and return the file, whose name is the shard's number."""
    path = folder / f"{shard.number}.json"
    path.write_text(json.dumps(shard.texts), "ascii")
    return path


def _write_shard_there(encoder: Vectoriser, folder: Path, kind: str, texts: Path) -> None:
    """Write a shard in a worker, which keeps the encoder and its model."""
    kept = held(type(encoder).__name__, encoder.fingerprint, lambda: encoder)
    write_shard(kept, folder, kind, Shard(int(texts.stem), json.loads(texts.read_text("ascii"))))


class Part:
    """Some vectors of another collection, read when indexed: `part[10:20]`, `part[[3, 1]]` -> (n, dim) float32."""

    def __init__(self, vectors: Vectors, places: np.ndarray) -> None:
        self.vectors, self.places = vectors, places

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.places)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the vectors of a slice or of an array of rows."""
        return self.vectors[self.places[rows]]
