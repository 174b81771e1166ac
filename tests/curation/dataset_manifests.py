"""A manifest for each of fourteen real datasets: every shape, every reader, nothing but YAML."""

from __future__ import annotations

from pathlib import Path

DATASETS = {
    "squad": "files: {data}/squad_v2_cs224n/dev-v2.0.json, reader: squad, task: retrieval, fields: {query: question, positive: context}",
    "xquad-zh": "files: {data}/xquad/xquad.zh.json, reader: squad, language: zh, task: retrieval, "
    "fields: {query: question, positive: context}",
    "cosqa": "files: {data}/cosqa/cosqa-dev.json, task: retrieval, threshold: 1, fields: {query: doc, positive: code, score: label}",
    "indonli": "files: {data}/indonli/train.jsonl, language: id, task: retrieval, "
    "labels: {e: positive, n: negative, c: negative}, fields: {query: premise, positive: hypothesis, label: label}",
    "ocnli": "files: {data}/ocnli/dev.json, reader: jsonl, language: zh, task: retrieval, "
    "fields: {query: sentence1, positive: sentence2, label: label}",
    "conjnli": "files: {data}/conjnli/adversarial_train_15k.tsv, task: retrieval, "
    "fields: {query: Premise, positive: Hypothesis, label: Label}",
    "stsb": "files: {data}/stsb_multi_mt/stsb-en-train.csv, header: [a, b, score], task: retrieval, threshold: 4, both_ways: yes, "
    "fields: {query: a, positive: b, score: score}",
    "mrpc": "files: '{data}/mrpc/msr_paraphrase_*.txt', reader: tsv, task: retrieval, threshold: 1, both_ways: yes, "
    "fields: {query: '#1 String', positive: '#2 String', score: Quality}",
    "paws": "files: {data}/paws_wiki/dev.tsv, header: no, task: retrieval, threshold: 1, both_ways: yes, "
    "fields: {query: column_2, positive: column_3, score: column_4}",
    "covid-faq": "files: {data}/covid_qa/faq_200327.tsv, quoting: yes, language: mul, task: retrieval, "
    "fields: {query: question, positive: answer}",
    "scitldr": "files: '{data}/scitldr/*.jsonl', task: retrieval, fields: {query: title, positive: target}",
    "banking": "files: {data}/banking77/train.csv, task: clustering, fields: {query: text, label: category}",
    "clinc": "files: '{data}/clinc150_parquet/*.parquet', task: clustering, fields: {query: text, label: intent}",
    "amcd": "files: {data}/amcd/EN_train.tsv, task: classification, "
    "labels: {0: states a fact, 1: says what did not happen}, fields: {query: sentence, label: is_counterfactual}",
}


def manifest_of(name: str, data: Path) -> str:
    """The manifest of one dataset."""
    return f"name: one\nsources:\n  - {{name: {name}, {DATASETS[name].replace('{data}', str(data))}}}\n"
