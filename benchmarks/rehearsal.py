"""F2LLM at its full size, without its data: `python benchmarks/rehearsal.py` (--scale 0.01 for a first look).

A Hub on this machine serves made-up rows in the columns of each source of manifests/f2llm.yaml and of each evaluation set, as
many as the sources have, with texts about as long. Then the commands run on the manifest as it is: `curate lock`, `curate
build`, mining with a stand-in encoder (64 numbers per text, sums of vectors of its words), and the first steps of `train` with
a tiny model. For each stage the script prints seconds, CPU seconds, the largest process and the bytes on disk.

What is not as in reality:
- Texts are phrases of 60,000 made-up words drawn by their frequency. A query begins with words of its positive. 1 % of the rows
  occur twice, 2 % of the queries again with another positive, and 40 texts of a training split in its repository's other sets.
- Sources that are read from their beginning (`sample: first`) have only the rows that are read. Those whose size nobody has
  stated have four times their `limit`. Mr. TyDi's corpus has 5,000,000 passages: its true number is larger.
- Below full size each `limit`, `skip` and expected number of the manifest is scaled too.
- With `--once` the Hub deletes each large file when it was fetched, so that the disk holds it once.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numba
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from curation.recipe.manifest import load_manifest
from mining.encoders import CustomEncoder
from mining.mine import mine_build
from tests.end_to_end.f2llm_repos import CLASSES, FACTS, GOLDEN, NAMES, put_models
from tests.servers.hub_server import hub

MANIFEST = Path(__file__).resolve().parents[1] / "manifests" / "f2llm.yaml"
ROWS = 100_000  # made at a time
SHARD = 1_000_000  # rows of a parquet file
PHRASE = 3  # words, about
DIM = 64
LARGE = 1_000_000  # bytes of a file that `--once` deletes
CONTAMINATED = 40  # texts of a training split that an evaluation set repeats

# Words of a text, least and most: by repository and column, else by column, else SHORT.
SHORT = (6, 14)
LENGTHS = {
    "abstract": (110, 230),
    "answer": (40, 140),
    "article": (400, 900),
    "body": (20, 180),
    "citation": (110, 230),
    "context": (90, 160),
    "document": (200, 600),
    "highlights": (30, 60),
    "negative": (40, 140),
    "neg": (60, 200),
    "pos": (60, 200),
    "positive": (40, 140),
    "post1": (60, 200),
    "post2": (60, 200),
    "summary": (15, 30),
    "text": (15, 40),
    "texts": (40, 160),
    "title_body": (60, 200),
    "upvoted_answer": (60, 240),
    "1": (60, 200),
    "mteb/amazon_polarity text": (40, 130),
    "mteb/imdb text": (100, 360),
    "mteb/toxic_conversations_50k text": (20, 90),
    "mteb/AmazonReviewsClassification text": (20, 60),
    "SetFit/20_newsgroups text": (60, 400),
    "BeIR/arguana-generated-queries text": (100, 250),
    "BeIR/bioasq-generated-queries text": (130, 260),
    "mteb/banking77 text": SHORT,
    "mteb/MTOPIntentClassification text": SHORT,
    "mteb/MTOPDomainClassification text": SHORT,
    "mteb/amazon_massive_scenario text": SHORT,
    "mteb/amazon_massive_intent text": SHORT,
    "sentence-transformers/quora-duplicates positive": SHORT,
    "sentence-transformers/specter positive": SHORT,
    "sentence-transformers/specter negative": SHORT,
    "sentence-transformers/sentence-compression text": (15, 40),
    "s2orc title citation": SHORT,
}
# Words of a passage: by repository.
PASSAGES = {
    "mteb/msmarco": (40, 75),
    "mteb/hotpotqa": (25, 70),
    "mteb/fever": (30, 130),
    "mteb/fiqa": (50, 200),
    "mteb/nfcorpus": (150, 300),
    "mteb/scifact": (150, 280),
    "mteb/arguana": (100, 250),
    "mteb/mrtidy": (40, 110),
    "mteb/StackOverflowDupQuestions": SHORT,
}
# Passages, queries and judgements where the manifest does not say all three.
QRELS = {
    "mteb/msmarco": (8_841_823, 502_939, 532_751),
    "mteb/hotpotqa": (5_233_329, 85_000, 170_000),
    "mteb/fever": (5_416_568, 106_605, 140_085),
    "mteb/fiqa": (57_638, 5_500, 14_166),
    "mteb/nfcorpus": (3_633, 2_590, 110_575),
    "mteb/scifact": (5_183, 809, 919),
    "mteb/arguana": (8_674, 0, 0),
    "mteb/mrtidy": (5_000_000, 3_547, 3_547),
    "mteb/StackOverflowDupQuestions": (593_522, 19_847, 593_522),
}
LABELS = {
    "mteb/banking77": 77,
    "mteb/emotion": 6,
    "mteb/AmazonReviewsClassification": 5,
    "mteb/MTOPDomainClassification": 11,
    "mteb/MTOPIntentClassification": 113,
    "mteb/amazon_massive_scenario": 18,
    "mteb/amazon_massive_intent": 60,
    "mteb/tweet_sentiment_extraction": 3,
    "mteb/raw_arxiv": 180,
    "mteb/raw_biorxiv": 26,
    "mteb/raw_medrxiv": 51,
    "sentence-transformers/reddit-title-body": 3_000,
    "SetFit/20_newsgroups": 20,
}
# Rows that follow each other with one premise, of those that have several.
PREMISES = {"stanfordnlp/snli": 3, "nyu-mll/multi_nli": 3, "facebook/anli": 9}
SITES = [
    "academia.stackexchange.com",
    "askubuntu.com",
    "cooking.stackexchange.com",
    "english.stackexchange.com",
    "gaming.stackexchange.com",
    "math.stackexchange.com",
    "money.stackexchange.com",
    "physics.stackexchange.com",
    "serverfault.com",
    "stackoverflow.com-Posts",
    "stats.stackexchange.com",
    "superuser.com",
    "tex.stackexchange.com",
    "travel.stackexchange.com",
    "unix.stackexchange.com",
]


class Words:
    """Draws texts of phrases."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        words = sorted({"".join(self.draw.choice(letters, self.draw.integers(2, 11))) for _ in range(60_000)})
        words = self.draw.permutation(words)
        shares = 1 / np.arange(1, len(words) + 1) ** 0.8
        chosen = words[np.searchsorted(np.cumsum(shares / shares.sum()), self.draw.random(PHRASE << 20))]
        ends = np.arange(PHRASE, len(chosen), PHRASE) + self.draw.integers(0, 2, (1 << 20) - 1)  # phrases of 2 to 4 words
        self.phrases = pa.array([" ".join(part) for part in np.split(chosen, ends)])

    def texts(self, count: int, words: tuple[int, int], begin: np.ndarray | None = None) -> tuple[pl.Series, np.ndarray]:
        """Return `count` texts, and the phrase that each begins with: the given one, if any."""
        lengths = self.draw.integers(max(words[0] // PHRASE, 1), words[1] // PHRASE + 1, count)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        flat = self.draw.integers(len(self.phrases), size=starts[-1])
        if begin is not None:
            flat[starts[:-1]] = begin
        phrases = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), self.phrases.take(pa.array(flat)))
        return pl.Series(pc.binary_join(phrases, " ")), flat[starts[:-1]]


