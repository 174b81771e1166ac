"""Digests are datasketch's, scores are exact, few pairs are missed, and nothing depends on threads or order of work."""

from __future__ import annotations

import functools
import random
import tempfile
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from shingle_oracle import jaccard_of_entries, sketched

from curation.clean import pairs as pairs_module
from curation.clean import signatures
from curation.clean.pairs import bands_for, families, near
from curation.clean.shingles import BASE, CHARS, EXACT, SPACELESS, WORDS
from curation.clean.signatures import jaccard, minhash_digests, prepare, sketch
from curation.core import characters, fold_kernels
from curation.core.jit import buffers_of
from curation.core.text import connected, normalised
from curation.engine.local import Here

VOCABULARY = [
    "alpha",
    "Beta",
    "gamma,",
    "delta!",
    "état",
    "\ufb01ne",
    "ΩMEGA",
    "x_y",
    "3.14",
    "Straße",
    "co-op",
    "İstanbul",
    "don't",
    "中文",
    "ไทย",
    "𠀀",
    "a\u0301",
    "\u00a0",
]
POWERS = [pow(BASE, at + 1, 2**64) for at in range(2000)]


@functools.cache
def shingle_hash(shingle: bytes) -> int:
    return sum(byte * power for byte, power in zip(shingle, POWERS)) % 2**64  # noqa: B905


def spaceless(char: str) -> bool:
    ranges = (
        (0xE00, 0xEFF),
        (0x1000, 0x109F),
        (0x1780, 0x17FF),
        (0x3040, 0x30FF),
        (0x3400, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    )
    return any(first <= ord(char) <= last for first, last in ranges)


@functools.cache
def form_of(text: str) -> str:
    return normalised(pl.Series([text], dtype=pl.String))[0] or ""


def chars_of(form: str) -> set[bytes]:
    return {form[at : at + 5].encode() for at in range(len(form) - 4)}


def nearly(texts, lowest: float, batch: int = 10**6, threads: int = 1):
    with tempfile.TemporaryDirectory() as folder:
        return near(
            (texts.slice(first, batch) for first in range(0, len(texts), batch)), lowest, Path(folder), Here(threads=threads)
        )


@functools.cache
def kind_and_shingles(text: str) -> tuple[int, set[bytes]]:
    """What the module docstring of `shingles` says, in plain Python."""
    form = form_of(text)
    words, chars = form.split(" "), len(form)
    if 2 * sum(map(spaceless, form)) > len(form.replace(" ", "")):
        kind = SPACELESS if chars >= 12 else EXACT
    else:
        kind = WORDS if len(words) >= 25 else CHARS if len(words) >= 8 else EXACT
    if kind == WORDS:
        return kind, {" ".join(words[at : at + 3]).encode() for at in range(len(words) - 2)}
    width = {EXACT: chars + 1, CHARS: 5, SPACELESS: 3}[kind]
    return kind, {form[at : at + width].encode() for at in range(chars - width + 1)}


@functools.cache
def true_jaccard(a: str, b: str) -> float:
    (kind, first), (other, second) = kind_and_shingles(a), kind_and_shingles(b)
    if {kind, other} == {WORDS, CHARS} and len(form_of(a if kind == WORDS else b).split(" ")) < 30:
        first, second, kind, other = chars_of(form_of(a)), chars_of(form_of(b)), CHARS, CHARS
    if kind == EXACT or kind != other:
        return float(normalised(pl.Series([a]))[0] == normalised(pl.Series([b]))[0])
    return len(first & second) / len(first | second)


def some_texts(count: int, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    made = [" ".join(draw.choice(VOCABULARY) for _ in range(draw.randint(0, 50))) for _ in range(count)]
    return [
        *made,
        "我爱北京天安门,天安门上太阳升。",
        "日本語のテキストはここにあります",
        "短い",
        "",
        "!!!",
        "ภาษาไทยไม่มีช่องว่าง",
        "A",
        " a  ",
    ]


def edited_texts(count: int, seed: int = 2) -> list[str]:
    """Return texts of which many are edits of others, short and long."""
    draw = random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        words = [f"word{draw.randrange(300)}" for _ in range(draw.choice([6, 9, 15, 23, 26, 40, 80]))]
        for _ in range(draw.choice([1, 1, 2, 4])):
            texts.append(" ".join(words))
            words = list(words)
            words[draw.randrange(len(words))] = draw.choice(["other", "Word1", "thing"])
    return texts[:count]


def test_digests_are_those_of_datasketch():
    texts = some_texts(3000)
    found = minhash_digests(prepare(pl.Series(texts)), 96)
    kinds, sets = zip(*map(kind_and_shingles, texts), strict=True)
    theirs = MinHash.bulk(sets, num_perm=96, seed=1, scheme="affine32", hashfunc=lambda shingle: shingle_hash(shingle) >> 32)
    assert np.array_equal(found, np.stack([one.digest() for one in theirs]))
    assert set(kinds) == {EXACT, WORDS, CHARS, SPACELESS}


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.text(max_size=80), st.text(alphabet=" aB_9.\u00e9\u0130中\ufb01", max_size=80)), min_size=1, max_size=8)
)
def test_the_kernel_normalises_as_the_text_module_does(texts):
    forms = normalised(pl.Series(texts)).fill_null("").to_list()
    assert sketch(prepare(pl.Series(texts)), 2, 2).forms.tolist() == [shingle_hash(form.encode()) for form in forms]


