"""Files are whole or absent; receipts tell what is done and what was touched."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.core import store, tables
from curation.core.builds import newest_build
from curation.core.errors import BuildError


def work(folder):
    (folder / "a.txt").write_text("a")
    return {"rows": 1}


def test_a_stage_runs_once(tmp_path):
    receipt, ran = store.run_stage(tmp_path / "s", "d1", work)
    assert ran
    assert receipt["rows"] == 1
    assert store.run_stage(tmp_path / "s", "d1", work) == (receipt, False)
    assert store.run_stage(tmp_path / "s", "d2", work)[1]


def test_a_failed_stage_leaves_what_was_there(tmp_path):
    store.run_stage(tmp_path / "s", "d1", work)

    def fail(folder):
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.run_stage(tmp_path / "s", "d2", fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
    assert store.run_stage(tmp_path / "s", "d1", work)[1] is False


def test_a_touched_file_is_found(tmp_path):
    store.run_stage(tmp_path / "s", "d1", work)
    (tmp_path / "s" / "a.txt").write_text("b")
    with pytest.raises(BuildError, match=r"a\.txt: was changed since it was written .* delete .*s and run the command again"):
        store.run_stage(tmp_path / "s", "d1", work)
    (tmp_path / "s" / "a.txt").unlink()
    with pytest.raises(BuildError, match="was removed since"):
        store.run_stage(tmp_path / "s", "d1", work)


def test_atomic_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ValueError, match="stop"), store.atomic(path) as file:
        file.write(b"new")
        raise ValueError("stop")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_tables_come_back_and_bytes_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 3)
    table = pl.DataFrame({"a": list(range(8)), "b": [[i] for i in range(8)]}, schema={"a": pl.UInt32, "b": pl.List(pl.UInt32)})
    tables.write_table(tmp_path, "t", table, {"source": "x"})
    first = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert len(first) == 3
    assert tables.read_table(tmp_path, "t").equals(table)
    tables.write_table(tmp_path, "t", table, {"source": "x"})
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == first


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_shards_written_apart_are_those_of_the_whole_table(stays):
    table = pl.DataFrame({"a": range(len(stays)), "b": [[str(i)] for i in range(len(stays))]}, schema_overrides={"a": pl.UInt32})
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS_PER_GROUP", 3)
        patch.setattr(tables, "ROWS_PER_SHARD", 6)
        folder, mask = Path(name), np.array(stays)
        tables.write_table(folder, "all", table)
        assert tables.table_size(folder, "all") == len(table)
        assert pl.concat(tables.chosen_rows(folder, "all", mask, ["a"])).equals(table.filter(mask).select("a"))
        tables.write_table(folder, "whole", table.filter(mask))
        for shard, (first, end) in enumerate(tables.shard_ranges(mask)):
            within = np.zeros(len(mask), bool)
            within[first:end] = mask[first:end]
            tables.write_parquet(tables.shard_path(folder, "apart", shard), tables.chosen_rows(folder, "all", within))
        whole, apart = ([path.read_bytes() for path in tables.table_files(folder, name)] for name in ("whole", "apart"))
        assert apart == whole


def test_a_missing_build_says_what_to_run(tmp_path):
    with pytest.raises(BuildError, match="holds no build; run `curate build MANIFEST` first"):
        newest_build(tmp_path)
    with pytest.raises(BuildError, match="holds no table 'pairs'"):
        tables.read_table(tmp_path, "pairs")


def test_an_added_file_is_found(tmp_path):
    store.run_stage(tmp_path / "s", "d1", work)
    (tmp_path / "s" / "b.txt").write_text("b")
    with pytest.raises(BuildError, match=r"b\.txt: was added after the folder was written"):
        store.run_stage(tmp_path / "s", "d1", work)


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    path = tmp_path / "encoders.json"
    code = "import os, sys; from pathlib import Path; from curation.core.store import atomic\n"
    code += "with atomic(Path(sys.argv[1])) as file: file.write(b'{'); file.flush(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "new").read_bytes() == b"{"
    others = {tmp_path / ".tuplesmith-notes.tmp", tmp_path / "encoders.json.7.part"}  # not ours
    for other in others:
        other.touch()
    with store.atomic(tmp_path / "still written"):
        store.write_json(path, {})
        (written,) = set(tmp_path.iterdir()) - {path, *others}
        assert (written / "new").exists()
    assert set(tmp_path.iterdir()) == {path, tmp_path / "still written", *others}


def test_every_file_and_folder_of_a_stage_is_on_the_disk_before_its_receipt(tmp_path, monkeypatch):
    synced, fsync = [], store.os.fsync
    monkeypatch.setattr(
        store.os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name) or fsync(handle)
    )

    def plain(folder):
        (folder / "part").mkdir()
        (folder / "part/texts.utf8").write_text("text")
        (folder / "keys").write_bytes(b"1234")
        return {}

    store.run_stage(tmp_path / "s", "d", plain)
    receipt = synced.index("new")  # the name that `atomic` gives it
    assert {"texts.utf8", "keys", "part"} <= set(synced[:receipt])
    assert synced[-1] == tmp_path.name
