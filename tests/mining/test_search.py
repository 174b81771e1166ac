"""Search against a full sort, with many ties and in blocks of every size."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.core.errors import SetupError
from mining.search import Exact, check_installation, installed, nearest, scores_of


def by_sorting(queries, corpus, k):
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    order = np.lexsort((np.broadcast_to(np.arange(len(corpus)), scores.shape), -scores))[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@given(
    st.integers(1, 40), st.integers(1, 300), st.integers(1, 320), st.integers(1, 350), st.integers(1, 3), st.integers(0, 2**32)
)
@settings(max_examples=60)
def test_ties_at_every_place(count, passages, k, block, levels, seed):
    random = np.random.default_rng(seed)
    # a few small whole numbers: sums are exact in any order, so almost every score is shared by many passages
    queries = random.integers(-levels, levels + 1, (count, 6)).astype(np.float32) / 16
    corpus = random.integers(-levels, levels + 1, (passages, 6)).astype(np.float32) / 16
    ids, scores = nearest(queries, Exact(corpus, block), k)
    expected_ids, expected_scores = by_sorting(queries, corpus, k)
    assert ids.shape == (count, min(k, passages))
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("block", [1, 7, 100, 999, 1000, 5000])
def test_unit_vectors_in_blocks(block):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((1100, 48)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, corpus = vectors[:100], vectors[100:]
    corpus[500:550] = corpus[3]  # fifty copies: more than the spare candidates
    queries[0] = corpus[3]
    ids, scores = nearest(queries, Exact(corpus, block), 20)
    expected, exact = by_sorting(queries, corpus, 20)
    np.testing.assert_allclose(scores, exact, atol=1e-12)
    np.testing.assert_array_equal(ids[1:], expected[1:])
    np.testing.assert_array_equal(ids[0], [3, *range(500, 519)])


def test_one_query_alone_and_among_many_get_the_same_bits():
    random = np.random.default_rng(1)
    vectors = random.standard_normal((5000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids, scores = nearest(vectors[:64], Exact(vectors), 30)
    for row in (0, 17, 63):
        alone = nearest(vectors[row : row + 1], Exact(vectors, 777), 30)
        assert (alone[0][0] == ids[row]).all()
        assert alone[1][0].tobytes() == scores[row].tobytes()


def test_scores_of_single_pairs():
    queries, corpus = np.eye(2, dtype=np.float32), np.array([[0.5, 0.25], [1, 0]], np.float32)
    assert scores_of(queries, corpus, np.array([[0, 1], [1, 0]])).tolist() == [[0.5, 1.0], [0.0, 0.25]]


def test_installation():
    assert installed() == ["faiss-cpu"]
    with pytest.raises(SetupError, match=r"^faiss: is not installed; pip install 'tuplesmith\[cpu\]'$"):
        check_installation([])
    with pytest.raises(SetupError) as error:
        check_installation(["faiss-cpu", "faiss-gpu"])
    assert str(error.value) == (
        "faiss: faiss-cpu and faiss-gpu are both installed and overwrite each other; "
        "pip uninstall faiss-cpu faiss-gpu, then install one of them again: pip install faiss-gpu"
    )


@pytest.mark.parametrize(
    ("distributions", "found"),
    [
        (["faiss_gpu_cu12-1.12.0"], ["faiss-gpu-cu12"]),
        (["faiss_gpu_cu13_cuvs-1.15.0"], ["faiss-gpu-cu13-cuvs"]),
        (["faiss_cuda-1.15.0", "torch-2.11.0"], ["faiss-cuda"]),
        (["faiss_cpu-1.15.0", "faiss_gpu_cu12-1.12.0"], ["faiss-cpu", "faiss-gpu-cu12"]),
        ([], ["faiss"]),
    ],
)
def test_the_module_counts_and_not_the_name_of_its_distribution(tmp_path, monkeypatch, distributions, found):
    (tmp_path / "faiss").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "modules", {name: module for name, module in sys.modules.items() if name != "faiss"})
    assert installed() == []  # a folder that an uninstalled one left
    (tmp_path / "faiss" / "__init__.py").write_text("")
    for name in distributions:
        (tmp_path / f"{name}.dist-info").mkdir()
    importlib.invalidate_caches()
    assert installed() == found


def test_a_faiss_that_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "faiss").mkdir()
    (tmp_path / "faiss" / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from curation.core.errors import SetupError
try:
    import mining.search
except SetupError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == (
        "faiss: cannot be loaded (libcudart.so.12: cannot open shared object file); "
        "install it again, or another one: pip install faiss-cpu\n"
    )


def test_scores_of_large_and_small_corpora_are_those_of_a_double_loop(monkeypatch):
    random = np.random.default_rng(3)
    queries, corpus = (random.standard_normal((count, 33)).astype(np.float32) for count in (20, 90))
    ids = random.integers(0, 90, (20, 7))
    expected = [
        [sum(float(a) * float(b) for a, b in zip(q, corpus[i], strict=True)) for i in row]
        for q, row in zip(queries, ids, strict=True)
    ]
    whole = scores_of(queries, corpus, ids)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-13)
    monkeypatch.setattr("mining.search.GATHERED", 33 * 7 * 3)  # three queries at a time
    assert scores_of(queries, corpus, ids).tobytes() == whole.tobytes()
