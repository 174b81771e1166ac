"""Sources that may be broken beside one that is good: what one build makes of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from curation.build.build import build
from curation.build.show import records

GOOD = "".join(json.dumps({"q": f"what is thing number {i}?", "a": f"the answer to it is {i}"}) + "\n" for i in range(4))


class Built(NamedTuple):
    error: str  # empty where the source was built
    pairs: list[tuple[str, list[str]]]  # its queries and positives
    receipt: dict[str, Any]


def manifest(folder: Path, sources: list[str], head: str = "") -> Path:
    """Write a manifest of `good` and of sources `s0`, `s1`, ..., of which the keys are given; by default they map q and a."""
    (folder / "good.jsonl").write_text(GOOD)
    lines = [f"name: m\n{head}\nsources:", "- {name: good, files: good.jsonl, task: retrieval, fields: {query: q, positive: a}}"]
    for number, source in enumerate(sources):
        task = "" if "task:" in source else ", task: retrieval"
        fields = "" if "fields:" in source else ", fields: {query: q, positive: a}"
        lines.append(f"- {{name: s{number}, {source}{task}{fields}}}")
    path = folder / "m.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def build_all(folder: Path, files: dict[str, bytes | str], sources: list[str], head: str = "") -> list[Built]:
    """Build sources beside a good one, which must be built whatever happens; an error must be one line that UTF-8 can hold."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = build(manifest(folder, sources, head), folder / "b")
    assert outcome.receipts["good"]["kept"] == 4
    done = []
    for name in (f"s{number}" for number in range(len(sources))):
        error = str(outcome.failed.get(name, ""))
        assert len(error.encode().splitlines()) <= 1
        assert "this is a fault of tuplesmith" not in error
        found = [] if error else [(one["query"], one["positives"]) for one in records(folder / "b", [name], 10_000)]
        done.append(Built(error, found, outcome.receipts.get(name, {})))
    return done


def build_one(folder: Path, files: dict[str, bytes | str], source: str, head: str = "") -> Built:
    """Build one source beside a good one."""
    return build_all(folder, files, [source], head)[0]
