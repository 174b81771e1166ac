"""Search in half precision gives the rows of the exact search; how a corpus is split over GPUs; GPUs without memory.

The GPUs here are fakes that round as a GPU does and run out of memory as one does; tests marked `gpu` use real ones.
"""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import faiss
import numpy as np
import pytest
import torch
from half_gpu import Half
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.core.errors import SetupError
from curation.engine.local import Here
from mining import gpu
from mining.candidates import Corpus, search
from mining.gpu import FaissGpu, Gpu, OnGpus, find_gpus, lanes_of, split, sums_in_lanes
from mining.kernels import inner_products
from mining.lists import Ragged
from mining.search import Exact, nearest, rounding
from tests.training.model.test_fake_cuda import fake_cuda

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_PASSAGES", 1)


def near_ties(count, seed):
    """Return unit vectors in families whose members differ by less than half precision can tell."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((count // 40 + 1, 64))[np.arange(count) // 40] + 2e-3 * random.standard_normal((count, 64))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("number", "room"), [(1, 1 << 30), (3, 1 << 30), (4, 200_000), (2, 100_000), (1, 12_900)])
def test_the_rows_of_the_exact_search(number, room):
    corpus = near_ties(3000, 0)
    corpus[100:160] = corpus[7]
    queries = np.concatenate([near_ties(200, 0)[::3], near_ties(200, 5)])
    few = [Half(i, room) for i in range(number)]
    index = OnGpus(corpus, few, block=700)
    ids, scores = nearest(queries, index, 30)
    expected, exact = nearest(queries, Exact(corpus), 30)
    np.testing.assert_array_equal(ids, expected)
    assert scores.tobytes() == exact.tobytes()
    rough, _ = index.fetch(queries, 30)
    assert (rough != expected).any(axis=1).mean() > 0.2  # half precision alone has other rows
    assert max(k for one in few for k in one.asked) >= 100  # too narrow lists of 46 were widened
    assert max(len(one.held) for one in few) * 128 <= room


def test_a_corpus_that_could_not_be_copied_whole_is_copied_again():
    corpus, other, one = near_ties(900, 0), near_ties(900, 5), Half()
    index, second = OnGpus(corpus, [one], block=200), OnGpus(other, [one], block=200)
    expected = nearest(corpus[-50:], index, 10)[0]
    nearest(other[:50], second, 10)  # takes the GPU
    put, blocks = one.put, iter(range(2))

    def fail_at_the_third(start, vectors):
        next(blocks)
        return put(start, vectors)

    one.put = fail_at_the_third
    with pytest.raises(StopIteration):
        nearest(corpus[-50:], index, 10)
    one.put = put
    np.testing.assert_array_equal(nearest(corpus[-50:], index, 10)[0], expected)


@pytest.mark.parametrize(
    "index", [Exact(np.empty((0, 8), np.float32)), OnGpus(np.empty((0, 8), np.float32), [Half()])], ids=["cpu", "gpu"]
)
def test_an_empty_corpus_gives_empty_lists(index):
    ids, scores = nearest(np.ones((3, 8), np.float32), index, 5)
    assert ids.shape == scores.shape == (3, 0)


def test_other_classes_on_gpus():
    vectors, classes = near_ties(900, 3), np.arange(900) // 40 % 5 - 1
    none = Ragged(np.zeros(51, np.int64), np.empty(0, np.int64))
    positives, shingles = Ragged(np.arange(51), np.arange(50)), Ragged(np.zeros(901, np.int64), np.empty(0, np.uint64))
    few = [Half(0, 40_000), Half(1, 40_000)]
    found = [
        search(vectors[:50], positives, none, Corpus(vectors, np.arange(900), index, shingles, classes), 20, classes[:50])
        for index in (Exact(vectors, groups=classes), OnGpus(vectors, few, groups=classes))
    ]
    assert (found[0].ids[classes[:50] >= 0] >= 0).all()
    assert all(one.loads for one in few)
    np.testing.assert_array_equal(found[1].ids, found[0].ids)
    assert found[1].scores.tobytes() == found[0].scores.tobytes()


@given(st.integers(1, 30), st.integers(1, 200), st.integers(1, 220), st.integers(1, 4), st.integers(1, 90), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_ties_on_gpus(count, passages, k, number, room, seed):
    random = np.random.default_rng(seed)
    queries = random.integers(-2, 3, (count, 6)).astype(np.float32) / 16
    corpus = random.integers(-2, 3, (passages, 6)).astype(np.float32) / 16
    few = [Half(i, room * 12) for i in range(number)]
    ids, scores = nearest(queries, OnGpus(corpus, few, block=17), k)
    expected, exact = nearest(queries, Exact(corpus), k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, exact)


@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(0, 8))
@settings(max_examples=60, deadline=None)
def test_what_is_left_out_scores_no_more_than_the_limit(seed, dim, skew):
    random = np.random.default_rng(seed)
    sizes = np.exp(-skew * random.random(dim))  # from even to a few large and many tiny numbers
    vectors = random.standard_normal((60, dim)) * sizes + 1e-12
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    one = Half()
    index = OnGpus(vectors, [one])
    ids, limit = index.fetch(vectors, 20)
    exact = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    rough, rows = one.knn(vectors.astype(np.float16), 60, slice(None))
    assert (np.abs(rough - np.take_along_axis(exact, rows, axis=1)).max(axis=1) <= index.slack(vectors)).all()
    np.put_along_axis(exact, ids, -np.inf, axis=1)
    assert (exact.max(axis=1) <= limit).all()
    assert index.slack(vectors).max() < 1.2e-3


@given(st.integers(1, 30), st.sampled_from([32, 64, 96, 384, 1024]), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_scores_on_a_gpu_have_the_bits_of_this_processor(count, dim, seed):
    random = np.random.default_rng(seed)
    vectors = (random.standard_normal((2 * count, dim)) * 10 ** random.uniform(-8, 0, (2 * count, 1))).astype(np.float32)
    vectors[0] = 0
    lanes = lanes_of(Gpu("cpu"), dim)
    if lanes:
        places = random.integers(0, 2 * count, (count, 3))
        wanted = inner_products(vectors[:count], vectors, places)
        got = Gpu("cpu").sums(vectors[:count].repeat(3, axis=0), vectors[places.ravel()], lanes)
        assert got.reshape(places.shape).tobytes() == wanted.tobytes()
    assert lanes_of(Gpu("cpu"), 33) == 0  # numbers are left over


def test_this_processor_has_an_order_that_a_gpu_can_follow():
    if platform.machine() == "x86_64":
        assert lanes_of(Gpu("cpu"), 384) > 0


@pytest.mark.parametrize(("room", "held"), [(1 << 30, True), (1000 * 6 * 64, True), (1000 * 6 * 64 - 1, False), (40_000, False)])
def test_candidates_are_scored_on_the_gpus_if_float32_fits_there(room, held):
    corpus = near_ties(1000, 0)
    index = OnGpus(corpus, [Half(0, room)])
    ids, scores = nearest(corpus[:50], index, 10)
    expected, exact = nearest(corpus[:50], Exact(corpus), 10)
    np.testing.assert_array_equal(ids, expected)
    assert scores.tobytes() == exact.tobytes()
    assert index.exact == held
    assert (index.gpus[0].scored > 0) == (held and lanes_of(Gpu("cpu"), 64) > 0)


def test_several_gpus_score_each_what_they_hold():
    corpus, few = near_ties(1000, 0), [Half(i, 600 * 6 * 64) for i in range(4)]
    index = OnGpus(corpus, few, groups=np.arange(1000) % 7 - 1)
    index.fetch(corpus[:10], 5)
    rows = np.random.default_rng(0).integers(0, 1000, (90, 11))
    found = index.scores(corpus[:90], rows)
    assert found.tobytes() == Exact(corpus).scores(corpus[:90], rows).tobytes()
    assert all(one.scored for one in few) or not lanes_of(Gpu("cpu"), 64)


def test_a_corpus_that_is_no_longer_needed_leaves_at_once():
    index = OnGpus(near_ties(100, 0), [Gpu("cpu")])
    index.room = 1 << 30
    index.fetch(near_ties(10, 1), 5)
    held = weakref.ref(index.gpus[0])
    gc.disable()
    try:
        del index
        assert held() is None
    finally:
        gc.enable()


def test_two_corpora_take_turns_on_one_gpu():
    corpus, one = near_ties(1000, 0), [Half()]
    first, second = OnGpus(corpus, one), OnGpus(corpus[::2], one)
    for _ in range(2):
        for index in (first, second):
            expected = nearest(corpus[:9], Exact(index.corpus), 5)
            found = nearest(corpus[:9], index, 5)
            np.testing.assert_array_equal(found[0], expected[0])
            assert found[1].tobytes() == expected[1].tobytes()
    assert one[0].loads == 4


@given(st.integers(1, 5000), st.integers(1, 6000), st.integers(1, 9))
def test_each_copy_holds_each_row_once(rows, room, number):
    copies, rounds = split(rows, room, number)
    width = max(len(pieces) for pieces in rounds)
    assert 1 <= copies * width <= number
    assert copies == 1 or len(rounds) == 1
    every = [row for pieces in rounds for piece in pieces for row in range(piece.start, piece.stop)]
    assert every == list(range(rows))
    assert all(piece.stop - piece.start <= room for pieces in rounds for piece in pieces)


def test_gpus_share_the_queries_and_hold_the_corpus_once():
    assert split(1000, 1000, 4) == (4, [[slice(0, 1000)]])
    assert split(1000, 600, 4) == (2, [[slice(0, 500), slice(500, 1000)]])
    assert split(1000, 300, 2) == (1, [[slice(0, 250), slice(250, 500)], [slice(500, 750), slice(750, 1000)]])
    corpus = near_ties(1000, 0)
    few = [Half(i, room=1000 * 6 * 64) for i in range(4)]
    index = OnGpus(corpus, few)
    for _ in range(3):
        index.fetch(corpus[:90], 5)
    assert [one.loads for one in few] == [1] * 4


def test_without_memory_blocks_are_smaller_and_then_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_PASSAGES", 100)
    corpus = near_ties(1000, 0)
    expected = nearest(corpus[:200], Exact(corpus), 10)[0]
    small = Half(most=16)
    np.testing.assert_array_equal(nearest(corpus[:200], OnGpus(corpus, [small]), 10)[0], expected)
    lying = Half(room=1 << 30)  # says it has room for all, and has for 300 rows
    lying.free = lambda: 1 << 30
    lying.room = 300 * 128
    np.testing.assert_array_equal(nearest(corpus[:200], OnGpus(corpus, [lying]), 10)[0], expected)
    with pytest.raises(SetupError) as error:
        nearest(corpus[:200], OnGpus(corpus, [Half(most=5), Half(1, most=5)]), 10)
    assert str(error.value) == (
        "cuda:0, cuda:1: out of memory: even a search in small blocks does not fit (0.1 of 79.6 GiB are free); "
        "end other programs on the GPU, or run with --device cpu"
    )


def test_a_gpu_with_no_room_at_all():
    with pytest.raises(SetupError, match=r"^cuda:0: out of memory: even a search in small blocks does not fit \(0.1 of 79.6 GiB"):
        OnGpus(near_ties(100, 0), [Half(room=100)]).fetch(near_ties(10, 1), 5)


def test_another_error_of_a_gpu_is_raised_unchanged():
    one = Half()
    one.knn = lambda queries, k, part: (_ for _ in ()).throw(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory access"):
        OnGpus(near_ties(100, 0), [one]).fetch(near_ties(10, 1), 5)


def test_more_than_a_gpu_can_select_is_found_on_the_cpu():
    corpus, one = near_ties(500, 0), Half()
    one.widest = 20
    np.testing.assert_array_equal(nearest(corpus, OnGpus(corpus, [one]), 10)[0], nearest(corpus, Exact(corpus), 10)[0])
    assert one.asked == []


def test_no_gpus_are_found():
    if not torch.cuda.is_available():
        assert find_gpus("auto") == []
        with pytest.raises(SetupError):
            find_gpus("cuda")
    assert find_gpus("cpu") == []


@pytest.mark.parametrize(
    ("seen", "failure", "engines", "said"),
    [
        (0, None, ["torch", "torch"], ""),
        (2, None, ["faiss", "faiss"], ""),
        (2, RuntimeError("CUDA error 222\nmore"), ["torch", "torch"], "(CUDA error 222); torch searches instead"),
        (2, ArithmeticError("its results are wrong"), ["torch", "torch"], "(its results are wrong); torch searches instead"),
    ],
)
def test_torch_searches_where_faiss_cannot(monkeypatch, caplog, seen, failure, engines, said):
    class Faiss(Gpu):
        engine = "faiss"

        def check(self):
            if failure:
                raise failure

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: seen)
    monkeypatch.setattr(gpu, "FaissGpu", Faiss)
    assert [(one.name, one.engine) for one in find_gpus("auto")] == list(zip(["cuda:0", "cuda:1"], engines, strict=True))
    assert [one.name for one in find_gpus("cuda:1")] == ["cuda:1"]
    assert said in caplog.text
    assert bool(caplog.records) == bool(failure)
    with pytest.raises(SetupError, match=r"^cuda:9: there is no such GPU: torch sees 2 GPUs, cuda:0 to cuda:1;"):
        find_gpus("cuda:9")


def test_the_first_search_with_faiss_is_checked():
    class Checked(Half):
        check = FaissGpu.check

    Checked().check()
    wrong = Checked()
    wrong.knn = lambda queries, k, part: (np.ones((300, 3), np.float32), np.zeros((300, 3), np.int64))
    with pytest.raises(ArithmeticError):
        wrong.check()


def test_torch_is_not_loaded_to_find_no_gpu():
    code = "import sys; from mining import gpu; gpu.DRIVERS = (); print(gpu.find_gpus('auto'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[] False\n"


@given(st.integers(1, 60), st.integers(1, 700), st.integers(1, 90), st.integers(1, 5), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_torch_selects_the_highest_scores(count, passages, k, blocks, ties, seed):
    random = np.random.default_rng(seed)
    queries, corpus = (
        (random.integers(-2, 3, shape) / 16 if ties else random.standard_normal(shape) / 4).astype(np.float32)
        for shape in ((count, 6), (passages, 6))
    )
    one = Gpu("cpu")
    one.hold(passages, 6)
    error = one.put(0, corpus)
    half = corpus.astype(np.float16).astype(np.float64)
    assert error == pytest.approx(np.linalg.norm(corpus - half, axis=1).max(), rel=1e-5, abs=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "SCORES", 4 * count * -(-passages // blocks))
        patch.setattr(gpu, "GROUP", 4)
        scores, rows = one.knn(queries.astype(np.float16), k, slice(0, passages))
    assert scores.shape == rows.shape == (count, min(k, passages))
    exact = queries.astype(np.float16).astype(np.float64) @ half.T
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], rtol=0, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in rows.tolist())


@pytest.mark.parametrize(("count", "passages", "k"), [(30, 5_000, 20), (30, 5_007, 20), (3, 50, 20), (3, 7, 20)])
def test_the_torch_search_mixes_no_devices_and_does_not_wait(monkeypatch, count, passages, k):
    one = Gpu("cuda:0")
    with fake_cuda(monkeypatch) as waits:
        queries, corpus = (torch.empty(rows, 64, dtype=torch.float16, device="cuda:0") for rows in (count, passages))
        scores = one.products(queries, corpus)
        best, columns = one.highest(scores, k)
        sums = sums_in_lanes(queries.double(), queries.double(), 4)
    assert scores.dtype == best.dtype == torch.float32
    assert sums.dtype == torch.float64
    assert {tensor.device.type for tensor in (scores, best, columns, sums)} == {"cuda"}
    assert best.shape == columns.shape == (count, min(k, passages))
    assert not waits.found


@pytest.mark.parametrize("rows", [3000, 1100])
def test_the_torch_search_gives_the_rows_of_the_exact_search(rows, monkeypatch):
    monkeypatch.setattr(gpu, "SCORES", 4 * 265 * 800)  # four blocks
    corpus = near_ties(3000, 0)
    corpus[100:160] = corpus[7]
    queries = np.concatenate([near_ties(200, 0)[::3], near_ties(200, 5)])
    index = OnGpus(corpus, [Gpu("cpu"), Gpu("cpu")], block=700)
    index.room = rows * 128
    for k in (30, 2_500):
        ids, scores = nearest(queries, index, k)
        expected, exact = nearest(queries, Exact(corpus), k)
        np.testing.assert_array_equal(ids, expected)
        assert scores.tobytes() == exact.tobytes()


@given(st.integers(1, 30), st.integers(1, 200), st.integers(1, 220), st.integers(1, 90), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_ties_in_the_torch_search(count, passages, k, room, seed):
    random = np.random.default_rng(seed)
    queries = random.integers(-2, 3, (count, 6)).astype(np.float32) / 16
    corpus = random.integers(-2, 3, (passages, 6)).astype(np.float32) / 16
    index = OnGpus(corpus, [Gpu("cpu")], block=17)
    index.room = room * 12
    ids, scores = nearest(queries, index, k)
    expected, exact = nearest(queries, Exact(corpus), k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, exact)


def engines():
    """Return the kinds of search that this machine's GPUs can do."""
    return [Gpu, FaissGpu] if faiss.get_num_gpus() else [Gpu]


