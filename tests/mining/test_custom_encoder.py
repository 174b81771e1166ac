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
from mining.mine import mine_build, warnings_of


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
        (
            lambda them: np.asarray(them) + 1j,
            "fake: `encode` returned complex numbers (complex128); return the real and the imaginary part side by side",
        ),
        (lambda them: [[1j, 0.5], [1, 2]], "fake: `encode` returned complex numbers (complex128)"),
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


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-13, 1e-6, 1, 1e18, 1e20, 1e36])
def test_vectors_of_any_length_have_unit_length(scale):
    """Also where their squares are beyond what float32 holds; the model's own array stays as it is."""
    given = np.array([[3, 0, -4], [0, 0, 0], [1, 2, 2]], np.float64) * scale
    given = given.astype(np.float32)
    before = given.copy()
    encoder = CustomEncoder(Lists(lambda them: given[: len(them)]), Mine(model="fake"), "cpu")
    expected = [[0.6, 0, -0.8], [0, 0, 0], [1 / 3, 2 / 3, 2 / 3]]
    assert np.allclose(encoder.encode(["a", "b", "c"]), expected, atol=1e-2 if scale == 1e-42 else 1e-6)
    assert np.array_equal(given, before)


def test_a_tensor_with_a_gradient_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(ModelError, match="fake: `encode` did not return an array of numbers .*requires grad"):
        CustomEncoder(Lists(lambda them: torch.tensor(them, requires_grad=True)), Mine(model="fake"), "cpu")


def test_one_vector_for_all_texts_is_named(tmp_path):
    """Its negatives would be those of any order; a source of few passages is left alone, which may be alike by chance."""
    for made in (1.0, 0.0):
        load = partial(CustomEncoder, Lists(lambda them, made=made: [[made, made]] * len(them)))
        build = make_build(tmp_path / f"b{made}", {"s": retrieval(12)}, f"{EASY}, relative_margin: null, max_score: null")
        what = "s: the model gives all texts the same vector, so negatives are no harder than random ones; use another `model`"
        assert what in list(warnings_of("s", mine_build(build, load=load)["s"]))
    build = make_build(tmp_path / "b", {"s": retrieval(12)}, EASY)
    assert "vectors_alike" not in mine_build(build, load=partial(CustomEncoder, Lists()))["s"]


def test_a_model_that_does_not_find_the_positives_is_named(tmp_path):
    """As an English model does not find those of other scripts."""
    draw = np.random.default_rng(0)
    build = make_build(tmp_path / "b", {"s": retrieval(80)}, f"{EASY}, relative_margin: null")
    receipt = mine_build(build, load=partial(CustomEncoder, Lists(lambda them: draw.normal(size=(len(them), 8)))))["s"]
    far = receipt["far_positives"]
    assert far["nearest"] == 8
    assert 40 < far["rows"] == int((mined(build)[0]["positive_rank"].fill_null(99) >= 8).sum())
    which = f"the positive of {far['rows']} of 80 queries is not among the 8 nearest passages"
    assert f"s: {which}; does `model` know the language of these texts?" in list(warnings_of("s", receipt))
    build = make_build(tmp_path / "c", {"s": retrieval(80)}, EASY)
    assert "far_positives" not in mine_build(build, load=partial(CustomEncoder, Lists()))["s"]


def test_vectors_without_numbers():
    with pytest.raises(ModelError, match=r"`encode` returned an array of shape \(1, 0\) for 1 texts, not \(1, dim\)"):
        CustomEncoder(Lists(lambda them: [[] for _ in them]), Mine(model="fake"), "cpu")
