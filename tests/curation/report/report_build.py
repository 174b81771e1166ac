"""A small build whose report has every section, with texts that try to break out of it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from curation.core.store import read_json, write_json
from curation.core.tables import write_parquet
from curation.report import page as report

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> $title ${state} & \"quoted\" \u202eright to left\u202c"
LONG = "Unbroken" * 400
MANIFEST = """\
name: small
seed: 7
sources:
  - {name: faq, files: faq.jsonl, task: retrieval, instruction: "Answer <b>boldly</b>", license: mit, max_bad: 0.1, holdout: 2, fields: {query: q, positive: a, negatives: n}}
  - {name: topics, files: topics.jsonl, task: clustering, license: cc-by-4.0, fields: {query: text, label: topic}}
  - {name: tone, files: topics.jsonl, task: classification, fields: {query: text, label: tone}}
dedup: {threshold: 0.8}
"""
SENTENCE = "the river near our old town floods every spring when snow melts fast and people who live by it carry sand to the"


def write_inputs(folder: Path) -> Path:
    """Write input files and their manifest; return its path."""
    faq = [{"q": f"question number {i // 2}", "a": f"the answer {i}", "n": [f"no answer {i} {HOSTILE}"]} for i in range(20)]
    faq += [
        {"q": "which  one?", "a": HOSTILE, "n": [LONG]},
        {"q": HOSTILE, "a": "كتاب 本 📚\u0007", "n": []},
        {"q": "", "a": "x", "n": []},
    ]
    faq += [{"q": f"{SENTENCE} {end}", "a": "bank", "n": []} for end in ("bank", "bridge")]
    topics = [{"text": f"text {i} of {i % 12}", "topic": f"topic {i % 12}", "tone": i % 2} for i in range(60)]
    topics += [{"text": HOSTILE, "topic": "<i>topic</i>", "tone": 0}, {"text": "calm", "topic": "<i>topic</i>", "tone": 1}]
    for name, rows in (("faq", faq), ("topics", topics)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "m.yaml"
    path.write_text(MANIFEST)
    return path


def write_shared_tables(build: Path) -> Path:
    """Write the files of other stages: overlaps, contamination and negatives, then the report; return its path."""
    names = {"source_a": ["faq", "faq", "topics"], "source_b": ["topics", "tone", "tone"]}
    counts = {"equal": [1, 0, 60_123], "near": [None, None, 4], "dropped": [0, 0, 3]}
    overlaps = pl.DataFrame({**names, **counts}).cast(dict.fromkeys(counts, pl.UInt32))
    write_parquet(build / "overlaps.parquet", overlaps)
    match = {
        "source": "faq", "id": "faq/3", "field": "query", "task": "Sci<b>Fact", "eval_id": "e1", "eval_field": "query", "rule": "whole",
        "score": 1.0, "evidence": HOSTILE, "action": "reported",
    }  # fmt: skip
    passage = match | {"id": None, "field": "corpus", "evidence": "a passage without a tuple"}
    write_parquet(build / "contamination.parquet", pl.DataFrame([match, passage]))
    bins = [max(0, 12 - abs(at - 28)) for at in range(40)]
    receipt = {"kept": 9, "rows_in": 10, "histograms": {"positives": bins, "negatives": bins[::-1]}}
    receipt |= {"digest": "mined", "curated": read_json(build / "curated" / "faq" / "done.json")["digest"]}
    (build / "mined" / "faq").mkdir(parents=True)
    write_json(build / "mined" / "faq" / "done.json", receipt)
    summary = read_json(build / "build.json")
    tasks = {"Sci<b>Fact": {"faq": {"query": 1, "positive": 0, "negative": 0, "corpus": 2}}}
    summary = {key: value for key, value in summary.items() if key not in ("files", "stages")}  # their digests are others now
    write_json(build / "build.json", {**summary, "decontaminate": {"mode": "report", "tasks": tasks}})
    assert report.write(build)
    return build / "report.html"
