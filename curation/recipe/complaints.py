"""What is wrong with a recipe, in one sentence with a line number, for the first thing that is."""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from curation.core.errors import ManifestError, did_you_mean, listed
from curation.recipe.yaml import Document, Place

S = TypeVar("S", bound=BaseModel)
WANTED = {  # pydantic's kind of error: what should stand there
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "yes or no",
    "float_type": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "model_type": "a set of keys",
    "dict_type": "a set of keys",
}


def checked(model: type[S], document: Document) -> S:
    """Return the section that a document holds.

    Raises:
        ManifestError: `file:line: what`, for the first thing that is wrong.
    """
    try:
        return model.model_validate(document.value, strict=False)
    except ValidationError as error:
        found = error.errors()
        first = found[0]
        if first["type"] == "missing":  # a key that is misspelt is also missing: the word that is there says more
            section = first["loc"][:-1]
            first = next((one for one in found if one["type"] == "extra_forbidden" and one["loc"][:-1] == section), first)
        place: Place = tuple(first["loc"])
        raise ManifestError(document.where(place), _complaint(model, first, place)) from None


def _complaint(model: type[BaseModel], error: Any, place: Place) -> str:
    """Turn pydantic's first complaint into a sentence."""
    key = str(place[-1]) if place else ""
    kind, got = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _section_at(model, place[:-1]).model_fields
        return f"unknown key '{key}'" + (did_you_mean(key, known) or f"; known keys: {listed(known, 30)}")
    if kind == "missing" and isinstance(place[-1], int):  # of a list whose length is given
        wanted = len(get_args(_section_at(model, place[:-2]).model_fields[str(place[-2])].annotation))
        return f"{_readable(place[:-1])}: {len(got)} of {wanted} values are given"
    if kind == "too_long":
        return f"{_readable(place)}: {len(got)} values are given, and {error['ctx']['max_length']} wanted"
    if kind == "missing":
        return f"'{key}' is missing" + (f" in {_readable(place[:-1])}" if place[:-1] else "")
    if kind == "literal_error":
        choices = error["ctx"]["expected"].replace("'", "")
        return f"{_readable(place)}: '{got}' is none of {choices}" + did_you_mean(
            str(got), choices.replace(" or ", ", ").split(", ")
        )
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "string_pattern_mismatch" and key == "license_checked":
        return f"{_readable(place)}: '{got}' is no day or month, such as 2026-11-22"
    if kind == "string_pattern_mismatch":
        return f"{_readable(place)}: '{got}' is no name; use small letters, digits, '-', '_' and '.'"
    if kind in WANTED:
        return f"{_readable(place)}: {_shown(got)} is not {WANTED[kind]}"
    return f"{_readable(place)}: {error['msg'][0].lower()}{error['msg'][1:]}" + (
        f", not {_shown(got)}" if got is not None else ""
    )


def _shown(value: object) -> str:
    return "nothing" if value is None else f"'{value}'" if isinstance(value, str) else f"a {type(value).__name__}"


def _readable(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _section_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """Return the section class that stands at a place of the manifest."""
    named = False  # whether what comes next is a name that the user chose
    for part in place:
        if isinstance(part, int) or named:
            named = False
            continue
        annotation = model.model_fields[part].annotation
        named = get_origin(annotation) is dict
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return model
