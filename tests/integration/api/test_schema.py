"""The migrations lead to exactly the tables of the code, up and down; the OpenAPI document is the one of the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from services.api.db.databases import MIGRATIONS, migrate_main
from services.api.db.tables import METADATA
from services.api.openapi import render
from shared.db import Database
from shared.settings import PROJECT_ROOT

pytestmark = [pytest.mark.integration]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    else:
        make: Callable[[], str] = request.getfixturevalue("postgres_template")
        database = Database(make(), schema="drift")
    yield database
    database.close()


def test_the_migrations_make_the_tables_of_the_code(empty: Database) -> None:
    migrate_main(empty)
    migrate_main(empty)
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}


def test_the_openapi_document_is_up_to_date() -> None:
    stored = (PROJECT_ROOT / "docs" / "reference" / "openapi.json").read_text(encoding="utf-8")
    hint = "run: python -m services.api.openapi docs/reference/openapi.json"
    assert stored == render(), hint