def folded(texts: pl.Series) -> list[str | None]:
    """Return what the compiled loop makes of texts; None where its table leaves a character out."""
    (data, starts), form, room = buffers_of(texts), np.zeros(400, np.uint8), np.zeros((2, 400), np.uint8)
    made = [
        (*fold_kernels.fold(data, first, end, characters.folding_table(), form, room), form.tobytes())
        for first, end in pairwise(starts)
    ]
    return [None if how == 2 else whole[1 : max(size - 1, 1)].decode() for size, _, how, whole in made]


def test_the_table_of_code_points_is_what_the_text_module_does():
    chars = [chr(point) for point in range(128, 0x20400) if not 0xD800 <= point < 0xE000]
    draw = random.Random(1)
    texts = [f"A{char}b {char}" for char in chars] + ["".join(draw.choices([*chars[:1500], *"a .Z"], k=4)) for _ in range(30_000)]
    texts += ["".join(draw.choices(chars, k=3)) for _ in range(30_000)] + ["é", "\u3000", "—", "ﾀﾞ", "ΑΣ", "½"]
    forms = normalised(pl.Series(texts)).fill_null("")
    found = folded(pl.Series(texts))
    assert [form for form, one in zip(forms, found, strict=True) if one is not None] == [one for one in found if one is not None]
    assert sum(one is not None for one in found[: len(chars)]) > 55_000
    read_ones = prepare(pl.Series(texts))
    left = [at for at, one in enumerate(found) if one is None]
    assert [bytes(read_ones.data[read_ones.starts[at] : read_ones.starts[at + 1]]).decode() for at in left] == forms.gather(
        left
    ).to_list()
    again = folded(forms)
    assert [one for one in again if one is not None] == [form for form, one in zip(forms, again, strict=True) if one is not None]


def test_every_key_and_score_is_that_of_the_oracle():
    texts = pl.Series(edited_texts(600) + some_texts(200))
    left, right = np.repeat(np.arange(100), 8), np.tile(np.arange(100, 108), 100)
    found = sketch(prepare(texts), 16, 6)
    assert all(np.array_equal(a, b) for a, b in zip(found, sketched(texts, 16, 6), strict=True))
    assert (found.entries < 0).any()
    left, right = np.append(left, len(texts) + np.arange(9)), np.append(right, np.arange(9))  # entries with CHARS too
    scores = jaccard(prepare(texts), found.entries, found.counts, left, right, 0.1)
    assert np.array_equal(scores, jaccard_of_entries(texts, found.entries, left, right, 0.1))
    assert np.count_nonzero(scores) > 20


@pytest.mark.parametrize(
    ("threshold", "bands"), [(0.7, (26, 5)), (0.8, (16, 6)), (0.9, (11, 10)), (1.0, (1, 130)), (0.5, (35, 3))]
)
def test_bands_follow_from_the_recall(threshold, bands):
    assert bands_for(threshold) == bands
    count, rows = bands
    assert 1 - (1 - threshold**rows) ** count >= 0.99


def test_pairs_are_exact_and_few_are_missed():
    texts = edited_texts(250)
    found = nearly(pl.Series(texts), 0.8)
    got = dict(zip(zip(found.left.tolist(), found.right.tolist(), strict=True), found.score.tolist(), strict=True))
    for (a, b), score in got.items():
        assert score == pytest.approx(true_jaccard(texts[a], texts[b]), abs=1e-12)
        assert score >= 0.7 - 1e-9
    firsts = [at for at in range(len(texts)) if found.form[at] == at and kind_and_shingles(texts[at])[0] != EXACT]
    sets = {at: kind_and_shingles(texts[at]) for at in firsts}
    truth = {
        (a, b)
        for a in firsts
        for b in firsts
        if a < b
        and sets[a][0] == sets[b][0]
        and len(sets[a][1]) < 2 * len(sets[b][1])
        and len(sets[a][1] & sets[b][1]) >= 0.8 * len(sets[a][1] | sets[b][1])
    }
    assert len(truth) > 30
    assert len(truth & set(got)) >= 0.99 * len(truth)


