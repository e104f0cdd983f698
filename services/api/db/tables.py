"""Every table of the main database, imported once so that its metadata is whole."""

from __future__ import annotations

from services.api.checkpoints.models import CheckpointRow
from services.api.db.outbox_models import RequestRow
from services.api.db.positions import projection_position_table
from services.api.db.types import MAIN
from services.api.hosts.models import HostRow, JoinCodeRow
from services.api.jobs.models import AttemptRow, JobDependencyRow, JobEventRow, JobRow
from services.api.rewards.models import AlertRow, RewardSourceRow, RewardUsageRow
from services.api.secrets.models import JobSecretRow

PROJECTION_POSITION = projection_position_table(MAIN.metadata)
METADATA = MAIN.metadata

__all__ = [
    "METADATA",
    "AlertRow",
    "AttemptRow",
    "CheckpointRow",
    "HostRow",
    "JobDependencyRow",
    "JobEventRow",
    "JobRow",
    "JobSecretRow",
    "JoinCodeRow",
    "RequestRow",
    "RewardSourceRow",
    "RewardUsageRow",
]
