"""A start does not load Alembic for a database that stands at the newest revision, and knows which that is."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from services.api.db import databases
from services.api.telemetry import database as telemetry
from services.scheduler import main as scheduler
from shared.db import Database
from shared.db.engine import migrate, newest_revision

FOLDERS = (databases.MIGRATIONS, telemetry.MIGRATIONS, scheduler.MIGRATIONS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_the_newest_revision_is_the_one_of_alembic(folder: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(folder))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [newest_revision(folder)]
    for script in scripts.walk_revisions():
        assert Path(script.path).name.partition("_")[0] == script.revision


def test_a_database_at_the_newest_revision_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'main.db'}")
    try:
        migrate(database, databases.MIGRATIONS)

        def refuse(*_: object) -> None:
            raise AssertionError("the schema was to be left alone")

        monkeypatch.setattr(command, "upgrade", refuse)
        migrate(database, databases.MIGRATIONS)
        with database.engine.connect() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
            connection.commit()
        with pytest.raises(AssertionError):
            migrate(database, databases.MIGRATIONS)
    finally:
        database.close()
