"""The errors a user can mend, each one line: where, what, what to try.

UserError
├── ManifestError   a recipe that cannot be read as meant
├── SourceError     rows that cannot be had or understood
├── ModelError      a model or tokenizer that cannot be used
├── BuildError      a build folder that is missing, incomplete or was changed by hand
├── HubError        a repository that cannot be had or written
└── SetupError      an installation or a machine that cannot do what was asked

Everything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from curation.core.visible import visible

LONGEST_WORD = 100  # characters of a word in a list


class UserError(Exception):
    """`where: what; hint`. The command line prints it and exits with 1."""

    def __init__(self, where: object, what: str, hint: str = "") -> None:
        self.where, self.what, self.hint = str(where), what, hint
        line = decoded(f"{where}: {what}" + (f"; {hint}" if hint else ""))
        line = visible(line.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t"))
        super().__init__(line)  # one line, whatever a file holds

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.where, self.what, self.hint)  # survives the way back from a worker process


class ManifestError(UserError):
    """A recipe that cannot be read as meant."""


class SourceError(UserError):
    """Rows that cannot be had or understood."""


class ModelError(UserError):
    """A model or tokenizer that cannot be used."""


class BuildError(UserError):
    """A build folder that is missing, incomplete or was changed by hand."""


class HubError(UserError):
    """A repository of the Hub that cannot be had or written."""


class SetupError(UserError):
    """An installation or a machine that cannot do what was asked."""


def decoded(name: str) -> str:
    """Return a name of a file or archive member that UTF-8 can hold: bytes that are no UTF-8 are written as `\\xe9`."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other halves of surrogate pairs
        return name.encode("utf-8", "backslashreplace").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or nothing where no known word is near, whatever their case."""
    by_form = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), list(by_form), n=1, cutoff=0.6)
    return f" (did you mean '{by_form[near[0]]}'?)" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's name where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def listed(words: Iterable[object], most: int = 12) -> str:
    """Return the words as a readable list, cut after `most`, and each word after LONGEST_WORD."""
    all_words = [word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..." for word in map(str, words)]
    more = f" and {len(all_words) - most} more" if len(all_words) > most else ""
    return ", ".join(all_words[:most]) + more
