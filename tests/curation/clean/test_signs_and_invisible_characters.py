"""Texts that differ in signs, emoji or operators are different texts; those that differ in what nobody sees are not."""

# ruff: noqa: RUF001 (characters that look alike are what this is about)

from __future__ import annotations

import json
import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.build.build import build
from curation.clean.signatures import minhash_digests, prepare
from curation.core.record import key_of
from curation.core.tables import read_parquet, read_table
from curation.core.text import forms, normalised
from tests.curation.build.test_build import write_lines
from tests.curation.core.plain_forms import IGNORABLE, form

DIFFERENT = [
    ("great 😀", "great 😡"), ("C++ it is", "C# it is"), ("C it is", "C++ it is"), ("F# code", "F code"), ("❤️", "☹️"), ("❤️", "☎️"),
    ("a += b", "a -= b"), ("<", ">"), ("5 €", "5 $"), ("5 %", "5"), ("i++", "i--"), ("a * b", "a / b"), ("a - b", "a + b"),
    ("a & b", "a | b"), ("a && b", "a || b"), ("a == b", "a != b"), ("a % b", "a * b"), ("x = -5", "x = 5"), ("A+", "A-"),
    ("A-", "A"), ("ls -l", "ls l"), ("!done", "done"), ("nice :)", "nice :("), ("nice ;-)", "nice"), ("a -> b", "a <- b"),
    ("👍🏻", "👍🏿"), ("🇩🇪", "🇫🇷"), ("❶ item", "❷ item"), ("5 °C", "5 C"), ("R&D", "R D"), ("#1", "1"), ("± 5", "5"),
    ("＋１", "－１"), ("~5", "5"), ("1/2", "1 2"), ("a ≤ b", "a ≥ b"), ("a ∧ b", "a ∨ b"), ("♀", "♂"), ("→", "←"),
]  # fmt: skip
EQUAL = [
    ("What is X?", "what is x"), ("Ｐａｒｉｓ", "paris"), ("state-of-the-art", "State of the art"), ("- bullets", "bullets"),
    ("Berlin – Germany", "Berlin, Germany"), ("Berlin - Germany", "berlin germany"), ("and/or", "and or"), ("“quoted”", '"quoted"'),
    ("5 €", "5€"), ("C ++", "C++"), ("½ cup", "1/2 cup"), ("wow!!!", "wow"), ("Hello , world !", "Hello, world!"), ("x−1", "x − 1"),
    ("he said -- well", "he said—well"), ("2019-2020", "2019–2020"), ("pre- and post-war", "pre and post war"),
    ("(see note):", "see note"), ("a\u00a0b", "a b"), ("don't", "don’t"), ("¿Qué?", "que\u0301"[:2] + "é"), ("＋１", "+ 1"),
    ("❤️", "❤"), ("❤\ufe0f", "❤\ufe0e"),
]  # fmt: skip
QUESTION = "Which river flows through the old town of Ljubljana?"
INVISIBLE = [chr(point) for first, last in IGNORABLE for point in {first, (first + last) // 2, last}]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_texts_that_differ_in_a_sign_differ(one, other):
    assert len(set(forms(pl.Series([one, other])))) == 2


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_case_width_punctuation_and_spacing_do_not_count(one, other):
    a, b = forms(pl.Series([one, other]))
    assert a == b


@pytest.mark.parametrize("alone", ["\u200d", "\ufe0f", "\ufe0f\u200d", "\u00ad", "?!", "...", "--", "\u2800", "\x00"])
def test_what_is_no_word_and_no_sign_makes_none(alone):
    assert normalised(pl.Series([alone, f"a {alone} b"])).to_list() == [None, "a b"]


@settings(max_examples=200)
@given(st.text(), st.integers(0, 50), st.sampled_from(INVISIBLE))
def test_an_invisible_character_anywhere_changes_nothing(text, place, hidden):
    a, b = normalised(pl.Series([text, text[:place] + hidden + text[place:]]))
    assert a == b
    if all(unicodedata.category(char) != "Cn" for char in text):
        assert a == form(text)


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab1 -/!():;'^=<>.+#&é€😀−¬☺\u0301"), max_size=14))
def test_the_form_of_a_form_is_itself(text):
    (once,) = normalised(pl.Series([text]))
    assert normalised(pl.Series([once or ""])).to_list() == [once]


def test_joiners_split_no_word():
    assert normalised(pl.Series(["می\u200cخواهم", "क\u094d\u200dष", "👩\u200d🚀"])).to_list() == ["میخواهم", "क\u094dष", "👩 🚀"]


def test_signatures_of_texts_that_differ_in_operators_differ():
    one, other = (f"for each of the rows in turn compute total {sign} value of the next row" for sign in ("+=", "-="))
    a, b, c = minhash_digests(prepare(pl.Series([one, other, one.upper() + "\u200b!"])), 128)
    assert not (a == b).all()
    assert (a == c).all()


def made(folder, rows, source, more=""):
    """Build one source of rows."""
    write_lines(folder / "s.jsonl", rows)
    (folder / "m.yaml").write_text(f"name: m\nsources:\n  - {{name: s, files: s.jsonl, {source}}}\n{more}")
    outcome = build(folder / "m.yaml", folder / "b")
    assert not outcome.failed, outcome.failed
    return outcome.receipts["s"]


def test_labels_of_texts_that_differ_in_signs_do_not_conflict(tmp_path):
    texts = {
        "great 😀": "good",
        "great 😡": "bad",
        "C++ it is": "good",
        "C# it is": "bad",
        "❤️": "good",
        "☹️": "bad",
        "<": "good",
        ">": "bad",
    }
    receipt = made(
        tmp_path, [{"t": t, "l": label} for t, label in texts.items()], "task: classification, fields: {query: t, label: l}"
    )
    assert (receipt["kept"], receipt["rows_dropped"]) == (8, {})


def test_a_positive_that_differs_in_an_operator_is_no_echo(tmp_path):
    rows = [{"q": "a += b", "p": "a -= b"}, {"q": "❤️", "p": "☎️"}, {"q": "a += b!", "p": "A +=\u200b b"}]
    receipt = made(tmp_path, rows, "task: retrieval, fields: {query: q, positive: p}")
    assert (receipt["kept"], receipt["dropped"]) == (2, {"echo_positive": 1})


@pytest.mark.parametrize("guard", ["", "decontaminate: {}\n"])
def test_a_held_out_text_with_an_invisible_character_is_found(tmp_path, guard):
    rows = [{"q": f"Question {key_of(str(at)).hex(' ', 2)}", "p": f"answer {key_of(str(-at)).hex(' ', 2)}"} for at in range(16)]
    write_lines(tmp_path / "a.jsonl", rows)
    hidden = "\u00ad\u200b\u2060\ufe0f\U000e0041\u180e\u3164\u200d" * 2
    again = [
        {"q": row["q"][:12] + sign + row["q"][12:], "p": f"{row['p']} again, {at}"}
        for at, (row, sign) in enumerate(zip(rows, hidden, strict=True))
    ]
    write_lines(tmp_path / "b.jsonl", again)
    fields = "task: retrieval, fields: {query: q, positive: p}"
    lines = [f"  - {{name: a, holdout: 15, files: a.jsonl, {fields}}}", f"  - {{name: b, files: b.jsonl, {fields}}}"]
    (tmp_path / "m.yaml").write_text("\n".join(["name: m", "sources:", *lines, guard]))
    outcome = build(tmp_path / "m.yaml", tmp_path / "out")
    held = {json.loads(line)["_id"] for line in (tmp_path / "out/heldout/a/queries.jsonl").read_text().splitlines()}
    gone = read_parquet(tmp_path / "out/curated/b/dropped.parquet").filter(pl.col("stage") == "decontaminate")
    assert not outcome.failed
    assert set(gone["matched_id"]) == held
    assert len(held) == 15


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("field", ["q", "p"])
def test_the_clean_one_of_two_duplicates_survives(tmp_path, order, field):
    clean = {"q": QUESTION, "p": "The Ljubljanica flows through the old town of the capital of Slovenia."}
    hidden = {**clean, field: clean[field][:8] + "\u200b\u00ad" + clean[field][8:], "q": clean["q"].upper() if field == "p" else "Which r\u200biver flows through the old town of Ljubljana??"}  # fmt: skip
    made(
        tmp_path,
        [clean, hidden][::order],
        "task: retrieval, fields: {query: q, positive: p}",
        "dedup: {max_loss_per_source: 1}\n",
    )
    assert read_table(tmp_path / "b/curated/s", "pairs")["query"].to_list() == [QUESTION]
    assert read_table(tmp_path / "b/curated/s", "passages")["text"].to_list() == [clean["p"]]


def test_a_clean_text_does_not_go_for_a_hidden_one_of_an_earlier_source(tmp_path):
    clean = {"q": QUESTION, "p": "The Ljubljanica flows through the old town of the capital of Slovenia."}
    write_lines(tmp_path / "a.jsonl", [{**clean, "q": "Which r\u200biver flows through the old town of Ljubljana?"}])
    write_lines(tmp_path / "b.jsonl", [clean])
    fields = "task: retrieval, fields: {query: q, positive: p}"
    lines = [f"  - {{name: {name}, files: {name}.jsonl, {fields}}}" for name in "ab"]
    (tmp_path / "m.yaml").write_text(
        "\n".join(["name: m", "sources:", *lines, "dedup: {across: yes, max_loss_per_source: 1}", ""])
    )
    outcome = build(tmp_path / "m.yaml", tmp_path / "out")
    assert not outcome.failed
    assert read_table(tmp_path / "out/curated/b", "pairs")["query"].to_list() == [QUESTION]
