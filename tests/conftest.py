"""What every test shares: offline, one thread of torch, and the place of the shared datasets."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.commands import Commands, commands

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.fsync = lambda handle: None  # waiting for the disk took a third of the time; a test may kill a process, but not the machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two processors; torch's idle threads wait by spinning

settings.register_profile("facts", deadline=None)  # tests assert facts, not times
settings.load_profile("facts")

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real datasets; skip where it is absent, unless this is CI."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is missing, and CI must have it")
        pytest.skip("no ../shared/data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return what gives a folder by name that `make(folder)` filled, once for all processes that test at the same time."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, mark = base / name, base / f"{name}.made"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not mark.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                mark.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def forked(tmp_path_factory) -> Iterator[Commands]:
    """Return what runs command lines without the seconds of their imports; not for what an import prints, or the environment."""
    with commands(tmp_path_factory.mktemp("forked")) as running:
        yield running


@pytest.fixture(scope="module")
def tab():
    """Return a page of a headless browser; skip where there is none, unless this is CI."""
    from tests.browser import NAMES, browser, executable

    program = executable()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(f"none of {', '.join(NAMES)} is installed, and CI must have one")
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with browser(program) as page:
        yield page