def test_equal_forms_are_one_and_wordless_texts_are_alone():
    found = nearly(pl.Series(["What is it?", "what is it", "!!!", "???", "what  IS it!", "what is IT then"]), 0.8)
    assert found.form.tolist() == [0, 0, 2, 3, 0, 5]
    assert families(found, 0.8).tolist() == [0, 0, 2, 3, 0, 5]
    assert nearly(pl.Series([], dtype=pl.String), 0.8).form.tolist() == []
    assert nearly(pl.Series(["", "!"]), 0.8).form.tolist() == [0, 1]


def test_nothing_depends_on_runs_or_threads(monkeypatch):
    texts = pl.Series(edited_texts(800))
    before = nearly(texts, 0.7)
    monkeypatch.setattr(signatures, "RUN", 37)
    monkeypatch.setattr(signatures, "COMPARED_AT_A_TIME", 11)
    assert all(np.array_equal(a, b) for a, b in zip(before, nearly(texts, 0.7, 29, threads=3), strict=True))


def test_nothing_depends_on_how_much_is_in_memory(monkeypatch):
    texts = pl.Series(edited_texts(400) + some_texts(50) + ["!!!", "What is it?", "what is it"])
    before = nearly(texts, 0.7)
    assert len(before.left) > 100
    for name, size in (("PART", 100), ("SHARE", 60), ("WAITING", 300), ("CROWDED", 20), ("MAPPED", 9_999)):
        monkeypatch.setattr(pairs_module, name, size)
    monkeypatch.setattr(pairs_module, "FORMS_AT_A_TIME", 70)
    monkeypatch.setattr(pairs_module, "COMPARED", 50)
    monkeypatch.setattr(signatures, "FILTERED", 100)
    after = nearly(texts, 0.7, 64)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    every = connected(np.append(np.arange(len(texts)), after.left), np.append(after.form, after.right), len(texts))
    assert np.array_equal(families(after, 0.0), every)


def test_a_text_costs_sixteen_bytes_of_memory(monkeypatch):
    for name in ("FORMS_AT_A_TIME", "PART", "SHARE", "WAITING"):
        monkeypatch.setattr(pairs_module, name, 1 << 11)
    monkeypatch.setattr(pairs_module, "COMPARED", 1 << 10)

    def batches(count: int):
        for first in range(0, count, 1 << 10):
            draw = random.Random(first)
            words = [" ".join(f"{draw.random()}" for _ in range(10)) for _ in range(1 << 9)]
            yield pl.Series([*words, *(f"{text} more" for text in words)])

    def peak(count: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            tracemalloc.start()
            assert len(near(batches(count), 0.9, Path(folder)).left) > count // 3
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return most

    few, many = peak(1 << 13), peak(1 << 15)
    assert (many - few) / (3 << 13) < 16


def test_a_crowd_of_equal_keys_costs_no_square(monkeypatch):
    monkeypatch.setattr(pairs_module, "WINDOW", 4)
    texts = [f"{' '.join(f'same{at}' for at in range(40))} tail{number}" for number in range(100)]
    found = nearly(pl.Series(texts), 0.8)
    assert len(found.left) <= 16 * 4 * 100
    assert families(found, 0.8).tolist() == [0] * 100


def test_24_words_meet_25_and_up_to_29():
    words = [f"word{at}" for at in range(32)]
    for many, meets in ((25, True), (26, True), (28, True), (29, True), (30, False)):
        texts = [" ".join(words[:24]), " ".join([*words[:24], *("a" * (many - 24))])]
        score = true_jaccard(*texts)
        found = nearly(pl.Series(texts), 0.5)
        assert (found.left.tolist(), found.right.tolist()) == (([0], [1]) if meets else ([], []))
        assert found.score.tolist() == ([pytest.approx(score, abs=1e-12)] if meets else [])
        assert (score > 0.8) == meets
    both = [" ".join(words[:25]), " ".join([*words[:24], "other"])]  # two long ones: by words alone
    assert nearly(pl.Series(both), 0.5).score.tolist() == [pytest.approx(22 / 24)]
