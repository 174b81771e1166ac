"""Queries that a language model writes for documents without any: `queries: {model: NAME, url: ADDRESS, per_document: 2}`.

    rows   text                                 tuples  id         query                           positives
    0      "Oak trees bear acorns. ..."                 help/0/q1  "What do oak trees bear?"       ["Oak trees bear acorns. ..."]
                                                        help/0/q2  "When do acorns fall?"          ["Oak trees bear acorns. ..."]

The model answers with a question per line. Each answer is kept in the user's cache under the digest of model, prompt and
document, so nothing is asked twice, by whatever build. A question that documents with different texts get is dropped from all
of them: nobody can say which document it is about.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import polars as pl

from curation.core.errors import SetupError, SourceError, first_line
from curation.core.escape import visible
from curation.core.hub import BUSY, LONGEST_WAIT, http_library
from curation.core.progress import Progress
from curation.core.record import dropped_frame
from curation.core.store import atomic, digest_of, read_json, sealed, user_cache
from curation.core.text import normalised
from curation.read.rows import ROW
from curation.read.stores import at_once
from curation.recipe.source import Questions, Source
from curation.shape.columns import EVIDENCE_CHARS, SHOWN, TUPLES, Tuples, place_of, reason_counts, row_ids, text_column, titled

KEY = "OPENAI_API_KEY"
WAITS = (1, 2, 4)  # seconds between tries of a busy server
REFUSED = (400, 413, 422)  # HTTP status codes that concern one document, such as one that is too long
REFUSED_MOST = 20  # documents, after which a server that has answered none is asked no more
KEPT = "run the same command again to continue: answers so far are kept"
NUMBERING = re.compile(r"^(?:[-*•]|\(?(?:Q|Question)?\s*\d+\s*[.:)])\s*", re.IGNORECASE)  # of a list in an answer
Answer = dict[str, Any]  # `answer`, `whole`: not cut at its end; or `refused`: why


def ask(source: Source, rows: pl.DataFrame, progress: Progress) -> Tuples:
    """Return a tuple for each question that the model of a source writes about its documents.

    Raises:
        SourceError: the server cannot be asked, or no question can be used.
        ModelError: the model on this machine cannot be used.
    """
    asked, where, out = source.queries, f"{place_of(source)} (queries)", Counter[str]()
    assert isinstance(asked, Questions)
    texts = documents_of(source, rows)
    prompts = [prompt_of(asked, text) if text is not None else None for text in texts]
    todo = list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))
    answers = _answers(where, asked, todo, progress)

    # a line of an answer is a question; those without a reason become tuples
    lost: list[tuple[str, str, str]] = []  # rows in no tuple: id, reason, evidence
    found: list[tuple[int, str, str, str, str | None]] = []  # row, id, question, document, reason
    for row, id_, text, prompt in zip(rows[ROW], row_ids(source, rows), texts, prompts, strict=True):
        answer = answers[prompt] if prompt is not None else {}
        if prompt is None or "refused" in answer:
            lost.append((id_, "refused_by_model" if answer else "empty_positive", answer.get("refused", "")))
            continue
        lines = [line.strip() for line in answer["answer"].rpartition("</think>")[2].splitlines() if line.strip()]
        cut = lines.pop() if lines and not answer["whole"] else None
        out["not_a_question"] += sum(line.endswith(":") for line in lines)  # such as "Here are two questions:"
        lines = [line for line in lines if not line.endswith(":")]
        out["question_too_many"] += len(lines[asked.per_document :])
        bare = [NUMBERING.sub("", line.strip("*")).strip(' *"“”') for line in lines[: asked.per_document]]
        kinds = [(text or line, None if text else "empty_question") for text, line in zip(bare, lines, strict=False)]
        if cut is not None:  # at `max_tokens`
            kinds.append((cut, "cut_question"))
        if not kinds:
            lost.append((id_, "no_question", answer["answer"]))
        for number, (line, reason) in enumerate(kinds, 1):
            found.append((row, f"{id_}/q{number}", line, text, reason))

    # the same question again: of one document the first stays, of several documents none does
    names = {"row": pl.UInt64, "id": pl.String, "query": pl.String, "text": pl.String, "reason": pl.String}
    frame = pl.DataFrame(found, names, orient="row")
    forms = [normalised(frame[name]).fill_null(frame[name]).alias(f"{name}_form") for name in ("query", "text")]
    good = frame.with_columns(*forms).filter(pl.col("reason").is_null())
    documents = pl.col("text_form").n_unique().over("query_form")
    first = pl.col("id").first().over("query_form")
    again = (documents == 1) & (pl.int_range(pl.len()).over("query_form", "row") > 0)
    good = good.with_columns(
        pl.when(documents > 1).then(pl.lit("question_of_several")).when(again).then(pl.lit("repeated_question")).alias("reason"),
        pl.when(first != pl.col("id")).then(first).otherwise(pl.col("id").last().over("query_form")).alias("matched_id"),
    )
    bad = frame.filter(pl.col("reason").is_not_null()).with_columns(matched_id=pl.lit(None, pl.String))
    bad = pl.concat([bad, good.filter(pl.col("reason").is_not_null()).select(bad.columns)]).sort("row", maintain_order=True)
    poor = dropped_frame(
        source.name, "ask", bad["id"], bad["reason"], bad["query"].str.slice(0, EVIDENCE_CHARS), bad["matched_id"]
    )
    lines_lost = pl.DataFrame(lost, {"id": pl.String, "reason": pl.String, "evidence": pl.String}, orient="row")
    shown = lines_lost["evidence"].str.slice(0, EVIDENCE_CHARS)
    dropped = dropped_frame(source.name, "ask", lines_lost["id"], lines_lost["reason"], shown)
    good = good.filter(pl.col("reason").is_null()).with_columns(
        pl.concat_list("text").alias("positives"),
        pl.lit([], dtype=pl.List(pl.String)).alias("negatives"),
        pl.lit(None, pl.String).alias("label"),
    )
    if not len(good) and todo:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in reason_counts(pl.concat([dropped, poor])).items())
        first_answer = answers[todo[0]].get("refused") or answers[todo[0]].get("answer") or "nothing"
        what = f"{asked.model} writes no usable question for any of {len(rows):,} documents ({reasons})"
        hint = f"it says '{visible(' '.join(first_answer.split()))[:SHOWN]}'; change 'prompt' or 'model'"
        raise SourceError(where, what, hint)
    counts = {reason: count for reason, count in out.items() if count}
    nothing = pl.Series("text", [], dtype=pl.String)
    tuples = good.select(TUPLES.names()).cast(TUPLES)
    return Tuples(tuples, dropped, nothing, source.instruction, texts_out=counts, poor=poor)


def documents_of(source: Source, rows: pl.DataFrame) -> pl.Series:
    """Return the texts of the documents, each after its title if there are titles; null if blank."""
    assert source.fields.positive is not None
    return titled(source, rows, text_column(source, rows, source.fields.positive))


def prompt_of(asked: Questions, text: str) -> str:
    """Return what the model is asked about a document."""
    prompt = asked.prompt.replace("{per_document}", str(asked.per_document))
    return prompt.replace("{document}", text[: asked.max_chars])


def _answers(where: str, asked: Questions, prompts: list[str], progress: Progress) -> dict[str, Answer]:
    """Return the model's answer to each prompt, from the cache or asked now."""
    model: object = asked.model
    if not asked.url:
        from training.model.files import find_model

        model = find_model(asked.model).digests()
    digests = {one: digest_of([model, asked.per_document, asked.max_tokens, one]) for one in prompts}
    paths = {prompt: user_cache() / "questions" / digest[:2] / f"{digest}.json" for prompt, digest in digests.items()}
    found: dict[str, Answer] = {prompt: read_json(path) for prompt, path in paths.items() if path.exists()}
    todo = [prompt for prompt in prompts if prompt not in found]
    if not todo:
        return found
    seen, lock = Counter[str](), threading.Lock()
    with ExitStack() as stack:
        if asked.url:
            key, http = os.environ.get(KEY, "").strip(), http_library()
            if not key.isascii() or not key.isprintable():
                raise SetupError(KEY, "holds characters that no key has", "set it again")
            limits = http.Limits(max_connections=asked.concurrency)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            client = stack.enter_context(http.Client(timeout=asked.timeout, limits=limits, headers=headers))
            reply: Callable[[str], Answer] = partial(_served, where, asked, client, seen)
        else:
            from training.model.generate import PromptTooLong, Writer  # loads torch

            writer = Writer(asked.model)

            def written(prompt: str) -> Answer:
                try:
                    text, whole = writer.answer(prompt, asked.max_tokens, asked.per_document)
                except PromptTooLong as error:
                    return {"refused": error.what}
                return {"answer": text, "whole": whole}

            reply = written

        advance = stack.enter_context(progress(f"ask {asked.model}", len(todo), "documents"))

        def kept(prompt: str) -> Answer:
            answer = reply(prompt)
            if "answer" in answer and not paths[prompt].exists():
                with atomic(paths[prompt]) as file:
                    file.write(sealed(answer))
            with lock:
                seen["answered" if "answer" in answer else "refused"] += 1
                advance(1)
            if seen["refused"] >= REFUSED_MOST and not seen["answered"]:
                what = f"{asked.model} refuses each of the first {REFUSED_MOST} documents ({answer.get('refused')})"
                raise SourceError(where, what, "check 'model', or lower 'max_chars' or 'max_tokens'")
            return answer

        return found | dict(zip(todo, at_once(kept, todo, asked.concurrency if asked.url else 1), strict=True))


