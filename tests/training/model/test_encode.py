"""The one encoder: equal to sentence-transformers, a function of its texts alone, and honest about what it depends on."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import MINILM, TEXTS, tiny_folder

from curation.core.errors import ModelError, SetupError
from training.model import device
from training.model import encode as module
from training.model.device import dtype_of
from training.model.encode import batches, load_encoder
from training.model.files import find_model

MANY = [*TEXTS, *(f"{word} " * length for word in ("cat", "naïve") for length in (1, 7, 40)), "cat " * 300, "end", " ", "\n\n"]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(MINILM)


@pytest.fixture(scope="module")
def vectors(encoder):
    return encoder.encode(MANY)


def test_equal_to_sentence_transformers(encoder, vectors):
    theirs = SentenceTransformer(str(find_model(MINILM).transformer), device="cpu").encode(MANY, normalize_embeddings=True)
    ours = vectors
    assert ours.dtype == np.float32
    assert ours.shape == (len(MANY), 384) == (len(MANY), encoder.dim)
    assert np.abs(ours - theirs).max() < 1e-5
    assert (ours * theirs).sum(1).min() > 0.99999
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6


def test_bfloat16_is_near(vectors):
    quick = load_encoder(MINILM, dtype="bfloat16")
    assert quick.described["dtype"] == "bfloat16"
    found = quick.encode(MANY)
    assert found.dtype == np.float32
    assert (found * vectors).sum(1).min() >= 0.9999
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6


def test_the_same_texts_give_the_same_bytes_and_others_beside_them_the_same_vectors(encoder, vectors):
    first = vectors
    assert first.tobytes() == load_encoder(MINILM).encode(tuple(MANY)).tobytes()
    alone = np.concatenate([encoder.encode([text]) for text in MANY])
    assert np.abs(first - alone).max() < 1e-6
    assert np.array_equal(first[0], first[4])  # equal texts
    backwards = encoder.encode(MANY[::-1])[::-1]
    assert np.abs(first - backwards).max() < 1e-6


def test_no_texts_give_no_vectors_and_progress_counts_all(encoder):
    assert encoder.encode([]).shape == (0, 384)
    done = []
    encoder.encode([text[:400] for text in MANY] * 6, done.append)
    assert sum(done) == 6 * len(MANY)
    assert len(done) > 1


def test_many_texts_are_tokenised_in_several_calls_with_the_same_result(encoder, vectors, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_PER_CALL", 3)
    assert encoder.encode(MANY).tobytes() == vectors.tobytes()


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_batches_hold_every_text_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths, np.int64)
    found = list(batches(lengths, budget))
    assert sorted(np.concatenate([np.zeros(0, np.int64), *found]).tolist()) == list(range(len(lengths)))
    assert all(lengths[rows].sum() <= budget or len(rows) == 1 for rows in found)
    order = np.concatenate([np.zeros(0, np.int64), *found]).astype(int)
    assert order.tolist() == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def test_a_text_without_numbers_is_named(tmp_path):
    folder = tiny_folder("bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    encoder = load_encoder(str(folder))
    rare = int(encoder.model.tokenize(["東"]).ids[1])
    weights["embeddings.word_embeddings.weight"][rare] = float("nan")
    with pytest.raises(ModelError) as error:
        with torch.no_grad():  # in memory, as a damaged file is refused when it is loaded
            encoder.model.backbone.get_input_embeddings().weight.copy_(weights["embeddings.word_embeddings.weight"])
        encoder.encode(["fine", "東 " + "and a long story " * 9])
    shown = "東 and a long story and a long story and a long story and a lo"[:60]
    assert str(error.value) == f"{folder}: gives no numbers for the text '{shown}'; are its weights whole? try float32"


def test_the_fingerprint_tells_all_that_vectors_depend_on(tmp_path):
    folder = tiny_folder("bert", tmp_path / "bert")
    first = load_encoder(str(folder)).fingerprint
    assert load_encoder(str(folder)).fingerprint == first
    shutil.copytree(folder, tmp_path / "copy")
    assert load_encoder(str(tmp_path / "copy")).fingerprint == first  # the place does not matter
    others = [
        load_encoder(str(folder), dtype="bfloat16").fingerprint,
        load_encoder(str(folder), max_tokens=40).fingerprint,
    ]
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][7, 7] += 1e-3
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    others.append(load_encoder(str(tmp_path / "copy")).fingerprint)
    shutil.copytree(folder, tmp_path / "words")
    core = json.loads((tmp_path / "words" / "tokenizer.json").read_text())
    core["normalizer"]["lowercase"] = False
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(core))
    others.append(load_encoder(str(tmp_path / "words")).fingerprint)
    assert len({first, *others}) == 5
    assert all(len(one) == 32 for one in others)


def test_what_a_receipt_says_of_an_encoder(encoder):
    described = {"model": MINILM, "dtype": "float32", "prompt": "none", "pooling": "mean", "max_tokens": 256}
    assert encoder.described == described


def test_queries_and_passages_are_rendered_as_asked(tmp_path):
    folder = str(tiny_folder("qwen3", tmp_path / "qwen3"))
    auto, bare = load_encoder(folder), load_encoder(folder, prompt="none")
    assert auto.query("Find it", "where?") == "Instruct: Find it\nQuery: where?"
    assert auto.query("", "where?") == "where?"
    assert auto.passage("there") == "there"
    assert auto.described["prompt"] == "instruct"
    assert bare.query("Find it", "where?") == "where?"
    instruct = load_encoder(MINILM, prompt="instruct")
    assert instruct.query("Find it", "where?") == "Instruct: Find it\nQuery: where?"


def test_unknown_settings_are_refused():
    with pytest.raises(ModelError) as error:
        load_encoder(MINILM, prompt="own")
    assert str(error.value) == f"{MINILM}: unknown prompt 'own'; use one of auto, instruct, none"
    with pytest.raises(SetupError) as error:
        load_encoder(MINILM, dtype="float16")
    assert str(error.value) == "float16: unknown dtype; use auto, float32 or bfloat16"
    with pytest.raises(SetupError) as error:
        load_encoder(MINILM, device="tpu")
    assert str(error.value) == "tpu: unknown device; use auto, cpu, cuda or cuda:N"


def test_auto_is_bfloat16_where_the_cpu_is_made_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for fast, expected in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert dtype_of("auto", torch.device("cpu")) == expected
    assert dtype_of("auto", torch.device("cuda")) == torch.bfloat16
    assert dtype_of("float32", torch.device("cuda")) == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_gives_the_cpus_vectors(encoder, dtype):
    vectors = load_encoder(MINILM, device="cuda", dtype=dtype).encode(MANY)
    assert (vectors * encoder.encode(MANY)).sum(1).min() > (0.99999 if dtype == "float32" else 0.999)


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LONG = [f"{text} {number}" for number in range(30) for text in MANY]
SOME = LONG[: len(LONG) // 3]


def mild_folder(kind, folder):
    """Write a tiny model whose layers are small enough for bfloat16 to follow."""
    tiny_folder(kind, folder)
    weights = load_file(folder / "model.safetensors")
    mild = {name: weight * 0.25 if weight.ndim == 2 else weight for name, weight in weights.items()}
    save_file(mild, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["qwen3", "bert", "modernbert"])
def test_a_gpu_gives_the_cpus_vectors_of_tiny_models(tmp_path, monkeypatch, kind, dtype):
    monkeypatch.setattr(module, "TEXTS_PER_CHUNK", 150)
    monkeypatch.setitem(module.TOKENS_PER_BATCH, "cuda", 2_000)  # several batches
    folder, done = mild_folder(kind, tmp_path / kind), []
    found = load_encoder(folder, device="cuda", dtype=dtype).encode(LONG, done.append)
    cosines = (found * load_encoder(folder, device="cpu").encode(LONG)).sum(1)
    assert cosines.min() > (0.99999 if dtype == "float32" else 0.999)
    assert sum(done) == len(LONG)
    assert len(done) > 4


@pytest.mark.gpu
@ON_GPU
def test_out_of_memory_on_a_gpu_makes_batches_smaller(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(module.TOKENS_PER_BATCH, "cuda", 1 << 20)  # 128 MiB for each tensor of states
    monkeypatch.setattr(module, "TEXTS_PER_CHUNK", 1 << 20)
    folder = mild_folder("qwen3", tmp_path / "m")
    encoder, expected = load_encoder(folder, device="cuda"), load_encoder(folder, device="cpu").encode(LONG)
    encoder.encode(LONG[:9])  # cuBLAS takes its workspace now
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (160 << 20)) / total)
        found = encoder.encode(LONG * 60)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert (found * np.tile(expected, (60, 1))).sum(1).min() > 0.99999
    assert caplog.text.count("out of memory for a batch of") == 1
    assert encoder._budget < 1 << 19


@pytest.mark.gpu
@ON_GPU
def test_several_threads_share_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(module.TOKENS_PER_BATCH, "cuda", 2_000)
    encoder = load_encoder(mild_folder("qwen3", tmp_path / "m"), device="cuda")
    parts = [LONG[start::7] for start in range(7)]
    with ThreadPoolExecutor(encoder.threads) as pool:
        together = list(pool.map(encoder.encode, parts))
    for part, found in zip(parts, together, strict=True):
        assert (found * encoder.encode(part)).sum(1).min() > 0.999999


def test_out_of_memory_makes_batches_smaller_and_is_reported_once(tmp_path, monkeypatch, caplog):
    encoder = load_encoder(mild_folder("bert", tmp_path / "m"))
    expected, embed, held = encoder.encode(SOME), encoder.model.embed, []

    def with_little_memory(ids, bounds, unit):
        if len(ids) > 600:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        held.append(len(ids))
        return embed(ids, bounds, unit)

    monkeypatch.setattr(encoder.model, "embed", with_little_memory)
    done = []
    found = encoder.encode(SOME, done.append)
    assert (found * expected).sum(1).min() > 0.99999
    assert sum(done) == len(SOME)
    assert max(held) <= 600
    assert caplog.text.count("out of memory for a batch of") == 1
    encoder.model.embed = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(SetupError, match=r"^cpu: out of memory: a text of \d+ tokens does not fit") as error:
        encoder.encode(SOME)
    assert "\n" not in str(error.value)


def test_chunks_are_tokenised_ahead(tmp_path, monkeypatch):
    encoder = load_encoder(mild_folder("bert", tmp_path / "m"))
    expected = encoder.encode(SOME)
    monkeypatch.setattr(module, "TEXTS_PER_CHUNK", 50)
    encoder.chunked = True
    assert (encoder.encode(SOME) * expected).sum(1).min() > 0.99999
    assert (encoder.encode([*SOME, "", "x"])[-2] == encoder.encode([""])[0]).all()
    broken = encoder.model.tokenize
    monkeypatch.setattr(encoder.model, "tokenize", lambda texts: broken(texts) if SOME[70] not in texts else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.encode(SOME)


class Cuda:
    """What `torch.cuda` says on a machine; `error` is what its initialisation raises."""

    def __init__(self, monkeypatch, count=0, error=None, built="13.0", driver=False, visible=None):
        def init():
            if error:
                raise RuntimeError(error)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch, "__version__", "2.11.0")
        monkeypatch.setattr(device, "has_gpu_driver", lambda: driver)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading and "
    "installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


@pytest.mark.parametrize(
    ("asked", "machine", "line"),
    [
        ("cuda", {"built": None}, "cuda: this machine or this torch has no CUDA; use --device cpu"),
        (
            "cuda",
            {"built": None, "driver": True},
            "cuda: this machine has a GPU, but the installed torch 2.11.0 is built for CPUs only; "
            "install a torch with CUDA (https://pytorch.org/get-started/locally), or use --device cpu",
        ),
        (
            "cuda",
            {"error": OLD, "driver": True},
            "cuda: the NVIDIA driver is too old for torch 2.11.0 (CUDA 13.0); "
            "update the driver, install a torch for an older CUDA, or use --device cpu",
        ),
        (
            "cuda:0",
            {"error": "No CUDA GPUs are available"},
            "cuda:0: this machine has no GPU that torch can see; use --device cpu",
        ),
        (
            "cuda:1",
            {"error": "CUDA unknown error", "driver": True},
            "cuda:1: torch 2.11.0 cannot use the GPU (CUDA unknown error); see `nvidia-smi`, or use --device cpu",
        ),
        ("cuda", {"visible": ""}, "cuda: CUDA_VISIBLE_DEVICES is '', which hides all GPUs; unset it, or name a GPU such as 0"),
        (
            "cuda:9",
            {"count": 1},
            "cuda:9: there is no such GPU: torch sees one GPU, cuda:0; name one of these, or use --device auto",
        ),
        (
            "cuda:4",
            {"count": 4},
            "cuda:4: there is no such GPU: torch sees 4 GPUs, cuda:0 to cuda:3; name one of these, or use --device auto",
        ),
        ("cuda:x", {"count": 1}, "cuda:x: unknown device; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, asked, machine, line):
    Cuda(monkeypatch, **machine)
    with pytest.raises(SetupError) as error:
        device.device_of(asked)
    assert str(error.value) == line


def test_the_device_that_is_meant(monkeypatch):
    Cuda(monkeypatch, count=2)
    assert [str(device.device_of(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    Cuda(monkeypatch)
    assert str(device.device_of("auto")) == "cpu"


def test_a_gpu_that_auto_does_not_use_is_reported_once(monkeypatch, caplog):
    device._warn_once.cache_clear()
    Cuda(monkeypatch, built=None, driver=True, visible="")
    assert str(device.device_of("auto")) == "cpu"
    assert not caplog.records
    Cuda(monkeypatch, built=None, driver=True)
    assert [str(device.device_of("auto")) for _ in range(2)] == ["cpu", "cpu"]
    assert [record.getMessage() for record in caplog.records] == [
        "auto: this machine has a GPU, but the installed torch 2.11.0 is built for CPUs only, so the CPU is used; "
        "install a torch with CUDA (https://pytorch.org/get-started/locally), or use --device cpu"
    ]
    device._warn_once.cache_clear()
