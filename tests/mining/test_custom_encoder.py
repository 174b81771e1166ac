"""Anything with `encode(list[str])` mines, with one error line for what is wrong with its vectors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from small_build import FakeEncoder, hashed, make_build
from test_mine import EASY, mined, retrieval

from curation.core.errors import ModelError
from curation.recipe.settings import Mine
from mining.audit import measure_presets
from mining.calibrate import evaluate_sources
from mining.encoders import CustomEncoder
from mining.mine import mine_build


class Lists:
    """Vectors of any length as lists, `change`d."""

    def __init__(self, change=lambda vectors: vectors):
        self.change, self.asked = change, []

    def encode(self, texts):
        assert type(texts) is list
        self.asked += texts
        return self.change((3 * hashed(texts)).tolist())


def test_it_mines_as_an_encoder_of_the_same_vectors(tmp_path):
    rows = []
    for name, load in (("a", lambda *_: FakeEncoder()), ("b", partial(CustomEncoder, Lists()))):
        build = make_build(tmp_path / name, {"s": retrieval()}, EASY)
        receipt = mine_build(build, load=load)["s"]
        assert not mine_build(build, load=load)["s"]["ran"]
        rows.append(mined(build)[0])
    assert rows[0].drop("positive_score", "negative_scores").equals(rows[1].drop("positive_score", "negative_scores"))
    assert np.allclose(rows[0]["negative_scores"].explode(), rows[1]["negative_scores"].explode(), atol=1e-6)
    assert receipt["encoder"] == {"model": "fake", "prompt": "none"}
    assert evaluate_sources(measure_presets, build, load=partial(CustomEncoder, Lists()))["s"]["rows"] == 40


def test_the_instruction_is_the_queries_alone():
    one = CustomEncoder(Lists(), Mine(model="m", prompt="instruct"), "cpu")
    assert (one.query("find", "q"), one.passage("p")) == ("Instruct: find\nQuery: q", "p")
    assert CustomEncoder(Lists(), Mine(model="m"), "cpu").query("find", "q") == "q"


def test_names_keep_vectors_apart():
    first, again, other = (CustomEncoder(Lists(), Mine(model=name), "cpu").fingerprint for name in ("m", "m", "n"))
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda them: [them[0], [float("nan")] * 256], "fake: `encode` returned NaN or infinity for the text 'where is b?'"),
        (lambda them: them[:1], "fake: `encode` returned an array of shape (1, 256) for 2 texts, not (2, 256)"),
        (lambda them: [one[:9] for one in them], "fake: `encode` returned an array of shape (2, 9) for 2 texts, not (2, 256)"),
        (lambda them: [1.0, 2.0], "fake: `encode` returned an array of shape (2,) for 2 texts, not (2, 256)"),
        (
            lambda them: [[1.0], [2.0, 3.0]],
            "fake: `encode` did not return an array of numbers (setting an array element with a sequence.",
        ),
    ],
)
def test_wrong_vectors(change, complaint):
    model = Lists()
    encoder = CustomEncoder(model, Mine(model="fake"), "cpu")
    model.change = change
    with pytest.raises(ModelError) as error:
        encoder.encode(["where is a?", "where is b?"])
    assert str(error.value).startswith(complaint)
    assert "\n" not in str(error.value)


def test_vectors_without_numbers():
    with pytest.raises(ModelError, match=r"`encode` returned an array of shape \(1, 0\) for 1 texts, not \(1, dim\)"):
        CustomEncoder(Lists(lambda them: [[] for _ in them]), Mine(model="fake"), "cpu")
