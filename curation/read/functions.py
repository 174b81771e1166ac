"""Python functions that have a docstring, read from source by `ast`; nothing is imported or run."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from curation.core.errors import SourceError
from curation.read.rows import File

Function = ast.FunctionDef | ast.AsyncFunctionDef
Found = Iterator["dict[str, str] | tuple[str, str, bool]"]  # a record, or (reason, evidence, bad) of one left out
PYTHON = "python:"  # what a `path` of Python code begins with
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}  # folders of the stdlib
BARE = re.compile(rb"[ \t\f]*(?:#.*)?")  # nothing, or a comment, to the end of a line
CONTINUED = re.compile(rb"'''|\"\"\"|\\\n")  # a literal that may go on over a line's end


class Source(NamedTuple):
    """A file's text as UTF-8 with LF line ends, whole and in lines: the units of `ast`'s positions."""

    whole: bytes
    lines: list[bytes]
    starts: list[int]  # offset of each line


def functions_of(content: bytes, path: Path, name: str, root: Path) -> Found:
    """Yield each function, method and nested function that has a docstring, in order.

    A record has name (qualified, as `__qualname__`), module (dotted, from `root`), summary (the docstring's first
    paragraph in one line), docstring (as `inspect.cleandoc`), code (the function with its own docstring cut out,
    dedented, decorators kept) and raises ("yes" where its own body, nested functions aside, holds `raise`, else "no").
    Left out on purpose, as `no_body`: a function that is nothing but docstring, `pass` and `...`. A file that does not
    parse is one bad row.
    """
    try:
        source, tree = _parsed(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        what = error.msg if isinstance(error, SyntaxError) else str(error).splitlines()[0]
        yield "bad_python", f"{name}{f':{line}' if line else ''}: {what}", True
        return
    module = module_of(path, root)
    for qualified, function in _walk(tree, ""):
        docstring = inspect.cleandoc(ast.get_docstring(function, clean=False) or "")
        where = f"{name}:{function.lineno}"
        if not docstring:
            continue
        if all(_says_nothing(statement) for statement in function.body[1:]):
            yield "no_body", f"{where}: {qualified} has no body but its docstring", False
            continue
        if not docstring.isascii() and re.search("[\ud800-\udfff]", docstring):
            yield "bad_python", f"{where}: half of a surrogate pair in a docstring", True
            continue
        yield {
            "name": qualified,
            "module": module,
            "summary": " ".join(re.split(r"\n\s*\n", docstring, maxsplit=1)[0].split()),
            "docstring": docstring,
            "code": _code(source, function),
            "raises": "yes" if _raises(function.body) else "no",
        }


def module_of(path: Path, root: Path) -> str:
    """Return the dotted name of a file below `root`: `json/__init__.py` is `json`."""
    parts = list(path.relative_to(root).parts)
    parts[-1] = parts[-1].removesuffix(".gz").removesuffix(".py")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _parsed(content: bytes) -> tuple[Source, ast.Module]:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    text = io.TextIOWrapper(io.BytesIO(content), encoding).read()  # universal newlines, as Python reads source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file's odd escapes are its own business
        tree = ast.parse(text)
    whole = text.encode()
    lines = whole.split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    return Source(whole, lines, starts), tree


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
        if isinstance(child, Function):
            yield prefix + child.name, child
            yield from _walk(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _walk(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)


def _says_nothing(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and statement.value.value
    return isinstance(statement, ast.Pass) or constant is ...


def _raises(body: list[ast.stmt]) -> bool:
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Raise):
            return True
        if not isinstance(node, Function | ast.expr):
            todo += ast.iter_child_nodes(node)
    return False


def _code(source: Source, function: Function) -> str:
    """Return the function's source without its docstring, dedented."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)]) - 1
    last = (function.end_lineno or first + 1) - 1
    cut_from, cut_to = _docstring_span(source, function)
    margin = len(source.lines[first]) - len(source.lines[first].lstrip())
    inside = _string_lines(source, function)
    kept = []
    for number in range(first, last + 1):
        start, end = source.starts[number], source.starts[number + 1]
        line = source.whole[start : min(end, cut_from)] + source.whole[max(start, cut_to) : end]
        white = len(line) - len(line.lstrip(b" \t\f"))
        kept.append(line if number in inside else line[min(white, margin) :])
    return b"".join(kept).decode().rstrip("\n")


def _docstring_span(source: Source, function: Function) -> tuple[int, int]:
    """Return the bytes to cut: whole lines where nothing but a comment stands beside the docstring."""
    docstring, following = function.body[0], function.body[1]
    line, end_line = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
    start, end = source.starts[line] + docstring.col_offset, source.starts[end_line] + (docstring.end_col_offset or 0)
    line_end = source.starts[end_line + 1] - 1
    rest = source.whole[end:line_end].lstrip()
    if not BARE.fullmatch(rest.removeprefix(b";")):  # the next statement is of the same logical line
        return start, source.starts[following.lineno - 1] + following.col_offset
    return source.starts[line], line_end + 1


def _string_lines(source: Source, function: Function) -> set[int]:
    """Return the numbers (from 0) of lines that begin within a string, whose white space is the string's own."""
    inside: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Constant | ast.JoinedStr) and (node.end_lineno or 0) > node.lineno:
            start, end = source.starts[node.lineno - 1] + node.col_offset, source.starts[node.end_lineno or 0]
            if CONTINUED.search(source.whole, start, end):
                inside.update(range(node.lineno, node.end_lineno or 0))
    return inside


def python_files(package: str) -> list[File]:
    """Return the .py files of Python's own library (`stdlib`, without its tests) or of an installed package, unimported.

    Raises:
        SourceError: there is no such package, or it holds no Python code.
    """
    if package == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        paths = [path for path in root.rglob("*.py") if NOT_LIBRARY.isdisjoint(path.relative_to(root).parts[:-1])]
        return [File(path, path.relative_to(root).as_posix(), root) for path in sorted(paths)]
    top, *inner = package.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        raise SourceError(PYTHON + package, "is no name of a package", "name an installed one, such as `python:json`")
    try:
        spec = importlib.util.find_spec(top)  # imports nothing: `top` has no parent
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise SourceError(PYTHON + package, "no such package is installed", "install it, or say `python:stdlib`")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    alone = spec.origin and spec.has_location and not folders
    files = [File(Path(str(spec.origin)), f"{top}.py", Path(str(spec.origin)).parent)] if alone else []
    for folder in folders:
        part = folder.joinpath(*inner)
        paths = sorted(part.rglob("*.py")) if part.is_dir() else [path for path in [part.with_suffix(".py")] if path.is_file()]
        files += [File(path, path.relative_to(folder.parent).as_posix(), folder.parent) for path in paths]
    if not files:
        raise SourceError(PYTHON + package, "holds no Python code")
    return files
