"""One build to publish, and a Hub a file of tests."""

from __future__ import annotations

import pytest

from tests.curation.share.small_published import lock, make
from tests.servers.hub_server import hub


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return lock(make(tmp_path_factory.mktemp("publish") / "b"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with hub(tmp_path_factory.mktemp("hub")) as running:
        yield running
