"""What all parts of a manifest have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]


class Section(BaseModel):
    """A part of a manifest; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
