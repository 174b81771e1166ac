"""What all parts of a manifest have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

MOST = (1 << 63) - 1
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]


class Section(BaseModel):
    """A part of a manifest; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _countable(cls, value: object) -> object:
        if isinstance(value, int) and abs(value) > MOST:
            raise ValueError(f"{value} is larger than any number of rows")
        return value
