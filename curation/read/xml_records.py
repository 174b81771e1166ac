"""Records of XML, read as a stream by expat, with no entities except XML's own five.

A file that declares entities is refused: internal ones can unpack to gigabytes, external ones name other files
(https://cwe.mitre.org/data/definitions/776.html and 611). Nothing outside the file is ever opened.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

from curation.core.errors import SourceError, listed
from curation.read.rows import File, Found, Record, record_limit, too_large
from curation.recipe.source import Table

DEEPEST = 100  # elements within a record; each holds the text of those inside it


def xml_rows(file: File, table: Table) -> Found:
    """Yield the elements at `records`, such as `QAPairs/QAPair`, as rows.

    Columns are named by XPath, starting at the record: `Question`, `Answer/p`, `@id`, `Question/@qtype`, and `.` for the
    text of a record without elements. A column holds all text inside an element; several elements of one name make a list.

    Raises:
        SourceError: the file is not well-formed XML, or declares entities.
    """
    reading = _Records(file, table)
    parser = expat.ParserCreate(None if table.encoding == "utf-8" else table.encoding)
    parser.buffer_text = True
    parser.StartElementHandler = reading.start
    parser.EndElementHandler = reading.end
    parser.CharacterDataHandler = reading.characters
    parser.EntityDeclHandler = reading.refuse
    parser.SkippedEntityHandler = reading.skipped
    some, fed = False, 0
    with file.open() as raw:
        while True:
            block = raw.read(1 << 18)
            try:
                parser.Parse(block, not block)
                fed += len(block)
            except expat.ExpatError as error:
                what = f"not readable as XML ({expat.ErrorString(error.code)})"
                hint = "is the file cut off?"
                if error.code == expat.errors.codes[expat.errors.XML_ERROR_INVALID_TOKEN] and table.encoding == "utf-8":
                    hint = "is the file cut off, or has it another `encoding`?"
                raise SourceError(f"{file.name}:{error.lineno}", what, hint) from None
            except (LookupError, ValueError) as error:  # an unknown encoding, or one of several bytes per character
                raise SourceError(file.name, f"not readable as XML ({error})", "declare another `encoding`") from None
            if fed - parser.CurrentByteIndex > record_limit(table):  # within one tag, comment or the like
                raise too_large(f"{file.name}:{parser.CurrentLineNumber}", "what begins here", table)
            yield from reading.done
            some = some or bool(reading.done)
            reading.done.clear()
            if not block:
                break
    if not some:
        there = f"elements there are: {listed(sorted(reading.seen), 8)}"
        yield "no_records", f"{file.name}: no element '{table.records}'; {there}", True


class _Records:
    """The elements that expat has reported so far, and the records that they make."""

    def __init__(self, file: File, table: Table) -> None:
        self.file, self.table, self.most = file, table, record_limit(table)
        self.wanted = (table.records or "").strip("/").split("/")
        self.size = self.columns = 0  # characters of the record, and of the columns that it makes
        self.path: list[str] = []  # names of the open elements
        self.seen: set[str] = set()
        self.top = 0  # how many elements are open around the record and with it; 0 outside of records
        self.texts: list[str] = []  # all text of the record so far
        self.starts: list[int] = []  # where in `texts` the record and each open element in it begin
        self.record: dict[str, list[str]] = {}
        self.done: list[Record] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.path.append(name)
        if not self.top:
            if len(self.seen) < 100:
                self.seen.add(name)
            if self.path[-len(self.wanted) :] != self.wanted:
                return
            self.top, self.record, self.texts, self.size, self.columns = len(self.path), {}, [], 0, 0
        if len(self.path) - self.top > DEEPEST:
            raise SourceError(self.file.name, f"a record nests more than {DEEPEST} elements")
        self.starts.append(len(self.texts))
        for key, value in attributes.items():
            self._count(len(value), len(value))
            self.record.setdefault("/".join([*self.path[self.top :], f"@{key}"]), []).append(value)

    def characters(self, text: str) -> None:
        if self.top:
            self.texts.append(text)
            self._count(len(text), 0)

    def end(self, name: str) -> None:
        if self.top:
            text, inside = "".join(self.texts[self.starts.pop() :]).strip(), "/".join(self.path[self.top :])
            if inside or all(key.startswith("@") for key in self.record):
                self._count(0, len(text))
                self.record.setdefault(inside or ".", []).append(text)
            if not inside:
                self.done.append({key: one if len(one) > 1 else one[0] for key, one in self.record.items()})
                self.top = 0
        self.path.pop()

    def _count(self, record: int, columns: int) -> None:
        """Count characters of the record and of its columns, in which a text repeats for each element around it."""
        self.size, self.columns = self.size + record, self.columns + columns
        if self.size > self.most or self.columns > 4 * self.most:
            raise too_large(self.file.name, f"a record in '{'/'.join(self.path)}'", self.table)

    def refuse(self, name: str, *_: Any) -> None:
        raise SourceError(self.file.name, f"declares the entity '{name}'", "entities can unpack to gigabytes: write them out")

    def skipped(self, name: str, _: Any) -> None:
        raise SourceError(self.file.name, f"uses the entity '{name}', which is defined in another file", "write it out")
