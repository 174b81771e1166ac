"""The embedding store: each distinct text encoded once, kept on disk, read through memory maps.

    embeddings/<fingerprint>/meta.json                  who encoded: model, pooling, dtype, ...; dim; format
                             shard-00000.f32            rows x dim float32, nothing else
                             shard-00000.keys           rows x 16 bytes: schema.key_of the text as encoded
                             shard-00000.json           rows and digests of the two files: the receipt, written last

The text as encoded includes its prompt, so a query and a passage of the same words have a vector each. Shards are only
added. A shard without a receipt, or with files that are not what the receipt says, does not count and is made again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from curation import store
from curation.errors import BuildError
from curation.progress import Advance
from curation.schema import key_of

FORMAT = 1  # raised with any change of the files, or of ROWS, which places count by
ROWS = 4_096  # texts a shard: what a kill can lose, and what is encoded together
KEY = np.dtype("S16")  # compared byte by byte, all 16 of them; a trailing zero byte is not lost in a fixed width


class Encoder(Protocol):
    """What mining needs of `training.encode.Encoder`."""

    fingerprint: str
    dim: int
    described: dict[str, object]

    def query(self, instruction: str, text: str) -> str:
        """Return the query with its prompt."""
        ...

    def passage(self, text: str) -> str:
        """Return the passage with its prompt."""
        ...

    def encode(self, texts: Sequence[str], advance: Advance = ...) -> np.ndarray:
        """Return (n, dim) float32, unit rows, a function of `texts` alone."""
        ...


class Embeddings:
    """An open store. `ensure` adds what is missing; `view` reads."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        """Open, or begin, the store of an encoder under `folder`.

        Raises:
            BuildError: the store there was written in another format, or its meta.json is damaged.
        """
        self.folder, self.encoder = folder / encoder.fingerprint, encoder
        self.shards: dict[int, np.ndarray] = {}  # number -> (rows, dim) memory map
        self.keys = np.empty(0, KEY)  # sorted
        self.places = np.empty(0, np.int64)  # of each key: shard number * ROWS + row in the shard
        self._open()

    def __len__(self) -> int:
        """Return the number of distinct texts."""
        return len(self.keys)

    def ensure(self, texts: Iterable[str], advance: Advance = lambda n: None) -> np.ndarray:
        """Encode the texts that are not in the store, in order of first need, and return the place (n,) int64 of each.

        `advance` is told of every text: at once where it is known, as it is encoded otherwise.

        Shards are cut from the missing texts alone, so a run that was killed and started again makes the same ones.
        """
        keys, missing = [], dict[bytes, str]()
        for some in _batched(texts, ROWS):
            own = [key_of(text) for text in some]
            keys.append(np.array(own, KEY))
            new = self._find(keys[-1]) < 0
            before = len(missing)
            missing |= {own[i]: some[i] for i in np.flatnonzero(new) if own[i] not in missing}
            advance(len(some) - (len(missing) - before))
            if len(missing) >= ROWS:
                missing = self._add(missing, ROWS, advance)
        if missing:
            self._add(missing, len(missing), advance)
        return self._find(np.concatenate(keys)) if keys else np.empty(0, np.int64)

    def view(self, places: np.ndarray) -> View:
        """Return the vectors at these places as one array-like; nothing is read yet."""
        return View(self, places)

    def take(self, places: np.ndarray) -> np.ndarray:
        """Return the vectors (n, dim) float32 at these places, in the given order."""
        found = np.empty((len(places), self.encoder.dim), np.float32)
        order = np.argsort(places, kind="stable")  # shard by shard
        numbers = places[order] // ROWS
        for here in np.split(order, np.flatnonzero(np.diff(numbers)) + 1) if len(order) else []:
            found[here] = self.shards[int(places[here[0]] // ROWS)][places[here] % ROWS]
        return found

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Return the place of each key, -1 where it has none."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.places[at], -1)

    def _add(self, missing: dict[bytes, str], rows: int, advance: Advance) -> dict[bytes, str]:
        """Encode the first `rows` missing texts as one shard and return the others."""
        items = list(missing.items())
        now = dict(items[:rows])
        number = next(n for n in itertools.count() if n not in self.shards)
        vectors = np.ascontiguousarray(self.encoder.encode(list(now.values()), advance), np.float32)
        assert vectors.shape == (rows, self.encoder.dim), f"the encoder gave {vectors.shape} for {rows} texts"
        keys = np.array(list(now), KEY)
        path = self._path(number)
        receipt: dict[str, object] = {"rows": rows}
        for ending, values in ((".f32", vectors), (".keys", keys)):
            with store.atomic(path.with_suffix(ending)) as file:
                file.write(values.data if values.dtype != KEY else values.tobytes())
            receipt[ending[1:]] = store.file_digest(path.with_suffix(ending))
        store.write_json(path.with_suffix(".json"), receipt)
        self._map(number, rows)
        self._index(keys, number * ROWS + np.arange(rows))
        return dict(items[rows:])

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink()
        meta = {"format": FORMAT, "dim": self.encoder.dim, "encoder": self.encoder.described}
        path = self.folder / "meta.json"
        if not path.exists():
            store.write_json(path, meta)
        found = store.read_json(path)
        if not isinstance(found, dict) or (found.get("format"), found.get("dim")) != (FORMAT, self.encoder.dim):
            raise BuildError(path, "is of another format or dimension than this version writes", f"delete {self.folder}")
        for receipt in sorted(self.folder.glob("shard-*.json")):
            if rows := self._whole(receipt):
                self._map(int(receipt.stem.removeprefix("shard-")), rows)
        if self.shards:
            keys = [np.fromfile(self._path(number).with_suffix(".keys"), KEY) for number in self.shards]
            places = [number * ROWS + np.arange(len(rows)) for number, rows in self.shards.items()]
            self._index(np.concatenate(keys), np.concatenate(places))

    def _whole(self, receipt: Path) -> int:
        """Return the rows of a shard that is what its receipt says; remove the receipt of any other and return 0."""
        try:
            said: Mapping[str, Any] = store.read_json(receipt)
            rows = int(said["rows"])
            same = all(store.file_digest(receipt.with_suffix(f".{name}")) == said[name] for name in ("f32", "keys"))
            if same and receipt.with_suffix(".f32").stat().st_size == rows * self.encoder.dim * 4:
                return rows
        except (BuildError, FileNotFoundError, KeyError, TypeError, ValueError):
            pass
        receipt.unlink()
        return 0

    def _map(self, number: int, rows: int) -> None:
        path = self._path(number).with_suffix(".f32")
        self.shards[number] = np.memmap(path, np.float32, "r", shape=(rows, self.encoder.dim))

    def _index(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Merge keys (n,) and their places (n,) into the sorted index."""
        order = np.argsort(keys, kind="stable")
        at = np.searchsorted(self.keys, keys[order])
        self.keys = np.insert(self.keys, at, keys[order])
        self.places = np.insert(self.places, at, places[order])

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}"


class View:
    """Vectors at some places of a store, read when indexed: `view[10:20]`, `view[[3, 1]]` -> (n, dim) float32."""

    def __init__(self, embeddings: Embeddings, places: np.ndarray) -> None:
        self.embeddings, self.places = embeddings, places

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.places)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the vectors of a slice or of an array of rows."""
        return self.embeddings.take(self.places[rows])


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while some := list(itertools.islice(rest, size)):
        yield some
