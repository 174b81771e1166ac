"""The values of a JSON text one by one: the items of its list, or values one after another, on one line each or on many.

No more of the text is held than a value and a piece of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from curation.core.errors import SourceError
from curation.read.mapping import Number
from curation.read.rows import File, record_limit, too_large
from curation.recipe.source import Table

WHITE = re.compile(r"[ \t\n\r]*")
PIECE = 1 << 22  # characters
LONGEST_SIGN = 16  # characters of what may be cut off at the end of a piece: `-Infinity`, two `\\uXXXX`


class Value(NamedTuple):
    """A value, the line on which it begins, its own text, and what is wrong with it, such as a key that stands twice."""

    line: int
    value: Any
    text: str
    wrong: str


class Twice(list[str]):
    """The keys that stand twice in an object, with different values, since it was last emptied."""

    def each_once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object for `json`, and note a key that it has twice."""
        found = dict(pairs)
        if len(found) < len(pairs):
            self.extend(key for key, value in pairs if found[key] != value)
        return found

    def told(self) -> str:
        """Return what to say of the keys, none where there are none, and forget them."""
        key = self[0][:40] if self else ""
        said = f"the key '{key}' stands twice in an object, with different values" if self else ""
        self.clear()
        return said


def decoder(hook: Callable[[list[tuple[str, Any]]], Any]) -> json.JSONDecoder:
    """Return a decoder that leaves numbers as they are written; NaN and infinities, which are no JSON, are missing."""
    return json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=lambda _: None, object_pairs_hook=hook)


class Text:
    """A JSON text that is read piece by piece, and a place in it."""

    def __init__(self, file: File, table: Table, read: Callable[[int], str]) -> None:
        self.file, self.table, self.most, self.read = file, table, record_limit(table), read
        self.held, self.at, self.line = "", 0, 1  # what is held of the text, a place in it, the line on which it begins
        self.hint = "is the file cut off?"
        self.twice = Twice()
        self.decoder = decoder(self.twice.each_once)

    def next_sign(self) -> str:
        """Move to the next character that is not white space, and return it, or nothing at the end."""
        while True:
            self.at = _after_white(self.held, self.at)
            if self.at < len(self.held) or not self._more():
                return self.held[self.at : self.at + 1]

    def value(self, if_large: str = "raise it if the file is right") -> Value:
        """Return the value that begins here, and move behind it.

        Raises:
            SourceError: it is no JSON, or too large.
        """
        while True:
            try:
                value, end = self.decoder.raw_decode(self.held, self.at)
                if _after_white(self.held, end) < len(self.held) or not self._more():  # else it may be half of a number
                    break
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or not self.held[error.pos + LONGEST_SIGN :]
                if len(self.held) - self.at > self.most and cut_off:
                    raise self._too_large(if_large) from None
                if not cut_off or not self._more():
                    raise self.broken(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self.broken(str(error), self.at) from None
            self.twice.clear()
        if end - self.at > self.most:
            raise self._too_large(if_large)
        found = Value(self.line_of(self.at), value, self.held[self.at : end], self.twice.told())
        self.at = end
        return found

    def broken(self, what: str, at: int | None = None) -> SourceError:
        """Return what to say of a text that is no JSON."""
        line = self.line_of(self.at if at is None else at)
        return SourceError(f"{self.file.name}:{line}", f"not readable as JSON ({what})", self.hint)

    def line_of(self, at: int) -> int:
        """Return the line of a place in what is held."""
        return self.line + self.held.count("\n", 0, at)

    def _too_large(self, hint: str) -> SourceError:
        return too_large(f"{self.file.name}:{self.line_of(self.at)}", "the value that begins here", self.table, hint)

    def _more(self) -> bool:
        """Hold more of the text, and let go of what is behind; tell whether there was more."""
        more = self.read(min(PIECE, self.most + 1))
        if not more:
            return False
        self.line += self.held.count("\n", 0, self.at)
        self.held, self.at = self.held[self.at :] + more, 0
        return True


def items_of(text: Text) -> Iterator[Value]:
    """Yield the items of the list that begins here, which must be all there is.

    Raises:
        SourceError: it is no JSON.
    """
    text.at += 1
    if text.next_sign() != "]":
        while True:
            yield text.value()
            if (sign := text.next_sign()) != ",":
                break
            text.at += 1
            text.next_sign()
        if sign != "]":
            raise text.broken("Expecting ',' delimiter")
    text.at += 1
    if text.next_sign():
        raise SourceError(
            f"{text.file.name}:{text.line_of(text.at)}",
            "a second JSON value begins here: this is JSON Lines",
            "say `reader: jsonl`",
        )


def values_of(text: Text) -> Iterator[Value]:
    """Yield values one after another, with white space between them, or none.

    Raises:
        SourceError: what follows is no JSON.
    """
    while text.next_sign():
        yield text.value()


def _after_white(text: str, at: int) -> int:
    found = WHITE.match(text, at)
    assert found
    return found.end()
