"""The sources of manifests/dev.yaml by plain Python: csv, json, xml, zip and tar modules, and no code of ours.

`rows(name, data)` returns what the files hold, row by row: (query, positive, label or score). None in the first place
marks a row that has to be left out: a question without an answer, a class that is none, a file without records.
`expected(name, data)` says how many rows there are, how many tuples the shape should make of them, and of what.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tests.curation.core.plain_forms import form as plain_form

Row = tuple[str | None, str | None, str | None]
DEV = Path(__file__).resolve().parents[3] / "manifests" / "dev.yaml"
AMCD = {"0": "states a fact", "1": "says what did not happen"}


def squad(data: Path, pattern: str) -> Iterator[Row]:
    for path in sorted(data.glob(pattern)):
        for article in json.loads(path.read_bytes())["data"]:
            for paragraph in article["paragraphs"]:
                for one in paragraph["qas"]:
                    asked = None if one.get("is_impossible") else one["question"]
                    yield asked, paragraph["context"], None


def lines(data: Path, pattern: str, encoding: str = "utf-8") -> list[str]:
    texts = [path.read_bytes().decode(encoding).removesuffix("\n") for path in sorted(data.glob(pattern))]
    return [line.strip() for text in texts for line in text.split("\n")]


def aligned(data: Path, query: str, positive: str | None, label: str | None = None) -> Iterator[Row]:
    columns = [lines(data, pattern) if pattern else None for pattern in (query, positive, label)]
    size = len(columns[0] or [])
    yield from zip(*(column or [None] * size for column in columns), strict=True)


def table(data: Path, pattern: str, query: int, positive: int | None, label: int | None, **how) -> Iterator[Row]:
    """Delimited files: `raw` splits at tabs and knows no quotes, `skip` is the number of header lines."""
    raw, skip = how.get("raw", False), how.get("skip", 1)
    for path in sorted(data.glob(pattern)):
        text = path.read_bytes().decode("utf-8-sig")
        if raw:
            cells = [line.removesuffix("\r").split("\t") for line in text.removesuffix("\n").split("\n")]
        else:
            cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=how.get("delimiter", ",")))
        for row in cells[skip:]:
            yield row[query], None if positive is None else row[positive], None if label is None else row[label]


def objects(data: Path, pattern: str, query: str, positive: str, label: str | None = None) -> Iterator[Row]:
    for path in sorted(data.glob(pattern)):
        text = path.read_text()
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line]
        for one in found:
            yield one[query], one[positive], str(one[label]) if label else None


def medquad(data: Path) -> Iterator[Row]:
    with tarfile.open(data / "medquad/MedQuAD.tar.gz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                pairs = ElementTree.parse(archive.extractfile(member)).findall(".//QAPairs/QAPair")
                for pair in pairs:
                    yield pair.findtext("Question").strip(), pair.findtext("Answer").strip() or None, None
                if not pairs:
                    yield None, None, None


def newsgroups(data: Path) -> Iterator[Row]:
    with tarfile.open(data / "20newsgroups/20news-bydate.tar.gz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if member.isfile() and parts[0] == "20news-bydate-train" and not parts[-1].startswith("."):
                yield archive.extractfile(member).read().decode().partition("\n\n")[2], None, parts[1]


def scitldr(data: Path) -> Iterator[Row]:
    for line in (data / "scitldr/train.jsonl").read_text().splitlines():
        paper = json.loads(line)
        (summary,) = paper["target"]
        yield summary, " ".join(paper["source"]), None


def pubmedqa(data: Path) -> Iterator[Row]:
    for paper in json.loads((data / "pubmedqa/ori_pqal.json").read_text()).values():
        yield paper["QUESTION"], "\n".join(paper["CONTEXTS"]), None


def breaking_nli(data: Path) -> Iterator[Row]:
    with zipfile.ZipFile(data / "breaking_nli/breaking_nli_dataset.zip") as archive:
        for line in archive.read("data/dataset.jsonl").decode().splitlines():
            one = json.loads(line)
            yield one["sentence1"], one["sentence2"], one["gold_label"]


def climate_fever(data: Path) -> Iterator[Row]:
    """From the csv of the zip; our manifest reads the jsonl."""
    with zipfile.ZipFile(data / "climate_fever/climate_fever.zip") as archive:
        text = archive.read("climate-fever.csv").decode()
    for claim in csv.DictReader(io.StringIO(text, newline="")):
        for i in range(5):
            yield claim["claim"], claim[f"evidences/{i}/evidence"], claim[f"evidences/{i}/evidence_label"]


def clinc_ints(data: Path) -> Iterator[Row]:
    """By the names in the json of the same data, whose train file has the same texts in another order."""
    import pyarrow.parquet as pq

    found = pq.read_table(data / "clinc150_parquet/train-00000-of-00001.parquet").to_pylist()
    full = json.loads((data / "clinc150/data_imbalanced.json").read_text())
    names = defaultdict(set)
    for text, intent in full["train"] + full["oos_train"]:
        names[text].add(intent)
    for one in found:
        yield None if names[one["text"]] == {"oos"} else one["text"], None, str(one["intent"])


def trec(data: Path) -> Iterator[Row]:
    for line in lines(data, "trec6/TREC.train", "latin-1"):
        kind, question = line.split(" ", 1)
        yield question, None, kind.split(":")[0]


def named(found: Iterator[Row], names: dict[str, str]) -> Iterator[Row]:
    return ((query, positive, names[label]) for query, positive, label in found)


def tweets(kind: str, split: str = "train", **names: str) -> Callable[[Path], Iterator[Row]]:
    def read(data: Path) -> Iterator[Row]:
        found = aligned(data, f"tweeteval/{kind}/{split}_text.txt", None, f"tweeteval/{kind}/{split}_labels.txt")
        return named(found, {key.removeprefix("l"): name for key, name in names.items()})

    return read


def amcd(part: str) -> Callable[[Path], Iterator[Row]]:
    return lambda data: named(table(data, f"amcd/{part}.tsv", 0, None, 1, delimiter="\t"), AMCD)


def stsb(pattern: str) -> Callable[[Path], Iterator[Row]]:
    return lambda data: table(data, f"stsb_multi_mt/{pattern}.csv", 0, 1, 2, skip=0)


HATE = {"0": "hateful or offensive", "1": "hateful or offensive", "2": "neither"}
NEWS = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
SOURCES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "squad": lambda data: squad(data, "squad_v2_cs224n/dev-v2.0.json"),
    **{f"xquad-{tongue}": lambda data, tongue=tongue: squad(data, f"xquad/xquad.{tongue}.json") for tongue in ("en", "de", "zh", "ar")},
    "squad-sentences": lambda data: aligned(data, "squad_v1_nqg/tgt-*.txt", "squad_v1_nqg/src-*.txt"),
    "medquad": medquad,
    "cmrc": lambda data: squad(data, "cmrc2018/*.json"),
    "covid-papers": lambda data: squad(data, "covid_qa/*.json"),
    "covid-faq": lambda data: table(data, "covid_qa/*.tsv", 0, 1, None, delimiter="\t"),
    "covid-faq-en": lambda data: table(data, "covid_qa/*.csv", 0, 1, None),
    "pubmedqa": pubmedqa,
    "scitldr": scitldr,
    "cosqa": lambda data: objects(data, "cosqa/cosqa-*.json", "doc", "code", "label"),
    "concode": lambda data: objects(data, "concode/dev.json", "nl", "code"),
    "nl2bash": lambda data: aligned(data, "nl2bash/all.nl", "nl2bash/all.cm"),
    "snli": lambda data: aligned(data, "snli_esnli/s1.*", "snli_esnli/s2.*", "snli_esnli/labels.*"),
    "indonli": lambda data: objects(data, "indonli/train.jsonl", "premise", "hypothesis", "label"),
    "ocnli": lambda data: objects(data, "ocnli/train.10k.json", "sentence1", "sentence2", "label"),
    "conjnli": lambda data: table(data, "conjnli/adversarial_train_15k.tsv", 0, 1, 2, raw=True),
    "breaking-nli": breaking_nli,
    "climate-fever": climate_fever,
    "qnli": lambda data: table(data, "qnli/dev.tsv", 1, 2, 3, raw=True),
    "stsb-en": stsb("stsb-en-*"),
    "stsb-de": stsb("stsb-de-train"),
    "stsb-fr": stsb("stsb-fr-train"),
    "mrpc": lambda data: table(data, "mrpc/msr_paraphrase_*.txt", 3, 4, 0, raw=True),
    "paws": lambda data: table(data, "paws_wiki/*.tsv", 1, 2, 3, raw=True, skip=0),
    "amcd-en-test": amcd("EN_test"),
    "amcd-en-ext": amcd("EN-ext_train"),
    "amcd-de": amcd("DE_train"),
    "amcd-jp": amcd("JP_train"),
    "tweet-irony": tweets("irony", l0="not ironic", l1="ironic"),
    "tweet-hate": tweets("hate", l0="not hateful", l1="hateful"),
    "tweet-offensive": tweets("offensive", l0="not offensive", l1="offensive"),
    "hate-davidson": lambda data: named(table(data, "hate_davidson/labeled_data.csv", 6, None, 5), HATE),
    "tweet-emotion": tweets("emotion", l0="anger", l1="joy", l2="optimism", l3="sadness"),
    "tweet-sentiment": tweets("sentiment", "*", l0="negative", l1="neutral", l2="positive"),
    "banking77": lambda data: table(data, "banking77/train.csv", 0, None, 1),
    "clinc150": lambda data: ((text, None, intent) for text, intent in json.loads((data / "clinc150/data_full.json").read_text())["train"]),
    "clinc150-ints": clinc_ints,
    "ag-news": lambda data: named(table(data, "ag_news_test/test.csv", 2, None, 0, skip=0), NEWS),
    "trec": trec,
    "newsgroups": newsgroups,
}  # fmt: skip


def rows(name: str, data: Path) -> list[Row]:
    """What a source's files hold."""
    return list(SOURCES[name](data))


