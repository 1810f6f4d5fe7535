"""The Hub that the tests of this folder publish to."""

from collections.abc import Iterator

import pytest
from helpers.hub_server import HubServer, log_in


USERS = {
    "hf_writer": {"name": "someone", "role": "write", "orgs": {"lab": "write", "museum": "read"}},
    "hf_reader": {"name": "someone", "role": "read", "orgs": {"lab": "write"}},
}


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    """A Hub, with `hf_writer` logged in."""
    with HubServer(USERS) as server:
        log_in(monkeypatch, server)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server
