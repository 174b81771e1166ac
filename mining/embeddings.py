"""The embedding store: each distinct text encoded once, kept on disk, read through memory maps.

    embeddings/<fingerprint>/meta.json                  who encoded: model, pooling, dtype, ...; dim; format
                             shard-00000.f32            rows x dim float32 (.f16: float16), nothing else
                             shard-00000.keys           rows x 16 bytes: schema.key_of the text as encoded
                             shard-00000.json           rows and digests of the two files: the receipt, written last

The text as encoded includes its prompt, so a query and a passage of the same words have a vector each. Shards are only
added. Processes claim the shards they make (.claim, gone when it is made). A shard without a receipt, or with files that
are not what the receipt says, does not count and is made again.
"""

from __future__ import annotations

import itertools
import mmap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from curation.core import locks, store
from curation.core.errors import BuildError
from curation.core.progress import Advance
from curation.core.record import key_of

FORMAT = 1  # raised with any change of the files, or of ROWS, which places count by
ROWS = 4_096  # texts a shard: what a kill can lose, and what is encoded together
RESIDENT = 1 << 28  # bytes of shards read before they are given back: else all that was ever read counts as ours
PAUSE = 0.1  # seconds between looks at what other processes do
KEY = np.dtype("S16")  # compared byte by byte, all 16 of them; a trailing zero byte is not lost in a fixed width