def _served(where: str, asked: Questions, client: Any, seen: Counter[str], prompt: str) -> Answer:
    """Return a server's answer by OpenAI's route of chat completions; a busy server is asked again."""
    http, url = http_library(), f"{str(asked.url).rstrip('/')}/chat/completions"
    body = {
        "model": asked.model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": asked.max_tokens,
    }
    what = hint = ""
    for wait in (*WAITS, None):
        pause: float | None = wait
        try:
            response = client.post(url, json=body)
        except http.TimeoutException:
            what, hint = (
                f"{url} does not answer within {asked.timeout:g} s",
                f"raise 'timeout' or lower 'concurrency', and {KEPT}",
            )
            pause = 0 if wait else None  # it has had its time
        except http.InvalidURL as error:
            raise SourceError(where, f"{url} is not an address ({error})", "check 'url'") from None
        except http.TransportError as error:
            what, hint = f"{url} cannot be reached ({type(error).__name__})", f"is the server running? {KEPT}"
            if isinstance(error, http.ConnectError) and not seen["answered"]:
                raise SourceError(where, what, "start the server, or check 'url'") from None
        else:
            status, after = response.status_code, response.headers.get("Retry-After", "")
            if status == 200:
                break
            try:
                fault = response.json()["error"]
                said = fault["message"] if isinstance(fault, dict) else fault
            except (ValueError, KeyError, TypeError):
                said = response.text
            said = visible(" ".join(_whole(str(said)).split()))[:EVIDENCE_CHARS]
            what = f"{url} answers {status}" + (f" ({said})" if said else "")
            if status in REFUSED:
                return {"refused": said or f"the server answers {status}"}
            if status in (401, 403):
                raise SourceError(where, what, f"check {KEY}" if os.environ.get(KEY) else f"set {KEY}")
            if status not in BUSY:
                raise SourceError(where, what, "check 'url', which mostly ends in /v1, and 'model'")
            hint = f"lower 'concurrency', and {KEPT}"
            pause = min(int(after), LONGEST_WAIT) if wait and after.isdigit() else wait
        if pause is None:
            raise SourceError(where, f"{what}, {len(WAITS) + 1} times in a row", hint)
        logging.getLogger("tuplesmith").warning("%s: %s; trying again in %g s", where, what, pause)
        time.sleep(pause)
    try:
        choice = response.json()["choices"][0]
        text, whole = choice["message"].get("content") or "", choice.get("finish_reason") != "length"
        if isinstance(text, str):
            return {"answer": _whole(text), "whole": whole}
        wrong = f"'content' is {first_line(ValueError(text))}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        wrong = visible(" ".join(_whole(response.text).split()))
    raise SourceError(where, f"{url} answers no chat completion ('{wrong[:SHOWN]}')", "check 'url', which mostly ends in /v1")


def _whole(text: str) -> str:
    """Return a text with halves of surrogate pairs, which JSON can hold and files cannot, as replacement characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
