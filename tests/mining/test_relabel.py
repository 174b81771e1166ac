"""The scripts that train a reranker and measure relabelling, at a tiny size."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import relabel
import train_reranker
from gold import banking77

from curation.core import store, tables
from curation.core.record import draws
from tests.training.tiny_models import tiny_folder
from training.model.reranker import load_reranker


@pytest.mark.shared_data
@pytest.mark.long
def test_a_reranker_is_trained_and_mining_reads_it(tmp_path, shared_data, monkeypatch):
    given = [shared_data, tmp_path, "--rows", 10, "--sources", "covid-faq-en", "stsb-en"]
    monkeypatch.setattr("sys.argv", ["train_reranker.py", *map(str, given)])
    train_reranker.main()
    scorer = load_reranker(str(tmp_path / "model"), device="cpu")
    scores = scorer.scores(["how long does the virus live", "a man plays a flute"], ["for some hours", "a man plays a flute"])
    assert np.abs(scores).max() < 0.4  # logits, near 0 after few steps: a sigmoid would make them .5
    assert scorer.max_tokens == 256
    assert set(store.read_json(tmp_path / "margins.json")) == {"promote", "uncertain", "min_score"}


@pytest.mark.shared_data
@pytest.mark.long
def test_what_the_tables_say_is_so(tmp_path, shared_data, monkeypatch, capsys):
    reranker, work = tmp_path / "reranker", tmp_path / "work"
    tiny_folder("bert", reranker / "model", labels=1)
    (reranker / "margins.json").write_text('{"promote": 0.0001, "uncertain": 0.00001, "min_score": 0.0}')
    monkeypatch.setattr(relabel, "HELD_OUT", 20)
    monkeypatch.setattr(relabel, "TOKENS", 128)
    monkeypatch.setattr(relabel, "MODEL", str(tiny_folder("bert", tmp_path / "encoder")))
    few = ["--sources", "banking77", "--queries", 30, "--few", 100, "--steps", 2, "--seeds", 1]
    monkeypatch.setattr("sys.argv", ["relabel.py", *map(str, [shared_data, reranker, work, *few])])
    relabel.main()
    shown = capsys.readouterr().out
    found = json.loads((work / "banking77" / "relabelled.json").read_text())

    # what is false, from the labels in the files: the tables of the last arm are still there
    with (shared_data / "banking77" / "test.csv").open(newline="") as file:
        intents = [row["category"] for row in csv.DictReader(file)]
    with (shared_data / "banking77" / "train.csv").open(newline="") as file:
        of_text = {" ".join(row["text"].split()): row["category"] for row in csv.DictReader(file)}
    build = work / "banking77" / "build"
    texts = tables.read_table(build / "curated" / "banking77", "passages")["text"]
    rows = tables.read_table(build / "mined" / "banking77", "pairs")
    pairs = [
        (intents[int(row["id"].split("/")[-1])], of_text[" ".join(texts[pid].split())])
        for row in rows.iter_rows(named=True)
        for pid in row["negatives"]
    ]
    last = found[relabel.ARMS[-1]]
    assert last["negatives"] == len(pairs) > 0
    assert last["strict"] == pytest.approx(np.mean([one == other for one, other in pairs]))
    assert last["promoted"]["count"] == last["promotion"]["promoted"] > 0

    # planted: three of thirty, each with the positive of another
    source = banking77(shared_data)
    order = np.argsort(draws(42, "banking77/relabel", np.arange(len(source.queries))))[20:50]
    lines = {split: (work / f"banking77/collection/qrels/{split}.tsv").read_text().split("\n") for split in ("train", "planted")}
    changed = [one for one, other in zip(lines["train"], lines["planted"], strict=True) if one != other]
    assert {int(line.split("\t")[0]) for line in changed} == set(order[::10].tolist())
    positives = json.loads((work / "banking77" / "positives.json").read_text())
    assert {row["setting"] for row in positives} == {"positive_rank", "positive_min_score", "positive_reranker_min"}
    dropped = tables.read_parquet(build / "mined" / "banking77-planted" / "dropped.parquet")  # by the last limit
    taken = {int(text.split("/")[-1]) for text in dropped["id"]}
    assert positives[-1]["setting"] == "positive_reranker_min"
    assert (positives[-1]["taken"], positives[-1]["hit"]) == (len(taken), len(taken & set(order[::10].tolist())))
    assert taken

    # every arm was trained, and a second run does nothing but print the same tables
    of_training = shown[shown.index("| source | seeds |") :]
    assert "\n| banking77 | 1 | 20 |" in of_training
    relabel.main()
    again = capsys.readouterr().out
    assert again.endswith(of_training)
    assert again[again.index("\n| source | setting |") : again.index("| source | seeds |")].strip() in shown
