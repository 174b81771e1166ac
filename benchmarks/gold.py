"""Questions with gold answers: open datasets in which several texts are right for one query, of which one is taken as known.

squad_v2       questions against their paragraphs and sentences of other articles. Strict: holds an answer that is
               in at most 15 texts, and half of the question's IDF mass. Loose: holds an answer, same article.
climate_fever  claims against evidence sentences. One supporting sentence is known. Strict: another one.
clinc150       questions against six of each intent, and those of none. One of the intent is known. Strict: another.
nl2bash        descriptions against commands. Strict: another command of the same description.
scitldr        titles of papers against summaries. One summary is known. Strict: another of the same paper.
banking77      as clinc150: questions of 77 intents, six of each in the corpus.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.core.record import draws
from mining.lists import Ragged, contains

Pairs = Iterable[Sequence[str]]


@dataclass
class Questions:
    """Questions, a corpus, one known positive each, and which candidates are false: (ids) -> (strict, loose), (q, k) bool."""

    queries: list[str]
    corpus: list[str]
    positive: np.ndarray  # (q,)
    gold: list[list[int]]  # all that are right for a query; of squad_v2 the known one alone
    false: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def words(text: str) -> list[str]:
    """Return the words of a text, lower case."""
    return re.findall(r"\w+", text.lower())


def numbered(texts: Iterable[str]) -> dict[str, int]:
    """Number distinct texts in order."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def lists_of(rows: list[list[int]]) -> Ragged:
    """Return lists as arrays."""
    return Ragged(np.cumsum([0, *map(len, rows)]), np.array([one for row in rows for one in row], np.int64))


def with_gold(queries: list[str], corpus: list[str], gold: list[list[int]], near: list[list[int]] | None = None) -> Questions:
    """Return questions whose positives are listed, the first one known."""
    hidden = lists_of([row[1:] for row in gold])
    also = lists_of(near) if near else hidden
    positive = np.array([row[0] for row in gold])
    return Questions(queries, corpus, positive, gold, lambda ids: (contains(hidden, ids), contains(also, ids)))


