"""What a backup consists of: a literal list of files below TRAINYARD_HOME, and how each is saved and put back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["database", "file"]


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive, by its path below the home."""

    name: str
    kind: Kind
    migrations: str | None = None
    """Of a database: the folder of its schema's revisions, below the project."""
    optional: bool = False
    """A database that a stack need not have."""
    newer_stays: bool = False
    """A file that is there at a restore is the newer one, and stays."""


MASTER_KEY = "keys/master.key"
MEMBERS: tuple[Member, ...] = (
    Member("scheduler.db", "database", "services/scheduler/migrations"),
    Member("api/main.db", "database", "services/api/db/migrations"),
    Member("api/telemetry.db", "database", "services/api/telemetry/migrations"),
    # Providers with their sealed keys, stored rewards, verdicts that were paid for, budgets.
    Member("reward/reward.db", "database", "services/reward/store/migrations", optional=True),
    # Public keys only: with them the hosts that have joined are let in again. Hosts that joined or were removed since
    # the backup stand in the file that is there.
    Member("nats/hosts.json", "file", newer_stays=True),
    # The id of this machine as a host: checkpoints and running jobs are known by it.
    Member("agents/local/host.json", "file", newer_stays=True),
    Member(MASTER_KEY, "file"),
)
BY_NAME = {member.name: member for member in MEMBERS}
DATABASES = tuple(member for member in MEMBERS if member.kind == "database")
REQUIRED = tuple(member.name for member in DATABASES if not member.optional)
"""Every stack has these; a restore marks them."""


def revisions(member: Member) -> frozenset[str]:
    """Return the schema revisions that this version knows."""
    root = Path(__file__).resolve().parents[2]
    if member.migrations is None:
        return frozenset()
    folder = root / member.migrations / "versions"
    return frozenset(path.name.split("_")[0] for path in folder.glob("[0-9]*.py"))