def source(name: str) -> dict[str, object]:
    """What the manifest says of a source."""
    (said,) = [one for one in yaml.safe_load(DEV.read_text())["sources"] if one["name"] == name]
    return said


def expected(name: str, data: Path) -> tuple[int, int, dict[str, tuple[str, set[str], str | None]]]:
    """Return (rows, tuples that they make before anything is filtered or merged, what each tuple id holds).

    That is (query, positives, label): of NLI all positives of the premise, of a clustering none, as they are drawn.
    """
    found, said = rows(name, data), source(name)
    numbered = [(f"{name}/{number}", *row) for number, row in enumerate(found) if not blank(row[0])]
    if said["task"] != "retrieval":
        readings = {
            at: (query, {label} if said["task"] == "classification" else set(), label) for at, query, _, label in numbered
        }
        return len(found), unambiguous([(form(query), label) for query, _, label in readings.values()]), readings
    good = [row for row in numbered if not blank(row[2])]
    if "label" in said["fields"]:
        return len(found), *entailed(good, said.get("labels") or {"entailment": "positive", "neutral": "", "contradiction": ""})
    if "score" in said["fields"]:
        good = [row for row in good if float(row[3]) >= said["threshold"]]
    readings = {at: (query, {positive}, None) for at, query, positive, _ in good}
    if said.get("both_ways"):
        readings |= {f"{at}/r": (positive, {query}, None) for at, query, positive, _ in good}
    return len(found), len(readings), readings


def entailed(good: list[tuple[str, str, str, str]], sides: dict[str, str]) -> tuple[int, dict[str, tuple[str, set[str], None]]]:
    """A premise with a hypothesis that it entails, and that no other row denies, makes one tuple."""
    said = defaultdict(set)
    for _, premise, hypothesis, label in good:
        if label in sides:
            said[premise, hypothesis].add(sides[label] == "positive")
    of = defaultdict(set)
    for (premise, hypothesis), positive in said.items():
        if positive == {True}:
            of[premise].add(hypothesis)
    return len(of), {at: (premise, of[premise], None) for at, premise, _, _ in good if premise in of}


def unambiguous(labelled: list[tuple[str, str]]) -> int:
    """How many texts have no duplicate with another label."""
    labels = defaultdict(set)
    for text, label in labelled:
        labels[text].add(label)
    return sum(len(labels[text]) == 1 for text, _ in labelled)


def blank(text: str | None) -> bool:
    return text is None or not text.strip()


def form(text: str) -> str:
    """The normalised form, or the text where it has none."""
    return plain_form(text) or text