def squad_v2(data: Path) -> Questions:
    """SQuAD 2.0's paragraphs, answerable questions, and the sentences of SQuAD 1 that are in none of the paragraphs."""
    articles = json.loads((data / "squad_v2_cs224n" / "dev-v2.0.json").read_text())["data"]
    rows = [
        (item["question"], paragraph["context"], {" ".join(words(answer["text"])) for answer in item["answers"]}, number)
        for number, article in enumerate(articles)
        for paragraph in article["paragraphs"]
        for item in paragraph["qas"]
        if item["answers"]
    ]
    pids = numbered(row[1] for row in rows)
    article_of = dict.fromkeys(range(len(pids)), -1) | {pids[row[1]]: row[3] for row in rows}
    whole = "\n".join(" ".join(words(text)) for text in pids)
    sentences = numbered((data / "squad_v1_nqg" / "src-dev.txt").read_text().split("\n")[:-1])
    corpus = list(pids) + [text for text in sentences if " ".join(words(text)) not in whole]
    spaced = [f" {' '.join(words(text))} " for text in corpus]
    sets = [set(words(text)) for text in corpus]
    count = Counter(word for some in sets for word in some)
    idf = {word: np.log(len(corpus) / number) for word, number in count.items()}
    everything = "\n".join(spaced)
    rare = {answer: _texts_with(everything, f" {answer} ") <= 15 for row in rows for answer in row[2]}

    def false(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        strict, loose = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for at, (question, _, answers, article) in enumerate(rows):
            asked = set(words(question))
            mass = sum(idf.get(word, np.log(len(corpus))) for word in asked)
            for column, pid in enumerate(ids[at]):
                if held := [answer for answer in answers if answer and f" {answer} " in spaced[pid]]:
                    covered = sum(idf[word] for word in asked & sets[pid])
                    strict[at, column] = any(rare[answer] for answer in held) and covered >= 0.5 * mass
                    loose[at, column] = article_of.get(int(pid), -1) == article
        return strict, loose

    positive = np.array([pids[row[1]] for row in rows])
    return Questions([row[0] for row in rows], corpus, positive, [[int(pid)] for pid in positive], false)


def _texts_with(everything: str, what: str) -> int:
    """Count lines that hold a string, up to 16."""
    found, at = 0, everything.find(what)
    while at >= 0 and found < 16:
        found += 1
        at = everything.find("\n", at)
        at = everything.find(what, at) if at >= 0 else -1
    return found


def climate_fever(data: Path) -> Questions:
    """Claims with two supporting sentences or more; loosely false is any other sentence shown for the claim."""
    with zipfile.ZipFile(data / "climate_fever" / "climate_fever.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith(".jsonl"))
        claims = [json.loads(line) for line in io.TextIOWrapper(archive.open(name), "utf-8")]
    pids = numbered(one["evidence"] for claim in claims for one in claim["evidences"])
    rows = []
    for claim in claims:
        kinds = [(pids[one["evidence"]], one["evidence_label"] in ("SUPPORTS", 0)) for one in claim["evidences"]]
        gold = list(dict.fromkeys(pid for pid, supports in kinds if supports))
        if len(gold) > 1:
            rows.append((claim["claim"], gold, [pid for pid, _ in kinds if pid not in gold]))
    return with_gold([row[0] for row in rows], list(pids), [row[1] for row in rows], [row[2] for row in rows])


def clinc150(data: Path) -> Questions:
    """Six training questions of each of 150 intents and all of no intent are the corpus; the test questions ask."""
    whole = json.loads((data / "clinc150" / "data_full.json").read_text())
    return of_intents("clinc150", whole["train"], whole["test"], whole["oos_train"] + whole["oos_val"])


def of_intents(name: str, train: Pairs, test: Pairs, others: Pairs) -> Questions:
    """Return questions about six of each intent, one of them known, from (text, intent) pairs."""
    taken: dict[str, list[str]] = {}
    for text, intent in train:
        taken.setdefault(intent, []).append(text)
    pids = numbered([text for some in taken.values() for text in some[:6]] + [text for text, _ in others])
    rows = [(text, [pids[other] for other in taken[intent][:6]]) for text, intent in test]
    at = [int(number % np.uint64(6)) for number in draws(42, name, np.arange(len(rows)))]
    gold = [[row[first], *row[:first], *row[first + 1 :]] for (_, row), first in zip(rows, at, strict=True)]
    return with_gold([text for text, _ in rows], list(pids), gold)


def nl2bash(data: Path) -> Questions:
    """Descriptions that have several commands; the corpus is all commands."""
    folder = data / "nl2bash"
    asked, commands = ((folder / name).read_text().split("\n")[:-1] for name in ("all.nl", "all.cm"))
    pids = numbered(commands)
    gold: dict[str, dict[int, None]] = {}
    for text, command in zip(asked, commands, strict=True):
        gold.setdefault(text.strip().lower(), {})[pids[command]] = None
    rows = [(text, list(some)) for text, some in gold.items() if len(some) > 1]
    return with_gold([row[0] for row in rows], list(pids), [row[1] for row in rows])


def scitldr(data: Path) -> Questions:
    """Titles of papers with several summaries; the corpus is all summaries."""
    files = [data / "scitldr" / f"{name}.jsonl" for name in ("train", "dev", "test")]
    papers = [json.loads(line) for file in files for line in file.read_text().split("\n") if line]
    summaries = [(paper["title"], list(dict.fromkeys(text.strip() for text in paper["target"]))) for paper in papers]
    pids = numbered(text for _, some in summaries for text in some)
    rows = [(title, [pids[text] for text in some]) for title, some in summaries if len(some) > 1]
    return with_gold([title for title, _ in rows], list(pids), [some for _, some in rows])


def banking77(data: Path) -> Questions:
    """Six training questions of each of 77 intents are the corpus; the test questions ask."""
    train, test = (
        [(row["text"].strip(), row["category"]) for row in csv.DictReader(io.StringIO(file.read_bytes().decode(), newline=""))]
        for file in (data / "banking77" / "train.csv", data / "banking77" / "test.csv")
    )
    return of_intents("banking77", train, test, [])


READERS = (squad_v2, climate_fever, clinc150, nl2bash, scitldr, banking77)
SOURCES: dict[str, Callable[[Path], Questions]] = {read.__name__: read for read in READERS}
