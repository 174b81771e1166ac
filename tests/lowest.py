"""Print the lowest versions that pyproject.toml allows, and the test tools of constraints.txt, for pip: `make test-lowest`.

Without torch and transformers: `curate` needs neither, and an older torch is a download of several gigabytes.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
for one in PROJECT["dependencies"]:
    if not one.startswith(("torch>", "transformers>")):
        print(re.sub(r"^([\w-]+)>=([\d.]+).*$", r"\1==\2", one))
for one in (ROOT / "constraints.txt").read_text().splitlines():
    if one.startswith(("pytest==", "pytest-timeout==", "hypothesis==")):
        print(one)
