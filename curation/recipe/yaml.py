"""YAML as a person means it, with the line of every value.

Plain scalars stay text: `no`, `0123`, `1e-5` and `2024-01-01` are what stands in the file, and the field that takes
them decides whether they are a word or a number (YAML 1.1 would make false, 83, a string and a date of them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from curation.core.errors import ManifestError

NULLS = ("", "~", "null", "Null", "NULL")
PLAIN = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "map", "seq")
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in PLAIN}
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
MOST_NODES = 100_000  # a recipe is small; an alias bomb is not
Place = tuple[str | int, ...]


@dataclass
class Document:
    """The values of a YAML file, and the line (from 1) on which each key or item stands."""

    path: Path
    value: Any
    lines: dict[Place, int] = field(default_factory=dict)
    base: Document | None = None  # the file that this one extends
    inherited: frozenset[str] = frozenset()  # the keys that come from there

    def line(self, place: Place) -> int:
        """Return the line of a place, or of what holds it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def where(self, place: Place) -> str:
        """Return `file:line` of a place."""
        document = self.base if self.base and place and place[0] in self.inherited else self
        return f"{document.path}:{document.line(place)}"


def read_yaml(path: Path) -> Document:
    """Read a YAML file without its types, keeping lines.

    Raises:
        ManifestError: no such file, not UTF-8, not YAML, a tag, a duplicate key.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ManifestError(path, "is a pipe, socket or device, not a file", "save the manifest as a file")
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise ManifestError(path, "no such file") from None
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


def as_yaml(document: Document) -> bytes:
    """Return a file that says the same as a document and those it extends; as it stands, where it extends none."""
    if document.base is None:
        return document.path.read_bytes()
    head = f"# {document.path.name} and {document.base.path.name}, which it extends\n"
    return head.encode() + yaml.safe_dump(document.value, sort_keys=False, allow_unicode=True, width=120, encoding="utf-8")


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
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*place, number)) for number, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return None if node.style is None and node.value in NULLS else self._encodable(node)

    def _encodable(self, node: yaml.ScalarNode) -> str:
        text = str(node.value)
        if bad := UNWRITABLE.search(text):
            what = "half of a surrogate pair" if bad[0] != "\0" else "the character NUL"
            raise ManifestError(f"{self.path}:{node.start_mark.line + 1}", f"{what} is no text", "write the character itself")
        return text

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ManifestError(f"{self.path}:{line}", "a key must be a word")
            key = self._encodable(key_node)
            if key in found:
                first = self.document.lines[*place, key]
                raise ManifestError(f"{self.path}:{line}", f"'{key}' stands twice (first on line {first})", "keep one")
            self.document.lines[*place, key] = line
            found[key] = self.read(value_node, (*place, key))
        return found
