"""The same fixtures as the integration tests of the api."""

from __future__ import annotations

from tests.integration.api.conftest import (
    both,
    database_url,
    make_yard,
    plain_logs,
    postgres_server,
    postgres_template,
    sqlite_template,
    yard,
)

__all__ = [
    "both",
    "database_url",
    "make_yard",
    "plain_logs",
    "postgres_server",
    "postgres_template",
    "sqlite_template",
    "yard",
]
