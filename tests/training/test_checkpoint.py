"""Checkpoints: whole or absent, the last few kept, another run's refused."""

from __future__ import annotations

import pytest

from curation.core.errors import BuildError
from training import checkpoint

RUN = {"recipe": {"lr": 1e-5, "batch": 32}, "seed": 42, "sources": {"a": "d1", "b": "d2"}}


def state(text):
    return lambda folder: (folder / "model.safetensors").write_text(text)


def test_saves_reads_and_keeps_the_last(tmp_path):
    for step in (5, 10, 15, 20):
        checkpoint.save(tmp_path / "c", step, RUN, state(str(step)), keep=2)
    assert [path.name for path in checkpoint.complete_checkpoints(tmp_path / "c")] == ["step-000020", "step-000015"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-000015", "step-000020"]
    said = checkpoint.read_state(tmp_path / "c/step-000020")
    assert said == {**RUN, "step": 20, "bytes": {"model.safetensors": 2}}
    assert (tmp_path / "c/step-000020/model.safetensors").read_text() == "20"


def test_none_in_a_folder_that_is_not_there(tmp_path):
    assert checkpoint.complete_checkpoints(tmp_path / "none") == []


def test_a_save_that_fails_leaves_the_last_one_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path, 5, RUN, state("five"), keep=2)

    def breaks(folder):
        (folder / "model.safetensors").write_text("half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        checkpoint.save(tmp_path, 10, RUN, breaks, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_torn_checkpoint_is_passed_over_and_cleared_away_by_the_next(tmp_path):
    for step in (5, 10):
        checkpoint.save(tmp_path, step, RUN, state("full length"), keep=3)
    (tmp_path / "step-000010/model.safetensors").write_text("torn")
    (tmp_path / "step-000015").mkdir()  # killed while writing
    (tmp_path / "step-000012").mkdir()  # killed while deleting
    assert [path.name for path in checkpoint.complete_checkpoints(tmp_path)] == ["step-000005"]
    checkpoint.save(tmp_path, 15, RUN, state("full length"), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000015"]


def test_another_run_is_refused_with_the_keys_that_differ(tmp_path):
    checkpoint.check_same_run({**RUN, "step": 5}, RUN, tmp_path)
    now = {"recipe": {"lr": 2e-5, "batch": 32}, "seed": 42, "sources": {"a": "d1", "c": "d3"}}
    with pytest.raises(BuildError) as error:
        checkpoint.check_same_run({**RUN, "step": 5}, now, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: was made with recipe.lr 1e-05 (now 2e-05), sources.b d2 (now absent), sources.c absent (now d3); "
        "give the recipe it was started with, or start over with `--restart`, which deletes it"
    )
