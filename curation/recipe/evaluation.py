"""The `decontaminate:` section of a manifest: evaluation sets whose texts must not be trained on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from curation.recipe.source import Fields, Table, TextTable, expand_beir
from curation.recipe.yaml import Section


class EvalSet(Table):
    """An evaluation set. Columns are mapped as in a source: `fields`, and `corpus` and `queries` for qrels."""

    split: str = Field("test", description="split of the dataset in `path`")
    name: str | None = Field(None, min_length=1, description="name in reports. If empty: its path or first file")
    fields: Fields = Field(description="which column holds what; `query` alone is enough. Labels and scores of pairs are ignored")
    corpus: TextTable | None = Field(None, description="qrels: the table of passages")
    queries: TextTable | None = Field(None, description="qrels: the table of queries")
    threshold: float = Field(1, description="qrels: lowest score that makes a passage relevant")

    @property
    def title(self) -> str:
        """The name in reports."""
        return self.name or self.places[0]

    @model_validator(mode="before")
    @classmethod
    def _beir(cls, data: Any) -> Any:
        return expand_beir({"split": "test", **data}) if isinstance(data, dict) and data.get("reader") == "beir" else data

    @model_validator(mode="after")
    def _readable(self) -> EvalSet:
        f = self.fields
        ids, tables = (f.query_id, f.positive_id), (self.corpus, self.queries)
        if any((*ids, *tables)) and not all((*ids, *tables)):
            raise ValueError("qrels need 'query_id' and 'positive_id' in 'fields', and 'corpus' and 'queries'")
        if not any((*ids, f.query, f.positive)):
            raise ValueError("'fields' maps no text; map query, positive or both, or query_id and positive_id")
        qrels = all(ids)
        useless = {
            name: column
            for name in ("documents", "title", "id", "answer", "positive_score", "negative_scores")
            if (column := getattr(f, name))
        }
        useless |= {"threshold": True} if not qrels and "threshold" in self.model_fields_set else {}
        useless |= {name: True for name in ("query", "positive", "negatives", "label") if qrels and getattr(f, name)}
        if useless:
            hint = "; map it as 'positive'" if "documents" in useless else ""
            raise ValueError(
                f"'{next(iter(useless))}' has no effect in an evaluation set of {'qrels' if qrels else 'pairs'}{hint}"
            )
        return self


class Decontaminate(Section):
    """Drop tuples whose query or positive occurs in an evaluation set, and negatives that do. Held-out queries are protected too."""

    against: list[EvalSet] = Field([], description="evaluation sets, a list; each with the keys of a source's table")
    mteb: list[str] = Field(
        [],
        description="MTEB tasks or benchmarks by name, such as `SciFact` or `MTEB(eng, v2)`, with all splits that MTEB scores; `scored-on-train` means all tasks of text benchmarks that MTEB scores on a train split. Needs `tuplesmith[mteb]`",
    )
    mode: Literal["drop", "report", "strict"] = Field(
        "drop",
        description="`drop`: drop tuples whose query or positive occurs in an evaluation set, and remove contaminated negatives. `report`: only report them. `strict`: also drop texts that occur in the corpus of an evaluation set",
    )
    allow: list[str] | str = Field(
        [],
        description="texts that never count as contaminated: a list, or a file with one text per line. Short and common texts never count",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Decontaminate:
        names = [one.title for one in self.against] + self.mteb
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two evaluation sets are named '{min(twice)}'; give one of them another 'name'")
        return self
