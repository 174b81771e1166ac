"""The build of thirty datasets, killed at ten random moments: it ends with the bytes of one that nobody disturbed."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from curation.store import file_digest
from tests.curation.plain_datasets import DEV

BUILD = [sys.executable, "-c", "from curation.cli import curate; curate()", "build", str(DEV), "-q", "-j", "2", "-o"]


def contents(folder):
    """Every file of a build but its timings, locks and what kills have left of unfinished files, by its digest."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("timings.json", ".curate-build.lock")
    ]
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


@pytest.mark.long
@pytest.mark.shared_data
@pytest.mark.timeout(3600)  # seconds; about three builds
def test_ten_kills_change_no_byte(shared_data, tmp_path):
    begun = time.monotonic()
    subprocess.run([*BUILD, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    usual, dice, kills = time.monotonic() - begun, random.Random(7), 0
    while kills < 10:
        process = subprocess.Popen([*BUILD, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=dice.uniform(0.03, 0.2) * usual)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # it came to the end of what earlier ones had left: the next one begins anew
            shutil.rmtree(tmp_path / "killed")
    subprocess.run([*BUILD, str(tmp_path / "killed")], check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