class Vectors(Protocol):
    """Rows of unit length or shorter, float32: an array, a memory map, or a part of the embedding store."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Vectoriser(Protocol):
    """What the store needs: texts to vectors, and what they depend on."""

    fingerprint: str
    dim: int
    described: dict[str, object]

    def encode(self, texts: Sequence[str], advance: Advance = ...) -> np.ndarray:
        """Return (n, dim) float32, a function of `texts` alone."""
        ...


class Encoder(Vectoriser, Protocol):
    """What mining needs of `training.model.model.encode.Encoder`, whose vectors are of unit length."""

    def query(self, instruction: str, text: str) -> str:
        """Return the query with its prompt."""
        ...

    def passage(self, text: str) -> str:
        """Return the passage with its prompt."""
        ...


class Embeddings:
    """An open store. `ensure` adds what is missing; indexing by places reads."""

    def __init__(self, folder: Path, encoder: Vectoriser, kind: str = "float32") -> None:
        """Open, or begin, the store of an encoder under `folder`; `kind` is float32 or float16.

        One that another version wrote, in another format, is begun again.

        Raises:
            BuildError: its meta.json is damaged.
        """
        self.kind, self.ending = np.dtype(kind), {"float32": "f32", "float16": "f16"}[kind]
        self.folder = folder / (encoder.fingerprint + ("" if kind == "float32" else f"-{self.ending}"))
        self.encoder = encoder
        self.shards: dict[int, np.ndarray] = {}  # number -> (rows, dim) memory map
        self.keys = np.empty(0, KEY)  # sorted
        self.places = np.empty(0, np.int64)  # of each key: shard number * ROWS + row in the shard
        self.resident: dict[int, int] = {}  # shards read through their maps -> bytes: the system may map whole ones at a touch
        self.new: list[tuple[np.ndarray, np.ndarray]] = []  # keys and places that are not in the index yet
        self._open()

    def __len__(self) -> int:
        """Return the number of distinct texts."""
        self._index()
        return len(self.keys)

    def ensure(self, texts: Callable[[], Iterable[str]], advance: Advance = lambda n: None) -> np.ndarray:
        """Encode the texts that are not in the store, in order of first need, and return the place (n,) int64 of each.

        Several processes may do this at once, with the same texts: each encodes the shards that no other is at work on,
        and in the end waits for those of the others; where one of them died, it takes over. Shards are cut from the
        missing texts alone, so a run that was killed, or had company, makes the same ones.

        Args:
            texts: gives the texts; called again where other processes were at work.
            advance: told of every text, at once where it is known, as it is encoded otherwise.
        """
        while True:
            keys, busy = self._pass(texts(), advance)
            if not busy:
                return self._find(np.concatenate(keys)) if keys else np.empty(0, np.int64)
            while not any(self._free(number) for number in busy):
                time.sleep(PAUSE)
            self._open()
            advance = _unheard  # it knows of all texts

    def _pass(self, texts: Iterable[str], advance: Advance) -> tuple[list[np.ndarray], list[int]]:
        """Go through the texts once; return their keys, and the shards that other processes are at work on."""
        keys, missing = list[np.ndarray](), dict[bytes, str]()
        busy, theirs = list[int](), set[bytes]()  # shards that others make, and what they hold
        rest = iter(texts)
        while some := list(itertools.islice(rest, ROWS)):
            own = [key_of(text) for text in some]
            keys.append(np.array(own, KEY))
            new = np.flatnonzero(self._find(keys[-1]) < 0)
            before = len(missing)
            missing |= {own[i]: some[i] for i in new if own[i] not in missing and own[i] not in theirs}
            advance(len(some) - (len(missing) - before))
            while len(missing) >= ROWS:
                missing = self._add(missing, ROWS, advance, busy, theirs)
        while missing:
            missing = self._add(missing, min(ROWS, len(missing)), advance, busy, theirs)
        return keys, busy

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Return the vectors (n, dim) float32 at these places, in the given order."""
        found = np.empty((len(places), self.encoder.dim), np.float32)
        order = np.argsort(places, kind="stable")  # shard by shard
        for here in np.split(order, np.flatnonzero(np.diff(places[order] // ROWS)) + 1) if len(order) else []:
            number = int(places[here[0]] // ROWS)
            found[here] = self.shards[number][places[here] % ROWS]
            self.resident[number] = self.shards[number].nbytes
            if sum(self.resident.values()) > RESIDENT:
                for number in self.resident:
                    cast(Any, self.shards[number])._mmap.madvise(mmap.MADV_DONTNEED)
                self.resident.clear()
        return found

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Return the place of each key, -1 where it has none."""
        self._index()
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.places[at], -1)

    def _add(
        self, missing: dict[bytes, str], rows: int, advance: Advance, busy: list[int], theirs: set[bytes]
    ) -> dict[bytes, str]:
        """Make the first `rows` missing texts a shard, or leave them to the process that is at it; return the others."""
        items = list(missing.items())
        now, later = dict(items[:rows]), dict(items[rows:])
        number = next(n for n in itertools.count() if n not in self.shards and n not in busy)
        with locks.claimed(self._path(number).with_suffix(".claim")) as ours:
            if not ours:
                busy.append(number)
                theirs.update(now)
                return later
            if self._found(number):  # made by another process since we looked
                known = self._find(np.array(list(missing), KEY)) >= 0
                return {key: text for (key, text), there in zip(items, known, strict=True) if not there}
            self._write(number, now, advance)
        return later

    def _write(self, number: int, texts: dict[bytes, str], advance: Advance) -> None:
        """Encode texts as one shard: vectors and keys, then the receipt."""
        path, keys = self._path(number), np.array(list(texts), KEY)
        vectors = np.ascontiguousarray(self.encoder.encode(list(texts.values()), advance), self.kind)
        assert vectors.shape == (len(keys), self.encoder.dim), f"the encoder gave {vectors.shape} for {len(keys)} texts"
        receipt: dict[str, object] = {"rows": len(keys)}
        for ending, values in ((self.ending, vectors.tobytes()), ("keys", keys.tobytes())):
            with store.atomic(path.with_suffix(f".{ending}")) as file:
                file.write(values)
            receipt[ending] = store.file_digest(path.with_suffix(f".{ending}"))
        store.write_json(path.with_suffix(".json"), receipt)
        self._map(number, len(keys), keys)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        meta = {"format": FORMAT, "dim": self.encoder.dim, "encoder": self.encoder.described}
        path = self.folder / "meta.json"
        claim = self.folder / ".meta.claim"
        if claim.exists() or not self._of_this_format(path):
            with locks.claimed(claim, wait=True):
                if not self._of_this_format(path):  # absent, or of another version, whose vectors are made again
                    for old in self.folder.glob("shard-*"):
                        old.unlink(missing_ok=True)
                    store.write_json(path, meta)
        if store.read_json(path).keys() != meta.keys():  # those of earlier versions have no seal
            store.read_sealed(path, "delete it and run the command again, which keeps the vectors")
        for receipt in sorted(self.folder.glob("shard-*.json")):
            number = int(receipt.stem.removeprefix("shard-"))
            if number not in self.shards:
                self._found(number)
                if receipt.with_suffix(".claim").exists():
                    self._free(number)  # takes away the claim of a process killed after its work

    def _of_this_format(self, path: Path) -> bool:
        """Tell whether meta.json is there, of the format and the dimension that are written now."""
        found = store.read_json(path) if path.exists() else None
        return isinstance(found, dict) and (found.get("format"), found.get("dim")) == (FORMAT, self.encoder.dim)

    def _found(self, number: int) -> bool:
        """Map a shard that is what its receipt says; remove the receipt of any other."""
        receipt = self._path(number).with_suffix(".json")
        if not receipt.exists():
            return False
        try:
            said: Mapping[str, Any] = store.read_json(receipt)
            rows = int(said["rows"])
            same = all(store.digest_now(receipt.with_suffix(f".{name}")) == said[name] for name in (self.ending, "keys"))
            size = rows * self.encoder.dim * self.kind.itemsize
            if same and receipt.with_suffix(f".{self.ending}").stat().st_size == size:
                self._map(number, rows, np.fromfile(receipt.with_suffix(".keys"), KEY))
                return True
        except (BuildError, FileNotFoundError, KeyError, TypeError, ValueError):
            pass
        receipt.unlink(missing_ok=True)
        return False

    def _free(self, number: int) -> bool:
        """Tell whether no process is at work on a shard."""
        with locks.claimed(self._path(number).with_suffix(".claim")) as ours:
            return ours

    def _map(self, number: int, rows: int, keys: np.ndarray) -> None:
        path = self._path(number).with_suffix(f".{self.ending}")
        self.shards[number] = np.memmap(path, self.kind, "r", shape=(rows, self.encoder.dim))
        self.new.append((keys, number * ROWS + np.arange(rows)))

    def _index(self) -> None:
        """Merge the keys of shards mapped since into the sorted index."""
        if self.new:
            keys = np.concatenate([keys for keys, _ in self.new])
            order = np.argsort(keys, kind="stable")
            at = np.searchsorted(self.keys, keys[order])
            self.keys = np.insert(self.keys, at, keys[order])
            self.places = np.insert(self.places, at, np.concatenate([places for _, places in self.new])[order])
            self.new.clear()

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}"


class Part:
    """Some vectors of an array-like, one of its own; read when indexed: `part[10:20]`, `part[[3, 1]]` -> (n, dim) float32."""

    def __init__(self, vectors: Vectors, places: np.ndarray) -> None:
        self.vectors, self.places = vectors, places

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.places)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the vectors of a slice or of an array of rows."""
        return self.vectors[self.places[rows]]


def _unheard(done: int) -> None:
    """Take no note."""
