"""Print the lowest versions that pyproject.toml allows, one per line for pip: `make test-lowest`.

Without torch and transformers: `curate` needs neither, and an older torch is a download of several gigabytes.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
for one in PROJECT["dependencies"]:
    if not one.startswith(("torch>", "transformers>")):
        print(re.sub(r"^([\w-]+)>=([\d.]+).*$", r"\1==\2", one))
