"""Where the database lies, and how it is brought to the newest schema."""

from __future__ import annotations

from pathlib import Path

from shared.db import Database
from shared.db.engine import migrate
from shared.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
SCHEMA = "reward"


def open_reward(settings: Settings) -> Database:
    """Open and migrate it: SQLite below the home, or the schema `reward` of TRAINYARD_DATABASE_URL."""
    url = settings.database_url or f"sqlite:///{settings.home / 'reward' / 'reward.db'}"
    database = Database(url, synchronous="FULL", schema=SCHEMA)
    migrate(database, MIGRATIONS)
    return database
