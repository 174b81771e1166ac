"""An existing model is encoded as its author's sentence-transformers folder says, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from curation.core.errors import ModelError
from tests.training.model.model_folders import FAMILIES, RERANKERS, VARIANTS, edit, settings
from tests.training.tiny_models import GROUPED, SMALL, TEXTS, tiny_folder, tiny_reranker, tiny_tokenizer
from training.model.encode import load_encoder, similarities
from training.model.reranker import load_reranker

pytestmark = pytest.mark.filterwarnings("ignore")  # of names that sentence-transformers had before
NEAR = 1e-5
TWO, GIVEN = {"num_key_value_heads": 2}, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GPT2 = {"vocab_size": 420, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.4}
OPT = {
    **{"vocab_size": 420, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.4},
}
BLOOM = {"vocab_size": 420, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
CONFIGS = {
    "llama": ("LlamaConfig", SMALL | GROUPED),
    "mistral": ("MistralConfig", SMALL | GROUPED | {"sliding_window": 8}),
    "mixtral": ("MixtralConfig", SMALL | GROUPED | {"num_local_experts": 2}),
    "qwen2": ("Qwen2Config", SMALL | TWO),
    "qwen3": ("Qwen3Config", SMALL | GROUPED),
    "gemma": ("GemmaConfig", SMALL | GROUPED),
    "gemma2": ("Gemma2Config", SMALL | GROUPED),
    "gemma3_text": ("Gemma3TextConfig", SMALL | GROUPED | {"sliding_window": 8}),
    "phi": ("PhiConfig", SMALL),
    "phi3": ("Phi3Config", SMALL | TWO),
    "olmo2": ("Olmo2Config", SMALL),
    "granite": ("GraniteConfig", SMALL | TWO),
    "starcoder2": ("Starcoder2Config", SMALL | TWO),
    "smollm3": ("SmolLM3Config", SMALL | TWO),
    "gpt_neox": ("GPTNeoXConfig", SMALL),
    "gpt2": ("GPT2Config", GPT2),
    "opt": ("OPTConfig", OPT),
    "cohere": ("CohereConfig", SMALL),
    "exaone4": ("Exaone4Config", SMALL | TWO),
    "stablelm": ("StableLmConfig", SMALL | TWO),
    "bloom": ("BloomConfig", BLOOM),
    "falcon": ("FalconConfig", SMALL),
}
FEW = ("qwen3", "gpt2")  # in the default suite
LONG_VARIANTS = {  # what each of these has is in another variant too, or read by a test of its own
    *(
        "of 2019, `sentence_xlm-roberta_config.json`",
        "`max_seq_length`",
        "pooling cls",
        "pooling max",
        "pooling lasttoken of an encoder",
    ),
    *("old flags of two poolings", "Normalize", "Dense, then Normalize", "prompts query and passage", "`default_prompt_name`"),
    *("`include_prompt: false` without prompts", "arguments of model and config that change nothing"),
}
WORDS = ("<|im_start|>", "<|im_end|>", "no", "yes")
QUERIES = [text for text in TEXTS if text]
PASSAGES = QUERIES[::-1]
TEMPLATE = (
    "{%- for m in messages %}{%- if m.role == 'system' %}<|im_start|>{{ m.content }}\n{%- elif m.role == 'query' %}<Query>: "
    "{{ m.content }}\n{%- else %}<Document>: {{ m.content }}<|im_end|>{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>answer: {%- endif %}"
)
STRUCTURED = "{%- for m in messages %}{{ m.role }}: {{ m.content[0].text }}<|im_end|>{%- endfor %}"


def family(kind: str, folder: Path, end: bool) -> Path:
    """Write a random decoder with a sentence-transformers folder around it; with `end`, its tokenizer adds an end token."""
    name, sizes = CONFIGS[kind]
    torch.manual_seed(1)
    transformers.AutoModel.from_config(getattr(transformers, name)(**sizes | GIVEN)).save_pretrained(folder)
    tiny_tokenizer(decoder=True).save_pretrained(folder)
    if end:
        core = json.loads((folder / "tokenizer.json").read_text())
        text, last = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
        special = {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}
        pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
        core["post_processor"] = {"type": "TemplateProcessing", "single": [text, last], "pair": pair, "special_tokens": special}
        (folder / "tokenizer.json").write_text(json.dumps(core))
        edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    listing = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{word}"}
                for number, (path, word) in enumerate(listing)
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    edit(folder / "1_Pooling" / "config.json", embedding_dimension=32, pooling_mode="lasttoken")
    edit(folder / "sentence_bert_config.json", max_seq_length=100)
    return folder


def furthest(folder: Path, texts: list[str]) -> float:
    """Return how far our vectors of queries and passages are from those of sentence-transformers, in parts of 1 or of their largest number.

    Float32 has seven digits, so of raw vectors with larger numbers the last ones differ by more. Unit vectors are compared as they are.
    """
    peer, ours = sentence_transformers.SentenceTransformer(str(folder), device="cpu"), load_encoder(str(folder), device="cpu")
    found = [ours.encode([ours.query("", text) for text in texts], unit=False)]
    found += [ours.encode([ours.passage(text) for text in texts], unit=False)]
    wanted = [np.asarray(method(texts, show_progress_bar=False)) for method in (peer.encode_query, peer.encode_document)]
    unit = ours.encode([ours.passage(text) for text in texts])
    length = np.linalg.norm(wanted[1], axis=1, keepdims=True)
    assert np.abs(unit - wanted[1] / np.maximum(length, 1e-12)).max() < NEAR
    assert ours.dim == peer.get_embedding_dimension()
    assert ours.similarity == peer.similarity_fn_name
    near = similarities(torch.from_numpy(wanted[0]), torch.from_numpy(wanted[1]), ours.similarity)
    if ours.similarity != "cosine":  # which is that of unit vectors
        assert torch.allclose(near, peer.similarity(wanted[0], wanted[1]), atol=1e-4)
    return float(max(np.abs(one - other).max() / max(1, np.abs(other).max()) for one, other in zip(found, wanted, strict=True)))


@pytest.mark.parametrize("end", [False, True], ids=["no end token", "end token"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in FEW else pytest.mark.long) for kind in FAMILIES])
def test_vectors_of_decoders_are_those_of_sentence_transformers(kind, end, tmp_path):
    folder = family(kind, tmp_path / kind, end)
    assert furthest(folder, QUERIES) < NEAR
    if kind == "qwen3":
        (note,) = load_encoder(str(folder), device="cpu").described["notes"]
        assert note.endswith("queries begin with the instruction of their source; `prompt: none` turns that off")
        shutil.rmtree(folder / "1_Pooling")
        (folder / "modules.json").unlink()
        described = load_encoder(str(folder), device="cpu").described
        assert described.get("end_token") == (None if end else "appended")
        assert ("notes" in described) is not end


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny encoder as sentence-transformers saves it."""
    plain = tiny_folder("bert", tmp_path_factory.mktemp("vectors") / "bert")
    folder = plain.with_name("saved")
    sentence_transformers.SentenceTransformer(str(plain), device="cpu").save(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize(
    "variant", [pytest.param(one, marks=pytest.mark.long if one in LONG_VARIANTS else []) for one in VARIANTS]
)
def test_vectors_of_folder_variants_are_those_of_sentence_transformers(variant, saved, tmp_path):
    change, refused = VARIANTS[variant]
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    change(folder)
    if refused is None:
        assert furthest(folder, list(TEXTS)) < NEAR
        return
    with pytest.raises(ModelError) as error:
        load_encoder(str(folder), device="cpu")
    assert refused in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_vectors_of_texts_that_hold_the_padding_token(kind, tmp_path):
    folder, saved = tiny_folder(kind, tmp_path / "plain"), tmp_path / "saved"
    sentence_transformers.SentenceTransformer(str(folder), device="cpu").save(str(saved), create_model_card=False)
    edit(saved / "config.json", pad_token_id=0)
    settings(max_seq_length=100)(saved)
    assert furthest(saved, [*QUERIES, "[PAD]", "one [PAD] two [PAD][PAD] three", "of [PAD]"]) < NEAR


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
LONG |= {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
FORGETFUL = {
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
MIXING = {
    "recurrent layers": ("Qwen3NextConfig", GROUPED | FORGETFUL, "get other vectors than alone"),
    "longrope": (
        "Phi3Config",
        TWO | {"original_max_position_embeddings": 16, "rope_parameters": LONG},
        "`max_tokens: 16` or less",
    ),
    "dynamic": (
        "LlamaConfig",
        GROUPED | {"max_position_embeddings": 20, "rope_parameters": LONG | {"rope_type": "dynamic", "factor": 2.0}},
        "`max_tokens: 16` or less",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_models_that_mix_the_texts_of_a_batch_are_refused(name, tmp_path):
    kind, sizes, wanted = MIXING[name]
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(getattr(transformers, kind)(**SMALL | sizes | GIVEN))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer(decoder=True).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError) as error:
        load_encoder(str(tmp_path / "model"), device="cpu")
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)
    if "max_tokens" in wanted:  # as it says
        assert load_encoder(str(tmp_path / "model"), device="cpu", max_tokens=16).described["max_tokens"] == 16


def test_prompts_that_are_not_used_are_reported(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    about = folder / "config_sentence_transformers.json"
    edit(about, prompts={"search_query": "find: ", "search_document": "text: "}, default_prompt_name="search_document")
    encoder = load_encoder(str(folder), device="cpu")
    assert encoder.query("", "x") == "x"
    (note,) = encoder.described["notes"]
    assert "search_query, search_document (default: search_document) are not used" in note
    assert note.endswith("give `prompts: {query: ..., passage: ...}`")
    given = load_encoder(str(folder), device="cpu", prompts={"query": "find: ", "passage": "text: "})
    assert (given.query("", "x"), given.passage("x"), given.described["prompt"]) == ("find: x", "text: x", "given")
    assert given.described["prompts"] == {"query": "find: ", "passage": "text: "}
    assert "notes" not in given.described


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
def test_vectors_compare_as_the_model_says(similarity):
    draw = np.random.default_rng(3)
    queries, passages = draw.normal(size=(4, 6)).astype(np.float32), draw.normal(size=(5, 6)).astype(np.float32)
    found = similarities(torch.from_numpy(queries), torch.from_numpy(passages), similarity)
    apart = queries[:, None, :] - passages[None]
    wanted = {
        "dot": queries @ passages.T,
        "euclidean": -np.sqrt((apart**2).sum(-1)),
        "manhattan": -np.abs(apart).sum(-1),
    }[similarity]
    assert np.abs(found.numpy() - wanted).max() < NEAR


def reranker(name: str, folder: Path) -> Path:
    """Write a reranker as sentence-transformers saves it."""
    plain, device = folder.with_name("plain"), "cpu"
    if name.startswith("one logit") or name == "three labels":
        tiny_folder("bert", plain, labels=3 if name == "three labels" else 1)
        options = {"activation_fn": torch.nn.Identity()} if "Identity" in name else {}
        if "prompt" in name:
            options = {"prompts": {"search": "find: "}, "default_prompt_name": "search"}
        sentence_transformers.CrossEncoder(str(plain), device=device, **options).save_pretrained(str(folder))
        if "left" in name:
            edit(folder / "tokenizer_config.json", padding_side="left")
    elif name == "Transformer, Pooling, Dense":
        parts = [Transformer(str(tiny_folder("bert", plain))), Pooling(32, "mean")]
        torch.manual_seed(5)
        parts.append(Dense(32, 1, activation_function=torch.nn.Identity(), module_output_name="scores"))
        sentence_transformers.CrossEncoder(modules=parts, device=device).save_pretrained(str(folder))
    elif name == "an embedding model":
        sentence_transformers.SentenceTransformer(str(tiny_folder("bert", plain)), device=device).save(str(folder))
    else:
        tiny_reranker(plain, WORDS)
        (plain / "README.md").unlink()
        if name == "a chat model":
            return plain
        tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
        one = "structured" in name
        tokenizer.chat_template = STRUCTURED if one else TEMPLATE
        tokenizer.save_pretrained(plain)
        arguments = None if one else {"chat_template": {"add_generation_prompt": True}}
        lm = Transformer(str(plain), transformer_task="text-generation", processing_kwargs=arguments)
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        options = {} if one else {"prompts": {"web": "Judge it."}, "default_prompt_name": "web"}
        score = LogitScore(yes, None if one else no)
        peer = sentence_transformers.CrossEncoder(
            modules=[lm, score], device=device, activation_fn=torch.nn.Identity(), **options
        )
        peer.save_pretrained(str(folder))
        edit(folder / "tokenizer_config.json", model_max_length=60)
    return folder


@pytest.mark.parametrize("name", RERANKERS)
def test_scores_of_rerankers_are_those_of_sentence_transformers(name, tmp_path):
    folder, refused = reranker(name, tmp_path / "reranker"), RERANKERS[name]
    if refused is not None:
        with pytest.raises(ModelError) as error:
            load_reranker(str(folder), device="cpu")
        assert refused in str(error.value)
        return
    peer = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    wanted = np.array([peer.predict(pair, show_progress_bar=False) for pair in zip(QUERIES, PASSAGES, strict=True)])
    found = load_reranker(str(folder), device="cpu").scores(QUERIES, PASSAGES)
    assert np.abs(found - wanted).max() < NEAR
    assert np.ptp(found) > 0.01
    if "Qwen3" in name:  # a source's instruction is asked in place of the folder's prompt
        asked = [f"<Instruct>: Other.\n<Query>: {query}" for query in QUERIES]
        other = [peer.predict(pair, prompt="Other.", show_progress_bar=False) for pair in zip(QUERIES, PASSAGES, strict=True)]
        assert np.abs(load_reranker(str(folder), device="cpu").scores(asked, PASSAGES) - np.array(other)).max() < NEAR
