"""What a step costs, in the log and on the report's page: counted by hand."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_build import retrieval, tiny_model, write_build

from curation.recipe.settings import Train
from training import report, step
from training.log import read_log
from training.model.attention import kernel_of
from training.step import chunks_of
from training.train import train


def batch_of(*lengths):
    return SimpleNamespace(ids=np.arange(sum(lengths)), starts=np.concatenate([[0], np.cumsum(lengths)]))


def test_packed_texts_have_no_padding_and_only_an_idle_process_computes_for_nothing():
    assert step.pad_share(batch_of(2, 3, 5), None, 1) == step.pad_share(batch_of(2, 3, 5), 4, 1) == 0
    assert step.pad_share(batch_of(2, 3, 5, 5), 6, 2) == 0  # 2 + 5 and 3 + 5 tokens: two chunks each
    # The first process has 2 + 5 tokens in two chunks, the second 3 in one, and goes through the shortest text meanwhile.
    assert chunks_of(np.array([2, 3, 5]), 6, 2) == [[(0, 1), (1, 2)], [(0, 1), (0, 0)]]
    assert step.pad_share(batch_of(2, 3, 5), 6, 2) == pytest.approx(2 / 12)


def test_the_share_of_a_known_peak_and_none_of_an_unknown_one(monkeypatch):
    weights = {"layers.0.weight": torch.zeros(1000, 1000), "embed_tokens.weight": torch.zeros(5000, 1000)}
    one, recipe = batch_of(500, 1500), Train(model="m")
    gpu = {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu["name"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {"cuda:1": 5_000_000_000}[str(device)])
    model = SimpleNamespace(backbone=SimpleNamespace(config=SimpleNamespace(head_dim=64)), padded="", equal=False, adapter=None)
    gpus = SimpleNamespace(device=torch.device("cuda:1"), weights=weights, world=2, model=model)
    # 6 operations * 1e6 weights * 2000 tokens in a tenth of a millisecond are 1.2e14 a second, over two GPUs 6e13.
    for gpu["name"], peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ):
        found = step.costs(gpus, one, recipe, 1e-4)
        assert (found["mfu"], found["gpu_memory_gb"]) == (round(6e13 / peak, 4), 5.0)
    for gpu["name"] in ("NVIDIA GeForce RTX 3090", "Tesla T4"):
        assert step.costs(gpus, one, recipe, 1e-4)["mfu"] is None
    cpu = step.costs(SimpleNamespace(device=torch.device("cpu"), weights=weights, world=1, model=model), one, recipe, 0.5)
    assert (cpu["mfu"], cpu["tokens"], cpu["tokens_per_second"], cpu["attention"]) == (None, 2000, 4000, "sdpa by text")
    assert "gpu_memory_gb" not in cpu


def test_the_memory_is_the_highest_of_this_process():
    reported = step.memory_gb()
    room = np.ones(200_000_000, np.uint8)
    held = step.memory_gb()
    del room
    assert step.memory_gb() >= held >= reported
    pages = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e9
    assert pages - 0.01 <= step.memory_gb() <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9 + 0.01


def test_the_kernel_is_the_one_that_runs():
    assert (
        kernel_of(torch.device("cpu"), torch.bfloat16, 64) == kernel_of(torch.device("cpu"), torch.float32, 64) == "sdpa by text"
    )


def test_the_page_shows_what_the_log_has(tmp_path):
    build = write_build(tmp_path / "b", {"pairs": retrieval(24)})
    recipe = Train(model=tiny_model(tmp_path / "m"), max_tokens=32, batch=8, negatives=1, warmup=0, epochs=2)
    said = []
    train(build, recipe, out=tmp_path / "run", device="cpu", say=said.append)
    lines = list(read_log(tmp_path / "run/log.jsonl"))
    left = [line["seconds_left"] for line in lines]
    assert left[0] > 0 == left[-1]
    assert said[-1].endswith(" tokens/s")  # nothing is left
    assert all((line["pad_share"], line["mfu"]) == (0, None) and 0.1 < line["memory_gb"] < 16 for line in lines)
    page = (tmp_path / "run/report.html").read_text()
    for name, value in (
        ("tokens", f"{sum(line['tokens'] for line in lines):,}"),
        ("padding tokens", "0.0%"),
        ("memory of the process, GB", f"{lines[-1]['memory_gb']:.1f}"),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "<b>Highest memory so far, GB</b>" in page
    assert "MFU" not in page
    assert "left" not in page
    fast = [line | {"mfu": 0.25, "gpu_memory_gb": 3.0, "pad_share": 0.5} for line in lines]
    facts = dict(report._facts(fast, []))
    assert (facts["share of the GPU's peak (MFU)"], facts["memory of the GPU, GB"]) == ("25.0%", "3.0")
    assert facts["padding tokens"] == "50.0%"
