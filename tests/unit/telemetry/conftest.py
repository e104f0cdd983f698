"""A telemetry database in a file, and messages as the broker would deliver them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.api.telemetry.database import migrate_telemetry, take_over
from shared.db import Database


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'telemetry.db'}", synchronous="NORMAL")
    migrate_telemetry(database)
    database.submit(lambda s: take_over(s, 0)).result(60)
    yield database
    database.close()
