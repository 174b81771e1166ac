"""Texts of a report: escaped, clipped, and with what differs between two of them marked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from curation.core.escape import as_html

SHOWN = 320  # characters before a text folds
LINES = 5  # of them that show before a text folds
MOST = 1000  # characters of a text that a report carries
COMPARED = 2500  # characters of two texts that are compared
APART = 120  # characters of an equal run that stay whole
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|\s+|[^\w\s]")


def shown(text: str) -> str:
    """Return a text as a block of its own; a long one folds, and says how much of it is left out."""
    text = text.strip()
    body = as_html(text[:MOST])
    if len(text) > MOST:
        body += f'<span class="cut"> … {len(text) - MOST:,} more characters</span>'
    if len(text) <= SHOWN and text.count("\n") < LINES:
        return f'<div class="text" dir="auto">{body}</div>'
    return f'<details class="text"><summary dir="auto">{body}</summary></details>'


def compared(left: str, right: str) -> str:
    """Return two texts as one: words of `left` alone struck out, words of `right` alone underlined, long equal runs shortened."""
    one, two = (WORDS.findall(text.strip()[:COMPARED]) for text in (left, right))
    parts, old, new = [], "", ""
    for what, a, b, c, d in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        gone, come = "".join(one[a:b]), "".join(two[c:d])
        if what == "equal" and (not gone.isspace() or not old + new):
            parts += _marked(old, new)
            parts.append(as_html(_ends(gone, first=a == c == 0, last=b == len(one) and d == len(two))))
            old = new = ""
        else:  # a space between two changes is part of them
            old, new = old + gone, new + come
    return f'<div class="text" dir="auto">{"".join(parts + _marked(old, new))}</div>'


def _marked(old: str, new: str) -> list[str]:
    return [f"<{tag}>{as_html(text)}</{tag}>" for tag, text in (("del", old), ("ins", new)) if text]


def _ends(text: str, first: bool, last: bool) -> str:
    """Return the two ends of a long run of equal words: the ends that touch what differs."""
    if len(text) <= APART:
        return text
    half = APART // 2
    head = "" if first else text[:half]
    tail = "" if last else text[-half:]
    return f"{head} … {tail}" if head or tail else text[:APART] + " …"


def licence(entry: Mapping[str, Any], none: str = "no licence given") -> str:
    """Return the licence as claimed, with its class and where it was seen, as far as they are known."""
    name, url = entry.get("license") or "", str(entry.get("license_url") or "")
    said = f'<span class="licence">{as_html(name or none)}</span>'
    if url.startswith(("https://", "http://")):
        said = f'<a href="{as_html(url)}" rel="noopener noreferrer">{said}</a>'
    kind = entry.get("license_class") if name else None
    return said + (f" ({as_html(kind)})" if kind else "")
