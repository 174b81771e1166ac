# ruff: noqa: RUF001  (texts of several languages)
"""Lines of 80 columns, of which Chinese characters take two."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from curation.core.console import shortened, wrapped

TEXTS = {
    "chinese": ("黑豹队的防守只丢了 308分，在联赛中排名第六", ["黑豹队的防守只丢了", "308分，在联赛中排名", "第六"]),
    "thai, which has no spaces": ("ถ้าเครื่องพิมพ์เปิดไม่ติดให้ถอดปลั๊กแล้วรอสิบนาที", None),
    "hindi": ("घर पर प्रिंटर का तार निकालें और दस मिनट रुकें", None),
    "arabic": ("لم يتخلى فريق بانثرز سوى عن 308 نقطة", None),
    "code": ("    if x:  # deep", ["    if x:  # deep"]),
    "a long word": (
        "see https://example.org/a/very/long/address now",
        ["see", "https://example.org/", "a/very/long/address", "now"],
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_lines_are_as_wide_as_a_terminal_shows_them(name):
    text, expected = TEXTS[name]
    lines = wrapped(text, 20)
    assert max(map(cell_len, lines)) <= 20
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert expected is None or [line.rstrip() for line in lines] == expected
    assert cell_len(shortened(text, 20)) <= 20


@given(st.lists(st.text("abcde", min_size=1, max_size=9), max_size=30).map(" ".join))
def test_words_are_wrapped_as_pythons_textwrap_does(text):
    assert [line.rstrip() for line in wrapped(text, 20)] == (textwrap.wrap(text, 20) or [""])
