"""Escaping texts of unknown origin for terminals, Markdown and HTML, so that they are shown and never interpreted."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

# Control characters except tab and line feed, controls of direction, line separators, byte order marks, half surrogates.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
# Characters that begin emphasis, code, links, HTML, entities, strike-out, formulas, mentions, table cells, bare links and emoji.
MARKDOWN_SIGNS = re.compile(r"[\\`*\[\]<>&|~$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\w):(?=\S)|(?<=[wW]{3})\.")
# The beginning of a heading, a rule or a list item; the backslash goes behind the digits, or before the sign. At the end
# of a heading a word of # is dropped, if it is not escaped.
BEGINNING_OR_END = re.compile(r"^(\d{1,9})(?=[.)](?:\s|$))|^(?=#{1,6}(?:\s|$)|[+-](?:\s|$)|[-=]+$)|(?<!\S)(?=#+\s*$)")


class Markdown(str):
    """A text that is already Markdown; other texts are escaped when a card is written."""


def visible(text: str) -> str:
    r"""Return a text with control characters as `\u001b`, which means the same in JSON; line feeds and tabs stay."""
    return CONTROLS.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text.replace("\r\n", "\n"))


def as_html(text: object) -> str:
    """Return a text escaped for HTML, between tags or in an attribute."""
    return html.escape(visible(str(text)))


def as_markdown(text: object) -> Markdown:
    """Return a text escaped for Markdown, on one line, also for a table's cell; Markdown does not change."""
    if isinstance(text, Markdown):
        return text
    return Markdown(BEGINNING_OR_END.sub(r"\1\\", MARKDOWN_SIGNS.sub(r"\\\g<0>", _line(text))))


def as_code(text: object) -> Markdown:
    """Return a text as code in Markdown, on one line."""
    line = _line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return Markdown(f"{ticks} {line} {ticks}" if len(ticks) > 1 else f"`{line}`" if line else "")


def as_link(text: object, url: str) -> Markdown:
    """Return a link in Markdown; if `url` is not a web address, both as plain text."""
    if not re.match(r"https?://\w", url):
        return as_markdown(f"{text} ({url})" if url else text)
    address = quote(visible(url), safe="%/:?#@!$&'*+,;=~")
    return Markdown(f"[{as_markdown(text)}]({address})")


def as_block(text: str, language: str) -> str:
    """Return lines as a code block in Markdown."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{visible(text)}{fence}"


def _line(text: object) -> str:
    return " ".join(visible(str(text)).split())


def text_table(head: tuple[str, ...], lines: list[tuple[Any, ...]]) -> str:
    """Return an aligned table for a terminal, with integers on the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line] for line in lines]
    widths = [max(len(row[at]) for row in [list(head), *cells]) for at in range(len(head))]
    right = [all(isinstance(line[at], int) for line in lines) for at in range(len(head))]
    padded = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in (head, ["-" * width for width in widths], *cells)
    ]
    return "\n".join(padded)


def markdown_table(head: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown; cells are escaped."""
    rows = [list(head), *map(list, lines)]
    rows.insert(1, [Markdown("---") for _ in rows[0]])
    texts = [[as_markdown(f"{value:,}" if isinstance(value, int) else value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", text) for text in row) + " |" for row in texts)  # | in code
