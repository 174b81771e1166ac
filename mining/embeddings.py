"""The encoder of a `mine:` section, and the store of its vectors: each distinct text is encoded once and kept on disk.

    embeddings/<fingerprint>/meta.json                  the encoder: model, pooling, dtype, ...; dim; format
                             shard-00000.f32            rows x dim float32 (.f16: float16), nothing else
                             shard-00000.keys           rows x 16 bytes: `key_of` each text as encoded
                             shard-00000.json           rows and digests of both files: the receipt, written last

The text as encoded includes its prompt, so a query and a passage with the same words have one vector each. Shards are only
added, and read through memory maps. A process claims the shard that it writes (.claim, removed at the end). A shard
without a receipt, or whose files differ from it, is ignored and encoded again.
"""

from __future__ import annotations

import itertools
import mmap
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, cast

import numpy as np

from curation.core import locks, store
from curation.core.errors import BuildError, ModelError
from curation.core.progress import Advance
from curation.core.record import key_of
from curation.recipe.settings import Mine, Prompts
from training.model.prompts import choose_prompts

FORMAT = 1  # raised with any change of the files, or of ROWS, which places depend on
ROWS = 4_096  # texts per shard: encoded together, and the most that a kill can lose
RESIDENT = 1 << 28  # bytes of shards read before their pages are released; otherwise all that was ever read counts as ours
PAUSE = 0.1  # seconds between two looks at the work of other processes
KEY = np.dtype("S16")  # compared byte by byte; a fixed width keeps a trailing zero byte
SHOWN = 60  # characters of a text in an error


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


class Encoder(Vectoriser, Protocol):
    """What mining needs of `training.model.encode.Encoder`, whose vectors have unit length."""

    def query(self, instruction: str, text: str) -> str:
        """Return the query with its prompt."""
        ...

    def passage(self, text: str) -> str:
        """Return the passage with its prompt."""
        ...


OpenEncoder = Callable[[Mine, str], Encoder]  # from the `mine:` section and a device


def open_encoder(settings: Mine, device: str) -> Encoder:
    """Load the model of a `mine:` section."""
    from training.model.encode import load_encoder  # imports torch, so only when a text must be encoded

    given = Prompts.by_name(settings.prompts)
    options: dict[str, Any] = {"max_tokens": settings.max_tokens, "prompt": settings.prompt, "prompts": given}
    return load_encoder(settings.model, device=device, dtype=settings.dtype, **options)


class CustomEncoder:
    """Lets a model of your own mine: `mine_build(build, load=partial(CustomEncoder, model))`.

    The model has a method `encode`, which turns a list of n texts into n vectors of one length: an array, or what numpy
    can make one of. The vectors are stored under the `model` of the `mine:` section: choose another name when the vectors change.
    """

    def __init__(self, model: Any, settings: Mine, device: str) -> None:
        """Encode one text, to learn the dimension; `prompt: instruct` puts the instruction before each query."""
        self.model, self.name = model, settings.model
        self.prompts = choose_prompts(settings.prompt, {}, False, Prompts.by_name(settings.prompts))
        self.described: dict[str, object] = {"model": self.name, "prompt": self.prompts.used}
        self.fingerprint, self.dim = store.digest_of(["foreign", self.name]), 0
        self.dim = self.encode(["text"]).shape[1]

    def query(self, instruction: str, text: str) -> str:
        """Return the query with its prompt."""
        return self.prompts.of_query(instruction, text)

    def passage(self, text: str) -> str:
        """Return the passage with its prompt."""
        return self.prompts.of_passage(text)

    def encode(self, texts: Sequence[str], advance: Advance = lambda done: None) -> np.ndarray:
        """Return unit vectors (n, dim) float32.

        Raises:
            ModelError: the model does not return one vector per text, all of one dimension and finite.
        """
        try:
            found = np.asarray(self.model.encode(list(texts)), np.float32)
        except (TypeError, ValueError) as error:  # vectors of several lengths; a tensor that is not on the CPU
            raise ModelError(self.name, f"`encode` did not return an array of numbers ({error})") from None
        if found.ndim != 2 or len(found) != len(texts) or self.dim not in (0, found.shape[1]):
            wanted = f"({len(texts)}, {self.dim or 'dim'})"
            raise ModelError(self.name, f"`encode` returned an array of shape {found.shape} for {len(texts)} texts, not {wanted}")
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise ModelError(self.name, f"`encode` returned NaN or infinity for the text {texts[bad[0]][:SHOWN]!r}")
        advance(len(texts))
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12)))


