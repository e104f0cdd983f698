"""Where the api's two databases lie, and how they are brought to the newest schema."""

from __future__ import annotations

from pathlib import Path

from shared.db import Database
from shared.db.engine import migrate
from shared.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
MAIN_SCHEMA = "api"
TELEMETRY_SCHEMA = "telemetry"


def open_main(settings: Settings) -> Database:
    """Open the database of requests and of the read model; every commit is on disk when answered."""
    url = settings.database_url or f"sqlite:///{settings.home / 'api' / 'main.db'}"
    return Database(url, synchronous="FULL", schema=MAIN_SCHEMA)


def open_telemetry(settings: Settings) -> Database:
    """Open the database of metrics, logs and samples; it can be made again, so it need not wait for the disk."""
    url = settings.database_url or f"sqlite:///{settings.home / 'api' / 'telemetry.db'}"
    return Database(url, synchronous="NORMAL", schema=TELEMETRY_SCHEMA)


def migrate_main(database: Database) -> None:
    """Bring the main database to the newest schema."""
    migrate(database, MIGRATIONS)
