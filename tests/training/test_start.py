"""A run that starts from another run's model: the same weights at step 0, resumed to the bit, refused where it does not fit."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import tiny_folder

from curation.core import store
from curation.core.errors import BuildError
from curation.recipe.settings import Train
from training.cli import train_command
from training.publish import plan_upload
from training.train import train


def recipe(model, **keys):
    common = {"max_tokens": 32, "batch": 8, "negatives": 1, "lr": 1e-3, "warmup": 0, "dtype": "float32", "log_every": 1}
    return Train(model=model, **{**common, "steps": 4, "save_every": 2, **keys})


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Return a folder with a model, two builds, and a first stage whose pooling is not the model's own."""
    place = tmp_path_factory.mktemp("stages")
    model = tiny_model(place / "model", "qwen3")
    write_build(place / "one", {"pairs": retrieval(24)})
    write_build(place / "two", {"others": retrieval(24, salt=1)})
    train(place / "one", recipe(model, pooling="mean", bidirectional=True), device="cpu")
    return place


@pytest.fixture(scope="module")
def second(stages):
    return recipe(str(stages / "model"), pooling="mean", bidirectional=True)


def test_the_second_stage_continues_the_weights_and_resumes_to_the_bit(stages, second, tmp_path):
    class Killed(BaseException):
        pass

    def say(line):
        if line.startswith("step 3/"):
            raise Killed

    start = stages / "one/train"
    receipt, _ = train(stages / "two", second, start=start, device="cpu")
    with pytest.raises(Killed):
        train(stages / "two", second, out=tmp_path / "torn", start=start / "model", device="cpu", say=say)
    train(stages / "two", second, out=tmp_path / "torn", start=start, device="cpu")
    for name in ("done.json", "model/model.safetensors", "checkpoints/step-000004/optimizer.safetensors"):
        assert (tmp_path / "torn" / name).read_bytes() == (stages / "two/train" / name).read_bytes()
    assert receipt["from"] == {"run": "one", "model": store.read_receipt(start)["model"]}
    assert (
        f"from the run `one` from `model` (its model has the digest `{receipt['from']['model']}`)"
        in plan_upload(stages / "two/train", "org/two").card
    )

    # With a learning rate of nothing, nearly, the weights are those of the first stage, and not those of the model.
    still = second.model_copy(update={"lr": 1e-12, "min_lr": 0.0, "weight_decay": 0.0, "steps": 1})
    train(stages / "two", still, out=tmp_path / "still", start=start, device="cpu")
    first, after, base = (
        load_file(one / "model.safetensors") for one in (start / "model", tmp_path / "still/model", stages / "model")
    )
    assert max(float((first[name] - after[name]).abs().max()) for name in first) < 1e-9
    assert max(float((first[name] - base[name]).abs().max()) for name in first) > 1e-4

    with pytest.raises(BuildError, match=r"was made with from \{.*'run': 'one'.*\} \(now absent\)"):
        train(stages / "two", second, device="cpu")


def test_what_cannot_be_a_start_is_refused(stages, second, tmp_path):
    start = stages / "one/train"
    for out in (start, start.parent / "../one/train", None):
        with pytest.raises(BuildError, match=r"train: a run cannot start from its own folder; write the new run to another one"):
            train(stages / "one", second, out=out, start=start, restart=True, device="cpu")
    assert (start / "model/config.json").exists()
    with pytest.raises(BuildError, match=r"two: has no model to start from; give the folder of a finished run"):
        train(stages / "two", second, start=stages / "two", device="cpu")
    other = recipe(str(tiny_folder("qwen3", tmp_path / "other")), pooling="mean", bidirectional=True)
    with pytest.raises(
        BuildError, match=r"model: has another tokenizer than .*other; set `train: \{model: \.\.\.\}` to the model"
    ):
        train(stages / "two", other, out=tmp_path / "out", start=start, device="cpu")
    bert = recipe(tiny_model(tmp_path / "bert"))
    with pytest.raises(BuildError, match=r"is another architecture than .*bert \(a Qwen3Model, not a BertModel\); set"):
        train(stages / "two", bert, out=tmp_path / "out", start=start, device="cpu")
    shutil.copytree(stages / "model", tmp_path / "wide")
    config = store.read_json(tmp_path / "wide/config.json")
    wide = recipe(wider(tmp_path / "wide", config), pooling="mean", bidirectional=True)
    with pytest.raises(
        BuildError, match=r"is another architecture than .*wide \(its layers\.0\.mlp\.down_proj\.weight is another\)"
    ):
        train(stages / "two", wide, out=tmp_path / "out", start=start, device="cpu")
    last = second.model_copy(update={"pooling": "last", "bidirectional": False})
    with pytest.raises(BuildError, match=r"whose pooling is `last`; set .*: `pooling: mean`, `bidirectional: yes`$"):
        train(stages / "two", last, out=tmp_path / "out", start=start, device="cpu")
    assert not (tmp_path / "out/checkpoints").exists()


def wider(folder, config):
    """Give the model in a folder a wider MLP; return the folder's name."""
    import transformers

    changed = transformers.Qwen3Config(**{**config, "intermediate_size": 64})
    transformers.Qwen3Model(changed).save_pretrained(folder)
    return str(folder)


def test_the_command(stages, tmp_path):
    path = tmp_path / "recipe.yaml"
    keys = recipe(str(stages / "model"), pooling="mean", bidirectional=True, steps=1).model_dump(
        mode="json", exclude_defaults=True
    )
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    arguments = [str(stages / "two"), "--recipe", str(path), "-o", str(tmp_path / "run"), "--from", str(stages / "one/train")]
    done = CliRunner().invoke(train_command, [*arguments, "--device", "cpu", "-q"])
    assert done.exit_code == 0, done.output
    assert store.read_receipt(tmp_path / "run")["from"]["run"] == "one"
