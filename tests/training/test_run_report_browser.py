"""The report of a training run in a browser: on a phone, in the dark, with every curve in its place."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from curation.core.errors import BuildError
from tests.curation.report.test_report_browser import CONTRASTS, OVERFLOWING
from training.report import thinned, write_report

LINES = 500


def write_log(folder):
    folder.mkdir(parents=True)
    with (folder / "log.jsonl").open("w") as log:
        for step in range(LINES):
            source = ("faq", "a-source-with-quite-a-long-name-as-some-have", "<b>&")[step % 3]
            hard, inbatch = 4 * math.exp(-step / 100), None if step % 3 == 2 else 2 * math.exp(-step / 80)
            line = {"step": step, "epoch": 0, "source": source, "task": "retrieval", "loss": hard + (inbatch or 0)}
            line |= {"loss_hard": hard, "loss_inbatch": inbatch, "loss_distilled": None, "lr": 1e-5 * (1 - step / LINES)}
            line |= {"grad_norm": 1 + step % 7, "tokens": 1000, "seconds": 0.5, "tokens_per_second": 2000}
            line |= {"seconds_left": (LINES - step) / 2, "pad_share": 0.0, "mfu": None, "memory_gb": 1 + step / LINES}
            log.write(json.dumps(line) + "\n")
            if (step + 1) % 100 == 0:
                found = {"faq": step / 1000, "<b>&": 0.4}
                said = {"step": step, "ndcg@10": step / 2000 + 0.2, "sources": found, "best": True, "seconds": 1.0}
                log.write(json.dumps(said) + "\n")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(write_log(tmp_path_factory.mktemp("runs") / "small" / "train"))


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_and_asks_for_nothing(tab, report, width, dark):
    tab.open(report, width, dark=dark)
    assert tab.value("document.documentElement.scrollWidth") == width
    assert tab.value(OVERFLOWING) == []
    ratios = tab.value(CONTRASTS)
    assert len(ratios) > 8
    assert {what: round(ratio, 1) for what, ratio in ratios.items() if ratio < 4.5} == {}
    assert tab.value("getComputedStyle(document.body).backgroundColor") == ("rgb(20, 22, 25)" if dark else "rgb(255, 255, 255)")
    assert (tab.problems, tab.requests[-1]) == ([], report.resolve().as_uri())
    assert tab.value("document.querySelectorAll('script, img, iframe').length") == 0


@pytest.mark.browser
def test_every_curve_lies_in_its_drawing_and_falls_where_the_loss_does(tab, report):
    tab.open(report, 1280)
    names = tab.value("[...document.querySelectorAll('figcaption b')].map((one) => one.textContent)")
    assert names == ["Loss", "Loss by term", "nDCG@10 on held-out queries", "Learning rate", "Gradient norm", "Tokens per second",
                     "Highest memory so far, GB", "<b>&", "a-source-with-quite-a-long-name-as-some-have", "faq"]  # fmt: skip
    places = tab.value(
        "[...document.querySelectorAll('polyline')].map((one) => [...one.points].map((point) => [point.x, point.y]))"
    )
    # Smoothed curves are drawn over raw ones: 2 and 4 of losses, 3 of nDCG, 1 of the rate, 2 and 2, 1 of memory, 6 of sources.
    assert len(places) == 21
    assert all(0 <= x <= 300 and 0 <= y <= 100 for curve in places for x, y in curve)
    rate = places[9]
    assert (rate[0], rate[-1]) == ([0, 0], [300, 100])  # it falls from its highest to its lowest
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in pairwise(rate))
    keys = tab.value("[...document.querySelectorAll('.key')].map((one) => one.textContent)")
    assert keys == ["hard negatives", "in-batch", "mean", "faq", "<b>&", "process"]
    facts = tab.value("[...document.querySelectorAll('dl div')].map((one) => one.textContent)")
    assert facts == ["steps500", "tokens500,000", "padding tokens0.0%", "time in steps4 min", "tokens per second2,000",
                     "best nDCG@10, step 5000.4495", "memory of the process, GB2.0"]  # fmt: skip


def test_a_long_curve_is_thinned_to_means_of_stretches():
    steps, values = thinned((list(range(1, 1001)), [float(value) for value in range(1000)]), 10)
    assert steps == list(range(100, 1001, 100))
    assert values == [49.5 + 100 * part for part in range(10)]
    short = ([1, 5], [2.0, 3.0])
    assert thinned(short) == short


def test_a_folder_without_a_run_is_reported(tmp_path):
    with pytest.raises(BuildError) as error:
        write_report(tmp_path)
    assert str(error.value) == f"{tmp_path}: has no step in log.jsonl; give the folder of a run, such as builds/NAME/train"
