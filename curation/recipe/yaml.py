"""Reading a YAML file into a section of a manifest, with the line of every value for errors.

Plain scalars stay text: `no`, `0123`, `1e-5` and `2024-01-01` arrive as written, and the key's type decides whether they are
words or numbers. (YAML 1.1 would turn them into false, 83, a string and a date.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from curation.core.errors import ManifestError, a_kind, did_you_mean, listed

NULLS = ("", "~", "null", "Null", "NULL")
PLAIN_TYPES = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "map", "seq")
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in PLAIN_TYPES}
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
MOST_NODES = 100_000  # a recipe is small; an alias bomb is not
Place = tuple[str | int, ...]
TAG = "="  # begins the names of sections between which a key's value chooses, in places of pydantic's errors


@dataclass
class Document:
    """The values of a YAML file, and the line number (from 1) of each key or item."""

    path: Path
    value: Any
    lines: dict[Place, int] = field(default_factory=dict)
    base: Document | None = None  # the base manifest, which this one extends
    inherited: frozenset[str] = frozenset()  # the keys that come from the base

    def line(self, place: Place) -> int:
        """Return the line of a place, or of the section around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def where(self, place: Place) -> str:
        """Return `file:line` of a place; the file alone if no lines are known."""
        document = self.base if self.base and place and place[0] in self.inherited else self
        return f"{document.path}:{document.line(place)}" if document.lines else str(document.path)


def read_yaml(path: Path) -> Document:
    """Read a YAML file; every scalar stays text.

    Raises:
        ManifestError: no such file, not UTF-8, not YAML, a tag, a duplicate key.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ManifestError(path, "is a pipe, socket or device, not a file", "save the manifest as a file")
        if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"):
            raise ManifestError(
                path, "holds data, and is not a manifest", f"`curate import {path} -o m.yaml` writes one that reads it"
            )
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        near = did_you_mean(path.name, [one.name for one in path.parent.glob("*.y*ml")])
        raise ManifestError(path, f"no such file{near}") from None
    except IsADirectoryError:
        raise ManifestError(path, "is a folder, not a manifest") from None
    except UnicodeDecodeError as error:
        raise ManifestError(path, f"not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise ManifestError(
            path, f"cannot be read ({getattr(error, 'strerror', None) or error})", "check path and permissions"
        ) from None
    except RecursionError:
        raise ManifestError(path, "is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ManifestError(where, f"not YAML: {what}") from None
    document = Document(path, {})
    if node is not None:
        try:
            document.value = _Reader(path, document).read(node, ())
        except RecursionError:
            raise ManifestError(path, "is nested too deeply (an alias inside itself?)") from None
    return document


def merged_yaml(document: Document, value: Any = None) -> bytes:
    """Return one YAML file with the keys of a document and its base, or `value` in their place; the file itself if it is that."""
    value = document.value if value is None else value
    if document.base is None and value == document.value:
        return document.path.read_bytes()
    head = f"# {document.path.name}" + (f" and {document.base.path.name}, which it extends" if document.base else "") + "\n"
    return head.encode() + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120, encoding="utf-8")


class _Reader:
    def __init__(self, path: Path, document: Document) -> None:
        self.path, self.document, self.nodes = path, document, 0

    def read(self, node: yaml.Node, place: Place) -> Any:
        """Return the value of a node: dicts, lists, texts and None."""
        line = node.start_mark.line + 1
        self.document.lines.setdefault(place, line)
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise ManifestError(f"{self.path}:{line}", "too many values (an alias that repeats itself?)")
        if node.tag not in PLAIN_TAGS:
            raise ManifestError(f"{self.path}:{line}", f"tags such as {node.tag} are not allowed", "a manifest runs no code")
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    raise ManifestError(f"{self.path}:{line}", "a key must be a word")
                key = self._encodable(key_node)
                if key in found:
                    first = self.document.lines[*place, key]
                    raise ManifestError(f"{self.path}:{line}", f"'{key}' is given twice (first on line {first})", "keep one")
                self.document.lines[*place, key] = line
                found[key] = self.read(value_node, (*place, key))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*place, number)) for number, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return None if node.style is None and node.value in NULLS else self._encodable(node)

    def _encodable(self, node: yaml.ScalarNode) -> str:
        # JSON writes a character beyond U+FFFF as the escapes of two halves; they are joined here
        text = str(node.value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if bad := UNWRITABLE.search(text):
            what = "half of a surrogate pair" if bad[0] != "\0" else "the character NUL"
            raise ManifestError(f"{self.path}:{node.start_mark.line + 1}", f"{what} is not text", "write the character itself")
        return text


MOST = (1 << 63) - 1
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]


class Section(BaseModel):
    """A part of a manifest; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _countable(cls, value: object) -> object:
        if isinstance(value, int) and abs(value) > MOST:
            raise ValueError(f"{value} is out of range: the largest whole number is 2^63 - 1")
        return value


