# ruff: noqa: RUF001  (texts of several languages)
"""Text files in any encoding: read as declared, or refused with a hint that gives the right text, or with none."""

from __future__ import annotations

import codecs
import io
import re

import polars as pl
import pytest

from tests.curation.read.broken import build_all

WEST = ("Où est passé l’été ?", "Il coûte 10 € – déjà « très » cher… naïve, Größe, señor")
JAPANESE = ("これは何ですか", "それは「答え」です。カタカナと漢字")
TEXTS = {
    "cp1252": WEST,
    "latin-1": ("Où est passé l'été ?", "Il coûte déjà très cher, naïve, Größe, señor"),
    "shift_jis": JAPANESE,
    "cp932": ("①は何ですか", "それは㈱答えです"),
    "euc_jp": JAPANESE,
    "gb18030": ("这是什么问题", "这是一个很长的答案"),
    "big5": ("這是什麼問題", "這是一個很長的答案"),
    "euc_kr": ("이것은 무엇입니까", "이것은 긴 답변입니다"),
    "cp1251": ("Что это такое", "Это очень длинный ответ"),
    "koi8-r": ("Что это такое", "Это очень длинный ответ"),
    "cp1253": ("Τι είναι αυτό", "Είναι μια μεγάλη απάντηση"),
    "cp1250": ("Zażółć gęślą jaźń", "Łódź, żółw i źrebię"),
    "cp437": ("Où est passé l'été", "Il coûte déjà très cher"),
    "mac-roman": ("Où est passé l'été", "Il coûte déjà très cher"),
}
KINDS = {
    "csv": lambda q, a: f"q,a\n{q},{a}\nwhat is x,it is y\n",
    "jsonl": lambda q, a: f'{{"q": "{q}", "a": "{a}"}}\n{{"q": "what is x", "a": "it is y"}}\n',
    "json": lambda q, a: f'[{{"q": "{q}", "a": "{a}"}},\n{{"q": "what is x", "a": "it is y"}}]\n',
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hint_at_an_encoding_gives_the_right_text(tmp_path, kind):
    texts = {name: (q.replace(",", ";"), a.replace(",", ";")) for name, (q, a) in TEXTS.items()}
    files = {f"{name}.{kind}": KINDS[kind](*texts[name]).encode(name) for name in TEXTS}
    first = build_all(tmp_path, files, [f"files: {name}" for name in files])
    hints = [re.search(r"`encoding: ([^`]+)`", one.error) for one in first]
    assert all(
        re.match(rf"{name}:[12]: byte 0x..? is not utf-8 text; declare the file's own encoding", one.error)
        for name, one in zip(files, first, strict=True)
    )
    assert [name for name, hint in zip(TEXTS, hints, strict=True) if hint] >= ["cp1252", "latin-1", "shift_jis"]
    named = [(name, hint[1]) for name, hint in zip(TEXTS, hints, strict=True) if hint]
    again = build_all(tmp_path, {}, [f"files: {name}.{kind}, encoding: {hint}" for name, hint in named])
    for (name, hint), one in zip(named, again, strict=True):
        assert one.pairs[0] == (texts[name][0], [texts[name][1]]), (name, hint)


def test_a_declared_encoding_gives_the_right_text(tmp_path):
    texts = {name: (q.replace(",", ";"), a.replace(",", ";")) for name, (q, a) in TEXTS.items()}
    files = {f"{name}.csv": KINDS["csv"](*texts[name]).encode(name) for name in TEXTS}
    for name, one in zip(TEXTS, build_all(tmp_path, files, [f"files: {n}.csv, encoding: {n}" for n in TEXTS]), strict=True):
        assert one.pairs[0] == (texts[name][0], [texts[name][1]])


UNITS = [f"utf-{bits}-{order}" for bits in (16, 32) for order in ("le", "be")]
SPOKEN = {"english": ("what is this", "it is an answer"), "japanese": JAPANESE, "russian": TEXTS["cp1251"]}


@pytest.mark.parametrize("header", [False, True])
def test_two_and_four_bytes_a_character_with_and_without_a_mark(tmp_path, header):
    files, sources, wanted = {}, [], []
    for spoken, pair in SPOKEN.items():
        for unit in UNITS:
            for mark in ("", "\ufeff"):
                rows = f"{pair[0]},{pair[1]}\nwhat is x,it is y\n"
                name = f"{spoken}.{unit}.{'mark' if mark else 'none'}.csv"
                files[name] = (mark + ("" if header else "q,a\n") + rows).encode(unit)
                for said in (unit, unit[:6]) if mark else (unit,):
                    sources.append(f"files: {name}, encoding: {said}{', header: [q, a]' if header else ''}")
                    wanted.append([(pair[0], [pair[1]]), ("what is x", ["it is y"])])
    assert [one.pairs or one.error for one in build_all(tmp_path, files, sources)] == wanted


@pytest.mark.parametrize("said", ["utf-8", "latin-1", "cp1252", "utf-16", *UNITS])
def test_a_wrong_number_or_order_of_bytes_is_reported(tmp_path, said):
    files = {}
    for unit in UNITS:
        files[f"{unit}.csv"] = "q,a\nwhat is this,it is an answer\n".encode(unit)
        files[f"{unit}.mark.csv"] = "\ufeffq,a\nwhat is this,it is an answer\n".encode(unit)
    files["eight.csv"] = codecs.BOM_UTF8 + b"q,a\nwhat is this,it is an answer\n"
    done = build_all(tmp_path, files, [f"files: {name}, encoding: {said}, header: [q, a]" for name in files])
    for name, one in zip(files, done, strict=True):
        unit, marked = name.split(".")[0], ".mark" in name
        fits = said in (unit, unit[:6] if marked else unit)
        if fits or (name == "eight.csv" and said == "utf-8"):
            assert (one.error, one.pairs) == ("", [("what is this", ["it is an answer"])]), name
            continue
        right = "utf-8" if name == "eight.csv" else unit[:6] if marked else unit
        assert (
            one.error
            == f"{name}: is {right} text, not {codecs.lookup(said).name.replace('iso8859-1', 'iso8859-1')}; say `encoding: {right}`"
        )


def test_zeros_in_a_text_of_one_byte_a_character_are_no_other_encoding(tmp_path):
    text = "q,a\n" + "what is this,it is an \0 answer\n" + "".join(f"what is {n},it is {n}\n" for n in range(50))
    done = build_all(tmp_path, {"x.csv": text}, ["files: x.csv"])
    assert len(done[0].pairs) == 51


def test_zeros_alone_are_no_encoding(tmp_path):
    for start in (b'{"q": "', b"q,a\nx,", b""):
        (tmp_path / "x.jsonl").write_bytes(start + bytes(5000))
        (one,) = build_all(tmp_path, {}, ["files: x.jsonl"])
        assert one.error
        assert "utf-" not in one.error


def test_tables_under_another_name_are_no_encoding(tmp_path):
    whole = io.BytesIO()
    pl.DataFrame({"q": ["what is x"], "a": ["ü" * 50]}).write_parquet(whole, compression="uncompressed")
    (one,) = build_all(tmp_path, {"x.json": whole.getvalue()}, ["files: x.json"])
    assert one.error.endswith("say `reader: parquet`")
    (one,) = build_all(tmp_path, {"x.xml": "<d><p><q>é</q></p></d>".encode("latin-1")}, ["files: x.xml, reader: xml, records: p"])
    assert (
        one.error
        == "x.xml:1: not readable as XML (not well-formed (invalid token)); is the file cut off, or has it another `encoding`?"
    )
