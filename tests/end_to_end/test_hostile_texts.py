"""Escape sequences, markup and links in texts of unknown origin: shown where they are printed, and without effect."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from curation.build import attribution
from curation.cli import curate
from curation.core import progress as progressing
from curation.core.card import head_of, with_yaml
from curation.core.console import output, say
from curation.core.escape import as_code, as_html, as_link, as_markdown, markdown_table, visible
from curation.recipe.manifest import Manifest, load_manifest
from curation.recipe.settings import Mine
from curation.report import page
from curation.share.dataset_card import dataset_card
from mining.show import as_text as tuple_as_text
from tests.curation.report.report_build import MANIFEST, write_inputs, write_shared_tables
from training import publish as publishing
from training import report as run_report

ATTACKS = (
    "\x1b[2J\x1b[31mred\x1b[0m \x9b31m \x1b]0;title\x07 \x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "nul \x00, bell \x07, backspaces \x08\x08\x08, carriage\rreturn, delete \x7f",
    "user\u202egnp.exe \u2066isolated\u2069 \u200fmark \u2028line\u2029paragraph \ufeffmark",
    "<script>alert(1)</script><img src=x onerror=alert(1)><a href='javascript:alert(1)'>x</a>",
    "[mit](javascript:alert(1)) ![x](https://evil.example/x.png) <javascript:alert(1)> [x]: javascript:alert(1)",
    "```\n</pre><script>alert(1)</script>\n```\n\n# head\n\n- list\n\n    code\n\n---\n",
    "a | b |\n| --- | --- |\n| c | d |\n",
    "` `` ``` ~~~ *em* __strong__ ~~gone~~ $x$ &lt;b&gt; &#60;b&#62; <!-- comment --> <b>",
    "\\[x](javascript:alert(1)) \\\\[x](javascript:alert(1)) \\`<b>\\` \\\\\\<b>",
    '"><script>alert(1)</script> \' onmouseover=alert(1) x="',
    "https://evil.example www.evil.example evil@evil.example mailto:evil@evil.example",
    "[red]rich[/red] {0} {x!r} ${state} $title %s",
)
CONTROLS = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x61C, 0x200E, 0x200F, 0xFEFF)} | {
    chr(code) for span in ((0x2028, 0x202F), (0x2066, 0x2070), (0xD800, 0xE000)) for code in range(*span)
}
HOSTILE = st.lists(st.sampled_from(ATTACKS) | st.text(st.characters(), max_size=9), max_size=3).map(" ".join) | st.text(
    st.sampled_from("\\`*_[]()<>&|~$@!#+-=.:/ \n\t\r\x1b\u202eaw1"), max_size=30
)
PLAIN = {"text", "code_inline", "softbreak", "hardbreak"}


def inline(markdown: str) -> tuple[set[str], list[str], str]:
    """Return the kinds of what is in a page, its addresses, and its text."""
    kinds, addresses, text = set[str](), list[str](), []
    for block in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        kinds.add(block.type)
        text += [block.content] if block.type in ("fence", "code_block", "html_block") else []
        for token in block.children or ():
            kinds.add(token.type)
            addresses += [str(value) for key, value in token.attrs.items() if key in ("href", "src")]
            text += [token.content]
    return kinds, addresses, "".join(text)


def collapsed(text: str) -> str:
    return " ".join(visible(text).split())


@given(HOSTILE)
def test_what_is_printed_holds_no_control_character_and_says_all(text):
    shown = visible(text)
    assert not CONTROLS & set(shown)
    assert json.loads(visible(json.dumps(text, ensure_ascii=False))) == text, "JSON still means the same"
    if not CONTROLS & set(text):
        assert shown == text


@given(HOSTILE)
@example("1 #")
@example("a b ###")
@example("#######")
def test_a_text_in_markdown_is_a_text(text):
    for markdown in (f"- name: {as_markdown(text)}", f"# {as_markdown(text)}", as_markdown(text), f"- {as_markdown(text)}"):
        kinds, addresses, said = inline(markdown)
        assert kinds <= PLAIN | {
            "inline", "paragraph_open", "paragraph_close", "heading_open", "heading_close", "bullet_list_open",
            "bullet_list_close", "list_item_open", "list_item_close",
        }  # fmt: skip
        assert not addresses
        assert said.strip() in (f"name: {collapsed(text)}".strip(), collapsed(text))
    assert "\n" not in as_markdown(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-11-22", "2026-11-22"), ("-5 degrees", "-5 degrees"), ("#1", "#1"), ("1.5", "1.5"), ("C#", "C#"), ("+1", "+1"),
        ("# head", "\\# head"), ("- item", "\\- item"), ("-", "\\-"), ("---", "\\---"), ("==", "\\=="), ("7. item", "7\\. item"),
    ],
)  # fmt: skip
def test_only_what_would_be_markup_is_escaped(text, shown):
    assert as_markdown(text) == shown


@given(HOSTILE)
def test_code_in_markdown_is_code(text):
    kinds, addresses, said = inline(as_code(text))
    assert (kinds, addresses) in (({"inline", "paragraph_open", "paragraph_close", "code_inline"}, []), (set(), []))
    assert said.strip() == collapsed(text)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_a_table_has_its_rows_and_cells_and_no_more(one, two, three):
    page = markdown_table(("a", "b", "c"), [(one, as_code(two), as_link(three, "https://example.org"))])
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    cells = [token for token, before in zip(tokens[1:], tokens, strict=False) if before.type == "td_open"]
    assert len(page.splitlines()) == 3
    assert len(cells) == 3
    assert [token.type for token in tokens if token.nesting == 0] == ["inline"] * 6
    assert "".join(part.content for part in cells[0].children or ()).strip() == collapsed(one)
    assert {part.type for cell in cells[:2] for part in cell.children or ()} <= {"text", "code_inline"}
    assert [part.attrs["href"] for part in cells[2].children or () if part.type == "link_open"] == ["https://example.org"]


@pytest.mark.parametrize("start", ["", "https://", "http://example.org/", "javascript:", "data:text/html,", "//", "vbscript:"])
@given(text=HOSTILE)
def test_only_addresses_of_the_web_become_links(start, text):
    kinds, addresses, _ = inline(as_link("label", start + text))
    assert all(address.startswith(("http://", "https://")) for address in addresses)
    assert len(addresses) <= 1
    assert not kinds & {"image", "html_inline", "html_block"}
    assert bool(addresses) or not (start + text).startswith("http://example.org")


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def links(self) -> set[str]:
        return {
            str(value) for key, value in self.attributes if key in ("href", "src") and not str(value).startswith(("#", "data:,"))
        }

    def scripts(self) -> set[str]:
        return {key for key, _ in self.attributes if key.startswith("on")}


@given(HOSTILE)
def test_a_text_in_html_is_a_text(text):
    read = Page(f'<p title="{as_html(text)}">{as_html(text)}</p>')
    assert read.tags == ["p"]
    assert dict(read.attributes)["title"] == visible(text)
    assert not CONTROLS & set(as_html(text))


@pytest.mark.parametrize("print_it", [say, output])
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_two_ways_to_print_are_safe(attack, print_it, capsys):
    print_it(attack)
    shown = "".join(capsys.readouterr())
    assert shown == visible(attack) + "\n"
    assert not CONTROLS & set(shown)


def test_progress_shows_markup_and_escapes(monkeypatch, capsys):
    import rich.console

    shown = io.StringIO()
    console = rich.console.Console(file=shown, force_terminal=True, width=200)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    with progressing.bar("[red]source\x1b[2J", 1, "[b]texts") as advance:
        advance(1)
    text = shown.getvalue()
    assert "[red]source\\u001b[2J" in text
    assert "[b]texts" in text
    monkeypatch.setattr(progressing, "SECONDS_BETWEEN_LINES", 0)
    with progressing.lines("\x1b[2J", 1, "texts") as advance:
        advance(1)
    assert capsys.readouterr().err.startswith("\\u001b[2J: 1 of 1 texts")


ATTACK = " ".join(ATTACKS)
WORDS = ATTACK.replace("\0", "")  # a manifest may not hold it


def hostile_manifest(folder: Path) -> Path:
    """Write a manifest whose every free text is an attack, and its inputs."""
    rows = [
        {WORDS: f"{ATTACK} question {number}", "p": f"{ATTACK} answer {number}", "n": f"{ATTACK} no {number}"}
        for number in range(6)
    ]
    rows += [{WORDS: ATTACK, "p": ATTACK, "n": "x"}, {WORDS: f"{ATTACK} " * 99, "p": "too long", "n": "x"}]
    labels = [{"text": f"{ATTACK} {number}", "label": f"{ATTACK}{number % 2}"} for number in range(6)]
    name = "".join(sign for sign in ATTACKS[3] if sign not in "/\x00")
    for file, some in ((f"{name}.jsonl", rows), ("labels.jsonl", labels)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in some))
    described = {
        "license": WORDS, "license_url": "javascript:alert(1)", "notes": WORDS, "citation": WORDS, "substitute_for": WORDS,
        "instruction": WORDS, "language": "en", "verified": False,
    }  # fmt: skip
    sources = [
        {
            "name": "one",
            "files": "[<]script*.jsonl",
            "task": "retrieval",
            "fields": {"query": WORDS, "positive": "p", "negatives": "n"},
        },
        {"name": "two", "files": "labels.jsonl", "task": "classification", "fields": {"query": "text", "label": "label"}},
        {"name": "gone", "files": f"{name}.nowhere.jsonl", "task": "retrieval", "fields": {"query": "q", "positive": "p"}},
    ]
    manifest = {
        "name": "hostile",
        "filters": {"no_echo": False, "max_chars": 20_000},
        "sources": [described | source for source in sources],
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(manifest))
    return folder / "m.yaml"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    done = CliRunner().invoke(curate, ["build", str(hostile_manifest(folder)), "-o", str(folder / "out"), "-j", "1"])
    assert "source" in done.output, done.exception
    return folder / "out", done.output


def test_commands_print_no_control_character(hostile):
    build, built = hostile
    calls = [
        ["show"],
        ["show", "--json"],
        ["show", "--dropped"],
        ["stats"],
        ["stats", "--json"],
        ["show", "-n", "9", "--only", "two"],
    ]
    printed = [built]
    for what, *more in calls:
        done = CliRunner().invoke(curate, [what, str(build), *more])
        assert done.exit_code == 0, done.output
        printed.append(done.output)
    manifest = str(build.parent / "m.yaml")
    for arguments in (["build", "--dry-run"], ["check"], ["check", "--json"]):
        done = CliRunner().invoke(curate, [*arguments, manifest])
        printed += [done.output, str(done.exception or "")]
    assert [CONTROLS & set(text) for text in printed] == [set()] * len(printed)
    assert "\\u001b[2J\\u001b[31mred" in printed[1]
    assert json.loads(printed[2].splitlines()[0])["query"].endswith(f"{ATTACK} question 0")


def test_the_report_and_the_attribution_of_a_hostile_manifest_do_nothing(hostile):
    build, _ = hostile
    html = (build / "report.html").read_text(encoding="utf-8")
    read = Page(html)
    assert read.tags.count("script") == 1  # the page's own
    assert not {"img", "iframe", "object", "form"} & set(read.tags)
    assert not read.links()
    assert not read.scripts()
    assert not CONTROLS & set(html)
    markdown = (build / "ATTRIBUTION.md").read_text(encoding="utf-8")
    kinds, addresses, text = inline(markdown)
    assert not kinds & {"image", "html_inline", "html_block", "fence", "code_block", "hr"}
    assert not addresses
    assert not CONTROLS & set(markdown)
    assert collapsed(WORDS) in text
    assert [line for line in markdown.splitlines() if line.startswith("#")] == [
        "# Attribution: hostile", "## Cite", "## In place of another dataset", "## To know"
    ]  # fmt: skip


def test_the_card_of_a_hostile_manifest_does_nothing(hostile):
    build, _ = hostile
    manifest = load_manifest(build / "manifest.yaml")
    summary = json.loads((build / "build.json").read_text())
    receipts = {name: json.loads((build / "curated" / name / "done.json").read_text()) for name in summary["sources"]}
    made = {
        name: {
            "rows": 1, "bytes": 1, "negatives": 1, "features": [{"name": "query", "dtype": "string"}] * 3, "shards": {},
            "left_out": {ATTACK: 1}, "positives_left_out": 1, "curated": receipt | {"revision": ATTACK},
            "mined": {
                "strategy": "search", "kept": 1, "dropped": {ATTACK: 1}, "encoder": {"model": ATTACK},
                "settings": Mine(model=ATTACK, reranker=ATTACK, reranker_max_score=1).model_dump(),
            },
        }
        for name, receipt in receipts.items()
    }  # fmt: skip
    sources = {source.name: source for source in manifest.sources}
    evaluation = ([ATTACK, ATTACK[1:]], {"mode": "drop", "tasks": {ATTACK: {name: {"query": 1} for name in made}}})
    row = {"query": ATTACK, "passage": ATTACK, "positives": [ATTACK]} | {f"negative_{i + 1}": ATTACK for i in range(3)}
    card = dataset_card("org/small", ATTACK, sources, summary["sources"], made, {"gone": ATTACK}, ["one"], row, evaluation, [])
    head = head_of(card)
    assert head["license_name"] == "mixture"
    body = card.split("---\n", 2)[2]
    kinds, addresses, text = inline(body)
    assert not kinds & {"image", "html_inline", "html_block", "code_block", "hr"}
    assert not addresses
    assert not CONTROLS & set(card)
    assert collapsed(ATTACK) in text


def test_links_to_where_a_licence_is_claimed_stay():
    entry = {"license": "cc-by-4.0 | (new)", "revision": "", "license_class": "permissive", "tuples": 1}
    source = Manifest.model_validate(
        {
            "name": "m",
            "sources": [
                {
                    "name": "s", "path": "org/[data](javascript:alert(1))", "task": "retrieval", "license": "cc-by-4.0",
                    "license_url": "https://example.org/a_(b)?c=1|2", "fields": {"query": "q", "positive": "p"},
                }
            ],
        }
    ).sources[0]  # fmt: skip
    entry |= {"license_url": source.license_url}
    kinds, addresses, _ = inline(attribution.sources_table([source], {"s": entry}))
    assert "td_open" in kinds
    assert addresses == [
        "https://huggingface.co/datasets/org/%5Bdata%5D%28javascript:alert%281%29%29",
        "https://example.org/a_%28b%29?c=1%7C2",
    ]


@given(HOSTILE, HOSTILE)
def test_the_yaml_of_a_card_means_what_was_written(key, value):
    whole = with_yaml({"pretty_name": value, "tags": [key, value]}, "body\n")
    assert not CONTROLS & set(whole)
    assert yaml.safe_load(whole.split("---\n")[1] if whole.count("---\n") == 2 else whole.partition("---\n")[2].rpartition("\n---\n")[0]) == {
        "pretty_name": value, "tags": [key, value]
    }  # fmt: skip


def test_the_card_and_the_report_of_a_hostile_run_do_nothing(tmp_path):
    model, run = tmp_path / "run" / "model", tmp_path / "run"
    (model / "1_Pooling").mkdir(parents=True)
    files = {
        "config_sentence_transformers.json": {"prompts": {ATTACK: ATTACK, 'x"]); print("': "x"}},
        "1_Pooling/config.json": {"embedding_dimension": 4, "pooling_mode": ATTACK},
        "sentence_bert_config.json": {"max_seq_length": 16},
    }
    for name, value in files.items():
        (model / name).write_text(json.dumps(value))
    receipt = {
        "recipe": {"model": f"org/{ATTACK}", "note": ATTACK}, "steps": 3, "prompt": "none",
        "trained_on": {ATTACK: {"task": ATTACK, "tuples": 3, "license": ATTACK}, 'x"]); print("': {"task": "x", "tuples": 1, "license": ""}},
    }  # fmt: skip
    card = publishing._card(model, "org/small", receipt, "mit", ())
    kinds, addresses, _ = inline(card.split("---\n", 2)[2])
    assert not kinds & {"image", "html_inline", "html_block", "code_block"}
    assert not addresses
    assert not CONTROLS & set(card)
    fences = [block.content for block in MarkdownIt().parse(card.split("---\n", 2)[2]) if block.type == "fence"]
    assert len(fences) == 2
    compile(fences[0], "card", "exec")
    assert yaml.safe_load(fences[1])["train"]["note"] == ATTACK
    line = {
        "step": 0,
        "loss": 1.0,
        "source": ATTACK,
        "lr": 1.0,
        "grad_norm": 1.0,
        "tokens": 1,
        "seconds": 1.0,
        "tokens_per_second": 1.0,
    }
    (run / "log.jsonl").write_text(json.dumps(line) + "\n")
    html = run_report.write_report(run).read_text(encoding="utf-8")
    read = Page(html)
    assert not {"script", "img"} & set(read.tags)
    assert not read.links()
    assert not read.scripts()
    assert not CONTROLS & set(html)


def test_the_report_of_a_build_with_hostile_rows_does_nothing(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "m.yaml").write_text(MANIFEST)
    done = CliRunner().invoke(curate, ["build", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "out"), "-j", "1", "-q"])
    write_shared_tables(tmp_path / "out")
    page.write(tmp_path / "out", again=True)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert Page(html).tags.count("script") == 1, done.output
    assert not CONTROLS & set(html)


def test_mined_tuples_are_shown_safely():
    row = {
        "id": ATTACK, "query": ATTACK, "positives": [ATTACK], "positive_score": 0.5,
            "positive_rank": 0, "positive_origin": ["given"], "positive_reranked": [None],
        "negatives": [(ATTACK, 0.4, 1, "mined")],
    }  # fmt: skip
    for whole in (False, True):
        shown = visible(tuple_as_text(row, whole))
        assert not CONTROLS & set(shown)
        if not whole:
            assert all(len(line) <= 80 for line in tuple_as_text(row, whole).splitlines()[1:])
