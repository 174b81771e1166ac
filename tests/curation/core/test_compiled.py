"""What numba kept on disk is made anew when any file changes that a loop is made of."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import curation

CODE = "import numpy as np; from curation.clean.overlap_kernels import _mixed; print(_mixed(np.uint64(5)), len(_mixed.stats.cache_hits))"


WITHOUT_FOLDER = """
import polars as pl
from curation.core import text
text.MANY = 0
print(ascii(text.normalised(pl.Series(["A-", "Straße", "..."])).to_list()))
"""


def mixed_in(place: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=place, capture_output=True, text=True, check=True, env={"PATH": ""})
    return done.stdout.split()


def test_a_loop_is_compiled_again_when_a_file_changes_that_its_own_imports(tmp_path):
    shutil.copytree(Path(curation.__file__).parent, tmp_path / "curation", ignore=shutil.ignore_patterns("__pycache__"))
    first, _ = mixed_in(tmp_path)
    assert mixed_in(tmp_path) == [first, "1"]
    grams = tmp_path / "curation/clean/overlap_grams.py"
    grams.write_text(re.sub(r"^MIX = .*", "MIX = 3", grams.read_text(), flags=re.MULTILINE))
    assert mixed_in(tmp_path) == ["240", "0"]  # 5 * 3, rotated by 4 bits


def test_loops_are_compiled_in_memory_where_there_is_no_folder_for_them():
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator", "PATH": ""}  # which finds a folder for zipped packages alone
    done = subprocess.run([sys.executable, "-c", WITHOUT_FOLDER], capture_output=True, text=True, check=True, env=nowhere)
    assert done.stdout == "['a \\u2212', 'stra\\xdfe', None]\n"
