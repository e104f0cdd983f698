"""Rows of secrets: sealed on the way in, opened for one attempt only."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlmodel import Session, col

from services.api.db.tables import JobSecretRow
from shared.keyring import Keyring

SHOWN_FROM = 12
"""Characters from which the last four are shown: of a short secret they would be too much of it."""


def seal(keyring: Keyring, job: str, values: dict[str, str], now: datetime) -> list[JobSecretRow]:
    """Return rows to store. Raises TrainyardError 503 when there is no usable master key."""
    rows = []
    for name, value in values.items():
        key_id, ciphertext = keyring.encrypt(job, name, value)
        last4 = value[-4:] if len(value) >= SHOWN_FROM and "\n" not in value else ""
        rows.append(
            JobSecretRow(
                job=job,
                name=name,
                key_id=key_id,
                ciphertext=ciphertext,
                last4=last4,
                created_at=now,
            )
        )
    return rows


def secrets_of(session: Session, job: str) -> list[JobSecretRow]:
    """Return the rows of a job, by name."""
    statement = (
        select(JobSecretRow).where(col(JobSecretRow.job) == job).order_by(col(JobSecretRow.name))
    )
    return list(session.execute(statement).scalars())


def open_all(keyring: Keyring, rows: list[JobSecretRow]) -> dict[str, str]:
    """Return the values by name. Raises TrainyardError 503 naming the key id that is missing."""
    return {
        row.name: keyring.decrypt(row.key_id, row.ciphertext, row.job, row.name) for row in rows
    }
