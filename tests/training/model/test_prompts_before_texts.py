"""What is put before queries and passages: decided once, by the manifest, the model, or the source's instruction."""

from __future__ import annotations

import numpy as np
import pytest
import sentence_transformers
from pydantic import ValidationError

from curation.recipe.settings import Mine, Train
from tests.training.tiny_models import tiny_folder
from training.model.encode import load_encoder
from training.model.export import export
from training.model.load import load_model
from training.model.prompts import choose_prompts

E5 = {"query": "query: ", "passage": "passage: "}
TEXTS = ["find empty files", "Jane Austen wrote Emma in 1815"]


@pytest.mark.parametrize(
    ("prompt", "own", "decoder", "given", "used", "query", "passage"),
    [
        ("auto", {}, False, None, "none", "q", "p"),
        ("auto", {}, True, None, "instruct", "Instruct: Find it\nQuery: q", "p"),
        ("auto", {"query": "query: ", "document": "passage: "}, True, None, "own", "query: q", "passage: p"),
        ("auto", {"query": "", "document": "passage: "}, True, None, "own", "q", "passage: p"),
        ("auto", {"query": "", "document": ""}, True, None, "instruct", "Instruct: Find it\nQuery: q", "p"),
        ("auto", {"query": "query: ", "passage": "passage: "}, False, None, "own", "query: q", "p"),
        ("auto", {"search_query": "find: ", "search_document": "text: "}, False, None, "none", "q", "p"),
        ("auto", {"query": "mine: "}, True, E5, "given", "query: q", "passage: p"),
        ("auto", {"query": "mine: "}, True, {"query": "Find: "}, "given", "Find: q", "p"),
        ("instruct", {"query": "query: "}, False, None, "instruct", "Instruct: Find it\nQuery: q", "p"),
        ("none", {"query": "query: "}, True, None, "none", "q", "p"),
    ],
)
def test_prompts_are_chosen_once(prompt, own, decoder, given, used, query, passage):
    found = choose_prompts(prompt, own, decoder, given)
    assert (found.used, found.of_query("Find it", "q"), found.of_passage("p")) == (used, query, passage)
    unused = any(own[name] for name in own if name not in ("query", "document"))
    assert bool(found.note) == unused
    assert "\n" not in found.summary()


def test_prompts_in_words():
    assert choose_prompts("auto", {}, False, E5).summary() == (
        'queries begin with "query: ", passages with "passage: " (the manifest\'s prompts)'
    )
    assert choose_prompts("auto", {"query": "q: "}, False).summary() == (
        'queries begin with "q: ", passages with nothing (the model\'s own prompts)'
    )
    assert choose_prompts("none", {}, False).summary() == "queries and passages have no prompt"


@pytest.mark.parametrize("section", [Mine, Train])
def test_prompts_of_the_manifest_need_prompt_auto(section):
    assert section(model="m", prompts=E5).prompts.model_dump() == E5
    with pytest.raises(ValidationError, match="'prompts' requires `prompt: auto`, but it is 'instruct'"):
        section(model="m", prompts=E5, prompt="instruct")
    with pytest.raises(ValidationError, match="document"):
        section(model="m", prompts={"document": "passage: "})


@pytest.mark.filterwarnings("ignore")
def test_prompts_of_the_manifest_are_those_of_the_trained_model(tmp_path):
    folder = str(tiny_folder("bert", tmp_path / "bert"))
    model = load_model(folder, prompts=E5, device="cpu")
    model.prompts = model.prompts_for("auto", {"squad": "Find it"})
    export(model, tmp_path / "out")
    peer, again = (
        sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu"),
        load_encoder(str(tmp_path / "out")),
    )
    before = load_encoder(folder, prompts=E5, device="cpu")
    assert (again.described["prompt"], before.described["prompt"]) == ("own", "given")
    for kind, wanted in (("query", peer.encode_query(TEXTS)), ("passage", peer.encode_document(TEXTS))):
        for encoder in (again, before):
            texts = [encoder.query("Find it", text) if kind == "query" else encoder.passage(text) for text in TEXTS]
            assert np.abs(encoder.encode(texts) - wanted).max() < 1e-5
