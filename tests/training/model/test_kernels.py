"""Which attention kernel a GPU gets, what happens where one fails, and, on a GPU, each kernel against one text at a time."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_models import tiny_folder
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from curation.core.errors import ModelError, SetupError
from training.model import attention, load
from training.model.attention import BY_TEXT, EFFICIENT, FLASH, VARLEN, Segments, kernel_of, packed_attention
from training.model.device import capability_of, dtype_of, float32_products
from training.model.load import check_packing, load_model

GPU = torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that pretends a GPU of a capability, with kernels that fail as it says."""

    def pretend(capability, **failures):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(attention, "_failure", lambda kernel, *_: failures.get(kernel.replace(" ", "_").replace("-", "_")))
        monkeypatch.setattr(attention, "_verdicts", {})
        monkeypatch.setattr(attention, "_chosen", {})

    return pretend


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "expected"),
    [
        ((9, 0), torch.bfloat16, 128, VARLEN),
        ((8, 0), torch.bfloat16, 26, VARLEN),  # padded to 32
        ((8, 9), torch.bfloat16, 256, VARLEN),
        ((9, 0), torch.bfloat16, 320, EFFICIENT),
        ((9, 0), torch.float32, 128, EFFICIENT),
        ((7, 5), torch.float32, 64, EFFICIENT),
        ((7, 0), torch.float16, 64, EFFICIENT),
    ],
)
def test_the_kernel_follows_from_capability_dtype_and_head_size(capability, dtype, head_size, expected, gpu):
    gpu(capability, flash_attn="not installed")
    assert kernel_of(GPU, dtype, head_size) == expected
    assert attention.avoided_kernels(GPU, dtype, head_size) == []
    assert kernel_of(torch.device("cpu"), dtype, head_size) == BY_TEXT


def test_flash_attn_is_preferred_where_it_runs_and_named_where_it_fails(gpu):
    gpu((9, 0))
    assert kernel_of(GPU, torch.bfloat16, 64) == FLASH
    gpu((9, 0), flash_attn="undefined symbol")
    assert kernel_of(GPU, torch.bfloat16, 64) == VARLEN
    assert attention.avoided_kernels(GPU, torch.bfloat16, 64) == [
        "attention: flash-attn fails here for bfloat16 and heads of 64 (undefined symbol); torch varlen is used"
    ]


def test_without_any_kernel_that_runs_there_is_sdpa_by_text(gpu):
    gpu((9, 0), flash_attn="not installed", torch_varlen="no kernel image", torch_efficient_varlen="no kernel image")
    assert kernel_of(GPU, torch.bfloat16, 64) == BY_TEXT
    assert len(attention.avoided_kernels(GPU, torch.bfloat16, 64)) == 2


