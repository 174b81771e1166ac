"""The embedding store: each text is encoded once, also after kills and damage."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_build import FakeEncoder, files_of, hashed

from curation.core.errors import ModelError
from mining.embeddings import Embeddings, Part

SLOW_RUN = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from small_build import FakeEncoder, hashed
from curation.core import vectors
from mining.embeddings import Embeddings
vectors.ROWS = 8
def slow(texts):
    with Path({folder!r}).with_name("encoded").open("a") as log:
        log.write(f"{{len(texts)}}\\n")
    time.sleep(0.01)
    return hashed(texts, 16)
Path({folder!r}).with_name("began").touch()
store = Embeddings(Path({folder!r}), FakeEncoder(dim=16, vectors=slow))
store.ensure([f"passage {{n % 90}}" for n in range(130)])
store.ensure([f"query {{n}}" for n in range(85)])
"""


@pytest.fixture
def few(monkeypatch):
    """Eight texts a shard."""
    monkeypatch.setattr("curation.core.vectors.ROWS", 8)


def opened(folder, dim=16):
    encoder = FakeEncoder(dim=dim)
    return Embeddings(folder, encoder), encoder


def test_each_text_once_in_order_of_need(tmp_path, few):
    store, encoder = opened(tmp_path)
    texts = [f"text {n % 20}" for n in range(50)]
    counts = []
    places = store.ensure(texts, counts.append)
    assert encoder.calls == [
        [f"text {n}" for n in range(8)],
        [f"text {n}" for n in range(8, 16)],
        [f"text {n}" for n in range(16, 20)],
    ]
    assert sum(counts) == 50
    assert len(store) == 20
    np.testing.assert_array_equal(store[places], hashed(texts, 16))
    np.testing.assert_array_equal(Part(store, places)[10:13], hashed(texts[10:13], 16))
    np.testing.assert_array_equal(Part(store, places)[np.array([9, 9, 1])], hashed([texts[9], texts[9], texts[1]], 16))

    again, encoder = opened(tmp_path)
    assert (again.ensure([*texts, "new"])[:50] == places).all()
    assert encoder.calls == [["new"]]


def test_equal_by_nfc_only(tmp_path):
    store, _ = opened(tmp_path)
    first, second, third = store.ensure(["caf\u00e9", "cafe\u0301", "Café"])
    assert first == second != third


def test_nothing_to_do(tmp_path):
    store, encoder = opened(tmp_path)
    assert store.ensure([]).shape == (0,)
    assert encoder.calls == []


@pytest.mark.parametrize("damage", ["cut", "flip", "keys", "receipt", "gone"])
def test_a_damaged_shard_is_encoded_again(tmp_path, few, damage):
    texts = [f"text {n}" for n in range(30)]
    opened(tmp_path)[0].ensure(texts)
    whole = files_of(tmp_path)
    shard = tmp_path / "fake" / "shard-00001.f32"
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[:-4])
    elif damage == "flip":
        shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "keys":
        shard.with_suffix(".keys").write_bytes(bytes(128))
    elif damage == "receipt":
        shard.with_suffix(".json").write_text("{")
    else:
        shard.unlink()
    store, encoder = opened(tmp_path)
    places = store.ensure(texts)
    assert encoder.calls == [texts[8:16]]
    np.testing.assert_array_equal(store[places], hashed(texts, 16))
    assert files_of(tmp_path) == whole


def test_a_failure_in_one_of_several_threads(tmp_path, few):
    texts = [f"text {n}" for n in range(60)]
    whole, _ = opened(tmp_path / "whole")
    whole.ensure(texts)

    class Failing(FakeEncoder):
        threads, fails = 3, True

        def encode(self, texts, advance=lambda n: None):
            if self.fails and "text 20" in texts:
                raise ModelError("m", "gives no numbers for the text 'text 20'")
            return super().encode(texts, advance)

    encoder, counts = Failing(dim=16), list[int]()
    with pytest.raises(ModelError, match="text 20"):
        Embeddings(tmp_path / "few", encoder).ensure(texts)
    encoder.fails = False
    store = Embeddings(tmp_path / "few", encoder)
    places = store.ensure([*texts, *texts[:9]], counts.append)
    np.testing.assert_array_equal(store[places], hashed([*texts, *texts[:9]], 16))
    assert sum(counts) == 69
    assert files_of(tmp_path / "few") == files_of(tmp_path / "whole")


def test_what_was_read_does_not_stay_mapped(tmp_path, few, monkeypatch):
    gc.collect()  # the shards of other tests
    monkeypatch.setattr("curation.core.vectors.RESIDENT", 3 * 8 * 2048 * 4)  # three shards
    vectors, _ = opened(tmp_path, dim=2048)
    texts = [f"text {n}" for n in range(162)]
    found = vectors[vectors.ensure(texts)]
    np.testing.assert_array_equal(found, hashed(texts, 2048))
    assert 0 < sum(vectors.resident.values()) <= 3 * 8 * 2048 * 4
    if sys.platform == "linux":  # which gives account of mapped pages
        mapped = mapped_of(".f32")
        assert len(mapped) == 21
        assert 0 < sum(map(bool, mapped)) <= 3


def mapped_of(ending: str) -> list[int]:
    """Return the kB in memory of each mapped file whose name ends so."""
    found, ours = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *_, last = line.split()
        if not first.endswith(":"):
            ours = last.endswith(ending)
        elif ours and first == "Rss:":
            found.append(int(line.split()[1]))
    return found


@pytest.mark.parametrize("meta", ['{"format": 0, "dim": 16, "encoder": {}}', '{"format": 1, "dim": 32}', "{}", "[]"])
def test_what_another_version_wrote_is_encoded_again(meta, tmp_path):
    store, _ = opened(tmp_path)
    store.ensure(["old", "texts"])
    (tmp_path / "fake" / "meta.json").write_text(meta)
    again, encoder = opened(tmp_path)
    places = again.ensure(["old", "texts"])
    assert encoder.calls == [["old", "texts"]]
    np.testing.assert_array_equal(again[places], hashed(["old", "texts"], 16))
    third, encoder = opened(tmp_path)
    assert third.ensure(["old", "texts"]).tolist() == places.tolist()
    assert encoder.calls == []


def test_killed_at_random_moments(tmp_path):
    here = Path(__file__).resolve()

    def run(folder, after=None):
        code = SLOW_RUN.format(tests=str(here.parent), root=str(here.parents[2]), folder=str(folder))
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
        while not folder.with_name("began").exists() and process.poll() is None:  # the imports are not over
            time.sleep(0.005)
        if after is not None:
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
        folder.with_name("began").unlink()
        return process.wait()

    for side in ("undisturbed", "killed"):
        (tmp_path / side).mkdir()
    assert run(tmp_path / "undisturbed" / "store") == 0
    choose = random.Random(7)
    killed = [run(tmp_path / "killed" / "store", choose.uniform(0.01, 0.06)) for _ in range(6)].count(-signal.SIGKILL)
    assert killed > 3
    assert run(tmp_path / "killed" / "store") == 0
    assert files_of(tmp_path / "killed" / "store") == files_of(tmp_path / "undisturbed" / "store")
    encoded = {side: sum(map(int, (tmp_path / side / "encoded").read_text().split())) for side in ("undisturbed", "killed")}
    assert encoded["undisturbed"] == 175
    assert encoded["killed"] <= 175 + 8 * killed  # a kill loses a shard at most
