"""The report says what the receipts say, is the same each time, and no text breaks out of it."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from curation.build.build import build
from curation.cli import curate
from curation.core import tables
from curation.core.record import ORIGINS, no_drops
from curation.core.store import read_json, write_json
from curation.core.tables import read_table, write_parquet
from curation.report import figures, samples
from curation.report import page as report
from curation.report.samples import EQUAL_CHARS, compared, near_pairs, sample_records, shown
from tests.curation.report.report_build import HOSTILE, LONG, MANIFEST, write_inputs, write_shared_tables
from tests.curation.share.small_published import make

VOID = {"meta", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """Tables by their section's id as lists of rows of cells; every tag; whether each is closed in order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tables, self.tags, self.open, self.ids = {}, [], [], []
        self.text = {}
        self.cell = None
        self.section = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append(tag)
        self.ids += [named["id"]] if "id" in named else []
        if tag == "section":
            self.section = named["id"]
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.cell = []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("".join(self.cell))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)
        self.text[self.section] = self.text.get(self.section, "") + data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    assert not build(write_inputs(place), place / "b").failed
    return place / "b"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """With overlaps and contamination."""
    place = tmp_path_factory.mktemp("whole")
    build(write_inputs(place), place / "b")
    return Reader(write_shared_tables(place / "b").read_text())


def number(cell):
    return int(cell.replace(",", ""))


