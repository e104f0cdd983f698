"""SQL engines for SQLite and PostgreSQL, one writer per database, migrations."""

from shared.db.engine import Database, DatabaseBusy, DatabaseFull

__all__ = ["Database", "DatabaseBusy", "DatabaseFull"]
