"""Every stream and bucket as data, and `ensure_streams`, which makes the broker agree with it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.bus import wire
from shared.bus.port import BusError, BusUnavailable, RequestTimeout, StreamMissing
from shared.log import logger

if TYPE_CHECKING:
    from shared.bus.jetstream import Bus

DAY = 86_400
DEFAULT_STORE_MIB = 2048
"""Disk that all streams together may take; the broker refuses more."""
CONTROL_STREAM = "KV_ctl"
CONTROL_SUBJECT = "$KV.ctl"


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream. `share` is its part of the store in percent."""

    name: str
    subjects: tuple[str, ...]
    share: int
    description: str
    writer: str
    readers: str
    max_age_days: int | None = 90
    discard: str = "new"
    """`new`: a full stream refuses, and the message stays where it came from. `old`: the oldest go; only for
    feeds whose truth lies elsewhere and whose readers are long past them."""
    duplicate_window_seconds: int = 3600
    fast: bool = False
    """Compressed, and acknowledged before fsync: the agent's spool keeps a copy until the api has stored it."""
    per_subject: int | None = None
    """Only the last so many messages of a subject stay."""
    keyed: bool = False
    """A key-value bucket."""


STREAMS: tuple[StreamSpec, ...] = (
    StreamSpec(
        "REQUESTS",
        ("req.>",),
        8,
        "What users asked for",
        "api",
        "scheduler",
        duplicate_window_seconds=24 * 3600,
    ),
    StreamSpec(
        "JOBS",
        ("job.*", "host.*"),
        14,
        "What the scheduler decided; a feed, its truth is the scheduler's database",
        "scheduler",
        "api, subscribers",
        discard="old",
        per_subject=4096,
    ),
    StreamSpec(
        "RUNS",
        ("run.>",),
        14,
        "Facts about attempts",
        "agent",
        "scheduler, api",
        discard="old",
    ),
    StreamSpec(
        "METRICS",
        ("met.>",),
        26,
        "Metric, progress and system samples, batched",
        "agent",
        "api",
        duplicate_window_seconds=600,
        fast=True,
    ),
    StreamSpec(
        "LOGS",
        ("log.>",),
        14,
        "Log lines, batched",
        "agent",
        "api",
        duplicate_window_seconds=600,
        fast=True,
    ),
    StreamSpec(
        "SAMPLES",
        ("smp.>",),
        10,
        "Sample completions, batched",
        "agent",
        "api",
        duplicate_window_seconds=600,
        fast=True,
    ),
    StreamSpec("REWARD", ("rw.>",), 6, "Calls of reward providers", "reward", "api", discard="old"),
    StreamSpec(
        "ALERTS",
        ("alert.>",),
        2,
        "Alerts",
        "api",
        "subscribers",
        max_age_days=180,
        discard="old",
    ),
    StreamSpec(
        CONTROL_STREAM,
        (f"{CONTROL_SUBJECT}.>",),
        4,
        "Bucket `ctl`: the desired state of each run, key <host>.<job>",
        "scheduler",
        "agent",
        # A key that vanishes by age would stop a long run.
        max_age_days=None,
        duplicate_window_seconds=120,
        keyed=True,
    ),
)
SPECS = {spec.name: spec for spec in STREAMS}


def stream_of(subject: str) -> str:
    """Return the stream that holds `subject`, or the subject itself when none does."""
    head = subject.partition(".")[0]
    for spec in STREAMS:
        for pattern in spec.subjects:
            if pattern.partition(".")[0] == head:
                return spec.name
    return subject


def server_config(spec: StreamSpec, store_mib: int = DEFAULT_STORE_MIB) -> dict[str, Any]:
    """Return the JetStream configuration of `spec`; `store_mib` is the disk for all streams together."""
    config: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "subjects": list(spec.subjects),
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": spec.per_subject or -1,
        "max_bytes": store_mib * 1024 * 1024 * spec.share // 100,
        "max_age": (spec.max_age_days or 0) * DAY * 1_000_000_000,
        "max_msg_size": -1,
        "discard": spec.discard,
        "duplicate_window": spec.duplicate_window_seconds * 1_000_000_000,
        "allow_direct": True,
        "deny_delete": True,
    }
    if spec.fast:
        config |= {"persist_mode": "async", "compression": "s2"}
    if spec.keyed:
        config |= {"max_msgs_per_subject": 1, "allow_rollup_hdrs": True, "allow_msg_ttl": True}
    return config


async def ensure_streams(
    bus: Bus, store_mib: int = DEFAULT_STORE_MIB, timeout: float = 20.0
) -> None:
    """Create what is missing and update what differs; harmless to repeat and to run twice at once.

    Raises BusUnavailable when the broker is not ready within `timeout` seconds, PermissionDenied.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    for spec in STREAMS:
        while True:
            try:
                await _ensure(bus, server_config(spec, store_mib))
                break
            except (BusUnavailable, RequestTimeout):
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.2)


async def _ensure(bus: Bus, desired: dict[str, Any]) -> None:
    name = str(desired["name"])
    try:
        info = await wire.stream_info(bus.connection, name)
    except StreamMissing:
        await wire.call(bus.connection, f"STREAM.CREATE.{name}", desired, stream=name)
        return
    drift = {k: v for k, v in desired.items() if info["config"].get(k, _ABSENT.get(k)) != v}
    if not drift:
        return
    try:
        await wire.call(bus.connection, f"STREAM.UPDATE.{name}", desired, stream=name)
    except wire.ApiError as error:
        # Some settings are fixed for the life of a stream; the old ones still hold the data safely.
        logger("bus").warning(
            "stream_update_refused", stream=name, keys=sorted(drift), error=str(error)
        )
    else:
        logger("bus").info("stream_updated", stream=name, keys=sorted(drift))


_ABSENT: dict[str, Any] = {"max_age": 0, "compression": "none", "persist_mode": "default"}
"""What the broker leaves out of its answers."""

__all__ = [
    "SPECS",
    "STREAMS",
    "BusError",
    "StreamSpec",
    "ensure_streams",
    "server_config",
    "stream_of",
]
