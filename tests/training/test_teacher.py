"""A teacher's vectors, from the store that mining writes: where they come from, what training makes of them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_step import largest_difference, one_step, recipe
from tiny_build import retrieval, tiny_model, write_build
from tiny_models import MINILM

from curation.core import store
from curation.core.errors import BuildError
from mining.cli import mine
from training.data import Plan
from training.log import read_log
from training.model.encode import load_encoder
from training.model.load import load_model
from training.step import batch_loss
from training.tokens import load_sources
from training.train import train
from training.vectors import places_of

INSTRUCTIONS = {"pairs": "Find it", "more": ""}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A student of 32 dimensions, and a build with the vectors of a teacher of 384."""
    place = tmp_path_factory.mktemp("teacher")
    tiny_model(place / "student", "qwen3")  # reads instructions, the teacher does not
    sources = {"pairs": retrieval(40) | {"instruction": "Find it"}, "more": retrieval(24, salt=1)}
    build = write_build(place / "b", sources)
    done = CliRunner().invoke(mine, ["embed", str(build), "--model", MINILM, "--device", "cpu", "-q"], catch_exceptions=False)
    assert done.output == "pairs: 80 texts, 80 of them encoded now\nmore: 48 texts, 48 of them encoded now\n"
    return place


def rule(place, **keys):
    return recipe(str(place / "student"), **{"distill_vectors": {"model": MINILM, "weight": 5}, "dtype": "float32", **keys})


def planned(place, keys):
    sources = load_sources(place / "b", load_model(keys.model, max_tokens=32, device="cpu"), "auto")
    return Plan(sources, 42, keys, places_of(place / "b", MINILM, sources, INSTRUCTIONS))


def test_each_text_of_a_batch_has_the_teachers_own_vector_of_it(place):
    plan = planned(place, rule(place))
    encoder = load_encoder(MINILM, device="cpu")
    texts = {name: retrieval(rows, salt=salt) for name, rows, salt in (("pairs", 40, 0), ("more", 24, 1))}
    for step in range(4):
        batch = plan.batch_at(step)
        some, slots = texts[batch.source], np.arange(5)
        wanted = encoder.encode([some["queries"][row] for row in batch.rows] + [some["passages"][row] for row in batch.rows])
        found = batch.vectors[np.concatenate([batch.query, batch.positive])]
        assert np.abs(found - wanted).max() < 1e-6
        assert batch.vectors.shape == (len(batch.starts) - 1, 384)
        source = next(one for one in plan.sources if one.name == batch.source)
        names = {passage: row for row, passage in enumerate(some["passages"])}
        for row, numbers in zip(batch.rows, batch.negative, strict=True):
            allowed = encoder.encode([some["passages"][(row + slot + 1) % len(names)] for slot in slots])
            for number in numbers:
                assert np.abs(allowed - batch.vectors[number]).max(axis=1).min() < 1e-6
        assert len(source) == len(some["queries"])


@pytest.mark.parametrize("keys", [{}, {"matryoshka": [8, 16], "loss": "infonce", "distill": 0.5}], ids=["plain", "more"])
def test_the_term_is_that_of_a_double_loop_and_chunks_change_nothing(place, keys):
    whole = rule(place, **keys)
    plan = planned(place, whole)
    batch = plan.batch_at(0)
    torch.manual_seed(3)
    vectors = torch.nn.functional.normalize(torch.randn(len(batch.starts) - 1, 32), dim=1)
    sizes, wanted = [*whole.matryoshka, 32], 0.0
    for size in sizes:
        student = torch.nn.functional.normalize(vectors[:, :size], dim=1)
        for i in range(len(student)):
            for j in range(len(student)):
                gap = float(student[i] @ student[j]) - float(batch.vectors[i] @ batch.vectors[j])
                wanted += gap**2 / len(student) ** 2 / len(sizes)
    got, without = (batch_loss(vectors, batch, one) for one in (whole, whole.model_copy(update={"distill_vectors": None})))
    assert float(got.vectors) == pytest.approx(wanted, rel=1e-5)
    assert float(got.total - without.total) == pytest.approx(5 * wanted, rel=1e-4)

    gradients, weights, value = one_step(whole, plan)
    by_chunks = one_step(rule(place, token_budget=60, **keys), plan)
    assert by_chunks[2] == pytest.approx(value, rel=1e-6)
    assert largest_difference(gradients, by_chunks[0]) < 1e-5 * max(float(one.abs().max()) for one in gradients.values())
    assert largest_difference(weights, by_chunks[1]) < 1e-6


def test_the_students_cosines_come_nearer_to_the_teachers(place, tmp_path):
    keys = {"lr": 3e-3, "steps": 12, "epochs": 3, "batch": 8}
    keys["distill_vectors"] = {"model": MINILM}
    train(place / "b", rule(place, **keys), out=tmp_path / "whole", device="cpu")
    terms = [line["loss_vectors"] for line in read_log(tmp_path / "whole/log.jsonl")]
    assert max(terms[-3:]) < terms[0] / 2


def test_a_teacher_without_vectors_or_with_other_texts_is_one_line(place, tmp_path):
    other = rule(place, distill_vectors={"model": "org/teacher"})
    with pytest.raises(BuildError) as error:
        train(place / "b", other, out=tmp_path / "a", device="cpu")
    hint = f"run `mine embed {place / 'b'} --model org/teacher`"
    assert str(error.value) == f"{place / 'b' / 'embeddings'}: has no vectors of org/teacher; {hint}"

    build = write_build(tmp_path / "b", {"pairs": retrieval(40), "more": retrieval(24, salt=1)})
    command = ["embed", str(build), "--model", MINILM, "--only", "pairs", "--device", "cpu", "-q"]
    assert CliRunner().invoke(mine, command, catch_exceptions=False).exit_code == 0
    with pytest.raises(BuildError) as error:
        train(build, rule(place), out=tmp_path / "c", device="cpu")
    (folder,) = (path for path in (build / "embeddings").iterdir() if path.is_dir())
    first = retrieval(24, salt=1)["passages"][0][:40]
    what = f"lacks {MINILM}'s vectors of 48 of 48 texts of 'more', such as {first!r}"
    assert str(error.value) == f"{folder}: {what}; run `mine embed {build} --model {MINILM}`"
    assert not store.read_receipt(build / "train")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda shard: shard.unlink(), "was removed since it was written"),
        (
            lambda shard: shard.write_bytes(shard.read_bytes()[: -384 * 4]),
            "was changed since it was written (its digest is not the receipt's)",
        ),
    ],
    ids=["removed", "cut"],
)
def test_a_damaged_shard_is_one_line_also_when_its_texts_were_found_before(place, damage, what):
    shard = next((place / "b/embeddings").glob("*/shard-00000.f32"))
    whole = shard.read_bytes()

    def vectors_of():
        plan = planned(place, rule(place))
        return [plan.batch_at(step).vectors for step in range(4)]

    before = vectors_of()
    damage(shard)
    try:
        with pytest.raises(BuildError) as error:
            vectors_of()
        again = "run `mine embed`, with the same `--model`, or `mine negatives` again: they encode what is missing"
        assert str(error.value) == f"{shard}: {what}; {again}"
    finally:
        shard.write_bytes(whole)
    assert all(map(np.array_equal, before, vectors_of()))
