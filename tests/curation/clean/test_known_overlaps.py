"""The overlaps that the shared datasets are known to have: found by a build that takes every text of them as it is."""

from __future__ import annotations

import json

import polars as pl
import pytest

from curation.build.build import build
from tests.curation.build import plain_datasets as plain

EVERYTHING = """
name: known
filters: {{min_chars: 0, no_echo: no}}
sources:
  - {{name: squad, files: '{data}/squad_v2_cs224n/*.json', reader: json, records: data/paragraphs/qas, task: retrieval,
     fields: {{query: question, positive: context}}}}
  - {{name: squad-sentences, files: ['{data}/squad_v1_nqg/tgt-*.txt', '{data}/squad_v1_nqg/src-*.txt'], reader: aligned,
     header: [question, sentence], task: retrieval, fields: {{query: question, positive: sentence}}}}
  - {{name: qnli, files: '{data}/qnli/dev.tsv', task: retrieval, fields: {{query: question, positive: sentence}}}}
  - {{name: stsb, files: '{data}/stsb_multi_mt/*.csv', header: [a, b, score], task: retrieval, fields: {{query: a, positive: b}}}}
  - {{name: mrpc, files: '{data}/mrpc/msr_paraphrase_*.txt', reader: tsv, task: retrieval,
     fields: {{query: '#1 String', positive: '#2 String'}}}}
"""
NOTED = {("stsb", "mrpc"): 2_944, ("squad", "qnli"): 2_241, ("squad", "squad-sentences"): 118}  # texts equal in lower case


def squad(data):
    """Questions and contexts of all files, those without an answer too."""
    for path in (data / "squad_v2_cs224n").glob("*.json"):
        for article in json.loads(path.read_text())["data"]:
            for paragraph in article["paragraphs"]:
                yield from ((one["question"], paragraph["context"]) for one in paragraph["qas"])


def texts(name, data):
    """(query, positive) of every row, by plain Python."""
    if name == "squad":
        return list(squad(data))
    return list(plain.table(data, "stsb_multi_mt/*.csv", 0, 1, 2, skip=0)) if name == "stsb" else plain.rows(name, data)


@pytest.mark.shared_data
def test_known_overlaps_are_found(shared_data, tmp_path):
    (tmp_path / "m.yaml").write_text(EVERYTHING.format(data=shared_data))
    outcome = build(tmp_path / "m.yaml", tmp_path / "b")
    assert not outcome.failed
    found = pl.read_parquet(tmp_path / "b" / "overlaps.parquet").select("source_a", "source_b", "equal").rows()
    shared = {(a, b): equal for a, b, equal in found}
    rows = {name: texts(name, shared_data) for name in outcome.receipts}
    long = {name: {text for row in found for text in row[:2] if len(text) >= 12} for name, found in rows.items()}
    lower = {name: {" ".join(text.lower().split()) for text in found} for name, found in long.items()}
    forms = {name: {plain.form(text) for text in found} for name, found in long.items()}
    for (a, b), noted in NOTED.items():
        assert len(lower[a] & lower[b]) == noted  # what the notes of the datasets count
        assert shared[a, b] == len(forms[a] & forms[b])  # several of those may share one normalised form
        assert {plain.form(text) for text in lower[a] & lower[b]} <= forms[a] & forms[b]
    questions = [{plain.form(row[0]) for row in rows[name]} for name in ("squad", "squad-sentences")]
    assert len(questions[0] & questions[1]) == 5_875
    assert shared["squad", "squad-sentences"] >= 5_875