S = TypeVar("S", bound=BaseModel)
WANTED = {  # pydantic's kind of error: what the value should be
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "yes or no",
    "float_type": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "model_type": "a set of keys",
    "dict_type": "a set of keys",
}


def checked(model: type[S], document: Document) -> S:
    """Return the section that a document holds.

    Raises:
        ManifestError: one line per mistake, `file:line: what`; unknown keys first, because a misspelt key causes other mistakes.
    """
    try:
        return model.model_validate(document.value, strict=False)
    except ValidationError as error:
        mistakes = error.errors()
    unknown = [one for one in mistakes if one["type"] == "extra_forbidden"]
    found: dict[tuple[str, object], ManifestError] = {}
    for mistake in unknown + [one for one in mistakes if one not in unknown]:
        tagged: Place = tuple(mistake["loc"])
        place = tuple(part for part in tagged if not str(part).startswith(TAG))
        missing = mistake["type"] == "missing"
        if missing and any(
            did_you_mean(str(one["loc"][-1]), [str(place[-1])]) for one in unknown if one["loc"][:-1] == place[:-1]
        ):
            continue  # its misspelling is reported
        where = document.where(place)
        # a value that fits none of several types has one mistake per type, of which the first is reported
        known = place
        while known and known not in document.lines:  # parts that name the types
            known = known[:-1]
        found.setdefault(
            (where, place if missing else known or place[:1]), ManifestError(where, _sentence(model, mistake, place, tagged))
        )
    first, *others = found.values()
    raise ManifestError(first.where, first.what, first.hint, others)


def _sentence(model: type[BaseModel], error: Any, place: Place, tagged: Place) -> str:
    """Return one of pydantic's errors as a sentence; `tagged` is its place with the names of sections that were chosen."""
    key = str(place[-1]) if place else ""
    kind, got = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _section_at(model, tagged[:-1]).model_fields
        return f"unknown key '{key}'" + (did_you_mean(key, known) or f"; known keys: {listed(known, 30)}")
    if kind == "missing" and isinstance(place[-1], int):  # of a list whose length is given
        wanted = len(get_args(_section_at(model, tagged[:-2]).model_fields[str(place[-2])].annotation))
        return f"{_readable(place[:-1])}: {len(got)} of {wanted} values are given"
    if kind == "too_long":
        return f"{_readable(place)}: {len(got)} values are given, but only {error['ctx']['max_length']} are allowed"
    if kind == "missing":
        return f"'{key}' is missing" + (f" in {_readable(place[:-1])}" if place[:-1] else "")
    if kind == "literal_error":
        choices = error["ctx"]["expected"].replace("'", "")
        guess = did_you_mean(str(got), choices.replace(" or ", ", ").split(", "))
        return f"{_readable(place)}: '{got}' is not one of {choices}{guess}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "string_pattern_mismatch" and key == "license_checked":
        return f"{_readable(place)}: '{got}' is not a day or month, such as 2026-11-22"
    if kind == "string_pattern_mismatch":
        return f"{_readable(place)}: '{got}' is not a valid name; use small letters, digits, '-', '_' and '.'"
    shown = "nothing" if got is None else f"'{got}'" if isinstance(got, str) else a_kind(got)
    if kind in WANTED:
        return f"{_readable(place)}: {shown} is not {WANTED[kind]}"
    return f"{_readable(place)}: {error['msg'][0].lower()}{error['msg'][1:]}" + (f", not {shown}" if got is not None else "")


def _readable(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _section_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """Return the class of the section at a place of the manifest."""
    named = False  # whether the next part is a name that the user chose
    sections: list[type[BaseModel]] = []  # between which the next part chooses, if it is tagged
    for part in place:
        if isinstance(part, int) or named:
            named = False
            continue
        if part.startswith(TAG):
            model = next(option for option in sections if option.__name__ == part.removeprefix(TAG))
            continue
        annotation = model.model_fields[part].annotation
        named = get_origin(annotation) is dict
        sections, options = [], [annotation]
        while options:  # inside of unions, lists and annotations
            option = options.pop(0)
            options = [*getattr(option, "__args__", ()), *options]
            sections += [option] if isinstance(option, type) and issubclass(option, BaseModel) else []
        model = sections[0]
    return model
