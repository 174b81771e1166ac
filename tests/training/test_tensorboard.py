"""TensorBoard's files hold what log.jsonl holds, also of a run that went on, and nothing of it is loaded unasked."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner
from tiny_build import retrieval, tiny_model, write_build

from curation.recipe.settings import Train
from training.cli import train_command
from training.log import read_log
from training.train import train


class Killed(BaseException):
    """As a kill would, nothing catches it."""


def test_its_files_hold_the_values_of_the_log_once_a_step_also_after_a_kill(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build = write_build(tmp_path / "b", {"pairs": retrieval(32), "kinds": {**retrieval(16, salt=1), "task": "clustering"}})
    recipe = Train(
        model=tiny_model(tmp_path / "m"), max_tokens=32, batch=8, negatives=2, warmup=0, steps=5, save_every=2, log_every=1
    )

    def die(line):
        if line.startswith("step 4/5"):
            raise Killed

    with pytest.raises(Killed):
        train(build, recipe, out=tmp_path / "run", device="cpu", tensorboard=True, say=die)
    train(build, recipe, out=tmp_path / "run", device="cpu", tensorboard=True)
    shown = EventAccumulator(str(tmp_path / "run/tensorboard"))
    shown.Reload()
    wanted = {}
    for line in read_log(tmp_path / "run/log.jsonl"):
        source = line["source"]
        losses = {f"{term}/{source}": line[term] for term in ("loss", "loss_hard", "loss_inbatch")}
        for tag, value in {
            **losses,
            **{key: line[key] for key in ("lr", "grad_norm", "tokens_per_second", "pad_share", "memory_gb")},
        }.items():
            if value is not None:
                wanted.setdefault(tag, []).append((line["step"] + 1, pytest.approx(value, rel=1e-6)))
    assert {tag: [(one.step, one.value) for one in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]} == wanted
    assert {"loss_inbatch/pairs", "loss_hard/kinds", "lr"} <= wanted.keys()
    assert "loss_inbatch/kinds" not in wanted


def test_a_missing_package_is_reported_before_anything_is_loaded(tmp_path, monkeypatch):
    build = write_build(tmp_path / "b", {"pairs": retrieval(16)})
    (tmp_path / "r.yaml").write_text("model: no-such-model\n")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where tensorboard, which it imports, is missing
    done = CliRunner().invoke(train_command, [str(build), "--recipe", str(tmp_path / "r.yaml"), "--tensorboard"])
    assert str(done.exception).startswith("tensorboard: cannot be used (")
    assert str(done.exception).endswith("); pip install 'tuplesmith[tensorboard]'")
    assert not (build / "train").exists()
