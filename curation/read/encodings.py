"""Encodings of text files: which one the first bytes show, and which one to try where another does not fit.

An encoding is named only where its text would make sense: bytes that decode are no proof, as nearly all bytes do in most.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

from curation.core.errors import SourceError

HEAD = 4096  # bytes at the beginning that are looked at
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MANY_BYTES = ("shift_jis", "cp932", "euc_jp", "gb18030", "big5", "euc_kr")
WEST = frozenset("àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿœšžßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞŸŒŠŽ")
IN_WORDS = frozenset("\u2019\u2018\xb4\xb7\xad")  # signs that may stand between two letters


def refuse_other(name: str, encoding: str, head: bytes) -> None:
    """Refuse a file whose first bytes show that it has another encoding.

    Raises:
        SourceError: they do: by a byte-order mark, or by where zeros are.
    """
    shown = next((there for mark, there in MARKS.items() if head.startswith(mark)), None)
    little = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE))
    fits = {shown, f"{shown}-sig"} if shown == "utf-8" else {shown, f"{shown}-le" if little else f"{shown}-be"}
    if shown is None and (shown := _by_zeros(head)):
        fits = {shown}  # `utf-16` alone asks for a mark
    if shown and encoding not in fits:
        raise SourceError(name, f"is {shown} text, not {encoding}", f"say `encoding: {shown}`")


def _by_zeros(data: bytes) -> str | None:
    """Return the encoding of two or four bytes a character that the places of zeros show, if any."""
    zeros = [data[place::4].count(0) for place in range(4)]
    if sum(zeros) < max(2, len(data) // 5) and sum(zeros) < 8:
        return None
    quarter = max(1, len(data) // 4)
    for order, zero, low in (("utf-32-le", (2, 3), 0), ("utf-32-be", (0, 1), 3)):
        if all(zeros[place] >= 0.99 * quarter for place in zero) and zeros[low] <= 0.05 * quarter:
            return order
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    few, many = min(even, odd), max(even, odd)
    if few > many / 20 or (many < 0.35 * len(data) and _is_utf8(data)):  # a zero may also be a character of UTF-8
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return True


def mark_of(encoding: str) -> bytes:
    """Return the byte-order mark that Python would leave in texts of an encoding."""
    if encoding in ("utf-8", "utf-16", "utf-32"):
        return b""  # taken off elsewhere, or by Python
    try:
        return "\ufeff".encode(encoding)
    except UnicodeEncodeError:
        return b""


def likely(sample: bytes) -> str | None:
    """Return an encoding that makes sense of bytes that are no UTF-8, or None where that is not sure."""
    if shown := next((there for mark, there in MARKS.items() if sample.startswith(mark)), _by_zeros(sample)):
        return shown
    decoded = {name: text for name in MANY_BYTES if (text := _decoded(sample, name)) is not None}
    for name in ("shift_jis", "cp932", "euc_jp"):
        if name in decoded and _japanese(decoded[name]):
            return name
    if decoded:
        return None
    name = "cp1252" if re.search(rb"[\x80-\x9f]", sample) else "latin-1"
    text = _decoded(sample, name)
    return name if text is not None and _western(text) else None


def _decoded(sample: bytes, encoding: str) -> str | None:
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError:
        return None


def _japanese(text: str) -> bool:
    signs = [sign for sign in text if not sign.isascii()]
    kana = sum("\u3041" <= sign <= "\u30fe" for sign in signs)
    odd = sum("\uff61" <= sign <= "\uff9f" or "\ue000" <= sign <= "\uf8ff" for sign in signs)  # half-width, or nobody's
    return kana * 5 >= len(signs) > 0 and odd * 10 <= len(signs)


def _western(text: str) -> bool:
    """Tell whether a text of a Western European encoding reads like one: few accents, no sign within a word."""
    signs = [(text[at - 1 : at], sign, text[at + 1 : at + 2]) for at, sign in enumerate(text) if not sign.isascii()]
    if len(signs) > 3 and len(signs) * 3 > sum(not sign.isspace() for sign in text):
        return False
    if re.search(f"[{''.join(WEST)}]{{3}}", text):
        return False
    for before, sign, after in signs:
        inside = before.isalpha() and after.isalpha()
        odd = unicodedata.category(sign)[0] in "LC" or inside  # a letter of others, a control character, a sign in a word
        if odd and sign not in WEST and sign not in IN_WORDS and sign not in "ªºƒ\xa0":
            return False
    return True
