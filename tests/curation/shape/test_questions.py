"""Questions of a language model about documents without any, asked of a real server over loopback and of a tiny model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter

import polars as pl
import pytest
import torch
import transformers

import tuplesmith
from curation.build.build import build
from curation.build.check import check
from curation.build.preview import preview
from curation.build.show import dropped_records, reasons_table, records
from curation.core.builds import receipts
from curation.core.errors import ModelError, UserError
from curation.recipe.manifest import load_manifest
from curation.share.publish import plan
from curation.share.verify import problems
from tests.mining.small_build import files_of
from tests.servers.openai_server import chat, error
from tests.training.tiny_models import GROUPED, MINILM, SMALL, tiny_tokenizer
from training.model.generate import PromptTooLong, Writer

ANIMALS = {
    "owl": "barn", "fox": "den", "bee": "hive", "cow": "shed", "hen": "coop", "cat": "basket", "ant": "hill", "eel": "river"
}  # fmt: skip


def animal(prompt):
    return re.findall(r"The (\w+) lives", prompt)[-1]


def good(prompt):
    return f"Where does the {animal(prompt)} live?\nWhich animal is at home in the {ANIMALS[animal(prompt)]}?"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of answers of the test's own, and no key."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path / "cache" / "tuplesmith" / "questions"


def write(folder, queries, names=ANIMALS, more="", source="docs"):
    """Write documents and a manifest."""
    rows = [{"id": name, "text": f"The {name} lives in the {ANIMALS[name]}.", "title": name.title()} for name in names]
    (folder / f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = (
        f"  - name: {source}\n    files: {source}.jsonl\n    task: retrieval\n    license: mit\n    fields: {{positive: text}}\n"
    )
    head = "" if (folder / "m.yaml").exists() else "name: animals\nsources:\n"
    with (folder / "m.yaml").open("a") as file:
        file.write(f"{head}{entry}{more}    queries: {{{queries}}}\n")
    return folder / "m.yaml"


def made(path, out, **more):
    """Build, and return the outcome; a source that fails raises its error."""
    outcome = build(path, out, **more)
    for fault in outcome.failed.values():
        raise fault
    return outcome


def fault_of(path, out):
    with pytest.raises(UserError) as caught:
        made(path, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_documents_become_tuples(tmp_path, cache):
    two = threading.Barrier(2, timeout=20)

    def together(prompt):  # answers no document before another one is asked about
        two.wait()
        return good(prompt)

    with chat(together) as server:
        path = write(tmp_path, f"model: m, url: {server.url}/", more="    holdout: 2\n")
        made(path, tmp_path / "b")
        prompt, body, headers = server.asked[0]
        assert len(server.asked) == len(ANIMALS)
    assert prompt.startswith("Write 2 questions that the document below answers")
    assert prompt.endswith(f"\n\nThe {animal(prompt)} lives in the {ANIMALS[animal(prompt)]}.")
    assert body == {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 256}
    assert "Authorization" not in headers
    receipt = receipts(tmp_path / "b")["docs"]
    assert (receipt["rows_in"], receipt["rows_used"], receipt["tuples_made"]) == (8, 8, 16)
    assert receipt["heldout"] == 2
    assert receipt["kept"] == 16 - 2 - sum(receipt["dropped"].values())
    assert receipt["synthetic"]["model"] == "m"
    first = next(records(tmp_path / "b", [], 1))
    assert re.fullmatch(r"docs/\d/q[12]", first["id"])
    assert first["query"] in good(first["positives"][0]).splitlines()
    assert first["query_origin"] == "synthetic"
    assert not list(problems(tmp_path / "b"))
    assert "docs: synthetic queries: m wrote at most 2 for each document" in reasons_table(receipts(tmp_path / "b"))
    assert "synthetic queries: m wrote at most 2 for each document" in (tmp_path / "b" / "report.html").read_text()
    assert json.loads((tmp_path / "b" / "build.json").read_text())["sources"]["docs"]["synthetic"]["per_document"] == 2
    found = plan(tmp_path / "b", "org/animals", need_lock=False, columns=["provenance"])
    assert "`docs` has synthetic queries: m wrote at most 2 for each document. No person asked them." in found.card
    assert "- synthetic\n" in found.card
    shard = next(piece.content for name, piece in found.pieces.items() if name.endswith(".parquet"))
    assert pl.read_parquet(shard)["query_origin"].unique().to_list() == ["synthetic"]


def test_nothing_is_asked_twice(tmp_path, cache):
    with chat(good) as server:
        path = write(tmp_path, f"model: m, url: {server.url}")
        made(path, tmp_path / "a")
        made(path, tmp_path / "b")
        assert max(Counter(server.prompts()).values()) == 1
        assert len(list(cache.rglob("*.json"))) == len(ANIMALS)
        docs = tmp_path / "docs.jsonl"
        docs.write_text(docs.read_text() + '{"text": "The elk lives in the wood."}\n')
        ANIMALS["elk"] = "wood"
        made(path, tmp_path / "b")
        assert len(server.asked) == len(ANIMALS)
        made(path, tmp_path / "c", limit=3)
        path.write_text(path.read_text().replace(server.url, "http://127.0.0.1:9/v1"))  # where it runs changes nothing
        assert made(path, tmp_path / "b").ran == set()
        made(path, tmp_path / "d")
        assert len(server.asked) == len(ANIMALS)
        del ANIMALS["elk"]
        path.write_text(path.read_text().replace("http://127.0.0.1:9/v1", server.url).replace("model: m", "model: n"))
        made(path, tmp_path / "b", limit=3)
        assert [body["model"] for _, body, _ in server.asked[-3:]] == ["n"] * 3
    for entry in cache.rglob("*.json"):
        entry.write_bytes(entry.read_bytes().replace(b"live", b"LIVE"))
    assert re.match(rf"{cache}/[0-9a-f]+/[0-9a-f]+\.json: ", fault_of(path, tmp_path / "e"))


def test_workers_change_nothing(tmp_path, monkeypatch):
    with chat(good) as server:
        write(tmp_path, f"model: m, url: {server.url}", list(ANIMALS)[:5])
        path = write(tmp_path, f"model: m, url: {server.url}, per_document: 1", list(ANIMALS)[3:], source="more")
        made(path, tmp_path / "one", workers=1)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        made(path, tmp_path / "two", workers=2)
        assert set(Counter(server.prompts()).values()) == {2}
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert {name for name in one if one[name] != two[name]} == {"timings.json"}
    assert receipts(tmp_path / "one")["more"]["texts_out"] == {"question_too_many": 5}


def test_a_killed_build_goes_on_from_the_cache(tmp_path, cache):
    def slowly(prompt):
        time.sleep(0.1)
        return good(prompt)

    with chat(slowly) as server:
        path = write(tmp_path, f"model: m, url: {server.url}, concurrency: 2")
        code = "import sys; from pathlib import Path; from curation.build.build import build; build(Path(sys.argv[1]), Path(sys.argv[2]))"
        process = subprocess.Popen([sys.executable, "-c", code, path, tmp_path / "b"], env={**os.environ, "HF_HUB_OFFLINE": "1"})
        while len(list(cache.rglob("*.json"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        kept = len(list(cache.rglob("*.json")))
        assert 3 <= kept < len(ANIMALS)
        before = len(server.asked)
        made(path, tmp_path / "b")
        assert len(server.asked) - before == len(ANIMALS) - kept  # what was answered when the process was killed is not asked
        made(path, tmp_path / "c")
    names = [name for name in files_of(tmp_path / "b") if "/" in name]
    assert [name for name in names if files_of(tmp_path / "b")[name] != files_of(tmp_path / "c")[name]] == []


def test_what_cannot_be_used_is_dropped_with_its_reason(tmp_path):
    answers = {
        "owl": "Here are two questions:\n\n1. Where does the owl live?\n2) **Who is in the barn?**\n",
        "fox": "- Where does the fox live?\n- where does the FOX live",
        "bee": "1.\nWhat is this about?",
        "cow": "<think>\nWhat?\n</think>\nWhat is this about?\nWho is in the shed?\nWhat more?",
        "hen": "",
        "cat": error(400, "This model's maximum context length is 8 tokens."),
        "ant": {"choices": [{"message": {"content": "Where do ants live?\nWhich anim"}, "finish_reason": "length"}]},
        "eel": {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]},
    }
    with chat(lambda prompt: answers[animal(prompt)]) as server:
        path = write(tmp_path, f"model: m, url: {server.url}")
        docs = tmp_path / "docs.jsonl"
        docs.write_text(docs.read_text() + '{"text": "The owl lives in the barn."}\n{"text": " "}\n')  # one twice, one blank
        path.write_text(path.read_text() + "    max_bad: 0.2\n")
        made(path, tmp_path / "b")
        assert len(server.asked) == 8
    receipt = receipts(tmp_path / "b")["docs"]
    assert receipt["rows_dropped"] == {"empty_positive": 1, "no_question": 2, "refused_by_model": 1}
    assert receipt["dropped"] == {"cut_question": 1, "empty_question": 1, "question_of_several": 2, "repeated_question": 1}
    assert receipt["texts_out"] == {"not_a_question": 2, "question_too_many": 1}  # the owl's answer is used twice
    assert (receipt["rows_in"], receipt["tuples_made"], receipt["merged"], receipt["kept"]) == (10, 12, 2, 5)
    dropped = {
        row["id"]: (row["reason"], row.get("evidence"), row.get("matched_id"))
        for row in dropped_records(tmp_path / "b", [], 9, None)
    }
    assert {id_: row for id_, row in dropped.items() if row[0] != "same_query"} == {
        "docs/1/q2": ("repeated_question", "where does the FOX live", "docs/1/q1"),
        "docs/2/q1": ("empty_question", "1.", None),
        "docs/2/q2": ("question_of_several", "What is this about?", "docs/3/q1"),
        "docs/3/q1": ("question_of_several", "What is this about?", "docs/2/q2"),
        "docs/4": ("no_question", "", None),
        "docs/5": ("refused_by_model", "This model's maximum context length is 8 tokens.", None),
        "docs/6/q2": ("cut_question", "Which anim", None),
        "docs/7": ("no_question", "", None),
        "docs/9": ("empty_positive", "", None),
    }
    queries = {row["query"] for row in records(tmp_path / "b", [], 99)}
    assert queries == {
        "Where does the owl live?",
        "Who is in the barn?",
        "Where does the fox live?",
        "Who is in the shed?",
        "Where do ants live?",
    }


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (error(401, "Incorrect API key provided."), "answers 401 (Incorrect API key provided.); set OPENAI_API_KEY"),
        (error(404, "The model `m` does not exist"), "answers 404 (The model `m` does not exist); check 'url', which mostly ends in /v1, and 'model'"),
        (error(429, "Rate limit reached", **{"Retry-After": "0"}), "answers 429 (Rate limit reached), 4 times in a row; lower 'concurrency', and run the same command again to continue: answers so far are kept"),
        ((500, b"oops\n", {"Retry-After": "0"}), "answers 500 (oops), 4 times in a row; lower 'concurrency', and"),
        ("hang", "does not answer within 0.3 s, 4 times in a row; raise 'timeout' or lower 'concurrency', and"),
        (b"<html>\nwelcome</html>", "answers no chat completion ('<html> welcome</html>'); check 'url', which mostly ends in /v1"),
        (b'{"choices": []}', "answers no chat completion ('{\"choices\": []}')"),
        (error(400, "bad"), "m writes no usable question for any of 2 documents (refused_by_model 2); it says 'bad'; change 'prompt' or 'model'"),
        ("", "m writes no usable question for any of 2 documents (no_question 2); it says 'nothing'"),
        ("What is it?", "m writes no usable question for any of 2 documents (question_of_several 2); it says 'What is it?'"),
    ],
    ids=["key", "model", "rate", "fault", "time", "page", "json", "refused", "empty", "repeated"],
)  # fmt: skip
def test_a_server_at_fault_is_one_line(tmp_path, answer, what):
    with chat(lambda prompt: answer) as server:
        if answer == "hang":
            server.faults, server.answer = ["hang"] * 20, good
        path = write(tmp_path, f"model: m, url: {server.url}, timeout: 0.3", ["owl", "fox"])
        said = fault_of(path, tmp_path / "b")
    assert said.startswith("source 'docs' (queries): ")
    assert what in said


def test_a_server_that_is_busy_for_a_while(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1 ")
    with chat(good) as server:
        server.faults = [error(429, "slow down", **{"Retry-After": "0"}), error(503, "loading", **{"Retry-After": "0"})]
        path = write(tmp_path, f"model: m, url: {server.url}, concurrency: 1", ["owl", "fox"])
        made(path, tmp_path / "b")
        assert len(server.asked) == 4
        assert {headers["Authorization"] for _, _, headers in server.asked} == {"Bearer sk-1"}
    assert "answers 429 (slow down); trying again in 0 s" in caplog.text
    assert receipts(tmp_path / "b")["docs"]["kept"] == 4
    assert all(b"sk-1" not in content for content in files_of(tmp_path).values())


def test_no_server(tmp_path):
    with chat(good) as server:
        path = write(tmp_path, f"model: m, url: {server.url}")
    assert re.search(r"cannot be reached \(ConnectError\); start the server, or check 'url'$", fault_of(path, tmp_path / "b"))


def test_no_address(tmp_path):
    path = write(tmp_path, "model: m, url: 'http://x:y/v1'", ["owl"])
    assert re.match(
        r"source 'docs' \(queries\): http://x:y/v1/chat/completions is not an address ", fault_of(path, tmp_path / "b")
    )


def test_half_of_a_surrogate_pair(tmp_path):
    half = b'{"choices": [{"message": {"content": "Where does the owl live \\ud83d?"}, "finish_reason": "stop"}]}'
    refused = (400, b'{"error": "no \\ud83d"}', {})
    with chat(lambda prompt: half if animal(prompt) == "owl" else refused) as server:
        path = write(tmp_path, f"model: m, url: {server.url}", ["owl", "fox"])
        made(path, tmp_path / "b")
        made(path, tmp_path / "c", limit=1)
    assert [row["query"] for row in records(tmp_path / "b", [], 9)] == ["Where does the owl live \ufffd?"]
    assert [row["evidence"] for row in dropped_records(tmp_path / "b", [], 9, None)] == ["no \ufffd"]


def test_all_are_refused_after_a_few(tmp_path):
    ANIMALS.update({f"gnu{n}": "plain" for n in range(60)})
    try:
        with chat(lambda prompt: error(400, "no")) as server:
            path = write(tmp_path, f"model: m, url: {server.url}, concurrency: 1")
            assert "m refuses each of the first 20 documents (no); check 'model'" in fault_of(path, tmp_path / "b")
            assert len(server.asked) <= 22
    finally:
        for n in range(60):
            del ANIMALS[f"gnu{n}"]


def test_what_asks_nobody(tmp_path):
    with chat(good) as server:
        path = write(tmp_path, f"model: m, url: {server.url}")
        lines = []
        preview(path, [], None, lines.append)
        found = check(path, confined=True)
        assert lines[0] == "docs: retrieval, shape documents, columns id, text, title"
        assert lines[1] == f"  a build asks m at {server.url} about each document; of the first one:"
        assert "The owl lives in the barn." in lines[2]
        assert found["notes"] == [f"source 'docs': a build asks m at {server.url} about each document"]
        refused = f"source 'docs': reads '{server.url}', outside of the manifest's folder; `--confined` reads nothing there"
        assert str(build(path, tmp_path / "b", confined=True).failed["docs"]) == refused
        assert server.asked == []


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("    queries: {url: 'http://x/v1'}\n", "m.yaml:7: 'model' is missing in sources[0].queries"),
        ("    queries: {model: m, promt: x}\n", "m.yaml:7: unknown key 'promt' (did you mean 'prompt'?)"),
        ("    queries: {model: m, prompt: x}\n", "m.yaml:7: 'prompt' needs {document}, the place of the document"),
        ("    queries: {model: m, url: 'http://u:p@x/v1'}\n", "m.yaml:7: 'url' must begin with http:// or https:// and hold no password; a key belongs into OPENAI_API_KEY"),
        ("    queries: {model: m, per_document: two}\n", "m.yaml:7: sources[0].queries.per_document: 'two' is not a whole number"),
        ("    queries: {model: m}\n    by_id: yes\n", "m.yaml:3: 'by_id' has no effect: the columns in 'fields' make this a source of shape 'documents'"),
        ("    queries: {files: q.jsonl, model: m}\n", "m.yaml:7: unknown key 'model'"),
        ("    queries: m\n", "m.yaml:7: sources[0].queries: 'm' is not a set of keys"),
    ],
)  # fmt: skip
def test_wrong_keys(tmp_path, more, what):
    path = tmp_path / "m.yaml"
    path.write_text(
        "name: x\nsources:\n  - name: docs\n    files: d.jsonl\n    task: retrieval\n    fields: {positive: text}\n" + more
    )
    with pytest.raises(UserError) as caught:
        load_manifest(path)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(what)


def test_other_mapped_columns(tmp_path):
    path = tmp_path / "m.yaml"
    for fields, task, what in (
        ("positive: text, query: q", "retrieval", "map 'positive', the text, and no 'query'"),
        ("positive: text, label: l", "retrieval", "'label' has no effect"),
        ("positive: text", "clustering", "'queries' makes questions for retrieval only, and this source's task is clustering"),
    ):
        path.write_text(
            f"name: x\nsources:\n  - {{name: d, files: d.jsonl, task: {task}, fields: {{{fields}}}, queries: {{model: m}}}}\n"
        )
        with pytest.raises(UserError) as caught:
            load_manifest(path)
        assert what in str(caught.value)


def test_titles_ids_and_the_prompt(tmp_path):
    with chat(good) as server:
        queries = f'model: m, url: {server.url}, max_chars: 25, prompt: "{{per_document}} of {{document}} {{x}}"'
        path = write(tmp_path, queries, ["owl"])
        path.write_text(path.read_text().replace("{positive: text}", "{positive: text, title: title, id: id}"))
        made(path, tmp_path / "b")
        assert server.prompts() == ["2 of Owl\nThe owl lives in the  {x}"]
    found = list(records(tmp_path / "b", [], 9))
    assert [row["id"] for row in found] == ["docs/owl/q1", "docs/owl/q2"]
    assert found[0]["positives"] == ["Owl\nThe owl lives in the barn."]


def test_questions_of_another_document_are_dropped_by_their_rank(tmp_path):
    """The filter of consistency: a question stays if its document is the nearest one."""

    def mixed(prompt):  # the question about the fox is one about the hen
        return "In which coop does a hen sleep?" if animal(prompt) == "fox" else f"Where does the {animal(prompt)} live?"

    with chat(mixed) as server:
        path = write(tmp_path, f"model: m, url: {server.url}, per_document: 1")
        mine = (
            f"mine: {{model: '{MINILM}', negatives: 2, range_min: 0, max_score: null, relative_margin: null, positive_rank: 1}}\n"
        )
        path.write_text(path.read_text() + mine)
        mined = tuplesmith.mine(tuplesmith.build(path, out=tmp_path / "b"))
    assert mined.tuples("docs")["query"].to_list() == [f"Where does the {name} live?" for name in ANIMALS if name != "fox"]
    dropped = pl.read_parquet(tmp_path / "b" / "mined" / "docs" / "dropped.parquet").to_dicts()
    assert [(row["id"], row["reason"]) for row in dropped] == [("docs/1/q1", "positive_rank")]
    assert re.fullmatch(r"\d passages score higher; 1 may not", dropped[0]["evidence"])


# ---- a model on this machine ----


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A random language model that ends answers with a token that it does write."""
    folder = tmp_path_factory.mktemp("writer") / "llama"
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**SMALL | GROUPED | {"max_position_embeddings": 256})
    model = transformers.AutoModelForCausalLM.from_config(config)
    tokenizer = tiny_tokenizer(decoder=True)
    ids = torch.tensor([tokenizer("The owl lives in the barn.")["input_ids"]])
    written = model.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, ids.shape[1] :]
    model.generation_config.eos_token_id = [0, int(written[-1])]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_answers_are_those_of_transformers(writer):
    model, tokenizer = (
        transformers.AutoModelForCausalLM.from_pretrained(writer),
        transformers.AutoTokenizer.from_pretrained(writer),
    )
    ours = Writer(str(writer))
    ends = []
    for prompt in ("The owl lives in the barn.", "one", "rates rise again as banks wait"):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        theirs = model.generate(ids, do_sample=False, max_new_tokens=20, pad_token_id=0)[0, ids.shape[1] :].tolist()
        ended = theirs[-1] in model.generation_config.eos_token_id
        text, whole = ours.answer(prompt, 20, 100)
        assert (text, whole) == (tokenizer.decode(theirs[: len(theirs) - ended], skip_special_tokens=True), ended)
        ends.append(ended)
    assert True in ends
    with pytest.raises(PromptTooLong, match="reads 256 tokens; the prompt has "):
        ours.answer("one " * 300, 20, 2)
    with pytest.raises(ModelError, match="writes no text: its weights lack cls.predictions"):
        Writer(MINILM)