def test_a_kernel_is_tried_once(gpu, monkeypatch):
    gpu((9, 0))
    tried = []
    monkeypatch.setattr(attention, "_failure", lambda kernel, *_: tried.append(kernel))
    assert [kernel_of(GPU, torch.bfloat16, 64) for _ in range(3)] == [FLASH] * 3
    assert tried == [FLASH]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_kernel_that_raises_is_a_reason_and_no_error(monkeypatch):
    monkeypatch.setattr(attention, "_verdicts", {})
    monkeypatch.setattr(attention, "_chosen", {})
    assert kernel_of(GPU, torch.float32, 64) == BY_TEXT
    (line,) = attention.avoided_kernels(GPU, torch.float32, 64)
    assert line.startswith(f"attention: {EFFICIENT} fails here for float32 and heads of 64 (")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("capability", "auto"), [((7, 0), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_auto_is_bfloat16_only_where_the_gpu_computes_it(capability, auto, gpu):
    gpu(capability)
    assert dtype_of("auto", GPU) == auto
    assert dtype_of("float32", GPU) == torch.float32
    if auto == torch.bfloat16:
        assert dtype_of("bfloat16", GPU) == torch.bfloat16
        return
    with pytest.raises(SetupError) as error:
        dtype_of("bfloat16", torch.device("cuda:0"))
    assert str(error.value) == (
        f"cuda:0: the GPU does not compute bfloat16 (compute capability {capability[0]}.{capability[1]}, it needs 8.0); "
        "use dtype float32 or auto"
    )


def test_a_reduced_precision_of_float32_products_has_its_name():
    before = torch.get_float32_matmul_precision()
    assert float32_products(GPU) == "exact"
    try:
        torch.set_float32_matmul_precision("high")
        assert (float32_products(GPU), float32_products(torch.device("cpu"))) == ("tf32", "exact")
    finally:
        torch.set_float32_matmul_precision(before)


class PretendedGpu:
    """A backbone on the CPU that says it is on a GPU."""

    def __init__(self, backbone):
        self._backbone, self.device = backbone, GPU

    def __getattr__(self, name):
        return getattr(self._backbone, name)


@pytest.fixture
def model(tmp_path, gpu, monkeypatch):
    gpu((9, 0), flash_attn="not installed")
    loaded = load_model(str(tiny_folder("qwen3", tmp_path / "m")), device="cpu")
    loaded.backbone = PretendedGpu(loaded.backbone)
    return loaded


def test_a_kernel_that_fails_at_the_start_is_replaced_with_a_warning(model, monkeypatch, caplog):
    def difference(model, dtype):
        kernel = kernel_of(GPU, dtype, 8)
        if kernel == VARLEN:
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")
        return 0.5 if kernel == EFFICIENT and dtype == torch.bfloat16 else 0.0

    monkeypatch.setattr(load, "_packing_difference", difference)
    check_packing(model)
    assert kernel_of(GPU, torch.float32, 8) == EFFICIENT
    assert kernel_of(GPU, torch.bfloat16, 8) == BY_TEXT
    assert caplog.messages == [
        "attention: torch varlen fails here for bfloat16 and heads of 8 (its PretendedGpu cannot encode texts packed together "
        "(FlashAttention only supports Ampere GPUs or newer.)); sdpa by text is used",
        "attention: torch efficient varlen fails here for bfloat16 and heads of 8 (texts packed together get other vectors than "
        "alone (they differ by 0.5)); sdpa by text is used",
    ]


def test_a_fault_of_the_model_itself_is_refused_and_blames_no_kernel(model, monkeypatch):
    monkeypatch.setattr(load, "_packing_difference", lambda model, dtype: 0.7)
    with pytest.raises(ModelError) as error:
        check_packing(model)
    assert str(error.value).endswith(
        "texts packed together get other vectors than alone (they differ by 0.7); "
        "its architecture cannot be trained or encoded without padding"
    )
    assert kernel_of(GPU, torch.bfloat16, 8) == VARLEN


def test_heads_padded_with_zeros_give_the_same_attention():
    torch.manual_seed(0)
    rows = [torch.randn(12, 2, 26) for _ in range(3)]
    segments, seen = Segments((0, 5, 12)), []

    def kernel(query, key, value, segments, scaling, window):
        seen.append(query.shape[-1])
        return attention.by_runs(query, key, value, segments, 0.0, scaling, window)

    for scaling in (None, 0.3):
        padded = attention.padded_heads(kernel, *rows, segments, scaling, (-1, 0))
        plain = attention.by_runs(*rows, segments, 0.0, scaling, (-1, 0))
        assert padded.shape == plain.shape
        assert (padded - plain).abs().max() < 1e-6
    assert seen == [32, 32]


# On a GPU.


def alone(rows, segments, window):
    """Attend one text at a time in float64 by plain matrix products; rows (T, heads, d), grouped heads repeated."""
    query, key, value = (row.double() for row in rows)
    key, value = (row.repeat_interleave(query.shape[1] // row.shape[1], dim=1) for row in (key, value))
    attended = []
    for start, end in pairwise(segments.starts):
        q, k, v = (row[start:end].transpose(0, 1) for row in (query, key, value))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        place = torch.arange(end - start, device=q.device)
        back = place[:, None] - place[None, :]
        left, right = window
        hidden = ((back > left) if left >= 0 else (back != back)) | ((back < -right) if right >= 0 else (back != back))
        attended.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(attended)


TOLERANCES = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (2e-2, 3e-2), torch.float16: (4e-3, 6e-3)}
WINDOWS = {"causal": (-1, 0), "both ways": (-1, -1), "causal window": (7, 0), "window": (7, 7)}


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kernel", [BY_TEXT, EFFICIENT, VARLEN, FLASH])
def test_each_kernel_equals_one_text_at_a_time_forward_and_backward(kernel, dtype):
    if kernel not in (BY_TEXT, *attention._candidates(GPU, dtype, 64)):
        pytest.skip(f"{kernel} is not made for {dtype} on this GPU")
    if kernel != BY_TEXT and attention._failure(kernel, GPU, dtype, 64) == "not installed":
        pytest.skip(f"{kernel} is not installed")
    segments = Segments((0, 5, 10, 74, 75, 200, 329))
    wrong = []
    for name, window in WINDOWS.items():
        if kernel == EFFICIENT and window == (7, 7):
            continue  # packed_attention does not choose it there
        for head_size in (26, 32, 64, 80, 128, 256):
            for kv_heads in (4, 2):
                torch.manual_seed(0)
                shapes = ((329, 4, head_size), (329, kv_heads, head_size), (329, kv_heads, head_size))
                rows = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]
                goal = torch.randn(329, 4, head_size, device="cuda", dtype=torch.float64)
                expected = alone(rows, segments, window)
                right = torch.autograd.grad((expected * goal).sum(), rows)
                if kernel == BY_TEXT:
                    found = attention.by_runs(*rows, segments, 0.0, None, window)
                else:
                    found = attention.padded_heads(attention.KERNELS[kernel], *rows, segments, None, window)
                ours = torch.autograd.grad((found.double() * goal).sum(), rows)
                forward = float((found - expected).abs().max())
                backward = max(
                    float((one - other).abs().max() / other.abs().max()) for one, other in zip(ours, right, strict=True)
                )
                if not (forward <= TOLERANCES[dtype][0] and backward <= TOLERANCES[dtype][1]):
                    wrong.append(f"{name}, heads of {head_size}, {kv_heads} kv heads: {forward:.2g}, {backward:.2g}")
    assert not wrong, wrong


@pytest.mark.gpu
@on_gpu
def test_this_gpu_uses_a_fused_kernel_for_every_dtype_and_head_size():
    for head_size in (26, 32, 64, 80, 128, 256, 320):
        assert kernel_of(GPU, torch.float32, head_size) == EFFICIENT, attention.avoided_kernels(GPU, torch.float32, head_size)
        if capability_of(GPU) >= (8, 0):
            found, expected = kernel_of(GPU, torch.bfloat16, head_size), (FLASH, VARLEN) if head_size <= 256 else (EFFICIENT,)
            assert found in expected, attention.avoided_kernels(GPU, torch.bfloat16, head_size)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("window", list(WINDOWS.values()), ids=list(WINDOWS))
def test_sdpa_by_text_never_takes_the_slow_kernel_for_float32_and_grouped_heads(window):
    torch.manual_seed(0)
    segments = Segments((0, 5, 10, 74, 75, 200))
    rows = [torch.randn(200, heads, 64, device="cuda", requires_grad=True) for heads in (4, 2, 2)]
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):  # raises where it does not take the arguments
        attention.by_runs(*rows, segments, 0.0, None, window).sum().backward()
    assert all(row.grad.isfinite().all() and row.grad.abs().max() > 0 for row in rows[2:])  # of the values


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("kind", ["qwen3", "llama", "bert", "mistral", "modernbert", "roberta"])
def test_a_model_on_the_gpu_gives_the_vectors_and_gradients_of_the_cpu(kind, tmp_path, caplog):
    folder = str(tiny_folder(kind, tmp_path))
    texts = ["find empty files", "one", "rates rise again as banks wait " * 8, "a dull film", "<pad> in a text"]
    vectors, gradients = [], []
    for device in ("cpu", "cuda"):
        model = load_model(folder, device=device)
        assert not caplog.messages
        tokens = model.tokenize(texts)
        found = model.embed(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist())
        target = torch.linspace(-1, 1, found.numel(), device=found.device).reshape(found.shape).cos()
        (found * target).sum().backward()
        vectors.append(found.detach().cpu())
        gradients.append({name: one.grad.cpu() for name, one in model.backbone.named_parameters() if one.grad is not None})
    assert (vectors[0] - vectors[1]).abs().max() < 1e-4
    assert gradients[0].keys() == gradients[1].keys()
    for name, one in gradients[0].items():
        assert (one - gradients[1][name]).abs().max() <= 1e-3 * max(1.0, float(one.abs().max())), name
    if dtype_of("auto", GPU) == torch.bfloat16:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            near = model.embed(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist()).cpu()
        assert functional.cosine_similarity(near, vectors[0]).min() > 0.99


@pytest.mark.gpu
@on_gpu
def test_a_forward_never_waits_for_the_gpu(tmp_path):
    for kind in ("qwen3", "bert", "roberta", "modernbert"):
        model = load_model(str(tiny_folder(kind, tmp_path / kind)), device="cuda")
        tokens = model.tokenize(["find empty files", "one", "a dull film"])
        ids, starts = torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist()
        for pooling in ("mean", "last", "cls", "max", "weightedmean", "mean_sqrt_len_tokens"):
            model.pooling = pooling
            model.embed(ids, starts).sum().backward()  # compiles and allocates
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                model.embed(ids, starts).sum().backward()
                torch.cuda.set_sync_debug_mode("default")
            places = [
                f"{one.filename}:{one.lineno}" for one in waits if "prototype" not in str(one.message)
            ]  # of the debug mode itself
            assert not places, (kind, pooling)


@pytest.mark.gpu
@on_gpu
def test_packed_attention_takes_heads_wider_than_the_flash_kernels():
    module = torch.nn.Linear(1, 1, device="cuda")
    segments = Segments((0, 5, 40))
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        states = [torch.randn(1, 2, 40, 320, device="cuda", dtype=dtype) for _ in range(3)]
        found, _ = packed_attention(module, *states, None, is_causal=True, segments=segments)
        expected = alone([one[0].transpose(0, 1) for one in states], segments, (-1, 0))
        assert (found[0] - expected).abs().max() < TOLERANCES[dtype][0]