def random_vectors(count, dim, seed):
    found = np.random.default_rng(seed).standard_normal((count, dim), np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize(("count", "dim"), [(200_000, 64), (100_000, 1024)])
def test_on_real_gpus(count, dim):
    corpus = near_ties(count, 0) if dim == 64 else random_vectors(count, dim, 0)
    queries = np.concatenate([corpus[:: count // 150], random_vectors(150, dim, 5)])
    expected, exact = nearest(queries, Exact(corpus), 100)
    for kind in engines():
        index = OnGpus(corpus, [kind("cuda:0")])
        ids, scores = nearest(queries, index, 100)
        np.testing.assert_array_equal(ids, expected)
        assert scores.tobytes() == exact.tobytes()
    index.room = count // 5 * dim * 2  # in rounds
    index.held = -1
    np.testing.assert_array_equal(nearest(queries, index, 100)[0], expected)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("dim", [64, 384, 1024])
def test_errors_on_a_real_gpu_are_within_the_limit(dim):
    corpus, queries = random_vectors(20_000, dim, 1), random_vectors(300, dim, 2)
    corpus[:10_000] += 3 * queries[0]  # sums of many products of one sign
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    exact = queries.astype(np.float64) @ corpus.T.astype(np.float64)
    for kind in engines():
        index = OnGpus(corpus, [kind("cuda:0")])
        index.fetch(queries, 10)
        scores, rows = index.gpus[0].knn(queries.astype(np.float16), 2_000, slice(0, 20_000))
        assert (np.abs(scores - np.take_along_axis(exact, rows, axis=1)).max(axis=1) <= index.slack(queries)).all()
        half = corpus.astype(np.float16).astype(np.float64), queries.astype(np.float16).astype(np.float64)
        sums = np.abs(scores - np.take_along_axis(half[1] @ half[0].T, rows, axis=1))
        assert sums.max() <= gpu.CUT_OFF * rounding(dim)  # of the sums alone


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("dim", [64, 384, 1024])
def test_a_real_gpu_adds_as_this_processor_does(dim):
    lanes = lanes_of(Gpu("cuda:0"), dim)
    assert lanes == lanes_of(Gpu("cpu"), dim)
    assert lanes > 0  # the candidates of `test_on_real_gpus` were scored on the GPU


@pytest.mark.gpu
@NO_GPU
def test_other_classes_in_threads_on_a_real_gpu():
    corpus, classes = near_ties(40_000, 0), np.arange(40_000) // 40 % 9 - 1
    for kind in engines():
        index = OnGpus(corpus, [kind("cuda:0")], groups=classes)

        def found(number, index=index):
            others, part = index.without(number)
            return others, nearest(corpus[number::400], part, 50)

        together = [done() for _, done in Here().run(found, range(8), index.threads)]
        assert index.exact
        for number, (others, (ids, scores)) in enumerate(together):
            rows, part = Exact(corpus, groups=classes).without(number)
            expected, exact = nearest(corpus[number::400], part, 50)
            np.testing.assert_array_equal(rows, others)
            np.testing.assert_array_equal(ids, expected)
            assert scores.tobytes() == exact.tobytes()


@pytest.mark.gpu
@NO_GPU
def test_a_real_gpu_without_memory(monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_PASSAGES", 4_096)
    free = torch.cuda.mem_get_info(0)[0]
    taken = torch.empty(max(0, free - (1 << 27)), dtype=torch.uint8, device="cuda:0")
    with pytest.raises(SetupError, match=r"^cuda:0: out of memory"):
        nearest(near_ties(500, 1), OnGpus(near_ties(50_000, 0), find_gpus("cuda:0")), 100)
    del taken
