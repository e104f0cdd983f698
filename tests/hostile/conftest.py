"""One real broker and api for all hostile tests of a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.hostile.target import SECONDS_AT_MOST, Target, start


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A job that has ended, one that waits."""
    running = start(tmp_path_factory.mktemp("hostile") / "home")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def unharmed(target: Target) -> Iterator[Target]:
    """Nothing is written meanwhile, and it does not take long."""
    target.settle()
    before, began = target.written(), time.monotonic()
    yield target
    assert time.monotonic() - began < 2 * SECONDS_AT_MOST
    assert target.written() == before
