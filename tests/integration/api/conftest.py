"""Fixtures of the api's tests; a migrated database is made once and copied."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog

from services.api.db.databases import migrate_main
from services.api.telemetry.database import migrate_telemetry
from shared.db import Database
from tests.integration.api.yard import ApiYard
from tests.integration.telemetry.conftest import postgres_server

__all__ = ["postgres_server"]
MakeYard = Callable[..., ApiYard]


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> None:
    """Log exceptions as text: the default, a drawing with every local, takes seconds."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both databases, migrated and empty."""
    folder = tmp_path_factory.mktemp("template")
    for name, migrate in (("main", migrate_main), ("telemetry", migrate_telemetry)):
        database = Database(f"sqlite:///{folder / name}.db")
        migrate(database)
        database.close()
    return folder


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Make one more migrated, empty PostgreSQL database and return its URL."""
    made = 0

    def url_of(name: str) -> str:
        return postgres_server.replace("postgresql://", "postgresql+psycopg://").replace(
            "/postgres?", f"/{name}?"
        )

    with psycopg.connect(postgres_server, autocommit=True) as connection:
        # Nothing here has to survive a power cut.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("CREATE DATABASE template_api")
        for schema, migrate in (("api", migrate_main), ("telemetry", migrate_telemetry)):
            database = Database(url_of("template_api"), schema=schema)
            migrate(database)
            database.close()

        def make() -> str:
            nonlocal made
            made += 1
            connection.execute(f"CREATE DATABASE api_{made} TEMPLATE template_api")
            return url_of(f"api_{made}")

        yield make


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None for SQLite files, else the URL of a migrated PostgreSQL database."""
    if request.param == "sqlite":
        return None
    make: Callable[[], str] = request.getfixturevalue("postgres_template")
    return make()


@pytest.fixture
async def make_yard(home: Path, sqlite_template: Path) -> AsyncIterator[MakeYard]:
    """Make apis on one home; all are closed after the test."""
    made: list[ApiYard] = []

    def make(url: str | None = None, **settings: object) -> ApiYard:
        if url is None and not (home / "api").exists():
            shutil.copytree(sqlite_template, home / "api")
        made.append(ApiYard(home, url, migrated=True, **settings))
        return made[-1]

    yield make
    for yard in made:
        await yard.close()


@pytest.fixture
def yard(make_yard: MakeYard) -> ApiYard:
    """An api on SQLite without a broker."""
    return make_yard()


@pytest.fixture
def both(make_yard: MakeYard, database_url: str | None) -> ApiYard:
    """An api on SQLite, then on PostgreSQL, without a broker."""
    return make_yard(database_url)
