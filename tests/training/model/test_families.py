"""Every family of docs/models.md encodes, trains a step and exports, with the vectors of sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

from curation.core.errors import ModelError
from curation.recipe.settings import Train
from tests.training.model.model_folders import MODEL_FAMILIES, about, dense, layer_norm, layer_pooling, modules
from tests.training.tiny_models import GROUPED, SMALL, TEXTS, tiny_folder, tiny_tokenizer
from training.backend import Torch
from training.model.attention import padded_buckets, padding_of
from training.model.encode import Encoder
from training.model.export import export
from training.model.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore")
NEAR = 1e-5
ROOM = {"max_position_embeddings": 130}
PAD = {"pad_token_id": 0}
END = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
T5 = {"vocab_size": 420, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.0}
T5 |= PAD
TWO = GROUPED | END | {"num_key_value_heads": 2}
XLNET = {"vocab_size": 420, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.4, "pad_token_id": 0}
XLM = {"vocab_size": 420, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128, "pad_index": 0}
DISTIL = {"vocab_size": 420, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128}
GPT2 = {"vocab_size": 420, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.4} | END
OPT = {"vocab_size": 420, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT |= {"max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.4} | END
CONFIGS = {
    "bert": ("BertConfig", SMALL),
    "roberta": ("RobertaConfig", SMALL | ROOM | PAD),
    "xlm-roberta": ("XLMRobertaConfig", SMALL | ROOM | PAD),
    "camembert": ("CamembertConfig", SMALL | ROOM | PAD),
    "distilbert": ("DistilBertConfig", DISTIL),
    "electra": ("ElectraConfig", SMALL | {"embedding_size": 16}),
    "albert": ("AlbertConfig", SMALL | {"embedding_size": 16}),
    "ernie": ("ErnieConfig", SMALL),
    "modernbert": ("ModernBertConfig", SMALL | PAD | {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3}),
    "mpnet": ("MPNetConfig", SMALL | ROOM | PAD),
    "deberta": ("DebertaConfig", SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta-v2": (
        "DebertaV2Config",
        SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    "t5": ("T5Config", T5),
    "mt5": ("MT5Config", T5),
    "umt5": ("UMT5Config", T5),
    "xlnet": ("XLNetConfig", XLNET),
    "convbert": ("ConvBertConfig", SMALL | {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3}),
    "luke": ("LukeConfig", SMALL | ROOM | PAD | {"entity_vocab_size": 10, "entity_emb_size": 16}),
    "mobilebert": (
        "MobileBertConfig",
        SMALL | {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 1},
    ),
    "longformer": ("LongformerConfig", SMALL | ROOM | PAD | {"attention_window": [8, 8]}),
    "xlm": ("XLMConfig", XLM),
    "roformer": ("RoFormerConfig", SMALL | {"embedding_size": 32}),
    "squeezebert": ("SqueezeBertConfig", SMALL | {"embedding_size": 32}),
    "rembert": ("RemBertConfig", SMALL | {"input_embedding_size": 16}),
    "mra": ("MraConfig", SMALL),
    "qwen2": ("Qwen2Config", SMALL | TWO),
    "qwen3": ("Qwen3Config", SMALL | TWO),
    "llama": ("LlamaConfig", SMALL | TWO),
    "mistral": ("MistralConfig", SMALL | TWO | {"sliding_window": 8}),
    "gemma": ("GemmaConfig", SMALL | TWO),
    "gemma2": ("Gemma2Config", SMALL | TWO | {"sliding_window": 8, "attn_logit_softcapping": 1.0}),
    "gemma3_text": ("Gemma3TextConfig", SMALL | TWO | {"sliding_window": 8}),
    "phi3": ("Phi3Config", SMALL | END),
    "olmo2": ("Olmo2Config", SMALL | END),
    "gpt2": ("GPT2Config", GPT2),
    "gpt_neox": ("GPTNeoXConfig", SMALL | END),
    "opt": ("OPTConfig", OPT),
    "stablelm": ("StableLmConfig", SMALL | END | {"num_key_value_heads": 4}),
    "nemotron": ("NemotronConfig", SMALL | END | {"num_key_value_heads": 4, "head_dim": 8}),
    "bloom": ("BloomConfig", {"vocab_size": 420, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4} | END),
    "falcon": ("FalconConfig", SMALL | END),
    "lfm2": ("Lfm2Config", SMALL | END | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}),
}
# In the default suite: two or more of each way in which texts share a forward, encoders and decoders, relative positions, windows.
FEW = ("bert", "modernbert", "mpnet", "deberta-v2", "t5", "convbert", "longformer", "qwen3", "gemma2", "gpt2", "bloom", "lfm2")


def way(model) -> str:
    return "equal lengths" if model.equal else "padded" if model.padded else "packed"


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in FEW else pytest.mark.long) for kind in CONFIGS])
def test_a_family_encodes_trains_and_exports_as_sentence_transformers(kind, tmp_path):
    name, sizes = CONFIGS[kind]
    torch.manual_seed(1)
    config, decoder = getattr(transformers, name)(**sizes), "eos_token_id" in sizes
    made = (
        transformers.AutoModel if not config.is_encoder_decoder else getattr(transformers, name.replace("Config", "EncoderModel"))
    )
    (made.from_config if made is transformers.AutoModel else made)(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer(decoder).save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), max_tokens=64, pooling="last" if decoder else "mean", device="cpu")
    assert way(model) == MODEL_FAMILIES[kind]

    backend = Torch(model, Train(model="tiny", lr=1e-3, dtype="float32", checkpointing=False))
    texts = [text for text in TEXTS if text]
    tokens = model.tokenize(texts)
    before = {name: weight.detach().clone() for name, weight in backend.weights.items()}
    vectors = backend.embed(tokens.ids.astype(np.int64), tokens.starts)
    backend.backward((vectors @ vectors.T)[0].sum())
    assert backend.step(1e-3) > 0
    assert any(not torch.equal(before[name], weight) for name, weight in backend.weights.items())

    export(model, tmp_path / "exported")
    peer = sentence_transformers.SentenceTransformer(str(tmp_path / "exported"), device="cpu", local_files_only=True)
    wanted = np.asarray(peer.encode(texts, batch_size=1, show_progress_bar=False))
    again = load_model(str(tmp_path / "exported"), device="cpu")
    assert way(again) == way(model)
    for one in (model, again):
        assert np.abs(Encoder(one, torch.float32, "none").encode(texts) - wanted).max() < NEAR


def test_each_family_of_the_docs_is_checked():
    assert list(CONFIGS) == list(MODEL_FAMILIES)
    assert len(CONFIGS) >= 30


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma2"])
def test_a_bidirectional_decoder_is_loaded_so_by_sentence_transformers_and_transformers(kind, pooling, tmp_path):
    name, sizes = CONFIGS[kind]
    torch.manual_seed(1)
    transformers.AutoModel.from_config(getattr(transformers, name)(**sizes)).save_pretrained(tmp_path / "model")
    tiny_tokenizer(True).save_pretrained(tmp_path / "model")
    options = {"max_tokens": 64, "pooling": pooling, "device": "cpu"}
    causal, model = (load_model(str(tmp_path / "model"), bidirectional=yes, **options) for yes in (False, True))
    texts = [text for text in TEXTS if text]
    vectors = Encoder(model, torch.float32, "none").encode(texts)
    assert np.abs(Encoder(causal, torch.float32, "none").encode(texts) - vectors).max() > 0.05
    export(load_model(str(tmp_path / "model"), bidirectional=True, **options), tmp_path / "exported")
    peer = sentence_transformers.SentenceTransformer(str(tmp_path / "exported"), device="cpu", local_files_only=True)
    assert np.abs(peer.encode(texts, show_progress_bar=False) - vectors).max() < NEAR
    again = load_model(str(tmp_path / "exported"), device="cpu", bidirectional=True)  # as it is already
    assert np.abs(Encoder(again, torch.float32, "none").encode(texts) - vectors).max() < NEAR


def test_bidirectional_of_an_encoder_is_refused(tmp_path):
    folder = tiny_folder("bert", tmp_path / "bert")
    with pytest.raises(ModelError) as error:
        load_model(str(folder), bidirectional=True)
    assert str(error.value) == (f"{folder}: is an encoder, whose attention is bidirectional already; remove `bidirectional: yes`")


AFTER = {
    "Dense, Dense, Normalize": ((dense(out_features=32), dense(place=3), modules("Normalize")), "cosine"),
    "Dense with a residual": ((dense(use_residual=True),), "cosine"),
    "LayerNorm": ((layer_norm,), "cosine"),
    "WeightedLayerPooling, LayerNorm": ((layer_norm, layer_pooling), "cosine"),
    "dot product": ((about(similarity_fn_name="dot"),), "dot"),
}


@pytest.mark.parametrize("name", AFTER)
def test_modules_after_the_pooling_are_trained_and_exported(name, tmp_path):
    changes, similarity = AFTER[name]
    sentence_transformers.SentenceTransformer(str(tiny_folder("bert", tmp_path / "bert")), device="cpu").save(
        str(tmp_path / "st")
    )
    for change in changes:
        change(tmp_path / "st")
    backend = Torch(load_model(str(tmp_path / "st"), device="cpu"), Train(model="tiny", lr=1e-2, dtype="float32"))
    model, texts = backend.model, [text for text in TEXTS if text]
    tokens = model.tokenize(texts)
    before = {name: weight.detach().clone() for name, weight in backend.weights.items()}
    vectors = backend.embed(tokens.ids.astype(np.int64), tokens.starts)
    assert bool(((vectors.norm(dim=1) - 1).abs() < NEAR).all()) is (similarity == "cosine")
    backend.backward((vectors @ vectors.T)[0].sum())
    backend.step(1e-2)
    after = [name for name in backend.weights if name.startswith("after_pooling.")]
    assert (not after) is (name == "dot product")
    assert not any(torch.equal(before[name], backend.weights[name]) for name in after if name.endswith(("weight", "weights")))
    (tmp_path / "checkpoint").mkdir()
    backend.save(tmp_path / "checkpoint")
    resumed = Torch(load_model(str(tmp_path / "st"), device="cpu"), backend.recipe)
    resumed.load(tmp_path / "checkpoint")
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in backend.weights.items())

    export(model, tmp_path / "exported")
    peer = sentence_transformers.SentenceTransformer(str(tmp_path / "exported"), device="cpu", local_files_only=True)
    assert peer.similarity_fn_name == similarity
    wanted, again = peer.encode(texts, show_progress_bar=False), load_model(str(tmp_path / "exported"), device="cpu")
    for one in (model, again):
        assert np.abs(Encoder(one, torch.float32, "none").encode(texts, unit=similarity == "cosine") - wanted).max() < NEAR


def test_buckets_hold_each_text_once_and_little_padding():
    starts = np.append(0, np.random.default_rng(3).integers(1, 400, 300)).cumsum().tolist()
    for equal in (False, True):
        buckets = padded_buckets(starts, equal)
        assert sorted(np.concatenate(buckets).tolist()) == list(range(300))
        assert len(buckets) < 300
        lengths = np.diff(starts)
        padding = sum(int((lengths[rows].max() - lengths[rows]).sum()) for rows in buckets)
        assert padding == padding_of(starts, equal)
        assert padding == 0 if equal else 0 < padding <= (padding + starts[-1]) / 8