def lengths(id_: str, config: str, column: str) -> tuple[int, int]:
    """Return how many words a column's texts have."""
    if config == "title-citation-pair":
        return SHORT
    return LENGTHS.get(f"{id_} {column}") or LENGTHS.get(column, SHORT)


def frame(words: Words, fact: dict[str, str], row: Any, numbers: range) -> pl.DataFrame:
    """Return rows of a table; `row` is one of it as it is written down for the tests, whose types they get."""
    id_, count, begin = fact["id"], len(numbers), None
    columns: dict[str, pl.Series] = {}
    names = fact["texts"].split()
    for name in sorted(names, key=lambda name: -lengths(id_, fact["config"], name)[1]):
        value = row[int(name) if isinstance(row, list) else name]
        apart = name.startswith("neg")
        texts, began = words.texts(count, lengths(id_, fact["config"], name), None if apart else begin)
        begin = began if begin is None and not apart else begin
        if isinstance(value, str):
            columns[name] = texts
            continue
        more, _ = words.texts(count, lengths(id_, fact["config"], name))
        lists = pl.DataFrame({"a": texts, "b": more}).select(pl.concat_list("a", "b")).to_series()
        columns[name] = lists if isinstance(value, list) else pl.DataFrame({next(iter(value)): lists}).to_struct()
    for name in fact["others"].split():
        value = row[name]
        if id_ in CLASSES:
            columns[name] = pl.Series(np.array(numbers) % len(CLASSES[id_]))
        elif name.endswith("id"):
            columns[name] = pl.Series([type(value)(number) for number in numbers])
        elif isinstance(value, float):
            columns[name] = pl.Series(np.round(words.draw.uniform(0, 5, count), 1))
        else:
            drawn = (LABELS.get(id_, 2) * words.draw.random(count) ** 1.5).astype(np.int64)  # some have more texts than others
            columns[name] = pl.Series(drawn) if isinstance(value, int) else pl.Series([f"{value}{label}" for label in drawn])
    made = pl.DataFrame({name: columns[name] for name in f"{fact['texts']} {fact['others']}".split()})
    if every := PREMISES.get(id_):
        return made.with_columns(made["premise"][(np.arange(count) // every * every).tolist()])
    again, twice = np.arange(count), np.arange(count)
    for rows, share in ((again, 0.01), (twice, 0.02)):
        at = np.flatnonzero(words.draw.random(count) < share)[1:]
        rows[at] = words.draw.integers(at)
    made = made[again]
    return made.with_columns(made[names[0]][twice]) if len(names) > 1 else made


class Files:
    """The files of a repository and what its README says of them, written as they are made."""

    def __init__(self, folder: Path, id_: str) -> None:
        self.folder, self.id, self.paths = folder, id_, dict[str, Path]()
        self.configs = dict[str, list[dict[str, str]]]()

    def add(self, fact: dict[str, str], frames: Iterable[pl.DataFrame]) -> None:
        """Write a table as the repository's other files are: JSON Lines for MTEB's, else parquet."""
        config = fact["config"] or "default"
        place = f"{config}/{fact['split']}"
        self.configs.setdefault(config, []).append({"split": fact["split"], "path": f"{place}/*"})
        if self.id.startswith("mteb/"):
            with self._open(f"{place}/0000.jsonl") as file:
                for made in frames:
                    made.write_ndjson(file)
        elif self.id in NAMES:
            self.lines(NAMES[self.id], frames)
        else:
            self._parquet(place, frames)

    def lines(self, name: str, frames: Iterable[pl.DataFrame]) -> None:
        """Write a gzipped file of JSON lines; rows of columns named 0 and 1 become lists."""
        with self._open(name) as raw, gzip.open(raw, "wb", compresslevel=1) as file:
            for made in frames:
                lines = io.BytesIO()
                made.write_ndjson(lines)
                text = lines.getvalue()
                file.write(re.sub(rb'(?m)^\{"0":(.*),"1":(.*)\}$', rb"[\1,\2]", text) if made.columns == ["0", "1"] else text)

    def _open(self, name: str) -> Any:
        path = self.folder / name.replace("/", "+")
        self.paths[name] = path
        return path.open("wb")

    def _parquet(self, place: str, frames: Iterable[pl.DataFrame]) -> None:
        writer, rows, number = None, 0, 0
        for made in frames:
            table = made.to_arrow(compat_level=pl.CompatLevel.oldest())
            if self.id in CLASSES:
                label = {"names": list(CLASSES[self.id]), "_type": "ClassLabel"}
                features = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names} | {"label": label}
                table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            if writer is None or rows >= SHARD:
                if writer is not None:
                    writer.close()
                name = f"{place}/{number:04}.parquet"
                self._open(name).close()
                writer, rows, number = pq.ParquetWriter(self.paths[name], table.schema, compression="zstd"), 0, number + 1
            writer.write_table(table)
            rows += len(table)
        assert writer is not None
        writer.close()


def chunks(rows: int) -> Iterator[range]:
    """Cut the numbers of rows into those that are made together."""
    for first in range(0, rows, ROWS):
        yield range(first, min(first + ROWS, rows))


def add_qrels(files: Files, words: Words, facts: list[dict[str, str]], scale: float) -> None:
    """Write a corpus, its queries, and the judgements of a training split and of evaluation sets."""
    passages, queries, judged = (int(number * scale) for number in QRELS[files.id])
    begin = np.zeros(passages, np.int32)  # the phrase that each passage begins with
    place = {(fact["part"], fact["split"]): fact for fact in facts}
    parts = {part: next(fact for (name, _), fact in place.items() if name == part) for part in ("corpus", "queries")}

    def corpus() -> Iterator[pl.DataFrame]:
        for numbers in chunks(passages):
            texts, begin[numbers.start : numbers.stop] = words.texts(len(numbers), PASSAGES[files.id])
            titles = words.texts(len(numbers), (6, 6))[0] if files.id != "mteb/msmarco" else pl.Series([""] * len(numbers))
            yield pl.DataFrame({"_id": [f"c{number}" for number in numbers], "title": titles, "text": texts})

    files.add(parts["corpus"], corpus())
    texts = []
    first = 0
    for fact in place.values():
        if fact["part"]:
            continue
        training = fact["source"] in GOLDEN
        asked, pairs = (queries, judged) if training else (max(int(1_000 * scale), 10), max(int(2_000 * scale), 20))
        query = np.arange(pairs) * asked // pairs
        passage = words.draw.integers(passages, size=pairs)
        starts = np.searchsorted(query, np.arange(asked))
        found = words.texts(asked, SHORT, begin[passage[starts]])[0]
        if not training and texts:  # the training split's own queries again
            found = pl.concat([texts[0][:CONTAMINATED], found])[:asked]
        texts.append(found)
        table = {"query-id": [f"q{first + number}" for number in query], "corpus-id": [f"c{number}" for number in passage]}
        score = np.ones(pairs, np.int64)
        if files.id == "mteb/StackOverflowDupQuestions":  # thirty judged, one a duplicate
            score = np.isin(np.arange(pairs), starts).astype(np.int64)
        files.add(fact, [pl.DataFrame({**table, "score": score})])
        first += asked
    whole = pl.concat(texts)
    files.add(parts["queries"], [pl.DataFrame({"_id": [f"q{number}" for number in range(len(whole))], "text": whole})])


def rows_of(source: Any, scale: float) -> int:
    """Return how many rows of a source are made."""
    if source.expected_rows and source.sample != "first":
        return int(source.expected_rows * scale)
    if source.limit:
        return int(((source.skip or 0) + source.limit * (1.05 if source.sample == "first" else 4)) * scale)
    return int((source.expected_tuples or 20_000) * scale)


def evaluation(words: Words, fact: dict[str, str], known: list[str]) -> list[pl.DataFrame]:
    """Return rows of an evaluation set; some repeat `known` texts."""
    names = fact["texts"].split()
    if names == ["sentences"]:
        lists = [words.texts(2_000, LENGTHS["text"])[0].to_list() for _ in range(10)]
        return [pl.DataFrame({"sentences": lists, "labels": [[str(n % 20) for n in range(2_000)]] * 10})]
    made = frame(words, fact | {"others": ""}, dict.fromkeys(names, ""), range(2_000))
    return [made.with_columns(pl.Series(names[0], [*known, *made[names[0]][len(known) :]]))]


def fill(server: Any, manifest: Any, folder: Path, scale: float) -> None:
    """Make all repositories and put them into a Hub."""
    sources, words = {source.name: source for source in manifest.sources}, Words(7)
    folder.mkdir()
    by_id: dict[str, list[dict[str, str]]] = {}
    for fact in FACTS:
        by_id.setdefault(fact["id"], []).append(fact)
    for id_, facts in by_id.items():
        files = Files(folder, id_)
        if id_ in QRELS:
            add_qrels(files, words, facts, scale)
        elif "files" in GOLDEN.get(facts[0]["source"], {}):
            add_lines(files, words, facts, sum(rows_of(sources[fact["source"]], scale) for fact in facts))
        else:
            add_tables(files, words, facts, sources, scale)
        licence = next((sources[fact["source"]].license for fact in facts if fact["source"] in sources), None)
        head: dict[str, Any] = {"license": licence.split(", ")} if licence else {}
        if id_ not in NAMES and files.configs:
            head["configs"] = [{"config_name": name, "data_files": paths} for name, paths in files.configs.items()]
        revision = facts[0]["revision"] or "main"
        if revision.startswith("refs/"):
            server.put("datasets", id_, {"loader.py": "raise SystemExit('ran')"})
        else:
            files.paths["README.md"] = folder / "README.md"
            files.paths["README.md"].write_text(f"---\n{yaml.safe_dump(head)}---\n")
        server.put("datasets", id_, files.paths, **({"oid": revision} if len(revision) == 40 else {"rev": revision}))
    put_models(server, manifest, folder / "models")


def add_lines(files: Files, words: Words, facts: list[dict[str, str]], rows: int) -> None:
    """Write gzipped JSON lines: one file if the facts name it, else one per site."""
    row = next(iter(GOLDEN[facts[0]["source"]]["files"].values()))[0]
    names = {facts[0]["files"]: 1.0} if facts[0]["files"] else {f"{site}.jsonl.gz": 1 / len(SITES) for site in SITES}
    for name, share in names.items():
        files.lines(name, (frame(words, facts[0], row, numbers) for numbers in chunks(int(rows * share))))
    if facts[0]["source"] == "stackexchange_clustering_p2p":
        files.lines("small_stackexchanges.jsonl.gz", [frame(words, facts[0], row, range(1_000))])


def add_tables(files: Files, words: Words, facts: list[dict[str, str]], sources: dict[str, Any], scale: float) -> None:
    """Write each split once, with the columns of all sources that read it."""
    by_place: dict[tuple[str, str], list[dict[str, str]]] = {}
    for fact in facts:
        by_place.setdefault((fact["config"], fact["split"]), []).append(fact)
    known = list[str]()
    for same in by_place.values():
        fact = dict(same[0])
        if fact["source"] not in sources:
            files.add(fact, evaluation(words, fact, known))
            continue
        rows = max(rows_of(sources[one["source"]], scale) for one in same)
        for kind in ("texts", "others"):
            fact[kind] = " ".join(dict.fromkeys(" ".join(one[kind] for one in same).split()))
        row = {key: value for one in same for key, value in GOLDEN[one["source"]]["rows"][0].items()}
        splits = fact["split"].split("+")
        for split in splits:
            made = (frame(words, fact, row, numbers) for numbers in chunks(max(rows // len(splits), 1)))
            head = next(made)
            column = head[fact["texts"].split()[0]]
            known = known or (column.to_list()[:CONTAMINATED] if column.dtype == pl.String else [])
            files.add(fact | {"split": split}, itertools.chain([head], made))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def word_sums(data: np.ndarray, ends: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return for each text the sum of the rows of `table` that its words' hashes choose: (texts, DIM) float32."""
    out = np.zeros((len(ends) - 1, table.shape[1]), np.float32)
    for text in range(len(ends) - 1):
        hashed, inside = np.uint32(2166136261), False
        for at in range(ends[text], ends[text + 1] + 1):
            letter = data[at] if at < ends[text + 1] else np.uint8(32)
            if letter > 32:
                hashed, inside = (hashed ^ np.uint32(letter)) * np.uint32(16777619), True
            elif inside:
                chosen = (hashed ^ (hashed >> np.uint32(15))) % np.uint32(len(table))
                for dim in range(table.shape[1]):
                    out[text, dim] += table[chosen, dim]
                hashed, inside = np.uint32(2166136261), False
    return out


class StandIn:
    """An encoder whose vectors are sums over words: texts that share rare words are near."""

    def __init__(self) -> None:
        self.table = np.random.default_rng(3).standard_normal((1 << 16, DIM), np.float32)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return (texts, DIM) float32."""
        column = pa.array(texts, pa.large_string())
        ends, data = (np.frombuffer(part, kind) for part, kind in zip(column.buffers()[1:], (np.int64, np.uint8), strict=True))
        return word_sums(data, ends[: len(texts) + 1], self.table)


def run(name: str, command: list[str], environment: dict[str, str], build: Path) -> None:
    """Run a stage as a process, and print what it took."""
    started = time.perf_counter()
    child = os.fork()
    if not child:
        os.execve(sys.executable, [sys.executable, *command], os.environ | environment)
    _, status, used = os.wait4(child, 0)
    seconds, disk = time.perf_counter() - started, size_of(build)
    took = (name, f"{seconds:.0f}", f"{used.ru_utime + used.ru_stime:.0f}", f"{used.ru_maxrss / 1e6:.2f}", f"{disk / 1e9:.1f}")
    print("| " + " | ".join(took) + " |" + (f" FAILED ({status})" if status else ""), flush=True)
    if status:
        sys.exit(1)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def scaled(text: str, scale: float) -> str:
    """Return the manifest with its numbers of rows scaled; at full size as it is."""
    numbers = r"\b(limit|skip|expected_rows|expected_tuples): (\d+)"
    return re.sub(numbers, lambda found: f"{found[1]}: {max(int(int(found[2]) * scale), 1)}", text) if scale != 1 else text


def main() -> None:
    """Make the data if the folder has none, and run the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rehearsal")
    parser.add_argument("--stages", default="lock,build,mine,train", help="some of lock, build, verify, mine, train")
    parser.add_argument("-j", "--workers", default="2")
    parser.add_argument("--steps", default="3", help="of train")
    parser.add_argument("--once", action="store_true", help="delete large files of the Hub when they were fetched")
    parser.add_argument("--mine", type=Path, help=argparse.SUPPRESS)  # the mining stage, in a process of its own
    given = parser.parse_args()
    if given.mine:
        mine_build(given.mine, load=partial(CustomEncoder, StandIn()))
        return
    folder: Path = given.folder
    recipe, build, began = folder / "f2llm.yaml", folder / "build", time.perf_counter()
    with hub(folder / "hub") as server:
        server.once = LARGE if given.once else inf
        if not recipe.exists():
            shutil.rmtree(folder / "making", ignore_errors=True)
            fill(server, load_manifest(MANIFEST), folder / "making", given.scale)
            recipe.write_text(scaled(MANIFEST.read_text(), given.scale))
            print(f"data made in {time.perf_counter() - began:.0f} s: {size_of(folder / 'hub') / 1e9:.1f} GB", flush=True)
        environment = server.environment(home=folder / "home") | {"PYTHONPATH": str(MANIFEST.parents[1])}
        curate = ["-c", "from curation.cli import main; main()"]
        commands = {
            "lock": [*curate, "lock", str(recipe), "-q"],
            "build": [*curate, "build", str(recipe), "-o", str(build), "-j", given.workers, "-q"],
            "verify": [*curate, "verify", str(build), "-q"],
            "mine": [__file__, "--mine", str(build)],
            "train": ["-c", "from training.cli import main; main()", str(build), "--steps", given.steps, "-q"],
        }
        print("| stage | seconds | CPU seconds | largest process, GB | build folder, GB |\n|---|---|---|---|---|", flush=True)
        for stage in given.stages.split(","):
            run(stage, commands[stage], environment, build)


if __name__ == "__main__":
    main()
