"""Packed equals one text at a time; and the three ways in which it silently would not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import MINILM, TEXTS, tiny_folder
from torch.nn import functional
from transformers import masking_utils

from curation.core.errors import ModelError
from training.backend import checkpoint_layers
from training.model import attention
from training.model import model as model_module
from training.model.attention import Segments, packed_inputs
from training.model.device import autocast
from training.model.load import check_packing, load_model
from training.model.model import notes_of

KINDS = ("qwen3", "llama", "bert")
ADVICE = "its architecture cannot be trained or encoded without padding"
WINDOWED = ("mistral", "modernbert")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tiny_folder(kind, tmp_path_factory.mktemp(kind)) for kind in (*KINDS, *WINDOWED, "roberta")}


def tokens_of(model, texts=TEXTS):
    tokens = model.tokenize(texts)
    return torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist()


def one_at_a_time(folder, model, ids, starts):
    """Return (vectors, backbone) by transformers alone: its eager attention, its own positions, no packing."""
    backbone = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    rows = []
    for start, end in pairwise(starts):
        states = backbone(ids[start:end][None]).last_hidden_state[0]
        rows.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[model.pooling])
    return functional.normalize(torch.stack(rows), dim=-1), backbone


def gradients(vectors, backbone):
    backbone.zero_grad()
    target = torch.linspace(-1, 1, vectors.numel()).reshape(vectors.shape).cos()
    (vectors * target).sum().backward()
    return {name: part.grad for name, part in backbone.named_parameters() if not name.startswith("pooler.")}


@pytest.mark.parametrize("kind", [*KINDS, *WINDOWED, "roberta"])
def test_packed_vectors_and_all_gradients_equal_one_text_at_a_time(kind, folders):
    model = load_model(str(folders[kind]))
    ids, starts = tokens_of(model)
    expected, reference = one_at_a_time(folders[kind], model, ids, starts)
    found = model.embed(ids, starts)
    assert (found - expected).abs().max() < 1e-5
    ours, theirs = gradients(found, model.backbone), gradients(expected, reference)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # relative to the largest, as float32 sums of hundreds of terms go
        assert (ours[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_gradient_checkpointing_hands_the_segments_over_again(kind, folders):
    model = load_model(str(folders[kind]))
    ids, starts = tokens_of(model)
    plain = gradients(model.embed(ids, starts), model.backbone)
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    checkpoint_layers(model.backbone)
    model.backbone.train()
    again = gradients(model.embed(ids, starts), model.backbone)
    for name, gradient in plain.items():
        assert torch.allclose(again[name], gradient, atol=1e-6, rtol=1e-5), name


# The traps: each wrong call gives wrong vectors without a word, and the same call without its one fault gives right ones.


def wrong_call(trap, ids, starts):
    segments = Segments(tuple(starts))
    positions = segments.positions(0, ids.device)
    if trap == "cache":
        return {"input_ids": ids[None], "position_ids": positions}  # use_cache is True where nobody says otherwise
    if trap == "mask of ones":
        mask = torch.ones_like(ids)[None]
        return {"input_ids": ids[None], "position_ids": positions, "attention_mask": mask, "use_cache": False}
    bounds = {"cu_seq_lens_q": segments.cumulative(ids.device), "cu_seq_lens_k": segments.cumulative(ids.device)}
    longest = {"max_length_q": segments.longest, "max_length_k": segments.longest}
    return {"input_ids": ids[None], **bounds, **longest, "use_cache": False}


TRAPS = ("cache", "mask of ones", "only cu_seq_lens")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_gives_wrong_vectors_where_ours_are_right(kind, trap, folders):
    model = load_model(str(folders[kind]))
    ids, starts = tokens_of(model)
    expected, _ = one_at_a_time(folders[kind], model, ids, starts)
    theirs = transformers.AutoModel.from_pretrained(folders[kind], attn_implementation="sdpa", dtype=torch.float32)

    def vectors(arguments):
        states = theirs(**arguments).last_hidden_state[0]
        return functional.normalize(states[torch.tensor(starts[1:]) - 1], dim=-1)

    right = {"input_ids": ids[None], "position_ids": Segments(tuple(starts)).positions(0, ids.device), "use_cache": False}
    assert (vectors(right) - expected).abs().max() < 1e-5
    assert (vectors(wrong_call(trap, ids, starts)) - expected).abs().max() > 0.1
    assert (model.embed(ids, starts) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_check_at_the_start_finds_each_trap(kind, trap, folders, monkeypatch):
    model = load_model(str(folders[kind]))
    model.backbone.set_attn_implementation("sdpa")
    monkeypatch.setattr(model_module, "packed_inputs", lambda ids, starts, first: wrong_call(trap, ids, starts))
    with pytest.raises(ModelError) as error:
        check_packing(model)
    message = str(error.value).removeprefix(f"{folders[kind]}: ")
    if "cannot encode texts packed together" not in message:  # without positions a BERT has no room for so many tokens
        assert message.startswith("texts packed together get other vectors than alone (they differ by ")
        assert message.endswith(f"; {ADVICE}")
    assert model.backbone.config._attn_implementation == "sdpa"  # left as it was


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("trap", ["cache", "mask of ones"])
def test_a_trap_does_no_harm_where_the_segments_arrive(kind, trap, folders):
    model = load_model(str(folders[kind]))
    ids, starts = tokens_of(model)
    fine = model.backbone(**packed_inputs(ids, starts, 0)).last_hidden_state
    trapped = model.backbone(**wrong_call(trap, ids, starts), segments=Segments(tuple(starts))).last_hidden_state
    assert torch.equal(fine, trapped)


def test_a_model_that_keeps_the_segments_from_its_attention_is_refused(folders, monkeypatch):
    model = load_model(str(folders["qwen3"]))

    def without_segments(ids, starts, first):
        return {key: value for key, value in packed_inputs(ids, starts, first).items() if key != "segments"}

    monkeypatch.setattr(model_module, "packed_inputs", without_segments)
    with pytest.raises(ModelError) as error:
        check_packing(model)
    assert str(error.value) == (f"{folders['qwen3']}: its Qwen3Attention does not receive where each text begins; {ADVICE}")


def test_an_attention_with_scores_of_its_own_is_padded(tmp_path):
    config = transformers.Gemma2Config(vocab_size=420, hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=8)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny_folder("llama", tmp_path / "tokens")
    for path in (tmp_path / "tokens").glob("token*"):
        path.rename(tmp_path / path.name)
    model = load_model(str(tmp_path), max_tokens=32)
    assert (model.padded, model.equal) == ("its Gemma2Attention adds 'softcap' to its scores", False)
    assert notes_of(model, "none")[1] == (
        "attention: padded, because its Gemma2Attention adds 'softcap' to its scores; "
        "batches are cut by length, and at most one token in eight is padding"
    )


def test_no_mask_is_ever_built_and_positions_are_not_searched():
    config = transformers.Qwen3Config(attn_implementation=attention.PACKED, sliding_window=8, use_sliding_window=True)
    states = torch.empty(1, 100_000, 1, device="meta")
    given = {"config": config, "inputs_embeds": states, "attention_mask": None, "past_key_values": None}
    positions = torch.empty(1, 100_000, dtype=torch.int64, device="meta")  # has no numbers: reading one would raise
    for make in (masking_utils.create_causal_mask, masking_utils.create_sliding_window_causal_mask):
        assert make(**given, position_ids=positions) is None
    assert masking_utils.create_bidirectional_mask(config=config, inputs_embeds=states, attention_mask=None) is None


def test_dropout_is_honoured_in_training_and_absent_otherwise(folders):
    model = load_model(str(folders["bert"]))
    ids, starts = tokens_of(model)
    assert torch.equal(model.embed(ids, starts), model.embed(ids, starts))
    model.backbone.train()
    assert not torch.equal(model.embed(ids, starts), model.embed(ids, starts))


def test_bfloat16_by_autocast_is_near(folders):
    model = load_model(MINILM)
    ids, starts = tokens_of(model)
    with autocast(torch.device("cpu"), "bfloat16"):
        near = model.embed(ids, starts)
    assert near.dtype == torch.float32
    assert (near * model.embed(ids, starts)).sum(1).min() > 0.999


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 3))
def test_segments_tell_lengths_runs_and_positions(lengths, first):
    segments = Segments(tuple(np.cumsum([0, *lengths]).tolist()))
    assert segments.lengths.tolist() == lengths
    assert [length for count, length in segments.runs for _ in range(count)] == lengths
    assert all(one[1] != other[1] for one, other in pairwise(segments.runs))
    assert segments.positions(first, torch.device("cpu"))[0].tolist() == [first + place for n in lengths for place in range(n)]
    assert segments.longest == max(lengths)
