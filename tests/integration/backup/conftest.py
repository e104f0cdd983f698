"""A home with the three real databases, as a stack that has run leaves it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.api.db.databases import migrate_main, open_main, open_telemetry
from services.api.telemetry.database import migrate_telemetry, take_over
from services.reward.store.database import open_reward
from services.scheduler.main import open_database
from shared.bus.keys import write_atomically
from shared.keyring import Keyring
from shared.settings import Settings
from trainyard.backup.stack import ensure_stack_id

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
MakeHome = Callable[[str], Settings]


@pytest.fixture
def make_home(tmp_path: Path) -> MakeHome:
    def make(name: str) -> Settings:
        home = tmp_path / name
        home.mkdir()
        settings = Settings(home=home, checkpoint_dir=home / "checkpoints", database_url=None)
        main, telemetry = open_main(settings), open_telemetry(settings)
        migrate_main(main)
        migrate_telemetry(telemetry)
        telemetry.submit(lambda s: take_over(s, 0)).result(10)
        scheduler = open_database(settings)
        for database in (main, telemetry, scheduler, open_reward(settings)):
            database.close()
        Keyring.load(home / "keys" / "master.key")
        write_atomically(home / "nats" / "hosts.json", '{"h1": "U1"}')
        write_atomically(home / "agents" / "local" / "host.json", '{"host_id": "h1"}')
        ensure_stack_id(home)
        return settings

    return make