def stats(folder):
    done = CliRunner().invoke(curate, ["stats", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_figures_are_those_of_stats(folder):
    read = Reader((folder / "report.html").read_text())
    head, *rows = read.tables["sources"]
    lines = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    found = stats(folder)
    assert list(lines) == [*found, "all"]
    keys = {
        "Rows": "rows_in",
        "Tuples": "tuples_made",
        "Merged": "merged",
        "Held out": "heldout",
        "Kept": "kept",
        "Passages": "passages",
    }
    for name, receipt in found.items():
        line = lines[name]
        assert {head: number(line[head]) for head in keys} == {head: receipt[key] for head, key in keys.items()}
        assert number(line["Rows"]) - number(line["Unused"]) == receipt["rows_used"]
        dropped = sum(number(line[head]) for head in ("Filtered", "Duplicates", "Contaminated"))
        assert dropped == sum(receipt["dropped"].values())
        assert number(line["Duplicates"]) == receipt["dropped"].get("near_duplicate_query", 0)
        assert line["Task"] == receipt["task"]
        assert line["Licence"].split()[0] == (receipt["license"] or "\u2013")
        for reasons in (receipt["rows_dropped"], receipt["dropped"], receipt["texts_out"]):
            for reason, count in reasons.items():
                assert f"{reason} {count:,}" in read.text[f"source-{name}"]
    for column in (*keys, "Unused", "Filtered", "Duplicates", "Contaminated"):
        assert number(lines["all"][column]) == sum(number(lines[name][column]) for name in found)
    assert number(lines["faq"]["Duplicates"]) == 1


def test_texts_do_not_break_out(whole):
    assert whole.tags.count("script") == 1
    assert not {"img", "topic"} & set(whole.tags)
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c")
    assert shown in whole.text["source-faq"]
    assert shown in whole.text["contamination"]
    assert "Answer <b>boldly</b>" in whole.text["source-faq"]
    assert "<i>topic</i>" in whole.text["labels"]
    assert len(whole.ids) == len(set(whole.ids))


def test_overlaps_and_contamination_are_listed(whole):
    assert whole.tables["overlap"] == [
        ["Sources", "Equal", "Near-duplicate", "Dropped from the second"],
        ["topics · tone", "60,123", "4", "3"],
        ["faq · topics", "1", "\u2013", "0"],
    ]
    assert whole.tables["contamination"][1] == ["Sci<b>Fact", "faq", "1", "0", "0", "2"]
    assert "faq/3 query · Sci<b>Fact e1 query · reported" in whole.text["contamination"]
    assert "faq corpus · Sci<b>Fact e1 query · reported" in whole.text["contamination"]


def test_near_duplicates_are_shown_with_what_differs(whole):
    assert re.search(r"Near-duplicate pairs: [1-9]\d* at or above 0\.8, \d+ just below", whole.text["source-faq"])
    assert re.search(r"Jaccard 0\.\d\d: one group", whole.text["source-faq"])
    assert re.search(r"faq/\d+ for faq/\d+, Jaccard 0\.\d\d\s.{,130}to the bankbridge", whole.text["source-faq"])


def test_same_build_same_bytes_wherever_it_stands(folder, tmp_path):
    build(write_inputs(tmp_path), tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_written_again_only_when_something_changed(tmp_path):
    path = write_inputs(tmp_path)
    build(path, tmp_path / "b")
    page = tmp_path / "b" / "report.html"
    before = page.stat().st_mtime_ns
    build(path, tmp_path / "b")
    assert page.stat().st_mtime_ns == before
    assert not report.write(tmp_path / "b")
    write_shared_tables(tmp_path / "b")
    assert page.stat().st_mtime_ns != before
    path.write_text(MANIFEST.replace("mit", "isc"))
    build(path, tmp_path / "b")
    assert "isc" in Reader(page.read_text()).text["sources"]
    page.unlink()
    build(path, tmp_path / "b")
    assert page.exists()


def test_command_writes_it_and_names_it(folder):
    page = folder / "report.html"
    right = page.read_bytes()
    page.write_text("by hand")
    done = CliRunner().invoke(curate, ["report", str(folder)])
    assert (done.exit_code, done.output) == (0, f"{page}\n")
    assert page.read_bytes() == right


def test_a_manifest_that_was_removed_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b/manifest.yaml").unlink()
    done = CliRunner().invoke(curate, ["report", str(tmp_path / "b")])
    assert str(done.exception) == f"{tmp_path}/b/manifest.yaml: was removed since it was written; run `curate build` again"


def test_failed_sources_are_named_and_one_source_has_no_overlap(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "who?", "a": "she"}\n')
    (tmp_path / "m.yaml").write_text(
        "name: one\nsources:\n"
        "  - {name: good, files: a.jsonl, task: retrieval, fields: {query: q, positive: a}}\n"
        "  - {name: bad, files: none.jsonl, task: retrieval, fields: {query: q, positive: a}}\n"
    )
    outcome = build(tmp_path / "m.yaml", tmp_path / "b")
    read = Reader((tmp_path / "b" / "report.html").read_text())
    assert read.tables["absent"] == [["Source", "What", "Reason"], ["bad", "failed", str(outcome.failed["bad"])]]
    assert "overlap" not in read.ids
    assert [row[0] for row in read.tables["sources"]] == ["Source", "good"]
    assert "Nothing was left out." in read.text["source-good"]


def test_sources_whose_licence_is_not_let_in_are_named(tmp_path):
    build(write_inputs(tmp_path), tmp_path / "b", licenses="permissive")
    read = Reader((tmp_path / "b" / "report.html").read_text())
    assert [row[:2] for row in read.tables["absent"]] == [["Source", "What"], ["tone", "left out"]]
    assert [row[0] for row in read.tables["sources"]] == ["Source", "faq", "topics", "all"]


def test_much_that_is_left_out_is_at_the_head_of_the_page(tmp_path):
    rows = [{"q": f"question number {i}", "a": "x" if i < 4 else f"the answer {i}"} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "m.yaml").write_text(
        "name: one\nfilters: {min_chars: 5}\nsources:\n"
        "  - {name: short, files: a.jsonl, task: retrieval, fields: {query: q, positive: a}}\n"
        "  - {name: whole, files: a.jsonl, task: retrieval, filters: {min_chars: 1}, fields: {query: q, positive: a}}\n"
    )
    build(tmp_path / "m.yaml", tmp_path / "b")
    page = (tmp_path / "b" / "report.html").read_text()
    head = page[page.index("<header>") : page.index("</header>")]
    assert re.findall("<li>(.*?)</li>", head) == ["short: 4 of 10 tuples (40%) are left out: short_positive 4"]


def test_mined_negatives_are_shown_with_origin_and_score(tmp_path):
    made = make(tmp_path, rows=20)
    report.write(made)
    read = Reader((made / "report.html").read_text())
    lines = {line[0]: dict(zip(read.tables["negatives"][0], line, strict=True)) for line in read.tables["negatives"][1:]}
    assert list(lines) == ["faq", "topics", "tone", "nobody", "doubt"]
    for name, line in lines.items():
        origins = read_table(made / "mined" / name, "pairs")["negative_origin"].explode().value_counts()
        counted = {ORIGINS[origin]: count for origin, count in origins.iter_rows()}
        columns = {"Given": "given", "Mined": "mined", "Other class": "class", "Random": "random"}
        assert {columns[head]: number(line[head]) for head in columns} == dict.fromkeys(ORIGINS, 0) | counted
    assert (lines["faq"]["Strategy"], lines["faq"]["Preset"]) == ("search", "f2llm")
    assert re.search(r"mined, score -?\d\.\d\d", read.text["source-faq"])


def test_nothing_built_still_makes_a_page(tmp_path):
    (tmp_path / "m.yaml").write_text(
        "name: none\nsources:\n  - {name: bad, files: none.jsonl, task: retrieval, fields: {query: q, positive: a}}\n"
    )
    build(tmp_path / "m.yaml", tmp_path / "b")
    assert "bad" in Reader((tmp_path / "b" / "report.html").read_text()).text["absent"]


def test_sixty_two_sources_of_long_texts_stay_below_two_megabytes(tmp_path):
    rows = [{"q": f"{i} {LONG}", "a": f"{i} {LONG} {LONG}", "n": [f"{i} {k} {LONG}" for k in range(9)]} for i in range(12)]
    rows += [{"q": "", "a": "x", "n": []}, {"q": "same", "a": "same", "n": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = "{name: s, files: a.jsonl, task: retrieval, max_bad: 0.5, fields: {query: q, positive: a, negatives: n}}"
    (tmp_path / "m.yaml").write_text(f"name: many\nsources:\n  - {source}\n")
    folder = build(tmp_path / "m.yaml", tmp_path / "b").folder
    names = [f"source-{at}" for at in range(62)]
    for name in names:
        shutil.copytree(folder / "curated" / "s", folder / "curated" / name)
    summary = read_json(folder / "build.json")
    summary = {key: value for key, value in summary.items() if key not in ("files", "stages")}  # the tables are made by hand
    write_json(folder / "build.json", {**summary, "sources": dict.fromkeys(names, summary["sources"]["s"])})
    pairs = [(a, b, 10**6, 10**5, 10**5) for at, a in enumerate(names) for b in names[at + 1 :]]
    overlaps = pl.DataFrame(pairs, ["source_a", "source_b", "equal", "near", "dropped"], orient="row")
    write_parquet(folder / "overlaps.parquet", overlaps)
    assert report.write(folder)
    page = (folder / "report.html").read_text()
    assert 500_000 < len(page.encode()) < 2_000_000
    assert "1,000,000 or more" not in page, "the last shade has no end"
    assert "100,000 or more" in page
    assert page.count('<rect class="heat') == 62 * 61 // 2


def test_the_page_is_packaged():
    packaged = tomllib.loads((report.TEMPLATE.parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert packaged["curation.report"] == [report.TEMPLATE.name]


texts = st.text(st.sampled_from("ab cd\n<&>日本é"), max_size=EQUAL_CHARS)


@given(texts, texts)
def test_marks_of_a_comparison_give_both_texts_back(left, right):
    class Sides(HTMLParser):
        inside = None

        def __init__(self):
            super().__init__()
            self.sides = {"del": "", "ins": ""}

        def handle_starttag(self, tag, attrs):
            self.inside = tag if tag in self.sides else None

        def handle_endtag(self, tag):
            self.inside = None

        def handle_data(self, data):
            for side in self.sides:
                self.sides[side] += data if self.inside in (None, side) else ""

    read = Sides()
    read.feed(compared(left, right))
    read.close()
    assert read.sides == {"del": left.strip(), "ins": right.strip()}


def test_long_equal_runs_are_shortened():
    same = "one two three four " * 40
    assert compared(f"{same}red", f"{same}blue") == (
        f'<div class="text" dir="auto"> … {same[-EQUAL_CHARS // 2 :]}<del>red</del><ins>blue</ins></div>'
    )
    assert compared(same, f"{same}more").endswith(f"… {same.strip()[-EQUAL_CHARS // 2 :]}<ins> more</ins></div>")
    assert compared(same, same) == f'<div class="text" dir="auto">{same[:EQUAL_CHARS]} …</div>'


def test_long_texts_fold_and_say_what_is_left_out():
    assert shown("a\u0007b") == '<div class="text" dir="auto">a\\u0007b</div>', "a control character is shown by its number"
    assert shown("short") == '<div class="text" dir="auto">short</div>'
    assert shown("x" * 1500).startswith('<details class="text"><summary dir="auto">xxx')
    assert "… 500 more characters" in shown("x" * 1500)
    assert shown("\n".join("abcdefg")).startswith("<details")


def test_bins_are_powers_of_ten_cut_in_eight():
    counted = figures.length_bins(pl.Series([0, 1, 9, 10, 99, 100, 1000, 10**9]))
    at = {int(place): int(counted[place]) for place in np.flatnonzero(counted)}
    assert at == {0: 1, 7: 1, 8: 1, 15: 1, 16: 1, 24: 1, 47: 1}


def test_records_are_tuples_of_the_build(folder):
    texts = read_table(folder / "curated" / "faq", "passages")["text"]
    pairs = {row["id"]: row for row in read_table(folder / "curated" / "faq", "pairs").to_dicts()}
    for place in range(9):
        shown_rows = sample_records(folder / "curated" / "faq", place, "faq", len(pairs))
        assert len({row["id"] for row in shown_rows}) == 3
        for row in shown_rows:
            pair = pairs[row["id"]]
            assert row["query"] == pair["query"]
            assert row["positives"][0] == texts[pair["positives"][0]]
            assert row["negatives"] == [texts[pid] for pid in pair["negatives"][:3]]
            assert (row["others"], row["more"]) == (len(pair["positives"]) - 1, max(0, len(pair["negatives"]) - 3))


def test_records_and_lengths_of_many_row_groups(folder, tmp_path, monkeypatch):
    whole = folder / "curated" / "faq"
    pairs, passages = read_table(whole, "pairs"), read_table(whole, "passages")
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(samples, "ROWS_PER_GROUP", 4)
    tables.write_table(tmp_path, "pairs", pairs)
    tables.write_table(tmp_path, "passages", passages)
    assert len(list(tables.read_frames(tmp_path, "passages"))) > 4
    assert sample_records(tmp_path, 3, "faq", len(pairs)) == sample_records(whole, 3, "faq", len(pairs))

    lengths = report._lengths(whole)
    assert lengths["text"] == report._lengths(tmp_path)["text"]
    positives = pairs["positives"].explode().unique()
    monkeypatch.setattr(report, "MEASURED", len(positives) - 1)  # every second row group
    some = report._lengths(tmp_path)
    assert some["text"].endswith(" (sampled)")
    some_passages = passages.filter((pl.col("pid") % 8 < 4) & pl.col("pid").is_in(positives.implode()))
    wanted = [pairs["query"].gather([at for at in range(len(pairs)) if at % 8 < 4]), some_passages["text"]]
    for bins, texts in zip(some["bins"], wanted, strict=True):
        assert bins.tolist() == figures.length_bins(texts.str.len_chars()).tolist()


def test_near_pairs_come_from_both_sides_of_the_threshold(folder, tmp_path):
    shutil.copytree(folder / "curated" / "topics", tmp_path / "curated" / "topics")
    keys = read_table(folder / "curated" / "topics", "pairs")["key"].head(8)
    scores = [0.9, 0.8, 0.79, 0.75]
    near = pl.DataFrame({"left": keys[:4], "right": keys[4:], "score": scores})
    write_parquet(tmp_path / "curated" / "topics" / "near.parquet", near)
    found = near_pairs(tmp_path, "topics", no_drops(), 0.8, 7)
    assert (found.above, found.below) == (2, 2)
    assert [(pair.score, pair.verdict) for pair in found.pairs] == list(
        zip(scores, ["one group"] * 2 + ["both stay"] * 2, strict=True)
    )


def test_bars_are_as_wide_as_their_share():
    drawn_bar = figures.flow({"kept": 75, "merged": 25}, "said")
    assert re.findall(r'class="(\w+)" x="([\d.]+)" width="([\d.]+)"', drawn_bar) == [
        ("fate0", "0.00", "120.00"),
        ("fate2", "120.00", "40.00"),
    ]