def test_a_model_on_this_machine(tmp_path, writer, cache):
    path = write(tmp_path, f"model: {writer}, prompt: '{{document}}', max_tokens: 40, per_document: 3")
    made(path, tmp_path / "b")
    receipt = receipts(tmp_path / "b")["docs"]
    assert receipt["kept"] >= 1
    assert "queries/model" in receipt["inputs"]
    first = next(records(tmp_path / "b", [], 1))
    number = int(first["id"].split("/")[1])
    text, _ = Writer(str(writer)).answer(f"The {list(ANIMALS)[number]} lives in the {list(ANIMALS.values())[number]}.", 40, 3)
    assert first["query"] in text
    before = files_of(tmp_path / "b")
    assert made(path, tmp_path / "b").ran == set()
    for entry in cache.rglob("*.json"):
        entry.unlink()
    made(path, tmp_path / "c")
    assert {name for name, content in files_of(tmp_path / "c").items() if before[name] != content} == {"timings.json"}
    path.write_text(path.read_text().replace("max_tokens: 40", "max_tokens: 400"))
    assert "(refused_by_model 8); it says 'reads 256 tokens; the prompt has" in fault_of(path, tmp_path / "d")
    path.write_text(path.read_text().replace(str(writer), str(tmp_path / "none")))
    assert fault_of(path, tmp_path / "d") == f"{tmp_path / 'none'}: no such folder; give a folder, a Hub id, or package:NAME"