class Embeddings:
    """An open store: `ensure` adds the missing texts, and indexing by places reads vectors."""

    def __init__(self, folder: Path, encoder: Vectoriser, kind: str = "float32") -> None:
        """Open, or start, the store of an encoder under `folder`; `kind` is float32 or float16.

        A store in the format of another version is emptied.

        Raises:
            BuildError: its meta.json is damaged.
        """
        self.kind, self.ending = np.dtype(kind), {"float32": "f32", "float16": "f16"}[kind]
        self.folder = folder / (encoder.fingerprint + ("" if kind == "float32" else f"-{self.ending}"))
        self.encoder = encoder
        self.shards: dict[int, np.ndarray] = {}  # number -> (rows, dim) memory map
        self.keys = np.empty(0, KEY)  # sorted
        self.places = np.empty(0, np.int64)  # of each key: shard number * ROWS + row in the shard
        self.resident: dict[int, int] = {}  # shards read through their maps -> bytes; the system may load a whole one at once
        self.lock = Lock()  # of `resident`: several threads read at once
        self.new: list[tuple[np.ndarray, np.ndarray]] = []  # keys and places that are not in `keys` and `places` yet
        self._open()

    def __len__(self) -> int:
        """Return the number of distinct texts."""
        return sum(map(len, self.shards.values()))

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Return the vectors (n, dim) float32 at these places, in the given order."""
        found = np.empty((len(places), self.encoder.dim), np.float32)
        ascending = bool((np.diff(places) >= 0).all())
        order = np.arange(len(places)) if ascending else np.argsort(places, kind="stable")  # shard by shard
        for here in np.split(order, np.flatnonzero(np.diff(places[order] // ROWS)) + 1) if len(order) else []:
            number = int(places[here[0]] // ROWS)
            shard, rows = self.shards[number].view(np.ndarray), places[here] % ROWS
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

    def ensure(self, texts: Callable[[], Iterable[str]], advance: Advance = lambda n: None) -> np.ndarray:
        """Encode the texts that are not in the store, in order of first need, and return the place (n,) int64 of each.

        Several processes may call this at once with the same texts. Each encodes the shards that no other process has
        claimed, then waits for the others' shards; if one dies, another takes over. Shards are cut from the missing
        texts alone, so interrupted and shared runs write the same shards.

        Args:
            texts: returns the texts; called again if other processes were at work.
            advance: called with the number of texts that are done: known texts at once, others when they are encoded.
        """
        threads = getattr(self.encoder, "threads", 1)  # shards that are encoded at once
        while True:
            keys, missing = list[np.ndarray](), dict[bytes, str]()
            busy, theirs = list[int](), set[bytes]()  # shards that other processes write, and the keys in them
            rest = iter(texts())
            with _Writers(self, advance, threads) as ours:
                while some := list(itertools.islice(rest, ROWS)):
                    own = [key_of(text) for text in some]
                    keys.append(np.array(own, KEY))
                    new = np.flatnonzero(self._find(keys[-1]) < 0)
                    before = len(missing)
                    known = (missing, theirs, ours.keys)
                    missing |= {own[i]: some[i] for i in new if not any(own[i] in keys for keys in known)}
                    advance(len(some) - (len(missing) - before))
                    while len(missing) >= ROWS:
                        missing = self._add(missing, ours, busy, theirs)
                while missing:
                    missing = self._add(missing, ours, busy, theirs)
            if not busy:
                return self._find(np.concatenate(keys)) if keys else np.empty(0, np.int64)
            while not any(self._is_free(number) for number in busy):
                time.sleep(PAUSE)
            self._open()
            advance = lambda n: None  # noqa: E731  all texts were counted in the first pass

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Return the place of each key, -1 where it has none."""
        if self.new:  # merge the keys of shards mapped since the last call
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

    def _add(self, missing: dict[bytes, str], ours: _Writers, busy: list[int], theirs: set[bytes]) -> dict[bytes, str]:
        """Write the first `ROWS` missing texts as a shard, unless another process has claimed it; return the other texts."""
        items = list(missing.items())
        now, later = dict(items[:ROWS]), dict(items[ROWS:])
        number = next(n for n in itertools.count() if n not in self.shards and n not in busy and n not in ours.numbers)
        with ExitStack() as claim:
            if not claim.enter_context(locks.claimed(self._path(number).with_suffix(".claim"))):
                busy.append(number)
                theirs.update(now)
                return later
            if self._map(number):  # another process has written it since we looked
                known = self._find(np.array(list(missing), KEY)) >= 0
                return {key: text for (key, text), there in zip(items, known, strict=True) if not there}
            ours.write(number, now, claim.pop_all())
        return later

    def _write(self, number: int, texts: dict[bytes, str], advance: Advance) -> np.ndarray:
        """Encode texts and write them as a shard; return their keys."""
        path, keys = self._path(number), np.array(list(texts), KEY)
        vectors = np.ascontiguousarray(self.encoder.encode(list(texts.values()), advance), self.kind)
        assert vectors.shape == (len(keys), self.encoder.dim), f"the encoder gave {vectors.shape} for {len(keys)} texts"
        receipt: dict[str, object] = {"rows": len(keys)}
        for ending, values in ((self.ending, vectors.tobytes()), ("keys", keys.tobytes())):
            with store.atomic(path.with_suffix(f".{ending}")) as file:
                file.write(values)
            receipt[ending] = store.file_digest(path.with_suffix(f".{ending}"))
        store.write_json(path.with_suffix(".json"), receipt)
        return keys

    def _open(self) -> None:
        """Write or check meta.json, and map all shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        meta = {"format": FORMAT, "dim": self.encoder.dim, "encoder": self.encoder.described}
        path, claim = self.folder / "meta.json", self.folder / ".meta.claim"

        def same_format() -> bool:
            found = store.read_json(path) if path.exists() else None
            return isinstance(found, dict) and (found.get("format"), found.get("dim")) == (FORMAT, self.encoder.dim)

        if claim.exists() or not same_format():
            with locks.claimed(claim, wait=True):
                if not same_format():  # absent, or of another version, whose vectors cannot be used
                    for old in self.folder.glob("shard-*"):
                        old.unlink(missing_ok=True)
                    store.write_json(path, meta)
        if store.read_json(path).keys() != meta.keys():  # earlier versions wrote it without its own digest
            store.read_sealed(path, "delete it and run the command again, which keeps the vectors")
        for receipt in sorted(self.folder.glob("shard-*.json")):
            number = int(receipt.stem.removeprefix("shard-"))
            if number not in self.shards:
                self._map(number)
                if receipt.with_suffix(".claim").exists():
                    self._is_free(number)  # removes the claim of a process that was killed after its work

    def _map(self, number: int, keys: np.ndarray | None = None) -> bool:
        """Map a shard, just written with these keys, or found on disk; return False if it is absent or damaged.

        The receipt of a damaged shard is removed.
        """
        path = self._path(number)
        receipt, vectors = path.with_suffix(".json"), path.with_suffix(f".{self.ending}")
        if keys is None:
            if not receipt.exists():
                return False
            try:
                entry = store.read_json(receipt)
                same = all(store.digest_now(path.with_suffix(f".{name}")) == entry[name] for name in (self.ending, "keys"))
                if same and vectors.stat().st_size == int(entry["rows"]) * self.encoder.dim * self.kind.itemsize:
                    keys = np.fromfile(path.with_suffix(".keys"), KEY)
            except (BuildError, FileNotFoundError, KeyError, TypeError, ValueError):
                pass
            if keys is None:
                receipt.unlink(missing_ok=True)
                return False
        self.shards[number] = np.memmap(vectors, self.kind, "r", shape=(len(keys), self.encoder.dim))
        self.new.append((keys, number * ROWS + np.arange(len(keys))))
        return True

    def _is_free(self, number: int) -> bool:
        """Return whether no process has claimed a shard."""
        with locks.claimed(self._path(number).with_suffix(".claim")) as ours:
            return ours

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}"


class _Writers:
    """Shards that are being written: with several threads one is tokenised and one is written while a GPU encodes another."""

    def __init__(self, store: Embeddings, advance: Advance, threads: int) -> None:
        self.store, self.threads, self.advance, self.lock = store, threads, advance, Lock()
        self.numbers = dict[int, tuple[Future[np.ndarray], set[bytes], ExitStack]]()
        self.keys = set[bytes]()  # of all of them

    def __enter__(self) -> _Writers:
        self.pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            while self.numbers and kind is None:
                self._finish()
        finally:
            self.pool.shutdown(cancel_futures=True)
            for _, _, claim in self.numbers.values():
                claim.close()

    def write(self, number: int, texts: dict[bytes, str], claim: ExitStack) -> None:
        """Write a shard, now or in a thread; the claim is closed when it is written."""
        if self.threads < 2:
            with claim:
                self.store._map(number, self.store._write(number, texts, self.advance))
            return
        self.numbers[number] = (self.pool.submit(self.store._write, number, texts, self._advance_alone), set(texts), claim)
        self.keys |= set(texts)
        if len(self.numbers) > self.threads:
            self._finish()

    def _advance_alone(self, count: int) -> None:
        """Report progress from one thread at a time."""
        with self.lock:
            self.advance(count)

    def _finish(self) -> None:
        """Wait for the oldest shard."""
        number = next(iter(self.numbers))
        future, texts, claim = self.numbers[number]
        keys = future.result()
        self.store._map(number, keys)
        del self.numbers[number]
        self.keys -= texts
        claim.close()


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
