"""Which text goes before queries and passages. Mining, training and evaluation all decide it here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from curation.core.errors import listed
from curation.core.record import render_query

PROMPTS = ("auto", "instruct", "none")
QUERY, PASSAGE = "query", "document"  # the names that sentence-transformers' encode_query and encode_document look for
INSTRUCTED = re.compile(r"Instruct: .*\nQuery: ", re.DOTALL)  # a prompt that `render_query` made from an instruction
RESERVED = (QUERY, "queries", PASSAGE, "passage", "corpus")  # names under which no source's prompt is saved


@dataclass(frozen=True)
class Prompts:
    """The text before a model's queries and passages."""

    used: str  # given (in the manifest), own (the model's), instruct (the source's instruction before each query) or none
    query: str = ""
    passage: str = ""
    note: str = ""  # a line for the log if some prompt of the model is not used

    def of_query(self, instruction: str, text: str) -> str:
        """Return a query as the model reads it."""
        return render_query(instruction, text) if self.used == "instruct" else self.query + text

    def of_passage(self, text: str) -> str:
        """Return a passage as the model reads it."""
        return self.passage + text

    def summary(self) -> str:
        """Return the prompts in words."""
        if self.used == "instruct":
            return "queries begin with the instruction of their source ('Instruct: ...\\nQuery: '), passages with nothing"
        if not self.query and not self.passage:
            return "queries and passages have no prompt"
        before = [json.dumps(text, ensure_ascii=False) if text else "nothing" for text in (self.query, self.passage)]
        whose = "the manifest's prompts" if self.used == "given" else "the model's own prompts"
        return f"queries begin with {before[0]}, passages with {before[1]} ({whose})"


def choose_prompts(
    prompt: str,
    own: Mapping[str, str],
    is_decoder: bool,
    given: Mapping[str, str] | None = None,
    default: str | None = None,
    trained: str | None = None,
) -> Prompts:
    """Return what `prompt` (auto, instruct, none) means for a model.

    Args:
        prompt: auto = `given`, else the model's own, else as it was trained, else instruct for decoders, none for encoders.
        own: the model's prompts by name. As in sentence-transformers, queries get the prompt named query, passages the prompt
            named document, and no other prompt is used.
        is_decoder: whether the model reads instructions if it has no prompts.
        given: the manifest's `prompts`, by `query` and `passage`.
        default: the model's default_prompt_name, which encode_query and encode_document do not use either.
        trained: how the queries of a model that `train` wrote were rendered, as `Prompts.used`.
    """
    if prompt == "none":
        return Prompts("none")
    if prompt == "instruct":
        return Prompts("instruct")
    if given is not None:
        return Prompts("given", given.get("query", ""), given.get("passage", ""))
    query, passage = own.get(QUERY, ""), own.get(PASSAGE, "")
    unused = [name for name, text in own.items() if text and name not in (QUERY, PASSAGE)]
    if trained is None and any(INSTRUCTED.fullmatch(own[name]) for name in unused):
        trained = "instruct"  # written by a version that did not save `trained_prompt`
    used = "own" if query or passage else trained if trained in ("instruct", "none") else "instruct" if is_decoder else "none"
    note = ""
    if unused and not (used == "instruct" and all(own[name].startswith("Instruct: ") for name in unused)):
        named = listed(unused, 6) + (f" (default: {default})" if default in unused else "")
        note = (
            f"the model's prompts {named} are not used, as in sentence-transformers' encode_query and encode_document; "
            "to use one, give `prompts: {query: ..., passage: ...}`"
        )
    return Prompts(used, query, passage, note)


class Prompted:
    """Puts prompts before texts."""

    prompts: Prompts

    def query(self, instruction: str, text: str) -> str:
        """Return the query with its prompt."""
        return self.prompts.of_query(instruction, text)

    def passage(self, text: str) -> str:
        """Return the passage with its prompt."""
        return self.prompts.of_passage(text)
